/**
 * Tables of the command line: box drawing where it fits the terminal, else the same cells as a list. No colours.
 */
const WRAPPED_WIDTH = 46;
const LEAST_WRAPPED_WIDTH = 16;

export interface TableOptions {
  /** A last row below a rule of its own. */
  totals?: readonly string[];
  /** How many columns are left-aligned, from the first on. Default 2. */
  leftColumns?: number;
  /** Columns of the terminal; undefined (a file, a pipe): as wide as the table is. */
  columns?: number | undefined;
}

/** The second column wraps at its commas and gives way first; what is still too wide becomes a list, a row a heading. */
export function drawTable(header: readonly string[], rows: readonly string[][], options: TableOptions = {}): string {
  const { totals, leftColumns = 2, columns = Number.POSITIVE_INFINITY } = options;
  const texts = [header, ...rows, ...(totals === undefined ? [] : [totals])];
  const widthAt = (c: number, limit: number): number =>
    Math.max(...texts.flatMap((row) => cellLines(row[c] ?? '', c, limit).map((line) => line.length)));
  const widthsFor = (limit: number): number[] => header.map((_, c) => widthAt(c, limit));
  const over = tableWidth(widthsFor(WRAPPED_WIDTH)) - columns;
  const limit = over <= 0 ? WRAPPED_WIDTH : Math.max(LEAST_WRAPPED_WIDTH, widthAt(1, WRAPPED_WIDTH) - over);
  const widths = widthsFor(limit);
  if (tableWidth(widths) > columns) return drawList(header, texts.slice(1), columns);

  const rule = (left: string, middle: string, right: string): string =>
    `${left}${widths.map((w) => '─'.repeat(w + 2)).join(middle)}${right}`;
  const drawRow = (row: readonly string[]): string[] => {
    const lines = widths.map((_, c) => cellLines(row[c] ?? '', c, limit));
    const height = Math.max(...lines.map(({ length }) => length));
    const line = (i: number): string => widths.map((w, c) => pad(lines[c]?.[i] ?? '', w, c < leftColumns)).join(' │ ');
    return Array.from({ length: height }, (_, i) => `│ ${line(i)} │`);
  };
  const middle = rule('├', '┼', '┤');
  const last = totals === undefined ? [] : [middle, ...drawRow(totals)];
  const body = rows.flatMap(drawRow);
  return [rule('┌', '┬', '┐'), ...drawRow(header), middle, ...body, ...last, rule('└', '┴', '┘')].join('\n');
}

const tableWidth = (widths: readonly number[]): number => widths.reduce((sum, width) => sum + width + 3, 1);

const cellLines = (cell: string, column: number, limit: number): string[] =>
  column === 1 ? wrap(cell.split(/(?<=[,;]) /), limit) : [cell];

function pad(text: string, width: number, left: boolean): string {
  return left ? text.padEnd(width) : text.padStart(width);
}

/** Lines of at most `width`, broken between the parts alone. */
function wrap(parts: readonly string[], width: number): string[] {
  const lines = [''];
  for (const part of parts) {
    const line = lines.at(-1) as string;
    if (line === '') lines[lines.length - 1] = part;
    else if (line.length + 1 + part.length <= width) lines[lines.length - 1] = `${line} ${part}`;
    else lines.push(part);
  }
  return lines;
}

/** `cpu:0`, and indented below it `weights 1.0 GiB, KV cache 640 KiB, …`; empty cells are left out. */
function drawList(header: readonly string[], rows: readonly (readonly string[])[], columns: number): string {
  return rows
    .flatMap(([heading = '', ...cells]) => {
      const named = cells.flatMap((cell, c) => (cell === '' ? [] : [`${header[c + 1]} ${cell}`]));
      const parts = named.flatMap((part, i) => `${part}${i + 1 < named.length ? ';' : ''}`.split(/(?<=[,;]) /));
      return [heading, ...wrap(parts, columns - 2).map((line) => `  ${line}`)];
    })
    .join('\n');
}
