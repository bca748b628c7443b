/** The plan as a picture and a page: well-formed, one rectangle per unit, widths that add up; BLOOM-176B over many devices; a golden file. */
import { readFileSync } from 'node:fs';
import { buildModel, planHtml, planRecorded, planSvg, recordModel, replaceLinear } from 'metashard';
import { describe, expect, it } from 'vitest';
import type { DevicePlan, PlanDevice } from '../packages/dispatch/dist/plan.js';
import { fitRows, pictureRows } from '../packages/dispatch/dist/plan-picture.js';

const BLOOM_176B = JSON.parse(readFileSync(new URL('../examples/bloom-176b/config.json', import.meta.url), 'utf8'));
const recorded = (() => {
  const { model } = buildModel(BLOOM_176B);
  replaceLinear(model);
  return recordModel(model, { maxSeqLen: 2048 });
})();
const planOver = (count: number, GiB: number, deviceMap: DevicePlan['deviceMap'] | 'balanced' = 'balanced') =>
  planRecorded(
    recorded,
    Array.from({ length: count }, (_, i) => ({
      name: `cuda:${i}`,
      emulated: i === 1,
      budgetBytes: GiB * 2 ** 30,
      reserveBytes: 0,
    })),
    { deviceMap, model: 'bloom' },
  ).plan;

