/**
 * Mutated packed stores: each opens with every tensor where the untouched one has it, is passed over (and the model
 * loads from its checkpoint), or is refused with a CheckpointError; nothing is read from a wrong place.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Program } from '@metashard/core';
import { CheckpointError, checkStore, loadModel } from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openStore, type StoreHeader } from '../packages/dispatch/dist/packed-store.js';
import { SHIPPED } from './golden-models.js';
import { Dice } from './mutated-headers.js';

const seed = Number(process.env.METASHARD_TEST_SEED ?? Date.now() % 1_000_000_000);
const FILES_PER_KIND = 600;
const model = `${SHIPPED}stories260K`;

let folder = '';
let file = '';
let whole: Buffer;
let header: StoreHeader;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-store-fuzz-'));
  const loaded = await loadModel(model, { loadIn8bit: true, offloadFolder: folder, packedStore: 'write' });
  await loaded.dispose();
  file = join(folder, readdirSync(folder)[0] as string);
  whole = readFileSync(file);
  header = headerOf(whole);
});
afterAll(() => rmSync(folder, { recursive: true }));

const jsonLength = (bytes: Buffer): number => Number(bytes.readBigUInt64LE(8));
const headerOf = (bytes: Buffer): StoreHeader => JSON.parse(bytes.toString('utf8', 16, 16 + jsonLength(bytes)));

/** A Program that uses the store's tensors, one op each, in the order they lie. */
function programOf({ tensors }: StoreHeader): Program {
  const ordered = Object.entries(tensors).sort(([, a], [, b]) => a.offset - b.offset);
  return {
    tensors: ordered.map(([name, { dtype, layout, dims }]) => ({ kind: 'weight', name, dtype, layout, dims })),
    ops: ordered.map((_, id) => ({ inputs: [id] })),
  } as unknown as Program;
}

/** The store with another text as its header; the length says so, unless the text is too long for its place. */
function withHeader(text: string): Buffer {
  const bytes = Buffer.from(whole);
  const json = Buffer.from(text);
  bytes.fill(0, 16, header.dataOffset);
  bytes.writeBigUInt64LE(BigInt(json.length), 8);
  json.copy(bytes, 16, 0, header.dataOffset - 16);
  return bytes;
}

const NASTY = [
  null,
  -1,
  0,
  1,
  63,
  64,
  4096,
  1.5,
  1e308,
  2 ** 53,
  2 ** 32,
  '',
  '64',
  'float32',
  [],
  {},
  true,
  [0],
  [[]],
];

/** Replaces, deletes or copies one value somewhere in a tree. */
function damageTree(root: object, dice: Dice): void {
  let at = root as Record<string, unknown>;
  for (;;) {
    const key = dice.pick(Object.keys(at));
    const value = at[key];
    const deeper = typeof value === 'object' && value !== null && Object.keys(value).length > 0;
    if (deeper && dice.below(5) > 0) {
      at = value as Record<string, unknown>;
      continue;
    }
    if (dice.below(6) === 0) delete at[key];
    else at[key] = dice.below(3) === 0 ? at[dice.pick(Object.keys(at))] : dice.pick(NASTY);
    return;
  }
}

function damagePlaces(changed: StoreHeader, dice: Dice): void {
  const tensors = Object.values(changed.tensors);
  const [one, other] = [dice.pick(tensors), dice.pick(tensors)];
  const step = dice.pick([1, 63, 64, 128, 4096, -64, -4096, 2 ** 31, 2 ** 52]);
  switch (dice.below(6)) {
    case 0: // two change places
      [one.offset, other.offset] = [other.offset, one.offset];
      return;
    case 1: // one inside another
      one.offset = other.offset;
      return;
    case 2:
      one.offset += step;
      return;
    case 3:
      one.nbytes += step;
      return;
    case 4: // all of them, and the data, from elsewhere
      changed.dataOffset += step;
      for (const tensor of tensors) tensor.offset += dice.below(2) * step;
      return;
    default: {
      const names = Object.keys(changed.tensors);
      const [a, b] = [dice.pick(names), dice.pick(names)];
      [changed.tensors[a], changed.tensors[b]] = [other, one];
    }
  }
}

const damaged = (damage: (changed: StoreHeader, dice: Dice) => void) => (dice: Dice) => {
  const changed = structuredClone(header);
  damage(changed, dice);
  return withHeader(JSON.stringify(changed));
};

