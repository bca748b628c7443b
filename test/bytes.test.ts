/** Sizes in words. */
import { ConfigError, formatBytes, parseBytes } from '@metashard/core';
import { describe, expect, it } from 'vitest';

describe('parseBytes', () => {
  it.each([
    ['70GiB', 70 * 2 ** 30],
    ['70GB', 70e9],
    ['1.5 KiB', 1536],
    ['0.1KiB', 102],
    ['10kb', 10_000],
    ['2mib', 2 * 2 ** 20],
    [' 3 TB ', 3e12],
    ['1tib', 2 ** 40],
    ['5B', 5],
    [0, 0],
    [12.9, 12],
  ])('reads %j as %d', (text, bytes) => {
    expect(parseBytes(text)).toBe(bytes);
  });

  it.each(['seventy', '', '70', 'GiB', '-1GiB', '1e3GB', '1.GiB', '70 GiBs', Number.NaN, -1, Number.POSITIVE_INFINITY])(
    'refuses %j and names the place',
    (text) => {
      expect(() => parseBytes(text, 'max_memory.cuda:1')).toThrow(ConfigError);
      expect(() => parseBytes(text, 'max_memory.cuda:1')).toThrow(
        'max_memory.cuda:1: expected a size such as 70GiB, got',
      );
    },
  );
});

describe('formatBytes', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1536, '1.5 KiB'],
    [4.59 * 2 ** 30, '4.6 GiB'],
    [2 ** 50, '1024.0 TiB'],
    [-2048, '-2.0 KiB'],
    [Number.POSITIVE_INFINITY, 'unlimited'],
  ])('prints %d as %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });
});
