/* Learn entries of the avx2 table: learn_lanes.h over eight lanes and FMA, 4 x 2 sums. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>
#define TK_NAME(f) tk_avx2_##f
#define TK_TARGET __attribute__((target("avx2,fma")))
#define TK_LANES 8
#define TK_FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define TK_TILE_VECTORS 2
#include "../learn_lanes.h"
#endif
