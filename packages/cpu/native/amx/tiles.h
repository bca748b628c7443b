// The operations of AMX-INT8 and AMX-BF16 that the kernels in int8_tiles.h and bfloat16_tiles.h are written over: configure,
// zero, load, dot (of either kind), store; and their plain C++ twin, so that the same kernels are tested on processors
// without AMX. Tiles 0 … 7 all have 16 rows of 64 bytes. (Intel SDM, volume 1 chapter 18 and volume 2: LDTILECFG, TILEZERO,
// TILELOADD, TDPBSSD, TDPBF16PS, TILESTORED.)
#pragma once
#include <stdint.h>
#include <string.h>

#include "floats.h"

namespace {

// The processor's tiles. Configures them for this thread while it exists; the process must have been granted the tile state.
class amx_tiles {
 public:
  amx_tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64);
    asm volatile("ldtilecfg %0" : : "m"(configuration));
  }
  ~amx_tiles() { asm volatile("tilerelease"); }
  amx_tiles(const amx_tiles &) = delete;
  amx_tiles &operator=(const amx_tiles &) = delete;

  template <int tile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // 16 rows of 64 bytes, `stride` bytes apart.
  template <int tile>
  void load(const void *rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(tile) : "memory");
  }
  // sums[m][n] += Σ over 64 k of a[m][k] · b[k/4][n][k%4], int8 products in int32.
  template <int sums, int a, int b>
  void dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
  }
  // sums[m][n] += Σ over 32 k of a[m][k] · b[k/2][n][k%2], bfloat16 products in float32.
  template <int sums, int a, int b>
  void dot_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
  }
  template <int tile>
  void store(void *rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(tile) : "memory");
  }
};

// The same in plain loops.
class plain_tiles {
 public:
  template <int tile>
  void zero() {
    memset(tiles_[tile], 0, sizeof tiles_[tile]);
  }
  template <int tile>
  void load(const void *rows, int64_t stride) {
    for (int64_t r = 0; r < 16; r++) memcpy(tiles_[tile] + r * 64, static_cast<const int8_t *>(rows) + r * stride, 64);
  }
  template <int sums, int a, int b>
  void dot() {
    for (int m = 0; m < 16; m++) {
      uint32_t row[16];  // sums wrap
      memcpy(row, tiles_[sums] + m * 64, 64);
      for (int k = 0; k < 64; k++) {
        const int32_t factor = tiles_[a][m * 64 + k];
        for (int n = 0; n < 16; n++) row[n] += static_cast<uint32_t>(factor * tiles_[b][k / 4 * 64 + n * 4 + k % 4]);
      }
      memcpy(tiles_[sums] + m * 64, row, 64);
    }
  }
  template <int sums, int a, int b>
  void dot_bfloat16() {
    for (int m = 0; m < 16; m++) {
      float row[16];
      memcpy(row, tiles_[sums] + m * 64, 64);
      for (int k = 0; k < 32; k++) {
        const float factor = bfloat16_at(tiles_[a], m * 32 + k);
        for (int n = 0; n < 16; n++) row[n] += factor * bfloat16_at(tiles_[b], k / 2 * 32 + n * 2 + k % 2);
      }
      memcpy(tiles_[sums] + m * 64, row, 64);
    }
  }
  template <int tile>
  void store(void *rows, int64_t stride) {
    for (int64_t r = 0; r < 16; r++) memcpy(static_cast<int8_t *>(rows) + r * stride, tiles_[tile] + r * 64, 64);
  }

 private:
  static float bfloat16_at(const int8_t *tile, int index) {
    uint16_t bits;
    memcpy(&bits, tile + index * 2, 2);
    return bfloat16_to_float(bits);
  }

  alignas(64) int8_t tiles_[8][16 * 64] = {};
};

}  // namespace
