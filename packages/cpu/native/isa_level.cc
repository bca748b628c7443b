// See isa_level.h. A level's kernels start as those of the level below and are overwritten by what the level has.
#include "isa_level.h"

#include <atomic>
#include <mutex>

#if defined(MS_HAVE_AMX)
#include "amx/entries.h"
#endif
#include "processor.h"

namespace {

std::string nothing_missing() { return ""; }

std::atomic<const isa_tables *> active{nullptr};

void add_level(int level, isa_tables &tables) {
#if defined(MS_X86)
  if (level == 1) tables.vectors = &vector_ops_avx2;
  if (level == 2) tables.vectors = &vector_ops_avx512;
#endif
#if defined(MS_HAVE_AVX2)
  if (level == 1) kernels_avx2(&tables.kernels);
#endif
#if defined(MS_HAVE_AVX512)
  if (level == 2) kernels_avx512(&tables.kernels);
  if (level == 2 && fast_avx512_bfloat16()) kernels_avx512_bfloat16(&tables.kernels);
#endif
#if defined(MS_HAVE_AMX)
  if (level == 3) kernels_amx(&tables.kernels);
  if (level == 3 && has_amx_bfloat16()) kernels_amx_bfloat16(&tables.kernels);
  if (level == 4) kernels_amx_emulated(&tables.kernels);
#endif
}

isa_tables build_tables(int level) {
  isa_tables tables = {isa_levels[level].name, *kernels_portable(), &vector_ops_portable};
  for (int below = 1; below <= level; below++) add_level(below, tables);
  return tables;
}

// Built once a level and kept: ops that run while the level changes finish on the one they started with.
const isa_tables *tables_of(int level) {
  static std::mutex mutex;
  static const isa_tables *built[isa_count] = {};
  const std::lock_guard<std::mutex> lock(mutex);
  if (built[level] == nullptr) built[level] = new isa_tables(build_tables(level));
  return built[level];
}

}  // namespace

const isa_level isa_levels[isa_count] = {
    {"portable", nothing_missing},
    {"avx2", avx2_missing},
    {"avx512-vnni", avx512_vnni_missing},
    {"amx", amx_missing},
    {"amx-emulated", avx512_vnni_missing},
};

int find_isa(const std::string &name) {
  for (int level = 0; level < isa_count; level++) {
    if (name == isa_levels[level].name) return level;
  }
  return -1;
}

int best_isa() {
  int best = 0;
  for (int level = 1; level < isa_count - 1; level++) {
    if (isa_levels[level].missing().empty()) best = level;
  }
  return best;
}

void use_isa(int level) { active.store(tables_of(level)); }

const isa_tables &active_isa() {
  if (active.load() == nullptr) use_isa(best_isa());  // an op before initialize
  return *active.load();
}
