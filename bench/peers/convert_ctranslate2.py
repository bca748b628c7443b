"""A generated checkpoint as a CTranslate2 model in int8.

    python convert_ctranslate2.py FOLDER OUT

CTranslate2's converter wants a tokenizer beside the model and speaks tokens, not ids: a word-level one of the tokens
t0, t1, … is written for it, beside links to the checkpoint's files. """

import json
import pathlib
import shutil
import sys
import tempfile

import ctranslate2
from tokenizers import Tokenizer, models, pre_tokenizers


def write_tokenizer(folder, vocab):
    tokenizer = Tokenizer(models.WordLevel({f't{i}': i for i in range(vocab)}, unk_token='t0'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / 'tokenizer.json'))
    special = {'unk_token': 't0', 'bos_token': 't1', 'eos_token': 't2', 'pad_token': 't3'}
    settings = {'tokenizer_class': 'PreTrainedTokenizerFast', **special}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))


def main(source, out):
    source = pathlib.Path(source).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file in source.iterdir():
            (folder / file.name).symlink_to(file)
        write_tokenizer(folder, json.loads((source / 'config.json').read_text())['vocab_size'])
        shutil.rmtree(out, ignore_errors=True)
        ctranslate2.converters.TransformersConverter(str(folder)).convert(out, quantization='int8')


main(*sys.argv[1:])
