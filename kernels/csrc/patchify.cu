// Pixels to patch rows.
//
// Next: kernels/csrc/positions.cu
#include "patchify.cuh"

#include <cmath>

#include "launch.h"

namespace tessera {
namespace {

constexpr int64_t kMostWarps = 4;  // of a block
constexpr int64_t kMostShared = 96 * 1024;

template <typename T, int Patch, int Run>
void launch_patches(const PatchArguments<T>& a, const Tensor& on) {
  const int64_t members = a.merge * a.merge, staged = members * Patch * Patch * kChannels * a.temporal;
  const int64_t warps = staged ? min(kMostWarps, kMostShared / staged) : kMostWarps;
  const int64_t blocks = ceil_div(ceil_div(a.rows, members), warps);
  launch("centred_patches", patches_kernel<T, Patch, Run>,
         {unsigned(blocks), unsigned(warps * kWarpSize), size_t(warps * staged)}, on, a);
}

// The sides that models have get kernels of their own; vectors are as long as a channel's columns allow.
template <typename T, int Patch>
void launch_side(const PatchArguments<T>& a, const Tensor& on) {
  constexpr int kLength = kVectorLength<T>;
  if (a.temporal * Patch * Patch % kLength == 0) return launch_patches<T, Patch, kLength>(a, on);
  if constexpr (kLength > 4) launch_patches<T, Patch, 4>(a, on);
}

Tensor centred_patches(Tensor pixels, Tensor items, int64_t rows, int64_t patch, int64_t merge, int64_t temporal,
                       double centre, ScalarType dtype) {
  check_contiguous(pixels, "pixels");
  check_type(pixels, ScalarType::Byte, "pixels");
  STD_TORCH_CHECK(pixels.dim() == 1, "pixels must be flat");
  check_contiguous(items, "items");
  check_type(items, ScalarType::Long, "items");
  STD_TORCH_CHECK(items.dim() == 2 && items.size(1) == kPatchItemWidth,
                  "items must have five columns: first row, first byte, frames, height, width");
  STD_TORCH_CHECK(rows >= 0 && rows < (int64_t(1) << 31), "rows must be at least 0 and below 2 ** 31");
  for (int64_t size : {patch, merge, temporal})
    STD_TORCH_CHECK(size >= 1 && size <= 1024, "patch, merge and temporal must be between 1 and 1024");
  const int64_t columns = kChannels * temporal * patch * patch;
  STD_TORCH_CHECK(merge * merge * columns < (int64_t(1) << 31), "patch, merge and temporal are too large together");
  STD_TORCH_CHECK(std::abs(centre) <= 16384 && centre * 256 == std::floor(centre * 256),
                  "centre must be a multiple of 1 / 256 and at most 16384, so that differences are exact");
  const auto guard = on_device_of(pixels);
  Tensor out = torch::stable::new_empty(pixels, {rows, columns}, dtype);
  dispatch_float(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    PatchArguments<T> a{data<uint8_t>(pixels), data<int64_t>(items), int(items.size(0)), mutable_data<T>(out), rows};
    a.patch = int(patch);
    a.merge = int(merge);
    a.temporal = int(temporal);
    a.subtracted = kByteOffset + float(centre);
    const bool staged = merge == kStagedMerge && merge * merge * columns <= kMostShared;  // a byte for each element
    if (patch == 16 && staged) return launch_side<T, 16>(a, pixels);
    if (patch == 14 && staged) return launch_side<T, 14>(a, pixels);
    launch_patches<T, 0, 1>(a, pixels);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("centred_patches", TORCH_BOX(&tessera::centred_patches)); }
