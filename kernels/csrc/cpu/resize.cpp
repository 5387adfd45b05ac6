// The uint8 bicubic resize with antialias, bit-exact with torch's `interpolate`.
//
// Separable: rows are resized along x into a ring of uint8 rows, and each output row is a weighted sum of ring rows.
// Weights are fixed point in 16 bits; sums are exact in 32 bits, so the order of additions (and with it the width of
// the vectors) never changes a byte. A pass whose size does not change is left out.
//
// Source of the recipe: facts about torch 2.13's result, checked by tests/parity/test_media_resize.py.
// Next: gateway/media/resize.py

#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define TESSERA_X86 1
#endif

namespace {

constexpr int kChannels = 3;
constexpr int kRowBlock = 4;   // rows that the horizontal pass takes at once: they share each weight load
constexpr int kTapBlock = 4;   // taps are padded with zero weights to a multiple of this
constexpr int kPadding = 64;   // bytes after a row that a vector load may touch
constexpr int kMaxPrecision = 22;

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
  return 0.0;
}

// For each output position: the first input position, the number of taps, and `stride` fixed-point weights.
struct Table {
  std::vector<int64_t> first;
  std::vector<int64_t> count;
  std::vector<int16_t> weights;  // (out, stride), zero after `count`
  int64_t stride = 0;
  int64_t max_count = 0;
  int precision = 0;
};

Table make_table(int64_t in, int64_t out) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double support = 2.0 * std::max(scale, 1.0);
  const double inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
  const int64_t limit = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  Table table;
  table.first.resize(out);
  table.count.resize(out);
  std::vector<double> exact(out * limit, 0.0);
  double largest = 0.0;
  for (int64_t i = 0; i < out; ++i) {
    const double center = scale * (static_cast<double>(i) + 0.5);
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t end = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in);
    const int64_t count = std::clamp<int64_t>(end - first, 0, limit);
    double* row = exact.data() + i * limit;
    double total = 0.0;
    for (int64_t j = 0; j < count; ++j) {
      row[j] = cubic((static_cast<double>(j + first) - center + 0.5) * inverse);
      total += row[j];
    }
    for (int64_t j = 0; j < count; ++j) {
      if (total != 0.0) row[j] /= total;
      largest = std::max(largest, row[j]);
    }
    table.first[i] = first;
    table.count[i] = count;
    table.max_count = std::max(table.max_count, count);
  }
  while (table.precision < kMaxPrecision &&
         static_cast<int>(0.5 + largest * static_cast<double>(1 << (table.precision + 1))) < (1 << 15)) {
    ++table.precision;
  }
  table.stride = (table.max_count + kTapBlock - 1) / kTapBlock * kTapBlock;
  table.weights.assign(out * table.stride, 0);
  const double unit = static_cast<double>(1 << table.precision);
  for (int64_t i = 0; i < out; ++i) {
    for (int64_t j = 0; j < table.count[i]; ++j) {
      const double value = exact[i * limit + j] * unit;
      table.weights[i * table.stride + j] = static_cast<int16_t>(static_cast<int>(value < 0.0 ? value - 0.5 : value + 0.5));
    }
  }
  return table;
}

inline uint8_t to_byte(int32_t sum, int precision) {
  return static_cast<uint8_t>(std::clamp(sum >> precision, 0, 255));
}

// ---- scalar: the reference for the vector variants ----

void row_scalar(const uint8_t* in, uint8_t* out, const Table& table) {
  const int32_t half = table.precision > 0 ? 1 << (table.precision - 1) : 0;
  const int64_t width = static_cast<int64_t>(table.first.size());
  for (int64_t x = 0; x < width; ++x) {
    const int16_t* weights = table.weights.data() + x * table.stride;
    const uint8_t* pixel = in + table.first[x] * kChannels;
    int32_t red = half, green = half, blue = half;
    for (int64_t j = 0; j < table.count[x]; ++j, pixel += kChannels) {
      red += weights[j] * pixel[0];
      green += weights[j] * pixel[1];
      blue += weights[j] * pixel[2];
    }
    out[x * kChannels] = to_byte(red, table.precision);
    out[x * kChannels + 1] = to_byte(green, table.precision);
    out[x * kChannels + 2] = to_byte(blue, table.precision);
  }
}

void rows_scalar(const uint8_t* const* in, uint8_t* const* out, const Table& table) {
  for (int r = 0; r < kRowBlock; ++r) row_scalar(in[r], out[r], table);
}

void column_scalar(const uint8_t* const* in, const int16_t* weights, int64_t count, int precision, uint8_t* out,
                   int64_t from, int64_t bytes) {
  const int32_t half = precision > 0 ? 1 << (precision - 1) : 0;
  for (int64_t x = from; x < bytes; ++x) {
    int32_t sum = half;
    for (int64_t j = 0; j < count; ++j) sum += weights[j] * in[j][x];
    out[x] = to_byte(sum, precision);
  }
}

