// The plugin's one exported symbol, its table of slots, and the slots about the backend as a whole.
#include <metashard/backend.h>

#include <cstring>

#include "device.h"
#include "peer_copy.h"
#include "slots.h"

namespace metashard::cuda {

namespace {

int initialize(ms_error *error) {
  return guarded(error, [] { device_list(); });
}

int configure(const char *key, const char *, ms_error *error) {
  return guarded(error, [&] { refuse(MS_INVALID, std::string("setting \"") + key + "\": the cuda backend has no settings"); });
}

std::string json_string(const std::string &text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return quoted + '"';
}

// {"driver":"libcuda.so.1","driverVersion":13000,"gpus":2,"devicesPerGpu":1,"peers":[{"from":0,"to":1,"direct":true}]};
// `peers` lists the pairs of GPUs that have copied so far.
std::string description() {
  const DeviceList &list = device_list();
  std::string json = "{\"driver\":";
  json += json_string(driver().path);
  json += ",\"driverVersion\":" + std::to_string(driver().version);
  json += ",\"gpus\":" + std::to_string(list.gpus.size());
  json += ",\"devicesPerGpu\":" + std::to_string(list.parts) + ",\"peers\":[";
  for (const auto &[pair, link] : peer_links()) {
    if (json.back() == '}') json += ',';
    json += "{\"from\":" + std::to_string(pair.first) + ",\"to\":" + std::to_string(pair.second);
    json += link == PeerLink::direct ? ",\"direct\":true}" : ",\"direct\":false}";
  }
  return json + "]}";
}

int describe(char *json, size_t bytes, ms_error *error) {
  return guarded(error, [&] {
    const std::string text = description();
    if (text.size() >= bytes) {
      refuse(MS_INVALID,
             "expected room for " + std::to_string(text.size() + 1) + " bytes, got " + std::to_string(bytes));
    }
    std::memcpy(json, text.c_str(), text.size() + 1);
  });
}

constexpr ms_backend_v1 backend = {
    .abi = MS_BACKEND_ABI,
    .struct_bytes = sizeof(ms_backend_v1),
    .name = "cuda",
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
    .graph_begin = graph_begin,
    .graph_end = graph_end,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
};

}  // namespace

}  // namespace metashard::cuda

extern "C" __attribute__((visibility("default"))) const ms_backend_v1 *ms_backend_v1_get() { return &metashard::cuda::backend; }
