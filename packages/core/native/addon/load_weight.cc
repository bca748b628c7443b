// Weights from a file into device memory: read in windows of rows, converted, quantized or packed on the device, never through
// JavaScript. A backend with threads of its own reads and places windows on all of them at once; for others a thread reads the
// next window while the device works on this one.
//
// Which rows and bytes belong to which tensor is the caller's knowledge; here they are only checked against file and
// destination. Longer than other files: both ways share the checks and what turns a window into rows.
#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "file.h"
#include "functions.h"
#include "op_call.h"
#include "tensor_words.h"

namespace metashard {
namespace {

// Big enough for the disk, small enough that a window just read is still in a cache when the device's threads turn to it.
constexpr size_t kWindowBytes = size_t{4} << 20;
// A window of one of many threads stays in that processor's second-level cache until it is placed.
constexpr size_t kTaskWindowBytes = size_t{512} << 10;
// What one thread places at a time: about a huge page, so that two threads seldom touch a fresh one first.
constexpr size_t kTaskBytes = size_t{4} << 20;
// Packed blocks have 16 rows: windows of whole blocks stay one contiguous range in the destination.
constexpr int64_t kWindowRowStep = 16;

enum class Mode { convert = 0, quantize = 1, int8 = 2 };  // LOAD_MODES of native.ts

struct Target {
  ms_tensor tensor{};
  BufferRef buffer;
};

struct Load {
  ContextRef context;
  std::shared_ptr<File> file;
  uint64_t offset = 0;
  int32_t dtype = 0;
  int64_t rows = 0, columns = 0;
  Mode mode = Mode::convert;
  Target destination, scales;
  bool float16_first = false;

