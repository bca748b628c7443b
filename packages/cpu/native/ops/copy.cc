// A copy of a strided view, any dtype, rank and strides.
#include "ops/elementwise.h"

namespace {

struct copy_call {
  operand x, out;
};

copy_call read(const op_arguments &arguments) {
  copy_call call = {arguments.input(0, "x", any_dtype), arguments.output(0, "out", any_dtype)};
  arguments.same_shape(call.out, "out", call.x);
  EXPECT(call.out.dtype == call.x.dtype, "copy: expected out of the dtype of x (code %d), got code %d", call.x.dtype,
         call.out.dtype);
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &) {
  const copy_call call = read(arguments);
  const int64_t bytes = dtype_bytes(call.x.dtype);
  element_walk({&call.out, &call.x}).run([&](const element_run &run) {
    if (run.stride_bytes[1] == bytes) {
      scatter(run.data[0], run.stride_bytes[0], run.data[1], run.count, bytes);
    } else if (run.stride_bytes[0] == bytes) {
      gather(run.data[0], run.data[1], run.stride_bytes[1], run.count, bytes);
    } else {
      char *buffer = static_cast<char *>(thread_workspace());
      gather(buffer, run.data[1], run.stride_bytes[1], run.count, bytes);
      scatter(run.data[0], run.stride_bytes[0], buffer, run.count, bytes);
    }
  });
}

}  // namespace

const op_definition op_copy = {scratch, run};
