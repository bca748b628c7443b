// Single ops: the table, the counters, eager calls.
#include "op_call.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "functions.h"
#include "mapped_file.h"
#include "tensor_words.h"

namespace metashard {
namespace {

constexpr OpEntry kOps[] = {
#define MS_OP(name, code, inputs, outputs, attributes) {#name, code, inputs, outputs, attributes},
#include "metashard/ops.def"
#undef MS_OP
};

constexpr auto kOpsByCode = [] {
  std::array<const OpEntry *, kMaxOpCode + 1> table{};
  for (const OpEntry &entry : kOps) table[entry.code] = &entry;
  return table;
}();

constexpr bool table_fits() {
  for (const OpEntry &entry : kOps) {
    if (entry.inputs > MS_MAX_INPUTS || entry.outputs > MS_MAX_OUTPUTS || entry.attributes > MS_MAX_ATTRIBUTES) return false;
  }
  return true;
}
static_assert(table_fits(), "an op of ops.def takes more than ms_op_call holds");

// A cache line each: all device threads count.
struct alignas(64) Counter {
  std::atomic<uint64_t> runs{0};
};
Counter counters[kMaxOpCode + 1];

const OpEntry &required_op(Call &call, size_t index) {
  const int64_t code = call.integer(index, "op", INT32_MIN, INT32_MAX);
  const OpEntry *entry = find_op(code);
  if (entry == nullptr) MS_REFUSE("op: expected a code of opTable(), got %lld", static_cast<long long>(code));
  return *entry;
}

// An eager call and the buffers it uses.
struct EagerCall {
  ms_op_call call{};
  std::array<BufferRef, MS_MAX_INPUTS + MS_MAX_OUTPUTS> held;
};

// Reads tensors of one role; returns how many. The words may be shared memory: each tensor is copied before it is looked at.
int32_t read_tensors(std::span<const double> words, size_t most, const Context &context, ms_tensor *tensors,
                     BufferRef *held, const char *role) {
  if (words.size() % kTensorWords != 0 || words.size() / kTensorWords > most) {
    MS_REFUSE("%ss: expected at most %zu tensors of %zu numbers each, got %zu numbers", role, most, kTensorWords,
              words.size());
  }
  const size_t count = words.size() / kTensorWords;
  for (size_t i = 0; i < count; i++) {
    std::array<double, kTensorWords> copy;
    std::copy_n(words.data() + i * kTensorWords, kTensorWords, copy.data());
    tensors[i] = decode_tensor(copy.data(), context, held[i], {role, i});
  }
  return static_cast<int32_t>(count);
}

// Arguments 1 … 4: op, inputs, outputs, attributes.
void read_eager_call(Call &call, const Context &context, EagerCall &eager) {
  const OpEntry &entry = required_op(call, 1);
  ms_op_call &op = eager.call;
  op.op = entry.code;
  op.n_inputs = read_tensors(call.doubles(2, "inputs"), entry.inputs, context, op.inputs, eager.held.data(), "input");
  op.n_outputs = read_tensors(call.doubles(3, "outputs"), entry.outputs, context, op.outputs,
                              eager.held.data() + MS_MAX_INPUTS, "output");
  for (int32_t i = 0; i < op.n_outputs; i++) {
    if (op.outputs[i].data == nullptr) MS_REFUSE("output %d: expected a tensor, got none", i);
  }
  const auto attributes = call.doubles(4, "attributes");
  if (attributes.size() > static_cast<size_t>(entry.attributes)) {
    MS_REFUSE("attributes: expected at most %d for %s, got %zu", entry.attributes, entry.name, attributes.size());
  }
  op.n_attributes = static_cast<int32_t>(attributes.size());
  std::copy(attributes.begin(), attributes.end(), op.attributes);
  if (!context.supports(entry.code)) {
    MS_FAIL(MS_UNSUPPORTED, "%s: expected an op that backend %s implements", entry.name, context.backend.name.c_str());
  }
}

// Runs `work` and names the op in what it throws.
template <class Work>
auto naming_op(const ms_op_call &call, Work work) {
  try {
    return work();
  } catch (Failure &failure) {
    failure.message = std::string(find_op(call.op)->name) + ": " + failure.message;
    throw;
  }
}

}  // namespace

const OpEntry *find_op(int64_t code) { return code < 0 || code > kMaxOpCode ? nullptr : kOpsByCode[code]; }

void count_op_run(int32_t code) { counters[code].runs.fetch_add(1, std::memory_order_relaxed); }

void check_scratch(size_t needed, size_t given) {
  if (needed > given) MS_REFUSE("scratch: expected at least %zu bytes, got %zu", needed, given);
}

void run_op(Context &context, const ms_op_call &call) {
  ms_error error{};
  count_op_run(call.op);
  check(context.api().op_run(context.handle, context.stream, &call, &error), error);
}

namespace exported {

napi_value op_table(Call &call) {
  const napi_value table = call.array(std::size(kOps));
  for (uint32_t i = 0; i < std::size(kOps); i++) {
    const OpEntry &entry = kOps[i];
    const napi_value row = call.array(5);
    call.set_at(row, 0, call.string(entry.name));
    call.set_at(row, 1, call.number(entry.code));
    call.set_at(row, 2, call.number(entry.inputs));
    call.set_at(row, 3, call.number(entry.outputs));
    call.set_at(row, 4, call.number(entry.attributes));
    call.set_at(table, i, row);
  }
  return table;
}

napi_value op_scratch(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  EagerCall eager;
  read_eager_call(call, *context, eager);
  const std::lock_guard lock(context->in_use);
  const size_t bytes = naming_op(eager.call, [&] { return op_scratch_bytes(*context, eager.call); });
  return call.number(static_cast<double>(bytes));
}

napi_value call_op(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  EagerCall eager;
  BufferRef scratch;
  const double scratch_id = call.id(5, "scratch");
  if (scratch_id != 0) scratch = buffers().get(scratch_id, "scratch");
  if (scratch != nullptr && scratch->context != context) MS_REFUSE("scratch: expected a buffer of this context");
  read_eager_call(call, *context, eager);
  const std::lock_guard lock(context->in_use);
  if (scratch != nullptr) {
    eager.call.scratch = scratch->data;
    eager.call.scratch_bytes = scratch->bytes;
  }
  naming_op(eager.call, [&] {
    check_scratch(op_scratch_bytes(*context, eager.call), eager.call.scratch_bytes);
    run_op(*context, eager.call);
    check_mappings();
  });
  return nullptr;
}

napi_value op_supported(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const OpEntry *entry = find_op(call.integer(1, "op", INT32_MIN, INT32_MAX));
  return call.boolean_value(entry != nullptr && context->supports(entry->code));
}

napi_value op_calls(Call &call) {
  const OpEntry &entry = required_op(call, 0);
  return call.number(static_cast<double>(counters[entry.code].runs.load(std::memory_order_relaxed)));
}

}  // namespace exported
}  // namespace metashard