const MUTATIONS: Record<string, (dice: Dice) => Buffer> = {
  bits: (dice) => {
    const bytes = Buffer.from(whole);
    for (let flips = 1 + dice.below(8); flips > 0; flips--) {
      const at = dice.below(16 + jsonLength(whole));
      bytes[at] = (bytes[at] as number) ^ (1 << dice.below(8));
    }
    return bytes;
  },
  size: (dice) => {
    const length = dice.below(3) === 0 ? dice.below(64) : dice.below(whole.length);
    return dice.below(2) === 0 ? whole.subarray(0, length) : Buffer.concat([whole, Buffer.alloc(1 + length)]);
  },
  length: (dice) => {
    const bytes = Buffer.from(whole);
    const length = BigInt(jsonLength(whole));
    const most = 2n ** 64n - 1n;
    bytes.writeBigUInt64LE(
      dice.pick([0n, 1n, length - 1n, length + 1n, BigInt(whole.length), 2n ** 26n, 2n ** 31n, 2n ** 53n, most]),
      8,
    );
    return bytes;
  },
  values: damaged(damageTree),
  places: damaged(damagePlaces),
  identity: damaged((changed, dice) => {
    const source = dice.pick(changed.source);
    switch (dice.below(6)) {
      case 0:
        changed.layout = dice.pick(['vnni-16x64-v0', 'vnni-16x64-v2', '', 'rows']);
        break;
      case 1:
        changed.version += dice.pick([-1, 1, 2 ** 31]);
        break;
      case 2:
        source.path += 'x';
        break;
      case 3:
        source.bytes += 1;
        break;
      case 4:
        source.modifiedMs += 0.5;
        break;
      default:
        source.headHash = source.headHash.replace(/[0-9]/, (digit) => `${(Number(digit) + 1) % 10}`);
    }
  }),
  structure: (dice) => {
    const text = JSON.stringify(header);
    const at = dice.below(text.length);
    const junk = dice.pick(['{', '}', '[', ']', ',', '"', '\\', '\0', '\n', '-', 'null', '\ufeff', '1e999']);
    return withHeader(
      dice.pick([
        text.slice(0, at) + junk + text.slice(at),
        text.slice(0, at) + junk + text.slice(at + junk.length),
        text.slice(0, at),
        '',
        'null',
        '[]',
        '"x"',
        '7',
        '{}',
        '{"tensors":null}',
        `{"tensors":{},"bytes":${whole.length}}`,
        `{"tensors":[],"bytes":${whole.length},"dataOffset":4096,"checksums":[]}`,
        '['.repeat(header.dataOffset - 16),
      ]),
    );
  },
};

/** `run`'s result, or undefined where it refused with a CheckpointError in one line that names the file. */
function orRefused<T>(run: () => T): T | undefined {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.details.file !== file || error.message.includes('\n')) throw error;
    return undefined;
  }
}

describe('mutated packed stores', () => {
  console.log(`mutated packed stores: METASHARD_TEST_SEED=${seed}`);

  it('the untouched one opens', () => {
    expect(openStore(file, programOf(header), header.source)).toEqual(header);
    checkStore(file);
  });

  it.each(Object.keys(MUTATIONS))(`${FILES_PER_KIND} with other %s: right, passed over or refused`, (kind) => {
    const program = programOf(header);
    const counts = { opened: 0, 'passed over': 0, refused: 0 };
    for (let i = 0; i < FILES_PER_KIND; i++) {
      const own = seed + 7919 * i + 104_729 * Object.keys(MUTATIONS).indexOf(kind);
      try {
        const bytes = (MUTATIONS[kind] as (dice: Dice) => Buffer)(new Dice(own));
        writeFileSync(file, bytes);
        const opened = orRefused(() => openStore(file, program, header.source));
        if (opened) expect({ ...opened, checksums: [] }).toMatchObject({ ...header, checksums: [] });
        counts[opened ? 'opened' : opened === null ? 'passed over' : 'refused'] += 1;
        // Where the checksums are taken for right they are the data's.
        if (i % 20 === 0 && orRefused(() => checkStore(file) ?? true))
          expect(headerOf(bytes)).toMatchObject({ checksums: header.checksums });
      } catch (error) {
        throw new Error(`file ${i} (seed ${own}): ${(error as Error).message}`, { cause: error });
      }
    }
    console.log(`${kind}: ${JSON.stringify(counts)}`);
    expect(counts.opened).toBeLessThan(FILES_PER_KIND);
    if (kind === 'identity') expect(counts['passed over']).toBe(FILES_PER_KIND);
    if (kind === 'size' || kind === 'length') expect(counts.refused).toBe(FILES_PER_KIND);
  });

  it('a whole model from mutated ones: its own logits or a CheckpointError, and no other file', async () => {
    const logitsOf = async (): Promise<Float32Array> => {
      const loaded = await loadModel(model, { loadIn8bit: true, offloadFolder: folder });
      const { logits } = await loaded.forward({ inputIds: [[1, 403, 407, 261]] });
      await loaded.dispose();
      return logits.toFloat32Array();
    };
    writeFileSync(file, whole);
    const want = await logitsOf();
    for (const [i, mutate] of Object.values(MUTATIONS).entries()) {
      writeFileSync(file, mutate(new Dice(seed + i)));
      const got = await logitsOf().catch((error: unknown) => error);
      if (got instanceof Float32Array) expect(got).toEqual(want);
      else expect(got).toBeInstanceOf(CheckpointError);
      expect(readdirSync(folder)).toHaveLength(1);
    }
  });

  it('a folder of that name is refused, no file is no store', () => {
    rmSync(file);
    mkdirSync(file);
    expect(orRefused(() => openStore(file, programOf(header), header.source))).toBeUndefined();
    rmSync(file, { recursive: true });
    expect(openStore(file, programOf(header), header.source)).toBeNull();
  });
});
