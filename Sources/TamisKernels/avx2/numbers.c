/* Number formats, 8-bit quantisation and the Hadamard rotation with AVX2, FMA and F16C: the same bits as
 * portable/numbers.c, which says what they are and which does the last elements of a row without scales.
 *
 * E4M3 is widened through half precision, whose subnormals vcvtph2ps reads exactly whatever the thread's denormal
 * mode; bfloat16 is rounded with integer adds. */
#include "../internal.h"
#ifdef TK_X86
#include "../numbers_scale.h"
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE TARGET static inline

/* -- one vector of each format ---------------------------------------------------------------------------- */

INLINE __m256 widen_e4m3(__m128i x) {
  const __m128i high = _mm_slli_epi16(_mm_cvtepu8_epi16(x), 8);
  const __m128i magnitude = _mm_and_si128(high, _mm_set1_epi16(0x7f00));
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f00));
  /* The sign stays, the other seven bits move to the half's last exponent bits: value * 2^-8. */
  const __m128i half = _mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16((int16_t)0xbfff));
  const __m128i sign = _mm_and_si128(high, _mm_set1_epi16((int16_t)0x8000));
  const __m128i quiet = _mm_or_si128(sign, _mm_set1_epi16(0x7e00));
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_blendv_epi8(half, quiet, nan)), _mm256_set1_ps(256.0f));
}

INLINE __m256 widen_i8(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)); }

/* The lower halves of eight 32-bit numbers below 2^16. */
INLINE __m128i pack_16(__m256i x) {
  return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

INLINE __m128i narrow_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  return pack_16(_mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, nan));
}

/* For finite x. */
INLINE __m128i narrow_e4m3(__m256 x) {
  const __m256 without_sign = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
  const __m256 magnitude = _mm256_min_ps(without_sign, _mm256_set1_ps(TK_E4M3_LARGEST));
  const __m256i bits = _mm256_castps_si256(magnitude);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7ffff - (120 << 23))), odd);
  /* Below 2^-6 a sum with 2^14, whose last bit weighs 2^-9, is the rounding. */
  const __m256i shifted = _mm256_castps_si256(_mm256_add_ps(magnitude, _mm256_set1_ps(0x1p14f)));
  const __m256i subnormal = _mm256_sub_epi32(shifted, _mm256_castps_si256(_mm256_set1_ps(0x1p14f)));
  const __m256i small = _mm256_castps_si256(_mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ));
  const __m256i code = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 20), subnormal, small);
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x), 24), _mm256_set1_epi32(0x80));
  const __m128i words = pack_16(_mm256_or_si256(code, sign));
  return _mm_packus_epi16(words, words);
}

INLINE __m128i narrow_i8(__m256 x) {
  const __m256i code = _mm256_cvtps_epi32(x);
  const __m256i limited = _mm256_max_epi32(code, _mm256_set1_epi32(-127)); /* 127 is the packs' own limit */
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(limited), _mm256_extracti128_si256(limited, 1));
  return _mm_packs_epi16(words, words);
}

/* -- rows without scales ----------------------------------------------------------------------------------- */

TARGET void tk_avx2_f32_from_bf16(const uint16_t *x, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(x + i)));
    _mm256_storeu_si256((__m256i *)(y + i), _mm256_slli_epi32(bits, 16));
  }
  tk_portable_f32_from_bf16(x + i, n - i, y + i);
}

TARGET void tk_avx2_f32_from_f16(const uint16_t *x, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
  tk_portable_f32_from_f16(x + i, n - i, y + i);
}

TARGET void tk_avx2_bf16_from_f32(const float *x, int64_t n, uint16_t *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i *)(y + i), narrow_bf16(_mm256_loadu_ps(x + i)));
  tk_portable_bf16_from_f32(x + i, n - i, y + i);
}

TARGET void tk_avx2_f16_from_f32(const float *x, int64_t n, uint16_t *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  tk_portable_f16_from_f32(x + i, n - i, y + i);
}

/* -- rows with a scale per block --------------------------------------------------------------------------- */

/* Eight 8-bit codes (signed integers, or E4M3) times one scale, stored as float or as bfloat16. */
INLINE void scaled_step(const uint8_t *x, const int integers, __m256 scale, float *to_f32, uint16_t *to_bf16) {
  const __m128i codes = _mm_loadl_epi64((const __m128i *)x);
  const __m256 values = _mm256_mul_ps(integers ? widen_i8(codes) : widen_e4m3(codes), scale);
  if (to_f32)
    _mm256_storeu_ps(to_f32, values);
  else
    _mm_storeu_si128((__m128i *)to_bf16, narrow_bf16(values));
}

/* The last `count` < 8 codes of a block, by way of a whole vector. */
INLINE void scaled_rest(const uint8_t *x, const int integers, __m256 scale, int64_t count, float *to_f32,
                        uint16_t *to_bf16) {
  uint8_t codes[8] = {0};
  float f32[8];
  uint16_t bf16[8];
  memcpy(codes, x, (size_t)count);
  scaled_step(codes, integers, scale, to_f32 ? f32 : NULL, bf16);
  if (to_f32)
    memcpy(to_f32, f32, (size_t)count * sizeof(float));
  else
    memcpy(to_bf16, bf16, (size_t)count * sizeof(uint16_t));
}

