/**
 * BLOOM-176B from its config alone, by the command line, on a machine without GPUs: plans as checked in, what-if
 * tables, the estimate.
 */
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { estimateModel, type ModelEstimate, type WhatIfRow, whatIf } from 'metashard';
import { describe, expect, it } from 'vitest';
import { runCli } from '../packages/dispatch/dist/cli/index.js';
import { readWhatIf, withDeviceCount } from '../packages/dispatch/dist/what-if.js';

const EXAMPLE = new URL('../examples/bloom-176b', import.meta.url).pathname;
const STORIES = new URL('../models/bloom-stories', import.meta.url).pathname;

// Plans rest on datasheet figures here, also on a machine that was calibrated.
process.env.METASHARD_CACHE = join(tmpdir(), 'metashard-without-calibration');

async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const [stdout, stderr] = [new PassThrough({ highWaterMark: 2 ** 24 }), new PassThrough()];
  const code = await runCli(args, { stdin: Readable.from([]), stdout, stderr, env: {} });
  return { code, out: String(stdout.read() ?? ''), err: String(stderr.read() ?? '') };
}

describe('examples/bloom-176b', () => {
  it.each(['3x80GB', '4x80GB', '8x40GB', '8x24GB-cpu', '1x24GB-cpu-disk'])(
    'plans %s as checked in (vitest -u rewrites it)',
    async (name) => {
      const { code, out, err } = await run('plan', `${EXAMPLE}/${name}.yaml`);
      expect({ code, err }).toEqual({ code: 0, err: '' });
      await expect(out).toMatchFileSnapshot(`${EXAMPLE}/${name}.txt`);
    },
  );

  it('draws 8x40GB as checked in', async () => {
    const file = join(mkdtempSync(join(tmpdir(), 'metashard-svg-')), '8x40GB.svg');
    expect(await run('plan', `${EXAMPLE}/8x40GB.yaml`, '--svg', file)).toEqual({
      code: 0,
      out: '',
      err: `wrote ${file}\n`,
    });
    await expect(readFileSync(file, 'utf8')).toMatchFileSnapshot(`${EXAMPLE}/8x40GB.svg`);
  });

  it('refuses what does not fit, and a file that cannot be written', async () => {
    const three = `${EXAMPLE}/3x80GB.yaml`;
    const small = ['--max-memory', '0=60GiB,1=60GiB,2=60GiB'];
    expect(await run('plan', three, ...small)).toEqual({
      code: 3,
      out: '',
      err: `error: model does not fit: cuda:0 needs 63.2 GiB, 60.0 GiB available
hint: max_batch_size × max_seq_len of 1 × 928 fits; or offer 3.2 GiB more on each device (max_memory), or add a device
`,
    });
    for (const [tokens, want] of [
      ['928', 0],
      ['944', 3],
    ] as const)
      expect((await run('plan', three, ...small, '--max-seq-len', tokens)).code, tokens).toBe(want);
    const { code, err } = await run('plan', three, '--html', '/no/such/folder/a.html');
    expect(code).toBe(2);
    expect(err).toContain('error: /no/such/folder/a.html: expected a file that can be written, got ENOENT');
  });
});

