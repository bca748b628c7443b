/** Public names of @metashard/core. */
export * from './backend.js';
export * from './bytes.js';
export * from './checkpoint.js';
export * from './device.js';
export * from './dtype.js';
export * from './errors.js';
export * from './float16.js';
export * as F from './functional.js';
export * from './load-safetensors.js';
export * from './native.js';
export * from './ops.js';
export * from './program.js';
export * from './reference/absmax.js';
export * from './reference/llm-int8.js';
export { roundHalfEven } from './reference/rounding.js';
export {
  encodeSafetensorsHeader,
  type HeaderEntry,
  MAX_HEADER_BYTES,
  MAX_RANK,
  MAX_TENSORS,
  parseSafetensorsHeader,
  readSafetensorsHeader,
  type SafetensorsHeader,
  type WrittenEntry,
} from './safetensors.js';
export * from './save-safetensors.js';
export * from './shape.js';
export * from './tensor.js';
