/**
 * What a refusal says: the device that binds, how much more memory would make the model fit, and the largest batch ×
 * context that fits as it is. Found by placing and planning again, never by a formula of its own.
 */
import { formatBytes, InsufficientMemoryError, KV_BLOCK_SIZE, type Program } from '@metashard/core';
import type { DeviceBudget } from './devices.js';
import type { PartitionProblem } from './partition.js';
import type { Stage } from './placement.js';

/** How near the missing memory is found: less than what a plan shows. */
const RESOLUTION_BYTES = 2 ** 20;

/** Ends a hint that names no size that fits. */
const LOWER = ', or lower max_seq_len or max_batch_size';

/** A placement, and which device streams what does not fit, if any is to. */
export interface FoundStages {
  stages: readonly Stage[];
  streamer?: number | undefined;
}

/**
 * The error for devices over which `place` finds no placement. As much more is offered on every device as makes it find
 * one; of that placement, the device that is short the most binds.
 */
export function doesNotFit(
  program: Program,
  devices: readonly DeviceBudget[],
  { ranges, capacities }: PartitionProblem,
  place: (capacities: readonly number[]) => FoundStages | undefined,
): InsufficientMemoryError {
  const placeWith = (extra: number) => place(capacities.map((capacity) => capacity + extra));
  let tooLittle = 0;
  let extraBytes = ranges.bytes(0, ranges.units.length) - Math.min(0, ...capacities);
  let found = placeWith(extraBytes);
  while (extraBytes - tooLittle > RESOLUTION_BYTES) {
    const middle = Math.floor((tooLittle + extraBytes) / 2);
    const tried = placeWith(middle);
    if (tried === undefined) tooLittle = middle;
    else [extraBytes, found] = [middle, tried];
  }
  // A head that returns to the first device shares its table: the first visit counts.
  const visits = (found?.stages ?? []).filter(
    ({ device }, i, all) => all.findIndex((one) => one.device === device) === i,
  );
  const short = ({ device, from, to }: Stage): number => ranges.bytes(from, to) - (capacities[device] as number);
  const worst = visits.toSorted((a, b) => short(b) - short(a))[0]?.device;
  const { name, budgetBytes } = devices[found?.streamer ?? worst ?? 0] as DeviceBudget;
  return shortOfMemory(program, devices.length, { what: 'model', name, budgetBytes, extraBytes });
}

/** `extraBytes`: what each device needs more at most. */
export function shortOfMemory(
  { tensors }: Program,
  devices: number,
  { what, name, budgetBytes, extraBytes }: { what: string; name: string; budgetBytes: number; extraBytes: number },
): InsufficientMemoryError {
  const neededBytes = budgetBytes + extraBytes;
  const isInt8 = tensors.some(({ kind, dtype }) => kind === 'weight' && dtype === 'int8');
  const others = isInt8 ? 'or add a device' : 'add a device, or set load_in_8bit';
  const more = `offer ${formatBytes(extraBytes)} more on ${devices > 1 ? 'each device' : name} (max_memory)`;
  return new InsufficientMemoryError(
    `${what} does not fit: ${name} needs ${formatBytes(neededBytes)}, ${formatBytes(budgetBytes)} available`,
    {
      hint: `${more}, ${others}${LOWER}`,
      details: { device: name, neededBytes, availableBytes: budgetBytes, extraBytes },
    },
  );
}

/** The largest step: sequences at once, and the tokens of each. */
export interface StepSize {
  maxBatchSize: number;
  maxSeqLen: number;
}

/**
 * Plans; where memory is short, plans smaller steps as well and says which would fit: `details.fits`, a shorter context
 * for as many sequences and fewer sequences of the same context, else one sequence. Throws what `plan` throws for what
 * was asked.
 */
export function planOrAdvise<Planned>(asked: StepSize, plan: (step: StepSize) => Planned): Planned {
  try {
    return plan(asked);
  } catch (error) {
    if (!(error instanceof InsufficientMemoryError)) throw error;
    const fits = largestSteps(asked, (step) => doesPlan(() => plan(step)));
    const steps = fits.map(({ maxBatchSize, maxSeqLen }) => `${maxBatchSize} × ${maxSeqLen}`).join(' or ');
    const largest =
      steps === '' ? 'no smaller batch or context fits;' : `max_batch_size × max_seq_len of ${steps} fits; or`;
    throw new InsufficientMemoryError(error.message, {
      hint: `${largest} ${error.hint?.replace(LOWER, '')}`,
      details: { ...error.details, fits },
      cause: error.cause,
    });
  }
}

function doesPlan(plan: () => unknown): boolean {
  try {
    plan();
    return true;
  } catch (error) {
    if (error instanceof InsufficientMemoryError) return false;
    throw error;
  }
}

function largestSteps({ maxBatchSize, maxSeqLen }: StepSize, fits: (step: StepSize) => boolean): StepSize[] {
  const contextFor = (batch: number): StepSize[] => {
    const blocks = largestFitting(Math.ceil(maxSeqLen / KV_BLOCK_SIZE) - 1, (count) =>
      fits({ maxBatchSize: batch, maxSeqLen: count * KV_BLOCK_SIZE }),
    );
    return blocks === 0 ? [] : [{ maxBatchSize: batch, maxSeqLen: blocks * KV_BLOCK_SIZE }];
  };
  const batch = largestFitting(maxBatchSize - 1, (count) => fits({ maxBatchSize: count, maxSeqLen }));
  const steps = [...contextFor(maxBatchSize), ...(batch === 0 ? [] : [{ maxBatchSize: batch, maxSeqLen }])];
  return steps.length > 0 || maxBatchSize === 1 ? steps : contextFor(1);
}

/** The largest whole number from 1 to `most` that fits, by halving; 0 where none does. What is smaller fits, too. */
function largestFitting(most: number, fits: (count: number) => boolean): number {
  let [enough, tooMany] = [0, most + 1];
  while (tooMany - enough > 1) {
    const middle = Math.floor((enough + tooMany) / 2);
    if (fits(middle)) enough = middle;
    else tooMany = middle;
  }
  return enough;
}
