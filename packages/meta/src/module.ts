/**
 * Module: a tree of named parameters, buffers and child modules with a `forward`, in PyTorch's words. What it holds is
 * what its own properties hold, in the order they were set: a Parameter, a Tensor (a buffer) or a Module. No device,
 * dtype or quantization is decided here.
 */
import {
  ArgumentError,
  type DeviceName,
  DTYPES,
  DtypeError,
  F,
  nearestWord,
  parseDevice,
  StateError,
  Tensor,
} from '@metashard/core';
import { emptyMode } from './empty-mode.js';
import { type MoveTarget, Parameter } from './parameter.js';
import { LoadPlan, type LoadResult, type LoadStateDictOptions, type StateSource } from './state-dict.js';

export interface BufferOptions {
  /** In the state dict and in checkpoints. */
  persistent?: boolean;
}

const join = (prefix: string, name: string): string => (prefix === '' ? name : `${prefix}.${name}`);

export abstract class Module {
  training = true;
  #transient: Set<string> | undefined;

  abstract forward(...inputs: never[]): unknown;

  /** Sets a parameter under `name`; null keeps the place empty. Assigning the property does the same. */
  registerParameter(name: string, parameter: Parameter | null): void {
    this.#register(name, parameter);
  }
  /**
   * Sets a buffer: a tensor that is no parameter. A non-persistent one is in no state dict and stays real under
   * `initEmptyWeights`.
   */
  registerBuffer(name: string, buffer: Tensor | null, { persistent = true }: BufferOptions = {}): void {
    const empty = persistent && emptyMode()?.includeBuffers === true && buffer !== null;
    this.#register(name, empty ? F.to(buffer, { device: 'meta' }) : buffer);
    if (!persistent) {
      this.#transient ??= new Set();
      this.#transient.add(name);
    }
  }
  registerModule(name: string, module: Module | null): void {
    this.#register(name, module);
  }

