// ms_backend_v1: the C interface between the one N-API addon (packages/core/native/addon) and the backends
// (packages/cpu, packages/cuda), which are shared objects opened at run time. A backend knows device memory, streams,
// events, copies and ops; it knows nothing of JavaScript, files, handles or budgets: those have one owner, the addon.
//
// Rules. Every function returns MS_OK or another ms_status and then has filled `error`. No exception, abort or exit crosses
// this boundary. Pointers to device memory are opaque to the addon unless the device says `host_addressable`. Ops and copies
// are enqueued on a stream in order and may return before they have run; synchronous backends (the CPU) ignore streams. A
// device that is host_addressable is synchronous: its memory is read and written in place while no call of its context runs.
// All functions may be called from any thread; one context is used by one thread at a time.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MS_BACKEND_ABI 1
#define MS_MAX_RANK 4
#define MS_MAX_INPUTS 12
#define MS_MAX_OUTPUTS 4
#define MS_MAX_ATTRIBUTES 8

typedef enum ms_status {
  MS_OK = 0,
  MS_INVALID = 1,      // the caller broke a rule of this interface or of an op's signature
  MS_OUT_OF_MEMORY = 2,
  MS_UNAVAILABLE = 3,  // no driver, no device, no such device
  MS_UNSUPPORTED = 4,  // a valid request that this backend does not implement
  MS_DEVICE_LOST = 5,  // the context is unusable from now on
  MS_INTERNAL = 6,
  MS_IO = 7  // a file cannot be opened or read; the addon's own, backends read no files
} ms_status;

typedef struct ms_error {
  int32_t status;
  int32_t line;
  const char *file;     // static string, or NULL
  int32_t native_code;  // the driver's own status, or 0
  char message[320];    // what was expected and what was got; no trailing period
} ms_error;

typedef enum ms_dtype {
  MS_FLOAT32 = 0,
  MS_FLOAT16 = 1,
  MS_BFLOAT16 = 2,
  MS_INT8 = 3,
  MS_UINT8 = 4,
  MS_INT32 = 5,
  MS_INT64 = 6,
  MS_BOOL = 7
} ms_dtype;

// MS_PACKED_INT8: an int8 matrix [N, K] stored for VNNI and AMX at once, as ceil(N/16) blocks, each
//   [ceil(K/64)*16][16][4] int8  (k/4, n, k%4; absent rows and columns are zero)  then  [16] int32 = sum over k of the row.
// A block is 16*ceil(K/64)*64 + 64 bytes, so rows n0..n1 with n0 % 16 == 0 are one contiguous byte range.
typedef enum ms_layout { MS_STRIDED = 0, MS_PACKED_INT8 = 1 } ms_layout;

typedef struct ms_tensor {
  void *data;  // NULL where an optional input is absent
  int32_t dtype;
  int32_t layout;
  int32_t rank;
  int32_t reserved;
  int64_t shape[MS_MAX_RANK];
  int64_t stride[MS_MAX_RANK];  // in elements; meaningless for packed layouts
} ms_tensor;

typedef struct ms_op_call {
  int32_t op;
  int32_t n_inputs;
  int32_t n_outputs;
  int32_t n_attributes;
  ms_tensor inputs[MS_MAX_INPUTS];
  ms_tensor outputs[MS_MAX_OUTPUTS];
  double attributes[MS_MAX_ATTRIBUTES];
  void *scratch;  // device memory, 64-byte aligned, at least what op_scratch asks for
  size_t scratch_bytes;
} ms_op_call;

typedef enum ms_op_code {
#define MS_OP(name, code, inputs, outputs, attributes) MS_OP_##name = code,
#include "ops.def"
#undef MS_OP
} ms_op_code;

typedef enum ms_memory_kind {
  MS_MEMORY_DEVICE = 0,
  MS_MEMORY_PINNED = 1  // host memory from which this device copies asynchronously
} ms_memory_kind;

typedef struct ms_device_info {
  char name[128];            // "NVIDIA H100 80GB HBM3", "AMD EPYC 9B45 (avx512-vnni)"
  uint64_t total_bytes;
  uint64_t free_bytes;       // what a process may still take now; for a CPU, aware of cgroups
  int32_t host_addressable;  // 1: device pointers may be dereferenced by the host
  int32_t emulated;
  int32_t compute_major;     // CUDA compute capability, 0 elsewhere
  int32_t compute_minor;
} ms_device_info;

