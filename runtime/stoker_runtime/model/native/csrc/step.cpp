// One step of the decoder, from token ids to logits, in one call: compiled once for each element type.
//
// All threads walk through the same phases; the tasks of a phase (a panel of a weight, a few rows, a tile of
// queries) are handed out one by one, so that a thread that lost its core to somebody else delays nobody for long.

#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"
#include "context.h"
#include "element.h"
#include "experts.h"
#include "kv.h"
#include "product.h"
#include "rows.h"
#ifdef STOKER_BF16
#include "gguf_blocks.h"
#endif

namespace STOKER_ELEMENT {

constexpr int kRowsPerTask = 4;
// Of attention and of a mixture; an MLP has fewer.
constexpr int kPhasesPerLayer = 10 + 1 + kMixturePhases + 1;
constexpr int kTasksPerThread = 3;  // pieces that attention is cut into where contexts are long
constexpr int kPhasesBesides = 4;

// Some query rows of one sequence and KV head: rows first .. first + count of its num_tokens * (H / Hkv), which are
// read together, so that a context passes through the caches once for all of them.
struct QueryRows {
  int sequence;
  int head;
  int first;
  int count;
  int num_segments;   // up to what the last one sees
  int64_t pieces_at;  // where in pieces_ their segments begin; -1: one thread attends to all of them
};

// Attention of some rows to some of their segments.
struct Attend {
  int rows;  // index into query_rows_
  int first_segment;
  int end_segment;
  int64_t cost;
};

const Stored* elements(const void* p) { return static_cast<const Stored*>(p); }

class Step {
 public:
  Step(StokerContext& context, const StokerModel& model, const StokerStep& step, const StokerCache& cache,
       float* logits);

  void run() {
    context_.pool.run([this](int) { work(); });
  }

 private:
  // Row r of some: its row in the step, its token's position, and where in the row its head begins.
  struct Place {
    int row;
    int position;
    int64_t start;
  };

  void allocate();
  void plan();
  void work();
  void attention(const StokerLayer& layer, int index, int& phase);
  void mlp(const StokerLayer& layer, int& phase);
  void mixture(const StokerLayer& layer, const Rows& in, int& phase);
  void embed(int row);
  void store_heads(const StokerLayer& layer, const LayerCache& cache, int row);
  void normalize_heads(const StokerLayer& layer, Stored* queries, Stored* keys);
  void plan_attention();
  void attend(const StokerLayer& layer, const LayerCache& cache, const Attend& task);
  void join(const StokerLayer& layer, const QueryRows& rows);
  Place place(const QueryRows& rows, int r) const;
  int first_segment(const StokerLayer& layer, const QueryRows& rows) const;
  float* piece(const QueryRows& rows, int segment, int row) const;
  int64_t piece_floats() const { return kLanes + model_.head_dim; }
  const Rows& normalize(const void* weight, int& phase);
  void normalize_row(const Stored* row, const void* weight, Stored* out) const {
    rms_norm(row, {weight, model_.has_float_norms != 0}, 0, model_.hidden_size, model_.eps, false, out);
  }
  void add_to_hidden(const StokerLinear& linear, const Rows& in, const void* norm, int& phase);
  void add_row(int row, const void* norm);

  // Hand out tasks 0 .. count - 1 of a phase to whoever is free, then wait for all of them.
  template <class Task>
  void each(int count, int& phase, const Task& task) {
    std::atomic<int>& next = next_task_[phase++];
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
    context_.pool.barrier();
  }

  template <class Task>
  void each_row(int count, int& phase, const Task& task) {
    each((count + kRowsPerTask - 1) / kRowsPerTask, phase, [&](int i) {
      for (int row = i * kRowsPerTask; row < std::min(count, (i + 1) * kRowsPerTask); ++row) task(row);
    });
  }

