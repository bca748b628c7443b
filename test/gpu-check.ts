/**
 * A program (scripts/gpu-check.mjs compiles, packs and runs it): checks CUDA device 0, real or emulated, and prints one line of JSON.
 * Arguments: `ops` (the default; `--digest` compares nothing, `--only=TEXT` takes cases of that name).
 */
import { checkOps } from './gpu-ops.js';

const [what = 'ops', ...options] = process.argv.slice(2);
const value = (name: string): string | undefined =>
  options.find((option) => option.startsWith(`--${name}=`))?.slice(name.length + 3);

if (what !== 'ops') throw new Error(`gpu-check: expected ops, got ${what}`);
const only = value('only');
const report = checkOps({ digestOnly: options.includes('--digest'), ...(only === undefined ? {} : { only }) });
console.log(JSON.stringify(report));
