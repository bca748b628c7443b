/**
 * Reads the pickles of PyTorch checkpoints: an allow-list of opcodes that build tuples, lists, dicts, strings and
 * numbers, and names that torch-globals.ts knows. It describes tensors and can do nothing else; every quantity is
 * bounded, and time is linear in the bytes.
 * Opcodes: Python's pickletools; protocols 2 to 5, of which PyTorch writes 2 unless told otherwise.
 */
import type { PickleInput } from './pickle-input.js';
import {
  type Fail,
  PickleDict,
  PickleList,
  PickleOther,
  PickleTuple,
  type PickleValue,
  TorchGlobal,
  TorchTensor,
  typeName,
} from './pickle-values.js';
import { findGlobal } from './torch-globals.js';
import type { TorchStorages } from './torch-storages.js';

/** A tensor takes about 40 opcodes, 8 entries of the memo and 7 values: room for 200,000 tensors. */
const LIMITS = { opcodes: 8_000_000, values: 1_500_000, memo: 2_000_000, stack: 1_000_000, marks: 1_000 };

/** Longest whole number, in bytes. */
const MAX_INTEGER_BYTES = 255;

/** Python's other opcodes, so that errors can name them. */
const REFUSED: ReadonlyMap<number, string> = new Map(
  [
    '0 POP, 1 POP_MARK, 2 DUP, F FLOAT, I INT, L LONG, P PERSID, S STRING, V UNICODE, d DICT, g GET, i INST, l LIST',
    'o OBJ, p PUT, \x81 NEWOBJ, \x82 EXT1, \x83 EXT2, \x84 EXT4, \x8f EMPTY_SET, \x90 ADDITEMS, \x91 FROZENSET',
    '\x92 NEWOBJ_EX, \x96 BYTEARRAY8, \x97 NEXT_BUFFER, \x98 READONLY_BUFFER',
  ]
    .join(', ')
    .split(', ')
    .map((one) => [one.charCodeAt(0), one.slice(2)]),
);

/** Reads one pickle and leaves `input` after it. Throws CheckpointError. */
export function unpickle(input: PickleInput, storages: TorchStorages): PickleValue {
  return new Unpickler(input, storages).load();
}

type Run = (machine: Unpickler) => void;

