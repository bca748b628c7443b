/** The dtypes of PyTorch, also those that metashard does not compute with: their tensors are listed but not read. */
import { DTYPES, type DType } from '../dtype.js';

export interface TorchDtype {
  /** float32, float64, float8_e4m3fn, … */
  readonly name: string;
  /** Bytes of an element. */
  readonly bytes: number;
  /** null: metashard does not compute with it. */
  readonly dtype: DType | null;
}

const OTHER_DTYPES: Readonly<Record<string, number>> = {
  float64: 8,
  complex32: 4,
  complex64: 8,
  complex128: 16,
  int16: 2,
  uint16: 2,
  uint32: 4,
  uint64: 8,
  float8_e4m3fn: 1,
  float8_e4m3fnuz: 1,
  float8_e5m2: 1,
  float8_e5m2fnuz: 1,
  float8_e8m0fnu: 1,
};

const ALL: readonly TorchDtype[] = [
  ...Object.entries(DTYPES).map(([name, { bytes }]) => ({ name, bytes, dtype: name as DType })),
  ...Object.entries(OTHER_DTYPES).map(([name, bytes]) => ({ name, bytes, dtype: null })),
];

/** By name. */
export const TORCH_DTYPES: ReadonlyMap<string, TorchDtype> = new Map(ALL.map((dtype) => [dtype.name, dtype]));
