/**
 * One view over what accelerate calls a model: a tree of modules with parameters and buffers. Made from a Module or
 * from the JSON form that planners exchange. No sizes here: `module-sizes.ts` weighs the tensors.
 */
import { ConfigError, elementCount, type Tensor } from '@metashard/core';
import { Module } from '@metashard/meta';

/** `[name, shape, dtype]`; a buffer may add whether it is persistent (default true). Dtypes as `f32`, `bf16`, `i64`. */
export type JsonTensor = readonly [name: string, shape: readonly number[], dtype: string, persistent?: boolean];

export interface JsonNode {
  cls: string;
  params?: readonly JsonTensor[];
  buffers?: readonly JsonTensor[];
  children?: readonly (readonly [name: string, node: JsonNode])[];
}

/** A model as shapes only. `ties`: groups of parameter paths that share one tensor, the first being its owner. */
export interface JsonGraph {
  root: JsonNode;
  ties?: readonly (readonly string[])[];
}

/** What the functions of this folder take where accelerate takes a model. */
export type Model = Module | JsonGraph;

export interface GraphTensor {
  /** Dotted path in the model. */
  readonly path: string;
  /** Equal for tensors that are one and the same object. */
  readonly identity: object;
  readonly elements: number;
  readonly dtype: string;
}

export interface GraphNode {
  readonly path: string;
  readonly className: string;
  /** This module's own, not its children's. */
  readonly parameters: readonly GraphTensor[];
  readonly buffers: readonly GraphTensor[];
  readonly children: readonly GraphNode[];
}

/** The tree of a model. Throws ConfigError for JSON that is no such graph or whose ties name no parameter. */
export function graphOf(model: Model): GraphNode {
  if (model instanceof Module) return moduleNode('', model);
  if (typeof model?.root?.cls !== 'string') {
    throw new ConfigError('model: expected a Module or a graph { root: { cls, params, buffers, children }, ties }');
  }
  return jsonNode('', model.root, sharedTensors(model));
}

/** Every node, parents first. */
export function* walk(node: GraphNode): Generator<GraphNode> {
  yield node;
  for (const child of node.children) yield* walk(child);
}

/** The names of a state dict: each parameter and persistent buffer under each of its names. */
export function stateNames(model: Model): string[] {
  if (model instanceof Module) return [...model.stateDict().keys()];
  const names = (path: string, node: JsonNode): string[] => [
    ...(node.params ?? []).map(([name]) => joinPath(path, name)),
    ...(node.buffers ?? []).filter(([, , , persistent]) => persistent !== false).map(([name]) => joinPath(path, name)),
    ...(node.children ?? []).flatMap(([name, child]) => names(joinPath(path, name), child)),
  ];
  return names('', model.root);
}

export function joinPath(parent: string, name: string): string {
  return parent === '' ? name : `${parent}.${name}`;
}

/** Whether `path` is `prefix` itself or below it, by whole components: `h.1` holds `h.1.mlp`, not `h.10`. */
export function isWithin(path: string, prefix: string): boolean {
  return prefix === '' || path === prefix || path.startsWith(`${prefix}.`);
}

function moduleNode(path: string, module: Module): GraphNode {
  const entry = ([name, tensor]: [string, Tensor]): GraphTensor => ({
    path: joinPath(path, name),
    identity: tensor,
    elements: elementCount(tensor.shape),
    dtype: tensor.dtype,
  });
  return {
    path,
    className: module.constructor.name,
    parameters: module.ownParameters().map(entry),
    buffers: module.ownBuffers().map(entry),
    children: module.namedChildren().map(([name, child]) => moduleNode(joinPath(path, name), child)),
  };
}

type SharedTensor = Omit<GraphTensor, 'path'>;

function jsonNode(path: string, node: JsonNode, shared: ReadonlyMap<string, SharedTensor>): GraphNode {
  const entry = (tensor: JsonTensor): GraphTensor => {
    const full = joinPath(path, tensor[0]);
    return { path: full, ...(shared.get(full) ?? ownTensor(tensor)) };
  };
  return {
    path,
    className: node.cls,
    parameters: (node.params ?? []).map(entry),
    buffers: (node.buffers ?? []).map(entry),
    children: (node.children ?? []).map(([name, child]) => jsonNode(joinPath(path, name), child, shared)),
  };
}

function ownTensor([, shape, dtype]: JsonTensor): SharedTensor {
  return { identity: {}, elements: elementCount(shape), dtype };
}

/** The tensor that each tied path stands for: its owner's. */
function sharedTensors({ root, ties = [] }: JsonGraph): Map<string, SharedTensor> {
  const shared = new Map<string, SharedTensor>();
  if (ties.length === 0) return shared;
  const parameters = new Map(jsonParameters('', root));
  for (const group of ties) {
    const owners = group.map((path) => {
      const found = parameters.get(path);
      if (found === undefined) throw new ConfigError(`ties: expected paths of parameters, got "${path}"`);
      return found;
    });
    const [owner] = owners;
    if (owner === undefined) continue;
    const tensor = ownTensor(owner);
    for (const path of group) shared.set(path, tensor);
  }
  return shared;
}

function jsonParameters(path: string, node: JsonNode): [string, JsonTensor][] {
  const own = (node.params ?? []).map((tensor): [string, JsonTensor] => [joinPath(path, tensor[0]), tensor]);
  return [...own, ...(node.children ?? []).flatMap(([name, child]) => jsonParameters(joinPath(path, name), child))];
}
