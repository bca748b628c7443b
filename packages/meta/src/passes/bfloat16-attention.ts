/** Lets attention round what it multiplies to bfloat16: `attention: 'bfloat16'`. Which ops that are is recorded; how is the backend's. */
import { OPS, type Program } from '@metashard/core';

const PLACE = (OPS.attention.attributes as readonly string[]).indexOf('bfloat16');

/** The program with the attribute `bfloat16` of every attention op set. */
export function withBfloat16Attention(program: Program): Program {
  const ops = program.ops.map((op) =>
    op.op === 'attention' ? { ...op, attributes: op.attributes.map((value, i) => (i === PLACE ? 1 : value)) } : op,
  );
  return { ...program, ops };
}
