/**
 * Cuts a Program into segments: runs of consecutive ops on one device, in order of execution. Decides which tensors
 * cross from one segment to a later one. Knows nothing of bytes or threads; any map works, also one that visits a
 * device several times.
 */
import type { DeviceName, Program, ProgramOp, TensorId } from '@metashard/core';
import type { ProgramFacts } from './program-facts.js';

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

/** `deviceOfOp[i]` is where op i runs. */
export function cutSegments(facts: ProgramFacts, deviceOfOp: readonly DeviceName[]): Segment[] {
  const { program, rematerialized: free, producer } = facts;
  const runs = consecutiveRuns(program, deviceOfOp, free);
  const segmentOf = new Map<number, number>();
  for (const [segment, run] of runs.entries()) for (const op of run.ops) segmentOf.set(op, segment);

  const receives = runs.map(() => new Set<TensorId>());
  const sends = runs.map((): SegmentTransfer[] => []);
  for (const [segment, run] of runs.entries()) {
    for (const index of run.ops) {
      for (const id of operands(facts, program.ops[index] as ProgramOp)) {
        const made = producer[id] as number;
        if (made < 0 || free.has(made)) continue;
        const from = segmentOf.get(made) as number;
        if (from === segment || receives[segment]?.has(id)) continue;
        receives[segment]?.add(id);
        sends[from]?.push({ tensor: id, to: segment });
      }
    }
  }
  return runs.map((run, index) => {
    const ops = withRematerialized(facts, run.ops).map((i) => program.ops[i] as ProgramOp);
    return {
      index,
      device: run.device,
      ops,
      receives: [...(receives[index] as Set<TensorId>)],
      sends: sends[index] as SegmentTransfer[],
      outputs: outputsOf(facts, ops, new Set(run.ops.map((i) => program.ops[i] as ProgramOp))),
      modules: [...new Set(ops.map((op) => op.module))],
    };
  });
}

function operands(facts: ProgramFacts, op: ProgramOp): TensorId[] {
  return op.inputs.filter((id) => id >= 0).map((id) => facts.storageOf(id));
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
function withRematerialized(facts: ProgramFacts, ops: readonly number[]): number[] {
  const { program, rematerialized: free, producer } = facts;
  if (free.size === 0) return [...ops];
  const wanted = new Set(ops);
  const pending = [...ops];
  for (let index = pending.pop(); index !== undefined; index = pending.pop()) {
    for (const id of operands(facts, program.ops[index] as ProgramOp)) {
      const made = producer[id] as number;
      if (made < 0 || !free.has(made) || wanted.has(made)) continue;
      wanted.add(made);
      pending.push(made);
    }
  }
  return [...wanted].sort((a, b) => a - b);
}

/** Named outputs whose tensor is made by one of this segment's own ops. */
function outputsOf(facts: ProgramFacts, ops: readonly ProgramOp[], own: ReadonlySet<ProgramOp>) {
  const found: { name: string; tensor: TensorId; op: number }[] = [];
  for (const [name, tensor] of Object.entries(facts.program.outputs)) {
    const storage = facts.storageOf(tensor);
    const made = facts.program.ops[facts.producer[storage] as number];
    if (made === undefined || !own.has(made)) continue;
    const op = ops.indexOf(made);
    if (op >= 0) found.push({ name, tensor, op });
  }
  return found;
}
