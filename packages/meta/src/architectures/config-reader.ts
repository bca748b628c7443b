/**
 * Reads a model's config.json: every field asked for is checked, every field that would change numerics and is not
 * implemented is refused by name, and what nobody knows is listed. What the fields mean is in the architecture files.
 */
import {
  ACTIVATION_KINDS,
  type ActivationKind,
  DTYPES,
  type DType,
  isDType,
  UnsupportedConfigError,
} from '@metashard/core';

export type RawConfig = Readonly<Record<string, unknown>>;

/** What every architecture's config has; each adds its own. */
export interface ParsedConfig {
  readonly raw: RawConfig;
  readonly modelType: string;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** null: the model has no limit of its own (ALiBi). */
  readonly maxPositionEmbeddings: number | null;
  readonly bosTokenId: number | null;
  /** config.json gives none, one or a list. */
  readonly eosTokenIds: readonly number[];
  readonly padTokenId: number | null;
  readonly tieWordEmbeddings: boolean;
  /** Of the checkpoint's float weights, as the config says; float32 where it is silent. */
  readonly dtype: DType;
  /** Fields that are neither honoured, nor known to be neutral, nor refused. */
  readonly ignoredFields: readonly string[];
}

/**
 * Fields that change no result of a forward pass: training, bookkeeping, generation defaults, and what dispatch honours
 * (quantization_config).
 */
const NEUTRAL_FIELDS = [
  '_name_or_path',
  '_attn_implementation',
  '_commit_hash',
  'architectures',
  'attention_dropout',
  'classifier_dropout',
  'embd_pdrop',
  'finetuning_task',
  'gradient_checkpointing',
  'hidden_dropout',
  'id2label',
  'initializer_range',
  'is_decoder',
  'label2id',
  'language',
  'license',
  'max_length',
  'model_type',
  'num_labels',
  'output_attentions',
  'output_hidden_states',
  'pretraining_tp',
  'problem_type',
  'quantization_config',
  'return_dict',
  'sep_token_id',
  'task_specific_params',
  'tokenizer_class',
  'torchscript',
  'transformers_version',
  'unk_token_id',
  'use_cache',
] as const;

/** transformers' names of activations that are ours under another one. */
const ACTIVATION_NAMES: Readonly<Record<string, ActivationKind>> = {
  swish: 'silu',
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_python: 'gelu',
  relu2: 'relu_squared',
};

interface Choice<T> {
  /** When the field is absent or null. Without a default the field is required. */
  default?: T;
}

export class ConfigReader {
  readonly #known = new Set<string>(NEUTRAL_FIELDS);

  constructor(
    readonly raw: RawConfig,
    { encoderDecoder = false }: { encoderDecoder?: boolean } = {},
  ) {
    this.#refuseOtherKinds(encoderDecoder);
  }

  get modelType(): string {
    return String(this.raw.model_type);
  }

  /** The first of these spellings that is there and not null. */
  value(...fields: string[]): unknown {
    for (const field of fields) this.#known.add(field);
    return fields.map((field) => this.raw[field]).find((value) => value !== undefined && value !== null);
  }

  /** A positive whole number. */
  count<T = never>(fields: string | string[], choice?: Choice<T>): number | T {
    return this.#checked(
      fields,
      choice,
      'a positive whole number',
      (value) => Number.isInteger(value) && Number(value) > 0,
    );
  }
  number<T = never>(fields: string | string[], choice?: Choice<T>): number | T {
    return this.#checked(fields, choice, 'a number', (value) => typeof value === 'number' && Number.isFinite(value));
  }
  flag(field: string, choice?: Choice<boolean>): boolean {
    return this.#checked(field, choice, 'true or false', (value) => typeof value === 'boolean');
  }
  word<T = never>(fields: string | string[], choice?: Choice<T>): string | T {
    return this.#checked(fields, choice, 'a word', (value) => typeof value === 'string');
  }

  /** An activation by any of its names. */
  activation(field: string, byDefault: string): ActivationKind {
    const name = this.word(field, { default: byDefault });
    const kind = ACTIVATION_NAMES[name] ?? name;
    if (ACTIVATION_KINDS.includes(kind as ActivationKind)) return kind as ActivationKind;
    throw this.refusal(field, name, `one of ${[...ACTIVATION_KINDS, ...Object.keys(ACTIVATION_NAMES)].join(', ')}`);
  }

  #checked<V, T>(
    fields: string | string[],
    choice: Choice<T> | undefined,
    wanted: string,
    holds: (value: unknown) => boolean,
  ): V | T {
    const names = [fields].flat();
    const value = this.value(...names);
    if (value === undefined && choice !== undefined && 'default' in choice) return choice.default as T;
    if (!holds(value)) throw this.refusal(names[0] as string, value, wanted);
    return value as V;
  }

  /** Fields that change nothing, whatever they hold. */
  neutral(...fields: string[]): void {
    for (const field of fields) this.#known.add(field);
  }

  /** A field that is implemented for some values only; absent and null are fine. */
  only(field: string, allowed: readonly unknown[], why: string): void {
    const value = this.value(field);
    if (value !== undefined && !allowed.includes(value)) throw this.refusal(field, value, why);
  }

  refusal(field: string, value: unknown, wanted: string): UnsupportedConfigError {
    const got = value === undefined ? 'nothing' : JSON.stringify(value);
    return new UnsupportedConfigError(`config.json ${field}: expected ${wanted}, got ${got}`, {
      details: { field, value },
      hint: `metashard computes ${this.modelType} models without it; results would differ from transformers`,
    });
  }

  #refuseOtherKinds(encoderDecoder: boolean): void {
    this.only(
      'is_encoder_decoder',
      [encoderDecoder],
      encoderDecoder ? 'true for an encoder and a decoder' : 'false for a decoder-only model',
    );
    for (const field of ['add_cross_attention', 'tie_encoder_decoder']) {
      this.only(field, [false], 'false for a decoder-only model');
    }
    const pruned = this.value('pruned_heads');
    if (Object.keys(pruned ?? {}).length > 0) throw this.refusal('pruned_heads', pruned, 'none');
  }

  tokenId(field: string): number | null {
    const value = this.value(field);
    const first = Array.isArray(value) ? value[0] : value;
    return typeof first === 'number' ? first : null;
  }
  tokenIds(field: string): number[] {
    return [this.value(field)].flat().filter((id): id is number => typeof id === 'number');
  }
  /** Both spellings: `dtype` and `torch_dtype`. */
  dtype(): DType {
    const name = this.word(['dtype', 'torch_dtype'], { default: 'float32' });
    const short = name.replace(/^torch\./, '');
    if (isDType(short) && DTYPES[short].isFloat) return short;
    throw this.refusal('dtype', name, 'float32, float16 or bfloat16');
  }

  /**
   * The fields every config has; call it last, so that `ignoredFields` is complete. `tied` is the model class's
   * default, as `vocabSize` is where it has one.
   */
  shared({ tied, vocabSize }: { tied: boolean; vocabSize?: number }) {
    const fields = {
      raw: this.raw,
      modelType: this.modelType,
      vocabSize: this.count('vocab_size', vocabSize === undefined ? undefined : { default: vocabSize }),
      bosTokenId: this.tokenId('bos_token_id'),
      eosTokenIds: this.tokenIds('eos_token_id'),
      padTokenId: this.tokenId('pad_token_id'),
      tieWordEmbeddings: this.flag('tie_word_embeddings', { default: tied }),
      dtype: this.dtype(),
    };
    const ignoredFields = Object.keys(this.raw).filter((field) => !this.#known.has(field));
    return { ...fields, ignoredFields };
  }
}
