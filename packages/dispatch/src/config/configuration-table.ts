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

/**
 * Two tables: the keys of the file, and those of `generation`. A key without flag and variable can be set in the file
 * only.
 */
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
    return [code(key), valuesOf(schema), code(flag), code(variable), schema.description ?? ''];
  });
  return markdownTable([['key', 'value', 'flag', 'variable', 'meaning'], ...rows]);
}

/** A table with its columns aligned, as the formatter writes it; the first row is the header. */
export function markdownTable(rows: readonly string[][]): string {
  const cells = rows.map((row) => row.map((cell) => cell.replaceAll('|', '\\|')));
  const widths = (cells[0] ?? []).map((_, c) => Math.max(3, ...cells.map((row) => row[c]?.length ?? 0)));
  const lines = cells.map((row) => `| ${widths.map((width, c) => (row[c] ?? '').padEnd(width)).join(' | ')} |`);
  return [lines[0], `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`, ...lines.slice(1)].join('\n');
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
