// Attention of a tile of query rows, all of one KV head, over the blocks of their own request.
//
// One pass over the context in spans of 128 tokens with a running maximum and sum (Milakov and Gimelshein 2018,
// "Online normalizer calculation for softmax"; FlashAttention, Dao et al. 2022). Spans begin at multiples of 128
// from the start of the context, whatever a step computes of it, so a token's result is the same in any chunk.
#pragma once

#include <limits>

#include "kv.h"
#include "product.h"
#include "rows.h"

namespace STOKER_ELEMENT {

constexpr int kSpan = 128;
constexpr int kMaxHeadDim = 256;

struct AttentionSettings {
  float scale;
  float cap;   // 0: none
  int window;  // 0: none
};

// Some query rows of one sequence and KV head: rows first .. first + count of its num_tokens * (H / Hkv).
struct Tile {
  int sequence;
  int head;
  int first;
  int count;
};

// Row r: its query, its position in the request, and where its result goes.
struct QueryRow {
  const Stored* query;
  int position;
  Stored* out;
};

namespace attention {

template <int R>
struct Scratch {
  alignas(64) float scores[R][kSpan];
  alignas(64) Word weights[R][kSpan / kPerWord];
  alignas(64) float out[R][kMaxHeadDim];
  float maximum[R];
  float sum[R];
};

inline int first_seen(int position, int window) { return window > 0 && position >= window ? position + 1 - window : 0; }

// scores[r][0 .. count) = scale * query . key of the tokens from `start` on; count is a multiple of 16.
template <int R>
void score(const LayerCache& cache, const int32_t* blocks, int head, const QueryRow* rows, int start, int count,
           const AttentionSettings& settings, Scratch<R>& s) {
  const Word* queries[R];
  for (int r = 0; r < R; ++r) queries[r] = reinterpret_cast<const Word*>(rows[r].query);
  const int num_words = cache.head_dim / kPerWord;
  const __m512 scale = _mm512_set1_ps(settings.scale);
  for (int offset = 0; offset < count; offset += kPanel) {
    const Word* columns[2];
    for (int c = 0; c < 2; ++c) {
      const int token = start + std::min(offset + c * kLanes, count - kLanes);
      columns[c] = cache.key_columns(blocks[token / cache.block_size], head, token % cache.block_size);
    }
    __m512 sums[R][2];
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    multiply(sums, queries, columns, cache.block_size, num_words);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < 2; ++c) {
        __m512 scores = _mm512_mul_ps(sums[r][c], scale);
        if (settings.cap > 0) scores = capped(scores, settings.cap);
        _mm512_store_ps(s.scores[r] + offset + c * kLanes, scores);
      }
    }
  }
}

// Hide what row r does not see of the tokens from `start` on.
template <int R>
void hide(const QueryRow* rows, int start, int count, int window, Scratch<R>& s) {
  const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int r = 0; r < R; ++r) {
    const int position = rows[r].position, first = first_seen(position, window);
    if (start >= first && start + count - 1 <= position) continue;
    for (int i = 0; i < count; i += kLanes) {
      const __m512i token = _mm512_add_epi32(lane, _mm512_set1_epi32(start + i));
      const __mmask16 is_seen = _mm512_cmple_epi32_mask(token, _mm512_set1_epi32(position)) &
                                _mm512_cmpge_epi32_mask(token, _mm512_set1_epi32(first));
      _mm512_store_ps(s.scores[r] + i, _mm512_mask_blend_ps(is_seen, hidden, _mm512_load_ps(s.scores[r] + i)));
    }
  }
}

// Turn scores into weights relative to the new maximum; scale what was summed before to it.
template <int R>
void weigh(int count, int head_dim, Scratch<R>& s) {
  for (int r = 0; r < R; ++r) {
    __m512 most = _mm512_load_ps(s.scores[r]);
    for (int i = kLanes; i < count; i += kLanes) most = _mm512_max_ps(most, _mm512_load_ps(s.scores[r] + i));
    const float maximum = std::max(s.maximum[r], _mm512_reduce_max_ps(most));
    // A row that has seen nothing yet: all its weights are 0.
    const __m512 base = _mm512_set1_ps(maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum);
    __m512 sum = _mm512_setzero_ps();
    Stored* weights = reinterpret_cast<Stored*>(s.weights[r]);
    for (int i = 0; i < count; i += kLanes) {
      const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(s.scores[r] + i), base));
      sum = _mm512_add_ps(sum, weight);
      Element::store(weights + i, weight, lanes(kLanes));
    }
    const __m512 keep = exponential(_mm512_sub_ps(_mm512_set1_ps(s.maximum[r]), base));
    s.sum[r] = s.sum[r] * _mm512_cvtss_f32(keep) + _mm512_reduce_add_ps(sum);
    if (maximum != s.maximum[r]) {
      for (int d = 0; d < head_dim; d += kLanes) {
        _mm512_store_ps(s.out[r] + d, _mm512_mul_ps(_mm512_load_ps(s.out[r] + d), keep));
      }
    }
    s.maximum[r] = maximum;
  }
}

// out[r] += weights[r] @ values of the tokens from `start` on, C vectors of elements from `first` on.
template <int R, int C>
void add_values(const LayerCache& cache, const int32_t* blocks, int head, int start, int count, int first,
                Scratch<R>& s) {
  __m512 sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_load_ps(s.out[r] + first + c * kLanes);
  }
  for (int offset = 0; offset < count; offset += kLanes) {
    const int token = start + offset;
    const Word* values = cache.value_rows(blocks[token / cache.block_size], head, token % cache.block_size) + first;
    const Word* weights[R];
    const Word* columns[C];
    for (int r = 0; r < R; ++r) weights[r] = s.weights[r] + offset / kPerWord;
    for (int c = 0; c < C; ++c) columns[c] = values + c * kLanes;
    multiply(sums, weights, columns, cache.head_dim, kLanes / kPerWord);
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) _mm512_store_ps(s.out[r] + first + c * kLanes, sums[r][c]);
  }
}

// All rows belong to one request and one KV head; positions do not decrease.
template <int R>
void attend(const LayerCache& cache, const int32_t* blocks, int head, const QueryRow* rows,
            const AttentionSettings& settings) {
  Scratch<R> s;
  const int head_dim = cache.head_dim;
  for (int r = 0; r < R; ++r) {
    s.maximum[r] = -std::numeric_limits<float>::infinity();
    s.sum[r] = 0;
    for (int d = 0; d < head_dim; d += kLanes) _mm512_store_ps(s.out[r] + d, _mm512_setzero_ps());
  }
  const int end = rows[R - 1].position + 1;
  for (int start = first_seen(rows[0].position, settings.window) / kSpan * kSpan; start < end; start += kSpan) {
    const int count = (std::min(kSpan, end - start) + kLanes - 1) / kLanes * kLanes;
    score(cache, blocks, head, rows, start, count, settings, s);
    hide(rows, start, count, settings.window, s);
    weigh(count, head_dim, s);
    int first = 0;
    for (; first + kPanel <= head_dim; first += kPanel) add_values<R, 2>(cache, blocks, head, start, count, first, s);
    if (first < head_dim) add_values<R, 1>(cache, blocks, head, start, count, first, s);
  }
  for (int r = 0; r < R; ++r) {
    const __m512 share = _mm512_set1_ps(1.0f / s.sum[r]);
    for (int d = 0; d < head_dim; d += kLanes) {
      Element::store(rows[r].out + d, _mm512_mul_ps(_mm512_load_ps(s.out[r] + d), share), lanes(kLanes));
    }
  }
}

}  // namespace attention

}  // namespace STOKER_ELEMENT
