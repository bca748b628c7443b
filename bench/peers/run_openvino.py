"""OpenVINO on a graph of convert_openvino.py, with its defaults on the CPU (dynamic 8-bit activations, 8-bit cache):
run.mjs starts it with { file, threads, phases, reps }."""

import time

import phases

job = phases.job()
try:
    import numpy as np
    import openvino as ov
except ImportError as error:
    phases.print_missing(error.name)

compiled = ov.Core().compile_model(job['file'], 'CPU', {'INFERENCE_NUM_THREADS': job['threads'], 'NUM_STREAMS': 1})
request = compiled.create_infer_request()
names = {name for port in compiled.inputs for name in port.get_names()}


def step(ids, past):
    """The next ids [B, 1] behind ids [B, n] and `past` cached tokens."""
    batch, new = ids.shape
    feed = {
        'input_ids': ids,
        'attention_mask': np.ones((batch, past + new), np.int64),
        'beam_idx': np.arange(batch, dtype=np.int32),
    }
    if 'position_ids' in names:
        feed['position_ids'] = np.broadcast_to(np.arange(past, past + new), (batch, new)).astype(np.int64)
    logits = request.infer(feed, share_inputs=True, share_outputs=True)[0]
    return logits[:, -1].argmax(-1)[:, None].astype(np.int64)


def generate(prompts, steps):
    request.reset_state()
    start = time.perf_counter()
    ids = step(np.array(prompts, np.int64), 0)
    first = time.perf_counter()
    for i in range(steps):
        ids = step(ids, len(prompts[0]) + i)
    return first - start, time.perf_counter() - first


def described(setting):
    return str(compiled.get_property(setting)).strip("<>' ").replace("Type: '", '')


attention = f'{described("INFERENCE_PRECISION_HINT")}, cache {described("KV_CACHE_PRECISION")}'
phases.run(job, generate, ov.__version__.split('-')[0], attention)
