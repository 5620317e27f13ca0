/* What the index kernels with 256-bit registers share ("avx2" and "avxvnni"): sixteen heads are two registers, and
 * the head sum has the order and the roundings of every other vector table - a chain of fused multiply-adds per
 * lane of 16, then one tree. */
#ifndef TAMIS_KERNELS_AVX2_LANES_H
#define TAMIS_KERNELS_AVX2_LANES_H
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TK_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2")))
#define TK_AVX2_INLINE static inline __attribute__((always_inline)) TK_AVX2

#if defined(__clang__)
#define TK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TK_UNROLL _Pragma("GCC unroll 32")
#endif

/* The lanes of one key: heads 0..7 and 8..15 of every sixteen. */
typedef struct tk_half_lanes {
  __m256 half[2];
} tk_half_lanes;

/* lane + weight * max(0, dot); the operand order of the maximum lets a NaN through. */
TK_AVX2_INLINE __m256 tk_half_add(__m256 lane, __m256 dot, const float *weight) {
  return _mm256_fmadd_ps(_mm256_loadu_ps(weight), _mm256_max_ps(_mm256_setzero_ps(), dot), lane);
}

TK_AVX2_INLINE float tk_half_sum(tk_half_lanes lanes) {
  const __m256 eight = _mm256_add_ps(lanes.half[0], lanes.half[1]);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

TK_AVX2_INLINE float tk_score(tk_half_lanes lanes, const float *scale, ptrdiff_t stride, int key) {
  float factor = 1.0f;
  if (scale != NULL) memcpy(&factor, (const char *)scale + key * stride, sizeof factor);
  return tk_half_sum(lanes) * factor;
}
#endif
