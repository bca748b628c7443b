/**
 * METASHARD_CUDA_EMULATED from TypeScript's side: seeing that the emulated driver is built before the plugin opens it.
 * The plugin itself reads the variable and opens the driver, which checks what it asks for.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';

const fileBeside = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

/** The emulated driver, and the kernels it runs, which it looks for beside itself. */
export const EMULATED_DRIVER_PATH = fileBeside('../build/Release/emulator/libmetashard_cuda_emulator.so');
const EMULATED_KERNELS_PATH = fileBeside('../build/Release/emulator/libmetashard_cuda_kernels_host.so');
const BUILD_SCRIPT = fileBeside('../../../scripts/build-emulator.mjs');

/** Whether METASHARD_CUDA_EMULATED asks for emulated devices in the place of real ones. */
export function emulationRequested(): boolean {
  return (process.env.METASHARD_CUDA_EMULATED ?? '') !== '';
}

/**
 * Builds the emulated driver where it is asked for, missing, and this is a checkout that has its sources: once, about
 * half a minute, said in one sentence on stderr. Does nothing in worker threads: the thread that starts them has come
 * here before. Where it cannot be built, using a device fails with the plugin's sentence about the missing driver.
 */
export function ensureEmulator(): void {
  if (!emulationRequested() || !isMainThread) return;
  if (existsSync(EMULATED_DRIVER_PATH) && existsSync(EMULATED_KERNELS_PATH)) return;
  if (!existsSync(BUILD_SCRIPT)) return;
  console.error('metashard: building the emulated GPU driver (METASHARD_CUDA_EMULATED), once, about half a minute');
  spawnSync(process.execPath, [BUILD_SCRIPT], { stdio: ['ignore', process.stderr, process.stderr] });
}
