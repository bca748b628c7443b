// The work-conserving thread pool: callers publish a job (ranges of task numbers, an atomic counter each) in a slot, work on it
// themselves, and idle pool threads join any open job. Helpers spin briefly, then sleep on a futex. Nothing here is ever torn
// down: the threads are detached and the state is never destroyed, so that a process exits with threads asleep instead of
// hanging.
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <new>

namespace {

constexpr int32_t max_threads = 256;
constexpr int32_t max_ranges = 16;  // of a job; more threads than that share them
constexpr int32_t slot_count = 64;  // calls that may be open at once; one more runs on its caller alone
constexpr int64_t spin_nanoseconds = 50'000;

// Task numbers of a job up to `end`, given out in order.
struct alignas(64) task_range {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// A thread begins with a range of its own and then helps with the others': its tasks follow each other in memory, so that what
// it prefetches behind a task it uses itself.
struct job {
  void (*task)(void *context, int64_t index);
  void *context;
  int32_t range_count;
  alignas(64) std::atomic<uint32_t> arrivals{0};
  task_range ranges[max_ranges];

  job(void (*task)(void *, int64_t), void *context, int64_t tasks, int32_t threads) : task(task), context(context) {
    range_count = int32_t(tasks < threads ? tasks : threads < max_ranges ? threads : max_ranges);
    for (int32_t i = 0; i < range_count; i++) {
      ranges[i].next.store(split(tasks, i), std::memory_order_relaxed);
      ranges[i].end = split(tasks, i + 1);
    }
  }

  // Where range i begins: whole numbers of tasks a range, the remainder one each to the first ones.
  int64_t split(int64_t tasks, int64_t i) const {
    const int64_t surplus = tasks % range_count;
    return tasks / range_count * i + (i < surplus ? i : surplus);
  }

