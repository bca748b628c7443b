// See settings.h.
#include "settings.h"

#include <array>
#include <charconv>
#include <string_view>
#include <utility>

namespace metashard::emulator {

namespace {

constexpr size_t most_devices = 64;
constexpr std::array<std::pair<int, int>, 12> known_architectures = {
    {{7, 5}, {8, 0}, {8, 6}, {8, 7}, {8, 9}, {9, 0}, {10, 0}, {10, 1}, {10, 3}, {11, 0}, {12, 0}, {12, 1}}};

template <class Body>
bool each_part(std::string_view text, Body &&body) {
  while (true) {
    const size_t comma = text.find(',');
    if (!body(text.substr(0, comma))) return false;
    if (comma == text.npos) return true;
    text.remove_prefix(comma + 1);
  }
}

// A whole number at the start of `text`, which is shortened by it.
bool take_number(std::string_view &text, uint64_t &number) {
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

bool read_bytes(std::string_view text, uint64_t &bytes) {
  uint64_t number = 0;
  if (!take_number(text, number) || number == 0) return false;
  const int shift = text == "KiB" ? 10 : text == "MiB" ? 20 : text == "GiB" ? 30 : text == "TiB" ? 40 : -1;
  if (shift < 0 || number >> (46 - shift) != 0) return false;
  bytes = number << shift;
  return true;
}

// "sm_75": the last digit is the minor version.
bool read_architecture(std::string_view text, DeviceSetting &device) {
  uint64_t number = 0;
  if (!text.starts_with("sm_")) return false;
  text.remove_prefix(3);
  if (!take_number(text, number) || !text.empty() || number > 999) return false;
  device.compute_major = static_cast<int>(number / 10);
  device.compute_minor = static_cast<int>(number % 10);
  for (const auto &known : known_architectures) {
    if (known == std::pair(device.compute_major, device.compute_minor)) return true;
  }
  return false;
}

// "2GiB", "4x2GiB", "2GiB@sm_75"
bool read_devices(std::string_view text, std::vector<DeviceSetting> &devices) {
  DeviceSetting device;
  if (const size_t at = text.find('@'); at != text.npos) {
    if (!read_architecture(text.substr(at + 1), device)) return false;
    text = text.substr(0, at);
  }
  uint64_t count = 1;
  if (const size_t times = text.find('x'); times != text.npos) {
    std::string_view head = text.substr(0, times);
    if (!take_number(head, count) || !head.empty() || count == 0) return false;
    text.remove_prefix(times + 1);
  }
  if (!read_bytes(text, device.bytes) || count > most_devices - devices.size()) return false;
  devices.insert(devices.end(), count, device);
  return true;
}

}  // namespace

bool read_settings(const char *devices, const char *words, Settings &settings, std::string &why) {
  if (devices == nullptr || *devices == '\0') {
    why = "METASHARD_CUDA_EMULATED: expected devices like 4x2GiB, got nothing";
    return false;
  }
  if (!each_part(devices, [&](std::string_view part) { return read_devices(part, settings.devices); })) {
    why = std::string("METASHARD_CUDA_EMULATED: expected up to 64 devices like 4x2GiB or 2GiB,64MiB@sm_75, got \"") + devices +
          "\"";
    return false;
  }
  if (words == nullptr || *words == '\0') return true;
  const bool known = each_part(words, [&](std::string_view word) {
    if (word == "lazy") return settings.lazy = true;
    if (!word.starts_with("seed=")) return false;
    word.remove_prefix(5);
    return take_number(word, settings.seed) && word.empty();
  });
  if (!known) {
    why = std::string("METASHARD_EMULATOR: expected words of lazy, seed=NUMBER, separated by commas, got \"") + words + "\"";
  }
  return known;
}

}  // namespace metashard::emulator
