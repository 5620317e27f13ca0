/* Index scores with AMX (Intel, from Sapphire Rapids): int8 by tdpbssd, bfloat16 and E4M3 by tdpbf16ps; float goes to
 * the AVX-512 kernel. Owns the packed query of the "amx" table and the table's tile configuration.
 *
 * C [16 keys][16 heads] += A [16 keys][64 bytes] x B [16 words][16 heads][4 bytes]. A tiles are loaded straight
 * from the key rows; B is the packed query. A pass has four C tiles: 1 strip of 16 keys x 4 (or 3) vectors of 16
 * heads, 2 x 2, or 4 x 1. AVX-512 turns the C tiles of the pass before into scores meanwhile, with the operations of
 * avx512/index.c, so int8 scores have the same bits. bfloat16 sums are in tdpbf16ps's order: even and odd elements
 * apart within 32 elements; it flushes subnormals to zero.
 *
 * What the schedule follows (measured, Sapphire Rapids):
 *   - a C tile is stored just before the next pass zeroes it; four stores in a row cost 50 cycles of latency;
 *   - while tiles multiply, the second 512-bit float unit is taken: one float operation per cycle is left, but
 *     compares and shuffles are free. So max(0, x) is a compare and a zero-masked conversion;
 *   - keys from memory need a prefetch 64 rows ahead: 1.5 to 2 times the rate, for 4 % of it in the cache.
 * Rate, 64 heads x 128 dims: int8 1,230 GMAC/s with keys in the second cache level, 57 % of the tile unit's
 * sustained limit (2,166) and 4.7 times the VNNI kernel, 570 to 590 from memory; bfloat16 600, E4M3 484.
 * docs/kernels/index.md has the ladder. */
#include "../internal.h"
#ifdef TK_X86
#include "../avx512/lanes.h"
#include "tiles.h"

enum {
  CHUNK = 256, /* keys whose lanes wait in memory between two blocks of heads: a multiple of 64 */
  AHEAD = 64,  /* rows between the one in work and the one prefetched */
  DIRECT = 0,  /* A tiles are the key rows themselves */
  COPIED = 1,  /* rows are copied and zero-filled: the last rows, or a row that is no multiple of 64 bytes */
  EXPANDED = 2 /* E4M3 rows are expanded to bfloat16 */
};

static size_t element_bytes(int32_t type) { return type == TK_I8 ? 1 : 2; }
static size_t head_vectors(int32_t heads) { return ((size_t)heads + 15) / 16; }

/* Tiles along a row. */
static size_t row_tiles(int32_t type, int32_t dim) { return ((size_t)dim * element_bytes(type) + 63) / 64; }

size_t tk_amx_index_query_bytes(int32_t type, int32_t heads, int32_t dim) {
  if (type == TK_F32) return tk_avx512_index_query_bytes(type, heads, dim);
  return head_vectors(heads) * (64 + TK_TILE_BYTES * row_tiles(type, dim));
}

/* packed: weight [vectors][16], then per block of up to 4 vectors [row tiles][vectors of the block][16 words]
 * [16 heads][4 bytes]. */
void tk_amx_index_pack_query(int32_t type, const void *query, const float *weight, int32_t heads, int32_t dim,
                             void *packed) {
  if (type == TK_F32) {
    tk_avx512_index_pack_query(type, query, weight, heads, dim, packed);
    return;
  }
  const size_t vectors = head_vectors(heads), tiles = row_tiles(type, dim), row = (size_t)dim * element_bytes(type);
  memset(packed, 0, tk_amx_index_query_bytes(type, heads, dim));
  memcpy(packed, weight, (size_t)heads * sizeof(float));
  uint8_t *first = (uint8_t *)packed + vectors * 64;
  for (size_t head = 0; head < (size_t)heads; head++) {
    const size_t vector = head / 16, block = vector / 4 * 4, width = vectors - block < 4 ? vectors - block : 4;
    const uint8_t *from = (const uint8_t *)query + head * row;
    uint8_t *column = first + block * tiles * TK_TILE_BYTES + (vector - block) * TK_TILE_BYTES + head % 16 * 4;
    for (size_t at = 0; at < row; at += 4) {
      const size_t bytes = row - at < 4 ? row - at : 4;
      memcpy(column + at / 64 * width * TK_TILE_BYTES + at % 64 / 4 * 64, from + at, bytes);
    }
  }
}

TK_AMX void tk_amx_enter(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } __attribute__((aligned(64))) shape = {.palette = 1};
  for (int tile = 0; tile < 8; tile++) shape.row_bytes[tile] = TK_TILE_ROW_BYTES, shape.rows[tile] = TK_TILE_ROWS;
  __asm__ volatile("ldtilecfg %0" ::"m"(shape) : "memory");
}

