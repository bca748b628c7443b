/**
 * Writes packages/metashard/schema/metashard.schema.json from the zod schema of the configuration. Run it after a build
 * when the schema changes.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runConfigJsonSchemaText } from '../packages/dispatch/dist/config/json-schema.js';

const file = fileURLToPath(new URL('../packages/metashard/schema/metashard.schema.json', import.meta.url));
mkdirSync(dirname(file), { recursive: true });
writeFileSync(file, runConfigJsonSchemaText());
console.log(`wrote ${file}`);
