/** The int8 linears that are measured alone, and how each is started. */
import { fileURLToPath } from 'node:url';

export const SIZE = 4096;
export const ROWS = [1, 8, 512];

export const LINEARS = [
  { name: 'metashard', program: 'run-linear.mjs' },
  { name: 'PyTorch dynamic int8 (oneDNN)', program: 'run_linear.py', mode: 'onednn' },
  { name: 'bitsandbytes Linear8bitLt', program: 'run_linear.py', mode: 'bitsandbytes' },
];

/** Program and argument of a run, or why there is none. */
export function linearCommand({ program, mode }, { python, threads, reps, folder }) {
  const script = fileURLToPath(new URL(program, import.meta.url));
  const job = JSON.stringify({ size: SIZE, rows: ROWS, threads, reps, mode, probe: { folder, threads } });
  if (!program.endsWith('.py')) return { program: process.execPath, args: [script, job] };
  return python === undefined ? { skip: 'not installed: no --python' } : { program: python, args: [script, job] };
}
