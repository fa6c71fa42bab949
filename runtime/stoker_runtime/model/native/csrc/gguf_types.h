// GGML's block types in panels: how a block is rearranged, what it adds to a product, and its values again.
//
// Nothing is rounded anew: codes, scales and minimums are the file's own, only their places change. Blocks have 32
// inputs, or 256 in 8 groups of 32; activations are rounded to 8 bits for each group, as in quantized.h.
//
// Packed weight: panels of 32 output columns as in product.h; a panel holds, for each block of a row in order, what
// `struct` of its type says for 32 columns. Codes of 4 bits are 4 words a column and group: word w has inputs
// 4w .. 4w + 3 in its low halves of bytes and inputs 16 + 4w .. 16 + 4w + 3 in the high ones, as Q4_0 has them.
//
// Source: block layouts of ggml's ggml-common.h.
#pragma once

#include "quantized.h"

namespace STOKER_ELEMENT {

constexpr int kNibbleBytes = kPanel * kGroup / 2;
constexpr int kHalfBytes = kPanel * sizeof(uint16_t);  // a float16 for each column

// The 16 float16 of column vector c.
inline __m512 halves(const char* p, int c) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + c));
}

inline float half_of(const void* halves, int lane) {
  uint16_t half;
  memcpy(&half, static_cast<const char*>(halves) + 2 * lane, sizeof half);
  return _cvtsh_ss(half);
}

inline __m128i sixteen_bytes(const char* p, int c) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + c); }

inline __m512i factor_of(const QuantizedRow& row, int64_t input) {
  int32_t word;
  memcpy(&word, row.values + input, sizeof word);
  return _mm512_set1_epi32(word);
}

// A group's 4-bit codes times the rows' values.
template <int R>
[[gnu::always_inline]] inline void add_nibbles(__m512i (&products)[R][2], const QuantizedRow* rows, int64_t group,
                                               const char* codes) {
  const __m512i mask = _mm512_set1_epi32(0x0f0f0f0f);
  const auto* words = reinterpret_cast<const Word*>(codes);
  for (int w = 0; w < kGroupWords / 2; ++w) {
    for (int c = 0; c < 2; ++c) {
      const __m512i both = _mm512_loadu_si512(words + w * kPanel + c * kLanes);
      const __m512i low = _mm512_and_si512(both, mask), high = _mm512_and_si512(_mm512_srli_epi32(both, 4), mask);
      for (int r = 0; r < R; ++r) {
        const int64_t input = group * kGroup + w * 4;
        products[r][c] = _mm512_dpbusd_epi32(products[r][c], low, factor_of(rows[r], input));
        products[r][c] = _mm512_dpbusd_epi32(products[r][c], high, factor_of(rows[r], input + kGroup / 2));
      }
    }
  }
}

template <int R>
[[gnu::always_inline]] inline void add_products(__m512 (&sums)[R][2], int c, const __m512i (&products)[R][2],
                                                __m512 scales, const QuantizedRow* rows, int64_t group) {
  for (int r = 0; r < R; ++r) {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(rows[r].scales[group]));
    sums[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][c]), scale, sums[r][c]);
  }
}

// What a constant in each of a group's weights adds.
template <int R>
[[gnu::always_inline]] inline void add_constants(__m512 (&sums)[R][2], int c, __m512 constants,
                                                 const QuantizedRow* rows, int64_t group) {
  for (int r = 0; r < R; ++r) {
    const float total = rows[r].scales[group] * (static_cast<float>(rows[r].offsets[group]) * (-1.0f / 128));
    sums[r][c] = _mm512_fmadd_ps(constants, _mm512_set1_ps(total), sums[r][c]);
  }
}

// 32 codes of 4 bits, as Q4_0 has them, of one column.
inline void put_nibbles(const uint8_t* nibbles, char* codes, int lane) {
  for (int w = 0; w < 4; ++w) memcpy(codes + (w * kPanel + lane) * 4, nibbles + 4 * w, 4);
}

inline void get_nibbles(const char* codes, int lane, uint8_t* values) {
  for (int i = 0; i < kGroup / 2; ++i) {
    const uint8_t both = codes[(i / 4 * kPanel + lane) * 4 + i % 4];
    values[i] = both & 15;
    values[i + kGroup / 2] = both >> 4;
  }
}

