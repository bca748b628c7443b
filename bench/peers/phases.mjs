/**
 * What every contestant does in its process, for those that run in Node (phases.py is its twin): first token from the
 * start of the process, then each phase once to warm up and `reps` times, one line of JSON at the end. An engine is {
 * version, attention, generate(prompts, steps), facts? }, where `generate` feeds the prompts (arrays of ids, all of
 * one length) and then makes `steps` greedy steps: { firstMs, restMs }.
 */
import { readFileSync } from 'node:fs';
import { watchNoise } from '../noise.mjs';

/** Tokens of a prompt, sequences and steps. `once`: neither warmed up nor repeated. */
export const PHASES = {
  prefill512: { prompt: 512, sequences: 1, steps: 0 },
  decode1: { prompt: 16, sequences: 1, steps: 64 },
  decode8: { prompt: 16, sequences: 8, steps: 32 },
  decode8after512: { prompt: 512, sequences: 8, steps: 16, once: true },
};
const WARM_UP_STEPS = 4;

let state = 12345;
function randomId() {
  state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
  return 300 + (state % 31000);
}

const prompts = ({ prompt, sequences }) =>
  Array.from({ length: sequences }, () => Array.from({ length: prompt }, randomId));

/** The version that this folder's package.json names. */
export function pinnedVersion(name) {
  return JSON.parse(readFileSync(new URL('package.json', import.meta.url), 'utf8')).dependencies[name];
}

/** Peak resident bytes of this process, its mapped files included. */
function peakResidentBytes() {
  return Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
}

/**
 * `job`: { reps, phases } as run.mjs writes it; `open` loads the engine. Prints { missing } where its package is not
 * installed.
 */
export async function runPhases(job, open) {
  let engine;
  try {
    engine = await open();
  } catch (error) {
    if (error?.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    console.log(JSON.stringify({ missing: error.message.split(' imported from')[0] }));
    return;
  }
  await engine.generate(prompts({ prompt: 16, sequences: 1 }), 0);
  const start = { startMs: performance.now(), startPeakBytes: peakResidentBytes() };
  const phases = {};
  for (const name of job.phases) {
    const phase = PHASES[name];
    if (!phase.once) await engine.generate(prompts(phase), Math.min(WARM_UP_STEPS, phase.steps));
    phases[name] = [];
    for (let rep = 0; rep < (phase.once ? 1 : job.reps); rep++) {
      const noise = watchNoise();
      const { firstMs, restMs } = await engine.generate(prompts(phase), phase.steps);
      phases[name].push({ ms: phase.steps === 0 ? firstMs : restMs, noise: noise() });
    }
  }
  const { version, attention, facts } = engine;
  console.log(JSON.stringify({ version, attention, facts, ...start, phases, peakBytes: peakResidentBytes() }));
}
