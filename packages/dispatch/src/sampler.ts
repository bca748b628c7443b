/**
 * Chooses the next tokens where the output head is: greedily by the `argmax` op, else by the `sample` op with one
 * uniform number per row and step that depends on seed, row and step alone, so that a row's text does not depend on its
 * batch mates. Keeps the ids a repetition penalty looks at.
 */
import {
  type BufferId,
  type DeviceContext,
  DTYPES,
  guardNative,
  MEMORY_KINDS,
  native,
  opSignature,
  roundUp,
  TENSOR_WORDS,
} from '@metashard/core';
import type { SamplerSizes, SamplingSpec } from './executor-protocol.js';
import { ALIGNMENT } from './program-facts.js';

interface Place {
  buffer: BufferId;
  byteOffset: number;
}

export class Sampler {
  readonly #context: DeviceContext;
  readonly #sizes: SamplerSizes;
  readonly #buffer: BufferId;
  readonly #places: Record<'parameters' | 'uniforms' | 'history' | 'lengths' | 'ids', number>;
  #spec: SamplingSpec | null = null;
  #history: number[][] = [];
  #chosen: number[] = [];

  constructor(context: DeviceContext, sizes: SamplerSizes) {
    this.#context = context;
    this.#sizes = sizes;
    const { sequences, maxSeqLen } = sizes;
    let end = 0;
    const place = (words: number): number => {
      const at = end;
      end += roundUp(words * 4, ALIGNMENT);
      return at;
    };
    this.#places = {
      parameters: place(sequences * 4),
      uniforms: place(sequences),
      history: place(sequences * maxSeqLen),
      lengths: place(sequences),
      ids: place(sequences),
    };
    this.#buffer = context.alloc(end, MEMORY_KINDS.indexOf('activations'));
  }

  begin(spec: SamplingSpec): void {
    this.#spec = spec;
    this.#history = spec.prompts.map((ids) => Array.from(ids));
    this.#chosen = spec.prompts.map(() => 0);
  }

  /** Ids for `rows` (row of the batch per line of logits `[rows, V]` at `logits`). */
  choose(logits: Place, rows: Int32Array, scratch: BufferId): Int32Array {
    const spec = this.#spec as SamplingSpec;
    const plain = !spec.doSample && spec.repetitionPenalty === 1;
    const inputs = plain
      ? [this.#logits(logits, rows.length)]
      : [this.#logits(logits, rows.length), ...this.#writeInputs(spec, rows)];
    const words = new Float64Array(inputs.length * TENSOR_WORDS);
    for (const [i, input] of inputs.entries()) words.set(input, i * TENSOR_WORDS);
    const ids = this.#tensor(this.#places.ids, 'int32', [rows.length]);
    const op = plain ? 'argmax' : 'sample';
    guardNative(this.#context.device.name, op, () =>
      native().callOp(
        this.#context.id,
        opSignature(op).code,
        words,
        Float64Array.from(ids),
        new Float64Array(0),
        plain ? 0 : scratch,
      ),
    );
    const chosen = new Int32Array(rows.length);
    native().read(this.#buffer, this.#places.ids, chosen);
    for (const [i, row] of rows.entries()) {
      this.#history[row]?.push(chosen[i] as number);
      this.#chosen[row] = (this.#chosen[row] ?? 0) + 1;
    }
    return chosen;
  }

  /** Writes parameters, uniforms and history of the rows; returns their encodings in the order of the `sample` op. */
  #writeInputs(spec: SamplingSpec, rows: Int32Array): number[][] {
    const { maxSeqLen } = this.#sizes;
    const temperature = spec.doSample ? spec.temperature : 0;
    const parameters = Float32Array.from(
      { length: rows.length * 4 },
      (_, i) => [temperature, spec.topK, spec.topP, spec.repetitionPenalty][i % 4] as number,
    );
    const uniforms = Float32Array.from(rows, (row) => uniformOf(spec.seed, row, this.#chosen[row] ?? 0));
    const lengths = new Int32Array(rows.length);
    const width = spec.repetitionPenalty === 1 ? 1 : maxSeqLen;
    const history = new Int32Array(rows.length * width);
    if (width > 1) {
      for (const [i, row] of rows.entries()) {
        const seen = (this.#history[row] ?? []).slice(-width);
        lengths[i] = seen.length;
        history.set(seen, i * width);
      }
    }
    const addon = native();
    addon.write(this.#buffer, this.#places.parameters, parameters);
    addon.write(this.#buffer, this.#places.uniforms, uniforms);
    addon.write(this.#buffer, this.#places.history, history);
    addon.write(this.#buffer, this.#places.lengths, lengths);
    return [
      this.#tensor(this.#places.parameters, 'float32', [rows.length, 4]),
      this.#tensor(this.#places.uniforms, 'float32', [rows.length]),
      this.#tensor(this.#places.history, 'int32', [rows.length, width]),
      this.#tensor(this.#places.lengths, 'int32', [rows.length]),
    ];
  }

  #logits(place: Place, rows: number): number[] {
    return encode(place.buffer, place.byteOffset, DTYPES.float32.code, [rows, this.#sizes.vocabSize]);
  }
  #tensor(byteOffset: number, dtype: 'float32' | 'int32', shape: number[]): number[] {
    return encode(this.#buffer, byteOffset, DTYPES[dtype].code, shape);
  }
}

/** A contiguous strided tensor of rank 1 or 2 in TENSOR_WORDS. */
function encode(buffer: BufferId, byteOffset: number, dtype: number, shape: readonly number[]): number[] {
  const words = new Array<number>(TENSOR_WORDS).fill(0);
  words.splice(0, 5, buffer, byteOffset, dtype, 0, shape.length);
  for (const [i, dim] of shape.entries()) {
    words[5 + i] = dim;
    words[9 + i] = i === shape.length - 1 ? 1 : (shape[i + 1] as number);
  }
  return words;
}

/**
 * A number in [0, 1) with 24 bits from (seed, row, step): three rounds of the splitmix32 finalizer (Steele, Lea & Flood
 * 2014).
 */
export function uniformOf(seed: number, row: number, step: number): number {
  let z = 0;
  for (const word of [seed, row, step]) {
    z = (z ^ word) + 0x9e3779b9;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    z ^= z >>> 15;
  }
  return (z >>> 8) / 2 ** 24;
}
