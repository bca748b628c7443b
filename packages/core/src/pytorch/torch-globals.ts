/**
 * The allow-list: every name a pickle may refer to, and what calling it describes. A name is looked up in this table and
 * nowhere else; nothing is imported, and no code of a file ever runs.
 * Which names PyTorch writes: `Tensor.__reduce_ex__`, `Parameter.__reduce_ex__` and `torch.save` of PyTorch 0.3 to 2.13.
 */
import { PickleDict, PickleList, PickleOther, PickleTuple, type PickleValue } from './pickle-values.js';
import {
  type Fail,
  rebuildTensor,
  rebuildTensorV2,
  rebuildTensorV3,
  TORCH_DTYPES,
  type TorchDtype,
  TorchTensor,
} from './torch-tensor.js';

type Call = (args: readonly PickleValue[], fail: Fail) => PickleValue;

export class TorchGlobal {
  constructor(
    /** With its module: `torch.FloatStorage`. */
    readonly name: string,
    readonly role: 'function' | 'class' | 'storage' | 'dtype',
    /** Of a storage or dtype; undefined for functions and classes. */
    readonly dtype: TorchDtype | undefined,
    /** What the name makes of its arguments; undefined for what must not be called. */
    readonly call: Call | undefined,
  ) {}
}

/** Typed storages; `torch.cuda` has the same, as old files that were saved on a GPU say. */
const STORAGES: Readonly<Record<string, string>> = {
  DoubleStorage: 'float64',
  FloatStorage: 'float32',
  HalfStorage: 'float16',
  BFloat16Storage: 'bfloat16',
  LongStorage: 'int64',
  IntStorage: 'int32',
  ShortStorage: 'int16',
  CharStorage: 'int8',
  ByteStorage: 'uint8',
  BoolStorage: 'bool',
  ComplexFloatStorage: 'complex64',
  ComplexDoubleStorage: 'complex128',
  UntypedStorage: 'uint8',
};

const FUNCTIONS: Readonly<Record<string, Call>> = {
  'collections.OrderedDict': orderedDict,
  'torch._utils._rebuild_tensor': rebuildTensor,
  'torch._utils._rebuild_tensor_v2': rebuildTensorV2,
  'torch._utils._rebuild_tensor_v3': rebuildTensorV3,
  'torch._utils._rebuild_parameter': (args, fail) => rebuildParameter(args, 3, fail),
  'torch._utils._rebuild_parameter_with_state': (args, fail) => rebuildParameter(args, 4, fail),
  'torch._tensor._rebuild_from_type_v2': rebuildFromType,
  'torch.Size': size,
  'torch.device': () => new PickleOther('device'),
};

/** Classes that only say what `_rebuild_from_type_v2` makes. */
const CLASSES = ['torch.Tensor', 'torch.nn.parameter.Parameter'];

const GLOBALS: ReadonlyMap<string, TorchGlobal> = new Map(
  [
    ...Object.entries(FUNCTIONS).map(([name, call]) => new TorchGlobal(name, 'function', undefined, call)),
    ...CLASSES.map((name) => new TorchGlobal(name, 'class', undefined, undefined)),
    ...Object.entries(STORAGES).flatMap(([name, dtype]) =>
      ['torch', 'torch.cuda', 'torch.storage'].map(
        (module) => new TorchGlobal(`${module}.${name}`, 'storage', TORCH_DTYPES.get(dtype), undefined),
      ),
    ),
    ...[...TORCH_DTYPES.values()].map((dtype) => new TorchGlobal(`torch.${dtype.name}`, 'dtype', dtype, undefined)),
  ].map((global) => [global.name, global]),
);

const ALLOWED = `${Object.keys(FUNCTIONS).join(', ')}, ${CLASSES.join(', ')}, a typed storage or a dtype of torch`;

/** The global of that name. Throws for a name that is not on the list. */
export function findGlobal(module: string, name: string, fail: Fail): TorchGlobal {
  // A dot in the name would be an attribute of an attribute: only the exact spelling counts.
  const global = name.includes('.') ? undefined : GLOBALS.get(`${module}.${name}`);
  if (global !== undefined) return global;
  const got = JSON.stringify(`${module.slice(0, 100)}.${name.slice(0, 100)}`);
  throw fail(
    `expected only tensors (${ALLOWED}), got the global ${got}, which is not allowed`,
    'nothing of it was run; if you trust the file, load it in PyTorch and save only its state dict',
  );
}

/** `OrderedDict()`, and with pairs as Python 2 writes it: `OrderedDict([[key, value], …])`. */
function orderedDict(args: readonly PickleValue[], fail: Fail): PickleDict {
  const made = new PickleDict();
  const [pairs] = args;
  if (args.length > 1 || (pairs !== undefined && !(pairs instanceof PickleList))) {
    throw fail('expected OrderedDict of nothing or of a list of pairs, got something else');
  }
  for (const pair of pairs?.items ?? []) {
    const items = pair instanceof PickleList || pair instanceof PickleTuple ? pair.items : [];
    if (items.length !== 2) throw fail('expected pairs of a key and a value, got something else');
    putItem(made, items[0] as PickleValue, items[1] as PickleValue, fail);
  }
  return made;
}

/** Adds an item to a dict. Throws where the key is there or cannot be one: two readers must not see two values. */
export function putItem(dict: PickleDict, key: PickleValue, value: PickleValue, fail: Fail): void {
  if (key instanceof PickleList || key instanceof PickleDict || key instanceof TorchTensor) {
    throw fail('expected a string or a number as a key, got a container');
  }
  if (dict.has(key)) {
    const got = typeof key === 'string' ? JSON.stringify(key.slice(0, 100)) : 'one';
    throw fail(`expected every key once, got ${got} twice`);
  }
  dict.set(key, value);
}

/** `_rebuild_parameter(data, requires_grad, backward_hooks[, state])`: the tensor in it. */
function rebuildParameter(args: readonly PickleValue[], count: number, fail: Fail): TorchTensor {
  const [data] = args;
  if (args.length !== count) throw fail(`expected ${count} arguments of a parameter, got ${args.length}`);
  if (!(data instanceof TorchTensor)) throw fail('expected the tensor of a parameter, got something else');
  return data;
}

/** `_rebuild_from_type_v2(function, type, args, state)`: a tensor that carries Python attributes, without them. */
function rebuildFromType(args: readonly PickleValue[], fail: Fail): PickleValue {
  const [made, type, inner] = args;
  if (args.length !== 4 || !(inner instanceof PickleTuple) || !(type instanceof TorchGlobal) || type.role !== 'class') {
    throw fail('expected _rebuild_from_type_v2 of a function, a class of tensors and its arguments, got something else');
  }
  const rebuilds = made instanceof TorchGlobal && made.name.startsWith('torch._utils._rebuild_');
  if (!rebuilds || made.call === undefined) throw fail('expected a rebuild function of torch._utils, got something else');
  return made.call(inner.items, fail);
}

function size(args: readonly PickleValue[], fail: Fail): PickleTuple {
  const [dims] = args;
  if (args.length !== 1 || !(dims instanceof PickleTuple)) throw fail('expected torch.Size of a tuple, got something else');
  return dims;
}
