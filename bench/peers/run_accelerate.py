"""accelerate's loading and disk offload on the CPU: run.mjs starts it with { file (the model's folder), threads,
mode, dtype, scratch }, mode one of

    load, load-transformers, load-bitsandbytes   milliseconds to load the checkpoint into `dtype`, every byte of it
    resident, disk   milliseconds a token in bfloat16, all in memory or every block on disk (in the folder `scratch`)
"""

import json
import logging
import os
import pathlib
import shutil
import statistics
import sys
import time
import warnings

import phases

PROMPT = [[1, 2, 3, 4, 5, 6, 7, 8]]
TOKENS = 5
os.environ.update(HF_HUB_OFFLINE='1', TQDM_DISABLE='1')
logging.disable(logging.WARNING)
warnings.filterwarnings('ignore')
job = phases.job()
mode = job['mode']
try:
    import accelerate
    import torch
    import transformers

    if mode == 'load-bitsandbytes':
        import bitsandbytes
except ImportError as error:
    phases.print_missing(error.name)

transformers.logging.set_verbosity_error()
torch.set_num_threads(job['threads'])
torch.set_grad_enabled(False)
config = transformers.AutoConfig.from_pretrained(job['file'])
dtype = getattr(torch, job.get('dtype', 'bfloat16'))


def checkpoint_path():
    folder = pathlib.Path(job['file'])
    index = folder / 'model.safetensors.index.json'
    return str(index if index.exists() else folder / 'model.safetensors')


def dispatch(device_map, scratch=None):
    with accelerate.init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    options = {'device_map': device_map, 'dtype': dtype, 'offload_folder': scratch}
    return accelerate.load_checkpoint_and_dispatch(model, checkpoint_path(), **options).eval()


def transformers_load():
    options = {'dtype': dtype}
    if mode == 'load-bitsandbytes':
        quantization = transformers.BitsAndBytesConfig(load_in_8bit=True)
        options.update(quantization_config=quantization, device_map={'': 'cpu'})
    return transformers.AutoModelForCausalLM.from_pretrained(job['file'], **options)


def blocks_on_disk():
    """Every block on disk, the rest in memory."""
    if config.model_type == 'bloom':
        rest = ['transformer.word_embeddings', 'transformer.word_embeddings_layernorm', 'transformer.ln_f', 'lm_head']
        blocks = [f'transformer.h.{i}' for i in range(config.n_layer)]
    else:
        rest = ['model.embed_tokens', 'model.norm', 'model.rotary_emb', 'lm_head']
        blocks = [f'model.layers.{i}' for i in range(config.num_hidden_layers)]
    return {**dict.fromkeys(rest, 'cpu'), **dict.fromkeys(blocks, 'disk')}


def token_ms(model):
    """Median of the tokens behind the first."""
    out = model(input_ids=torch.tensor(PROMPT), use_cache=True, logits_to_keep=1)
    times = []
    for _ in range(TOKENS):
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main():
    scratch = os.path.join(job['scratch'], f'accelerate-{os.getpid()}')
    noise, start = phases.machine(), time.perf_counter()
    try:
        if mode.startswith('load-'):
            model = transformers_load()
        else:
            model = dispatch(blocks_on_disk() if mode == 'disk' else {'': 'cpu'}, scratch)
        result = {'version': accelerate.__version__, 'loadMs': (time.perf_counter() - start) * 1e3}
        result['noise'] = phases.noise_since(noise)
        if not mode.startswith('load'):
            result['tokenMs'] = token_ms(model)
        print(json.dumps({**result, 'peakBytes': phases.peak_bytes()}))
        sys.stdout.flush()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


main()
