/** The ops as TypeScript (ops.ts) and the addon (ops.def) know them are one table. */
import { ACTIVATION_KINDS, native, OP_NAMES, opSignature } from '@metashard/core';
import { describe, expect, it } from 'vitest';

describe('the op table', () => {
  it('is the same in TypeScript and in the addon', () => {
    const table = OP_NAMES.map((name) => {
      const { code, inputs, outputs, attributes } = opSignature(name);
      return [name, code, inputs.length, outputs.length, attributes.length];
    });
    const byCode = (a: readonly unknown[], b: readonly unknown[]): number => Number(a[1]) - Number(b[1]);
    expect(table.sort(byCode)).toEqual(native().opTable().sort(byCode));
  });

  it('gives every op and every kind of activation its own number', () => {
    expect(new Set(OP_NAMES.map((name) => opSignature(name).code)).size).toBe(OP_NAMES.length);
    expect(new Set(ACTIVATION_KINDS).size).toBe(ACTIVATION_KINDS.length);
  });
});
