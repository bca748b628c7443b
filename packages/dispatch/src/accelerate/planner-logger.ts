/** Where the planner's remarks go: it prints nothing itself. `console` is such a logger. */

export type RemarkLevel = 'warn' | 'info' | 'debug';

/** What a remark is about, and its numbers. */
export interface RemarkDetails {
  code: RemarkCode;
  [fact: string]: unknown;
}

export type RemarkCode =
  /** warn: offloaded layers have buffers that fit no GPU. `bytes`. */
  | 'buffers_fit_no_gpu'
  /** info: GPUs or the CPU got nothing. `requiredBytes` by device. */
  | 'devices_left_empty'
  /** info: a single GPU's free memory is offered in part. `device`, `bytes`. */
  | 'single_gpu_share'
  /** warn: keys of a map that name no part of the model. `keys`. */
  | 'unknown_keys'
  /** debug: one step of the planner. */
  | 'step';

export type PlannerLogger = { [level in RemarkLevel]?: (message: string, details: RemarkDetails) => void };

export function tell(
  logger: PlannerLogger | undefined,
  level: RemarkLevel,
  code: RemarkCode,
  message: string,
  facts: Readonly<Record<string, unknown>> = {},
): void {
  logger?.[level]?.(message, { code, ...facts });
}
