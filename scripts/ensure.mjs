// Makes a fresh clone runnable (with --tests also testable): installs with the pinned pnpm, compiles TypeScript, builds
// the native parts. Each step is skipped when its inputs have not changed.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const stamps = join(root, 'node_modules', '.metashard');
const NATIVE_PACKAGES = ['core', 'cpu', 'cuda'];

/** Ends with one sentence. */
function fail(sentence) {
  console.error(`\nmetashard: ${sentence}`);
  process.exit(1);
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', process.stderr, process.stderr],
    env: { ...process.env, CI: process.env.CI ?? 'true' },
  });
  if (error !== undefined || status !== 0)
    fail(`${[command, ...args].join(' ').slice(0, 200)} failed${error ? `: ${error.message}` : ''}`);
}

function checkMachine() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19))
    fail(`Node ${process.versions.node} is too old: install Node 20.19 or later.`);
  const glibc = process.report?.getReport().header.glibcVersionRuntime;
  if (process.platform !== 'linux' || process.arch !== 'x64' || glibc === undefined) {
    fail(`this version runs on Linux x86-64 with glibc; ${process.platform} ${process.arch} is not supported yet.`);
  }
}

function checkCompilers() {
  const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
  const compiler = process.env.CXX ?? 'c++';
  if (!has(compiler) && !has('g++'))
    fail('a C++ compiler is missing: install g++ 12 or later (Debian, Ubuntu: apt-get install g++).');
  if (!has('cmake')) fail('CMake is missing: install CMake 3.22 or later (Debian, Ubuntu: apt-get install cmake).');
}

function filesBelow(folder) {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
    .sort();
}

/** A hash of names, sizes and times: cheap, and wrong only towards building once more. */
function fingerprint(files) {
  const hash = createHash('sha256');
  for (const file of files) {
    const { size, mtimeMs } = statSync(file);
    hash.update(`${file} ${size} ${mtimeMs}\n`);
  }
  return hash.digest('hex');
}

/** Runs `step` unless its stamp says that this was done. */
function once(name, want, outputs, step) {
  const stamp = join(stamps, name);
  const done = existsSync(stamp) && readFileSync(stamp, 'utf8') === want && outputs.every(existsSync);
  if (done) return;
  step();
  mkdirSync(stamps, { recursive: true });
  writeFileSync(stamp, want);
}

function install() {
  const { packageManager } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const lock = createHash('sha256')
    .update(readFileSync(join(root, 'pnpm-lock.yaml')))
    .digest('hex');
  once('install', `${lock} ${process.versions.modules}`, [join(root, 'node_modules/typescript')], () =>
    run('npx', ['--yes', packageManager.split('+')[0], 'install', '--frozen-lockfile', '--prefer-offline']),
  );
}

function buildNative(name) {
  const folder = join(root, 'packages', name);
  const inputs = [
    join(folder, 'CMakeLists.txt'),
    ...filesBelow(join(folder, 'native')),
    ...filesBelow(join(root, 'packages/core/native/backend')),
    ...filesBelow(join(root, 'packages/core/native/include')),
  ];
  const output = join(folder, 'build/Release', name === 'core' ? 'metashard_core.node' : `metashard_${name}.so`);
  once(`native-${name}`, fingerprint(inputs), [output], () => {
    checkCompilers();
    const cmakeJs = join(root, 'node_modules/cmake-js/bin/cmake-js');
    run(process.execPath, [cmakeJs, 'build', '-d', folder, '-p', '2', '-l', 'error']);
  });
}

checkMachine();
install();
// The tests are checked, too, where they are about to run.
const projects = process.argv.includes('--tests') ? [] : ['packages/metashard'];
run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-b', ...projects]);
for (const name of NATIVE_PACKAGES) buildNative(name);
