/**
 * Int8Params: a weight that becomes 8-bit (Dettmers et al. 2022) when it reaches a real device, exactly once, and stays
 * so. States: float on meta, float on a device, int8 on a device, int8 on meta. Only the parameter holds `CB` and
 * `SCB`; no other object does. What bitsandbytes 0.50 does otherwise (statistics that move between weight and
 * layer at the first forward, loads that fail before a move and after a forward) is not kept.
 */
import {
  CheckpointError,
  type DeviceName,
  DTYPES,
  DtypeError,
  F,
  formatDims,
  type MetashardError,
  parseDevice,
  ShapeError,
  StateError,
  sameDims,
  type Tensor,
} from '@metashard/core';
import { metaTensor } from './meta-tensor.js';
import { type MoveTarget, Parameter, type ParameterOptions } from './parameter.js';

export interface Int8ParamsOptions extends ParameterOptions {
  /** Keep float master weights and quantize them in each forward. */
  hasFp16Weights?: boolean;
  /** For int8 `data`: its float32 [out] row absmax, not divided by 127. */
  SCB?: Tensor | null;
}

/** A weight matrix in 8 bits: what the int8 matmul takes. */
export interface Int8Weight {
  /** int8 [out, in] */
  CB: Tensor;
  /** float32 [out] */
  SCB: Tensor;
}

export class Int8Params extends Parameter {
  readonly hasFp16Weights: boolean;
  #int8: Int8Weight | null = null;
  #packed: Int8Weight | null = null;
  #quantizeCalls = 0;

  /**
   * A float matrix [out, in], or an int8 one with its `SCB`. Throws ShapeError (no matrix), DtypeError (other
   * integers), CheckpointError (int8 without SCB, or with `hasFp16Weights`).
   */
  constructor(data: Tensor, { hasFp16Weights = false, SCB = null, requiresGrad, ...rest }: Int8ParamsOptions = {}) {
    super(data, { requiresGrad: requiresGrad ?? hasFp16Weights, ...rest });
    this.hasFp16Weights = hasFp16Weights;
    if (data.dims.length !== 2) {
      throw new ShapeError(`Int8Params: expected a matrix [out, in], got rank ${data.dims.length}`);
    }
    if (data.dtype === 'int8') this.loadInt8(super.data, SCB);
    else if (!DTYPES[data.dtype].isFloat) {
      throw new DtypeError(`Int8Params: expected float weights or int8 ones with SCB, got ${data.dtype}`);
    }
  }

  /** int8 [out, in]; null before quantization. */
  get CB(): Tensor | null {
    return this.#int8?.CB ?? null;
  }
  /** float32 [out]: each row's largest magnitude, not divided by 127; null before quantization. */
  get SCB(): Tensor | null {
    return this.#int8?.SCB ?? null;
  }
  get isQuantized(): boolean {
    return this.#int8 !== null;
  }
  /** Native quantizations of this parameter so far. */
  get quantizeCalls(): number {
    return this.#quantizeCalls;
  }

  override get data(): Tensor {
    return super.data;
  }
  /**
   * Float values make the parameter float again, to be quantized when it next moves or runs. Throws CheckpointError for
   * int8 (`loadInt8`).
   */
  override set data(value: Tensor) {
    if (!DTYPES[value.dtype].isFloat) throw int8WithoutScales('Int8Params.data');
    this.#int8 = null;
    super.data = value;
  }

  /**
   * Quantizes now, unless it is int8 already; see `quantize_weight` for the formula. Throws StateError on meta and with
   * float master weights.
   */
  quantize(): void {
    if (this.#int8 !== null) return;
    if (this.isMeta || this.hasFp16Weights) {
      const state = this.isMeta ? 'a weight on meta has no values' : 'hasFp16Weights keeps the weight in float';
      throw new StateError(`Int8Params.quantize: ${state}`);
    }
    this.#place(this.#quantized());
  }

  #quantized(): Int8Weight {
    if (!this.isMeta) this.#quantizeCalls++;
    return F.quantizeWeight(this);
  }

