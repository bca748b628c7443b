// Reads CPUID, /proc and the cgroup files. Files that are missing or odd count as "no limit".
#include "processor.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>
#if defined(MS_X86)
#include <cpuid.h>
#endif

namespace {

#if defined(MS_X86)
constexpr int arch_req_xcomp_perm = 0x1023;  // linux/arch/x86: asks for a dynamic register feature
constexpr int xfeature_xtiledata = 18;

// AMX-TILE with AMX-INT8 (bit 25 of leaf 7) or AMX-BF16 (bit 22).
bool has_amx(int kind) {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (edx >> 24 & 1) != 0 && (edx >> kind & 1) != 0;
}
constexpr int amx_int8 = 25, amx_bfloat16 = 22;

std::string lacking(std::initializer_list<std::pair<bool, const char *>> features) {
  for (auto [present, name] : features) {
    if (!present) return std::string("the processor has no ") + name;
  }
  return "";
}
#else
constexpr const char *other_architecture = "the processor is not x86-64";
#endif

std::string first_line(const std::string &path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// A number of bytes in a file; "max" and absurdly large values mean no limit.
uint64_t limit_in(const std::string &path) {
  const std::string line = first_line(path);
  if (line.empty() || line[0] < '0' || line[0] > '9') return UINT64_MAX;
  const uint64_t value = strtoull(line.c_str(), nullptr, 10);
  return value >= (uint64_t(1) << 60) ? UINT64_MAX : value;
}

// The number after `name` in a file of "name value" lines, or 0.
uint64_t field_in(const std::string &path, const std::string &name) {
  std::ifstream file(path);
  std::string key;
  uint64_t value;
  for (std::string line; std::getline(file, line);) {
    if (std::istringstream(line) >> key >> value && key == name) return value;
  }
  return 0;
}

bool in_list(const std::string &list, const std::string &word) {
  std::istringstream words(list);
  for (std::string each; std::getline(words, each, ',');) {
    if (each == word) return true;
  }
  return false;
}

// Folders of this process's cgroup and all above it, deepest first, for a v1 controller or (empty) v2.
std::vector<std::string> cgroup_folders(const std::string &controller) {
  const std::string root = controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
  std::string path;
  std::ifstream file("/proc/self/cgroup");  // lines "id:controllers:/path"; v2 has id 0 and no controllers
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? controllers.empty() : in_list(controllers, controller)) {
      path = line.substr(second + 1);
    }
  }
  std::vector<std::string> folders;
  for (; path.size() > 1; path.resize(path.rfind('/'))) folders.push_back(root + path);
  folders.push_back(root);
  return folders;
}

struct memory_files {
  const char *controller, *limit, *usage, *inactive;
};
constexpr memory_files memory_versions[] = {
    {"", "memory.max", "memory.current", "inactive_file"},
    {"memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
};

// Page cache that can be dropped at once counts as free, as in MemAvailable.
void apply_limit(const std::string &folder, const memory_files &files, memory_info &info) {
  const uint64_t limit = limit_in(folder + "/" + files.limit);
  if (limit == UINT64_MAX) return;
  const uint64_t usage = limit_in(folder + "/" + files.usage);
  const uint64_t inactive = field_in(folder + "/memory.stat", files.inactive);
  const uint64_t held = usage == UINT64_MAX ? 0 : usage > inactive ? usage - inactive : 0;
  info.total_bytes = std::min(info.total_bytes, limit);
  info.free_bytes = std::min(info.free_bytes, limit > held ? limit - held : 0);
}

// CPUs of the quota of one cgroup folder, rounded up; INT32_MAX without one.
int32_t quota_in(const std::string &folder, bool v2) {
  std::string quota_text;
  double period = 0;
  if (v2) {
    std::istringstream(first_line(folder + "/cpu.max")) >> quota_text >> period;
  } else {
    quota_text = first_line(folder + "/cpu.cfs_quota_us");
    period = atof(first_line(folder + "/cpu.cfs_period_us").c_str());
  }
  const double quota = atof(quota_text.c_str());  // "max" and -1 are no quota
  if (!(quota > 0) || !(period > 0)) return INT32_MAX;
  return std::max(1, int32_t(std::min(4096.0, (quota + period - 1) / period)));
}

int32_t affinity_threads() {
  for (int cpus = 1024; cpus <= 1 << 18; cpus *= 4) {
    cpu_set_t *set = CPU_ALLOC(cpus);
    if (set == nullptr) return 1;
    const bool read = sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), set) == 0;
    const int32_t count = read ? CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set) : 0;
    CPU_FREE(set);
    if (read) return std::max(1, count);
  }
  return 1;
}

}  // namespace

std::string avx2_missing() {
#if defined(MS_X86)
  return lacking({{__builtin_cpu_supports("avx2"), "AVX2"},
                  {__builtin_cpu_supports("fma"), "FMA"},
                  {__builtin_cpu_supports("f16c"), "F16C"}});
#else
  return other_architecture;
#endif
}

std::string avx512_vnni_missing() {
#if defined(MS_X86)
  if (std::string below = avx2_missing(); !below.empty()) return below;
  return lacking({{__builtin_cpu_supports("avx512f"), "AVX512F"},
                  {__builtin_cpu_supports("avx512bw"), "AVX512BW"},
                  {__builtin_cpu_supports("avx512vl"), "AVX512VL"},
                  {__builtin_cpu_supports("avx512dq"), "AVX512DQ"},
                  {__builtin_cpu_supports("avx512vnni"), "AVX512-VNNI"}});
#else
  return other_architecture;
#endif
}

std::string amx_missing() {
#if defined(MS_X86)
  if (std::string below = avx512_vnni_missing(); !below.empty()) return below;
  if (!has_amx(amx_int8)) return "the processor has no AMX-INT8";
  static const bool granted = syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
  return granted ? "" : "the operating system does not grant the AMX tile registers";
#else
  return other_architecture;
#endif
}

bool fast_avx512_bfloat16() {
#if defined(MS_X86)
  return __builtin_cpu_supports("avx512bf16") && !has_amx_bfloat16();
#else
  return false;
#endif
}

bool has_amx_bfloat16() {
#if defined(MS_X86)
  return has_amx(amx_bfloat16);
#else
  return false;
#endif
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t start = line.find_first_not_of(" \t", line.find(':') + 1);
    if (start != std::string::npos) return line.substr(start);
  }
  return "unknown processor";
}

int32_t available_threads() {
  int32_t threads = affinity_threads();
  for (const std::string &folder : cgroup_folders("")) threads = std::min(threads, quota_in(folder, true));
  for (const std::string &folder : cgroup_folders("cpu")) threads = std::min(threads, quota_in(folder, false));
  return threads;
}

memory_info available_memory() {
  memory_info info = {field_in("/proc/meminfo", "MemTotal:") * 1024, field_in("/proc/meminfo", "MemAvailable:") * 1024};
  for (const memory_files &files : memory_versions) {
    for (const std::string &folder : cgroup_folders(files.controller)) apply_limit(folder, files, info);
  }
  return info;
}
