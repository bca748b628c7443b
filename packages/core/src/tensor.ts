/**
 * Tensors: a dtype, dimensions and strides over storage on a device. Storage lies in native memory and is freed with
 * its last tensor; on `meta` there is none. Computing is `functional.ts`; which backend computes is `backend.ts`.
 */
import { type Device, type DeviceName, parseDevice } from './device.js';
import { DTYPES, type DType } from './dtype.js';
import { ArgumentError, DtypeError, ShapeError, StateError } from './errors.js';
import {
  bfloat16ArrayToFloat32,
  float16ArrayToFloat32,
  float32ToBfloat16Bits,
  float32ToFloat16Bits,
} from './float16.js';
import type { Layout, TensorSpec } from './ops.js';
import { type Dim, elementCount, formatDims, rowMajorStrides } from './shape.js';
import { Storage } from './storage.js';

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array;

export type NestedArray = number[] | NestedArray[];

export interface TensorOptions {
  dtype?: DType;
  device?: DeviceName;
}

/** The fields of a tensor as one object; what `Parameter.data = …` exchanges. */
export interface TensorParts {
  readonly dims: readonly Dim[];
  readonly dtype: DType;
  readonly device: Device;
  readonly layout: Layout;
  /** In elements. */
  readonly strides: readonly number[];
  /** First element, in elements from the storage's start. */
  readonly offset: number;
  /** null on meta. */
  readonly storage: Storage | null;
  /** The tensor whose storage a view shows; undefined where it is its own. Recording follows views through it. */
  readonly base?: Tensor | undefined;
}

export class Tensor implements TensorSpec {
  #parts: TensorParts;

  constructor(parts: TensorParts) {
    this.#parts = parts;
  }

  get dims(): readonly Dim[] {
    return this.#parts.dims;
  }
  /**
   * The dimensions as numbers. Throws StateError on a tensor of a recorded Program whose first dimension is a symbol.
   */
  get shape(): number[] {
    if (!this.#parts.dims.every((dim) => typeof dim === 'number')) {
      throw new StateError(`shape: ${formatDims(this.#parts.dims)} is symbolic while recording; read dims`);
    }
    return [...this.#parts.dims] as number[];
  }
  get dtype(): DType {
    return this.#parts.dtype;
  }
  get device(): DeviceName {
    return this.#parts.device.name;
  }
  get deviceType(): Device['type'] {
    return this.#parts.device.type;
  }
  get isMeta(): boolean {
    return this.#parts.device.type === 'meta';
  }
  get layout(): Layout {
    return this.#parts.layout;
  }
  get strides(): readonly number[] {
    return this.#parts.strides;
  }
  get offset(): number {
    return this.#parts.offset;
  }
  get storage(): Storage | null {
    return this.#parts.storage;
  }
  get parts(): TensorParts {
    return this.#parts;
  }
  /** The tensor this one is a view of, or itself. */
  get base(): Tensor {
    return this.#parts.base ?? this;
  }
  /** Number of elements. */
  get numel(): number {
    return elementCount(this.shape);
  }
  /** Bytes of the elements (not of the storage they may share). */
  get nbytes(): number {
    return this.numel * DTYPES[this.dtype].bytes;
  }
  get isContiguous(): boolean {
    const strides = rowMajorStrides(this.dims);
    return this.layout === 'strided' && strides.every((s, i) => s === this.strides[i] || this.dims[i] === 1);
  }

  /** Replaces what this object shows; for Parameter and its subclasses, whose identity outlives moves and casts. */
  protected replaceParts(parts: TensorParts): void {
    this.#parts = parts;
  }

  #view(dims: readonly Dim[], strides: readonly number[], offset: number): Tensor {
    return new Tensor({ ...this.#parts, dims, strides, offset, base: this.base });
  }

  /** Splits dimension `axis` into `sizes`; a view. `[tokens, 12]`.unflatten(1, [3, 4]) is `[tokens, 3, 4]`. */
  unflatten(axis: number, sizes: readonly number[]): Tensor {
    const dim = this.dims[axis];
    if (dim !== elementCount(sizes)) {
      throw new ShapeError(`unflatten: expected sizes whose product is ${dim}, got ${formatDims(sizes)}`);
    }
    const stride = this.strides[axis] as number;
    const inner = rowMajorStrides(sizes).map((s) => s * stride);
    return this.#view(this.dims.toSpliced(axis, 1, ...sizes), this.strides.toSpliced(axis, 1, ...inner), this.offset);
  }

  /**
   * Joins the dimensions from `axis` on; a view where they lie densely (else call `contiguous()` first).
   * `[T, N, D]`.flatten(1) is `[T, N·D]`.
   */
  flatten(axis = 0): Tensor {
    const tail = this.dims.slice(axis) as number[];
    const dense = rowMajorStrides(tail);
    const step = this.strides[this.strides.length - 1] ?? 1;
    if (!dense.every((s, i) => s * step === this.strides[axis + i] || tail[i] === 1)) {
      throw new ShapeError(`flatten: dimensions from ${axis} on of ${formatDims(this.dims)} do not lie densely`);
    }
    return this.#view(
      [...this.dims.slice(0, axis), elementCount(tail)],
      [...this.strides.slice(0, axis), step],
      this.offset,
    );
  }

  /** Element `index` of dimension `axis`, which disappears; a view. */
  select(axis: number, index: number): Tensor {
    const dim = this.dims[axis];
    if (typeof dim === 'number' && (index < 0 || index >= dim)) {
      throw new ShapeError(`select: expected an index below ${dim}, got ${index}`);
    }
    return this.#view(
      this.dims.toSpliced(axis, 1),
      this.strides.toSpliced(axis, 1),
      this.offset + index * (this.strides[axis] as number),
    );
  }

