"""transformers on PyTorch: run.mjs starts it with { file (the model's folder), threads, mode, phases, reps }, mode
one of

    bfloat16      weights and arithmetic in bfloat16
    int8          float32 with torch.ao.quantization.quantize_dynamic over every linear, the head among them (oneDNN)
    bitsandbytes  LLM.int8() with threshold 6, the rest in bfloat16
"""

import os
import time
import warnings

import phases

os.environ.update(HF_HUB_OFFLINE='1', TQDM_DISABLE='1')
warnings.filterwarnings('ignore')
job = phases.job()
mode = job['mode']
try:
    import torch
    import transformers

    if mode == 'bitsandbytes':
        import bitsandbytes
except ImportError as error:
    phases.print_missing(error.name)

transformers.logging.set_verbosity_error()
torch.set_num_threads(job['threads'])
torch.set_grad_enabled(False)


def load():
    options = {'dtype': torch.float32 if mode == 'int8' else torch.bfloat16}
    if mode == 'bitsandbytes':
        quantization = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
        options.update(quantization_config=quantization, device_map={'': 'cpu'})
    model = transformers.AutoModelForCausalLM.from_pretrained(job['file'], **options).eval()
    if mode == 'int8':
        torch.backends.quantized.engine = 'onednn'
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model


model = load()


def generate(prompts, steps):
    start = time.perf_counter()
    out = model(input_ids=torch.tensor(prompts), use_cache=True, logits_to_keep=1)
    ids = out.logits[:, -1].argmax(-1, keepdim=True)
    first = time.perf_counter()
    for _ in range(steps):
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
    return first - start, time.perf_counter() - first


version = torch.__version__.split('+')[0]
if mode == 'bitsandbytes':
    version = f'{bitsandbytes.__version__}, transformers {transformers.__version__}'
dtype = 'float32' if mode == 'int8' else 'bfloat16'
phases.run(job, generate, version, f'{dtype}, cache {dtype}')
