/**
 * Portions that are copied to a device which does not read host memory: from host memory where they are parked,
 * quantized, or from a packed store. Holds the window, the parked weights and the addon's feed, whose thread and stream
 * bring the portions. Which one is wanted when is `weight-stream.ts`.
 */
import {
  DeviceContext,
  type DeviceName,
  type FeedId,
  guardNative,
  MEMORY_KINDS,
  native,
  type ProgramTensor,
  parseDevice,
  type TensorId,
} from '@metashard/core';
import type { ExecutorSetup } from './executor-protocol.js';
import { WeightLoader, type WeightPlace } from './load-weights.js';
import { tensorBytes } from './program-facts.js';
import type { StreamPortion } from './stream-plan.js';
import type { PortionFeed } from './weight-stream.js';

/** Weights in the memory of one CPU. */
export interface ParkedWeights {
  context: DeviceContext;
  loader: WeightLoader;
  places: Map<TensorId, WeightPlace>;
}

export class DeviceFeed implements PortionFeed {
  /** Where ops find the streamed weights. */
  readonly places = new Map<TensorId, WeightPlace>();
  readonly parked = new Map<DeviceName, ParkedWeights>();
  readonly #device: DeviceName;
  readonly #portions: readonly StreamPortion[];
  readonly #feed: FeedId;

  /** Allocates the window and the host memory, all as planned. Throws OutOfMemoryError, CheckpointError. */
  constructor(context: DeviceContext, { device, program, dims, streams }: ExecutorSetup) {
    this.#device = device;
    this.#portions = streams.portions;
    const bytesOf = (id: TensorId): number => tensorBytes(program.tensors[id] as ProgramTensor, dims);
    const window = context.alloc(streams.windowBytes, MEMORY_KINDS.indexOf('other'));
    const store = streams.store === null ? null : native().openFile(streams.store.file);
    const words: number[] = [];
    try {
      for (const portion of this.#portions) {
        const sources: Source[] = [];
        const parked = portion.from === 'disk' ? null : this.#parkedOn(portion.from, { program, streams });
        const home = parked === null ? 0 : allocatePinned(parked.context, context, portion.bytes);
        let at = 0;
        for (const id of portion.read) {
          this.places.set(id, { buffer: window, byteOffset: portion.windowOffset + at });
          parked?.places.set(id, { buffer: home, byteOffset: at });
          const stored = streams.store?.tensors.get(id);
          sources.push(
            parked !== null
              ? { kind: SOURCE.buffer, id: home, from: at, at, bytes: bytesOf(id) }
              : {
                  kind: SOURCE.file,
                  id: store as number,
                  from: stored?.offset as number,
                  at,
                  bytes: stored?.nbytes as number,
                },
          );
          at += bytesOf(id);
        }
        const joined = joinSources(sources);
        words.push(portion.windowOffset, portion.bytes, joined.length);
        for (const { kind, id, from, at, bytes } of joined) words.push(kind, id, from, at, bytes);
      }
      this.#feed = guardNative(device, 'stream', () => native().openFeed(context.id, window, Float64Array.from(words)));
    } catch (error) {
      this.close();
      throw error;
    } finally {
      if (store !== null) native().closeFile(store);
    }
  }

  ask(portion: number): void {
    native().askFeed(this.#feed, portion);
  }

  wait(portion: number): void {
    guardNative(this.#device, 'stream', () => native().waitFeed(this.#feed, portion));
  }

  release(portion: number): void {
    guardNative(this.#device, 'stream', () => native().usedFeed(this.#feed, portion));
  }

  overlap(a: number, b: number): boolean {
    const [first, second] = [this.#portions[a] as StreamPortion, this.#portions[b] as StreamPortion];
    return (
      first.windowOffset < second.windowOffset + second.bytes && second.windowOffset < first.windowOffset + first.bytes
    );
  }

  reset(): void {
    guardNative(this.#device, 'stream', () => native().resetFeed(this.#feed));
  }

  /** Brings the portion of a streamed weight, so that it can be read back. */
  bring(weight: TensorId): void {
    const portion = this.#portions.findIndex(({ read }) => read.includes(weight));
    if (portion < 0) return;
    this.ask(portion);
    this.wait(portion);
  }

  /** Ends the parked weights. The feed and the window end with the device's context, before this. */
  close(): void {
    for (const { context } of this.parked.values()) context.close();
  }

  #parkedOn(host: DeviceName, setup: Pick<ExecutorSetup, 'program' | 'streams'>): ParkedWeights {
    let parked = this.parked.get(host);
    if (parked === undefined) {
      const places = new Map<TensorId, WeightPlace>();
      const own = new DeviceContext(parseDevice(host), setup.streams.hostBudgets.get(host) ?? 0);
      const loader = new WeightLoader(own, setup.program, (id) => places.get(id) as WeightPlace);
      parked = { context: own, loader, places };
      this.parked.set(host, parked);
    }
    return parked;
  }
}

const SOURCE = { buffer: 0, file: 1 } as const;

/** A piece of a portion, as `openFeed` takes it. */
interface Source {
  kind: (typeof SOURCE)[keyof typeof SOURCE];
  id: number;
  from: number;
  at: number;
  bytes: number;
}

/** Pieces that follow each other at both ends as one. */
function joinSources(sources: readonly Source[]): Source[] {
  const joined: Source[] = [];
  for (const source of sources) {
    const last = joined.at(-1);
    if (last !== undefined && last.from + last.bytes === source.from && last.at + last.bytes === source.at) {
      last.bytes += source.bytes;
    } else {
      joined.push({ ...source });
    }
  }
  return joined;
}

function allocatePinned(host: DeviceContext, copier: DeviceContext, bytes: number): number {
  return guardNative(host.device.name, `alloc ${bytes} bytes`, () =>
    native().allocPinned(host.id, copier.id, bytes, MEMORY_KINDS.indexOf('weights')),
  );
}
