/**
 * One device as its worker thread holds it: the memory the plan promised, its weights, its segments as native programs. Opens, loads and runs single steps;
 * the loop that waits for steps is `serve.ts`.
 */
import {
  BackendError,
  type BufferId,
  DeviceContext,
  DTYPES,
  guardNative,
  MEMORY_KINDS,
  type MemoryKind,
  native,
  opSignature,
  type ProgramId,
  type ProgramTensor,
  parseDevice,
  resolveDims,
  specBytes,
  type TensorId,
} from '@metashard/core';
import { DeviceFeed } from './device-feed.js';
import { encodeProgram } from './encode-program.js';
import type { ExecutorSetup, ExecutorStats, Inbox, LoadInstruction, OpenedExecutor } from './executor-protocol.js';
import { WeightLoader, type WeightPlace } from './load-weights.js';
import { MappedFeed } from './mapped-feed.js';
import { STEPS_IN_FLIGHT } from './memory-plan.js';
import { PAGE_BYTES, storageOf, tensorBytes } from './program-facts.js';
import { Sampler } from './sampler.js';
import type { Segment } from './segments.js';
import { type StepInput, type StepView, stepInputs } from './step.js';
import { WeightStream } from './weight-stream.js';

interface OpenSegment {
  readonly segment: Segment;
  readonly program: ProgramId;
  /** [buffer, offset] per received tensor, refilled for each step's slot. */
  readonly bindings: Float64Array;
  readonly inbox: Inbox['tensors'];
  /** Step inputs this segment reads. */
  readonly inputs: readonly StepInput[];
  /** First op whose size depends on the rows wanted. */
  readonly tail: number;
}

export class DeviceExecutor {
  readonly context: DeviceContext;
  readonly segments = new Map<number, OpenSegment>();
  readonly inputs: readonly StepInput[];
  readonly sampler: Sampler | null;
  readonly scratch: BufferId;
  readonly #arena: BufferId;
  readonly #loader: WeightLoader;
  /** Streamed weights that are copied here; null where none are, or where they are used in place. */
  readonly #feed: DeviceFeed | null;
  readonly #stream: WeightStream | null;
  /** Where weights, caches, constants and step inputs lie. */
  readonly #places = new Map<TensorId, WeightPlace>();
  /** Other devices' inboxes: `segment:tensor`. */
  readonly #outgoing = new Map<string, { buffer: BufferId; slotBytes: number }>();

