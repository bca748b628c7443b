// Between float dtypes (through float32, which holds both others exactly) and from integers to float32; any rank and strides.
#include "ops/elementwise.h"

namespace {

struct cast_call {
  operand x, out;
};

bool is_float(int32_t dtype) { return (any_float >> dtype & 1) != 0; }

cast_call read(const op_arguments &arguments) {
  const operand x = arguments.input(0, "x", any_dtype);
  cast_call call = {x, arguments.output(0, "out", is_float(x.dtype) ? any_float : f32_only)};
  arguments.same_shape(call.out, "out", call.x);
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

template <typename Integer>
void integers_to_float32(float *out, const char *in, int64_t n) {
  const Integer *from = reinterpret_cast<const Integer *>(in);
  for (int64_t i = 0; i < n; i++) out[i] = float(from[i]);
}

void any_to_float32(const vector_ops &vectors, float *out, const char *in, int32_t dtype, int64_t n) {
  switch (dtype) {
    case MS_INT8: return integers_to_float32<int8_t>(out, in, n);
    case MS_UINT8: return integers_to_float32<uint8_t>(out, in, n);
    case MS_BOOL:
      for (int64_t i = 0; i < n; i++) out[i] = in[i] != 0 ? 1.0f : 0.0f;
      return;
    case MS_INT32: return integers_to_float32<int32_t>(out, in, n);
    case MS_INT64: return integers_to_float32<int64_t>(out, in, n);
    default: return vectors.to_float32(out, in, dtype, n);
  }
}

// The workspace holds, for one run: x gathered, x as float32, out before it is scattered.
void cast_run(const cast_call &call, const element_run &run, const vector_ops &vectors) {
  char *gathered = static_cast<char *>(thread_workspace());
  char *floats = gathered + longest_run * 8, *converted = gathered;
  const int64_t in_bytes = dtype_bytes(call.x.dtype), out_bytes = dtype_bytes(call.out.dtype);
  const char *in = run.data[1];
  if (run.stride_bytes[1] != in_bytes) {
    gather(gathered, run.data[1], run.stride_bytes[1], run.count, in_bytes);
    in = gathered;
  }
  const bool direct = run.stride_bytes[0] == out_bytes;
  const bool last = direct && call.out.dtype == MS_FLOAT32;
  any_to_float32(vectors, reinterpret_cast<float *>(last ? run.data[0] : floats), in, call.x.dtype, run.count);
  if (last) return;
  vectors.from_float32(direct ? run.data[0] : converted, call.out.dtype, reinterpret_cast<float *>(floats), run.count);
  if (!direct) scatter(run.data[0], run.stride_bytes[0], converted, run.count, out_bytes);
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const cast_call call = read(arguments);
  element_walk({&call.out, &call.x}).run([&](const element_run &run) { cast_run(call, run, *isa.vectors); });
}

}  // namespace

const op_definition op_cast = {scratch, run};
