// Copies between two GPUs: directly where peer access exists and was seen to deliver the right bytes, else through pinned host
// memory. (On some machines an IOMMU or a virtual machine breaks peer copies that the driver calls possible.)
#pragma once
#include <map>
#include <utility>

#include "device.h"

struct ms_stream;

namespace metashard::cuda {

enum class PeerLink { direct, staged };

// How `from` copies to `to`; both are open. The first question about a pair enables peer access and tries it with known bytes,
// which allocates: a graph capture must not be the first to copy between two GPUs.
PeerLink peer_link(Gpu &from, Gpu &to);

// The answers so far, by ordinals (from, to).
std::map<std::pair<int, int>, PeerLink> peer_links();

// The way of one stream to one other GPU: a pinned window of two halves, filled by the stream and drained by a stream of the
// destination, so that both directions of the bus are busy.
class StagedLane {
 public:
  StagedLane(Gpu &from, Gpu &to) : from_(from), to_(to) {}
  ~StagedLane();
  StagedLane(const StagedLane &) = delete;
  StagedLane &operator=(const StagedLane &) = delete;

  void open();
  const Gpu &destination() const { return to_; }
  // In the order of `stream`, which belongs to `from`: what it runs later finds the bytes at their destination.
  void copy(CUstream stream, CUdeviceptr source, CUdeviceptr destination, size_t bytes);

 private:
  struct Half {
    void *window = nullptr;
    CUevent filled = nullptr;   // of `from`
    CUevent drained = nullptr;  // of `to`
  };
  Gpu &from_;
  Gpu &to_;
  CUstream drain_ = nullptr;  // of `to`
  Half halves_[2];
};

// Copies over the stream's lane to `to`, opening it on first use.
void copy_staged(ms_stream &stream, Gpu &from, CUdeviceptr source, Gpu &to, CUdeviceptr destination, size_t bytes);

}  // namespace metashard::cuda
