// The one native thread pool of the process and the scratch memory of its threads; kernels and ops split their work through it.
// Plain functions only, so that translation units built for one instruction set may include this header.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define THREAD_WORKSPACE_BYTES (256 * 1024)

// Runs task(context, 0) … task(context, tasks - 1), each once, in any order and on any threads, the caller's among them;
// returns when all are done. Tasks must be cut by shape alone, never by the number of threads, so that no result depends on it.
// Several threads may call at once: idle pool threads help any open call. One task, or one thread: runs on the caller, no
// thread is woken. A task that calls parallel_for runs its inner tasks itself, in order.
void parallel_for(int64_t tasks, void (*task)(void *context, int64_t index), void *context);

// THREAD_WORKSPACE_BYTES of the calling thread, 64-byte aligned, contents undefined, valid until the running task ends.
// An op's caller and its tasks share one workspace where the caller takes part: pass data to tasks in `context` or in scratch.
void *thread_workspace(void);

// Threads that work on one call at most (the caller and the pool's). For sizing and reports only, never for cutting work.
int32_t pool_threads(void);

// Sets the number of threads, 1 … 256, from the next parallel_for on.
void pool_set_threads(int32_t threads);
