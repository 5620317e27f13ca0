/* The register-only limit of AVX-VNNI: vpdpbusd on 256-bit registers; other types are AVX2's. */
#include "../internal.h"
#ifdef TK_X86
#include "../avx2/lanes.h"

__attribute__((target("avx2,fma,avxvnni"))) static uint64_t peak_int8(uint64_t iterations) {
  __m256i sum[12];
  const __m256i factor = _mm256_set1_epi8(3);
  TK_UNROLL for (int i = 0; i < 12; i++) sum[i] = _mm256_setzero_si256();
  for (uint64_t round = 0; round < iterations; round++) {
    TK_UNROLL for (int i = 0; i < 12; i++)
      __asm__ volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(sum[i]) : "x"(factor));
  }
  TK_UNROLL for (int i = 0; i < 12; i++) __asm__ volatile("" : : "x"(sum[i]));
  return iterations * 12 * 32;
}

uint64_t tk_avxvnni_peak(int32_t type, uint64_t iterations) {
  return type == TK_I8 ? peak_int8(iterations) : tk_avx2_peak(type, iterations);
}
#endif
