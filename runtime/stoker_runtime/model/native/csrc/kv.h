// How KV blocks lie in memory. Block by block, and in a block layer by layer: a block that is used for the first time
// then takes one or two huge pages from the kernel, where a cache that lies layer by layer takes one for each layer and
// stops a step for 50 ms. Within a layer of a block, so that attention is the same product of rows and packed columns as a linear
// layer. Per KV head, keys: for each word of a head, that word of all S tokens of the block; values: for each word
// of S tokens, that word of all D elements. (A word is one float, or two bfloat16: two elements of a key, or the
// same element of two tokens' values.)
#pragma once

#include <string.h>

#include "api.h"
#include "element.h"

namespace STOKER_ELEMENT {

// Where a row's key and value go.
struct Slot {
  int block;
  int offset;
  int position;
};

struct LayerCache {
  Stored* keys;
  Stored* values;
  int64_t stride;  // elements from block to block
  int block_size;
  int num_kv_heads;
  int head_dim;

  LayerCache(const StokerCache& cache, const StokerModel& model, int layer)
      : block_size(cache.block_size), num_kv_heads(model.num_kv_heads), head_dim(model.head_dim) {
    keys = static_cast<Stored*>(cache.storage) + 2 * layer * layer_elements();
    values = keys + layer_elements();
    stride = 2 * model.num_layers * layer_elements();
  }

  int64_t head_elements() const { return static_cast<int64_t>(block_size) * head_dim; }
  int64_t layer_elements() const { return head_elements() * num_kv_heads; }

  // The words of 16 tokens' keys, one vector further every `block_size` words; `token` is a multiple of 16.
  const Word* key_columns(int block, int head, int token) const {
    return reinterpret_cast<const Word*>(keys + block * stride + head * head_elements()) + token;
  }
  // The words of values from `token`, a multiple of 16, on: rows of D words, one for each kPerWord tokens.
  const Word* value_rows(int block, int head, int token) const {
    return reinterpret_cast<const Word*>(values + block * stride + head * head_elements()) +
           static_cast<int64_t>(token / kPerWord) * head_dim;
  }

  void store(int block, int head, int token, const Stored* key, const Stored* value) const {
    Stored* k = keys + block * stride + head * head_elements() + token * kPerWord;
    Stored* v = values + block * stride + head * head_elements() +
                static_cast<int64_t>(token / kPerWord) * head_dim * kPerWord + token % kPerWord;
    for (int d = 0; d < head_dim; d += kPerWord) {
      memcpy(k + static_cast<int64_t>(d) * block_size, key + d, sizeof(Word));
    }
    for (int d = 0; d < head_dim; ++d) v[d * kPerWord] = value[d];
  }

  // Values of tokens that no request has stored are multiplied by 0 and must not be NaN.
  void clear_values(int block) const { memset(values + block * stride, 0, layer_elements() * sizeof(Stored)); }
};

}  // namespace STOKER_ELEMENT
