/**
 * The loop of a device's worker while a forward or a generation runs: takes steps from the rings of its segments, runs them, hands results on. The worker of
 * the first segment also schedules, the worker of the last also chooses tokens and reads results to the host. Every wait is bounded and then looks at the stop word.
 */
import { ExecutorError, guardNative, native, type ProgramTensor } from '@metashard/core';
import { type DeviceExecutor, elementBytes, type OpenSegment, rowElements } from './device-executor.js';
import type { ExecutorMessage, ServeRequest } from './executor-protocol.js';
import { isFinalOutput } from './memory-plan.js';
import { storageOf } from './program-facts.js';
import { Control, Ring } from './ring.js';
import { StepScheduler } from './scheduler.js';
import { FLAG, StepView, writeEnd, writeStep } from './step.js';

export class ServeLoop {
  readonly #executor: DeviceExecutor;
  readonly #control: Control;
  readonly #rings: Ring[];
  readonly #tokenRing: Ring;
  #scheduler: StepScheduler | null = null;
  #schedulingDone = true;

  constructor(executor: DeviceExecutor) {
    const { setup } = executor;
    this.#executor = executor;
    this.#control = new Control(setup.control, setup.controlRows);
    this.#rings = setup.rings.map((shared) => new Ring(shared, setup.slotWords));
    this.#tokenRing = new Ring(setup.tokenRing, setup.tokenWords);
  }

  /** Serves until every own segment has seen the end of the run. Throws ExecutorError when another worker stopped it. */
  serve({ generation, sampling }: ServeRequest): void {
    this.#scheduler = generation === undefined ? null : new StepScheduler(generation, this.#control);
    this.#schedulingDone = this.#scheduler === null;
    if (sampling !== undefined) this.#executor.sampler?.begin(sampling);
    const open = new Set(this.#executor.segments.keys());
    const { worker } = this.#executor.setup;
    while (open.size > 0) {
      const bell = this.#control.bell(worker);
      if (this.#control.stopped)
        throw new ExecutorError(`${this.#executor.setup.device}: stopped because another device failed`, {
          code: 'executor_stopped',
        });
      let busy = this.#schedule();
      for (const index of [...open]) busy = this.#take(index, open) || busy;
      if (!busy) this.#control.wait(worker, bell);
    }
  }

  /** Accepts tokens and emits the next step. True if anything was done. */
  #schedule(): boolean {
    if (this.#scheduler === null || this.#schedulingDone) return false;
    const tokens = this.#tokenRing.peek();
    if (tokens !== null) {
      this.#scheduler.accept(tokens.subarray(1, 1 + (tokens[0] as number)));
      this.#tokenRing.release();
    }
    const next = this.#scheduler.next();
    if (next === 'wait') return tokens !== null;
    const first = this.#rings[0] as Ring;
    if (next === 'end') {
      first.push(writeEnd);
      this.#schedulingDone = true;
    } else {
      first.push((slot) => writeStep(slot, this.#executor.inputs, next));
    }
    return true;
  }

  /** Takes one message of a segment. True if there was one. */
  #take(index: number, open: Set<number>): boolean {
    const ring = this.#rings[index] as Ring;
    const slot = ring.peek();
    if (slot === null) return false;
    const { workerOfSegment, segmentCount } = this.#executor.setup;
    const isLast = index === segmentCount - 1;
    const pass = (fill: (target: Int32Array) => void): void => {
      this.#rings[index + 1]?.push(fill);
      this.#control.ring(workerOfSegment[index + 1] as number);
    };
    if (StepView.isEnd(slot)) {
      if (!isLast) pass(writeEnd);
      open.delete(index);
    } else {
      const step = new StepView(slot, this.#executor.inputs);
      const segment = this.#executor.segments.get(index) as OpenSegment;
      this.#runStep(segment, step, isLast);
      if (!isLast) pass((target) => target.set(slot.subarray(0, step.words)));
    }
    ring.release();
    return true;
  }

  #runStep(open: OpenSegment, step: StepView, isLast: boolean): void {
    const executor = this.#executor;
    executor.begin(open, step);
    const end = open.segment.ops.length;
    const tail = isLast ? open.tail : end;
    const dims = Int32Array.of(step.dims.tokens, step.dims.sequences, step.dims.outputs);
    if (!isLast) this.#writeOutputRows(open, step, 0, step.dims.outputs);
    this.#runWithTaps(open, step, dims, tail);
    executor.send(open, step);
    if (isLast) this.#finish(open, step);
  }

  /** Runs ops up to `end`, stopping after each tapped one to read it while it is there. */
  #runWithTaps(open: OpenSegment, step: StepView, dims: Int32Array, end: number): void {
    let first = 0;
    if (step.flags & FLAG.hiddenStates) {
      const taps = open.segment.outputs
        .filter(({ name, op }) => !isFinalOutput(name) && op < end)
        .sort((a, b) => a.op - b.op);
      for (const tap of taps) {
        this.#executor.run(open, dims, first, tap.op + 1);
        first = tap.op + 1;
        this.#readOutput(open, tap.name, 0, step.dims.tokens);
      }
    }
    this.#executor.run(open, dims, first, end);
  }

  /** The head: in passes of at most `dims.outputs` rows, so that logits of a long prompt never lie in memory at once. */
  #finish(open: OpenSegment, step: StepView): void {
    const executor = this.#executor;
    const end = open.segment.ops.length;
    const wanted = step.dims.outputs;
    const most = open.tail < end ? executor.setup.dims.outputs : wanted;
    const finals = open.segment.outputs.filter(({ name }) => isFinalOutput(name));
    for (let first = 0; first < wanted; first += most) {
      const rows = Math.min(most, wanted - first);
      if (open.tail < end) {
        this.#writeOutputRows(open, step, first, rows);
        executor.run(open, Int32Array.of(step.dims.tokens, step.dims.sequences, rows), open.tail, end);
      }
      if (step.flags & FLAG.sample) this.#choose(open, step, rows);
      else if (step.flags & FLAG.logits)
        for (const { name, tensor } of finals)
          this.#readOutput(open, name, first, this.#outputRows(tensor, step, rows));
    }
  }

  #outputRows(tensor: number, step: StepView, outputs: number): number {
    const dim = this.#executor.setup.program.tensors[tensor]?.dims[0];
    return typeof dim === 'number' ? dim : dim === 'outputs' ? outputs : step.dims[dim ?? 'tokens'];
  }

