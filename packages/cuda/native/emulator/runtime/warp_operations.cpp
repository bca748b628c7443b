// What the lanes of a warp do together, and the calls by which kernels reach their BlockRunner. An operation runs once, on the
// arguments of all lanes of the mask, when the last of them has come.
#include <algorithm>
#include <cmath>

#include "block_runner.h"

using metashard::emulator::BlockRunner;
using namespace metashard::cuda;

namespace simt {

namespace {

template <class Argument>
Argument &of_lane(void **arguments, int lane) {
  return *static_cast<Argument *>(arguments[lane]);
}

template <class Body>
void for_lanes(unsigned mask, Body &&body) {
  for (; mask != 0; mask &= mask - 1) body(__builtin_ctz(mask));
}

// The butterfly of five shuffles: lane l takes what it has and what lane l ^ offset has, offsets 16, 8, 4, 2, 1.
template <class T, class Combine>
void butterfly(void **arguments, Combine &&combine) {
  T values[32], next[32];
  for (int lane = 0; lane < 32; lane++) values[lane] = of_lane<T>(arguments, lane);
  for (int offset = 16; offset > 0; offset /= 2) {
    for (int lane = 0; lane < 32; lane++) next[lane] = combine(values[lane], values[lane ^ offset]);
    std::copy(next, next + 32, values);
  }
  for (int lane = 0; lane < 32; lane++) of_lane<T>(arguments, lane) = values[lane];
}

}  // namespace

uint3 thread_index() { return BlockRunner::running().thread_index(); }
uint3 block_index() { return BlockRunner::running().block_index(); }
uint3 block_dim() { return BlockRunner::running().block_dim(); }
uint3 grid_dim() { return BlockRunner::running().grid_dim(); }
int lane() { return BlockRunner::running().lane(); }

int barrier(BarrierKind kind, int predicate, const char *file, int line) {
  return BlockRunner::running().barrier(kind, predicate != 0, file, line);
}
void meet(unsigned mask, WarpOperation operation, void *argument, const char *file, int line) {
  BlockRunner::running().meet(mask, operation, argument, file, line);
}
void copy_async(void *shared, const void *global, int bytes, const char *file, int line) {
  BlockRunner::running().copy_async(shared, global, bytes, file, line);
}
void copy_async_commit() { BlockRunner::running().copy_async_commit(); }
void copy_async_wait(int groups_left) { BlockRunner::running().copy_async_wait(groups_left); }
void trap(const char *what) { BlockRunner::running().fail(CUDA_ERROR_LAUNCH_FAILED, std::string("calls ") + what); }

void synchronize(void **, unsigned) {}

void shuffle(void **arguments, unsigned mask) {
  for_lanes(mask, [&](int lane) {
    auto &mine = of_lane<Shuffle>(arguments, lane);
    if (arguments[mine.source] == nullptr) {
      BlockRunner::running().fail(CUDA_ERROR_LAUNCH_FAILED, "a shuffle reads lane " + std::to_string(mine.source) +
                                                                " for lane " + std::to_string(lane) +
                                                                ", and that lane takes no part");
    }
    mine.result = of_lane<Shuffle>(arguments, mine.source).value;
  });
}

void ballot(void **arguments, unsigned mask) {
  unsigned votes = 0;
  for_lanes(mask, [&](int lane) { votes |= of_lane<Vote>(arguments, lane).predicate != 0 ? 1u << lane : 0u; });
  for_lanes(mask, [&](int lane) { of_lane<Vote>(arguments, lane).ballot = votes; });
}

void match_any(void **arguments, unsigned mask) {
  for_lanes(mask, [&](int lane) {
    auto &mine = of_lane<Match>(arguments, lane);
    mine.lanes = 0;
    for_lanes(mask, [&](int other) {
      if (of_lane<Match>(arguments, other).value == mine.value) mine.lanes |= 1u << other;
    });
  });
}

void warp_sum_float(void **arguments, unsigned) {
  butterfly<float>(arguments, [](float a, float b) { return a + b; });
}
void warp_sum_double(void **arguments, unsigned) {
  butterfly<double>(arguments, [](double a, double b) { return a + b; });
}
void warp_sum_int(void **arguments, unsigned) {
  butterfly<unsigned>(arguments, [](unsigned a, unsigned b) { return a + b; });  // wraps, as the GPU's
}
void warp_max_float(void **arguments, unsigned) {
  butterfly<float>(arguments, [](float a, float b) { return fmaxf(a, b); });
}
void warp_max_int(void **arguments, unsigned) {
  butterfly<int>(arguments, [](int a, int b) { return a < b ? b : a; });
}

}  // namespace simt
