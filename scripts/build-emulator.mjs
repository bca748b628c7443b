/**
 * Builds the emulated GPU driver and the kernels for it (packages/cuda/native/emulator):
 * `node scripts/build-emulator.mjs`, with `--tests` also the emulator's own test programs. What is up to date is not
 * built again: the build system knows, in about 0.1 s.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, 'packages/cuda');
const build = join(folder, 'build');
const libraries = ['libmetashard_cuda_emulator.so', 'libmetashard_cuda_kernels_host.so'];

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

function isAlive(pid) {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** Runs `body` while no other process does: two builds in one folder would spoil each other's files. */
function alone(body) {
  const lock = join(build, 'emulator.lock');
  mkdirSync(build, { recursive: true });
  for (;;) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx' });
      break;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const owner = existsSync(lock) ? Number(readFileSync(lock, 'utf8')) : 0;
    if (owner > 0 && !isAlive(owner)) rmSync(lock, { force: true });
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
  }
  try {
    body();
  } finally {
    rmSync(lock, { force: true });
  }
}

/** Builds what is not up to date. Throws when a compiler is missing or fails. */
export function buildEmulator({ tests = false } = {}) {
  alone(() => buildTargets(tests));
}

function buildTargets(tests) {
  if (!existsSync(join(build, 'CMakeCache.txt'))) {
    run(process.execPath, [join(root, 'node_modules/cmake-js/bin/cmake-js'), 'configure', '-d', folder, '-l', 'error']);
  }
  const targets = ['metashard_cuda_emulator', ...(tests ? ['metashard_cuda_emulator_tests'] : [])];
  run('cmake', ['--build', build, '--parallel', '2', '--target', ...targets]);
  // Newer than every source, also where a change of one changed nothing in them: packages/cuda/src/emulated.ts looks.
  const now = new Date();
  for (const library of libraries) utimesSync(join(build, 'Release/emulator', library), now, now);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    buildEmulator({ tests: process.argv.includes('--tests') });
  } catch (error) {
    console.error(`\nmetashard: ${error.message}.`);
    process.exit(1);
  }
}
