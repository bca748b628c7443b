/**
 * The CUDA backend: where its plugin lies. Importing this registers it; the driver is opened by the first use of a CUDA
 * device.
 */
import { fileURLToPath } from 'node:url';
import { registerBackend } from '@metashard/core';
import { ensureEmulator } from './emulated.js';

export { EMULATED_DRIVER_PATH, emulationRequested } from './emulated.js';

/** The plugin's shared object (an `ms_backend_v1`), built by `npm run build`. */
export const CUDA_PLUGIN_PATH = fileURLToPath(new URL('../build/Release/metashard_cuda.so', import.meta.url));

ensureEmulator();
registerBackend('cuda', CUDA_PLUGIN_PATH);
