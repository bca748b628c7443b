/** metashard.yaml: what it accepts, where its errors point, and how environment and flags lie over it. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConfigError } from '@metashard/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runConfigJsonSchema, runConfigJsonSchemaText } from '../packages/dispatch/dist/config/json-schema.js';
import { loadConfig, parseConfig } from '../packages/dispatch/dist/config/load-config.js';
import { mergeConfig } from '../packages/dispatch/dist/config/merge-config.js';
import { toGenerateOptions, toLoadOptions } from '../packages/dispatch/dist/config/run-options.js';
import { environmentName, flagName, SETTINGS } from '../packages/dispatch/dist/config/settings.js';

const repository = new URL('..', import.meta.url).pathname;
const FULL = `
model: org/name
revision: main
devices: [0, "cuda:1", cpu]
device_map:
  transformer.h.0: 0
  transformer.h.1: {device: cpu, execute_on: 1}
  "": cuda:1
objective: throughput
expected_prompt_tokens: 100
expected_new_tokens: 200
expected_sequences: 2
max_memory: {0: 70GiB, cpu: 1073741824}
dtype: bfloat16
compute_dtype: float32
load_in_8bit: true
llm_int8_threshold: 6
llm_int8_threshold_text: story.txt
llm_int8_skip_modules: [lm_head]
int8_activations: float
outliers: per-row
llm_int8_head: true
attention: bfloat16
kv_cache_dtype: bfloat16
max_seq_len: 256
max_batch_size: 2
threads: 2
reserve: 64MiB
offload_folder: /tmp/x
prompt: Once
generation:
  {max_new_tokens: 5, do_sample: true, temperature: 0.5, top_k: 3, top_p: 0.9, repetition_penalty: 1.1, seed: 1, stop: [a, b], ignore_eos: true}
`;

function failure(run: () => unknown): ConfigError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return error as ConfigError;
  }
  throw new Error('expected a ConfigError, got none');
}

describe('parseConfig', () => {
  it('takes every key and gives options', () => {
    const config = parseConfig(FULL);
    expect(toLoadOptions(config)).toEqual({
      deviceMap: {
        'transformer.h.0': 'cuda:0',
        'transformer.h.1': { device: 'cpu:0', execute_on: 'cuda:1' },
        '': 'cuda:1',
      },
      objective: 'throughput',
      expectedUse: { promptTokens: 100, newTokens: 200, sequences: 2 },
      devices: ['cuda:0', 'cuda:1', 'cpu:0'],
      maxMemory: { 'cuda:0': '70GiB', 'cpu:0': 1073741824 },
      dtype: 'bfloat16',
      loadIn8bit: true,
      llmInt8Threshold: 6,
      llmInt8ThresholdText: 'story.txt',
      llmInt8SkipModules: ['lm_head'],
      llmInt8Head: true,
      int8Activations: 'float',
      outliers: 'per-row',
      attention: 'bfloat16',
      kvCacheDtype: 'bfloat16',
      maxSeqLen: 256,
      maxBatchSize: 2,
      threads: 2,
      reserve: '64MiB',
      offloadFolder: '/tmp/x',
      revision: 'main',
    });
    expect(toGenerateOptions(config)).toEqual({
      maxNewTokens: 5,
      doSample: true,
      temperature: 0.5,
      topK: 3,
      topP: 0.9,
      repetitionPenalty: 1.1,
      seed: 1,
      stop: ['a', 'b'],
      ignoreEos: true,
    });
    expect(toLoadOptions(parseConfig('model: x\ndevice_map: balanced'))).toEqual({ deviceMap: 'balanced' });
    expect(toGenerateOptions(parseConfig('model: x'))).toEqual({});
  });

  it.each([
    [
      'model: x\ndevice_map: balancd',
      '2:13 device_map: expected one of auto, balanced, balanced_low_0, sequential, or a map from module prefixes to devices, got "balancd" (did you mean balanced?)',
    ],
    [
      'model: x\nmax_memory:\n  cpu: 1GiB\n  cuda:1: seventy',
      '4:11 max_memory.cuda:1: expected a size such as 70GiB, got "seventy"',
    ],
    [
      'model: x\nmax_memory:\n  gpu: 1GiB',
      '3:3 max_memory.gpu: expected a device such as cuda:0, cpu or disk, got "gpu"',
    ],
    [
      'model: x\n\noffload_foldr: /tmp',
      '3:1 offload_foldr: expected a known key, got "offload_foldr" (did you mean offload_folder?)',
    ],
    [
      'model: x\ngeneration: {max_new_token: 5}',
      '2:14 generation.max_new_token: expected a known key, got "max_new_token" (did you mean max_new_tokens?)',
    ],
    ['model: x\ngeneration:\n  top_p: 1.5', '3:10 generation.top_p: expected a number above 0 and at most 1, got 1.5'],
    ['model: x\ndevices: [cpu, gpu0]', '2:16 devices.1: expected a device such as cuda:0, cpu or disk, got "gpu0"'],
    ['model: x\ndevices: []', '2:10 devices: expected at least one device, got []'],
    [
      'model: x\ndevice_map:\n  h.0: {divice: cpu}',
      '3:8 device_map.h.0.device: expected a device such as cuda:0, cpu or disk, got nothing (and 1 more)',
    ],
    [
      'model: x\ndevice_map:\n  h.0: gpu',
      '3:8 device_map.h.0: expected a device such as cuda:0, cpu or disk, got "gpu"',
    ],
    [
      'model: x\ndevice_map: {"": {device: cpu, execute_on: meta}}',
      '2:44 device_map."".execute_on: expected a device such as cuda:0, cpu or disk, got "meta"',
    ],
    ['model: x\nload_in_8bit: "yes"', '2:15 load_in_8bit: expected true or false, got "yes"'],
    [
      'model: x\nkv_cache_dtype: int4',
      '2:17 kv_cache_dtype: expected one of float32, float16, bfloat16, int8, got "int4"',
    ],
    ['model: x\nattention: float16', '2:12 attention: expected one of float32, bfloat16, got "float16"'],
    [
      'model: x\nint8_activations: float16',
      '2:19 int8_activations: expected one of int8, float, bfloat16, got "float16"',
    ],
    ['model: x\nllm_int8_head: 1', '2:16 llm_int8_head: expected true or false, got 1'],
    [
      'model: x\ncompute_dtype: float16',
      '2:16 compute_dtype: expected float32 (another one is not in this version), got "float16"',
    ],
    ['model: x\nmax_seq_len: .inf', '2:14 max_seq_len: expected a whole number of at least 1, got Infinity'],
    ['model: x\nprompt:', '2:1 prompt: expected a text, got null'],
    ['prompt: x', '1:1 model: expected a model folder or a cached model id, got nothing'],
    ['', '1:1: expected a map of keys, model among them, got null'],
    ['[1]', '1:1: expected a map of keys, model among them, got [1]'],
    ['model: x\nmodel: y', '2:1: expected YAML, got Map keys must be unique'],
    ['model: "x', '1:10: expected YAML, got Missing closing "quote'],
    ['model: x\nprompt: !!js/function y', '2:9: expected YAML, got Unresolved tag: tag:yaml.org,2002:js/function'],
    [
      'model: &a x\nprompt: *b',
      '2:9: expected YAML, got Unresolved alias (the anchor must be set before the alias): b',
    ],
  ])('points at the place: %j', (text, message) => {
    const error = failure(() => parseConfig(text, 'm.yaml'));
    expect(error.message).toBe(`m.yaml:${message}`);
    expect(error.message).not.toMatch(/\n|\.$/);
    const [, line, column] = /^m\.yaml:(\d+):(\d+)/.exec(error.message) as RegExpExecArray;
    expect(error.details).toMatchObject({ file: 'm.yaml', line: Number(line), column: Number(column) });
  });

  it('lists every problem', () => {
    const error = failure(() => parseConfig('model: 3\nthreads: 0\nfoo: 1', 'm.yaml'));
    expect(error.message).toBe('m.yaml:1:8 model: expected a model folder or a cached model id, got 3 (and 2 more)');
    expect(error.details.path).toEqual(['model']);
    expect(error.details.problems).toHaveLength(3);
    expect((error.details.problems as string[])[2]).toBe('m.yaml:3:1 foo: expected a known key, got "foo"');
  });

  it('follows aliases, and stops aliases that grow without end', () => {
    expect(parseConfig('model: &m x\nprompt: *m').prompt).toBe('x');
    const bomb = [
      'a: &a [x, x, x]',
      ...'bcdefghi'.split('').map((c, i) => `${c}: &${c} [${`*${'abcdefghi'[i]}, `.repeat(9)}]`),
    ];
    expect(failure(() => parseConfig(bomb.join('\n'))).message).toContain('aliases');
  });

  it('is safe from keys of Object.prototype', () => {
    for (const key of ['__proto__', 'constructor', 'toString']) {
      expect(failure(() => parseConfig(`model: x\n${key}: {device_map: auto}`)).message).toContain(
        'expected a known key',
      );
    }
    expect(parseConfig('model: x\ndevice_map: {constructor: cpu}').device_map).toEqual({ constructor: 'cpu' });
  });
});

describe('loadConfig', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'metashard-config-'));
    mkdirSync(join(folder, 'beside'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));
  const load = (text: string) => {
    writeFileSync(join(folder, 'run.yaml'), text);
    return loadConfig(join(folder, 'run.yaml'));
  };

  it('finds a model beside the file, and leaves other names alone', () => {
    expect(load('model: beside').model).toBe(join(folder, 'beside'));
    expect(load('model: ./beside').model).toBe(join(folder, 'beside'));
    expect(load('model: org/name').model).toBe('org/name');
    const measured = load('model: x\nllm_int8_threshold: auto\nllm_int8_threshold_text: beside/a.txt');
    expect(measured.llm_int8_threshold_text).toBe(join(folder, 'beside/a.txt'));
  });

  it('types what cannot be read', () => {
    expect(failure(() => loadConfig(join(folder, 'none.yaml'))).message).toMatch(
      /none\.yaml: expected a readable YAML file, got no such file$/,
    );
    expect(failure(() => loadConfig(folder)).message).toContain('EISDIR');
  });

  it('reads the example', () => {
    const config = loadConfig(join(repository, 'examples/story/metashard.yaml'));
    expect(config.model).toBe(join(repository, 'models/bloom-stories'));
    expect(toLoadOptions(config)).toMatchObject({
      deviceMap: 'balanced',
      devices: ['cpu:0', 'cpu:1'],
      loadIn8bit: true,
    });
  });
});

describe('mergeConfig', () => {
  const file = parseConfig(
    'model: x\nmax_seq_len: 1\nthreads: 1\ndevices: [cpu]\nmax_memory: {cpu: 1GiB, 0: 2GiB}\ngeneration: {seed: 1, top_k: 1}',
  );

  it('lays flags over environment over file', () => {
    const env = {
      METASHARD_MAX_SEQ_LEN: '2',
      METASHARD_THREADS: '2',
      METASHARD_TOP_K: '2',
      METASHARD_MAX_MEMORY: 'cpu:0=3GiB',
      METASHARD_SEED: '',
    };
    const merged = mergeConfig(file, env, {
      '--max-seq-len': '3',
      '--seed': '3',
      '--devices': ['cpu:0, cpu:1'],
      '--load-in-8bit': true,
    });
    expect(merged).toEqual({
      model: 'x',
      max_seq_len: 3,
      threads: 2,
      devices: ['cpu:0', 'cpu:1'],
      load_in_8bit: true,
      max_memory: { 'cpu:0': '3GiB', 'cuda:0': '2GiB' },
      generation: { seed: 3, top_k: 2 },
    });
    expect(mergeConfig(file, {}, {})).toEqual(file);
  });

  it('reads every kind of value', () => {
    const env = {
      METASHARD_LOAD_IN_8BIT: 'true',
      METASHARD_DO_SAMPLE: '0',
      METASHARD_DEVICE_MAP: '{"": "cpu"}',
      METASHARD_STOP: 'a,b',
    };
    const flags = {
      '--max-memory': ['cuda:0=70GiB', '1=5'],
      '--stop': ['x,', 'y'],
      '--llm-int8-threshold': '5.5',
      '--ignore-eos': false,
    };
    const merged = mergeConfig({ model: 'x' }, env, flags);
    expect(merged).toEqual({
      model: 'x',
      load_in_8bit: true,
      device_map: { '': 'cpu' },
      max_memory: { 'cuda:0': '70GiB', '1': 5 },
      llm_int8_threshold: 5.5,
      generation: { do_sample: false, stop: ['x,', 'y'], ignore_eos: false },
    });
    expect(mergeConfig({ model: 'x' }, env, {}).generation?.stop).toEqual(['a,b']);
  });

  it.each([
    [{ METASHARD_MAX_SEQ_LEN: 'many' }, {}, 'METASHARD_MAX_SEQ_LEN: expected a whole number of at least 1, got "many"'],
    [{ METASHARD_LOAD_IN_8BIT: 'maybe' }, {}, 'METASHARD_LOAD_IN_8BIT: expected true or false, got "maybe"'],
    [{}, { '--device-map': 'balancd' }, /^--device-map: expected one of .*did you mean balanced\?\)$/],
    [{}, { '--max-memory': ['cuda:0'] }, '--max-memory: expected a map from devices to sizes, got "cuda:0"'],
    [{}, { '--max-memory': ['cuda:0=big'] }, '--max-memory: expected a size such as 70GiB, got "big"'],
    [{}, { '--devices': ['gpu'] }, '--devices: expected a device such as cuda:0, cpu or disk, got "gpu"'],
    [{}, { '--top-p': '' }, '--top-p: expected a number above 0 and at most 1, got ""'],
  ])('names the variable or flag: %j %j', (env, flags, message) => {
    const error = failure(() => mergeConfig({ model: 'x' }, env, flags));
    if (typeof message === 'string') expect(error.message).toBe(message);
    else expect(error.message).toMatch(message);
  });

  it('has one name for every setting', () => {
    expect(new Set(SETTINGS.map(flagName)).size).toBe(SETTINGS.length);
    expect(SETTINGS.map(environmentName)).toContain('METASHARD_LOAD_IN_8BIT');
  });
});

describe('JSON Schema', () => {
  it('is the one checked in', () => {
    const file = join(repository, 'packages/metashard/schema/metashard.schema.json');
    expect(readFileSync(file, 'utf8'), 'run node scripts/write-schema.mjs').toBe(runConfigJsonSchemaText());
  });

  it('describes every key in draft 7', () => {
    const schema = runConfigJsonSchema() as {
      $schema: string;
      required: string[];
      properties: Record<string, { description?: string }>;
    };
    expect(schema.$schema).toBe('http://json-schema.org/draft-07/schema#');
    expect(schema.required).toEqual(['model']);
    const keys = Object.keys(parseConfig(FULL));
    expect(Object.keys(schema.properties).sort()).toEqual(keys.sort());
    for (const [key, { description }] of Object.entries(schema.properties)) expect(description, key).toBeTruthy();
  });
});
