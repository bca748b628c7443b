/**
 * The device plan as a picture: a row of blocks per device, widths in proportion to bytes, as one SVG made of strings.
 * What stands in a row is `pictureRows`, how wide it is `fitRows`, the rest draws. The page around it is
 * `plan-page.ts`; the same in text is `plan-table.ts`.
 */
import { formatBytes } from '@metashard/core';
import type { DevicePlan, PlanDevice, PlanModule } from './plan.js';
import { expectedTime, formatMs, isUnlimited, MEMORY_USES, planNotes, planSums, planTitle } from './plan-table.js';

export interface PictureOptions {
  /** Width of the picture in pixels. Default 1280. */
  width?: number;
}

type PartKind =
  | 'embedding'
  | 'block'
  | 'head'
  | 'weights'
  | 'kv'
  | 'activations'
  | 'scratch'
  | 'window'
  | 'reserve'
  | 'free';

/** What one rectangle shows. */
export interface PicturePart {
  kind: PartKind;
  /** Texts from long to short: the first that fits is drawn. */
  labels: string[];
  tooltip: string;
  bytes: number;
  /** Drawn shorter than its bytes, with torn edges. */
  isCut: boolean;
  /** Blocks alternate between two shades. */
  isOdd: boolean;
}

export interface PictureRow {
  device: PlanDevice;
  parts: PicturePart[];
}

/**
 * Free memory is drawn to scale as long as a device is at most this many times as large as what the fullest one holds.
 */
const LARGEST_EXTENT = 2.5;
const LEAST_UNIT_WIDTH = 5;
const LEAST_PART_WIDTH = 3;
const LABEL_WIDTH = 148;
const MARGIN = 16;
const CHARACTER_WIDTH = 6.4;
const FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\"";
const INK = '#17212b';

/**
 * Chosen so that neighbours differ in lightness, too: the picture reads in greyscale. Patterned parts are not weights.
 */
const LOOKS: Readonly<Record<PartKind, { fill: string; text: string; name: string }>> = {
  embedding: { fill: '#0c4a5b', text: '#ffffff', name: 'embedding' },
  block: { fill: '#a6cbe8', text: INK, name: 'blocks' },
  head: { fill: '#7a55a6', text: '#ffffff', name: 'final norm, head' },
  weights: { fill: '#5f7f99', text: '#ffffff', name: 'weights' },
  kv: { fill: 'url(#ms-kv)', text: INK, name: 'KV cache' },
  activations: { fill: 'url(#ms-activations)', text: INK, name: 'activations' },
  scratch: { fill: 'url(#ms-scratch)', text: INK, name: 'scratch' },
  window: { fill: 'url(#ms-window)', text: INK, name: 'windows' },
  reserve: { fill: 'url(#ms-reserve)', text: INK, name: 'reserve' },
  free: { fill: '#ffffff', text: '#5b6670', name: 'free' },
};
const ODD_BLOCK = '#82b2d8';

const PATTERNS = [
  ['kv', '#f3b95a', '<path d="M-2 2 2-2M0 8 8 0M6 10l4-4" stroke="#d98e1c" stroke-width="1.6"/>'],
  [
    'activations',
    '#e6ee9c',
    '<circle cx="2" cy="2" r="1" fill="#8f9c2b"/><circle cx="6" cy="6" r="1" fill="#8f9c2b"/>',
  ],
  ['scratch', '#e4ddd3', '<path d="M0 4h8M4 0v8" stroke="#a99a86" stroke-width="1"/>'],
  ['window', '#cde7d8', '<path d="M2 0v8M6 0v8" stroke="#6fae8b" stroke-width="1.2"/>'],
  ['reserve', '#d5d8db', '<path d="M0 2h8M0 6h8" stroke="#9aa1a8" stroke-width="1"/>'],
] as const;

/**
 * The plan as an SVG document: one rectangle per unit of the model and per other use of memory, each with its exact
 * bytes as a tooltip.
 */
export function planSvg(plan: DevicePlan, { width = 1280 }: PictureOptions = {}): string {
  const rows = pictureRows(plan);
  const widths = fitRows(rows, width - LABEL_WIDTH - 2 * MARGIN);
  const { height: rowHeight, gap } = rowSize(rows.length);
  const top = 74;
  const drawn = rows.map((row, r) => drawRow(row, widths[r] as number[], top + r * (rowHeight + gap), rowHeight));
  const notes = footnotes(plan, rows);
  const below = top + rows.length * (rowHeight + gap) + 12;
  const height = below + notes.length * 18 + 4;
  const title = `${planTitle(plan)}${plan.modules === undefined ? '' : `, ${plan.modules.length} units`}`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" ${FONT} font-size="11">`,
    `<title>${escapeXml(title)}</title>`,
    `<defs>${PATTERNS.map(pattern).join('')}</defs>`,
    `<path d="M0 0h${width}v${height}H0z" fill="#ffffff"/>`,
    text(MARGIN, 26, planTitle(plan), 'font-size="15" font-weight="600"'),
    drawLegend(rows, 42),
    ...drawn,
    ...notes.map((note, i) => text(MARGIN, below + 8 + i * 18, note, i === 0 ? 'font-weight="600"' : '')),
    '</svg>\n',
  ].join('\n');
}

