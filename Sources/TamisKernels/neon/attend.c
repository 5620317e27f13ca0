/* Attend entries of the neon table: attend_float.h over four lanes and fused multiply-add, with the larger tiles
 * that 32 vector registers allow. bfloat16 rows are widened: no extension beyond the ARMv8.0 baseline. */
#include "../internal.h"
#if TK_ARM
#include <arm_neon.h>
#define TK_NAME(f) tk_neon_##f
#define TK_ENTRY
#define TK_TARGET
#define TK_LANES 4
#define TK_FMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define TK_TILE_KEYS 6
#define TK_TILE_VECTORS 4
#define TK_TILE_COLUMNS 6
#define TK_TILE_VALUES 4
#include "../attend_float.h"
#endif
