/** Bytes of every module and tensor by path, as accelerate counts them: weights as stored, no scales, no cache. */
import { dtypeByteSize, isWholeNumber } from './dtype-byte-size.js';
import { type GraphNode, type GraphTensor, graphOf, type Model, walk } from './graph.js';

export interface SizeOptions {
  /** What floats are loaded as; never widens a tensor. Default: as they are. */
  dtype?: string | undefined;
  /** Dtypes of single tensors by path, taken as they stand. */
  specialDtypes?: Readonly<Record<string, string>> | undefined;
}

export interface ModuleSizeOptions extends SizeOptions {
  /** Count buffers alone. */
  buffersOnly?: boolean | undefined;
}

/** Bytes by path, in the order of the model; a path that is not there holds nothing. */
export type ModuleSizes = ReadonlyMap<string, number>;

/**
 * Bytes of the model (`""`), of every module and of every tensor, by path. A tied tensor counts once, under its first
 * name. Buffers count, also those in no checkpoint. Throws DtypeError.
 */
export function computeModuleSizes(model: Model, options: ModuleSizeOptions = {}): Record<string, number> {
  return Object.fromEntries(sizesOf(graphOf(model), options));
}

export function sizesOf(root: GraphNode, { dtype, specialDtypes = {}, buffersOnly = false }: ModuleSizeOptions = {}) {
  const nodes = [...walk(root)];
  const parameters = buffersOnly ? [] : nodes.flatMap((node) => node.parameters);
  const sizes = new Map<string, number>();
  const seen = new Set<object>();
  for (const tensor of [...parameters, ...nodes.flatMap((node) => node.buffers)]) {
    if (seen.has(tensor.identity)) continue;
    seen.add(tensor.identity);
    const bytes = tensor.elements * elementBytes(tensor, dtype, specialDtypes[tensor.path]);
    for (const path of prefixes(tensor.path)) sizes.set(path, (sizes.get(path) ?? 0) + bytes);
  }
  return sizes;
}

function elementBytes(tensor: GraphTensor, dtype: string | undefined, special: string | undefined): number {
  if (special !== undefined) return dtypeByteSize({ dtype: special });
  const own = dtypeByteSize({ dtype: tensor.dtype });
  if (dtype === undefined || isWholeNumber(tensor.dtype)) return own;
  return Math.min(own, dtypeByteSize({ dtype }));
}

/** `a.b` → "", `a`, `a.b`. */
function* prefixes(path: string): Generator<string> {
  yield '';
  for (let dot = path.indexOf('.'); dot >= 0; dot = path.indexOf('.', dot + 1)) yield path.slice(0, dot);
  yield path;
}
