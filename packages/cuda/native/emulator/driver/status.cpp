// See status.h. The entry points cuGetErrorName, cuGetErrorString.
#include "status.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>

#include "driver.h"

namespace metashard::emulator {

namespace {

struct Named {
  CUresult status;
  const char *name;
};

constexpr Named named[] = {
#define X(name, value) {static_cast<CUresult>(value), #name},
    MS_CU_RESULTS(X) MS_EMULATED_RESULTS(X)
#undef X
};

thread_local struct {
  CUresult status = CUDA_SUCCESS;
  std::string what;
} last_refusal;

// "CUDA_ERROR_ILLEGAL_ADDRESS" in words: "illegal address".
std::string words_of(const char *name) {
  std::string words = name;
  for (const char *prefix : {"CUDA_ERROR_", "CUDA_"}) {
    if (words.starts_with(prefix)) words.erase(0, std::strlen(prefix));
  }
  for (char &c : words) c = c == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return words;
}

const char *name_of(CUresult status) {
  const auto *found = std::ranges::find(named, status, &Named::status);
  return found == std::end(named) ? nullptr : found->name;
}

}  // namespace

CUresult refuse(CUresult status, std::string what) {
  last_refusal.status = status;
  last_refusal.what = std::move(what);
  return status;
}

MS_ENTRY cuGetErrorName(CUresult status, const char **name) {
  *name = name_of(status);
  return *name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

MS_ENTRY cuGetErrorString(CUresult status, const char **text) {
  thread_local std::string kept;
  const char *name = name_of(status);
  *text = nullptr;
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  kept = last_refusal.status == status && !last_refusal.what.empty() ? last_refusal.what : words_of(name);
  *text = kept.c_str();
  return CUDA_SUCCESS;
}

}  // namespace metashard::emulator
