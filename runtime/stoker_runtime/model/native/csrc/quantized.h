// Products with weights of 8 bits, in groups of 32 inputs that share a scale, as in GGUF's Q8_0.
//
// Both sides are integers while they are multiplied (VPDPBUSD: unsigned weights times signed activations, four at
// once), so a product reads half the bytes of a bfloat16 one and needs two thirds of its instructions. Weights are
// stored with 128 added; what that adds to a sum depends on the activations alone and is taken off by `offsets`.
//
// Packed weight: panels of 32 output columns as in product.h; a panel holds, for each group in order, 32 scales
// (float16) and then the group's 8 words for each column, a word being 4 inputs.
//
// Only beside bfloat16: CPUs with AVX512-BF16 have AVX512-VNNI, and the float32 variant must run without it.
#pragma once

#include <cmath>
#include <limits>

#include "element.h"
#include "product.h"

namespace STOKER_ELEMENT {

constexpr int kGroup = 32;
constexpr int kGroupWords = kGroup / 4;
constexpr int kGroupBytes = kPanel * (2 + kGroup);
constexpr int kMaxQuantizedRows = 6;  // integer and float sums of 6 rows fill the registers

// One row of activations: 8-bit values and, for each group, what turns a sum of products into the real one.
struct QuantizedRow {
  int8_t* values;
  float* scales;
  int32_t* offsets;  // -128 times the sum of the group's values
  int32_t* firsts;   // the sum of the first half of them

  // The row from a group on.
  QuantizedRow from(int64_t group) const {
    return {values + group * kGroup, scales + group, offsets + group, firsts + group};
  }
};

// [rows, size]; size is a multiple of kGroup.
struct QuantizedRows {
  int8_t* values = nullptr;
  float* scales = nullptr;
  int32_t* offsets = nullptr;
  int32_t* firsts = nullptr;
  int64_t size = 0;

  static size_t bytes(int64_t count, int64_t size) {
    return count * size + count * (size / kGroup) * (sizeof(float) + 2 * sizeof(int32_t));
  }
  // Take memory of `bytes` for rows of at most `size_` elements.
  void place(char* memory, int64_t count, int64_t size_) {
    size = size_;
    scales = reinterpret_cast<float*>(memory);
    offsets = reinterpret_cast<int32_t*>(scales + count * (size / kGroup));
    firsts = offsets + count * (size / kGroup);
    values = reinterpret_cast<int8_t*>(firsts + count * (size / kGroup));
  }
  QuantizedRow operator[](int64_t row) const {
    const int64_t groups = size / kGroup;
    return {values + row * size, scales + row * groups, offsets + row * groups, firsts + row * groups};
  }
};

inline void quantize(const Stored* x, int64_t size, const QuantizedRow& row) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  for (int64_t group = 0; group < size / kGroup; ++group) {
    const Stored* from = x + group * kGroup;
    const __m512 low = Element::load(from, lanes(kLanes)), high = Element::load(from + kLanes, lanes(kLanes));
    const float largest =
        _mm512_reduce_max_ps(_mm512_max_ps(_mm512_andnot_ps(sign, low), _mm512_andnot_ps(sign, high)));
    // A NaN or an infinity must reach the logits, where its request fails, and not become a number here.
    const __m512 zero_or_nan = _mm512_add_ps(_mm512_sub_ps(low, low), _mm512_sub_ps(high, high));
    const bool is_finite = _mm512_cmp_ps_mask(zero_or_nan, zero_or_nan, _CMP_UNORD_Q) == 0;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
    const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    int8_t* to = row.values + group * kGroup;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kLanes), _mm512_cvtsepi32_epi8(b));
    row.scales[group] = is_finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    row.firsts[group] = _mm512_reduce_add_epi32(a);
    row.offsets[group] = -128 * (row.firsts[group] + _mm512_reduce_add_epi32(b));
  }
}

