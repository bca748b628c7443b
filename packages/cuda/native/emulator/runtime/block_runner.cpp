// See block_runner.h. Here: the life of a block and of its fibers, and its errors; who runs next is in schedule.cpp.
#include "block_runner.h"

#include <signal.h>

#include <cstring>
#include <utility>

namespace metashard::emulator {

using namespace cuda;

thread_local BlockRunner *BlockRunner::active = nullptr;

namespace {

// Poisoning every static array of every kernel before each block would cost more than small kernels: only up to this size, else
// with a seed only.
constexpr size_t cheap_to_poison = 64 << 10;

std::string triple(const char *what, uint3 index) {
  const std::string numbers = std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z);
  return std::string(what) + " (" + numbers + ")";
}

// The three numbers of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
uint64_t mixed(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
  value = (value ^ value >> 27) * 0x94d049bb133111ebu;
  return value ^ value >> 31;
}

}  // namespace

BlockRunner &BlockRunner::of_this_thread() {
  if (active == nullptr) {
    active = new BlockRunner;
    prepare_for_faults();
  }
  return *active;
}

void BlockRunner::begin(const GridLaunch &launch) {
  launch_ = &launch;
  shared_.locate(*launch.module);
  if (launch.seed != 0 || shared_.static_bytes() <= cheap_to_poison) shared_.poison_static();
  count_ = launch.thread_count();
  warp_count_ = (count_ + warp_lanes - 1) / warp_lanes;
  const dim3 &size = launch.block;
  for (unsigned i = 0; i < count_; i++) {
    threads_[i].index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    threads_[i].lane = static_cast<int>(i % warp_lanes);
    threads_[i].warp = static_cast<int>(i / warp_lanes);
    order_[i] = static_cast<uint16_t>(launch.seed == 1 ? count_ - 1 - i : i);
  }
}

void BlockRunner::start_block(uint64_t block) {
  const dim3 &grid = launch_->grid;
  block_index_ = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                  static_cast<unsigned>(block / (uint64_t{grid.x} * grid.y))};
  for (unsigned w = 0; w < warp_count_; w++) {
    const unsigned lanes = count_ - w * warp_lanes;
    warps_[w] = {};
    warps_[w].lanes = lanes >= warp_lanes ? ~0u : (1u << lanes) - 1;
  }
  started_ = 0;
  live_ = count_;
  ready_warps_ = 0;
  barrier_ = {};
  if (launch_->seed >= 2) {
    random_state_ = mixed(launch_->seed ^ mixed(block)) | 1;
    for (unsigned i = count_ - 1; i > 0; i--) std::swap(order_[i], order_[random() % (i + 1)]);
  }
  shared_.poison_dynamic(launch_->dynamic_shared);
}

bool BlockRunner::run(uint64_t block, KernelFailure &failure) {
  start_block(block);
  failure_ = {};
  const bool ended = guarded_run(guard_, [this] {
    current_ = to_start_ = &threads_[order_[started_++]];
    Fiber &first = free_fiber();
    current_->fiber = &first;
    Fiber::change(host_, first);
  });
  if (!ended) {
    describe_fault();
    abandon_fibers();
  } else if (!shared_.canary_intact(launch_->dynamic_shared)) {
    failure_ = {CUDA_ERROR_ILLEGAL_ADDRESS,
                std::string("kernel ") + launch_->kernel->name + ", " + triple("block", block_index_) +
                    ": wrote past the end of its " + std::to_string(launch_->dynamic_shared) +
                    " bytes of dynamic shared memory"};
  }
  if (failure_.status == CUDA_SUCCESS) return true;
  failure = std::move(failure_);
  return false;
}

// The fibers of a block that failed stand where they stood; nothing on their stacks needs to be destroyed.
void BlockRunner::abandon_fibers() {
  free_fibers_.clear();
  for (auto &fiber : fibers_) {
    fiber->reset();
    free_fibers_.push_back(fiber.get());
  }
  for (unsigned i = 0; i < count_; i++) {
    threads_[i].copies.pending.clear();
    threads_[i].copies.open_group = 0;
  }
}

Fiber &BlockRunner::free_fiber() {
  if (free_fibers_.empty()) return *fibers_.emplace_back(std::make_unique<Fiber>(fiber_entry, fibers_.size()));
  Fiber *fiber = free_fibers_.back();
  free_fibers_.pop_back();
  return *fiber;
}

void BlockRunner::fiber_entry() { active->run_threads(); }

void BlockRunner::run_threads() {
  for (;;) {
    Thread &thread = *to_start_;
    Fiber &mine = *thread.fiber;
    current_ = &thread;
    launch_->kernel->call(launch_->arguments);
    thread_exits();
    const Choice next = choose();
    if (next.thread == nullptr) {
      if (live_ > 0) fail_stuck();
      free_fibers_.push_back(&mine);
      Fiber::change(mine, host_);
    } else if (next.fresh) {  // on this same stack: threads that never wait cost no switch
      next.thread->fiber = &mine;
      to_start_ = next.thread;
    } else {
      free_fibers_.push_back(&mine);
      current_ = next.thread;
      Fiber::change(mine, *next.thread->fiber);
    }
  }
}

void BlockRunner::fail(CUresult status, const std::string &what, const char *file, int line) {
  failure_.status = status;
  failure_.message = std::string("kernel ") + launch_->kernel->name + ", " + triple("block", block_index_) + ", " +
                     triple("thread", current_->index) + ": " + what;
  if (file != nullptr) failure_.message += std::string(", ") + file + ":" + std::to_string(line);
  leave_guard();
}

void BlockRunner::describe_fault() {
  if (guard_.signal == 0) return;  // `fail` has told
  char what[128];
  failure_.status = CUDA_ERROR_ILLEGAL_ADDRESS;
  if (guard_.signal == SIGFPE) {
    failure_.status = CUDA_ERROR_LAUNCH_FAILED;
    std::snprintf(what, sizeof what, "divides an integer by zero");
  } else if (guard_.signal == SIGILL) {
    failure_.status = CUDA_ERROR_ILLEGAL_INSTRUCTION;
    std::snprintf(what, sizeof what, "runs an illegal instruction");
  } else if (current_->fiber != nullptr && current_->fiber->guards(guard_.address)) {
    failure_.status = CUDA_ERROR_HARDWARE_STACK_ERROR;
    std::snprintf(what, sizeof what, "needs more than the emulator's %zu bytes of local memory", Fiber::stack_bytes);
  } else if (guard_.address == nullptr) {
    // The processor names no address for a misaligned vector access or one beyond the canonical range.
    std::snprintf(what, sizeof what, "accesses memory at a null, non-canonical or misaligned address");
  } else {
    std::snprintf(what, sizeof what, "accesses %p, where no memory of its device is", guard_.address);
  }
  failure_.message = std::string("kernel ") + launch_->kernel->name + ", " + triple("block", block_index_) + ", " +
                     triple("thread", current_->index) + ": " + what;
}

}  // namespace metashard::emulator
