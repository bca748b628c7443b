"""CTranslate2 on a folder of convert_ctranslate2.py, in int8: run.mjs starts it with { file, threads, phases, reps }.
Its only call is a whole generation, so the time of the steps is that of a generation with them less one without."""

import time

import phases

job = phases.job()
try:
    import ctranslate2
except ImportError as error:
    phases.print_missing(error.name)

generator = ctranslate2.Generator(
    job['file'], device='cpu', compute_type='int8', intra_threads=job['threads'], inter_threads=1
)


def seconds(tokens, count):
    start = time.perf_counter()
    exact = {'max_length': count, 'min_length': count, 'end_token': []}
    generator.generate_batch(tokens, sampling_topk=1, include_prompt_in_result=False, **exact)
    return time.perf_counter() - start


def generate(prompts, steps):
    tokens = [[f't{i}' for i in prompt] for prompt in prompts]
    first = seconds(tokens, 1)
    return first, seconds(tokens, steps + 1) - first if steps > 0 else 0


phases.run(job, generate, ctranslate2.__version__, 'float32, cache float32')
