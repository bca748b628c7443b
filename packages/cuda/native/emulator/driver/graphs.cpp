// Stream capture and graphs. While a stream is captured, what it is given becomes nodes of a graph; a stream that waits for an
// event of the capture joins it, and its last node has to flow back into the first stream before the capture ends. A launch
// runs the nodes one after another, in an order that their edges allow.
#include <algorithm>

#include "driver.h"

namespace metashard::emulator {

namespace {

CUresult invalidate(Capture &capture, CUresult status, std::string what) {
  capture.invalidated = true;
  return refuse(status, std::move(what));
}

void add_node(Stream &stream, Operation operation) {
  std::vector<GraphNode> &nodes = stream.capture->graph->nodes;
  std::vector<size_t> after = stream.last_nodes;
  if (operation.wait != nullptr) after.push_back(operation.wait->node);
  nodes.push_back({std::move(operation.work), std::move(after)});
  stream.last_nodes = {nodes.size() - 1};
  if (operation.signal != nullptr) {
    operation.signal->capture = stream.capture;
    operation.signal->node = nodes.size() - 1;
  }
}

// The nodes that must have run before those of `last` have.
std::vector<bool> ancestors(const Graph &graph, const std::vector<size_t> &last) {
  std::vector<bool> seen(graph.nodes.size());
  std::vector<size_t> open = last;
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    open.insert(open.end(), graph.nodes[node].after.begin(), graph.nodes[node].after.end());
  }
  return seen;
}

bool all_joined(const Capture &capture) {
  const std::vector<bool> reached = ancestors(*capture.graph, capture.origin->last_nodes);
  return std::ranges::all_of(capture.streams, [&](const Stream *stream) {
    return std::ranges::all_of(stream->last_nodes, [&](size_t node) { return reached[node]; });
  });
}

// Runs the nodes: the first that may run or, with a seed, any.
Outcome run_graph(const Graph &graph, uint64_t seed) {
  std::vector<bool> done(graph.nodes.size());
  for (size_t turn = 0; turn < graph.nodes.size(); turn++) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < graph.nodes.size(); i++) {
      const auto &after = graph.nodes[i].after;
      if (!done[i] && std::ranges::all_of(after, [&](size_t node) { return done[node]; })) ready.push_back(i);
      if (seed == 0 && !ready.empty()) break;
    }
    const size_t chosen = ready[(seed * 0x9e3779b97f4a7c15u >> 20) * (turn + 1) % ready.size()];
    done[chosen] = true;
    if (!graph.nodes[chosen].work) continue;
    Outcome outcome = graph.nodes[chosen].work();
    if (outcome.status != CUDA_SUCCESS) return outcome;
  }
  return {};
}

}  // namespace

CUresult Driver::submit(Stream &stream, Operation operation) {
  const std::shared_ptr<Capture> foreign = operation.wait == nullptr ? nullptr : operation.wait->capture;
  if (stream.capture != nullptr) {
    if (operation.wait != nullptr && foreign != stream.capture) {
      return invalidate(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                        "a captured stream waits for an event from outside");
    }
    add_node(stream, std::move(operation));
  } else if (foreign != nullptr) {
    if (foreign->ended) return refuse(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture");
    stream.capture = foreign;
    stream.last_nodes = {operation.wait->node};
    foreign->streams.insert(&stream);
  } else {
    enqueue(stream, std::move(operation));
  }
  return CUDA_SUCCESS;
}

CUresult Driver::check_no_capture(const char *call) {
  for (const Device &device : devices) {
    for (const Stream *stream : device.streams) {
      Capture *capture = stream->capture.get();
      if (capture == nullptr || capture->mode == CaptureMode::relaxed) continue;
      if (capture->mode == CaptureMode::thread_local_ && capture->thread != std::this_thread::get_id()) continue;
      return invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                        std::string(call) + ": not allowed while this thread captures a stream");
    }
  }
  return CUDA_SUCCESS;
}

MS_ENTRY cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    if (stream->capture != nullptr) return refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is being captured already");
    if (static_cast<unsigned>(mode) > 2) return refuse(CUDA_ERROR_INVALID_VALUE, "no such capture mode");
    stream->capture = std::make_shared<Capture>();
    stream->capture->graph = std::make_shared<Graph>(Graph{device, {}});
    stream->capture->origin = stream.get();
    stream->capture->mode = static_cast<CaptureMode>(mode);
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->streams = {stream.get()};
    stream->last_nodes.clear();
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuStreamEndCapture(CUstream handle, CUgraph *graph) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    *graph = nullptr;
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture == nullptr) return refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
    if (capture->origin != stream.get()) {
      return refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture was begun on another stream");
    }
    if (capture->mode != CaptureMode::relaxed && capture->thread != std::this_thread::get_id()) {
      return refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture was begun by another thread");
    }
    const bool joined = all_joined(*capture);
    capture->ended = true;
    for (Stream *member : capture->streams) {
      member->capture = nullptr;
      member->last_nodes.clear();
    }
    if (capture->invalidated) return refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier call has spoilt the capture");
    if (!joined) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "a stream that joined the capture has not flowed back");
    *graph = reinterpret_cast<CUgraph>(driver.graphs.add(capture->graph));
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph handle, unsigned long long) {
  return on_device([&](Driver &driver, auto &, Device &) {
    const auto graph = driver.graphs.find(handle);
    if (graph == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such graph");
    auto made = std::make_shared<GraphExecutable>(GraphExecutable{graph->device, graph});
    *executable = reinterpret_cast<CUgraphExec>(driver.executables.add(std::move(made)));
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuGraphDestroy(CUgraph handle) { return destroy(&Driver::graphs, handle, "no such graph"); }

MS_ENTRY cuGraphExecDestroy(CUgraphExec handle) {
  return destroy(&Driver::executables, handle, "no such executable graph");
}

MS_ENTRY cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, stream_handle, status);
    if (stream == nullptr) return status;
    const auto executable = driver.executables.find(handle);
    if (executable == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such executable graph");
    return driver.submit(*stream, {[graph = executable->graph, seed = driver.settings.seed] { return run_graph(*graph, seed); },
                                   {}, {}});
  });
}

}  // namespace metashard::emulator
