/**
 * Backends by device type: which shared object serves `cpu` and `cuda` (they register themselves), the contexts this
 * thread has open, and the translation of native statuses into typed errors. The meta backend registers an OpBackend of
 * its own (packages/meta).
 */
import { type Device, type DeviceName, type DeviceType, parseDevice } from './device.js';
import { DTYPES } from './dtype.js';
import {
  ArgumentError,
  BackendError,
  CheckpointError,
  DeviceLostError,
  DeviceUnavailableError,
  MetashardError,
  NotCompiledError,
  OutOfMemoryError,
} from './errors.js';
import {
  type BufferId,
  type ContextId,
  type ContextStats,
  MEMORY_KINDS,
  type NativeDeviceInfo,
  native,
  TENSOR_WORDS,
} from './native.js';
import { type OpName, opSignature, type TensorSpec } from './ops.js';
import type { Tensor } from './tensor.js';

/** Status codes of ms_status. */
const STATUS = { invalid: 1, outOfMemory: 2, unavailable: 3, unsupported: 4, deviceLost: 5, io: 7 } as const;

interface NativeError extends Error {
  status?: number;
  nativeCode?: number;
  file?: string;
  line?: number;
}

/** Runs native code for `device`, turning what it throws into a typed error that names the device. */
export function guardNative<T>(device: DeviceName, op: string, run: () => T): T {
  try {
    return run();
  } catch (thrown) {
    if (MetashardError.isInstance(thrown)) throw thrown;
    const error = thrown as NativeError;
    const details = { device, op, nativeCode: error.nativeCode, file: error.file, line: error.line };
    const message = `${device}: ${error.message}`;
    const cause = error;
    switch (error.status) {
      case STATUS.outOfMemory:
        throw new OutOfMemoryError(message, {
          details,
          cause,
          hint: 'give the device more in max_memory, or lower max_seq_len or max_batch_size',
        });
      case STATUS.unavailable:
        throw new DeviceUnavailableError(message, { details, cause });
      case STATUS.io:
        throw new CheckpointError(message, { code: 'file_unreadable', details, cause });
      case STATUS.deviceLost:
        throw new DeviceLostError(message, { details, cause });
      default:
        throw new BackendError(message, { details, cause });
    }
  }
}

const plugins = new Map<string, string>();

/** Says where the shared object of a device type lies. Nothing is opened before the first use. */
export function registerBackend(type: 'cpu' | 'cuda', pluginPath: string): void {
  plugins.set(type, pluginPath);
}

/**
 * Opens the backend of a device type. Throws NotCompiledError (nobody registered it or its file is missing),
 * DeviceUnavailableError (no driver).
 */
export function ensureBackend(type: DeviceType): void {
  const path = plugins.get(type);
  if (path === undefined) {
    throw new NotCompiledError(`${type}: no backend is registered`, {
      hint: `import @metashard/${type} or metashard first`,
    });
  }
  guardNative(type, 'load', () => native().loadBackend(type, path));
}

export function deviceCount(type: 'cpu' | 'cuda'): number {
  ensureBackend(type);
  return guardNative(type, 'count', () => native().deviceCount(type));
}

export function deviceInfo(device: Device): NativeDeviceInfo {
  ensureBackend(device.type);
  return guardNative(device.name, 'info', () => native().deviceInfo(device.type, device.index));
}

/** A device as one thread uses it: its memory and its one stream of work. */
export class DeviceContext {
  #id: ContextId | undefined;

  constructor(
    readonly device: Device,
    budgetBytes = 0,
  ) {
    ensureBackend(device.type);
    this.#id = guardNative(device.name, 'open', () => native().openContext(device.type, device.index, budgetBytes));
  }