// (code - 8) * scale. Packed: scales, codes.
struct Q4_0 {
  static constexpr int kGroups = 1;
  static constexpr int kFileBytes = 18;
  static constexpr int kBytes = kHalfBytes + kNibbleBytes;

  static void pack(const uint8_t* block, char* to, int lane) {
    memcpy(to + 2 * lane, block, 2);
    put_nibbles(block + 2, to + kHalfBytes, lane);
  }
  static void unpack(const char* from, int lane, float* values) {
    uint8_t codes[kGroup];
    get_nibbles(from + kHalfBytes, lane, codes);
    for (int i = 0; i < kGroup; ++i) values[i] = (codes[i] - 8) * half_of(from, lane);
  }
  template <int R>
  [[gnu::always_inline]] static void multiply(__m512 (&sums)[R][2], const QuantizedRow* rows, int64_t block,
                                              const char* from) {
    __m512i products[R][2];
    for (int r = 0; r < R; ++r) products[r][0] = products[r][1] = _mm512_set1_epi32(rows[r].offsets[block] / 16);
    add_nibbles(products, rows, block, from + kHalfBytes);
    for (int c = 0; c < 2; ++c) add_products(sums, c, products, halves(from, c), rows, block);
  }
};

// code * scale + minimum. Packed: scales, minimums, codes.
struct Q4_1 {
  static constexpr int kGroups = 1;
  static constexpr int kFileBytes = 20;
  static constexpr int kBytes = 2 * kHalfBytes + kNibbleBytes;

  static void pack(const uint8_t* block, char* to, int lane) {
    memcpy(to + 2 * lane, block, 2);
    memcpy(to + kHalfBytes + 2 * lane, block + 2, 2);
    put_nibbles(block + 4, to + 2 * kHalfBytes, lane);
  }
  static void unpack(const char* from, int lane, float* values) {
    uint8_t codes[kGroup];
    get_nibbles(from + 2 * kHalfBytes, lane, codes);
    const float scale = half_of(from, lane), minimum = half_of(from + kHalfBytes, lane);
    for (int i = 0; i < kGroup; ++i) values[i] = codes[i] * scale + minimum;
  }
  template <int R>
  [[gnu::always_inline]] static void multiply(__m512 (&sums)[R][2], const QuantizedRow* rows, int64_t block,
                                              const char* from) {
    __m512i products[R][2];
    for (int r = 0; r < R; ++r) products[r][0] = products[r][1] = _mm512_setzero_si512();
    add_nibbles(products, rows, block, from + 2 * kHalfBytes);
    for (int c = 0; c < 2; ++c) {
      add_products(sums, c, products, halves(from, c), rows, block);
      add_constants(sums, c, halves(from + kHalfBytes, c), rows, block);
    }
  }
};

// code * scale, 8 bits. Packed as what quantized.h quantizes itself.
struct Q8_0 {
  static constexpr int kGroups = 1;
  static constexpr int kFileBytes = 34;
  static constexpr int kBytes = kGroupBytes;

  static void pack(const uint8_t* block, char* to, int lane) {
    memcpy(to + 2 * lane, block, 2);
    for (int i = 0; i < kGroup; ++i) to[kHalfBytes + (i / 4 * kPanel + lane) * 4 + i % 4] = block[2 + i] ^ 0x80;
  }
  static void unpack(const char* from, int lane, float* values) {
    for (int i = 0; i < kGroup; ++i) {
      const uint8_t code = from[kHalfBytes + (i / 4 * kPanel + lane) * 4 + i % 4];
      values[i] = (code - 128) * half_of(from, lane);
    }
  }
  template <int R>
  [[gnu::always_inline]] static void multiply(__m512 (&sums)[R][2], const QuantizedRow* rows, int64_t block,
                                              const char* from) {
    QuantizedRow here[R];
    for (int r = 0; r < R; ++r) here[r] = rows[r].from(block);
    multiply_quantized(sums, here, from, 1);
  }
};

