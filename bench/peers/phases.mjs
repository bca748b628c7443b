/**
 * What every contestant does in its process, for those that run in Node (phases.py is its twin): first token from the
 * start of the process, then each phase once to warm up, then turns of all phases, one line of JSON at the end.
 * An engine is { version, attention, generate(prompts, steps), facts? }, where `generate` feeds the prompts (arrays of
 * ids, all of one length) and then makes `steps` greedy steps: { firstMs, restMs }.
 *
 * Every sample carries the speed of plain reads right before and after it: memory's speed moves within seconds, so
 * that decoding can be judged only by the reads beside it. Hence also few steps at a time and many times.
 */
import { readFileSync } from 'node:fs';
import { Ceilings } from '../ceilings.mjs';
import { watchNoise } from '../noise.mjs';

/** Tokens of a prompt, sequences and steps; how often a repetition measures it. `once`: not warmed up, not repeated. */
export const PHASES = {
  prefill512: { prompt: 512, sequences: 1, steps: 0, times: 1 },
  decode1: { prompt: 16, sequences: 1, steps: 8, times: 5 },
  decode8: { prompt: 16, sequences: 8, steps: 8, times: 5 },
  decode8after512: { prompt: 512, sequences: 8, steps: 16, once: true },
};
const WARM_UP_STEPS = 4;
/** No further turns after so long; the slow ones have enough by then. */
const LONGEST_MS = 30e3;

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

/** What `work` returns, with the noise meanwhile and the speed of plain reads (GB/s) right before and after it. */
export async function measureBeside(probe, work) {
  const before = await probe.read();
  const noise = watchNoise();
  const result = { ...(await work()), noise: noise() };
  return { ...result, read: 2 / (1 / before + 1 / (await probe.read())) };
}

/** Turns of all phases, each as often as it wants to be measured. */
async function measurePhases(engine, { reps, phases, probe: { folder, threads } }) {
  const probe = new Ceilings(folder, threads);
  const samples = Object.fromEntries(phases.map((name) => [name, []]));
  const wanted = (name) => (PHASES[name].once ? 1 : reps * PHASES[name].times);
  const turns = Math.max(...phases.map(wanted));
  const deadline = performance.now() + LONGEST_MS;
  for (let turn = 0; turn < turns && (turn < 2 || performance.now() < deadline); turn++) {
    for (const name of phases.filter((one) => turn < wanted(one))) {
      const { steps, ...phase } = PHASES[name];
      const sample = await measureBeside(probe, async () => {
        const { firstMs, restMs } = await engine.generate(prompts(phase), steps);
        return { ms: steps === 0 ? firstMs : restMs };
      });
      samples[name].push(sample);
    }
  }
  probe.close();
  return samples;
}

/**
 * `job`: { reps, phases, probe } as run.mjs writes it; `open` loads the engine. Prints { missing } where its package is
 * not installed.
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
  for (const phase of job.phases.map((name) => PHASES[name]).filter(({ once }) => !once)) {
    await engine.generate(prompts(phase), Math.min(WARM_UP_STEPS, phase.steps));
  }
  const phases = job.phases.length === 0 ? {} : await measurePhases(engine, job);
  const { version, attention, facts } = engine;
  console.log(JSON.stringify({ version, attention, facts, ...start, phases, peakBytes: peakResidentBytes() }));
}
