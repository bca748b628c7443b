/**
 * The device plan as one HTML page without scripts or outside files: the picture of `plan-picture.ts`, the bytes of
 * every device and of every module. On a narrow screen picture and tables scroll by themselves, the page does not.
 */
import { formatBytes } from '@metashard/core';
import type { DevicePlan, PlanDevice, PlanModule } from './plan.js';
import { escapeXml, type PictureOptions, planSvg } from './plan-picture.js';
import { formatMs, isUnlimited, MEMORY_USES, planNotes, planSums, planTitle } from './plan-table.js';

const STYLE = `
body { margin: 2rem auto; max-width: 82rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif; color: #17212b; background: #fff; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 56rem; height: auto; }
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
    wide(planSvg(plan, options)),
    deviceTable(plan),
    notes.length > 0 ? `<ul>${notes.join('')}</ul>` : '',
    moduleTable(plan.modules ?? []),
    '</body></html>\n',
  ].join('\n');
}

function deviceTable(plan: DevicePlan): string {
  const { devices, costs } = plan;
  const limit = (device: PlanDevice, bytes: number): string => (isUnlimited(device) ? '–' : formatBytes(bytes));
  const rows = devices.map((device) => [
    `${device.name}${device.emulated ? ' (emulated)' : ''}`,
    ...MEMORY_USES.map(({ bytes }) => formatBytes(bytes(device))),
    limit(device, device.freeBytes),
    limit(device, device.budgetBytes),
    formatMs(device.expectedMs),
  ]);
  const limited = devices.filter((device) => !isUnlimited(device));
  const totals = [
    'total',
    ...planSums(plan).map(formatBytes),
    formatBytes(limited.reduce((sum, { budgetBytes }) => sum + budgetBytes, 0)),
    formatMs(devices.reduce((sum, { expectedMs }) => sum + expectedMs, 0)),
  ];
  const header = ['device', ...MEMORY_USES.map(({ name }) => name), 'free', 'budget', `a token (${costs})`];
  return table(header, rows, totals);
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
  return wide(`<table><thead><tr>${cells('th', header)}</tr></thead><tbody>\n${body}\n</tbody>${foot}</table>`);
}

function wide(content: string): string {
  return `<div class="wide">${content}</div>`;
}
