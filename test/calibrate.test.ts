/**
 * Calibration: what is measured is kept for this machine and told apart from another's; copies between emulated GPUs
 * are measured and proved. No figure is asserted. The emulated driver is chosen before the backend loads.
 */
process.env.METASHARD_CUDA_EMULATED = '2x1GiB';

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { calibrate, costsOf, DeviceContext, native, parseDevice, readCalibration } from 'metashard';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { measureDevice } from '../packages/dispatch/dist/calibrate.js';
import { measureLinks } from '../packages/dispatch/dist/calibrate-links.js';

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-calibrate-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

it('keeps what it measured, for this machine only', () => {
  expect(readCalibration(folder)).toBeNull();
  const found = calibrate(folder);
  expect(readCalibration(folder)).toEqual(found);
  expect(found).toMatchObject({ devices: { cuda: null }, links: [] }); // emulated GPUs are not measured
  for (const figure of [found.diskBandwidth, found.devices.cpu?.bandwidth, found.devices.cpu?.rate])
    expect(figure).toBeGreaterThan(0);
  expect(costsOf(found)).toMatchObject({ source: 'measured', diskBandwidth: found.diskBandwidth });
  expect(costsOf(found).of('cpu:1')).toEqual(found.devices.cpu);
  const [file] = readdirSync(folder);
  const path = join(folder, file as string);
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), machine: 'another' }));
  expect(readCalibration(folder)).toBeNull();
});

it('measures every link of two GPUs and finds a copy that goes wrong', () => {
  const contexts = [0, 1].map((i) => new DeviceContext(parseDevice(`cuda:${i}`)));
  try {
    const links = measureLinks(contexts, 2 ** 20);
    expect(links.map(({ from, to }) => `${from} ${to}`)).toEqual([
      'host cuda:0',
      'cuda:0 host',
      'cuda:0 cuda:1',
      'host cuda:1',
      'cuda:1 host',
      'cuda:1 cuda:0',
    ]);
    for (const { bandwidth, hopMs } of links) expect(Math.min(bandwidth, hopMs)).toBeGreaterThan(0);
    const copy = vi.spyOn(native(), 'copy').mockImplementation(() => {});
    expect(() => measureLinks(contexts, 4096)).toThrow(/cuda:1: a copy from cuda:0: expected byte \d+ to be \d+, got/);
    copy.mockRestore();
  } finally {
    for (const context of contexts) context.close();
  }
});

it('measures the 8-bit linears of a GPU, and leaves its memory free', () => {
  const context = new DeviceContext(parseDevice('cuda:0'));
  try {
    const before = context.stats().currentBytes;
    const { bandwidth, rate } = measureDevice(context, { size: 128, prefillRows: 8, weightBytes: 2 ** 15 });
    expect(Math.min(bandwidth, rate)).toBeGreaterThan(0);
    expect(context.stats().currentBytes).toBe(before);
  } finally {
    context.close();
  }
});
