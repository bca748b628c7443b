/**
 * replaceLinear: a pass over a module tree that puts Linear8bitLt in the place of nn.Linear, and says what it did and
 * did not.
 */
import type { Int8Params } from './int8-params.js';
import { type Int8LayerOptions, Linear8bitLt } from './linear-8bit-lt.js';
import { type Module, splitPath } from './module.js';
import { Linear } from './nn/linear.js';
import type { Parameter } from './parameter.js';

export interface ReplaceLinearOptions extends Int8LayerOptions {
  /**
   * Modules to keep in float, by one or more consecutive whole components anywhere in the path, and all below them:
   * `h.1` is not `h.10`. They add to the default: `lm_head`, and layers whose weight is tied to a module of another
   * kind (a tied output).
   */
  skip?: readonly string[];
}

export interface SkippedModule {
  name: string;
  reason: string;
}

export interface ReplaceLinearResult {
  replaced: string[];
  skipped: SkippedModule[];
}

const DEFAULT_SKIP = ['lm_head'];

/**
 * Replaces every Linear in the tree, in place, by its 8-bit twin: biases and ties stay shared, parameters on meta stay
 * there, float weights are quantized when they reach a real device. Defaults are transformers': threshold 6,
 * `hasFp16Weights: false`.
 */
export function replaceLinear(
  module: Module,
  { skip = [], threshold = 6, hasFp16Weights = false, ...rest }: ReplaceLinearOptions = {},
): ReplaceLinearResult {
  const options = { threshold, hasFp16Weights, ...rest };
  const entries = [...DEFAULT_SKIP, ...skip];
  const foreignOwners = ownersBesideLinear(module);
  const twins = new Map<Linear, Linear8bitLt>();
  const weights = new Map<Parameter, Int8Params>();
  const result: ReplaceLinearResult = { replaced: [], skipped: [] };
  for (const [path, child] of module.namedModules('', { everyName: true })) {
    if (!(child instanceof Linear) || child instanceof Linear8bitLt) continue;
    const reason = reasonToSkip(path, child, entries, foreignOwners);
    if (reason !== null) {
      result.skipped.push({ name: path, reason });
      continue;
    }
    const twin = twins.get(child) ?? sharedTwin(child, options, weights);
    twins.set(child, twin);
    const [parent, name] = splitPath(path);
    module.getModule(parent).registerModule(name, twin);
    result.replaced.push(path);
  }
  return result;
}

function sharedTwin(linear: Linear, options: Int8LayerOptions, weights: Map<Parameter, Int8Params>): Linear8bitLt {
  const twin = Linear8bitLt.fromLinear(linear, options);
  const shared = weights.get(linear.weight);
  if (shared === undefined) weights.set(linear.weight, twin.weight);
  else twin.weight = shared;
  return twin;
}

/** Parameters that modules other than Linear hold, with the first path that does. */
function ownersBesideLinear(root: Module): Map<Parameter, string> {
  const owners = new Map<Parameter, string>();
  for (const [path, module] of root.namedModules()) {
    if (module instanceof Linear) continue;
    for (const [, parameter] of module.ownParameters()) if (!owners.has(parameter)) owners.set(parameter, path);
  }
  return owners;
}

function reasonToSkip(
  path: string,
  linear: Linear,
  entries: readonly string[],
  foreignOwners: ReadonlyMap<Parameter, string>,
): string | null {
  if (path === '') return 'it is the root, which has no place to be replaced in';
  const entry = entries.find((candidate) => matchesPath(path, candidate));
  if (entry !== undefined)
    return DEFAULT_SKIP.includes(entry) ? 'the output head stays in float' : `skip list: ${entry}`;
  const owner = foreignOwners.get(linear.weight);
  if (owner !== undefined) return `its weight is tied to ${owner === '' ? 'the root' : owner}`;
  if (linear.forward !== Linear.prototype.forward) return `${linear.constructor.name} computes in its own way`;
  return null;
}

/** Whether `entry`'s components stand together somewhere in `path`'s. */
function matchesPath(path: string, entry: string): boolean {
  return `.${path}.`.includes(`.${entry}.`);
}
