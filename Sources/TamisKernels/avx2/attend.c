/* Attend entries of the avx2 table: attend_float.h over eight lanes and FMA. bfloat16 rows are widened once per
 * block of 64 keys for all columns, so the inner loops are those of float: 12 accumulators, 3 loads of q or of
 * values and 4 broadcasts to 12 products. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>
#define TK_NAME(f) tk_avx2_##f
#define TK_ENTRY
#define TK_TARGET __attribute__((target("avx2,fma")))
#define TK_LANES 8
#define TK_FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define TK_TILE_KEYS 4
#define TK_TILE_VECTORS 3
#define TK_TILE_COLUMNS 4
#define TK_TILE_VALUES 3
#include "../attend_float.h"
#endif
