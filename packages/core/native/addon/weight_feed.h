// Weights brought to a device while it computes: portions (the weights of a block) are copied from host memory, or read from a
// file through pinned memory, into a window of the device's memory, by a thread and a stream of their own. Events order the two
// streams: a portion is computed on after its copy, and its place is written again after its last use. Which portions there are,
// and when each is wanted, the caller decides. Not for devices that read host memory: those compute on the mapped file.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "file.h"
#include "memory.h"

namespace metashard {

class WeightFeed {
 public:
  // Bytes from `file`, or from `host` where that is null, to `offset` within the portion.
  struct Piece {
    std::shared_ptr<File> file;
    BufferRef host;
    uint64_t source = 0, offset = 0, bytes = 0;
  };
  // A range of the window and what fills it.
  struct Portion {
    uint64_t offset = 0, bytes = 0;
    std::vector<Piece> pieces;
  };

  // `window` is device memory of the context. What files hold passes through pinned memory of the window's size. Throws.
  WeightFeed(ContextRef context, BufferRef window, std::vector<Portion> portions);
  ~WeightFeed();
  WeightFeed(const WeightFeed &) = delete;
  WeightFeed &operator=(const WeightFeed &) = delete;

  size_t size() const { return lanes_.size(); }
  // Has a portion brought after those asked for before; returns at once. One under way or in place is left as it is. Portions
  // that overlap it are forgotten: they must be asked for again.
  void ask(size_t portion);
  // Waits until an asked portion's bytes are on their way, and orders later work of the context behind them. Throws what reading
  // or copying threw; the portion may then be asked for again.
  void wait(size_t portion);
  // The context's work so far was the last that uses the portion: its place may be written once that is done.
  void used(size_t portion);
  // Forgets everything asked for, after all work is done.
  void reset();

 private:
  enum class State { idle, asked, ready, failed };
  struct Lane {
    Portion portion;
    State state = State::idle;
    uint64_t ticket = 0;  // of the latest ask
    std::exception_ptr error;
    ms_event *copied = nullptr, *last_use = nullptr;
    bool was_copied = false, was_used = false;
  };
  void open();
  void close() noexcept;
  void run();
  void bring(Lane &lane);
  void copy_from_file(const Lane &lane, const Piece &piece);
  const ms_backend_v1 &api() const { return context_->api(); }

  const ContextRef context_;
  const BufferRef window_;
  std::vector<Lane> lanes_;
  ms_context *handle_ = nullptr;  // the feeding thread's own
  ms_stream *stream_ = nullptr;
  std::byte *pinned_ = nullptr;
  std::mutex mutex_;  // over lanes' states, the queue and the flags
  std::condition_variable changed_;
  std::deque<size_t> queue_;
  bool busy_ = false, stopped_ = false;
  std::thread thread_;
};

IdTable<WeightFeed, IdKind::feed> &feeds();

}  // namespace metashard
