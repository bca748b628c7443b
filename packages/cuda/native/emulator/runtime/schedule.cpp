// The part of BlockRunner that decides which thread runs next, and what makes threads wait: barriers, warp operations,
// asynchronous copies. In order (seed 0) a thread runs to its next wait, then the next thread of its warp does: that order is
// itself adversarial, for nothing a later thread does is seen before a barrier. Random orders show what depends on the order.
#include <bit>
#include <cstdio>
#include <cstring>

#include "block_runner.h"

namespace metashard::emulator {

using namespace cuda;
using simt::BarrierKind;

namespace {

unsigned lowest(uint32_t set) { return static_cast<unsigned>(std::countr_zero(set)); }
unsigned highest(uint32_t set) { return 31u - static_cast<unsigned>(std::countl_zero(set)); }

// The n-th member of a set of bits.
unsigned member(uint32_t set, unsigned n) {
  while (n-- > 0) set &= set - 1;
  return lowest(set);
}

// One file is one string in most builds, so that comparing the addresses does.
bool same_file(const char *a, const char *b) { return a == b || std::strcmp(a, b) == 0; }

std::string site(const char *file, int line) { return std::string(file) + ":" + std::to_string(line); }

std::string lanes_text(uint32_t lanes) {
  char text[16];
  std::snprintf(text, sizeof text, "%08x", lanes);
  return text;
}

}  // namespace

// xorshift64 (Marsaglia, Xorshift RNGs, 2003).
uint32_t BlockRunner::random() {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return static_cast<uint32_t>(random_state_ >> 16);
}

void BlockRunner::make_ready(unsigned warp, uint32_t lanes) {
  if (lanes == 0) return;
  warps_[warp].ready |= lanes;
  ready_warps_ |= 1u << warp;
}

BlockRunner::Thread &BlockRunner::take(unsigned warp, unsigned lane) {
  warps_[warp].ready &= ~(1u << lane);
  if (warps_[warp].ready == 0) ready_warps_ &= ~(1u << warp);
  return threads_[warp * warp_lanes + lane];
}

BlockRunner::Choice BlockRunner::choose() { return launch_->seed >= 2 ? choose_at_random() : choose_in_order(); }

// Ready lanes of the running thread's warp first, from the next lane on; then other warps; then threads that have not started.
BlockRunner::Choice BlockRunner::choose_in_order() {
  const bool descending = launch_->seed == 1;
  const auto first = [descending](uint32_t set) { return descending ? highest(set) : lowest(set); };
  const auto mine = static_cast<unsigned>(current_->warp);
  if (const uint32_t ready = warps_[mine].ready; ready != 0) {
    const uint32_t up_to_me = (2u << current_->lane) - 1;  // lane 31: all bits, 2 << 31 being 0
    const uint32_t ahead = ready & (descending ? up_to_me >> 1 : ~up_to_me);
    return {&take(mine, first(ahead != 0 ? ahead : ready)), false};
  }
  if (ready_warps_ != 0) {
    const unsigned warp = first(ready_warps_);
    return {&take(warp, first(warps_[warp].ready)), false};
  }
  if (started_ < count_) return {&threads_[order_[started_++]], true};
  return {nullptr, false};
}

BlockRunner::Choice BlockRunner::choose_at_random() {
  const bool unstarted = started_ < count_;
  if (ready_warps_ != 0 && !(unstarted && random() % 2 == 0)) {
    const unsigned warp = member(ready_warps_, random() % static_cast<unsigned>(std::popcount(ready_warps_)));
    const uint32_t ready = warps_[warp].ready;
    return {&take(warp, member(ready, random() % static_cast<unsigned>(std::popcount(ready)))), false};
  }
  if (unstarted) return {&threads_[order_[started_++]], true};
  return {nullptr, false};
}

// The running thread waits somewhere; another one runs until this one is chosen again.
void BlockRunner::give_way() {
  Thread &me = *current_;
  const Choice next = choose();
  if (next.thread == nullptr) fail_stuck();
  if (next.thread == &me) return;
  current_ = next.thread;
  if (next.fresh) {
    next.thread->fiber = &free_fiber();
    to_start_ = next.thread;
  }
  Fiber::change(*me.fiber, *next.thread->fiber);
  current_ = &me;
}

int BlockRunner::barrier(BarrierKind kind, bool predicate, const char *file, int line) {
  Thread &me = *current_;
  if (barrier_.waiting == 0) {
    barrier_.kind = kind;
    barrier_.file = file;
    barrier_.line = line;
  } else if (kind != barrier_.kind || line != barrier_.line || !same_file(file, barrier_.file)) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "meets another barrier than the " + std::to_string(barrier_.waiting) + " threads that wait at " +
             site(barrier_.file, barrier_.line), file, line);
  }
  if (live_ < count_) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "waits at a barrier that " + std::to_string(count_ - live_) +
                                       " threads of the block will not reach: they have returned", file, line);
  }
  barrier_.true_predicates += predicate ? 1 : 0;
  warps_[me.warp].at_barrier |= 1u << me.lane;
  if (++barrier_.waiting == live_) {
    complete_barrier();
    if (launch_->seed == 0) {
      take(static_cast<unsigned>(me.warp), static_cast<unsigned>(me.lane));
      return barrier_.result;
    }
  }
  give_way();
  return barrier_.result;
}

