/* The register-only limits of 64-bit ARM: sdot, or smull + sadalp on a CPU without it, for int8; FMA for everything
 * else. */
#include "../internal.h"
#ifdef TK_ARM
#include <arm_neon.h>

#include "dot.h"

/* 16 independent sums; the asm keeps the compiler from folding. */
#define PEAK(name, target, macs, ...)                                                                         \
  target static uint64_t name(uint64_t iterations) {                                                          \
    int32x4_t sum[16];                                                                                        \
    const int8x16_t factor = vdupq_n_s8(3);                                                                   \
    TK_UNROLL for (int i = 0; i < 16; i++) sum[i] = vdupq_n_s32(0);                                                     \
    for (uint64_t round = 0; round < iterations; round++) {                                                   \
      TK_UNROLL for (int i = 0; i < 16; i++) {                                                                          \
        int32x4_t s = sum[i];                                                                                 \
        __VA_ARGS__;                                                                                          \
        sum[i] = s;                                                                                           \
      }                                                                                                       \
    }                                                                                                         \
    TK_UNROLL for (int i = 0; i < 16; i++) __asm__ volatile("" : : "w"(sum[i]));                                        \
    return iterations * 16 * (macs);                                                                          \
  }
PEAK(peak_dot, TK_DOTPROD, 16, __asm__ volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(s) : "w"(factor)))
PEAK(peak_long, , 8, int16x8_t product;
     __asm__ volatile("smull %0.8h, %1.8b, %1.8b" : "=w"(product) : "w"(factor));
     __asm__ volatile("sadalp %0.4s, %1.8h" : "+w"(s) : "w"(product)))
PEAK(peak_float, , 4, __asm__ volatile("fmla %0.4s, %1.4s, %1.4s" : "+w"(s) : "w"(factor)))

uint64_t tk_neon_peak(int32_t type, uint64_t iterations) {
  if (type != TK_I8) return peak_float(iterations);
  return tk_has_dot_product() ? peak_dot(iterations) : peak_long(iterations);
}
#endif
