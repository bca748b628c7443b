/**
 * Loading, and models that are not in memory, beside accelerate: the runs and how each is started. metashard's side
 * of streaming is bench/offload.mjs, whose table is taken over as it is.
 */
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CONTESTANTS, command } from './contestants.mjs';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
/** cgroup v1: its memory groups count the page cache, too. */
const GROUPS = '/sys/fs/cgroup/memory';
const LIMITS_MB = [2600, 1500, 800];
const OURS = CONTESTANTS[0];

/** What accelerate and transformers load a float16 checkpoint into: the last step of each reads every byte. */
export const LOADS = [
  { name: 'accelerate, float16 → float32', mode: 'load', dtype: 'float32' },
  { name: 'transformers, float16 → bfloat16', mode: 'load-transformers', dtype: 'bfloat16' },
  { name: 'transformers + bitsandbytes, float16 → int8', mode: 'load-bitsandbytes', dtype: 'bfloat16' },
];

/** accelerate's models of bfloat16 blocks, in memory and on disk. */
export const STREAMS = [
  { name: 'in memory', mode: 'resident' },
  { name: 'every block on disk, page cache hot', mode: 'disk' },
  ...LIMITS_MB.map((limitMB) => ({
    name: `every block on disk, memory group of ${limitMB} MB`,
    mode: 'disk',
    limitMB,
  })),
];

/** Removes what a run before may have left. */
export function prepareOffload(_model, { folder }) {
  mkdirSync(join(folder, 'peers', 'offload'), { recursive: true });
}

/** A run inside a memory group of `limitMB`; `after` removes the group. */
function capped(run, limitMB) {
  const group = join(GROUPS, `metashard-peers-${process.pid}`);
  if (!existsSync(join(GROUPS, 'memory.limit_in_bytes'))) return { skip: 'no memory group can be made' };
  return {
    program: 'sh',
    mayFail: true,
    args: ['-c', `echo $$ > ${group}/cgroup.procs && exec "$@"`, 'sh', run.program, ...run.args],
    before() {
      mkdirSync(group);
      writeFileSync(join(group, 'memory.limit_in_bytes'), String(limitMB * 1e6));
    },
    after: () => rmdirSync(group),
  };
}

/** All runs of one model: { key, program, args, … } as run.mjs takes them. */
export function offloadRuns(model, options) {
  const { python, threads, folder, wanted } = options;
  const accelerate = ({ mode, dtype, limitMB }) => {
    if (python === undefined) return { skip: 'not installed: no --python' };
    const scratch = join(folder, 'peers', 'offload');
    const job = { file: join(folder, model.name), threads, mode, dtype, scratch };
    const run = { program: python, args: [here('run_accelerate.py'), JSON.stringify(job)] };
    return limitMB === undefined ? run : capped(run, limitMB);
  };
  const runs = [
    ...[0, 1, 2].map((round) => ({
      key: `load/${model.name}/metashard, float16 → packed int8`,
      round,
      inputBytes: model.bytes,
      ...command(OURS, model, options, { phases: [], reps: 0, sequences: 1 }),
    })),
    ...LOADS.map((load) => ({ key: `load/${model.name}/${load.name}`, ...accelerate(load) })),
    {
      key: `stream/${model.name}/metashard`,
      asText: true,
      program: process.execPath,
      args: [here('../offload.mjs'), join(folder, model.name)],
    },
    ...STREAMS.map((stream) => ({ key: `stream/${model.name}/accelerate, ${stream.name}`, ...accelerate(stream) })),
  ];
  return runs.filter(({ key }) => wanted(key.split('/')[2]));
}
