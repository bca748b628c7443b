/**
 * Linear8bitLt: a linear layer in LLM.int8() (Dettmers et al. 2022), with bitsandbytes' constructor and state dict
 * (`weight` int8, `SCB`, `weight_format`). All 8-bit state is in its weight, an Int8Params. `train` and `eval` compute
 * the same.
 */
import { elementCount, F, formatDims, ShapeError, type Tensor, tensor, zeros } from '@metashard/core';
import { withEmptyMode } from './empty-mode.js';
import { Int8Params } from './int8-params.js';
import { int8State, planInt8Weight } from './int8-state.js';
import { Linear, type LinearOptions } from './nn/linear.js';
import { onRows } from './nn/rows.js';
import { Parameter } from './parameter.js';
import type { LoadPlan } from './state-dict.js';
import { transposedView } from './transposed-view.js';

/**
 * What the int8 weights are multiplied with: activations quantized by row with outliers in float (LLM.int8()), float
 * ones, or float ones that may be rounded to bfloat16 where there are many rows (faster prompts on processors made for
 * it).
 */
export type Int8Activations = 'int8' | 'float' | 'bfloat16';

export interface Int8LayerOptions {
  /** Keep float master weights and quantize them in each forward; false: quantize once, on reaching a real device. */
  hasFp16Weights?: boolean;
  /** Outlier threshold τ: activations of magnitude τ and above are multiplied in float; 0: none. */
  threshold?: number;
  /** Whole outlier columns of a forward (as published), or each row's own outliers (independent of batch mates). */
  outliers?: 'per-batch' | 'per-row';
  /** Default int8. With the others there are no outliers: threshold and `outliers` have no effect. */
  activations?: Int8Activations;
}
export type Linear8bitLtOptions = LinearOptions & Int8LayerOptions;

/** Gradients of one backward pass; null where there is nothing to train. */
export interface Linear8bitLtGradients {
  gradInput: Tensor;
  gradWeight: Tensor | null;
  gradBias: Tensor | null;
}

export class Linear8bitLt extends Linear {
  /** With a plain Parameter in its place (a tied one, say) the layer is an ordinary Linear. */
  declare weight: Int8Params;
  readonly hasFp16Weights: boolean;
  readonly threshold: number;
  readonly outliers: 'per-batch' | 'per-row';
  readonly activations: Int8Activations;

  /** bitsandbytes' defaults: bias, `hasFp16Weights: true`, threshold 0. */
  constructor(
    inFeatures: number,
    outFeatures: number,
    {
      hasFp16Weights = true,
      threshold = 0,
      outliers = 'per-batch',
      activations = 'int8',
      ...linear
    }: Linear8bitLtOptions = {},
  ) {
    super(inFeatures, outFeatures, linear);
    this.hasFp16Weights = hasFp16Weights;
    this.threshold = threshold;
    this.outliers = outliers;
    this.activations = activations;
    this.weight = new Int8Params(this.weight.data, { hasFp16Weights });
  }

  /**
   * The 8-bit twin of a float layer: shares its bias and, until it is quantized, its weights' storage; on meta if the
   * layer is.
   */
  static fromLinear(linear: Linear, options: Int8LayerOptions = {}): Linear8bitLt {
    const { inFeatures, outFeatures, training } = linear;
    const layer = withoutMemory(() => new Linear8bitLt(inFeatures, outFeatures, { ...options, bias: false }));
    const { storedTransposed } = linear.weight;
    layer.weight = new Int8Params(linear.weight.data, { hasFp16Weights: layer.hasFp16Weights, storedTransposed });
    layer.bias = linear.bias;
    layer.training = training;
    return layer;
  }

