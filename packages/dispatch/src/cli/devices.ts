/**
 * `metashard devices`: what this machine offers: the CPU with its instruction sets and threads, CUDA devices, or why
 * there are none.
 */
import '@metashard/cpu';
import '@metashard/cuda';
import { deviceCount, deviceInfo, formatBytes, MetashardError, native, parseDevice } from '@metashard/core';
import type { Command } from 'commander';
import { drawTable } from '../draw-table.js';
import { type CliIo, writeText } from './cli-io.js';

interface ListedDevice {
  name: string;
  description: string;
  totalBytes: number;
  freeBytes: number;
  emulated: boolean;
  /** CUDA only: `9.0`. */
  computeCapability?: string;
}

interface DeviceListing {
  devices: ListedDevice[];
  /** What the backends say about themselves: instruction sets, threads, driver. */
  backends: Record<string, unknown>;
  /** Per backend without devices, one sentence. */
  unavailable: Record<string, string>;
}

export function defineDevices(program: Command, io: CliIo): void {
  program
    .command('devices')
    .summary('list the devices of this machine')
    .description('Lists the CPU and the CUDA devices of this machine, or says why there are none.')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const listing = listDevices();
      await writeText(
        io.stdout,
        json ? `${JSON.stringify(listing, null, 2)}\n` : `${formatListing(listing, io.stdout.columns)}\n`,
      );
    });
}

function listDevices(): DeviceListing {
  const listing: DeviceListing = { devices: [], backends: {}, unavailable: {} };
  for (const type of ['cpu', 'cuda'] as const) {
    try {
      // Any number of CPU devices share the one processor and its memory: it is listed once.
      const count = type === 'cpu' ? 1 : deviceCount(type);
      for (let index = 0; index < count; index++) listing.devices.push(describeDevice(`${type}:${index}`));
      listing.backends[type] = JSON.parse(native().describeBackend(type));
    } catch (error) {
      if (!MetashardError.isInstance(error)) throw error;
      listing.unavailable[type] = error.message;
    }
  }
  return listing;
}

function describeDevice(name: string): ListedDevice {
  const {
    name: description,
    totalBytes,
    freeBytes,
    emulated,
    computeMajor,
    computeMinor,
  } = deviceInfo(parseDevice(name));
  const listed = { name, description, totalBytes, freeBytes, emulated };
  return computeMajor > 0 ? { ...listed, computeCapability: `${computeMajor}.${computeMinor}` } : listed;
}

function formatListing({ devices, backends, unavailable }: DeviceListing, columns?: number): string {
  const rows = devices.map((device) => [
    device.emulated ? `${device.name} (emulated)` : device.name,
    device.computeCapability === undefined
      ? device.description
      : `${device.description}, sm ${device.computeCapability}`,
    formatBytes(device.totalBytes),
    formatBytes(device.freeBytes),
  ]);
  const facts = Object.entries(backends).map(([name, backend]) => `${name}: ${describeBackend(backend)}`);
  const reasons = Object.entries(unavailable).map(([name, reason]) => `no ${name} devices: ${reason}`);
  return [drawTable(['device', 'name', 'memory', 'free'], rows, { columns }), ...facts, ...reasons].join('\n');
}

/** The plain facts of a backend's description: `isa avx512-vnni, threads 2`. */
function describeBackend(backend: unknown): string {
  const facts = Object.entries(backend as Record<string, unknown>).flatMap(([key, value]) => {
    if (Array.isArray(value)) return value.every((v) => typeof v !== 'object') ? [`${key} ${value.join(' ')}`] : [];
    return typeof value === 'object' ? [] : [`${key} ${value}`];
  });
  return facts.join(', ');
}
