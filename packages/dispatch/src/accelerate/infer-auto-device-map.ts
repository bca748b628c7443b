/**
 * accelerate's planner: fills one device after another with modules in their order, splits those that do not fit
 * whole, keeps ties and no-split modules whole, spills to cpu and then to disk. Results are accelerate's, but for the
 * differences that docs/accelerate.md lists. metashard's own planner, which is exact, is planDeviceMap.
 */
import { cleanDeviceMap } from './clean-device-map.js';
import { type DeviceAccount, homelessBufferBytes, leftEmpty, openAccounts } from './device-accounts.js';
import { graphOf, type Model } from './graph.js';
import { classSet, type NoSplitClasses } from './max-layer-size.js';
import { type Budgets, budgetsOf, type DeviceKey, isGpu, type MaxMemory } from './max-memory.js';
import { type SizeOptions, sizesOf } from './module-sizes.js';
import { type PlannerLogger, tell } from './planner-logger.js';
import { tieGroups } from './tied-parameters.js';
import { type Part, WorkList } from './work-list.js';

/** Module path → device. */
export type AccelerateDeviceMap = Record<string, DeviceKey>;

export interface InferDeviceMapOptions extends SizeOptions {
  /**
   * Default: what is free on this machine. Without a `cpu` key nothing goes there: what the GPUs cannot hold is on
   * disk.
   */
  maxMemory?: MaxMemory | undefined;
  noSplitModuleClasses?: NoSplitClasses | undefined;
  /** Tell every step to `logger.debug`. */
  verbose?: boolean | undefined;
  /** Join keys whose modules share a device. Default true. */
  cleanResult?: boolean | undefined;
  /** Buffers of offloaded layers are offloaded too, so that they need no room on a GPU. */
  offloadBuffers?: boolean | undefined;
  /** Before leaving a device empty, look further on for a module that fits it. */
  fallbackAllocation?: boolean | undefined;
  logger?: PlannerLogger | undefined;
}

/**
 * A device for every tensor of the model. No device is given more than its budget by the sizes of `computeModuleSizes`;
 * disk has no limit. Throws ConfigError, DtypeError.
 */
export function inferAutoDeviceMap(model: Model, options: InferDeviceMapOptions = {}): AccelerateDeviceMap {
  return mapWithin(model, budgetsOf(options.maxMemory), options);
}

export function mapWithin(model: Model, budgets: Budgets, options: InferDeviceMapOptions): AccelerateDeviceMap {
  const deviceMap = new Allocation(model, budgets, options).run();
  return options.cleanResult === false ? deviceMap : cleanDeviceMap({ deviceMap });
}

class Allocation {
  readonly #options: InferDeviceMapOptions;
  readonly #work: WorkList;
  readonly #buffers: ReadonlyMap<string, number>;
  readonly #accounts: readonly DeviceAccount[];
  readonly #map = new Map<string, DeviceKey>();

  constructor(model: Model, budgets: Budgets, options: InferDeviceMapOptions) {
    const root = graphOf(model);
    const facts = {
      sizes: sizesOf(root, options),
      ties: tieGroups(root),
      noSplit: classSet(options.noSplitModuleClasses),
    };
    this.#options = options;
    this.#work = new WorkList(root, facts);
    this.#buffers = sizesOf(root, { ...options, buffersOnly: true });
    this.#accounts = openAccounts(budgets);
  }

