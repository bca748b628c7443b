// Failures inside the plugin: thrown where they are met, turned into an ms_error at the C boundary (`guarded`), with the
// driver's status, name and text and the file and line of the call. Messages carry no device name: the addon's caller adds it.
#pragma once
#include <cstdint>
#include <exception>
#include <metashard/backend.h>
#include <new>
#include <source_location>
#include <string>

#include "cu.h"
#include "op_arguments.h"

namespace metashard::cuda {

struct Failure {
  ms_status status;
  CUresult native;
  std::source_location where;
  std::string message;
};

using Where = std::source_location;

// Throws a failure of our own making.
[[noreturn]] void refuse(ms_status status, std::string message, Where where = Where::current());

// What a driver status means to the addon: out of memory, device lost (every sticky error), …
ms_status status_of(CUresult result);

// "1.5 GiB", "512 bytes"
std::string size_text(uint64_t bytes);

int report(const Failure &failure, ms_error *error) noexcept;

// Runs one slot of the interface; nothing thrown inside leaves it.
template <class Body>
int guarded(ms_error *error, Body &&body) noexcept {
  try {
    body();
    return MS_OK;
  } catch (const Failure &failure) {
    return report(failure, error);
  } catch (const op_failure &refused) {
    *error = refused.error;
    return error->status;
  } catch (const std::bad_alloc &) {
    return report({MS_OUT_OF_MEMORY, CUDA_SUCCESS, Where::current(), "host memory is exhausted"}, error);
  } catch (const std::exception &e) {
    return report({MS_INTERNAL, CUDA_SUCCESS, Where::current(), e.what()}, error);
  }
}

// For the slots that return nothing: destroying what belongs to a lost device fails, and there is nobody to tell.
template <class Body>
void quietly(Body &&body) noexcept {
  ms_error ignored;
  guarded(&ignored, body);
}

}  // namespace metashard::cuda