/**
 * The parts of every device's row: its units in order of execution, then its other uses of memory, then what is free.
 */
export function pictureRows(plan: DevicePlan): PictureRow[] {
  const modules = plan.modules ?? [];
  const kinds = unitKinds(modules);
  const fullest = Math.max(...plan.devices.map(usedBytes), 1);
  const extent = Math.max(...plan.devices.map((device) => Math.min(device.budgetBytes, fullest * LARGEST_EXTENT)));
  return plan.devices.map((device) => {
    const own = modules.filter((one) => one.device === device.name);
    const shown = isUnlimited(device) ? 0 : Math.min(device.freeBytes, extent - usedBytes(device));
    // A block whose weights lie elsewhere (on disk) shows in this row through its cache only.
    const units = own
      .filter((one) => one.weightsBytes > 0 || !weighs(modules, one.path))
      .map((one) => unitPart(one, kinds.get(one) as PartKind, modules));
    return { device, parts: [...units, ...otherParts(device, own, shown)] };
  });
}

function usedBytes(device: PlanDevice): number {
  return MEMORY_USES.reduce((sum, { bytes }) => sum + bytes(device), 0);
}

function weighs(modules: readonly PlanModule[], path: string, except?: PlanModule): boolean {
  return modules.some((one) => one !== except && one.path === path && one.weightsBytes > 0);
}

function otherParts(device: PlanDevice, own: readonly PlanModule[], shownFree: number): PicturePart[] {
  const rest = device.weightsBytes - own.reduce((sum, { weightsBytes }) => sum + weightsBytes, 0);
  const part = (kind: PartKind, bytes: number, ...labels: string[]): PicturePart => ({
    kind,
    labels,
    tooltip: `${LOOKS[kind].name}: ${exact(bytes)}`,
    bytes,
    isCut: false,
    isOdd: false,
  });
  const free = part('free', device.freeBytes, `free ${formatBytes(device.freeBytes)}`, 'free');
  return [
    part('weights', rest, `weights ${formatBytes(rest)}`, 'weights'),
    part('kv', device.kvCacheBytes, `KV cache ${formatBytes(device.kvCacheBytes)}`, 'KV cache', 'KV'),
    part('activations', device.activationsBytes, 'activations', 'act'),
    part('scratch', device.scratchBytes, 'scratch'),
    part('window', device.windowBytes, 'windows', 'ahead'),
    part('reserve', device.reserveBytes, 'reserve'),
    { ...free, bytes: shownFree, isCut: shownFree < device.freeBytes },
  ].filter(({ bytes }) => bytes > 0);
}

function unitPart(unit: PlanModule, kind: PartKind, all: readonly PlanModule[]): PicturePart {
  const { path, weightsBytes, kvCacheBytes } = unit;
  const parts = path.split('.');
  const at = parts.findIndex(isNumber);
  const name = at < 0 ? (parts.at(-1) as string) : parts.slice(Math.max(0, at - 1), at + 1).join('.');
  const short = at < 0 ? [kind, kind.slice(0, 3)] : [parts[at] as string];
  const isPart = weightsBytes > 0 && weighs(all, path, unit);
  const cache = kvCacheBytes > 0 ? `; its KV cache: ${exact(kvCacheBytes)}` : '';
  const stored = weightsBytes > 0 ? exact(weightsBytes) : 'weights shared with another module';
  return {
    kind,
    labels: [name || '(root)', ...(kind === 'weights' ? [] : short)],
    tooltip: `${path || '(root)'}${isPart ? ' (in part)' : ''}: ${stored}${cache}`,
    bytes: weightsBytes,
    isCut: false,
    isOdd: at >= 0 && Number(parts[at]) % 2 === 1,
  };
}

/** Blocks have a number in their path; what stands before the first is embedding, after the last head. */
function unitKinds(modules: readonly PlanModule[]): Map<PlanModule, PartKind> {
  const isBlock = ({ path }: PlanModule): boolean => path.split('.').some(isNumber);
  const first = modules.findIndex(isBlock);
  const last = modules.findLastIndex(isBlock);
  const kindOf = (i: number): PartKind =>
    first < 0 ? 'weights' : i < first ? 'embedding' : i > last ? 'head' : 'block';
  return new Map(modules.map((module, i) => [module, kindOf(i)]));
}

