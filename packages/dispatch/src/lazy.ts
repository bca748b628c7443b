/**
 * Public functions whose libraries (YAML, schema, command line) are half of what importing metashard would take: they are
 * loaded by the first call, at once, so that no import is under way when another call needs the same modules. No code of
 * their own; see the modules they name.
 */
import { createRequire } from 'node:module';
import type * as cli from './cli/index.js';
import type * as config from './config/load-config.js';

const load = createRequire(import.meta.url);
const configModule = (): typeof config => load('./config/load-config.js');
const cliModule = (): typeof cli => load('./cli/index.js');

/** See `config/load-config.ts`. */
export const loadConfig: typeof config.loadConfig = (path) => configModule().loadConfig(path);

/** See `config/load-config.ts`. */
export const parseConfig: typeof config.parseConfig = (text, file) => configModule().parseConfig(text, file);

/** See `cli/index.ts`. */
export const runCli: typeof cli.runCli = (argv, io) => cliModule().runCli(argv, io);
