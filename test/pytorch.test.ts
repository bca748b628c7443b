/**
 * Reading PyTorch files: what torch 2.13 wrote (fixtures/pytorch) bit for bit, which file of a folder is opened, and
 * how views are gathered. What is refused is pytorch-refused.test.ts, the two containers are
 * pytorch-containers.test.ts, mutated files are pytorch-fuzz.test.ts.
 */
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type CheckpointIndex,
  dtypeOfSafetensors,
  loadSafetensors,
  openCheckpointSync,
  readTensor,
  saveSafetensors,
  tensor,
} from '@metashard/core';
import '@metashard/cpu';
import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { gatherStrided } from '../packages/core/dist/gather-strided.js';
import { fixtures, folder } from './torch-files-on-disk.js';

const expected = openCheckpointSync(join(fixtures, 'expected.safetensors'));
const expectedBytes = readFileSync(join(fixtures, 'expected.safetensors'));

describe('files of torch.save', () => {
  const good = ['dtypes.bin', 'views.bin', 'module.bin', 'parameters.pt', 'protocol5.pt', 'legacy.bin', 'mixed.pt'];
  const wrapped = ['lightning.ckpt.pt', 'trainer.pth', 'sharded/pytorch_model-00001-of-00002.bin'];
  it.each([...good, ...wrapped])('%s gives the tensors that torch has, bit for bit', async (name) => {
    const index = openCheckpointSync(join(fixtures, name));
    const wanted = [...expected.tensors].filter(([key]) => key.startsWith(`${name}/`));
    expect([...index.tensors.keys()].sort()).toEqual(wanted.map(([key]) => key.slice(name.length + 1)).sort());
    for (const [key, entry] of wanted) {
      const short = key.slice(name.length + 1);
      const got = index.tensors.get(short);
      expect(got).toMatchObject({ shape: entry.shape, dtype: dtypeOfSafetensors(entry.storedDtype) ?? null });
      expect(got?.nbytes).toBe(entry.nbytes);
      if (entry.dtype === null) continue;
      const bytes = expectedBytes.subarray(entry.offset, entry.offset + entry.nbytes);
      expect(Buffer.from((await readTensor(index, short)).toBytes()).equals(bytes)).toBe(true);
    }
  });

  it('dense tensors are plain spans of the file, tied ones the same', () => {
    const index = openCheckpointSync(join(fixtures, 'views.bin'));
    expect(index).toMatchObject({ format: 'pytorch', folder: fixtures.slice(0, -1) });
    expect(index.files).toEqual([
      { path: join(fixtures, 'views.bin'), bytes: readFileSync(join(fixtures, 'views.bin')).length },
    ]);
    const strided = [...index.tensors].filter(([, { strides }]) => strides !== undefined).map(([name]) => name);
    const views = ['transposed', 'columns', 'every_other', 'expanded', 'permuted', 'longs', 'bytes'];
    expect(strided.sort()).toEqual(views.sort());
    const base = index.tensors.get('base');
    expect(index.tensors.get('tied')).toEqual(base);
    expect((base?.offset ?? 1) % 64).toBe(0);
    expect(index.tensors.get('rows')).toEqual({ ...base, shape: [2, 6], offset: (base?.offset ?? 0) + 24, nbytes: 48 });
    expect(index.tensors.get('transposed')).toEqual({ ...base, shape: [6, 4], strides: [1, 6] });
    expect(index.tensors.get('columns')).toMatchObject({
      strides: [6, 1],
      offset: (base?.offset ?? 0) + 4,
      nbytes: 32,
    });
    expect(structuredClone(index)).toEqual(index);
  });

  it('dtypes that metashard lacks are listed, and refused when read', async () => {
    const index = openCheckpointSync(join(fixtures, 'dtypes.bin'));
    expect(index.tensors.get('float8_e4m3fn')).toMatchObject({ dtype: null, storedDtype: 'float8_e4m3fn', nbytes: 4 });
    await expect(readTensor(index, 'float64')).rejects.toThrow('expected a dtype that metashard has, got "float64"');
  });

  it('what was taken and what was left is in the metadata', () => {
    const metadataOf = (name: string) => Object.fromEntries(openCheckpointSync(join(fixtures, name)).metadata);
    expect(metadataOf('module.bin')).toEqual({ 'pytorch.container': 'zip' });
    expect(metadataOf('legacy.bin')).toEqual({ 'pytorch.container': 'legacy' });
    expect(metadataOf('lightning.ckpt.pt')).toEqual({
      'pytorch.container': 'zip',
      'pytorch.state_dict': 'state_dict',
      'pytorch.ignored':
        'epoch (int), lr (float), name (str), none (None), args (dict), blob (tuple), dtype (torch.float16)',
    });
    expect(metadataOf('trainer.pth')).toMatchObject({
      'pytorch.state_dict': 'model',
      'pytorch.ignored': 'optimizer (dict), rng (tensor)',
    });
    expect(metadataOf('mixed.pt')['pytorch.ignored']).toContain('blob (tuple), a key of type int (tensor)');
  });
});

