// Which calls of the gated delta rule have long sequences solved in chunks, and the launches that do it.
//
// Next: kernels/csrc/gated_delta_chunks.cu
#pragma once

#include "gated_delta_stage.cuh"
#include "launch.h"

namespace tessera {

// Tells whether the kernels take these shapes and strides; T is bf16 or fp16.
template <typename T>
bool takes_chunks(const GatedDeltaArguments<T>& a);

// Solves the sequences of 64 tokens and more, and leaves the others to the recurrent kernel, which `a` now says.
template <typename T>
void solve_chunks(GatedDeltaArguments<T>& a, const Tensor& on);

}  // namespace tessera
