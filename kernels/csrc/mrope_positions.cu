// Positions of a step's tokens.
//
// Next: kernels/csrc/rotary.cu
#include "mrope_positions.cuh"

#include "launch.h"

namespace tessera {
namespace {

Tensor mrope_positions(Tensor segments, int64_t tokens) {
  constexpr unsigned kThreads = 128;
  STD_TORCH_CHECK(segments.dim() == 2, "mrope_positions: segments has two axes");
  check_contiguous(segments, "segments");
  check_type(segments, ScalarType::Long, "segments");
  check_shape(segments, {segments.size(0), 6}, "segments");
  STD_TORCH_CHECK(tokens >= 0 && tokens < (int64_t(1) << 31), "mrope_positions: tokens is out of range");
  const auto guard = on_device_of(segments);
  Tensor positions = torch::stable::new_empty(segments, {3, tokens});
  launch("mrope_positions", mrope_positions_kernel, {unsigned(ceil_div<int64_t>(tokens, kThreads)), kThreads}, segments,
         static_cast<const MropeSegment*>(segments.const_data_ptr()), int(segments.size(0)),
         mutable_data<int64_t>(positions), tokens);
  return positions;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("mrope_positions", TORCH_BOX(&tessera::mrope_positions)); }
