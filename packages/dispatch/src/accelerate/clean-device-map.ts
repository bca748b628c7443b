/** Shorter device maps: one key for a module whose parts all share a device. */
import { isWithin, joinPath } from './graph.js';

/**
 * The same map with fewer keys: where every key below a module has the same device and there is more than one, the
 * module's own key stands for them, `""` for the whole model. `moduleName` looks at one module alone. Returns a new
 * map.
 */
export function cleanDeviceMap<D>({
  deviceMap,
  moduleName = '',
}: {
  deviceMap: Readonly<Record<string, D>>;
  moduleName?: string;
}) {
  const below = Object.entries(deviceMap).filter(([key]) => key !== moduleName && isWithin(key, moduleName));
  const rest = Object.entries(deviceMap).filter(([key]) => key === moduleName || !isWithin(key, moduleName));
  return Object.fromEntries([...rest, ...cleanBelow(moduleName, below, Object.hasOwn(deviceMap, moduleName))]);
}

/**
 * The entries below a module, collapsed. A module with a device of its own keeps it: its key covers what no other
 * does.
 */
function cleanBelow<D>(module: string, entries: readonly [string, D][], hasOwnDevice: boolean): [string, D][] {
  const [first] = entries;
  if (first === undefined) return [];
  const together = entries.every(([, device]) => device === first[1]);
  if (together && entries.length > 1 && !hasOwnDevice) return [[module, first[1]]];
  return [...childGroups(module, entries)].flatMap(([child, group]) => {
    const own = group.filter(([key]) => key === child);
    const below = group.filter(([key]) => key !== child);
    return [...own, ...cleanBelow(child, below, own.length > 0)];
  });
}

/** Entries by the child of `module` that they belong to, in order of appearance. */
function childGroups<D>(module: string, entries: readonly [string, D][]): Map<string, [string, D][]> {
  const groups = new Map<string, [string, D][]>();
  const start = module === '' ? 0 : module.length + 1;
  for (const [key, device] of entries) {
    const [name = ''] = key.slice(start).split('.');
    const child = joinPath(module, name);
    const group = groups.get(child);
    if (group === undefined) groups.set(child, [[key, device]]);
    else group.push([key, device]);
  }
  return groups;
}
