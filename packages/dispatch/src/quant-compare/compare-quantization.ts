/**
 * `compareQuantization`: what each quantization method costs a model on a text, measured one method after another over
 * the same windows, as in the paper's Table 1 (Dettmers et al. 2022).
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { DevicePlan } from '../plan.js';
import { loadTokenizer } from '../tokenizer.js';
import { EagerModel, type EagerModelOptions } from './eager-model.js';
import { type OutlierReport, OutlierWatch } from './outlier-watch.js';
import { type QuantMethod, quantMethods } from './quant-methods.js';
import { type QuantQuality, scoreWindow, summarize, type WindowScore } from './score.js';
import { makeWindows, type QuantText, type TextWindow, type WindowOptions } from './text-windows.js';

export interface QuantProgress {
  /** Label of the method. */
  method: string;
  window: number;
  windows: number;
}

export interface QuantCompareOptions extends EagerModelOptions, WindowOptions {
  /** Names of `quantMethods`; default all. float is always measured. */
  methods?: readonly string[] | undefined;
  /** Outlier thresholds of the decomposed methods. Default 6 and 3. */
  thresholds?: readonly number[] | undefined;
  /** Report outliers from this magnitude on. Default: no report. */
  outliersFrom?: number | undefined;
  onProgress?: ((progress: QuantProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface QuantResult extends QuantQuality {
  method: string;
  label: string;
  /** 0: no outlier decomposition. */
  threshold: number;
  /** Mean over linears and windows: columns that went to float. Outliers per row count with all their columns. */
  outlierColumns: number;
  seconds: number;
}

export interface QuantComparison {
  model: string;
  windows: number;
  /** Tokens predicted. */
  tokens: number;
  /** Linears that were quantized. */
  linears: number;
  /** Linears left in float, and why. */
  skipped: DevicePlan['skipped'];
  /** float first. */
  results: QuantResult[];
  outliers: { threshold: number; inputs: OutlierReport[] } | null;
}

/**
 * Measures methods on a text, on the CPU in float32, every window by itself. Memory: the weights in their dtype, those
 * of one method, the activations and logits of one window. Throws what `loadModel` throws for the model, ArgumentError
 * for methods, thresholds and windows, and the signal's reason.
 */
export async function compareQuantization(
  nameOrFolder: string,
  text: QuantText,
  { methods, thresholds, outliersFrom, onProgress, signal, ...options }: QuantCompareOptions = {},
): Promise<QuantComparison> {
  const chosen = quantMethods(methods, thresholds);
  const session = await QuantSession.open(nameOrFolder, text, options);
  try {
    const watch = outliersFrom === undefined ? null : new OutlierWatch(outliersFrom);
    const results: QuantResult[] = [];
    for (const method of chosen) {
      results.push(
        await session.measure(method, { watch: method.name === 'float' ? watch : null, onProgress, signal }),
      );
    }
    const outliers = watch === null ? null : { threshold: watch.threshold, inputs: watch.report() };
    return { ...session.facts(), results, outliers };
  } finally {
    session.dispose();
  }
}

interface MeasureOptions {
  watch?: OutlierWatch | null;
  onProgress?: QuantCompareOptions['onProgress'];
  signal?: AbortSignal | undefined;
}

/** A model and its windows, measured method by method; float has to be the first. */
export class QuantSession {
  readonly #model: EagerModel;
  readonly #windows: readonly TextWindow[];
  #float: WindowScore[] = [];

  private constructor(model: EagerModel, windows: readonly TextWindow[]) {
    this.#model = model;
    this.#windows = windows;
  }

  static async open(
    nameOrFolder: string,
    text: QuantText,
    options: EagerModelOptions & WindowOptions,
  ): Promise<QuantSession> {
    const model = await EagerModel.open(nameOrFolder, options);
    try {
      const { folder, config } = model.source;
      const tokenizer = await loadTokenizer(folder);
      return new QuantSession(model, makeWindows(text, tokenizer, config.maxPositionEmbeddings, options));
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  facts(): Pick<QuantComparison, 'model' | 'windows' | 'tokens' | 'linears' | 'skipped'> {
    const { source, linears } = this.#model;
    return {
      model: source.folder,
      windows: this.#windows.length,
      tokens: this.#windows.reduce((sum, { ids }) => sum + ids.length - 1, 0),
      linears: linears.size,
      skipped: source.skipped,
    };
  }

  /** Runs all windows with one method. */
  async measure(method: QuantMethod, { watch = null, onProgress, signal }: MeasureOptions = {}): Promise<QuantResult> {
    const started = performance.now();
    const products = this.#model.use(method);
    for (const [path, linear] of this.#model.linears) {
      linear.watch = watch === null ? null : (x) => watch.observe(path, x);
    }
    const scores: WindowScore[] = [];
    for (const window of this.#windows) {
      signal?.throwIfAborted();
      onProgress?.({ method: method.label, window: scores.length, windows: this.#windows.length });
      scores.push(this.#model.forward(window.ids, (logits) => scoreWindow(logits, window)));
      await nextTurn(); // lets the process hear Ctrl-C, and the garbage collector's freed tensors go
    }
    if (method.name === 'float') this.#float = scores;
    return {
      method: method.name,
      label: method.label,
      threshold: method.threshold,
      ...summarize(scores, this.#float),
      outlierColumns: products.forwards === 0 ? 0 : products.outlierColumns / products.forwards,
      seconds: (performance.now() - started) / 1000,
    };
  }

  dispose(): void {
    this.#model.dispose();
  }
}
