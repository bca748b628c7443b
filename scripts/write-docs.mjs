/**
 * Writes the generated parts of the documentation (see docs-parts.mjs). Run it after a build when the configuration's
 * schema or a plan changes; test/docs.test.ts says when.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { docsParts, placeParts } from './docs-parts.mjs';

for (const [page, parts] of Object.entries(await docsParts())) {
  const file = fileURLToPath(new URL(`../${page}`, import.meta.url));
  const text = readFileSync(file, 'utf8');
  const written = placeParts(page, text, parts);
  if (written === text) continue;
  writeFileSync(file, written);
  console.log(`wrote ${page}`);
}
