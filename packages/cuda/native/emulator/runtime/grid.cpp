// See grid.h.
#include "grid.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <thread>

namespace metashard::emulator {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto worth_helping = std::chrono::microseconds(100);  // what waking a helper may cost
constexpr unsigned most_helpers = 15;

// A launch whose blocks several host threads take from.
struct SharedGrid {
  explicit SharedGrid(const GridLaunch &launch) : launch(launch), blocks(launch.block_count()) {
    stride = launch.seed % 997 * 2 + 1;
    while (std::gcd(stride, blocks) != 1) stride += 2;
  }

  const GridLaunch &launch;
  const uint64_t blocks;
  uint64_t stride;  // prime to `blocks`: i → (i · stride + seed) mod blocks visits each block once
  std::atomic<uint64_t> taken = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  KernelFailure failure;
  unsigned helpers = 0;  // at work on it; guarded by the helpers' mutex

  bool has_blocks() const { return !failed.load(std::memory_order_relaxed) && taken.load(std::memory_order_relaxed) < blocks; }

  uint64_t block_at(uint64_t turn) const {
    if (launch.seed == 0) return turn;
    if (launch.seed == 1) return blocks - 1 - turn;
    return (turn % blocks * stride + launch.seed) % blocks;
  }

  // Runs one more block, if there is one.
  bool step(BlockRunner &runner) {
    if (failed.load(std::memory_order_relaxed)) return false;
    const uint64_t turn = taken.fetch_add(1, std::memory_order_relaxed);
    if (turn >= blocks) return false;
    KernelFailure mine;
    if (runner.run(block_at(turn), mine)) return true;
    const std::lock_guard lock(mutex);
    if (!failed.exchange(true)) failure = std::move(mine);
    return false;
  }
};

unsigned processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

// The helpers wait here for a launch that has blocks left. Never destroyed: they wait still when the process ends.
class Helpers {
 public:
  static Helpers &instance() {
    static Helpers *const helpers = new Helpers;
    return *helpers;
  }

  bool any() const { return count_ > 0; }

  void offer(SharedGrid &grid) {
    const std::lock_guard lock(mutex_);
    if (!started_) start();
    offered_.push_back(&grid);
    offered_or_left_.notify_all();
  }

  // Returns when no helper works on the grid any more.
  void withdraw(SharedGrid &grid) {
    std::unique_lock lock(mutex_);
    std::erase(offered_, &grid);
    offered_or_left_.wait(lock, [&] { return grid.helpers == 0; });
  }

 private:
  Helpers() : count_(std::min(processors() - 1, most_helpers)) {}

  void start() {
    started_ = true;
    for (unsigned i = 0; i < count_; i++) {
      std::thread helper([this] { help(); });
      pthread_setname_np(helper.native_handle(), "emulated-blocks");
      helper.detach();
    }
  }

  void help() {
    BlockRunner &runner = BlockRunner::of_this_thread();
    std::unique_lock lock(mutex_);
    for (;;) {
      const auto open = std::ranges::find_if(offered_, &SharedGrid::has_blocks);
      if (open == offered_.end()) {
        offered_or_left_.wait(lock);
        continue;
      }
      SharedGrid &grid = **open;
      grid.helpers++;
      lock.unlock();
      runner.begin(grid.launch);
      while (grid.step(runner)) {
      }
      lock.lock();
      if (--grid.helpers == 0) offered_or_left_.notify_all();
    }
  }

  const unsigned count_;
  bool started_ = false;
  std::mutex mutex_;
  std::condition_variable offered_or_left_;
  std::vector<SharedGrid *> offered_;
};

}  // namespace

bool run_grid(const GridLaunch &launch, KernelFailure &failure) {
  BlockRunner &runner = BlockRunner::of_this_thread();
  SharedGrid grid(launch);
  Helpers &helpers = Helpers::instance();
  runner.begin(launch);
  bool offered = !helpers.any() || grid.blocks == 1;
  const bool alone = offered;
  const auto begun = Clock::now();
  for (uint64_t done = 1; grid.step(runner); done++) {
    if (offered || done >= grid.blocks) continue;
    const auto elapsed = Clock::now() - begun;
    if (elapsed / done * (grid.blocks - done) < worth_helping) continue;
    offered = true;
    helpers.offer(grid);
  }
  if (!alone && offered) helpers.withdraw(grid);
  if (!grid.failed) return true;
  failure = std::move(grid.failure);
  return false;
}

}  // namespace metashard::emulator
