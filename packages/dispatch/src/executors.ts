/**
 * The devices of one model as the main thread sees them: a worker thread each (a piscina pool of exactly one), their rings, and the runs that go through them.
 * Starts, loads, runs, stops. Does not know prompts or texts (see `loaded-model.ts`). The main thread never blocks.
 */
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import {
  type DeviceName,
  type DimValues,
  DisposedError,
  ExecutorError,
  fromPlainError,
  MetashardError,
  type PlainError,
  type Program,
  parseDevice,
  type TensorId,
} from '@metashard/core';
import { Piscina } from 'piscina';
import type {
  ExecutorMessage,
  ExecutorSetup,
  ExecutorStats,
  ExecutorStreams,
  Inbox,
  LoadInstruction,
  OpenedExecutor,
  SamplerSizes,
  SaveInstruction,
  ServeRequest,
} from './executor-protocol.js';
import { type DeviceMemory, STEPS_IN_FLIGHT } from './memory-plan.js';
import type { PlannedProgram } from './plan-program.js';
import { Control, Ring } from './ring.js';
import { type StepDescriptor, slotWords, stepInputs, writeEnd, writeStep } from './step.js';
import { parkedBytes } from './stream-plan.js';

interface Worker {
  readonly device: DeviceName;
  readonly pool: Piscina;
  /** Open once the worker is. */
  port: MessagePort | null;
  /** Called when the worker's port has delivered everything of a task. */
  onDone: () => void;
}

export interface ExecutorsOptions {
  program: Program;
  planned: PlannedProgram;
  dims: DimValues;
  sampler: SamplerSizes | null;
  /** A packed store to use in place where the device reads host memory. */
  store?: MappedStore | null;
  /** A thread for the first device that was started earlier. It is these executors' from now on. */
  thread?: Piscina;
}

export interface MappedStore {
  file: string;
  tensors: ReadonlyMap<TensorId, { offset: number; nbytes: number }>;
}

type Listener = (message: ExecutorMessage, device: DeviceName) => void;

const WORKER_FILE = new URL('./worker.js', import.meta.url).href;

/** Starts a device's thread: a pool of exactly one. Which device it is for, `open` tells it. */
export function startThread(): Piscina {
  return new Piscina({
    filename: WORKER_FILE,
    minThreads: 1,
    maxThreads: 1,
    concurrentTasksPerWorker: 1,
    idleTimeout: Number.POSITIVE_INFINITY,
    atomics: 'disabled',
    recordTiming: false,
    resourceLimits: { maxOldGenerationSizeMb: 512 },
  });
}

/**
 * Ends a thread once it has loaded its modules and closed its device: terminating one that is still loading ends the
 * process (Node 20: "v8::Module::IsGraphAsync must be used on an instantiated module").
 */
export async function endThread(pool: Piscina): Promise<void> {
  await pool.run(undefined, { name: 'close' }).catch(() => {}); // a thread that is gone needs no closing
  await pool.destroy();
}

export class Executors {
  readonly #workers: Worker[];
  readonly #control: Control;
  readonly #rings: Ring[];
  readonly #tokenRing: Ring;
  readonly #options: ExecutorsOptions;
  #listener: Listener = () => {};
  #lost: Error | null = null;
  #disposed = false;

