/**
 * The CPU backend: importing this package registers it for every device of type `cpu`; the plugin is opened on first
 * use. No maths in TypeScript.
 */
import { fileURLToPath } from 'node:url';
import { registerBackend } from '@metashard/core';

export const CPU_PLUGIN_PATH = fileURLToPath(new URL('../build/Release/metashard_cpu.so', import.meta.url));

registerBackend('cpu', CPU_PLUGIN_PATH);
