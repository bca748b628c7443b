/**
 * Builds the CUDA plugin with GPU code (npm run build:cuda): needed once where npm start found no driver; later builds
 * keep it. `--beside` builds into packages/cuda/build/gpu instead and leaves the plugin in use alone. Prints what each
 * kernel takes on every architecture, and fails where one spills registers: none does today. (ptxas sometimes spills a
 * little to run more blocks at once; __launch_bounds__(threads, 1) stops that.)
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, 'packages/cuda');
const beside = process.argv.includes('--beside');
const target = join(folder, beside ? 'build/gpu' : 'build');
const image = join(target, 'gpu_code.fatbin');

function fail(sentence) {
  console.error(`\nmetashard: ${sentence}`);
  process.exit(1);
}

function build() {
  const cmakeJs = join(root, 'node_modules/cmake-js/bin/cmake-js');
  const output = `--CDMETASHARD_CUDA_OUTPUT=${join(target, 'Release')}`;
  const shared = ['-d', folder, '-O', target, '-p', '2', '-l', 'error', '--CDMETASHARD_CUDA_KERNELS=ON', output];
  for (const step of ['configure', 'build']) {
    const { status } = spawnSync(process.execPath, [cmakeJs, step, ...shared], { cwd: root, stdio: 'inherit' });
    if (status !== 0) fail('the CUDA plugin did not build: the lines above say why.');
  }
}

/** What ptxas -v says, as kernel → architecture → { registers, spills } with spills in bytes. */
function kernelsOf(log) {
  const kernels = new Map();
  let current = null;
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '(\w+)' for 'sm_(\w+)'/.exec(line);
    if (entry !== null) {
      current = { registers: 0, spills: 0 };
      kernels.set(entry[1], (kernels.get(entry[1]) ?? new Map()).set(entry[2], current));
    }
    if (current === null) continue;
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spills !== null) current.spills += Number(spills[1]) + Number(spills[2]);
    const used = /Used (\d+) registers/.exec(line);
    if (used !== null) current.registers = Number(used[1]);
  }
  return kernels;
}

function printTable(kernels) {
  const architectures = [...new Set([...kernels.values()].flatMap((of) => [...of.keys()]))].sort((a, b) => a - b);
  const cell = ({ registers, spills }) => `${registers}${spills > 0 ? `!${spills}` : ''}`.padStart(7);
  console.log(
    `\n${'registers (!spilled bytes)'.padEnd(32)}${architectures.map((name) => `sm_${name}`.padStart(7)).join('')}`,
  );
  for (const [name, of] of [...kernels].sort()) {
    console.log(
      `${name.padEnd(32)}${architectures.map((a) => cell(of.get(a) ?? { registers: '-', spills: 0 })).join('')}`,
    );
  }
}

const started = Date.now();
build();
const kernels = kernelsOf(readFileSync(`${image}.log`, 'utf8'));
printTable(kernels);
const seconds = ((Date.now() - started) / 1000).toFixed(1);
console.log(`\n${kernels.size} kernels, ${(statSync(image).size / 1024).toFixed(0)} KiB of GPU code, ${seconds} s`);
const spilling = [...kernels]
  .filter(([, of]) => [...of.values()].some(({ spills }) => spills > 0))
  .map(([name]) => name);
if (spilling.length > 0) fail(`the plugin is built, but these kernels spill registers: ${spilling.join(', ')}.`);
