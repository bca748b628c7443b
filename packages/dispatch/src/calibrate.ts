/**
 * Measures what this machine's devices do, so that plans rest on it: the rate at which a decode step reads weights, the
 * rate of a long prefill, what a hop costs, how fast the disk reads. Kept in the cache folder per machine; a plan says
 * whether its times are measured or datasheet figures.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import {
  ADVICE,
  type BufferId,
  DeviceContext,
  type DeviceName,
  DTYPES,
  type DType,
  deviceInfo,
  ensureBackend,
  guardNative,
  native,
  type OpName,
  opSignature,
  packedInt8Bytes,
  parseDevice,
  TENSOR_WORDS,
  type TensorSpec,
} from '@metashard/core';
import { type LinkCosts, measureLinks } from './calibrate-links.js';
import { type CostModel, DATASHEET_COSTS, type DeviceCosts } from './costs.js';
import { cudaDevices } from './devices.js';
import { storeFolder } from './packed-store.js';

const VERSION = 2;
/** Square weights of `size`, together beyond any cache, times one row and times many. */
const LINEARS = { size: 4096, prefillRows: 512, weightBytes: 256 * 2 ** 20 };
export type LinearSizes = typeof LINEARS;
const REPETITIONS = 7;
const PROBE_BYTES = 512 * 2 ** 20;

export interface Calibration {
  version: number;
  /** Names the devices that were measured: processor or GPU, instruction set, threads. */
  machine: string;
  measuredAt: string;
  devices: Record<'cpu' | 'cuda', DeviceCosts | null>;
  diskBandwidth: number;
  /** Of CUDA devices with the host and with each other. */
  links: LinkCosts[];
}

/**
 * Measures for about ten seconds; no device may be in use. Emulated GPUs are left out: their time says nothing. Throws
 * what a device throws, and BackendError where copies between devices do not arrive as they were sent.
 */
export function calibrate(folder = storeFolder()): Calibration {
  mkdirSync(folder, { recursive: true });
  const context = new DeviceContext(parseDevice('cpu:0'));
  const gpus: DeviceContext[] = [];
  let calibration: Calibration;
  try {
    for (const name of realGpus()) gpus.push(new DeviceContext(parseDevice(name)));
    calibration = {
      version: VERSION,
      machine: machineName(),
      measuredAt: new Date().toISOString(),
      devices: { cpu: measureDevice(context), cuda: null },
      diskBandwidth: measureDisk(folder, context),
      links: measureLinks(gpus),
    };
    const [first] = gpus;
    if (first !== undefined) calibration.devices.cuda = measureGpu(first, calibration.links);
  } finally {
    for (const one of [context, ...gpus]) one.close();
  }
  const file = calibrationFile(folder);
  writeFileSync(`${file}.tmp`, `${JSON.stringify(calibration, null, 2)}\n`);
  renameSync(`${file}.tmp`, file);
  return calibration;
}

/** What was measured on this machine, or null. */
export function readCalibration(folder = storeFolder()): Calibration | null {
  try {
    const found = JSON.parse(readFileSync(calibrationFile(folder), 'utf8')) as Calibration;
    return found.version === VERSION && found.machine === machineName() ? found : null;
  } catch {
    return null;
  }
}

/** Measured costs where there are any for a device, datasheet figures elsewhere. */
export function costsOf(calibration: Calibration | null): CostModel {
  if (calibration === null) return DATASHEET_COSTS;
  return {
    source: 'measured',
    diskBandwidth: calibration.diskBandwidth,
    of: (device) =>
      calibration.devices[parseDevice(device).type === 'cuda' ? 'cuda' : 'cpu'] ?? DATASHEET_COSTS.of(device),
  };
}

function machineName(): string {
  ensureBackend('cpu');
  const gpus = realGpus().map((name) => `; ${deviceInfo(parseDevice(name)).name}`);
  return `${deviceInfo(parseDevice('cpu:0')).name}; ${native().describeBackend('cpu')}${gpus.join('')}`;
}

const realGpus = (): DeviceName[] => cudaDevices().names.filter((name) => !deviceInfo(parseDevice(name)).emulated);

/** A hop is a copy of one token's activations from another GPU, or from the host where there is none. */
function measureGpu(context: DeviceContext, links: readonly LinkCosts[]): DeviceCosts {
  const to = links.filter((link) => link.to === context.device.name);
  const hop = to.find(({ from }) => from !== 'host') ?? to[0];
  const measured = measureDevice(context);
  return { ...measured, hopMs: hop?.hopMs ?? measured.hopMs };
}

function calibrationFile(folder: string): string {
  return join(folder, `costs-${createHash('sha256').update(machineName()).digest('hex').slice(0, 16)}.json`);
}

/** What 8-bit linears reach on a device; the context's memory is free again after it. */
export function measureDevice(context: DeviceContext, sizes: LinearSizes = LINEARS): DeviceCosts {
  const { size, prefillRows, weightBytes } = sizes;
  const matrices = Math.ceil(weightBytes / packedInt8Bytes(size, size));
  const bench = new LinearBench(context, matrices, sizes);
  try {
    const decodeSeconds = median(() => bench.run(1));
    const prefillSeconds = median(() => bench.run(prefillRows, 1));
    return {
      bandwidth: (matrices * packedInt8Bytes(size, size)) / decodeSeconds,
      rate: (2 * prefillRows * size * size) / prefillSeconds,
      hopMs: DATASHEET_COSTS.of(context.device.name).hopMs,
    };
  } finally {
    bench.free();
  }
}

