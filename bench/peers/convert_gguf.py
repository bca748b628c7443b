"""A generated checkpoint as GGUF, matrices in Q8_0, for llama.cpp; names and row orders as llama.cpp's own converter
writes them.

    python convert_gguf.py FOLDER OUT.gguf

There is no tokenizer: a vocabulary of byte symbols and <t0>, <t1>, … stands in for it; drive the model with token ids.
"""

import sys

import gguf
import numpy as np

from checkpoint import Checkpoint

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def byte_symbols():
    """The 256 symbols of GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def write_head(out, checkpoint):
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(2)
    out.add_vocab_size(checkpoint.vocab)
    out.add_context_length(2048)
    out.add_embedding_length(checkpoint.hidden)
    out.add_feed_forward_length(checkpoint.intermediate)
    out.add_block_count(checkpoint.layers)
    out.add_head_count(checkpoint.heads)
    out.add_head_count_kv(checkpoint.kv_heads)
    if checkpoint.is_bloom:
        out.add_layer_norm_eps(checkpoint.eps)
    else:
        out.add_layer_norm_rms_eps(checkpoint.eps)
        out.add_rope_dimension_count(checkpoint.head_size)
        out.add_rope_freq_base(float(checkpoint.rope_theta))
    out.add_tokenizer_model('gpt2')
    out.add_tokenizer_pre('default')
    out.add_token_list(byte_symbols() + [f'<t{i}>' for i in range(checkpoint.vocab - 256)])
    out.add_token_types([1] * checkpoint.vocab)
    out.add_token_merges(['a b'])
    out.add_bos_token_id(checkpoint.vocab - 2)
    out.add_eos_token_id(checkpoint.vocab - 1)
    out.add_add_bos_token(False)


def main(folder, path):
    checkpoint = Checkpoint(folder)
    out = gguf.GGUFWriter(path, checkpoint.architecture)
    write_head(out, checkpoint)
    architecture = gguf.MODEL_ARCH.BLOOM if checkpoint.is_bloom else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(architecture, checkpoint.layers)
    for name in checkpoint.names():
        values = checkpoint.rotary_by_pairs(name, checkpoint.tensor(name))
        ggml_name = names.get_name(name.removeprefix('transformer.'), try_suffixes=('.weight', '.bias'))
        if ggml_name is None:
            raise SystemExit(f'convert_gguf: expected a tensor that GGUF knows, got {name}')
        if values.ndim == 2:
            out.add_tensor(ggml_name, gguf.quants.quantize(np.ascontiguousarray(values), Q8_0), raw_dtype=Q8_0)
        else:
            out.add_tensor(ggml_name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


main(*sys.argv[1:])
