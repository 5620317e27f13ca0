/* Attend entries of the portable table: attend_float.h with four-lane vectors that every compiler knows how to
 * split or map (SSE2 on baseline x86-64), products and sums rounded separately unless the target contracts
 * them. It refuses nothing and promises no speed. */
#define TK_NAME(f) tk_portable_##f
#define TK_ENTRY
#define TK_TARGET
#define TK_LANES 4
#define TK_FMA(a, b, c) ((a) * (b) + (c))
#define TK_TILE_KEYS 4
#define TK_TILE_VECTORS 2
#define TK_TILE_COLUMNS 4
#define TK_TILE_VALUES 2
#include "../attend_float.h"
