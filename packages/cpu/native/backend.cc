// The ms_backend_v1 table of the CPU: settings, device information, memory, copies, and the dispatch of ops. Streams and events
// are trivial, because everything has run when a call returns. CPU devices are virtual: any cpu:N exists, all share memory and
// threads.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <exception>
#include <mutex>
#include <new>
#include <string>

#include "ops/op.h"
#include "processor.h"

struct ms_context {
  int32_t device;
};
struct ms_stream {};
struct ms_event {};

namespace {

constexpr int32_t devices = 1024;
constexpr int32_t most_threads = 256;
constexpr size_t alignment = 64;
constexpr size_t huge_page = size_t(2) << 20;
constexpr size_t huge_from = size_t(4) << 20;  // bytes from which memory is asked for in huge pages
constexpr size_t copy_piece = size_t(1) << 20;

// Runs `body` and turns what it throws into a status and an ms_error.
template <typename Body>
int guarded(ms_error *error, const Body &body) {
  ms_error failure = {};
  try {
    body();
    return MS_OK;
  } catch (const op_failure &refused) {
    failure = refused.error;
  } catch (const std::bad_alloc &) {
    failure.status = MS_OUT_OF_MEMORY;
    snprintf(failure.message, sizeof failure.message, "cpu: expected working memory, got none from the system");
  } catch (const std::exception &unexpected) {
    failure.status = MS_INTERNAL;
    snprintf(failure.message, sizeof failure.message, "cpu: %s", unexpected.what());
  } catch (...) {
    failure.status = MS_INTERNAL;
    snprintf(failure.message, sizeof failure.message, "cpu: an unknown failure");
  }
  if (error != nullptr) *error = failure;
  return failure.status;
}

int32_t parse_threads(const char *where, const char *value) {
  char *end = nullptr;
  const long threads = strtol(value, &end, 10);
  EXPECT(end != value && *end == '\0' && threads >= 1 && threads <= most_threads,
         "%s: expected a number of threads from 1 to %d, got \"%s\"", where, most_threads, value);
  return int32_t(threads);
}

int parse_isa(const char *where, const char *value) {
  const int level = find_isa(value);
  EXPECT(level >= 0, "%s: expected portable, avx2, avx512-vnni, amx or amx-emulated, got \"%s\"", where, value);
  const std::string missing = isa_levels[level].missing();
  EXPECT(missing.empty(), "%s: expected an instruction set of this processor, got %s: %s", where, value, missing.c_str());
  return level;
}

const char *environment(const char *name) {
  const char *value = getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

// METASHARD_THREADS, else OMP_NUM_THREADS where it is a number, else what the process may use.
int32_t default_threads() {
  if (const char *value = environment("METASHARD_THREADS")) return parse_threads("METASHARD_THREADS", value);
  const char *omp = environment("OMP_NUM_THREADS");
  const long wanted = omp == nullptr ? 0 : strtol(omp, nullptr, 10);
  if (wanted >= 1) return int32_t(wanted < most_threads ? wanted : most_threads);
  const int32_t available = available_threads();
  return available < most_threads ? available : most_threads;
}

int initialize(ms_error *error) {
  static std::mutex mutex;
  static bool done = false;
  return guarded(error, [] {
    const std::lock_guard<std::mutex> lock(mutex);
    if (done) return;
    const char *isa = environment("METASHARD_CPU_ISA");
    const int level = isa == nullptr ? best_isa() : parse_isa("METASHARD_CPU_ISA", isa);
    pool_set_threads(default_threads());
    use_isa(level);
    done = true;
  });
}

int configure(const char *key, const char *value, ms_error *error) {
  return guarded(error, [&] {
    if (strcmp(key, "threads") == 0) return pool_set_threads(parse_threads("cpu threads", value));
    if (strcmp(key, "isa") == 0) return use_isa(parse_isa("cpu isa", value));
    EXPECT(false, "cpu: expected a setting threads or isa, got \"%s\"", key);
  });
}

int describe(char *json, size_t bytes, ms_error *error) {
  return guarded(error, [&] {
    std::string supported, missing;
    for (const isa_level &level : isa_levels) {
      const std::string reason = level.missing(), name = std::string("\"") + level.name + "\"";
      std::string &list = reason.empty() ? supported : missing;
      list += (list.empty() ? "" : ", ") + (reason.empty() ? name : name + ": \"" + reason + "\"");
    }
    const int length = snprintf(json, bytes, "{\"isa\": \"%s\", \"isas\": [%s], \"threads\": %d, \"missing\": {%s}}",
                                active_isa().name, supported.c_str(), pool_threads(), missing.c_str());
    EXPECT(length >= 0 && size_t(length) < bytes, "cpu: expected room for a description of %d bytes, got %zu", length + 1,
           bytes);
  });
}

int device_count(int32_t *count, ms_error *) {
  *count = devices;
  return MS_OK;
}

void check_device(int32_t device) {
  if (device < 0 || device >= devices) {
    fail(MS_UNAVAILABLE, __FILE__, __LINE__, "cpu: expected a device from 0 to %d, got %d", devices - 1, device);
  }
}

int device_info(int32_t device, ms_device_info *info, ms_error *error) {
  return guarded(error, [&] {
    check_device(device);
    *info = {};
    static const std::string processor = processor_name();
    snprintf(info->name, sizeof info->name, "%s (%s)", processor.c_str(), active_isa().name);
    const memory_info memory = available_memory();
    info->total_bytes = memory.total_bytes;
    info->free_bytes = memory.free_bytes;
    info->host_addressable = 1;
  });
}

int context_open(int32_t device, ms_context **context, ms_error *error) {
  return guarded(error, [&] {
    check_device(device);
    *context = new ms_context{device};
  });
}

void context_close(ms_context *context) { delete context; }

int memory_allocate(ms_context *, size_t bytes, ms_memory_kind, void **pointer, ms_error *error) {
  return guarded(error, [&] {
    const bool huge = bytes >= huge_from;
    const size_t step = huge ? huge_page : alignment, size = (bytes > 0 ? bytes : 1) + step - 1;
    *pointer = size < bytes ? nullptr : aligned_alloc(step, size / step * step);
    if (*pointer == nullptr) {
      fail(MS_OUT_OF_MEMORY, __FILE__, __LINE__, "cpu: expected %zu bytes of memory, got none from the system", bytes);
    }
    if (huge) madvise(*pointer, size / step * step, MADV_HUGEPAGE);
  });
}

int memory_free(ms_context *, void *pointer, size_t, ms_memory_kind, ms_error *) {
  free(pointer);
  return MS_OK;
}

int stream_create(ms_context *, ms_stream **stream, ms_error *error) {
  return guarded(error, [&] { *stream = new ms_stream; });
}
void stream_destroy(ms_context *, ms_stream *stream) { delete stream; }
int stream_synchronize(ms_context *, ms_stream *, ms_error *) { return MS_OK; }
int event_create(ms_context *, ms_event **event, ms_error *error) {
  return guarded(error, [&] { *event = new ms_event; });
}
void event_destroy(ms_context *, ms_event *event) { delete event; }
int event_record(ms_context *, ms_event *, ms_stream *, ms_error *) { return MS_OK; }
int event_query(ms_context *, ms_event *, int32_t *done, ms_error *) {
  *done = 1;
  return MS_OK;
}
int event_synchronize(ms_context *, ms_event *, ms_error *) { return MS_OK; }
int stream_wait_event(ms_context *, ms_stream *, ms_event *, ms_error *) { return MS_OK; }

// A large copy goes by pieces over the pool: one thread alone does not fill the memory's bandwidth, least of all on fresh
// pages.
void copy_bytes(void *destination, const void *source, size_t bytes) {
  const uintptr_t to = reinterpret_cast<uintptr_t>(destination), from = reinterpret_cast<uintptr_t>(source);
  const bool overlap = to < from + bytes && from < to + bytes;
  if (overlap) {
    memmove(destination, source, bytes);
    return;
  }
  parallel(int64_t((bytes + copy_piece - 1) / copy_piece), [&](int64_t piece) {
    const size_t start = size_t(piece) * copy_piece, left = bytes - start;
    memcpy(static_cast<char *>(destination) + start, static_cast<const char *>(source) + start,
           left < copy_piece ? left : copy_piece);
  });
}

int copy_to_device(ms_context *, ms_stream *, void *device, const void *host, size_t bytes, ms_error *error) {
  return guarded(error, [&] { copy_bytes(device, host, bytes); });
}

int copy_to_host(ms_context *, ms_stream *, void *host, const void *device, size_t bytes, ms_error *error) {
  return guarded(error, [&] { copy_bytes(host, device, bytes); });
}

int copy_between_devices(ms_context *, void *destination, ms_context *, const void *source, size_t bytes, ms_stream *,
                         ms_error *error) {
  return guarded(error, [&] { copy_bytes(destination, source, bytes); });
}

void zero_bytes(void *pointer, size_t bytes) {
  parallel(int64_t((bytes + copy_piece - 1) / copy_piece), [&](int64_t piece) {
    const size_t start = size_t(piece) * copy_piece, left = bytes - start;
    memset(static_cast<char *>(pointer) + start, 0, left < copy_piece ? left : copy_piece);
  });
}

// Whole huge pages are given back to the system, which gives zeros in their place where they are used again (madvise(2)): a
// large cache that is never filled is never touched.
int memory_zero(ms_context *, ms_stream *, void *pointer, size_t bytes, ms_error *error) {
  return guarded(error, [&] {
    const uintptr_t from = reinterpret_cast<uintptr_t>(pointer), to = from + bytes;
    const uintptr_t first = (from + huge_page - 1) / huge_page * huge_page, last = to / huge_page * huge_page;
    if (first >= last || madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED) != 0) {
      return zero_bytes(pointer, bytes);
    }
    zero_bytes(pointer, first - from);
    zero_bytes(reinterpret_cast<void *>(last), to - last);
  });
}

// Nothing has run yet where parallel_for finds no memory: then the caller does it all.
void run_tasks(int64_t tasks, void (*task)(void *context, int64_t index), void *context) {
  try {
    parallel_for(tasks, task, context);
  } catch (const std::bad_alloc &) {
    for (int64_t index = 0; index < tasks; index++) task(context, index);
  }
}

struct op_entry {
  op_counts counts;
  const op_definition *definition;
};

// By op code; gaps have no definition.
const op_entry *find_op(int32_t code) {
  static const op_entry *const table = [] {
    static op_entry entries[64] = {};
#define MS_OP(name, code, inputs, outputs, attributes) entries[code] = {{#name, inputs, outputs, attributes}, &op_##name};
#include "metashard/ops.def"
#undef MS_OP
    return entries;
  }();
  return code >= 0 && code < 64 && table[code].definition != nullptr ? &table[code] : nullptr;
}

int32_t op_supported(ms_context *, int32_t op) { return find_op(op) != nullptr; }

const op_entry &checked_op(const ms_op_call &call) {
  const op_entry *op = find_op(call.op);
  if (op == nullptr) fail(MS_UNSUPPORTED, __FILE__, __LINE__, "cpu: expected an op of this backend, got code %d", call.op);
  check_counts(op->counts, call);
  return *op;
}

int op_scratch(ms_context *, const ms_op_call *call, size_t *bytes, ms_error *error) {
  return guarded(error, [&] {
    const op_entry &op = checked_op(*call);
    *bytes = op.definition->scratch(op_arguments(op.counts.name, *call));
  });
}

int op_run(ms_context *, ms_stream *, const ms_op_call *call, ms_error *error) {
  return guarded(error, [&] {
    const op_entry &op = checked_op(*call);
    const op_arguments arguments(op.counts.name, *call);
    check_scratch(arguments.op(), *call, op.definition->scratch(arguments));
    op.definition->run(arguments, active_isa());
  });
}

const ms_backend_v1 backend = {
    .abi = MS_BACKEND_ABI,
    .struct_bytes = sizeof(ms_backend_v1),
    .name = "cpu",
    .initialize = initialize,
    .configure = configure,
    .describe = describe,
    .device_count = device_count,
    .device_info = device_info,
    .context_open = context_open,
    .context_close = context_close,
    .memory_allocate = memory_allocate,
    .memory_free = memory_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_synchronize = stream_synchronize,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_query = event_query,
    .event_synchronize = event_synchronize,
    .stream_wait_event = stream_wait_event,
    .copy_to_device = copy_to_device,
    .copy_to_host = copy_to_host,
    .copy_between_devices = copy_between_devices,
    .memory_zero = memory_zero,
    .op_supported = op_supported,
    .op_scratch = op_scratch,
    .op_run = op_run,
    .graph_begin = nullptr,
    .graph_end = nullptr,
    .graph_launch = nullptr,
    .graph_destroy = nullptr,
    .parallel = run_tasks,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const ms_backend_v1 *ms_backend_v1_get() { return &backend; }
