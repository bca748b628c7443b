/**
 * Writes the generated parts of docs/: the tables of keys in configuration.md, between the marks `<!-- NAME -->` and
 * `<!-- /NAME -->`. Run it after a build when the schema changes; test/docs.test.ts sees that it was.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { configurationTables } from '../packages/dispatch/dist/config/configuration-table.js';

const file = fileURLToPath(new URL('../docs/configuration.md', import.meta.url));
let text = readFileSync(file, 'utf8');
for (const [name, table] of Object.entries(configurationTables())) {
  const [start, end] = [`<!-- ${name} -->\n`, `\n<!-- /${name} -->`];
  const [from, to] = [text.indexOf(start), text.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${file}: expected the marks ${start.trim()} and ${end.trim()}`);
  text = `${text.slice(0, from + start.length)}\n${table}\n${text.slice(to)}`;
}
writeFileSync(file, text);
console.log(`wrote ${file}`);
