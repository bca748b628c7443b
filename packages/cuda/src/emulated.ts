/**
 * METASHARD_CUDA_EMULATED from TypeScript's side: seeing that the emulated driver is built before the plugin opens it.
 * The plugin itself reads the variable and opens the driver, which checks what it asks for.
 */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';

const fileBeside = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

/** The emulated driver, and the kernels it runs, which it looks for beside itself. */
export const EMULATED_DRIVER_PATH = fileBeside('../build/Release/emulator/libmetashard_cuda_emulator.so');
const EMULATED_KERNELS_PATH = fileBeside('../build/Release/emulator/libmetashard_cuda_kernels_host.so');
const BUILD_SCRIPT = fileBeside('../../../scripts/build-emulator.mjs');
/**
 * What they are made from. The plugin shares the kernels' parameters with them, so that stale kernels would misread.
 */
const SOURCES = [fileBeside('../native'), fileBeside('../../core/native/include')];

/** Whether METASHARD_CUDA_EMULATED asks for emulated devices in the place of real ones. */
export function emulationRequested(): boolean {
  return (process.env.METASHARD_CUDA_EMULATED ?? '') !== '';
}

function newestBelow(folder: string): number {
  const times = readdirSync(folder, { withFileTypes: true }).map((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? newestBelow(path) : statSync(path).mtimeMs;
  });
  return Math.max(0, ...times);
}

/**
 * Builds the emulated driver where it is asked for, is missing or older than its sources, and this is a checkout that
 * has them: about half a minute the first time, said in one sentence on stderr. Does nothing in worker threads: the
 * thread that starts them has come here before. Where it cannot be built, using a device fails with the plugin's
 * sentence about the missing driver.
 */
export function ensureEmulator(): void {
  if (!emulationRequested() || !isMainThread || !existsSync(BUILD_SCRIPT)) return;
  const built = [EMULATED_DRIVER_PATH, EMULATED_KERNELS_PATH];
  const oldest = (): number => Math.min(...built.map((path) => statSync(path).mtimeMs));
  if (built.every(existsSync) && oldest() >= Math.max(...SOURCES.map(newestBelow))) return;
  console.error('metashard: building the emulated GPU driver (METASHARD_CUDA_EMULATED), once, about half a minute');
  const { spawnSync } = process.getBuiltinModule('node:child_process'); // 3 ms of every start if it were imported
  spawnSync(process.execPath, [BUILD_SCRIPT], { stdio: ['ignore', process.stderr, process.stderr] });
}
