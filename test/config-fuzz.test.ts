/**
 * Mutated settings: a model's config.json with values of other kinds, a YAML file with other bytes. Each gives a module
 * tree, or a configuration, or one typed error of one line. METASHARD_TEST_SEED repeats a run; fast-check names the case.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { buildModel, loadConfig, MetashardError } from 'metashard';
import { afterAll, describe, expect, it } from 'vitest';
import { MODELS } from './golden-models.js';

const seed = Number(process.env.METASHARD_TEST_SEED ?? Date.now() % 1_000_000_000);
const folder = mkdtempSync(join(tmpdir(), 'metashard-config-fuzz-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs `read`; true when it was refused. Throws what is no MetashardError of one line. */
function isRefused(read: () => unknown): boolean {
  try {
    read();
    return false;
  } catch (error) {
    if (!MetashardError.isInstance(error) || error.message.includes('\n')) throw error;
    return true;
  }
}

describe.each(['bloom', 'llama', 'opt', 'gpt2'])('config.json of %s', (name) => {
  const config: Record<string, unknown> = JSON.parse(readFileSync(`${MODELS}${name}/config.json`, 'utf8'));
  // Sizes stay small: what this asks is what wrong kinds of values do, not how many blocks fit into memory.
  const values = fc.oneof(
    fc.constantFrom<unknown>(null, true, false, -1, 0, 0.5, 3, '', '64', 'none', [], [1], {}, { type: 'x' }),
    fc.integer({ min: 1, max: 200 }),
  );

  it(`gives a module tree or a typed error (seed ${seed})`, () => {
    let [refused, built] = [0, 0];
    const change = fc.dictionary(fc.constantFrom(...Object.keys(config)), values, { minKeys: 1, maxKeys: 3 });
    fc.assert(
      fc.property(change, (changes) => {
        if (isRefused(() => buildModel({ ...config, ...changes }))) refused++;
        else built++;
      }),
      { seed, numRuns: 500 },
    );
    expect(Math.min(refused, built)).toBeGreaterThan(0);
  });
});

it(`a YAML file with a device map gives a configuration or a typed error (seed ${seed})`, () => {
  const source = `model: models/x
devices: ["cpu:0", "cpu:1"]
device_map: { transformer.h.0: "cpu:0", "": { device: "cpu:1", execute_on: "cpu:0" } }
max_memory: { "cpu:0": 4GiB, 1: 70GiB }
`;
  const path = join(folder, 'run.yaml');
  const pieces = fc.constantFrom(
    '',
    ':',
    '{',
    '}',
    '[',
    ']',
    '"',
    "'",
    '\n',
    '\t',
    '- ',
    '&a ',
    '*a',
    '!!',
    '#',
    'é',
    '\0',
  );
  const edit = fc.tuple(fc.nat(source.length), fc.nat(6), pieces);
  writeFileSync(path, source);
  expect(loadConfig(path).device_map).toMatchObject({ 'transformer.h.0': 'cpu:0' });
  let [refused, read] = [0, 0];
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 3 }), (edits) => {
      let text = source;
      for (const [at, length, put] of edits) text = text.slice(0, at) + put + text.slice(at + length);
      writeFileSync(path, text);
      if (isRefused(() => loadConfig(path))) refused++;
      else read++;
    }),
    { seed, numRuns: 1000 },
  );
  expect(Math.min(refused, read)).toBeGreaterThan(0);
});
