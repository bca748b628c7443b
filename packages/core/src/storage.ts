/**
 * Native memory of tensors made in this thread: allocation through an unlimited context per device, freed when the last
 * tensor is collected.
 */
import { contextOf } from './backend.js';
import type { Device } from './device.js';
import { type BufferId, MEMORY_KINDS, native } from './native.js';
import { specBytes, type TensorSpec } from './ops.js';

const collected = new FinalizationRegistry<BufferId>((buffer) => {
  native().free(buffer);
});

const KIND_OTHER = MEMORY_KINDS.indexOf('other');

export class Storage {
  private constructor(
    readonly buffer: BufferId,
    readonly bytes: number,
  ) {}

  /** Memory for a tensor of this spec. Throws OutOfMemoryError, DeviceUnavailableError. */
  static allocate(device: Device, spec: TensorSpec): Storage {
    const bytes = specBytes(spec);
    const made = new Storage(contextOf(device).alloc(Math.max(bytes, 1), KIND_OTHER), bytes);
    collected.register(made, made.buffer);
    return made;
  }

  read(byteOffset: number, destination: ArrayBufferView): void {
    native().read(this.buffer, byteOffset, destination);
  }
  write(byteOffset: number, source: ArrayBufferView): void {
    native().write(this.buffer, byteOffset, source);
  }
  zero(): void {
    native().zero(this.buffer, 0, this.bytes);
  }
}
