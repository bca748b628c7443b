// One token per row of logits: repetition penalty (Keskar et al. 2019), temperature, top-k, top-p (Holtzman et al. 2020), then
// the first id, in order of falling probability, whose cumulative probability exceeds the uniform. All in float64, in an order
// fixed by V alone.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "ops/op.h"

namespace {

constexpr int64_t block = 128;            // ids whose largest logit is noted
constexpr int64_t chunk = 128 * block;    // ids per task; partial sums are added in order of the chunks
constexpr int64_t first_sorted = 256;
constexpr int32_t buckets = 256;  // of weights, a quarter of a power of two each; the last one takes all below 2^-63

struct sample_call {
  operand logits, parameters, uniforms, history, history_lengths, ids;
};

sample_call read(const op_arguments &arguments) {
  sample_call call;
  call.logits = arguments.input(0, "logits", 2, f32_only);          // [R, V]
  call.parameters = arguments.input(1, "parameters", 2, f32_only);  // [R, 4]
  call.uniforms = arguments.input(2, "uniforms", 1, f32_only);      // [R]
  call.history = arguments.input(3, "history", 2, i32_only);        // [R, L]
  call.history_lengths = arguments.input(4, "history_lengths", 1, i32_only);
  call.ids = arguments.output(0, "ids", 1, i32_only);
  const int64_t R = call.logits.shape[0];
  for (const operand *tensor : {&call.logits, &call.parameters, &call.uniforms, &call.history, &call.history_lengths}) {
    arguments.unit_stride(*tensor, "every input");
  }
  arguments.shape(call.parameters, "parameters", {R, 4});
  arguments.shape(call.uniforms, "uniforms", {R});
  arguments.shape(call.history, "history", {R, call.history.shape[1]});
  arguments.shape(call.history_lengths, "history_lengths", {R});
  arguments.shape(call.ids, "ids", {R});
  EXPECT(call.logits.shape[1] > 0 || R == 0, "sample: expected logits of at least 1 id, got 0");
  return call;
}

size_t scratch(const op_arguments &arguments) { return size_t(round_up(read(arguments).logits.shape[1] * 12, 64)); }

struct sample_row {
  int64_t V;
  const float *logits;
  double temperature, top_k, top_p, penalty, uniform;
  const int32_t *history;
  int32_t history_length;
  double *weights;  // [V]: exp((logit - largest) / temperature), of the ids looked at
  int32_t *order;   // [V]: ids, the first `sorted` by falling weight
  int64_t sorted = 0;
  int32_t next_bucket = 0;  // weights of this bucket and beyond are not sorted yet
  int32_t in_bucket[buckets] = {};

  int32_t choose(const vector_ops &vectors);

 private:
  struct block_top {
    double logit;
    int64_t id;
  };
  std::vector<int32_t> seen;    // the history's ids, ascending, each once; none where the penalty is 1
  std::vector<block_top> tops;  // of each block the first NaN, else the first largest

  int64_t read_block(int64_t index, double (&logit)[block]) const;
  void find_tops(const vector_ops &vectors);
  block_top largest() const;
  double weight_of(double logit, double top) const { return exp((logit - top) / temperature); }
  double weigh_all(double top);
  void weigh_largest(int64_t count, double top);
  void sort(int64_t first, int64_t end);
  void sort_at_least(int64_t count);
  int64_t kept_of_top_p(int64_t kept, double total, double &kept_total);
  int32_t first_beyond(double target, int64_t kept);
};

// The logits of a block; returns how many. A seen id's is divided by the penalty if positive, else multiplied; once, however
// often it was seen.
int64_t sample_row::read_block(int64_t index, double (&logit)[block]) const {
  const int64_t first = index * block, count = std::min(V - first, block);
  for (int64_t i = 0; i < count; i++) logit[i] = double(logits[first + i]);
  for (auto id = std::lower_bound(seen.begin(), seen.end(), first); id != seen.end() && *id < first + count; id++) {
    double &value = logit[*id - first];
    value = value > 0 ? value / penalty : value * penalty;
  }
  return count;
}

void sample_row::find_tops(const vector_ops &vectors) {
  if (penalty != 1.0) seen.assign(history, history + history_length);
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  tops.resize(size_t((V + block - 1) / block));
  parallel_rows(int64_t(tops.size()), block, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; b++) {
      const int64_t id = b * block + vectors.argmax(logits + b * block, std::min(V - b * block, block));
      tops[size_t(b)] = {double(logits[id]), id};
    }
  });
  for (size_t i = 0; i < seen.size(); i++) {
    const int64_t b = seen[i] / block;
    if (i > 0 && seen[i - 1] / block == b) continue;
    double logit[block];
    const int64_t count = read_block(b, logit);
    int64_t best = 0;
    for (int64_t k = 0; k < count && !isnan(logit[best]); k++) {
      if (isnan(logit[k]) || logit[k] > logit[best]) best = k;
    }
    tops[size_t(b)] = {logit[best], b * block + best};
  }
}