  // Task is called with (panel, multiply_rows), and calls multiply_rows(finish) for the panel's products.
  template <class Task>
  void each_panel(const StokerLinear& linear, const Rows& in, int num_rows, bool is_pair, int& phase,
                  const Task& task) {
    const int num_panels = static_cast<int>(packed_panels(linear.num_outputs, is_pair));
#ifdef STOKER_BF16
    if (linear.is_quantized) {
      QuantizedRows rows = quantized_;
      rows.size = linear.num_inputs;
      each_row(num_rows, phase, [&](int row) { quantize(in[row], linear.num_inputs, rows[row]); });
      each(num_panels, phase, [&](int panel) {
        task(panel, [&](const auto& finish) {
          multiply_integer_panel(linear, panel, [&](int row) { return rows[row]; }, num_rows, finish);
        });
      });
      return;
    }
#endif
    each(num_panels, phase, [&](int panel) {
      task(panel, [&](const auto& finish) {
        multiply_panel(linear, panel, [&](int row) { return in[row]; }, num_rows, finish);
      });
    });
  }

  // Finish is called with (row, column, mask, 16 rounded outputs).
  template <class Finish>
  void each_output(const StokerLinear& linear, const Rows& in, int num_rows, int& phase, const Finish& finish) {
    each_panel(linear, in, num_rows, false, phase, [&](int panel, const auto& multiply_rows) {
      const int column = panel * kPanel;
      const __m512 bias[2] = {bias_of(linear, column), bias_of(linear, column + kLanes)};
      const __mmask16 masks[2] = {lanes(linear.num_outputs - column), lanes(linear.num_outputs - column - kLanes)};
      multiply_rows([&](int row, __m512 first, __m512 second) {
        finish(row, column, masks[0], Element::round(_mm512_add_ps(first, bias[0])));
        if (masks[1]) finish(row, column + kLanes, masks[1], Element::round(_mm512_add_ps(second, bias[1])));
      });
    });
  }