TK_AMX void tk_amx_leave(void) { __asm__ volatile("tilerelease" ::: "memory"); }

/* One block of heads against a run of keys. */
typedef struct run {
  const uint8_t *query; /* [row tiles][vectors][1024] */
  const float *weight;  /* [vectors][16] */
  __mmask16 heads;      /* the real heads of the last vector */
  int opens, closes;    /* first, last block of heads */
  const uint8_t *row;
  ptrdiff_t stride;
  int row_bytes; /* of a key in memory */
  const float *scale;
  ptrdiff_t scale_stride;
  int count;
  int reach; /* rows from `row` on that the call has, of which `count` are this run's */
  const uint8_t *next; /* the first row behind them, in the next page; NULL: nobody knows */
  __m512 *lanes; /* [count rounded up to 64], used between blocks */
  float *scores;
} run;

/* C tiles in memory and the lanes of the strip in work. */
typedef struct pending {
  __attribute__((aligned(64))) uint8_t tile[4][TK_TILE_BYTES];
} pending;

/* `rows` <= 16 rows of `bytes` <= 64 bytes, the rest of the tile zero. (These two are not inlined: they would be
 * repeated in every shape.) */
__attribute__((noinline)) TK_AMX static void copy_tile(uint8_t *tile, const uint8_t *row, ptrdiff_t stride,
                                                       int rows, int bytes) {
  const __mmask64 mask = bytes >= 64 ? ~0ull : (1ull << bytes) - 1;
  for (int i = 0; i < 16; i++)
    _mm512_store_si512(tile + i * 64,
                       i < rows ? _mm512_maskz_loadu_epi8(mask, row + i * stride) : _mm512_setzero_si512());
}

/* `rows` <= 16 rows of `count` <= 64 codes: two tiles of bfloat16. */
__attribute__((noinline)) TK_AMX static void expand_tiles(const tk_e4m3_tables *tables, uint8_t *tile,
                                                          const uint8_t *row, ptrdiff_t stride, int rows, int count) {
  const __mmask64 mask = count >= 64 ? ~0ull : (1ull << count) - 1;
  for (int i = 0; i < 16; i++) {
    __m512i first = _mm512_setzero_si512(), second = first;
    if (i < rows) tk_e4m3_expand(tables, _mm512_maskz_loadu_epi8(mask, row + i * stride), &first, &second);
    _mm512_store_si512(tile + i * 64, first);
    _mm512_store_si512(tile + TK_TILE_BYTES + i * 64, second);
  }
}

/* The rows that no pass asks for: a page of a cache is a call of its own, and its keys come from memory. */
static TK_AMX void prefetch_first(const run *r) {
  const uint8_t *row = r->row;
  for (int i = 0; i < AHEAD && i < r->reach; i++, row += r->stride)
    for (int at = 0; at < r->row_bytes; at += 64) _mm_prefetch((const char *)row + at, _MM_HINT_T0);
}

/* Loads A tile `t` of the rows of one strip into register `to`. `stage` [2][1024] keeps the expansion of a pair. */
TK_AMX_INLINE void load_keys(const int mode, const int to, const tk_e4m3_tables *tables, uint8_t *stage,
                             const run *r, const uint8_t *row, int rows, int reach, int t) {
  if (mode == DIRECT) {
    /* Rows behind the last are not keys, and fetching them would take the keys' place; then row is at hand. */
    uintptr_t ahead = (uintptr_t)row;
    if (reach > AHEAD) ahead += (uintptr_t)(AHEAD * r->stride);
    if (reach <= AHEAD && r->next != NULL) ahead = (uintptr_t)r->next + (uintptr_t)((AHEAD - reach) * r->stride);
    for (int i = 0; i < 16; i++)
      _mm_prefetch((const char *)(ahead + (uintptr_t)(i * r->stride + t * 64)), _MM_HINT_T0);
    tk_tile_load(to, row + t * 64, r->stride);
  } else if (mode == COPIED) {
    copy_tile(stage, row + t * 64, r->stride, rows, r->row_bytes - t * 64);
    tk_tile_load(to, stage, 64);
  } else {
    if (t % 2 == 0) expand_tiles(tables, stage, row + t * 32, r->stride, rows, r->row_bytes - t * 32);
    tk_tile_load(to, stage + t % 2 * TK_TILE_BYTES, 64);
  }
}

