/**
 * metashard/accelerate against what accelerate's tests know, the differences that docs/accelerate.md lists, its errors
 * and its measures of a Module. Recorded cases are accelerate-recorded.test.ts, properties of every map
 * accelerate-properties.test.ts.
 */
import { buildModel, ConfigError, DtypeError, empty, nn, type Tensor } from 'metashard';
import {
  type AccelerateDeviceMap,
  autoDeviceMap,
  checkDeviceMap,
  cleanDeviceMap,
  computeModuleSizes,
  convertFileSizeToInt,
  dtypeByteSize,
  findTiedParameters,
  getBalancedMemory,
  getMaxLayerSize,
  getMaxMemory,
  type InferDeviceMapOptions,
  inferAutoDeviceMap,
  type JsonGraph,
  type PlannerLogger,
} from 'metashard/accelerate';
import { describe, expect, it } from 'vitest';
import { camelKeys, graph, type PlannerCase, recorded, remarks } from './accelerate-cases.js';
import { bloomGraph } from './accelerate-graphs.js';

describe("accelerate's other known results", () => {
  const infer = (name: string, maxMemory: Record<string, number | string>, options: InferDeviceMapOptions = {}) =>
    inferAutoDeviceMap(graph(name), { maxMemory, ...options });

  it.each<[string, string, Record<string, number | string>, InferDeviceMapOptions, AccelerateDeviceMap]>([
    ['no fallback unless asked for', 'FB', { 0: 256 }, {}, { '': 'disk' }],
    [
      'a layer that fits only later',
      'FBbuf',
      { 0: 678 },
      { fallbackAllocation: true },
      { batchnorm: 0, linear1: 'disk', linear2: 'disk' },
    ],
    [
      'no reserve beside the first GPU',
      'M',
      { 0: 164, 1: 172, cpu: 1e6 },
      {},
      { linear1: 0, batchnorm: 1, linear2: 1 },
    ],
    ['cpu keeps a reserve', 'M', { 0: 164, cpu: 172 }, {}, { linear1: 0, batchnorm: 'cpu', linear2: 'cpu' }],
    [
      'ties go along',
      'L3_t1',
      { 0: 400, 1: 500 },
      {},
      { layer1: 0, 'layer3.linear2': 0, layer2: 1, 'layer3.linear1': 1, 'layer3.batchnorm': 1 },
    ],
    [
      'two ties between two modules',
      'Quad',
      { 0: 250, 1: 400 },
      {},
      { linear1: 0, linear2: 1, linear3: 0, linear4: 1 },
    ],
    ['a tie that fits nowhere before', 'TiedHead', { 0: 0, 1: 439, 2: 2000 }, {}, { '': 2 }],
    ['buffers on the cpu', 'MB', { 0: 400, cpu: '1GB' }, {}, { linear1: 0, batchnorm: 'cpu', linear2: 'cpu' }],
  ])('%s', (_, name, maxMemory, options, expected) => {
    expect(infer(name, maxMemory, options)).toEqual(expected);
  });

  it('names the bytes of buffers that no GPU has room for', () => {
    const { logger, of } = remarks();
    infer('MB', { 0: 400, cpu: '1GB' }, { logger });
    expect(of('buffers_fit_no_gpu')).toEqual([expect.objectContaining({ bytes: 280 })]);
  });

  it('tells its steps when asked to', () => {
    const steps: string[] = [];
    const logger: PlannerLogger = { debug: (message) => steps.push(message) };
    infer('M', { 0: 200, 1: 200 }, { logger });
    expect(steps).toEqual([]);
    infer('M', { 0: 200, 1: 200 }, { logger, verbose: true });
    expect(steps).toContain('infer_auto_device_map: linear1: on 0');
  });

  it('does not need room for a tie whose paths begin alike', () => {
    expect(() => infer('Prefix', { 0: 4, cpu: 96000 })).not.toThrow();
  });

  it.each<[Record<string, number>, Record<string, number>]>([
    [
      { 0: 200, 1: 200 },
      { 0: 200, 1: 200 },
    ],
    [
      { 0: 200, 2: 200 },
      { 0: 200, 2: 200 },
    ],
    [
      { 0: 300, 1: 500 },
      { 0: 215, 1: 500 },
    ],
    [
      { 0: 0, 1: 300, 2: 300 },
      { 0: 0, 1: 215, 2: 300 },
    ],
    [
      { 0: 0, cpu: 100 },
      { 0: 0, cpu: 100 },
    ],
    [
      { 0: 300, 1: 300, 2: 300 },
      { 0: 175, 1: 175, 2: 300 },
    ],
  ])('balances %j to %j', (maxMemory, expected) => {
    expect(getBalancedMemory(graph('M'), { maxMemory })).toEqual(expected);
  });

  it('measures with special dtypes and a tied head', () => {
    const specialDtypes = { 'linear2.weight': 'float16', 'linear2.bias': 'float32' };
    const sizes = computeModuleSizes(graph('M'), { dtype: 'int8', specialDtypes });
    expect([sizes[''], sizes.linear2]).toEqual([100, 60]);
    expect(computeModuleSizes(graph('TiedHead'))).toMatchObject({ '': 880, head: 40 });
  });

  it.each<[Record<string, number>, Record<string, number>]>([
    [{ a: 0, b: 0, c: 0 }, { '': 0 }],
    [
      { 'a.x': 0, 'a.y': 0, 'b.x': 1, 'b.y': 1, c: 1 },
      { a: 0, b: 1, c: 1 },
    ],
    [{ 'a.x': 0 }, { 'a.x': 0 }],
  ])('shortens %j to %j', (deviceMap, expected) => {
    const before = { ...deviceMap };
    expect(cleanDeviceMap({ deviceMap })).toEqual(expected);
    expect(deviceMap).toEqual(before);
  });

  it('shortens one module alone', () => {
    const deviceMap = { 'a.x': 0, 'a.y': 0, 'b.x': 1, 'b.y': 1 };
    expect(cleanDeviceMap({ deviceMap, moduleName: 'b' })).toEqual({ 'a.x': 0, 'a.y': 0, b: 1 });
  });

  it.each([
    ['0MB', 0],
    ['2GiB', 2147483648],
    ['1.5GB', 1.5e9],
    ['100KB', 1e5],
    [500, 500],
    ['1Gb', 125000000],
    ['30GIB', 32212254720],
  ])('%j is %j bytes', (size, bytes) => {
    expect(convertFileSizeToInt({ size })).toBe(bytes);
  });
  it.each(['5MBB', '1TB', 'GB', '', 'infGB', -5, 1.5, Number.NaN])('%j is no size', (size) => {
    expect(() => convertFileSizeToInt({ size })).toThrow(ConfigError);
  });

  it.each([
    ['torch.float16', 2],
    ['float8_e4m3fn', 1],
    ['int4', 0.5],
    ['uint8', 1],
    ['f32', 4],
  ])('%s has %j bytes', (dtype, bytes) => {
    expect(dtypeByteSize({ dtype })).toBe(bytes);
  });
});

