/**
 * A program that checks CUDA devices, real or emulated; scripts/gpu-check.mjs compiles, packs and runs it, tests run
 * its `ops`.
 *   gpu-check.js [all | ops | models] [--json] [--digest] [--only=TEXT]
 * ops: the op table on device 0 (`--digest` compares nothing, `--only` takes cases of that name). models: the golden
 * models over four devices, which are parts of one GPU unless METASHARD_VIRTUAL_CUDA says otherwise. Exit code 1 where
 * anything is off.
 */
import { native } from '@metashard/core';
import { CUDA_PLUGIN_PATH } from '@metashard/cuda';
import type { ModelResult } from './gpu-models.js';
import { checkOps, type OpsReport } from './gpu-ops.js';

interface Report {
  devices: string[];
  ops?: OpsReport;
  models?: ModelResult[];
}

const [what = 'all', ...options] = process.argv
  .slice(2)
  .sort((a, b) => Number(a.startsWith('--')) - Number(b.startsWith('--')));
if (!['all', 'ops', 'models'].includes(what)) throw new Error(`gpu-check: expected all, ops or models, got ${what}`);
const only = options.find((option) => option.startsWith('--only='))?.slice('--only='.length);

function printOps(ops: OpsReport): void {
  console.log(`\n${'op'.padEnd(22)}${'cases'.padStart(6)}${'ms'.padStart(10)}`);
  for (const [name, { cases, milliseconds }] of Object.entries(ops.ops)) {
    console.log(`${name.padEnd(22)}${String(cases).padStart(6)}${milliseconds.toFixed(1).padStart(10)}`);
  }
  for (const problem of ops.problems) console.log(`OFF  ${problem}`);
  console.log(
    `${ops.edges.length} calls beyond the table; bits ${ops.digest.slice(0, 16)}; ${ops.problems.length} off`,
  );
}

function printModels(models: ModelResult[]): void {
  console.log('');
  for (const { name, error, limit, milliseconds, problem } of models) {
    const result = problem === '' ? `error ${error.toExponential(2)} (below ${limit})` : `OFF  ${problem}`;
    console.log(`${name.padEnd(22)}${result}, ${milliseconds.toFixed(0)} ms`);
  }
}

async function check(): Promise<Report> {
  const emulated = (process.env.METASHARD_CUDA_EMULATED ?? '') !== '';
  if (!emulated && what !== 'ops') process.env.METASHARD_VIRTUAL_CUDA ??= '4';
  native().loadBackend('cuda', CUDA_PLUGIN_PATH);
  const count = native().deviceCount('cuda');
  const report: Report = { devices: [] };
  for (let i = 0; i < count; i++) {
    const { name, computeMajor, computeMinor } = native().deviceInfo('cuda', i);
    report.devices.push(`cuda:${i} ${name}, compute capability ${computeMajor}.${computeMinor}`);
  }
  if (what !== 'models') report.ops = checkOps({ digestOnly: options.includes('--digest'), only: only ?? '' });
  if (what !== 'ops') {
    const { checkModels } = await import('./gpu-models.js');
    report.models = await checkModels(Array.from({ length: Math.min(4, count) }, (_, i) => `cuda:${i}`));
  }
  return report;
}

const report = await check();
if (options.includes('--json')) {
  console.log(JSON.stringify(report));
} else {
  for (const device of report.devices) console.log(device);
  if (report.ops !== undefined) printOps(report.ops);
  if (report.models !== undefined) printModels(report.models);
}
const off = (report.ops?.problems.length ?? 0) + (report.models?.filter(({ problem }) => problem !== '').length ?? 0);
process.exitCode = off === 0 ? 0 : 1;
