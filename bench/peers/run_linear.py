"""One int8 linear of a peer alone, over float32 activations with 7 outlier columns of 4096: run.mjs starts it with
{ size, rows, threads, reps, mode, probe }, mode one of

    onednn        torch's dynamic int8 linear (oneDNN)
    bitsandbytes  Linear8bitLt with threshold 6

The weights rotate through more than 512 MB, so that they come from memory."""

import json
import time
import warnings

import phases

ROTATED_BYTES = 600e6
SAMPLE_SECONDS = 0.1
SAMPLES_A_REPETITION = 4
warnings.filterwarnings('ignore')
job = phases.job()
try:
    import torch

    if job['mode'] == 'bitsandbytes':
        import bitsandbytes
except ImportError as error:
    phases.print_missing(error.name)

torch.set_num_threads(job['threads'])
torch.set_grad_enabled(False)
size = job['size']


def onednn_linear():
    torch.backends.quantized.engine = 'onednn'
    model = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))
    torch.nn.init.normal_(model[0].weight, std=0.02)
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)[0]


def bitsandbytes_linear():
    layer = bitsandbytes.nn.Linear8bitLt(size, size, bias=False, has_fp16_weights=False, threshold=6.0)
    torch.nn.init.normal_(layer.weight, std=0.02)
    layer = layer.to('cpu')
    if layer.weight.dtype != torch.int8:
        raise SystemExit(f'run_linear: expected bitsandbytes to quantize the weight, got {layer.weight.dtype}')
    return layer.eval()


def activations(rows):
    """N(0, 0.7) with 7 of 4096 columns beyond the threshold in every row."""
    x = torch.randn(rows, size) * 0.7
    columns = max(1, round(7 * size / 4096))
    for i in range(columns):
        x[0::2, int((i + 0.5) * size / columns)] = 9
        x[1::2, int((i + 0.5) * size / columns)] = -8
    return x


def sample(layers, x):
    """Mean microseconds of a call, over SAMPLE_SECONDS."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SAMPLE_SECONDS:
        layers[count % len(layers)](x)
        count += 1
    return (time.perf_counter() - start) / count * 1e6


make = {'onednn': onednn_linear, 'bitsandbytes': bitsandbytes_linear}[job['mode']]
layers = [make() for _ in range(int(ROTATED_BYTES / size**2) + 1)]
probe = phases.Probe(job)
result = {}
for rows in job['rows']:
    x = activations(rows)
    sample(layers, x)
    measured = range(job['reps'] * SAMPLES_A_REPETITION)
    result[rows] = [probe.measure_beside(lambda: {'us': sample(layers, x)}) for _ in measured]
version = bitsandbytes.__version__ if job['mode'] == 'bitsandbytes' else torch.__version__.split('+')[0]
print(json.dumps({'version': version, 'rows': result}))
