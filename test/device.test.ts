/** Device names in every accepted spelling. */
import { canonicalDevice, DeviceMapError, parseDevice } from '@metashard/core';
import { describe, expect, it } from 'vitest';

describe('device names', () => {
  it.each([
    ['cpu', 'cpu:0'],
    ['cpu:3', 'cpu:3'],
    ['cuda', 'cuda:0'],
    ['cuda:12', 'cuda:12'],
    ['1', 'cuda:1'],
    [0, 'cuda:0'],
    [7, 'cuda:7'],
    ['disk', 'disk'],
    ['meta', 'meta'],
  ])('%j is %s', (name, canonical) => {
    expect(canonicalDevice(name)).toBe(canonical);
    expect(canonicalDevice(canonical)).toBe(canonical);
  });

  it('takes a name apart', () => {
    expect(parseDevice('cuda:2')).toEqual({ type: 'cuda', index: 2, name: 'cuda:2' });
    expect(parseDevice('meta')).toEqual({ type: 'meta', index: 0, name: 'meta' });
  });

  it.each([
    '',
    'gpu',
    'CPU',
    'cuda:',
    'cuda:-1',
    'cuda:1.5',
    'cpu:99999',
    'disk:0',
    ' cpu',
    '99999',
    -1,
    1.5,
    Number.NaN,
  ])('refuses %j', (name) => {
    expect(() => parseDevice(name)).toThrow(DeviceMapError);
  });
});
