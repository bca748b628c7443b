/** A comparison as tables for people. */
import { drawTable } from '../draw-table.js';
import type { QuantComparison, QuantResult } from './compare-quantization.js';
import type { OutlierReport } from './outlier-watch.js';

const SHOWN_COLUMNS = 4;

/**
 * One row per method, as the paper's Table 1; below it what was left in float, and the outlier report if there is one.
 */
export function formatQuantComparison(
  comparison: QuantComparison,
  { columns }: { columns?: number | undefined } = {},
): string {
  const { model, windows, tokens, linears, skipped, results, outliers } = comparison;
  const title = `${model}: ${linears} linears, ${windows} windows, ${tokens.toLocaleString('en-US')} tokens predicted`;
  const reasons = [...new Set(skipped.map(({ reason }) => reason))];
  const notes = reasons.map((reason) => {
    const names = skipped.filter((one) => one.reason === reason).map(({ module }) => module);
    return `left in float (${reason}): ${names.join(', ')}`;
  });
  const report = outliers === null ? [] : ['', formatOutliers(outliers.threshold, outliers.inputs, columns)];
  return [title, formatQualityTable(results, columns), ...notes, ...report].join('\n');
}

/** The table alone. */
export function formatQualityTable(results: readonly QuantResult[], columns?: number): string {
  const asksWords = results.some(({ lastWordAccuracy }) => lastWordAccuracy !== null);
  const header = [
    'method',
    'perplexity',
    'against float',
    'next token',
    'as float',
    ...(asksWords ? ['last word'] : []),
    'outlier columns',
  ];
  const rows = results.map((result) => [
    result.label,
    result.perplexity.toFixed(result.perplexity < 10 ? 4 : 2),
    result.method === 'float' ? '' : againstFloat(result),
    percent(result.nextTokenAccuracy),
    result.method === 'float' ? '' : percent(result.agreement),
    ...(asksWords ? [result.lastWordAccuracy === null ? '–' : percent(result.lastWordAccuracy)] : []),
    result.threshold === 0 ? '' : result.outlierColumns.toFixed(1),
  ]);
  return drawTable(header, rows, { leftColumns: 1, columns });
}

/** `+0.31 % ± 0.05`: by how much the perplexity rose, with one standard error. */
function againstFloat({ difference, standardError }: QuantResult): string {
  const rise = 100 * Math.expm1(difference);
  const error = Number.isNaN(standardError) ? '' : ` ± ${(100 * standardError * Math.exp(difference)).toFixed(2)}`;
  return `${rise < 0 ? '' : '+'}${rise.toFixed(2)} %${error}`;
}

function percent(share: number): string {
  if (share > 0 && share < 0.0005) return '< 0.1 %';
  return `${(100 * share).toFixed(1)} %`;
}

/** Where outliers are: a row per input of linears that has any. */
export function formatOutliers(threshold: number, inputs: readonly OutlierReport[], columns?: number): string {
  const met = inputs.filter(({ columns }) => columns.length > 0);
  const quiet = inputs.length - met.length;
  const title = `outliers from ${threshold} on, in ${met.length} of ${inputs.length} inputs of linears`;
  const rows = met.map((input) => [
    shortenLinears(input.linears),
    input.columns.slice(0, SHOWN_COLUMNS).map(describeColumn).join('; ') +
      (input.columns.length > SHOWN_COLUMNS ? `; and ${input.columns.length - SHOWN_COLUMNS} more` : ''),
    `${input.columnsPerWindow.toFixed(1)} of ${input.inFeatures}`,
    percent(input.rows),
    input.largest.toFixed(1),
    input.largestOther.toFixed(1),
  ]);
  const header = ['input of', 'columns: rows, windows, largest', 'columns a window', 'rows', 'largest', 'others'];
  const loudest =
    quiet === 0 ? [] : [`none in ${quiet} inputs, whose largest value is ${loudestOf(inputs).toFixed(1)}`];
  return [title, ...(rows.length > 0 ? [drawTable(header, rows, { columns })] : []), ...loudest].join('\n');
}

function describeColumn({ column, rows, windows, largest }: OutlierReport['columns'][number]): string {
  return `${column}: ${percent(rows)}, ${percent(windows)}, ${largest.toFixed(1)}`;
}

function loudestOf(inputs: readonly OutlierReport[]): number {
  return inputs.filter(({ columns }) => columns.length === 0).reduce((most, { largest }) => Math.max(most, largest), 0);
}

/** `layers.0.self_attn.q_proj`, `….k_proj` → `layers.0.self_attn.q_proj, k_proj`. */
function shortenLinears([first = '', ...others]: readonly string[]): string {
  const parent = first.slice(0, first.lastIndexOf('.') + 1);
  return [first, ...others.map((path) => (path.startsWith(parent) ? path.slice(parent.length) : path))].join(', ');
}
