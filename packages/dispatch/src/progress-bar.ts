/**
 * Load progress for people, on standard error: a bar per device on a terminal, otherwise one line at the end. Used by
 * the command line only.
 */
import type { Writable } from 'node:stream';
import { formatBytes } from '@metashard/core';
import cliProgress from 'cli-progress';
import type { LoadProgress } from './options.js';

type ProgressStream = Writable & { isTTY?: boolean };

export interface LoadProgressView {
  update(progress: LoadProgress): void;
  /** Takes the bars away and says what was loaded. Harmless when called again. */
  stop(): void;
}

/** A terminal gets bars unless CI is set. `quiet` shows nothing. */
export function showLoadProgress({
  stream = process.stderr,
  env = process.env,
  quiet = false,
}: {
  stream?: ProgressStream;
  env?: NodeJS.ProcessEnv;
  quiet?: boolean;
} = {}): LoadProgressView {
  if (quiet) return { update() {}, stop() {} };
  const bars = stream.isTTY && !env.CI ? deviceBars(stream) : undefined;
  let last: LoadProgress | undefined;
  let isOver = false;
  return {
    update(progress) {
      last = progress;
      bars?.update(progress);
    },
    stop() {
      if (isOver) return;
      isOver = true;
      bars?.stop();
      if (last !== undefined) stream.write(`${loadedLine(last)}\n`);
    },
  };
}

function loadedLine({ allLoadedBytes, elapsedMs }: LoadProgress): string {
  return `loaded ${formatBytes(allLoadedBytes)} in ${(elapsedMs / 1000).toFixed(2)} s, ${rateOf(allLoadedBytes, elapsedMs)}`;
}

function rateOf(bytes: number, ms: number): string {
  return ms > 0 ? `${formatBytes(Math.round((bytes / ms) * 1000))}/s` : '–';
}

function deviceBars(stream: ProgressStream): { update(progress: LoadProgress): void; stop(): void } {
  const format = '{device} [{bar}] {percentage}%  {loaded} of {all}  {rate}  {left} left  {tensor}';
  // gracefulExit would answer Ctrl-C by a second SIGINT, which leaves at once.
  const options = { stream, format, hideCursor: true, clearOnComplete: true, barsize: 24, gracefulExit: false };
  const multiBar = new cliProgress.MultiBar(options, cliProgress.Presets.rect);
  const bars = new Map<string, cliProgress.SingleBar>();
  return {
    update({ device, tensor, loadedBytes, totalBytes, allLoadedBytes, elapsedMs, remainingMs }) {
      const shown = {
        device: device.padEnd(7),
        tensor,
        loaded: formatBytes(loadedBytes),
        all: formatBytes(totalBytes),
        rate: rateOf(allLoadedBytes, elapsedMs),
        left: `${(remainingMs / 1000).toFixed(1)} s`,
      };
      const bar = bars.get(device);
      if (bar === undefined) bars.set(device, multiBar.create(totalBytes, loadedBytes, shown));
      else bar.update(loadedBytes, shown);
    },
    stop: () => multiBar.stop(),
  };
}
