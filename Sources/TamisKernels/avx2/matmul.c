/* Matmul entries of the avx2 table: matmul_lanes.h over eight lanes and FMA; bfloat16 is widened as it is read. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>
#define TK_NAME(f) tk_avx2_##f
#define TK_TARGET __attribute__((target("avx2,fma")))
#define TK_LANES 8
#define TK_FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define TK_TILE_ROWS 3
#define TK_TILE_OUTPUTS 4
#define TK_TILE_OUTPUTS_ALONE 8
#include "../matmul_lanes.h"
#endif
