"""What every contestant does in its process, for those that run in Python; see phases.mjs, its twin."""

import json
import os
import random
import resource
import subprocess
import sys
import time

# Tokens of a prompt, sequences, steps, how often a repetition measures it.
PHASES = {
    'prefill512': (512, 1, 0, 1),
    'decode1': (16, 1, 8, 5),
    'decode8': (16, 8, 8, 5),
}
WARM_UP_STEPS = 4
LONGEST_SECONDS = 30
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


class Probe:
    """The machine's ceilings (bench/native/ceilings.cc), compiled by run.mjs."""

    def __init__(self, job):
        folder, threads = job['probe']['folder'], job['probe']['threads']
        command = [os.path.join(folder, 'ceilings'), str(threads)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def read(self):
        """GB/s of plain reading out of cache."""
        self.child.stdin.write('read\n')
        return float(self.child.stdout.readline())

    def measure_beside(self, work):
        """What `work` returns, with the noise meanwhile and the speed of reads right before and after it."""
        first = self.read()
        before = machine()
        result = {**work(), 'noise': noise_since(before)}
        return {**result, 'read': 2 / (1 / first + 1 / self.read())}


def measure_phases(job, generate):
    """Turns of all phases, each as often as it wants to be measured."""
    probe = Probe(job)
    samples = {name: [] for name in job['phases']}
    wanted = {name: job['reps'] * PHASES[name][3] for name in job['phases']}
    deadline = time.perf_counter() + LONGEST_SECONDS
    for turn in range(max(wanted.values())):
        if turn >= 2 and time.perf_counter() > deadline:
            break
        for name in job['phases']:
            length, sequences, steps, _ = PHASES[name]

            def work():
                first, rest = generate(prompts(length, sequences), steps)
                return {'ms': (first if steps == 0 else rest) * 1e3}

            if turn < wanted[name]:
                samples[name].append(probe.measure_beside(work))
    return samples


def run(job, generate, version, attention):
    """`generate(prompts, steps)` → seconds to the first tokens, seconds of the steps."""
    random.seed(1)
    generate(prompts(16, 1), 0)
    result = {'version': version, 'attention': attention, 'startMs': since_start_ms(), 'startPeakBytes': peak_bytes()}
    for length, sequences, steps, _ in (PHASES[name] for name in job['phases']):
        generate(prompts(length, sequences), min(WARM_UP_STEPS, steps))
    phases = measure_phases(job, generate) if job['phases'] else {}
    print(json.dumps({**result, 'phases': phases, 'peakBytes': peak_bytes()}))
