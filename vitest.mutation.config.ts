/**
 * The tests as `npm run mutate` runs them: on the TypeScript sources, where the mutants are, instead of `dist`. Only
 * tests of one thread: a worker or a command of its own would load `dist`, and no mutant with it.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig, type Plugin } from 'vitest/config';

const packages = fileURLToPath(new URL('packages/', import.meta.url));

/** `@metashard/core` and `…/packages/core/dist/x.js` are `packages/core/src/…`. */
const sourcesForDist: Plugin = {
  name: 'sources-for-dist',
  enforce: 'pre',
  resolveId(source) {
    const [, name, part] = /^(?:@metashard\/|.*packages\/)(\w+)(?:\/dist)?(?:\/(.+?)(?:\.js)?)?$/.exec(source) ?? [];
    if (name === undefined) return null;
    const file = `${packages}${name}/src/${part ?? 'index'}`;
    return [`${file}.ts`, `${file}/index.ts`].find((path) => existsSync(path)) ?? null;
  },
};

export default defineConfig({
  plugins: [sourcesForDist],
  test: {
    include: [
      'test/{accelerate,bitsandbytes-cases,dtype,int8-steps,placement,planner,pytorch*}.test.ts',
      'test/{meta-int8,meta-int8-forward,meta-replace-linear,reference-*,safetensors*,shape}.test.ts',
    ],
    // The one of these that starts workers.
    testNamePattern: /^(?!.*the plan is plain JSON and its map plans again)/,
    testTimeout: 60_000,
  },
});
