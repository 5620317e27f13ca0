/* The transposition of a 16 x 16 block of 32-bit elements held in registers: 64 shuffles. Packed operands of the
 * bfloat16 kernels are made with it (an element is then a pair of inputs), and tiles turned. */
#ifndef TAMIS_AVX512_TRANSPOSE_H
#define TAMIS_AVX512_TRANSPOSE_H
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* 16 rows of up to 32 16-bit elements, `stride` bytes apart, zeros beyond `rows` and `elements`. */
static inline __attribute__((always_inline, target("avx512f,avx512bw"))) void tk_avx512_take_rows(
    const char *from, ptrdiff_t stride, int32_t rows, int32_t elements, __m512i taken[16]) {
  const __mmask32 live = elements >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << elements) - 1;
#pragma GCC unroll 16
  for (int r = 0; r < 16; r++) {
    taken[r] = r < rows ? _mm512_maskz_loadu_epi16(live, from + r * stride) : _mm512_setzero_si512();
  }
}

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
