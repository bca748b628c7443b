/**
 * Mutation testing (`npm run mutate -- --mutate FILE`): what is mutated and how tests are run. Which tests:
 * vitest.mutation.config.ts.
 *
 * @type {import('@stryker-mutator/core').PartialStrykerOptions}
 */
export default {
  testRunner: 'vitest',
  plugins: ['@stryker-mutator/vitest-runner'],
  // Sources are found through the configuration's own plugin, so vitest cannot tell which tests a file is related to.
  vitest: { configFile: 'vitest.mutation.config.ts', related: false },
  mutate: ['packages/core/src/reference/*.ts'],
  ignorePatterns: ['bench', 'docs', 'examples', 'packages/*/native', 'packages/*/dist', '.ci'],
  // There is no such file, on purpose: nothing is compiled, and StrykerJS would rewrite the one it finds.
  tsconfigFile: 'tsconfig.none.json',
  ignoreStatic: true,
  coverageAnalysis: 'perTest',
  concurrency: 2,
  timeoutMS: 30_000,
  reporters: ['clear-text', 'progress-append-only'],
  clearTextReporter: { logTests: false, allowColor: false },
  tempDirName: 'node_modules/.stryker',
  allowEmpty: false,
};
