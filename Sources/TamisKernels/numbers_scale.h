/* Scales of quantised rows and the norm of the rotation: arithmetic on one float per row that must have the same
 * bits in every table. Vector files include it; it owns no loop. */
#ifndef TAMIS_KERNELS_NUMBERS_SCALE_H
#define TAMIS_KERNELS_NUMBERS_SCALE_H
#include <stdint.h>
#include <string.h>

#define TK_E4M3_LARGEST 448.0f

static inline uint32_t tk_bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float tk_float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/* `largest` holds the bits of max |x|: as integers, magnitudes order like floats, then infinity, then NaN. */
static inline int tk_is_finite(uint32_t largest) { return largest < 0x7f800000u; }

/* DeepSeek-V3.2-Exp, inference/kernel.py, act_quant. */
static inline float tk_e4m3_scale(uint32_t largest, int32_t pow2) {
  const float floor = 1e-4f, magnitude = tk_float_of(largest);
  const float scale = (magnitude > floor ? magnitude : floor) / TK_E4M3_LARGEST;
  return pow2 ? tk_float_of((tk_bits_of(scale) + 0x7fffffu) & 0xff800000u) : scale;
}

/* 1 / scale for a power of two; exact, because scales lie between 1e-4 / 448 and the largest float / 448. */
static inline float tk_pow2_reciprocal(float scale) { return tk_float_of((254u << 23) - tk_bits_of(scale)); }

static inline float tk_i8_scale(uint32_t largest) {
  const float scale = tk_float_of(largest) / 127.0f;
  return scale == 0 ? 1.0f : scale;
}

/* 1 / sqrt(n) for a power of two. */
static inline float tk_hadamard_norm(int64_t n) {
  float norm = 1.0f;
  for (; n >= 4; n >>= 2) norm *= 0.5f;
  return n == 2 ? norm * 0.707106781186547524f : norm;
}
#endif
