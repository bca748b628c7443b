/**
 * The contract between TypeScript and the N-API addon (native/addon): every function and its types, in one place, and
 * the loading of the addon.
 * Ids (contexts, buffers, programs, files) are numbers checked natively: a freed or foreign one throws, it never
 * crashes. Every call is synchronous, 0.1 to 0.7 µs of overhead, and may be made from any thread; one context is used
 * by one thread at a time, but `copy` may name buffers of two contexts.
 * Errors thrown by the addon carry `status`, `nativeCode`, `file`, `line` (see backend.h) and become typed errors in
 * `backend.ts`.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { NotCompiledError } from './errors.js';

export type ContextId = number;
export type BufferId = number;
export type ProgramId = number;
export type FileId = number;
export type FeedId = number;

/** What a buffer is counted as in `contextStats`. */
export const MEMORY_KINDS = ['weights', 'kv_cache', 'activations', 'scratch', 'other'] as const;
export type MemoryKind = (typeof MEMORY_KINDS)[number];

export interface NativeDeviceInfo {
  name: string;
  totalBytes: number;
  freeBytes: number;
  hostAddressable: boolean;
  emulated: boolean;
  computeMajor: number;
  computeMinor: number;
}

export interface ContextStats {
  budgetBytes: number;
  currentBytes: number;
  peakBytes: number;
  /** Current bytes per MEMORY_KINDS entry, and their peaks. */
  current: number[];
  peak: number[];
}

/**
 * Tensors cross the boundary as TENSOR_WORDS doubles each:
 * [buffer id (0: absent), byte offset, dtype code, layout code, rank, shape ×4, stride ×4 (elements)].
 */
export const TENSOR_WORDS = 13;

/**
 * A program's tensors are PROGRAM_TENSOR_WORDS doubles each: [source, index, byte offset, dtype, layout, rank, shape
 * ×4, stride ×4].
 * source 0: `index` is a buffer id, held for the program's life. source 1: `index` is a binding, given to each run.
 * source 2: absent.
 * A shape entry < 0 is a symbol: -1 tokens, -2 sequences, -3 outputs.
 */
export const PROGRAM_TENSOR_WORDS = 14;

/** What `loadWeight` does with rows read from a file. */
export const LOAD_MODES = {
  /** Convert to the destination's dtype. */
  convert: 0,
  /** quantize_weight into CB (strided or packed) and SCB. */
  quantize: 1,
  /** int8 in the file: copy or pack into CB. */
  int8: 2,
} as const;

export interface NativeAddon {
  readonly abi: number;
  /** [name, code, inputs, outputs, attributes] of ops.def. */
  opTable(): [string, number, number, number, number][];
  threadId(): number;
  /** Resident and peak resident memory of the process, bytes (VmRSS, VmHWM). */
  processMemory(): { residentBytes: number; peakResidentBytes: number };

  /**
   * Opens a backend's shared object once per process. Throws when it is missing, has another ABI, or cannot initialize
   * (status 3).
   */
  loadBackend(name: string, path: string): void;
  configureBackend(name: string, key: string, value: string): void;
  describeBackend(name: string): string;
  deviceCount(backend: string): number;
  deviceInfo(backend: string, device: number): NativeDeviceInfo;

  /** `budgetBytes` 0: unlimited. Allocations beyond the budget throw status 2. */
  openContext(backend: string, device: number, budgetBytes: number): ContextId;
  /** Frees everything the context still owns. */
  closeContext(context: ContextId): void;
  contextStats(context: ContextId): ContextStats;
  synchronize(context: ContextId): void;

  alloc(context: ContextId, bytes: number, kind: number): BufferId;
  /** Host memory of a host-addressable context, from which the device of context `copier` copies asynchronously. */
  allocPinned(context: ContextId, copier: ContextId, bytes: number, kind: number): BufferId;
  free(buffer: BufferId): void;
  bufferBytes(buffer: BufferId): number;
  write(buffer: BufferId, offset: number, source: ArrayBufferView): void;
  /** Waits for the context's work, then copies. */
  read(buffer: BufferId, offset: number, destination: ArrayBufferView): void;
  zero(buffer: BufferId, offset: number, bytes: number): void;
  /**
   * Copies within a device, between devices of a backend, or between backends (through host memory). Done when it
   * returns.
   */
  copy(destination: BufferId, destinationOffset: number, source: BufferId, sourceOffset: number, bytes: number): void;