  #writeOutputRows(open: OpenSegment, step: StepView, first: number, rows: number): void {
    for (const { tensor, spec } of open.inputs) {
      if (spec.dims[0] !== 'outputs' || rows === 0) continue;
      const { buffer, byteOffset } = this.#executor.place(tensor);
      native().write(buffer, byteOffset, step.value(tensor).subarray(first, first + rows));
    }
  }

  #choose(open: OpenSegment, step: StepView, rows: number): void {
    const executor = this.#executor;
    const { setup, sampler } = executor;
    const logits = storageOf(setup.program, setup.program.outputs.logits as number);
    const place = executor.arenaPlace(open.segment.index, logits);
    const row = Int32Array.from(step.rows);
    const ids = sampler?.choose(place, row, executor.scratch) ?? new Int32Array(0);
    const message: ExecutorMessage = { type: 'tokens', step: step.index, rows: row, ids };
    if (step.flags & FLAG.logits) message.logits = this.#readRows(open, logits, rows);
    this.#tokenRing.push((slot) => {
      slot[0] = ids.length;
      slot.set(ids, 1);
    });
    this.#control.ring(setup.workerOfSegment[0] as number);
    setup.port.postMessage(message);
  }

  #readOutput(open: OpenSegment, name: string, first: number, rows: number): void {
    const { setup } = this.#executor;
    const tensor = setup.program.outputs[name] as number;
    const data = this.#readRows(open, tensor, rows);
    const message: ExecutorMessage = {
      type: 'output',
      name,
      first,
      rows,
      columns: rows === 0 ? 0 : data.length / rows,
      data,
    };
    setup.port.postMessage(message, [data.buffer]);
  }

  #readRows(open: OpenSegment, tensor: number, rows: number): Float32Array<ArrayBuffer> {
    const { setup } = this.#executor;
    const spec = setup.program.tensors[tensor] as ProgramTensor;
    const place = this.#executor.arenaPlace(open.segment.index, storageOf(setup.program, tensor));
    const data = new Float32Array(rows * rowElements(spec));
    const shift = (spec.offset ?? 0) * elementBytes(spec);
    if (data.length > 0)
      guardNative(setup.device, 'read', () => native().read(place.buffer, place.byteOffset + shift, data));
    return data;
  }
}