  uint64_t row_bytes() const { return static_cast<uint64_t>(columns * dtype_bytes(dtype)); }
  uint64_t total_bytes() const { return static_cast<uint64_t>(rows) * row_bytes(); }
  // 0: the bytes of the file are the bytes of the destination.
  int32_t op() const {
    if (mode == Mode::quantize) return MS_OP_quantize_weight;
    if (mode == Mode::int8) return destination.tensor.layout == MS_PACKED_INT8 ? MS_OP_pack_int8 : 0;
    return destination.tensor.dtype == dtype ? 0 : MS_OP_cast;
  }
  // Rows of a window of so many bytes: a multiple of 16, at least 16, or all.
  int64_t window_rows(size_t window_bytes = kWindowBytes) const {
    const auto fitting = static_cast<int64_t>(window_bytes / std::max<uint64_t>(row_bytes(), 1));
    return std::min(rows, std::max(kWindowRowStep, fitting / kWindowRowStep * kWindowRowStep));
  }
};

bool is_float(int32_t dtype) { return dtype == MS_FLOAT32 || dtype == MS_FLOAT16 || dtype == MS_BFLOAT16; }

int64_t element_count(const ms_tensor &tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor.rank; i++) count *= tensor.shape[i];
  return count;
}

bool is_row_major(const ms_tensor &tensor) {
  int64_t stride = 1;
  for (int i = tensor.rank - 1; i >= 0; i--) {
    if (tensor.shape[i] != 1 && tensor.stride[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

Target read_target(std::span<const double> words, const Context &context, const char *role) {
  if (words.size() != kTensorWords) {
    MS_REFUSE("%s: expected a tensor of %zu numbers, got %zu", role, kTensorWords, words.size());
  }
  std::array<double, kTensorWords> copy;
  std::copy(words.begin(), words.end(), copy.begin());
  Target target;
  target.tensor = decode_tensor(copy.data(), context, target.buffer, {role, 0});
  if (target.tensor.data == nullptr) MS_REFUSE("%s: expected a tensor, got none", role);
  return target;
}

void check_destination(const Load &load) {
  const ms_tensor &to = load.destination.tensor;
  const long long rows = load.rows, columns = load.columns;
  if (to.layout == MS_PACKED_INT8) {
    if (load.mode == Mode::convert) MS_REFUSE("destination: expected a strided tensor, got a packed one");
    if (to.shape[0] != rows || to.shape[1] != columns) {
      MS_REFUSE("destination: expected a packed matrix [%lld, %lld], got [%lld, %lld]", rows, columns,
                static_cast<long long>(to.shape[0]), static_cast<long long>(to.shape[1]));
    }
  } else if (element_count(to) != rows * columns || !is_row_major(to)) {
    MS_REFUSE("destination: expected %lld x %lld elements, row-major without gaps, got a tensor of %lld elements", rows,
              columns, static_cast<long long>(element_count(to)));
  }
}

void check_dtypes(const Load &load) {
  const int32_t to = load.destination.tensor.dtype;
  if (load.mode == Mode::convert && load.dtype != to && !(is_float(load.dtype) && is_float(to))) {
    MS_REFUSE("sourceDtype: expected a float dtype or the destination's (%d), got %d", to, load.dtype);
  }
  if (load.mode == Mode::quantize && !(is_float(load.dtype) && to == MS_INT8)) {
    MS_REFUSE("sourceDtype: expected a float dtype to quantize into int8, got %d into %d", load.dtype, to);
  }
  if (load.mode == Mode::int8 && !(load.dtype == MS_INT8 && to == MS_INT8)) {
    MS_REFUSE("sourceDtype: expected int8 into int8, got %d into %d", load.dtype, to);
  }
}

void check_scales(const Load &load) {
  const ms_tensor &scales = load.scales.tensor;
  if (scales.dtype != MS_FLOAT32 || element_count(scales) != load.rows || !is_row_major(scales)) {
    MS_REFUSE("scales: expected %lld float32 values without gaps, got dtype %d and %lld elements",
              static_cast<long long>(load.rows), scales.dtype, static_cast<long long>(element_count(scales)));
  }
}

Load read_load(Call &call) {
  Load load;
  load.context = contexts().get(call.id(0, "context"), "context");
  load.file = files().get(call.id(1, "file"), "file");
  load.offset = static_cast<uint64_t>(call.size(2, "offset"));
  load.dtype = static_cast<int32_t>(call.integer(3, "sourceDtype", MS_FLOAT32, MS_BOOL));
  load.rows = call.integer(4, "rows", 0, int64_t{1} << 40);
  load.columns = call.integer(5, "columns", 0, int64_t{1} << 40);
  if (static_cast<unsigned __int128>(load.rows) * static_cast<uint64_t>(load.columns) > int64_t{1} << 48) {
    MS_REFUSE("rows and columns: expected a tensor that fits a memory");
  }
  load.mode = static_cast<Mode>(call.integer(6, "mode", 0, 2));
  load.destination = read_target(call.doubles(7, "destination"), *load.context, "destination");
  if (load.mode == Mode::quantize) load.scales = read_target(call.doubles(8, "scales"), *load.context, "scales");
  load.float16_first = call.boolean(9, "float16First");
  check_range(load.file->path.c_str(), load.offset, load.total_bytes(), load.file->bytes);
  check_dtypes(load);
  check_destination(load);
  if (load.mode == Mode::quantize) check_scales(load);
  if (load.op() != 0 && !load.context->supports(load.op())) {
    MS_FAIL(MS_UNSUPPORTED, "%s: expected an op that backend %s implements", find_op(load.op())->name,
            load.context->backend.name.c_str());
  }
  return load;
}

ms_tensor matrix(void *data, int32_t dtype, int64_t rows, int64_t columns) {
  ms_tensor tensor{};
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.rank = 2;
  tensor.shape[0] = rows;
  tensor.shape[1] = columns;
  tensor.shape[2] = tensor.shape[3] = 1;
  tensor.stride[0] = columns;
  tensor.stride[1] = 1;
  return tensor;
}

// Rows first … first + rows - 1 of the destination.
ms_tensor destination_rows(const Load &load, int64_t first, int64_t rows) {
  const ms_tensor &to = load.destination.tensor;
  const bool packed = to.layout == MS_PACKED_INT8;
  const uint64_t before = packed ? packed_bytes(static_cast<uint64_t>(first), static_cast<uint64_t>(load.columns))
                                 : static_cast<uint64_t>(first * load.columns * dtype_bytes(to.dtype));
  ms_tensor part = matrix(static_cast<std::byte *>(to.data) + before, to.dtype, rows, load.columns);
  part.layout = to.layout;
  if (packed) part.stride[0] = part.stride[1] = 0;
  return part;
}

// The call that turns `rows` rows at `source` into the destination's rows from `first`.
ms_op_call window_call(const Load &load, void *source, int64_t first, int64_t rows) {
  ms_op_call call{};
  call.op = load.op();
  call.n_inputs = 1;
  call.n_outputs = 1;
  call.inputs[0] = matrix(source, load.dtype, rows, load.columns);
  call.outputs[0] = destination_rows(load, first, rows);
  if (load.mode == Mode::quantize) {
    ms_tensor &scales = call.outputs[call.n_outputs++];
    scales = matrix(static_cast<float *>(load.scales.tensor.data) + first, MS_FLOAT32, rows, 1);
    scales.rank = 1;
    scales.stride[0] = 1;
    scales.stride[1] = 0;
    call.attributes[call.n_attributes++] = load.float16_first ? 1 : 0;
  }
  return call;
}

// Places rows that lie in a host window. When it returns the window may be read into again. Call under in_use.
void place_window(const Load &load, void *window, int64_t first, int64_t rows) {
  Context &context = *load.context;
  const size_t bytes = static_cast<size_t>(rows) * load.row_bytes();
  void *source = window;
  ms_error error{};
  if (!context.host_addressable()) {
    source = load.op() == 0 ? destination_rows(load, first, rows).data
                            : context.loading.staging.reserve(context, bytes, GrowingMemory::Place::device);
    check(context.api().copy_to_device(context.handle, context.stream, source, window, bytes, &error), error);
  }
  if (load.op() != 0) {
    ms_op_call call = window_call(load, source, first, rows);
    call.scratch_bytes = op_scratch_bytes(context, call);
    if (call.scratch_bytes > 0) {
      call.scratch = context.loading.scratch.reserve(context, call.scratch_bytes, GrowingMemory::Place::device);
    }
    run_op(context, call);
  }
  context.wait();
}

// A thread that reads a file's windows in order into two buffers in turn, ahead of who takes them.
class ReadAhead {
 public:
  ReadAhead(const Load &load, void *const (&windows)[2])
      : load_(load), windows_{windows[0], windows[1]}, thread_([this] { read_all(); }) {}

  ~ReadAhead() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // Waits for the next window; throws what its reading threw.
  void *take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return filled_ > taken_ || error_ != nullptr; });
    if (filled_ <= taken_) std::rethrow_exception(error_);
    return windows_[taken_++ % 2];
  }

  // The window taken last may be read into again.
  void give_back() {
    {
      const std::lock_guard lock(mutex_);
      free_++;
    }
    changed_.notify_all();
  }

 private:
  void read_all() {
    try {
      const int64_t step = load_.window_rows();
      for (int64_t first = 0; first < load_.rows && wait_for_window(); first += step) {
        const int64_t rows = std::min(step, load_.rows - first);
        load_.file->read(load_.offset + static_cast<uint64_t>(first) * load_.row_bytes(), windows_[first / step % 2],
                         static_cast<uint64_t>(rows) * load_.row_bytes());
        const std::lock_guard lock(mutex_);
        filled_++;
        changed_.notify_all();
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      changed_.notify_all();
    }
  }

  bool wait_for_window() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return free_ > 0 || stopped_; });
    free_--;
    return !stopped_;
  }

