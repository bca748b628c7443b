/** nn.Sequential: modules one after another. */
import { ArgumentError, type Tensor } from '@metashard/core';
import { Module } from '../module.js';
import { ModuleContainer } from '../module-list.js';

/** A module from one tensor to one tensor. */
export interface TensorModule extends Module {
  forward(x: Tensor): Tensor;
}

/** Modules, or an array of them, named `0`, `1`, …; each gets what the one before gave. */
export class Sequential extends ModuleContainer<Module> {
  constructor(...modules: Module[] | [readonly Module[]]) {
    const list = modules.flat() as Module[];
    const wrong = list.findIndex((module) => !(module instanceof Module));
    if (wrong >= 0) throw new ArgumentError(`Sequential: expected modules, got ${typeof list[wrong]} at ${wrong}`);
    super(list);
  }

  forward(x: Tensor): Tensor {
    let out = x;
    for (const module of this) out = (module as TensorModule).forward(out);
    return out;
  }
}
