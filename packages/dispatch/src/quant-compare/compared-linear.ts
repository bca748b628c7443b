/**
 * The linear layer of a comparison: stands in the place of nn.Linear and computes as the method of the moment says.
 * Methods with absmax run on the native int8 ops, exact in their integers; those with a zero-point multiply values that
 * went through 8 bits and back in float32. The loader's 8-bit layer is meta's Linear8bitLt.
 */
import { callOp, F, type Tensor } from '@metashard/core';
import { Module, type nn } from '@metashard/meta';
import { outlierColumns, quantizeByOneAbsmax, throughZeropoint } from './fake-quantize.js';
import type { Int8Scheme, QuantMethod } from './quant-methods.js';
import type { TensorArena } from './tensor-arena.js';

/** x [T, in] → [T, out], float32. */
export type Product = (x: Tensor) => Tensor;

export class ComparedLinear extends Module {
  readonly linear: nn.Linear;
  /** What `forward` computes; the float product until a method is set. */
  product: Product;
  /** Sees every input, in float32. */
  watch: ((x: Tensor) => void) | null = null;

  constructor(linear: nn.Linear) {
    super();
    this.linear = linear;
    this.product = (x) => linear.forward(x);
  }

  override forward(x: Tensor): Tensor {
    this.watch?.(x);
    return this.product(x);
  }
}

/** CA, SCA and outlier_cols of `int8_quantize`. */
type Int8Rows = [CA: Tensor, SCA: Tensor, outlierCols: Tensor];

/**
 * One method over all linears of a model. Weights are quantized once, in `weights`; activations in each forward, in
 * `step`, once for all linears that get the same tensor (q, k and v).
 */
export class MethodProducts {
  /** Outlier columns met, summed over forwards of linears. */
  outlierColumns = 0;
  /** Forwards of linears. */
  forwards = 0;
  readonly #method: QuantMethod;
  readonly #weights: TensorArena;
  readonly #step: TensorArena;
  #lastInput: Tensor | null = null;
  #lastInt8: Int8Rows | null = null;
  #lastRounded: Tensor | null = null;
  #lastOutliers = 0;

  constructor(method: QuantMethod, weights: TensorArena, step: TensorArena) {
    this.#method = method;
    this.#weights = weights;
    this.#step = step;
  }

  /** The product of x with a weight [out, in] of any float dtype, and a bias. Not during a forward: `step` is reset. */
  of(weight: Tensor, bias: Tensor | null): Product {
    try {
      return this.#productOf(weight, bias);
    } finally {
      this.#step.reset();
    }
  }

  #productOf(weight: Tensor, bias: Tensor | null): Product {
    const { weights, activations } = this.#method;
    if (weights === 'float') return (x) => F.linear(x, weight, bias);
    if (weights.range === 'zeropoint') {
      const rounded = this.#roundedWeight(weight, weights);
      return (x) => F.linear(activations === 'float' ? x : this.#roundedInput(x, activations), rounded, bias);
    }
    const [CB, SCB] = this.#weights.run(() => this.#int8Weight(weight, weights));
    if (activations === 'float') return (x) => F.int8WeightLinear(x, CB, SCB, bias);
    return (x) => {
      const [CA, SCA, columns] = this.#int8Input(x, activations);
      return callOp('int8_linear', [x, CA, SCA, columns, CB, SCB, bias], this.#attributes)[0] as Tensor;
    };
  }

  get #attributes(): number[] {
    const { threshold, outliers } = this.#method;
    return [threshold, outliers === 'per-row' ? 1 : 0];
  }

  /** CB packed and SCB; with one scale for the tensor, SCB holds it for every row. */
  #int8Weight(weight: Tensor, { scales }: Int8Scheme): [CB: Tensor, SCB: Tensor] {
    const [N] = weight.shape as [number, number];
    const packed = { dims: weight.dims, dtype: 'int8', layout: 'packed_int8' } as const;
    const rowScales = { dims: [N], dtype: 'float32' } as const;
    if (scales === 'row') {
      return callOp('quantize_weight', [weight], [0], [packed, rowScales]) as [Tensor, Tensor];
    }
    const { q, absmax } = quantizeByOneAbsmax(weight.toFloat32Array());
    const CB = this.#step.from(q, { dims: weight.dims, dtype: 'int8' });
    const SCB = this.#weights.from(new Float32Array(N).fill(absmax), rowScales);
    return [callOp('pack_int8', [CB], [], [packed])[0] as Tensor, SCB];
  }

  /** The weight through zero-point quantization and back, float32. */
  #roundedWeight(weight: Tensor, { scales }: Int8Scheme): Tensor {
    const values = weight.toFloat32Array();
    const rowLength = scales === 'row' ? (weight.dims[1] as number) : values.length;
    return this.#weights.from(throughZeropoint(values, { rowLength }), { dims: weight.dims, dtype: 'float32' });
  }

  /** Runs `compute` for an input that no linear had just before. */
  #once(x: Tensor, compute: () => void): void {
    this.forwards++;
    if (x !== this.#lastInput) {
      compute();
      this.#lastInput = x;
    }
    this.outlierColumns += this.#lastOutliers;
  }

  #int8Input(x: Tensor, { scales }: Int8Scheme): Int8Rows {
    this.#once(x, () => {
      this.#lastInt8 =
        scales === 'row' ? (callOp('int8_quantize', [x], this.#attributes) as Int8Rows) : this.#oneScale(x);
      this.#lastOutliers = this.#method.threshold === 0 ? 0 : firstInt32(this.#lastInt8[2]);
    });
    return this.#lastInt8 as Int8Rows;
  }

  /** One scale for all rows of x [T, K], without outliers. */
  #oneScale(x: Tensor): Int8Rows {
    const [T, K] = x.shape as [number, number];
    const { q, absmax } = quantizeByOneAbsmax(x.contiguous().toFloat32Array());
    return [
      this.#step.from(q, { dims: x.dims, dtype: 'int8' }),
      this.#step.from(new Float32Array(T).fill(absmax), { dims: [T], dtype: 'float32' }),
      this.#step.from(new Int32Array(K + 1), { dims: [K + 1], dtype: 'int32' }),
    ];
  }

  /** x [T, K] through zero-point quantization and back; outlier columns as they are. */
  #roundedInput(x: Tensor, { scales }: Int8Scheme): Tensor {
    this.#once(x, () => {
      const { threshold } = this.#method;
      const values = x.contiguous().toFloat32Array();
      const columns = x.dims[1] as number;
      const rowLength = scales === 'row' ? columns : values.length;
      const kept = threshold > 0 ? outlierColumns(values, columns, threshold) : undefined;
      const keep = kept === undefined ? undefined : { columns, kept };
      const rounded = throughZeropoint(values, { rowLength, threshold, keep });
      this.#lastRounded = this.#step.from(rounded, { dims: x.dims, dtype: 'float32' });
      this.#lastOutliers = kept?.reduce((sum, one) => sum + one, 0) ?? 0;
    });
    return this.#lastRounded as Tensor;
  }
}

function firstInt32(list: Tensor): number {
  return list.narrow(0, 0, 1).toInt32Array()[0] as number;
}
