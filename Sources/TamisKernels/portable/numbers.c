/* Number formats, 8-bit quantisation and the Hadamard rotation in plain C, for any CPU. The definitions: every
 * other table gives the same bits.
 *
 *   - Widening is exact; a half-precision NaN becomes a quiet NaN.
 *   - Narrowing is one rounding from float, to nearest, ties to even, subnormals included. A NaN keeps its sign and
 *     the upper bits of its payload and becomes quiet. Half precision and bfloat16 overflow to infinity, E4M3
 *     saturates at 448, for infinities too.
 *   - A scaled 8-bit number is code * scale rounded to float, and from there to bfloat16.
 *   - Quantisers divide in float and round the quotient. A row with an infinity or a NaN has no scale: NaN is
 *     returned, and every code is NaN (E4M3) or 0 (int8), so that checking the scale checks the row.
 *   - The rotation adds in the order of its stages 1, 2, 4, ... and multiplies by 1 / sqrt(n) at the end.
 * Rounding to nearest must be the floating-point mode of the thread, as the C and Swift defaults have it. */
#include "../internal.h"
#include "../numbers_scale.h"

static inline float from_f16(uint16_t x) {
  const uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff;
  if (rest > 0x7c00) return tk_float_of(sign | 0x7fc00000u | rest << 13);
  if (rest == 0x7c00) return tk_float_of(sign | 0x7f800000u);
  if (rest >= 0x0400) return tk_float_of(sign | ((rest << 13) + (112u << 23)));
  return tk_float_of(sign | tk_bits_of((float)rest * 0x1p-24f));
}

static inline float from_e4m3(uint8_t x) {
  const uint32_t sign = (uint32_t)(x & 0x80) << 24, rest = x & 0x7f;
  if (rest == 0x7f) return tk_float_of(sign | 0x7fc00000u);
  if (rest >= 0x08) return tk_float_of(sign | ((rest << 20) + (120u << 23)));
  return tk_float_of(sign | tk_bits_of((float)rest * 0x1p-9f));
}

static inline uint16_t to_bf16(float x) {
  const uint32_t bits = tk_bits_of(x);
  if (x != x) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Below the normal numbers of a format the sum with a float whose last bit weighs as much as the format's
 * smallest number is the rounding. */
static inline uint16_t to_f16(float x) {
  const uint32_t sign = tk_bits_of(x) >> 16 & 0x8000, rest = tk_bits_of(x) & 0x7fffffff;
  if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
  if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* from 65520 on */
  if (rest >= 0x38800000u) return (uint16_t)(sign | (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13);
  return (uint16_t)(sign | (tk_bits_of(tk_float_of(rest) + 0.5f) - tk_bits_of(0.5f)));
}

static inline uint8_t to_e4m3(float x) {
  const uint32_t sign = tk_bits_of(x) >> 24 & 0x80;
  uint32_t rest = tk_bits_of(x) & 0x7fffffff;
  if (rest > 0x7f800000u) return (uint8_t)(sign | 0x7f);
  if (rest > tk_bits_of(TK_E4M3_LARGEST)) rest = tk_bits_of(TK_E4M3_LARGEST);
  if (rest >= 0x3c800000u) return (uint8_t)(sign | (rest - (120u << 23) + 0x7ffff + (rest >> 20 & 1)) >> 20);
  return (uint8_t)(sign | (tk_bits_of(tk_float_of(rest) + 16384.0f) - tk_bits_of(16384.0f)));
}

static inline int8_t to_i8(float x) {
  const float limited = x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x;
  return (int8_t)(int32_t)(tk_bits_of(limited + 0x1.8p23f) - tk_bits_of(0x1.8p23f));
}

void tk_portable_f32_from_bf16(const uint16_t *x, int64_t n, float *y) {
  for (int64_t i = 0; i < n; i++) y[i] = tk_float_of((uint32_t)x[i] << 16);
}

void tk_portable_f32_from_f16(const uint16_t *x, int64_t n, float *y) {
  for (int64_t i = 0; i < n; i++) y[i] = from_f16(x[i]);
}

void tk_portable_bf16_from_f32(const float *x, int64_t n, uint16_t *y) {
  for (int64_t i = 0; i < n; i++) y[i] = to_bf16(x[i]);
}

void tk_portable_f16_from_f32(const float *x, int64_t n, uint16_t *y) {
  for (int64_t i = 0; i < n; i++) y[i] = to_f16(x[i]);
}

/* The scale of element i. */
static inline float scale_at(const float *scale, int64_t block, int64_t i) { return scale ? scale[i / block] : 1.0f; }

void tk_portable_f32_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  for (int64_t i = 0; i < n; i++) y[i] = from_e4m3(x[i]) * scale_at(scale, block, i);
}

void tk_portable_f32_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, float *y) {
  for (int64_t i = 0; i < n; i++) y[i] = (float)x[i] * scale_at(scale, block, i);
}

void tk_portable_bf16_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  for (int64_t i = 0; i < n; i++) y[i] = to_bf16(from_e4m3(x[i]) * scale_at(scale, block, i));
}

void tk_portable_bf16_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y) {
  for (int64_t i = 0; i < n; i++) y[i] = to_bf16((float)x[i] * scale_at(scale, block, i));
}

static uint32_t largest_magnitude(const float *x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t magnitude = tk_bits_of(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

float tk_portable_e4m3_from_f32(const float *x, int64_t n, int32_t pow2, uint8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0x7f, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_e4m3_scale(largest, pow2);
  for (int64_t i = 0; i < n; i++) y[i] = to_e4m3(x[i] / scale);
  return scale;
}

float tk_portable_i8_from_f32(const float *x, int64_t n, int8_t *y) {
  const uint32_t largest = largest_magnitude(x, n);
  if (!tk_is_finite(largest)) {
    memset(y, 0, (size_t)n);
    return __builtin_nanf("");
  }
  const float scale = tk_i8_scale(largest);
  for (int64_t i = 0; i < n; i++) y[i] = to_i8(x[i] / scale);
  return scale;
}

void tk_portable_hadamard(float *x, int64_t n) {
  for (int64_t half = 1; half < n; half *= 2)
    for (int64_t start = 0; start < n; start += 2 * half)
      for (int64_t i = start; i < start + half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
  const float norm = tk_hadamard_norm(n);
  for (int64_t i = 0; i < n; i++) x[i] *= norm;
}
