/**
 * Writes weights of one device into checkpoint files whose headers stand already: read back in windows, 8-bit ones
 * unpacked to rows on the way.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import {
  CheckpointError,
  DTYPES,
  float32ToBfloat16Bits,
  float32ToFloat16Bits,
  guardNative,
  native,
  opSignature,
  type ProgramTensor,
  packedInt8Bytes,
} from '@metashard/core';
import type { DeviceExecutor } from './device-executor.js';
import type { SaveInstruction } from './executor-protocol.js';
import { matrixShape, tensorWords, type WeightPlace } from './load-weights.js';

const WINDOW_BYTES = 8 * 2 ** 20;
/** Rows of a block of the packed layout: rows that start at a multiple of it can be unpacked by themselves. */
const BLOCK_ROWS = 16;

/** Throws CheckpointError naming the file when it cannot be written. */
export function saveWeights(executor: DeviceExecutor, instructions: readonly SaveInstruction[]): void {
  const files = new Map<string, number>();
  try {
    for (const instruction of instructions) {
      const { file } = instruction;
      const descriptor = files.get(file) ?? openSync(file, 'r+');
      files.set(file, descriptor);
      saveTensor(executor, instruction, descriptor);
    }
  } catch (error) {
    if (error instanceof Error && 'syscall' in error)
      throw new CheckpointError(`save: ${error.message}`, { cause: error });
    throw error;
  } finally {
    for (const descriptor of files.values()) closeSync(descriptor);
  }
}

function saveTensor(executor: DeviceExecutor, instruction: SaveInstruction, descriptor: number): void {
  const { tensor, offset, transposed, dequantize } = instruction;
  const spec = executor.setup.program.tensors[tensor] as ProgramTensor;
  const [rows, columns] = matrixShape(spec.dims as readonly number[]);
  const write = (bytes: Uint8Array, at: number): void => {
    for (let done = 0; done < bytes.length; )
      done += writeSync(descriptor, bytes, done, bytes.length - done, offset + at + done);
  };
  const place = executor.present(tensor);
  if (dequantize !== undefined) dequantizeRows(executor, instruction, rows, columns, write);
  else if (spec.layout === 'packed_int8') unpackRows(executor, place, rows, columns, write);
  else if (transposed) turnOut(executor, place, [rows, columns, DTYPES[spec.dtype].bytes], write);
  else copyOut(executor, place, rows * columns * DTYPES[spec.dtype].bytes, write);
}

function copyOut(
  executor: DeviceExecutor,
  place: WeightPlace,
  bytes: number,
  write: (bytes: Uint8Array, at: number) => void,
): void {
  for (let at = 0; at < bytes; at += WINDOW_BYTES) {
    const window = new Uint8Array(Math.min(WINDOW_BYTES, bytes - at));
    guardNative(executor.setup.device, 'read', () => native().read(place.buffer, place.byteOffset + at, window));
    write(window, at);
  }
}

/** A float matrix with its dimensions swapped: read whole, written in windows of its columns. */
function turnOut(
  executor: DeviceExecutor,
  place: WeightPlace,
  [rows, columns, elementBytes]: readonly [number, number, number],
  write: (bytes: Uint8Array, at: number) => void,
): void {
  const Elements = elementBytes === 2 ? Uint16Array : Uint32Array;
  const held = new Elements(rows * columns);
  guardNative(executor.setup.device, 'read', () => native().read(place.buffer, place.byteOffset, held));
  const perWindow = Math.max(1, Math.floor(WINDOW_BYTES / (rows * elementBytes)));
  for (let column = 0; column < columns; column += perWindow) {
    const count = Math.min(perWindow, columns - column);
    const window = new Elements(count * rows);
    for (let c = 0; c < count; c++) {
      for (let r = 0; r < rows; r++) window[c * rows + r] = held[r * columns + column + c] as number;
    }
    write(new Uint8Array(window.buffer), column * rows * elementBytes);
  }
}

/** An 8-bit table in float: CB · SCB / 127 rounded to the dtype. */
function dequantizeRows(
  executor: DeviceExecutor,
  { tensor, dequantize }: SaveInstruction,
  rows: number,
  columns: number,
  write: (bytes: Uint8Array, at: number) => void,
): void {
  const { scales, dtype } = dequantize as NonNullable<SaveInstruction['dequantize']>;
  const SCB = new Float32Array(rows);
  const { buffer, byteOffset } = executor.present(scales);
  guardNative(executor.setup.device, 'read', () => native().read(buffer, byteOffset, SCB));
  const bits = dtype === 'float16' ? float32ToFloat16Bits : dtype === 'bfloat16' ? float32ToBfloat16Bits : undefined;
  unpackRows(executor, executor.present(tensor), rows, columns, (bytes, at) => {
    const codes = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
    const floats = bits === undefined ? new Float32Array(codes.length) : new Uint16Array(codes.length);
    for (let i = 0, row = at / columns; i < codes.length; row++) {
      const scale = SCB[row] as number;
      for (let column = 0; column < columns; column++, i++) {
        const value = Math.fround(((codes[i] as number) * scale) / 127);
        floats[i] = bits === undefined ? value : bits(value);
      }
    }
    write(new Uint8Array(floats.buffer), at * floats.BYTES_PER_ELEMENT);
  });
}

/**
 * Through the device's work space, which always has room for a few blocks: an int8 linear's scratch, or the rows an
 * int8 table gave.
 */
function unpackRows(
  executor: DeviceExecutor,
  place: WeightPlace,
  rows: number,
  columns: number,
  write: (bytes: Uint8Array, at: number) => void,
): void {
  const { context, setup } = executor;
  const { buffer: scratch, bytes: room } = executor.workSpace;
  const window = Math.min(WINDOW_BYTES, room);
  const perWindow = Math.max(BLOCK_ROWS, Math.floor(window / Math.max(columns, 1) / BLOCK_ROWS) * BLOCK_ROWS);
  for (let row = 0; row < rows; row += perWindow) {
    const count = Math.min(perWindow, rows - row);
    const packed = tensorWords(
      { ...place, byteOffset: place.byteOffset + packedInt8Bytes(row, columns) },
      { dims: [count, columns], dtype: 'int8', layout: 'packed_int8' },
    );
    const dense = tensorWords(
      { buffer: scratch, byteOffset: 0 },
      { dims: [count, columns], dtype: 'int8', layout: 'strided' },
    );
    const bytes = new Uint8Array(count * columns);
    guardNative(setup.device, 'unpack_int8', () => {
      native().callOp(context.id, opSignature('unpack_int8').code, packed, dense, new Float64Array(0), 0);
      native().read(scratch, 0, bytes);
    });
    write(bytes, row * columns);
  }
}