  void work() {
    const uint32_t own = arrivals.fetch_add(1, std::memory_order_relaxed);
    for (int32_t i = 0; i < range_count; i++) {
      task_range &range = ranges[(own + uint32_t(i)) % uint32_t(range_count)];
      while (range.next.load(std::memory_order_relaxed) < range.end) {
        const int64_t index = range.next.fetch_add(1, std::memory_order_relaxed);
        if (index < range.end) task(context, index);
      }
    }
  }
};

// `visitors` guards `open`: a helper counts itself in before it reads the pointer, and the caller, whose stack the job lives
// on, gives the slot up only after it has taken the pointer back and the count is 0.
struct alignas(64) slot {
  std::atomic<int32_t> taken{0};
  std::atomic<job *> open{nullptr};
  std::atomic<int32_t> visitors{0};
  std::atomic<int32_t> caller_sleeps{0};
};

struct pool_state {
  slot slots[slot_count];
  alignas(64) std::atomic<int32_t> epoch{0};  // grows with each call; helpers sleep on it
  alignas(64) std::atomic<int32_t> sleepers{0};
  alignas(64) std::atomic<int32_t> busy{0};  // callers and helpers at work
  std::atomic<int32_t> threads{1};
  std::atomic<int32_t> started{0};    // helper threads that exist
  std::atomic<int32_t> asked_for{0};  // helper threads that were to be started: more where the system refused some
  pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
};

// In static storage and never destroyed.
alignas(pool_state) char storage[sizeof(pool_state)];
pool_state *state() {
  static pool_state *made = new (storage) pool_state;
  return made;
}

thread_local bool inside_task = false;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void futex_wait(std::atomic<int32_t> &word, int32_t expected) {
  syscall(SYS_futex, reinterpret_cast<int32_t *>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<int32_t> &word, int32_t count) {
  syscall(SYS_futex, reinterpret_cast<int32_t *>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// Spins until `ready()`, at most `spin_nanoseconds`.
template <typename Ready>
bool spin_until(Ready ready) {
  for (int i = 0; i < 64; i++) {
    if (ready()) return true;
    relax();
  }
  const int64_t end = now_nanoseconds() + spin_nanoseconds;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      relax();
    }
  } while (now_nanoseconds() < end);
  return ready();
}

void help(slot &s) {
  s.visitors.fetch_add(1);
  if (job *open = s.open.load()) open->work();
  if (s.visitors.fetch_sub(1) == 1 && s.caller_sleeps.load() != 0) futex_wake(s.visitors, 1);
}

// Joins every open job once. Does nothing while as many threads as allowed are at work.
void help_all(pool_state &pool) {
  for (slot &s : pool.slots) {
    job *open = s.open.load(std::memory_order_relaxed);
    if (open == nullptr) continue;
    if (pool.busy.fetch_add(1) < pool.threads.load(std::memory_order_relaxed)) help(s);
    pool.busy.fetch_sub(1);
  }
}

void *helper_main(void *argument) {
  const int32_t index = int32_t(reinterpret_cast<intptr_t>(argument));
  pool_state &pool = *state();
  inside_task = true;
  try {
    thread_workspace();
  } catch (const std::bad_alloc &) {
    return nullptr;  // one helper fewer
  }
  for (;;) {
    const int32_t seen = pool.epoch.load();
    if (index < pool.threads.load(std::memory_order_relaxed) - 1) help_all(pool);
    if (spin_until([&] { return pool.epoch.load(std::memory_order_relaxed) != seen; })) continue;
    pool.sleepers.fetch_add(1);
    futex_wait(pool.epoch, seen);
    pool.sleepers.fetch_sub(1);
  }
  return nullptr;
}

// After fork the child has none of the threads, and slots may be left half used.
void reset_in_child() {
  const int32_t threads = state()->threads.load();
  (new (storage) pool_state)->threads.store(threads);
}

bool start_helper(int32_t index) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the host program's business
  pthread_t thread;
  const bool made = pthread_create(&thread, &attributes, helper_main, reinterpret_cast<void *>(intptr_t(index))) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (made) pthread_setname_np(thread, "metashard-cpu");
  pthread_attr_destroy(&attributes);
  return made;
}

// Starts the helpers that are lacking, once for each larger number of threads. Where the system refuses some, the rest do.
void start_helpers(pool_state &pool, int32_t wanted) {
  static const int registered = pthread_atfork(nullptr, nullptr, reset_in_child);
  (void)registered;
  pthread_mutex_lock(&pool.starting);
  while (pool.started.load() < wanted && start_helper(pool.started.load())) pool.started.fetch_add(1);
  pool.asked_for.store(wanted);
  pthread_mutex_unlock(&pool.starting);
}

void run_alone(int64_t tasks, void (*task)(void *, int64_t), void *context) {
  for (int64_t index = 0; index < tasks; index++) task(context, index);
}

slot *claim_slot(pool_state &pool) {
  for (slot &s : pool.slots) {
    int32_t free = 0;
    if (s.taken.load(std::memory_order_relaxed) == 0 && s.taken.compare_exchange_strong(free, 1)) return &s;
  }
  return nullptr;
}

// Tells the helpers that there is work for `wanted` of them. Those beyond the current number of threads may be woken in vain.
void announce(pool_state &pool, int64_t wanted) {
  pool.epoch.fetch_add(1);
  if (pool.sleepers.load() == 0) return;
  const int32_t helpers = pool.threads.load() - 1;
  const bool surplus = pool.started.load() > helpers;
  futex_wake(pool.epoch, surplus ? INT_MAX : wanted < helpers ? int32_t(wanted) : helpers);
}

// Waits for the helpers that are still in a task of this job.
void wait_for_visitors(slot &s) {
  if (spin_until([&] { return s.visitors.load() == 0; })) return;
  s.caller_sleeps.store(1);
  for (int32_t left; (left = s.visitors.load()) != 0;) futex_wait(s.visitors, left);
  s.caller_sleeps.store(0);
}

void *allocate_workspace() {
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, THREAD_WORKSPACE_BYTES) != 0) throw std::bad_alloc();
  return memory;
}

struct workspace {
  void *memory = nullptr;
  ~workspace() { free(memory); }
};

}  // namespace

void parallel_for(int64_t tasks, void (*task)(void *context, int64_t index), void *context) {
  pool_state &pool = *state();
  const int32_t threads = pool.threads.load(std::memory_order_relaxed);
  if (tasks <= 1 || threads <= 1 || inside_task) return run_alone(tasks, task, context);
  if (pool.asked_for.load(std::memory_order_relaxed) < threads - 1) start_helpers(pool, threads - 1);
  thread_workspace();  // fails here, where it can be reported, not inside a task
  slot *s = claim_slot(pool);
  if (s == nullptr) return run_alone(tasks, task, context);
  job mine(task, context, tasks, threads);
  pool.busy.fetch_add(1);
  s->open.store(&mine);
  announce(pool, tasks - 1);
  inside_task = true;
  mine.work();
  inside_task = false;
  s->open.store(nullptr);
  wait_for_visitors(*s);
  s->taken.store(0);
  if (pool.busy.fetch_sub(1) > 1) announce(pool, 1);  // other calls are open, and a thread has come free
}

void *thread_workspace() {
  thread_local workspace mine;
  if (mine.memory == nullptr) mine.memory = allocate_workspace();
  return mine.memory;
}

int32_t pool_threads() { return state()->threads.load(std::memory_order_relaxed); }

void pool_set_threads(int32_t threads) {
  state()->threads.store(threads < 1 ? 1 : threads > max_threads ? max_threads : threads);
}
