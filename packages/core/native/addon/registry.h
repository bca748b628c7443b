// Backends of this process, by name. Once loaded they stay: references are good until the process ends.
#pragma once
#include <string>

#include "metashard/backend.h"

namespace metashard {

struct Backend {
  std::string name;
  std::string path;
  ms_backend_v1 api{};  // optional slots that an older backend lacks are null
  bool initialized = false;
};

// The loaded backend of that name. Throws.
const Backend &backend_named(const std::string &name);

}  // namespace metashard
