// Packs every package, installs the tarballs into an empty folder as a user would, and runs there the README's first
// program and `npx metashard --help`.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = mkdtempSync(join(tmpdir(), 'metashard-install-'));

function run(command, args, cwd) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (error !== undefined || status !== 0)
    throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? `${stdout}\n${stderr}`}`);
  return stdout;
}

try {
  const pnpm = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).packageManager.split('+')[0];
  for (const name of readdirSync(join(root, 'packages'))) {
    run('npx', ['--yes', pnpm, 'pack', '--pack-destination', folder], join(root, 'packages', name));
  }
  const tarballs = readdirSync(folder).filter((file) => file.endsWith('.tgz'));
  writeFileSync(join(folder, 'package.json'), '{ "private": true, "type": "module" }');
  run('npm', ['install', '--no-audit', '--no-fund', ...tarballs.map((file) => `./${file}`)], folder);
  const program = /```js\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8'))[1];
  writeFileSync(join(folder, 'program.mjs'), program);
  const story = run(process.execPath, ['program.mjs', join(root, 'models/bloom-stories')], folder);
  if (story.length < 100) throw new Error(`the README's program told too little: ${JSON.stringify(story)}`);
  const help = run('npx', ['metashard', '--help'], folder);
  if (!help.includes('metashard')) throw new Error(`npx metashard --help: ${help}`);
  console.log(`${tarballs.length} packages packed, installed and run in an empty folder`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
