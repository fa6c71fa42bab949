// What happens to rows between products: norms, rotations, activations. Every step rounds to the element type
// where PyTorch's operators of the same name round, so that both paths pick the same tokens.
#pragma once

#include <math.h>
#include <stddef.h>

#include "element.h"

namespace STOKER_ELEMENT {

// [rows, size], each row `stride` elements behind the one before it.
struct Rows {
  Stored* data;
  ptrdiff_t stride;

  Stored* operator[](int64_t row) const { return data + row * stride; }
};

// The weight of an RMSNorm, in the element type or in float32.
struct NormWeight {
  const void* data;
  bool is_float;

  __m512 load(int first, __mmask16 mask) const {
    if (is_float) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + first);
    return Element::load(static_cast<const Stored*>(data) + first, mask);
  }
};

// x / rms(x), rounded; times the weight from element `first` on before rounding, or after it when `rounds_first`.
inline void rms_norm(const Stored* x, const NormWeight& weight, int first, int size, float eps, bool rounds_first,
                     Stored* out) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < size; i += kLanes) {
    const __m512 part = Element::load(x + i, lanes(size - i));
    sum = _mm512_fmadd_ps(part, part, sum);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / static_cast<float>(size) + eps));
  for (int i = 0; i < size; i += kLanes) {
    const __mmask16 mask = lanes(size - i);
    __m512 part = _mm512_mul_ps(Element::load(x + i, mask), factor);
    if (rounds_first) part = Element::round(part);
    Element::store(out + i, _mm512_mul_ps(part, weight.load(first + i, mask)), mask);
  }
}

// Turn the first `size` elements of a head: element i pairs with i + size / 2.
inline void rotate(Stored* head, const Stored* cosines, const Stored* sines, int size) {
  const int half = size / 2;
  for (int i = 0; i < half; i += kLanes) {
    const __mmask16 mask = lanes(half - i);
    const __m512 low = Element::load(head + i, mask), high = Element::load(head + half + i, mask);
    const __m512 turned_low = Element::round(_mm512_mul_ps(low, Element::load(cosines + i, mask)));
    const __m512 turned_high = Element::round(_mm512_mul_ps(high, Element::load(cosines + half + i, mask)));
    Element::store(head + i, _mm512_fmadd_ps(high, Element::load(sines + i, mask), turned_low), mask);
    Element::store(head + half + i, _mm512_fmadd_ps(low, Element::load(sines + half + i, mask), turned_high), mask);
  }
}

// x += scale * addend
inline void add_scaled(Stored* x, const Stored* addend, float scale, int size) {
  for (int i = 0; i < size; i += kLanes) {
    const __mmask16 mask = lanes(size - i);
    const __m512 added = _mm512_mul_ps(_mm512_set1_ps(scale), Element::load(addend + i, mask));
    Element::store(x + i, _mm512_add_ps(Element::load(x + i, mask), added), mask);
  }
}

inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 gelu_tanh(__m512 x) {
  const __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 inner = _mm512_mul_ps(_mm512_set1_ps(0.7978845608028654f),
                                     _mm512_fmadd_ps(cubed, _mm512_set1_ps(0.044715f), x));
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  return _mm512_fmadd_ps(half, hyperbolic_tangent(inner), half);
}

// The activation of an MLP's gate times the other half.
inline __m512 activated(__m512 gate, __m512 up, bool has_gelu) {
  gate = Element::round(gate);
  gate = Element::round(has_gelu ? gelu_tanh(gate) : silu(gate));
  return _mm512_mul_ps(gate, Element::round(up));
}

// cap * tanh(x / cap)
inline __m512 capped(__m512 x, float cap) {
  return _mm512_mul_ps(_mm512_set1_ps(cap), hyperbolic_tangent(_mm512_div_ps(x, _mm512_set1_ps(cap))));
}

}  // namespace STOKER_ELEMENT
