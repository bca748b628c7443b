/**
 * Measures what it costs to bring bytes from the host to a device, back, and from device to device, and proves that
 * they arrive: every byte is compared. A peer copy that goes wrong silently (an IOMMU in its way) is an error here, not
 * wrong text later.
 */
import { randomFillSync } from 'node:crypto';
import { BackendError, type BufferId, type DeviceContext, guardNative, native } from '@metashard/core';

export interface LinkCosts {
  /** A device's name, or "host". */
  from: string;
  to: string;
  /** Bytes per second of a long copy. */
  bandwidth: number;
  /** Milliseconds of a copy of one token's activations (16 KiB). */
  hopMs: number;
}

const LONG_BYTES = 64 * 2 ** 20;
const HOP_BYTES = 16 * 2 ** 10;
const REPETITIONS = 7;

/** Links of CUDA devices: each with the host, and every two of them in both directions. Throws BackendError. */
export function measureLinks(contexts: readonly DeviceContext[], longBytes = LONG_BYTES): LinkCosts[] {
  const links: LinkCosts[] = [];
  const ends: End[] = [];
  try {
    for (const context of contexts) ends.push(new End(context, longBytes));
    for (const end of ends) {
      links.push(end.fromHost(), end.toHost());
      for (const other of ends) if (other !== end) links.push(end.toPeer(other));
    }
    return links;
  } finally {
    for (const end of ends) end.free();
  }
}

/** Device memory of one device that copies start from and end in, and the bytes it must hold. */
class End {
  readonly name: string;
  readonly #context: DeviceContext;
  readonly #buffer: BufferId;
  readonly #sent: Uint8Array;
  readonly #back: Uint8Array;

  constructor(context: DeviceContext, bytes: number) {
    this.name = context.device.name;
    this.#context = context;
    this.#sent = randomFillSync(new Uint8Array(bytes));
    this.#back = new Uint8Array(bytes);
    this.#buffer = context.alloc(bytes);
  }

  fromHost(): LinkCosts {
    const costs = this.#measure('host', this.name, (bytes) =>
      native().write(this.#buffer, 0, this.#sent.subarray(0, bytes)),
    );
    this.#verify('host', this.#buffer, this.#sent);
    return costs;
  }

  toHost(): LinkCosts {
    return this.#measure(this.name, 'host', (bytes) => native().read(this.#buffer, 0, this.#back.subarray(0, bytes)));
  }

  toPeer(peer: End): LinkCosts {
    native().write(this.#buffer, 0, this.#sent);
    const target = peer.#context.alloc(this.#sent.byteLength);
    try {
      const costs = this.#measure(this.name, peer.name, (bytes) => {
        native().copy(target, 0, this.#buffer, 0, bytes);
        native().synchronize(peer.#context.id);
      });
      peer.#verify(this.name, target, this.#sent);
      return costs;
    } finally {
      native().free(target);
    }
  }

  free(): void {
    native().free(this.#buffer);
  }

  #measure(from: string, to: string, copy: (bytes: number) => void): LinkCosts {
    const seconds = (bytes: number): number => {
      const times = Array.from({ length: REPETITIONS + 1 }, () => {
        const start = performance.now();
        guardNative(this.name, `copy from ${from} to ${to}`, () => {
          copy(bytes);
          native().synchronize(this.#context.id);
        });
        return (performance.now() - start) / 1e3;
      });
      return times.slice(1).sort((a, b) => a - b)[REPETITIONS >> 1] as number;
    };
    const long = this.#sent.byteLength;
    return { from, to, bandwidth: long / seconds(long), hopMs: seconds(Math.min(HOP_BYTES, long)) * 1e3 };
  }

  #verify(from: string, buffer: BufferId, expected: Uint8Array): void {
    native().read(buffer, 0, this.#back);
    const wrong = this.#back.findIndex((byte, i) => byte !== expected[i]);
    if (wrong < 0) return;
    throw new BackendError(
      `${this.name}: a copy from ${from}: expected byte ${wrong} to be ${expected[wrong]}, got ${this.#back[wrong]}`,
      { hint: 'copies between devices are broken on this machine (an IOMMU or ACS setting): use one GPU, or mend it' },
    );
  }
}
