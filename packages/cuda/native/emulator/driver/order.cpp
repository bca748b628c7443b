// When what streams were given runs. A stream runs in order; streams of a device take turns on its one thread: by the order of
// the program, or, with a seed, at random. An operation that waits for an event holds its stream only.
//
// In lazy mode nothing runs until somebody waits, and then only what that wait depends on: its stream up to the point waited
// for, and whatever events that passes. Work that a program forgot to wait for is not done when its result is used.
#include <pthread.h>

#include <algorithm>

#include "../runtime/fault_guard.h"
#include "driver.h"

namespace metashard::emulator {

namespace {

bool may_run(const Stream &stream, bool lazy) {
  if (stream.queue.empty()) return false;
  if (lazy && stream.completed >= stream.demanded) return false;
  const PointRef &wait = stream.queue.front().wait;
  return wait == nullptr || wait->reached;
}

uint64_t random(Device &device) {  // xorshift64 (Marsaglia 2003)
  uint64_t &state = device.random_state;
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

}  // namespace

void Driver::enqueue(Stream &stream, Operation operation) {
  operation.number = ++stream.submitted;
  operation.ticket = ++tickets;
  if (operation.signal != nullptr) {
    operation.signal->stream = &stream;
    operation.signal->number = operation.number;
  }
  stream.queue.push_back(std::move(operation));
  start_thread(stream.device);
  if (stream.device.idle) stream.device.wake.notify_one();
}

void Driver::start_thread(Device &device) {
  if (device.has_thread) return;
  device.has_thread = true;
  device.random_state = (settings.seed + 1) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(device.ordinal) * 2 + 1;
  std::thread thread([this, &device] { run_streams(device); });
  pthread_setname_np(thread.native_handle(), ("emulated-gpu-" + std::to_string(device.ordinal)).substr(0, 15).c_str());
  thread.detach();
}

std::shared_ptr<Stream> Driver::next_stream(Device &device) {
  std::vector<Stream *> ready;
  for (Stream *stream : device.streams) {
    if (may_run(*stream, settings.lazy)) ready.push_back(stream);
  }
  if (ready.empty()) return nullptr;
  if (settings.seed != 0) return streams.find(ready[random(device) % ready.size()]);
  const auto ticket = [](const Stream *stream) { return stream->queue.front().ticket; };
  return streams.find(*std::ranges::min_element(ready, {}, ticket));
}

void Driver::run_streams(Device &device) {
  prepare_for_faults();
  Lock lock(mutex);
  for (;;) {
    const std::shared_ptr<Stream> stream = next_stream(device);
    if (stream == nullptr) {
      device.idle = true;
      device.wake.wait(lock);
      device.idle = false;
      continue;
    }
    const Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    Outcome outcome;
    if (operation.work && device.lost.status == CUDA_SUCCESS) {
      lock.unlock();
      outcome = operation.work();
      lock.lock();
    }
    finish(device, *stream, operation, std::move(outcome));
  }
}

void Driver::finish(Device &device, Stream &stream, const Operation &operation, Outcome outcome) {
  if (outcome.status != CUDA_SUCCESS && device.lost.status == CUDA_SUCCESS) device.lost = std::move(outcome);
  stream.completed = operation.number;
  if (operation.signal != nullptr) {
    operation.signal->reached = true;
    for (Device &other : devices) {
      if (other.idle) other.wake.notify_one();
    }
  }
  if (waiting_hosts > 0) progress.notify_all();
}

void Driver::demand(Stream &stream, uint64_t number) {
  if (!settings.lazy || stream.demanded >= number) return;
  stream.demanded = number;
  if (stream.device.idle) stream.device.wake.notify_one();
  for (const Operation &operation : stream.queue) {
    if (operation.number > number) break;
    if (operation.wait != nullptr) demand(*operation.wait);
  }
}

void Driver::demand(const Point &point) {
  if (!point.reached && point.stream != nullptr) demand(*point.stream, point.number);
}

void Driver::wait(Lock &lock, const PointRef &point) {
  const PointRef kept = point;
  demand(*kept);
  waiting_hosts++;
  progress.wait(lock, [&] { return kept->reached; });
  waiting_hosts--;
}

void Driver::wait(Lock &lock, const std::shared_ptr<Stream> &stream) {
  const std::shared_ptr<Stream> kept = stream;
  const uint64_t number = kept->submitted;
  demand(*kept, number);
  waiting_hosts++;
  progress.wait(lock, [&] { return kept->completed >= number; });
  waiting_hosts--;
}

void Driver::wait(Lock &lock, Device &device) {
  std::vector<std::shared_ptr<Stream>> all;
  for (Stream *stream : device.streams) all.push_back(streams.find(stream));
  for (const auto &stream : all) demand(*stream, stream->submitted);
  for (const auto &stream : all) wait(lock, stream);
}

}  // namespace metashard::emulator
