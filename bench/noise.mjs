/**
 * How much of the machine other processes used while something was measured, so that a disturbed repetition can be
 * taken again. Linux only.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';

/** Others may use this share of the machine; more makes a repetition a noisy one. */
export const NOISE_LIMIT = 0.03;
/** /proc/stat counts hundredths of a second: no share finer than a tick or two can be told. */
const TICK_SECONDS = 0.02;

/** Seconds that all processors were busy, the hypervisor's share (steal) included, and what this process used. */
function snapshot() {
  const [user, nice, system, , , irq, softirq, steal] = readFileSync('/proc/stat', 'utf8')
    .split('\n', 1)[0]
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number);
  const own = process.cpuUsage();
  return {
    busy: (user + nice + system + irq + softirq + steal) / 100,
    own: (own.user + own.system) / 1e6,
    at: performance.now() / 1e3,
  };
}

/** Starts watching; the returned function gives the share of the machine (0 … 1) that others have used since. */
export function watchNoise() {
  const start = snapshot();
  return () => {
    const end = snapshot();
    const capacity = (end.at - start.at) * availableParallelism();
    const others = end.busy - start.busy - (end.own - start.own);
    return Math.max(0, others - TICK_SECONDS) / capacity;
  };
}

/** Waits until others leave the machine alone, at most `longestMs`. */
export async function waitForQuiet(longestMs) {
  const deadline = performance.now() + longestMs;
  while (performance.now() < deadline) {
    const noise = watchNoise();
    await new Promise((resolve) => setTimeout(resolve, 400));
    if (noise() <= NOISE_LIMIT) return;
  }
}