void BlockRunner::complete_barrier() {
  for (unsigned w = 0; w < warp_count_; w++) {
    make_ready(w, warps_[w].at_barrier);
    warps_[w].at_barrier = 0;
  }
  const unsigned trues = barrier_.true_predicates;
  const int result = barrier_.kind == BarrierKind::any   ? trues > 0
                     : barrier_.kind == BarrierKind::all ? trues == barrier_.waiting
                                                         : static_cast<int>(trues);
  barrier_ = {};
  barrier_.result = result;
}

void BlockRunner::meet(unsigned mask, simt::WarpOperation operation, void *argument, const char *file, int line) {
  Thread &me = *current_;
  Warp &warp = warps_[me.warp];
  const uint32_t bit = 1u << me.lane;
  me.meeting = {mask, operation, argument, file, line};
  if ((mask & bit) == 0) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "lane " + std::to_string(me.lane) + " calls a warp operation whose mask " +
                                       lanes_text(mask) + " does not name it", file, line);
  }
  if ((mask & (warp.exited | ~warp.lanes)) != 0) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "the mask " + lanes_text(mask) + " of a warp operation names lanes " +
                                       lanes_text(mask & (warp.exited | ~warp.lanes)) + ", which have returned or never were",
         file, line);
  }
  warp.meeting |= bit;
  if ((warp.meeting & mask) != mask) return give_way();
  run_meeting(me, mask);
  warp.meeting &= ~mask;
  if (launch_->seed == 0) {
    make_ready(static_cast<unsigned>(me.warp), mask & ~bit);
  } else {
    make_ready(static_cast<unsigned>(me.warp), mask);
    give_way();
  }
}

// All lanes of the group have come; they must have come for the same thing.
void BlockRunner::run_meeting(Thread &last, uint32_t group) {
  void *arguments[warp_lanes] = {};
  const Meeting &mine = last.meeting;
  for (uint32_t left = group; left != 0; left &= left - 1) {
    const unsigned lane = lowest(left);
    const Meeting &other = threads_[static_cast<unsigned>(last.warp) * warp_lanes + lane].meeting;
    if (other.operation != mine.operation || other.mask != mine.mask || other.line != mine.line) {
      fail(CUDA_ERROR_LAUNCH_FAILED, "lanes of one mask meet in different warp operations: lane " + std::to_string(lane) +
                                         " (mask " + lanes_text(other.mask) + ") at " + site(other.file, other.line) +
                                         ", lane " + std::to_string(last.lane) + " (mask " + lanes_text(mine.mask) + ")",
           mine.file, mine.line);
    }
    arguments[lane] = other.argument;
  }
  mine.operation(arguments, group);
}

