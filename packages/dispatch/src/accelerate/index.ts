/** accelerate's planning functions with its results, device keys and sizes, for those who bring maps and habits. */
export { type AutoDeviceMapOptions, autoDeviceMap, type DeviceMapMode } from './auto-device-map.js';
export { type BalancedMemoryOptions, getBalancedMemory } from './balanced-memory.js';
export { type CheckDeviceMapOptions, checkDeviceMap } from './check-device-map.js';
export { cleanDeviceMap } from './clean-device-map.js';
export { convertFileSizeToInt } from './convert-file-size.js';
export { dtypeByteSize } from './dtype-byte-size.js';
export type { JsonGraph, JsonNode, JsonTensor, Model } from './graph.js';
export { type AccelerateDeviceMap, type InferDeviceMapOptions, inferAutoDeviceMap } from './infer-auto-device-map.js';
export { getMaxLayerSize, type MaxLayerOptions, type NoSplitClasses } from './max-layer-size.js';
export { type DeviceKey, getMaxMemory, type MaxMemory } from './max-memory.js';
export { computeModuleSizes, type ModuleSizeOptions, type SizeOptions } from './module-sizes.js';
export type { PlannerLogger, RemarkCode, RemarkDetails, RemarkLevel } from './planner-logger.js';
export { findTiedParameters } from './tied-parameters.js';
