// The slots of streams, events and graphs. Streams are non-blocking (never ordered with the legacy default stream), events
// carry no time, captures are thread-local: other threads may go on allocating.
#include "stream.h"

#include "slots.h"

struct ms_event {
  metashard::cuda::CUevent handle = nullptr;
};
struct ms_graph {
  metashard::cuda::CUgraphExec handle = nullptr;
};

namespace metashard::cuda {

int stream_create(ms_context *context, ms_stream **stream, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    auto made = std::make_unique<ms_stream>();
    CU_CALL(cuStreamCreate, &made->handle, CU_STREAM_NON_BLOCKING);
    *stream = made.release();
  });
}

void stream_destroy(ms_context *context, ms_stream *stream) {
  const std::unique_ptr<ms_stream> owned(stream);
  quietly([&] {
    enter(context);
    if (!owned->lanes.empty()) driver().cuStreamSynchronize(owned->handle);  // copies still use the lanes' windows
    owned->lanes.clear();
    enter(context);
    driver().cuStreamDestroy_v2(owned->handle);
  });
}

int stream_synchronize(ms_context *context, ms_stream *stream, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    CU_CALL(cuStreamSynchronize, stream->handle);
  });
}

int event_create(ms_context *context, ms_event **event, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    auto made = std::make_unique<ms_event>();
    CU_CALL(cuEventCreate, &made->handle, CU_EVENT_DISABLE_TIMING);
    *event = made.release();
  });
}

void event_destroy(ms_context *context, ms_event *event) {
  const std::unique_ptr<ms_event> owned(event);
  quietly([&] {
    enter(context);
    driver().cuEventDestroy_v2(owned->handle);
  });
}

int event_record(ms_context *context, ms_event *event, ms_stream *stream, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    CU_CALL(cuEventRecord, event->handle, stream->handle);
  });
}

int event_query(ms_context *context, ms_event *event, int32_t *done, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    const CUresult result = driver().cuEventQuery(event->handle);
    if (result != CUDA_ERROR_NOT_READY) check(result, "cuEventQuery");
    *done = result == CUDA_SUCCESS ? 1 : 0;
  });
}

int event_synchronize(ms_context *context, ms_event *event, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    CU_CALL(cuEventSynchronize, event->handle);
  });
}

int stream_wait_event(ms_context *context, ms_stream *stream, ms_event *event, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    CU_CALL(cuStreamWaitEvent, stream->handle, event->handle, 0);
  });
}

int graph_begin(ms_context *context, ms_stream *stream, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    CU_CALL(cuStreamBeginCapture_v2, stream->handle, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  });
}

int graph_end(ms_context *context, ms_stream *stream, ms_graph **graph, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    auto made = std::make_unique<ms_graph>();
    CUgraph captured = nullptr;
    CU_CALL(cuStreamEndCapture, stream->handle, &captured);
    const CUresult result = driver().cuGraphInstantiateWithFlags(&made->handle, captured, 0);
    driver().cuGraphDestroy(captured);
    check(result, "cuGraphInstantiateWithFlags");
    *graph = made.release();
  });
}

int graph_launch(ms_context *context, ms_stream *stream, ms_graph *graph, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    CU_CALL(cuGraphLaunch, graph->handle, stream->handle);
  });
}

void graph_destroy(ms_context *context, ms_graph *graph) {
  const std::unique_ptr<ms_graph> owned(graph);
  quietly([&] {
    enter(context);
    driver().cuGraphExecDestroy(owned->handle);
  });
}

}  // namespace metashard::cuda
