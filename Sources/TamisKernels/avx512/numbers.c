/* Number formats, 8-bit quantisation and the Hadamard rotation with AVX-512: the same bits as portable/numbers.c,
 * which says what they are. Sixteen elements per step; partial vectors are masked, so nothing is read or written
 * beyond n.
 *
 * bfloat16 is rounded with integer adds, not vcvtneps2bf16, which would lose subnormals. E4M3 is widened through
 * half precision, whose subnormals vcvtph2ps reads exactly whatever the thread's denormal mode. */
#include "../internal.h"
#ifdef TK_X86
#include "../numbers_scale.h"
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define INLINE TARGET static inline
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

INLINE __mmask16 first_lanes(int64_t lanes) { return (__mmask16)(lanes >= 16 ? 0xffff : (1u << lanes) - 1); }

/* -- one vector of each format ---------------------------------------------------------------------------- */

INLINE __m512 widen_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

INLINE __m512 widen_e4m3(__m128i x) {
  const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(x), 8);
  const __m256i magnitude = _mm256_and_si256(high, _mm256_set1_epi16(0x7f00));
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f00));
  /* The sign stays, the other seven bits move to the half's last exponent bits: value * 2^-8. */
  const __m256i half = _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16((int16_t)0xbfff));
  const __m256i sign = _mm256_and_si256(high, _mm256_set1_epi16((int16_t)0x8000));
  const __m256i quiet = _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00));
  return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_mask_mov_epi16(half, nan, quiet)), _mm512_set1_ps(256.0f));
}

INLINE __m512 widen_i8(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); }

INLINE __m256i narrow_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, quiet));
}

/* Codes in 32-bit lanes, for |x| < 464: a quotient by its row's scale is at most 448 and a rounding error. */
INLINE __m512i e4m3_codes(__m512 x) {
  const __m512 magnitude = _mm512_abs_ps(x);
  const __m512i bits = _mm512_castps_si512(magnitude);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7ffff - (120 << 23))), odd);
  /* Below 2^-6 a sum with 2^14, whose last bit weighs 2^-9, is the rounding. */
  const __mmask16 small = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
  const __m512i shifted = _mm512_castps_si512(_mm512_add_ps(magnitude, _mm512_set1_ps(0x1p14f)));
  const __m512i code = _mm512_mask_sub_epi32(_mm512_srli_epi32(sum, 20), small, shifted,
                                             _mm512_castps_si512(_mm512_set1_ps(0x1p14f)));
  const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(x), 24);
  return _mm512_ternarylogic_epi32(code, sign, _mm512_set1_epi32(0x80), 0xf8); /* code | (sign & 0x80) */
}

/* A scale may be subnormal and then too small: the codes are limited. */
INLINE __m512i i8_codes(__m512 x) {
  const __m512i code = _mm512_cvtps_epi32(x);
  return _mm512_min_epi32(_mm512_max_epi32(code, _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
}

/* The low bytes of four vectors of 32-bit codes, in order; `integers`: signed bytes. */
INLINE __m512i pack_codes(const __m512i *code, const int integers) {
  const __m512i first = integers ? _mm512_packs_epi32(code[0], code[1]) : _mm512_packus_epi32(code[0], code[1]);
  const __m512i second = integers ? _mm512_packs_epi32(code[2], code[3]) : _mm512_packus_epi32(code[2], code[3]);
  const __m512i bytes = integers ? _mm512_packs_epi16(first, second) : _mm512_packus_epi16(first, second);
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

/* -- rows without scales ----------------------------------------------------------------------------------- */

TARGET void tk_avx512_f32_from_bf16(const uint16_t *x, int64_t n, float *y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    _mm512_mask_storeu_ps(y + i, lanes, widen_bf16(_mm256_maskz_loadu_epi16(lanes, x + i)));
  }
}

TARGET void tk_avx512_f32_from_f16(const uint16_t *x, int64_t n, float *y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, x + i)));
  }
}

