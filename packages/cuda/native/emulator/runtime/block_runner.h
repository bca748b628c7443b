// Runs the threads of one block on one host thread, a fiber each. A thread runs until it waits for others; then another does.
// Threads that never wait share one fiber and never switch. What CUDA leaves undefined (a barrier that some threads miss, a
// mask whose lanes do not come) ends the block with an error that names kernel, block, thread and source line.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../../cu.h"
#include "../../simt/simt_host.h"
#include "fault_guard.h"
#include "fiber.h"
#include "kernel_library.h"

namespace metashard::emulator {

struct KernelFailure {
  cuda::CUresult status = cuda::CUDA_SUCCESS;
  std::string message;
};

// One kernel over one grid.
struct GridLaunch {
  const KernelModule *module = nullptr;
  const KernelEntry *kernel = nullptr;
  dim3 grid;
  dim3 block;
  size_t dynamic_shared = 0;
  void **arguments = nullptr;
  // 0: threads and blocks in ascending order, 1: descending, else at random, decided by the seed alone.
  uint64_t seed = 0;
  bool late_copies = true;  // asynchronous copies are made when they are waited for, else at once
  bool bfloat16_matrices = true;

  uint64_t block_count() const { return uint64_t{grid.x} * grid.y * grid.z; }
  unsigned thread_count() const { return block.x * block.y * block.z; }
};

class BlockRunner {
 public:
  static constexpr unsigned most_threads = 1024;
  static constexpr unsigned warp_lanes = 32;

  // The calling host thread's runner, made on first use and never destroyed.
  static BlockRunner &of_this_thread();
  // The runner whose fiber is running; kernels' calls end up here.
  static BlockRunner &running() { return *active; }

  // Prepares for blocks of a launch, which has to outlive them.
  void begin(const GridLaunch &launch);
  // Runs one block to its end. False, with `failure` filled in, when it failed.
  bool run(uint64_t block, KernelFailure &failure);

  // ---- called by the running thread
  uint3 thread_index() const { return current_->index; }
  uint3 block_index() const { return block_index_; }
  uint3 block_dim() const { return {launch_->block.x, launch_->block.y, launch_->block.z}; }
  uint3 grid_dim() const { return {launch_->grid.x, launch_->grid.y, launch_->grid.z}; }
  int lane() const { return current_->lane; }
  const GridLaunch &launch() const { return *launch_; }
  int barrier(simt::BarrierKind kind, bool predicate, const char *file, int line);
  void meet(unsigned mask, simt::WarpOperation operation, void *argument, const char *file, int line);
  void copy_async(void *shared, const void *global, int bytes, const char *file, int line);
  void copy_async_commit() { current_->copies.open_group++; }
  void copy_async_wait(int groups_left);
  // Ends the block with an error. `where` is a source line, or null.
  [[noreturn]] void fail(cuda::CUresult status, const std::string &what, const char *file = nullptr, int line = 0);

 private:
  struct AsyncCopy {
    void *shared;
    const void *global;
    int bytes;
    int group;
  };
  struct AsyncCopies {
    std::vector<AsyncCopy> pending;
    int open_group = 0;
  };
  // What a lane waits for in a warp operation.
  struct Meeting {
    unsigned mask = 0;
    simt::WarpOperation operation = nullptr;
    void *argument = nullptr;
    const char *file = nullptr;
    int line = 0;
  };
  struct Thread {
    uint3 index{};
    int lane = 0;
    int warp = 0;
    Fiber *fiber = nullptr;
    Meeting meeting;
    AsyncCopies copies;
  };
  struct Warp {  // sets of lanes, one bit each
    uint32_t lanes = 0;
    uint32_t exited = 0;
    uint32_t ready = 0;
    uint32_t meeting = 0;
    uint32_t at_barrier = 0;
  };
  struct Barrier {
    unsigned waiting = 0;
    simt::BarrierKind kind = simt::BarrierKind::sync;
    unsigned true_predicates = 0;
    int result = 0;  // of the last one that was complete
    const char *file = nullptr;
    int line = 0;
  };
  // The next thread to run; `fresh`: it has not started yet. Null thread: nobody can run.
  struct Choice {
    Thread *thread;
    bool fresh;
  };

  BlockRunner() : threads_(most_threads), order_(most_threads) {}
  void start_block(uint64_t block);
  void abandon_fibers();
  void describe_fault();
  Fiber &free_fiber();
  static void fiber_entry();
  void run_threads();  // a fiber's life: threads, one after another

  Choice choose();
  Choice choose_in_order();
  Choice choose_at_random();
  Thread &take(unsigned warp, unsigned lane);
  void make_ready(unsigned warp, uint32_t lanes);
  void give_way();
  void thread_exits();
  void complete_barrier();
  void run_meeting(Thread &last, uint32_t group);
  [[noreturn]] void fail_stuck();
  uint32_t random();

  static thread_local BlockRunner *active __attribute__((tls_model("initial-exec")));

  const GridLaunch *launch_ = nullptr;
  SharedMemory shared_;
  uint3 block_index_{};
  std::vector<Thread> threads_;
  Warp warps_[most_threads / warp_lanes];
  std::vector<uint16_t> order_;  // in which threads start
  unsigned count_ = 0, started_ = 0, live_ = 0, warp_count_ = 0;
  uint32_t ready_warps_ = 0;
  Barrier barrier_;
  Thread *current_ = nullptr;
  Thread *to_start_ = nullptr;  // the thread that the next fiber to run shall run
  uint64_t random_state_ = 1;

  Fiber host_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber *> free_fibers_;
  FaultGuard guard_;
  KernelFailure failure_;
};

}  // namespace metashard::emulator