describe('what if', () => {
  const axes = { devices: [2, 3, 4], max_seq_len: [512, 2048], max_batch_size: [1, 4] };
  const budgets = { devices: [0, 1, 2], maxMemory: { 0: '72GiB', 1: '72GiB', 2: '72GiB' }, loadIn8bit: true };

  it('plans the whole cross product, added devices having the budget of the last', async () => {
    const { rows } = await whatIf(EXAMPLE, budgets, axes);
    expect(rows.map(({ devices, maxSeqLen, maxBatchSize, fits }) => [devices, maxSeqLen, maxBatchSize, fits])).toEqual([
      ...[
        [2, 512, 1, false],
        [2, 512, 4, false],
        [2, 2048, 1, false],
        [2, 2048, 4, false],
      ],
      ...[
        [3, 512, 1, true],
        [3, 512, 4, true],
        [3, 2048, 1, true],
        [3, 2048, 4, false],
      ],
      ...[
        [4, 512, 1, true],
        [4, 512, 4, true],
        [4, 2048, 1, true],
        [4, 2048, 4, true],
      ],
    ]);
    for (const { fits, tightest, expectedMs, costs, problem } of rows) {
      const free = (tightest?.availableBytes ?? 0) - (tightest?.neededBytes ?? 0);
      expect(tightest?.availableBytes).toBe(72 * 2 ** 30);
      expect(free >= 0).toBe(fits);
      expect([expectedMs !== null && expectedMs > 0, costs, problem === null]).toEqual(
        fits ? [true, 'datasheet', true] : [false, null, false],
      );
    }
  });

  it('agrees with metashard plan on every row that fits', async () => {
    const { rows } = await whatIf(EXAMPLE, budgets, { ...axes, devices: [3] });
    const plan = JSON.parse((await run('plan', `${EXAMPLE}/3x80GB.yaml`, '--device-map', 'auto', '--json')).out);
    const free = Math.min(...plan.devices.map(({ freeBytes }: { freeBytes: number }) => freeBytes));
    const row = rows.find((one) => one.maxSeqLen === 2048 && one.maxBatchSize === 1) as WhatIfRow;
    expect((row.tightest?.availableBytes ?? 0) - (row.tightest?.neededBytes ?? 0)).toBe(free);
  });

  it('prints a table, or JSON', async () => {
    const args = ['plan', `${EXAMPLE}/4x80GB.yaml`, '--what-if', 'devices=2,4', '--what-if', 'max-batch-size=1'];
    const { code, out } = await run(...args);
    expect(code).toBe(0);
    expect(out).toMatch(
      /│ devices │ max_seq_len │ max_batch_size │ fits │ tightest │ +needs │ +free │ a token \(datasheet\) │/,
    );
    expect(out).toMatch(/│ +2 │ +2048 │ +1 │ +no │ +cuda:\d │ +[\d.]+ GiB │ +-[\d.]+ GiB │ +– │/);
    expect(out).toMatch(/│ +4 │ +2048 │ +1 │ +yes │ +cuda:\d │ +[\d.]+ GiB │ +[\d.]+ GiB │ +\d+ ms │/);
    expect(JSON.parse((await run(...args, '--json')).out).rows).toHaveLength(2);
  });

  it('keeps devices of other types, and shares the memory of added CPUs', () => {
    const mixed = withDeviceCount({ devices: ['cuda:0', 'cpu'], maxMemory: { 0: '1GiB', cpu: '2GiB' } }, 3);
    expect(mixed.devices).toEqual(['cuda:0', 'cuda:1', 'cuda:2', 'cpu:0']);
    expect(mixed.maxMemory).toEqual({ 'cuda:0': '1GiB', 'cpu:0': '2GiB', 'cuda:1': '1GiB', 'cuda:2': '1GiB' });
    expect(withDeviceCount({ devices: ['cpu'] }, 2)).toEqual({ devices: ['cpu:0', 'cpu:1'], maxMemory: {} });
    expect(withDeviceCount({ devices: [0, 1], maxMemory: { 0: 1, 1: 2 } }, 1).maxMemory).toEqual({ 'cuda:0': 1 });
  });

  it('says what would be streamed from disk', async () => {
    const options = { devices: ['cpu', 'disk'], maxMemory: { cpu: '60GiB' }, loadIn8bit: true };
    const { rows } = await whatIf(EXAMPLE, options, { max_seq_len: [64] });
    expect(rows).toMatchObject([{ devices: 1, fits: true, tightest: { device: 'cpu:0' } }]);
    expect(rows[0]?.offloadedBytes).toBeGreaterThan(100 * 2 ** 30);
    const args = ['--devices', 'cpu,disk', '--max-memory', 'cpu=60GiB', '--device-map', 'auto'];
    const { out } = await run('plan', EXAMPLE, '--load-in-8bit', ...args, '--what-if', 'max_seq_len=64');
    expect(out).toMatch(/│ +1 │ +64 │ +1 │ with [\d.]+ GiB on disk │ +cpu:0 │.* \d+ s │/);
  });

  it('says so where the model cannot have a context', async () => {
    const llama = new URL('../models/stories260K', import.meta.url).pathname;
    const { rows } = await whatIf(llama, { devices: ['cpu'] }, { max_seq_len: [128, 99999] });
    expect(rows.map(({ fits, maxSeqLen }) => [fits, maxSeqLen])).toEqual([
      [true, 128],
      [false, 99999],
    ]);
    expect(rows[1]?.problem).toMatch(/^max_seq_len: expected at most the model's \d+, got 99999$/);
  });

  it.each([
    [['device=1'], '--what-if: expected devices, max_seq_len, max_batch_size, got "device" (did you mean devices?)'],
    [['devices=0'], '--what-if devices: expected whole numbers of at least 1, got "0"'],
    [['max_seq_len'], '--what-if max_seq_len: expected whole numbers of at least 1, got ""'],
  ])('refuses %j', (texts, message) => {
    expect(() => readWhatIf(texts)).toThrow(message);
  });

  it('refuses more than 64 rows, and a picture of many plans', async () => {
    const many = Array.from({ length: 65 }, (_, i) => i + 1).join(',');
    expect((await run('plan', STORIES, '--what-if', `max_seq_len=${many}`)).err).toContain(
      'expected at most 64 combinations, got 65',
    );
    expect(await run('plan', STORIES, '--what-if', 'devices=1', '--svg', 'x.svg')).toMatchObject({ code: 2 });
  });
});

describe('estimate', () => {
  it('counts what BLOOM-176B takes, and the GPUs it needs in 8 bits', async () => {
    const { parameters, dtypes, kvCache, setups, maxSeqLen } = await estimateModel(EXAMPLE);
    expect([parameters, maxSeqLen]).toEqual([176_247_271_424, 2048]);
    const sizes = Object.fromEntries(dtypes.map(({ dtype, weightsBytes }) => [dtype, weightsBytes]));
    // Tensors start on 64 bytes, and the ALiBi slopes are a constant of the program.
    for (const [dtype, bytes] of [
      ['float32', 4],
      ['float16', 2],
    ] as const) {
      expect(sizes[dtype]).toBeGreaterThanOrEqual(parameters * bytes);
      expect(sizes[dtype]).toBeLessThan(parameters * bytes + 2 ** 16);
    }
    expect(dtypes[1]?.largestBlock?.bytes).toBeGreaterThanOrEqual(2 * 2_466_437_120);
    expect(dtypes[1]?.largestModule).toEqual({ module: 'transformer.word_embeddings', bytes: 250880 * 14336 * 2 });
    expect(kvCache).toEqual({ tokens: 1024, float32Bytes: 1024 * 2 * 4_014_080, float16Bytes: 1024 * 4_014_080 });
    expect(Object.fromEntries(setups.slice(0, -1).map(({ name, count }) => [name, count]))).toEqual({
      T4: 15,
      'RTX 3090, RTX 4090, L4, A10': 10,
      'A100 40GB': 6,
      'A100 80GB, H100': 3,
      H200: 2,
    });
    const used = setups.map(({ offeredBytes, count, freeBytes }) => (count ?? 0) * (offeredBytes - (freeBytes ?? 0)));
    for (const bytes of used.slice(0, -1)) expect(bytes).toBeGreaterThan(sizes.int8 as number);
  });

  it('prints tables, or JSON, and follows the context', async () => {
    const { code, out } = await run('estimate', STORIES);
    expect(code).toBe(0);
    expect(out).toContain('bloom-stories: 3,657,984 parameters\n');
    expect(out).toMatch(/│ int8 +│ +3\.7 MiB │ +450\.\d KiB │/);
    expect(out).toMatch(/│ CPU of this machine \(available memory\) │ +[\d.]+ GiB │ +1 │ +[\d.]+ GiB free │/);
    const json = async (...flags: string[]): Promise<ModelEstimate> =>
      JSON.parse((await run('estimate', EXAMPLE, '--json', ...flags)).out);
    const [short, long] = [await json(), await json('--max-seq-len', '8192', '--max-batch-size', '2')];
    expect([long.maxSeqLen, long.maxBatchSize]).toEqual([8192, 2]);
    expect(long.setups[3]?.count as number).toBeGreaterThan(short.setups[3]?.count as number);
    expect((await run('estimate', '/no/such')).code).toBe(2);
  });
});
