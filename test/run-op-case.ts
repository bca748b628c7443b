/**
 * Runs cases of the op table (op-cases.ts) on a native backend and compares with the reference (op-reference.ts). Knows
 * no backend by name.
 */
import {
  type BufferId,
  type ContextId,
  DTYPES,
  type DType,
  type NativeAddon,
  OPS,
  opSignature,
  TENSOR_WORDS,
} from '@metashard/core';
import { FILL, forEachElement, type HostTensor, hostValues } from './host-tensor.js';
import type { BuiltCase, OpCase } from './op-case.js';
import { OP_REFERENCES, type ReferenceOutput, roundTo } from './op-reference.js';

/** The `kind` of test buffers: "other" in MEMORY_KINDS. */
const OTHER = 4;

export interface OpDevice {
  addon: NativeAddon;
  context: ContextId;
}

/** A case's tensors in device memory. Tensors that share `bytes` share a buffer. */
export class PlacedCase {
  readonly #device: OpDevice;
  readonly #buffers = new Map<Uint8Array, BufferId>();
  readonly #words: { inputs: Float64Array; outputs: Float64Array; attributes: Float64Array };
  readonly #code: number;
  #scratch: BufferId = 0;

  constructor(device: OpDevice, op: OpCase['op'], built: BuiltCase) {
    this.#device = device;
    this.#code = OPS[op].code;
    for (const tensor of [...built.inputs, ...built.outputs]) if (tensor !== null) this.#upload(tensor.bytes);
    this.#words = {
      inputs: this.#encode(built.inputs),
      outputs: this.#encode(built.outputs),
      attributes: Float64Array.from(built.attributes),
    };
    const { inputs, outputs, attributes } = this.#words;
    const scratch = device.addon.opScratch(device.context, this.#code, inputs, outputs, attributes);
    const bound = opSignature(op).scratch?.(built.inputs) ?? 0;
    if (scratch > bound) throw new Error(`${op}: expected at most ${bound} bytes of scratch, got ${scratch}`);
    if (scratch > 0) this.#scratch = device.addon.alloc(device.context, scratch, OTHER);
  }

  #upload(bytes: Uint8Array): void {
    if (this.#buffers.has(bytes)) return;
    const { addon, context } = this.#device;
    const buffer = addon.alloc(context, Math.max(1, bytes.byteLength), OTHER);
    if (bytes.byteLength > 0) addon.write(buffer, 0, bytes);
    this.#buffers.set(bytes, buffer);
  }

