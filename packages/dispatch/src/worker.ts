/**
 * Entry of a device's worker thread: the tasks the main thread sends through piscina. State lives as long as the
 * thread; a lost thread is a lost device.
 */
import '@metashard/cpu';
import '@metashard/cuda';
import { DisposedError, native, toPlainError } from '@metashard/core';
import { DeviceExecutor } from './device-executor.js';
import type {
  ExecutorMessage,
  ExecutorSetup,
  ExecutorStats,
  Inbox,
  LoadInstruction,
  OpenedExecutor,
  SaveInstruction,
  ServeRequest,
} from './executor-protocol.js';
import { Control } from './ring.js';
import { saveWeights } from './save-weights.js';
import { ServeLoop } from './serve.js';

let executor: DeviceExecutor | null = null;
let loop: ServeLoop | null = null;

function current(): DeviceExecutor {
  if (executor === null) throw new DisposedError('executor: expected an open device, got a closed one');
  return executor;
}

/** Errors cross as plain data; see fromPlainError. */
function plainly<A, R>(
  task: (argument: A) => R,
): (argument: A) => { ok: R } | { error: ReturnType<typeof toPlainError> } {
  return (argument) => {
    try {
      return { ok: task(argument) };
    } catch (error) {
      return { error: toPlainError(error) };
    }
  };
}

export const open = plainly((setup: ExecutorSetup): OpenedExecutor => {
  executor?.close();
  executor = new DeviceExecutor(setup);
  loop = new ServeLoop(executor);
  return executor.opened;
});

export const connect = plainly((inboxes: readonly Inbox[]): void => current().connect(inboxes));

export const load = plainly((instructions: readonly LoadInstruction[]): void => {
  const { setup } = current();
  const control = new Control(setup.control, setup.controlRows);
  const executor = current();
  try {
    for (const instruction of instructions) {
      if (control.aborted || control.stopped) break;
      const loader = executor.loaderOf(instruction);
      const bytes = loader.run(instruction);
      setup.port.postMessage({ type: 'progress', tensor: loader.nameOf(instruction), bytes } satisfies ExecutorMessage);
    }
    native().synchronize(executor.context.id);
  } finally {
    for (const loader of executor.loaders) loader.close();
  }
  setup.port.postMessage({ type: 'done' } satisfies ExecutorMessage);
});

export const save = plainly((instructions: readonly SaveInstruction[]): void => saveWeights(current(), instructions));

/** A failure stops every other worker before it is reported. */
export const serve = plainly((request: ServeRequest): void => {
  const { setup } = current();
  try {
    loop?.serve(request);
    setup.port.postMessage({ type: 'done' } satisfies ExecutorMessage);
  } catch (error) {
    new Control(setup.control, setup.controlRows).stop();
    throw error;
  }
});

export const stats = plainly((): ExecutorStats[] => current().stats);

export const close = plainly((): void => {
  executor?.setup.port.close();
  executor?.close();
  executor = null;
  loop = null;
});
