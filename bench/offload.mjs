/**
 * A model larger than the memory it gets: greedy tokens and their time with weights in memory, streamed from disk with the page cache hot, streamed with all of it read
 * from the disk for every token, and streamed in memory groups that count the page cache. The bytes read are the process's own I/O counters; the disk's speed is that of
 * one cold sequential read of the same bytes before and after each run.
 *
 *   node bench/offload.mjs MODEL [--limits 2600MB,1500MB,800MB,500MB] [--tokens 16] [--rounds 3] [--parts cold,groups] [--folder DIR] [--process 200MB]
 */
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ADVICE, DeviceContext, loadModel, native, packStore, parseBytes, parseDevice, planModel } from 'metashard';
import { runInMemoryGroup } from './memory-group.mjs';
import { median } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    limits: { type: 'string', default: '2600MB,1500MB,800MB,500MB' },
    tokens: { type: 'string', default: '16' },
    rounds: { type: 'string', default: '3' },
    parts: { type: 'string', default: 'cold,groups' },
    folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
    process: { type: 'string', default: '200MB' },
    run: { type: 'string' },
  },
});
const [model] = positionals;
if (model === undefined) throw new Error('usage: node bench/offload.mjs MODEL');
const base = { loadIn8bit: true, maxSeqLen: 128, offloadFolder: join(values.folder, 'stores') };
const ON_DISK = { devices: ['cpu', 'disk'], deviceMap: { '': 'disk' } };
/** What a process of Node takes beside the model, and pages the kernel keeps for itself. */
const PROCESS_BYTES = parseBytes(values.process);
const PIECE_BYTES = 8 * 2 ** 20;

/** Bytes this process had the disk read. */
const bytesRead = () => Number(/^read_bytes: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))[1]);

/** One run in this process: ids, milliseconds a token (median and worst after the first), bytes read a token. */
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
  const diskBytes = loaded.plan.devices.find((device) => device.name === 'disk')?.weightsBytes ?? 0;
  await loaded.dispose();
  const rest = times.slice(1);
  return {
    ids,
    loadMs,
    tokenMs: median(rest),
    worstMs: Math.max(...rest),
    readBytes: median(read.slice(1)),
    diskBytes,
  };
}

/** Milliseconds to read the first `bytes` of a file once, none of it in the page cache; afterwards none is, either. */
function coldReadMs(path, bytes) {
  const addon = native();
  const context = new DeviceContext(parseDevice('cpu:0'));
  const file = addon.openFile(path);
  const mapped = addon.mapFile(context.id, file, 0, addon.fileBytes(file), -1);
  addon.advise(mapped, 0, addon.fileBytes(file), ADVICE.release);
  const started = performance.now();
  for (let at = 0; at < bytes; at += PIECE_BYTES)
    addon.advise(mapped, at, Math.min(PIECE_BYTES, bytes - at), ADVICE.populate);
  const ms = performance.now() - started;
  addon.advise(mapped, 0, bytes, ADVICE.release);
  addon.closeFile(file);
  context.close();
  return ms;
}

/** Everything on disk and room for the window alone: every token reads all of it. Its time, and that over a plain read's. */
async function measureCold(store) {
  const plan = await planModel(model, { ...base, ...ON_DISK });
  const [cpu, disk] = ['cpu:0', 'disk'].map((name) => plan.devices.find((device) => device.name === name));
  const options = { ...ON_DISK, maxMemory: { cpu: cpu.budgetBytes - cpu.freeBytes } };
  const rounds = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    const before = coldReadMs(store, disk.weightsBytes);
    const run = await measure(options);
    const readMs = (before + coldReadMs(store, disk.weightsBytes)) / 2;
    rounds.push({ ...run, readMs, ratio: run.tokenMs / readMs });
  }
  return rounds.toSorted((a, b) => a.ratio - b.ratio)[rounds.length >> 1];
}

/** In memory and on disk with the page cache hot, in turns: the middle round by the ratio of the two. */
async function measureHot() {
  const rounds = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    const resident = await measure({ devices: ['cpu'] });
    rounds.push({ resident, hot: await measure(ON_DISK) });
  }
  const ratio = ({ resident, hot }) => hot.tokenMs / resident.tokenMs;
  return rounds.toSorted((a, b) => ratio(a) - ratio(b))[rounds.length >> 1];
}

/** Why the model is refused under these options, a head larger than the memory say; undefined where it runs. */
async function refusalOf(options) {
  try {
    await planModel(model, { ...base, ...options });
    return undefined;
  } catch (error) {
    if (error.code !== 'memory_insufficient') throw error;
    return `refused: needs ${Math.ceil((error.details.neededBytes + PROCESS_BYTES) / 1e6)} MB`;
  }
}

/** This script with one configuration in a memory group of `limit` bytes. */
function measureCapped(store, options, limit) {
  coldReadMs(store, 0); // what this process has read is not counted to the group's
  const own = [fileURLToPath(import.meta.url), model, '--tokens', values.tokens, '--folder', values.folder];
  const { output, reason } = runInMemoryGroup(limit, [process.execPath, ...own, '--run', JSON.stringify(options)]);
  return output === undefined ? { reason } : JSON.parse(output);
}

function cells(name, row, resident) {
  if (row.reason !== undefined) return [name, row.reason];
  return [
    name,
    (row.diskBytes / 1e9).toFixed(2),
    row.tokenMs.toFixed(1),
    row.worstMs.toFixed(1),
    (row.readBytes / 1e9).toFixed(2),
    row.readMs === undefined ? '' : `${row.readMs.toFixed(1)} (${(row.diskBytes / row.readMs / 1e6).toFixed(2)} GB/s)`,
    row.ratio !== undefined
      ? `${row.ratio.toFixed(2)} × the read`
      : `${(row.tokenMs / resident.tokenMs).toFixed(2)} × in memory`,
    row.ids.join() === resident.ids.join() ? 'yes' : 'NO',
  ];
}

async function main() {
  const parts = values.parts.split(',');
  const store = await packStore(model, base);
  const opened = performance.now();
  await packStore(model, base);
  console.log(`finding and checking the store: ${(performance.now() - opened).toFixed(1)} ms\n`);
  const { resident, hot } = await measureHot();
  const rows = [cells('in memory, from the packed store', resident, resident)];
  rows.push(cells('every block on disk, page cache hot', hot, resident));
  if (parts.includes('cold')) rows.push(cells('every block on disk, cold', await measureCold(store), resident));
  for (const limit of parts.includes('groups') ? values.limits.split(',') : []) {
    const bytes = parseBytes(limit);
    const options = { devices: ['cpu', 'disk'], maxMemory: { cpu: bytes - PROCESS_BYTES }, deviceMap: 'auto' };
    const reason = await refusalOf(options);
    const row = reason === undefined ? measureCapped(store, options, bytes) : { reason };
    rows.push(cells(`memory group of ${limit}`, row, resident));
  }
  const header = [
    '',
    'on disk, GB',
    'ms a token',
    'worst',
    'GB read a token',
    'a cold read of them, ms',
    '',
    'same tokens',
  ];
  console.log(markdownTable(header, rows));
}

if (values.run !== undefined) process.stdout.write(JSON.stringify(await measure(JSON.parse(values.run))));
else await main();