  #encode(tensors: readonly (HostTensor | null)[]): Float64Array {
    const words = new Float64Array(tensors.length * TENSOR_WORDS);
    for (const [i, tensor] of tensors.entries()) {
      if (tensor === null) continue;
      const { code, bytes } = DTYPES[tensor.dtype];
      const to = words.subarray(i * TENSOR_WORDS);
      const buffer = this.#buffers.get(tensor.bytes) as BufferId;
      to.set([buffer, tensor.offset * bytes, code, tensor.layout === 'packed_int8' ? 1 : 0, tensor.dims.length]);
      to.set(tensor.dims, 5);
      to.set(tensor.strides, 9);
    }
    return words;
  }

  /** Puts input `index` elsewhere: its first words (buffer, offset, dtype, layout, rank, dims) and strides. */
  move(index: number, words: readonly number[], strides: readonly number[]): void {
    this.#words.inputs.set(words, index * TENSOR_WORDS);
    this.#words.inputs.set(strides, index * TENSOR_WORDS + 9);
  }

  run(): void {
    const { inputs, outputs, attributes } = this.#words;
    this.#device.addon.callOp(this.#device.context, this.#code, inputs, outputs, attributes, this.#scratch);
  }

  /** The tensor as it is on the device now. */
  read(tensor: HostTensor): HostTensor {
    const bytes = new Uint8Array(tensor.bytes.byteLength);
    const buffer = this.#buffers.get(tensor.bytes) as BufferId;
    if (bytes.byteLength > 0) this.#device.addon.read(buffer, 0, bytes);
    return { ...tensor, bytes };
  }

  dispose(): void {
    for (const buffer of this.#buffers.values()) this.#device.addon.free(buffer);
    if (this.#scratch !== 0) this.#device.addon.free(this.#scratch);
  }
}

/** Runs a case and returns its outputs' bytes and those of its inputs. */
export function runOpCase(device: OpDevice, op: OpCase['op'], built: BuiltCase) {
  const placed = new PlacedCase(device, op, built);
  try {
    placed.run();
    return {
      inputs: built.inputs.map((tensor) => (tensor === null ? null : placed.read(tensor))),
      outputs: built.outputs.map((tensor) => placed.read(tensor)),
    };
  } finally {
    placed.dispose();
  }
}

/**
 * What of a case differs from the reference, one line a tensor; empty where all is well. `oracle`: hold it to
 * `oracleUlps` where there is one.
 */
export function checkOpCase(device: OpDevice, item: OpCase, oracle = false): string[] {
  const built = item.build();
  const expected = OP_REFERENCES[item.op](built.inputs, built.attributes, built.outputs);
  const got = runOpCase(device, item.op, built);
  const problems: string[] = [];
  const say = (what: string, problem: string | null) => problem !== null && problems.push(`${what}: ${problem}`);
  got.outputs.forEach((tensor, i) => {
    const name = opSignature(item.op).outputs[i] as string;
    say(name, differs(item, tensor, expected.outputs[i] as ReferenceOutput, oracle) ?? strayBytes(tensor));
  });
  got.inputs.forEach((tensor, i) => {
    const name = opSignature(item.op).inputs[i] as string;
    const written = expected.written?.get(i);
    if (tensor === null || built.outputs.some(({ bytes }) => bytes === built.inputs[i]?.bytes)) return; // in place
    if (written !== undefined) say(name, differs({ ...item, tolerance: 0 }, tensor, written, false));
    else say(name, sameBytes(tensor.bytes, (built.inputs[i] as HostTensor).bytes) ? null : 'an input was written');
  });
  return problems;
}

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

function differs(item: OpCase, tensor: HostTensor, expected: ReferenceOutput, oracle: boolean): string | null {
  const got = hostValues(tensor);
  for (let i = 0; i < (expected.defined ?? got.length); i++) {
    const exact = expected.values[i] as number;
    const wanted = roundTo(tensor.dtype, exact);
    const value = got[i] as number;
    if (Number.isNaN(wanted) ? Number.isNaN(value) : value === wanted) continue;
    const magnitude = expected.magnitude?.[i] ?? Math.abs(exact);
    const allowed = allowedError(item, tensor.dtype, exact, magnitude, oracle);
    if (Number.isFinite(value) && Number.isFinite(wanted) && Math.abs(value - exact) <= allowed) continue;
    return `expected ${wanted} at ${i} within ${allowed.toExponential(2)}, got ${value}`;
  }
  return null;
}

/** Results below the smallest normal float32 may be flushed. */
const SMALLEST_NORMAL = 2 ** -126;

function allowedError(item: OpCase, dtype: DType, exact: number, magnitude: number, oracle: boolean): number {
  if (item.tolerance === 0 || !DTYPES[dtype].isFloat) return 0;
  if (!oracle || item.oracleUlps === undefined) return item.tolerance * magnitude + SMALLEST_NORMAL;
  const ulp = 2 ** (Math.max(-126, Math.floor(Math.log2(Math.abs(exact) || SMALLEST_NORMAL))) - 23);
  return item.oracleUlps * ulp + 1e-14 * magnitude;
}

/** Bytes of an output's block that belong to no element and were written, or null. */
function strayBytes(tensor: HostTensor): string | null {
  if (tensor.layout === 'packed_int8') return null;
  const own = new Uint8Array(tensor.bytes.byteLength);
  const width = DTYPES[tensor.dtype].bytes;
  forEachElement(tensor, (place) => own.fill(1, place, place + width));
  const stray = tensor.bytes.findIndex((byte, i) => own[i] === 0 && byte !== FILL);
  return stray < 0 ? null : `expected byte ${stray} outside the tensor untouched, got ${tensor.bytes[stray]}`;
}