  StokerContext& context_;
  const StokerModel& model_;
  const StokerStep& step_;
  const StokerCache& cache_;
  float* const logits_;
  const int num_shared_;  // query heads per KV head
  std::unique_ptr<std::atomic<int>[]> next_task_;
  std::vector<Slot> slots_;       // by row
  std::vector<int> fresh_blocks_;  // written for the first time
  std::vector<QueryRows> query_rows_;
  std::vector<Attend> attends_;      // the longest first
  std::vector<int> shared_;          // indices of query_rows_ to which several threads attend
  int64_t num_pieces_ = 0;           // one for each of those rows and segments
  float* pieces_ = nullptr;          // [num_pieces_, piece_floats()]: maximum, sum, padding; from 16 on, the values
  Rows hidden_, normed_, heads_, attended_, activated_, added_;
  Mixture mixture_;
#ifdef STOKER_BF16
  QuantizedRows quantized_;  // of whatever a quantized product reads
#endif
};

Step::Step(StokerContext& context, const StokerModel& model, const StokerStep& step, const StokerCache& cache,
           float* logits)
    : context_(context),
      model_(model),
      step_(step),
      cache_(cache),
      logits_(logits),
      num_shared_(model.num_heads / model.num_kv_heads),
      next_task_(new std::atomic<int>[model.num_layers * kPhasesPerLayer + kPhasesBesides]()),
      slots_(step.num_tokens),
      mixture_(experts_of(model), model.hidden_size, step.num_tokens) {
  plan();
  allocate();
}

void Step::allocate() {
  const int64_t head_dim = model_.head_dim;
  const std::pair<Rows*, int64_t> wanted[] = {
      {&hidden_, model_.hidden_size},
      {&normed_, model_.hidden_size},
      {&added_, model_.hidden_size},
      {&heads_, (model_.num_heads + 2 * model_.num_kv_heads) * head_dim},
      {&attended_, model_.num_heads * head_dim},
      {&activated_, model_.intermediate_size},
  };
  const auto bytes = [&](int64_t size) { return row_stride(size) * step_.num_tokens * sizeof(Stored); };
  size_t total = mixture_.bytes();
#ifdef STOKER_BF16
  const int64_t widest = std::max<int64_t>({model_.hidden_size, model_.num_heads * head_dim, model_.intermediate_size});
  const size_t for_quantized = has_integer_products(model_) ? QuantizedRows::bytes(step_.num_tokens, widest) : 0;
  total += Arena::aligned(for_quantized);
#endif
  for (const auto& [rows, size] : wanted) total += Arena::aligned(bytes(size));
  const size_t for_pieces = num_pieces_ * piece_floats() * sizeof(float);
  total += Arena::aligned(for_pieces);
  context_.arena.reset(total);
  pieces_ = static_cast<float*>(context_.arena.take(for_pieces));
  mixture_.place(context_.arena);
  for (const auto& [rows, size] : wanted) {
    *rows = {static_cast<Stored*>(context_.arena.take(bytes(size))), row_stride(size)};
  }
#ifdef STOKER_BF16
  if (for_quantized > 0) {
    quantized_.place(static_cast<char*>(context_.arena.take(for_quantized)), step_.num_tokens, widest);
  }
#endif
}

void Step::plan() {
  for (int i = 0; i < step_.num_sequences; ++i) {
    const StokerSequence& sequence = step_.sequences[i];
    const int32_t* blocks = step_.block_ids + sequence.first_block;
    for (int t = 0; t < sequence.num_tokens; ++t) {
      const int position = sequence.num_computed + t;
      const int block = blocks[position / cache_.block_size], offset = position % cache_.block_size;
      slots_[sequence.first_row + t] = {block, offset, position};
      if (offset == 0) fresh_blocks_.push_back(block);
    }
  }
  plan_attention();
}

// List who attends to what. What would keep one thread busy for long is cut between segments. Windows do not count:
// they differ from layer to layer.
void Step::plan_attention() {
  constexpr int kReading = 8;  // a token of the context costs as much to read as so many rows cost to compute
  constexpr int kMaxCount = kMaxTiles * kMaxRows;
  int64_t total = 0;
  for (int i = 0; i < step_.num_sequences; ++i) {
    const StokerSequence& sequence = step_.sequences[i];
    const int num_rows = sequence.num_tokens * num_shared_, num_groups = (num_rows + kMaxCount - 1) / kMaxCount;
    for (int group = 0; group < num_groups; ++group) {
      const int first = part(num_rows, group, num_groups), end = part(num_rows, group + 1, num_groups);
      const int num_seen = sequence.num_computed + (end - 1) / num_shared_ + 1;
      const int num_segments = (num_seen + kSegment - 1) / kSegment;
      for (int head = 0; head < model_.num_kv_heads; ++head) {
        const int index = static_cast<int>(query_rows_.size());
        query_rows_.push_back({i, head, first, end - first, num_segments, -1});
        attends_.push_back({index, 0, num_segments, int64_t{end - first + kReading} * num_seen});
        total += attends_.back().cost;
      }
    }
  }
  const int num_threads = context_.pool.num_threads();
  const int64_t share = std::max<int64_t>(1, total / (num_threads * kTasksPerThread));
  for (size_t i = 0, whole = attends_.size(); num_threads > 1 && i < whole; ++i) {
    const Attend task = attends_[i];
    QueryRows& rows = query_rows_[task.rows];
    const int count = static_cast<int>(std::min<int64_t>(rows.num_segments, (task.cost + share - 1) / share));
    if (count < 2) continue;
    shared_.push_back(task.rows);
    rows.pieces_at = num_pieces_;
    num_pieces_ += int64_t{rows.count} * rows.num_segments;
    for (int c = 0; c < count; ++c) {
      const Attend cut{task.rows, part(rows.num_segments, c, count), part(rows.num_segments, c + 1, count),
                       task.cost / count};
      c == 0 ? attends_[i] = cut : attends_.emplace_back(cut);
    }
  }
  std::stable_sort(attends_.begin(), attends_.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
}

void Step::work() {
  int phase = 0;
  each_row(step_.num_tokens, phase, [&](int row) { embed(row); });
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    attention(model_.layers[layer], layer, phase);
    mlp(model_.layers[layer], phase);
  }
  each_row(step_.num_sampled, phase, [&](int i) {
    normalize_row(hidden_[step_.sampled_rows[i]], model_.norm, normed_[i]);
  });
  each_output(model_.lm_head, normed_, step_.num_sampled, phase, [&](int row, int column, __mmask16 mask, __m512 x) {
    if (model_.logits_divisor != 1) x = _mm512_div_ps(x, _mm512_set1_ps(model_.logits_divisor));
    if (model_.logits_cap > 0) x = capped(x, model_.logits_cap);
    _mm512_mask_storeu_ps(logits_ + static_cast<int64_t>(row) * model_.vocab_size + column, mask, x);
  });
}

void Step::embed(int row) {
  const int size = model_.hidden_size;
  const __m512 scale = _mm512_set1_ps(model_.embedding_scale);
#ifdef STOKER_BF16
  if (model_.embedding_part != nullptr) {
    each_value(*model_.embedding_part, size, step_.token_ids[row], [&](int64_t i, __m512 x) {
      Element::store(hidden_[row] + i, _mm512_mul_ps(Element::round(x), scale), lanes(kLanes));
    });
    return;
  }
#endif
  const Stored* from = elements(model_.embedding) + static_cast<int64_t>(step_.token_ids[row]) * size;
  for (int i = 0; i < size; i += kLanes) {
    const __mmask16 mask = lanes(size - i);
    Element::store(hidden_[row] + i, _mm512_mul_ps(Element::load(from + i, mask), scale), mask);
  }
}

void Step::attention(const StokerLayer& layer, int index, int& phase) {
  const LayerCache cache(cache_, model_, index);
  const Rows& in = normalize(layer.attention_before, phase);
  each_output(layer.qkv, in, step_.num_tokens, phase,
              [&](int row, int column, __mmask16 mask, __m512 x) { Element::store(heads_[row] + column, x, mask); });
  each(static_cast<int>(fresh_blocks_.size()), phase, [&](int i) { cache.clear_values(fresh_blocks_[i]); });
  each_row(step_.num_tokens, phase, [&](int row) { store_heads(layer, cache, row); });
  each(static_cast<int>(attends_.size()), phase, [&](int i) { attend(layer, cache, attends_[i]); });
  if (!shared_.empty()) {
    each(static_cast<int>(shared_.size()), phase, [&](int i) { join(layer, query_rows_[shared_[i]]); });
  }
  add_to_hidden(layer.output, attended_, layer.attention_behind, phase);
}

// Normalise and rotate a row's queries and keys where they are, and put keys and values into the cache.
void Step::store_heads(const StokerLayer& layer, const LayerCache& cache, int row) {
  const int head_dim = model_.head_dim;
  Stored* queries = heads_[row];
  Stored* keys = queries + model_.num_heads * head_dim;
  Stored* values = keys + model_.num_kv_heads * head_dim;
  const Slot& slot = slots_[row];
  if (layer.query_norm != nullptr) normalize_heads(layer, queries, keys);
  if (layer.cosines != nullptr) {
    const Stored* cosines = elements(layer.cosines) + static_cast<int64_t>(slot.position) * layer.rotary_dim;
    const Stored* sines = elements(layer.sines) + static_cast<int64_t>(slot.position) * layer.rotary_dim;
    for (Stored* head = queries; head < values; head += head_dim) rotate(head, cosines, sines, layer.rotary_dim);
  }
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    cache.store(slot.block, head, slot.offset, keys + head * head_dim, values + head * head_dim);
  }
}

