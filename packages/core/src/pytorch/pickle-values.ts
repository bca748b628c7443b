/**
 * What the pickle of a checkpoint is made of. Plain data without behaviour: None is null, an int is a bigint, a float a
 * number, and whatever else a checkpoint may carry is a word for its type.
 */
import type { TorchDtype } from './torch-dtypes.js';

/** Makes the error of `expected …, got …` at the current place of the pickle. */
export type Fail = (what: string, hint?: string) => Error;

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

/** A dict or an OrderedDict. */
export class PickleDict {
  #entries: Map<PickleValue, PickleValue> | undefined; // most are the empty hooks of a tensor

  get size(): number {
    return this.#entries?.size ?? 0;
  }
  get(key: string): PickleValue | undefined {
    return this.#entries?.get(key);
  }
  [Symbol.iterator](): Iterator<[PickleValue, PickleValue]> {
    return (this.#entries ?? new Map<PickleValue, PickleValue>()).entries();
  }

  /** Adds an item. Throws where the key is there already (two readers must not see two values) or cannot be one. */
  put(key: PickleValue, value: PickleValue, fail: Fail): void {
    if (key instanceof PickleList || key instanceof PickleDict || key instanceof TorchTensor) {
      throw fail(`expected a string or a number as a key, got ${typeName(key)}`);
    }
    this.#entries ??= new Map();
    if (this.#entries.has(key)) {
      const got = typeof key === 'string' ? JSON.stringify(key.slice(0, 100)) : `a key of type ${typeName(key)}`;
      throw fail(`expected every key once, got ${got} twice`);
    }
    this.#entries.set(key, value);
  }
}

/** A value that no tensor is made of; only its type is kept. */
export class PickleOther {
  constructor(readonly typeName: 'bytes' | 'torch.device') {}
}

/** A name of the allow-list. */
export class TorchGlobal {
  constructor(
    /** With its module: `torch.FloatStorage`. */
    readonly name: string,
    readonly role: 'function' | 'class' | 'storage' | 'dtype',
    /** Of a storage or dtype; undefined for functions and classes. */
    readonly dtype: TorchDtype | undefined,
    /** What the name makes of its arguments; undefined for what must not be called. */
    readonly call: ((args: readonly PickleValue[], fail: Fail) => PickleValue) | undefined,
  ) {}
}

/** A storage, or a part of one in old files. */
export class TorchStorage {
  constructor(
    readonly key: string,
    readonly dtype: TorchDtype,
    /** From the start of the storage of that key. */
    readonly byteOffset: number,
    readonly nbytes: number,
  ) {}
}

/** A tensor, checked to lie within its storage. */
export class TorchTensor {
  constructor(
    readonly storage: TorchStorage,
    readonly dtype: TorchDtype,
    /** First element, from the start of `storage`. */
    readonly byteOffset: number,
    readonly nbytes: number,
    readonly shape: readonly number[],
    /** In elements; undefined where the elements lie densely, row by row. */
    readonly strides: readonly number[] | undefined,
  ) {}
}

/** Python's or torch's name of a value's type. */
export function typeName(value: PickleValue | undefined): string {
  if (value === null || value === undefined) return 'None';
  if (value instanceof PickleTuple) return 'tuple';
  if (value instanceof PickleList) return 'list';
  if (value instanceof PickleDict) return 'dict';
  if (value instanceof PickleOther) return value.typeName;
  if (value instanceof TorchTensor) return 'tensor';
  if (value instanceof TorchStorage) return 'storage';
  if (value instanceof TorchGlobal) return value.name;
  return { string: 'str', bigint: 'int', number: 'float', boolean: 'bool' }[typeof value as string] ?? 'object';
}

/** An int from 0 to 2^53 - 1. */
export function wholeNumber(value: PickleValue | undefined, what: string, fail: Fail): number {
  if (typeof value !== 'bigint') throw fail(`expected ${what} as an int, got ${typeName(value)}`);
  if (value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw fail(`expected ${what} from 0 to 2^53 - 1, got ${String(value).slice(0, 40)}`);
  }
  return Number(value);
}
