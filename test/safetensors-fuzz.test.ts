/**
 * 10,200 files with mutated headers: each is read as the naive reader says, or refused with a CheckpointError, and
 * quickly.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CheckpointError, dtypeOfSafetensors, openCheckpointSync, readTensor, readTensors } from '@metashard/core';
import '@metashard/cpu';
import { afterAll, describe, expect, it } from 'vitest';
import { Dice, KINDS, type Kind, mutatedFile, naiveRead, type Sample } from './mutated-headers.js';

const folder = mkdtempSync(join(tmpdir(), 'metashard-fuzz-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'model.safetensors');

const FILES_PER_KIND = 1_700;
const seed = Number(process.env.METASHARD_TEST_SEED ?? Date.now() % 1_000_000_000);

/**
 * Opens one mutated file and compares with the naive reader. Returns whether it was read, and the time opening took.
 */
async function check({ bytes, duplicate }: Sample): Promise<{ read: boolean; ms: number }> {
  writeFileSync(path, bytes);
  const expected = naiveRead(bytes);
  const start = performance.now();
  let index: ReturnType<typeof openCheckpointSync>;
  try {
    index = openCheckpointSync(path);
  } catch (error) {
    const ms = performance.now() - start;
    if (!(error instanceof CheckpointError) || error.details.file !== path || error.message.includes('\n')) throw error;
    const text = bytes.toString('latin1', 8);
    const oddNumbers = /[0-9][.eE+-]|-[0-9]/.test(text); // the naive reader takes 2.0 and 2e0 for 2
    if (expected !== undefined && !duplicate && !oddNumbers) throw new Error(`refused a valid file: ${error.message}`);
    return { read: false, ms };
  }
  const ms = performance.now() - start;
  if (expected === undefined || duplicate) throw new Error('read an invalid file');
  expect([...index.tensors.keys()]).toEqual(expect.arrayContaining([...expected.keys()]));
  expect(index.tensors.size).toBe(expected.size);
  await checkTensors(index, expected, bytes);
  return { read: true, ms };
}

async function checkTensors(
  index: ReturnType<typeof openCheckpointSync>,
  expected: NonNullable<ReturnType<typeof naiveRead>>,
  bytes: Buffer,
): Promise<void> {
  const known = [...expected].filter(([, { dtype }]) => dtypeOfSafetensors(dtype) !== undefined).map(([name]) => name);
  const tensors = await readTensors(index, known);
  for (const [name, { dtype, shape, begin, end }] of expected) {
    const entry = index.tensors.get(name);
    expect(entry).toMatchObject({ offset: begin, nbytes: end - begin, shape, storedDtype: dtype });
    if (known.includes(name)) {
      const got = tensors.get(name);
      expect([got?.dtype, got?.shape]).toEqual([dtypeOfSafetensors(dtype), shape]);
      expect(Buffer.from(got?.toBytes() as Uint8Array).equals(bytes.subarray(begin, end))).toBe(true);
    } else {
      await expect(readTensor(index, name)).rejects.toBeInstanceOf(CheckpointError);
    }
  }
}

describe('mutated headers', () => {
  console.log(`mutated headers: METASHARD_TEST_SEED=${seed}`);
  it.each(KINDS)(
    `${FILES_PER_KIND} with other %s are read correctly or refused with a CheckpointError`,
    async (kind: Kind) => {
      let [read, slowest] = [0, 0];
      for (let i = 0; i < FILES_PER_KIND; i++) {
        const own = seed + 7919 * i + 104_729 * KINDS.indexOf(kind);
        try {
          const result = await check(mutatedFile(kind, new Dice(own)));
          read += result.read ? 1 : 0;
          slowest = Math.max(slowest, result.ms);
        } catch (error) {
          throw new Error(`file ${i} (seed ${own}): ${(error as Error).message}`, { cause: error });
        }
      }
      console.log(`${kind}: ${read} read, ${FILES_PER_KIND - read} refused, slowest ${slowest.toFixed(1)} ms`);
      expect(slowest).toBeLessThan(2_000);
      expect(read).toBeGreaterThan(0);
      expect(read).toBeLessThan(FILES_PER_KIND);
    },
  );
});
