// Uint8 frames to fp32 patch rows in merge order, each pixel less a centre: cut, widened and centred in one pass.
//
// A task is one row of blocks of one temporal patch: it reads and writes memory of its own.
//
// Reference: tessera_kernels/reference.py, centred_patches
// Next: kernels/tessera_kernels/cpu.py

#include <omp.h>

#include <cstdint>

#include "vec.h"

namespace {

constexpr long kChannels = 3;

// One line of a patch: RGB pixels to three planes.
template <int kPatch>
void fixed_line(const uint8_t* from, float* to, long plane, float centre) {
  float *red = to, *green = to + plane, *blue = to + 2 * plane;
  for (int x = 0; x < kPatch; ++x) {
    red[x] = static_cast<float>(from[3 * x]) - centre;
    green[x] = static_cast<float>(from[3 * x + 1]) - centre;
    blue[x] = static_cast<float>(from[3 * x + 2]) - centre;
  }
}

void line(const uint8_t* from, float* to, long plane, long patch, float centre) {
  if (patch == 16) return fixed_line<16>(from, to, plane, centre);
  if (patch == 14) return fixed_line<14>(from, to, plane, centre);
  for (long x = 0; x < patch; ++x)
    for (long channel = 0; channel < kChannels; ++channel)
      to[channel * plane + x] = static_cast<float>(from[kChannels * x + channel]) - centre;
}

}  // namespace

// frames (t * temporal, height, width, 3) -> out (t * rows * columns, 3 * temporal * patch * patch), blocks in order.
TESSERA_EXPORT void tessera_centred_patches(const uint8_t* frames, float* out, long t, long height, long width,
                                            long temporal, long patch, long merge, float centre, int threads) {
  const long block_rows = height / (patch * merge), block_columns = width / (patch * merge);
  const long area = patch * patch, plane = temporal * area, row_floats = kChannels * plane;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
  for (long group = 0; group < t; ++group) {
    for (long block_row = 0; block_row < block_rows; ++block_row) {
      float* to = out + (group * block_rows + block_row) * block_columns * merge * merge * row_floats;
      for (long block_column = 0; block_column < block_columns; ++block_column) {
        for (long inside = 0; inside < merge * merge; ++inside, to += row_floats) {
          const long top = (block_row * merge + inside / merge) * patch;
          const long left = (block_column * merge + inside % merge) * patch;
          for (long frame = 0; frame < temporal; ++frame) {
            const uint8_t* from = frames + (((group * temporal + frame) * height + top) * width + left) * kChannels;
            for (long y = 0; y < patch; ++y)
              line(from + y * width * kChannels, to + frame * area + y * patch, plane, patch, centre);
          }
        }
      }
    }
  }
}
