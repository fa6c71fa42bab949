// Matrix products with packed weights.
//
// Packed weight: panels of 32 output columns. A panel holds, for each word of a row in order, that word of 32
// consecutive output rows. A pair (gate and up of an MLP) puts 16 rows of the first half beside the same 16 of the
// second, so that one task has both halves of the activation. Rows beyond the last are zero.
#pragma once

#include <stddef.h>

#include <algorithm>

#include "api.h"
#include "element.h"

namespace STOKER_ELEMENT {

constexpr int kPanel = 2 * kLanes;
constexpr int kMaxRows = 12;  // rows of one tile: 24 sums, two weights and a factor fit the 32 registers
// Words of a column that are fetched ahead: the CPU's own prefetching leaves 4 to 32 rows waiting for memory for a
// fifth of the time. Less is too late for few rows; more costs those for whom the panel is in a cache already.
constexpr int kWordsAhead = 64;

// Index of the first of n things that are in part i of `count` even parts.
inline int part(int n, int i, int count) { return static_cast<int>(static_cast<int64_t>(n) * i / count); }

// sums[r][c] += rows[r] . column c, over `num_words` words. Row r begins at a[r]; the words of column vector c at
// b[c], one vector further every `step` words. Meanwhile as much is fetched from ahead[c] on.
template <int R, int C>
[[gnu::always_inline]] inline void multiply(__m512 (&sums)[R][C], const Word* const* a, const Word* const* b,
                                            const Word* const* ahead, ptrdiff_t step, int num_words) {
  for (int w = 0; w < num_words; ++w) {
    __m512i columns[C];
    for (int c = 0; c < C; ++c) columns[c] = _mm512_loadu_si512(b[c] + w * step);
    for (int c = 0; c < C; ++c) _mm_prefetch(reinterpret_cast<const char*>(ahead[c] + w * step), _MM_HINT_T0);
    for (int r = 0; r < R; ++r) {
      const __m512i factor = _mm512_set1_epi32(static_cast<int>(a[r][w]));
      for (int c = 0; c < C; ++c) sums[r][c] = Element::multiply_add(sums[r][c], factor, columns[c]);
    }
  }
}

// Call body(std::integral_constant<int, R>) for the R that is `rows`.
template <int R = kMaxRows, class Body>
inline void with_rows(int rows, const Body& body) {
  if constexpr (R > 0) {
    if (rows == R) return body(std::integral_constant<int, R>());
    with_rows<R - 1>(rows, body);
  }
}

// Rows with a distance that is not a multiple of 4 KiB, which would map a tile's rows to the same few cache lines.
inline ptrdiff_t row_stride(int64_t num_elements) {
  return (num_elements + kPanel - 1) / kPanel * kPanel + kPanel;
}

// One panel for all rows of a step, which begin at `row_at(row)`. `finish(row, first_column_vector,
// second_column_vector)` gets each result.
template <class RowAt, class Finish>
inline void multiply_panel(const StokerLinear& linear, int panel, const RowAt& row_at, int num_rows,
                           const Finish& finish) {
  const int num_words = linear.num_inputs / kPerWord;
  const Word* packed = static_cast<const Word*>(linear.packed) + static_cast<ptrdiff_t>(panel) * num_words * kPanel;
  const int num_tiles = (num_rows + kMaxRows - 1) / kMaxRows;
  for (int tile = 0; tile < num_tiles; ++tile) {
    // Even tiles: 16 rows are 8 and 8, which costs less than 12 and 4.
    const int begin = part(num_rows, tile, num_tiles), end = part(num_rows, tile + 1, num_tiles);
    with_rows(end - begin, [&](auto count) {
      constexpr int R = decltype(count)::value;
      __m512 sums[R][2];
      const Word* a[R];
      const Word* b[2] = {packed, packed + kLanes};
      const Word* ahead[2] = {b[0] + kWordsAhead * kPanel, b[1] + kWordsAhead * kPanel};
      for (int r = 0; r < R; ++r) {
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
        a[r] = reinterpret_cast<const Word*>(row_at(begin + r));
      }
      multiply(sums, a, b, ahead, kPanel, num_words);
      for (int r = 0; r < R; ++r) finish(begin + r, sums[r][0], sums[r][1]);
    });
  }
}

inline int64_t packed_panels(int64_t num_outputs, bool is_pair) {
  return is_pair ? (num_outputs / 2 + kLanes - 1) / kLanes : (num_outputs + kPanel - 1) / kPanel;
}

// The row of the weight that a panel's lane holds, or -1.
inline int64_t packed_row(int64_t panel, int lane, int64_t num_outputs, bool is_pair) {
  if (!is_pair) {
    const int64_t row = panel * kPanel + lane;
    return row < num_outputs ? row : -1;
  }
  const int64_t half = num_outputs / 2, index = panel * kLanes + lane % kLanes;
  return index >= half ? -1 : lane < kLanes ? index : half + index;
}

inline void pack(const Word* weight, int64_t num_outputs, int64_t num_words, bool is_pair, Word* packed) {
  for (int64_t panel = 0; panel < packed_panels(num_outputs, is_pair); ++panel) {
    for (int lane = 0; lane < kPanel; ++lane) {
      const int64_t row = packed_row(panel, lane, num_outputs, is_pair);
      Word* to = packed + panel * num_words * kPanel + lane;
      for (int64_t w = 0; w < num_words; ++w) to[w * kPanel] = row >= 0 ? weight[row * num_words + w] : 0;
    }
  }
}

// Bias of 16 outputs from `column` on.
inline __m512 bias_of(const StokerLinear& linear, int column) {
  if (linear.bias == nullptr) return _mm512_setzero_ps();
  return Element::load(static_cast<const Stored*>(linear.bias) + column, lanes(linear.num_outputs - column));
}

}  // namespace STOKER_ELEMENT
