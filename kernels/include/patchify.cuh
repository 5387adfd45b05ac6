// uint8 frames of all items to patch rows in merge order, each pixel less a constant.
//
// What moves: every byte in once, every element out once, in vectors. A warp takes merge x merge neighbouring patches:
// their rows lie side by side in the result, and their pixels in lines of merge * patch pixels, which it copies to
// shared memory in words of 16 or 4 bytes. A lane then takes a run of pixels, 3 bytes each, apart into the channels.
//
// Next: kernels/csrc/patchify.cu
#pragma once

#include <type_traits>

#include "items.cuh"
#include "vector.cuh"

namespace tessera {

constexpr int kPatchItemWidth = 5;  // first row, first byte, frames, height and width in patches
constexpr int kChannels = 3;
constexpr int kStagedMerge = 2;  // what models have

// A byte at bits 8 to 15 of this number adds itself, and numbers there are 1 / 256 apart.
constexpr unsigned kByteBase = 0x47000000u;
constexpr float kByteOffset = 32768.0f;

template <typename T>
struct PatchArguments {
  const uint8_t* pixels;  // items back to back, (frames, height, width, 3) each
  const int64_t* items;   // (count, kPatchItemWidth); an item begins at a multiple of merge * merge rows
  int count;
  T* out;  // (rows, 3 * temporal * patch * patch), contiguous
  int64_t rows;
  int patch, merge, temporal;
  float subtracted;  // kByteOffset and the constant
};

// Where the pixels of merge x merge patches lie, in bytes.
struct PatchSource {
  int64_t corner;        // first of the first frame; negative: the patches are no item's
  int64_t pitch, frame;  // from line to line and from frame to frame
  int frames;            // from here on; those beyond repeat the last

  __device__ int64_t at(int index) const { return corner + min(index, frames - 1) * frame; }
};

// Of the patches that begin at `row`; the whole warp asks.
template <typename T>
__device__ __forceinline__ PatchSource find_pixels(const PatchArguments<T>& a, int64_t row, unsigned patch,
                                                   unsigned merge) {
  const int item = find_item(a.items, kPatchItemWidth, a.count, row);
  if (item < 0) return {-1, 0, 0, 0};
  const int64_t* about = a.items + int64_t(item) * kPatchItemWidth;
  const unsigned frames = unsigned(about[2]), height = unsigned(about[3]), width = unsigned(about[4]);
  const unsigned times = (frames + unsigned(a.temporal) - 1) / unsigned(a.temporal);
  const PatchPlace place = place_patch(row - about[0], times, height, width, merge);
  if (!place.inside) return {-1, 0, 0, 0};
  const int64_t pitch = int64_t(width) * (patch * kChannels), frame = height * patch * pitch;
  const unsigned first = place.time * unsigned(a.temporal);
  const int64_t corner = about[1] + first * frame + place.row * patch * pitch + place.column * (patch * kChannels);
  return {corner, pitch, frame, int(frames - first)};
}

// A warp copies lines of `LineBytes` bytes, `pitch` apart in `from` and next to each other in `to`, as words: each lane
// has its place in every so many lines, and kAtOnce loads under way at a time.
template <typename Word, int Lines, int LineBytes>
__device__ __forceinline__ void stage_lines(uint8_t* to, const uint8_t* from, int64_t pitch) {
  constexpr int kWords = LineBytes / int(sizeof(Word)), kTogether = kWarpSize / kWords, kAtOnce = 7;
  static_assert(kTogether > 0, "a warp takes a line at least");
  const int lane = int(threadIdx.x) % kWarpSize, at = lane % kWords * int(sizeof(Word));
  int line = lane / kWords;
  if (line >= kTogether) return;  // until the warp meets again
  from += line * pitch + at;
  to += line * LineBytes + at;
#pragma unroll 1
  for (; line < Lines; line += kAtOnce * kTogether) {
    Word words[kAtOnce];
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step, from += kTogether * pitch)
      if (line + step * kTogether < Lines) words[step] = *reinterpret_cast<const Word*>(from);
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step, to += kTogether * LineBytes)
      if (line + step * kTogether < Lines) *reinterpret_cast<Word*>(to) = words[step];
  }
}

