/**
 * Chat templates: finds the one a model's folder has (chat_template.jinja, or chat_template in tokenizer_config.json)
 * and renders messages with it. The Jinja language is @huggingface/jinja's; the globals transformers gives a template
 * are set here. Text only: tokens are `tokenizer.ts`.
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type * as jinja from '@huggingface/jinja';
import { ArgumentError, CheckpointError } from '@metashard/core';
import type { ChatMessage } from './options.js';

/** Loaded by the first chat: most models are loaded without one. */
const jinjaModule = (): typeof jinja => createRequire(import.meta.url)('@huggingface/jinja');

const MAX_TEMPLATE_BYTES = 2 ** 20;
const MAX_RANGE = 100_000;

export interface ChatTemplateSource {
  template: string;
  file: string;
}

/**
 * The default template of a model's folder, or null. chat_template.jinja wins over tokenizer_config.json, as in
 * transformers; of a list of named templates the one named "default" is taken, or the only one. Throws CheckpointError.
 */
export function findChatTemplate(
  folder: string,
  tokenizerConfig: Readonly<Record<string, unknown>>,
): ChatTemplateSource | null {
  const file = join(folder, 'chat_template.jinja');
  if (existsSync(file)) {
    if (statSync(file).size > MAX_TEMPLATE_BYTES) throw tooLong(file);
    return { template: readFileSync(file, 'utf8'), file };
  }
  const configFile = join(folder, 'tokenizer_config.json');
  const template = defaultTemplate(tokenizerConfig.chat_template, configFile);
  if (template === null) return null;
  if (template.length > MAX_TEMPLATE_BYTES) throw tooLong(configFile);
  return { template, file: configFile };
}

function tooLong(file: string): CheckpointError {
  return new CheckpointError(`${file}: chat_template: expected at most ${MAX_TEMPLATE_BYTES} bytes, got more`, {
    details: { file },
  });
}

function defaultTemplate(value: unknown, file: string): string | null {
  if (value === undefined || value === null) return null;
  if (typeof value === 'string') return value;
  const named = Array.isArray(value)
    ? value.map((entry: unknown) => [(entry as { name?: unknown })?.name, (entry as { template?: unknown })?.template])
    : Object.entries(value);
  const chosen = named.find(([name]) => name === 'default') ?? (named.length === 1 ? named[0] : undefined);
  if (chosen !== undefined && typeof chosen[1] === 'string') return chosen[1];
  const got = named.map(([name]) => String(name)).join(', ');
  throw new CheckpointError(
    `${file}: chat_template: expected a text or named templates with a default, got ${got || 'none'}`,
    {
      details: { file },
    },
  );
}

/** Thrown by a template's raise_exception: the messages are at fault, and not the file. */
class TemplateRefusal extends Error {}

export interface ChatTemplateContext {
  addGenerationPrompt: boolean;
  /** bos_token, eos_token and so on, as texts. */
  specialTokens: Readonly<Record<string, string>>;
}

/**
 * Renders messages to the prompt text. Throws ArgumentError where the template refuses the messages (raise_exception),
 * CheckpointError where the template itself is broken.
 */
export function renderChatTemplate(
  { template, file }: ChatTemplateSource,
  messages: readonly ChatMessage[],
  { addGenerationPrompt, specialTokens }: ChatTemplateContext,
): string {
  const { Environment, Interpreter, parse, tokenize } = jinjaModule();
  const environment = new Environment();
  const globals = {
    ...specialTokens,
    ...GLOBALS,
    messages: messages.map((message) => ({ ...message })),
    add_generation_prompt: addGenerationPrompt,
    tools: null,
    documents: null,
  };
  try {
    for (const [name, value] of Object.entries(globals)) environment.set(name, value);
    const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
    return String(new Interpreter(environment).run(program).value);
  } catch (error) {
    const message = (error as Error).message.split('\n', 1)[0];
    if (error instanceof TemplateRefusal) throw new ArgumentError(`chat template: ${message}`, { details: { file } });
    throw new CheckpointError(`${file}: chat_template: expected a template that renders, got ${message}`, {
      details: { file },
      cause: error,
    });
  }
}

/** What transformers defines in a template besides its arguments. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  raise_exception: (message: unknown) => {
    throw new TemplateRefusal(String(message));
  },
  range,
  strftime_now: (format: unknown) => strftime(String(format), new Date()),
};

/** Python's range, bounded. */
function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= MAX_RANGE))
    throw new Error(`range(${start}, ${stop}, ${step}): expected at most ${MAX_RANGE} numbers`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

/** Python's strftime in the C locale, for the fields that chat templates use; others stay as they are. */
function strftime(format: string, date: Date): string {
  const words = (options: Intl.DateTimeFormatOptions) => new Intl.DateTimeFormat('en-US', options).format(date);
  const digits = (value: number, width = 2) => String(value).padStart(width, '0');
  const fields: Readonly<Record<string, () => string>> = {
    Y: () => String(date.getFullYear()),
    y: () => digits(date.getFullYear() % 100),
    m: () => digits(date.getMonth() + 1),
    d: () => digits(date.getDate()),
    H: () => digits(date.getHours()),
    I: () => digits(date.getHours() % 12 || 12),
    M: () => digits(date.getMinutes()),
    S: () => digits(date.getSeconds()),
    p: () => (date.getHours() < 12 ? 'AM' : 'PM'),
    A: () => words({ weekday: 'long' }),
    a: () => words({ weekday: 'short' }),
    B: () => words({ month: 'long' }),
    b: () => words({ month: 'short' }),
    '%': () => '%',
  };
  return format.replaceAll(/%(.)/g, (whole, field: string) => fields[field]?.() ?? whole);
}
