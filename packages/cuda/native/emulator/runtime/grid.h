// Runs all blocks of a launch, on the calling host thread and, where it takes long enough to be worth it, on helpers: one for
// each further processor, shared by all devices.
#pragma once
#include "block_runner.h"

namespace metashard::emulator {

// Returns when every block has run or one has failed; then `failure` says how, and what the others did is undefined.
bool run_grid(const GridLaunch &launch, KernelFailure &failure);

}  // namespace metashard::emulator
