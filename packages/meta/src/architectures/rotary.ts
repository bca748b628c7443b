/** Inverse frequencies of rotary position embeddings (Su et al. 2021) from the spellings a config.json has for them. */
import type { ConfigReader } from './config-reader.js';

type RopeFields = Record<string, unknown>;

/** The fields each kind of scaling reads; any other one is refused. */
const KIND_FIELDS: Readonly<Record<string, readonly string[]>> = {
  default: [],
  linear: ['factor'],
  llama3: ['factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'],
};
const SHARED_FIELDS = ['type', 'rope_type', 'rope_theta', 'partial_rotary_factor'];

/**
 * [headDim / 2] inverse frequencies in float32, computed in transformers' order. Reads `rope_parameters` (transformers
 * 5), or `rope_theta` and `rope_scaling`; kinds default, linear and llama3. Throws UnsupportedConfigError naming the
 * field for every other kind.
 */
export function inverseFrequencies(reader: ConfigReader, headDim: number, maxPositions: number): Float32Array {
  const parameters = reader.value('rope_parameters', 'rope_scaling');
  const field = reader.raw.rope_parameters == null ? 'rope_scaling' : 'rope_parameters';
  if (parameters !== undefined && (typeof parameters !== 'object' || Array.isArray(parameters))) {
    throw reader.refusal(field, parameters, 'an object');
  }
  const rope: RopeFields = { ...(parameters as RopeFields | undefined) };
  const theta = Number(rope.rope_theta ?? reader.number('rope_theta', { default: 10_000 }));
  if (!(theta > 0)) throw reader.refusal('rope_theta', theta, 'a positive number');
  const kind = String(rope.rope_type ?? rope.type ?? 'default');
  checkFields(reader, field, kind, rope);
  const frequencies = Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const exponent = Math.fround((2 * i) / headDim);
    return 1 / Math.fround(theta ** exponent);
  });
  if (kind === 'linear') return frequencies.map((frequency) => frequency / number(reader, field, rope, 'factor'));
  if (kind === 'llama3')
    return llama3(reader, field, { original_max_position_embeddings: maxPositions, ...rope }, frequencies);
  return frequencies;
}

function checkFields(reader: ConfigReader, field: string, kind: string, rope: RopeFields): void {
  const known = KIND_FIELDS[kind];
  const kinds = Object.keys(KIND_FIELDS).join(', ');
  if (known === undefined) throw reader.refusal(`${field}.rope_type`, kind, `one of ${kinds}`);
  for (const [name, value] of Object.entries(rope)) {
    if (value != null && !known.includes(name) && !SHARED_FIELDS.includes(name)) {
      throw reader.refusal(`${field}.${name}`, value, `no such field for rope_type ${kind}`);
    }
  }
  const partial = rope.partial_rotary_factor ?? reader.value('partial_rotary_factor') ?? 1;
  if (partial !== 1) throw reader.refusal('partial_rotary_factor', partial, '1');
}

function number(reader: ConfigReader, field: string, rope: RopeFields, name: string): number {
  const value = rope[name];
  if (typeof value === 'number' && value > 0) return value;
  throw reader.refusal(`${field}.${name}`, value, 'a positive number');
}

/**
 * Llama 3.1's scaling (Grattafiori et al. 2024): long waves are stretched by `factor`, short ones kept, those between
 * blended.
 */
function llama3(reader: ConfigReader, field: string, rope: RopeFields, frequencies: Float32Array): Float32Array {
  const factor = number(reader, field, rope, 'factor');
  const low = number(reader, field, rope, 'low_freq_factor');
  const high = number(reader, field, rope, 'high_freq_factor');
  const context = number(reader, field, rope, 'original_max_position_embeddings');
  return frequencies.map((frequency) => {
    const wavelength = Math.fround((2 * Math.PI) / frequency);
    if (wavelength > context / low) return frequency / factor;
    if (wavelength < context / high) return frequency;
    const smooth = Math.fround((context / wavelength - low) / (high - low));
    return ((1 - smooth) * frequency) / factor + smooth * frequency;
  });
}
