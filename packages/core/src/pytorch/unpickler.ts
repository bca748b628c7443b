/**
 * Reads the pickles of PyTorch checkpoints: an allow-list of opcodes that build tuples, lists, dicts, strings and
 * numbers, and names that torch-globals.ts knows. It describes tensors and can do nothing else; every quantity is
 * bounded, and time is linear in the bytes.
 * Opcodes: Python's pickletools; protocols 2 to 5, of which PyTorch writes 2 unless told otherwise.
 */
import type { PickleInput } from './pickle-input.js';
import { PickleDict, PickleList, PickleOther, PickleTuple, type PickleValue } from './pickle-values.js';
import { findGlobal, putItem, TorchGlobal } from './torch-globals.js';
import type { TorchStorages } from './torch-storages.js';

/** A tensor takes about 40 opcodes, 8 entries of the memo and 7 values: room for a quarter of a million tensors. */
const LIMITS = { opcodes: 16_000_000, values: 2_000_000, memo: 2_000_000, stack: 1_000_000, marks: 1_000 };

const EMPTY_TUPLE = new PickleTuple([]);

/** Opcodes of Python that are not on the list, so that errors can name them. */
const REFUSED: Readonly<Record<number, string>> = {
  40: 'MARK', 48: 'POP', 49: 'POP_MARK', 50: 'DUP', 70: 'FLOAT', 73: 'INT', 76: 'LONG', 80: 'PERSID', 83: 'STRING',
  86: 'UNICODE', 100: 'DICT', 103: 'GET', 105: 'INST', 108: 'LIST', 111: 'OBJ', 112: 'PUT', 129: 'NEWOBJ', 130: 'EXT1',
  131: 'EXT2', 132: 'EXT4', 143: 'EMPTY_SET', 144: 'ADDITEMS', 145: 'FROZENSET', 146: 'NEWOBJ_EX', 150: 'BYTEARRAY8',
  151: 'NEXT_BUFFER', 152: 'READONLY_BUFFER',
}; // biome-ignore format: a table

type Run = (machine: Unpickler, input: PickleInput) => void;

/** Reads one pickle and leaves `input` after it. Throws CheckpointError. */
export function unpickle(input: PickleInput, storages: TorchStorages): PickleValue {
  return new Unpickler(input, storages).load();
}