void column_scalar_all(const uint8_t* const* in, const int16_t* weights, int64_t count, int precision, uint8_t* out,
                       int64_t bytes) {
  column_scalar(in, weights, count, precision, out, 0, bytes);
}

#ifdef TESSERA_X86

#define TESSERA_AVX2 __attribute__((target("avx2")))

// Four taps of four rows: a broadcast 16-byte load holds four pixels; one shuffle lays taps 0, 1 in the low lane and
// taps 2, 3 in the high lane as pairs of 16-bit values per channel, ready for a multiply-add of pairs.
TESSERA_AVX2 void rows_avx2(const uint8_t* const* in, uint8_t* const* out, const Table& table) {
  const __m256i spread = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                          6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i pairs = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const __m128i half = _mm_set1_epi32(table.precision > 0 ? 1 << (table.precision - 1) : 0);
  const __m128i shift = _mm_cvtsi32_si128(table.precision);
  const int64_t width = static_cast<int64_t>(table.first.size());
  const int16_t* weights = table.weights.data();
  for (int64_t x = 0; x < width; ++x, weights += table.stride) {
    const int64_t at = table.first[x] * kChannels;
    const uint8_t* p0 = in[0] + at;
    const uint8_t* p1 = in[1] + at;
    const uint8_t* p2 = in[2] + at;
    const uint8_t* p3 = in[3] + at;
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    const int64_t count = table.count[x];
    for (int64_t j = 0; j < count; j += kTapBlock) {
      int64_t four;
      std::memcpy(&four, weights + j, sizeof four);
      const __m256i w = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_cvtsi64_si128(four)), pairs);
      const int64_t o = j * kChannels;
      const auto load = [&](const uint8_t* p) TESSERA_AVX2 {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + o));
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), spread);
      };
      s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(load(p0), w));
      s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(load(p1), w));
      s2 = _mm256_add_epi32(s2, _mm256_madd_epi16(load(p2), w));
      s3 = _mm256_add_epi32(s3, _mm256_madd_epi16(load(p3), w));
    }
    const auto finish = [&](__m256i s) TESSERA_AVX2 {
      const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
      return _mm_sra_epi32(_mm_add_epi32(sum, half), shift);
    };
    const __m128i low = _mm_packs_epi32(finish(s0), finish(s1));
    const __m128i high = _mm_packs_epi32(finish(s2), finish(s3));
    const __m128i bytes = _mm_packus_epi16(low, high);
    uint32_t pixel[kRowBlock];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pixel), bytes);
    const int64_t to = x * kChannels;
    if (x + 1 < width) {  // the fourth byte is overwritten by the next pixel
      for (int r = 0; r < kRowBlock; ++r) std::memcpy(out[r] + to, &pixel[r], 4);
    } else {
      for (int r = 0; r < kRowBlock; ++r) std::memcpy(out[r] + to, &pixel[r], kChannels);
    }
  }
}

// 32 bytes of one output row: two input rows are interleaved to pairs of 16-bit values for a multiply-add of pairs.
// An odd count reads one more row, with weight zero.
TESSERA_AVX2 void column_avx2(const uint8_t* const* in, const int16_t* weights, int64_t count, int precision,
                              uint8_t* out, int64_t bytes) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i half = _mm256_set1_epi32(precision > 0 ? 1 << (precision - 1) : 0);
  const __m128i shift = _mm_cvtsi32_si128(precision);
  int64_t x = 0;
  for (; x + 32 <= bytes; x += 32) {
    __m256i s0 = half, s1 = half, s2 = half, s3 = half;
    for (int64_t j = 0; j < count; j += 2) {
      int32_t two;
      std::memcpy(&two, weights + j, sizeof two);
      const __m256i w = _mm256_set1_epi32(two);
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[j] + x));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[j + 1] + x));
      const __m256i low = _mm256_unpacklo_epi8(a, b);
      const __m256i high = _mm256_unpackhi_epi8(a, b);
      s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), w));
      s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), w));
      s2 = _mm256_add_epi32(s2, _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), w));
      s3 = _mm256_add_epi32(s3, _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), w));
    }
    const __m256i low = _mm256_packs_epi32(_mm256_sra_epi32(s0, shift), _mm256_sra_epi32(s1, shift));
    const __m256i high = _mm256_packs_epi32(_mm256_sra_epi32(s2, shift), _mm256_sra_epi32(s3, shift));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), _mm256_packus_epi16(low, high));
  }
  column_scalar(in, weights, count, precision, out, x, bytes);
}

#endif  // TESSERA_X86

struct Loops {
  // kRowBlock rows along x.
  void (*rows)(const uint8_t* const* in, uint8_t* const* out, const Table& table);
  // One output row: the weighted sum of `count` rows.
  void (*column)(const uint8_t* const* in, const int16_t* weights, int64_t count, int precision, uint8_t* out,
                 int64_t bytes);
};

