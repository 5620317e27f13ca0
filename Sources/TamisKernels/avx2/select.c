/* Selection with AVX2: filter scores by a threshold, and keep the k best of a candidate list.
 *
 * AVX2 has no compress: the compare mask (vmovmskps) picks one of 256 permutations (vpermps), and the full register
 * is stored; what lies behind the last survivor is overwritten by the next vector. The last scores of an array
 * are done one by one. The k-th best comes from select_kth.h; here are its passes and the compaction. No buffer
 * and no policy is owned here. */
#include "../internal.h"
#ifdef TK_X86
#include <immintrin.h>

#define SELECT_TARGET __attribute__((target("avx2,popcnt")))

/* Byte i of entry m: the number of the i-th set bit of m. */
static const uint64_t survivors[256] = {
    0x0000000000000000, 0x0000000000000000, 0x0000000000000001, 0x0000000000000100, 0x0000000000000002,
    0x0000000000000200, 0x0000000000000201, 0x0000000000020100, 0x0000000000000003, 0x0000000000000300,
    0x0000000000000301, 0x0000000000030100, 0x0000000000000302, 0x0000000000030200, 0x0000000000030201,
    0x0000000003020100, 0x0000000000000004, 0x0000000000000400, 0x0000000000000401, 0x0000000000040100,
    0x0000000000000402, 0x0000000000040200, 0x0000000000040201, 0x0000000004020100, 0x0000000000000403,
    0x0000000000040300, 0x0000000000040301, 0x0000000004030100, 0x0000000000040302, 0x0000000004030200,
    0x0000000004030201, 0x0000000403020100, 0x0000000000000005, 0x0000000000000500, 0x0000000000000501,
    0x0000000000050100, 0x0000000000000502, 0x0000000000050200, 0x0000000000050201, 0x0000000005020100,
    0x0000000000000503, 0x0000000000050300, 0x0000000000050301, 0x0000000005030100, 0x0000000000050302,
    0x0000000005030200, 0x0000000005030201, 0x0000000503020100, 0x0000000000000504, 0x0000000000050400,
    0x0000000000050401, 0x0000000005040100, 0x0000000000050402, 0x0000000005040200, 0x0000000005040201,
    0x0000000504020100, 0x0000000000050403, 0x0000000005040300, 0x0000000005040301, 0x0000000504030100,
    0x0000000005040302, 0x0000000504030200, 0x0000000504030201, 0x0000050403020100, 0x0000000000000006,
    0x0000000000000600, 0x0000000000000601, 0x0000000000060100, 0x0000000000000602, 0x0000000000060200,
    0x0000000000060201, 0x0000000006020100, 0x0000000000000603, 0x0000000000060300, 0x0000000000060301,
    0x0000000006030100, 0x0000000000060302, 0x0000000006030200, 0x0000000006030201, 0x0000000603020100,
    0x0000000000000604, 0x0000000000060400, 0x0000000000060401, 0x0000000006040100, 0x0000000000060402,
    0x0000000006040200, 0x0000000006040201, 0x0000000604020100, 0x0000000000060403, 0x0000000006040300,
    0x0000000006040301, 0x0000000604030100, 0x0000000006040302, 0x0000000604030200, 0x0000000604030201,
    0x0000060403020100, 0x0000000000000605, 0x0000000000060500, 0x0000000000060501, 0x0000000006050100,
    0x0000000000060502, 0x0000000006050200, 0x0000000006050201, 0x0000000605020100, 0x0000000000060503,
    0x0000000006050300, 0x0000000006050301, 0x0000000605030100, 0x0000000006050302, 0x0000000605030200,
    0x0000000605030201, 0x0000060503020100, 0x0000000000060504, 0x0000000006050400, 0x0000000006050401,
    0x0000000605040100, 0x0000000006050402, 0x0000000605040200, 0x0000000605040201, 0x0000060504020100,
    0x0000000006050403, 0x0000000605040300, 0x0000000605040301, 0x0000060504030100, 0x0000000605040302,
    0x0000060504030200, 0x0000060504030201, 0x0006050403020100, 0x0000000000000007, 0x0000000000000700,
    0x0000000000000701, 0x0000000000070100, 0x0000000000000702, 0x0000000000070200, 0x0000000000070201,
    0x0000000007020100, 0x0000000000000703, 0x0000000000070300, 0x0000000000070301, 0x0000000007030100,
    0x0000000000070302, 0x0000000007030200, 0x0000000007030201, 0x0000000703020100, 0x0000000000000704,
    0x0000000000070400, 0x0000000000070401, 0x0000000007040100, 0x0000000000070402, 0x0000000007040200,
    0x0000000007040201, 0x0000000704020100, 0x0000000000070403, 0x0000000007040300, 0x0000000007040301,
    0x0000000704030100, 0x0000000007040302, 0x0000000704030200, 0x0000000704030201, 0x0000070403020100,
    0x0000000000000705, 0x0000000000070500, 0x0000000000070501, 0x0000000007050100, 0x0000000000070502,
    0x0000000007050200, 0x0000000007050201, 0x0000000705020100, 0x0000000000070503, 0x0000000007050300,
    0x0000000007050301, 0x0000000705030100, 0x0000000007050302, 0x0000000705030200, 0x0000000705030201,
    0x0000070503020100, 0x0000000000070504, 0x0000000007050400, 0x0000000007050401, 0x0000000705040100,
    0x0000000007050402, 0x0000000705040200, 0x0000000705040201, 0x0000070504020100, 0x0000000007050403,
    0x0000000705040300, 0x0000000705040301, 0x0000070504030100, 0x0000000705040302, 0x0000070504030200,
    0x0000070504030201, 0x0007050403020100, 0x0000000000000706, 0x0000000000070600, 0x0000000000070601,
    0x0000000007060100, 0x0000000000070602, 0x0000000007060200, 0x0000000007060201, 0x0000000706020100,
    0x0000000000070603, 0x0000000007060300, 0x0000000007060301, 0x0000000706030100, 0x0000000007060302,
    0x0000000706030200, 0x0000000706030201, 0x0000070603020100, 0x0000000000070604, 0x0000000007060400,
    0x0000000007060401, 0x0000000706040100, 0x0000000007060402, 0x0000000706040200, 0x0000000706040201,
    0x0000070604020100, 0x0000000007060403, 0x0000000706040300, 0x0000000706040301, 0x0000070604030100,
    0x0000000706040302, 0x0000070604030200, 0x0000070604030201, 0x0007060403020100, 0x0000000000070605,
    0x0000000007060500, 0x0000000007060501, 0x0000000706050100, 0x0000000007060502, 0x0000000706050200,
    0x0000000706050201, 0x0000070605020100, 0x0000000007060503, 0x0000000706050300, 0x0000000706050301,
    0x0000070605030100, 0x0000000706050302, 0x0000070605030200, 0x0000070605030201, 0x0007060503020100,
    0x0000000007060504, 0x0000000706050400, 0x0000000706050401, 0x0000070605040100, 0x0000000706050402,
    0x0000070605040200, 0x0000070605040201, 0x0007060504020100, 0x0000000706050403, 0x0000070605040300,
    0x0000070605040301, 0x0007060504030100, 0x0000070605040302, 0x0007060504030200, 0x0007060504030201,
    0x0706050403020100,
};

