/**
 * The emulated GPU driver by itself and under the plugin: kernels against plain loops in several schedules, wrong
 * kernels and their errors, the driver contract (which runs on a real GPU, too, where there is one), and what the addon
 * sees of emulated devices. A driver is opened once per process, so each case is a process of its own. What the ops
 * compute is tested with the op table.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { EMULATED_DRIVER_PATH } from '@metashard/cuda';
import { beforeAll, describe, expect, test } from 'vitest';

const here = fileURLToPath(new URL('.', import.meta.url));
const programs = join(dirname(EMULATED_DRIVER_PATH), 'test');
const testDriver = join(programs, 'libmetashard_cuda_emulator.so');

interface Ended {
  status: number | null;
  output: string;
}

/** Runs a program with these variables set; the machine's own METASHARD_* are not passed on. */
function run(command: string, args: string[], variables: Record<string, string> = {}): Ended {
  const clean = Object.entries(process.env).filter(([name]) => !name.startsWith('METASHARD_'));
  const env = { ...Object.fromEntries(clean), ...variables };
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: here, env, encoding: 'utf8', timeout: 120_000 });
  return { status, output: `${stdout}${stderr}` };
}

beforeAll(() => {
  const built = run(process.execPath, [join(here, '../scripts/build-emulator.mjs'), '--tests']);
  expect(built.status, built.output).toBe(0);
}, 600_000);

describe('kernels', () => {
  test('six schedules give the right results, the same to the bit, and every wrong kernel its error', () => {
    const hashes = new Set<string | undefined>();
    for (const words of ['', 'seed=1', 'seed=2', 'seed=3', 'lazy,seed=4', 'lazy,seed=5']) {
      const variables = { METASHARD_CUDA_EMULATED: '20x16MiB', METASHARD_EMULATOR: words };
      const ended = run(join(programs, 'kernel_test'), [testDriver], variables);
      expect(ended.output, words).toContain(' 0 failed');
      expect(ended.status, ended.output).toBe(0);
      hashes.add(/results (\w+)/.exec(ended.output)?.[1]);
    }
    expect(hashes.size).toBe(1);
    expect(hashes.has(undefined)).toBe(false);
  });
});

describe('driver contract', () => {
  test.each(['', 'seed=3', 'lazy', 'lazy,seed=3'])('emulated, METASHARD_EMULATOR=%s', (words) => {
    const variables = { METASHARD_CUDA_EMULATED: '2x64MiB', METASHARD_EMULATOR: words };
    const ended = run(join(programs, 'driver_contract'), [testDriver], variables);
    expect(ended.output).toContain(' 0 failed');
    expect(ended.status, ended.output).toBe(0);
  });

  test('real', (context) => {
    const source = join(here, '../packages/cuda/native/emulator/test/module.cu');
    const folder = mkdtempSync(join(tmpdir(), 'metashard-'));
    const image = join(folder, 'kernels.fatbin');
    const compiled = run('nvcc', ['-std=c++17', '-O3', '-fmad=false', '-arch=native', '-fatbin', source, '-o', image]);
    const ended = run(join(programs, 'driver_contract'), ['libcuda.so.1', ...(compiled.status === 0 ? [image] : [])]);
    rmSync(folder, { recursive: true });
    if (ended.output.includes('cannot test')) context.skip('this machine has no CUDA driver');
    expect(ended.output).toContain(' 0 failed');
    expect(ended.status, ended.output).toBe(0);
  });
});

interface Outcome {
  value?: unknown;
  status?: number;
  message?: string;
}

/** Runs `body`, which may use `addon`, after loading the plugin in a fresh process; tells what it returned or threw. */
function inAddon(body: string, variables: Record<string, string>): Outcome {
  const program = `
    import { native } from '@metashard/core';
    import { CUDA_PLUGIN_PATH } from '@metashard/cuda';
    const addon = native();
    const outcome = {};
    try {
      addon.loadBackend('cuda', CUDA_PLUGIN_PATH);
      outcome.value = (() => { ${body} })();
    } catch (error) {
      Object.assign(outcome, { status: error.status, message: error.message });
    }
    console.log(JSON.stringify(outcome));
  `;
  const ended = run(process.execPath, ['--input-type=module', '-e', program], variables);
  expect(ended.status, ended.output).toBe(0);
  return JSON.parse(ended.output) as Outcome;
}

