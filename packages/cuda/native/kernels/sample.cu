// One token of one row of logits: repetition penalty (Keskar et al. 2019), temperature, top-k, top-p (Holtzman et al. 2020),
// then the first id, in order of falling probability, whose cumulative probability exceeds the uniform. In float64; one block,
// whose sums are added in an order that depends on V alone.
// Nothing is sorted. "The first id, in order, at which a running count or sum passes a limit" is found by looking at the
// order's key (bits of the weight, then bits of the id, inverted) two bits at a time, from the top: the count and sum of each
// quarter tell in which quarter the limit is passed. Once few candidates are left they are ranked and walked. An id of the
// history out of range, or a penalty not above 0, gives the token -1: the host cannot look without waiting.
#include "calls.h"
#include "reduce.h"

namespace {

constexpr int threads = 512;  // and the most candidates that are walked
constexpr int levels = 48;    // of two bits: 64 of the weight, 32 of the id

// The end of a part of the order, inclusive, and the count and sum of weights up to it.
struct Place {
  uint64_t key;
  uint32_t id;
  double count, sum;
};

// What has to be passed: a count (at least `limit`), or a sum (at least `limit`, or more).
struct Limit {
  enum { count_reaches, sum_reaches, sum_exceeds };
  int kind;
  double value;

  __device__ __forceinline__ bool passed(double count, double sum) const {
    return kind == count_reaches ? count >= value : kind == sum_reaches ? sum >= value : sum > value;
  }
};

struct Ranking {
  double weight[threads], sorted_weight[threads];
  uint32_t id[threads], sorted_id[threads];
  int counts[threads];  // of candidates, by thread
};

struct Shared {
  union {
    double partial[8][threads];  // of the counts and sums of four quarters
    Ranking ranking;
  };
  double total[8];
  Place result;
};

SIMT_DEVICE uint64_t key_of(double weight) {
  uint64_t key;
  memcpy(&key, &weight, sizeof key);
  return key;
}

// Whether a comes before b, or is b: the larger weight, then the lower id.
SIMT_DEVICE bool not_after(uint64_t a_key, uint32_t a_id, uint64_t b_key, uint32_t b_id) {
  return a_key > b_key || (a_key == b_key && a_id <= b_id);
}

// The bits of (key, ~id) decided so far.
struct Prefix {
  uint64_t key = 0, key_mask = 0;
  uint32_t id = 0, id_mask = 0;

  __device__ __forceinline__ bool matches(uint64_t a_key, uint32_t a_id) const {
    return (a_key & key_mask) == key && (~a_id & id_mask) == id;
  }
  __device__ __forceinline__ void narrow(int level, int quarter) {
    if (level < 32) {
      const int shift = 62 - 2 * level;
      key |= static_cast<uint64_t>(quarter) << shift;
      key_mask |= static_cast<uint64_t>(3) << shift;
    } else {
      const int shift = 30 - 2 * (level - 32);
      id |= static_cast<uint32_t>(quarter) << shift;
      id_mask |= static_cast<uint32_t>(3) << shift;
    }
  }
};

SIMT_DEVICE int quarter_of(int level, uint64_t key, uint32_t id) {
  if (level < 32) return static_cast<int>(key >> (62 - 2 * level) & 3);
  return static_cast<int>(~id >> (30 - 2 * (level - 32)) & 3);
}

// The row's weights up to `end`, by the threads of the block.
struct Candidates {
  const double *weights;
  int64_t V;
  Place end;

  // body(weight, key, id) for this thread's, in order of ids.
  template <class Body>
  __device__ __forceinline__ void each(const Prefix &prefix, const Body &body) const {
    for (int64_t i = threadIdx.x; i < V; i += blockDim.x) {
      const double weight = weights[i];
      const uint64_t key = key_of(weight);
      const uint32_t id = static_cast<uint32_t>(i);
      if (prefix.matches(key, id) && not_after(key, id, end.key, end.id)) body(weight, key, id);
    }
  }
};

// Totals over the block of counts and sums by quarter: shared.total[q] and [4 + q].
SIMT_DEVICE void total_quarters(const Candidates &candidates, const Prefix &prefix, int level, Shared &shared) {
  double values[8] = {};
  candidates.each(prefix, [&](double weight, uint64_t key, uint32_t id) {
    const int quarter = quarter_of(level, key, id);
#pragma unroll
    for (int q = 0; q < 4; q++) {
      if (q == quarter) {
        values[q] += 1.0;
        values[4 + q] += weight;
      }
    }
  });
#pragma unroll
  for (int v = 0; v < 8; v++) shared.partial[v][threadIdx.x] = values[v];
  __syncthreads();
  const int v = threadIdx.x / 32;
  if (v < 8) {
    double total = 0;
    for (int i = threadIdx.x % 32; i < threads; i += 32) total += shared.partial[v][i];
    for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(full_warp, total, offset);
    if (threadIdx.x % 32 == 0) shared.total[v] = total;
  }
  __syncthreads();
}

// The quarter in which the limit is passed, `before` moved up to it; where none passes it (a rounding), the last that adds
// anything.
SIMT_DEVICE int choose_quarter(const Limit &limit, const double (&total)[8], Place &before) {
  int chosen = -1;
  double count = before.count, sum = before.sum;
  for (int q = 3; q >= 0; q--) {
    if (total[q] == 0.0) continue;
    const bool passes = limit.passed(count + total[q], sum + total[4 + q]);
    if (passes || chosen < 0 || total[4 + q] > 0.0) {
      chosen = q;
      before.count = count;
      before.sum = sum;
    }
    if (passes) break;
    count += total[q];
    sum += total[4 + q];
  }
  return chosen;
}

// The (at most `threads`) candidates into ranking.sorted_*, in order; returns their number. Each thread puts down its own
// behind those of the threads before it, then finds one candidate's rank.
SIMT_DEVICE int sort_candidates(const Candidates &candidates, const Prefix &prefix, Ranking &ranking) {
  int mine = 0;
  candidates.each(prefix, [&](double, uint64_t, uint32_t) { mine++; });
  ranking.counts[threadIdx.x] = mine;
  __syncthreads();
  int place = 0, count = 0;
  for (int i = 0; i < threads; i++) {
    if (i == static_cast<int>(threadIdx.x)) place = count;
    count += ranking.counts[i];
  }
  candidates.each(prefix, [&](double weight, uint64_t, uint32_t id) {
    ranking.weight[place] = weight;
    ranking.id[place++] = id;
  });
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    const double weight = ranking.weight[threadIdx.x];
    const uint32_t id = ranking.id[threadIdx.x];
    int rank = -1;  // it counts itself
    for (int i = 0; i < count; i++) rank += not_after(key_of(ranking.weight[i]), ranking.id[i], key_of(weight), id);
    ranking.sorted_weight[rank] = weight;
    ranking.sorted_id[rank] = id;
  }
  __syncthreads();
  return count;
}