function isNumber(part: string): boolean {
  return /^\d+$/.test(part);
}

/**
 * Widths of all parts at one scale, such that the longest row has the given length and nothing is too thin to see. What
 * thin parts gain, the row's free memory gives, so that equal budgets end at the same place.
 */
export function fitRows(rows: readonly PictureRow[], length: number): number[][] {
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
  const widthsAt = (scale: number): number[][] =>
    rows.map(({ parts }) => {
      const widths = parts.map((part) => Math.max(leastWidth(part), part.bytes * scale));
      const surplus = sum(widths) - sum(parts.map(({ bytes }) => bytes)) * scale;
      const last = parts.length - 1;
      if (parts[last]?.kind === 'free') widths[last] = Math.max(LEAST_PART_WIDTH, (widths[last] as number) - surplus);
      return widths;
    });
  let low = 0;
  let high = length / Math.max(1, ...rows.map(({ parts }) => sum(parts.map(({ bytes }) => bytes))));
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (Math.max(...widthsAt(middle).map(sum)) <= length) low = middle;
    else high = middle;
  }
  return widthsAt(low);
}

function leastWidth({ kind }: PicturePart): number {
  return kind === 'block' || kind === 'embedding' || kind === 'head' ? LEAST_UNIT_WIDTH : LEAST_PART_WIDTH;
}

function rowSize(count: number): { height: number; gap: number } {
  if (count <= 12) return { height: 38, gap: 10 };
  return count <= 32 ? { height: 26, gap: 6 } : { height: 19, gap: 3 };
}

function drawRow({ device, parts }: PictureRow, widths: readonly number[], y: number, height: number): string {
  let x = MARGIN + LABEL_WIDTH;
  const drawn = parts.map((part, i) => {
    const width = widths[i] as number;
    const left = x;
    x += width;
    return drawPart(part, left, y, width, height);
  });
  return `<g>${[drawLabel(device, y, height), ...drawn].join('\n')}</g>`;
}

function drawLabel(device: PlanDevice, y: number, height: number): string {
  const { name, emulated, budgetBytes, expectedMs } = device;
  const limit = isUnlimited(device) ? '' : ` of ${formatBytes(budgetBytes)}`;
  const usage = `${formatBytes(usedBytes(device))}${limit}`;
  const tooltip = `${name}: ${exact(usedBytes(device))}${limit}; ${formatMs(expectedMs)} of a token's time`;
  const bold = 'font-weight="600"';
  const mark = emulated ? ' (emulated)' : '';
  const lines =
    height > 30
      ? [
          text(MARGIN, y + 15, `${name}${mark}`, `font-size="12" ${bold}`),
          text(MARGIN, y + 31, usage, 'fill="#5b6670"'),
        ]
      : [
          text(MARGIN, y + height / 2 + 4, emulated ? `${name} (emu)` : name, bold),
          text(
            MARGIN + LABEL_WIDTH - 10,
            y + height / 2 + 4,
            isUnlimited(device) ? '' : formatBytes(budgetBytes),
            'fill="#5b6670" text-anchor="end"',
          ),
        ];
  return `<g><title>${escapeXml(tooltip)}</title>${lines.join('')}</g>`;
}

function drawPart(part: PicturePart, x: number, y: number, width: number, height: number): string {
  const look = LOOKS[part.kind];
  const fill = part.kind === 'block' && part.isOdd ? ODD_BLOCK : look.fill;
  const border = part.kind === 'free' ? 'stroke="#b3bac1" stroke-dasharray="3 3"' : 'stroke="#ffffff"';
  const rect = `<rect class="${part.kind}" x="${fixed(x)}" y="${y}" width="${fixed(width)}" height="${height}" fill="${fill}" ${border}/>`;
  const caption = drawCaption(part, x, y, width, height);
  const torn = part.isCut ? tornEdge(x + width - 14, y, height) : '';
  return `<g><title>${escapeXml(part.tooltip)}</title>${rect}${caption}${torn}</g>`;
}

