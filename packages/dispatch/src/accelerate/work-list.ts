/**
 * What the planner has still to place: an ordered list of modules, and of single tensors where a module was split, with
 * the reserve it implies. Knows sizes and ties, no devices.
 */
import { type GraphNode, type GraphTensor, isWithin } from './graph.js';
import { type LargestLayer, largestLayer } from './max-layer-size.js';
import type { ModuleSizes } from './module-sizes.js';

/** A module with everything below it, or one tensor. */
export type Part = GraphNode | GraphTensor;

export interface WorkFacts {
  sizes: ModuleSizes;
  ties: readonly (readonly string[])[];
  noSplit: ReadonlySet<string>;
}

export class WorkList {
  #parts: Part[];
  #largest: LargestLayer;

  constructor(
    root: GraphNode,
    readonly facts: WorkFacts,
  ) {
    this.#parts = partsOf(root);
    this.#largest = this.#largestLeft();
  }

  /** Bytes of the largest layer that the first part is not: what a device that executes offloaded layers keeps free. */
  get reserveBytes(): number {
    return this.#largest.bytes;
  }

  takeFirst(): Part | undefined {
    const first = this.#parts.shift();
    if (first !== undefined) this.#forget(first);
    return first;
  }
  putBack(part: Part): void {
    this.#parts.unshift(part);
  }
  remove(parts: readonly Part[]): void {
    this.#parts = this.#parts.filter((part) => !parts.includes(part));
    for (const part of parts) this.#forget(part);
  }

  bytesOf(part: Part): number {
    return this.facts.sizes.get(part.path) ?? 0;
  }
  /** Bytes of a part with all that its ties bring along; a tied tensor counts once. */
  bytesWithTies(part: Part): number {
    return this.tiedTo(part).reduce((sum, partner) => sum + this.bytesOf(partner), this.bytesOf(part));
  }
  /** The parts in the list that share a tensor with `part`, or with a part that does. */
  tiedTo(part: Part): Part[] {
    return partnersOf(part, this.#parts, this.facts.ties);
  }

  isSplittable(part: Part): part is GraphNode {
    return 'children' in part && part.children.length > 0 && !this.facts.noSplit.has(part.className);
  }
  /** Puts what a part consists of in its place: of one in the list, there; of one that was taken, in front. */
  split(part: GraphNode): void {
    const at = this.#parts.indexOf(part);
    this.#parts.splice(Math.max(at, 0), at < 0 ? 0 : 1, ...partsOf(part));
    this.#largest = this.#largestLeft();
  }

  /**
   * Takes the first part in the list, or inside of one, that fits `limitBytes` with its ties; what it is part of is
   * split. Undefined, and the list as it was, where there is none.
   */
  takeFitting(limitBytes: number): Part | undefined {
    const found = this.#findFitting(this.#parts, 0, this.#parts.length, limitBytes);
    if (found === undefined) return undefined;
    this.#parts = found.others;
    this.#forget(found.part);
    return found.part;
  }

  #findFitting(parts: readonly Part[], from: number, to: number, limit: number): Found | undefined {
    for (const [i, part] of parts.slice(from, to).entries()) {
      const at = from + i;
      const others = parts.toSpliced(at, 1);
      const tied = partnersOf(part, others, this.facts.ties);
      const bytes = [part, ...tied].reduce((sum, one) => sum + this.bytesOf(one), 0);
      if (bytes > 0 && bytes <= limit) return { part, others };
      if (!this.isSplittable(part)) continue;
      const inside = partsOf(part);
      const found = this.#findFitting(parts.toSpliced(at, 1, ...inside), at, at + inside.length, limit);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** A part that was taken is no reason for a reserve. The reserve is measured anew when none of its layers is left. */
  #forget(taken: Part): void {
    this.#largest.paths = this.#largest.paths.filter((path) => !isWithin(path, taken.path));
    if (this.#largest.paths.length === 0) this.#largest = this.#largestLeft();
  }
  #largestLeft(): LargestLayer {
    const modules = this.#parts.filter((part) => 'children' in part);
    return largestLayer(modules, this.facts.sizes, this.facts.noSplit);
  }
}

interface Found {
  part: Part;
  others: Part[];
}

/** What a module directly consists of. Its buffers are parts too: they need a device like everything else. */
function partsOf(node: GraphNode): Part[] {
  return [...node.parameters, ...node.children, ...node.buffers];
}

function partnersOf(part: Part, others: readonly Part[], ties: WorkFacts['ties']): Part[] {
  if (ties.length === 0) return [];
  const together = [part];
  // Grows while it is walked: a partner's own ties come along.
  for (const member of together) {
    for (const group of ties) {
      if (!group.some((name) => isWithin(name, member.path))) continue;
      for (const name of group) {
        const partner = others.find((other) => isWithin(name, other.path));
        if (partner !== undefined && !together.includes(partner)) together.push(partner);
      }
    }
  }
  return together.slice(1);
}
