/**
 * From what a user calls a model to the folder that holds it: a folder, or an id in the local Hugging Face cache, laid
 * out as the Python client writes it (`models--org--name/{blobs,refs,snapshots}`). Looks at the disk only: no network,
 * no download, and nothing is read but `refs`.
 */
import { readdirSync, readFileSync, type Stats, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { ModelNotFoundError, nearestWord } from '@metashard/core';

export interface ResolveModelOptions {
  /** Branch, tag, `refs/pr/N` or a commit of 40 hex digits. Default "main". */
  revision?: string | undefined;
  /** Where HF_HUB_CACHE and the others are read. Default process.env. */
  env?: Readonly<Record<string, string | undefined>>;
}

const COMMIT = /^[0-9a-f]{40}$/;
/**
 * `name` or `org/name`, as the hub allows them; excludes `..`, absolute paths and everything else that could leave the
 * cache.
 */
const MODEL_ID = /^(?!.*(?:\.\.|--))[A-Za-z0-9_][\w.-]{0,95}(?:\/[A-Za-z0-9_][\w.-]{0,95})?$/;
const REVISION = /^(?!.*\.\.)[\w][\w.-]*(?:\/[\w][\w.-]*)*$/;

/**
 * Folder of the Hugging Face cache: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub,
 * ~/.cache/huggingface/hub: the first that is set, as in the Python client.
 */
export function hubCacheFolder(env: Readonly<Record<string, string | undefined>> = process.env): string {
  const direct = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE;
  if (direct) return expandHome(direct);
  if (env.HF_HOME) return join(expandHome(env.HF_HOME), 'hub');
  const cache = env.XDG_CACHE_HOME ? expandHome(env.XDG_CACHE_HOME) : join(homedir(), '.cache');
  return join(cache, 'huggingface', 'hub');
}

/**
 * Finds a model's folder. A folder with a config.json wins over a cached id of the same spelling.
 * Throws ModelNotFoundError (details: looked) naming both places.
 */
export function resolveModel(nameOrFolder: string, { revision = 'main', env }: ResolveModelOptions = {}): string {
  const folder = resolve(expandHome(nameOrFolder));
  if (nameOrFolder !== '' && isFile(join(folder, 'config.json'))) return folder;
  const cache = hubCacheFolder(env);
  if (!MODEL_ID.test(nameOrFolder)) throw notFound(nameOrFolder, folder, cache);
  const repository = join(cache, `models--${nameOrFolder.replace('/', '--')}`);
  if (!isFolder(repository)) throw notFound(nameOrFolder, folder, cache);
  return findSnapshot(nameOrFolder, repository, revision, folder);
}

function findSnapshot(name: string, repository: string, revision: string, folder: string): string {
  const commit = COMMIT.test(revision) ? revision : readRef(repository, revision);
  const snapshot = commit === undefined ? undefined : join(repository, 'snapshots', commit);
  if (snapshot !== undefined && isFile(join(snapshot, 'config.json'))) return snapshot;
  const looked = [folder, snapshot ?? join(repository, 'refs', REVISION.test(revision) ? revision : '')];
  const cached = [...list(join(repository, 'refs')), ...list(join(repository, 'snapshots'))];
  const what = snapshot === undefined ? 'no such revision' : 'no config.json';
  throw new ModelNotFoundError(
    `model ${name}: expected revision ${revision} in the Hugging Face cache ${repository}, got ${what}`,
    {
      details: { name, revision, looked },
      hint:
        snapshot === undefined && cached.length > 0
          ? `revisions in the cache: ${cached.slice(0, 8).join(', ')}`
          : 'the download is incomplete: fetch the model again, metashard does not download',
    },
  );
}

/** The commit a branch or tag names, or undefined. A ref that holds anything but a commit names nothing. */
function readRef(repository: string, revision: string): string | undefined {
  if (!REVISION.test(revision)) return undefined;
  try {
    // The Python client keeps refs/pr/N at refs/refs/pr/N.
    const commit = readFileSync(join(repository, 'refs', revision), 'utf8').trim();
    return COMMIT.test(commit) ? commit : undefined;
  } catch {
    return undefined;
  }
}

function notFound(name: string, folder: string, cache: string): ModelNotFoundError {
  const place = isFolder(folder) ? 'a folder without config.json' : isFile(folder) ? 'a file' : 'no such folder';
  const inCache = MODEL_ID.test(name) ? 'no such model' : 'no model could have that name';
  const near = nearestWord(name, cachedModels(cache));
  return new ModelNotFoundError(
    `model ${JSON.stringify(name)}: expected a model folder or a cached id, ` +
      `got ${place} at ${folder} and ${inCache} in the Hugging Face cache ${cache}`,
    {
      details: { name, looked: [folder, cache] },
      hint:
        near === undefined
          ? 'give a folder with config.json and *.safetensors, or download the model into the Hugging Face cache (HF_HOME)'
          : `did you mean ${near}?`,
    },
  );
}

function cachedModels(cache: string): string[] {
  return list(cache)
    .filter((entry) => entry.startsWith('models--'))
    .map((entry) => entry.slice('models--'.length).replace('--', '/'));
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function expandHome(path: string): string {
  return path === '~' || path.startsWith('~/') ? join(homedir(), path.slice(1)) : path;
}

function isFolder(path: string): boolean {
  return stats(path)?.isDirectory() ?? false;
}

function isFile(path: string): boolean {
  return stats(path)?.isFile() ?? false;
}

function stats(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch {
    return undefined; // a file where a folder should be, a name too long, a NUL byte
  }
}
