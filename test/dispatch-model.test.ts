/** A user's own module tree over devices: with values, from a checkpoint, in 8 bits, tied, with several inputs. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ArgumentError,
  dispatchModel,
  F,
  initEmptyWeights,
  loadCheckpointAndDispatch,
  nn,
  randn,
  replaceLinear,
  ShapeError,
  saveSafetensors,
  type Tensor,
  tensor,
} from 'metashard';
import { describe, expect, it } from 'vitest';
import { relativeError } from './golden-models.js';

class Gate extends nn.Module {
  readonly up = new nn.Linear(48, 80);
  readonly gate = new nn.Linear(48, 80, { bias: false });
  readonly down = new nn.Linear(80, 48);
  readonly norm = new nn.RMSNorm(48);
  forward(x: Tensor): Tensor {
    const h = this.norm.forward(x);
    return F.add(x, this.down.forward(F.mul(F.silu(this.gate.forward(h)), this.up.forward(h))));
  }
}
const stack = (): nn.Sequential => new nn.Sequential([new Gate(), new Gate(), new nn.Linear(48, 10)]);
const inputs = { x: { shape: ['tokens', 48] as const } };
const devices = ['cpu:0', 'cpu:1'];

describe('dispatchModel', () => {
  it('runs over two devices as it runs eagerly, bit for bit', async () => {
    const module = stack();
    const x = randn([9, 48], { seed: 3 });
    const dispatched = await dispatchModel(module, {
      devices,
      deviceMap: { '0': 'cpu:0', '1': 'cpu:1', '2': 'cpu:0' },
      inputs,
      maxSeqLen: 16,
    });
    expect(dispatched.plan.segments.map((one) => one.device)).toEqual(['cpu:0', 'cpu:1', 'cpu:0']);
    const got = await dispatched.forward({ x });
    expect(got.shape).toEqual([9, 10]);
    expect(got.toFloat32Array()).toEqual((module.forward(x) as Tensor).toFloat32Array());
    expect((await dispatched.forward({ x: randn([1, 48]) })).shape).toEqual([1, 10]);
    await dispatched.dispose();
  });

  it('quantizes linears that are to be in 8 bits, once', async () => {
    const module = stack();
    const x = randn([5, 48], { seed: 4 });
    const want = (module.forward(x) as Tensor).toFloat32Array();
    replaceLinear(module, { threshold: 6 });
    const dispatched = await dispatchModel(module, { devices, deviceMap: 'balanced', inputs, maxSeqLen: 8 });
    const got = (await dispatched.forward({ x })).toFloat32Array();
    expect(relativeError(got, want)).toBeLessThan(0.03);
    expect(relativeError(got, want)).toBeGreaterThan(1e-4);
    expect(got).toEqual((module.forward(x) as Tensor).toFloat32Array());
    await dispatched.dispose();
  });

  it('refuses inputs of another shape, dtype or name, and modules without values', async () => {
    const dispatched = await dispatchModel(stack(), { devices, inputs, maxSeqLen: 4 });
    await expect(dispatched.forward({ x: randn([2, 47]) })).rejects.toThrow(ShapeError);
    await expect(dispatched.forward({ x: randn([5, 48]) })).rejects.toThrow(/at most 4 rows/);
    await expect(dispatched.forward({ x: tensor([[1]], { dtype: 'int32' }) })).rejects.toThrow(ShapeError);
    await expect(dispatched.forward({ y: randn([2, 48]) })).rejects.toThrow(ArgumentError);
    await dispatched.dispose();
    await expect(dispatchModel(initEmptyWeights(stack), { devices, inputs })).rejects.toThrow(/on meta/);
  });

  it('runs modules without weights, and with weights in their middle only', async () => {
    const x = randn([3, 48], { seed: 5 });
    const bare = new nn.Sequential([new nn.SiLU(), new nn.GELU(), new nn.SiLU()]);
    const around = new nn.Sequential([new nn.SiLU(), new nn.GELU(), new nn.Linear(48, 7), new nn.SiLU()]);
    const inTurns = { '0': 'cpu:0', '1': 'cpu:1', '2': 'cpu:0' };
    const everyMap = ['auto', 'balanced', { '': 'cpu:1' }] as const;
    const runs = [
      ...[...everyMap, inTurns, {}].map((deviceMap) => ({ module: bare, deviceMap })),
      ...[...everyMap, { ...inTurns, '3': 'cpu:1' }].map((deviceMap) => ({ module: around, deviceMap })),
    ];
    for (const { module, deviceMap } of runs) {
      const dispatched = await dispatchModel(module, { devices, deviceMap, inputs, maxSeqLen: 4 });
      const want = (module.forward(x) as Tensor).toFloat32Array();
      expect((await dispatched.forward({ x })).toFloat32Array()).toEqual(want);
      await dispatched.dispose();
    }
  });

  it('refuses a module that computes nothing', async () => {
    const nothing = dispatchModel(new nn.Sequential([]), { devices, inputs, maxSeqLen: 4 });
    await expect(nothing).rejects.toThrow(ArgumentError);
    await expect(nothing).rejects.toThrow(/expected a result that the module computes/);
  });

  it('loads a checkpoint into an empty tree straight onto the devices', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'metashard-'));
    const module = stack();
    await saveSafetensors(join(folder, 'model.safetensors'), module.stateDict());
    const dispatched = await loadCheckpointAndDispatch(initEmptyWeights(stack), folder, {
      devices,
      deviceMap: 'balanced',
      inputs,
      maxSeqLen: 8,
    });
    const x = randn([8, 48], { seed: 5 });
    expect((await dispatched.forward({ x })).toFloat32Array()).toEqual((module.forward(x) as Tensor).toFloat32Array());
    await dispatched.dispose();
    const other = initEmptyWeights(() => new nn.Sequential([new Gate(), new nn.Linear(48, 10)]));
    await expect(loadCheckpointAndDispatch(other, folder, { devices, inputs })).rejects.toMatchObject({
      code: 'checkpoint_mismatch',
    });
    await rm(folder, { recursive: true });
  });
});
