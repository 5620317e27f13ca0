/* Learn entries of the portable table: learn_lanes.h over four lanes, whatever the compiler makes of them. */
#define TK_NAME(f) tk_portable_##f
#define TK_TARGET
#define TK_LANES 4
#define TK_FMA(a, b, c) ((a) * (b) + (c))
#define TK_TILE_VECTORS 2
#include "../learn_lanes.h"
