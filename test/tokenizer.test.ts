/**
 * Tokenizer, streaming detokenisation, stop strings and chat templates: real tokenizers against known ids, and every
 * stream against the whole decode.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ArgumentError, CheckpointError } from '@metashard/core';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { StopStrings } from '../packages/dispatch/dist/stop-strings.js';
import { loadTokenizer, type ModelTokenizer, StreamDecoder } from '../packages/dispatch/dist/tokenizer.js';

const MODELS = new URL('../models/', import.meta.url).pathname;
const FIXTURES = new URL('fixtures/', import.meta.url).pathname;
const folders: string[] = [];

/** A folder with the given files; texts as they are, values as JSON. */
function folderWith(files: Record<string, unknown>): string {
  const folder = mkdtempSync(join(tmpdir(), 'metashard-tokenizer-'));
  folders.push(folder);
  for (const [name, value] of Object.entries(files)) {
    writeFileSync(join(folder, name), typeof value === 'string' ? value : JSON.stringify(value));
  }
  return folder;
}
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

/** The 256 printable characters that byte-level vocabularies use for bytes (GPT-2's table). */
function byteCharacters(): string[] {
  const isPlain = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(isPlain(b) ? b : next++));
}

/** A byte-level BPE with one token a byte, a few longer ones that cut characters apart, and two added tokens. */
function byteLevelTokenizer(): Record<string, unknown> {
  const bytes = byteCharacters();
  const euroStart = `${bytes[0xe2]}${bytes[0x82]}`; // first two bytes of €
  const tokens = [...bytes, euroStart, `${bytes[0x20]}a`, `${bytes[0x9f]}${bytes[0x98]}`];
  return {
    added_tokens: [
      { id: tokens.length, content: '<|end|>', special: true },
      { id: tokens.length + 1, content: '<tag>', special: false },
    ],
    decoder: { type: 'ByteLevel' },
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false },
    model: {
      type: 'BPE',
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [
        [bytes[0xe2], bytes[0x82]],
        [bytes[0x20], 'a'],
      ],
    },
  };
}

