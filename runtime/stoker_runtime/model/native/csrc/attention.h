// Attention of query rows of one sequence and KV head over the blocks of their request.
//
// A context is read in segments of 512 tokens, and a segment in one pass over spans of 128 with a running maximum and
// sum (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; FlashAttention, Dao et al. 2022).
// Segments are joined from first to last. They are made each on its own, so that threads can share a long context
// (Flash-Decoding, Dao et al. 2023). Segments and spans begin at multiples of their size from the start of the
// context, whatever a step computes of it and whoever does, so a token's result is the same in any chunk and batch.
#pragma once

#include <limits>

#include "kv.h"
#include "product.h"
#include "rows.h"

namespace STOKER_ELEMENT {

constexpr int kSpan = 128;
constexpr int kSegment = 4 * kSpan;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxTiles = 4;  // that read a span one after the other while it is in the cache
constexpr float kNothing = -std::numeric_limits<float>::infinity();  // maximum of a row that has seen no token

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

// Weighted values of some tokens: out is relative to the weights' sum, and both to the largest score.
struct Weighted {
  float maximum = kNothing;
  float sum = 0;
};

inline int first_seen(int position, int window) { return window > 0 && position >= window ? position + 1 - window : 0; }

namespace attention {

// What is kept of up to 12 rows between spans.
struct Tile {
  const QueryRow* rows;
  int count;
  Weighted segment[kMaxRows], total[kMaxRows];
  alignas(64) Word queries[kMaxRows][kMaxHeadDim / kPerWord];  // in one place: one pointer for all rows
  alignas(64) float scores[kMaxRows][kSpan];
  alignas(64) Word weights[kMaxRows][kSpan / kPerWord];
  alignas(64) float segment_out[kMaxRows][kMaxHeadDim];
  alignas(64) float total_out[kMaxRows][kMaxHeadDim];

  int first_position() const { return rows[0].position; }
  int last_position() const { return rows[count - 1].position; }
};

inline void clear(float* out, int head_dim) {
  for (int d = 0; d < head_dim; d += kLanes) _mm512_store_ps(out + d, _mm512_setzero_ps());
}

// Add what one more segment gives; `out` and `total_out` are [head_dim]. One function for all who join, not inlined:
// the same instructions, hence the same bits.
[[gnu::noinline]] inline void join(const Weighted& segment, const float* out, int head_dim, Weighted& total, float* total_out) {
  if (segment.maximum == kNothing) return;
  const float maximum = std::max(total.maximum, segment.maximum);
  const __m512 base = _mm512_set1_ps(maximum);
  const __m512 keep = exponential(_mm512_sub_ps(_mm512_set1_ps(total.maximum), base));
  const __m512 add = exponential(_mm512_sub_ps(_mm512_set1_ps(segment.maximum), base));
  for (int d = 0; d < head_dim; d += kLanes) {
    const __m512 added = _mm512_mul_ps(_mm512_load_ps(out + d), add);
    _mm512_store_ps(total_out + d, _mm512_fmadd_ps(_mm512_load_ps(total_out + d), keep, added));
  }
  total.sum = total.sum * _mm512_cvtss_f32(keep) + segment.sum * _mm512_cvtss_f32(add);
  total.maximum = maximum;
}

// The result of a row that has seen its last segment.
inline void finish(const Weighted& total, const float* total_out, int head_dim, Stored* out) {
  const __m512 share = _mm512_set1_ps(1.0f / total.sum);
  for (int d = 0; d < head_dim; d += kLanes) {
    Element::store(out + d, _mm512_mul_ps(_mm512_load_ps(total_out + d), share), lanes(kLanes));
  }
}

// Tokens start .. start + count - 1 of a context, where count is a multiple of 16, and the blocks they are in.
struct Span {
  const LayerCache& cache;
  const int32_t* blocks;
  int head;
  int start;
  int count;
  int next;  // tokens from a place in this span to the same place in what is read after it; 0: nothing is

