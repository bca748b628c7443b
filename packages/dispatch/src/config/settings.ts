/**
 * The one table of settings that can also be given by a flag or an environment variable. Names follow from the key:
 * `max_seq_len` is `--max-seq-len` and METASHARD_MAX_SEQ_LEN, `generation.seed` is `--seed` and METASHARD_SEED. Reads
 * strings into values; checks nothing (the schema does).
 */
import { describeKey } from './run-config.js';

/** How the text of a flag or variable becomes a value. */
export type SettingKind = 'text' | 'number' | 'flag' | 'list' | 'texts' | 'map' | 'sizes';

export interface Setting {
  /** Key path in metashard.yaml. */
  path: readonly string[];
  kind: SettingKind;
  /** Name of the value in help. */
  value: string;
}

const setting = (key: string, kind: SettingKind, value = 'n'): Setting => ({ path: key.split('.'), kind, value });

export const SETTINGS: readonly Setting[] = [
  setting('revision', 'text', 'name'),
  setting('devices', 'list', 'names'),
  setting('device_map', 'map', 'strategy'),
  setting('objective', 'text', 'goal'),
  setting('expected_prompt_tokens', 'number', 'tokens'),
  setting('expected_new_tokens', 'number', 'tokens'),
  setting('expected_sequences', 'number'),
  setting('max_memory', 'sizes', 'device=size'),
  setting('reserve', 'text', 'size'),
  setting('dtype', 'text', 'dtype'),
  setting('load_in_8bit', 'flag'),
  setting('llm_int8_threshold', 'number'),
  setting('llm_int8_threshold_text', 'text', 'file'),
  setting('llm_int8_skip_modules', 'list', 'names'),
  setting('llm_int8_head', 'flag'),
  setting('int8_activations', 'text', 'kind'),
  setting('outliers', 'text', 'kind'),
  setting('attention', 'text', 'dtype'),
  setting('kv_cache_dtype', 'text', 'dtype'),
  setting('max_seq_len', 'number', 'tokens'),
  setting('max_batch_size', 'number'),
  setting('threads', 'number'),
  setting('offload_folder', 'text', 'folder'),
  setting('generation.max_new_tokens', 'number'),
  setting('generation.do_sample', 'flag'),
  setting('generation.temperature', 'number'),
  setting('generation.top_k', 'number'),
  setting('generation.top_p', 'number'),
  setting('generation.repetition_penalty', 'number'),
  setting('generation.seed', 'number'),
  setting('generation.stop', 'texts', 'text'),
  setting('generation.ignore_eos', 'flag'),
];

function lastKey({ path }: Setting): string {
  return path.at(-1) as string;
}

/** `--max-seq-len` */
export function flagName(setting: Setting): string {
  return `--${lastKey(setting).replaceAll('_', '-')}`;
}

/** `METASHARD_MAX_SEQ_LEN` */
export function environmentName(setting: Setting): string {
  return `METASHARD_${lastKey(setting).toUpperCase()}`;
}

export function settingHelp(setting: Setting): string {
  return describeKey(setting.path) ?? '';
}

/**
 * A flag's or variable's text (texts, where a flag may be repeated) as the value it stands for; what cannot be read
 * stays text for the schema to refuse.
 */
export function readSetting(setting: Setting, given: string | readonly string[] | boolean): unknown {
  if (typeof given === 'boolean') return given;
  const texts = typeof given === 'string' ? [given] : given;
  switch (setting.kind) {
    case 'texts':
      return texts;
    case 'list':
      return texts.flatMap(splitList);
    case 'sizes':
      return readSizes(texts.flatMap(splitList));
    default:
      return readOne(setting.kind, texts.at(-1) ?? '');
  }
}

function readOne(kind: SettingKind, text: string): unknown {
  if (kind === 'number') return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(text.trim()) ? Number(text) : text;
  if (kind === 'flag') return /^(?:1|true|yes|on)$/i.test(text) || (/^(?:0|false|no|off)$/i.test(text) ? false : text);
  if (kind === 'map' && text.trimStart().startsWith('{')) return readJson(text);
  return text;
}

function readJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function splitList(text: string): string[] {
  return text
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '');
}

/** `["cuda:0=70GiB", "cpu=200GiB"]` → a map; plain digits are bytes. */
function readSizes(entries: readonly string[]): unknown {
  const sizes: Record<string, unknown> = {};
  for (const entry of entries) {
    const at = entry.lastIndexOf('=');
    if (at <= 0) return entry;
    const size = entry.slice(at + 1).trim();
    sizes[entry.slice(0, at).trim()] = /^\d+$/.test(size) ? Number(size) : size;
  }
  return sizes;
}
