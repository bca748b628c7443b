/**
 * Public functions that loading and running a model do not need, and whose modules and libraries (YAML, schema, command
 * line) are half of what importing metashard would take: the first call loads them. Those that return no promise, and
 * the command line, are loaded at once, so that no import is under way when another call needs the same modules. No
 * code of their own; see the modules they name.
 */
import { createRequire } from 'node:module';
import type * as cli from './cli/index.js';
import type * as config from './config/load-config.js';
import type * as planPage from './plan-page.js';
import type * as planPicture from './plan-picture.js';
import type * as threshold from './quant-compare/choose-threshold.js';
import type * as comparison from './quant-compare/compare-quantization.js';
import type * as scenarios from './what-if.js';

const load = createRequire(import.meta.url);
const configModule = (): typeof config => load('./config/load-config.js');
const cliModule = (): typeof cli => load('./cli/index.js');
const planPageModule = (): typeof planPage => load('./plan-page.js');
const planPictureModule = (): typeof planPicture => load('./plan-picture.js');

/** See `config/load-config.ts`. */
export const loadConfig: typeof config.loadConfig = (path) => configModule().loadConfig(path);

/** See `config/load-config.ts`. */
export const parseConfig: typeof config.parseConfig = (text, file) => configModule().parseConfig(text, file);

/** See `cli/index.ts`. */
export const runCli: typeof cli.runCli = (argv, io) => cliModule().runCli(argv, io);

/** See `plan-page.ts`. */
export const planHtml: typeof planPage.planHtml = (plan, options) => planPageModule().planHtml(plan, options);

/** See `plan-picture.ts`. */
export const planSvg: typeof planPicture.planSvg = (plan, options) => planPictureModule().planSvg(plan, options);

/** See `quant-compare/choose-threshold.ts`. */
export const chooseThreshold: typeof threshold.chooseThreshold = async (...given) =>
  (await import('./quant-compare/choose-threshold.js')).chooseThreshold(...given);

/** See `quant-compare/compare-quantization.ts`. */
export const compareQuantization: typeof comparison.compareQuantization = async (...given) =>
  (await import('./quant-compare/compare-quantization.js')).compareQuantization(...given);

/** See `what-if.ts`. */
export const whatIf: typeof scenarios.whatIf = async (...given) => (await import('./what-if.js')).whatIf(...given);
