/* Matmul entries of the portable table: matmul_lanes.h over four lanes, whatever the compiler makes of them. */
#define TK_NAME(f) tk_portable_##f
#define TK_TARGET
#define TK_LANES 4
#define TK_FMA(a, b, c) ((a) * (b) + (c))
#define TK_TILE_ROWS 3
#define TK_TILE_OUTPUTS 3
#define TK_TILE_OUTPUTS_ALONE 6
#include "../matmul_lanes.h"
