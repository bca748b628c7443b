// See gpu_code.h. The image is put into the plugin's read-only data by the assembler: MS_GPU_IMAGE is the file's path.
#include "gpu_code.h"

#include <cstring>

asm(".pushsection .rodata\n"
    ".balign 64\n"
    "ms_gpu_image:\n"
    ".incbin \"" MS_GPU_IMAGE "\"\n"
    ".byte 0\n"  // a driver reads what is no binary as text
    ".popsection\n");
extern "C" __attribute__((visibility("hidden"))) const char ms_gpu_image[];

namespace metashard::cuda {

namespace {

constexpr int64_t longest_x = 0x7fffffff, longest_y = 65535;  // of a grid, on every GPU

// What a build without a CUDA compiler embeds (gpu_code_absent.txt). A driver refuses it; the emulated one never looks.
constexpr const char *marker = "metashard: no GPU code";

[[noreturn]] void refuse_image(const Gpu &gpu, CUresult result) {
  if (std::strncmp(ms_gpu_image, marker, std::strlen(marker)) == 0) {
    refuse(MS_UNSUPPORTED, "this build carries no GPU code: install a CUDA toolkit and run npm run build:cuda");
  }
  throw Failure{MS_UNSUPPORTED, result, Where::current(),
                "this build's GPU code does not load on " + gpu.name + " (compute capability " +
                    std::to_string(gpu.compute_major) + "." + std::to_string(gpu.compute_minor) + "): " +
                    driver().result_text(result)};
}

const Kernels *load_kernels(const Gpu &gpu) {
  CUmodule module = nullptr;
  const CUresult result = driver().cuModuleLoadData(&module, ms_gpu_image);
  if (status_of(result) == MS_OUT_OF_MEMORY || status_of(result) == MS_DEVICE_LOST) check(result, "cuModuleLoadData");
  if (result != CUDA_SUCCESS) refuse_image(gpu, result);
  auto loaded = std::make_unique<Kernels>();
#define MS_KERNEL(kernel, parameters) \
  check(driver().cuModuleGetFunction(&loaded->kernel.function, module, #kernel), "cuModuleGetFunction of " #kernel);
#include "kernels/kernel_list.def"
#undef MS_KERNEL
  return loaded.release();  // for the life of the process, as the context
}

}  // namespace

const Kernels &kernels_of(Gpu &gpu) {
  const std::lock_guard lock(gpu.opening);
  if (gpu.kernels == nullptr) gpu.kernels = load_kernels(gpu);
  return *gpu.kernels;
}

void Launcher::launch(const char *name, CUfunction function, Grid grid, unsigned threads, size_t shared_bytes,
                      void **arguments) const {
  if (grid.x == 0 || grid.y == 0) return;
  if (grid.x > longest_x || grid.y > longest_y) {
    refuse(MS_UNSUPPORTED, std::string(name) + ": expected a grid of at most 2147483647 × 65535 blocks, got " +
                               std::to_string(grid.x) + " × " + std::to_string(grid.y));
  }
  check(driver().cuLaunchKernel(function, static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), 1, threads, 1, 1,
                                static_cast<unsigned>(shared_bytes), stream_, arguments, nullptr),
        std::string("cuLaunchKernel of ") + name);
}

void Launcher::zero(void *pointer, size_t bytes) const {
  if (bytes > 0) CU_CALL(cuMemsetD8Async, reinterpret_cast<CUdeviceptr>(pointer), 0, bytes, stream_);
}

}  // namespace metashard::cuda
