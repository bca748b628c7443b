// The feeding thread, and the functions that JavaScript drives it by.
#include "weight_feed.h"

#include <algorithm>

#include "functions.h"
#include "tensor_words.h"

namespace metashard {
namespace {

// A file's bytes are copied on as soon as so many are read.
constexpr uint64_t kReadBytes = uint64_t{8} << 20;

bool overlap(const WeightFeed::Portion &a, const WeightFeed::Portion &b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

}  // namespace

IdTable<WeightFeed, IdKind::feed> &feeds() {
  static auto &table = *new IdTable<WeightFeed, IdKind::feed>;
  return table;
}

WeightFeed::WeightFeed(ContextRef context, BufferRef window, std::vector<Portion> portions)
    : context_(std::move(context)), window_(std::move(window)), lanes_(portions.size()) {
  for (size_t i = 0; i < portions.size(); i++) lanes_[i].portion = std::move(portions[i]);
  try {
    open();
    thread_ = std::thread([this] { run(); });
  } catch (...) {
    close();
    throw;
  }
}

WeightFeed::~WeightFeed() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
  close();
}

void WeightFeed::open() {
  ms_error error{};
  check(api().context_open(context_->device, &handle_, &error), error);
  check(api().stream_create(handle_, &stream_, &error), error);
  bool reads = false;
  for (Lane &lane : lanes_) {
    check(api().event_create(handle_, &lane.copied, &error), error);
    check(api().event_create(handle_, &lane.last_use, &error), error);
    for (const Piece &piece : lane.portion.pieces) reads |= piece.file != nullptr;
  }
  if (!reads) return;
  void *pinned = nullptr;
  check(api().memory_allocate(handle_, window_->bytes, MS_MEMORY_PINNED, &pinned, &error), error);
  pinned_ = static_cast<std::byte *>(pinned);
}

void WeightFeed::close() noexcept {
  if (handle_ == nullptr) return;
  ms_error ignored{};
  if (stream_ != nullptr) api().stream_synchronize(handle_, stream_, &ignored);
  for (Lane &lane : lanes_) {
    for (ms_event *event : {lane.copied, lane.last_use}) {
      if (event != nullptr) api().event_destroy(handle_, event);
    }
  }
  if (pinned_ != nullptr) api().memory_free(handle_, pinned_, window_->bytes, MS_MEMORY_PINNED, &ignored);
  if (stream_ != nullptr) api().stream_destroy(handle_, stream_);
  api().context_close(handle_);
}

void WeightFeed::ask(size_t portion) {
  {
    const std::lock_guard lock(mutex_);
    Lane &lane = lanes_[portion];
    if (lane.state == State::asked || lane.state == State::ready) return;
    for (Lane &other : lanes_) {
      if (overlap(other.portion, lane.portion)) other.state = State::idle;
    }
    std::erase_if(queue_, [this](size_t queued) { return lanes_[queued].state == State::idle; });
    lane.state = State::asked;
    lane.ticket++;
    queue_.push_back(portion);
  }
  changed_.notify_all();
}

void WeightFeed::wait(size_t portion) {
  Lane &lane = lanes_[portion];
  {
    std::unique_lock lock(mutex_);
    if (lane.state == State::idle) MS_REFUSE("waitFeed: expected a portion that was asked for, got %zu", portion);
    changed_.wait(lock, [&] { return lane.state != State::asked; });
    if (lane.state == State::failed) {
      lane.state = State::idle;
      std::rethrow_exception(lane.error);
    }
  }
  const std::lock_guard lock(context_->in_use);
  ms_error error{};
  check(api().stream_wait_event(context_->handle, context_->stream, lane.copied, &error), error);
}

void WeightFeed::used(size_t portion) {
  Lane &lane = lanes_[portion];
  {
    const std::lock_guard lock(context_->in_use);
    ms_error error{};
    check(api().event_record(context_->handle, lane.last_use, context_->stream, &error), error);
  }
  const std::lock_guard lock(mutex_);
  lane.was_used = true;
  lane.state = State::idle;
}

void WeightFeed::reset() {
  {
    std::unique_lock lock(mutex_);
    queue_.clear();
    changed_.wait(lock, [this] { return !busy_; });
    for (Lane &lane : lanes_) {
      lane.state = State::idle;
      lane.was_copied = lane.was_used = false;
    }
  }
  {
    const std::lock_guard lock(context_->in_use);
    context_->wait();
  }
  ms_error error{};
  check(api().stream_synchronize(handle_, stream_, &error), error);
}

void WeightFeed::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopped_ || !queue_.empty(); });
    if (stopped_) return;
    Lane &lane = lanes_[queue_.front()];
    const uint64_t ticket = lane.ticket;
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    std::exception_ptr error;
    try {
      bring(lane);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    busy_ = false;
    lane.was_copied |= error == nullptr;
    if (lane.state == State::asked && lane.ticket == ticket) {  // else another portion was asked for in its place
      lane.error = error;
      lane.state = error == nullptr ? State::ready : State::failed;
    }
    changed_.notify_all();
  }
}