// The first of the sorted candidates that passes the limit; where none does, the last that adds anything.
SIMT_DEVICE Place walk(const Limit &limit, const Ranking &ranking, int count, const Place &before) {
  Place reached = before;
  for (int i = 0; i < count; i++) {
    const double weight = ranking.sorted_weight[i];
    if (i > 0 && weight == 0.0 && limit.kind != Limit::count_reaches) break;
    reached = {key_of(weight), ranking.sorted_id[i], reached.count + 1.0, reached.sum + weight};
    if (limit.passed(reached.count, reached.sum)) break;
  }
  return reached;
}

SIMT_DEVICE Place first_passing(const Limit &limit, const Candidates &candidates, Shared &shared) {
  Prefix prefix;
  Place before = {0, 0, 0.0, 0.0};
  double left = static_cast<double>(candidates.V);
  for (int level = 0; level < levels && left > threads; level++) {
    total_quarters(candidates, prefix, level, shared);
    const int quarter = choose_quarter(limit, shared.total, before);
    prefix.narrow(level, quarter);
    left = shared.total[quarter];
    __syncthreads();  // total is written again
  }
  const int count = sort_candidates(candidates, prefix, shared.ranking);
  if (threadIdx.x == 0) shared.result = walk(limit, shared.ranking, count, before);
  __syncthreads();
  const Place result = shared.result;
  __syncthreads();
  return result;
}

// Marks the ids of the history; false for one that is none. Nothing to do without a penalty.
SIMT_DEVICE bool mark_seen(const ms_sample_call &call, float penalty) {
  const int64_t length = call.history_length[0];
  if (!(penalty > 0.0f) || length < 0 || length > call.L) return false;
  for (int64_t i = threadIdx.x; i < (call.V + 31) / 32; i += blockDim.x) call.seen[i] = 0;
  __syncthreads();
  int strangers = 0;
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
    const int32_t id = call.history[i];
    if (id < 0 || id >= call.V) {
      strangers = 1;
    } else if (penalty != 1.0f) {
      atomicOr(&call.seen[id / 32], 1u << id % 32);
    }
  }
  return __syncthreads_or(strangers) == 0;
}

// A seen id's logit is divided by the penalty if positive, else multiplied; once, however often it was seen.
SIMT_DEVICE double penalized(const ms_sample_call &call, double penalty, int64_t i) {
  const double logit = call.logits[i];
  if ((call.seen[i / 32] >> i % 32 & 1u) == 0) return logit;
  return logit > 0.0 ? logit / penalty : logit * penalty;
}

SIMT_DEVICE int32_t choose(const ms_sample_call &call, Shared &shared) {
  const double temperature = call.parameters[0], top_k = call.parameters[1], top_p = call.parameters[2];
  if (!mark_seen(call, call.parameters[3])) return -1;
  const double penalty = call.parameters[3];
  const Largest<double> greedy = block_largest<double>(call.V, [&](int64_t i) { return penalized(call, penalty, i); });
  if (!(temperature > 0.0) || !(fabs(greedy.value) < INFINITY)) return greedy.index;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < call.V; i += blockDim.x) {
    call.weights[i] = exp((penalized(call, penalty, i) - greedy.value) / temperature);
    sum += call.weights[i];
  }
  Candidates candidates = {call.weights, call.V, {0, 0xffffffffu, 0.0, block_sum(sum)}};  // a thread reads what it wrote itself
  const bool cut_by_count = top_k >= 1.0 && top_k < static_cast<double>(call.V);
  // In turn: what top-k keeps, what top-p keeps of it, what the uniform chooses of that.
#pragma unroll 1
  for (int kind = cut_by_count ? Limit::count_reaches : Limit::sum_reaches; kind <= Limit::sum_exceeds; kind++) {
    if (kind == Limit::sum_reaches && !(top_p < 1.0)) continue;
    const double share = kind == Limit::sum_reaches ? top_p : static_cast<double>(call.uniform[0]);
    const double value = kind == Limit::count_reaches ? floor(top_k) : share * candidates.end.sum;
    candidates.end = first_passing({kind, value}, candidates, shared);
  }
  return static_cast<int32_t>(candidates.end.id);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(threads, 1) ms_sample(ms_sample_call call) {
  SIMT_DYNAMIC_SHARED(smem);
  static_assert(sizeof(Shared) <= 33 * 1024, "what ops/sample.cpp asks for");
  Shared &shared = *reinterpret_cast<Shared *>(smem);
  const int32_t id = choose(call, shared);
  if (threadIdx.x == 0) call.id[0] = id;
}
