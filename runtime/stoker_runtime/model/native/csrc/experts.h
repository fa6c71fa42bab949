// The MLP of a layer that is a mixture: a router picks a few experts for each row, and their weighted sum counts.
//
// Rows are grouped by expert before they are multiplied, and a task is one panel of one expert's weight with all the
// rows that chose it. So a step reads an expert once, whoever wants it, and every thread has something to do even
// where a single row is computed. What a row gets depends on that row alone: each product is one chain of additions
// whatever is beside it, and its experts are added up in the order of their numbers, as PyTorch's way does it
// (Experts in ../../mlp.py), which rounds at the same places.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "api.h"
#include "context.h"
#include "element.h"
#include "product.h"
#include "rows.h"
#ifdef STOKER_BF16
#include "gguf_blocks.h"
#endif

namespace STOKER_ELEMENT {

// scores[0 .. count) -> probabilities; all of them NaN where one score is not a number or infinite upwards.
inline void softmax(float* scores, int count) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 largest = lowest;
  __mmask16 has_nan = 0;
  for (int i = 0; i < count; i += kLanes) {
    const __m512 part = _mm512_mask_loadu_ps(lowest, lanes(count - i), scores + i);
    has_nan |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
    largest = _mm512_max_ps(largest, part);
  }
  const float top = _mm512_reduce_max_ps(largest);
  if (has_nan || !std::isfinite(top)) {
    std::fill(scores, scores + count, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < count; i += kLanes) {
    const __mmask16 mask = lanes(count - i);
    const __m512 part = exponential(_mm512_sub_ps(_mm512_mask_loadu_ps(lowest, mask, scores + i), _mm512_set1_ps(top)));
    sum = _mm512_add_ps(sum, part);
    _mm512_mask_storeu_ps(scores + i, mask, part);
  }
  const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
  for (int i = 0; i < count; i += kLanes) {
    const __mmask16 mask = lanes(count - i);
    _mm512_mask_storeu_ps(scores + i, mask, _mm512_div_ps(_mm512_maskz_loadu_ps(mask, scores + i), total));
  }
}

// An expert of a row, and what its answer is multiplied by.
struct Choice {
  float weight;
  int expert;
};

// Put the `count` most probable ones first, in descending order; NaN counts as most probable.
//
// Which of equally probable experts is taken torch.topk leaves open, and bfloat16 scores are equal often enough to
// matter. Guaranteed is that it depends on the row's own probabilities alone. Beyond that these are the calls of the
// standard library, over the same sequence, that torch.topk makes on a CPU, so that both take the same ones.
inline void take_largest(std::vector<Choice>& choices, int count) {
  const auto is_before = [](const Choice& a, const Choice& b) {
    return (std::isnan(a.weight) && !std::isnan(b.weight)) || a.weight > b.weight;
  };
  const auto begin = choices.begin();
  if (static_cast<size_t>(count) * 64 <= choices.size()) {
    std::partial_sort(begin, begin + count, choices.end(), is_before);
    return;
  }
  std::nth_element(begin, begin + count - 1, choices.end(), is_before);
  std::sort(begin, begin + count - 1, is_before);
}

// The mixture of the first layer that has one; all have the same sizes.
inline const StokerExperts* experts_of(const StokerModel& model) {
  const StokerLayer* const end = model.layers + model.num_layers;
  const StokerLayer* found = std::find_if(model.layers, end, [](const StokerLayer& layer) { return layer.experts; });
  return found == end ? nullptr : found->experts;
}

constexpr int kMixturePhases = 6;

// The mixtures of a step's layers, one after another in the same memory.
class Mixture {
 public:
  // For models without mixtures `experts` is null, and nothing may be called.
  Mixture(const StokerExperts* experts, int hidden_size, int num_rows);

  // Memory that `place` will take.
  size_t bytes() const;
  void place(Arena& arena);

  // Compute what the experts answer to rows [num_rows, E]. `each(count, task)` runs task(0 .. count - 1) on all
  // threads and waits for them; kMixturePhases times at most.
  template <class Each>
  void compute(const StokerExperts& experts, const Rows& in, bool has_gelu, const Each& each);

  // Add up what they have answered to one row: out [E].
  void combine(int row, Stored* out) const;

 private:
  void choose(const StokerExperts& experts, int row);
  void group();
  template <class Row, class Finish>
  void multiply_rows(const StokerLinear& linear, int panel, int expert, const Row& row_at, const Finish& finish) const;
  template <class Each, class RowAt, class Finish>
  void multiply_all(const StokerLinear* linears, bool is_pair, const RowAt& row_at, const Each& each,
                    const Finish& finish) const;

