/**
 * 10,200 mutated PyTorch files: each is read correctly or refused with a CheckpointError, quickly, in bounded memory,
 * and nothing in them runs.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CheckpointError, type CheckpointTensor, DTYPES, openCheckpointSync, readTensors } from '@metashard/core';
import '@metashard/cpu';
import { afterAll, describe, expect, it } from 'vitest';
import { copyElements, Dice, KINDS, type Kind, mutatedTorchFile, type Sample } from './mutated-torch-files.js';

const folder = mkdtempSync(join(tmpdir(), 'metashard-torch-fuzz-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'pytorch_model.bin');

const FILES_PER_KIND = 1_700;
const seed = Number(process.env.METASHARD_TEST_SEED ?? Date.now() % 1_000_000_000);

/** Opens one mutated file. Returns whether it was read, and the time opening took. */
async function check({ bytes, expected }: Sample): Promise<{ read: boolean; ms: number }> {
  writeFileSync(path, bytes);
  const start = performance.now();
  let index: ReturnType<typeof openCheckpointSync>;
  try {
    index = openCheckpointSync(path);
  } catch (error) {
    const ms = performance.now() - start;
    if (!(error instanceof CheckpointError) || error.details.file !== path || error.message.includes('\n')) throw error;
    if (expected != null) throw new Error(`refused a valid file: ${error.message}`);
    return { read: false, ms };
  }
  const ms = performance.now() - start;
  if (expected === null) throw new Error('read an invalid file');
  const tensors = [...index.tensors].filter(([, { dtype }]) => dtype !== null);
  const made = await readTensors(
    index,
    tensors.map(([name]) => name),
  );
  for (const [name, entry] of tensors) {
    const got = Buffer.from(made.get(name)?.toBytes() as Uint8Array);
    if (!got.equals(elementsAt(bytes, entry))) throw new Error(`tensor ${name} is not what its place in the file says`);
  }
  if (expected !== undefined) {
    expect([...index.tensors.keys()].sort()).toEqual([...expected.keys()].sort());
    for (const [name, elements] of expected) {
      if (!elements.equals(elementsAt(bytes, index.tensors.get(name) as CheckpointTensor))) {
        throw new Error(`tensor ${name} is not what was written`);
      }
    }
  }
  return { read: true, ms };
}

/** A tensor's elements, every one within the file. */
function elementsAt(bytes: Buffer, { offset, shape, strides, dtype, nbytes }: CheckpointTensor): Buffer {
  const dense = shape.map((_, axis) => shape.slice(axis + 1).reduce((product, dim) => product * dim, 1));
  const elements = copyElements(bytes, offset, shape, strides ?? dense, DTYPES[dtype as keyof typeof DTYPES].bytes);
  expect(elements.length).toBe(nbytes);
  return elements;
}

describe('mutated PyTorch files', () => {
  console.log(`mutated PyTorch files: METASHARD_TEST_SEED=${seed}`);
  it.each(KINDS)(
    `${FILES_PER_KIND} with other %s are read correctly or refused with a CheckpointError`,
    async (kind: Kind) => {
      const before = process.memoryUsage().rss;
      let [read, slowest] = [0, 0];
      for (let i = 0; i < FILES_PER_KIND; i++) {
        const own = seed + 7919 * i + 104_729 * KINDS.indexOf(kind);
        try {
          const result = await check(mutatedTorchFile(kind, new Dice(own)));
          read += result.read ? 1 : 0;
          slowest = Math.max(slowest, result.ms);
        } catch (error) {
          throw new Error(`file ${i} (seed ${own}): ${(error as Error).message}`, { cause: error });
        }
      }
      const grown = (process.memoryUsage().rss - before) / 2 ** 20;
      const counts = `${read} read, ${FILES_PER_KIND - read} refused`;
      console.log(`${kind}: ${counts}, slowest ${slowest.toFixed(1)} ms, memory ${grown.toFixed(0)} MiB more`);
      expect(slowest).toBeLessThan(2_000);
      expect(grown).toBeLessThan(512);
      expect(existsSync('metashard-was-here')).toBe(false);
      if (kind !== 'globals') expect(read).toBeGreaterThan(0);
      expect(read).toBeLessThan(FILES_PER_KIND);
    },
  );
});
