/* Number formats, 8-bit quantisation and the Hadamard rotation with NEON: the same bits as portable/numbers.c, which
 * says what they are. Nothing beyond ARMv8.0 is used: E4M3 is widened through half precision, bfloat16 is rounded
 * with integer adds. The last n mod 8 elements of a row go through the portable functions. */
#include "../internal.h"
#ifdef TK_ARM
#include "../numbers_scale.h"
#include <arm_neon.h>

#define INLINE static inline

/* -- vectors of each format -------------------------------------------------------------------------------- */

typedef struct pair {
  float32x4_t low, high;
} pair;

INLINE pair load_pair(const float *x) { return (pair){vld1q_f32(x), vld1q_f32(x + 4)}; }

INLINE pair times(pair x, float factor) { return (pair){vmulq_n_f32(x.low, factor), vmulq_n_f32(x.high, factor)}; }

INLINE void store_pair(float *y, pair x) {
  vst1q_f32(y, x.low);
  vst1q_f32(y + 4, x.high);
}

INLINE pair widen_f16(uint16x8_t x) {
  const float16x8_t half = vreinterpretq_f16_u16(x);
  return (pair){vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
}

INLINE pair widen_e4m3(uint8x8_t x) {
  const uint16x8_t high = vshll_n_u8(x, 8);
  const uint16x8_t full = vdupq_n_u16(0x7f00);
  const uint16x8_t nan = vceqq_u16(vandq_u16(high, full), full);
  /* The sign stays, the other seven bits move to the half's last exponent bits: value * 2^-8. */
  const int16x8_t shifted = vshrq_n_s16(vreinterpretq_s16_u16(high), 1);
  const uint16x8_t half = vandq_u16(vreinterpretq_u16_s16(shifted), vdupq_n_u16(0xbfff));
  const uint16x8_t quiet = vorrq_u16(vandq_u16(high, vdupq_n_u16(0x8000)), vdupq_n_u16(0x7e00));
  return times(widen_f16(vbslq_u16(nan, quiet, half)), 256.0f);
}

INLINE pair widen_i8(int8x8_t x) {
  const int16x8_t wide = vmovl_s8(x);
  return (pair){vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}

INLINE uint16x4_t narrow_bf16_half(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

INLINE uint16x8_t narrow_bf16(pair x) { return vcombine_u16(narrow_bf16_half(x.low), narrow_bf16_half(x.high)); }

/* For finite x; the code in each lane's low byte. */
INLINE uint16x4_t narrow_e4m3_half(float32x4_t x) {
  const float32x4_t magnitude = vminq_f32(vabsq_f32(x), vdupq_n_f32(TK_E4M3_LARGEST));
  const uint32x4_t bits = vreinterpretq_u32_f32(magnitude);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 20), vdupq_n_u32(1));
  const uint32x4_t sum = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7ffffu - (120u << 23))), odd);
  /* Below 2^-6 a sum with 2^14, whose last bit weighs 2^-9, is the rounding. */
  const float32x4_t shift = vdupq_n_f32(0x1p14f);
  const uint32x4_t subnormal =
      vsubq_u32(vreinterpretq_u32_f32(vaddq_f32(magnitude, shift)), vreinterpretq_u32_f32(shift));
  const uint32x4_t small = vcltq_f32(magnitude, vdupq_n_f32(0x1p-6f));
  const uint32x4_t code = vbslq_u32(small, subnormal, vshrq_n_u32(sum, 20));
  const uint32x4_t sign = vandq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x), 24), vdupq_n_u32(0x80));
  return vmovn_u32(vorrq_u32(code, sign));
}

INLINE uint8x8_t narrow_e4m3(pair x) {
  return vmovn_u16(vcombine_u16(narrow_e4m3_half(x.low), narrow_e4m3_half(x.high)));
}

INLINE int8x8_t narrow_i8(pair x) {
  const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(x.low)), high = vqmovn_s32(vcvtnq_s32_f32(x.high));
  return vmax_s8(vqmovn_s16(vcombine_s16(low, high)), vdup_n_s8(-127));
}

/* -- rows without scales ----------------------------------------------------------------------------------- */

void tk_neon_f32_from_bf16(const uint16_t *x, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint16x8_t bits = vld1q_u16(x + i);
    vst1q_u32((uint32_t *)(y + i), vshll_n_u16(vget_low_u16(bits), 16));
    vst1q_u32((uint32_t *)(y + i + 4), vshll_high_n_u16(bits, 16));
  }
  tk_portable_f32_from_bf16(x + i, n - i, y + i);
}

void tk_neon_f32_from_f16(const uint16_t *x, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store_pair(y + i, widen_f16(vld1q_u16(x + i)));
  tk_portable_f32_from_f16(x + i, n - i, y + i);
}

void tk_neon_bf16_from_f32(const float *x, int64_t n, uint16_t *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) vst1q_u16(y + i, narrow_bf16(load_pair(x + i)));
  tk_portable_bf16_from_f32(x + i, n - i, y + i);
}

void tk_neon_f16_from_f32(const float *x, int64_t n, uint16_t *y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const pair values = load_pair(x + i);
    vst1q_u16(y + i, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(values.low), values.high)));
  }
  tk_portable_f16_from_f32(x + i, n - i, y + i);
}

/* -- rows with a scale per block --------------------------------------------------------------------------- */

/* Where the block that begins at `start` ends. */
INLINE int64_t block_end(int64_t start, int64_t block, int64_t n) { return n - start < block ? n : start + block; }

