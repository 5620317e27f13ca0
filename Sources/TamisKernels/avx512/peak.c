/* The register-only limits of AVX-512: what the index kernels of this folder could reach if memory, broadcasts and
 * the head sum were free. TK_BF16 is vdpbf16ps, which Intel runs slower than float FMA, because that is the
 * instruction the kernels use. */
#include "../internal.h"
#ifdef TK_X86
#include "lanes.h"

/* 24 independent sums hide the latency of any of these instructions. The asm keeps the compiler from folding. */
#define PEAK(name, instruction, macs)                                                                     \
  TK_AVX512 static uint64_t name(uint64_t iterations) {                                                       \
    __m512i sum[24];                                                                                          \
    const __m512i a = _mm512_set1_epi32(0x3F803F80), b = a;                                                   \
    TK_UNROLL for (int i = 0; i < 24; i++) sum[i] = _mm512_setzero_si512();                                   \
    for (uint64_t round = 0; round < iterations; round++) {                                                   \
      TK_UNROLL for (int i = 0; i < 24; i++) __asm__ volatile(instruction : "+v"(sum[i]) : "v"(a), "v"(b)); \
    }                                                                                                         \
    TK_UNROLL for (int i = 0; i < 24; i++) __asm__ volatile("" : : "v"(sum[i]));                              \
    return iterations * 24 * (macs);                                                                          \
  }
PEAK(peak_int8, "vpdpbusd %2, %1, %0", 64)
PEAK(peak_bfloat16, "vdpbf16ps %2, %1, %0", 32)
PEAK(peak_float, "vfmadd231ps %2, %1, %0", 16)

uint64_t tk_avx512_peak(int32_t type, uint64_t iterations) {
  return type == TK_I8 ? peak_int8(iterations) : type == TK_F32 ? peak_float(iterations) : peak_bfloat16(iterations);
}
#endif