template <int R>
[[gnu::always_inline]] inline void multiply_quantized(__m512 (&sums)[R][2], const QuantizedRow* rows, const char* panel,
                                                      int64_t num_groups) {
  for (int64_t group = 0; group < num_groups; ++group, panel += kGroupBytes) {
    const auto* words = reinterpret_cast<const Word*>(panel + 2 * kPanel);
    __m512i products[R][2];
    for (int r = 0; r < R; ++r) products[r][0] = products[r][1] = _mm512_set1_epi32(rows[r].offsets[group]);
    for (int w = 0; w < kGroupWords; ++w) {
      const __m512i columns[2] = {_mm512_loadu_si512(words + w * kPanel),
                                  _mm512_loadu_si512(words + w * kPanel + kLanes)};
      for (int r = 0; r < R; ++r) {
        int32_t word;
        memcpy(&word, rows[r].values + group * kGroup + w * 4, sizeof word);
        const __m512i factor = _mm512_set1_epi32(word);
        products[r][0] = _mm512_dpbusd_epi32(products[r][0], columns[0], factor);
        products[r][1] = _mm512_dpbusd_epi32(products[r][1], columns[1], factor);
      }
    }
    for (int c = 0; c < 2; ++c) {
      const __m512 scales =
          _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + c * 2 * kLanes)));
      for (int r = 0; r < R; ++r) {
        const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(rows[r].scales[group]));
        sums[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][c]), scale, sums[r][c]);
      }
    }
  }
}

// One panel for all rows; `row_at(row)` is a QuantizedRow, `finish` as in multiply_panel.
template <class RowAt, class Finish>
inline void multiply_quantized_panel(const StokerLinear& linear, int panel, const RowAt& row_at, int num_rows,
                                     const Finish& finish) {
  const int64_t num_groups = linear.num_inputs / kGroup;
  const char* packed = static_cast<const char*>(linear.packed) + panel * num_groups * kGroupBytes;
  const int num_tiles = (num_rows + kMaxQuantizedRows - 1) / kMaxQuantizedRows;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int begin = static_cast<int>(static_cast<int64_t>(num_rows) * tile / num_tiles);
    const int end = static_cast<int>(static_cast<int64_t>(num_rows) * (tile + 1) / num_tiles);
    with_rows<kMaxQuantizedRows>(end - begin, [&](auto count) {
      constexpr int R = decltype(count)::value;
      __m512 sums[R][2];
      QuantizedRow tile_rows[R];
      for (int r = 0; r < R; ++r) {
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
        tile_rows[r] = row_at(begin + r);
      }
      multiply_quantized(sums, tile_rows, packed, num_groups);
      for (int r = 0; r < R; ++r) finish(begin + r, sums[r][0], sums[r][1]);
    });
  }
}

// Quantize a row-major weight [num_outputs, num_inputs] of floats into panels.
inline void pack_quantized(const float* weight, int64_t num_outputs, int64_t num_inputs, bool is_pair, char* packed) {
  const int64_t num_groups = num_inputs / kGroup;
  for (int64_t panel = 0; panel < packed_panels(num_outputs, is_pair); ++panel) {
    for (int64_t group = 0; group < num_groups; ++group, packed += kGroupBytes) {
      for (int lane = 0; lane < kPanel; ++lane) {
        const int64_t row = packed_row(panel, lane, num_outputs, is_pair);
        auto* bytes = reinterpret_cast<uint8_t*>(packed + 2 * kPanel + lane * 4);
        const float* from = row < 0 ? nullptr : weight + row * num_inputs + group * kGroup;
        float largest = 0;
        for (int i = 0; from && i < kGroup; ++i) largest = std::max(largest, std::abs(from[i]));
        // Rounded to float16 first, so that the values fit the scale that they will be multiplied with.
        const uint16_t half = static_cast<uint16_t>(_cvtss_sh(largest / 127.0f, _MM_FROUND_TO_NEAREST_INT));
        const float scale = _cvtsh_ss(half);
        memcpy(packed + 2 * lane, &half, sizeof half);
        for (int i = 0; i < kGroup; ++i) {
          const float value = from && scale > 0 ? std::nearbyint(from[i] / scale) : 0.0f;
          bytes[i / 4 * kPanel * 4 + i % 4] = static_cast<uint8_t>(std::clamp(value, -127.0f, 127.0f) + 128);
        }
      }
    }
  }
}

}  // namespace STOKER_ELEMENT