  #register(name: string, value: Tensor | Module | null): void {
    if (name === '' || name.includes('.') || (!Object.hasOwn(this, name) && name in this)) {
      throw new ArgumentError(`${this.constructor.name}: expected a free name without dots, got "${name}"`);
    }
    (this as unknown as Record<string, unknown>)[name] = value;
  }

  /** This module's own parameters. */
  ownParameters(): [string, Parameter][] {
    return this.#own((value) => value instanceof Parameter);
  }
  /** This module's own buffers. */
  ownBuffers(): [string, Tensor][] {
    return this.#own((value) => value instanceof Tensor && !(value instanceof Parameter));
  }
  isPersistent(bufferName: string): boolean {
    return this.#transient?.has(bufferName) !== true;
  }
  /** Direct children with their names. */
  namedChildren(): [string, Module][] {
    return this.#own((value) => value instanceof Module);
  }
  #own<T>(wanted: (value: unknown) => boolean): [string, T][] {
    const found: [string, T][] = [];
    for (const name of Object.keys(this)) {
      const value = (this as unknown as Record<string, unknown>)[name];
      if (typeof value === 'object' && value !== null && wanted(value)) found.push([name, value as T]);
    }
    return found;
  }
  children(): Module[] {
    return this.namedChildren().map(([, child]) => child);
  }

  /**
   * This module and all below, parents first, with their paths ("" for this one); `everyName` lists a shared one under
   * each of its paths.
   */
  namedModules(prefix = '', { everyName = false } = {}): [string, Module][] {
    const found: [string, Module][] = [];
    const seen = new Set<Module>();
    const visit = (path: string, module: Module): void => {
      if (!everyName && seen.has(module)) return;
      seen.add(module);
      found.push([path, module]);
      for (const [name, child] of module.namedChildren()) visit(join(path, name), child);
    };
    visit(prefix, this);
    return found;
  }
  modules(): Module[] {
    return this.namedModules().map(([, module]) => module);
  }

  /** All parameters with their paths; a shared one once, under its first. `everyName` lists it under each. */
  namedParameters({ everyName = false } = {}): [string, Parameter][] {
    const seen = new Set<Parameter>();
    return this.namedModules('', { everyName }).flatMap(([path, module]) =>
      module.ownParameters().flatMap(([name, parameter]): [string, Parameter][] => {
        if (!everyName && seen.has(parameter)) return [];
        seen.add(parameter);
        return [[join(path, name), parameter]];
      }),
    );
  }
  parameters(): Parameter[] {
    return this.namedParameters().map(([, parameter]) => parameter);
  }

  /** All buffers with their paths, a shared one once. `persistentOnly` leaves out those that are in no checkpoint. */
  namedBuffers({ persistentOnly = false } = {}): [string, Tensor][] {
    const found = new Map<Tensor, string>();
    for (const [path, module] of this.namedModules()) {
      for (const [name, buffer] of module.ownBuffers()) {
        if (persistentOnly && !module.isPersistent(name)) continue;
        if (!found.has(buffer)) found.set(buffer, join(path, name));
      }
    }
    return [...found].map(([buffer, name]) => [name, buffer]);
  }
  buffers(): Tensor[] {
    return this.namedBuffers().map(([, buffer]) => buffer);
  }

  /** The module at a path such as `transformer.h.0`; "" is this one. Throws ArgumentError with the nearest name. */
  getModule(path: string): Module {
    let module: Module = this;
    for (const name of path === '' ? [] : path.split('.')) {
      const child = Object.hasOwn(module, name) ? (module as unknown as Record<string, unknown>)[name] : undefined;
      if (!(child instanceof Module)) throw this.#unknown('module', path, this.namedModules());
      module = child;
    }
    return module;
  }
  /** The parameter at a path such as `lm_head.weight`. Throws ArgumentError with the nearest name. */
  getParameter(path: string): Parameter {
    const [parent, name] = splitPath(path);
    const own = this.getModule(parent).ownParameters();
    const found = own.find(([key]) => key === name);
    if (found === undefined) throw this.#unknown('parameter', path, this.namedParameters({ everyName: true }));
    return found[1];
  }
  #unknown(what: string, path: string, known: readonly [string, unknown][]): ArgumentError {
    const names = known.map(([name]) => name).filter((name) => name !== '');
    const near = nearestWord(path, names);
    return new ArgumentError(`${this.constructor.name}: expected a ${what} of the model, got "${path}"`, {
      hint: near === undefined ? undefined : `did you mean ${near}?`,
    });
  }

  /** What this module itself contributes to a state dict, without its children. */
  ownState(): [string, Tensor][] {
    const buffers = this.ownBuffers().filter(([name]) => this.isPersistent(name));
    return [...this.ownParameters().map(([name, p]): [string, Tensor] => [name, p.stored]), ...buffers];
  }

  /**
   * Every parameter and persistent buffer by path, a shared one under each of its names. Values are shared with the
   * module, not copied.
   */
  stateDict(): Map<string, Tensor> {
    const state = new Map<string, Tensor>();
    for (const [path, module] of this.namedModules('', { everyName: true })) {
      for (const [name, value] of module.ownState()) state.set(join(path, name), value);
    }
    return state;
  }

  /**
   * Takes values by path; cast to the parameter's float dtype and moved to its device (a parameter on meta takes the
   * value as it lies). A shared parameter is satisfied by any of its names. Nothing changes when it throws
   * CheckpointError: shapes, integers into floats, and, unless `strict` is false, missing or unexpected names.
   */
  loadStateDict(source: StateSource, { strict = true }: LoadStateDictOptions = {}): LoadResult {
    const plan = new LoadPlan(source);
    for (const [path, module] of this.namedModules('', { everyName: true })) {
      module.planLoad(path === '' ? '' : `${path}.`, plan);
    }
    return plan.apply(strict);
  }

  /** Plans what this module itself takes; a class with keys of its own overrides it. */
  planLoad(prefix: string, plan: LoadPlan): void {
    for (const [name, parameter] of this.ownParameters()) this.planParameter(prefix, name, parameter, plan);
    for (const [name, buffer] of this.ownBuffers()) {
      if (!this.isPersistent(name)) continue;
      plan.takeTensor(prefix + name, buffer, (value) => this.#setBuffer(name, loaded(buffer, value)));
    }
  }
  protected planParameter(prefix: string, name: string, parameter: Parameter, plan: LoadPlan): void {
    plan.takeTensor(prefix + name, parameter, (value) => parameter.load(value));
  }

  #setBuffer(name: string, value: Tensor): void {
    (this as unknown as Record<string, unknown>)[name] = value;
  }

  /**
   * Moves and casts everything in place; shared parameters stay shared. Float weights of Int8Params that reach a real
   * device are quantized, once. `dtype` leaves int8 weights and integer buffers as they are; non-persistent buffers
   * never go to meta, where their values would be lost. Throws StateError naming a parameter on meta when the target is
   * real, before anything has moved.
   */
  to(target: MoveTarget | DeviceName): this {
    const move: MoveTarget = typeof target === 'string' ? { device: target } : target;
    if (move.dtype !== undefined && !DTYPES[move.dtype].isFloat) {
      throw new DtypeError(`to: expected a float dtype, got ${move.dtype}`);
    }
    const toMeta = move.device !== undefined && parseDevice(move.device).type === 'meta';
    if (move.device !== undefined && !toMeta) this.#refuseMeta(move.device);
    for (const parameter of this.parameters()) parameter.moveTo(move);
    for (const module of this.modules()) {
      for (const [name, buffer] of module.ownBuffers()) {
        if (!toMeta || module.isPersistent(name)) module.#setBuffer(name, moved(buffer, move));
      }
    }
    return this;
  }
  #refuseMeta(device: DeviceName): void {
    const found = [...this.namedParameters(), ...this.namedBuffers()].find(([, tensor]) => tensor.isMeta);
    if (found === undefined) return;
    throw new StateError(`to: expected values to move to ${device}, got ${found[0]} on meta`, {
      hint: 'load values with setModuleTensorToDevice or loadStateDict',
    });
  }

  train(mode = true): this {
    for (const module of this.modules()) module.training = mode;
    return this;
  }
  eval(): this {
    return this.train(false);
  }
}

/** `a.b.weight` → [`a.b`, `weight`]. */
export function splitPath(path: string): [string, string] {
  const dot = path.lastIndexOf('.');
  return dot < 0 ? ['', path] : [path.slice(0, dot), path.slice(dot + 1)];
}

function moved(buffer: Tensor, { device, dtype }: MoveTarget): Tensor {
  const cast = dtype !== undefined && DTYPES[buffer.dtype].isFloat ? { dtype } : {};
  return F.to(buffer, device === undefined ? cast : { device, ...cast });
}

function loaded(buffer: Tensor, value: Tensor): Tensor {
  return F.to(value, { dtype: buffer.dtype, device: buffer.isMeta ? value.device : buffer.device });
}
