/**
 * The JSON Schema (draft 7, what yaml-language-server reads) of metashard.yaml, made from the zod schema.
 * `scripts/write-schema.mjs` writes the file.
 */
import { z } from 'zod';
import { runConfigSchema } from './run-config.js';

/** A plain JSON object; the same for the same version of the schema. */
export function runConfigJsonSchema(): Record<string, unknown> {
  const { $schema, ...rest } = z.toJSONSchema(runConfigSchema, { target: 'draft-7', io: 'input' });
  return {
    $schema,
    title: 'metashard.yaml',
    description:
      'What metashard run and metashard plan take: a model, the devices it is spread over, and how text is generated.',
    ...rest,
  };
}

/** Its text as checked in. */
export function runConfigJsonSchemaText(): string {
  return `${JSON.stringify(runConfigJsonSchema(), null, 2)}\n`;
}
