/** Tied parameters: several names of one tensor. */
import { type GraphNode, graphOf, type Model, walk } from './graph.js';

/** Groups of names that share one parameter, each group and the list sorted. */
export function findTiedParameters(model: Model): string[][] {
  return tieGroups(graphOf(model));
}

export function tieGroups(root: GraphNode): string[][] {
  const names = new Map<object, string[]>();
  for (const { path, identity } of [...walk(root)].flatMap((node) => node.parameters)) {
    const group = names.get(identity);
    if (group === undefined) names.set(identity, [path]);
    else group.push(path);
  }
  const groups = [...names.values()].filter((group) => group.length > 1).map((group) => group.sort());
  return groups.sort(([a = ''], [b = '']) => (a < b ? -1 : 1));
}