template <int Lines, int LineBytes>
__device__ __forceinline__ void stage_frame(uint8_t* to, const uint8_t* from, int64_t pitch) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(from) | uintptr_t(pitch);
  if (LineBytes % 16 == 0 && all % 16 == 0) {
    stage_lines<uint4, Lines, LineBytes>(to, from, pitch);
  } else if (all % 4 == 0) {
    stage_lines<uint32_t, Lines, LineBytes>(to, from, pitch);
  } else {
    for (int index = int(threadIdx.x) % kWarpSize; index < Lines * LineBytes; index += kWarpSize)
      to[index] = from[index / LineBytes * pitch + index % LineBytes];
  }
}

// Count pixels that lie side by side, at a multiple of Count bytes -> values[channel][at + i] for i < Count.
template <int Count, int Run>
__device__ __forceinline__ void load_pixels(float (&values)[kChannels][Run], int at, const uint8_t* from,
                                            float subtracted) {
  using Half = std::conditional_t<Count == 1, uint8_t, uint16_t>;
  using Word = std::conditional_t<Count % 4 == 0, uint32_t, Half>;
  constexpr int kWords = Count / int(sizeof(Word));
  uint32_t words[kChannels * kWords];
#pragma unroll
  for (int part = 0; part < kChannels; ++part) {
    const Vector<Word, kWords> loaded = load<kWords>(reinterpret_cast<const Word*>(from) + part * kWords);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[part * kWords + i] = loaded.at[i];
  }
#pragma unroll
  for (int index = 0; index < kChannels * Count; ++index) {
    const unsigned byte = index % int(sizeof(Word));
    // bytes 0, x, 0 and 0x47, from the lowest on
    const unsigned bits = __byte_perm(words[index / int(sizeof(Word))], kByteBase, 0x7504u | byte << 4);
    values[index % kChannels][at + index / kChannels] = __uint_as_float(bits) - subtracted;
  }
}

// Patch: its side, in blocks of kStagedMerge x kStagedMerge; or 0 for any, whose pixels are read where they are.
// Run: elements that are written together, in the order of a patch's columns (frame, y, x); their pixels are loaded in
// groups that lie in one line.
template <typename T, int Patch, int Run>
__global__ void patches_kernel(const PatchArguments<T> a) {
  constexpr int kGroup = Patch % Run == 0 ? Run : 2;
  static_assert(Patch % kGroup == 0 && Run % kGroup == 0, "runs are of whole groups, groups of one line");
  constexpr int kLines = kStagedMerge * Patch, kLineBytes = kLines * kChannels;
  const unsigned patch = unsigned(Patch ? Patch : a.patch), merge = unsigned(Patch ? kStagedMerge : a.merge);
  const unsigned members = merge * merge, plane = unsigned(a.temporal) * patch * patch, runs = plane / Run;
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t row = (int64_t(blockIdx.x) * (blockDim.x / kWarpSize) + warp) * members;
  if (row >= a.rows) return;  // a whole warp, and warps do not meet
  const unsigned real = unsigned(min(int64_t(members), a.rows - row));
  T* out = a.out + row * kChannels * plane;
  const PatchSource source = find_pixels(a, row, patch, merge);
  if (source.corner < 0) {
    const float zeros[Run] = {};
    for (unsigned run = lane; run < real * kChannels * runs; run += kWarpSize)
      store_float<Run>(out + int64_t(run) * Run, zeros);
    return;
  }
  uint8_t* staged = dynamic_shared<uint8_t>() + warp * unsigned(a.temporal) * (kLines * kLineBytes);
  if constexpr (Patch > 0) {
#pragma unroll 1
    for (int frame = 0; frame < a.temporal; ++frame)
      stage_frame<kLines, kLineBytes>(staged + frame * kLines * kLineBytes, a.pixels + source.at(frame), source.pitch);
    __syncwarp();
  }
  for (unsigned task = lane; task < real * runs; task += kWarpSize) {
    const unsigned member = task / runs, start = task % runs * Run;
    const unsigned top = member / merge * patch, left = member % merge * patch * kChannels;
    float values[kChannels][Run];
#pragma unroll
    for (unsigned first = 0; first < Run; first += kGroup) {
      const unsigned pixel = start + first, frame = pixel / (patch * patch), within = pixel % (patch * patch);
      const unsigned line = top + within / patch, at = left + within % patch * kChannels;
      const uint8_t* from = Patch ? staged + (frame * kLines + line) * kLineBytes + at
                                  : a.pixels + source.at(int(frame)) + line * source.pitch + at;
      load_pixels<kGroup>(values, int(first), from, a.subtracted);
    }
#pragma unroll
    for (unsigned channel = 0; channel < kChannels; ++channel)
      store_float<Run>(out + int64_t((member * kChannels + channel) * plane + start), values[channel]);
  }
}

}  // namespace tessera