typedef struct ms_context ms_context;
typedef struct ms_stream ms_stream;
typedef struct ms_event ms_event;
typedef struct ms_graph ms_graph;

typedef struct ms_backend_v1 {
  uint32_t abi;           // MS_BACKEND_ABI
  uint32_t struct_bytes;  // sizeof(ms_backend_v1): a newer addon may look for slots an older backend lacks
  const char *name;       // "cpu", "cuda"

  // Opens the driver. MS_UNAVAILABLE with one sentence that says what is missing and what to do. Idempotent.
  int (*initialize)(ms_error *error);
  // Settings by name, e.g. cpu: "threads" = "2", "isa" = "avx2". Unknown names are MS_INVALID.
  int (*configure)(const char *key, const char *value, ms_error *error);
  // A JSON object about the backend (ISAs, threads, driver version, counters), written to `json`, NUL-terminated.
  int (*describe)(char *json, size_t bytes, ms_error *error);
  int (*device_count)(int32_t *count, ms_error *error);
  int (*device_info)(int32_t device, ms_device_info *info, ms_error *error);

  int (*context_open)(int32_t device, ms_context **context, ms_error *error);
  void (*context_close)(ms_context *context);

  // Memory is 64-byte aligned (CPU) or as the driver aligns it (256 bytes and more); its contents are undefined.
  int (*memory_allocate)(ms_context *context, size_t bytes, ms_memory_kind kind, void **pointer, ms_error *error);
  int (*memory_free)(ms_context *context, void *pointer, size_t bytes, ms_memory_kind kind, ms_error *error);

  int (*stream_create)(ms_context *context, ms_stream **stream, ms_error *error);
  void (*stream_destroy)(ms_context *context, ms_stream *stream);
  int (*stream_synchronize)(ms_context *context, ms_stream *stream, ms_error *error);
  int (*event_create)(ms_context *context, ms_event **event, ms_error *error);
  void (*event_destroy)(ms_context *context, ms_event *event);
  int (*event_record)(ms_context *context, ms_event *event, ms_stream *stream, ms_error *error);
  int (*event_query)(ms_context *context, ms_event *event, int32_t *done, ms_error *error);
  int (*event_synchronize)(ms_context *context, ms_event *event, ms_error *error);
  int (*stream_wait_event)(ms_context *context, ms_stream *stream, ms_event *event, ms_error *error);

  int (*copy_to_device)(ms_context *context, ms_stream *stream, void *device, const void *host, size_t bytes, ms_error *error);
  int (*copy_to_host)(ms_context *context, ms_stream *stream, void *host, const void *device, size_t bytes, ms_error *error);
  // Both contexts belong to this backend; runs on `stream`, which belongs to the source.
  int (*copy_between_devices)(ms_context *destination_context, void *destination, ms_context *source_context, const void *source,
                              size_t bytes, ms_stream *stream, ms_error *error);
  int (*memory_zero)(ms_context *context, ms_stream *stream, void *pointer, size_t bytes, ms_error *error);

  // 1 if the op runs here at all. op_scratch and op_run check dtypes, shapes and strides of a call and refuse with MS_INVALID.
  int32_t (*op_supported)(ms_context *context, int32_t op);
  int (*op_scratch)(ms_context *context, const ms_op_call *call, size_t *bytes, ms_error *error);
  int (*op_run)(ms_context *context, ms_stream *stream, const ms_op_call *call, ms_error *error);

  // (optional: NULL) Capturing a run of ops as one launch.
  int (*graph_begin)(ms_context *context, ms_stream *stream, ms_error *error);
  int (*graph_end)(ms_context *context, ms_stream *stream, ms_graph **graph, ms_error *error);
  int (*graph_launch)(ms_context *context, ms_stream *stream, ms_graph *graph, ms_error *error);
  void (*graph_destroy)(ms_context *context, ms_graph *graph);

  // (optional: NULL) Runs task(context, 0) … task(context, tasks - 1) on the backend's own threads, the caller's among them;
  // returns when all are done. A backend that has it takes op_run on one context from several such tasks at once.
  void (*parallel)(int64_t tasks, void (*task)(void *context, int64_t index), void *context);
} ms_backend_v1;

// The one exported symbol of a backend.
typedef const ms_backend_v1 *(*ms_backend_v1_get_fn)(void);
#define MS_BACKEND_ENTRY "ms_backend_v1_get"

#ifdef __cplusplus
}
#endif
