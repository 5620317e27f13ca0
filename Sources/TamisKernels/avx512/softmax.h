/* Softmax over keys with heads in lanes, for the bfloat16 attend kernels of the avx512 and amx tables: maximum,
 * exponential, rounding to bfloat16 pairs. Included where the enclosing functions have the avx512 target. */
#ifndef TAMIS_AVX512_SOFTMAX_H
#define TAMIS_AVX512_SOFTMAX_H
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define TK_SOFTMAX                  \
  static inline __attribute__((always_inline, \
                               target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

/* max(before, scale * scores[k * stride]) over k < count; passes over NaN. */
TK_SOFTMAX __m512 tk_avx512_block_max(const float *scores, ptrdiff_t stride, int32_t count, float scale,
                                      __m512 before) {
  const __m512 by = _mm512_set1_ps(scale);
  __m512 a = before, b = before, c = before, d = before; /* four chains: max has a latency of 4 */
  int32_t k = 0;
  for (; k + 4 <= count; k += 4, scores += 4 * stride) {
    a = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(scores), by), a);
    b = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(scores + stride), by), b);
    c = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(scores + 2 * stride), by), c);
    d = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(scores + 3 * stride), by), d);
  }
  for (; k < count; k++, scores += stride) a = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(scores), by), a);
  return _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
}

/* What is subtracted from scores: the maximum, or 0 while there is none, so that exp(-inf - 0) = 0. */
TK_SOFTMAX __m512 tk_avx512_softmax_origin(__m512 max) {
  const __mmask16 none = _mm512_cmp_ps_mask(max, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
  return _mm512_mask_mov_ps(max, none, _mm512_setzero_ps());
}

/* exp(x) for x <= 0, relative error below 2^-23 (1 + |x| / 2); exp(0) = 1, exp(-inf) = 0, NaN stays NaN.
 * 2^f on [0, 1) is a minimax polynomial with constant term 1; vscalefps floors its second operand. */
TK_SOFTMAX __m512 tk_avx512_exp(__m512 x) {
  const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  /* Where 2^t is subnormal the result is 0, which also keeps the penalties of subnormals away. */
  const __mmask16 live = _mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);
  __m512 y = _mm512_fmadd_ps(f, _mm512_set1_ps(0.000217022549f), _mm512_set1_ps(0.00124396884f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.00967884064f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.0554833412f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.240229830f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.693147004f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(live, y, t);
}

/* The same with 2^f to 2^-18.4: what is rounded to bfloat16 next needs no more. */
TK_SOFTMAX __m512 tk_avx512_exp_rough(__m512 x) {
  const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __mmask16 live = _mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);
  __m512 y = _mm512_fmadd_ps(f, _mm512_set1_ps(0.0134267015f), _mm512_set1_ps(0.0522424467f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.241280213f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.693044841f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(live, y, t);
}

/* exp(scale * score - from), the exponent held at or below 0 against the fused product's missing rounding. */
TK_SOFTMAX __m512 tk_avx512_softmax_weight(__m512 score, float scale, __m512 from) {
  const __m512 x = _mm512_fmsub_ps(score, _mm512_set1_ps(scale), from);
  return tk_avx512_exp_rough(_mm512_min_ps(_mm512_setzero_ps(), x)); /* min(0, NaN) is NaN in this order */
}

/* [16][2] bfloat16: a and b, rounded to nearest even, element by element. */
TK_SOFTMAX __m512i tk_avx512_bf16_pairs(__m512 a, __m512 b) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}

/* sum[i] + pair[i][0] + pair[i][1]; vdpbf16ps would take longer on Intel. */
TK_SOFTMAX __m512 tk_avx512_add_pairs(__m512 sum, __m512i pair) {
  const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
  return _mm512_add_ps(_mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16))), second);
}

/* Indices that interleave two rows of 32 bfloat16: elements 0..15 and 16..31 as [16][2]. */
TK_SOFTMAX __m512i tk_avx512_interleave_low(void) {
  return _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                          35, 3, 34, 2, 33, 1, 32, 0);
}
TK_SOFTMAX __m512i tk_avx512_interleave_high(void) {
  return _mm512_add_epi16(tk_avx512_interleave_low(), _mm512_set1_epi16(16));
}
#endif
