// What stands behind the interface's opaque streams. A stream also owns the pinned windows of its copies to GPUs that cannot
// be written directly (peer_copy.h), because its order is what makes their reuse safe.
#pragma once
#include <memory>
#include <vector>

#include "device.h"
#include "peer_copy.h"

struct ms_stream {
  metashard::cuda::CUstream handle = nullptr;
  std::vector<std::unique_ptr<metashard::cuda::StagedLane>> lanes;  // one for each GPU copied to through host memory
};
