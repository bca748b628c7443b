// Drives a product over the key positions of one tile, tile of keys by tile of keys: scores, softmax, values, a block of query
// rows at a time, so that a block's scores never leave the nearest cache (tiled as Dao et al. 2022). Rows that see nothing of a
// tile of keys are skipped.
#pragma once
#include "isa/attention_state.h"

namespace {

// What each of the `count` rows sees of positions key … key + n - 1. Returns the end of what any of them sees, 0 if nothing.
inline int64_t find_seen(const tile_state &s, int64_t row, int count, int64_t key, int64_t n, seen_range *seen) {
  int64_t end = 0;
  for (int m = 0; m < count; m++) {
    const int64_t from = s.first_seen[row + m] - key, to = s.end_seen[row + m] - key;
    seen[m] = {from > 0 ? from : 0, to < n ? to : n};
    if (seen[m].from >= seen[m].to) seen[m] = {0, 0};
    end = seen[m].to > end ? seen[m].to : end;
  }
  return end;
}

// Positions key … key + n - 1. A product has:
//   take_keys(s, n), take_values(s, n): bring the tile's rows (s.now) into the form it multiplies, prefetch s.ahead
//   rows_at_once(left): how many rows of those left go together
//   scores(s, row, count, columns): s.scores of the rows, of at least so many positions
//   add_values(s, row, count, seen, first_block): s.sums += s.scores · values
template <class Product>
inline void attend(tile_state &s, Product &product, int64_t key, int64_t n) {
  product.take_keys(s, n);
  product.take_values(s, n);
  seen_range seen[most_block_rows];
  bool first_block = true;
  for (int64_t row = 0; row < s.rows;) {
    const int count = product.rows_at_once(s.rows - row);
    if (const int64_t columns = find_seen(s, row, count, key, n, seen)) {
      product.scores(s, row, count, columns);
      for (int m = 0; m < count; m++) {
        if (seen[m].from < seen[m].to) weigh_scores(s, row + m, key, seen[m], s.scores + m * s.keys_per_tile);
      }
      product.add_values(s, row, count, seen, first_block);
      first_block = false;
    }
    row += count;
  }
}

template <class Product>
void run_tile(const attention_tile *t) {
  tile_state s;
  start_tile(s, t, (float *)thread_workspace());
  prefetch_rows(s);
  Product product;
  product.start(s);
  s.now = &s.lists[0];
  if (t->keys_begin < t->keys_end) list_tile(s, t->keys_begin, *s.now);
  for (int64_t key = t->keys_begin; key < t->keys_end; key += s.keys_per_tile) {
    const int64_t next = key + s.keys_per_tile, n = next < t->keys_end ? s.keys_per_tile : t->keys_end - key;
    s.ahead = next < t->keys_end ? &s.lists[s.now == &s.lists[0]] : s.now;
    if (next < t->keys_end) list_tile(s, next, *s.ahead);
    attend(s, product, key, n);
    s.now = s.ahead;
  }
  finish_tile(s);
}

}  // namespace
