// Decoding, checking and running programs.
#include "program.h"

#include "functions.h"
#include "mapped_file.h"

namespace metashard {
namespace {

constexpr int64_t kLargest = (1ll << 53) - 1;
constexpr size_t kHeaderWords = 3;
constexpr size_t kOpHeaderWords = 4;
constexpr int64_t kMostBindings = 1 << 16;

bool has_symbols(const ms_tensor &tensor) {
  for (int i = 0; i < tensor.rank; i++) {
    if (tensor.shape[i] < 0) return true;
  }
  return false;
}

}  // namespace

IdTable<Program, IdKind::program> &programs() {
  static auto &table = *new IdTable<Program, IdKind::program>;
  return table;
}

Program::Program(ContextRef owner, std::span<const double> code) : context(std::move(owner)) {
  if (code.size() < kHeaderWords) MS_REFUSE("code: expected at least %zu numbers, got %zu", kHeaderWords, code.size());
  const auto most = static_cast<int64_t>(code.size());
  const auto tensors = static_cast<size_t>(word_integer(code[0], 0, most, {"code", 0}, "a tensor count"));
  const auto ops = static_cast<size_t>(word_integer(code[1], 0, most, {"code", 1}, "an op count"));
  if (code[2] != 0) {
    scratch_ = buffers().get(code[2], "scratch");
    if (scratch_->context != context) MS_REFUSE("scratch: expected a buffer of this context");
  }
  size_t at = decode_tensor_list(code, tensors);
  if (ops > (code.size() - at) / kOpHeaderWords) {
    MS_REFUSE("code: expected %zu ops after its tensors, got %zu numbers", ops, code.size() - at);
  }
  ops_.reserve(ops);
  while (ops_.size() < ops) at = decode_op(code, at);
  if (at != code.size()) MS_REFUSE("code: expected %zu numbers, got %zu", at, code.size());
  bound_.resize(binding_count_);
}

// Reads the tensors; returns the index of the first word behind them.
size_t Program::decode_tensor_list(std::span<const double> code, size_t count) {
  if (count > (code.size() - kHeaderWords) / kProgramTensorWords) {
    MS_REFUSE("code: expected %zu tensors of %zu numbers, got %zu numbers", count, kProgramTensorWords, code.size());
  }
  tensors_.resize(count);
  for (size_t i = 0; i < count; i++) {
    const double *words = code.data() + kHeaderWords + i * kProgramTensorWords;
    Tensor &tensor = tensors_[i];
    const Place place{"tensor", i};
    tensor.source = static_cast<Source>(word_integer(words[0], 0, 2, place, "a source"));
    if (tensor.source == Source::absent) continue;
    tensor.offset = word_integer(words[2], 0, kLargest, place, "a byte offset");
    tensor.tensor = decode_shape(words + 3, true, place);
    tensor.symbolic = has_symbols(tensor.tensor);
    if (tensor.source == Source::binding) {
      tensor.binding = static_cast<uint32_t>(word_integer(words[1], 0, kMostBindings - 1, place, "a binding"));
      binding_count_ = std::max<size_t>(binding_count_, tensor.binding + 1);
      continue;
    }
    tensor.buffer = buffers().find(words[1]);
    if (tensor.buffer == nullptr || tensor.buffer->context != context) {
      MS_REFUSE("tensor %zu: expected the id of a live buffer of this context, got %.17g", i, words[1]);
    }
    tensor.tensor.data = tensor.buffer->data + tensor.offset;
    if (!tensor.symbolic) {
      check_placement(tensor.tensor, static_cast<uint64_t>(tensor.offset), tensor.buffer->bytes, place);
    }
  }
  return kHeaderWords + count * kProgramTensorWords;
}

// Reads the op at `at`; returns the index of the word behind it.
size_t Program::decode_op(std::span<const double> code, size_t at) {
  const Place place{"op", ops_.size()};
  if (code.size() - at < kOpHeaderWords) MS_REFUSE("op %zu: expected %zu numbers, got the end", place.index, kOpHeaderWords);
  const OpEntry *entry = find_op(word_integer(code[at], INT32_MIN, INT32_MAX, place, "an op code"));
  if (entry == nullptr) MS_REFUSE("op %zu: expected an op code of opTable(), got %.17g", place.index, code[at]);
  if (!context->supports(entry->code)) {
    MS_FAIL(MS_UNSUPPORTED, "op %zu (%s): expected an op that backend %s implements", place.index, entry->name,
            context->backend.name.c_str());
  }
  Op &op = ops_.emplace_back();
  op.call.op = entry->code;
  op.call.n_inputs = static_cast<int32_t>(word_integer(code[at + 1], 0, entry->inputs, place, "an input count"));
  op.call.n_outputs = static_cast<int32_t>(word_integer(code[at + 2], 0, entry->outputs, place, "an output count"));
  op.call.n_attributes = static_cast<int32_t>(word_integer(code[at + 3], 0, entry->attributes, place, "an attribute count"));
  op.first_tensor = op_tensors_.size();
  at += kOpHeaderWords;
  const size_t operands = static_cast<size_t>(op.call.n_inputs + op.call.n_outputs);
  if (code.size() - at < operands + static_cast<size_t>(op.call.n_attributes)) {
    MS_REFUSE("op %zu (%s): expected its tensors and attributes, got the end", place.index, entry->name);
  }
  for (size_t i = 0; i < operands; i++) {
    op_tensors_.push_back(tensor_index(code[at + i], i >= static_cast<size_t>(op.call.n_inputs), place));
  }
  at += operands;
  for (int32_t i = 0; i < op.call.n_attributes; i++) op.call.attributes[i] = code[at + static_cast<size_t>(i)];
  if (scratch_ != nullptr) {
    op.call.scratch = scratch_->data;
    op.call.scratch_bytes = scratch_->bytes;
  }
  return at + static_cast<size_t>(op.call.n_attributes);
}

uint32_t Program::tensor_index(double word, bool output, Place place) const {
  const int64_t index = word_integer(word, 0, static_cast<int64_t>(tensors_.size()) - 1, place, "a tensor index");
  if (output && tensors_[static_cast<size_t>(index)].source == Source::absent) {
    MS_REFUSE("op %zu: expected an output, got the absent tensor %lld", place.index, static_cast<long long>(index));
  }
  return static_cast<uint32_t>(index);
}

// Calls prepared for other sizes or other memory are out of date from here on.
void Program::note_changes(const Dims &dims, std::span<const Binding> bindings) {
  bool changed = dims != dims_;
  if (changed) {
    dims_ = dims;
    dims_version_++;
  }
  for (size_t i = 0; i < bound_.size(); i++) {
    if (bound_[i].id == bindings[i].id && bound_[i].offset == bindings[i].offset) continue;
    bound_[i] = {bindings[i].id, bindings[i].offset};
    changed = true;
  }
  if (changed) version_++;
}

void Program::resolve(const Tensor &from, ms_tensor &to, const Dims &dims, std::span<const Binding> bindings,
                      Place place) const {
  to = from.tensor;
  if (from.source == Source::absent || (from.source == Source::buffer && !from.symbolic)) return;
  if (from.symbolic) {
    for (int i = 0; i < to.rank; i++) {
      if (to.shape[i] < 0) to.shape[i] = dims[static_cast<size_t>(-1 - to.shape[i])];
    }
  }
  int64_t offset = from.offset;
  const Buffer *buffer = from.buffer.get();
  if (from.source == Source::binding) {
    const Binding &binding = bindings[from.binding];
    buffer = binding.buffer.get();
    if (buffer == nullptr) MS_REFUSE("%s %zu: expected binding %u to be bound", place.role, place.index, from.binding);
    offset += binding.offset;
    to.data = buffer->data + offset;
  }
  check_placement(to, static_cast<uint64_t>(offset), buffer->bytes, place);
}

void Program::prepare(Op &op, const Dims &dims, std::span<const Binding> bindings) const {
  const uint32_t *indices = op_tensors_.data() + op.first_tensor;
  for (int32_t i = 0; i < op.call.n_inputs; i++) {
    resolve(tensors_[*indices++], op.call.inputs[i], dims, bindings, {"input", static_cast<size_t>(i)});
  }
  for (int32_t i = 0; i < op.call.n_outputs; i++) {
    resolve(tensors_[*indices++], op.call.outputs[i], dims, bindings, {"output", static_cast<size_t>(i)});
  }
  op.prepared_for = version_;
}

void Program::check_scratch_of(Op &op) {
  check_scratch(op_scratch_bytes(*context, op.call), op.call.scratch_bytes);
  op.scratch_for = dims_version_;
}

void Program::run(const Dims &dims, std::span<const Binding> bindings, size_t first, size_t end) {
  note_changes(dims, bindings);
  const ms_backend_v1 &api = context->api();
  ms_error error{};
  for (size_t i = first; i < end; i++) {
    Op &op = ops_[i];
    try {
      if (op.prepared_for != version_) prepare(op, dims, bindings);
      if (op.scratch_for != dims_version_) check_scratch_of(op);
      count_op_run(op.call.op);
      check(api.op_run(context->handle, context->stream, &op.call, &error), error);
    } catch (Failure &failure) {
      fail_at(op, std::move(failure));
    }
  }
}

void Program::fail_at(const Op &op, Failure failure) const {
  const auto index = static_cast<size_t>(&op - ops_.data());
  failure.message = "op " + std::to_string(index) + " (" + find_op(op.call.op)->name + "): " + failure.message;
  throw failure;
}

namespace exported {
namespace {

Dims read_dims(Call &call, size_t index) {
  const auto words = call.ints(index, "dims");
  if (words.size() != 3) MS_REFUSE("dims: expected [tokens, sequences, outputs], got %zu numbers", words.size());
  const Dims dims{words[0], words[1], words[2]};
  for (const int64_t dim : dims) {
    if (dim < 0) MS_REFUSE("dims: expected sizes of 0 and more, got %lld", static_cast<long long>(dim));
  }
  return dims;
}

// Reads [buffer id, byte offset] pairs; id 0 is an unbound one.
std::vector<Program::Binding> read_bindings(Call &call, size_t index, const Program &program) {
  const auto words = call.doubles(index, "bindings");
  const size_t count = program.binding_count();
  if (words.size() % 2 != 0 || words.size() / 2 < count) {
    MS_REFUSE("bindings: expected %zu pairs of buffer id and byte offset, got %zu numbers", count, words.size());
  }
  std::vector<Program::Binding> bindings(count);
  for (size_t i = 0; i < count; i++) {
    Program::Binding &binding = bindings[i];
    binding.id = words[2 * i];
    if (binding.id == 0) continue;
    binding.buffer = buffers().find(binding.id);
    if (binding.buffer == nullptr || binding.buffer->context != program.context) {
      MS_REFUSE("binding %zu: expected the id of a live buffer of the program's context, got %.17g", i, binding.id);
    }
    binding.offset = word_integer(words[2 * i + 1], 0, kLargest, {"binding", i}, "a byte offset");
  }
  return bindings;
}

}  // namespace

napi_value create_program(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const auto words = call.doubles(1, "code");
  // Copied first: shared memory could change between check and use.
  const std::vector<double> code(words.begin(), words.end());
  const auto program = std::make_shared<Program>(context, code);
  const double id = programs().insert(program);
  try {
    context->own_program(id);
  } catch (...) {
    programs().remove(id);
    throw;
  }
  return call.number(id);
}

napi_value run_program(Call &call) {
  const std::shared_ptr<Program> program = programs().get(call.id(0, "program"), "program");
  const Dims dims = read_dims(call, 1);
  const std::vector<Program::Binding> bindings = read_bindings(call, 2, *program);
  const auto count = static_cast<int64_t>(program->op_count());
  const int64_t end = call.integer(4, "end", 0, count);
  const int64_t first = call.integer(3, "first", 0, end);
  const std::lock_guard lock(program->context->in_use);
  program->run(dims, bindings, static_cast<size_t>(first), static_cast<size_t>(end));
  check_mappings();
  return nullptr;
}

napi_value free_program(Call &call) {
  const double id = call.id(0, "program");
  const std::shared_ptr<Program> program = programs().take(id, "program");
  program->context->disown(id);
  return nullptr;
}

}  // namespace exported
}  // namespace metashard
