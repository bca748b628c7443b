/** The arrows between packages: who may import whom, as ARCHITECTURE.md draws them. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const ALLOWED: Record<string, string[]> = {
  core: [],
  meta: ['core'],
  cpu: ['core'],
  cuda: ['core'],
  dispatch: ['core', 'meta', 'cpu', 'cuda'],
  metashard: ['core', 'meta', 'cpu', 'cuda', 'dispatch'],
};
const PACKAGES = fileURLToPath(new URL('../packages/', import.meta.url));

describe.each(Object.keys(ALLOWED))('%s', (name) => {
  it('imports only what the picture allows', () => {
    const allowed = new Set((ALLOWED[name] as string[]).map((one) => `@metashard/${one}`));
    const manifest = JSON.parse(readFileSync(`${PACKAGES}${name}/package.json`, 'utf8')) as {
      dependencies: Record<string, string>;
    };
    const declared = Object.keys(manifest.dependencies).filter((one) => one.startsWith('@metashard/'));
    expect(declared.filter((one) => !allowed.has(one))).toEqual([]);
    for (const entry of readdirSync(`${PACKAGES}${name}/src`, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || !entry.name.endsWith('.ts')) continue;
      const file = `${entry.parentPath}/${entry.name}`;
      const imported = [...readFileSync(file, 'utf8').matchAll(/from '(@metashard\/[a-z]+)(?:\/[^']*)?'/g)].map(
        (match) => match[1] as string,
      );
      expect(
        imported.filter((one) => !declared.includes(one) && one !== `@metashard/${name}`),
        file,
      ).toEqual([]);
    }
  });
});

describe('importing metashard', () => {
  /** Imports metashard where resolving one of these packages throws, then parses a configuration. */
  const script = (packages: string) => `
    import { register } from 'node:module';
    const hook = \`export async function resolve(name, context, next) {
      const found = await next(name, context);
      if (/node_modules.(${packages})./.test(found.url)) throw new Error('it loads ' + found.url);
      return found;
    }\`;
    register('data:text/javascript,' + encodeURIComponent(hook));
    const { parseConfig } = await import('metashard');
    console.log(parseConfig('model: x').model);`;
  const run = (packages: string): string =>
    execFileSync(process.execPath, ['--input-type=module', '-e', script(packages)], {
      cwd: fileURLToPath(new URL('.', import.meta.url)),
      encoding: 'utf8',
      stdio: 'pipe',
    });

  it('leaves the libraries of configuration and command line to the first call', () => {
    expect(run('zod|yaml|commander|cli-progress|picocolors')).toBe('x\n');
    expect(() => run('piscina')).toThrow('it loads');
  });
});
