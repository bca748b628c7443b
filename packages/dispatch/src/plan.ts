/**
 * The device plan: what will be where, in bytes, before anything is loaded. Plain JSON; made by `plan-device-map.ts`,
 * printed by `plan-table.ts`.
 */
import type { DeviceName } from '@metashard/core';
import type { Objective } from './placement.js';

export const STRATEGIES = ['auto', 'balanced', 'balanced_low_0', 'sequential'] as const;
export type Strategy = (typeof STRATEGIES)[number];

/**
 * A module prefix → where it lives. `{ device: 'disk', execute_on: 'cuda:0' }` streams its weights to the device that
 * computes.
 */
export type DeviceMapValue = DeviceName | number | { device: DeviceName | number; execute_on?: DeviceName | number };
export type DeviceMap = Record<string, DeviceMapValue>;

/** A device map with canonical names; `execute_on` where weights are streamed to another device than the first CPU. */
export type PlacedDeviceMap = Record<string, DeviceName | { device: DeviceName; execute_on: DeviceName }>;

/** Consecutive ops of the Program that run on one device. A device may have several segments. */
export interface PlanSegment {
  device: DeviceName;
  executeOn: DeviceName;
  /** Module paths in order of execution. */
  modules: string[];
}

/**
 * What one unit of the model (a block, or a module between blocks) has on one device. A unit that a map cuts has an
 * entry per device.
 */
export interface PlanModule {
  path: string;
  device: DeviceName;
  /** What the device stores because of it; a weight shared with an earlier unit of the same device is counted there. */
  weightsBytes: number;
  kvCacheBytes: number;
}

export interface PlanDevice {
  name: DeviceName;
  emulated: boolean;
  budgetBytes: number;
  weightsBytes: number;
  kvCacheBytes: number;
  activationsBytes: number;
  scratchBytes: number;
  /** Room for weights on their way: on CUDA the windows they are loaded through, and what is streamed, at work and read ahead. Of
   * the disk: host memory that its weights pass through on their way to a CUDA device. */
  windowBytes: number;
  reserveBytes: number;
  freeBytes: number;
  expectedMs: number;
}

export interface DevicePlan {
  version: 1;
  model: string;
  strategy: Strategy | 'explicit';
  deviceMap: PlacedDeviceMap;
  /** What `auto` minimized: a request's time, or its slowest stage. */
  objective: Objective;
  /** What expected times rest on: a calibration of this machine, or figures of typical devices. */
  costs: 'measured' | 'datasheet';
  maxSeqLen: number;
  maxBatchSize: number;
  segments: PlanSegment[];
  devices: PlanDevice[];
  /** In order of execution. Per device they add up to its weights and KV cache. */
  modules?: PlanModule[];
  /** Linears left in float, and why. */
  skipped: { module: string; reason: string }[];
  /** Modules whose weights do not lie where they compute. */
  offloaded: { module: string; device: DeviceName }[];
  /** Tied weights that are stored once more because their uses are on several devices. */
  copies: { tensor: string; device: DeviceName; bytes: number }[];
  /** Fields of config.json that metashard neither honours nor knows to be neutral. */
  ignoredConfigFields: string[];
}
