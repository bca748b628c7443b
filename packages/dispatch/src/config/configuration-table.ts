/**
 * The keys of metashard.yaml as Markdown tables for docs/configuration.md, from the same schema as everything else.
 * `scripts/write-docs.mjs` puts them there; a test sees that they are current.
 */
import { runConfigJsonSchema } from './json-schema.js';
import { environmentName, flagName, SETTINGS } from './settings.js';

interface JsonSchema {
  type?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: JsonSchema[];
  description?: string;
  properties?: Record<string, JsonSchema>;
}

/** Two tables: the keys of the file, and those of `generation`. A key without flag and variable can be set in the file only. */
export function configurationTables(): { keys: string; generation: string } {
  const { properties = {} } = runConfigJsonSchema() as JsonSchema;
  const { generation, ...keys } = properties;
  const own = { ...keys, generation: { ...generation, type: 'map' } };
  return { keys: table(own, ''), generation: table(generation?.properties ?? {}, 'generation.') };
}

function table(properties: Readonly<Record<string, JsonSchema>>, prefix: string): string {
  const rows = Object.entries(properties).map(([key, schema]) => {
    const setting = SETTINGS.find(({ path }) => path.join('.') === `${prefix}${key}`);
    const [flag, variable] = setting === undefined ? ['', ''] : [flagName(setting), environmentName(setting)];
    const cells = [code(key), valuesOf(schema), code(flag), code(variable), schema.description ?? ''];
    return `| ${cells.map(escapeCell).join(' | ')} |`;
  });
  return ['| key | value | flag | variable | meaning |', '| --- | --- | --- | --- | --- |', ...rows].join('\n');
}

/** `whole number`, `auto, balanced or map`: what a value looks like. */
function valuesOf(schema: JsonSchema): string {
  const { type, anyOf } = schema;
  if (anyOf !== undefined) return [...new Set(anyOf.map(valuesOf))].join(' or ');
  if (schema.enum !== undefined) return schema.enum.map(String).join(', ');
  if (schema.const !== undefined) return String(schema.const);
  const names: Record<string, string> = {
    boolean: 'true, false',
    integer: 'whole number',
    string: 'text',
    array: 'list',
    object: 'map',
  };
  return names[type ?? ''] ?? type ?? '';
}

function code(text: string): string {
  return text === '' ? '' : `\`${text}\``;
}

function escapeCell(text: string): string {
  return text.replaceAll('|', '\\|');
}
