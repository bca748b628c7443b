/**
 * The dtypes of metashard: one table with codes, widths and the names other formats give them. No conversion of data
 * here (see `float16.ts`).
 */
import { DtypeError } from './errors.js';

export type DType = 'float32' | 'float16' | 'bfloat16' | 'int8' | 'uint8' | 'int32' | 'int64' | 'bool';

export interface DTypeInfo {
  /** Code of `ms_dtype` in backend.h. */
  readonly code: number;
  /** Bytes of one element. */
  readonly bytes: number;
  readonly isFloat: boolean;
  /** Name in a safetensors header. */
  readonly safetensors: string;
}

export const DTYPES: Readonly<Record<DType, DTypeInfo>> = {
  float32: { code: 0, bytes: 4, isFloat: true, safetensors: 'F32' },
  float16: { code: 1, bytes: 2, isFloat: true, safetensors: 'F16' },
  bfloat16: { code: 2, bytes: 2, isFloat: true, safetensors: 'BF16' },
  int8: { code: 3, bytes: 1, isFloat: false, safetensors: 'I8' },
  uint8: { code: 4, bytes: 1, isFloat: false, safetensors: 'U8' },
  int32: { code: 5, bytes: 4, isFloat: false, safetensors: 'I32' },
  int64: { code: 6, bytes: 8, isFloat: false, safetensors: 'I64' },
  bool: { code: 7, bytes: 1, isFloat: false, safetensors: 'BOOL' },
};

const NAMES = Object.keys(DTYPES) as DType[];
const BY_SAFETENSORS = new Map<string, DType>(NAMES.map((name) => [DTYPES[name].safetensors, name]));

export function isDType(name: unknown): name is DType {
  return typeof name === 'string' && Object.hasOwn(DTYPES, name);
}

/** Reads a dtype in any of its spellings: `float16`, `torch.float16`. Throws DtypeError. */
export function parseDType(name: string): DType {
  const short = name.startsWith('torch.') ? name.slice('torch.'.length) : name;
  if (isDType(short)) return short;
  throw new DtypeError(`dtype: expected one of ${NAMES.join(', ')}, got "${name}"`);
}

/** The dtype a safetensors header names, or undefined where metashard has none (F64, F8_E4M3, …). */
export function dtypeOfSafetensors(name: string): DType | undefined {
  return BY_SAFETENSORS.get(name);
}

/** Bytes of `elements` elements. */
export function dtypeBytes(dtype: DType, elements = 1): number {
  return DTYPES[dtype].bytes * elements;
}
