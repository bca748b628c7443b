/**
 * Cuts a Program into segments: runs of consecutive ops on one device, in order of execution. Decides which tensors cross from one segment to a
 * later one. Knows nothing of bytes or threads; any map works, also one that visits a device several times.
 */
import type { DeviceName, Program, ProgramOp, TensorId } from '@metashard/core';

export interface SegmentTransfer {
  /** Storage tensor (never a view) made in this segment. */
  tensor: TensorId;
  /** Segment that needs it. */
  to: number;
}

export interface Segment {
  readonly index: number;
  readonly device: DeviceName;
  readonly ops: readonly ProgramOp[];
  /** Storage tensors made by earlier segments and read here; they arrive in this segment's inbox. */
  readonly receives: readonly TensorId[];
  readonly sends: readonly SegmentTransfer[];
  /** Named outputs made here, and after which op (index into `ops`). */
  readonly outputs: readonly { name: string; tensor: TensorId; op: number }[];
  /** Module paths in order of first use. */
  readonly modules: readonly string[];
}

/** The storage tensor behind a view, or the tensor itself. */
export function storageOf(program: Program, id: TensorId): TensorId {
  let at = id;
  for (let tensor = program.tensors[at]; tensor?.kind === 'view'; tensor = program.tensors[at]) at = tensor.of as TensorId;
  return at;
}

/**
 * Ops that need only step inputs and constants (rope tables): cheap, so every segment that uses their results computes them itself.
 */
export function rematerializedOps(program: Program): Set<number> {
  const free = new Set<TensorId>();
  for (const [id, tensor] of program.tensors.entries()) {
    if (tensor.kind === 'input' || tensor.kind === 'constant') free.add(id);
  }
  const found = new Set<number>();
  for (const [index, op] of program.ops.entries()) {
    const inputs = op.inputs.filter((id) => id >= 0).map((id) => storageOf(program, id));
    if (!inputs.every((id) => free.has(id))) continue;
    found.add(index);
    for (const id of op.outputs) free.add(id);
  }
  return found;
}

/** `deviceOfOp[i]` is where op i runs. */
export function cutSegments(program: Program, deviceOfOp: readonly DeviceName[]): Segment[] {
  const free = rematerializedOps(program);
  const producer = new Map<TensorId, number>();
  for (const [index, op] of program.ops.entries()) for (const id of op.outputs) producer.set(id, index);
  const runs = consecutiveRuns(program, deviceOfOp, free);
  const segmentOf = new Map<number, number>();
  for (const [segment, run] of runs.entries()) for (const op of run.ops) segmentOf.set(op, segment);

  const receives = runs.map(() => new Set<TensorId>());
  const sends = runs.map((): SegmentTransfer[] => []);
  for (const [segment, run] of runs.entries()) {
    for (const index of run.ops) {
      for (const id of operands(program, program.ops[index] as ProgramOp)) {
        const made = producer.get(id);
        if (made === undefined || free.has(made)) continue;
        const from = segmentOf.get(made) as number;
        if (from === segment || receives[segment]?.has(id)) continue;
        receives[segment]?.add(id);
        sends[from]?.push({ tensor: id, to: segment });
      }
    }
  }
  return runs.map((run, index) => {
    const ops = withRematerialized(program, run.ops, free, producer).map((i) => program.ops[i] as ProgramOp);
    return {
      index,
      device: run.device,
      ops,
      receives: [...(receives[index] as Set<TensorId>)],
      sends: sends[index] as SegmentTransfer[],
      outputs: outputsOf(program, ops, new Set(run.ops.map((i) => program.ops[i] as ProgramOp))),
      modules: [...new Set(ops.map((op) => op.module))],
    };
  });
}

function operands(program: Program, op: ProgramOp): TensorId[] {
  return op.inputs.filter((id) => id >= 0).map((id) => storageOf(program, id));
}

function consecutiveRuns(program: Program, deviceOfOp: readonly DeviceName[], free: ReadonlySet<number>) {
  const runs: { device: DeviceName; ops: number[] }[] = [];
  for (const index of program.ops.keys()) {
    if (free.has(index)) continue;
    const device = deviceOfOp[index] as DeviceName;
    const last = runs.at(-1);
    if (last !== undefined && last.device === device) last.ops.push(index);
    else runs.push({ device, ops: [index] });
  }
  return runs;
}

/** The run's ops with the rematerialized ones they need, in the Program's order. */
function withRematerialized(
  program: Program,
  ops: readonly number[],
  free: ReadonlySet<number>,
  producer: ReadonlyMap<TensorId, number>,
): number[] {
  const wanted = new Set(ops);
  const pending = [...ops];
  for (let index = pending.pop(); index !== undefined; index = pending.pop()) {
    for (const id of operands(program, program.ops[index] as ProgramOp)) {
      const made = producer.get(id);
      if (made === undefined || !free.has(made) || wanted.has(made)) continue;
      wanted.add(made);
      pending.push(made);
    }
  }
  return [...wanted].sort((a, b) => a - b);
}

/** Named outputs whose tensor is made by one of this segment's own ops. */
function outputsOf(program: Program, ops: readonly ProgramOp[], own: ReadonlySet<ProgramOp>) {
  const found: { name: string; tensor: TensorId; op: number }[] = [];
  for (const [name, tensor] of Object.entries(program.outputs)) {
    const storage = storageOf(program, tensor);
    const op = ops.findIndex((candidate) => own.has(candidate) && candidate.outputs.includes(storage));
    if (op >= 0) found.push({ name, tensor, op });
  }
  return found;
}
