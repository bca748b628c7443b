/** Files brought into the page cache, so that what is timed reads them from memory; the disk is measured elsewhere. */
import { closeSync, openSync, readdirSync, readSync } from 'node:fs';
import { join } from 'node:path';

const window = Buffer.alloc(8 << 20);

/** Reads the files of a folder whose names match. */
export function warmFolder(folder, match = () => true) {
  warmFiles(
    readdirSync(folder)
      .filter(match)
      .map((name) => join(folder, name)),
  );
}

export function warmFiles(files) {
  for (const name of files) {
    const file = openSync(name, 'r');
    while (readSync(file, window) > 0);
    closeSync(file);
  }
}
