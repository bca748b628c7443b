/**
 * A model larger than the memory it gets: greedy tokens and their time with weights in memory, streamed with the page cache hot, and streamed in a memory group that
 * counts the page cache (cgroup v1; skipped where none can be made). Prints the bytes read per token from the process's own I/O counters.
 *
 *   node bench/offload.mjs MODEL [--limits 2600MB,1500MB,800MB] [--tokens 16]
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { loadModel, packStore, parseBytes } from 'metashard';
import { median } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    limits: { type: 'string', default: '2600MB,1500MB,800MB' },
    tokens: { type: 'string', default: '16' },
    run: { type: 'string' },
  },
});
const [model] = positionals;
if (model === undefined) throw new Error('usage: node bench/offload.mjs MODEL');
const offloadFolder = join(tmpdir(), 'metashard-bench', 'stores');
const base = { loadIn8bit: true, maxSeqLen: 128, offloadFolder };

/** Bytes this process had the disk read. */
const bytesRead = () => Number(/^read_bytes: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))[1]);

/** One run in this process: ids, milliseconds a token (median after the first), bytes read a token. */
async function measure(options) {
  const started = performance.now();
  const loaded = await loadModel(model, { ...base, ...options });
  const loadMs = performance.now() - started;
  const [ids, times, read] = [[], [], []];
  let last = performance.now();
  let before = bytesRead();
  for await (const piece of loaded.generate([1, 2, 3, 4, 5, 6, 7, 8], {
    maxNewTokens: Number(values.tokens),
    ignoreEos: true,
  })) {
    ids.push(...piece.tokenIds);
    times.push(performance.now() - last);
    read.push(bytesRead() - before);
    last = performance.now();
    before = bytesRead();
  }
  const disk = loaded.plan.devices.find((device) => device.name === 'disk')?.weightsBytes ?? 0;
  await loaded.dispose();
  return { ids, loadMs, tokenMs: median(times.slice(1)), readBytes: median(read.slice(1)), diskBytes: disk };
}

/** This script with one configuration, in a memory group of `limit` bytes; null where none can be made. */
function measureCapped(options, limit) {
  const command = [fileURLToPath(import.meta.url), model, '--tokens', values.tokens, '--run', JSON.stringify(options)];
  const group = `/sys/fs/cgroup/memory/metashard-bench-${process.pid}`;
  try {
    mkdirSync(group);
    writeFileSync(`${group}/memory.limit_in_bytes`, String(limit));
  } catch {
    if (existsSync(group)) rmdirSync(group);
    return null;
  }
  const { stdout, stderr, status, signal } = spawnSync(
    'sh',
    ['-c', `echo $$ > ${group}/cgroup.procs; exec "$@"`, 'sh', process.execPath, ...command],
    {
      encoding: 'utf8',
    },
  );
  rmdirSync(group);
  if (status !== 0) throw new Error(`ended with ${signal ?? status}: ${stderr.slice(-600)}`);
  return JSON.parse(stdout);
}

if (values.run !== undefined) {
  process.stdout.write(JSON.stringify(await measure(JSON.parse(values.run))));
} else {
  await packStore(model, base);
  const resident = await measure({ devices: ['cpu'] });
  const rows = [['in memory, from the packed store', resident]];
  rows.push([
    'every block on disk, page cache hot',
    await measure({ devices: ['cpu', 'disk'], deviceMap: { '': 'disk' } }),
  ]);
  for (const limit of values.limits.split(',')) {
    const bytes = parseBytes(limit);
    // What a process of Node takes beside the model, and pages the kernel keeps for itself.
    const cpu = bytes - 200e6;
    const capped = measureCapped({ devices: ['cpu', 'disk'], maxMemory: { cpu }, deviceMap: 'auto' }, bytes);
    rows.push([`memory group of ${limit}`, capped]);
  }
  const cells = rows.map(([name, row]) =>
    row === null
      ? [name, 'no memory group can be made', '', '', '', '']
      : [
          name,
          (row.diskBytes / 1e9).toFixed(2),
          row.tokenMs.toFixed(1),
          (row.tokenMs / resident.tokenMs).toFixed(2),
          (row.readBytes / 1e9).toFixed(2),
          String(row.ids.join() === resident.ids.join()),
        ],
  );
  console.log(markdownTable(['', 'on disk, GB', 'ms a token', '× in memory', 'GB read a token', 'same tokens'], cells));
}
