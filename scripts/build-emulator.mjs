/**
 * Builds the emulated GPU driver and the kernels for it (packages/cuda/native/emulator): `node scripts/build-emulator.mjs`, with
 * `--tests` also the emulator's own test programs. What is up to date is not built again. Ends with one sentence on failure.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, 'packages/cuda');

function run(command, args, instead) {
  const { status, error } = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 64 << 20 });
  if (error === undefined && status === 0) return;
  const output = `${error?.message ?? ''}${instead?.stdout ?? ''}`;
  throw new Error(`${[command, ...args].join(' ')} failed${output === '' ? '' : `: ${output}`}`);
}