// code * (scale * 6-bit scale) - minimum * 6-bit minimum, in 8 groups.
// Packed: scales, minimums; then for each group the 6-bit scales and minimums, a byte each, and codes.
struct Q4_K {
  static constexpr int kGroups = 8;
  static constexpr int kFileBytes = 144;
  static constexpr int kPartBytes = 2 * kPanel + kNibbleBytes;
  static constexpr int kBytes = 2 * kHalfBytes + kGroups * kPartBytes;

  static void pack(const uint8_t* block, char* to, int lane) {
    memcpy(to + 2 * lane, block, 2);
    memcpy(to + kHalfBytes + 2 * lane, block + 2, 2);
    const uint8_t* low = block + 4;  // the first 4 groups' in 6 bits, whose other 2 hold the last 4 groups' highest
    const uint8_t* mixed = low + 8;
    for (int g = 0; g < kGroups; ++g) {
      char* part = to + 2 * kHalfBytes + g * kPartBytes;
      const int i = g % 4;
      part[lane] = g < 4 ? low[i] & 63 : (mixed[i] & 15) | (low[i] >> 6 << 4);
      part[kPanel + lane] = g < 4 ? low[4 + i] & 63 : (mixed[i] >> 4) | (low[4 + i] >> 6 << 4);
      const uint8_t* codes = block + 16 + g / 2 * kGroup;
      const int shift = g % 2 * 4;
      uint8_t nibbles[kGroup / 2];
      for (int j = 0; j < kGroup / 2; ++j) {
        nibbles[j] = (codes[j] >> shift & 15) | (codes[j + kGroup / 2] >> shift & 15) << 4;
      }
      put_nibbles(nibbles, part + 2 * kPanel, lane);
    }
  }
  static void unpack(const char* from, int lane, float* values) {
    for (int g = 0; g < kGroups; ++g) {
      const char* part = from + 2 * kHalfBytes + g * kPartBytes;
      uint8_t codes[kGroup];
      get_nibbles(part + 2 * kPanel, lane, codes);
      const float scale = half_of(from, lane) * part[lane];
      const float minimum = half_of(from + kHalfBytes, lane) * part[kPanel + lane];
      for (int i = 0; i < kGroup; ++i) values[g * kGroup + i] = codes[i] * scale - minimum;
    }
  }
  template <int R>
  [[gnu::always_inline]] static void multiply(__m512 (&sums)[R][2], const QuantizedRow* rows, int64_t block,
                                              const char* from) {
    for (int g = 0; g < kGroups; ++g) {
      const int64_t group = block * kGroups + g;
      const char* part = from + 2 * kHalfBytes + g * kPartBytes;
      __m512i products[R][2];
      for (int r = 0; r < R; ++r) products[r][0] = products[r][1] = _mm512_setzero_si512();
      add_nibbles(products, rows, group, part + 2 * kPanel);
      for (int c = 0; c < 2; ++c) {
        const __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen_bytes(part, c)));
        const __m512 minimums = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen_bytes(part + kPanel, c)));
        const __m512 negative = _mm512_sub_ps(_mm512_setzero_ps(), halves(from + kHalfBytes, c));
        add_products(sums, c, products, _mm512_mul_ps(halves(from, c), scales), rows, group);
        add_constants(sums, c, _mm512_mul_ps(negative, minimums), rows, group);
      }
    }
  }
};

// (code - 32) * (scale * 8-bit scale), 6 bits, in 8 groups with a scale for each half of them.
// Packed: scales; then for each group the 8-bit scales of both halves, the codes' low 4 bits, and for each half a
// word a column with their high 2 bits, those of its word w of inputs at bits 2w and 2w + 1 of each byte.
struct Q6_K {
  static constexpr int kGroups = 8;
  static constexpr int kFileBytes = 210;
  static constexpr int kPairBytes = kPanel * 4;  // the high bits of a half
  static constexpr int kPartBytes = 2 * kPanel + kNibbleBytes + 2 * kPairBytes;
  static constexpr int kBytes = kHalfBytes + kGroups * kPartBytes;

