/** generation_config.json: end tokens, defaults, and what is refused by name. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CheckpointError, UnsupportedConfigError } from '@metashard/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readGenerationConfig } from '../packages/dispatch/dist/generation-config.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-generation-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

const IDS = { bosTokenId: 1, eosTokenId: 2, padTokenId: null };
function read(json: unknown) {
  writeFileSync(join(folder, 'generation_config.json'), typeof json === 'string' ? json : JSON.stringify(json));
  return readGenerationConfig(folder, IDS);
}

describe('readGenerationConfig', () => {
  it('falls back on config.json where there is no file', () => {
    const defaults = readGenerationConfig(join(folder, 'nowhere'), { eosTokenId: [2, 3] });
    expect(defaults).toEqual({
      eosTokenIds: [2, 3],
      bosTokenId: null,
      padTokenId: null,
      doSample: false,
      ignoredFields: [],
    });
  });

  it('reads the shipped file', () => {
    const { pathname } = new URL('../models/bloom-stories', import.meta.url);
    expect(readGenerationConfig(pathname, {})).toMatchObject({ eosTokenIds: [2], bosTokenId: 1, ignoredFields: [] });
  });

  it('takes one end token, a list, or none', () => {
    expect(read({ eos_token_id: 7 }).eosTokenIds).toEqual([7]);
    expect(read({ eos_token_id: [128001, 128009] }).eosTokenIds).toEqual([128001, 128009]);
    expect(read({ eos_token_id: null }).eosTokenIds).toEqual([2]);
    expect(read({ eos_token_id: [] }).eosTokenIds).toEqual([]);
  });

  it('reads sampling defaults', () => {
    const file = {
      do_sample: true,
      temperature: 0.6,
      top_k: 0,
      top_p: 0.9,
      repetition_penalty: 1.1,
      max_new_tokens: 64,
      max_length: 512,
    };
    expect(read({ ...file, stop_strings: 'END', my_field: 1 })).toEqual({
      eosTokenIds: [2],
      bosTokenId: 1,
      padTokenId: null,
      doSample: true,
      temperature: 0.6,
      topK: 0,
      topP: 0.9,
      repetitionPenalty: 1.1,
      maxNewTokens: 64,
      maxLength: 512,
      stop: ['END'],
      ignoredFields: ['my_field'],
    });
  });

  it.each([
    ['num_beams', 4, 1],
    ['typical_p', 0.9, 1],
    ['min_p', 0.05, 0],
    ['penalty_alpha', 0.6, 0],
    ['no_repeat_ngram_size', 3, 0],
    ['bad_words_ids', [[5]], []],
    ['suppress_tokens', [1], null],
    ['forced_bos_token_id', 0, null],
    ['guidance_scale', 1.5, 1.0],
    ['watermarking_config', { bias: 2 }, null],
  ])('refuses %s unless it changes nothing', (field, value, neutral) => {
    let error: unknown;
    try {
      read({ [field]: value });
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(UnsupportedConfigError);
    expect((error as UnsupportedConfigError).details).toMatchObject({ field, value });
    expect((error as Error).message).toContain(`generation_config.json: ${field}: expected`);
    expect(read({ [field]: neutral }).ignoredFields).toEqual([]);
  });

  it.each([
    ['{', /expected JSON/],
    ['[]', /expected a JSON object/],
    [{ eos_token_id: 'x' }, /eos_token_id: expected a token id or a list of them, got "x"/],
    [{ eos_token_id: [1, -2] }, /eos_token_id/],
    [{ top_p: 1.5 }, /top_p: expected a number above 0 and at most 1, got 1.5/],
    [{ do_sample: 'yes' }, /do_sample: expected true or false/],
    [{ max_length: 1.5 }, /max_length: expected a whole number/],
  ])('types broken files: %j', (json, message) => {
    expect(() => read(json)).toThrow(CheckpointError);
    expect(() => read(json)).toThrow(message);
  });
});
