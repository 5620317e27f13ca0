/* The register-only limits of AVX2: vpmaddwd with its addition (int8 is widened to int16), and FMA for everything
 * else (bfloat16 is widened to float). */
#include "../internal.h"
#ifdef TK_X86
#include "lanes.h"

/* 12 independent sums; the asm keeps the compiler from folding. */
TK_AVX2 static uint64_t peak_int8(uint64_t iterations) {
  __m256i sum[12];
  const __m256i factor = _mm256_set1_epi16(3);
  TK_UNROLL for (int i = 0; i < 12; i++) sum[i] = _mm256_setzero_si256();
  for (uint64_t round = 0; round < iterations; round++) {
    TK_UNROLL for (int i = 0; i < 12; i++) {
      __m256i product;
      __asm__ volatile("vpmaddwd %1, %1, %0" : "=x"(product) : "x"(factor));
      __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum[i]) : "x"(product));
    }
  }
  TK_UNROLL for (int i = 0; i < 12; i++) __asm__ volatile("" : : "x"(sum[i]));
  return iterations * 12 * 16;
}

TK_AVX2 static uint64_t peak_float(uint64_t iterations) {
  __m256 sum[12];
  const __m256 factor = _mm256_set1_ps(0.5f);
  TK_UNROLL for (int i = 0; i < 12; i++) sum[i] = _mm256_setzero_ps();
  for (uint64_t round = 0; round < iterations; round++) {
    TK_UNROLL for (int i = 0; i < 12; i++) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(sum[i]) : "x"(factor));
  }
  TK_UNROLL for (int i = 0; i < 12; i++) __asm__ volatile("" : : "x"(sum[i]));
  return iterations * 12 * 8;
}

uint64_t tk_avx2_peak(int32_t type, uint64_t iterations) {
  return type == TK_I8 ? peak_int8(iterations) : peak_float(iterations);
}
#endif