  const Load &load_;
  void *const windows_[2];
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t filled_ = 0, taken_ = 0, free_ = 2;
  bool stopped_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

void load_windows(const Load &load) {
  Context &context = *load.context;
  const int64_t step = load.window_rows();
  const size_t bytes = static_cast<size_t>(step) * load.row_bytes();
  const auto place = context.host_addressable() ? GrowingMemory::Place::host : GrowingMemory::Place::pinned;
  if (step == load.rows) {
    void *window = context.loading.windows[0].reserve(context, bytes, place);
    load.file->read(load.offset, window, bytes);
    place_window(load, window, 0, load.rows);
    return;
  }
  void *const windows[2] = {context.loading.windows[0].reserve(context, bytes, place),
                            context.loading.windows[1].reserve(context, bytes, place)};
  ReadAhead ahead(load, windows);
  for (int64_t first = 0; first < load.rows; first += step) {
    place_window(load, ahead.take(), first, std::min(step, load.rows - first));
    ahead.give_back();
  }
}

// One weight as tasks of a backend's threads. Needs a host-addressable device whose ops take no scratch here.
class LoadTasks {
 public:
  explicit LoadTasks(const Load &load) : load_(load), rows_(load.window_rows(kTaskBytes)) {}

  // Throws what a task threw; the tasks after it have done nothing then.
  void run() {
    const auto call = [](void *self, int64_t index) { static_cast<LoadTasks *>(self)->task(index); };
    load_.context->api().parallel((load_.rows + rows_ - 1) / rows_, call, this);
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  void task(int64_t index) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      const int64_t first = index * rows_;
      place(first, std::min(first + rows_, load_.rows));
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  // Rows first … end - 1, window by window; bytes that need no work go straight to their place.
  void place(int64_t first, int64_t end) {
    if (load_.op() == 0) return read_rows(first, end - first, destination_rows(load_, first, end - first).data);
    const int64_t step = load_.window_rows(kTaskWindowBytes);
    std::vector<std::byte> window = take_window(static_cast<size_t>(step) * load_.row_bytes());
    for (; first < end; first += step) {
      const int64_t rows = std::min(step, end - first);
      read_rows(first, rows, window.data());
      ms_op_call call = window_call(load_, window.data(), first, rows);
      run_op(*load_.context, call);
    }
    LoadingMemory &loading = load_.context->loading;
    const std::lock_guard lock(loading.idle_mutex);
    loading.idle_windows.push_back(std::move(window));
  }

  void read_rows(int64_t first, int64_t rows, void *to) {
    load_.file->read(load_.offset + static_cast<uint64_t>(first) * load_.row_bytes(), to,
                     static_cast<uint64_t>(rows) * load_.row_bytes());
  }

  std::vector<std::byte> take_window(size_t bytes) {
    LoadingMemory &loading = load_.context->loading;
    std::vector<std::byte> window;
    {
      const std::lock_guard lock(loading.idle_mutex);
      if (!loading.idle_windows.empty()) {
        window = std::move(loading.idle_windows.back());
        loading.idle_windows.pop_back();
      }
    }
    if (window.size() < bytes) window.resize(bytes);
    return window;
  }

  const Load &load_;
  const int64_t rows_;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

// Nothing to read: rows without columns quantize to scales of 0 and pack to blocks of row sums 0.
void load_nothing(const Load &load) {
  Context &context = *load.context;
  ms_error error{};
  for (const Target *target : {&load.destination, &load.scales}) {
    const size_t bytes = target->buffer == nullptr ? 0 : span_bytes(target->tensor);
    if (bytes == 0) continue;
    check(context.api().memory_zero(context.handle, context.stream, target->tensor.data, bytes, &error), error);
  }
  context.wait();
}

}  // namespace

namespace exported {

napi_value load_weight(Call &call) {
  const Load load = read_load(call);
  const std::lock_guard lock(load.context->in_use);
  if (load.total_bytes() == 0) {
    load_nothing(load);
  } else if (load.context->host_addressable() && load.context->api().parallel != nullptr) {
    LoadTasks(load).run();
  } else if (load.op() == 0 && load.context->host_addressable()) {
    load.file->read(load.offset, load.destination.tensor.data, load.total_bytes());
  } else {
    load_windows(load);
  }
  return call.number(static_cast<double>(load.total_bytes()));
}

napi_value release_loading(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const std::lock_guard lock(context->in_use);
  context->loading.release(*context);
  return nullptr;
}

}  // namespace exported
}  // namespace metashard