void Step::normalize_heads(const StokerLayer& layer, Stored* queries, Stored* keys) {
  const std::pair<Stored*, int> parts[] = {{queries, model_.num_heads}, {keys, model_.num_kv_heads}};
  const bool is_float = model_.has_float_norms != 0;
  const NormWeight weights[] = {{layer.query_norm, is_float}, {layer.key_norm, is_float}};
  for (int i = 0; i < 2; ++i) {
    const auto [heads, count] = parts[i];
    if (model_.normalizes_projections) {
      rms_norm(heads, weights[i], 0, count * model_.head_dim, model_.eps, false, heads);
      continue;
    }
    for (int head = 0; head < count; ++head) {
      const int start = head * model_.head_dim;
      rms_norm(heads + start, weights[i], start, model_.head_dim, model_.eps, !is_float, heads + start);
    }
  }
}

void Step::attend(const StokerLayer& layer, const LayerCache& cache, const Attend& task) {
  const QueryRows& rows = query_rows_[task.rows];
  const int first = std::max(task.first_segment, first_segment(layer, rows));
  if (first >= task.end_segment) return;
  const StokerSequence& sequence = step_.sequences[rows.sequence];
  QueryRow listed[kMaxTiles * kMaxRows];
  for (int r = 0; r < rows.count; ++r) {
    const auto [row, position, start] = place(rows, r);
    listed[r] = {heads_[row] + start, position, attended_[row] + start};
  }
  const AttentionSettings settings{model_.attention_scale, model_.attention_cap, layer.window};
  attention::Tiles tiles(cache, step_.block_ids + sequence.first_block, rows.head, settings, listed, rows.count);
  if (rows.pieces_at < 0) {
    tiles.attend_all(first, task.end_segment);
    return;
  }
  for (int segment = first; segment < task.end_segment; ++segment) {
    tiles.attend(segment, [&](int r, const Weighted& weighted, const float* out) {
      float* to = piece(rows, segment, r);
      to[0] = weighted.maximum;
      to[1] = weighted.sum;
      memcpy(to + kLanes, out, model_.head_dim * sizeof(float));
    });
  }
}