const WORDS = ['[UNK]', 'un', '##aff', '##able', 'don', "'", 't', '.', '##s', 'a'];
const wordTokenizer = {
  decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
  pre_tokenizer: { type: 'BertPreTokenizer' },
  model: { type: 'WordPiece', unk_token: '[UNK]', vocab: Object.fromEntries(WORDS.map((word, id) => [word, id])) },
};
const SPACED = [
  '▁',
  '▁a',
  'b',
  '▁▁',
  '.',
  "'",
  's',
  'n',
  't',
  "n't",
  '▁.',
  've',
  '�',
  '<0xE2>',
  '<0x82>',
  '<0xAC>',
  '<0xFF>',
  '▁v',
  'r',
  'e',
  'm',
];
const spacedModel = {
  type: 'BPE',
  byte_fallback: true,
  vocab: Object.fromEntries(SPACED.map((t, id) => [t, id])),
  merges: [],
};
const metaspaceTokenizer = {
  decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
  model: spacedModel,
};
const fallbackDecoder = {
  type: 'Sequence',
  decoders: [
    { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    { type: 'Strip', content: ' ', start: 1, stop: 0 },
  ],
};

async function load(tokenizer: unknown, config: unknown = {}): Promise<ModelTokenizer> {
  const folder = folderWith({ 'tokenizer.json': tokenizer, 'tokenizer_config.json': config });
  return (await loadTokenizer(folder)) as ModelTokenizer;
}

describe('loadTokenizer', () => {
  it('gives the ids that transformers gives', async () => {
    const { models } = JSON.parse(readFileSync(join(FIXTURES, 'texts.json'), 'utf8'));
    const places = { stories260K: MODELS, 'bloom-stories': MODELS, babyllama105: join(FIXTURES, 'models') };
    let checked = 0;
    for (const [name, parent] of Object.entries(places)) {
      const tokenizer = (await loadTokenizer(join(parent, name))) as ModelTokenizer;
      for (const { prompt, prompt_ids } of models[name]) {
        expect(tokenizer.encode(prompt), `${name}: ${prompt}`).toEqual(prompt_ids);
        expect(tokenizer.decode(prompt_ids)).toBe(prompt);
        checked++;
      }
    }
    expect(checked).toBeGreaterThan(5);
  });

  it('leaves special tokens out or in, and ids without a token out', async () => {
    const tokenizer = (await loadTokenizer(join(MODELS, 'stories260K'))) as ModelTokenizer;
    const ids = tokenizer.encode('Once', { addSpecialTokens: false });
    expect(tokenizer.encode('Once')).toEqual([1, ...ids]);
    expect(tokenizer.decode([1, ...ids, 2, 99_999, -1])).toBe('Once');
    expect(tokenizer.decode([1, ...ids, 2], { skipSpecialTokens: false })).toContain('<s>');
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.specialTokens).toEqual({ bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>' });
  });

  it('is null without tokenizer.json and works without tokenizer_config.json', async () => {
    expect(await loadTokenizer(folderWith({ 'config.json': {} }))).toBeNull();
    expect((await loadTokenizer(folderWith({ 'tokenizer.json': byteLevelTokenizer() })))?.encode('é')).toHaveLength(2);
  });

  it.each([
    ['no JSON', '{"model": '],
    ['a list', []],
    ['no model', {}],
    ['a vocabulary that is a number', { model: { type: 'BPE', vocab: 3, merges: [] } }],
    ['an id of 2^53', { model: { type: 'BPE', vocab: { a: 2 ** 53 }, merges: [] } }],
    ['a negative added id', { ...byteLevelTokenizer(), added_tokens: [{ id: -1, content: 'x' }] }],
    ['added tokens that are no list', { ...byteLevelTokenizer(), added_tokens: 'x' }],
    ['an unknown decoder', { ...byteLevelTokenizer(), decoder: { type: 'Nonsense' } }],
    ['an unknown model', { model: { type: 'Nonsense', vocab: {} } }],
    [
      'a broken pattern',
      { ...byteLevelTokenizer(), pre_tokenizer: { type: 'Split', pattern: { Regex: '(' }, behavior: 'Isolated' } },
    ],
    ['a post-processor without templates', { ...byteLevelTokenizer(), post_processor: { type: 'TemplateProcessing' } }],
  ])('refuses %s by a typed error', async (_, tokenizer) => {
    const error = await load(tokenizer).catch((e) => e);
    expect(error).toBeInstanceOf(CheckpointError);
    expect(error.message).toMatch(/tokenizer\.json: /);
    expect(error.message).not.toMatch(/\n|\.$/);
  });

  it('survives mutated tokenizer files', async () => {
    const text = JSON.stringify(wordTokenizer);
    const folder = folderWith({ 'tokenizer.json': text });
    const mutation = fc.tuple(
      fc.nat(text.length - 1),
      fc.constantFrom('', '"', '{', '[]', 'null', '-1', ':', '1e99', ','),
    );
    const outcome = fc.asyncProperty(mutation, async ([at, put]) => {
      writeFileSync(join(folder, 'tokenizer.json'), text.slice(0, at) + put + text.slice(at + 1));
      const result = await loadTokenizer(folder).catch((e) => e);
      return result instanceof CheckpointError || typeof result.encode('a b') === 'object';
    });
    await fc.assert(outcome, { numRuns: 500 });
  });
});

describe('StreamDecoder', () => {
  const cases: [string, () => Promise<ModelTokenizer>, number][] = [
    ['stories260K', async () => (await loadTokenizer(join(MODELS, 'stories260K'))) as ModelTokenizer, 512],
    ['bloom-stories', async () => (await loadTokenizer(join(MODELS, 'bloom-stories'))) as ModelTokenizer, 512],
    ['byte level', () => load(byteLevelTokenizer()), 262],
    ['byte level, cleaned up', () => load(byteLevelTokenizer(), { clean_up_tokenization_spaces: true }), 262],
    ['WordPiece', () => load(wordTokenizer), WORDS.length],
    ['Metaspace', () => load(metaspaceTokenizer), SPACED.length],
    ['Metaspace, cleaned up', () => load(metaspaceTokenizer, { clean_up_tokenization_spaces: true }), SPACED.length],
    ['byte fallback', () => load({ decoder: fallbackDecoder, model: spacedModel }), SPACED.length],
    [
      'byte fallback, cleaned up',
      () => load({ decoder: fallbackDecoder, model: spacedModel }, { clean_up_tokenization_spaces: true }),
      SPACED.length,
    ],
  ];

  it.each(cases)('%s: pieces together are the decode of all ids', async (_, make, vocabulary) => {
    const tokenizer = await make();
    const ids = fc.array(fc.nat(vocabulary), { maxLength: 60 });
    const property = fc.property(ids, fc.boolean(), (tokens, skipSpecialTokens) => {
      const decoder = new StreamDecoder(tokenizer, { skipSpecialTokens });
      const pieces = [...tokens.map((id) => decoder.push(id)), decoder.flush()];
      expect(pieces.join('')).toBe(tokenizer.decode(tokens, { skipSpecialTokens }));
    });
    fc.assert(property, { numRuns: 2000 });
  });

  it.each(cases)('%s: text in whatever script comes back', async (name, make) => {
    const tokenizer = await make();
    const text = name.startsWith('byte level') ? 'naïve 漢字 😀 café — x' : 'a b';
    const decoder = new StreamDecoder(tokenizer);
    const ids = tokenizer.encode(text);
    const pieces = ids.map((id) => decoder.push(id));
    expect(pieces.join('') + decoder.flush()).toBe(tokenizer.decode(ids));
    for (const piece of pieces) expect(piece).not.toContain('�');
  });

  it('shows a character as soon as it is complete', async () => {
    const tokenizer = await load(byteLevelTokenizer());
    const decoder = new StreamDecoder(tokenizer);
    expect([0xf0, 0x9f, 0x98, 0x80].map((byte) => decoder.push(byte))).toEqual(['', '', '', '😀']);
    expect([256, 0xac].map((id) => decoder.push(id))).toEqual(['', '€']);
    expect(decoder.push([0xe2, 0x82])).toBe('');
    expect(decoder.flush()).toBe('�');
    expect(decoder.push(65)).toBe('A');
  });

  it('costs the same per token after many tokens', async () => {
    const tokenizer = (await loadTokenizer(join(MODELS, 'stories260K'))) as ModelTokenizer;
    const ids = Array.from({ length: 20_000 }, (_, i) => (i % 3 === 0 ? 3 + 0xff : 3 + (i % 500)));
    let decoded = 0;
    const counting = Object.create(tokenizer, {
      decodeUncleaned: {
        value: (window: readonly number[]) => {
          decoded += window.length;
          return tokenizer.decodeUncleaned(window);
        },
      },
      isDecoded: { value: (id: number, skip: boolean) => tokenizer.isDecoded(id, skip) },
      cleanUp: { value: (text: string) => text },
    });
    const decoder = new StreamDecoder(counting);
    const text = decoder.push(ids) + decoder.flush();
    expect(text).toBe(tokenizer.decode(ids));
    expect(decoded / ids.length).toBeLessThan(20);
  });
});

describe('StopStrings', () => {
  it('holds back what may be the beginning of a stop string', () => {
    const stops = new StopStrings(['\n\n', 'END']);
    expect(stops.push('a\n')).toEqual({ text: 'a', hit: null });
    expect(stops.push('bE')).toEqual({ text: '\nb', hit: null });
    expect(stops.push('N')).toEqual({ text: '', hit: null });
    expect(stops.push('Dx')).toEqual({ text: '', hit: 'END' });
    expect(stops.push('more')).toEqual({ text: '', hit: 'END' });
    expect(stops.flush()).toBe('');
    const unmet = new StopStrings('END');
    expect(unmet.push('the EN')).toEqual({ text: 'the ', hit: null });
    expect(unmet.flush()).toBe('EN');
    expect(() => new StopStrings(['a', ''])).toThrow(ArgumentError);
  });

  it('gives the same text however it is cut', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 30 });
    const stop = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 });
    const property = fc.property(
      letters,
      fc.array(stop, { minLength: 1, maxLength: 3 }),
      fc.nat(5),
      (text, stops, size) => {
        const pieces = text.match(new RegExp(`.{1,${size + 1}}`, 'g')) ?? [];
        const run = (parts: readonly string[]) => {
          const filter = new StopStrings(stops);
          let hit: string | null = null;
          const shown = parts.map((part) => {
            const result = filter.push(part);
            hit = result.hit;
            return result.text;
          });
          return { shown: shown.join('') + filter.flush(), hit };
        };
        const whole = run([text]);
        expect(run(pieces)).toEqual(whole);
        if (whole.hit === null) expect(whole.shown).toBe(text);
        else expect(text.startsWith(whole.shown + whole.hit)).toBe(true);
      },
    );
    fc.assert(property, { numRuns: 2000 });
  });
});

