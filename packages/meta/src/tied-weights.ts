/** Tied weights: parameters that several modules hold as one object. */
import type { Module } from './module.js';
import type { Parameter } from './parameter.js';

/** Groups of names that share one parameter, each group and the list sorted; names without company are left out. */
export function findTiedParameters(module: Module): string[][] {
  const names = new Map<Parameter, string[]>();
  for (const [name, parameter] of module.namedParameters({ everyName: true })) {
    const group = names.get(parameter);
    if (group === undefined) names.set(parameter, [name]);
    else group.push(name);
  }
  const groups = [...names.values()].filter((group) => group.length > 1).map((group) => group.sort());
  return groups.sort((a, b) => ((a[0] as string) < (b[0] as string) ? -1 : 1));
}