  run(): AccelerateDeviceMap {
    for (let part = this.#work.takeFirst(); part !== undefined; part = this.#work.takeFirst()) this.#settle(part);
    this.#report();
    return Object.fromEntries(this.#map);
  }

  /** Offers a part to the devices in turn, until one takes it or it is split. Disk takes everything. */
  #settle(part: Part): void {
    for (const account of this.#accounts) {
      if (account.closed || !this.#isWorthOffering(part, account)) continue;
      if (this.#offer(part, account)) return;
      this.#leave(part, account);
    }
  }
  /** An empty device that the planner went past is for parts that use it. */
  #isWorthOffering(part: Part, { usedBytes, requiredBytes }: DeviceAccount): boolean {
    return requiredBytes === undefined || usedBytes > 0 || this.#work.bytesOf(part) > 0;
  }

  /** True when the part was placed, or put back with something in the list split or placed. */
  #offer(part: Part, account: DeviceAccount): boolean {
    const limit = account.budgetBytes - this.#reserveOf(account);
    const free = limit - account.usedBytes;
    const tied = this.#work.tiedTo(part);
    if (this.#work.bytesWithTies(part) <= free) return this.#place(part, tied, account);
    this.#say(`${part.path}: ${this.#work.bytesOf(part)} bytes, ${account.device} has ${free}`);
    return (
      this.#splitTied(part, tied, free) ||
      this.#splitPart(part, free) ||
      this.#placeAnother(part, account) ||
      this.#placeInReserve(part, tied, account)
    );
  }

  #place(part: Part, tied: readonly Part[], account: DeviceAccount): true {
    account.usedBytes += this.#work.bytesWithTies(part);
    this.#work.remove(tied);
    for (const { path } of [part, ...tied]) {
      this.#map.set(path, account.device);
      account.bufferBytes += this.#buffers.get(path) ?? 0;
      this.#say(`${path}: on ${account.device}`);
    }
    return true;
  }

  /** A part that fits but for its ties: what it is tied to is split, so that less comes along. */
  #splitTied(part: Part, tied: readonly Part[], free: number): boolean {
    if (this.#work.bytesOf(part) > free) return false;
    const partner = tied.find((one) => this.#work.isSplittable(one));
    if (partner === undefined || !this.#work.isSplittable(partner)) return false;
    this.#say(`${partner.path}: split, to take less along with ${part.path}`);
    this.#work.putBack(part);
    this.#work.split(partner);
    return true;
  }

  #splitPart(part: Part, free: number): boolean {
    if (this.#work.bytesOf(part) < free || !this.#work.isSplittable(part)) return false;
    this.#say(`${part.path}: split`);
    this.#work.split(part);
    return true;
  }

  /** `fallbackAllocation`: rather than leaving a device empty, what comes later and fits. */
  #placeAnother(part: Part, account: DeviceAccount): boolean {
    if (!this.#options.fallbackAllocation || account.usedBytes > 0 || account.device === 'disk') return false;
    const reserve = Math.max(this.#work.reserveBytes, this.#work.bytesWithTies(part));
    this.#work.putBack(part);
    const other = this.#work.takeFitting(account.budgetBytes - reserve);
    if (other === undefined) {
      this.#work.remove([part]);
      return false;
    }
    return this.#place(other, this.#work.tiedTo(other), account);
  }

  /** Beside a GPU, which executes what is offloaded, the CPU's reserve is no reason to leave its memory empty. */
  #placeInReserve(part: Part, tied: readonly Part[], account: DeviceAccount): boolean {
    const spare =
      account.device === 'cpu' && account.usedBytes === 0 && this.#accounts.some(({ device }) => isGpu(device));
    if (!spare || this.#work.bytesWithTies(part) > account.budgetBytes) return false;
    return this.#place(part, tied, account);
  }

  /** Goes past a device: for good, unless it is empty and this part is too large for all of it. */
  #leave(part: Part, account: DeviceAccount): void {
    const bytes = this.#work.bytesWithTies(part);
    const reserve = this.#reserveOf(account);
    account.reservedBytes = Math.max(account.reservedBytes, reserve);
    if (account.usedBytes === 0) account.requiredBytes ??= bytes + reserve;
    account.closed = account.usedBytes > 0 || bytes <= account.budgetBytes;
    this.#say(`${part.path}: not on ${account.device}`);
  }

  #reserveOf(account: DeviceAccount): number {
    return account.executesOffloaded ? this.#work.reserveBytes : 0;
  }

  #report(): void {
    const { logger, offloadBuffers } = this.#options;
    const empty = leftEmpty(this.#accounts);
    if (empty.length > 0) {
      const needs = empty.map(({ device, requiredBytes }) => `${device} (needs ${requiredBytes} bytes)`).join(', ');
      const requiredBytes = Object.fromEntries(empty.map((account) => [account.device, account.requiredBytes]));
      const message = `infer_auto_device_map: too little memory for any module on ${needs}`;
      tell(logger, 'info', 'devices_left_empty', message, { requiredBytes });
    }
    const bytes = offloadBuffers ? 0 : homelessBufferBytes(this.#accounts);
    if (bytes === 0) return;
    const message = `infer_auto_device_map: buffers of offloaded layers need ${bytes} bytes, which no GPU has left`;
    tell(logger, 'warn', 'buffers_fit_no_gpu', message, { bytes, hint: 'set offloadBuffers' });
  }

  #say(message: string): void {
    if (this.#options.verbose) tell(this.#options.logger, 'debug', 'step', `infer_auto_device_map: ${message}`);
  }
}
