/**
 * What a pickle of tensors is made of. Plain data without behaviour: None is null, an int is a bigint, a float a number,
 * and whatever else a checkpoint may carry is a word for its type.
 */
import type { TorchGlobal } from './torch-globals.js';
import type { TorchStorage } from './torch-storages.js';
import type { TorchTensor } from './torch-tensor.js';

export type PickleValue =
  | null
  | boolean
  | bigint
  | number
  | string
  | PickleTuple
  | PickleList
  | PickleDict
  | PickleOther
  | TorchGlobal
  | TorchStorage
  | TorchTensor;

export class PickleTuple {
  constructor(readonly items: readonly PickleValue[]) {}
}

export class PickleList {
  readonly items: PickleValue[] = [];
}

/** A dict or an OrderedDict; its keys are strings, or numbers and the like that nobody asks for. */
export class PickleDict {
  #entries: Map<PickleValue, PickleValue> | undefined; // most are the empty hooks of a tensor

  get size(): number {
    return this.#entries?.size ?? 0;
  }
  get(key: string): PickleValue | undefined {
    return this.#entries?.get(key);
  }
  has(key: PickleValue): boolean {
    return this.#entries?.has(key) ?? false;
  }
  set(key: PickleValue, value: PickleValue): void {
    this.#entries ??= new Map();
    this.#entries.set(key, value);
  }
  [Symbol.iterator](): Iterator<[PickleValue, PickleValue]> {
    return (this.#entries ?? new Map<PickleValue, PickleValue>()).entries();
  }
}

/** A value that no tensor is made of; only its type is kept. */
export class PickleOther {
  constructor(readonly typeName: 'bytes' | 'device') {}
}