describe('applyChatTemplate', () => {
  const chat = [{ role: 'user', content: 'Hello' }];
  const template =
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
  let tokenizer: ModelTokenizer;
  beforeAll(async () => {
    tokenizer = await load(byteLevelTokenizer(), { bos_token: { content: '<|end|>' }, chat_template: template });
  });

  it('renders messages with the special tokens', () => {
    expect(tokenizer.hasChatTemplate).toBe(true);
    expect(tokenizer.applyChatTemplate(chat)).toBe('<|end|><user>Hello</>\n<assistant>');
    expect(tokenizer.applyChatTemplate(chat, { addGenerationPrompt: false })).toBe('<|end|><user>Hello</>\n');
  });

  it('finds chat_template.jinja and named templates', async () => {
    const config = {
      chat_template: [
        { name: 'tool_use', template: 'tools' },
        { name: 'default', template: 'named' },
      ],
    };
    expect((await load(byteLevelTokenizer(), config)).applyChatTemplate(chat)).toBe('named');
    const folder = folderWith({
      'tokenizer.json': byteLevelTokenizer(),
      'tokenizer_config.json': config,
      'chat_template.jinja': 'file',
    });
    expect((await loadTokenizer(folder))?.applyChatTemplate(chat)).toBe('file');
  });

  it('knows the globals of transformers', async () => {
    const text =
      "{{ strftime_now('%Y') }} {% for i in range(3) %}{{ i }}{% endfor %}{% if tools is none %}!{% endif %}";
    const rendered = (await load(byteLevelTokenizer(), { chat_template: text })).applyChatTemplate(chat);
    expect(rendered).toBe(`${new Date().getFullYear()} 012!`);
  });

  it('types its errors', async () => {
    const refusing = await load(byteLevelTokenizer(), {
      chat_template: "{{ raise_exception('roles must alternate') }}",
    });
    expect(() => refusing.applyChatTemplate(chat)).toThrow(ArgumentError);
    expect(() => refusing.applyChatTemplate(chat)).toThrow(/^chat template: roles must alternate$/);
    for (const broken of [
      '{% for x in %}',
      '{{ messages.nothing.at.all() }}',
      '{% for i in range(999999999) %}{% endfor %}',
    ]) {
      const made = await load(byteLevelTokenizer(), { chat_template: broken });
      expect(() => made.applyChatTemplate(chat), broken).toThrow(CheckpointError);
    }
    await expect(load(byteLevelTokenizer(), { chat_template: 7 })).rejects.toThrow(CheckpointError);
    expect(() => tokenizer.applyChatTemplate([])).toThrow(ArgumentError);
    expect(() => tokenizer.applyChatTemplate([{ role: 'user' } as never])).toThrow(/messages\[0\]/);
    const plain = (await loadTokenizer(join(MODELS, 'stories260K'))) as ModelTokenizer;
    expect(plain.hasChatTemplate).toBe(false);
    expect(() => plain.applyChatTemplate(chat)).toThrow(ArgumentError);
  });
});
