/**
 * How `loadStateDict` works: each module plans what it takes from the map (`Module.planLoad`), everything is checked,
 * then everything is applied; a load that throws has changed nothing. Files are read elsewhere.
 */
import { CheckpointError, DTYPES, type DType, formatDims, sameDims, type Tensor } from '@metashard/core';
import { Parameter } from './parameter.js';

/** A value of a state dict. Old bitsandbytes checkpoints give `weight_format` as a word or a number. */
export type StateValue = Tensor | string | number;
export type StateSource = ReadonlyMap<string, StateValue>;

export interface LoadStateDictOptions {
  /** Throw when a tensor is missing or unexpected. Shapes and dtypes are always checked. */
  strict?: boolean;
}

export interface LoadResult {
  missing: string[];
  unexpected: string[];
}

/** What the modules of a tree made of a map so far. */
export class LoadPlan {
  readonly #actions: (() => void)[] = [];
  readonly #used = new Set<string>();
  readonly #missing: { key: string; target: Tensor }[] = [];
  readonly #found = new Set<Tensor>();
  readonly #problems: string[] = [];

  constructor(readonly source: StateSource) {}

  /** The value under `key`, marked as used. */
  take(key: string): StateValue | undefined {
    const value = this.source.get(key);
    if (value !== undefined) this.#used.add(key);
    return value;
  }

  missing(key: string, target: Tensor): void {
    this.#missing.push({ key, target });
  }
  problem(message: string): void {
    this.#problems.push(message);
  }
  /** `target` gets its value from `apply`; its other names need not be in the map. */
  found(target: Tensor, apply: () => void): void {
    this.#found.add(target);
    this.#actions.push(apply);
  }

  /**
   * The ordinary case: a tensor of the target's shape, and of any float dtype where `dtype` is one, else of `dtype`.
   */
  takeTensor(key: string, target: Tensor, load: (value: Tensor) => void, dtype: DType = target.dtype): void {
    const value = this.take(key);
    const dims = target instanceof Parameter ? target.storedDims : target.dims;
    if (value === undefined) this.missing(key, target);
    else if (typeof value !== 'object') this.problem(`${key}: expected a tensor, got ${JSON.stringify(value)}`);
    else if (!sameDims(value.dims, dims)) {
      this.problem(`${key}: expected shape ${formatDims(dims)}, got ${formatDims(value.dims)}`);
    } else if (value.dtype !== dtype && !(DTYPES[value.dtype].isFloat && DTYPES[dtype].isFloat)) {
      this.problem(`${key}: expected ${dtype}, got ${value.dtype}`);
    } else this.found(target, () => load(value));
  }

  /** Applies the plan. Throws CheckpointError before anything has changed. */
  apply(strict: boolean): LoadResult {
    const missing = this.#missing.filter(({ target }) => !this.#found.has(target)).map(({ key }) => key);
    const unexpected = [...this.source.keys()].filter((key) => !this.#used.has(key));
    if (this.#problems.length > 0) {
      throw new CheckpointError(`loadStateDict: ${listed(this.#problems, '; ')}`, {
        details: { problems: this.#problems },
        ...(this.#problems.some((line) => line.endsWith('got int8')) && {
          hint: 'weights saved in 8 bits load into Linear8bitLt layers; replaceLinear makes them',
        }),
      });
    }
    if (strict && missing.length + unexpected.length > 0) {
      const parts = [
        ...(missing.length > 0 ? [`missing ${listed(missing, ', ')}`] : []),
        ...(unexpected.length > 0 ? [`unexpected ${listed(unexpected, ', ')}`] : []),
      ];
      throw new CheckpointError(
        `loadStateDict: expected every tensor of the module and no other, ${parts.join('; ')}`,
        {
          details: { missing, unexpected },
          hint: 'strict: false loads what matches',
        },
      );
    }
    for (const action of this.#actions) action();
    return { missing, unexpected };
  }
}

function listed(items: readonly string[], separator: string): string {
  const shown = items.slice(0, 5).join(separator);
  return items.length > 5 ? `${shown}${separator}and ${items.length - 5} more` : shown;
}