INLINE void scaled_rows(const uint8_t *x, const int integers, const float *scale, int64_t block, int64_t n,
                        float *to_f32, uint16_t *to_bf16) {
  if (!scale) block = n;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = n - start < block ? n : start + block;
    const __m256 factor = _mm256_set1_ps(scale ? *scale++ : 1.0f);
    int64_t i = start;
    for (; i + 8 <= end; i += 8)
      scaled_step(x + i, integers, factor, to_f32 ? to_f32 + i : NULL, to_f32 ? NULL : to_bf16 + i);
    if (i < end)
      scaled_rest(x + i, integers, factor, end - i, to_f32 ? to_f32 + i : NULL, to_f32 ? NULL : to_bf16 + i);
  }
}

TARGET void tk_avx2_f32_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  scaled_rows(x, 0, scale, block, n, y, NULL);
}

TARGET void tk_avx2_f32_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  scaled_rows((const uint8_t *)x, 1, scale, block, n, y, NULL);
}

TARGET void tk_avx2_bf16_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  scaled_rows(x, 0, scale, block, n, NULL, y);
}

TARGET void tk_avx2_bf16_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  scaled_rows((const uint8_t *)x, 1, scale, block, n, NULL, y);
}

/* -- quantisers -------------------------------------------------------------------------------------------- */

/* The last `count` < 8 floats, zeros behind. */
INLINE __m256 load_rest(const float *x, int64_t count) {
  float values[8] = {0};
  memcpy(values, x, (size_t)count * sizeof(float));
  return _mm256_loadu_ps(values);
}

INLINE __m256i larger_magnitude(__m256i largest, __m256 x) {
  return _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)));
}

INLINE uint32_t largest_magnitude(const float *x, int64_t n) {
  __m256i largest = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) largest = larger_magnitude(largest, _mm256_loadu_ps(x + i));
  if (i < n) largest = larger_magnitude(largest, load_rest(x + i, n - i));
  __m128i half = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
  return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1)));
}

TARGET float tk_avx2_e4m3_from_f32(const float *x, int64_t n, int32_t pow2, uint8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0x7f, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_e4m3_scale(largest, pow2);
  const __m256 divisor = _mm256_set1_ps(scale), factor = _mm256_set1_ps(tk_pow2_reciprocal(scale));
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t count = n - i < 8 ? n - i : 8;
    const __m256 values = count == 8 ? _mm256_loadu_ps(x + i) : load_rest(x + i, count);
    const __m256 quotient = pow2 ? _mm256_mul_ps(values, factor) : _mm256_div_ps(values, divisor);
    const int64_t codes = _mm_cvtsi128_si64(narrow_e4m3(quotient));
    memcpy(y + i, &codes, (size_t)count);
  }
  return scale;
}

TARGET float tk_avx2_i8_from_f32(const float *x, int64_t n, int8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_i8_scale(largest);
  const __m256 divisor = _mm256_set1_ps(scale);
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t count = n - i < 8 ? n - i : 8;
    const __m256 values = count == 8 ? _mm256_loadu_ps(x + i) : load_rest(x + i, count);
    const int64_t codes = _mm_cvtsi128_si64(narrow_i8(_mm256_div_ps(values, divisor)));
    memcpy(y + i, &codes, (size_t)count);
  }
  return scale;
}

/* -- rotation ---------------------------------------------------------------------------------------------- */

/* Stages 1, 2, 4 inside a vector: the partner lane plus or minus the own one. Multiplying by +-1 is exact. */
INLINE __m256 rotate_lanes(__m256 x) {
  x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(x, 0xb1));
  x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(x, 0x4e));
  return _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(x, x, 0x01));
}

/* All stages of 64 elements. */
INLINE void rotate_group(float *x, __m256 norm) {
  __m256 v[8];
  for (int i = 0; i < 8; i++) v[i] = rotate_lanes(_mm256_loadu_ps(x + 8 * i));
  for (int half = 1; half < 8; half *= 2)
    for (int i = 0; i < 8; i++) {
      if (i & half) continue;
      const __m256 a = v[i], b = v[i + half];
      v[i] = _mm256_add_ps(a, b), v[i + half] = _mm256_sub_ps(a, b);
    }
  for (int i = 0; i < 8; i++) _mm256_storeu_ps(x + 8 * i, _mm256_mul_ps(v[i], norm));
}

/* One stage over memory, times `factor` (the norm in the last stage, 1 before). */
INLINE void rotate_stage(float *x, int64_t n, int64_t half, __m256 factor) {
  for (int64_t start = 0; start < n; start += 2 * half)
    for (int64_t i = start; i < start + half; i += 8) {
      const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
      _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_add_ps(a, b), factor));
      _mm256_storeu_ps(x + i + half, _mm256_mul_ps(_mm256_sub_ps(a, b), factor));
    }
}

TARGET void tk_avx2_hadamard(float *x, int64_t n) {
  if (n < 64) {
    tk_portable_hadamard(x, n);
    return;
  }
  const __m256 one = _mm256_set1_ps(1.0f), norm = _mm256_set1_ps(tk_hadamard_norm(n));
  for (int64_t i = 0; i < n; i += 64) rotate_group(x + i, n == 64 ? norm : one);
  for (int64_t half = 64; half < n; half *= 2) rotate_stage(x, n, half, 2 * half == n ? norm : one);
}
#endif