  const Word* keys(int token) const {
    return cache.key_columns(blocks[token / cache.block_size], head, token % cache.block_size);
  }
  const Word* values(int token) const {
    return cache.value_rows(blocks[token / cache.block_size], head, token % cache.block_size);
  }
};

// scores[r][0 .. count) = scale * query . key
template <int R>
void score(const Span& span, const AttentionSettings& settings, Tile& tile) {
  const Word* queries[R];
  for (int r = 0; r < R; ++r) queries[r] = tile.queries[r];
  const __m512 scale = _mm512_set1_ps(settings.scale);
  for (int offset = 0; offset < span.count; offset += kPanel) {
    const Word *columns[2], *ahead[2];
    for (int c = 0; c < 2; ++c) {
      const int token = span.start + std::min(offset + c * kLanes, span.count - kLanes);
      columns[c] = span.keys(token);
      ahead[c] = span.keys(token + span.next);
    }
    __m512 sums[R][2];
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    multiply(sums, queries, columns, ahead, span.cache.block_size, span.cache.head_dim / kPerWord);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < 2; ++c) {
        __m512 scores = _mm512_mul_ps(sums[r][c], scale);
        if (settings.cap > 0) scores = capped(scores, settings.cap);
        _mm512_store_ps(tile.scores[r] + offset + c * kLanes, scores);
      }
    }
  }
}

// Hide what row r does not see.
inline void hide(const Span& span, int window, Tile& tile) {
  const __m512 hidden = _mm512_set1_ps(kNothing);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int r = 0; r < tile.count; ++r) {
    const int position = tile.rows[r].position, first = first_seen(position, window);
    if (span.start >= first && span.start + span.count - 1 <= position) continue;
    for (int i = 0; i < span.count; i += kLanes) {
      const __m512i token = _mm512_add_epi32(lane, _mm512_set1_epi32(span.start + i));
      const __mmask16 is_seen = _mm512_cmple_epi32_mask(token, _mm512_set1_epi32(position)) &
                                _mm512_cmpge_epi32_mask(token, _mm512_set1_epi32(first));
      float* scores = tile.scores[r] + i;
      _mm512_store_ps(scores, _mm512_mask_blend_ps(is_seen, hidden, _mm512_load_ps(scores)));
    }
  }
}

// Turn scores into weights relative to the new maximum; scale what was summed before to it.
inline void weigh(int count, int head_dim, Tile& tile) {
  for (int r = 0; r < tile.count; ++r) {
    Weighted& segment = tile.segment[r];
    __m512 most = _mm512_load_ps(tile.scores[r]);
    for (int i = kLanes; i < count; i += kLanes) most = _mm512_max_ps(most, _mm512_load_ps(tile.scores[r] + i));
    const float maximum = std::max(segment.maximum, _mm512_reduce_max_ps(most));
    // A row that has seen nothing yet: all its weights are 0.
    const __m512 base = _mm512_set1_ps(maximum == kNothing ? 0.0f : maximum);
    __m512 sum = _mm512_setzero_ps();
    Stored* weights = reinterpret_cast<Stored*>(tile.weights[r]);
    for (int i = 0; i < count; i += kLanes) {
      const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(tile.scores[r] + i), base));
      sum = _mm512_add_ps(sum, weight);
      Element::store(weights + i, weight, lanes(kLanes));
    }
    const __m512 keep = exponential(_mm512_sub_ps(_mm512_set1_ps(segment.maximum), base));
    segment.sum = segment.sum * _mm512_cvtss_f32(keep) + _mm512_reduce_add_ps(sum);
    if (maximum != segment.maximum) {
      float* out = tile.segment_out[r];
      for (int d = 0; d < head_dim; d += kLanes) _mm512_store_ps(out + d, _mm512_mul_ps(_mm512_load_ps(out + d), keep));
    }
    segment.maximum = maximum;
  }
}

// segment_out[r] += weights[r] @ values, C vectors of elements from `first` on.
template <int R, int C>
void add_values(const Span& span, int first, Tile& tile) {
  __m512 sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_load_ps(tile.segment_out[r] + first + c * kLanes);
  }
  for (int offset = 0; offset < span.count; offset += kLanes) {
    const Word* values = span.values(span.start + offset) + first;
    const Word* next = span.values(span.start + offset + span.next) + first;
    const Word *weights[R], *columns[C], *ahead[C];
    for (int r = 0; r < R; ++r) weights[r] = tile.weights[r] + offset / kPerWord;
    for (int c = 0; c < C; ++c) {
      columns[c] = values + c * kLanes;
      ahead[c] = next + c * kLanes;
    }
    multiply(sums, weights, columns, ahead, span.cache.head_dim, kLanes / kPerWord);
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) _mm512_store_ps(tile.segment_out[r] + first + c * kLanes, sums[r][c]);
  }
}

