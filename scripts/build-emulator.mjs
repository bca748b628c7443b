/**
 * Builds the emulated GPU driver and the kernels for it (packages/cuda/native/emulator): `node scripts/build-emulator.mjs`,
 * with `--tests` also the emulator's own test programs. What is up to date is not built again: the build system knows,
 * in about 0.1 s.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, 'packages/cuda');

/** Runs a program quietly; throws one sentence, with what the program said above it, when it fails. */
function run(command, args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  });
  if (error === undefined && status === 0) return;
  console.error(`${stdout ?? ''}${stderr ?? ''}`.split('\n').slice(-60).join('\n'));
  const missing =
    error?.code === 'ENOENT' ? `${command} is missing: install it` : `${[command, ...args].join(' ')} failed`;
  throw new Error(`the emulated GPU driver did not build: ${missing}`);
}

/** Builds what is not up to date. Throws when a compiler is missing or fails. */
export function buildEmulator({ tests = false } = {}) {
  const build = join(folder, 'build');
  if (!existsSync(join(build, 'CMakeCache.txt'))) {
    run(process.execPath, [join(root, 'node_modules/cmake-js/bin/cmake-js'), 'configure', '-d', folder, '-l', 'error']);
  }
  const targets = ['metashard_cuda_emulator', ...(tests ? ['metashard_cuda_emulator_tests'] : [])];
  run('cmake', ['--build', build, '--parallel', '2', '--target', ...targets]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    buildEmulator({ tests: process.argv.includes('--tests') });
  } catch (error) {
    console.error(`\nmetashard: ${error.message}.`);
    process.exit(1);
  }
}
