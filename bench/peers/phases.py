"""What every contestant does in its process, for those that run in Python; see phases.mjs, its twin."""

import json
import os
import random
import resource
import sys
import time

PHASES = {
    'prefill512': (512, 1, 0),
    'decode1': (16, 1, 64),
    'decode8': (16, 8, 32),
}
WARM_UP_STEPS = 4
TICK_SECONDS = 0.02


def job():
    """What run.mjs asks for: the one argument, JSON."""
    return json.loads(sys.argv[1])


def print_missing(package):
    print(json.dumps({'missing': package}))
    sys.exit(0)


def since_start_ms():
    """Milliseconds since this process began, the interpreter's own start included."""
    with open('/proc/self/stat') as file:
        started = int(file.read().rsplit(')', 1)[1].split()[19]) / os.sysconf('SC_CLK_TCK')
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started) * 1e3


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine():
    """Seconds that all processors were busy, that this process was, and the time."""
    with open('/proc/stat') as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / 100, own.user + own.system, time.perf_counter()


def noise_since(before):
    """The share of the machine that others used."""
    after = machine()
    others = (after[0] - before[0]) - (after[1] - before[1])
    return max(0, others - TICK_SECONDS) / ((after[2] - before[2]) * os.cpu_count())


def prompts(length, sequences):
    return [[random.randrange(300, 31300) for _ in range(length)] for _ in range(sequences)]


def run(job, generate, version, attention):
    """`generate(prompts, steps)` → seconds to the first tokens, seconds of the steps."""
    random.seed(1)
    generate(prompts(16, 1), 0)
    result = {'version': version, 'attention': attention, 'startMs': since_start_ms(), 'startPeakBytes': peak_bytes()}
    phases = {}
    for name in job['phases']:
        length, sequences, steps = PHASES[name]
        generate(prompts(length, sequences), min(WARM_UP_STEPS, steps))
        phases[name] = []
        for _ in range(job['reps']):
            before = machine()
            first, rest = generate(prompts(length, sequences), steps)
            phases[name].append({'ms': (first if steps == 0 else rest) * 1e3, 'noise': noise_since(before)})
    print(json.dumps({**result, 'phases': phases, 'peakBytes': peak_bytes()}))
