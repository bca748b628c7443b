/** Budgets that spread a model evenly over the GPUs, for a planner that fills one after another. */
import { type GraphNode, graphOf, type Model, walk } from './graph.js';
import { classSet, type NoSplitClasses } from './max-layer-size.js';
import { type Budgets, budgetsOf, type DeviceKey, isGpu, type MaxMemory } from './max-memory.js';
import { type ModuleSizes, type SizeOptions, sizesOf } from './module-sizes.js';
import { type PlannerLogger, tell } from './planner-logger.js';

/** Of a single GPU whose budget nobody gave. */
const SINGLE_GPU_SHARE = 0.9;
/** Room above an even share, as a part of a block or of a mean layer: blocks do not divide evenly. */
const SLACK = 1.25;

export interface BalancedMemoryOptions extends SizeOptions {
  /** Default: what is free on this machine. */
  maxMemory?: MaxMemory | undefined;
  noSplitModuleClasses?: NoSplitClasses | undefined;
  /** Give the first GPU only what the others cannot take. */
  lowZero?: boolean | undefined;
  logger?: PlannerLogger | undefined;
}

/**
 * Budgets by device: each GPU but the last an even share of the model and some slack, at most its own budget; the last
 * one keeps its budget. With one GPU, or none, budgets stay as they are; of a single GPU's free memory 90 % are
 * offered. Throws ConfigError, DtypeError.
 */
export function getBalancedMemory(model: Model, options: BalancedMemoryOptions = {}): Record<string, number> {
  return Object.fromEntries(balancedBudgets(model, options));
}

export function balancedBudgets(model: Model, options: BalancedMemoryOptions): Budgets {
  const budgets = budgetsOf(options.maxMemory);
  const listed = [...budgets.keys()].filter(isGpu);
  const usable = listed.filter((gpu) => budgetOf(budgets, gpu) > 0);
  const [first] = usable;
  if (first === undefined) return budgets;
  if (usable.length === 1) {
    if (options.maxMemory === undefined) offerShare(budgets, first, options.logger);
    return budgets;
  }
  const root = graphOf(model);
  const sizes = sizesOf(root, options);
  const slack = slackBytes(root, sizes, options);
  if (options.lowZero) spareFirst(budgets, listed, sizes.get('') ?? 0, slack);
  else shareEvenly(budgets, usable, sizes.get('') ?? 0, slack);
  return budgets;
}

/** Caps every one of these GPUs but the last. */
function shareEvenly(budgets: Budgets, gpus: readonly number[], modelBytes: number, slack: number): void {
  const share = Math.floor(modelBytes / gpus.length) + slack;
  for (const gpu of gpus.slice(0, -1)) budgets.set(gpu, Math.min(share, budgetOf(budgets, gpu)));
}

/** Shares among all GPUs but the first listed, which then keeps what is left over. */
function spareFirst(budgets: Budgets, listed: readonly number[], modelBytes: number, slack: number): void {
  const [first, ...others] = listed as [number, ...number[]];
  const sharing = others.filter((gpu) => budgetOf(budgets, gpu) > 0);
  shareEvenly(budgets, sharing, modelBytes, slack);
  const elsewhere = sharing.reduce((sum, gpu) => sum + budgetOf(budgets, gpu), 0);
  budgets.set(first, Math.min(Math.max(0, modelBytes - elsewhere), budgetOf(budgets, first)));
}

function offerShare(budgets: Budgets, gpu: number, logger: PlannerLogger | undefined): void {
  const bytes = budgetOf(budgets, gpu) * SINGLE_GPU_SHARE;
  budgets.set(gpu, bytes);
  tell(logger, 'info', 'single_gpu_share', `get_balanced_memory: offering 90 % of the free memory of GPU ${gpu}`, {
    device: gpu,
    bytes,
  });
}

function budgetOf(budgets: Budgets, device: DeviceKey): number {
  return budgets.get(device) ?? 0;
}

function slackBytes(root: GraphNode, sizes: ModuleSizes, { noSplitModuleClasses }: BalancedMemoryOptions): number {
  const block = largestFirstInstance(root, sizes, classSet(noSplitModuleClasses));
  return Math.trunc(SLACK * Math.max(block, meanBottomModule(root, sizes)));
}

/** Of the classes that stay whole, each by its first instance in the table of sizes. */
function largestFirstInstance(root: GraphNode, sizes: ModuleSizes, noSplit: ReadonlySet<string>): number {
  const classes = new Map([...walk(root)].map((node) => [node.path, node.className]));
  const first = new Map<string, number>();
  for (const [path, bytes] of sizes) {
    const className = path === '' ? undefined : classes.get(path);
    if (className !== undefined && noSplit.has(className) && !first.has(className)) first.set(className, bytes);
  }
  return Math.max(0, ...first.values());
}

/**
 * Mean bytes of the modules at the bottom of the tree, those that hold nothing (left) aside. The root itself is none.
 */
function meanBottomModule(root: GraphNode, sizes: ModuleSizes): number {
  const holds = (node: GraphNode): boolean => sizes.has(node.path);
  const bottoms = [...walk(root)].filter((node) => node !== root && holds(node) && !node.children.some(holds));
  const bytes = bottoms.reduce((sum, node) => sum + (sizes.get(node.path) ?? 0), 0);
  return Math.trunc(bytes / Math.max(bottoms.length, 1));
}
