/** `metashard/accelerate`: accelerate's planning functions. No code of its own. */
import '@metashard/cpu';
import '@metashard/cuda';

export * from '@metashard/dispatch/accelerate';
