// What the processor and the operating system offer this process: instruction sets, name, threads, memory. No settings here.
#pragma once
#include <stdint.h>

#include <string>

// Why the instruction set is not usable here, empty where it is. Asking for AMX asks the kernel for the tile registers, once.
std::string avx2_missing();
std::string avx512_vnni_missing();
std::string amx_missing();

// Whether VDPBF16PS is there and faster than the float32 multiply-add: 1.8 times on a Zen 5, half as fast on a Sapphire
// Rapids, so not on processors with AMX (whose tiles are for bfloat16).
bool fast_avx512_bfloat16();
bool has_amx_bfloat16();

// "AMD EPYC 9B45", or "unknown processor".
std::string processor_name();

// Threads this process may use: the affinity mask, cut to the CPU quota of its cgroups, at least 1.
int32_t available_threads();

struct memory_info {
  uint64_t total_bytes;  // the machine's, or the lowest cgroup limit
  uint64_t free_bytes;   // what may still be taken: MemAvailable, or what is left below the lowest limit
};
memory_info available_memory();
