/* The transposition of a 16 x 16 block of 32-bit elements held in registers: 64 shuffles. The amx kernels turn tiles
 * with it. */
#ifndef TAMIS_AVX512_TRANSPOSE_H
#define TAMIS_AVX512_TRANSPOSE_H
#include <immintrin.h>

/* r[i][j] <- r[j][i] over 32-bit elements. */
static inline __attribute__((always_inline, target("avx512f"))) void tk_avx512_transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i a = _mm512_unpacklo_epi32(r[4 * i], r[4 * i + 1]), b = _mm512_unpackhi_epi32(r[4 * i], r[4 * i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(r[4 * i + 2], r[4 * i + 3]);
    const __m512i d = _mm512_unpackhi_epi32(r[4 * i + 2], r[4 * i + 3]);
    t[4 * i] = _mm512_unpacklo_epi64(a, c);
    t[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
    t[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
    t[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i a = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88), b = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    r[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}
#endif
