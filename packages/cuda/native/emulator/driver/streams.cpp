// The entry points of streams and events. An event is the point that its last record has put into a stream's order; a stream
// that waits for an event waits for the point that is there at the call.
#include <algorithm>

#include "driver.h"

namespace metashard::emulator {

std::shared_ptr<Stream> Driver::stream_of(const Device &device, CUstream handle, CUresult &status) {
  std::shared_ptr<Stream> stream = streams.find(handle);
  if (handle == nullptr) {
    status = refuse(CUDA_ERROR_INVALID_HANDLE, "the emulated driver has no default stream: create one");
  } else if (stream == nullptr) {
    status = refuse(CUDA_ERROR_INVALID_HANDLE, "no such stream");
  } else if (&stream->device != &device) {
    status = refuse(CUDA_ERROR_INVALID_HANDLE, "the stream belongs to device " + std::to_string(stream->device.ordinal) +
                                                   ", the current context to device " + std::to_string(device.ordinal));
    stream = nullptr;
  }
  return stream;
}

namespace {

constexpr unsigned stream_flags = CU_STREAM_NON_BLOCKING;
constexpr unsigned event_flags = CU_EVENT_DISABLE_TIMING | 1;  // and CU_EVENT_BLOCKING_SYNC

CUresult no_such_event() { return refuse(CUDA_ERROR_INVALID_HANDLE, "no such event"); }

CUresult captured_event(const char *call) {
  return refuse(CUDA_ERROR_CAPTURED_EVENT, std::string(call) + ": the event was last recorded in a capture");
}

}  // namespace

MS_ENTRY cuStreamCreate(CUstream *handle, unsigned int flags) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    if ((flags & ~stream_flags) != 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamCreate: unknown flags");
    Stream *stream = driver.streams.add(std::make_shared<Stream>(Stream{.device = device}));
    device.streams.push_back(stream);
    *handle = reinterpret_cast<CUstream>(stream);
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuStreamDestroy_v2(CUstream handle) {
  return on_device([&](Driver &driver, auto &lock, Device &) {
    const auto stream = driver.streams.find(handle);
    if (stream == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream->capture != nullptr) {
      stream->capture->invalidated = true;
      stream->capture->streams.erase(stream.get());
    }
    driver.wait(lock, stream);
    std::erase(stream->device.streams, stream.get());
    driver.streams.remove(stream);
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuStreamSynchronize(CUstream handle) {
  return on_device([&](Driver &driver, auto &lock, Device &) {
    const auto stream = driver.streams.find(handle);
    if (stream == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream->capture != nullptr) {
      stream->capture->invalidated = true;
      return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize: the stream is being captured");
    }
    driver.wait(lock, stream);
    return state_of(stream->device);
  });
}

MS_ENTRY cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int) {
  return on_device([&](Driver &driver, auto &, Device &) {
    const auto stream = driver.streams.find(handle);
    const auto event = driver.events.find(event_handle);
    if (stream == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (event == nullptr) return no_such_event();
    if (event->point == nullptr) return CUDA_SUCCESS;
    return driver.submit(*stream, {{}, event->point, {}});
  });
}

MS_ENTRY cuEventCreate(CUevent *handle, unsigned int flags) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    if ((flags & ~event_flags) != 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuEventCreate: unknown flags");
    *handle = reinterpret_cast<CUevent>(driver.events.add(std::make_shared<Event>(Event{device, nullptr})));
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuEventDestroy_v2(CUevent handle) { return destroy(&Driver::events, handle, "no such event"); }

MS_ENTRY cuEventRecord(CUevent handle, CUstream stream_handle) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, stream_handle, status);
    if (stream == nullptr) return status;
    const auto event = driver.events.find(handle);
    if (event == nullptr) return no_such_event();
    if (&event->device != &stream->device) {
      return refuse(CUDA_ERROR_INVALID_HANDLE, "the event and the stream belong to different devices");
    }
    event->point = std::make_shared<Point>();
    return driver.submit(*stream, {{}, {}, event->point});
  });
}

MS_ENTRY cuEventQuery(CUevent handle) {
  return on_device([&](Driver &driver, auto &, Device &) {
    const auto event = driver.events.find(handle);
    if (event == nullptr) return no_such_event();
    if (event->point == nullptr) return CUDA_SUCCESS;
    if (event->point->capture != nullptr) return captured_event("cuEventQuery");
    if (event->point->reached) return state_of(event->device);
    driver.demand(*event->point);  // who asks again and again waits, too
    return CUDA_ERROR_NOT_READY;
  });
}

MS_ENTRY cuEventSynchronize(CUevent handle) {
  return on_device([&](Driver &driver, auto &lock, Device &) {
    const auto event = driver.events.find(handle);
    if (event == nullptr) return no_such_event();
    if (event->point == nullptr) return CUDA_SUCCESS;
    if (event->point->capture != nullptr) return captured_event("cuEventSynchronize");
    driver.wait(lock, event->point);
    return state_of(event->device);
  });
}

}  // namespace metashard::emulator
