#!/usr/bin/env node
import { runCli } from '@metashard/dispatch';

process.exitCode = await runCli(process.argv.slice(2));