describe('which file of a folder is opened', () => {
  const model = join(folder, 'model');
  beforeEach(() => {
    rmSync(model, { recursive: true, force: true });
    mkdirSync(model);
  });
  const put = (from: string, to: string) => copyFileSync(join(fixtures, from), join(model, to));
  const opened = (where = model): CheckpointIndex => openCheckpointSync(where);

  it('safetensors first, then pytorch_model.bin, then its index, then the only file', async () => {
    put('views.bin', 'weights.pth');
    put('module.bin', 'training_args.bin');
    put('module.bin', 'optimizer.pt');
    put('module.bin', 'rng_state_0.pth');
    expect(opened().tensors.has('base')).toBe(true);
    for (const number of [1, 2]) {
      put(`sharded/pytorch_model-0000${number}-of-00002.bin`, `pytorch_model-0000${number}-of-00002.bin`);
    }
    expect(() => opened()).toThrow(
      'expected pytorch_model.bin or pytorch_model.bin.index.json, got pytorch_model-00001-of-00002.bin',
    );
    put('sharded/pytorch_model.bin.index.json', 'pytorch_model.bin.index.json');
    expect([...opened().tensors.keys()]).toEqual(['a.weight', 'a.bias', 'b.weight']);
    expect(opened(join(model, 'pytorch_model.bin.index.json'))).toEqual(opened());
    put('module.bin', 'pytorch_model.bin');
    expect(opened().tensors.has('0.weight')).toBe(true);
    expect(opened(join(model, 'weights.pth')).tensors.has('base')).toBe(true);
    await saveSafetensors(join(model, 'model.safetensors'), new Map([['w', tensor([1])]]));
    expect(opened()).toMatchObject({ format: 'safetensors' });
  });

  it('shards hold what the index says', async () => {
    const index = opened(join(fixtures, 'sharded'));
    expect(index).toMatchObject({ format: 'pytorch', files: { length: 2 } });
    expect((await loadSafetensors(join(fixtures, 'sharded'))).get('b.weight')?.shape).toEqual([3, 2]);
    put('sharded/pytorch_model-00001-of-00002.bin', 'x.bin');
    writeFileSync(join(model, 'pytorch_model.bin.index.json'), '{"weight_map":{"a.weight":"x.bin"}}');
    expect(() => opened()).toThrow('tensor "a.bias": expected pytorch_model.bin.index.json to name this shard');
    writeFileSync(join(model, 'pytorch_model.bin.index.json'), '{"weight_map":{"a.weight":"../x.bin"}}');
    expect(() => opened()).toThrow('expected a shard inside the folder');
  });
});

describe('gatherStrided', () => {
  /** Element by element, from the definition of strides. */
  function gatherPlainly(
    data: Uint8Array,
    shape: readonly number[],
    strides: readonly number[],
    width: number,
  ): number[] {
    let starts = [0];
    for (const [axis, dim] of shape.entries()) {
      starts = starts.flatMap((start) => Array.from({ length: dim }, (_, i) => start + i * (strides[axis] as number)));
    }
    return starts.flatMap((start) => [...data.subarray(start * width, (start + 1) * width)]);
  }

  it('gives the elements in order through windows of any size', async () => {
    const views = fc.record({
      axes: fc.array(fc.record({ dim: fc.integer({ min: 0, max: 5 }), stride: fc.integer({ min: 0, max: 12 }) }), {
        maxLength: 4,
      }),
      width: fc.constantFrom(1, 2, 4, 8),
      windowBytes: fc.integer({ min: 8, max: 200 }),
    });
    await fc.assert(
      fc.asyncProperty(views, async ({ axes, width, windowBytes }) => {
        const [shape, strides] = [axes.map(({ dim }) => dim), axes.map(({ stride }) => stride)];
        const span = shape.includes(0) ? 0 : 1 + axes.reduce((sum, { dim, stride }) => sum + (dim - 1) * stride, 0);
        const data = Uint8Array.from({ length: span * width }, (_, i) => i * 31);
        const read = async (window: Uint8Array, position: number) => {
          expect(window.length).toBeLessThanOrEqual(windowBytes);
          expect(position + window.length).toBeLessThanOrEqual(data.length);
          window.set(data.subarray(position, position + window.length));
        };
        const got = await gatherStrided({ shape, strides, elementBytes: width }, read, windowBytes);
        expect([...got]).toEqual(gatherPlainly(data, shape, strides, width));
      }),
      { numRuns: 500 },
    );
  });
});
