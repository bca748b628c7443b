/** The plan as people see it, and the progress of loading. */
import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import type { DevicePlan, PlanDevice } from '../packages/dispatch/dist/plan.js';
import { compactNames, formatPlanTable } from '../packages/dispatch/dist/plan-table.js';
import { showLoadProgress } from '../packages/dispatch/dist/progress-bar.js';

const device = (name: string, MiB: number, emulated = false): PlanDevice => ({
  name,
  emulated,
  budgetBytes: 2 ** 31,
  weightsBytes: MiB * 2 ** 20,
  kvCacheBytes: 1536 * 2 ** 10,
  activationsBytes: 512,
  scratchBytes: 0,
  windowBytes: 0,
  reserveBytes: 2 ** 30,
  freeBytes: 3 * 2 ** 30,
  expectedMs: 1,
});
const leaves = (block: number) => [
  `transformer.h.${block}.ln`,
  `transformer.h.${block}.attention.qkv`,
  `transformer.h.${block}.mlp.up`,
];

const plan: DevicePlan = {
  version: 1,
  model: 'tiny',
  strategy: 'balanced',
  deviceMap: {},
  objective: 'latency',
  costs: 'datasheet',
  maxSeqLen: 256,
  maxBatchSize: 2,
  segments: [
    {
      device: 'cpu:0',
      executeOn: 'cpu:0',
      modules: ['', 'transformer.rotary', 'transformer.word_embeddings', ...[0, 1, 2].flatMap(leaves)],
    },
    { device: 'cuda:0', executeOn: 'cuda:0', modules: ['transformer.rotary', ...leaves(3), ...leaves(4).slice(0, 2)] },
    { device: 'disk', executeOn: 'cuda:0', modules: [...leaves(4).slice(2), 'transformer.rotary'] },
    { device: 'cpu:0', executeOn: 'cpu:0', modules: ['transformer.ln_f', 'lm_head', ''] },
  ],
  devices: [device('cpu:0', 3), device('cuda:0', 1234.56, true), device('cpu:1', 0)],
  skipped: [
    { module: 'lm_head', reason: 'the output head' },
    ...[0, 1, 2].flatMap((i) => [
      { module: `transformer.h.${i}.mlp.up`, reason: 'skip list' },
      { module: `transformer.h.${i}.mlp.down`, reason: 'skip list' },
    ]),
  ],
  offloaded: [{ module: 'transformer.h.4.mlp', device: 'disk' }],
  copies: [{ tensor: 'transformer.word_embeddings.weight', device: 'cpu:1', bytes: 2048 }],
  ignoredConfigFields: ['foo', 'bar'],
};

describe('formatPlanTable', () => {
  it('shows devices, blocks, bytes and everything unusual', () => {
    expect(formatPlanTable(plan)).toBe(
      [
        'tiny: device_map balanced, max_seq_len 256, max_batch_size 2',
        '┌───────────────────┬─────────────────────────────────────────┬─────────┬──────────┬─────────────┬─────────┬─────────┬─────────┐',
        '│ device            │ blocks                                  │ weights │ KV cache │ activations │ scratch │ reserve │    free │',
        '├───────────────────┼─────────────────────────────────────────┼─────────┼──────────┼─────────────┼─────────┼─────────┼─────────┤',
        '│ cpu:0             │ word_embeddings, h.0–h.2; ln_f, lm_head │ 3.0 MiB │  1.5 MiB │       512 B │     0 B │ 1.0 GiB │ 3.0 GiB │',
        '│ cuda:0 (emulated) │ h.3, h.4.ln, h.4.attention              │ 1.2 GiB │  1.5 MiB │       512 B │     0 B │ 1.0 GiB │ 3.0 GiB │',
        '│ cpu:1             │ –                                       │     0 B │  1.5 MiB │       512 B │     0 B │ 1.0 GiB │ 3.0 GiB │',
        '├───────────────────┼─────────────────────────────────────────┼─────────┼──────────┼─────────────┼─────────┼─────────┼─────────┤',
        '│ total             │                                         │ 1.2 GiB │  4.5 MiB │     1.5 KiB │     0 B │ 3.0 GiB │ 9.0 GiB │',
        '└───────────────────┴─────────────────────────────────────────┴─────────┴──────────┴─────────────┴─────────┴─────────┴─────────┘',
        '3.0 ms a token expected (datasheet figures)',
        'left in float (the output head): lm_head',
        'left in float (skip list): h.0.mlp.up–h.2.mlp.up, h.0.mlp.down–h.2.mlp.down',
        'offloaded to disk: h.4.mlp',
        'spilled to cpu:0: 3.0 MiB, 1.0 ms of 3.0 ms a token',
        'stored once more on cpu:1: word_embeddings.weight (2.0 KiB)',
        'fields of config.json without effect: foo, bar',
      ].join('\n'),
    );
  });

  it('keeps lines of a large plan short', () => {
    const modules = Array.from({ length: 200 }, (_, i) => `layers.${i * 2}.x`);
    const wide = { ...plan, segments: [{ device: 'cpu:0', executeOn: 'cpu:0', modules }] };
    for (const line of formatPlanTable(wide).split('\n').slice(0, 40)) expect(line.length).toBeLessThan(150);
  });

  it('joins only numbers that follow each other', () => {
    expect(compactNames(['h.0', 'h.1', 'h.1', 'h.3', 'g.4', 'x', 'x'])).toEqual(['h.0–h.1', 'h.3', 'g.4', 'x']);
    expect(compactNames(['9', '10'])).toEqual(['9–10']);
    expect(compactNames(['a.1.b.1', 'a.2.b.2'])).toEqual(['a.1.b.1', 'a.2.b.2']);
  });
});

describe('showLoadProgress', () => {
  const step = (allLoadedBytes: number) => ({
    device: 'cpu:0',
    tensor: 'h.0.weight',
    loadedBytes: allLoadedBytes,
    totalBytes: 2 ** 20,
    allLoadedBytes,
    allTotalBytes: 2 ** 20,
    elapsedMs: 500,
    remainingMs: 0,
  });
  const shown = (isTTY: boolean, env: NodeJS.ProcessEnv, quiet = false) => {
    const stream = Object.assign(new PassThrough(), { isTTY });
    const view = showLoadProgress({ stream, env, quiet });
    view.update(step(2 ** 19));
    view.update(step(2 ** 20));
    view.stop();
    view.stop();
    return String(stream.read() ?? '');
  };

  it('says one line where there is no terminal, or CI', () => {
    expect(shown(false, {})).toBe('loaded 1.0 MiB in 0.50 s, 2.0 MiB/s\n');
    expect(shown(true, { CI: '1' })).toBe('loaded 1.0 MiB in 0.50 s, 2.0 MiB/s\n');
    expect(shown(false, {}, true)).toBe('');
  });

  it('ends with the line on a terminal, too', () => {
    expect(shown(true, {})).toMatch(/loaded 1\.0 MiB in 0\.50 s, 2\.0 MiB\/s\n$/);
  });
});
