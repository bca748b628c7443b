/** Tables of the command line fit the terminal: narrower blocks first, then a list; no figure is cut or lost. */
import { describe, expect, it } from 'vitest';
import { drawTable } from '../packages/dispatch/dist/draw-table.js';

const HEADER = ['device', 'blocks', 'weights', 'KV cache', 'free'];
const ROWS = [
  ['cpu:0', 'word_embeddings, h.0–h.11, ln_f, lm_head', '1015.8 KiB', '640.0 KiB', '18.8 GiB'],
  ['cuda:0', '–', '0 B', '0 B', '78.0 GiB'],
];
const totals = ['total', '', '1015.8 KiB', '640.0 KiB', '96.8 GiB'];

describe('drawTable', () => {
  it('is as wide as it gets without a terminal', () => {
    expect(drawTable(HEADER, ROWS, { totals })).toBe(
      [
        '┌────────┬──────────────────────────────────────────┬────────────┬───────────┬──────────┐',
        '│ device │ blocks                                   │    weights │  KV cache │     free │',
        '├────────┼──────────────────────────────────────────┼────────────┼───────────┼──────────┤',
        '│ cpu:0  │ word_embeddings, h.0–h.11, ln_f, lm_head │ 1015.8 KiB │ 640.0 KiB │ 18.8 GiB │',
        '│ cuda:0 │ –                                        │        0 B │       0 B │ 78.0 GiB │',
        '├────────┼──────────────────────────────────────────┼────────────┼───────────┼──────────┤',
        '│ total  │                                          │ 1015.8 KiB │ 640.0 KiB │ 96.8 GiB │',
        '└────────┴──────────────────────────────────────────┴────────────┴───────────┴──────────┘',
      ].join('\n'),
    );
  });

  it('wraps the second column where the terminal is narrower', () => {
    expect(drawTable(HEADER, ROWS, { totals, columns: 70 })).toBe(
      [
        '┌────────┬──────────────────┬────────────┬───────────┬──────────┐',
        '│ device │ blocks           │    weights │  KV cache │     free │',
        '├────────┼──────────────────┼────────────┼───────────┼──────────┤',
        '│ cpu:0  │ word_embeddings, │ 1015.8 KiB │ 640.0 KiB │ 18.8 GiB │',
        '│        │ h.0–h.11, ln_f,  │            │           │          │',
        '│        │ lm_head          │            │           │          │',
        '│ cuda:0 │ –                │        0 B │       0 B │ 78.0 GiB │',
        '├────────┼──────────────────┼────────────┼───────────┼──────────┤',
        '│ total  │                  │ 1015.8 KiB │ 640.0 KiB │ 96.8 GiB │',
        '└────────┴──────────────────┴────────────┴───────────┴──────────┘',
      ].join('\n'),
    );
  });

  it('is a list where it cannot be that narrow', () => {
    expect(drawTable(HEADER, ROWS, { totals, columns: 50 })).toBe(
      [
        'cpu:0',
        '  blocks word_embeddings, h.0–h.11, ln_f, lm_head;',
        '  weights 1015.8 KiB; KV cache 640.0 KiB;',
        '  free 18.8 GiB',
        'cuda:0',
        '  blocks –; weights 0 B; KV cache 0 B;',
        '  free 78.0 GiB',
        'total',
        '  weights 1015.8 KiB; KV cache 640.0 KiB;',
        '  free 96.8 GiB',
      ].join('\n'),
    );
  });

  it('keeps every cell and, where one fits at all, the width', () => {
    for (let columns = 30; columns <= 140; columns++) {
      const text = drawTable(HEADER, ROWS, { totals, columns });
      for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(columns);
      for (const cell of [...ROWS, totals].flatMap((row) => row.slice(2))) expect(text).toContain(cell);
    }
  });
});
