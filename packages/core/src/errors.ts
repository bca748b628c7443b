/**
 * Every error metashard throws on purpose. One base class with a stable `code` and one `hint`; branded, so that
 * `isInstance` holds across duplicate installs, and rebuilt with its class after a worker boundary (`toPlainError`,
 * `fromPlainError`). A message reads: where: what, expected and got; one line, no trailing period, values with units.
 */
const BRAND = Symbol.for('metashard.error');

export interface ErrorDetails {
  /** One thing the reader can do. */
  hint?: string | undefined;
  cause?: unknown;
  /** Structured facts of the class: file, tensor, line, needed and available bytes, … Plain data only. */
  details?: Record<string, unknown> | undefined;
}

export class MetashardError extends Error {
  readonly code: string;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: string, message: string, { hint, cause, details = {} }: ErrorDetails = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.hint = hint;
    this.details = details;
    this.name = new.target.name;
    Object.defineProperty(this, BRAND, { value: true });
  }

  /** True for every metashard error, also of another copy of this package. */
  static isInstance(value: unknown): value is MetashardError {
    return typeof value === 'object' && value !== null && (value as Record<symbol, unknown>)[BRAND] === true;
  }
}

/** Makes a subclass with its default code; `details` become readable as `error.details`. */
function errorClass(name: string, code: string) {
  const made = class extends MetashardError {
    constructor(message: string, details: ErrorDetails & { code?: string } = {}) {
      super(details.code ?? code, message, details);
    }
  };
  Object.defineProperty(made, 'name', { value: name });
  return made;
}

/** A config file, option, environment variable or flag is wrong. Details: file, line, column, path. */
export class ConfigError extends errorClass('ConfigError', 'config_invalid') {}
/** A config.json field changes numerics and is not implemented. Details: field, value. */
export class UnsupportedConfigError extends errorClass('UnsupportedConfigError', 'config_unsupported') {}
/** A checkpoint file is missing, broken or does not match the model. Details: file, tensor. */
export class CheckpointError extends errorClass('CheckpointError', 'checkpoint_invalid') {}
/** No model under that name. Details: looked (the places). */
export class ModelNotFoundError extends errorClass('ModelNotFoundError', 'model_not_found') {}
/** A device map names no module, leaves parameters out, or names an unknown device. */
export class DeviceMapError extends errorClass('DeviceMapError', 'device_map_invalid') {}
/** The model does not fit, found before any weight is read. Details: device, neededBytes, availableBytes. */
export class InsufficientMemoryError extends errorClass('InsufficientMemoryError', 'memory_insufficient') {}
/** An allocation failed on a device. Details: device, bytes. */
export class OutOfMemoryError extends errorClass('OutOfMemoryError', 'memory_exhausted') {}
export class ShapeError extends errorClass('ShapeError', 'shape_mismatch') {}
export class DtypeError extends errorClass('DtypeError', 'dtype_mismatch') {}
/** A native part was not built. */
export class NotCompiledError extends errorClass('NotCompiledError', 'not_compiled') {}
/** No driver or no such device. Details: device. */
export class DeviceUnavailableError extends errorClass('DeviceUnavailableError', 'device_unavailable') {}
/** A device stopped working; its executor refuses further work. */
export class DeviceLostError extends errorClass('DeviceLostError', 'device_lost') {}
/** A backend refused or failed an op. Details: op, device, nativeCode, file, line. */
export class BackendError extends errorClass('BackendError', 'backend_failed') {}
/** A device's worker failed; `cause` says why. Details: device. */
export class ExecutorError extends errorClass('ExecutorError', 'executor_failed') {}
/** Prompt and new tokens do not fit the context. Details: tokens, maxSeqLen. */
export class ContextLengthError extends errorClass('ContextLengthError', 'context_too_long') {}
/** A call was made with an argument that cannot work. */
export class ArgumentError extends errorClass('ArgumentError', 'argument_invalid') {}
/** Something was used after dispose(). */
export class DisposedError extends errorClass('DisposedError', 'disposed') {}
/** A stateful object (Int8Params, a cache) was asked for something its state does not allow. */
export class StateError extends errorClass('StateError', 'state_invalid') {}

type ErrorConstructor = new (message: string, details?: ErrorDetails & { code?: string }) => MetashardError;
const CLASSES = new Map<string, ErrorConstructor>(
  [
    ConfigError,
    UnsupportedConfigError,
    CheckpointError,
    ModelNotFoundError,
    DeviceMapError,
    InsufficientMemoryError,
    OutOfMemoryError,
    ShapeError,
    DtypeError,
    NotCompiledError,
    DeviceUnavailableError,
    DeviceLostError,
    BackendError,
    ExecutorError,
    ContextLengthError,
    ArgumentError,
    DisposedError,
    StateError,
  ].map((c) => [c.name, c as ErrorConstructor]),
);

/** An error as plain data that survives structured clone. */
export interface PlainError {
  name: string;
  message: string;
  stack?: string | undefined;
  code?: string | undefined;
  hint?: string | undefined;
  details?: Record<string, unknown> | undefined;
  cause?: PlainError | undefined;
}

export function toPlainError(value: unknown): PlainError {
  if (!(value instanceof Error) && !MetashardError.isInstance(value)) return { name: 'Error', message: String(value) };
  const error = value as Error;
  const plain: PlainError = { name: error.name, message: error.message, stack: error.stack };
  if (MetashardError.isInstance(error)) {
    plain.code = error.code;
    plain.hint = error.hint;
    plain.details = { ...error.details };
  }
  if (error.cause !== undefined) plain.cause = toPlainError(error.cause);
  return plain;
}

export function fromPlainError(plain: PlainError): Error {
  const cause = plain.cause === undefined ? undefined : fromPlainError(plain.cause);
  const Class = CLASSES.get(plain.name);
  let error: Error;
  if (Class !== undefined && plain.code !== undefined) {
    error = new Class(plain.message, { code: plain.code, hint: plain.hint, cause, details: plain.details });
  } else {
    error = new Error(plain.message, cause === undefined ? undefined : { cause });
    error.name = plain.name;
  }
  if (plain.stack !== undefined) error.stack = plain.stack;
  return error;
}

/**
 * "did you mean …" for a mistyped word: the nearest candidate within a third of its length, or undefined. Levenshtein
 * distance.
 */
export function nearestWord(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase(), bestDistance);
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) >= limit) return limit;
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min((previous[j] as number) + 1, (row[j - 1] as number) + 1, substitution));
    }
    previous = row;
  }
  return previous[b.length] as number;
}
