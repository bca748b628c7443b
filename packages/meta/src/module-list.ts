/** Modules in a list, named by their positions: what ModuleList and Sequential share. */
import { StateError } from '@metashard/core';
import { Module } from './module.js';

export abstract class ModuleContainer<M extends Module> extends Module {
  #length = 0;

  constructor(modules: Iterable<M>) {
    super();
    for (const module of modules) this.append(module);
  }
  get length(): number {
    return this.#length;
  }
  append(module: M): this {
    this.registerModule(String(this.#length++), module);
    return this;
  }
  at(index: number): M | undefined {
    return (this.children() as M[]).at(index);
  }
  [Symbol.iterator](): IterableIterator<M> {
    return (this.children() as M[])[Symbol.iterator]();
  }
}

/** A list of modules without a forward of its own. */
export class ModuleList<M extends Module = Module> extends ModuleContainer<M> {
  constructor(modules: Iterable<M> = []) {
    super(modules);
  }
  forward(): never {
    throw new StateError('ModuleList: expected a loop over its modules, got a call of forward');
  }
}
