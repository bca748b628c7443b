/**
 * npm run gpu:check: packs the op table and the golden models with everything they need into .device/ (about 26 MB) for
 * a bare GPU machine, then unpacks it and runs it here, on this machine's GPU or over the emulated one. On the other
 * machine:
 *   python3 .device/unpack.py RT && RT/node RT/app/dist/gpu/gpu-check.js
 * `--no-run` only packs; further arguments go to gpu-check.js (test/gpu-check.ts). Without nvcc the bundle carries no
 * GPU code and says so; it then runs over the emulated GPU only.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const GOLDENS = ['bloom', 'llama', 'mistral'];

function run(command, args, variables = {}) {
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...variables },
  });
  if (error !== undefined) throw error;
  return status ?? 1;
}

function must(command, args) {
  if (run(command, args) === 0) return;
  console.error(`\nmetashard: ${[command, ...args].join(' ')} failed.`);
  process.exit(1);
}

/** The plugin with GPU code, where nvcc is found. */
function buildGpuCode() {
  rmSync(join(root, 'packages/cuda/build/gpu/Release'), { recursive: true, force: true });
  const nvcc = ['nvcc', `${process.env.CUDA_HOME ?? '/usr/local/cuda'}/bin/nvcc`];
  if (nvcc.some((command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0)) {
    must(process.execPath, [join(root, 'scripts/build-cuda.mjs'), '--beside']);
  } else {
    console.error('metashard: no nvcc found: the bundle carries no GPU code and runs over the emulated GPU only.');
  }
}

/** test/dist/gpu: the programs compiled, with the goldens beside them. */
function compilePrograms() {
  must(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', join(root, 'test/tsconfig.gpu.json')]);
  for (const name of GOLDENS) {
    const folder = `fixtures/models/${name}`;
    cpSync(join(root, 'test', folder), join(root, 'test/dist/gpu', folder), { recursive: true });
  }
}

const hasGpu = () => spawnSync('nvidia-smi', ['-L'], { stdio: 'ignore' }).status === 0;

/** The folder of the CUDA plugin in the unpacked app. */
function pluginFolder(app) {
  const found = readdirSync(app, { recursive: true }).find((path) =>
    path.endsWith('cuda/build/Release/metashard_cuda.so'),
  );
  if (found === undefined) throw new Error(`${app}: expected the CUDA plugin, found none`);
  return join(app, dirname(found));
}

/** Runs the unpacked bundle; where there is no GPU, the emulated driver is put beside its plugin. */
function runBundle(options) {
  const folder = mkdtempSync(join(tmpdir(), 'metashard-gpu-check-'));
  try {
    must('python3', [join(root, '.device/unpack.py'), folder]);
    const variables = {};
    if (!hasGpu()) {
      must(process.execPath, [join(root, 'scripts/build-emulator.mjs')]);
      const emulator = join(root, 'packages/cuda/build/Release/emulator');
      cpSync(emulator, join(pluginFolder(join(folder, 'app')), 'emulator'), { recursive: true });
      variables.METASHARD_CUDA_EMULATED = process.env.METASHARD_CUDA_EMULATED ?? '4x1GiB';
    }
    return run(join(folder, 'node'), [join(folder, 'app/dist/gpu/gpu-check.js'), ...options], variables);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

must(process.execPath, [join(root, 'scripts/ensure.mjs')]);
if (!existsSync(join(root, 'scripts/device-bundle.sh'))) throw new Error('gpu-check: expected a checkout of metashard');
buildGpuCode();
compilePrograms();
must('bash', [join(root, 'scripts/device-bundle.sh')]);
const options = process.argv.slice(2).filter((option) => option !== '--no-run');
if (!process.argv.includes('--no-run')) process.exitCode = runBundle(options);
