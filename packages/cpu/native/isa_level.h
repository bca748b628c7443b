// Instruction set levels: which this processor has, and the one in use with its two tables of functions.
#pragma once
#include <string>

#include "kernels.h"
#include "vector_ops.h"

struct isa_level {
  const char *name;          // as in METASHARD_CPU_ISA
  std::string (*missing)();  // why this processor lacks it, empty where it has it
};

// portable, avx2, avx512-vnni, amx: each includes those before it. Last, only on request: amx-emulated, the AMX kernels over plain C++ tiles.
constexpr int isa_count = 5;
extern const isa_level isa_levels[isa_count];

struct isa_tables {
  const char *name;
  cpu_kernels kernels;
  const vector_ops *vectors;
};

// Index in isa_levels of the name, or -1.
int find_isa(const std::string &name);
int best_isa();

// Makes a level that is not missing the one in use, from the next op on.
void use_isa(int level);
const isa_tables &active_isa();
