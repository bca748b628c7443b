/** Public names of @metashard/core. */
export * from './backend.js';
export * from './bytes.js';
export * from './device.js';
export * from './dtype.js';
export * from './errors.js';
export * from './float16.js';
export * as F from './functional.js';
export * from './native.js';
export * from './ops.js';
export * from './program.js';
export * from './shape.js';
export * from './tensor.js';