  /** Elements start … end - 1 of dimension `axis`; a view. */
  narrow(axis: number, start: number, length: number): Tensor {
    const dim = this.dims[axis];
    if (typeof dim === 'number' && (start < 0 || length < 0 || start + length > dim)) {
      throw new ShapeError(`narrow: expected a range within ${dim}, got ${start} + ${length}`);
    }
    return this.#view(
      this.dims.toSpliced(axis, 1, length),
      this.strides,
      this.offset + start * (this.strides[axis] as number),
    );
  }

  /** The same elements under another shape; contiguous tensors only. */
  reshape(shape: readonly number[]): Tensor {
    if (!this.isContiguous || elementCount(shape) !== this.numel) {
      throw new ShapeError(
        `reshape: expected a contiguous tensor of ${elementCount(shape)} elements, got ${formatDims(this.dims)}`,
      );
    }
    return this.#view(shape, rowMajorStrides(shape), this.offset);
  }

  /** The raw bytes of a contiguous tensor, copied to JavaScript. Throws StateError on meta and for packed layouts. */
  toBytes(): Uint8Array {
    const storage = this.#parts.storage;
    if (storage === null) throw new StateError('read: a tensor on meta has no storage');
    if (!this.isContiguous) throw new StateError('read: expected a contiguous tensor; call contiguous() first');
    const bytes = new Uint8Array(this.nbytes);
    if (bytes.length > 0) storage.read(this.offset * DTYPES[this.dtype].bytes, bytes);
    return bytes;
  }

  /** The elements as a typed array of their own dtype (float16 and bfloat16 as their bits). */
  toTypedArray(): TypedArray {
    const { buffer } = this.toBytes();
    switch (this.dtype) {
      case 'float32':
        return new Float32Array(buffer);
      case 'float16':
      case 'bfloat16':
        return new Uint16Array(buffer);
      case 'int8':
        return new Int8Array(buffer);
      case 'int32':
        return new Int32Array(buffer);
      case 'int64':
        return new BigInt64Array(buffer);
      default:
        return new Uint8Array(buffer);
    }
  }

  /** The elements as float32, whatever the dtype. */
  toFloat32Array(): Float32Array {
    const data = this.toTypedArray();
    if (data instanceof Float32Array) return data;
    if (this.dtype === 'float16') return float16ArrayToFloat32(data as Uint16Array);
    if (this.dtype === 'bfloat16') return bfloat16ArrayToFloat32(data as Uint16Array);
    return Float32Array.from(data as ArrayLike<number | bigint>, Number);
  }

  /** The elements of an int8 tensor. Throws DtypeError for others. */
  toInt8Array(): Int8Array {
    const data = this.toTypedArray();
    if (!(data instanceof Int8Array)) throw new DtypeError(`toInt8Array: expected int8, got ${this.dtype}`);
    return data;
  }

  /** The elements of an int32 tensor. Throws DtypeError for others. */
  toInt32Array(): Int32Array {
    const data = this.toTypedArray();
    if (!(data instanceof Int32Array)) throw new DtypeError(`toInt32Array: expected int32, got ${this.dtype}`);
    return data;
  }

  /** The elements as numbers in nested arrays; a number for a scalar. */
  toArray(): NestedArray | number {
    const flat = Array.from(
      this.dtype === 'float16' || this.dtype === 'bfloat16'
        ? this.toFloat32Array()
        : (this.toTypedArray() as ArrayLike<number | bigint>),
      Number,
    );
    const nest = (shape: readonly number[], start: number): NestedArray | number => {
      if (shape.length === 0) return flat[start] as number;
      const [count, ...rest] = shape as [number, ...number[]];
      const step = elementCount(rest);
      return Array.from({ length: count }, (_, i) => nest(rest, start + i * step)) as NestedArray;
    };
    return nest(this.shape, 0);
  }

  /** One number of a one-element tensor. */
  item(): number {
    if (this.numel !== 1) throw new ShapeError(`item: expected one element, got ${formatDims(this.dims)}`);
    return this.toFloat32Array()[0] as number;
  }
}

