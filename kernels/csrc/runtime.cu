// What all launches share at run time: torch's stream, and the debug setting that waits after each launch.
//
// Next: kernels/csrc/ops.cpp
#include "launch.h"

#ifdef __CUDACC__

#include <dlfcn.h>

#include <atomic>

namespace tessera {
namespace {

std::atomic<bool> waiting{false};

using CurrentStream = int32_t (*)(int32_t, void**);

// Looked up instead of linked: a CPU build of torch has no such symbol, and this library should load beside it too,
// for what can be checked without a device.
CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  STD_TORCH_CHECK(symbol != nullptr, "this build of torch has no CUDA");
  return reinterpret_cast<CurrentStream>(symbol);
}

}  // namespace

bool launches_wait() { return waiting.load(std::memory_order_relaxed); }

cudaStream_t current_stream(int32_t device) {
  static const CurrentStream find = find_current_stream();
  void* stream = nullptr;
  STD_TORCH_CHECK(find(device, &stream) == 0, "the current CUDA stream could not be found");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace tessera

// Makes every launch wait for its end and check it (1) or not (0), for finding the launch that fails.
extern "C" __attribute__((visibility("default"))) void tessera_launches_wait(int wait) {
  tessera::waiting.store(wait != 0, std::memory_order_relaxed);
}

#endif
