// What METASHARD_CUDA_EMULATED and METASHARD_EMULATOR ask for.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace metashard::emulator {

struct DeviceSetting {
  uint64_t bytes = 0;
  int compute_major = 8;
  int compute_minor = 0;
};

struct Settings {
  std::vector<DeviceSetting> devices;
  // Nothing runs before somebody waits for it, and then only what that wait needs: what a program does not wait for is late.
  bool lazy = false;
  // The order of blocks, threads and streams; 0: the plain one. See GridLaunch::seed.
  uint64_t seed = 0;
};

// Reads both variables' values, null or empty meaning unset. False, with one sentence in `why`, when they cannot be understood.
//   devices: "4x2GiB", "2GiB,2GiB,64MiB", "2x80GiB@sm_90,8GiB@sm_75"      words: "lazy", "seed=2", "lazy,seed=2"
bool read_settings(const char *devices, const char *words, Settings &settings, std::string &why);

}  // namespace metashard::emulator
