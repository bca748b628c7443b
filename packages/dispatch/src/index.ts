/** Public names of @metashard/dispatch. */
export * from './block-allocator.js';
export { type Calibration, calibrate, costsOf, readCalibration } from './calibrate.js';
export { toLoadOptions } from './config/run-options.js';
export type { ExpectedUse } from './costs.js';
export * from './device-map.js';
export * from './devices.js';
export * from './dispatch-model.js';
export * from './estimate.js';
export type { ExecutorStats } from './executor-protocol.js';
export type { ForwardInputs, ForwardOptions, ForwardResult, Loss } from './forward.js';
export * from './generation-config.js';
export {
  chooseThreshold,
  compareQuantization,
  loadConfig,
  parseConfig,
  planHtml,
  planSvg,
  runCli,
  whatIf,
} from './lazy.js';
export { loadModel, type PackOptions, packStore, planModel } from './load-model.js';
export { type DeviceStats, LoadedModel } from './loaded-model.js';
export * from './options.js';
export { checkStore, storeFolder } from './packed-store.js';
export { OBJECTIVES, type Objective } from './placement.js';
export * from './plan.js';
export * from './plan-device-map.js';
export type { PictureOptions } from './plan-picture.js';
export { type PlannedProgram, type PlanRequest, planProgram } from './plan-program.js';
export * from './plan-table.js';
export type { ChooseThresholdOptions, ThresholdChoice } from './quant-compare/choose-threshold.js';
export type { QuantCompareOptions, QuantComparison, QuantResult } from './quant-compare/compare-quantization.js';
export type { OutlierColumn, OutlierReport } from './quant-compare/outlier-watch.js';
export { QUANT_METHODS } from './quant-compare/quant-methods.js';
export { formatQuantComparison } from './quant-compare/quant-report.js';
export type { QuantText } from './quant-compare/text-windows.js';
export * from './resolve-model.js';
export * from './stop-strings.js';
export * from './tokenizer.js';
export type { WhatIfAxes, WhatIfRow } from './what-if.js';