void tk_neon_f32_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  if (!scale) block = n;
  for (int64_t i = 0, end; i < n; i = end) {
    const float factor = scale ? *scale++ : 1.0f;
    end = block_end(i, block, n);
    for (; i + 8 <= end; i += 8) store_pair(y + i, times(widen_e4m3(vld1_u8(x + i)), factor));
    tk_portable_f32_from_e4m3(x + i, &factor, block, end - i, y + i);
  }
}

void tk_neon_f32_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  if (!scale) block = n;
  for (int64_t i = 0, end; i < n; i = end) {
    const float factor = scale ? *scale++ : 1.0f;
    end = block_end(i, block, n);
    for (; i + 8 <= end; i += 8) store_pair(y + i, times(widen_i8(vld1_s8(x + i)), factor));
    tk_portable_f32_from_i8(x + i, &factor, block, end - i, y + i);
  }
}

void tk_neon_bf16_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  if (!scale) block = n;
  for (int64_t i = 0, end; i < n; i = end) {
    const float factor = scale ? *scale++ : 1.0f;
    end = block_end(i, block, n);
    for (; i + 8 <= end; i += 8) vst1q_u16(y + i, narrow_bf16(times(widen_e4m3(vld1_u8(x + i)), factor)));
    tk_portable_bf16_from_e4m3(x + i, &factor, block, end - i, y + i);
  }
}

void tk_neon_bf16_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  if (!scale) block = n;
  for (int64_t i = 0, end; i < n; i = end) {
    const float factor = scale ? *scale++ : 1.0f;
    end = block_end(i, block, n);
    for (; i + 8 <= end; i += 8) vst1q_u16(y + i, narrow_bf16(times(widen_i8(vld1_s8(x + i)), factor)));
    tk_portable_bf16_from_i8(x + i, &factor, block, end - i, y + i);
  }
}

/* -- quantisers -------------------------------------------------------------------------------------------- */

/* The last `count` < 8 floats, zeros behind. */
INLINE pair load_rest(const float *x, int64_t count) {
  float values[8] = {0};
  memcpy(values, x, (size_t)count * sizeof(float));
  return load_pair(values);
}

INLINE uint32x4_t larger_magnitude(uint32x4_t largest, pair x) {
  const uint32x4_t low = vreinterpretq_u32_f32(vabsq_f32(x.low)), high = vreinterpretq_u32_f32(vabsq_f32(x.high));
  return vmaxq_u32(largest, vmaxq_u32(low, high));
}

INLINE uint32_t largest_magnitude(const float *x, int64_t n) {
  uint32x4_t largest = vdupq_n_u32(0);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) largest = larger_magnitude(largest, load_pair(x + i));
  if (i < n) largest = larger_magnitude(largest, load_rest(x + i, n - i));
  return vmaxvq_u32(largest);
}

/* Eight quotients, or the last `count` and zeros. */
INLINE pair quotients(const float *x, int64_t count, float scale) {
  const pair values = count >= 8 ? load_pair(x) : load_rest(x, count);
  const float32x4_t divisor = vdupq_n_f32(scale);
  return (pair){vdivq_f32(values.low, divisor), vdivq_f32(values.high, divisor)};
}

float tk_neon_e4m3_from_f32(const float *x, int64_t n, int32_t pow2, uint8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0x7f, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_e4m3_scale(largest, pow2);
  for (int64_t i = 0; i < n; i += 8) {
    uint8_t codes[8];
    vst1_u8(codes, narrow_e4m3(quotients(x + i, n - i, scale)));
    memcpy(y + i, codes, n - i < 8 ? (size_t)(n - i) : 8);
  }
  return scale;
}

float tk_neon_i8_from_f32(const float *x, int64_t n, int8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_i8_scale(largest);
  for (int64_t i = 0; i < n; i += 8) {
    int8_t codes[8];
    vst1_s8(codes, narrow_i8(quotients(x + i, n - i, scale)));
    memcpy(y + i, codes, n - i < 8 ? (size_t)(n - i) : 8);
  }
  return scale;
}

/* -- rotation ---------------------------------------------------------------------------------------------- */

/* Stages 1 and 2 inside a vector: the partner lane plus or minus the own one. Multiplying by +-1 is exact. */
INLINE float32x4_t rotate_lanes(float32x4_t x) {
  static const float first[4] = {1, -1, 1, -1}, second[4] = {1, 1, -1, -1};
  x = vfmaq_f32(vrev64q_f32(x), x, vld1q_f32(first));
  return vfmaq_f32(vextq_f32(x, x, 2), x, vld1q_f32(second));
}

/* One stage over memory, times `factor` (the norm in the last stage, 1 before). */
INLINE void rotate_stage(float *x, int64_t n, int64_t half, float factor) {
  for (int64_t start = 0; start < n; start += 2 * half)
    for (int64_t i = start; i < start + half; i += 4) {
      const float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + half);
      vst1q_f32(x + i, vmulq_n_f32(vaddq_f32(a, b), factor));
      vst1q_f32(x + i + half, vmulq_n_f32(vsubq_f32(a, b), factor));
    }
}

void tk_neon_hadamard(float *x, int64_t n) {
  if (n < 8) {
    tk_portable_hadamard(x, n);
    return;
  }
  for (int64_t i = 0; i < n; i += 4) vst1q_f32(x + i, rotate_lanes(vld1q_f32(x + i)));
  for (int64_t half = 4; half < n; half *= 2) rotate_stage(x, n, half, 2 * half == n ? tk_hadamard_norm(n) : 1.0f);
}
#endif
