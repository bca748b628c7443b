/**
 * Checkpoints that do not belong to their config.json: one list of what is wrong, or, not strict, a warning and zeros.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LoadModelOptions, loadModel } from 'metashard';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { SHIPPED } from './golden-models.js';

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

const UP = 'model.layers.0.mlp.up_proj.weight';
const DOWN = 'model.layers.1.mlp.down_proj.weight';
const SOURCE = join(SHIPPED, 'stories260K');

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-mismatch-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A copy of stories260K whose file was changed by `edit`. */
function changed(name: string, edit: (header: Record<string, Entry>, data: Buffer) => void): string {
  const copy = join(folder, name);
  cpSync(SOURCE, copy, { recursive: true });
  const file = readFileSync(join(SOURCE, 'model.safetensors'));
  const end = 8 + Number(file.readBigUInt64LE());
  const header = JSON.parse(file.subarray(8, end).toString()) as Record<string, Entry>;
  const data = Buffer.from(file.subarray(end));
  edit(header, data);
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(join(copy, 'model.safetensors'), Buffer.concat([length, json, data]));
  return copy;
}

/** up_proj under another name, down_proj with its dimensions swapped. */
const wrong = (name: string): string =>
  changed(name, (header) => {
    header['model.extra.weight'] = header[UP] as Entry;
    delete header[UP];
    (header[DOWN] as Entry).shape.reverse();
  });

async function logits(source: string, options: LoadModelOptions): Promise<Float32Array> {
  const model = await loadModel(source, { devices: ['cpu'], maxSeqLen: 32, packedStore: 'ignore', ...options });
  try {
    return (await model.forward({ inputIds: [[1, 403, 407, 261]] })).logits.toFloat32Array();
  } finally {
    await model.dispose();
  }
}

it('is refused with everything that is wrong in one list', async () => {
  await expect(logits(wrong('strict'), {})).rejects.toMatchObject({
    code: 'checkpoint_mismatch',
    message: expect.stringMatching(
      /tensors missing: .*up_proj\.weight; unexpected: model\.extra\.weight; of another shape: .*down_proj\.weight \(expected \[64, 172\], got \[172, 64\]\)$/,
    ),
    details: { missing: [UP], unexpected: ['model.extra.weight'], mismatched: [expect.stringContaining(DOWN)] },
  });
});

it.each([
  ['in float', { loadIn8bit: false }],
  ['in 8 bits', { loadIn8bit: true }],
])('loads with zeros and a warning where strict is false, %s', async (name, options) => {
  const zeroed = changed(`zeroed ${name}`, (header, data) => {
    for (const key of [UP, DOWN]) data.fill(0, ...(header[key] as Entry).data_offsets);
  });
  const warnings: string[] = [];
  const logger = { info() {}, warn: (message: string) => void warnings.push(message) };
  const got = await logits(wrong(`lenient ${name}`), { ...options, strict: false, logger });
  expect(got).toEqual(await logits(zeroed, options));
  expect(warnings).toHaveLength(1);
  expect(warnings[0]).toMatch(/missing: .*up_proj.*; what has no tensor of its shape is zero$/);
});

/** Terminating a thread that is still loading its modules would end the process (Node 20). */
it('refuses many loads in a row while their threads start, and the process stays', async () => {
  const tooLarge = { devices: ['cpu'], maxMemory: { cpu: '1MiB' }, packedStore: 'ignore' } as const;
  for (let wait = 0; wait < 30; wait += 3) {
    const refused = loadModel(SOURCE, tooLarge);
    await expect(refused).rejects.toMatchObject({ code: 'memory_insufficient' });
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
});
