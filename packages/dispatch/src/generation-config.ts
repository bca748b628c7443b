/**
 * generation_config.json: the end tokens and sampling defaults a model comes with. Fields that would change the text
 * and are not implemented are refused by name, unless they are set to the value that changes nothing. What a call asks
 * for wins over all of this (`generate.ts`).
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CheckpointError, UnsupportedConfigError } from '@metashard/core';

/** Token ids as config.json names them, for folders whose generation_config.json leaves them out. */
export interface ModelTokenIds {
  bosTokenId?: number | null;
  eosTokenId?: number | readonly number[] | null;
  padTokenId?: number | null;
}

export interface GenerationDefaults {
  /** Any of them ends a sequence; empty: none does. */
  eosTokenIds: number[];
  bosTokenId: number | null;
  padTokenId: number | null;
  doSample: boolean;
  /** Set only where the file sets them. */
  temperature?: number;
  topK?: number;
  topP?: number;
  repetitionPenalty?: number;
  maxNewTokens?: number;
  /** Prompt and new tokens together; maxNewTokens wins over it. */
  maxLength?: number;
  stop?: string[];
  /** Fields that metashard neither honours nor knows to be neutral. */
  ignoredFields: string[];
}

type Json = Readonly<Record<string, unknown>>;

const MAX_FILE_BYTES = 2 ** 20;

/** Fields that change the text and are not implemented, each with the values that change nothing (null always does). */
const UNSUPPORTED: Readonly<Record<string, readonly unknown[]>> = {
  num_beams: [1],
  num_beam_groups: [1],
  num_return_sequences: [1],
  typical_p: [1],
  min_p: [0],
  top_h: [],
  epsilon_cutoff: [0],
  eta_cutoff: [0],
  penalty_alpha: [0],
  guidance_scale: [1],
  encoder_repetition_penalty: [1],
  no_repeat_ngram_size: [0],
  encoder_no_repeat_ngram_size: [0],
  diversity_penalty: [0],
  min_length: [0],
  min_new_tokens: [0],
  max_time: [],
  bad_words_ids: [],
  force_words_ids: [],
  constraints: [],
  suppress_tokens: [],
  begin_suppress_tokens: [],
  sequence_bias: [],
  forced_bos_token_id: [],
  forced_eos_token_id: [],
  forced_decoder_ids: [],
  exponential_decay_length_penalty: [],
  watermarking_config: [],
  dola_layers: [],
  remove_invalid_values: [false],
  token_healing: [false],
};

/**
 * Fields that are honoured above, describe the file, say how fast or what else to return, or matter only to beams,
 * which are refused.
 */
const NEUTRAL = new Set(
  `bos_token_id eos_token_id pad_token_id do_sample temperature top_k top_p repetition_penalty max_new_tokens max_length stop_strings
  _from_model_config transformers_version use_cache cache_implementation cache_config return_legacy_cache low_memory renormalize_logits
  output_attentions output_hidden_states output_scores output_logits return_dict_in_generate length_penalty early_stopping
  decoder_start_token_id prompt_lookup_num_tokens max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule
  assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind is_assistant prefill_chunk_size
  disable_compile compile_config trust_remote_code _commit_hash chat_format`.split(/\s+/),
);

/**
 * Reads a folder's generation_config.json; without one, the ids of config.json and greedy. Throws
 * UnsupportedConfigError (details: field, value) and CheckpointError (details: file).
 */
