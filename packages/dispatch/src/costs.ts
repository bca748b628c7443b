/**
 * What a plan's time is made of: how fast a device reads memory and computes, and what a hop to it costs. Datasheet
 * figures until a calibration measures this machine's (`calibrate.ts`). Estimates choose between placements; nothing is
 * promised by them.
 */
import { type DeviceName, opSignature, type ProgramOp, type ProgramTensor, parseDevice } from '@metashard/core';
import type { ProgramFacts } from './program-facts.js';
import { isTableLookup } from './stream-plan.js';

export interface DeviceCosts {
  /** Bytes per second that a decode step reads weights and cache at. */
  bandwidth: number;
  /** Operations per second of a long prefill. */
  rate: number;
  /** Milliseconds to hand one token's activations to this device. */
  hopMs: number;
}

export interface CostModel {
  source: 'measured' | 'datasheet';
  of(device: DeviceName): DeviceCosts;
  /** Bytes per second that streaming reads pages at which are not in memory. */
  diskBandwidth: number;
}

/** Two cores of a server processor; a data-centre GPU. */
const DATASHEET: Record<'cpu' | 'cuda', DeviceCosts> = {
  cpu: { bandwidth: 30e9, rate: 1.5e12, hopMs: 0.01 },
  cuda: { bandwidth: 1.5e12, rate: 250e12, hopMs: 0.03 },
};

export const DATASHEET_COSTS: CostModel = {
  source: 'datasheet',
  diskBandwidth: 2e9, // a good solid-state disk
  of: (device) => DATASHEET[parseDevice(device).type === 'cuda' ? 'cuda' : 'cpu'],
};

/** What a request is expected to look like: its prefill and decode are weighed by these. */
export interface ExpectedUse {
  promptTokens: number;
  newTokens: number;
  /** That run at once: a step reads the weights once for all of them. */
  sequences: number;
}

/** 512 tokens in, 128 out, and as many sequences as there may be, unless said otherwise. */
export function expectedUse(given: Partial<ExpectedUse> | undefined, maxBatchSize: number): ExpectedUse {
  return { promptTokens: 512, newTokens: 128, sequences: maxBatchSize, ...given };
}

/** Work of some ops: bytes a decode step reads (a table of embeddings only a row of it), operations per token. */
export interface Work {
  decodeBytes: number;
  operations: number;
}

/** `kvCacheBytes`: of the sequences that run at once. */
export function workOf(facts: ProgramFacts, ops: Iterable<ProgramOp>, kvCacheBytes: number): Work {
  const { program } = facts;
  // On average a sequence is half full.
  let [decodeBytes, operations] = [kvCacheBytes / 2, 0];
  for (const op of ops) {
    const signature = opSignature(op.op);
    for (const [i, id] of op.inputs.entries()) {
      const storage = facts.storageOf(id);
      const tensor = program.tensors[storage] as ProgramTensor | undefined;
      if (tensor?.kind !== 'weight') continue;
      const isTable = isTableLookup(op.op);
      decodeBytes += isTable ? facts.bytesOf(storage) / Math.max(1, tensor.dims[0] as number) : facts.bytesOf(storage);
      const isMatrix = signature.inputs[i] === 'weight' || signature.inputs[i] === 'CB';
      if (isMatrix && tensor.dims.length === 2)
        operations += 2 * (tensor.dims[0] as number) * (tensor.dims[1] as number);
    }
  }
  return { decodeBytes, operations };
}

/**
 * Milliseconds of a stage for one decode step of all sequences, and for a whole expected request (prefill, then every
 * decode step). A step takes as long as reading its bytes or as its operations, whichever is longer (the roofline).
 */
export function stageMs(work: Work, costs: DeviceCosts, use: ExpectedUse): { decode: number; request: number } {
  const perToken = (work.operations * use.sequences * 1e3) / costs.rate;
  const decode = Math.max((work.decodeBytes / costs.bandwidth) * 1e3, perToken);
  return { decode, request: use.newTokens * decode + use.promptTokens * perToken };
}