/** The longest label that fits, upright where it has to be; nothing where none fits. */
function drawCaption({ kind, labels }: PicturePart, x: number, y: number, width: number, height: number): string {
  const { fill, text: color } = LOOKS[kind];
  const halo = fill.startsWith('url')
    ? ' stroke="#ffffff" stroke-opacity="0.75" stroke-width="3" paint-order="stroke"'
    : '';
  const look = `text-anchor="middle" fill="${color}" pointer-events="none"${halo}`;
  const [middle, baseline] = [x + width / 2, y + height / 2 + 4];
  const fits = (label: string, room: number): boolean => label.length * CHARACTER_WIDTH + 6 <= room;
  const level = labels.find((label) => fits(label, width));
  const upright = width >= 9 ? labels.find((label) => fits(label, height)) : undefined;
  if (upright !== undefined && upright !== level && (level === undefined || level.length < upright.length)) {
    const turn = `transform="rotate(-90 ${fixed(middle + 3)} ${fixed(y + height / 2)})"`;
    return text(middle + 3, y + height / 2, upright, `${look} font-size="9" ${turn}`);
  }
  return level === undefined ? '' : text(middle, baseline, level, look);
}

/** Two slanted strokes through a bar that is longer than drawn. */
function tornEdge(x: number, y: number, height: number): string {
  const stroke = (at: number) => `M${fixed(at)} ${y + height + 3}l5 ${-height - 6}`;
  return `<path d="${stroke(x)}h5l-5 ${height + 6}z" fill="#ffffff"/><path d="${stroke(x)}${stroke(x + 5)}" stroke="#8d969f" fill="none"/>`;
}

function drawLegend(rows: readonly PictureRow[], y: number): string {
  const present = new Set(rows.flatMap(({ parts }) => parts.map(({ kind }) => kind)));
  let x = MARGIN;
  const drawn = (Object.keys(LOOKS) as PartKind[])
    .filter((kind) => present.has(kind))
    .map((kind) => {
      const { fill, name } = LOOKS[kind];
      const swatch = (at: number, color: string) =>
        `<path d="M${fixed(at)} ${y}h14v14h-14z" fill="${color}" stroke="${kind === 'free' ? '#b3bac1' : 'none'}"/>`;
      const left = x;
      const wide = kind === 'block' ? 28 : 14;
      x += wide + 6 + name.length * CHARACTER_WIDTH + 18;
      return `${swatch(left, fill)}${kind === 'block' ? swatch(left + 14, ODD_BLOCK) : ''}${text(left + wide + 6, y + 11, name)}`;
    });
  return `<g>${drawn.join('')}</g>`;
}

/** Below the rows: the sums, then what is not as one would expect. */
function footnotes(plan: DevicePlan, rows: readonly PictureRow[]): string[] {
  const lines = [planTotals(plan)];
  if (rows.some(({ parts }) => parts.some(({ isCut }) => isCut))) {
    lines.push('free memory behind a torn edge is drawn shorter than it is');
  }
  const emulated = plan.devices.filter((device) => device.emulated).map(({ name }) => name);
  if (emulated.length > 0) {
    lines.push(`emulated devices run the real kernels on the CPU, slowly: ${emulated.join(', ')}`);
  }
  return [...lines, ...planNotes(plan)].map((line) => (line.length > 190 ? `${line.slice(0, 189)}…` : line));
}

/** `total: weights 174.3 GiB, KV cache 15.3 GiB, …; 126 ms a token expected (datasheet figures)` */
export function planTotals(plan: DevicePlan): string {
  const names = [...MEMORY_USES.map(({ name }) => name), 'free'];
  const shown = planSums(plan).flatMap((bytes, i) => (bytes > 0 ? [`${names[i]} ${formatBytes(bytes)}`] : []));
  return `total: ${shown.join(', ')}; ${expectedTime(plan)}`;
}

/** `2.3 GiB (2,467,655,680 bytes)` */
export function exact(bytes: number): string {
  return `${formatBytes(bytes)} (${bytes.toLocaleString('en-US')} bytes)`;
}

/** Text for element content and double-quoted attributes; control characters, which XML cannot hold, become spaces. */
export function escapeXml(value: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return value.replaceAll(/[&<>"]/g, (one) => entities[one] as string).replaceAll(/[\p{Cc}\p{Cs}\ufffe\uffff]/gu, ' ');
}

function pattern([name, color, lines]: (typeof PATTERNS)[number]): string {
  return `<pattern id="ms-${name}" width="8" height="8" patternUnits="userSpaceOnUse"><path d="M0 0h8v8H0z" fill="${color}"/>${lines}</pattern>`;
}

function text(x: number, y: number, content: string, attributes = ''): string {
  const fill = attributes.includes('fill=') ? '' : ` fill="${INK}"`;
  return `<text x="${fixed(x)}" y="${fixed(y)}"${fill}${attributes === '' ? '' : ` ${attributes}`}>${escapeXml(content)}</text>`;
}

function fixed(value: number): string {
  return String(Math.round(value * 100) / 100);
}