  get id(): ContextId {
    if (this.#id === undefined) throw new ArgumentError(`${this.device.name}: the context was closed`);
    return this.#id;
  }

  /** Throws OutOfMemoryError naming device, bytes and budget. `kind` is an index of MEMORY_KINDS. */
  alloc(bytes: number, kind: number = MEMORY_KINDS.indexOf('other')): BufferId {
    return guardNative(this.device.name, `alloc ${bytes} bytes`, () => native().alloc(this.id, bytes, kind));
  }
  stats(): ContextStats {
    return native().contextStats(this.id);
  }
  close(): void {
    if (this.#id === undefined) return;
    native().closeContext(this.#id);
    this.#id = undefined;
  }
}

const contexts = new Map<DeviceName, DeviceContext>();

/** This thread's context for eager tensors on a device, without a budget; opened on first use. */
export function contextOf(device: Device): DeviceContext {
  let context = contexts.get(device.name);
  if (context === undefined) {
    if (device.type !== 'cpu' && device.type !== 'cuda') {
      throw new ArgumentError(`${device.name}: expected a device that computes`);
    }
    context = new DeviceContext(device);
    contexts.set(device.name, context);
  }
  return context;
}

/**
 * Where the outputs of an op go beyond what its shape rule says: another float dtype (`cast`), a packed layout
 * (`quantize_weight`).
 */
export type OutputSpecs = readonly TensorSpec[];

/** What computes ops eagerly on one type of device. `outputs` are the specs to make. */
export interface OpBackend {
  run(
    op: OpName,
    inputs: readonly (Tensor | null)[],
    attributes: readonly number[],
    outputs: OutputSpecs,
    device: Device,
  ): Tensor[];
}

const opBackends = new Map<DeviceType, OpBackend>();

export function registerOpBackend(type: DeviceType, backend: OpBackend): void {
  opBackends.set(type, backend);
}

/**
 * Runs an op where its inputs live: any input on meta makes it a meta op (recorded, not computed). Shapes and dtypes
 * are checked first. Throws ShapeError, DtypeError, ArgumentError (inputs on several devices), and what the backend
 * throws.
 */
export function callOp(
  op: OpName,
  inputs: readonly (Tensor | null)[],
  attributes: readonly number[] = [],
  outputs?: OutputSpecs,
): Tensor[] {
  const signature = opSignature(op);
  const specs = outputs ?? signature.infer(inputs, attributes);
  const device = deviceOfInputs(op, inputs);
  const backend = opBackends.get(device.type);
  if (backend === undefined) throw new NotCompiledError(`${op}: no backend computes on ${device.name}`);
  return backend.run(op, inputs, attributes, specs, device);
}

function deviceOfInputs(op: OpName, inputs: readonly (Tensor | null)[]): Device {
  let device: Device | undefined;
  for (const input of inputs) {
    if (input === null) continue;
    if (input.isMeta) return parseDevice('meta');
    if (device !== undefined && device.name !== input.device) {
      throw new ArgumentError(`${op}: expected all inputs on ${device.name}, got one on ${input.device}`, {
        hint: 'move it with .to({ device })',
      });
    }
    device = input.parts.device;
  }
  if (device === undefined) throw new ArgumentError(`${op}: expected at least one input`);
  return device;
}

const LAYOUT_CODES = { strided: 0, packed_int8: 1 } as const;

/** Writes a tensor's TENSOR_WORDS encoding (native.ts) at `index`. */
export function encodeTensor(words: Float64Array, index: number, tensor: Tensor | null): void {
  const at = index * TENSOR_WORDS;
  if (tensor === null || tensor.storage === null) return;
  words[at] = tensor.storage.buffer;
  words[at + 1] = tensor.offset * DTYPES[tensor.dtype].bytes;
  words[at + 2] = DTYPES[tensor.dtype].code;
  words[at + 3] = LAYOUT_CODES[tensor.layout];
  words[at + 4] = tensor.dims.length;
  tensor.dims.forEach((dim, i) => {
    words[at + 5 + i] = dim as number;
    words[at + 9 + i] = tensor.strides[i] as number;
  });
}

function encodeTensors(tensors: readonly (Tensor | null)[]): Float64Array {
  const words = new Float64Array(tensors.length * TENSOR_WORDS);
  for (const [i, tensor] of tensors.entries()) encodeTensor(words, i, tensor);
  return words;
}

/** Eager ops on native devices. Built with the tensor factory to keep this module below `tensor.ts`. */
export function nativeOpBackend(empty: (spec: TensorSpec, device: Device) => Tensor): OpBackend {
  return {
    run(op, inputs, attributes, outputs, device) {
      const code = opSignature(op).code;
      const results = outputs.map((spec) => empty(spec, device));
      const [ins, outs, attrs] = [encodeTensors(inputs), encodeTensors(results), Float64Array.from(attributes)];
      const context = contextOf(device);
      guardNative(device.name, op, () => {
        const addon = native();
        const bytes = addon.opScratch(context.id, code, ins, outs, attrs);
        const scratch = bytes === 0 ? 0 : context.alloc(bytes, MEMORY_KINDS.indexOf('scratch'));
        try {
          addon.callOp(context.id, code, ins, outs, attrs, scratch);
        } finally {
          if (scratch !== 0) addon.free(scratch);
        }
      });
      return results;
    },
  };
}
