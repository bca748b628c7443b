/** Public names of @metashard/dispatch. */
export * from './block-allocator.js';
export * from './config/load-config.js';
export * from './device-map.js';
export * from './devices.js';
export * from './dispatch-model.js';
export type { ExecutorStats } from './executor-protocol.js';
export type { ForwardInputs, ForwardOptions, ForwardResult, Loss } from './forward.js';
export * from './generation-config.js';
export * from './load-model.js';
export { type DeviceStats, LoadedModel } from './loaded-model.js';
export * from './options.js';
export * from './plan.js';
export * from './plan-device-map.js';
export { type PlannedProgram, type PlanRequest, planProgram } from './plan-program.js';
export * from './plan-table.js';
export * from './resolve-model.js';
export * from './stop-strings.js';
export * from './tokenizer.js';
