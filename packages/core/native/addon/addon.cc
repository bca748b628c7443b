// Registration of the addon: the table of exported functions, the one boundary where native failures become JavaScript errors,
// and the closing of what a thread left open. Several threads load this addon; each has its own Environment, everything else is
// process-wide and guards itself.
#include <new>

#include "file.h"
#include "functions.h"
#include "memory.h"

namespace metashard {
namespace {

namespace fn = exported;

constexpr Function kFunctions[] = {
    {"opTable", fn::op_table},
    {"threadId", fn::thread_id},
    {"processMemory", fn::process_memory},
    {"loadBackend", fn::load_backend},
    {"configureBackend", fn::configure_backend},
    {"describeBackend", fn::describe_backend},
    {"deviceCount", fn::device_count},
    {"deviceInfo", fn::device_info},
    {"openContext", fn::open_context},
    {"closeContext", fn::close_context},
    {"contextStats", fn::context_stats},
    {"synchronize", fn::synchronize},
    {"alloc", fn::alloc},
    {"allocPinned", fn::alloc_pinned},
    {"free", fn::free},
    {"bufferBytes", fn::buffer_bytes},
    {"write", fn::write},
    {"read", fn::read},
    {"zero", fn::zero},
    {"copy", fn::copy},
    {"opScratch", fn::op_scratch},
    {"callOp", fn::call_op},
    {"opSupported", fn::op_supported},
    {"opCalls", fn::op_calls},
    {"createProgram", fn::create_program},
    {"runProgram", fn::run_program},
    {"freeProgram", fn::free_program},
    {"openFile", fn::open_file},
    {"fileBytes", fn::file_bytes},
    {"readFile", fn::read_file},
    {"closeFile", fn::close_file},
    {"loadWeight", fn::load_weight},
    {"releaseLoading", fn::release_loading},
    {"mapFile", fn::map_file},
    {"advise", fn::advise},
    {"openFeed", fn::open_feed},
    {"askFeed", fn::ask_feed},
    {"waitFeed", fn::wait_feed},
    {"usedFeed", fn::used_feed},
    {"resetFeed", fn::reset_feed},
};

napi_value invoke(napi_env env, napi_callback_info info) {
  Call call(env, info);
  try {
    return call.function().run(call);
  } catch (const Failure &failure) {
    throw_to_javascript(env, call.function(), failure);
  } catch (const std::bad_alloc &) {
    throw_to_javascript(env, call.function(), {MS_OUT_OF_MEMORY, 0, __FILE__, __LINE__, "host memory: none is left"});
  } catch (const std::exception &error) {
    throw_to_javascript(env, call.function(), {MS_INTERNAL, 0, __FILE__, __LINE__, error.what()});
  }
  return nullptr;
}

// Runs on the ending thread after its last JavaScript. Contexts of other threads are none of its business.
void end_environment(void *data) {
  auto *environment = static_cast<Environment *>(data);
  for (const double id : environment->contexts) {
    const ContextRef context = contexts().remove(id);
    if (context != nullptr) context->close();  // else another thread has closed it
  }
  for (const double id : environment->files) files().remove(id);
  delete environment;
}

}  // namespace
}  // namespace metashard

NAPI_MODULE_INIT() {
  using namespace metashard;
  auto *environment = new Environment;
  napi_set_instance_data(env, environment, nullptr, nullptr);
  napi_add_env_cleanup_hook(env, end_environment, environment);

  napi_value value;
  for (const Function &function : kFunctions) {
    napi_create_function(env, function.name, NAPI_AUTO_LENGTH, invoke, const_cast<Function *>(&function), &value);
    napi_set_named_property(env, exports, function.name, value);
  }
  napi_create_uint32(env, MS_BACKEND_ABI, &value);
  napi_set_named_property(env, exports, "abi", value);
  return exports;
}
