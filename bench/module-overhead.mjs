/**
 * What a module costs a forward beside its arithmetic: chains of activation modules on one number, dispatched to the
 * CPU and run by its executor. The difference of a long and a short chain counts, so that what a forward costs once
 * drops out; the activation's own call with its single number is counted in.
 *
 *   node bench/module-overhead.mjs
 */
import { fileURLToPath } from 'node:url';
import { dispatchModel, nn, randn } from 'metashard';
import { NOISE_LIMIT, waitForQuiet, watchNoise } from './noise.mjs';
import { median } from './statistics.mjs';

const LENGTHS = [1000, 4000];
const ROUNDS = 200;
const LONGEST_WAIT_MS = 5000;

function openChain(length) {
  const activations = Array.from({ length: length - 1 }, () => new nn.Activation('relu'));
  const module = new nn.Sequential([new nn.Linear(1, 1), ...activations]);
  const inputs = { x: { shape: ['tokens', 1] } };
  return dispatchModel(module, { devices: ['cpu'], inputs, maxSeqLen: 1 });
}

/** Microseconds of a module, the median over forwards of both chains one after the other: { us, noisy }. */
export async function measureModuleOverhead() {
  const chains = [];
  try {
    for (const length of LENGTHS) chains.push(await openChain(length));
    await waitForQuiet(LONGEST_WAIT_MS);
    const x = randn([1, 1]);
    const differences = [];
    const noise = watchNoise();
    for (let round = 0; round < ROUNDS; round++) {
      const times = [];
      for (const chain of chains) {
        const start = performance.now();
        await chain.forward({ x });
        times.push(performance.now() - start);
      }
      differences.push(times[1] - times[0]);
    }
    return { us: (median(differences) / (LENGTHS[1] - LENGTHS[0])) * 1e3, noisy: noise() > NOISE_LIMIT };
  } finally {
    for (const chain of chains) await chain.dispose();
  }
}

/** The result as a sentence. */
export const moduleOverheadLine = ({ us, noisy }) =>
  `A module costs a forward ${us.toFixed(2)} µs${noisy ? '†' : ''} (chains of activations on one number).`;

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log(moduleOverheadLine(await measureModuleOverhead()));
}
