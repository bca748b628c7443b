/** `metashard calibrate`: measures this machine's devices once, so that plans rest on measured times. */
import type { Command } from 'commander';
import { drawTable } from '../draw-table.js';
import { type CliIo, writeText } from './cli-io.js';

export function defineCalibrate(program: Command, io: CliIo): void {
  program
    .command('calibrate')
    .summary("measure this machine's memory, processors, links and disk for plans")
    .description(
      'Measures for some seconds what the devices reach and keeps it in the cache folder; plans then say "measured".',
    )
    .option('--json', 'print the figures as JSON')
    .option('--verbose', 'show stacks of errors')
    .action(async ({ json }: { json?: boolean }) => {
      const { calibrate } = await import('../calibrate.js');
      const found = calibrate();
      if (json) return writeText(io.stdout, `${JSON.stringify(found, null, 2)}\n`);
      const rows = Object.entries(found.devices).flatMap(([name, costs]) =>
        costs === null
          ? []
          : [[name, `${(costs.bandwidth / 1e9).toFixed(1)} GB/s`, `${(costs.rate / 1e12).toFixed(2)} TOPS`]],
      );
      for (const { from, to, bandwidth } of found.links)
        rows.push([`${from} → ${to}`, `${(bandwidth / 1e9).toFixed(1)} GB/s`, '–']);
      rows.push(['disk', `${(found.diskBandwidth / 1e9).toFixed(1)} GB/s`, '–']);
      await writeText(
        io.stdout,
        `${drawTable(['device', 'reads at', 'int8 prefill'], rows, { leftColumns: 0, columns: io.stdout.columns })}\n`,
      );
    });
}
