/** Rows of results as a Markdown table that also reads well on a terminal. */

/** `header`: column names; numbers are right-aligned, and so is a column whose first cell starts with a digit. */
export function markdownTable(header, rows) {
  const cells = [header, ...rows].map((row) => row.map(String));
  const widths = header.map((_, column) => Math.max(3, ...cells.map((row) => (row[column] ?? '').length)));
  const right = header.map((_, column) => column > 0 && /^[\d–-]/.test(cells[1]?.[column] ?? ''));
  const pad = (text, column) => (right[column] ? text.padStart(widths[column]) : text.padEnd(widths[column]));
  const line = (row) => `| ${header.map((_, column) => pad(row[column] ?? '', column)).join(' | ')} |`;
  const rule = line(widths.map((width, column) => (right[column] ? `${'-'.repeat(width - 1)}:` : '-'.repeat(width))));
  return [line(cells[0]), rule, ...cells.slice(1).map(line)].join('\n');
}
