/**
 * The op table (op-cases.ts) on a CUDA device, real or emulated, held against the reference and against the plain CPU
 * ops. Knows nothing of vitest: gpu-check.ts runs it on a bare GPU machine, ops-cuda.test.ts over the emulated driver.
 */
import { createHash, type Hash } from 'node:crypto';
import { DTYPES, native } from '@metashard/core';
import { CPU_PLUGIN_PATH } from '@metashard/cpu';
import { CUDA_PLUGIN_PATH } from '@metashard/cuda';
import { checkEdges } from './gpu-edges.js';
import { type HostTensor, hostValues } from './host-tensor.js';
import { type OpCase, opCases } from './op-cases.js';
import { checkOpCase, type OpDevice, runOpCase } from './run-op-case.js';

export interface OpsReport {
  device: string;
  /** "9.0". */
  computeCapability: string;
  emulated: boolean;
  /** Cases run, and milliseconds of those on the device, by op. */
  ops: Record<string, { cases: number; milliseconds: number }>;
  /** Calls beyond the table: gpu-edges.ts. */
  edges: string[];
  /** One line for each tensor that is off; empty where all is well. */
  problems: string[];
  /** Of the bits of all outputs. */
  digest: string;
}

type Result = ReturnType<typeof runOpCase>;

/** Outputs, and the caches that attention writes. */
const writtenTensors = (item: OpCase, { inputs, outputs }: Result): HostTensor[] => [
  ...outputs,
  ...(item.op === 'attention' ? inputs.slice(3, 5).filter((tensor) => tensor !== null) : []),
];

/** One unit in the last place of a 16-bit float of this magnitude. */
const unit16 = (dtype: string, value: number): number =>
  2 **
  (Math.max(dtype === 'float16' ? -14 : -126, Math.floor(Math.log2(Math.abs(value) || 1e-300))) -
    (dtype === 'float16' ? 10 : 7));

/**
 * How `got` differs from what the CPU computed: integers not at all, 16-bit floats by one rounding, float32 by 1e-5
 * of the norm.
 */
function differsFromCpu(got: HostTensor, wanted: HostTensor, defined: number): string | null {
  const [a, b] = [hostValues(got), hostValues(wanted)];
  let [difference, norm] = [0, 0];
  for (let i = 0; i < Math.min(a.length, defined); i++) {
    const [x, y] = [a[i] as number, b[i] as number];
    if (Object.is(x, y) || x === y || (Number.isNaN(x) && Number.isNaN(y))) {
      if (Number.isFinite(y)) norm += y * y;
      continue;
    }
    const apart = Math.abs(x - y);
    if (!DTYPES[got.dtype].isFloat || !Number.isFinite(apart)) return `expected ${y} at ${i} as on the CPU, got ${x}`;
    if (DTYPES[got.dtype].bytes === 2 && apart > unit16(got.dtype, y))
      return `expected ${y} at ${i} within a rounding, got ${x}`;
    difference += apart * apart;
    norm += y * y;
  }
  if (got.dtype !== 'float32' || difference <= 1e-10 * norm) return null;
  return `expected ${1e-5} of the CPU's norm, got ${Math.sqrt(difference / norm)}`;
}

/** Elements of int8_quantize's list of columns from here on are undefined. */
function definedElements(item: OpCase, tensor: HostTensor, index: number): number {
  return item.op === 'int8_quantize' && index === 2 ? (hostValues(tensor)[0] as number) + 1 : Number.POSITIVE_INFINITY;
}

function compareWithCpu(item: OpCase, got: Result, cpu: OpDevice): string[] {
  const wanted = writtenTensors(item, runOpCase(cpu, item.op, item.build()));
  return writtenTensors(item, got).flatMap((tensor, index) => {
    const problem = differsFromCpu(tensor, wanted[index] as HostTensor, definedElements(item, tensor, index));
    return problem === null ? [] : [`${item.name}: tensor ${index}: ${problem}`];
  });
}

export interface OpsOptions {
  /** Compares with nothing: for digests. */
  digestOnly?: boolean;
  /** Cases whose name contains this. */
  only?: string;
}

/** Runs one case on `cuda`, adds its outputs to the hash, and returns what is wrong with it. */
function checkCase(
  item: OpCase,
  cuda: OpDevice,
  cpu: OpDevice,
  report: OpsReport,
  hash: Hash,
  digestOnly: boolean,
): string[] {
  const counted = report.ops[item.op] ?? { cases: 0, milliseconds: 0 };
  report.ops[item.op] = counted;
  counted.cases++;
  try {
    const built = item.build();
    const started = performance.now();
    const got = runOpCase(cuda, item.op, built);
    counted.milliseconds += performance.now() - started;
    for (const tensor of writtenTensors(item, got)) hash.update(tensor.bytes);
    if (digestOnly) return [];
    return [...checkOpCase(cuda, item).map((problem) => `${item.name}: ${problem}`), ...compareWithCpu(item, got, cpu)];
  } catch (error) {
    return [`${item.name}: ${(error as Error).message}`];
  }
}

/** Runs the table on device 0 of the CUDA backend, opening both backends. */
export function checkOps({ digestOnly = false, only = '' }: OpsOptions = {}): OpsReport {
  const addon = native();
  addon.loadBackend('cpu', CPU_PLUGIN_PATH);
  addon.loadBackend('cuda', CUDA_PLUGIN_PATH);
  addon.configureBackend('cpu', 'isa', 'portable');
  const { name: device, computeMajor, computeMinor, emulated } = addon.deviceInfo('cuda', 0);
  const cuda = { addon, context: addon.openContext('cuda', 0, 0) };
  const cpu = { addon, context: addon.openContext('cpu', 0, 0) };
  const computeCapability = `${computeMajor}.${computeMinor}`;
  const report: OpsReport = { device, computeCapability, emulated, ops: {}, edges: [], problems: [], digest: '' };
  const hash = createHash('sha256');
  for (const item of opCases()) {
    if (item.name.includes(only)) report.problems.push(...checkCase(item, cuda, cpu, report, hash, digestOnly));
  }
  if (only === '') {
    const { names, problems } = checkEdges(cuda);
    report.edges = names;
    report.problems.push(...problems);
  }
  addon.closeContext(cuda.context);
  addon.closeContext(cpu.context);
  report.digest = hash.digest('hex');
  return report;
}