  /** Scratch bytes the backend wants for this call. */
  opScratch(
    context: ContextId,
    op: number,
    inputs: Float64Array,
    outputs: Float64Array,
    attributes: Float64Array,
  ): number;
  /** Runs one op. `scratch` 0: none is needed. */
  callOp(
    context: ContextId,
    op: number,
    inputs: Float64Array,
    outputs: Float64Array,
    attributes: Float64Array,
    scratch: BufferId,
  ): void;
  opSupported(context: ContextId, op: number): boolean;
  /** Native runs of an op in this process so far (all threads). */
  opCalls(op: number): number;

  /**
   * code: [tensor count, op count, scratch buffer id (0: none), tensors…, ops…]; an op is
   * [op code, input count, output count, attribute count, input tensor indices…, output tensor indices…, attributes…].
   */
  createProgram(context: ContextId, code: Float64Array): ProgramId;
  /**
   * Runs ops first … end - 1 in one call. dims = [tokens, sequences, outputs]. bindings = [buffer id, byte offset] per
   * binding index.
   * An op whose dims contain 0 rows still runs (backends accept empty inputs).
   */
  runProgram(program: ProgramId, dims: Int32Array, bindings: Float64Array, first: number, end: number): void;
  freeProgram(program: ProgramId): void;

  openFile(path: string): FileId;
  fileBytes(file: FileId): number;
  /** Reads host bytes (headers). Short reads and I/O errors throw with the offset. */
  readFile(file: FileId, offset: number, destination: ArrayBufferView): void;
  closeFile(file: FileId): void;
  /**
   * Reads a [rows, columns] tensor of `sourceDtype` at `offset` through a reused window and places it. `destination`
   * and `scales` are TENSOR_WORDS encodings (scales only for mode quantize; else an empty array). float16First: see
   * quantize_weight. Returns the bytes read.
   */
  loadWeight(
    context: ContextId,
    file: FileId,
    offset: number,
    sourceDtype: number,
    rows: number,
    columns: number,
    mode: number,
    destination: Float64Array,
    scales: Float64Array,
    float16First: boolean,
  ): number;
  /** Gives back the windows that `loadWeight` keeps with the context; a later one takes them again. */
  releaseLoading(context: ContextId): void;

  /**
   * Maps bytes of a file as a buffer of a host-addressable device, to be used in place; `offset` is a multiple of the
   * page size. `kind` -1: not counted.
   * A page that cannot be read later gives zeros and makes the op that met it throw (status 7); it never kills the
   * process.
   */
  mapFile(context: ContextId, file: FileId, offset: number, bytes: number, kind: number): BufferId;
  /** Advises about a range of a mapped buffer: see ADVICE. */
  advise(buffer: BufferId, offset: number, bytes: number, advice: number): void;

  /**
   * Opens a feed of weights into `window`, memory of a device that does not read host memory; closed with the context.
   * A portion is [window offset, bytes, piece count, pieces…]; a piece is [0: buffer of host memory or 1: file, its id,
   * byte offset there, byte offset in the portion, bytes]. What files hold passes through pinned memory of the window's
   * size.
   */
  openFeed(context: ContextId, window: BufferId, portions: Float64Array): FeedId;
  /**
   * Has a portion brought, after those asked for before, by a thread and a stream of their own; returns at once.
   * Idempotent until `usedFeed`.
   */
  askFeed(feed: FeedId, portion: number): void;
  /**
   * Waits until its copies are enqueued and orders later work of the context behind them. Throws what reading threw; it
   * may be asked for again.
   */
  waitFeed(feed: FeedId, portion: number): void;
  /** The context's work so far was the last to use the portion. */
  usedFeed(feed: FeedId, portion: number): void;
  /** Waits for all work and forgets what was asked for. */
  resetFeed(feed: FeedId): void;
}

/** willNeed starts reading ahead and returns; release forgets the pages and what the kernel caches of them; populate waits
 * until they are there; wait until nothing that willNeed asked for is still to be read. */
export const ADVICE = { willNeed: 0, release: 1, populate: 2, wait: 3 } as const;

const require = createRequire(import.meta.url);

function loadAddon(): NativeAddon {
  const path = fileURLToPath(new URL('../build/Release/metashard_core.node', import.meta.url));
  if (!existsSync(path)) {
    throw new NotCompiledError(`native addon: expected ${path}, got no such file`, {
      hint: 'run npm run build in the repository; installed packages carry it for Linux x86-64 with glibc',
    });
  }
  return require(path) as NativeAddon;
}

let addon: NativeAddon | undefined;

/** The addon, loaded on first use. Throws NotCompiledError. */
export function native(): NativeAddon {
  addon ??= loadAddon();
  return addon;
}