SELECT_TARGET static inline __m256i gathering(uint32_t mask) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)&survivors[mask]));
}

SELECT_TARGET static inline uint32_t lanes_of(__m256 compared) { return (uint32_t)_mm256_movemask_ps(compared); }

/* Stores the lanes of the mask side by side, and garbage up to the eighth element; returns how many. */
SELECT_TARGET static inline int32_t append_scores(float *to, __m256 score, uint32_t mask) {
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(score, gathering(mask)));
  return _mm_popcnt_u32(mask);
}

SELECT_TARGET static inline int32_t append(float *to_score, int32_t *to_index, __m256 score, __m256i index,
                                           uint32_t mask) {
  const __m256i lanes = gathering(mask);
  _mm256_storeu_ps(to_score, _mm256_permutevar8x32_ps(score, lanes));
  _mm256_storeu_si256((__m256i *)to_index, _mm256_permutevar8x32_epi32(index, lanes));
  return _mm_popcnt_u32(mask);
}

SELECT_TARGET static inline int32_t sum_lanes(__m256i x) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

SELECT_TARGET static int32_t count_at_least(const float *x, int32_t n, float v) {
  const __m256 limit = _mm256_set1_ps(v);
  __m256i even = _mm256_setzero_si256(), odd = even;
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    even = _mm256_sub_epi32(even, _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_GE_OQ)));
    odd = _mm256_sub_epi32(odd, _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 8), limit, _CMP_GE_OQ)));
  }
  int32_t count = sum_lanes(_mm256_add_epi32(even, odd));
  for (; i < n; i++) count += x[i] >= v;
  return count;
}

SELECT_TARGET static int32_t count_above(const float *x, int32_t n, float v) {
  const __m256 limit = _mm256_set1_ps(v);
  __m256i counts = _mm256_setzero_si256();
  int32_t i = 0;
  for (; i + 8 <= n; i += 8)
    counts = _mm256_sub_epi32(counts, _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_GT_OQ)));
  int32_t count = sum_lanes(counts);
  for (; i < n; i++) count += x[i] > v;
  return count;
}