sample_row::block_top sample_row::largest() const {
  block_top best = tops[0];
  for (const block_top &top : tops) {
    if (isnan(top.logit)) return top;
    if (top.logit > best.logit) best = top;
  }
  return best;
}

// Weighs every id; returns the sum.
double sample_row::weigh_all(double top) {
  std::vector<double> sums(size_t((V + chunk - 1) / chunk));
  parallel(int64_t(sums.size()), [&](int64_t index) {
    double sum = 0, logit[block];
    for (int64_t first = index * chunk; first < std::min(V, (index + 1) * chunk); first += block) {
      const int64_t count = read_block(first / block, logit);
      for (int64_t i = 0; i < count; i++) sum += weights[first + i] = weight_of(logit[i], top);
    }
    sums[size_t(index)] = sum;
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// Weighs and sorts the `count` ids of the largest weights, and some more: those whose logit is not below the count-th largest
// of the blocks' tops. As many ids reach that, so no id below it is among them, but for ids whose logits differ by so little
// that rounding makes their weights equal; those are taken in, too.
void sample_row::weigh_largest(int64_t count, double top) {
  std::vector<double> logit_of(tops.size());
  std::transform(tops.begin(), tops.end(), logit_of.begin(), [](const block_top &each) { return each.logit; });
  std::nth_element(logit_of.begin(), logit_of.begin() + (count - 1), logit_of.end(), std::greater<double>());
  const double bound = logit_of[size_t(count - 1)], least = bound - 1e-12 * (fabs(top) + fabs(bound) + temperature);
  int64_t found = 0;
  for (size_t b = 0; b < tops.size(); b++) {
    if (tops[b].logit < least) continue;
    double logit[block];
    const int64_t present = read_block(int64_t(b), logit);
    for (int64_t i = 0; i < present; i++) {
      if (logit[i] < least) continue;
      const int64_t id = int64_t(b) * block + i;
      weights[id] = weight_of(logit[i], top);
      order[found++] = int32_t(id);
    }
  }
  sort(0, found);
  sorted = found;
}

void sample_row::sort(int64_t first, int64_t end) {
  std::sort(order + first, order + end,
            [this](int32_t a, int32_t b) { return weights[a] > weights[b] || (weights[a] == weights[b] && a < b); });
}

// Falling with the weight, from 0 at weight 1: float64 bits, seen as an integer, rise with the number.
int32_t bucket_of(double weight) {
  uint64_t bits;
  memcpy(&bits, &weight, sizeof bits);
  return int32_t(std::min<uint64_t>((0x3ff0000000000000u - bits) >> 50, buckets - 1));
}

// Puts the ids of the `count` largest weights in front, in order. A few hundred usually do: whole buckets are picked and
// sorted, the rest is left alone.
void sample_row::sort_at_least(int64_t count) {
  if (sorted == 0) {
    for (int64_t i = 0; i < V; i++) in_bucket[bucket_of(weights[i])]++;
  }
  while (sorted < std::min(count, V)) {
    const int64_t wanted = std::min(V, std::max({count, first_sorted, 8 * sorted}));
    const int32_t first = next_bucket;
    for (int64_t found = sorted; found < wanted; next_bucket++) found += in_bucket[next_bucket];
    int64_t end = sorted;
    for (int64_t i = 0; i < V; i++) {
      const int32_t bucket = bucket_of(weights[i]);
      if (bucket >= first && bucket < next_bucket) order[end++] = int32_t(i);
    }
    sort(sorted, end);
    sorted = end;
  }
}

// The smallest number of ids, of the `kept` first, whose weights reach top_p of `total`; at least one.
int64_t sample_row::kept_of_top_p(int64_t kept, double total, double &kept_total) {
  double sum = 0;
  for (int64_t i = 0; i < kept; i++) {
    sort_at_least(i + 1);
    sum += weights[order[i]];
    if (sum >= top_p * total) {
      kept_total = sum;
      return i + 1;
    }
  }
  kept_total = sum;
  return kept;
}

int32_t sample_row::first_beyond(double target, int64_t kept) {
  double sum = 0;
  int32_t last = order[0];
  for (int64_t i = 0; i < kept; i++) {
    sort_at_least(i + 1);
    if (weights[order[i]] == 0) break;  // rounding kept the sum below the target
    last = order[i];
    sum += weights[last];
    if (sum > target) break;
  }
  return last;
}

int32_t sample_row::choose(const vector_ops &vectors) {
  find_tops(vectors);
  const auto [top, greedy] = largest();
  if (!(temperature > 0) || !isfinite(top)) return int32_t(greedy);
  double total;
  int64_t kept = V;
  if (top_k >= 1 && top_k < double(V)) {
    kept = int64_t(top_k);
    if (kept <= int64_t(tops.size()) / 2) weigh_largest(kept, top);
    else weigh_all(top);
    sort_at_least(kept);
    total = 0;
    for (int64_t i = 0; i < kept; i++) total += weights[order[i]];
  } else {
    total = weigh_all(top);
  }
  if (top_p < 1) kept = kept_of_top_p(kept, total, total);
  sort_at_least(1);
  return first_beyond(uniform * total, kept);
}

sample_row row_of(const sample_call &call, int64_t row, void *memory) {
  const int64_t V = call.logits.shape[1];
  const float *p = call.parameters.as<float>() + row * call.parameters.stride[0];
  sample_row result;
  result.V = V;
  result.logits = call.logits.as<float>() + row * call.logits.stride[0];
  result.temperature = p[0];
  result.top_k = p[1];
  result.top_p = p[2];
  result.penalty = p[3];
  result.uniform = call.uniforms.as<float>()[row];
  result.history = call.history.as<int32_t>() + row * call.history.stride[0];
  result.history_length = call.history_lengths.as<int32_t>()[row];
  result.weights = static_cast<double *>(memory);
  result.order = reinterpret_cast<int32_t *>(result.weights + V);
  return result;
}

void check_row(const sample_row &row, int64_t L) {
  EXPECT(row.penalty > 0, "sample: expected a repetition_penalty above 0, got %g", row.penalty);
  EXPECT(row.history_length >= 0 && row.history_length <= L, "sample: expected history_lengths from 0 to %lld, got %d",
         (long long)L, row.history_length);
  for (int32_t i = 0; i < row.history_length; i++) {
    EXPECT(row.history[i] >= 0 && row.history[i] < row.V, "sample: expected ids from 0 to %lld in history, got %d",
           (long long)(row.V - 1), row.history[i]);
  }
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const sample_call call = read(arguments);
  for (int64_t row = 0; row < call.logits.shape[0]; row++) {
    sample_row work = row_of(call, row, arguments.scratch());
    check_row(work, call.history.shape[1]);
    call.ids.as<int32_t>()[row] = work.choose(*isa.vectors);
  }
}

}  // namespace

const op_definition op_sample = {scratch, run};
