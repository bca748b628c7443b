/** Properties of every map that inferAutoDeviceMap makes, over random models with ties, budgets and options. */
import fc from 'fast-check';
import {
  type AccelerateDeviceMap,
  checkDeviceMap,
  computeModuleSizes,
  findTiedParameters,
  type InferDeviceMapOptions,
  inferAutoDeviceMap,
  type JsonGraph,
  type JsonNode,
} from 'metashard/accelerate';
import { describe, expect, it } from 'vitest';
import { graphs, parameterPaths } from './accelerate-graphs.js';

describe('every map', () => {
  const problems = fc.record({
    model: graphs,
    options: fc.record({
      maxMemory: fc
        .record({
          gpus: fc.array(fc.integer({ min: 0, max: 1200 }), { minLength: 1, maxLength: 4 }),
          cpu: fc.option(fc.integer({ min: 0, max: 2000 }), { nil: undefined }),
        })
        .map(({ gpus, cpu }) => ({ ...Object.fromEntries(gpus.entries()), ...(cpu === undefined ? {} : { cpu }) })),
      noSplitModuleClasses: fc.subarray(['A', 'B', 'C']),
      fallbackAllocation: fc.boolean(),
      cleanResult: fc.boolean(),
      dtype: fc.option(fc.constantFrom('float16', 'int8'), { nil: undefined }),
    }),
  });
  /** The device of a path by its longest key. */
  const deviceOf = (map: AccelerateDeviceMap, path: string): unknown => {
    const keys = Object.keys(map).filter((key) => key === '' || path === key || path.startsWith(`${key}.`));
    return map[keys.sort((a, b) => b.length - a.length)[0] as string];
  };
  const holds = (check: (map: AccelerateDeviceMap, model: JsonGraph, options: InferDeviceMapOptions) => void): void =>
    fc.assert(
      fc.property(problems, ({ model, options }) => {
        check(inferAutoDeviceMap(model, options), model, options);
      }),
      { numRuns: 300 },
    );

  it('covers every parameter and buffer', () => {
    holds((deviceMap, model) => expect(checkDeviceMap(model, { deviceMap })).toBe('ok'));
  });

  it('keeps within every budget by its own sizes', () => {
    holds((map, model, options) => {
      const sizes = computeModuleSizes(model, options);
      const tensors = Object.keys(sizes).filter(
        (path) => !Object.keys(sizes).some((other) => other.startsWith(`${path}.`)),
      );
      const used = new Map<string, number>();
      for (const path of tensors.filter((one) => one !== '')) {
        const device = `${deviceOf(map, path)}`;
        used.set(device, (used.get(device) ?? 0) + (sizes[path] as number));
      }
      for (const [device, bytes] of used) {
        if (device !== 'disk') expect(bytes).toBeLessThanOrEqual(options.maxMemory?.[device] as number);
      }
    });
  });

  it('keeps ties on one device', () => {
    holds((map, model) => {
      for (const group of findTiedParameters(model)) {
        expect(new Set(group.map((path) => deviceOf(map, path))).size).toBe(1);
      }
    });
  });

  it('keeps no-split modules whole', () => {
    const check = (map: AccelerateDeviceMap, node: JsonNode, whole: ReadonlySet<string>, prefix: string): void => {
      for (const [name, child] of node.children ?? []) {
        const path = `${prefix}${name}`;
        if (!whole.has(child.cls)) check(map, child, whole, `${path}.`);
        else expect(new Set(parameterPaths(child, `${path}.`).map((one) => deviceOf(map, one))).size).toBeLessThan(2);
      }
    };
    holds((map, { root }, { noSplitModuleClasses = [] }) => check(map, root, new Set(noSplitModuleClasses), ''));
  });

  it('is the same each time', () => {
    holds((map, model, options) => {
      expect(Object.entries(inferAutoDeviceMap(model, options))).toEqual(Object.entries(map));
    });
  });
});