  /** x [..., in] → [..., out] in x's dtype. Float weights on a real device are quantized first, once. */
  override forward(x: Tensor): Tensor {
    if (!this.#isInt8()) return super.forward(x);
    return onRows('Linear8bitLt', x, this.inFeatures, (rows) => {
      const { CB, SCB } = this.weight.forForward(x.isMeta);
      if (this.activations === 'int8') return F.int8Linear(rows, CB, SCB, this.bias, this);
      return F.int8WeightLinear(rows, CB, SCB, this.bias, { bfloat16: this.activations === 'bfloat16' });
    });
  }

  /**
   * Gradients for x [..., in] and gradOutput [..., out]: dX = g · (CB · SCB / 127), without outlier treatment; dW = gᵀ
   * · x for float master weights, else null; dBias = Σ g over rows. In float32, rounded once to the dtype of x, weight
   * and bias.
   */
  backward(x: Tensor, gradOutput: Tensor): Linear8bitLtGradients {
    const { CB, SCB } = this.weight.forForward(x.isMeta);
    const rows = elementCount(x.shape) / this.inFeatures;
    if (gradOutput.numel !== rows * this.outFeatures) {
      const wanted = formatDims([...x.dims.slice(0, -1), this.outFeatures]);
      throw new ShapeError(`Linear8bitLt.backward: expected gradOutput ${wanted}, got ${formatDims(gradOutput.dims)}`);
    }
    const g = F.cast(gradOutput.contiguous().reshape([rows, this.outFeatures]), 'float32'); // [T, out]
    const gradInput = F.linear(g, transposed(F.dequantizeWeight(CB, SCB))); // [T, in]
    const flat = F.cast(x.contiguous().reshape([rows, this.inFeatures]), 'float32'); // [T, in]
    return {
      gradInput: F.cast(gradInput, x.dtype).reshape(x.shape),
      gradWeight: this.hasFp16Weights ? F.cast(outerSum(g, flat), this.weight.dtype) : null,
      gradBias: this.bias === null ? null : F.cast(rowSum(g), this.bias.dtype),
    };
  }

  /** The weights in float32 [out, in]: CB · SCB / 127 along the rows. */
  dequantize(): Tensor {
    return this.#isInt8() ? this.weight.dequantize() : F.to((this.weight as Parameter).data, { dtype: 'float32' });
  }

  /** A deep copy: its own storage, same state. */
  clone(): Linear8bitLt {
    const { inFeatures, outFeatures, hasFp16Weights, threshold, outliers, activations, bias, training } = this;
    const options = { hasFp16Weights, threshold, outliers, activations, bias: false };
    const copy = withoutMemory(() => new Linear8bitLt(inFeatures, outFeatures, options));
    copy.weight = this.weight.clone();
    copy.bias = bias === null ? null : new Parameter(F.clone(bias), { requiresGrad: bias.requiresGrad });
    copy.training = training;
    return copy;
  }

  #isInt8(): boolean {
    return this.weight instanceof Int8Params;
  }

  /** `weight`, `bias`, and once quantized `SCB` and `weight_format` (0: rows). */
  override ownState(): [string, Tensor][] {
    return this.#isInt8() ? [...super.ownState(), ...int8State(this.weight)] : super.ownState();
  }

  /** Float weights, or int8 ones with their SCB; before or after a move or a forward. */
  protected override planParameter(prefix: string, name: string, parameter: Parameter, plan: LoadPlan): void {
    if (name === 'weight' && plan.source.has(`${prefix}weight`)) planInt8Weight(prefix, parameter, plan);
    else super.planParameter(prefix, name, parameter, plan);
  }
}

/** Builds a layer whose parameters are replaced at once: they take no memory. */
function withoutMemory<T>(build: () => T): T {
  return withEmptyMode({ includeBuffers: false }, build);
}

/** A matrix with its dimensions swapped, lying densely. */
function transposed(matrix: Tensor): Tensor {
  return transposedView(matrix).contiguous();
}

/** aᵀ · b for a [T, out] and b [T, in]: [out, in]. */
function outerSum(a: Tensor, b: Tensor): Tensor {
  if (a.dims[0] === 0) return zeros([a.dims[1] as number, b.dims[1] as number], { device: a.device });
  return F.linear(transposed(a), transposed(b));
}

/** Sum over the rows of a [T, out]: [out]. */
function rowSum(a: Tensor): Tensor {
  const [rows, columns] = a.shape as [number, number];
  if (rows === 0) return zeros([columns], { device: a.device });
  const ones = tensor(new Float32Array(rows).fill(1), { shape: [1, rows], device: a.device });
  return F.linear(ones, transposed(a)).reshape([columns]);
}