TARGET void tk_avx512_bf16_from_f32(const float *x, int64_t n, uint16_t *y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    _mm256_mask_storeu_epi16(y + i, lanes, narrow_bf16(_mm512_maskz_loadu_ps(lanes, x + i)));
  }
}

TARGET void tk_avx512_f16_from_f32(const float *x, int64_t n, uint16_t *y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 values = _mm512_maskz_loadu_ps(lanes, x + i);
    _mm256_mask_storeu_epi16(y + i, lanes, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}

/* -- rows with a scale per block --------------------------------------------------------------------------- */

/* 8-bit codes (signed integers, or E4M3) times one scale. */
INLINE __m512 scaled(const void *x, const int integers, __mmask16 lanes, __m512 scale) {
  const __m128i codes = _mm_maskz_loadu_epi8(lanes, x);
  return _mm512_mul_ps(integers ? widen_i8(codes) : widen_e4m3(codes), scale);
}

INLINE void scaled_rows(const uint8_t *x, const int integers, const float *scale, int64_t block, int64_t n,
                        float *to_f32, uint16_t *to_bf16) {
  if (!scale) block = n;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = n - start < block ? n : start + block;
    const __m512 factor = _mm512_set1_ps(scale ? *scale++ : 1.0f);
    for (int64_t i = start; i < end; i += 16) {
      const __mmask16 lanes = first_lanes(end - i);
      const __m512 values = scaled(x + i, integers, lanes, factor);
      if (to_f32)
        _mm512_mask_storeu_ps(to_f32 + i, lanes, values);
      else
        _mm256_mask_storeu_epi16(to_bf16 + i, lanes, narrow_bf16(values));
    }
  }
}

TARGET void tk_avx512_f32_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  scaled_rows(x, 0, scale, block, n, y, NULL);
}

TARGET void tk_avx512_f32_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  scaled_rows((const uint8_t *)x, 1, scale, block, n, y, NULL);
}

TARGET void tk_avx512_bf16_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  scaled_rows(x, 0, scale, block, n, NULL, y);
}

TARGET void tk_avx512_bf16_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  scaled_rows((const uint8_t *)x, 1, scale, block, n, NULL, y);
}

/* -- quantisers -------------------------------------------------------------------------------------------- */

INLINE uint32_t largest_magnitude(const float *x, int64_t n) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i even = _mm512_setzero_si512(), odd = even;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    even = _mm512_max_epu32(even, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
    odd = _mm512_max_epu32(odd, _mm512_and_si512(_mm512_loadu_si512(x + i + 16), magnitude));
  }
  for (; i < n; i += 16) {
    const __m512i bits = _mm512_maskz_loadu_epi32(first_lanes(n - i), x + i);
    even = _mm512_max_epu32(even, _mm512_and_si512(bits, magnitude));
  }
  return _mm512_reduce_max_epu32(_mm512_max_epu32(even, odd));
}

/* x / scale as codes; `exact`: the reciprocal is a power of two and stands for the division. */
INLINE __m512i codes_of(__m512 x, const int integers, int exact, __m512 scale, __m512 reciprocal) {
  const __m512 quotient = exact ? _mm512_mul_ps(x, reciprocal) : _mm512_div_ps(x, scale);
  return integers ? i8_codes(quotient) : e4m3_codes(quotient);
}

