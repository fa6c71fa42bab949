// The two element types behind one vocabulary. Kernels move 32-bit words: a word is one float or a pair of
// bfloat16, `multiply_add` multiplies words lane by lane into float32 sums, and the rest of a kernel does not care.
// Sums run over a row's words in order, in one chain per output, so a result never depends on what is computed
// beside it.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

// Both variants are linked into one library: all that depends on the element type lives in a namespace named for it.
#ifdef STOKER_BF16
#define STOKER_ELEMENT bf16
#else
#define STOKER_ELEMENT f32
#endif

namespace STOKER_ELEMENT {

using Word = uint32_t;
constexpr int kLanes = 16;

#ifdef STOKER_BF16

struct Element {
  using Stored = uint16_t;
  static constexpr int kPerWord = 2;

  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  // 16 elements to floats; lanes outside the mask are 0.
  static __m512 load(const Stored* p, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
  }
  static void store(Stored* p, __m512 x, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(x));
  }
  static __m512 round(__m512 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
  }
};

#else

struct Element {
  using Stored = float;
  static constexpr int kPerWord = 1;

  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static __m512 load(const Stored* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
  static void store(Stored* p, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }
  static __m512 round(__m512 x) { return x; }
};

#endif

using Stored = Element::Stored;
constexpr int kPerWord = Element::kPerWord;

inline __mmask16 lanes(int count) {
  return count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << (count > 0 ? count : 0)) - 1);
}

// e^x to about one unit in the last place; 0 far below. The polynomial is that of Cephes' expf.
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(x, _mm512_set1_ps(88.3762626647949f));
  const __mmask16 is_zero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3365447504f), _CMP_LT_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_maskz_scalef_ps(_mm512_knot(is_zero), y, n);
}

inline __m512 hyperbolic_tangent(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 e = exponential(_mm512_add_ps(x, x));
  return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
}

}  // namespace STOKER_ELEMENT
