// Picks tokens from float32 logits, a row per task: the same rules as ../../sampler.py, without sorting a vocabulary.
//
// A row's result depends on nothing but the row. Random numbers come from outside, one place in [0, 1) per row.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "api.h"
#include "context.h"
#include "element.h"

namespace {

using f32::exponential;
using f32::kLanes;
using f32::lanes;

constexpr int kSpan = 64;  // tokens summed together when a place is looked up
// How far below the largest scaled logit candidates are looked for, one after the other until they suffice.
constexpr float kReaches[] = {6.0f, 12.0f, 24.0f, std::numeric_limits<float>::infinity()};

struct Candidate {
  float scaled;
  int32_t token;
};

// One row, its logits scaled: (logit - largest) / temperature, and minus infinity below min_p.
class Row {
 public:
  Row(const float* logits, int64_t size, float largest, const StokerPick& pick)
      : logits_(logits),
        size_(size),
        largest_(_mm512_set1_ps(largest)),
        temperature_(_mm512_set1_ps(pick.temperature)),
        floor_(_mm512_set1_ps(pick.min_p > 0 ? std::log(pick.min_p) : -std::numeric_limits<float>::infinity())) {}

  int64_t size() const { return size_; }

  // 16 scaled logits; lanes beyond the last token are minus infinity.
  __m512 scaled(int64_t first) const {
    const __mmask16 mask = lanes(static_cast<int>(std::min<int64_t>(size_ - first, kLanes)));
    const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 logits = _mm512_mask_loadu_ps(hidden, mask, logits_ + first);
    const __m512 x = _mm512_div_ps(_mm512_sub_ps(logits, largest_), temperature_);
    return _mm512_mask_mov_ps(hidden, _mm512_cmp_ps_mask(x, floor_, _CMP_GE_OQ), x);
  }

  // e^scaled of a span of tokens, and their sum.
  double span(int64_t first, float* weights) const {
    double sum = 0;
    for (int i = 0; i < kSpan; i += kLanes) {
      const __m512 part = first + i < size_ ? exponential(scaled(first + i)) : _mm512_setzero_ps();
      _mm512_storeu_ps(weights + i, part);
    }
    for (int i = 0; i < kSpan; ++i) sum += weights[i];
    return sum;
  }

 private:
  const float* logits_;
  int64_t size_;
  __m512 largest_, temperature_, floor_;
};

// The first largest logit; its token is -1 when it is not a finite number or any logit is NaN.
Candidate find_largest(const float* logits, int64_t size) {
  __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __mmask16 nan = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 mask = lanes(static_cast<int>(std::min<int64_t>(size - i, kLanes)));
    const __m512 part = _mm512_mask_loadu_ps(largest, mask, logits + i);
    nan |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
    largest = _mm512_max_ps(largest, part);
  }
  const float value = _mm512_reduce_max_ps(largest);
  if (nan || !std::isfinite(value)) return {0, -1};
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 mask = lanes(static_cast<int>(std::min<int64_t>(size - i, kLanes)));
    const __mmask16 found =
        _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, logits + i), _mm512_set1_ps(value), _CMP_EQ_OQ);
    if (found) return {value, static_cast<int32_t>(i + __builtin_ctz(found))};
  }
  return {0, -1};
}

// The token at a place of the cumulative distribution of all tokens, in vocabulary order.
int32_t pick_of_all(const Row& row, double place) {
  std::vector<double> sums;
  float weights[kSpan];
  double total = 0;
  for (int64_t first = 0; first < row.size(); first += kSpan) {
    sums.push_back(row.span(first, weights));
    total += sums.back();
  }
  double target = place * total;
  size_t span = 0;
  for (; span + 1 < sums.size() && target >= sums[span]; ++span) target -= sums[span];
  // Rounding may leave a target beyond the last weight: the last token with any weight takes it.
  row.span(static_cast<int64_t>(span) * kSpan, weights);
  int last = 0;
  for (int i = 0; i < kSpan; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    if (target < weights[i]) break;
    target -= weights[i];
  }
  return static_cast<int32_t>(span * kSpan + last);
}