/** A tensor without values: memory is taken (or none on meta) but its contents are undefined. */
export function empty(
  dims: readonly Dim[],
  { dtype = 'float32', device = 'cpu', layout = 'strided' }: TensorOptions & { layout?: Layout } = {},
): Tensor {
  const where = parseDevice(device);
  if (where.type === 'disk') throw new ArgumentError('empty: expected a device that holds tensors, got disk');
  for (const dim of dims) {
    if (typeof dim === 'number' && (!Number.isSafeInteger(dim) || dim < 0)) {
      throw new ShapeError(`empty: expected whole dimensions, got ${formatDims(dims)}`);
    }
  }
  const parts = { dims, dtype, device: where, layout, strides: rowMajorStrides(dims), offset: 0 };
  const storage = where.type === 'meta' ? null : Storage.allocate(where, { dims, dtype, layout });
  return new Tensor({ ...parts, storage });
}

export function zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
  const made = empty(shape, options);
  made.storage?.zero();
  return made;
}

/**
 * A tensor from numbers: nested arrays, or a typed array with `shape`. float32 by default; values are rounded to the
 * dtype (ties to even).
 */
export function tensor(
  data: NestedArray | TypedArray,
  { dtype = 'float32', device = 'cpu', shape }: TensorOptions & { shape?: readonly number[] } = {},
): Tensor {
  const { flat, dims } = flatten(data);
  const target = shape ?? dims;
  if (elementCount(target) !== flat.length) {
    throw new ShapeError(
      `tensor: expected ${elementCount(target)} values for ${formatDims(target)}, got ${flat.length}`,
    );
  }
  const made = empty(target, { dtype, device });
  if (flat.length > 0) made.storage?.write(0, encode(flat, dtype));
  return made;
}

/** A tensor over raw little-endian bytes of its dtype. */
export function tensorFromBytes(bytes: Uint8Array, shape: readonly number[], options: TensorOptions = {}): Tensor {
  const made = empty(shape, options);
  if (bytes.length !== made.nbytes) {
    throw new ShapeError(`tensor: expected ${made.nbytes} bytes for ${formatDims(shape)}, got ${bytes.length}`);
  }
  if (bytes.length > 0) made.storage?.write(0, bytes);
  return made;
}

/**
 * Normally distributed values (Box–Muller over a 32-bit counter generator); the same seed gives the same values
 * everywhere.
 */
export function randn(
  shape: readonly number[],
  { seed = 0, ...options }: TensorOptions & { seed?: number } = {},
): Tensor {
  const next = uniformGenerator(seed);
  const values = new Float32Array(elementCount(shape));
  for (let i = 0; i < values.length; i++) {
    values[i] = Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  }
  return tensor(values, { ...options, shape });
}

/** Uniform numbers in [0, 1) from a seed: Steele & Vigna's splitmix32. */
export function uniformGenerator(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 4294967296;
  };
}

function flatten(data: NestedArray | TypedArray): { flat: ArrayLike<number | bigint>; dims: number[] } {
  if (ArrayBuffer.isView(data)) return { flat: data, dims: [data.length] };
  const dims: number[] = [];
  for (let level: unknown = data; Array.isArray(level); level = level[0]) dims.push(level.length);
  const flat: number[] = [];
  const collect = (level: NestedArray): void => {
    for (const entry of level) {
      if (Array.isArray(entry)) collect(entry);
      else flat.push(entry);
    }
  };
  collect(data);
  if (flat.length !== elementCount(dims))
    throw new ShapeError('tensor: expected rows of equal length, got ragged arrays');
  return { flat, dims };
}

function encode(values: ArrayLike<number | bigint>, dtype: DType): ArrayBufferView {
  switch (dtype) {
    case 'float32':
      return values instanceof Float32Array ? values : Float32Array.from(values, Number);
    case 'float16':
      return Uint16Array.from(values, (v) => float32ToFloat16Bits(Number(v)));
    case 'bfloat16':
      return Uint16Array.from(values, (v) => float32ToBfloat16Bits(Number(v)));
    case 'int8':
      return Int8Array.from(values, Number);
    case 'int32':
      return Int32Array.from(values, Number);
    case 'int64':
      return BigInt64Array.from(values as ArrayLike<number>, (v) => BigInt(v));
    case 'bool':
      return Uint8Array.from(values, (v) => (Number(v) === 0 ? 0 : 1));
    default:
      return Uint8Array.from(values, Number);
  }
}