class Unpickler {
  readonly #input: PickleInput;
  readonly #storages: TorchStorages;
  readonly #stack: PickleValue[] = [];
  /** Heights of the stack at the open marks. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, PickleValue>();
  readonly #fail: Fail = (what, hint) => this.#input.fail(what, hint);
  #values = 0;
  #running = true;

  /** What there is: opcode, name, meaning. */
  static readonly #OPCODES: ReadonlyMap<number, readonly [name: string, run: Run]> = new Map<
    number,
    readonly [string, Run]
  >([
    [0x80, ['PROTO', (m) => m.#protocol()]],
    [0x95, ['FRAME', (m) => void m.#input.uint64()]],
    [0x2e, ['STOP', (m) => m.#stop()]],
    [0x28, ['MARK', (m) => m.#mark()]],
    [0x4e, ['NONE', (m) => m.#push(null)]],
    [0x88, ['NEWTRUE', (m) => m.#push(true)]],
    [0x89, ['NEWFALSE', (m) => m.#push(false)]],
    [0x4b, ['BININT1', (m) => m.#push(BigInt(m.#input.uint8()))]],
    [0x4d, ['BININT2', (m) => m.#push(BigInt(m.#input.uint16()))]],
    [0x4a, ['BININT', (m) => m.#push(BigInt(m.#input.int32()))]],
    [0x8a, ['LONG1', (m) => m.#integer(m.#input.uint8())]],
    [0x8b, ['LONG4', (m) => m.#integer(m.#input.uint32())]],
    [0x47, ['BINFLOAT', (m) => m.#push(m.#input.float64())]],
    [0x55, ['SHORT_BINSTRING', (m) => m.#string(m.#input.uint8())]],
    [0x54, ['BINSTRING', (m) => m.#string(m.#input.uint32())]],
    [0x8c, ['SHORT_BINUNICODE', (m) => m.#string(m.#input.uint8())]],
    [0x58, ['BINUNICODE', (m) => m.#string(m.#input.uint32())]],
    [0x8d, ['BINUNICODE8', (m) => m.#string(m.#input.uint64())]],
    [0x43, ['SHORT_BINBYTES', (m) => m.#bytes(m.#input.uint8())]],
    [0x42, ['BINBYTES', (m) => m.#bytes(m.#input.uint32())]],
    [0x8e, ['BINBYTES8', (m) => m.#bytes(m.#input.uint64())]],
    [0x29, ['EMPTY_TUPLE', (m) => m.#tuple(0)]],
    [0x85, ['TUPLE1', (m) => m.#tuple(1)]],
    [0x86, ['TUPLE2', (m) => m.#tuple(2)]],
    [0x87, ['TUPLE3', (m) => m.#tuple(3)]],
    [0x74, ['TUPLE', (m) => m.#make(new PickleTuple(m.#popMark()))]],
    [0x5d, ['EMPTY_LIST', (m) => m.#make(new PickleList())]],
    [0x61, ['APPEND', (m) => m.#append([m.#pop()])]],
    [0x65, ['APPENDS', (m) => m.#append(m.#popMark())]],
    [0x7d, ['EMPTY_DICT', (m) => m.#make(new PickleDict())]],
    [0x73, ['SETITEM', (m) => m.#setItems(m.#popMany(2))]],
    [0x75, ['SETITEMS', (m) => m.#setItems(m.#popMark())]],
    [0x63, ['GLOBAL', (m) => m.#push(findGlobal(m.#input.line(), m.#input.line(), m.#fail))]],
    [0x93, ['STACK_GLOBAL', (m) => m.#stackGlobal()]],
    [0x52, ['REDUCE', (m) => m.#reduce()]],
    [0x62, ['BUILD', (m) => m.#build()]],
    [0x51, ['BINPERSID', (m) => m.#make(m.#storages.find(m.#pop(), m.#fail))]],
    [0x71, ['BINPUT', (m) => m.#put(m.#input.uint8())]],
    [0x72, ['LONG_BINPUT', (m) => m.#put(m.#input.uint32())]],
    [0x94, ['MEMOIZE', (m) => m.#put(m.#memo.size)]],
    [0x68, ['BINGET', (m) => m.#get(m.#input.uint8())]],
    [0x6a, ['LONG_BINGET', (m) => m.#get(m.#input.uint32())]],
  ]);

  constructor(input: PickleInput, storages: TorchStorages) {
    this.#input = input;
    this.#storages = storages;
  }

  load(): PickleValue {
    const first = this.#input.uint8();
    if (first !== 0x80) throw this.#refused(first, 'PROTO');
    this.#protocol();
    for (let count = 1; this.#running; count++) {
      if (count > LIMITS.opcodes) throw this.#fail(`expected at most ${LIMITS.opcodes} opcodes, got more`);
      const code = this.#input.uint8();
      const opcode = Unpickler.#OPCODES.get(code);
      if (opcode === undefined) {
        throw this.#refused(code, `one of ${[...Unpickler.#OPCODES.values()].map(([name]) => name).join(', ')}`);
      }
      opcode[1](this);
    }
    return this.#pop();
  }

  #refused(code: number, expected: string): Error {
    const name = REFUSED.get(code) ?? Unpickler.#OPCODES.get(code)?.[0] ?? 'no opcode';
    return this.#fail(`expected the opcode ${expected}, got ${name} (0x${code.toString(16).padStart(2, '0')})`);
  }

  #protocol(): void {
    const protocol = this.#input.uint8();
    if (protocol < 2 || protocol > 5) throw this.#fail(`expected pickle protocol 2 to 5, got ${protocol}`);
  }

  /** Ends the pickle; exactly its value must be left. */
  #stop(): void {
    if (this.#stack.length !== 1 || this.#marks.length > 0) {
      throw this.#fail(`expected one value at the end, got ${this.#stack.length} and ${this.#marks.length} open marks`);
    }
    this.#running = false;
  }

  #push(value: PickleValue): void {
    if (this.#stack.length >= LIMITS.stack)
      throw this.#fail(`expected at most ${LIMITS.stack} stacked values, got more`);
    this.#stack.push(value);
  }

  /** Pushes a value that takes memory of its own. */
  #make(value: PickleValue): void {
    if (++this.#values > LIMITS.values) throw this.#fail(`expected at most ${LIMITS.values} containers, got more`);
    this.#push(value);
  }

  /** How many values lie above the last open mark. */
  get #height(): number {
    return this.#stack.length - (this.#marks.at(-1) ?? 0);
  }

  #pop(): PickleValue {
    if (this.#height < 1) throw this.#fail('expected a value on the stack, got none');
    return this.#stack.pop() as PickleValue;
  }

  #popMany(count: number): PickleValue[] {
    if (this.#height < count) throw this.#fail(`expected ${count} values on the stack, got ${this.#height}`);
    return count === 0 ? [] : this.#stack.splice(-count);
  }

  #mark(): void {
    if (this.#marks.length >= LIMITS.marks) throw this.#fail(`expected at most ${LIMITS.marks} open marks, got more`);
    this.#marks.push(this.#stack.length);
  }

  /** Values above the last mark, which is removed. */
  #popMark(): PickleValue[] {
    const start = this.#marks.pop();
    if (start === undefined) throw this.#fail('expected a mark on the stack, got none');
    return this.#stack.splice(start);
  }

  #top(what: string): PickleValue {
    if (this.#height < 1) throw this.#fail(`expected ${what} on the stack, got none`);
    return this.#stack.at(-1) as PickleValue;
  }

  #integer(length: number): void {
    if (length > MAX_INTEGER_BYTES)
      throw this.#fail(`expected an int of at most ${MAX_INTEGER_BYTES} bytes, got ${length}`);
    this.#push(this.#input.integer(length));
  }

  #string(length: number): void {
    this.#push(this.#input.string(length));
  }

  #bytes(length: number): void {
    this.#input.skip(length);
    this.#make(new PickleOther('bytes'));
  }

  #tuple(count: number): void {
    this.#make(new PickleTuple(this.#popMany(count)));
  }

  #append(items: readonly PickleValue[]): void {
    const list = this.#top('a list');
    if (!(list instanceof PickleList)) throw this.#fail(`expected a list to append to, got ${typeName(list)}`);
    for (const item of items) list.items.push(item);
  }

  #setItems(items: readonly PickleValue[]): void {
    const dict = this.#top('a dict');
    if (!(dict instanceof PickleDict)) throw this.#fail(`expected a dict to add to, got ${typeName(dict)}`);
    if (items.length % 2 !== 0) throw this.#fail(`expected keys and values, got ${items.length} values`);
    for (let i = 0; i < items.length; i += 2) {
      dict.put(items[i] as PickleValue, items[i + 1] as PickleValue, this.#fail);
    }
  }

  #stackGlobal(): void {
    const [module, name] = this.#popMany(2);
    if (typeof module !== 'string' || typeof name !== 'string') {
      throw this.#fail(`expected a module and a name, got ${typeName(module)} and ${typeName(name)}`);
    }
    this.#push(findGlobal(module, name, this.#fail));
  }

  /** Calls a function of the allow-list, which describes and never does anything. */
  #reduce(): void {
    const [callee, args] = this.#popMany(2);
    if (!(callee instanceof TorchGlobal) || callee.call === undefined) {
      throw this.#fail(`expected a function that makes tensors, got ${typeName(callee)}`);
    }
    if (!(args instanceof PickleTuple)) throw this.#fail(`expected a tuple of arguments, got ${typeName(args)}`);
    this.#make(callee.call(args.items, this.#fail));
  }

  /** Attributes of an OrderedDict (`_metadata`) or of a tensor are dropped. */
  #build(): void {
    const state = this.#pop();
    const target = this.#top('an object');
    if (!(target instanceof PickleDict || target instanceof TorchTensor) || !(state instanceof PickleDict)) {
      throw this.#fail(`expected attributes of a dict, got ${typeName(state)} for ${typeName(target)}`);
    }
  }

  #put(index: number): void {
    const value = this.#top('a value to keep');
    if (this.#memo.size >= LIMITS.memo) throw this.#fail(`expected at most ${LIMITS.memo} kept values, got more`);
    this.#memo.set(index, value);
  }

  #get(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) throw this.#fail(`expected a kept value ${index}, got none`);
    this.#push(value);
  }
}