describe('under the plugin', () => {
  test('devices are as METASHARD_CUDA_EMULATED says, named emulated', () => {
    const body = "return Array.from({ length: addon.deviceCount('cuda') }, (_, i) => addon.deviceInfo('cuda', i))";
    const { value } = inAddon(body, { METASHARD_CUDA_EMULATED: '2x2GiB,64MiB@sm_75' });
    const common = { hostAddressable: false, emulated: true };
    const large = { ...common, totalBytes: 2 ** 31, freeBytes: 2 ** 31, computeMajor: 8, computeMinor: 0 };
    const small = { ...common, totalBytes: 2 ** 26, freeBytes: 2 ** 26, computeMajor: 7, computeMinor: 5 };
    expect(value).toMatchObject([large, large, small]);
  });

  test('METASHARD_CUDA_EMULATED replaces a driver that METASHARD_CUDA_DRIVER names', () => {
    const variables = { METASHARD_CUDA_EMULATED: '3x64MiB', METASHARD_CUDA_DRIVER: '/nowhere/libcuda.so' };
    expect(inAddon("return addon.deviceCount('cuda')", variables).value).toBe(3);
  });

  test.each([
    ['METASHARD_CUDA_EMULATED', '4x2GB'],
    ['METASHARD_CUDA_EMULATED', '65x2GiB'],
    ['METASHARD_CUDA_EMULATED', '2GiB@sm_74'],
    ['METASHARD_CUDA_EMULATED', '2GiB,'],
    ['METASHARD_EMULATOR', 'lasy'],
    ['METASHARD_EMULATOR', 'seed=two'],
  ])('%s=%s is refused by name', (variable, value) => {
    const outcome = inAddon('', { METASHARD_CUDA_EMULATED: '2GiB', [variable]: value });
    expect(outcome.message).toContain(`${variable}: expected`);
    expect(outcome.message).toContain(`got "${value}"`);
  });

  test('budgets are hard, and a refused allocation costs nothing', () => {
    const body = `
      const context = addon.openContext('cuda', 0, 0);
      const first = addon.alloc(context, 40 << 20, 4);
      let refused;
      try {
        addon.alloc(context, 40 << 20, 4);
      } catch ({ status, message }) {
        refused = { status, message };
      }
      addon.free(first);
      addon.alloc(context, 60 << 20, 4);
      return refused;
    `;
    const { value } = inAddon(body, { METASHARD_CUDA_EMULATED: '64MiB' });
    expect(value).toMatchObject({ status: 2, message: expect.stringMatching(/24\.0 MiB.*64\.0 MiB.*40\.0 MiB/) });
  });

  test.each(['', 'lazy', 'lazy,seed=7'])('bytes go round four devices and back, METASHARD_EMULATOR=%s', (words) => {
    const body = `
      const bytes = new Uint8Array(3_000_001).map((_, i) => (i * 2654435761) >>> 13);
      const contexts = [0, 1, 2, 3].map((device) => addon.openContext('cuda', device, 0));
      const buffers = contexts.map((context) => addon.alloc(context, bytes.length, 4));
      addon.write(buffers[0], 0, bytes);
      for (let i = 1; i < 4; i++) addon.copy(buffers[i], 0, buffers[i - 1], 0, bytes.length);
      addon.zero(buffers[0], 0, bytes.length);
      addon.copy(buffers[0], 0, buffers[3], 0, bytes.length);
      const back = new Uint8Array(bytes.length);
      addon.read(buffers[0], 0, back);
      const { peers } = JSON.parse(addon.describeBackend('cuda'));
      return { equal: back.every((byte, i) => byte === bytes[i]), peers };
    `;
    const { value } = inAddon(body, { METASHARD_CUDA_EMULATED: '4x32MiB', METASHARD_EMULATOR: words });
    expect(value).toMatchObject({ equal: true });
    expect((value as { peers: { direct: boolean }[] }).peers.map(({ direct }) => direct)).toEqual([
      true,
      true,
      true,
      true,
    ]);
  });

  test('METASHARD_VIRTUAL_CUDA splits an emulated device', () => {
    const body = "return [addon.deviceCount('cuda'), addon.deviceInfo('cuda', 3).totalBytes]";
    const variables = { METASHARD_CUDA_EMULATED: '64MiB', METASHARD_VIRTUAL_CUDA: '4' };
    expect(inAddon(body, variables).value).toEqual([4, 2 ** 24]);
  });
});
