/** The device plan as one HTML page without scripts or outside files: the picture of `plan-picture.ts`, the bytes of every device and of every module. */
import { formatBytes } from '@metashard/core';
import type { DevicePlan, PlanDevice, PlanModule } from './plan.js';
import { escapeXml, formatMs, type PictureOptions, planSvg } from './plan-picture.js';
import { planNotes, planTitle } from './plan-table.js';

const STYLE = `
body { margin: 2rem auto; max-width: 82rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif; color: #17212b; background: #fff; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #dde2e6; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tfoot td { font-weight: 600; }
summary { cursor: pointer; }
`;

/** An HTML document. */
export function planHtml(plan: DevicePlan, options: PictureOptions = {}): string {
  const title = escapeXml(planTitle(plan));
  const notes = planNotes(plan).map((note) => `<li>${escapeXml(note)}</li>`);
  return [
    '<!doctype html>',
    `<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">`,
    `<title>${title}</title><style>${STYLE}</style></head><body>`,
    planSvg(plan, options),
    deviceTable(plan),
    notes.length > 0 ? `<ul>${notes.join('')}</ul>` : '',
    moduleTable(plan.modules ?? []),
    '</body></html>\n',
  ].join('\n');
}

const COLUMNS: readonly [string, (device: PlanDevice) => number][] = [
  ['weights', (device) => device.weightsBytes],
  ['KV cache', (device) => device.kvCacheBytes],
  ['activations', (device) => device.activationsBytes],
  ['scratch', (device) => device.scratchBytes],
  ['reserve', (device) => device.reserveBytes],
  ['free', (device) => device.freeBytes],
  ['budget', (device) => device.budgetBytes],
];

function deviceTable({ devices, costs }: DevicePlan): string {
  const rows = devices.map((device) => [
    `${device.name}${device.emulated ? ' (emulated)' : ''}`,
    ...COLUMNS.map(([, pick]) => formatBytes(pick(device))),
    formatMs(device.expectedMs),
  ]);
  const sum = (pick: (device: PlanDevice) => number): number => devices.reduce((total, one) => total + pick(one), 0);
  const totals = [
    'total',
    ...COLUMNS.map(([, pick]) => formatBytes(sum(pick))),
    formatMs(sum(({ expectedMs }) => expectedMs)),
  ];
  return table(['device', ...COLUMNS.map(([name]) => name), `a token (${costs})`], rows, totals);
}

function moduleTable(modules: readonly PlanModule[]): string {
  if (modules.length === 0) return '';
  const rows = modules.map(({ path, device, weightsBytes, kvCacheBytes }) => [
    path || '(root)',
    device,
    weightsBytes.toLocaleString('en-US'),
    kvCacheBytes.toLocaleString('en-US'),
  ]);
  const header = ['module', 'device', 'weights, bytes', 'KV cache, bytes'];
  return `<details><summary>${modules.length} modules</summary>${table(header, rows)}</details>`;
}

function table(header: readonly string[], rows: readonly string[][], totals?: readonly string[]): string {
  const cells = (tag: string, row: readonly string[]) =>
    row.map((cell) => `<${tag}>${escapeXml(cell)}</${tag}>`).join('');
  const body = rows.map((row) => `<tr>${cells('td', row)}</tr>`).join('\n');
  const foot = totals === undefined ? '' : `<tfoot><tr>${cells('td', totals)}</tr></tfoot>`;
  return `<table><thead><tr>${cells('th', header)}</tr></thead><tbody>\n${body}\n</tbody>${foot}</table>`;
}
