// The warp-wide matrix instructions, after the fragment tables of the PTX ISA ("Warp Level Matrix Multiply-Accumulate
// Instructions", mma.m16n8k32 and mma.m16n8k16; ldmatrix). Lane l is row group g = l / 4 and column t = l % 4 of a fragment.
// int8 is exact; the float products are summed in double and rounded once, so a GPU's last bits may differ.
#include <cstring>

#include "block_runner.h"

using metashard::emulator::BlockRunner;
using namespace metashard::cuda;

namespace simt {

namespace {

MatrixProduct &product_of(void **arguments, int lane) { return *static_cast<MatrixProduct *>(arguments[lane]); }

float half_value(uint16_t bits) { return to_float(ms_half{bits}); }
float bfloat16_value(uint16_t bits) { return to_float(ms_bfloat16{bits}); }

// A [16, 16], row g: a0 (columns 2t, 2t + 1), a2 (8 further); row g + 8: a1, a3. B [16, 8], column g: b0 (rows 2t, 2t + 1),
// b1 (8 further). D [16, 8], columns 2t, 2t + 1: row g d0, d1; row g + 8 d2, d3.
template <class Value>
void matrix_product_16(void **arguments, Value &&value) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; lane++) {
    const MatrixProduct &mine = product_of(arguments, lane);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; half++) {
      const auto element = [&](unsigned word) { return value(static_cast<uint16_t>(word >> 16 * half)); };
      const int k = 2 * t + half;
      a[g][k] = element(mine.a[0]);
      a[g + 8][k] = element(mine.a[1]);
      a[g][k + 8] = element(mine.a[2]);
      a[g + 8][k + 8] = element(mine.a[3]);
      b[g][k] = element(mine.b[0]);
      b[g][k + 8] = element(mine.b[1]);
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    auto *d = static_cast<float *>(product_of(arguments, lane).d);
    for (int r = 0; r < 4; r++) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      double sum = d[r];
      for (int k = 0; k < 16; k++) sum += static_cast<double>(a[row][k]) * b[column][k];
      d[r] = static_cast<float>(sum);
    }
  }
}

// Matrix i of four 8 × 8: lane 8 i + r gave the address of its row r. Register i of a lane gets two neighbours of row l / 4.
template <class Element>
void load_matrices(void **arguments, Element &&element) {
  uint16_t rows[32][8];
  for (int lane = 0; lane < 32; lane++) {
    const void *row = static_cast<MatrixLoad *>(arguments[lane])->row;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      BlockRunner::running().fail(CUDA_ERROR_MISALIGNED_ADDRESS,
                                  "ldmatrix: the row address of lane " + std::to_string(lane) + " is no multiple of 16");
    }
    std::memcpy(rows[lane], row, 16);
  }
  for (int lane = 0; lane < 32; lane++) {
    unsigned *registers = static_cast<MatrixLoad *>(arguments[lane])->registers;
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4, column = 2 * (lane % 4);
      registers[i] = element(rows + 8 * i, row, column) | static_cast<unsigned>(element(rows + 8 * i, row, column + 1)) << 16;
    }
  }
}

}  // namespace

// A [16, 32], row g: a0 (columns 4t … 4t + 3), a2 (16 further); row g + 8: a1, a3. B [32, 8], column g: b0 (rows
// 4t … 4t + 3), b1 (16 further). D as above.
void matrix_product_s8(void **arguments, unsigned) {
  int8_t a[16][32], b[8][32];
  for (int lane = 0; lane < 32; lane++) {
    const MatrixProduct &mine = product_of(arguments, lane);
    const int g = lane / 4, k = 4 * (lane % 4);
    std::memcpy(&a[g][k], &mine.a[0], 4);
    std::memcpy(&a[g + 8][k], &mine.a[1], 4);
    std::memcpy(&a[g][k + 16], &mine.a[2], 4);
    std::memcpy(&a[g + 8][k + 16], &mine.a[3], 4);
    std::memcpy(&b[g][k], &mine.b[0], 4);
    std::memcpy(&b[g][k + 16], &mine.b[1], 4);
  }
  for (int lane = 0; lane < 32; lane++) {
    auto *d = static_cast<int *>(product_of(arguments, lane).d);
    for (int r = 0; r < 4; r++) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      int sum = 0;
      for (int k = 0; k < 32; k++) sum += a[row][k] * b[column][k];
      d[r] = static_cast<int>(static_cast<unsigned>(d[r]) + static_cast<unsigned>(sum));
    }
  }
}

void matrix_product_f16(void **arguments, unsigned) { matrix_product_16(arguments, half_value); }

void matrix_product_bf16(void **arguments, unsigned) {
  BlockRunner &runner = BlockRunner::running();
  if (!runner.launch().bfloat16_matrices) {
    runner.fail(CUDA_ERROR_LAUNCH_FAILED, "multiplies bfloat16 matrices, which devices before sm_80 cannot");
  }
  matrix_product_16(arguments, bfloat16_value);
}

void matrix_load(void **arguments, unsigned) {
  load_matrices(arguments, [](const uint16_t(*matrix)[8], int row, int column) { return matrix[row][column]; });
}
void matrix_load_transposed(void **arguments, unsigned) {
  load_matrices(arguments, [](const uint16_t(*matrix)[8], int row, int column) { return matrix[column][row]; });
}

}  // namespace simt