  #place(weight: Int8Weight): void {
    this.#int8 = weight;
    this.replaceParts(weight.CB.parts);
  }

  /**
   * Moves in place. Reaching a real device (from meta: not possible without values) quantizes; every later move only
   * moves. `dtype` casts float weights and leaves int8 ones as they are.
   */
  override moveTo({ device, dtype }: MoveTarget): void {
    if (this.#int8 === null && dtype !== undefined) super.moveTo({ dtype });
    if (device === undefined) return;
    const real = parseDevice(device).type !== 'meta';
    if (real && !this.isMeta && !this.hasFp16Weights) this.quantize();
    if (this.#int8 === null) super.moveTo({ device });
    else this.#place({ CB: F.to(this.#int8.CB, { device }), SCB: F.to(this.#int8.SCB, { device }) });
  }

  /**
   * `moveTo` as a tensor's method: this object itself moves, so that nothing is quantized twice. Throws StateError for
   * a dtype once it is int8.
   */
  override to(target: MoveTarget | DeviceName): this {
    const { dtype, ...where } = typeof target === 'string' ? { device: target } : (target as MoveTarget);
    if (dtype !== undefined && this.#int8 !== null) {
      throw new StateError(`Int8Params.to: expected a device for int8 weights, got dtype ${dtype}`, {
        hint: 'dequantize() gives them in float',
      });
    }
    this.moveTo(dtype === undefined ? where : { ...where, dtype });
    return this;
  }

  /** New float values; a parameter that was int8 quantizes them at once. */
  override load(value: Tensor): void {
    const wasQuantized = this.#int8 !== null;
    const device = this.isMeta ? value.device : this.device;
    const weight = this.fromStored(value);
    this.data = wasQuantized ? F.to(weight, { device }) : F.to(weight, { device, dtype: this.dtype });
    if (wasQuantized && !this.isMeta) this.quantize();
  }

  /**
   * Takes weights that are int8 already, before or after any move. Throws CheckpointError (no SCB, master weights),
   * ShapeError, DtypeError.
   */
  loadInt8(CB: Tensor, SCB: Tensor | null): void {
    if (SCB === null) throw int8WithoutScales('Int8Params');
    const problem = this.int8Problem(CB, SCB);
    if (problem !== null) throw problem;
    const device = this.isMeta ? CB.device : this.device;
    this.#place({ CB: F.to(CB, { device }), SCB: F.to(SCB, { device }) });
  }

  /** Why `loadInt8` would refuse these, or null. */
  int8Problem(CB: Tensor, SCB: Tensor): MetashardError | null {
    if (this.hasFp16Weights) {
      return new CheckpointError('Int8Params: expected float weights with hasFp16Weights, got int8', {
        hint: 'build the layer with hasFp16Weights: false, or dequantize the checkpoint',
      });
    }
    if (CB.dtype !== 'int8' || SCB.dtype !== 'float32') {
      return new DtypeError(`Int8Params: expected CB as int8 and SCB as float32, got ${CB.dtype} and ${SCB.dtype}`);
    }
    const scales = this.dims.slice(0, 1);
    if (!sameDims(CB.dims, this.dims) || !sameDims(SCB.dims, scales)) {
      const [wanted, got] = [
        [this.dims, scales],
        [CB.dims, SCB.dims],
      ].map((pair) => pair.map(formatDims).join(' and '));
      return new ShapeError(`Int8Params: expected CB and SCB of shapes ${wanted}, got ${got}`);
    }
    return null;
  }

  /**
   * What a forward multiplies by: quantizes once, or in each forward with float master weights. `onMeta`: the tensors
   * of `weightTensors`.
   */
  forForward(onMeta: boolean): Int8Weight {
    if (this.hasFp16Weights) return this.#quantized();
    if (onMeta || this.isMeta) return this.#packedOnMeta();
    this.quantize();
    return this.#int8 as Int8Weight;
  }

  /** The packed twins of CB and SCB on meta, made once, so that recording meets the same objects each time. */
  #packedOnMeta(): Int8Weight {
    this.#packed ??= {
      CB: metaTensor(this.dims, 'int8', 'packed_int8'),
      SCB: metaTensor(this.dims.slice(0, 1)),
    };
    return this.#packed;
  }

  /**
   * CB in the packed layout under `name`, SCB beside it (`….weight` → `….SCB`); with float master weights the weight
   * itself.
   */
  override weightTensors(name: string): [string, Tensor][] {
    if (this.hasFp16Weights) return [[name, this]];
    const { CB, SCB } = this.#packedOnMeta();
    return [
      [name, CB],
      [scaleName(name), SCB],
    ];
  }

  /** The weights in float32: CB · SCB / 127, or the float values while they are not quantized. */
  dequantize(): Tensor {
    return this.#int8 === null
      ? F.to(this.data, { dtype: 'float32' })
      : F.dequantizeWeight(this.#int8.CB, this.#int8.SCB);
  }

  /** A deep copy: its own storage, same state. */
  override clone(): Int8Params {
    const { hasFp16Weights, requiresGrad, storedTransposed } = this;
    const SCB = this.#int8 === null ? null : F.clone(this.#int8.SCB);
    return new Int8Params(F.clone(this.data), { hasFp16Weights, requiresGrad, storedTransposed, SCB });
  }
}

/** Name of the scales beside a weight: `h.0.mlp.weight` → `h.0.mlp.SCB`. */
export function scaleName(weightName: string): string {
  return /(^|\.)weight$/.test(weightName) ? weightName.replace(/weight$/, 'SCB') : `${weightName}.SCB`;
}

/**
 * bitsandbytes' RuntimeError for the same mistake reads "Loading a quantized checkpoint into non-quantized Linear8bitLt
 * is not supported".
 */
export function int8WithoutScales(where: string): CheckpointError {
  return new CheckpointError(`${where}: expected an int8 weight with its SCB, got an int8 weight alone`, {
    hint: 'a checkpoint saved in 8 bits has weight and SCB; pass both (loadInt8, or scb of setModuleTensorToDevice)',
  });
}