  float* scores_of(int row) { return scores_ + static_cast<int64_t>(row) * scores_stride_; }
  int64_t num_pairs() const { return static_cast<int64_t>(num_rows_) * num_per_token_; }

  const int num_rows_, hidden_size_, num_experts_, num_per_token_, expert_size_, scores_stride_;
  const bool is_quantized_;
  std::vector<Choice> chosen_;  // [rows, K], ascending by expert
  // Pairs of a row and an expert lie grouped by expert, in the order of rows.
  std::vector<int> places_;  // of the pairs of `chosen_`
  std::vector<int> rows_;    // by place
  std::vector<int> first_;   // place of each expert's first pair; [N + 1]
  std::vector<int> active_;  // experts that have pairs
  float* scores_ = nullptr;  // [rows, scores_stride_]
  Rows activated_{}, answered_{};  // by place
#ifdef STOKER_BF16
  QuantizedRows quantized_, quantized_pairs_;
#endif
};

inline Mixture::Mixture(const StokerExperts* experts, int hidden_size, int num_rows)
    : num_rows_(experts ? num_rows : 0),
      hidden_size_(hidden_size),
      num_experts_(experts ? experts->num_experts : 0),
      num_per_token_(experts ? experts->num_per_token : 0),
      expert_size_(experts ? experts->intermediate_size : 0),
      scores_stride_((num_experts_ + kPanel - 1) / kPanel * kPanel),
      is_quantized_(experts && experts->gate_up->is_quantized),
      chosen_(num_pairs()),
      places_(num_pairs()),
      rows_(num_pairs()),
      first_(num_experts_ + 1) {
  active_.reserve(num_experts_);
}

inline size_t Mixture::bytes() const {
  size_t total = Arena::aligned(static_cast<size_t>(num_rows_) * scores_stride_ * sizeof(float)) +
                 Arena::aligned(row_stride(expert_size_) * num_pairs() * sizeof(Stored)) +
                 Arena::aligned(row_stride(hidden_size_) * num_pairs() * sizeof(Stored));
#ifdef STOKER_BF16
  if (is_quantized_) {
    total += Arena::aligned(QuantizedRows::bytes(num_rows_, hidden_size_)) +
             Arena::aligned(QuantizedRows::bytes(num_pairs(), expert_size_));
  }
#endif
  return total;
}

inline void Mixture::place(Arena& arena) {
  scores_ = static_cast<float*>(arena.take(static_cast<size_t>(num_rows_) * scores_stride_ * sizeof(float)));
  for (const auto& [rows, size] : {std::pair{&activated_, expert_size_}, std::pair{&answered_, hidden_size_}}) {
    const ptrdiff_t stride = row_stride(size);
    *rows = {static_cast<Stored*>(arena.take(stride * num_pairs() * sizeof(Stored))), stride};
  }
#ifdef STOKER_BF16
  if (!is_quantized_) return;
  for (const auto& [rows, count, size] : {std::tuple{&quantized_, static_cast<int64_t>(num_rows_), hidden_size_},
                                          std::tuple{&quantized_pairs_, num_pairs(), expert_size_}}) {
    rows->place(static_cast<char*>(arena.take(QuantizedRows::bytes(count, size))), count, size);
  }
#endif
}

template <class Each>
void Mixture::compute(const StokerExperts& experts, const Rows& in, bool has_gelu, const Each& each) {
  // A router has few panels, so tiles of rows are tasks as well.
  const int panels = static_cast<int>(packed_panels(num_experts_, false));
  each((num_rows_ + kMaxRows - 1) / kMaxRows * panels, [&](int task) {
    const int first = task / panels * kMaxRows, panel = task % panels;
    multiply_panel(
        experts.router, panel, [&](int i) { return in[first + i]; }, std::min(kMaxRows, num_rows_ - first),
        [&](int i, __m512 low, __m512 high) {
          float* to = scores_of(first + i) + panel * kPanel;
          _mm512_storeu_ps(to, Element::round(low));
          _mm512_storeu_ps(to + kLanes, Element::round(high));
        });
  });
  each(num_rows_, [&](int row) {
    choose(experts, row);
#ifdef STOKER_BF16
    if (is_quantized_) quantize(in[row], hidden_size_, quantized_[row]);
#endif
  });
  each(1, [&](int) { group(); });
  const auto activate = [&](int place, int panel, __m512 gate, __m512 up) {
    const int column = panel * kLanes;
    Element::store(activated_[place] + column, activated(gate, up, has_gelu), lanes(expert_size_ - column));
  };
  const auto answer = [&](int place, int panel, __m512 low, __m512 high) {
    const int column = panel * kPanel;
    Element::store(answered_[place] + column, low, lanes(hidden_size_ - column));
    Element::store(answered_[place] + column + kLanes, high, lanes(hidden_size_ - column - kLanes));
  };
#ifdef STOKER_BF16
  if (is_quantized_) {
    multiply_all(experts.gate_up, true, [&](int place) { return quantized_[rows_[place]]; }, each, activate);
    each(static_cast<int>(num_pairs()),
         [&](int place) { quantize(activated_[place], expert_size_, quantized_pairs_[place]); });
    multiply_all(experts.down, false, [&](int place) { return quantized_pairs_[place]; }, each, answer);
    return;
  }
#endif
  multiply_all(experts.gate_up, true, [&](int place) { return in[rows_[place]]; }, each, activate);
  multiply_all(experts.down, false, [&](int place) { return activated_[place]; }, each, answer);
}

// One product of every expert with its own rows. `finish(place, panel, first, second)` gets each result.
template <class Each, class RowAt, class Finish>
void Mixture::multiply_all(const StokerLinear* linears, bool is_pair, const RowAt& row_at, const Each& each,
                           const Finish& finish) const {
  const int panels = static_cast<int>(packed_panels(linears[0].num_outputs, is_pair));
  each(static_cast<int>(active_.size()) * panels, [&](int task) {
    const int expert = active_[task / panels], panel = task % panels, first = first_[expert];
    multiply_rows(
        linears[expert], panel, expert, [&](int i) { return row_at(first + i); },
        [&](int i, __m512 low, __m512 high) { finish(first + i, panel, low, high); });
  });
}

template <class Row, class Finish>
void Mixture::multiply_rows(const StokerLinear& linear, int panel, int expert, const Row& row_at,
                            const Finish& finish) const {
  const int count = first_[expert + 1] - first_[expert];
#ifdef STOKER_BF16
  if constexpr (std::is_same_v<decltype(row_at(0)), QuantizedRow>) {
    multiply_integer_panel(linear, panel, row_at, count, finish);
    return;
  } else
#endif
    multiply_panel(linear, panel, row_at, count, finish);
}

inline void Mixture::choose(const StokerExperts& experts, int row) {
  float* scores = scores_of(row);
  softmax(scores, num_experts_);
  std::vector<Choice> choices(num_experts_);
  for (int expert = 0; expert < num_experts_; ++expert) choices[expert] = {scores[expert], expert};
  take_largest(choices, num_per_token_);
  float sum = 1;
  if (experts.normalizes_weights) {
    sum = 0;
    for (int k = 0; k < num_per_token_; ++k) sum += choices[k].weight;
  }
  Choice* chosen = chosen_.data() + static_cast<int64_t>(row) * num_per_token_;
  for (int k = 0; k < num_per_token_; ++k) {
    const __m512 weight = Element::round(_mm512_set1_ps(choices[k].weight / sum));
    chosen[k] = {_mm512_cvtss_f32(weight), choices[k].expert};
  }
  std::sort(chosen, chosen + num_per_token_, [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
}

inline void Mixture::group() {
  std::fill(first_.begin(), first_.end(), 0);
  for (const Choice& choice : chosen_) ++first_[choice.expert + 1];
  active_.clear();
  for (int expert = 0; expert < num_experts_; ++expert) {
    if (first_[expert + 1] > 0) active_.push_back(expert);
    first_[expert + 1] += first_[expert];
  }
  std::vector<int> next(first_);
  for (size_t i = 0; i < chosen_.size(); ++i) {
    places_[i] = next[chosen_[i].expert]++;
    rows_[places_[i]] = static_cast<int>(i) / num_per_token_;
  }
}

inline void Mixture::combine(int row, Stored* out) const {
  const int64_t first = static_cast<int64_t>(row) * num_per_token_;
  for (int i = 0; i < hidden_size_; i += kLanes) {
    const __mmask16 mask = lanes(hidden_size_ - i);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t pair = first; pair < first + num_per_token_; ++pair) {
      const __m512 answer = Element::load(answered_[places_[pair]] + i, mask);
      const __m512 weighted = Element::round(_mm512_mul_ps(answer, _mm512_set1_ps(chosen_[pair].weight)));
      sum = Element::round(_mm512_add_ps(sum, weighted));
    }
    Element::store(out + i, sum, mask);
  }
}

}  // namespace STOKER_ELEMENT
