// The host's side of every CUDA op: checks, dtype dispatch, and launches on the current stream, each followed by its
// check. With kernels/emulator in CUDA's place the same sources run on CPU tensors.
//
// Next: kernels/csrc/norm.cu
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "platform.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define TESSERA_NAMESPACE tessera
#define TESSERA_DEVICE_KEY CUDA
#else
#define TESSERA_NAMESPACE tessera_emulated
#define TESSERA_DEVICE_KEY CPU
#endif

// Registers implementations: TESSERA_OPS(m) { m.impl("op", TORCH_BOX(&op)); }
#define TESSERA_OPS(m) TESSERA_OPS_EXPANDED(TESSERA_NAMESPACE, TESSERA_DEVICE_KEY, m)
#define TESSERA_OPS_EXPANDED(space, key, m) STABLE_TORCH_LIBRARY_IMPL(space, key, m)

namespace tessera {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- checks

inline bool on_device(const Tensor& x) {
#ifdef __CUDACC__
  return x.is_cuda();
#else
  return x.is_cpu();
#endif
}

// Elements of a row lie side by side; rows may lie apart.
inline void check_rows(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(on_device(x), name, " must be on the ops' device");
  STD_TORCH_CHECK(x.dim() >= 1 && (x.stride(x.dim() - 1) == 1 || x.size(x.dim() - 1) <= 1), name,
                  " must have its last axis contiguous");
}

inline void check_contiguous(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(on_device(x), name, " must be on the ops' device");
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
}

inline void check_type(const Tensor& x, ScalarType type, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == type, name, " has another dtype than the op takes");
}

inline void check_shape(const Tensor& x, std::initializer_list<int64_t> shape, const char* name) {
  bool same = x.dim() == int64_t(shape.size());
  int64_t axis = 0;
  for (int64_t size : shape) same = same && x.size(axis++) == size;
  STD_TORCH_CHECK(same, name, " has another shape than its neighbours ask for");
}

// ---- pointers

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <typename T>
const T* data_or_null(const OptionalTensor& x) {
  return x.has_value() ? data<T>(*x) : nullptr;
}

// Whether an address and a step of `stride` elements keep vectors of `length` elements aligned.
template <typename T>
bool aligned(const void* pointer, int64_t stride, int length) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * length) == 0 && stride % length == 0;
}

// ---- dtype dispatch

template <typename T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>()) with the tensor's element type: fp32, bf16 or fp16.
template <typename F>
void dispatch_float(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float: return f(Tag<float>());
    case ScalarType::BFloat16: return f(Tag<bf16>());
    case ScalarType::Half: return f(Tag<fp16>());
    default: STD_TORCH_CHECK(false, "the op takes float32, bfloat16 and float16");
  }
}

// ---- launches

struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

#ifdef __CUDACC__

bool launches_wait();                        // the debug setting: see runtime.cu
cudaStream_t current_stream(int32_t device);  // torch's

// Makes the tensor's device the current one until the end of the scope.
using OnDevice = torch::stable::accelerator::DeviceGuard;
inline OnDevice on_device_of(const Tensor& x) { return OnDevice(x.get_device_index()); }

inline void check_cuda(cudaError_t status, const char* op) {
  STD_TORCH_CHECK(status == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(status));
}

// Runs a kernel on the current stream of the tensor's device; an empty grid is no launch.
template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), const Shape& shape, const Tensor& on, Arguments... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  if (shape.shared_bytes > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(shape.shared_bytes)),
               op);
  const cudaStream_t stream = current_stream(on.get_device_index());
  kernel<<<shape.grid, shape.block, shape.shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check_cuda(cudaGetLastError(), op);
  if (launches_wait()) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream, &capturing), op);
    if (capturing == cudaStreamCaptureStatusNone) check_cuda(cudaStreamSynchronize(stream), op);
  }
}

inline int multiprocessors(const Tensor& on) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, on.get_device_index()), "device");
  return count;
}

#else

struct OnDevice {
  ~OnDevice() {}  // as the guard's: it is kept for its end of scope
};
[[maybe_unused]] inline OnDevice on_device_of(const Tensor&) { return {}; }

template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), const Shape& shape, const Tensor&, Arguments... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  try {
    simt::run(shape.grid, shape.block, shape.shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
  } catch (const std::exception& error) {
    STD_TORCH_CHECK(false, op, ": ", error.what());
  }
}

inline int multiprocessors(const Tensor&) { return 4; }

#endif

}  // namespace tessera
