/** Parameters that float checkpoints hold the other way round: what a loader must know beside names and shapes. */
import type { Module } from './module.js';

/** Names of the parameters whose float form in a checkpoint is [in, out], under each of their names. */
export function findTransposedParameters(module: Module): Set<string> {
  const all = module.namedParameters({ everyName: true });
  return new Set(all.filter(([, parameter]) => parameter.storedTransposed).map(([name]) => name));
}
