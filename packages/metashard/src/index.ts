/** The package a user installs: every public name. No code of its own. */
import '@metashard/cpu';
import '@metashard/cuda';

export * from '@metashard/core';
export * from '@metashard/dispatch';
export * from '@metashard/meta';
