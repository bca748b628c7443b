/** Building modules without memory: every parameter made while `fn` runs lies on meta, of whatever class it is. */

import { withEmptyMode } from './empty-mode.js';
import { Module } from './module.js';

export interface InitEmptyWeightsOptions {
  /** Put persistent buffers on meta, too. Non-persistent ones are in no checkpoint and stay real. */
  includeBuffers?: boolean;
}

/**
 * Runs `fn` (which builds modules) and returns its result. Nothing is allocated for parameters, not even for a moment;
 * calls nest, and the mode ends with `fn`, also when it throws.
 */
export function initEmptyWeights<T>(fn: () => T, { includeBuffers = false }: InitEmptyWeightsOptions = {}): T {
  const made = withEmptyMode({ includeBuffers }, fn);
  if (includeBuffers && made instanceof Module) assignedBuffersToMeta(made);
  return made;
}

/** Buffers set by assignment and not by `registerBuffer`. */
function assignedBuffersToMeta(root: Module): void {
  for (const module of root.modules()) {
    for (const [name, buffer] of module.ownBuffers()) {
      if (module.isPersistent(name) && !buffer.isMeta) module.registerBuffer(name, buffer.to('meta'));
    }
  }
}
