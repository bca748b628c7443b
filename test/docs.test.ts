/**
 * Documentation that cannot go stale unseen: keys, variables and flags against the schema and the sources, error codes
 * against the classes, links, sample plans.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import * as core from '@metashard/core';
import { describe, expect, it } from 'vitest';
import { runCli } from '../packages/dispatch/dist/cli/index.js';
import { exitCodeOf } from '../packages/dispatch/dist/cli/report-error.js';
import { runConfigJsonSchema } from '../packages/dispatch/dist/config/json-schema.js';
import { environmentName, SETTINGS } from '../packages/dispatch/dist/config/settings.js';

const root = new URL('..', import.meta.url).pathname;
const page = (name: string): string => readFileSync(join(root, 'docs', name), 'utf8');

/** Texts of all files below the packages' sources, native ones included. */
function* sources(pattern: RegExp): Generator<{ file: string; text: string }> {
  for (const name of readdirSync(join(root, 'packages'))) {
    for (const part of ['src', 'native']) {
      const folder = join(root, 'packages', name, part);
      if (!existsSync(folder)) continue;
      for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile() || !pattern.test(entry.name)) continue;
        const file = join(entry.parentPath, entry.name);
        yield { file, text: readFileSync(file, 'utf8') };
      }
    }
  }
}

const rows = (text: string): string[][] =>
  text
    .split('\n')
    .filter((line) => line.startsWith('| `'))
    .map((line) =>
      line
        .slice(1, -1)
        .split('|')
        .map((cell) => cell.trim()),
    );
const plain = (cell: string | undefined): string => (cell ?? '').replaceAll('`', '');

type Parts = Record<string, string>;
const { docsParts, placeParts } = (await import(join(root, 'scripts/docs-parts.mjs'))) as {
  docsParts(): Promise<Record<string, Parts>>;
  placeParts(page: string, text: string, parts: Parts): string;
};
const parts = await docsParts();
describe('generated parts', () => {
  it.each(Object.entries(parts))('of %s are current', (name, own) => {
    const text = readFileSync(join(root, name), 'utf8');
    expect(text, 'run node scripts/write-docs.mjs').toBe(placeParts(name, text, own));
  });
});

describe('configuration.md', () => {
  it('says a default for every key that is not required', () => {
    const { properties } = runConfigJsonSchema() as { properties: Record<string, { properties?: object }> };
    const keys = { ...properties, ...properties.generation?.properties } as Record<string, { description: string }>;
    const silent = Object.entries(keys).filter(([, { description }]) => !description.includes('default'));
    expect(silent.map(([key]) => key)).toEqual(['model']);
  });

  it('has every variable that the sources read', () => {
    const read = new Set<string>();
    for (const { text } of sources(/\.(ts|cc|cpp|h)$/)) {
      for (const [, name] of text.matchAll(/(?:["']|env\.)(METASHARD_[A-Z_]+)\b/g)) read.add(name as string);
      for (const [, name] of text.matchAll(/\benv\.((?:HF|HUGGINGFACE|XDG|NO|CI)[A-Z_]*)\b/g)) read.add(name as string);
    }
    expect(read.size).toBeGreaterThan(8);
    const known = page('configuration.md');
    const settings = new Set(SETTINGS.map(environmentName));
    for (const name of read)
      expect(settings.has(name) || known.includes(`\`${name}\``) || known.includes(`$${name}`), name).toBe(true);
  });

  it('has every flag of every command', async () => {
    const known = page('configuration.md');
    const help = async (...args: string[]): Promise<string> => {
      const stdout = new PassThrough({ highWaterMark: 2 ** 20 });
      await runCli([...args, '--help'], { stdin: Readable.from([]), stdout, stderr: new PassThrough(), env: {} });
      return String(stdout.read());
    };
    const commands = [...(await help()).matchAll(/^ {2}([\w-]+) \[options\]/gm)].map(([, name]) => name as string);
    expect(commands).toContain('estimate');
    for (const command of commands) {
      for (const [flag] of (await help(command)).matchAll(/(?<=^ {2})--[\w-]+/gm))
        expect(known.includes(`\`${flag}\``) || known.includes(`\`${flag} `), `${command} ${flag}`).toBe(true);
    }
  });
});

describe('errors.md', () => {
  const documented = rows(page('errors.md')).map(
    ([name, code, , , exit]) => [plain(name), plain(code), Number(exit)] as const,
  );
  type ErrorClass = new (message: string, details?: { code?: string }) => core.MetashardError;
  const classes = Object.entries(core as Record<string, unknown>).filter(
    (entry): entry is [string, ErrorClass] =>
      entry[1] instanceof Function && entry[1].prototype instanceof core.MetashardError,
  );

  it('lists every class with its code, and the exit code of the command line', () => {
    const known = new Map(classes);
    for (const [name, code, exit] of documented) {
      const Class = known.get(name) as ErrorClass;
      expect(Class, name).toBeDefined();
      expect(exitCodeOf(new Class('', { code })), `${name} ${code}`).toBe(exit);
    }
    const pairs = documented.map(([name, code]) => `${name} ${code}`);
    for (const [name, Class] of classes) expect(pairs).toContain(`${name} ${new Class('').code}`);
    expect(new Set(pairs).size).toBe(pairs.length);
  });

  it('lists every code that the sources give, and no other', () => {
    const given = new Set(classes.map(([, Class]) => new Class('').code));
    for (const { text } of sources(/\.ts$/))
      for (const [, code] of text.matchAll(/\bcode: '([a-z]+(?:_[a-z]+)+)'/g)) given.add(code as string);
    expect([...new Set(documented.map(([, code]) => code))].sort()).toEqual([...given].sort());
  });
});

describe('links', () => {
  const pages = ['README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md']
    .concat(readdirSync(join(root, 'docs')).map((name) => `docs/${name}`))
    .concat(readdirSync(join(root, 'examples')).map((name) => `examples/${name}/README.md`))
    .filter((name) => name.endsWith('.md') && existsSync(join(root, name)));

  it.each(pages)('%s leads to files that are there', (name) => {
    const text = readFileSync(join(root, name), 'utf8');
    const targets = [...text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)].map(([, target]) => target as string);
    const missing = targets.filter(
      (target) => !/^[a-z]+:/.test(target) && !existsSync(resolve(dirname(join(root, name)), target)),
    );
    expect(missing).toEqual([]);
  });
});
