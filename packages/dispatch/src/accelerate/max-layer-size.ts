/** The largest layer: what a device that executes offloaded layers must have room for. */
import { type GraphNode, type GraphTensor, graphOf, type Model } from './graph.js';
import { type ModuleSizes, type SizeOptions, sizesOf } from './module-sizes.js';

/** Classes of modules that stay whole. */
export type NoSplitClasses = string | Iterable<string>;

export interface MaxLayerOptions extends SizeOptions {
  /** Classes that count as one layer with all below them. */
  noSplitModuleClasses?: NoSplitClasses | undefined;
  /** Sizes by path, where they are known already. Default: `computeModuleSizes` of the model. */
  moduleSizes?: Readonly<Record<string, number>> | undefined;
}

export interface LargestLayer {
  bytes: number;
  /** Every layer of that size, in the order of the model. */
  paths: string[];
}

/**
 * Bytes of the largest layer and the paths of all that are as large. A layer is a module without children, or one that
 * stays whole.
 */
export function getMaxLayerSize(model: Model, options: MaxLayerOptions = {}): [bytes: number, paths: string[]] {
  const root = graphOf(model);
  const { moduleSizes, noSplitModuleClasses } = options;
  const sizes = moduleSizes === undefined ? sizesOf(root, options) : new Map(Object.entries(moduleSizes));
  const parts = [...root.parameters, ...root.children, ...root.buffers];
  const { bytes, paths } = largestLayer(parts, sizes, classSet(noSplitModuleClasses));
  return [bytes, paths];
}

/** The largest layer in a list of modules and single tensors. */
export function largestLayer(
  parts: Iterable<GraphNode | GraphTensor>,
  sizes: ModuleSizes,
  noSplit: ReadonlySet<string>,
): LargestLayer {
  let largest: LargestLayer = { bytes: 0, paths: [] };
  for (const path of layerPaths(parts, noSplit)) {
    const bytes = sizes.get(path) ?? 0;
    if (bytes > largest.bytes) largest = { bytes, paths: [path] };
    else if (bytes === largest.bytes) largest.paths.push(path);
  }
  return largest;
}

export function classSet(classes: NoSplitClasses | undefined): ReadonlySet<string> {
  return new Set(typeof classes === 'string' ? [classes] : (classes ?? []));
}

function* layerPaths(parts: Iterable<GraphNode | GraphTensor>, noSplit: ReadonlySet<string>): Generator<string> {
  for (const part of parts) {
    const isLayer = !('children' in part) || part.children.length === 0 || noSplit.has(part.className);
    if (isLayer) yield part.path;
    else yield* layerPaths(part.children, noSplit);
  }
}
