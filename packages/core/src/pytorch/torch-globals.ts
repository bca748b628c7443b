/**
 * The allow-list: every name a pickle may refer to, and what calling it describes. A name is looked up in this table
 * and nowhere else; nothing is imported, and no code of a file ever runs. Which names PyTorch writes:
 * `Tensor.__reduce_ex__`, `Parameter.__reduce_ex__` and `torch.save` of PyTorch 0.3 to 2.13.
 */
import {
  type Fail,
  PickleDict,
  PickleList,
  PickleOther,
  PickleTuple,
  type PickleValue,
  TorchGlobal,
  typeName,
} from './pickle-values.js';
import { TORCH_DTYPES } from './torch-dtypes.js';
import {
  rebuildParameter,
  rebuildParameterWithState,
  rebuildTensor,
  rebuildTensorV2,
  rebuildTensorV3,
} from './torch-tensor.js';

/** Typed storages. */
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
/** `torch.cuda` in old files that were saved on a GPU. */
const STORAGE_MODULES = ['torch', 'torch.storage', 'torch.cuda'];

const FUNCTIONS: Readonly<Record<string, NonNullable<TorchGlobal['call']>>> = {
  'collections.OrderedDict': orderedDict,
  'torch._utils._rebuild_tensor': rebuildTensor,
  'torch._utils._rebuild_tensor_v2': rebuildTensorV2,
  'torch._utils._rebuild_tensor_v3': rebuildTensorV3,
  'torch._utils._rebuild_parameter': rebuildParameter,
  'torch._utils._rebuild_parameter_with_state': rebuildParameterWithState,
  'torch._tensor._rebuild_from_type_v2': rebuildFromType,
  'torch.Size': size,
  'torch.device': () => new PickleOther('torch.device'),
};

/** Classes that only say what `_rebuild_from_type_v2` makes. */
const CLASSES = ['torch.Tensor', 'torch.nn.parameter.Parameter'];

const GLOBALS: ReadonlyMap<string, TorchGlobal> = new Map(
  [
    ...Object.entries(FUNCTIONS).map(([name, call]) => new TorchGlobal(name, 'function', undefined, call)),
    ...CLASSES.map((name) => new TorchGlobal(name, 'class', undefined, undefined)),
    ...STORAGE_MODULES.flatMap((module) =>
      Object.entries(STORAGES).map(
        ([name, dtype]) => new TorchGlobal(`${module}.${name}`, 'storage', TORCH_DTYPES.get(dtype), undefined),
      ),
    ),
    ...[...TORCH_DTYPES.values()].map((dtype) => new TorchGlobal(`torch.${dtype.name}`, 'dtype', dtype, undefined)),
  ].map((global) => [global.name, global]),
);

const ALLOWED = [...Object.keys(FUNCTIONS), ...CLASSES, "torch's typed storages and dtypes"].join(', ');

/** The global of that name. Throws for a name that is not on the list. */
export function findGlobal(module: string, name: string, fail: Fail): TorchGlobal {
  // A dot in the name would mean an attribute of an attribute: only the one spelling that torch writes counts.
  const global = name.includes('.') ? undefined : GLOBALS.get(`${module}.${name}`);
  if (global !== undefined) return global;
  const got = JSON.stringify(`${module.slice(0, 100)}.${name.slice(0, 100)}`);
  throw fail(
    `got the global ${got}, expected only what tensors are made of: ${ALLOWED}`,
    'nothing of the file was run; if you trust it, load it in PyTorch and save only model.state_dict()',
  );
}

/** `OrderedDict()`, and with pairs as Python 2 writes it: `OrderedDict([[key, value], …])`. */
function orderedDict(args: readonly PickleValue[], fail: Fail): PickleDict {
  const made = new PickleDict();
  const [pairs] = args;
  if (args.length > 1 || (pairs !== undefined && !(pairs instanceof PickleList))) {
    throw fail(`expected OrderedDict of nothing or of a list of pairs, got ${args.map(typeName).join(', ')}`);
  }
  for (const pair of pairs?.items ?? []) {
    const items = pair instanceof PickleList || pair instanceof PickleTuple ? pair.items : [];
    if (items.length !== 2) throw fail(`expected a pair of a key and a value, got ${typeName(pair)}`);
    made.put(items[0] as PickleValue, items[1] as PickleValue, fail);
  }
  return made;
}

/** `_rebuild_from_type_v2(function, type, args, state)`: a tensor that carries Python attributes, without them. */
function rebuildFromType(args: readonly PickleValue[], fail: Fail): PickleValue {
  const [made, type, inner] = args;
  if (args.length !== 4 || !(inner instanceof PickleTuple) || !(type instanceof TorchGlobal) || type.role !== 'class') {
    const got = args.map(typeName).join(', ').slice(0, 200);
    throw fail(`expected _rebuild_from_type_v2 of a function, a tensor class, arguments and a state, got ${got}`);
  }
  const rebuilds = made instanceof TorchGlobal && made.name.startsWith('torch._utils._rebuild_');
  if (rebuilds && made.call !== undefined) return made.call(inner.items, fail);
  throw fail(`expected a rebuild function of torch._utils, got ${typeName(made)}`);
}

function size(args: readonly PickleValue[], fail: Fail): PickleTuple {
  if (args.length === 1 && args[0] instanceof PickleTuple) return args[0];
  throw fail(`expected torch.Size of a tuple, got ${args.map(typeName).join(', ').slice(0, 200)}`);
}
