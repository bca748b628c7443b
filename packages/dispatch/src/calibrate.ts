/**
 * Measures what this machine's devices do, so that plans rest on it: the rate at which a decode step reads weights, the rate of a long prefill, what a hop costs,
 * how fast the disk reads. Kept in the cache folder per machine; a plan says whether its times are measured or datasheet figures.
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
  DeviceContext,
  DTYPES,
  deviceInfo,
  ensureBackend,
  guardNative,
  native,
  type OpName,
  opSignature,
  packedInt8Bytes,
  parseDevice,
  TENSOR_WORDS,
} from '@metashard/core';
import { type CostModel, DATASHEET_COSTS, type DeviceCosts } from './costs.js';
import { storeFolder } from './packed-store.js';

const VERSION = 1;
/** The weights of the measured matrices: together beyond any cache. */
const WEIGHT_BYTES = 256 * 2 ** 20;
const SIZE = 4096;
const PREFILL_ROWS = 512;
const REPETITIONS = 7;
const PROBE_BYTES = 512 * 2 ** 20;

export interface Calibration {
  version: number;
  /** Names the devices that were measured: processor or GPU, instruction set, threads. */
  machine: string;
  measuredAt: string;
  devices: Record<'cpu' | 'cuda', DeviceCosts | null>;
  diskBandwidth: number;
}

/** Measures for about ten seconds; no device may be in use. Throws what a device throws. */
export function calibrate(folder = storeFolder()): Calibration {
  mkdirSync(folder, { recursive: true });
  const context = new DeviceContext(parseDevice('cpu:0'));
  let calibration: Calibration;
  try {
    calibration = {
      version: VERSION,
      machine: machineName(),
      measuredAt: new Date().toISOString(),
      devices: { cpu: measureDevice(context), cuda: null },
      diskBandwidth: measureDisk(folder, context),
    };
  } finally {
    context.close();
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
  return `${deviceInfo(parseDevice('cpu:0')).name}; ${native().describeBackend('cpu')}`;
}

function calibrationFile(folder: string): string {
  return join(folder, `costs-${createHash('sha256').update(machineName()).digest('hex').slice(0, 16)}.json`);
}

function measureDevice(context: DeviceContext): DeviceCosts {
  const matrices = Math.ceil(WEIGHT_BYTES / packedInt8Bytes(SIZE, SIZE));
  const bench = new LinearBench(context, matrices);
  const decodeSeconds = median(() => bench.run(1));
  const prefillSeconds = median(() => bench.run(PREFILL_ROWS, 1));
  return {
    bandwidth: (matrices * packedInt8Bytes(SIZE, SIZE)) / decodeSeconds,
    rate: (2 * PREFILL_ROWS * SIZE * SIZE) / prefillSeconds,
    hopMs: DATASHEET_COSTS.of(context.device.name).hopMs,
  };
}

/** int8 linears over several weights in turn. */
class LinearBench {
  readonly #weights: number[];
  readonly #buffers: Record<'x' | 'CA' | 'SCA' | 'columns' | 'SCB' | 'out' | 'scratch', number>;

  constructor(
    readonly context: DeviceContext,
    matrices: number,
  ) {
    const take = (bytes: number): number => {
      const buffer = context.alloc(bytes);
      native().zero(buffer, 0, bytes);
      return buffer;
    };
    this.#weights = Array.from({ length: matrices }, () => take(packedInt8Bytes(SIZE, SIZE)));
    const rows = PREFILL_ROWS * SIZE;
    this.#buffers = {
      x: take(rows * 4),
      CA: take(rows),
      SCA: take(PREFILL_ROWS * 4),
      columns: take((SIZE + 1) * 4),
      SCB: take(SIZE * 4),
      out: take(rows * 4),
      scratch: take(2 * rows + SIZE + 65536),
    };
  }

  run(rows: number, matrices = this.#weights.length): void {
    const { x, CA, SCA, columns, SCB, out } = this.#buffers;
    const activations = words(x, 'float32', [rows, SIZE]);
    const quantized = [
      words(CA, 'int8', [rows, SIZE]),
      words(SCA, 'float32', [rows]),
      words(columns, 'int32', [SIZE + 1]),
    ];
    this.#call('int8_quantize', [activations], quantized);
    for (const weight of this.#weights.slice(0, matrices)) {
      const packed = words(weight, 'int8', [SIZE, SIZE], true);
      const inputs = [
        activations,
        ...quantized,
        packed,
        words(SCB, 'float32', [SIZE]),
        new Array<number>(TENSOR_WORDS).fill(0),
      ];
      this.#call('int8_linear', inputs, [words(out, 'float32', [rows, SIZE])]);
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