  constructor(readonly setup: ExecutorSetup) {
    this.context = new DeviceContext(parseDevice(setup.device), setup.budgetBytes);
    this.inputs = stepInputs(setup.program);
    this.#checkOps();
    this.#mapWeights();
    this.#feed = this.#openFeed();
    const weights = setup.weights.filter((id) => !this.#places.has(id));
    this.#allocate([...weights, ...setup.constants], 'weights');
    this.#loader = new WeightLoader(this.context, setup.program, (id) => this.place(id));
    for (const id of setup.constants) this.#writeConstant(id);
    this.#zero(this.#allocate(setup.caches, 'kv_cache'));
    this.#allocate(setup.inputs, 'activations');
    this.#arena = this.context.alloc(Math.max(setup.arenaBytes, 1), MEMORY_KINDS.indexOf('activations'));
    this.sampler = setup.sampler === null ? null : new Sampler(this.context, setup.sampler);
    this.scratch =
      setup.scratchBytes === 0 ? 0 : this.context.alloc(setup.scratchBytes, MEMORY_KINDS.indexOf('scratch'));
    this.#stream = this.#openStream();
    for (const segment of setup.segments) this.segments.set(segment.index, this.#openSegment(segment));
  }

  get opened(): OpenedExecutor {
    const inboxes = [...this.segments.values()].map(({ segment, inbox }) => ({
      segment: segment.index,
      tensors: inbox,
    }));
    return { threadId: native().threadId(), inboxes };
  }

  /** Tells where the segments that this device feeds receive. */
  connect(inboxes: readonly Inbox[]): void {
    for (const { segment, tensors } of inboxes) {
      for (const { tensor, buffer, slotBytes } of tensors)
        this.#outgoing.set(`${segment}:${tensor}`, { buffer, slotBytes });
    }
  }

  /** Brings a weight into place: here, or where it is parked. */
  get loaders(): WeightLoader[] {
    return [this.#loader, ...[...(this.#feed?.parked.values() ?? [])].map(({ loader }) => loader)];
  }

  loaderOf(instruction: LoadInstruction): WeightLoader {
    const weight = 'tensor' in instruction ? instruction.tensor : instruction.CB;
    const parked = [...(this.#feed?.parked.values() ?? [])].find(({ places }) => places.has(weight));
    return parked?.loader ?? this.#loader;
  }

  /** Where a weight can be read back, brought there first if it is streamed. */
  present(weight: TensorId): WeightPlace {
    this.#feed?.bring(weight);
    return this.place(weight);
  }

  /** This device, and what it has parked elsewhere. */
  get stats(): ExecutorStats[] {
    return [this.context, ...[...(this.#feed?.parked.values() ?? [])].map(({ context }) => context)].map((context) => {
      const { budgetBytes, currentBytes, peakBytes, peak } = context.stats();
      return { device: context.device.name, threadId: native().threadId(), budgetBytes, currentBytes, peakBytes, peak };
    });
  }

  place(tensor: TensorId): WeightPlace {
    return this.#places.get(tensor) as WeightPlace;
  }

  /** Memory that holds nothing between steps: the larger of scratch and arena. */
  get workSpace(): { buffer: BufferId; bytes: number } {
    const { scratchBytes, arenaBytes } = this.setup;
    return scratchBytes >= arenaBytes
      ? { buffer: this.scratch, bytes: scratchBytes }
      : { buffer: this.#arena, bytes: arenaBytes };
  }

  /** Byte offset of an activation of a segment in the arena. */
  arenaPlace(segment: number, tensor: TensorId): { buffer: BufferId; byteOffset: number } {
    return { buffer: this.#arena, byteOffset: this.setup.arenas.get(segment)?.get(tensor) as number };
  }

  /** Writes the step's inputs and points the inbox bindings at its slot. */
  begin(open: OpenSegment, step: StepView): void {
    const addon = native();
    for (const { tensor, spec } of open.inputs) {
      // The rows wanted are written chunk by chunk: see serve.ts.
      if (spec.dims[0] === 'outputs') continue;
      const value = step.value(tensor);
      const { buffer, byteOffset } = this.place(tensor);
      if (value.length > 0) addon.write(buffer, byteOffset, value);
    }
    const slot = step.index % STEPS_IN_FLIGHT;
    for (const [i, { buffer, slotBytes }] of open.inbox.entries()) {
      open.bindings[i * 2] = buffer;
      open.bindings[i * 2 + 1] = slot * slotBytes;
    }
  }

  run(open: OpenSegment, dims: Int32Array, first: number, end: number): void {
    if (first >= end) return;
    const run = (from: number, to: number): void =>
      guardNative(this.setup.device, 'run', () => native().runProgram(open.program, dims, open.bindings, from, to));
    if (this.#stream === null) run(first, end);
    else this.#stream.around(open.segment.index, first, end, run);
  }

  /** Hands this segment's results to the inboxes of later ones. */
  send(open: OpenSegment, step: StepView): void {
    const slot = step.index % STEPS_IN_FLIGHT;
    for (const { tensor, to } of open.segment.sends) {
      const target = this.#outgoing.get(`${to}:${tensor}`) as { buffer: BufferId; slotBytes: number };
      const from = this.arenaPlace(open.segment.index, tensor);
      const spec = this.setup.program.tensors[tensor] as ProgramTensor;
      const bytes = specBytes({ ...spec, dims: resolveDims(spec.dims, step.dims) });
      if (bytes > 0) native().copy(target.buffer, slot * target.slotBytes, from.buffer, from.byteOffset, bytes);
    }
  }

  close(): void {
    this.context.close();
    this.#feed?.close();
  }

  /** A backend that lacks an op is found before anything is loaded. */
  #checkOps(): void {
    const { device, segments } = this.setup;
    const missing = segments
      .flatMap(({ ops }) => ops)
      .find(({ op }) => !native().opSupported(this.context.id, opSignature(op).code));
    if (missing === undefined) return;
    throw new BackendError(`${device}: expected a device that computes ${missing.op}, which ${missing.module} needs`, {
      hint: 'place the module on another device with device_map',
      details: { device, op: missing.op },
    });
  }

  /** Maps the ranges of the packed store that hold this device's weights; neighbours share a mapping. What is streamed is not counted as held. */
  #mapWeights(): void {
    const { mapped, streams } = this.setup;
    if (mapped === null) return;
    const streamed = new Set(streams.portions.flatMap((portion) => portion.weights));
    const entries = [...mapped.tensors].sort(([, a], [, b]) => a.offset - b.offset);
    const held = entries.filter(([id]) => !streamed.has(id));
    this.#mapRanges(mapped.file, held, MEMORY_KINDS.indexOf('weights'));
    this.#mapRanges(
      mapped.file,
      entries.filter(([id]) => streamed.has(id)),
      UNCOUNTED,
    );
  }

  #openFeed(): DeviceFeed | null {
    const { device, streams } = this.setup;
    if (streams.portions.length === 0 || parseDevice(device).type === 'cpu') return null;
    const feed = new DeviceFeed(this.context, this.setup);
    for (const [id, place] of feed.places) this.#places.set(id, place);
    return feed;
  }

  #openStream(): WeightStream | null {
    const { mapped, streams } = this.setup;
    if (streams.portions.length === 0) return null;
    const rangeOf = (id: TensorId) => ({ ...this.place(id), bytes: mapped?.tensors.get(id)?.nbytes as number });
    const feed = this.#feed ?? new MappedFeed(streams.portions, rangeOf, streams.keepBytes);
    return new WeightStream(streams.portions, feed);
  }

  #mapRanges(path: string, entries: readonly [TensorId, { offset: number; nbytes: number }][], kind: number): void {
    const { device } = this.setup;
    guardNative(device, 'map', () => {
      const file = native().openFile(path);
      for (const range of rangesOf(entries)) {
        const bytes = range.end - range.start;
        const buffer = native().mapFile(this.context.id, file, range.start, bytes, kind);
        for (const [id, { offset }] of range.entries)
          this.#places.set(id, { buffer, byteOffset: offset - range.start });
      }
      native().closeFile(file);
    });
  }

  #bytes(id: TensorId): number {
    return tensorBytes(this.setup.program.tensors[id] as ProgramTensor, this.setup.dims);
  }

  /** Places tensors in one buffer, one after another: an allocation of its own each would be rounded up to whole huge pages. null: there are none. */
  #allocate(ids: readonly TensorId[], kind: MemoryKind): BufferId | null {
    if (ids.length === 0) return null;
    const bytes = ids.reduce((sum, id) => sum + this.#bytes(id), 0);
    const buffer = this.context.alloc(bytes, MEMORY_KINDS.indexOf(kind));
    let byteOffset = 0;
    for (const id of ids) {
      this.#places.set(id, { buffer, byteOffset });
      byteOffset += this.#bytes(id);
    }
    return buffer;
  }

  #zero(buffer: BufferId | null): void {
    if (buffer !== null) native().zero(buffer, 0, native().bufferBytes(buffer));
  }

  #writeConstant(id: TensorId): void {
    const { data = [], dtype } = this.setup.program.tensors[id] as ProgramTensor;
    const { buffer, byteOffset } = this.place(id);
    native().write(buffer, byteOffset, dtype === 'float32' ? Float32Array.from(data) : Int32Array.from(data));
  }

