/** What the README and the examples show, run as a reader would run it. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

function run(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, {
    cwd: ROOT,
    encoding: 'utf8',
    timeout: 60_000,
  });
  expect(status, stderr).toBe(0);
  return stdout;
}

it('the 8-bit walk-through runs', () => {
  expect(run('examples/linear8bitlt/main.mjs')).toContain('native quantizations of this weight: 1');
});

it('a model of BLOOM’s 70 blocks runs over eight devices as on one', () => {
  const shown = run('examples/bloom-176b/main.mjs', '4x80GB');
  expect(shown).toContain(readFileSync(join(ROOT, 'examples/bloom-176b/4x80GB.txt'), 'utf8').split('\n')[1]);
  expect(shown).toMatch(/^│ cpu:7 +│ h\.6\d–h\.69, ln_f, lm_head/m);
  expect(shown).toContain('16 tokens over 8 devices, the same as on one');
});

it('the README’s programs run as they stand', () => {
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
  const programs = [...readme.matchAll(/```js\n([\s\S]*?)```/g)].map((match) => match[1] as string);
  expect(programs).toHaveLength(2);
  const outputs = programs.map((program, i) => {
    const file = join(ROOT, 'examples', `readme-${process.pid}-${i}.mjs`);
    writeFileSync(file, program);
    try {
      return run(file);
    } finally {
      rmSync(file);
    }
  });
  expect(outputs[0]?.length).toBeGreaterThan(100);
  expect(outputs[1]).toContain('[ 5, 8 ]');
});

it('the README’s YAML tells a story', () => {
  const yaml = /```yaml\n(# story\.yaml[\s\S]*?)```/.exec(readFileSync(join(ROOT, 'README.md'), 'utf8'))?.[1] as string;
  const folder = mkdtempSync(join(tmpdir(), 'metashard-readme-'));
  const file = join(folder, 'story.yaml');
  writeFileSync(file, yaml);
  expect(run('packages/metashard/bin/metashard.js', 'run', file).length).toBeGreaterThan(100);
  rmSync(folder, { recursive: true });
});
