// The functions that the addon exports, by the file that defines them; native.ts says what each takes, does and throws.
#pragma once
#include "arguments.h"

namespace metashard::exported {

// registry.cc
napi_value load_backend(Call &call);
napi_value configure_backend(Call &call);
napi_value describe_backend(Call &call);
napi_value device_count(Call &call);
napi_value device_info(Call &call);

// memory.cc
napi_value open_context(Call &call);
napi_value close_context(Call &call);
napi_value context_stats(Call &call);
napi_value synchronize(Call &call);
napi_value alloc(Call &call);
napi_value alloc_pinned(Call &call);
napi_value free(Call &call);
napi_value buffer_bytes(Call &call);

// copy.cc
napi_value write(Call &call);
napi_value read(Call &call);
napi_value zero(Call &call);
napi_value copy(Call &call);

// op_call.cc
napi_value op_table(Call &call);
napi_value op_scratch(Call &call);
napi_value call_op(Call &call);
napi_value op_supported(Call &call);
napi_value op_calls(Call &call);

// program.cc
napi_value create_program(Call &call);
napi_value run_program(Call &call);
napi_value free_program(Call &call);

// file.cc
napi_value open_file(Call &call);
napi_value file_bytes(Call &call);
napi_value read_file(Call &call);
napi_value close_file(Call &call);

// mapped_file.cc
napi_value map_file(Call &call);
napi_value advise(Call &call);

// load_weight.cc
napi_value load_weight(Call &call);
napi_value release_loading(Call &call);

// weight_feed.cc
napi_value open_feed(Call &call);
napi_value ask_feed(Call &call);
napi_value wait_feed(Call &call);
napi_value used_feed(Call &call);
napi_value reset_feed(Call &call);

// process.cc
napi_value thread_id(Call &call);
napi_value process_memory(Call &call);

}  // namespace metashard::exported
