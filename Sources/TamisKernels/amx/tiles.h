/* Tile instructions with the tile numbers as compile-time constants, and the one tile configuration that all
 * kernels of the "amx" table share: 8 tiles of 16 rows x 64 bytes.
 *
 * Written as assembly with a memory clobber because compilers differ in what their intrinsics promise about memory
 * around a tile load or store; and as switches because a tile number must be a literal, also in a build that does
 * not optimise. Each switch folds to one instruction once inlined. */
#ifndef TAMIS_KERNELS_AMX_TILES_H
#define TAMIS_KERNELS_AMX_TILES_H
#include <stddef.h>
#include <stdint.h>

#define TK_AMX                                                                                                \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c,"  \
                        "amx-tile,amx-int8,amx-bf16")))
#define TK_AMX_INLINE static inline __attribute__((always_inline)) TK_AMX

enum { TK_TILE_BYTES = 1024, TK_TILE_ROWS = 16, TK_TILE_ROW_BYTES = 64 };

#define TK_TILE_CASES(ONE) ONE(0) ONE(1) ONE(2) ONE(3) ONE(4) ONE(5) ONE(6) ONE(7)

TK_AMX_INLINE void tk_tile_zero(const int tile) {
#define ONE(t)                                                                                                \
  case t: __asm__ volatile("tilezero %%tmm" #t ::); break;
  switch (tile) { TK_TILE_CASES(ONE) }
#undef ONE
}

TK_AMX_INLINE void tk_tile_load(const int tile, const void *from, ptrdiff_t stride) {
#define ONE(t)                                                                                                \
  case t: __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(stride) : "memory"); break;
  switch (tile) { TK_TILE_CASES(ONE) }
#undef ONE
}

/* A load that does not displace what the first cache level holds. */
TK_AMX_INLINE void tk_tile_stream(const int tile, const void *from, ptrdiff_t stride) {
#define ONE(t)                                                                                                \
  case t: __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #t ::"r"(from), "r"(stride) : "memory"); break;
  switch (tile) { TK_TILE_CASES(ONE) }
#undef ONE
}

TK_AMX_INLINE void tk_tile_store(const int tile, void *to, ptrdiff_t stride) {
#define ONE(t)                                                                                                \
  case t: __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(stride) : "memory"); break;
  switch (tile) { TK_TILE_CASES(ONE) }
#undef ONE
}

/* tile c (0..3) += tile a (4, 5) x tile b (6, 7): int8 pairs of four, or bfloat16 pairs of two. */
TK_AMX_INLINE void tk_tile_multiply(const int int8, const int c, const int a, const int b) {
#define ONE(name, c, a, b)                                                                                    \
  case (c)*4 + ((a)-4) * 2 + (b)-6: __asm__ volatile(name " %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::); break;
#define ALL(name, c) ONE(name, c, 4, 6) ONE(name, c, 4, 7) ONE(name, c, 5, 6) ONE(name, c, 5, 7)
  if (int8) {
    switch (c * 4 + (a - 4) * 2 + b - 6) {
      ALL("tdpbssd", 0) ALL("tdpbssd", 1) ALL("tdpbssd", 2) ALL("tdpbssd", 3)
    }
  } else {
    switch (c * 4 + (a - 4) * 2 + b - 6) {
      ALL("tdpbf16ps", 0) ALL("tdpbf16ps", 1) ALL("tdpbf16ps", 2) ALL("tdpbf16ps", 3)
    }
  }
#undef ALL
#undef ONE
}

/* Tiles 0..3 to four places, each just before its next use: four stores in a row would wait for the last products. */
typedef struct {
  char *at[4];      /* NULL: nothing to store */
  ptrdiff_t stride; /* from row to row        */
} tk_waiting;

TK_AMX_INLINE void tk_tile_store_waiting(const int tile, const tk_waiting *w) {
  if (w->at[tile] != NULL) tk_tile_store(tile, w->at[tile], w->stride);
}

static inline TK_AMX void tk_tile_store_all(const tk_waiting *w) {
  tk_tile_store_waiting(0, w);
  tk_tile_store_waiting(1, w);
  tk_tile_store_waiting(2, w);
  tk_tile_store_waiting(3, w);
}

/* Accumulator `tile` of a unit of four adjacent tiles begins: with zeros, or where the unit rests. */
TK_AMX_INLINE void tk_tile_begin(const int tile, int first, const char *unit, const tk_waiting *before) {
  tk_tile_store_waiting(tile, before);
  if (first) {
    tk_tile_zero(tile);
  } else {
    tk_tile_load(tile, unit + tile * TK_TILE_BYTES, 64);
  }
}

static inline tk_waiting tk_waiting_unit(char *unit) {
  return (tk_waiting){{unit, unit + TK_TILE_BYTES, unit + 2 * TK_TILE_BYTES, unit + 3 * TK_TILE_BYTES}, 64};
}
#endif