describe('differences from accelerate', () => {
  it('leaves no GPU out of a balanced map that can use it', () => {
    const four = { 0: 1000, 1: 1000, 2: 1000, 3: 1000 };
    const perDevice = (name: string) =>
      Object.values(autoDeviceMap(graph(name), { maxMemory: four, noSplitModuleClasses: 'B1' }));
    expect(perDevice('Toy8')).toEqual([0, 0, 1, 1, 2, 2, 3, 3]);
    expect(perDevice('Toy4')).toEqual([0, 1, 2, 3]);
  });

  it('leaves a GPU out where no share would be smaller for it', () => {
    const sixteen = Object.fromEntries(Array.from({ length: 16 }, (_, i) => [i, '15GiB']));
    const options = { dtype: 'int8', noSplitModuleClasses: 'BloomBlock', maxMemory: sixteen };
    const budgets = getBalancedMemory(bloomGraph(), options);
    const map = autoDeviceMap(bloomGraph(), options);
    expect(map).toEqual(inferAutoDeviceMap(bloomGraph(), { ...options, maxMemory: budgets }));
    const blocks = Object.keys(map).filter((path) => path.startsWith('transformer.h.'));
    const onDevice = (device: number): number => blocks.filter((path) => map[path] === device).length;
    // 70 blocks over 16 devices: one holds 5, however they are spread.
    expect(Math.max(...Array.from({ length: 16 }, (_, device) => onDevice(device)))).toBe(5);
  });

  it('gives the buffers of a module that it splits a device', () => {
    const deviceMap = inferAutoDeviceMap(graph('DirectBuf'), { maxMemory: { 0: 2204, 1: 5000 } });
    expect(deviceMap).toEqual({ l0: 0, 'l1.lin': 0, 'l1.lin2': 1, 'l1.lin3': 1, 'l1.layer_scalar': 1 });
    expect(checkDeviceMap(graph('DirectBuf'), { deviceMap })).toBe('ok');
  });

  it('follows a tie to a parameter that stands alone', () => {
    const deviceMap = inferAutoDeviceMap(graph('DirectTieB'), { maxMemory: { 0: 1000, 1: 5000 } });
    expect(deviceMap).toEqual({ b: 0, 'a.w': 0, 'a.lin': 1, c: 1 });
  });

  it('uses memory for what fits rather than skipping to disk for a reserve', () => {
    const deviceMap = inferAutoDeviceMap(graph('M'), { maxMemory: { 0: 164, cpu: 171 } });
    expect(deviceMap).toEqual({ linear1: 0, batchnorm: 'cpu', linear2: 'disk' });
  });

  it('keeps a key that stands for more than the keys below it', () => {
    const deviceMap = { a: 0, 'a.x': 1, 'a.y': 1 };
    expect(cleanDeviceMap({ deviceMap })).toEqual(deviceMap);
  });

  it('does not share with GPUs that are spared', () => {
    const options = { maxMemory: { 0: 0, 1: 300, 2: 300 }, lowZero: true };
    expect(getBalancedMemory(graph('M'), options)).toEqual({ 0: 0, 1: 215, 2: 300 });
  });
});