/* Half a C tile (8 keys) of vector j joins the lanes. */
TK_AMX_INLINE void add_half(const int int8, const uint8_t *tile, const int half, __m512 weight, __mmask16 heads,
                            __m512 *lanes) {
  TK_UNROLL for (int i = half * 8; i < half * 8 + 8; i++) {
    const __m512i dot = _mm512_load_si512(tile + i * 64);
    if (int8) {
      __mmask16 positive = _mm512_cmpgt_epi32_mask(dot, _mm512_setzero_si512());
      __asm__("" : "+Yk"(positive)); /* or the compiler makes it a maximum, which needs the float unit's port */
      lanes[i] = _mm512_fmadd_ps(weight, _mm512_maskz_cvtepi32_ps(positive, dot), lanes[i]);
    } else {
      lanes[i] = tk_lane_add(lanes[i], _mm512_castsi512_ps(dot), weight, heads);
    }
  }
}

/* Half a tile of the pass that began at key `from`, with what opens and ends a strip around it. unit / 2 is the
 * tile, in the order [strips][vectors]. */
TK_AMX_INLINE void finish(const int int8, const int vectors, const run *r, const pending *p, int from,
                          const int unit, __m512 *lanes) {
  const int tile = unit / 2, half = unit % 2, vector = tile % vectors, key = from + tile / vectors * 16;
  if (vector == 0 && half == 0) {
    TK_UNROLL for (int i = 0; i < 16; i++) lanes[i] = _mm512_setzero_ps();
    if (!r->opens) TK_UNROLL for (int i = 0; i < 16; i++) lanes[i] = r->lanes[key + i];
  }
  add_half(int8, p->tile[tile], half, _mm512_loadu_ps(r->weight + vector * 16),
           vector == vectors - 1 ? r->heads : (__mmask16)0xFFFF, lanes);
  if (vector != vectors - 1 || half == 0) return;
  if (r->closes) {
    const int left = r->count - key, size = left < 0 ? 0 : left < 16 ? left : 16;
    const float *scale = r->scale;
    if (scale != NULL) scale = (const float *)((const char *)scale + key * r->scale_stride);
    tk_store_scores(lanes, scale, r->scale_stride, size, r->scores + key);
  } else {
    TK_UNROLL for (int i = 0; i < 16; i++) r->lanes[key + i] = lanes[i];
  }
}

/* The products of A tile t of all strips with the B tiles t, while `units` halves from `unit` on of the pass
 * before are finished. On t == 0 the C tiles are stored for that and begin again. */
TK_AMX_INLINE void multiply(const int int8, const int mode, const int strips, const int vectors, const run *r,
                            pending *p, const tk_e4m3_tables *tables, uint8_t (*stage)[2 * TK_TILE_BYTES], int from,
                            int t, const int opens, const int before, const int unit, const int units,
                            __m512 *lanes) {
  const int tiles = strips * vectors;
  const uint8_t *query = r->query + (size_t)(t * vectors) * TK_TILE_BYTES;
  TK_UNROLL for (int c = 0; c < tiles; c++) {
    const int strip = c / vectors, vector = c % vectors, a = 4 + strip % 2, b = 6 + vector % 2;
    if (opens) {
      if (before) tk_tile_store(c, p->tile[c], 64);
      tk_tile_zero(c);
    }
    if (vector == 0) {
      const int key = from + strip * 16, left = r->count - key;
      load_keys(mode, a, tables, stage[strip], r, r->row + key * r->stride, left < 16 ? left : 16, r->reach - key, t);
    }
    if (strip == 0) tk_tile_load(b, query + vector * TK_TILE_BYTES, 64);
    tk_tile_multiply(int8, c, a, b);
    if (before) {
      TK_UNROLL for (int u = unit + units * c / tiles; u < unit + units * (c + 1) / tiles; u++)
        finish(int8, vectors, r, p, from - strips * 16, u, lanes);
    }
  }
}

/* One pass: all tiles along the rows of `strips` strips, finishing the pass before (if there is one). */
TK_AMX_INLINE void pass(const int int8, const int mode, const int strips, const int vectors, const int before,
                        const run *r, pending *p, const tk_e4m3_tables *tables,
                        uint8_t (*stage)[2 * TK_TILE_BYTES], int from, int row_tile_count) {
  const int units = strips * vectors * 2;
  __m512 lanes[16];
  if (row_tile_count == 1) {
    multiply(int8, mode, strips, vectors, r, p, tables, stage, from, 0, 1, before, 0, 0, lanes);
    if (before) TK_UNROLL for (int u = 0; u < units; u++)
        finish(int8, vectors, r, p, from - strips * 16, u, lanes);
    return;
  }
  multiply(int8, mode, strips, vectors, r, p, tables, stage, from, 0, 1, before, 0, units / 2 - 1, lanes);
  multiply(int8, mode, strips, vectors, r, p, tables, stage, from, 1, 0, before, units / 2 - 1, units / 2 + 1,
           lanes);
  for (int t = 2; t < row_tile_count; t++)
    multiply(int8, mode, strips, vectors, r, p, tables, stage, from, t, 0, 0, 0, 0, lanes);
}