  private constructor(options: ExecutorsOptions) {
    const { program, planned, dims } = options;
    this.#options = options;
    const words = slotWords(program, dims);
    this.#rings = planned.segments.map(() => Ring.allocate(words, STEPS_IN_FLIGHT + 1));
    this.#tokenRing = Ring.allocate(dims.sequences + 1, STEPS_IN_FLIGHT + 1);
    const devices = [...planned.memory.keys()];
    this.#control = Control.allocate(dims.sequences, devices.length);
    this.#workers = devices.map((device, index) => {
      const pool = (index === 0 ? options.thread : undefined) ?? startThread();
      this.#watch(device, pool);
      return { device, port: null, onDone: () => {}, pool };
    });
  }

  /** Starts a thread per device and opens its memory. On failure nothing stays behind. Throws what a device throws (OutOfMemoryError, DeviceUnavailableError). */
  static async start(options: ExecutorsOptions): Promise<Executors> {
    const executors = new Executors(options);
    try {
      const opened = await Promise.all(executors.#workers.map((_, index) => executors.#open(index)));
      const inboxes = opened.flatMap((one) => one.inboxes);
      await executors.#all((): readonly Inbox[] => inboxes, 'connect');
    } catch (error) {
      await executors.dispose();
      throw error;
    }
    return executors;
  }

  /** The thread pools, one thread each, in the plan's order of devices. */
  get pools(): readonly Piscina[] {
    return this.#workers.map(({ pool }) => pool);
  }

  get program(): Program {
    return this.#options.program;
  }

  /** Loads every device at once. `signal` leaves weights half loaded: dispose afterwards. */
  async load(
    instructions: ReadonlyMap<DeviceName, readonly LoadInstruction[]>,
    onProgress: (device: DeviceName, tensor: string, bytes: number) => void,
    signal?: AbortSignal,
  ): Promise<void> {
    const abort = (): void => this.#control.abort();
    signal?.throwIfAborted();
    signal?.addEventListener('abort', abort);
    this.#listener = (message, device) => {
      if (message.type === 'progress') onProgress(device, message.tensor, message.bytes);
    };
    try {
      await this.#allDelivered((device) => instructions.get(device) ?? [], 'load');
      signal?.throwIfAborted();
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#listener = () => {};
      this.#control.reset();
    }
  }

  /** Every device writes its weights into files that stand already. */
  async save(instructions: ReadonlyMap<DeviceName, readonly SaveInstruction[]>): Promise<void> {
    await this.#all((device) => instructions.get(device) ?? [], 'save');
  }

  /**
   * One run through all devices. `steps` are given by the main thread (a forward) or, with `generation`, made by the first segment's worker.
   * `onMessage` gets tokens and outputs as they come. Resolves when every worker has left its loop. Runs never overlap: the caller queues them.
   */
  async run(
    request: ServeRequest & { steps?: readonly StepDescriptor[] },
    onMessage: Listener,
    signal?: AbortSignal,
  ): Promise<void> {
    this.#check();
    const { generation, sampling, steps = [] } = request;
    for (const ring of [...this.#rings, this.#tokenRing]) ring.reset();
    this.#control.reset();
    this.#listener = onMessage;
    const abort = (): void => this.#control.abort();
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort);
    try {
      const segments = this.#options.planned.segments;
      const [first, last] = [this.#workerOf(0), this.#workerOf(segments.length - 1)];
      const serving = this.#allDelivered((_, index): ServeRequest => {
        return {
          ...(generation !== undefined && index === first ? { generation } : {}),
          ...(sampling !== undefined && index === last ? { sampling } : {}),
        };
      }, 'serve');
      if (generation === undefined) this.#feed(steps);
      await serving;
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#listener = () => {};
    }
  }

  /** Ends a generation after the step under way. */
  abort(): void {
    this.#control.abort();
  }
  /** No more tokens for this row. */
  stopRow(row: number): void {
    this.#control.stopRow(row);
  }

  /** Per device; what other devices have parked on a CPU is counted with that. */
  async stats(): Promise<ExecutorStats[]> {
    const merged = new Map<DeviceName, ExecutorStats>();
    for (const one of (await this.#all<ExecutorStats[]>(() => undefined, 'stats')).flat()) {
      const known = merged.get(one.device);
      merged.set(one.device, known === undefined ? one : addStats(known, one));
    }
    return [...merged.values()];
  }

  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#control.stop();
    await Promise.allSettled(this.#workers.map(({ pool }) => endThread(pool)));
    for (const { port } of this.#workers) port?.close();
  }

  #feed(steps: readonly StepDescriptor[]): void {
    const inputs = stepInputs(this.program);
    const first = this.#rings[0] as Ring;
    for (const step of steps) first.push((slot) => writeStep(slot, inputs, step));
    first.push(writeEnd);
    this.#control.ring(this.#workerOf(0));
  }

  #workerOf(segment: number): number {
    const device = this.#options.planned.segments[segment]?.device;
    return this.#workers.findIndex((worker) => worker.device === device);
  }

  /** Whatever ends a device's thread is noticed. */
  #watch(device: DeviceName, pool: Piscina): void {
    pool.on('error', (error: Error) => this.#lose(device, error));
    for (const thread of pool.threads) {
      thread.once('exit', () => {
        if (!this.#disposed)
          this.#lose(device, new ExecutorError(`${device}: its thread ended`, { code: 'executor_lost' }));
      });
    }
  }

  /** A device is gone: everybody stops, and the model refuses further work. */
  #lose(device: DeviceName, cause: Error): void {
    this.#lost ??= new ExecutorError(`${device}: ${cause.message}`, {
      code: 'executor_lost',
      cause,
      details: { device },
    });
    this.#control?.stop();
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('model: expected a loaded model, got a disposed one');
    if (this.#lost !== null) throw this.#lost;
  }

  async #open(index: number): Promise<OpenedExecutor> {
    const worker = this.#workers[index] as Worker;
    const { port1, port2 } = new MessageChannel();
    worker.port = port1;
    port1.on('message', (message: ExecutorMessage) => {
      if (message.type === 'done') worker.onDone();
      else this.#listener(message, worker.device);
    });
    port1.unref();
    return (await this.#task(worker, 'open', this.#setup(index, port2), [port2])) as OpenedExecutor;
  }

  #setup(index: number, port: MessagePort): ExecutorSetup {
    const { program, planned, dims, sampler } = this.#options;
    const { device } = this.#workers[index] as Worker;
    const memory = planned.memory.get(device);
    if (memory === undefined) throw new ExecutorError(`${device}: not in the plan`);
    const entry = planned.plan.devices.find((candidate) => candidate.name === device);
    const isHead = planned.segments.at(-1)?.device === device;
    return {
      worker: index,
      device,
      budgetBytes: this.#budgetOf(device) - parkedBytes(device, planned.memory.values()),
      program,
      segments: planned.segments.filter((segment) => segment.device === device),
      segmentCount: planned.segments.length,
      workerOfSegment: planned.segments.map((_, segment) => this.#workerOf(segment)),
      dims,
      mapped: this.#mappedFor(device, memory),
      streams: this.#streamsOf(device, memory),
      arenaBytes: memory.arenaBytes,
      scratchBytes: entry?.scratchBytes ?? memory.scratchBytes,
      weights: [...memory.weights],
      caches: [...memory.caches],
      constants: [...memory.constants],
      inputs: [...memory.inputs],
      arenas: new Map([...memory.arenas].map(([segment, arena]) => [segment, arena.offsets])),
      rings: this.#rings.map((ring) => ring.shared),
      tokenRing: this.#tokenRing.shared,
      control: this.#control.shared,
      controlRows: this.#control.rows,
      slotWords: (this.#rings[0] as Ring).slotWords,
      tokenWords: this.#tokenRing.slotWords,
      sampler: isHead ? sampler : null,
      port,
    };
  }

  #budgetOf(device: DeviceName): number {
    const entry = this.#options.planned.plan.devices.find(({ name }) => name === device);
    return (entry?.budgetBytes ?? 0) - (entry?.reserveBytes ?? 0);
  }

  #streamsOf(device: DeviceName, { portions, windowBytes }: DeviceMemory): ExecutorStreams {
    const { planned, store } = this.#options;
    const entry = planned.plan.devices.find(({ name }) => name === device);
    const hosts = new Set(portions.map(({ from }) => from).filter((from) => from !== 'disk'));
    const read = new Set(portions.flatMap(({ from, read }) => (from === 'disk' ? read : [])));
    const copies = parseDevice(device).type !== 'cpu' && read.size > 0 && store != null;
    return {
      portions,
      windowBytes,
      keepBytes: Math.max(0, entry?.freeBytes ?? 0),
      store: copies ? { file: store.file, tensors: new Map([...store.tensors].filter(([id]) => read.has(id))) } : null,
      hostBudgets: new Map([...hosts].map((host) => [host, this.#budgetOf(host)])),
    };
  }

  #mappedFor(device: DeviceName, { weights: held, portions }: DeviceMemory): MappedStore | null {
    const { store } = this.#options;
    if (store == null || parseDevice(device).type !== 'cpu') return null;
    const weights = new Set([...held, ...portions.flatMap((portion) => portion.weights)]);
    return { file: store.file, tensors: new Map([...store.tensors].filter(([id]) => weights.has(id))) };
  }

  /** The same task on every worker; waits for all, then throws the error that was there first, not its echoes. */
  async #all<R>(argument: (device: DeviceName, index: number) => unknown, name: string): Promise<R[]> {
    this.#check();
    const settled = await Promise.allSettled(
      this.#workers.map((worker, index) => this.#task(worker, name, argument(worker.device, index))),
    );
    const failed = settled.flatMap((one) => (one.status === 'rejected' ? [one.reason as Error] : []));
    const isEcho = (error: Error): boolean => MetashardError.isInstance(error) && error.code === 'executor_stopped';
    if (failed.length > 0) throw this.#lost ?? failed.find((error) => !isEcho(error)) ?? failed[0];
    return settled.map((one) => (one as PromiseFulfilledResult<R>).value);
  }

  /** `#all`, and every message the workers sent meanwhile has been heard: their ports are not ordered with piscina's. */
  async #allDelivered(argument: (device: DeviceName, index: number) => unknown, name: string): Promise<void> {
    const delivered = this.#workers.map((worker) => {
      worker.port?.ref();
      return new Promise<void>((resolve) => {
        worker.onDone = resolve;
      });
    });
    try {
      await this.#all(argument, name);
      await Promise.all(delivered);
    } finally {
      for (const { port } of this.#workers) port?.unref();
    }
  }

  async #task(worker: Worker, name: string, argument: unknown, transferList: MessagePort[] = []): Promise<unknown> {
    let result: { ok: unknown } | { error: PlainError };
    try {
      result = (await worker.pool.run(argument, { name, transferList })) as typeof result;
    } catch (error) {
      if (!this.#disposed) this.#lose(worker.device, error as Error);
      throw error;
    }
    if ('error' in result) {
      const error = fromPlainError(result.error);
      if (MetashardError.isInstance(error)) throw error;
      throw new ExecutorError(`${worker.device}: ${error.message}`, {
        cause: error,
        details: { device: worker.device },
      });
    }
    return result.ok;
  }
}

function addStats(own: ExecutorStats, parked: ExecutorStats): ExecutorStats {
  return {
    ...own,
    budgetBytes: Math.max(own.budgetBytes, parked.budgetBytes),
    currentBytes: own.currentBytes + parked.currentBytes,
    peakBytes: own.peakBytes + parked.peakBytes,
    peak: own.peak.map((bytes, kind) => bytes + (parked.peak[kind] ?? 0)),
  };
}
