/**
 * The CUDA plugin without a GPU: that it loads, and what it says where there is no driver. A backend is loaded once per
 * process, so each case is a process of its own. What the plugin does with devices is tested over the emulated driver.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CUDA_PLUGIN_PATH } from '@metashard/cuda';
import { expect, test } from 'vitest';

interface Outcome {
  /** Devices found; absent when loading failed. */
  devices?: number;
  status?: number;
  message?: string;
}

const PROGRAM = `
  import { native } from '@metashard/core';
  import { CUDA_PLUGIN_PATH } from '@metashard/cuda';
  const outcome = {};
  try {
    native().loadBackend('cuda', CUDA_PLUGIN_PATH);
    outcome.devices = native().deviceCount('cuda');
  } catch (error) {
    Object.assign(outcome, { status: error.status, message: error.message });
  }
  console.log(JSON.stringify(outcome));
`;

/** Loads the plugin in a fresh process with these variables set; the machine's own METASHARD_* are not passed on. */
function load(variables: Record<string, string> = {}): Outcome {
  const clean = Object.entries(process.env).filter(([name]) => !name.startsWith('METASHARD_'));
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', PROGRAM], {
    cwd: fileURLToPath(new URL('.', import.meta.url)),
    env: { ...Object.fromEntries(clean), ...variables },
    encoding: 'utf8',
  });
  expect(child.status, child.stderr).toBe(0);
  return JSON.parse(child.stdout) as Outcome;
}

const UNAVAILABLE = 3;

test('the plugin is built where the package says', () => {
  expect(existsSync(CUDA_PLUGIN_PATH)).toBe(true);
});

test('without a driver, one sentence names it and says what to do', (context) => {
  const outcome = load();
  if (outcome.devices !== undefined) context.skip(`this machine has a CUDA driver and ${outcome.devices} device(s)`);
  expect(outcome.status).toBe(UNAVAILABLE);
  expect(outcome.message).toMatch(/libcuda\.so\.1.*(install the NVIDIA driver|check nvidia-smi).*cpu devices$/);
  expect(outcome.message).not.toContain('\n');
});

test('a METASHARD_CUDA_DRIVER that does not exist is named', () => {
  const outcome = load({ METASHARD_CUDA_DRIVER: '/nowhere/libcuda-absent.so' });
  expect(outcome.status).toBe(UNAVAILABLE);
  expect(outcome.message).toMatch(/METASHARD_CUDA_DRIVER.*\/nowhere\/libcuda-absent\.so.*correct that path/);
});

test('a METASHARD_CUDA_DRIVER that is no CUDA driver is named with the entry point it lacks', () => {
  const outcome = load({ METASHARD_CUDA_DRIVER: CUDA_PLUGIN_PATH });
  expect(outcome.status).toBe(UNAVAILABLE);
  expect(outcome.message).toContain(`${CUDA_PLUGIN_PATH} lacks the entry point cuInit`);
});

test('importing the package opens nothing: an unusable driver does not matter until a device is used', () => {
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', "await import('@metashard/cuda')"], {
    cwd: fileURLToPath(new URL('.', import.meta.url)),
    env: { ...process.env, METASHARD_CUDA_DRIVER: '/nowhere/libcuda-absent.so' },
    encoding: 'utf8',
  });
  expect(child.status, child.stderr).toBe(0);
});