/* All passes over the run's keys. */
TK_AMX_INLINE void passes(const int int8, const int mode, const int strips, const int vectors, const run *r) {
  __attribute__((aligned(64))) uint8_t stage[4][2 * TK_TILE_BYTES];
  pending p;
  const tk_e4m3_tables tables = tk_e4m3_load_tables();
  const int keys = strips * 16, bytes = mode == EXPANDED ? r->row_bytes * 2 : r->row_bytes;
  const int row_tile_count = (bytes + 63) / 64;
  int from = 0;
  for (; from < r->count; from += keys) {
    if (from == 0)
      pass(int8, mode, strips, vectors, 0, r, &p, &tables, stage, from, row_tile_count);
    else
      pass(int8, mode, strips, vectors, 1, r, &p, &tables, stage, from, row_tile_count);
  }
  __m512 lanes[16];
  TK_UNROLL for (int c = 0; c < strips * vectors; c++) tk_tile_store(c, p.tile[c], 64);
  TK_UNROLL for (int u = 0; u < strips * vectors * 2; u++)
    finish(int8, vectors, r, &p, from - keys, u, lanes);
}

#define PASSES(name, int8, mode)                                                                              \
  TK_AMX static void name(const run *r, int vectors) {                                                        \
    if (vectors == 4) passes(int8, mode, 1, 4, r);                                                            \
    if (vectors == 3) passes(int8, mode, 1, 3, r);                                                            \
    if (vectors == 2) passes(int8, mode, 2, 2, r);                                                            \
    if (vectors == 1) passes(int8, mode, 4, 1, r);                                                            \
  }
PASSES(int8_direct, 1, DIRECT)
PASSES(int8_copied, 1, COPIED)
PASSES(bfloat16_direct, 0, DIRECT)
PASSES(bfloat16_copied, 0, COPIED)
PASSES(e4m3_expanded, 0, EXPANDED)

/* The part of `r` that is `from` keys on and `count` keys long. */
static run part_of(const run *r, int from, int count) {
  run part = *r;
  part.row += from * r->stride, part.scores += from, part.lanes += from, part.count = count;
  part.reach -= from;
  if (r->scale != NULL) part.scale = (const float *)((const char *)r->scale + from * r->scale_stride);
  return part;
}

/* Direct passes over whole strips of whole tiles, a copied one over what is left. */
static void run_block(int32_t type, const run *r, int vectors) {
  if (type == TK_E4M3) {
    e4m3_expanded(r, vectors);
    return;
  }
  void (*const direct)(const run *, int) = type == TK_I8 ? int8_direct : bfloat16_direct;
  void (*const copied)(const run *, int) = type == TK_I8 ? int8_copied : bfloat16_copied;
  const int keys = vectors == 1 ? 64 : vectors == 2 ? 32 : 16;
  const int whole = r->row_bytes % 64 == 0 ? r->count / keys * keys : 0;
  const run body = part_of(r, 0, whole), tail = part_of(r, whole, r->count - whole);
  if (body.count > 0) direct(&body, vectors);
  if (tail.count > 0) copied(&tail, vectors);
}

TK_AMX void tk_amx_index_scores(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys,
                                ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride, int32_t count,
                                const tk_beside *beside,
                         float *scores) {
  if (type == TK_F32) {
    tk_avx512_index_scores(type, packed, heads, dim, keys, key_stride, key_scale, scale_stride, count, beside, scores);
    return;
  }
  __m512 lanes[CHUNK];
  const int vectors = (int)head_vectors(heads), row_bytes = type == TK_BF16 ? dim * 2 : dim;
  const size_t tiles = row_tiles(type, dim);
  const run all = {.row = keys, .stride = key_stride, .row_bytes = row_bytes, .scale = key_scale,
                   .scale_stride = scale_stride, .count = count, .reach = count,
                   .next = beside == NULL ? NULL : beside->next, .lanes = lanes, .scores = scores};
  const int chunk = vectors <= 4 ? count : CHUNK;
  if (beside == NULL || !beside->asked) prefetch_first(&all);
  for (int from = 0; from < count; from += chunk) {
    run r = part_of(&all, from, count - from < chunk ? count - from : chunk);
    r.lanes = lanes;
    r.query = (const uint8_t *)packed + (size_t)vectors * 64;
    for (int first = 0; first < vectors; first += 4) {
      const int width = vectors - first < 4 ? vectors - first : 4;
      r.opens = first == 0, r.closes = first + width == vectors;
      r.heads = (__mmask16)(0xFFFFu >> (r.closes ? vectors * 16 - heads : 0));
      r.weight = (const float *)packed + first * 16;
      run_block(type, &r, width);
      r.query += tiles * (size_t)width * TK_TILE_BYTES;
    }
  }
}
#endif