  static void pack(const uint8_t* block, char* to, int lane) {
    memcpy(to + 2 * lane, block + 208, 2);
    for (int g = 0; g < kGroups; ++g) {
      char* part = to + kHalfBytes + g * kPartBytes;
      part[lane] = block[192 + 2 * g];
      part[kPanel + lane] = block[192 + 2 * g + 1];
      const uint8_t* low = block + g / 4 * 64 + g % 2 * kGroup;
      const uint8_t* high = block + 128 + g / 4 * kGroup;
      const int low_shift = g % 4 / 2 * 4, high_shift = g % 4 * 2;
      uint8_t nibbles[kGroup / 2], pairs[2][4] = {};
      for (int i = 0; i < kGroup / 2; ++i) {
        nibbles[i] = (low[i] >> low_shift & 15) | (low[i + kGroup / 2] >> low_shift & 15) << 4;
      }
      for (int i = 0; i < kGroup; ++i) pairs[i / 16][i % 4] |= (high[i] >> high_shift & 3) << i % 16 / 4 * 2;
      put_nibbles(nibbles, part + 2 * kPanel, lane);
      for (int h = 0; h < 2; ++h) memcpy(pairs_of(part, h) + 4 * lane, pairs[h], 4);
    }
  }
  static void unpack(const char* from, int lane, float* values) {
    for (int g = 0; g < kGroups; ++g) {
      const char* part = from + kHalfBytes + g * kPartBytes;
      uint8_t codes[kGroup];
      get_nibbles(part + 2 * kPanel, lane, codes);
      for (int i = 0; i < kGroup; ++i) {
        const uint8_t pairs = pairs_of(const_cast<char*>(part), i / 16)[4 * lane + i % 4];
        const int code = codes[i] | (pairs >> i % 16 / 4 * 2 & 3) << 4;
        const float scale = half_of(from, lane) * static_cast<int8_t>(part[i / 16 * kPanel + lane]);
        values[g * kGroup + i] = (code - 32) * scale;
      }
    }
  }
  template <int R>
  [[gnu::always_inline]] static void multiply(__m512 (&sums)[R][2], const QuantizedRow* rows, int64_t block,
                                              const char* from) {
    for (int g = 0; g < kGroups; ++g) {
      const int64_t group = block * kGroups + g;
      const char* part = from + kHalfBytes + g * kPartBytes;
      multiply_half<R, 0>(sums, rows, group, part, from);
      multiply_half<R, 1>(sums, rows, group, part, from);
    }
  }

 private:
  static char* pairs_of(char* part, int half) { return part + 2 * kPanel + kNibbleBytes + half * kPairBytes; }

  template <int R, int H>
  [[gnu::always_inline]] static void multiply_half(__m512 (&sums)[R][2], const QuantizedRow* rows, int64_t group,
                                                   const char* part, const char* from) {
    const __m512i low_bits = _mm512_set1_epi32(0x0f0f0f0f), high_bits = _mm512_set1_epi32(0x30303030);
    const auto* words = reinterpret_cast<const Word*>(part + 2 * kPanel);
    const auto* pairs = reinterpret_cast<const Word*>(pairs_of(const_cast<char*>(part), H));
    __m512i products[R][2];
    for (int r = 0; r < R; ++r) {
      const int32_t total = rows[r].offsets[group] / -128, first = rows[r].firsts[group];
      products[r][0] = products[r][1] = _mm512_set1_epi32(-32 * (H == 0 ? first : total - first));
    }
    for (int c = 0; c < 2; ++c) {
      const __m512i high = _mm512_loadu_si512(pairs + c * kLanes);
      const __m512i highs[4] = {_mm512_slli_epi32(high, 4), _mm512_slli_epi32(high, 2), high,
                                _mm512_srli_epi32(high, 2)};
      for (int w = 0; w < 4; ++w) {
        const __m512i both = _mm512_loadu_si512(words + w * kPanel + c * kLanes);
        const __m512i low = _mm512_and_si512(H == 0 ? both : _mm512_srli_epi32(both, 4), low_bits);
        const __m512i codes = _mm512_or_si512(low, _mm512_and_si512(highs[w], high_bits));
        for (int r = 0; r < R; ++r) {
          const __m512i factor = factor_of(rows[r], group * kGroup + H * 16 + w * 4);
          products[r][c] = _mm512_dpbusd_epi32(products[r][c], codes, factor);
        }
      }
      const __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen_bytes(part + H * kPanel, c)));
      add_products(sums, c, products, _mm512_mul_ps(halves(from, c), scales), rows, group);
    }
  }
};

}  // namespace STOKER_ELEMENT
