/** resolveModel against folders and a made-up Hugging Face cache; never the network. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { ModelNotFoundError } from '@metashard/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hubCacheFolder, resolveModel } from '../packages/dispatch/dist/resolve-model.js';

const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const OTHER = 'ffffffffffffffffffffffffffffffffffffffff';
let root: string;
let hub: string;

/** A cached model as the Python client writes it: files are links into blobs. */
function cacheModel(id: string, commits: string[], refs: Record<string, string>): void {
  const repository = join(hub, `models--${id.replace('/', '--')}`);
  mkdirSync(join(repository, 'blobs'), { recursive: true });
  writeFileSync(join(repository, 'blobs', 'blob'), '{}');
  for (const commit of commits) {
    mkdirSync(join(repository, 'snapshots', commit), { recursive: true });
    symlinkSync('../../blobs/blob', join(repository, 'snapshots', commit, 'config.json'));
  }
  for (const [ref, commit] of Object.entries(refs)) {
    const file = join(repository, 'refs', ref);
    mkdirSync(join(file, '..'), { recursive: true });
    writeFileSync(file, commit);
  }
}

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'metashard-resolve-'));
  hub = join(root, 'hub');
  cacheModel('org/name', [COMMIT, OTHER], { main: COMMIT, 'refs/pr/1': OTHER, evil: '../../../..' });
  cacheModel('gpt2', [COMMIT], { main: `${COMMIT}\n` });
  cacheModel('org/unfinished', [], { main: COMMIT });
  mkdirSync(join(root, 'folder'));
  writeFileSync(join(root, 'folder', 'config.json'), '{}');
  mkdirSync(join(root, 'empty'));
});
afterAll(() => rmSync(root, { recursive: true }));

const resolve = (name: string, revision?: string) => resolveModel(name, { revision, env: { HF_HUB_CACHE: hub } });
const failure = (name: string, revision?: string): ModelNotFoundError => {
  try {
    return resolve(name, revision) as never;
  } catch (error) {
    expect(error).toBeInstanceOf(ModelNotFoundError);
    return error as ModelNotFoundError;
  }
};

describe('resolveModel', () => {
  it('takes a folder', () => {
    expect(resolve(join(root, 'folder'))).toBe(join(root, 'folder'));
    expect(resolve('models/stories260K')).toBe(join(process.cwd(), 'models/stories260K'));
  });

  it('finds cached models by branch, pull request and commit', () => {
    const snapshots = join(hub, 'models--org--name', 'snapshots');
    expect(resolve('org/name')).toBe(join(snapshots, COMMIT));
    expect(resolve('org/name', 'refs/pr/1')).toBe(join(snapshots, OTHER));
    expect(resolve('org/name', OTHER)).toBe(join(snapshots, OTHER));
    expect(resolve('gpt2')).toBe(join(hub, 'models--gpt2', 'snapshots', COMMIT));
  });

  it('names both places when there is no model', () => {
    const error = failure('org/nane');
    expect(error.details.looked).toEqual([join(process.cwd(), 'org/nane'), hub]);
    for (const place of error.details.looked as string[]) expect(error.message).toContain(place);
    expect(error.hint).toBe('did you mean org/name?');
    expect(failure('nothing/like/it').hint).toContain('HF_HOME');
    expect(failure(join(root, 'empty')).message).toContain('a folder without config.json');
    expect(failure(join(root, 'folder', 'config.json')).message).toContain('a file at');
    expect(failure('').message).not.toContain('\n');
  });

  it('names what is missing of a cached model', () => {
    expect(failure('org/name', 'v9').message).toContain('expected revision v9');
    expect(failure('org/name', 'v9').hint).toContain('main');
    expect(failure('org/unfinished').message).toContain('no config.json');
  });

  it('never leaves the cache', () => {
    writeFileSync(join(root, 'config.json'), '{}');
    const names = [
      'org/../../..',
      '..',
      '../..',
      'org/..',
      'a/b/c',
      '/etc/',
      'org\\..\\x',
      'models--org--name',
      'x\0y',
      '.',
      'org/name/..',
    ];
    for (const name of names) {
      try {
        expect(resolve(name).startsWith(hub), name).toBe(false); // a folder on the disk, found as a folder
      } catch (error) {
        expect(error, name).toBeInstanceOf(ModelNotFoundError);
      }
    }
    for (const revision of ['../../..', '..', '/etc/passwd', 'evil', '', 'a/../b', 'x\0'])
      failure('org/name', revision);
  });
});

describe('hubCacheFolder', () => {
  it('reads the variables of the Python client in its order', () => {
    const all = { HF_HUB_CACHE: '/a', HUGGINGFACE_HUB_CACHE: '/b', HF_HOME: '/c', XDG_CACHE_HOME: '/d' };
    expect(hubCacheFolder(all)).toBe('/a');
    expect(hubCacheFolder({ ...all, HF_HUB_CACHE: undefined })).toBe('/b');
    expect(hubCacheFolder({ HF_HOME: '~/hf', XDG_CACHE_HOME: '/d' })).toBe(join(homedir(), 'hf/hub'));
    expect(hubCacheFolder({ XDG_CACHE_HOME: '/d' })).toBe('/d/huggingface/hub');
    expect(hubCacheFolder({})).toBe(join(homedir(), '.cache/huggingface/hub'));
  });
});
