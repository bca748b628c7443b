/**
 * Memory for eager tensors whose end is known: blocks that are filled from the start and reused after `reset`. Eager
 * tensors otherwise live until the garbage collector, which sees nothing of their native memory: a few forwards of a
 * real model would take all there is. Executors need none of this; they plan their memory.
 */
import {
  type Device,
  type DeviceContext,
  DTYPES,
  empty,
  MEMORY_KINDS,
  native,
  nativeOpBackend,
  type OpBackend,
  registerOpBackend,
  roundUp,
  rowMajorStrides,
  specBytes,
  Tensor,
  type TensorSpec,
} from '@metashard/core';

const BLOCK_BYTES = 64 * 2 ** 20;
const ALIGNMENT = 64;
const KIND = MEMORY_KINDS.indexOf('other');

/** Where results of eager ops lie without an arena. */
const COLLECTED = nativeOpBackend((spec, device) =>
  empty(spec.dims, { dtype: spec.dtype, device: device.name, layout: spec.layout ?? 'strided' }),
);

type Block = NonNullable<Tensor['storage']>;

export class TensorArena {
  readonly #context: DeviceContext;
  readonly #blocks: Block[] = [];
  readonly #backend: OpBackend;
  #block = 0;
  #used = 0;

  /** An arena on the context's device, of which only `cpu` computes here. */
  constructor(context: DeviceContext) {
    this.#context = context;
    this.#backend = nativeOpBackend((spec) => this.empty(spec));
  }

  /** A tensor without values, valid until `reset`. Throws OutOfMemoryError. */
  empty(spec: TensorSpec): Tensor {
    const { dims, dtype, layout = 'strided' } = spec;
    const device: Device = this.#context.device;
    const [storage, byteOffset] = this.#take(specBytes(spec));
    const offset = byteOffset / DTYPES[dtype].bytes;
    return new Tensor({ dims, dtype, device, layout, strides: rowMajorStrides(dims), offset, storage });
  }

  /** A tensor with these values, in the bytes of its dtype. */
  from(values: ArrayBufferView, spec: TensorSpec): Tensor {
    const made = this.empty(spec);
    if (values.byteLength > 0) made.storage?.write(made.offset * DTYPES[spec.dtype].bytes, values);
    return made;
  }

  /** Runs eager ops whose results lie here. Not for asynchronous code: ops of others would land here, too. */
  run<T>(compute: () => T): T {
    registerOpBackend('cpu', this.#backend);
    try {
      return compute();
    } finally {
      registerOpBackend('cpu', COLLECTED);
    }
  }

  /** Ends every tensor made here; the memory stays for the next ones. */
  reset(): void {
    this.#block = 0;
    this.#used = 0;
  }

  /** Ends every tensor made here and gives the memory back. */
  dispose(): void {
    for (const { buffer } of this.#blocks.splice(0)) native().free(buffer);
    this.reset();
  }

  #take(bytes: number): [block: Block, byteOffset: number] {
    for (; this.#block < this.#blocks.length; this.#block++, this.#used = 0) {
      const block = this.#blocks[this.#block] as Block;
      if (this.#used + bytes <= block.bytes) return [block, this.#advance(bytes)];
    }
    const made = newBlock(this.#context, Math.max(BLOCK_BYTES, bytes));
    this.#blocks.push(made);
    return [made, this.#advance(bytes)];
  }

  #advance(bytes: number): number {
    const start = this.#used;
    this.#used = roundUp(start + bytes, ALIGNMENT);
    return start;
  }
}

function newBlock(context: DeviceContext, bytes: number): Block {
  const buffer = context.alloc(bytes, KIND);
  return {
    buffer,
    bytes,
    read: (byteOffset, destination) => native().read(buffer, byteOffset, destination),
    write: (byteOffset, source) => native().write(buffer, byteOffset, source),
    zero: () => native().zero(buffer, 0, bytes),
  };
}
