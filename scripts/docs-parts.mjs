/**
 * The parts of the documentation that are made from the sources or by running a command: per page, text by the name of
 * its mark. `write-docs.mjs` puts them there, test/docs.test.ts sees that they are current. Needs a build.
 */

import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { runCli } from '../packages/dispatch/dist/cli/index.js';
import { configurationTables, markdownTable } from '../packages/dispatch/dist/config/configuration-table.js';
import { estimateModel } from '../packages/dispatch/dist/index.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const BLOOM = 'examples/bloom-176b';
const HEAD_RETURNS = { 'transformer.h.4': 1, 'transformer.h.5': 1, 'transformer.h.6': 1, 'transformer.h.7': 1, '': 0 };

/** Page → name → Markdown. Times rest on datasheet figures, also on a machine that was calibrated. */
export async function docsParts() {
  process.env.METASHARD_CACHE = join(tmpdir(), 'metashard-without-calibration');
  return {
    'docs/configuration.md': configurationTables(),
    'docs/device-maps.md': {
      plan: await command('plan', `${BLOOM}/8x40GB.yaml`),
      'what-if': await command(
        'plan',
        `${BLOOM}/4x80GB.yaml`,
        '--what-if',
        'devices=3,4',
        '--what-if',
        'max_batch_size=1,4',
      ),
      returns: await returningHead(),
    },
    [`${BLOOM}/README.md`]: { gpus: await gpuTable() },
  };
}

/** A command and what it prints, paths as seen from the repository. */
async function command(...args) {
  const shown = args.map((arg) => (/["{]/.test(arg) ? `'${arg}'` : arg)).join(' ');
  return fenced(`$ npx metashard ${shown}\n${await output(args)}`);
}

async function output(args) {
  const [stdout, stderr] = [new PassThrough({ highWaterMark: 2 ** 20 }), new PassThrough()];
  const given = args.map((arg) => (/^(?:examples|models)\//.test(arg) ? root + arg : arg));
  const code = await runCli(given, { stdin: Readable.from([]), stdout, stderr, env: {} });
  if (code !== 0) throw new Error(`metashard ${args.join(' ')}: ${stderr.read()}`);
  return String(stdout.read()).trimEnd();
}

/** Blocks 4 to 7 of a small model on the second GPU, all else on the first. */
async function returningHead() {
  const args = ['plan', 'models/bloom-stories', '--load-in-8bit', '--max-seq-len', '256', '--devices', '0,1'];
  const memory = ['--max-memory', '0=16MiB,1=16MiB'];
  return fenced(await output([...args, ...memory, '--device-map', JSON.stringify(HEAD_RETURNS)]));
}

async function gpuTable() {
  const { setups } = await estimateModel(root + BLOOM);
  const rows = setups
    .filter(({ name }) => !name.startsWith('CPU'))
    .map(({ name, memoryBytes, count }) => [name, `${memoryBytes / 2 ** 30} GiB`, String(count ?? 'no')]);
  return markdownTable([['GPU', 'memory', 'needed'], ...rows]);
}

function fenced(text) {
  return `\`\`\`\n${text}\n\`\`\``;
}

/** The page with each part between its marks, `<!-- NAME -->` and `<!-- /NAME -->`. */
export function placeParts(page, text, parts) {
  return Object.entries(parts).reduce((filled, [name, part]) => {
    const [start, end] = [`<!-- ${name} -->\n`, `\n<!-- /${name} -->`];
    const [from, to] = [filled.indexOf(start), filled.indexOf(end)];
    if (from < 0 || to < from) throw new Error(`${page}: expected the marks ${start.trim()} and ${end.trim()}`);
    return `${filled.slice(0, from + start.length)}\n${part}\n${filled.slice(to)}`;
  }, text);
}