export function readGenerationConfig(folder: string, ids: ModelTokenIds = {}): GenerationDefaults {
  const file = join(folder, 'generation_config.json');
  const json = existsSync(file) ? readJson(file) : {};
  refuseUnsupported(json, file);
  const read = new FieldReader(json, file);
  const eos = read.tokens('eos_token_id') ?? ids.eosTokenId ?? [];
  const defaults: GenerationDefaults = {
    eosTokenIds: typeof eos === 'number' ? [eos] : [...eos],
    bosTokenId: read.token('bos_token_id') ?? ids.bosTokenId ?? null,
    padTokenId: read.token('pad_token_id') ?? ids.padTokenId ?? null,
    doSample: read.flag('do_sample') ?? false,
    ignoredFields: Object.keys(json).filter((key) => !NEUTRAL.has(key) && !Object.hasOwn(UNSUPPORTED, key)),
  };
  const optional = {
    temperature: read.above('temperature'),
    topK: read.whole('top_k', 0),
    topP: read.above('top_p', 1),
    repetitionPenalty: read.above('repetition_penalty'),
    maxNewTokens: read.whole('max_new_tokens', 1),
    maxLength: read.whole('max_length', 1),
    stop: read.texts('stop_strings'),
  };
  return Object.assign(
    defaults,
    Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)),
  );
}

function readJson(file: string): Json {
  let value: unknown;
  try {
    if (statSync(file).size > MAX_FILE_BYTES) throw new Error(`more than ${MAX_FILE_BYTES} bytes`);
    value = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw broken(file, `expected JSON, got ${(error as Error).message.split('\n', 1)[0]}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw broken(file, 'expected a JSON object');
  return value as Json;
}

function broken(file: string, what: string): CheckpointError {
  return new CheckpointError(`${file}: ${what}`, { details: { file } });
}

function refuseUnsupported(json: Json, file: string): void {
  for (const [field, neutral] of Object.entries(UNSUPPORTED)) {
    const value = Object.hasOwn(json, field) ? json[field] : null;
    const isEmpty = Array.isArray(value) ? value.length === 0 : value === null;
    if (isEmpty || neutral.includes(value)) continue;
    const expected = neutral.length === 0 ? 'none' : String(neutral[0]);
    throw new UnsupportedConfigError(
      `${file}: ${field}: expected ${expected}, as it is not implemented, got ${JSON.stringify(value)}`,
      { details: { file, field, value }, hint: `remove ${field} from the file to generate without it` },
    );
  }
  if (json.cache_implementation === 'quantized') {
    throw new UnsupportedConfigError(
      `${file}: cache_implementation: expected a cache that changes nothing, got "quantized"`,
      {
        details: { file, field: 'cache_implementation', value: 'quantized' },
      },
    );
  }
}

/** Typed reading of fields; null counts as absent. */
class FieldReader {
  constructor(
    readonly json: Json,
    readonly file: string,
  ) {}

  token(key: string): number | undefined {
    return this.whole(key, 0);
  }
  tokens(key: string): number | number[] | undefined {
    const isTokens = (v: unknown) => isWhole(v, 0) || (Array.isArray(v) && v.every((id) => isWhole(id, 0)));
    return this.#read(key, isTokens, 'a token id or a list of them');
  }
  flag(key: string): boolean | undefined {
    return this.#read(key, (value) => typeof value === 'boolean', 'true or false');
  }
  whole(key: string, least: number): number | undefined {
    return this.#read(key, (value) => isWhole(value, least), `a whole number of at least ${least}`);
  }
  above(key: string, most = Number.MAX_VALUE): number | undefined {
    const isGood = (value: unknown) => typeof value === 'number' && value > 0 && value <= most;
    return this.#read(key, isGood, `a number above 0${most === 1 ? ' and at most 1' : ''}`);
  }
  texts(key: string): string[] | undefined {
    const isTexts = (v: unknown) =>
      typeof v === 'string' || (Array.isArray(v) && v.every((t) => typeof t === 'string'));
    const texts = this.#read<string | string[]>(key, isTexts, 'a text or a list of texts');
    return texts === undefined ? undefined : [texts].flat().filter((text) => text !== '');
  }

  #read<Value>(key: string, isGood: (value: unknown) => boolean, expected: string): Value | undefined {
    const value = Object.hasOwn(this.json, key) ? this.json[key] : undefined;
    if (value === undefined || value === null) return undefined;
    if (isGood(value)) return value as Value;
    throw broken(this.file, `${key}: expected ${expected}, got ${JSON.stringify(value)}`);
  }
}

function isWhole(value: unknown, least: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= least;
}