void BlockRunner::thread_exits() {
  Thread &me = *current_;
  Warp &warp = warps_[me.warp];
  const uint32_t bit = 1u << me.lane;
  warp.exited |= bit;
  live_--;
  if (!me.copies.pending.empty()) me.copies.pending.clear();
  me.copies.open_group = 0;
  if (barrier_.waiting > 0) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "returns while " + std::to_string(barrier_.waiting) + " threads wait for it at a barrier",
         barrier_.file, barrier_.line);
  }
  for (uint32_t left = warp.meeting; left != 0; left &= left - 1) {
    const Thread &other = threads_[static_cast<unsigned>(me.warp) * warp_lanes + lowest(left)];
    if ((other.meeting.mask & bit) == 0) continue;
    fail(CUDA_ERROR_LAUNCH_FAILED, "lane " + std::to_string(me.lane) + " returns while lane " + std::to_string(other.lane) +
                                       " waits for it in a warp operation", other.meeting.file, other.meeting.line);
  }
}

// Nobody can run: say who waits for whom. A GPU would hang here until its watchdog comes.
void BlockRunner::fail_stuck() {
  std::string text = "the block is stuck: ";
  if (barrier_.waiting > 0) {
    text += std::to_string(barrier_.waiting) + " of " + std::to_string(live_) + " threads wait at the barrier " +
            site(barrier_.file, barrier_.line) + "; ";
  }
  for (unsigned w = 0, shown = 0; w < warp_count_ && shown < 2; w++) {
    if (warps_[w].meeting == 0) continue;
    const Meeting &meeting = threads_[w * warp_lanes + lowest(warps_[w].meeting)].meeting;
    text += "lanes " + lanes_text(warps_[w].meeting) + " of warp " + std::to_string(w) +
            " wait in a warp operation for lanes " + lanes_text(meeting.mask & ~warps_[w].meeting) + ", " +
            site(meeting.file, meeting.line) + "; ";
    shown++;
  }
  text.resize(text.size() - 2);
  fail(CUDA_ERROR_LAUNCH_TIMEOUT, text);
}

void BlockRunner::copy_async(void *shared, const void *global, int bytes, const char *file, int line) {
  const auto misaligned = [](const void *address) { return reinterpret_cast<uintptr_t>(address) % 16 != 0; };
  if (misaligned(shared) || (bytes > 0 && misaligned(global))) {
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "copies 16 bytes asynchronously from or to an address that is no multiple of 16", file,
         line);
  }
  if (bytes < 0 || bytes > 16) fail(CUDA_ERROR_LAUNCH_FAILED, "copies " + std::to_string(bytes) + " of 16 bytes", file, line);
  if (!shared_.contains(shared, 16)) {
    fail(CUDA_ERROR_INVALID_ADDRESS_SPACE, "copies asynchronously to what is no shared memory", file, line);
  }
  AsyncCopies &copies = current_->copies;
  copies.pending.push_back({shared, global, bytes, copies.open_group});
  if (!launch_->late_copies) copy_async_wait(-1);
}

// Makes the copies of all groups but the last `groups_left` that were committed; -1: of the open group, too.
void BlockRunner::copy_async_wait(int groups_left) {
  AsyncCopies &copies = current_->copies;
  const int before = copies.open_group - groups_left;
  size_t kept = 0;
  for (const AsyncCopy &copy : copies.pending) {
    if (copy.group >= before) {
      copies.pending[kept++] = copy;
      continue;
    }
    unsigned char bytes[16] = {};
    std::memcpy(bytes, copy.global, static_cast<size_t>(copy.bytes));
    std::memcpy(copy.shared, bytes, sizeof bytes);
  }
  copies.pending.resize(kept);
}

}  // namespace metashard::emulator
