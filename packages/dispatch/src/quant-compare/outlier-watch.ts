/**
 * Which columns of the activations of each linear are outliers, how often and how large: what the threshold of
 * LLM.int8() acts on. Watches a float run; linears that get the same tensor (q, k and v) are one entry.
 */
import type { Tensor } from '@metashard/core';

export interface OutlierColumn {
  column: number;
  /** Share of all rows (tokens) in which it is an outlier. */
  rows: number;
  /** Share of windows in which it is one in any row. */
  windows: number;
  /** Largest magnitude. */
  largest: number;
}

export interface OutlierReport {
  /** Paths of linears that get the same input. */
  linears: string[];
  /** Features of the input. */
  inFeatures: number;
  /** Mean over windows: columns that go to float in one forward. */
  columnsPerWindow: number;
  /** Share of rows with any outlier. */
  rows: number;
  /** Share of values that are outliers. */
  values: number;
  /** Largest magnitude of any value. */
  largest: number;
  /** Largest magnitude of a value that is no outlier. */
  largestOther: number;
  /** Outlier columns, the most frequent first. */
  columns: OutlierColumn[];
}

interface Input {
  linears: string[];
  inFeatures: number;
  windows: number;
  rows: number;
  outlierRows: number;
  outliers: number;
  largestOther: number;
  /** Per column: rows, windows, largest magnitude. */
  columnRows: Uint32Array;
  columnWindows: Uint32Array;
  columnLargest: Float32Array;
}

export class OutlierWatch {
  readonly #inputs = new Map<string, Input>();
  /** The path that met the tensor of now first. */
  #current: { x: Tensor; path: string } | null = null;

  constructor(readonly threshold: number) {}

  /** Counts the input x [T, K] of the linear at `path`. */
  observe(path: string, x: Tensor): void {
    if (this.#current?.x === x) {
      const shared = this.#inputs.get(this.#current.path);
      if (shared !== undefined && !shared.linears.includes(path)) shared.linears.push(path);
      return;
    }
    this.#current = { x, path };
    const input = this.#inputs.get(path) ?? newInput(path, x.dims[1] as number);
    this.#inputs.set(path, input);
    count(input, x.contiguous().toFloat32Array(), this.threshold);
  }

  /** One entry per distinct input, in the order they were met. */
  report(): OutlierReport[] {
    return [...this.#inputs.values()].map(reportOf);
  }
}

function newInput(path: string, inFeatures: number): Input {
  return {
    linears: [path],
    inFeatures,
    windows: 0,
    rows: 0,
    outlierRows: 0,
    outliers: 0,
    largestOther: 0,
    columnRows: new Uint32Array(inFeatures),
    columnWindows: new Uint32Array(inFeatures),
    columnLargest: new Float32Array(inFeatures),
  };
}

function count(input: Input, values: Float32Array, threshold: number): void {
  const { inFeatures: K, columnRows, columnWindows, columnLargest } = input;
  const before = columnRows.slice();
  for (let start = 0; start < values.length; start += K) {
    const already = input.outliers;
    for (let k = 0; k < K; k++) {
      const magnitude = Math.abs(values[start + k] as number);
      if (magnitude < threshold) {
        if (magnitude > input.largestOther) input.largestOther = magnitude;
        continue;
      }
      input.outliers++;
      columnRows[k] = (columnRows[k] as number) + 1;
      if (!(magnitude <= (columnLargest[k] as number))) columnLargest[k] = magnitude; // NaN stays
    }
    input.rows++;
    if (input.outliers > already) input.outlierRows++;
  }
  input.windows++;
  for (let k = 0; k < K; k++) {
    if ((columnRows[k] as number) > (before[k] as number)) columnWindows[k] = (columnWindows[k] as number) + 1;
  }
}

function reportOf(input: Input): OutlierReport {
  const { linears, inFeatures, windows, rows, outlierRows, outliers, largestOther } = input;
  const columns = [...input.columnRows.keys()].flatMap((column): OutlierColumn[] => {
    const [inRows, inWindows] = [input.columnRows[column] as number, input.columnWindows[column] as number];
    if (inRows === 0) return [];
    return [
      { column, rows: inRows / rows, windows: inWindows / windows, largest: input.columnLargest[column] as number },
    ];
  });
  return {
    linears,
    inFeatures,
    columnsPerWindow: columns.reduce((sum, column) => sum + column.windows, 0),
    rows: outlierRows / rows,
    values: outliers / (rows * inFeatures),
    largest: columns.reduce((most, { largest }) => Math.max(most, largest), largestOther),
    largestOther,
    columns: columns.sort((a, b) => b.rows - a.rows || b.largest - a.largest || a.column - b.column),
  };
}