// Put together what several threads have made of the segments of some rows.
void Step::join(const StokerLayer& layer, const QueryRows& rows) {
  for (int r = 0; r < rows.count; ++r) {
    Weighted total;
    alignas(64) float out[kMaxHeadDim];
    attention::clear(out, model_.head_dim);
    for (int segment = first_segment(layer, rows); segment < rows.num_segments; ++segment) {
      const float* from = piece(rows, segment, r);
      attention::join({from[0], from[1]}, from + kLanes, model_.head_dim, total, out);
    }
    const Place at = place(rows, r);
    attention::finish(total, out, model_.head_dim, attended_[at.row] + at.start);
  }
}

Step::Place Step::place(const QueryRows& rows, int r) const {
  const StokerSequence& sequence = step_.sequences[rows.sequence];
  const int token = (rows.first + r) / num_shared_, shared = (rows.first + r) % num_shared_;
  return {sequence.first_row + token, sequence.num_computed + token,
          static_cast<int64_t>(rows.head * num_shared_ + shared) * model_.head_dim};
}

int Step::first_segment(const StokerLayer& layer, const QueryRows& rows) const {
  return first_seen(place(rows, 0).position, layer.window) / kSegment;
}

float* Step::piece(const QueryRows& rows, int segment, int row) const {
  return pieces_ + (rows.pieces_at + int64_t{segment} * rows.count + row) * piece_floats();
}

void Step::mlp(const StokerLayer& layer, int& phase) {
  const Rows& in = normalize(layer.mlp_before, phase);
  if (layer.experts != nullptr) {
    mixture(layer, in, phase);
    return;
  }
  each_panel(layer.gate_up, in, step_.num_tokens, true, phase, [&](int panel, const auto& multiply_rows) {
    const int column = panel * kLanes;
    const __mmask16 mask = lanes(model_.intermediate_size - column);
    multiply_rows([&](int row, __m512 gate, __m512 up) {
      Element::store(activated_[row] + column, activated(gate, up, model_.has_gelu), mask);
    });
  });
  add_to_hidden(layer.down, activated_, layer.mlp_behind, phase);
}

void Step::mixture(const StokerLayer& layer, const Rows& in, int& phase) {
  mixture_.compute(*layer.experts, in, model_.has_gelu,
                   [&](int count, const auto& task) { each(count, phase, task); });
  each_row(step_.num_tokens, phase, [&](int row) {
    mixture_.combine(row, added_[row]);
    add_row(row, layer.mlp_behind);
  });
}