INLINE void quantise(const float *x, const int integers, const int exact, float scale, int64_t n, void *codes) {
  const __m512 divisor = _mm512_set1_ps(scale), factor = _mm512_set1_ps(exact ? tk_pow2_reciprocal(scale) : 0);
  uint8_t *y = codes;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    __m512i code[4];
    code[0] = codes_of(_mm512_loadu_ps(x + i), integers, exact, divisor, factor);
    code[1] = codes_of(_mm512_loadu_ps(x + i + 16), integers, exact, divisor, factor);
    code[2] = codes_of(_mm512_loadu_ps(x + i + 32), integers, exact, divisor, factor);
    code[3] = codes_of(_mm512_loadu_ps(x + i + 48), integers, exact, divisor, factor);
    _mm512_storeu_si512(y + i, pack_codes(code, integers));
  }
  for (; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512i code = codes_of(_mm512_maskz_loadu_ps(lanes, x + i), integers, exact, divisor, factor);
    _mm_mask_storeu_epi8(y + i, lanes, _mm512_cvtepi32_epi8(code));
  }
}

TARGET float tk_avx512_e4m3_from_f32(const float *x, int64_t n, int32_t pow2, uint8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0x7f, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_e4m3_scale(largest, pow2);
  if (pow2)
    quantise(x, 0, 1, scale, n, y);
  else
    quantise(x, 0, 0, scale, n, y);
  return scale;
}

TARGET float tk_avx512_i8_from_f32(const float *x, int64_t n, int8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_i8_scale(largest);
  quantise(x, 1, 0, scale, n, y);
  return scale;
}

/* -- rotation ---------------------------------------------------------------------------------------------- */

/* Stages 1, 2, 4, 8 inside a vector: the partner lane plus or minus the own one. Multiplying by +-1 is exact. */
INLINE __m512 rotate_lanes(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
  x = _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xaaaa, minus), _mm512_permute_ps(x, 0xb1));
  x = _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xcccc, minus), _mm512_permute_ps(x, 0x4e));
  x = _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xf0f0, minus), _mm512_shuffle_f32x4(x, x, 0xb1));
  return _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xff00, minus), _mm512_shuffle_f32x4(x, x, 0x4e));
}

/* All stages of `vectors` (1, 2, 4 or 8) registers, then the norm. */
INLINE void rotate_group(float *x, const int vectors, __m512 norm) {
  __m512 v[8];
  UNROLL for (int i = 0; i < vectors; i++) v[i] = rotate_lanes(_mm512_loadu_ps(x + 16 * i));
  UNROLL for (int half = 1; half < vectors; half *= 2)
    UNROLL for (int i = 0; i < vectors; i++) {
      if (i & half) continue;
      const __m512 a = v[i], b = v[i + half];
      v[i] = _mm512_add_ps(a, b), v[i + half] = _mm512_sub_ps(a, b);
    }
  UNROLL for (int i = 0; i < vectors; i++) _mm512_storeu_ps(x + 16 * i, _mm512_mul_ps(v[i], norm));
}

/* One stage over memory, times `factor` (the norm in the last stage, 1 before). */
INLINE void rotate_stage(float *x, int64_t n, int64_t half, __m512 factor) {
  for (int64_t start = 0; start < n; start += 2 * half)
    for (int64_t i = start; i < start + half; i += 16) {
      const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + half);
      _mm512_storeu_ps(x + i, _mm512_mul_ps(_mm512_add_ps(a, b), factor));
      _mm512_storeu_ps(x + i + half, _mm512_mul_ps(_mm512_sub_ps(a, b), factor));
    }
}

TARGET void tk_avx512_hadamard(float *x, int64_t n) {
  const __m512 one = _mm512_set1_ps(1.0f), norm = _mm512_set1_ps(tk_hadamard_norm(n));
  switch (n) {
  case 1: case 2: case 4: case 8: tk_portable_hadamard(x, n); return;
  case 16: rotate_group(x, 1, norm); return;
  case 32: rotate_group(x, 2, norm); return;
  case 64: rotate_group(x, 4, norm); return;
  case 128: rotate_group(x, 8, norm); return;
  }
  for (int64_t i = 0; i < n; i += 128) rotate_group(x + i, 8, one);
  for (int64_t half = 128; half < n; half *= 2) rotate_stage(x, n, half, 2 * half == n ? norm : one);
}
#endif
