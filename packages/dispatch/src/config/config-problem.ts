/**
 * From zod's issues to problems in house words (`key: expected …, got …`) and to one ConfigError. Where a problem lies
 * is the caller's knowledge.
 */
import { ConfigError, nearestWord } from '@metashard/core';
import type { z } from 'zod';
import { STRATEGIES } from '../plan.js';
import { configKeys } from './run-config.js';

export interface ConfigProblem {
  /** Keys from the root: `['max_memory', 'cuda:1']`. */
  path: string[];
  /** Whether the key itself is wrong, and not its value. */
  atKey: boolean;
  /** `expected a size such as 70GiB, got "seventy"`. */
  what: string;
}

type Issue = z.core.$ZodIssue;

/** All problems of a value that failed the schema, in order of their keys. */
export function configProblems(error: z.ZodError, value: unknown): ConfigProblem[] {
  return error.issues.flatMap((issue) => issueProblems(issue, [], value));
}

function issueProblems(issue: Issue, parent: readonly PropertyKey[], root: unknown): ConfigProblem[] {
  const path = [...parent, ...issue.path];
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({ path: names([...path, key]), atKey: true, what: unknownKey(key, path) }));
  }
  if (issue.code === 'invalid_union') {
    const inner = deepestBranch(issue.errors);
    if (inner !== undefined) return inner.flatMap((nested) => issueProblems(nested, path, root));
  }
  if (issue.code === 'invalid_key') {
    const key = path.at(-1);
    const expected = issue.issues[0]?.message ?? issue.message;
    return [{ path: names(path), atKey: true, what: `expected ${expected}, got ${JSON.stringify(key)}` }];
  }
  const got = valueAt(root, path);
  return [
    { path: names(path), atKey: false, what: `expected ${issue.message}, got ${shown(got)}${didYouMean(got, path)}` },
  ];
}

/** A union's own message is best unless one of its branches got further into the value than the others. */
function deepestBranch(branches: readonly Issue[][]): Issue[] | undefined {
  const depth = (issues: Issue[]) =>
    Math.min(...issues.map(({ path, code }) => path.length + (code === 'unrecognized_keys' ? 1 : 0)));
  const deep = branches.filter((issues) => issues.length > 0 && depth(issues) > 0);
  return deep.length === 1 ? deep[0] : undefined;
}

function unknownKey(key: string, parent: readonly PropertyKey[]): string {
  const known = parent[0] === 'device_map' ? ['device', 'execute_on'] : configKeys(parent);
  const near = nearestWord(key, known);
  return `expected a known key, got ${JSON.stringify(key)}${near === undefined ? '' : ` (did you mean ${near}?)`}`;
}

/** Words whose spelling can be mended. */
const WORDS: Readonly<Record<string, readonly string[]>> = {
  device_map: STRATEGIES,
  dtype: ['auto', 'float32', 'float16', 'bfloat16'],
  outliers: ['per-batch', 'per-row'],
};

function didYouMean(got: unknown, path: readonly PropertyKey[]): string {
  const words = path.length === 1 ? WORDS[String(path[0])] : undefined;
  const near = typeof got === 'string' && words !== undefined ? nearestWord(got, words) : undefined;
  return near === undefined ? '' : ` (did you mean ${near}?)`;
}

function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  let value = root;
  for (const key of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<PropertyKey, unknown>)[key];
  }
  return value;
}

function shown(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'number') return String(value); // also .nan and .inf
  const json = JSON.stringify(value) ?? typeof value;
  return json.length > 80 ? `${json.slice(0, 77)}…` : json;
}

function names(path: readonly PropertyKey[]): string[] {
  return path.map(String);
}

export interface PlacedProblem extends ConfigProblem {
  /** `metashard.yaml:2:13`, `--max-seq-len` or `METASHARD_THREADS`. */
  where: string;
  details?: Record<string, unknown>;
}

/** One ConfigError for all problems: the first is the message, `details.problems` lists them all. */
export function configError(problems: readonly [PlacedProblem, ...PlacedProblem[]]): ConfigError {
  const lines = problems.map(problemLine);
  const more = lines.length > 1 ? ` (and ${lines.length - 1} more)` : '';
  const [first] = problems;
  return new ConfigError(`${lines[0]}${more}`, {
    details: { path: first.path, ...first.details, problems: lines },
    hint: first.atKey && first.path[0] !== 'max_memory' ? `known keys: ${hintKeys(first.path).join(', ')}` : undefined,
  });
}

function problemLine({ where, path, what }: PlacedProblem): string {
  const key = path.map((name) => (name === '' ? '""' : name)).join('.');
  return key === '' || /^(?:--|METASHARD_)/.test(where) ? `${where}: ${what}` : `${where} ${key}: ${what}`;
}

function hintKeys(path: readonly string[]): readonly string[] {
  return path[0] === 'device_map' ? ['device', 'execute_on'] : configKeys(path.slice(0, -1));
}
