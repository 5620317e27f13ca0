/* Selection with AVX-512: filter scores by a threshold, and keep the k best of a candidate list.
 *
 * Instructions: vcmpps into a mask, vpcompressd into a register, then a store of the full register: compressing
 * straight to memory is microcode on Zen 4 and 5. What is stored behind the last survivor is overwritten by the
 * next vector, and the last, partial vector is stored under a mask. The k-th best comes from select_kth.h;
 * here are its four passes and the compaction. No buffer and no policy is owned here. */
#include "../internal.h"
#ifdef TK_X86
#include <immintrin.h>

#define SELECT_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,popcnt")))

SELECT_TARGET static inline __mmask16 first_lanes(int32_t lanes) {
  return (__mmask16)(lanes >= 16 ? 0xffff : (1u << lanes) - 1);
}

SELECT_TARGET static inline int32_t lanes_set(__mmask16 mask) { return (int32_t)_mm_popcnt_u32(mask); }

SELECT_TARGET static inline __m512i lane_numbers(int32_t first) {
  return _mm512_add_epi32(_mm512_set1_epi32(first),
                          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

/* How many of the lanes compare; counted in scalar registers, because compares fill the port that masks share. */
SELECT_TARGET static inline int32_t count_lanes(__mmask16 lanes, __m512 score, __m512 limit, const int strictly) {
  return lanes_set(strictly ? _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GT_OQ)
                            : _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GE_OQ));
}

SELECT_TARGET static inline int32_t count(const float *x, int32_t n, float v, const int strictly) {
  const __m512 limit = _mm512_set1_ps(v);
  int32_t even = 0, odd = 0, i = 0;
  for (; i + 32 <= n; i += 32) {
    even += count_lanes(0xffff, _mm512_loadu_ps(x + i), limit, strictly);
    odd += count_lanes(0xffff, _mm512_loadu_ps(x + i + 16), limit, strictly);
  }
  for (; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    even += count_lanes(lanes, _mm512_maskz_loadu_ps(lanes, x + i), limit, strictly);
  }
  return even + odd;
}

SELECT_TARGET static int32_t count_at_least(const float *x, int32_t n, float v) { return count(x, n, v, 0); }

SELECT_TARGET static int32_t count_above(const float *x, int32_t n, float v) { return count(x, n, v, 1); }

SELECT_TARGET static float smallest_at_least(const float *x, int32_t n, float v) {
  const __m512 least = _mm512_set1_ps(v);
  __m512 smallest = _mm512_set1_ps(__builtin_inff());
  for (int32_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, x + i);
    const __mmask16 mine = _mm512_mask_cmp_ps_mask(lanes, score, least, _CMP_GE_OQ);
    smallest = _mm512_mask_min_ps(smallest, mine, smallest, score);
  }
  return _mm512_reduce_min_ps(smallest);
}

SELECT_TARGET static inline int32_t collect_lanes(__mmask16 lanes, __m512 score, __m512 bottom, __m512 top,
                                                  float *inside) {
  const __mmask16 higher = _mm512_mask_cmp_ps_mask(lanes, score, bottom, _CMP_GT_OQ);
  const __mmask16 mine = _mm512_mask_cmp_ps_mask(higher, score, top, _CMP_LT_OQ);
  _mm512_storeu_ps(inside, _mm512_maskz_compress_ps(mine, score));
  return lanes_set(mine);
}

SELECT_TARGET static void collect_between(const float *x, int32_t n, float low, float high, float *inside) {
  const __m512 bottom = _mm512_set1_ps(low), top = _mm512_set1_ps(high);
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) inside += collect_lanes(0xffff, _mm512_loadu_ps(x + i), bottom, top, inside);
  const __mmask16 lanes = first_lanes(n - i);
  collect_lanes(lanes, _mm512_maskz_loadu_ps(lanes, x + i), bottom, top, inside);
}

#include "../select_kth.h"

SELECT_TARGET int32_t tk_avx512_select_above(const float *scores, int32_t count, int32_t base, float threshold,
                                             float *candidate_score, int32_t *candidate_index) {
  const __m512 limit = _mm512_set1_ps(threshold);
  const __m512i step = _mm512_set1_epi32(16);
  __m512i index = lane_numbers(base);
  int32_t kept = 0, i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 score = _mm512_loadu_ps(scores + i);
    const __mmask16 above = _mm512_cmp_ps_mask(score, limit, _CMP_GT_OQ);
    _mm512_storeu_ps(candidate_score + kept, _mm512_maskz_compress_ps(above, score));
    _mm512_storeu_si512(candidate_index + kept, _mm512_maskz_compress_epi32(above, index));
    kept += lanes_set(above);
    index = _mm512_add_epi32(index, step);
  }
  if (i < count) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, scores + i);
    const __mmask16 above = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GT_OQ);
    _mm512_mask_storeu_ps(candidate_score + kept, lanes, _mm512_maskz_compress_ps(above, score));
    _mm512_mask_storeu_epi32(candidate_index + kept, lanes, _mm512_maskz_compress_epi32(above, index));
    kept += lanes_set(above);
  }
  return kept;
}

SELECT_TARGET void tk_avx512_select_all(const float *scores, int32_t count, int32_t base, float *candidate_score,
                                        int32_t *candidate_index) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  for (int32_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, scores + i);
    const __mmask16 number = _mm512_cmp_ps_mask(score, score, _CMP_ORD_Q);
    _mm512_mask_storeu_ps(candidate_score + i, lanes, _mm512_mask_mov_ps(lowest, number, score));
    _mm512_mask_storeu_epi32(candidate_index + i, lanes, lane_numbers(base + i));
  }
}

/* The first `ties` lanes of `equal`. */
SELECT_TARGET static inline __mmask16 first_of(__mmask16 equal, int32_t ties) {
  return (__mmask16)_pdep_u32(ties < 16 ? (1u << ties) - 1 : 0xffff, equal);
}

/* Keeps what is above `least` and the first `ties` of what equals it, in place and in order. */
SELECT_TARGET static void keep(float *candidate_score, int32_t *candidate_index, int32_t count, float least,
                               int32_t ties) {
  const __m512 limit = _mm512_set1_ps(least);
  int32_t kept = 0;
  for (int32_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, candidate_score + i);
    const __m512i index = _mm512_maskz_loadu_epi32(lanes, candidate_index + i);
    __mmask16 mine = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GT_OQ);
    if (ties > 0) {
      const __mmask16 tied = first_of(_mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_EQ_OQ), ties);
      mine |= tied, ties -= lanes_set(tied);
    }
    _mm512_mask_storeu_ps(candidate_score + kept, lanes, _mm512_maskz_compress_ps(mine, score));
    _mm512_mask_storeu_epi32(candidate_index + kept, lanes, _mm512_maskz_compress_epi32(mine, index));
    kept += lanes_set(mine);
  }
}

SELECT_TARGET float tk_avx512_select_shrink(float *candidate_score, int32_t *candidate_index, int32_t count,
                                            int32_t k, void *scratch) {
  const float least = kth_largest(candidate_score, count, k, scratch);
  keep(candidate_score, candidate_index, count, least, k - count_above(candidate_score, count, least));
  return least;
}
#endif