// Returns the rows that the next product reads: normalised, or as they are where the family has no norm there.
const Rows& Step::normalize(const void* weight, int& phase) {
  if (weight == nullptr) return hidden_;
  each_row(step_.num_tokens, phase, [&](int row) {
    normalize_row(hidden_[row], weight, normed_[row]);
  });
  return normed_;
}

void Step::add_to_hidden(const StokerLinear& linear, const Rows& in, const void* norm, int& phase) {
  const __m512 scale = _mm512_set1_ps(model_.residual_scale);
  if (norm == nullptr) {
    each_output(linear, in, step_.num_tokens, phase, [&](int row, int column, __mmask16 mask, __m512 x) {
      Stored* hidden = hidden_[row] + column;
      Element::store(hidden, _mm512_fmadd_ps(x, scale, Element::load(hidden, mask)), mask);
    });
    return;
  }
  each_output(linear, in, step_.num_tokens, phase,
              [&](int row, int column, __mmask16 mask, __m512 x) { Element::store(added_[row] + column, x, mask); });
  each_row(step_.num_tokens, phase, [&](int row) { add_row(row, norm); });
}

// Add what is in added_ to the residual stream, normalised where the family has a norm there.
void Step::add_row(int row, const void* norm) {
  if (norm) normalize_row(added_[row], norm, added_[row]);
  add_scaled(hidden_[row], added_[row], model_.residual_scale, model_.hidden_size);
}

}  // namespace STOKER_ELEMENT

#define STOKER_JOIN(element, what) stoker_##element##_##what
#define STOKER_JOIN_EXPANDED(element, what) STOKER_JOIN(element, what)
#define STOKER_NAME(what) STOKER_JOIN_EXPANDED(STOKER_ELEMENT, what)

using namespace STOKER_ELEMENT;

extern "C" {

void STOKER_NAME(pack)(const void* weight, int64_t num_outputs, int64_t num_inputs, int32_t is_pair, void* packed) {
  pack(static_cast<const Word*>(weight), num_outputs, num_inputs / kPerWord, is_pair != 0, static_cast<Word*>(packed));
}

void STOKER_NAME(linear)(StokerContext* context, const StokerLinear* linear, const void* rows, int32_t num_rows,
                         void* out) {
  const auto finish_panel = [&](int panel) {
    return [=](int row, __m512 first, __m512 second) {
      const __m512 sums[] = {first, second};
      for (int c = 0; c < 2; ++c) {
        const int column = panel * kPanel + c * kLanes;
        Stored* to = static_cast<Stored*>(out) + static_cast<int64_t>(row) * linear->num_outputs;
        Element::store(to + column, _mm512_add_ps(sums[c], bias_of(*linear, column)),
                       lanes(linear->num_outputs - column));
      }
    };
  };
  const auto each_panel = [&](const auto& task) {
    std::atomic<int> next{0};
    context->pool.run([&](int) {
      for (int panel; (panel = next.fetch_add(1)) < packed_panels(linear->num_outputs, false);) task(panel);
    });
  };
#ifdef STOKER_BF16
  if (linear->is_quantized) {
    const int64_t size = linear->num_inputs;
    std::vector<char> memory(QuantizedRows::bytes(num_rows, size));
    QuantizedRows quantized;
    quantized.place(memory.data(), num_rows, size);
    for (int row = 0; row < num_rows; ++row) quantize(elements(rows) + row * size, size, quantized[row]);
    each_panel([&](int panel) {
      const auto row_at = [&](int row) { return quantized[row]; };
      multiply_integer_panel(*linear, panel, row_at, num_rows, finish_panel(panel));
    });
    return;
  }
#endif
  each_panel([&](int panel) {
    const auto row_at = [&](int64_t row) { return elements(rows) + row * linear->num_inputs; };
    multiply_panel(*linear, panel, row_at, num_rows, finish_panel(panel));
  });
}

int32_t STOKER_NAME(step)(StokerContext* context, const StokerModel* model, const StokerStep* step,
                          const StokerCache* cache, float* logits) {
  // Memory is taken when the step is made; running it takes none.
  return has_memory_for([&] { Step(*context, *model, *step, *cache, logits).run(); });
}

}  // extern "C"
