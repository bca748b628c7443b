/** `dispatchModel` and `loadCheckpointAndDispatch`: a user's own module tree over several devices, recorded, planned and run like a built-in architecture. */
import {
  ArgumentError,
  type CheckpointIndex,
  DeviceMapError,
  type DeviceName,
  elementCount,
  F,
  openCheckpoint,
  type ProgramTensor,
  ShapeError,
  type Tensor,
  type TensorId,
  zeros,
} from '@metashard/core';
import { findTiedParameters, findTransposedParameters, Int8Params, type Module, scaleName } from '@metashard/meta';
import { resolveDevices } from './devices.js';
import type { LoadInstruction } from './executor-protocol.js';
import { Executors } from './executors.js';
import { weightsToLoad } from './memory-plan.js';
import type { DevicePlan } from './plan.js';
import { type PlanOptions, planRecorded, type RecordedModel, recordModel } from './plan-device-map.js';
import type { PlannedProgram } from './plan-program.js';
import { FLAG, type StepDescriptor, stepInputs } from './step.js';
import { findWeightSources, instructionsFor } from './weight-sources.js';

export interface DispatchOptions extends PlanOptions {
  inputs: NonNullable<PlanOptions['inputs']>;
  signal?: AbortSignal;
}

/** A dispatched module tree. */
export interface DispatchedModel {
  readonly plan: DevicePlan;
  readonly executors: Executors;
  /** One forward; inputs by name, float32 or int32, "tokens" any size up to maxSeqLen · maxBatchSize. Calls run one after another. */
  forward(inputs: Record<string, Tensor>): Promise<Tensor>;
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Dispatches a module tree with real weights; they are copied to the devices, those of Linear8bitLt in 8 bits. The module itself is left as it is. */
export async function dispatchModel(module: Module, options: DispatchOptions): Promise<DispatchedModel> {
  for (const parameter of module.parameters()) {
    if (parameter.isMeta)
      throw new ArgumentError('dispatchModel: expected a module with values, got one on meta', {
        hint: 'use loadCheckpointAndDispatch',
      });
  }
  const recorded = recordModel(module, options);
  const values = valuesOf(module);
  return start(recorded, options, (program) => memorySources(program, values));
}

/** Dispatches a module tree on meta with the weights of a checkpoint folder. Throws CheckpointError where names or shapes do not match. */
export async function loadCheckpointAndDispatch(
  module: Module,
  folder: string,
  options: DispatchOptions,
): Promise<DispatchedModel> {
  const checkpoint: CheckpointIndex = await openCheckpoint(folder);
  const recorded = recordModel(module, options);
  return start(recorded, options, (program) =>
    findWeightSources({
      program,
      checkpoint,
      baseModelPrefix: 'model',
      tied: findTiedParameters(module),
      transposed: findTransposedParameters(module),
    }),
  );
}

/** Tensors by the names the Program gives them: parameters, 8-bit weights with their scales, persistent buffers. */
function valuesOf(module: Module): Map<string, Tensor> {
  const values = new Map<string, Tensor>(module.namedBuffers());
  for (const [name, parameter] of module.namedParameters()) {
    if (parameter instanceof Int8Params) {
      const { CB, SCB } =
        parameter.CB !== null && parameter.SCB !== null
          ? { CB: parameter.CB, SCB: parameter.SCB }
          : F.quantizeWeight(parameter);
      values.set(name, CB).set(scaleName(name), SCB);
    } else {
      values.set(name, parameter);
    }
  }
  return values;
}

/** Copies from the module's own storage. Strided int8 weights become packed on the device. */
function memorySources(
  program: RecordedModel['program'],
  values: ReadonlyMap<string, Tensor>,
): Map<TensorId, LoadInstruction> {
  const sources = new Map<TensorId, LoadInstruction>();
  for (const [id, tensor] of program.tensors.entries()) {
    if (tensor.kind !== 'weight') continue;
    const value = values.get(tensor.name ?? '');
    if (value?.storage == null) throw new ArgumentError(`dispatchModel: no value for ${tensor.name}`);
    const dense = value.contiguous();
    sources.set(id, {
      kind: 'memory',
      tensor: id,
      buffer: dense.storage?.buffer as number,
      byteOffset: dense.offset * (dense.nbytes / Math.max(1, dense.numel)),
    });
  }
  return sources;
}

async function start(
  recorded: RecordedModel,
  options: DispatchOptions,
  findSources: (program: RecordedModel['program']) => ReadonlyMap<TensorId, LoadInstruction>,
): Promise<DispatchedModel> {
  const planned = planRecorded(recorded, resolveDevices(options), {
    deviceMap: options.deviceMap ?? 'auto',
    model: options.model ?? 'module',
    objective: options.objective,
    expectedUse: options.expectedUse,
  });
  refuseDisk(planned);
  const sources = findSources(recorded.program);
  const executors = await Executors.start({ program: recorded.program, planned, dims: planned.dims, sampler: null });
  try {
    const perDevice = new Map<DeviceName, LoadInstruction[]>();
    for (const [device, memory] of planned.memory)
      perDevice.set(device, instructionsFor(weightsToLoad(memory), sources));
    await executors.load(perDevice, () => {}, options.signal);
  } catch (error) {
    await executors.dispose();
    throw error;
  }
  let queue: Promise<unknown> = Promise.resolve();
  const forward = (inputs: Record<string, Tensor>): Promise<Tensor> => {
    const result = queue.then(() => forwardOnce(executors, recorded, planned.dims.tokens, inputs));
    queue = result.catch(() => {});
    return result;
  };
  const dispose = (): Promise<void> => executors.dispose();
  return { plan: planned.plan, executors, forward, dispose, [Symbol.asyncDispose]: dispose };
}

/** A packed store is made from a model folder: there is none to stream from. */
function refuseDisk({ plan }: PlannedProgram): void {
  const on = plan.offloaded.find(({ device }) => device === 'disk');
  if (on === undefined) return;
  throw new DeviceMapError(`device_map.${on.module}: disk: expected memory for a dispatched module, got disk`, {
    code: 'offload_unsupported',
    hint: 'give the devices more memory, or map it to { device: cpu, execute_on: cuda:0 }; loadModel streams from disk',
  });
}

async function forwardOnce(
  executors: Executors,
  { program }: RecordedModel,
  maxTokens: number,
  inputs: Record<string, Tensor>,
): Promise<Tensor> {
  const { tokens, values } = readInputs(program, maxTokens, inputs);
  const step: StepDescriptor = {
    index: 0,
    flags: FLAG.logits,
    dims: { tokens, sequences: 1, outputs: tokens },
    values,
    rows: [0],
  };
  const spec = program.tensors[program.outputs.output as number] as ProgramTensor;
  const shape = spec.dims.map((dim) => (typeof dim === 'number' ? dim : tokens));
  const output = zeros(shape);
  await executors.run({ steps: [step] }, (message) => {
    if (message.type === 'output') output.storage?.write(message.first * message.columns * 4, message.data);
  });
  return output;
}

/** The given tensors as step inputs, checked against what was recorded. */
function readInputs(program: RecordedModel['program'], maxTokens: number, inputs: Record<string, Tensor>) {
  let tokens = 0;
  const values: Record<string, Int32Array | Float32Array> = {};
  for (const { name, spec } of stepInputs(program)) {
    const given = inputs[name];
    if (given === undefined)
      throw new ArgumentError(`forward: expected an input ${name}, got ${Object.keys(inputs).join(', ') || 'none'}`);
    const first = given.shape[0] ?? 1;
    if (spec.dims[0] === 'tokens') tokens = first;
    const want = spec.dims.map((dim) => (dim === 'tokens' ? first : dim));
    if (
      given.dtype !== spec.dtype ||
      want.length !== given.shape.length ||
      !want.every((dim, i) => dim === given.shape[i])
    ) {
      throw new ShapeError(
        `forward: expected ${name} as ${spec.dtype} [${spec.dims.join(', ')}], got ${given.dtype} [${given.shape.join(', ')}]`,
      );
    }
    const data = given.contiguous().toTypedArray();
    values[name] = data instanceof Int32Array ? data : (data as Float32Array);
    if (data.length !== elementCount(given.shape)) throw new ShapeError(`forward: ${name} is not dense`);
  }
  if (tokens > maxTokens) {
    throw new ShapeError(`forward: expected at most ${maxTokens} rows, got ${tokens}`, {
      hint: 'dispatch with a larger maxSeqLen or maxBatchSize',
    });
  }
  return { tokens, values };
}