inline void attend_span(const Span& span, const AttentionSettings& settings, Tile& tile) {
  const int head_dim = span.cache.head_dim;
  with_rows(tile.count, [&](auto count) {
    constexpr int R = decltype(count)::value;
    score<R>(span, settings, tile);
    hide(span, settings.window, tile);
    weigh(span.count, head_dim, tile);
    int first = 0;
    for (; first + kPanel <= head_dim; first += kPanel) add_values<R, 2>(span, first, tile);
    if (first < head_dim) add_values<R, 1>(span, first, tile);
  });
}

// All rows belong to one request and one KV head; positions do not decrease.
class Tiles {
 public:
  Tiles(const LayerCache& cache, const int32_t* blocks, int head, const AttentionSettings& settings,
        const QueryRow* rows, int num_rows)
      : cache_(cache), blocks_(blocks), head_(head), settings_(settings), end_(rows[num_rows - 1].position + 1),
        num_tiles_((num_rows + kMaxRows - 1) / kMaxRows) {
    for (int i = 0; i < num_tiles_; ++i) {
      const int first = part(num_rows, i, num_tiles_);
      Tile& tile = tiles_[i];
      tile.rows = rows + first;
      tile.count = part(num_rows, i + 1, num_tiles_) - first;
      for (int r = 0; r < tile.count; ++r) {
        memcpy(tile.queries[r], tile.rows[r].query, cache.head_dim * sizeof(Stored));
      }
    }
  }

  // Attend to a segment's tokens; then call done(row, weighted, out) for each row.
  template <class Done>
  void attend(int segment, const Done& done) {
    for_each([&](Tile& tile, int r) {
      tile.segment[r] = Weighted();
      clear(tile.segment_out[r], cache_.head_dim);
    });
    const int end = std::min(end_, (segment + 1) * kSegment);
    for (int start = segment * kSegment; start < end; start += kSpan) {
      for (int i = 0; i < num_tiles_; ++i) {
        Tile& tile = tiles_[i];
        const int seen = tile.last_position() + 1 - start;
        if (seen <= 0 || start + kSpan <= first_seen(tile.first_position(), settings_.window)) continue;
        const int count = (std::min(kSpan, seen) + kLanes - 1) / kLanes * kLanes;
        // Only what the last token is sure to have a block for; the first tile fetches it for the others.
        const int next = i == 0 && start + kSpan + count <= end_ ? kSpan : 0;
        attend_span(Span{cache_, blocks_, head_, start, count, next}, settings_, tile);
      }
    }
    int row = 0;
    for_each([&](Tile& tile, int r) { done(row++, tile.segment[r], tile.segment_out[r]); });
  }

  // Attend to segments `first` to `end` - 1, which is all that any row sees, and write the results.
  void attend_all(int first, int end) {
    for_each([&](Tile& tile, int r) {
      tile.total[r] = Weighted();
      clear(tile.total_out[r], cache_.head_dim);
    });
    for (int segment = first; segment < end; ++segment) {
      attend(segment, [](int, const Weighted&, const float*) {});
      for_each([&](Tile& tile, int r) {
        join(tile.segment[r], tile.segment_out[r], cache_.head_dim, tile.total[r], tile.total_out[r]);
      });
    }
    for_each([&](Tile& tile, int r) { finish(tile.total[r], tile.total_out[r], cache_.head_dim, tile.rows[r].out); });
  }

 private:
  template <class Body>
  void for_each(const Body& body) {
    for (int i = 0; i < num_tiles_; ++i) {
      for (int r = 0; r < tiles_[i].count; ++r) body(tiles_[i], r);
    }
  }

  const LayerCache& cache_;
  const int32_t* blocks_;
  const int head_;
  const AttentionSettings settings_;
  const int end_;
  const int num_tiles_;
  Tile tiles_[kMaxTiles];
};

}  // namespace attention

}  // namespace STOKER_ELEMENT
