/** metashard/accelerate against accelerate's recorded cases, each argument and result under accelerate's own names. */
import { ConfigError, DeviceMapError } from 'metashard';
import * as accelerate from 'metashard/accelerate';
import {
  autoDeviceMap,
  getBalancedMemory,
  getMaxMemory,
  type InferDeviceMapOptions,
  inferAutoDeviceMap,
  type PlannerLogger,
} from 'metashard/accelerate';
import { describe, expect, it } from 'vitest';
import { camel, camelKeys, graph, type PlannerCase, recorded, remarks } from './accelerate-cases.js';

const FUNCTIONS: Record<string, unknown> = { ...accelerate };

/** Where accelerate is plainly wrong: what comes out here. */
const DIFFERENT: Record<string, unknown> = {
  'quirk-skip-1': { a: 0, big: 2, b: 1, c: 1 },
  'quirk-skip-2': { big: 'cpu', a: 0, b: 0 },
  'bal-12': { 0: 0, 2: 215, 3: 300 },
};

function call(one: PlannerCase, logger: PlannerLogger): unknown {
  const run = FUNCTIONS[camel(one.fn)] as (...inputs: unknown[]) => unknown;
  const options = { ...camelKeys(one.args), logger };
  return one.graph === null ? run(options) : run(graph(one.graph), options);
}

interface AutoCase extends InferDeviceMapOptions {
  mode?: string;
  scaleAfterBalance?: number;
}

/** accelerate's `device_map="auto"` and its siblings, out of its functions. */
function callAuto({ graph: name, args, balanced }: PlannerCase): unknown {
  const { mode, scaleAfterBalance, maxMemory, ...options } = camelKeys(args) as AutoCase;
  const model = graph(name as string);
  const lowZero = mode === 'balanced_low_0';
  const budgets =
    mode === 'sequential' ? getMaxMemory({ maxMemory }) : getBalancedMemory(model, { ...options, maxMemory, lowZero });
  const scaled = Object.fromEntries(
    Object.entries(budgets).map(([key, bytes]) => [key, bytes * (scaleAfterBalance ?? 1)]),
  );
  expect(scaled).toEqual(balanced);
  return inferAutoDeviceMap(model, { ...options, maxMemory: scaled });
}

describe('the recorded cases', () => {
  const plain = recorded.cases.filter(({ fn }) => fn !== 'auto_device_map');

  it.each(
    plain.filter(({ id, raises }) => raises === undefined && !(id in DIFFERENT)).map((one) => [one.id, one] as const),
  )('%s comes out as accelerate has it', (_, one) => {
    const { logger, of } = remarks();
    expect(call(one, logger)).toEqual(one.expect);
    const bytes = (one.warnings ?? []).flatMap((text) => /requires (\d+) bytes/.exec(text)?.[1] ?? []);
    expect(of('buffers_fit_no_gpu').map((remark) => `${remark.bytes}`)).toEqual(bytes);
    const required = (one.logs ?? []).flatMap((text) => [...text.matchAll(/- (\w+): (\d+) bytes required/g)]);
    expect(of('devices_left_empty').flatMap((remark) => Object.entries(remark.requiredBytes as object))).toEqual(
      required.map(([, device, needs]) => [device, Number(needs)]),
    );
  });

  it.each(
    plain.filter(({ id, raises }) => raises !== undefined && !(id in DIFFERENT)).map((one) => [one.id, one] as const),
  )('%s is refused', (_, one) => {
    expect(() => call(one, {})).toThrow(one.fn === 'check_device_map' ? DeviceMapError : ConfigError);
  });

  it.each(plain.filter(({ id }) => id in DIFFERENT).map((one) => [one.id, one] as const))(
    '%s comes out right',
    (_, one) => {
      expect(one.quirk).toBeDefined();
      expect(call(one, {})).toEqual(DIFFERENT[one.id]);
    },
  );

  const auto = recorded.cases.filter(({ fn }) => fn === 'auto_device_map').map((one) => [one.id, one] as const);
  it.each(auto)('%s comes out of its functions as accelerate has it', (_, one) => {
    expect(callAuto(one)).toEqual(one.expect);
  });
  it.each(auto.filter(([, { args }]) => !('scale_after_balance' in args)))(
    '%s comes out of autoDeviceMap',
    (_, one) => {
      expect(autoDeviceMap(graph(one.graph as string), camelKeys(one.args))).toEqual(one.expect);
    },
  );

  it('warns of keys that name no part of the model, and of no others', () => {
    const { logger, of } = remarks();
    const stray = recorded.cases.find(({ id }) => id === 'check-4') as PlannerCase;
    const tensors = recorded.cases.find(({ id }) => id === 'check-5') as PlannerCase;
    expect([call(stray, logger), call(tensors, logger)]).toEqual(['ok', 'ok']);
    expect(of('unknown_keys').map(({ keys }) => keys)).toEqual([['invalid_module', 'another_invalid']]);
  });
});
