/** The cases recorded from accelerate (fixtures/planner_cases.json), with the graphs and names they are run by. */
import { readFileSync } from 'node:fs';
import type { JsonGraph, PlannerLogger, RemarkDetails } from 'metashard/accelerate';
import { bloomGraph, gpt2Graph } from './accelerate-graphs.js';

export interface PlannerCase {
  id: string;
  fn: string;
  graph: string | null;
  args: Record<string, unknown>;
  quirk?: string;
  expect?: unknown;
  balanced?: Record<string, number>;
  raises?: [string, string];
  warnings?: string[];
  logs?: string[];
}

export const recorded = JSON.parse(readFileSync(new URL('fixtures/planner_cases.json', import.meta.url), 'utf8')) as {
  graphs: Record<string, JsonGraph>;
  cases: PlannerCase[];
};

/** A recorded model by its name. */
export const graph = (name: string): JsonGraph => {
  const made: Record<string, () => JsonGraph> = {
    GPT2: () => gpt2Graph({ tied: true }),
    GPT2u: () => gpt2Graph({ tied: false }),
    BLOOM176B: bloomGraph,
  };
  return made[name]?.() ?? (recorded.graphs[name] as JsonGraph);
};

/** A Python name as metashard spells it. */
export const camel = (name: string): string =>
  name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

/** Arguments under metashard's names. */
export const camelKeys = (args: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(args).map(([key, value]) => [camel(key), value]));

/** A logger that keeps its remarks. */
export function remarks(): { logger: PlannerLogger; of(code: string): RemarkDetails[] } {
  const all: RemarkDetails[] = [];
  const keep = (_: string, details: RemarkDetails): void => void all.push(details);
  return { logger: { warn: keep, info: keep }, of: (code) => all.filter((one) => one.code === code) };
}
