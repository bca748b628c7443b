// See peer_copy.h.
#include "peer_copy.h"

#include <algorithm>
#include <cstring>

#include "stream.h"

namespace metashard::cuda {

namespace {

constexpr size_t half_bytes = size_t{4} << 20;
constexpr size_t probe_bytes = size_t{1} << 20;

// One side of the probe: device memory, pinned memory and a stream of one GPU.
struct ProbeSide {
  Gpu &gpu;
  CUdeviceptr memory = 0;
  void *host = nullptr;
  CUstream stream = nullptr;

  explicit ProbeSide(Gpu &on) : gpu(on) {}
  ProbeSide(const ProbeSide &) = delete;
  ProbeSide &operator=(const ProbeSide &) = delete;
  ~ProbeSide() {
    quietly([&] {
      make_current(gpu);
      if (stream != nullptr) driver().cuStreamDestroy_v2(stream);
      if (host != nullptr) driver().cuMemFreeHost(host);
      if (memory != 0) driver().cuMemFree_v2(memory);
    });
  }

  void open() {
    make_current(gpu);
    CU_CALL(cuStreamCreate, &stream, CU_STREAM_NON_BLOCKING);
    CU_CALL(cuMemHostAlloc, &host, probe_bytes, host_alloc_portable);
    CU_CALL(cuMemAlloc_v2, &memory, probe_bytes);
  }
};

// Bytes that no zeroed, shifted or repeated page resembles: the top byte of a linear congruential sequence (the constants of
// Knuth's MMIX).
void fill_pattern(void *host) {
  uint64_t state = 1;
  for (size_t i = 0; i < probe_bytes; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    static_cast<unsigned char *>(host)[i] = static_cast<unsigned char>(state >> 56);
  }
}

// Sends a pattern from one GPU to the other, reads it back there and compares every byte.
bool delivers_right_bytes(Gpu &from, Gpu &to) {
  ProbeSide source(from);
  ProbeSide destination(to);
  source.open();
  destination.open();
  fill_pattern(source.host);
  CU_CALL(cuMemsetD8Async, destination.memory, 0, probe_bytes, destination.stream);
  CU_CALL(cuStreamSynchronize, destination.stream);
  make_current(from);
  CU_CALL(cuMemcpyHtoDAsync_v2, source.memory, source.host, probe_bytes, source.stream);
  CU_CALL(cuMemcpyPeerAsync, destination.memory, to.context, source.memory, from.context, probe_bytes, source.stream);
  CU_CALL(cuStreamSynchronize, source.stream);
  make_current(to);
  CU_CALL(cuMemcpyDtoHAsync_v2, destination.host, destination.memory, probe_bytes, destination.stream);
  CU_CALL(cuStreamSynchronize, destination.stream);
  return std::memcmp(source.host, destination.host, probe_bytes) == 0;
}

// A pair that fails for any reason but a lost device is a pair without peer access.
bool succeeds(auto &&attempt) {
  try {
    return attempt();
  } catch (const Failure &failure) {
    if (failure.status == MS_DEVICE_LOST) throw;
    return false;
  }
}

bool enable_access(const Gpu &from, const Gpu &to) {
  int possible = 0;
  CU_CALL(cuDeviceCanAccessPeer, &possible, from.handle, to.handle);
  if (possible == 0) return false;
  make_current(from);
  const CUresult result = driver().cuCtxEnablePeerAccess(to.context, 0);
  if (result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) check(result, "cuCtxEnablePeerAccess");
  return true;
}

PeerLink try_link(Gpu &from, Gpu &to) {
  if (!succeeds([&] { return enable_access(from, to); })) return PeerLink::staged;
  if (succeeds([&] { return delivers_right_bytes(from, to); })) return PeerLink::direct;
  make_current(from);
  driver().cuCtxDisablePeerAccess(to.context);
  return PeerLink::staged;
}

struct PeerTable {
  std::mutex mutex;
  std::map<std::pair<int, int>, PeerLink> links;
};

PeerTable &peer_table() {
  static PeerTable *const table = new PeerTable;  // never destroyed, as the driver
  return *table;
}

}  // namespace

PeerLink peer_link(Gpu &from, Gpu &to) {
  PeerTable &table = peer_table();
  const std::lock_guard lock(table.mutex);
  const std::pair pair(from.ordinal, to.ordinal);
  if (const auto known = table.links.find(pair); known != table.links.end()) return known->second;
  const PeerLink link = try_link(from, to);
  table.links.emplace(pair, link);
  make_current(from);
  return link;
}

std::map<std::pair<int, int>, PeerLink> peer_links() {
  const std::lock_guard lock(peer_table().mutex);
  return peer_table().links;
}

void StagedLane::open() {
  make_current(to_);
  CU_CALL(cuStreamCreate, &drain_, CU_STREAM_NON_BLOCKING);
  for (Half &half : halves_) CU_CALL(cuEventCreate, &half.drained, CU_EVENT_DISABLE_TIMING);
  make_current(from_);
  for (Half &half : halves_) {
    CU_CALL(cuEventCreate, &half.filled, CU_EVENT_DISABLE_TIMING);
    CU_CALL(cuMemHostAlloc, &half.window, half_bytes, host_alloc_portable);
  }
}

StagedLane::~StagedLane() {
  quietly([&] {
    make_current(from_);
    for (Half &half : halves_) {
      if (half.window != nullptr) driver().cuMemFreeHost(half.window);
      if (half.filled != nullptr) driver().cuEventDestroy_v2(half.filled);
    }
    make_current(to_);
    for (Half &half : halves_) {
      if (half.drained != nullptr) driver().cuEventDestroy_v2(half.drained);
    }
    if (drain_ != nullptr) driver().cuStreamDestroy_v2(drain_);
  });
}

void StagedLane::copy(CUstream stream, CUdeviceptr source, CUdeviceptr destination, size_t bytes) {
  Half *last = nullptr;
  for (size_t done = 0, turn = 0; done < bytes; turn++) {
    const size_t step = std::min(half_bytes, bytes - done);
    Half &half = halves_[turn % 2];
    make_current(from_);
    // The first two turns need no wait: `stream` has waited for everything that an earlier copy drained.
    if (turn >= 2) CU_CALL(cuStreamWaitEvent, stream, half.drained, 0);
    CU_CALL(cuMemcpyDtoHAsync_v2, half.window, source + done, step, stream);
    CU_CALL(cuEventRecord, half.filled, stream);
    make_current(to_);
    CU_CALL(cuStreamWaitEvent, drain_, half.filled, 0);
    CU_CALL(cuMemcpyHtoDAsync_v2, destination + done, half.window, step, drain_);
    CU_CALL(cuEventRecord, half.drained, drain_);
    last = &half;
    done += step;
  }
  make_current(from_);
  CU_CALL(cuStreamWaitEvent, stream, last->drained, 0);
}

void copy_staged(ms_stream &stream, Gpu &from, CUdeviceptr source, Gpu &to, CUdeviceptr destination, size_t bytes) {
  auto lane = std::ranges::find_if(stream.lanes, [&](const auto &known) { return &known->destination() == &to; });
  if (lane == stream.lanes.end()) {
    auto opened = std::make_unique<StagedLane>(from, to);
    opened->open();
    lane = stream.lanes.insert(stream.lanes.end(), std::move(opened));
  }
  (*lane)->copy(stream.handle, source, destination, bytes);
}

}  // namespace metashard::cuda