/** Names of all elements; throws where a tag is not closed, an attribute not quoted, or a character not escaped. */
function elements(xml: string): string[] {
  const names: string[] = [];
  const open: string[] = [];
  for (const [, text = '', close, name = '', attributes = '', alone] of xml.matchAll(
    /([^<>]*)<(\/?)([\w-]+)((?:\s+[\w:-]+="[^"<>]*")*)\s*(\/?)>/g,
  )) {
    if (/&(?!(?:amp|lt|gt|quot);)/.test(text + attributes)) throw new Error(`unescaped & near ${text}`);
    if (close) {
      if (open.pop() !== name) throw new Error(`</${name}> closes nothing`);
      continue;
    }
    names.push(name);
    if (!alone) open.push(name);
  }
  if (open.length > 0) throw new Error(`open: ${open.join(', ')}`);
  const tags = xml.match(/<[^>]*>/g)?.length ?? 0;
  const read = names.length + (xml.match(/<\//g)?.length ?? 0);
  if (tags !== read) throw new Error(`${tags} tags, ${read} well-formed`);
  return names;
}

const rects = (svg: string, kind: string): number => svg.split(`<rect class="${kind}"`).length - 1;

describe('BLOOM-176B', () => {
  it.each([
    [1, 250],
    [8, 40],
    [64, 12],
  ])('over %i devices of %i GiB has one rectangle per unit, and every row its length', (count, GiB) => {
    const plan = planOver(count, GiB);
    const svg = planSvg(plan);
    elements(svg);
    expect(rects(svg, 'block')).toBe(70);
    expect(rects(svg, 'embedding')).toBe(2);
    expect(rects(svg, 'head')).toBe(2);
    expect(rects(svg, 'free')).toBe(count);
    const rows = pictureRows(plan);
    const lengths = fitRows(rows, 1000).map((widths) => widths.reduce((a, b) => a + b, 0));
    for (const length of lengths) expect(length).toBeCloseTo(1000, 6); // equal budgets
    for (const width of fitRows(rows, 1000).flat()) expect(width).toBeGreaterThanOrEqual(3);
  });

  it("'s units add up to the bytes of every device, also where a map cuts blocks or returns to a device", () => {
    const explicit = { '': 'cuda:1', 'transformer.h.0': 'cuda:0', 'transformer.h.1.mlp': 'cuda:0', lm_head: 'cuda:0' };
    for (const plan of [planOver(8, 40), planOver(2, 300, explicit)]) {
      for (const device of plan.devices) {
        const own = plan.modules?.filter((one) => one.device === device.name) ?? [];
        expect(own.reduce((sum, one) => sum + one.weightsBytes, 0)).toBe(device.weightsBytes);
        expect(own.reduce((sum, one) => sum + one.kvCacheBytes, 0)).toBe(device.kvCacheBytes);
      }
    }
    const cut = planOver(2, 300, explicit).modules?.filter(({ path }) => path === 'transformer.h.1');
    expect(cut?.map(({ device }) => device)).toEqual(['cuda:1', 'cuda:0']);
    expect(planSvg(planOver(2, 300, explicit))).toContain('transformer.h.1 (in part): ');
  });

  it('that streams from disk has a row for the disk, its blocks there, and what is read ahead', () => {
    const budgets = [
      { name: 'cpu:0', emulated: false, budgetBytes: 60 * 2 ** 30, reserveBytes: 0 },
      { name: 'disk', emulated: false, budgetBytes: Number.MAX_SAFE_INTEGER, reserveBytes: 0 },
    ];
    const { plan } = planRecorded(recorded, budgets, { deviceMap: 'auto', model: 'bloom' });
    const rows = pictureRows(plan);
    expect(rows.map(({ device: { name } }) => name)).toEqual(['cpu:0', 'disk']);
    const blocks = rows.map(({ parts }) => parts.filter(({ kind }) => kind === 'block').length);
    expect((blocks[0] as number) + (blocks[1] as number)).toBe(70);
    expect(blocks[1]).toBeGreaterThan(20);
    expect(rows[0]?.parts.map(({ kind }) => kind)).toContain('window');
    expect(rows[1]?.parts.every(({ kind }) => ['embedding', 'block', 'head'].includes(kind))).toBe(true);
    elements(planSvg(plan));
    expect(planSvg(plan)).not.toContain('PiB');
    for (const device of plan.devices) {
      const own = plan.modules?.filter((one) => one.device === device.name) ?? [];
      expect(own.reduce((sum, one) => sum + one.weightsBytes, 0)).toBe(device.weightsBytes);
    }
  });

  it('shows widths in proportion to bytes, exact bytes in tooltips, and which devices are emulated', () => {
    const plan = planOver(8, 40);
    const svg = planSvg(plan);
    const width = (tooltip: string): number =>
      Number(new RegExp(`<title>${tooltip}[^<]*</title><rect[^>]* width="([\\d.]+)"`).exec(svg)?.[1]);
    expect(width('transformer.word_embeddings: ') / width('transformer.h.10: ')).toBeCloseTo(
      7193231360 / 2467655680,
      2,
    );
    expect(svg).toContain(
      '<title>transformer.h.10: 2.3 GiB (2,467,655,680 bytes); its KV cache: 224.0 MiB (234,881,024 bytes)</title>',
    );
    expect(svg).toContain('>cuda:1 (emulated)</text>');
    expect(svg).toContain('emulated devices run the real kernels on the CPU, slowly: cuda:1');
    expect(svg).toMatch(/>total: weights 174\.3 GiB, KV cache 15\.3 GiB, .* a token expected \(datasheet figures\)</);
  });

  it('has a page with the same picture and every module', () => {
    const plan = planOver(8, 40);
    const html = planHtml(plan);
    expect(html).toContain(`<div class="wide">${planSvg(plan)}</div>`);
    expect(html.match(/<table>/g)).toHaveLength(html.match(/<div class="wide"><table>/g)?.length ?? 0);
    expect(html.match(/<td>transformer\.h\.\d+<\/td>/g)).toHaveLength(70);
    expect(html).not.toMatch(/<script|https?:\/\/(?!www\.w3\.org\/2000\/svg)/);
  });
});

const device = (name: string, MiB: number, rest: Partial<PlanDevice> = {}): PlanDevice => ({
  name,
  emulated: false,
  budgetBytes: 64 * 2 ** 20,
  weightsBytes: MiB * 2 ** 20,
  kvCacheBytes: 0,
  activationsBytes: 0,
  scratchBytes: 0,
  windowBytes: 0,
  reserveBytes: 0,
  freeBytes: (64 - MiB) * 2 ** 20,
  expectedMs: 0.5,
  ...rest,
});
const unit = (path: string, on: string, MiB: number) => ({
  path,
  device: on,
  weightsBytes: MiB * 2 ** 20,
  kvCacheBytes: 0,
});
const small: DevicePlan = {
  version: 1,
  model: 'a <b> & "c"',
  strategy: 'explicit',
  deviceMap: {},
  objective: 'latency',
  costs: 'measured',
  maxSeqLen: 16,
  maxBatchSize: 1,
  segments: [{ device: 'cpu:0', executeOn: 'cpu:0', modules: ['embed', 'layers.0', 'layers.1', 'head'] }],
  devices: [
    device('cpu:0', 20, { kvCacheBytes: 4 * 2 ** 20, activationsBytes: 2 ** 20, freeBytes: 39 * 2 ** 20 }),
    device('cpu:1', 0, { reserveBytes: 8 * 2 ** 20, freeBytes: 56 * 2 ** 20 }),
    device('cuda:0', 30, { emulated: true, budgetBytes: 2 ** 30, freeBytes: 994 * 2 ** 20 }),
  ],
  modules: [
    unit('embed', 'cpu:0', 5),
    unit('layers.0', 'cpu:0', 7),
    unit('layers.1', 'cpu:0', 8),
    unit('layers.1', 'cuda:0', 12),
    unit('head', 'cuda:0', 18),
  ],
  skipped: [{ module: 'head', reason: 'it is the head' }],
  offloaded: [],
  copies: [],
  ignoredConfigFields: [],
};

describe('a small plan', () => {
  it('looks as it did when someone looked at it', async () => {
    await expect(planSvg(small)).toMatchFileSnapshot('./fixtures/plan-picture.svg');
  });

  it('escapes names, tears the bar of a device far larger than the others, and keeps an empty device', () => {
    const svg = planSvg(small);
    elements(svg);
    expect(svg).toContain('a &lt;b&gt; &amp; &quot;c&quot;');
    expect(pictureRows(small).map(({ parts }) => parts.map(({ kind, isCut }) => `${kind}${isCut ? '…' : ''}`))).toEqual(
      [
        ['embedding', 'block', 'block', 'kv', 'activations', 'free'],
        ['reserve', 'free'],
        ['block', 'head', 'free…'],
      ],
    );
    expect(svg).toContain('free memory behind a torn edge is drawn shorter than it is');
  });

  it('draws a plan without modules as one block of weights a device', () => {
    const { modules: _, ...bare } = small;
    expect(rects(planSvg(bare), 'weights')).toBe(2);
    expect(planHtml(bare)).not.toContain('<details>');
  });
});