// Enqueues the copies of one portion, behind the last use of whatever lay in its place.
void WeightFeed::bring(Lane &lane) {
  ms_error error{};
  std::vector<ms_event *> uses, copies;
  {
    const std::lock_guard lock(mutex_);
    for (const Lane &other : lanes_) {
      if (!overlap(other.portion, lane.portion)) continue;
      if (other.was_used) uses.push_back(other.last_use);
      if (other.was_copied) copies.push_back(other.copied);
    }
  }
  for (ms_event *event : uses) check(api().stream_wait_event(handle_, stream_, event, &error), error);
  // The pinned memory lies as the window does: what an earlier copy still reads is not overwritten.
  if (pinned_ != nullptr) {
    for (ms_event *event : copies) check(api().event_synchronize(handle_, event, &error), error);
  }
  for (const Piece &piece : lane.portion.pieces) {
    if (piece.file != nullptr) {
      copy_from_file(lane, piece);
      continue;
    }
    std::byte *to = window_->data + lane.portion.offset + piece.offset;
    check(api().copy_to_device(handle_, stream_, to, piece.host->data + piece.source, piece.bytes, &error), error);
  }
  check(api().event_record(handle_, lane.copied, stream_, &error), error);
}

void WeightFeed::copy_from_file(const Lane &lane, const Piece &piece) {
  ms_error error{};
  const uint64_t place = lane.portion.offset + piece.offset;
  for (uint64_t done = 0; done < piece.bytes; done += kReadBytes) {
    const uint64_t part = std::min(kReadBytes, piece.bytes - done);
    std::byte *from = pinned_ + place + done;
    piece.file->read(piece.source + done, from, part);
    check(api().copy_to_device(handle_, stream_, window_->data + place + done, from, part, &error), error);
  }
}

namespace exported {
namespace {

constexpr size_t kPieceWords = 5;

WeightFeed::Piece read_piece(const double *words, const WeightFeed::Portion &portion, Place place) {
  WeightFeed::Piece piece;
  const bool from_file = word_integer(words[0], 0, 1, place, "a source") == 1;
  piece.source = static_cast<uint64_t>(word_integer(words[2], 0, Call::kMaxSafeInteger, place, "a source offset"));
  piece.offset = static_cast<uint64_t>(word_integer(words[3], 0, Call::kMaxSafeInteger, place, "an offset"));
  piece.bytes = static_cast<uint64_t>(word_integer(words[4], 0, Call::kMaxSafeInteger, place, "a size"));
  check_range("portion", piece.offset, piece.bytes, portion.bytes);
  if (from_file) {
    piece.file = files().get(words[1], "file");
    check_range(piece.file->path.c_str(), piece.source, piece.bytes, piece.file->bytes);
  } else {
    piece.host = buffers().get(words[1], "host buffer");
    if (!piece.host->context->host_addressable()) MS_REFUSE("host buffer: expected one of a device that reads host memory");
    check_range("host buffer", piece.source, piece.bytes, piece.host->bytes);
  }
  return piece;
}

// [window offset, bytes, piece count, pieces…] a portion; a piece is [0: buffer, 1: file; its id; source offset; offset; bytes].
std::vector<WeightFeed::Portion> read_portions(const std::vector<double> &words, const Buffer &window) {
  std::vector<WeightFeed::Portion> portions;
  for (size_t at = 0; at < words.size();) {
    const Place place{"portion", portions.size()};
    if (words.size() - at < 3) MS_REFUSE("portion %zu: expected three numbers, got %zu", place.index, words.size() - at);
    WeightFeed::Portion &portion = portions.emplace_back();
    portion.offset = static_cast<uint64_t>(word_integer(words[at], 0, Call::kMaxSafeInteger, place, "a window offset"));
    portion.bytes = static_cast<uint64_t>(word_integer(words[at + 1], 0, Call::kMaxSafeInteger, place, "a size"));
    check_range("window", portion.offset, portion.bytes, window.bytes);
    const auto most = static_cast<int64_t>((words.size() - at - 3) / kPieceWords);
    const auto pieces = word_integer(words[at + 2], 0, most, place, "a count of pieces");
    at += 3;
    for (int64_t i = 0; i < pieces; i++, at += kPieceWords) portion.pieces.push_back(read_piece(&words[at], portion, place));
  }
  return portions;
}

struct Asked {
  std::shared_ptr<WeightFeed> feed;
  size_t portion;
};

Asked read_asked(Call &call) {
  std::shared_ptr<WeightFeed> feed = feeds().get(call.id(0, "feed"), "feed");
  const auto last = static_cast<int64_t>(feed->size()) - 1;
  const auto portion = static_cast<size_t>(call.integer(1, "portion", 0, last));
  return {std::move(feed), portion};
}

}  // namespace

napi_value open_feed(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const BufferRef window = buffers().get(call.id(1, "window"), "window");
  if (context->host_addressable() || window->context != context || window->mapping != nullptr) {
    MS_REFUSE("openFeed: expected memory of a device that does not read host memory");
  }
  const auto words = call.doubles(2, "portions");
  auto portions = read_portions({words.begin(), words.end()}, *window);
  const double id = feeds().insert(std::make_shared<WeightFeed>(context, window, std::move(portions)));
  try {
    context->own_feed(id);
  } catch (...) {
    feeds().remove(id);
    throw;
  }
  return call.number(id);
}

napi_value ask_feed(Call &call) {
  const Asked asked = read_asked(call);
  asked.feed->ask(asked.portion);
  return nullptr;
}

napi_value wait_feed(Call &call) {
  const Asked asked = read_asked(call);
  asked.feed->wait(asked.portion);
  return nullptr;
}

napi_value used_feed(Call &call) {
  const Asked asked = read_asked(call);
  asked.feed->used(asked.portion);
  return nullptr;
}

napi_value reset_feed(Call &call) {
  feeds().get(call.id(0, "feed"), "feed")->reset();
  return nullptr;
}

}  // namespace exported
}  // namespace metashard