SELECT_TARGET static float smallest_at_least(const float *x, int32_t n, float v) {
  const __m256 limit = _mm256_set1_ps(v), infinity = _mm256_set1_ps(__builtin_inff());
  __m256 smallest = infinity;
  int32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 score = _mm256_loadu_ps(x + i);
    const __m256 mine = _mm256_cmp_ps(score, limit, _CMP_GE_OQ);
    smallest = _mm256_min_ps(smallest, _mm256_blendv_ps(infinity, score, mine));
  }
  float lane[8], least = __builtin_inff();
  _mm256_storeu_ps(lane, smallest);
  for (int32_t j = 0; j < 8; j++) least = lane[j] < least ? lane[j] : least;
  for (; i < n; i++) least = x[i] >= v && x[i] < least ? x[i] : least;
  return least;
}

SELECT_TARGET static void collect_between(const float *x, int32_t n, float low, float high, float *inside) {
  const __m256 bottom = _mm256_set1_ps(low), top = _mm256_set1_ps(high);
  int32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 score = _mm256_loadu_ps(x + i);
    const __m256 higher = _mm256_cmp_ps(score, bottom, _CMP_GT_OQ), lower = _mm256_cmp_ps(score, top, _CMP_LT_OQ);
    inside += append_scores(inside, score, lanes_of(_mm256_and_ps(higher, lower)));
  }
  for (; i < n; i++) {
    *inside = x[i];
    inside += (x[i] > low) & (x[i] < high);
  }
}

#include "../select_kth.h"

SELECT_TARGET int32_t tk_avx2_select_above(const float *scores, int32_t count, int32_t base, float threshold,
                                           float *candidate_score, int32_t *candidate_index) {
  const __m256 limit = _mm256_set1_ps(threshold);
  const __m256i step = _mm256_set1_epi32(8);
  __m256i index = _mm256_add_epi32(_mm256_set1_epi32(base), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  int32_t kept = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 score = _mm256_loadu_ps(scores + i);
    const uint32_t above = lanes_of(_mm256_cmp_ps(score, limit, _CMP_GT_OQ));
    kept += append(candidate_score + kept, candidate_index + kept, score, index, above);
    index = _mm256_add_epi32(index, step);
  }
  for (; i < count; i++) {
    candidate_score[kept] = scores[i];
    candidate_index[kept] = base + i;
    kept += scores[i] > threshold;
  }
  return kept;
}

SELECT_TARGET void tk_avx2_select_all(const float *scores, int32_t count, int32_t base, float *candidate_score,
                                      int32_t *candidate_index) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  const __m256i step = _mm256_set1_epi32(8);
  __m256i index = _mm256_add_epi32(_mm256_set1_epi32(base), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  int32_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 score = _mm256_loadu_ps(scores + i);
    _mm256_storeu_ps(candidate_score + i, _mm256_blendv_ps(lowest, score, _mm256_cmp_ps(score, score, _CMP_ORD_Q)));
    _mm256_storeu_si256((__m256i *)(candidate_index + i), index);
    index = _mm256_add_epi32(index, step);
  }
  tk_portable_select_all(scores + i, count - i, base + i, candidate_score + i, candidate_index + i);
}

/* Keeps what is above `least` and the first `ties` of what equals it, in place and in order. */
SELECT_TARGET static void keep(float *candidate_score, int32_t *candidate_index, int32_t count, float least,
                               int32_t ties) {
  const __m256 limit = _mm256_set1_ps(least);
  int32_t kept = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 score = _mm256_loadu_ps(candidate_score + i);
    const __m256i index = _mm256_loadu_si256((const __m256i *)(candidate_index + i));
    uint32_t equal = lanes_of(_mm256_cmp_ps(score, limit, _CMP_EQ_OQ));
    const uint32_t above = lanes_of(_mm256_cmp_ps(score, limit, _CMP_GT_OQ));
    if (ties == 0) equal = 0;
    while (_mm_popcnt_u32(equal) > ties) equal &= ~(0x80000000u >> __builtin_clz(equal));
    ties -= _mm_popcnt_u32(equal);
    kept += append(candidate_score + kept, candidate_index + kept, score, index, above | equal);
  }
  for (; i < count; i++) {
    const float score = candidate_score[i];
    const int32_t tie = (score == least) & (ties > 0);
    candidate_score[kept] = score;
    candidate_index[kept] = candidate_index[i];
    kept += (score > least) | tie;
    ties -= tie;
  }
}

SELECT_TARGET float tk_avx2_select_shrink(float *candidate_score, int32_t *candidate_index, int32_t count, int32_t k,
                                          void *scratch) {
  const float least = kth_largest(candidate_score, count, k, scratch);
  keep(candidate_score, candidate_index, count, least, k - count_above(candidate_score, count, least));
  return least;
}
#endif