bool has_avx2() {
#ifdef TESSERA_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

bool choose(int variant, Loops* loops) {
  if (variant == TESSERA_RESIZE_AUTO) variant = tessera_resize_best_variant();
  *loops = {rows_scalar, column_scalar_all};
  if (variant == TESSERA_RESIZE_SCALAR) return true;
#ifdef TESSERA_X86
  if (variant == TESSERA_RESIZE_AVX2 && has_avx2()) {
    *loops = {rows_avx2, column_avx2};
    return true;
  }
#endif
  return false;
}

// Hands out a frame's rows, resized along x where a table is given, keeping the last `keep` of them.
class Rows {
 public:
  Rows(const Table* table, const Loops& loops, int64_t width, int64_t out_width, int64_t keep)
      : table_(table), loops_(loops), in_bytes_(width * kChannels), out_stride_(out_width * kChannels + kPadding) {
    if (table_ == nullptr) return;
    capacity_ = keep + kRowBlock;
    ring_.resize(capacity_ * out_stride_);
    edge_.resize(kRowBlock * (in_bytes_ + kPadding));
  }

  void start(const uint8_t* frame, int64_t height) {
    frame_ = frame;
    height_ = height;
    made_ = 0;
  }

  // Makes rows [0, end) available, of which the last `keep` can be read.
  void make_until(int64_t end) {
    if (table_ == nullptr) return;
    while (made_ < end) make_block();
  }

  const uint8_t* row(int64_t y) const {
    return table_ == nullptr ? frame_ + y * in_bytes_ : ring_.data() + y % capacity_ * out_stride_;
  }

 private:
  void make_block() {
    const int64_t rows = std::min<int64_t>(kRowBlock, height_ - made_);
    // A vector load may pass the end of a row; near the end of the frame the rows are copied to where it may.
    const bool edge = (height_ - made_ - rows) * in_bytes_ < kPadding;
    const uint8_t* in[kRowBlock];
    uint8_t* out[kRowBlock];
    for (int64_t r = 0; r < kRowBlock; ++r) {
      in[r] = frame_ + (made_ + std::min(r, rows - 1)) * in_bytes_;  // a short block repeats its last row
      out[r] = ring_.data() + (made_ + r) % capacity_ * out_stride_;
      if (edge) {
        uint8_t* copy = edge_.data() + r * (in_bytes_ + kPadding);
        std::memcpy(copy, in[r], in_bytes_);
        in[r] = copy;
      }
    }
    loops_.rows(in, out, *table_);
    made_ += rows;
  }

  const Table* table_;
  Loops loops_;
  int64_t in_bytes_, out_stride_;
  int64_t capacity_ = 0;
  std::vector<uint8_t> ring_, edge_;
  const uint8_t* frame_ = nullptr;
  int64_t height_ = 0, made_ = 0;
};

void resize_frame(Rows& rows, const Table* down, const Loops& loops, std::vector<const uint8_t*>& window,
                  uint8_t* target, int64_t out_height, int64_t out_bytes) {
  for (int64_t y = 0; y < out_height; ++y, target += out_bytes) {
    if (down == nullptr) {
      rows.make_until(y + 1);
      std::memcpy(target, rows.row(y), out_bytes);
      continue;
    }
    const int64_t first = down->first[y], count = down->count[y];
    rows.make_until(first + count);
    for (int64_t j = 0; j < count; ++j) window[j] = rows.row(first + j);
    window[count] = window[count - 1];
    loops.column(window.data(), down->weights.data() + y * down->stride, count, down->precision, target, out_bytes);
  }
}

}  // namespace

extern "C" int tessera_resize_abi(void) { return 1; }

extern "C" int tessera_resize_best_variant(void) { return has_avx2() ? TESSERA_RESIZE_AVX2 : TESSERA_RESIZE_SCALAR; }

extern "C" int tessera_resize_u8(const uint8_t* source, int64_t frames, int64_t height, int64_t width, uint8_t* target,
                                 int64_t out_height, int64_t out_width, int variant) {
  Loops loops;
  if (frames < 1 || height < 1 || width < 1 || out_height < 1 || out_width < 1 || !choose(variant, &loops)) return 1;
  try {
    Table across, down;
    if (width != out_width) across = make_table(width, out_width);
    if (height != out_height) down = make_table(height, out_height);
    const Table* x_table = width != out_width ? &across : nullptr;
    const Table* y_table = height != out_height ? &down : nullptr;
    Rows rows(x_table, loops, width, out_width, y_table != nullptr ? down.max_count : 1);
    std::vector<const uint8_t*> window(down.max_count + 1);
    const int64_t out_bytes = out_width * kChannels;
    for (int64_t f = 0; f < frames; ++f) {
      rows.start(source + f * height * width * kChannels, height);
      resize_frame(rows, y_table, loops, window, target + f * out_height * out_bytes, out_height, out_bytes);
    }
  } catch (const std::bad_alloc&) {
    return 2;
  }
  return 0;
}
