/* Matmul entries of the neon table: matmul_lanes.h over four lanes and fused multiply-add; bfloat16 is widened as
 * it is read. */
#include "../internal.h"
#if TK_ARM
#include <arm_neon.h>
#define TK_NAME(f) tk_neon_##f
#define TK_TARGET
#define TK_LANES 4
#define TK_FMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define TK_TILE_ROWS 4
#define TK_TILE_OUTPUTS 5
#define TK_TILE_OUTPUTS_ALONE 8
#include "../matmul_lanes.h"
#endif
