/* Learn entries of the neon table: learn_lanes.h over four lanes and fused multiply-add, 4 x 4 sums. */
#include "../internal.h"
#if TK_ARM
#include <arm_neon.h>
#define TK_NAME(f) tk_neon_##f
#define TK_TARGET
#define TK_LANES 4
#define TK_FMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define TK_TILE_VECTORS 4
#include "../learn_lanes.h"
#endif
