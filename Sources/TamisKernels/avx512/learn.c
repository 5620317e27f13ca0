/* Learn entries of the avx512 table: learn_lanes.h over sixteen lanes, 4 x 4 sums: 8 loads to 16 products. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>
#define TK_NAME(f) tk_avx512_##f
#define TK_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define TK_LANES 16
#define TK_FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define TK_TILE_VECTORS 4
#include "../learn_lanes.h"
#endif
