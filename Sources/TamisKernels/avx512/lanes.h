/* Sixteen lanes of head sums become one score: the end of every index kernel that keeps heads in 512-bit lanes
 * (AVX-512 and AMX). It fixes the order of the head sum - a chain of fused multiply-adds per lane, then one tree
 * (lane + lane 8 further, 4, 2, 1) - so that a score has the same bits whoever computed the dot products. */
#ifndef TAMIS_KERNELS_AVX512_LANES_H
#define TAMIS_KERNELS_AVX512_LANES_H
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TK_AVX512                                                                                             \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c")))
#define TK_AVX512_INLINE static inline __attribute__((always_inline)) TK_AVX512

#if defined(__clang__)
#define TK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TK_UNROLL _Pragma("GCC unroll 32")
#endif

/* lane + weight * max(0, dot), for the lanes in `heads` alone: a padded head may hold 0 * infinity. The operand
 * order of the maximum lets a NaN through. */
TK_AVX512_INLINE __m512 tk_lane_add(__m512 lane, __m512 dot, __m512 weight, __mmask16 heads) {
  return _mm512_fmadd_ps(weight, _mm512_maskz_max_ps(heads, _mm512_setzero_ps(), dot), lane);
}

TK_AVX512_INLINE __m512 tk_tree_add(const int integer, __m512 a, __m512 b) {
  if (integer) return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  return _mm512_add_ps(a, b);
}

/* Keys a and b: lanes l + (l + 8), eight of each. */
TK_AVX512_INLINE __m512 tk_tree_8(const int integer, __m512 a, __m512 b) {
  return tk_tree_add(integer, _mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}

/* x[16 keys][16 lanes] -> [16 sums]: the tree is done on all keys at once, halving while it transposes. */
TK_AVX512_INLINE __m512 tk_tree_16(const int integer, const __m512 *x) {
  __m512 quarter[4];
  TK_UNROLL for (int i = 0; i < 4; i++) {
    __m512 a = tk_tree_8(integer, x[i], x[i + 4]), b = tk_tree_8(integer, x[i + 8], x[i + 12]);
    quarter[i] = tk_tree_add(integer, _mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  }
  __m512 low = tk_tree_add(integer, _mm512_shuffle_ps(quarter[0], quarter[1], 0x44),
                           _mm512_shuffle_ps(quarter[0], quarter[1], 0xEE));
  __m512 high = tk_tree_add(integer, _mm512_shuffle_ps(quarter[2], quarter[3], 0x44),
                            _mm512_shuffle_ps(quarter[2], quarter[3], 0xEE));
  return tk_tree_add(integer, _mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xDD));
}

/* Scales that are not side by side; not inlined, because it is rare and would be in every tile shape. */
__attribute__((noinline)) TK_AVX512 static __m512 tk_gather_scales(const float *scale, ptrdiff_t stride, int count) {
  float gathered[16] = {0};
  for (int i = 0; i < count; i++) memcpy(&gathered[i], (const char *)scale + i * stride, sizeof(float));
  return _mm512_loadu_ps(gathered);
}

/* The scales of `count` <= 16 keys; `scale` may be NULL (all 1). */
TK_AVX512_INLINE __m512 tk_key_scales(const float *scale, ptrdiff_t stride, int count) {
  if (scale == NULL) return _mm512_set1_ps(1.0f);
  if (stride == (ptrdiff_t)sizeof(float))
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), scale);
  return tk_gather_scales(scale, stride, count);
}

/* lanes[count <= 16, padded to 16][16] -> scores[count]. */
TK_AVX512_INLINE void tk_store_scores(const __m512 *lanes, const float *scale, ptrdiff_t stride, int count,
                                      float *scores) {
  __m512 sum = _mm512_mul_ps(tk_tree_16(0, lanes), tk_key_scales(scale, stride, count));
  _mm512_mask_storeu_ps(scores, (__mmask16)((1u << count) - 1), sum);
}

/* FP8 E4M3 -> bfloat16, exact: the magnitude's seven bits index the high and the low bytes of the results (two
 * vpermi2b), the sign is moved over. Code 0x7f becomes the NaN 0x7fc0, subnormals become normal numbers. */
static const uint8_t tk_e4m3_high[128] = {
    0, 59, 59, 59, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 61, 61, 61, 61,
    61, 61, 61, 61, 61, 61, 61, 61, 61, 61, 61, 61, 62, 62, 62, 62, 62, 62, 62, 62,
    62, 62, 62, 62, 62, 62, 62, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 65, 66, 66, 66, 66,
    66, 66, 66, 66, 66, 66, 66, 66, 66, 66, 66, 66, 67, 67, 67, 67, 67, 67, 67, 67,
    67, 67, 67, 67, 67, 67, 67, 127};
static const uint8_t tk_e4m3_low[128] = {
    0, 0, 128, 192, 0, 32, 64, 96, 128, 144, 160, 176, 192, 208, 224, 240, 0, 16, 32, 48,
    64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 0, 16, 32, 48, 64, 80, 96, 112,
    128, 144, 160, 176, 192, 208, 224, 240, 0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176,
    192, 208, 224, 240, 0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240,
    0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 0, 16, 32, 48,
    64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 0, 16, 32, 48, 64, 80, 96, 112,
    128, 144, 160, 176, 192, 208, 224, 192};

typedef struct tk_e4m3_tables {
  __m512i high[2], low[2];
} tk_e4m3_tables;

TK_AVX512_INLINE tk_e4m3_tables tk_e4m3_load_tables(void) {
  tk_e4m3_tables tables = {{_mm512_loadu_si512(tk_e4m3_high), _mm512_loadu_si512(tk_e4m3_high + 64)},
                           {_mm512_loadu_si512(tk_e4m3_low), _mm512_loadu_si512(tk_e4m3_low + 64)}};
  return tables;
}

/* 64 codes -> 64 bfloat16. */
TK_AVX512_INLINE void tk_e4m3_expand(const tk_e4m3_tables *tables, __m512i codes, __m512i *first, __m512i *second) {
  /* Quarters are interleaved beforehand, because unpack works inside 128-bit lanes. */
  codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
  __m512i low = _mm512_permutex2var_epi8(tables->low[0], codes, tables->low[1]);
  __m512i high = _mm512_permutex2var_epi8(tables->high[0], codes, tables->high[1]);
  high = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8((char)0x80), 0xF8); /* high | (codes & 0x80) */
  *first = _mm512_unpacklo_epi8(low, high), *second = _mm512_unpackhi_epi8(low, high);
}

/* One row of `count` codes into `out`, zeros up to the next multiple of 64; never reads beyond the row. */
TK_AVX512_INLINE void tk_e4m3_expand_row(const tk_e4m3_tables *tables, const uint8_t *codes, int count,
                                         uint16_t *out) {
  for (int i = 0; i < count; i += 64) {
    int left = count - i;
    __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1;
    __m512i first, second;
    tk_e4m3_expand(tables, _mm512_maskz_loadu_epi8(mask, codes + i), &first, &second);
    _mm512_store_si512(out + i, first), _mm512_store_si512(out + i + 32, second);
  }
}
#endif
