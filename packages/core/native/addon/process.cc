// Facts about this process and thread, from the kernel.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "functions.h"

namespace metashard::exported {

napi_value thread_id(Call &call) { return call.number(static_cast<double>(syscall(SYS_gettid))); }

// VmRSS and VmHWM of /proc/self/status are in KiB (proc(5)).
napi_value process_memory(Call &call) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE *)> status(std::fopen("/proc/self/status", "re"), std::fclose);
  if (status == nullptr) MS_FAIL(MS_UNAVAILABLE, "/proc/self/status: cannot be read");
  unsigned long long resident = 0, peak = 0;
  char line[256];
  while (std::fgets(line, sizeof(line), status.get()) != nullptr) {
    std::sscanf(line, "VmRSS: %llu kB", &resident);
    std::sscanf(line, "VmHWM: %llu kB", &peak);
  }
  const napi_value result = call.object();
  call.set(result, "residentBytes", call.number(static_cast<double>(resident) * 1024));
  call.set(result, "peakResidentBytes", call.number(static_cast<double>(peak) * 1024));
  return result;
}

}  // namespace metashard::exported
