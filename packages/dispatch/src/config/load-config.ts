/**
 * Reads metashard.yaml: text → YAML → validated RunConfig, every error as `file:line:col key: expected …, got …`. Opens
 * no model.
 */
import { readFileSync, statSync } from 'node:fs';
import { dirname, isAbsolute, resolve } from 'node:path';
import { ConfigError } from '@metashard/core';
import {
  type Alias,
  type Document,
  isAlias,
  isCollection,
  isMap,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
  visit,
} from 'yaml';
import { type ConfigProblem, configError, configProblems, type PlacedProblem } from './config-problem.js';
import { type RunConfig, runConfigSchema } from './run-config.js';

const MAX_FILE_BYTES = 4 * 2 ** 20;
const MAX_ALIASES = 100;

/**
 * Reads and checks a YAML (or JSON) file. A `model` that is a folder next to the file becomes its absolute path;
 * otherwise it stays as written. `llm_int8_threshold_text` is a file relative to it. Throws ConfigError; details: file,
 * line, column, path, problems (all of them, one line each).
 */
export function loadConfig(path: string): RunConfig {
  const config = parseConfig(readText(path), path);
  const besideFile = resolve(dirname(path), config.model);
  const isFolder = statSync(besideFile, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const { llm_int8_threshold_text: text } = config;
  return {
    ...config,
    ...(!isAbsolute(config.model) && isFolder && { model: besideFile }),
    ...(text !== undefined && { llm_int8_threshold_text: resolve(dirname(path), text) }),
  };
}

/** Checks the text of a configuration; `file` is how messages call it. */
export function parseConfig(text: string, file = 'metashard.yaml'): RunConfig {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const syntax = document.errors[0] ?? document.warnings[0];
  if (syntax !== undefined) {
    const { line, col } = lines.linePos(syntax.pos[0]);
    throw new ConfigError(`${file}:${line}:${col}: expected YAML, got ${oneLine(syntax.message)}`, {
      details: { file, line, column: col },
    });
  }
  const value = toPlain(document, lines, file);
  const result = runConfigSchema.safeParse(value);
  if (result.success) return result.data;
  const placed = configProblems(result.error, value).map((problem) => place(problem, document, lines, file));
  placed.sort((a, b) => Number(a.details?.line) - Number(b.details?.line));
  throw configError(placed as [PlacedProblem, ...PlacedProblem[]]);
}

function readText(path: string): string {
  try {
    const { size } = statSync(path);
    if (size > MAX_FILE_BYTES) {
      throw new ConfigError(`${path}: expected at most ${MAX_FILE_BYTES} bytes, got ${size}`, {
        details: { file: path },
      });
    }
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (ConfigError.isInstance(error)) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw new ConfigError(`${path}: expected a readable YAML file, got ${code === 'ENOENT' ? 'no such file' : code}`, {
      details: { file: path },
      cause: error,
    });
  }
}

function toPlain(document: Document, lines: LineCounter, file: string): unknown {
  try {
    return document.toJS({ maxAliasCount: MAX_ALIASES });
  } catch (error) {
    let unresolved: Alias | undefined;
    visit(document, {
      Alias(_, alias) {
        if (alias.resolve(document) === undefined) unresolved ??= alias;
      },
    });
    const { line, col } = lines.linePos(unresolved?.range?.[0] ?? 0);
    const expected = unresolved === undefined ? `at most ${MAX_ALIASES} uses of aliases` : 'YAML';
    throw new ConfigError(`${file}:${line}:${col}: expected ${expected}, got ${oneLine((error as Error).message)}`, {
      details: { file, line, column: col },
    });
  }
}

function place(problem: ConfigProblem, document: Document, lines: LineCounter, file: string): PlacedProblem {
  const { line, col } = lines.linePos(offsetOf(document.contents, problem));
  return { ...problem, where: `${file}:${line}:${col}`, details: { file, line, column: col } };
}

/** Where a path starts in the text; a path that is not there (a missing key) starts where its nearest parent does. */
function offsetOf(root: Node | null, { path, atKey }: ConfigProblem): number {
  let node = root;
  let offset = 0;
  for (const [depth, name] of path.entries()) {
    if (isCollection(node) && !isMap(node)) {
      node = (node.items[Number(name)] as Node | undefined) ?? null;
    } else {
      const pair = isMap(node)
        ? node.items.find(({ key }) => isScalar(key) && String(key.value ?? '') === name)
        : undefined;
      if (pair === undefined) return offset;
      const key = pair.key as Node;
      const value = pair.value as Node | null;
      const isEmpty = value === null || (isScalar(value) && value.value === null);
      if (isEmpty || (atKey && depth === path.length - 1)) return key.range?.[0] ?? offset;
      node = value;
    }
    offset = node?.range?.[0] ?? offset;
    if (isAlias(node)) return offset;
  }
  return offset;
}

function oneLine(message: string): string {
  return message.replaceAll(/\s+/g, ' ').replace(/[.:]$/, '');
}
