/**
 * replaceLinear: a pass over a module tree that puts Linear8bitLt in the place of nn.Linear, and says what it did and
 * did not.
 */
import type { Int8Params } from './int8-params.js';
import { type Int8LayerOptions, Linear8bitLt } from './linear-8bit-lt.js';
import { type Module, splitPath } from './module.js';
import { Embedding } from './nn/embedding.js';
import { Linear } from './nn/linear.js';
import type { Parameter } from './parameter.js';

export interface ReplaceLinearOptions extends Int8LayerOptions {
  /**
   * Modules to keep in float, by one or more consecutive whole components anywhere in the path, and all below them:
   * `h.1` is not `h.10`. They add to the default: `lm_head`, and layers whose weight is tied to a module of another
   * kind (a tied output).
   */
  skip?: readonly string[];
  /**
   * Also replace `lm_head`. Where it is tied to embeddings, the one shared parameter becomes int8, and they look their
   * rows up in it. Default false.
   */
  head?: boolean;
}

export interface SkippedModule {
  name: string;
  reason: string;
}

export interface ReplaceLinearResult {
  replaced: string[];
  skipped: SkippedModule[];
}

/** Names of the output head, kept in float by default. */
const HEAD = 'lm_head';

/**
 * Replaces every Linear in the tree, in place, by its 8-bit twin: biases and ties stay shared, parameters on meta stay
 * there, float weights are quantized when they reach a real device. Defaults are transformers': threshold 6,
 * `hasFp16Weights: false`.
 */
export function replaceLinear(
  module: Module,
  { skip = [], head = false, threshold = 6, hasFp16Weights = false, ...rest }: ReplaceLinearOptions = {},
): ReplaceLinearResult {
  const options = { threshold, hasFp16Weights, ...rest };
  const foreignOwners = ownersBesideLinear(module);
  const twins = new Map<Linear, Linear8bitLt>();
  const weights = new Map<Parameter, Int8Params>();
  const result: ReplaceLinearResult = { replaced: [], skipped: [] };
  for (const [path, child] of module.namedModules('', { everyName: true })) {
    if (!(child instanceof Linear) || child instanceof Linear8bitLt) continue;
    const tied = foreignOwners.get(child.weight) ?? [];
    const reason = reasonToSkip(path, child, { skip, head, tied });
    if (reason !== null) {
      result.skipped.push({ name: path, reason });
      continue;
    }
    const twin = twins.get(child) ?? sharedTwin(child, options, weights);
    twins.set(child, twin);
    for (const { module: owner } of tied) (owner as Embedding).weight = twin.weight;
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

/** A module that holds a parameter, and its path. */
interface Owner {
  path: string;
  module: Module;
}

/** Parameters that modules other than Linear hold, with those modules. */
function ownersBesideLinear(root: Module): Map<Parameter, Owner[]> {
  const owners = new Map<Parameter, Owner[]>();
  for (const [path, module] of root.namedModules()) {
    if (module instanceof Linear) continue;
    for (const [, parameter] of module.ownParameters()) {
      owners.set(parameter, [...(owners.get(parameter) ?? []), { path, module }]);
    }
  }
  return owners;
}

function reasonToSkip(
  path: string,
  linear: Linear,
  { skip, head, tied }: { skip: readonly string[]; head: boolean; tied: readonly Owner[] },
): string | null {
  if (path === '') return 'it is the root, which has no place to be replaced in';
  const isHead = matchesPath(path, HEAD);
  if (isHead && !head) return 'the output head stays in float';
  const entry = skip.find((candidate) => matchesPath(path, candidate));
  if (entry !== undefined) return `skip list: ${entry}`;
  const owner = tied.find(({ module }) => !isHead || !(module instanceof Embedding));
  if (owner !== undefined) return `its weight is tied to ${owner.path === '' ? 'the root' : owner.path}`;
  if (linear.forward !== Linear.prototype.forward) return `${linear.constructor.name} computes in its own way`;
  return null;
}

/** Whether `entry`'s components stand together somewhere in `path`'s. */
function matchesPath(path: string, entry: string): boolean {
  return `.${path}.`.includes(`.${entry}.`);
}
