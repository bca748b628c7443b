// See kernel_library.h.
#include "kernel_library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>

namespace metashard::emulator {

const KernelModule *open_kernel_module(const std::string &path, std::string &why) {
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    why = dlerror();
    return nullptr;
  }
  auto *get = reinterpret_cast<KernelModuleGet *>(dlsym(library, METASHARD_KERNEL_MODULE_ENTRY));
  if (get != nullptr) return get();
  why = path + " lacks the entry point " METASHARD_KERNEL_MODULE_ENTRY;
  return nullptr;
}

const KernelEntry *find_kernel(const KernelModule &module, const char *name) {
  const KernelEntry *end = module.kernels + module.kernel_count;
  const KernelEntry *found = std::find_if(module.kernels, end, [&](const auto &k) { return std::strcmp(k.name, name) == 0; });
  return found == end ? nullptr : found;
}

namespace {

struct TlsSearch {
  uintptr_t code;  // an address in the library
  SharedMemory *memory;
};

// dl_iterate_phdr's callback: the library whose segments hold `code` tells its thread-local block on this thread.
int find_tls_block(dl_phdr_info *library, size_t, void *data) {
  auto &search = *static_cast<TlsSearch *>(data);
  bool holds_code = false;
  size_t bytes = 0;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const auto &segment = library->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD && search.code - (library->dlpi_addr + segment.p_vaddr) < segment.p_memsz) holds_code = true;
    if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
  }
  if (!holds_code) return 0;
  search.memory->block = static_cast<unsigned char *>(library->dlpi_tls_data);
  search.memory->block_bytes = search.memory->block == nullptr ? 0 : bytes;
  return 1;
}

}  // namespace

void SharedMemory::locate(const KernelModule &of) {
  if (module == &of) return;
  module = &of;
  dynamic = of.dynamic_shared();  // makes the thread's block, too
  TlsSearch search{reinterpret_cast<uintptr_t>(of.dynamic_shared), this};
  dl_iterate_phdr(find_tls_block, &search);
}

void SharedMemory::poison_dynamic(size_t bytes) const { std::memset(dynamic, poison, bytes + canary_bytes); }

void SharedMemory::poison_static() const {
  unsigned char *after = dynamic + module->dynamic_shared_bytes + canary_bytes;
  unsigned char *end = block + block_bytes;
  if (dynamic > block) std::memset(block, poison, static_cast<size_t>(dynamic - block));
  if (end > after) std::memset(after, poison, static_cast<size_t>(end - after));
}

size_t SharedMemory::static_bytes() const {
  const size_t dynamic_bytes = module->dynamic_shared_bytes + canary_bytes;
  return block_bytes > dynamic_bytes ? block_bytes - dynamic_bytes : 0;
}

bool SharedMemory::canary_intact(size_t bytes) const {
  const unsigned char *canary = dynamic + bytes;
  return std::all_of(canary, canary + canary_bytes, [](unsigned char byte) { return byte == poison; });
}

bool SharedMemory::contains(const void *address, size_t bytes) const {
  const auto *first = static_cast<const unsigned char *>(address);
  return first >= block && first + bytes <= block + block_bytes;
}

}  // namespace metashard::emulator