// Tokens whose scaled logit is at least `reach` below 0, in vocabulary order.
std::vector<Candidate> candidates(const Row& row, float reach) {
  std::vector<Candidate> found;
  const __m512 limit = _mm512_set1_ps(-reach);
  for (int64_t first = 0; first < row.size(); first += kLanes) {
    const __m512 scaled = row.scaled(first);
    __mmask16 mask = _mm512_cmp_ps_mask(scaled, limit, _CMP_GE_OQ) &
                     _mm512_cmp_ps_mask(scaled, _mm512_set1_ps(-std::numeric_limits<float>::infinity()), _CMP_GT_OQ);
    if (!mask) continue;
    float values[kLanes];
    _mm512_storeu_ps(values, scaled);
    for (; mask; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      found.push_back({values[lane], static_cast<int32_t>(first + lane)});
    }
  }
  return found;
}

double weight(const Candidate& candidate) {
  return _mm512_cvtss_f32(exponential(_mm512_set1_ps(candidate.scaled)));
}

double mass(const Row& row) {
  float weights[kSpan];
  double total = 0;
  for (int64_t first = 0; first < row.size(); first += kSpan) total += row.span(first, weights);
  return total;
}

// Cut candidates, most likely first, to the top_k and then to the smallest set with mass top_p.
// Returns false when the set may reach beyond the candidates.
bool cut(std::vector<Candidate>& found, const StokerPick& pick, double total, bool is_all) {
  const bool has_limit = pick.top_k > 0;
  if (has_limit && static_cast<int64_t>(found.size()) < pick.top_k && !is_all) return false;
  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    return a.scaled != b.scaled ? a.scaled > b.scaled : a.token < b.token;
  });
  if (has_limit && static_cast<int64_t>(found.size()) > pick.top_k) found.resize(pick.top_k);
  if (pick.top_p >= 1) return has_limit || is_all;
  if (has_limit) {
    total = 0;
    for (const Candidate& candidate : found) total += weight(candidate);
  }
  const double wanted = total * static_cast<double>(pick.top_p);
  double before = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (i > 0 && before >= wanted) {
      found.resize(i);
      return true;
    }
    before += weight(found[i]);
  }
  return has_limit || is_all || before >= wanted;
}

int32_t pick_of_top(const Row& row, const StokerPick& pick) {
  const double total = pick.top_k > 0 ? 0 : mass(row);
  std::vector<Candidate> found;
  for (const float reach : kReaches) {
    found = candidates(row, reach);
    if (cut(found, pick, total, std::isinf(reach))) break;
  }
  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  double kept = 0;
  for (const Candidate& candidate : found) kept += weight(candidate);
  double target = pick.place * kept;
  int32_t token = found.front().token;
  for (const Candidate& candidate : found) {
    const double share = weight(candidate);
    if (share <= 0) continue;
    token = candidate.token;
    if (target < share) break;
    target -= share;
  }
  return token;
}

int32_t pick_token(const float* logits, int64_t size, const StokerPick& pick) {
  const Candidate largest = find_largest(logits, size);
  if (largest.token < 0 || pick.temperature <= 0) return largest.token;
  const Row row(logits, size, largest.scaled, pick);
  const bool has_limit = pick.top_k > 0 && pick.top_k < size;
  if (!has_limit && pick.top_p >= 1) return pick_of_all(row, pick.place);
  StokerPick limited = pick;
  if (!has_limit) limited.top_k = 0;
  return pick_of_top(row, limited);
}

template <class Task>
void each_row(StokerContext& context, int count, const Task& task) {
  std::atomic<int> next{0};
  context.pool.run([&](int) {
    for (int row; (row = next.fetch_add(1)) < count;) task(row);
  });
}

}  // namespace

extern "C" {

void stoker_finite(StokerContext* context, const float* logits, int32_t num_rows, int64_t size, uint8_t* is_finite) {
  each_row(*context, num_rows, [&](int row) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kLanes) {
      const __mmask16 mask = lanes(static_cast<int>(std::min<int64_t>(size - i, kLanes)));
      // x - x is 0 for a finite x and NaN for any other.
      const __m512 part = _mm512_maskz_loadu_ps(mask, logits + row * size + i);
      sum = _mm512_add_ps(sum, _mm512_sub_ps(part, part));
    }
    is_finite[row] = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q) == 0;
  });
}

int32_t stoker_pick(StokerContext* context, const float* logits, int32_t num_rows, int64_t size,
                    const StokerPick* picks, int32_t* token_ids) {
  std::atomic<bool> has_memory{true};
  each_row(*context, num_rows, [&](int row) {
    if (!has_memory_for([&] { token_ids[row] = pick_token(logits + row * size, size, picks[row]); })) {
      has_memory = false;
    }
  });
  return has_memory;
}

}  // extern "C"