  #openSegment(segment: Segment): OpenSegment {
    const { program } = this.setup;
    const inbox = segment.receives.map((tensor) => {
      const slotBytes = this.#bytes(tensor);
      return {
        tensor,
        slotBytes,
        buffer: this.context.alloc(STEPS_IN_FLIGHT * slotBytes, MEMORY_KINDS.indexOf('activations')),
      };
    });
    const code = encodeProgram(program, segment, this.scratch, (id) => {
      const binding = segment.receives.indexOf(id);
      if (binding >= 0) return { binding };
      return this.#places.get(id) ?? this.arenaPlace(segment.index, id);
    });
    const used = new Set(
      segment.ops.flatMap((op) => op.inputs.filter((id) => id >= 0).map((id) => storageOf(program, id))),
    );
    const tail = segment.ops.findIndex((op) => op.outputs.some((id) => program.tensors[id]?.dims[0] === 'outputs'));
    return {
      segment,
      program: guardNative(this.setup.device, 'program', () => native().createProgram(this.context.id, code)),
      bindings: new Float64Array(inbox.length * 2),
      inbox,
      inputs: this.inputs.filter(({ tensor }) => used.has(tensor)),
      tail: tail < 0 ? segment.ops.length : tail,
    };
  }
}

export type { OpenSegment };

/** Elements of a row of a program tensor `[rows, …]`. */
export function rowElements(tensor: ProgramTensor): number {
  return tensor.dims.slice(1).reduce<number>((product, dim) => product * (dim as number), 1);
}

/** Bytes per element, for reading results. */
export function elementBytes(tensor: ProgramTensor): number {
  return DTYPES[tensor.dtype].bytes;
}

/** A mapping that is not counted against the budget: the window is. */
const UNCOUNTED = -1;

interface FileRange {
  start: number;
  end: number;
  entries: [TensorId, { offset: number; nbytes: number }][];
}

/** Tensors in file order as page-aligned ranges; a gap of more than a page begins a new one. */
function rangesOf(entries: readonly [TensorId, { offset: number; nbytes: number }][]): FileRange[] {
  const ranges: FileRange[] = [];
  for (const entry of entries) {
    const [, { offset, nbytes }] = entry;
    const last = ranges.at(-1);
    if (last !== undefined && offset <= last.end + PAGE_BYTES) {
      last.end = offset + nbytes;
      last.entries.push(entry);
    } else {
      ranges.push({ start: Math.floor(offset / PAGE_BYTES) * PAGE_BYTES, end: offset + nbytes, entries: [entry] });
    }
  }
  return ranges;
}
