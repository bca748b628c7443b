/** Runs a command in a control group whose memory is limited, the page cache counted: version 1 or 2, where the process may make one. Linux only. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const ROOT = '/sys/fs/cgroup';

/** Where the groups of each version are made, and the file that limits one. */
function hierarchies() {
  if (existsSync(join(ROOT, 'memory'))) return [{ parent: join(ROOT, 'memory'), limitFile: 'memory.limit_in_bytes' }];
  const own = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1] ?? '/';
  return [ROOT, join(ROOT, own)].map((parent) => ({ parent, limitFile: 'memory.max' }));
}

/** Makes a group of at most `limitBytes`; { folder }, or { reason } where none can be made. Remove it with `rmdirSync` once it is empty. */
export function makeMemoryGroup(limitBytes) {
  let reason = 'no control groups';
  for (const { parent, limitFile } of hierarchies()) {
    const folder = join(parent, `metashard-${process.pid}`);
    try {
      mkdirSync(folder);
      writeFileSync(join(folder, limitFile), String(limitBytes));
      return { folder };
    } catch (error) {
      reason = `no memory group can be made: ${error.message}`;
      if (existsSync(folder)) rmdirSync(folder);
    }
  }
  return { reason };
}

/** The command's standard output, run within the limit; { output } or { reason } where no group can be made. Throws where the command fails or is killed. */
export function runInMemoryGroup(limitBytes, command, environment = process.env) {
  const { folder, reason } = makeMemoryGroup(limitBytes);
  if (folder === undefined) return { reason };
  const entered = ['-c', `echo $$ > ${folder}/cgroup.procs; exec "$@"`, 'sh', ...command];
  const { stdout, stderr, status, signal } = spawnSync('sh', entered, { encoding: 'utf8', env: environment });
  rmdirSync(folder);
  if (status !== 0) throw new Error(`${command[1]} ended with ${signal ?? status}: ${stderr.slice(-600)}`);
  return { output: stdout };
}
