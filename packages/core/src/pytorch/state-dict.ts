/**
 * Which part of what a pickle holds is the state dict: the dict itself, or the one that training scripts wrap. Says
 * what was left aside.
 */
import { checkpointError, MAX_TENSORS } from '../safetensors.js';
import { PickleDict, type PickleValue, TorchTensor, typeName } from './pickle-values.js';

/** Where training scripts put the state dict, in the order they are looked for. */
const WRAPPERS = ['state_dict', 'model_state_dict', 'model', 'module'];
/** How many names of left-out values are told. */
const MAX_LISTED = 32;
const MAX_NAME_LENGTH = 4096;

export interface StateDict {
  readonly tensors: ReadonlyMap<string, TorchTensor>;
  /**
   * `pytorch.state_dict`: the key it was found under, absent where the file is the state dict itself;
   * `pytorch.ignored`: what is there besides tensors, as `name (type)`.
   */
  readonly metadata: ReadonlyMap<string, string>;
}

/** The tensors of a state dict. Throws CheckpointError where there is no dict of tensors. */
export function readStateDict(value: PickleValue, file: string): StateDict {
  if (!(value instanceof PickleDict)) {
    throw checkpointError(file, undefined, `expected a state dict, got a ${typeName(value)}`, {
      hint: 'save a dict of tensors by name, such as model.state_dict()',
    });
  }
  const wrapper = WRAPPERS.find((key) => holdsTensors(value.get(key)));
  const chosen = wrapper === undefined ? value : (value.get(wrapper) as PickleDict);
  if (chosen.size > 0 && !holdsTensors(chosen)) throw noTensors(chosen, file);
  const ignored: string[] = [];
  const tensors = readTensors(chosen, file, ignored);
  if (wrapper !== undefined) {
    for (const [key, other] of value) if (key !== wrapper) ignored.push(describe(key, other));
  }
  const metadata = new Map<string, string>();
  if (wrapper !== undefined) metadata.set('pytorch.state_dict', wrapper);
  if (ignored.length > 0) metadata.set('pytorch.ignored', list(ignored));
  return { tensors, metadata };
}

function holdsTensors(value: PickleValue | undefined): boolean {
  return value instanceof PickleDict && [...value].some(([, item]) => item instanceof TorchTensor);
}

function readTensors(dict: PickleDict, file: string, ignored: string[]): Map<string, TorchTensor> {
  const tensors = new Map<string, TorchTensor>();
  for (const [name, value] of dict) {
    if (typeof name !== 'string' || !(value instanceof TorchTensor)) {
      ignored.push(describe(name, value));
      continue;
    }
    if (name.length > MAX_NAME_LENGTH) {
      throw checkpointError(file, name, `expected a name of at most ${MAX_NAME_LENGTH} characters, got ${name.length}`);
    }
    if (tensors.size >= MAX_TENSORS) {
      throw checkpointError(file, name, `expected at most ${MAX_TENSORS} tensors, got more`);
    }
    tensors.set(name, value);
  }
  return tensors;
}

function noTensors(dict: PickleDict, file: string): Error {
  const nested = [...dict].find(([, value]) => holdsTensors(value));
  const hint =
    nested === undefined
      ? 'save a dict of tensors by name, such as model.state_dict()'
      : `the tensors are in ${describe(...nested)}: save that alone`;
  const got = list([...dict].slice(0, MAX_LISTED + 1).map(([key, value]) => describe(key, value)));
  const where = `at the top or in ${WRAPPERS.join(', ')}`;
  return checkpointError(file, undefined, `expected tensors by name ${where}, got ${got}`, { hint });
}

function describe(key: PickleValue, value: PickleValue): string {
  const name = typeof key === 'string' ? key.slice(0, 100).replace(/\p{Cc}/gu, '?') : `a key of type ${typeName(key)}`;
  return `${name} (${typeName(value)})`;
}

function list(names: readonly string[]): string {
  return names.length <= MAX_LISTED ? names.join(', ') : `${names.slice(0, MAX_LISTED).join(', ')}, …`;
}
