/* The register-only limits of AMX: four C tiles, so that the latency of one product is hidden by three others.
 * Float has no tile instruction here: AVX-512's limit. */
#include "../internal.h"
#ifdef TK_X86
#include "tiles.h"

TK_AMX_INLINE uint64_t peak(const int int8, uint64_t iterations) {
  for (int tile = 0; tile < 8; tile++) tk_tile_zero(tile);
  for (uint64_t round = 0; round < iterations; round++) {
    tk_tile_multiply(int8, 0, 4, 6), tk_tile_multiply(int8, 1, 4, 7);
    tk_tile_multiply(int8, 2, 5, 6), tk_tile_multiply(int8, 3, 5, 7);
  }
  return iterations * 4 * (int8 ? 16 * 16 * 64 : 16 * 16 * 32);
}
TK_AMX static uint64_t peak_int8(uint64_t iterations) { return peak(1, iterations); }
TK_AMX static uint64_t peak_bfloat16(uint64_t iterations) { return peak(0, iterations); }

/* Between enter and leave, as every kernel of this table. */
uint64_t tk_amx_peak(int32_t type, uint64_t iterations) {
  if (type == TK_F32) return tk_avx512_peak(type, iterations);
  return type == TK_I8 ? peak_int8(iterations) : peak_bfloat16(iterations);
}
#endif