/** int8 linears over several weights in turn. */
class LinearBench {
  readonly #size: number;
  readonly #weights: BufferId[];
  readonly #buffers: Record<'x' | 'CA' | 'SCA' | 'columns' | 'SCB' | 'out' | 'scratch', BufferId>;

  constructor(
    readonly context: DeviceContext,
    matrices: number,
    { size, prefillRows }: LinearSizes,
  ) {
    this.#size = size;
    const take = (bytes: number): BufferId => {
      const buffer = context.alloc(bytes);
      native().zero(buffer, 0, bytes);
      return buffer;
    };
    this.#weights = Array.from({ length: matrices }, () => take(packedInt8Bytes(size, size)));
    this.#buffers = {
      x: take(prefillRows * size * 4),
      CA: take(prefillRows * size),
      SCA: take(prefillRows * 4),
      columns: take((size + 1) * 4),
      SCB: take(size * 4),
      out: take(prefillRows * size * 4),
      scratch: take(scratchBytes(prefillRows, size)),
    };
  }

  free(): void {
    for (const buffer of [...this.#weights, ...Object.values(this.#buffers)]) native().free(buffer);
  }

  run(rows: number, matrices = this.#weights.length): void {
    const size = this.#size;
    const { x, CA, SCA, columns, SCB, out } = this.#buffers;
    const activations = words(x, 'float32', [rows, size]);
    const quantized = [
      words(CA, 'int8', [rows, size]),
      words(SCA, 'float32', [rows]),
      words(columns, 'int32', [size + 1]),
    ];
    this.#call('int8_quantize', [activations], quantized);
    for (const weight of this.#weights.slice(0, matrices)) {
      const packed = words(weight, 'int8', [size, size], true);
      const inputs = [
        activations,
        ...quantized,
        packed,
        words(SCB, 'float32', [size]),
        new Array<number>(TENSOR_WORDS).fill(0),
      ];
      this.#call('int8_linear', inputs, [words(out, 'float32', [rows, size])]);
    }
    native().synchronize(this.context.id);
  }

  #call(op: OpName, inputs: number[][], outputs: number[][]): void {
    const attributes = Float64Array.of(6, 0);
    guardNative(this.context.device.name, op, () =>
      native().callOp(
        this.context.id,
        opSignature(op).code,
        Float64Array.from(inputs.flat()),
        Float64Array.from(outputs.flat()),
        attributes,
        this.#buffers.scratch,
      ),
    );
  }
}

/** The most that the two ops may ask for at these sizes. */
function scratchBytes(rows: number, size: number): number {
  const spec = (dtype: DType, dims: number[]): TensorSpec => ({ dtype, dims, layout: 'strided' });
  const x = spec('float32', [rows, size]);
  const quantized = [spec('int8', [rows, size]), spec('float32', [rows]), spec('int32', [size + 1])];
  const CB: TensorSpec = { dtype: 'int8', dims: [size, size], layout: 'packed_int8' };
  const linear = opSignature('int8_linear').scratch?.([x, ...quantized, CB, spec('float32', [size]), null]);
  return Math.max(linear ?? 0, opSignature('int8_quantize').scratch?.([x]) ?? 0, 1);
}

function words(buffer: number, dtype: 'float32' | 'int8' | 'int32', shape: number[], packed = false): number[] {
  const encoded = new Array<number>(TENSOR_WORDS).fill(0);
  encoded.splice(0, 5, buffer, 0, DTYPES[dtype].code, packed ? 1 : 0, shape.length);
  for (const [i, dim] of shape.entries()) {
    encoded[5 + i] = dim;
    encoded[9 + i] = i === shape.length - 1 ? 1 : (shape[i + 1] as number);
  }
  return encoded;
}

/** Median seconds of several runs after one that is not counted. */
function median(run: () => void): number {
  run();
  const seconds = Array.from({ length: REPETITIONS }, () => {
    const start = performance.now();
    run();
    return (performance.now() - start) / 1e3;
  });
  return seconds.sort((a, b) => a - b)[REPETITIONS >> 1] as number;
}

/** Bytes per second at which pages of a store that are not in memory come in, as streaming brings them. */
function measureDisk(folder: string, context: DeviceContext): number {
  const file = join(folder, `disk-probe-${process.pid}.tmp`);
  try {
    const write = openSync(file, 'w');
    for (let written = 0; written < PROBE_BYTES; ) written += writeSync(write, Buffer.alloc(8 * 2 ** 20, written));
    fsyncSync(write);
    closeSync(write);
    const addon = native();
    const opened = addon.openFile(file);
    const mapped = addon.mapFile(context.id, opened, 0, PROBE_BYTES, -1);
    addon.closeFile(opened);
    addon.advise(mapped, 0, PROBE_BYTES, ADVICE.release);
    const start = performance.now();
    addon.advise(mapped, 0, PROBE_BYTES, ADVICE.populate);
    const seconds = (performance.now() - start) / 1e3;
    addon.free(mapped);
    return PROBE_BYTES / seconds;
  } finally {
    rmSync(file, { force: true });
  }
}
