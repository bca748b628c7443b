/**
 * Opening checkpoints: which file of a folder is taken, shards and their index, what a hostile index may not do.
 * Headers themselves are safetensors.test.ts.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  CheckpointError,
  type CheckpointIndex,
  loadSafetensors,
  MetashardError,
  openCheckpoint,
  openCheckpointSync,
  readTensor,
} from '@metashard/core';
import '@metashard/cpu';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';

const fixtures = fileURLToPath(new URL('./fixtures/models/', import.meta.url));
const root = mkdtempSync(join(tmpdir(), 'metashard-checkpoint-'));
afterAll(() => rmSync(root, { recursive: true }));
const folder = join(root, 'model');
beforeEach(() => {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
});

const INDEX = 'model.safetensors.index.json';

/** Writes a file with one-byte tensors of these names. */
function writeShard(name: string, tensors: readonly string[]): void {
  const entries = tensors.map(
    (t, i) => `${JSON.stringify(t)}:{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`,
  );
  const header = Buffer.from(
    `{"__metadata__":{"format":"pt","shard":${JSON.stringify(name)}}${entries.map((e) => `,${e}`).join('')}}`,
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(join(folder, name), Buffer.concat([length, header, Buffer.from(tensors.map((_, i) => i + 1))]));
}

function writeIndex(weightMap: Record<string, string> | string): void {
  const text =
    typeof weightMap === 'string' ? weightMap : JSON.stringify({ metadata: { total_size: 3 }, weight_map: weightMap });
  writeFileSync(join(folder, INDEX), text);
}

/** The error of opening, which must be a CheckpointError. */
async function failure(path = folder): Promise<CheckpointError> {
  const error = await openCheckpoint(path).then(
    () => new Error('opened'),
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(CheckpointError);
  return error as CheckpointError;
}

describe('which file is opened', () => {
  it('the single one before the index, the index before others, else the only one', async () => {
    writeShard('other.safetensors', ['c']);
    expect([...(await openCheckpoint(folder)).tensors.keys()]).toEqual(['c']);
    writeShard('part.safetensors', ['b']);
    writeIndex({ b: 'part.safetensors' });
    expect([...(await openCheckpoint(folder)).tensors.keys()]).toEqual(['b']);
    writeShard('model.safetensors', ['a']);
    expect([...(await openCheckpoint(folder)).tensors.keys()]).toEqual(['a']);
    expect([...(await openCheckpoint(join(folder, 'other.safetensors'))).tensors.keys()]).toEqual(['c']);
    expect([...(await openCheckpoint(join(folder, INDEX))).tensors.keys()]).toEqual(['b']);
  });

  it.each(['model.gguf', 'tf_model.h5', 'flax_model.msgpack.index.json', 'last.ckpt', 'model.onnx'])(
    'only %s: a typed error that says what is read',
    async (name) => {
      writeFileSync(join(folder, name), 'x');
      const error = await failure();
      expect([error.code, error.details.file]).toEqual(['checkpoint_format', folder]);
      expect(error.message).toBe(`${folder}: expected safetensors or PyTorch, got ${name}: this format is not read`);
      expect((await failure(join(folder, name))).code).toBe('checkpoint_format');
    },
  );

  it('nothing, several files without an index, a folder or a pipe in the place of a file', async () => {
    expect((await failure()).code).toBe('checkpoint_missing');
    expect((await failure(join(folder, 'none'))).code).toBe('checkpoint_missing');
    expect((await failure(`${folder}\0`)).message).not.toContain('\0');
    writeShard('a.safetensors', ['a']);
    writeShard('b.safetensors', ['b']);
    expect((await failure()).message).toContain(
      'expected model.safetensors or model.safetensors.index.json, got a.safetensors, b.safetensors',
    );
    mkdirSync(join(folder, 'model.safetensors'));
    expect((await failure()).message).toContain('expected a file, got something else');
  });
});

describe('shards', () => {
  it('give one index over all files, through links too, as caches have them', async () => {
    mkdirSync(join(folder, 'blobs'));
    writeShard('blobs/1', ['h.0', 'h.1']);
    symlinkSync('blobs/1', join(folder, 'model-1.safetensors'));
    writeShard('model-2.safetensors', ['__proto__', 'constructor']);
    writeIndex(
      '{"weight_map":{"__proto__":"model-2.safetensors","h.0":"model-1.safetensors","constructor":"model-2.safetensors","h.1":"model-1.safetensors"}}',
    );
    const index = await openCheckpoint(folder);
    expect(index.files.map(({ path }) => path)).toEqual([
      join(folder, 'model-1.safetensors'),
      join(folder, 'model-2.safetensors'),
    ]);
    expect([...index.tensors.keys()]).toEqual(['h.0', 'h.1', '__proto__', 'constructor']);
    expect([...index.metadata]).toEqual([
      ['format', 'pt'],
      ['shard', 'blobs/1'],
    ]);
    expect(index).toMatchObject({ folder, format: 'safetensors' });
    expect((await readTensor(index, 'constructor')).toArray()).toEqual([2]);
    const copy: CheckpointIndex = structuredClone(index);
    expect(copy.tensors.get('__proto__')).toEqual(index.tensors.get('__proto__'));
    expect(openCheckpointSync(folder)).toEqual(index);
  });

  it.each([
    '../x.safetensors',
    '/etc/passwd',
    'a/../../x',
    './x.safetensors',
    'a//b',
    '',
    '..',
    'a\\..\\b',
    'C:x',
    'a\0b',
    'x'.repeat(5000),
  ])('a name that leaves the folder is refused: %j', async (shard) => {
    writeIndex({ w: shard });
    const error = await failure();
    expect(error.message).toContain('expected a shard inside the folder');
    expect(error.details).toEqual({ file: join(folder, INDEX), tensor: 'w' });
  });

  it('must hold what the index says, and nothing else', async () => {
    writeShard('1.safetensors', ['a']);
    writeShard('2.safetensors', ['b', 'c']);
    writeIndex({ a: '1.safetensors', b: '2.safetensors' });
    expect(await failure()).toMatchObject({ details: { file: join(folder, '2.safetensors'), tensor: 'c' } });
    writeIndex({ a: '1.safetensors', b: '2.safetensors', c: '1.safetensors' });
    expect((await failure()).message).toContain(
      'expected model.safetensors.index.json to name this shard, got "1.safetensors"',
    );
    writeIndex({ a: '1.safetensors', b: '2.safetensors', c: '2.safetensors', d: '2.safetensors' });
    expect(await failure()).toMatchObject({ details: { file: join(folder, '2.safetensors'), tensor: 'd' } });
    writeIndex({ a: '1.safetensors', b: '2.safetensors', c: '2.safetensors', d: '3.safetensors' });
    expect((await failure()).message).toBe(
      `${join(folder, '3.safetensors')}: expected a file to read, got no such file`,
    );
  });

  it.each([
    ['', 'expected an object, got the end of the text'],
    ['[]', 'expected an object'],
    ['{}', 'expected a weight_map with tensors, got none'],
    ['{"weight_map":{}}', 'expected a weight_map with tensors, got none'],
    ['{"weight_map":{"a":1}}', 'expected a string'],
    ['{"weight_map":{"a":"1","\\u0061":"1"}}', 'expected every key once, got "a" twice'],
    ['{"weight_map":{"a":"1"},"weight_map":{"a":"1"}}', 'expected every key once'],
    [`{"metadata":${'['.repeat(100_000)}`, 'expected at most 64 levels'],
    ['{"metadata":{"a":tru},"weight_map":{}}', 'expected a value, got "tru}'],
    ['{"metadata":"\u0001"}', 'no control characters'],
  ])('a broken index is refused: %.40s', async (text, message) => {
    writeIndex(text);
    const error = await failure();
    expect(error.message).toContain(message);
    expect(error.details).toEqual({ file: join(folder, INDEX) });
  });

  it('survive 2,000 flipped bytes of an index', () => {
    const text = Buffer.from(
      JSON.stringify({
        metadata: { total_size: 1.5e3, note: null },
        weight_map: { a: '1.safetensors', b: '1.safetensors' },
      }),
    );
    writeShard('1.safetensors', ['a', 'b']);
    let opened = 0;
    for (let i = 0; i < 2000; i++) {
      const changed = Buffer.from(text);
      changed[(i * 7) % text.length] = (i * 131 + (i >> 3)) % 256;
      writeFileSync(join(folder, INDEX), changed);
      try {
        expect(openCheckpointSync(folder).tensors.size).toBe(2);
        opened++;
      } catch (error) {
        if (!(error instanceof CheckpointError)) throw error;
      }
    }
    expect(opened).toBeGreaterThan(0);
    expect(opened).toBeLessThan(2000);
  });
});

describe('real checkpoints', () => {
  it.each([
    ['bloom', 5, 41, 'transformer.h.0.self_attention.query_key_value.weight', [192, 64]],
    ['llama', 5, 30, 'model.layers.2.mlp.down_proj.weight', [64, 136]],
    ['mistral', 1, 30, 'lm_head.weight', undefined],
    ['stories260K-bnb8', 1, undefined, 'model.layers.0.mlp.down_proj.SCB', undefined],
  ])('%s', async (name, files, count, tensorName, shape) => {
    const index = await openCheckpoint(join(fixtures, name));
    expect(index.files.length).toBe(files);
    if (count !== undefined) expect(index.tensors.size).toBe(count);
    const entry = index.tensors.get(tensorName);
    if (shape !== undefined) expect(entry?.shape).toEqual(shape);
    const loaded = await readTensor(index, tensorName);
    expect([loaded.dtype, loaded.shape]).toEqual([entry?.dtype, entry?.shape]);
    expect(loaded.toFloat32Array().some((value) => value !== 0)).toBe(true);
  });

  it('loads a whole folder', async () => {
    const all = await loadSafetensors(join(fixtures, 'bloom'));
    expect(all.size).toBe(41);
    expect(all.get('transformer.word_embeddings.weight')?.dtype).toBe('float32');
    expect(MetashardError.isInstance(await failure(join(fixtures, 'no such model')))).toBe(true);
  });
});