describe('errors', () => {
  it('name the tensors that no key covers', () => {
    const check = () => checkDeviceMap(graph('M'), { deviceMap: { linear1: 0, linear2: 1 } });
    expect(check).toThrow(/got none for batchnorm\.weight, .*batchnorm\.num_batches_tracked$/);
  });
  it('show how to write a device key', () => {
    expect(() => getMaxMemory({ maxMemory: { 'cuda:0': 1 } })).toThrow(
      expect.objectContaining({ hint: expect.stringContaining('write 0') }),
    );
    expect(() => getMaxMemory({ maxMemory: { 0: -1 } })).toThrow(ConfigError);
  });
  it('refuse what is no model, dtype or mode', () => {
    expect(() => computeModuleSizes({} as JsonGraph)).toThrow(ConfigError);
    expect(() => computeModuleSizes({ ...graph('M'), ties: [['linear1.weight', 'nowhere']] })).toThrow(ConfigError);
    expect(() => computeModuleSizes(graph('M'), { dtype: 'float' })).toThrow(DtypeError);
    expect(() => autoDeviceMap(graph('M'), { mode: 'even' as 'auto' })).toThrow(ConfigError);
  });
});

class BatchNorm1d extends nn.Module {
  weight = new nn.Linear(1, 4, { device: 'meta' }).bias;
  bias = new nn.Linear(1, 4, { device: 'meta' }).bias;
  runningMean = empty([4], { device: 'meta' });
  constructor() {
    super();
    this.registerBuffer('steps', empty([], { dtype: 'int64', device: 'meta' }), { persistent: false });
  }
  forward(x: Tensor): Tensor {
    return x;
  }
}
class ModelForTest extends nn.Module {
  linear1 = new nn.Linear(3, 4, { device: 'meta' });
  batchnorm = new BatchNorm1d();
  linear2 = new nn.Linear(4, 5, { device: 'meta' });
  forward(x: Tensor): Tensor {
    return x;
  }
}

describe('a Module', () => {
  it('is measured by its tensors, and its class names are those of its classes', () => {
    const model = new ModelForTest();
    expect(computeModuleSizes(model)).toMatchObject({ '': 220, linear1: 64, batchnorm: 56, 'batchnorm.steps': 8 });
    expect(getMaxLayerSize(model)).toEqual([100, ['linear2']]);
    const pair = new nn.Sequential(new ModelForTest(), new ModelForTest());
    expect(getMaxLayerSize(pair, { noSplitModuleClasses: ['ModelForTest'] })).toEqual([220, ['0', '1']]);
  });

  it('ties what holds the same parameter', () => {
    const layer = new nn.Linear(2, 2, { device: 'meta' });
    const twice = new nn.Sequential(layer, layer);
    expect(findTiedParameters(twice)).toEqual([
      ['0.bias', '1.bias'],
      ['0.weight', '1.weight'],
    ]);
    expect(inferAutoDeviceMap(twice, { maxMemory: { 0: 24 }, cleanResult: false })).toEqual({ 0: 0, 1: 0 });
  });

  it('needs a device for what is in its state dict, not for other buffers', () => {
    const deviceMap = {
      linear1: 0,
      linear2: 0,
      'batchnorm.weight': 0,
      'batchnorm.bias': 1,
      'batchnorm.runningMean': 1,
    };
    expect(checkDeviceMap(new ModelForTest(), { deviceMap })).toBe('ok');
  });

  it('of BLOOM-176B gets the map of the recorded graph', () => {
    const { model } = buildModel({
      model_type: 'bloom',
      hidden_size: 14336,
      n_layer: 70,
      n_head: 112,
      vocab_size: 250880,
      layer_norm_epsilon: 1e-5,
      dtype: 'bfloat16',
      tie_word_embeddings: true,
    });
    const one = recorded.cases.find(({ id }) => id === 'bloom-bf16-docmap') as PlannerCase;
    // Beside the weights, the slopes of the heads: a buffer in no checkpoint, float32.
    expect(computeModuleSizes(model)['']).toBe(352_494_542_848 + 112 * 4);
    expect(inferAutoDeviceMap(model, camelKeys(one.args))).toEqual(one.expect);
  });
});

it('without max_memory offers what this machine has free', () => {
  const memory = getMaxMemory();
  expect(memory.cpu).toBeGreaterThan(0);
  expect(Object.values(inferAutoDeviceMap(graph('M'))).every((device) => device !== 'disk')).toBe(true);
});
