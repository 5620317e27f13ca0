/* Attend entries of the amx table. TK_F32 is the avx512 table's; this file owns TK_BF16 with tdpbf16ps: a tile of
 * 16 x 16 floats += 16 x 32 by 32 x 16 bfloat16, 8192 products in 16 cycles. It assumes the tile configuration of
 * tk_amx_enter: eight tiles of 16 rows x 64 bytes. Tiles 0..3 accumulate, 4 and 5 hold A, 6 and 7 hold B.
 *
 * Columns are taken 128 at a time, keys 256 at a time, in three phases:
 *   scores   S^T [16 keys, 16 columns] = A, keys as they lie, copied to adjacent tiles x B, the query packed
 *            [16 columns][pair of dimensions][column][2]. 32 keys stay in L1 while the query streams past them with
 *            tileloaddt1, which leaves L1 to the keys. In the same walk the values are interleaved by pairs of keys,
 *            [16 dimensions][pair of keys][dimension][2].
 *   softmax  vertical in lanes over the 256 keys, running maximum; p becomes A tiles [16 columns][32 keys] by a
 *            16 x 16 transpose of bfloat16 pairs, in place of the scores.
 *   output   out [16 columns, 16 dimensions] += A, p x B, values. The p of 32 columns (16 KB) stays in L1 under all
 *            value panels; out rests in the workspace between blocks, rescaled where a maximum has grown. Rows of
 *            out lie a power of two apart, where a tile's 16 lines would fall on two sets of the cache.
 * 256 keys leave everything that travels between phases (values 256 KB, scores 128 KB, query 144 KB, out 256 KB)
 * in a 2 MB L2. Rows are asked for 32 keys ahead: selected rows lie anywhere in memory.
 * A C tile is stored just before it begins again: the wait for its last product is then over.
 *
 * p is rounded to bfloat16 and sum adds the rounded values (see attend_float.h for why). tdpbf16ps takes
 * subnormal operands and results as 0. Error bound of out / sum: 2^-8 of sum |p v| / sum p, from p's rounding. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>
#include <string.h>

#include "../avx512/softmax.h"
#include "../avx512/transpose.h"
#include "tiles.h"

enum {
  key_block = 256,   /* keys of one softmax and one accumulation of output  */
  key_step = 32,     /* keys of a score step, depth of an output product    */
  group = 128,       /* columns sharing one preparation of keys and values  */
  depth = 32         /* dimensions of one score product                     */
};

/* Scratch of one call, for blocks of `keys` (a multiple of 32). */
typedef struct {
  char *keys;    /* tiles [2 x 16 keys][key_dim / 32]                                        */
  char *values;  /* tiles [value_dim / 16][keys / 32], an even number of panels              */
  char *scores;  /* [columns / 16][keys, 16] float, then p tiles [columns / 16][keys / 32]   */
  float *output; /* units of 2 x 2 tiles [columns / 32][value_dim / 32][2][2][16 columns][16] */
  float *max, *sum, *factor; /* [128] */
  size_t bytes;
} workspace;

static size_t ceiling(int32_t n, int32_t by) { return ((size_t)n + (size_t)by - 1) / (size_t)by; }

/* One value panel or half a score panel of a block of `count` keys: one tile per 32 keys, and one line, so that
 * panels do not fall on the same cache sets. */
static ptrdiff_t panel_bytes(int32_t count) { return (ptrdiff_t)ceiling(count, key_step) * TK_TILE_BYTES + 64; }

static workspace divide(int32_t columns, int32_t count, int32_t key_dim, int32_t value_dim, uintptr_t base) {
  const size_t panel = (size_t)panel_bytes(count < key_block ? count : key_block);
  const size_t tiles = ceiling(columns < group ? columns : group, 16);
  workspace w;
  size_t at = 0;
  w.keys = (char *)(base + at), at += 2 * ceiling(key_dim, depth) * TK_TILE_BYTES;
  w.values = (char *)(base + at), at += 2 * ceiling(value_dim, 32) * panel;
  w.scores = (char *)(base + at), at += tiles * 2 * panel;
  w.output = (float *)(base + at), at += (tiles + 1) / 2 * ceiling(value_dim, 32) * 4 * TK_TILE_BYTES;
  w.max = (float *)(base + at), at += group * sizeof(float);
  w.sum = (float *)(base + at), at += group * sizeof(float);
  w.factor = (float *)(base + at), at += group * sizeof(float);
  w.bytes = at;
  return w;
}

size_t tk_amx_attend_query_bytes(int32_t type, int32_t columns, int32_t key_dim) {
  if (type == TK_F32) return tk_avx512_attend_query_bytes(type, columns, key_dim);
  return ceiling(columns, 16) * ceiling(key_dim, depth) * TK_TILE_BYTES;
}

/* B tiles [columns / 16][key_dim / 32][pair of dimensions][16 columns][2]. */
TK_AMX void tk_amx_attend_pack_query(int32_t type, const void *query, ptrdiff_t query_stride, int32_t columns,
                                     int32_t key_dim, void *packed) {
  if (type == TK_F32) {
    tk_avx512_attend_pack_query(type, query, query_stride, columns, key_dim, packed);
    return;
  }
  char *tile = packed;
  for (int32_t c = 0; c < columns; c += 16) {
    for (int32_t d = 0; d < key_dim; d += depth, tile += TK_TILE_BYTES) {
      __m512i pair[16];
      tk_avx512_take_rows((const char *)query + c * query_stride + 2 * (ptrdiff_t)d, query_stride, columns - c,
                          key_dim - d, pair);
      tk_avx512_transpose(pair);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_store_si512(tile + 64 * i, pair[i]);
    }
  }
}

size_t tk_amx_attend_scratch_bytes(int32_t type, int32_t columns, int32_t count, int32_t key_dim,
                                   int32_t value_dim) {
  if (type == TK_F32) return tk_avx512_attend_scratch_bytes(type, columns, count, key_dim, value_dim);
  return divide(columns, count, key_dim, value_dim, 0).bytes;
}

/* Asks for the row 32 places on, line by line as this one is copied. Asking between tile products instead was
 * slower: tiles come from L2 through the same line fill buffers that wait for memory. */
TK_AMX_INLINE void fetch_line(const void *row, ptrdiff_t at) {
  if (row != NULL) _mm_prefetch((const char *)row + at, _MM_HINT_T1);
}

/* -- keys and values as tiles --------------------------------------------------------------------------- */
static TK_AMX __mmask32 mask_of(int32_t left) {
  return left >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
}

/* 32 rows from `rows` (zeros from `count` on) as A tiles [2][key_dim / 32][16 rows][32 elements]. */
static TK_AMX void copy_keys(const void *const *rows, int32_t count, int32_t key_dim, char *tiles) {
  const int32_t steps = (int32_t)ceiling(key_dim, depth);
  const __mmask32 last = mask_of(key_dim - (steps - 1) * depth);
  for (int32_t k = 0; k < key_step; k++) {
    char *to = tiles + ((ptrdiff_t)(k / 16) * steps * 16 + k % 16) * 64;
    const char *row = k < count ? rows[k] : NULL;
    const void *next = k + key_step < count ? rows[k + key_step] : NULL;
    for (int32_t s = 0; s < steps; s++, to += TK_TILE_BYTES) {
      __m512i x = _mm512_setzero_si512();
      if (row != NULL) {
        x = s + 1 < steps ? _mm512_loadu_si512(row + s * 64) : _mm512_maskz_loadu_epi16(last, row + s * 64);
      }
      _mm512_store_si512(to, x);
      fetch_line(next, s * 64);
    }
  }
}

/* 32 rows as B tiles: for every 16 dimensions one tile [16 pairs of keys][16][2], `panel` bytes apart. `fetch`:
 * the rows are not the keys, and nobody has asked for them. */
static TK_AMX void interleave_values(const void *const *rows, int32_t count, int fetch, int32_t value_dim,
                                     ptrdiff_t panel, char *tiles) {
  const __m512i low = tk_avx512_interleave_low(), high = tk_avx512_interleave_high();
  for (int32_t k = 0; k < key_step; k += 2, tiles += 64) {
    char *to = tiles;
    const void *next = fetch && k + key_step < count ? rows[k + key_step] : NULL;
    const void *next_but_one = fetch && k + key_step + 1 < count ? rows[k + key_step + 1] : NULL;
    for (int32_t e = 0; e < value_dim; e += 32, to += 2 * panel) {
      const __mmask32 live = mask_of(value_dim - e);
      __m512i a = _mm512_setzero_si512(), b = a;
      if (k < count) a = _mm512_maskz_loadu_epi16(live, (const uint16_t *)rows[k] + e);
      if (k + 1 < count) b = _mm512_maskz_loadu_epi16(live, (const uint16_t *)rows[k + 1] + e);
      _mm512_store_si512(to, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(to + panel, _mm512_permutex2var_epi16(a, high, b));
      fetch_line(next, 2 * (ptrdiff_t)e);
      fetch_line(next_but_one, 2 * (ptrdiff_t)e);
    }
  }
}

static TK_AMX void fetch_first(const void *const *rows, int32_t count, int32_t dim) {
  for (int32_t k = 0; k < key_step && k < count; k++) {
    for (ptrdiff_t at = 0; at < 2 * (ptrdiff_t)dim; at += 64) fetch_line(rows[k], at);
  }
}

/* -- scores --------------------------------------------------------------------------------------------- */
/* [32 keys, 16] float of one or two column tiles, `column_tile` apart in packed. The query streams past the keys. */
TK_AMX_INLINE void score_step(const int pairs, const int opens, const char *first, const char *second,
                              const char *packed, ptrdiff_t column_tile, const tk_waiting *before) {
  tk_tile_stream(6, packed, 64);
  tk_tile_load(4, first, 64);
  if (opens) {
    tk_tile_store_waiting(0, before);
    tk_tile_zero(0);
  }
  tk_tile_multiply(0, 0, 4, 6);
  tk_tile_load(5, second, 64);
  if (opens) {
    tk_tile_store_waiting(1, before);
    tk_tile_zero(1);
  }
  tk_tile_multiply(0, 1, 5, 6);
  if (pairs == 2) tk_tile_stream(7, packed + column_tile, 64);
  if (opens) {
    tk_tile_store_waiting(2, before);
    tk_tile_zero(2);
  }
  if (pairs == 2) tk_tile_multiply(0, 2, 4, 7);
  if (opens) {
    tk_tile_store_waiting(3, before);
    tk_tile_zero(3);
  }
  if (pairs == 2) tk_tile_multiply(0, 3, 5, 7);
}

TK_AMX_INLINE void score_tiles(const int pairs, const char *keys, const char *packed, ptrdiff_t column_tile,
                               int32_t steps, const tk_waiting *before) {
  const char *second = keys + (ptrdiff_t)steps * TK_TILE_BYTES;
  score_step(pairs, 1, keys, second, packed, column_tile, before);
  for (int32_t s = 1; s < steps; s++) {
    const ptrdiff_t at = (ptrdiff_t)s * TK_TILE_BYTES;
    score_step(pairs, 0, keys + at, second + at, packed + at, column_tile, before);
  }
}

/* The first `count` of the `beyond` rows that the call still has. */
static TK_AMX void score_block(const char *packed, int32_t tiles, int32_t key_dim, int32_t value_dim,
                               const void *const *key_rows, const void *const *value_rows, int32_t count,
                               int32_t beyond, const workspace *w) {
  const int32_t steps = (int32_t)ceiling(key_dim, depth), key_steps = (int32_t)ceiling(count, key_step);
  const ptrdiff_t column_tile = (ptrdiff_t)steps * TK_TILE_BYTES, panel = panel_bytes(count);
  const int fetch = key_rows[0] != value_rows[0];
  tk_waiting before = {{NULL, NULL, NULL, NULL}, 64};
  for (int32_t k = 0; k < key_steps; k++) {
    const int32_t begin = k * key_step, left = beyond - begin;
    char *scores = w->scores + 2 * (ptrdiff_t)k * TK_TILE_BYTES;
    copy_keys(key_rows + begin, left, key_dim, w->keys);
    interleave_values(value_rows + begin, left, fetch, value_dim, panel, w->values + (ptrdiff_t)k * TK_TILE_BYTES);
    int32_t t = 0;
    for (; t < tiles; t += 2) {
      char *to = scores + 2 * t * panel;
      if (t + 1 < tiles) {
        score_tiles(2, w->keys, packed + t * column_tile, column_tile, steps, &before);
        before = (tk_waiting){{to, to + TK_TILE_BYTES, to + 2 * panel, to + 2 * panel + TK_TILE_BYTES}, 64};
      } else {
        score_tiles(1, w->keys, packed + t * column_tile, column_tile, steps, &before);
        before = (tk_waiting){{to, to + TK_TILE_BYTES, NULL, NULL}, 64};
      }
    }
  }
  tk_tile_store_all(&before);
}

/* -- softmax -------------------------------------------------------------------------------------------- */
/* Scores [32 keys, 16] -> one p tile [16 columns][32 keys] in the same place; p = 0 from `live` keys on where they are
 * not all there. Returns the sum. */
TK_AMX_INLINE __m512 softmax_step(const int whole, char *scores, char *tile, int32_t live, float scale, __m512 from,
                                  __m512 total) {
  const float *s = (const float *)(const void *)scores;
  __m512i pair[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    __m512 a = tk_avx512_softmax_weight(_mm512_load_ps(s + 32 * i), scale, from);
    __m512 b = tk_avx512_softmax_weight(_mm512_load_ps(s + 32 * i + 16), scale, from);
    if (!whole && 2 * i >= live) a = _mm512_setzero_ps();
    if (!whole && 2 * i + 1 >= live) b = _mm512_setzero_ps();
    pair[i] = tk_avx512_bf16_pairs(a, b);
    total = tk_avx512_add_pairs(total, pair[i]);
  }
  tk_avx512_transpose(pair);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) _mm512_store_si512(tile + 64 * i, pair[i]);
  return total;
}

/* One column tile: scores [count, 16] -> p tiles [16 columns][32 keys] in the same place. A tile is written over
 * scores already read: it is half as long. */
static TK_AMX void softmax_tile(char *scores, int32_t count, float scale, float *max, float *sum, float *factor) {
  const __m512 old = _mm512_load_ps(max);
  const __m512 now = tk_avx512_block_max((const float *)(const void *)scores, 16, count, scale, old);
  const __m512 from = tk_avx512_softmax_origin(now), by = tk_avx512_exp(_mm512_sub_ps(old, from));
  __m512 total = _mm512_setzero_ps();
  char *tile = scores;
  int32_t k = 0;
  for (; k + key_step <= count; k += key_step, scores += 2 * TK_TILE_BYTES, tile += TK_TILE_BYTES) {
    total = softmax_step(1, scores, tile, key_step, scale, from, total);
  }
  if (k < count) total = softmax_step(0, scores, tile, count - k, scale, from, total);
  _mm512_store_ps(max, now);
  _mm512_store_ps(factor, by);
  _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(sum), by, total));
}

/* -- output --------------------------------------------------------------------------------------------- *
 * A unit is two column tiles (or one) x two dimension tiles; it rests in the workspace between blocks. */
TK_AMX_INLINE void output_step(const int tiles, const int opens, int first, const char *p, ptrdiff_t next_p,
                               const char *values, ptrdiff_t panel, const char *unit, const tk_waiting *before) {
  tk_tile_load(4, p, 64);
  tk_tile_load(6, values, 64);
  if (opens) tk_tile_begin(0, first, unit, before);
  tk_tile_multiply(0, 0, 4, 6);
  tk_tile_load(7, values + panel, 64);
  if (opens) tk_tile_begin(1, first, unit, before);
  tk_tile_multiply(0, 1, 4, 7);
  if (tiles == 2) tk_tile_load(5, p + next_p, 64);
  if (opens) tk_tile_begin(2, first, unit, before);
  if (tiles == 2) tk_tile_multiply(0, 2, 5, 6);
  if (opens) tk_tile_begin(3, first, unit, before);
  if (tiles == 2) tk_tile_multiply(0, 3, 5, 7);
}

TK_AMX_INLINE void output_unit(const int tiles, int first, const char *p, ptrdiff_t next_p, const char *values,
                               ptrdiff_t panel, int32_t steps, const char *unit, const tk_waiting *before) {
  output_step(tiles, 1, first, p, next_p, values, panel, unit, before);
  for (int32_t s = 1; s < steps; s++) {
    const ptrdiff_t at = (ptrdiff_t)s * TK_TILE_BYTES;
    output_step(tiles, 0, first, p + at, next_p, values + at, panel, unit, before);
  }
}

/* Where some maximum of the unit's 32 columns has grown: unit <- unit * factor. */
static TK_AMX void rescale(const float *factor, float *unit) {
  for (int32_t half = 0; half < 2; half++, unit += 2 * 16 * 16) {
    for (int32_t c = 0; c < 16; c++) {
      const __m512 by = _mm512_set1_ps(factor[16 * half + c]);
      float *left = unit + 16 * c, *right = left + 16 * 16;
      _mm512_store_ps(left, _mm512_mul_ps(_mm512_load_ps(left), by));
      _mm512_store_ps(right, _mm512_mul_ps(_mm512_load_ps(right), by));
    }
  }
}

static TK_AMX int has_grown(const float *factor) {
  const __m512 one = _mm512_set1_ps(1);
  return (_mm512_cmp_ps_mask(_mm512_load_ps(factor), one, _CMP_NEQ_UQ) |
          _mm512_cmp_ps_mask(_mm512_load_ps(factor + 16), one, _CMP_NEQ_UQ)) != 0;
}

static TK_AMX void output_block(int32_t columns, int32_t value_dim, int32_t count, int first, const workspace *w) {
  const int32_t steps = (int32_t)ceiling(count, key_step);
  const ptrdiff_t panel = panel_bytes(count);
  float *unit = w->output;
  tk_waiting before = {{NULL, NULL, NULL, NULL}, 64};
  for (int32_t c = 0; c < columns; c += 32) {
    const char *p = w->scores + c / 16 * 2 * panel;
    const int grown = !first && has_grown(w->factor + c);
    if (grown) rescale(w->factor + c, unit);
    for (int32_t e = 0; e < value_dim; e += 32, unit += 4 * 16 * 16) {
      const char *values = w->values + e / 16 * panel;
      char *at = (char *)unit;
      if (grown && e + 32 < value_dim) rescale(w->factor + c, unit + 4 * 16 * 16);
      if (columns - c > 16) {
        output_unit(2, first, p, 2 * panel, values, panel, steps, at, &before);
      } else {
        output_unit(1, first, p, 2 * panel, values, panel, steps, at, &before);
      }
      before = tk_waiting_unit(at);
    }
  }
  tk_tile_store_all(&before);
}

static TK_AMX __mmask16 live_elements(int32_t left) {
  return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
}

/* The units as rows: out [columns, value_dim]. */
static TK_AMX void write_output(int32_t columns, int32_t value_dim, const float *units, float *out) {
  const ptrdiff_t across = (ptrdiff_t)ceiling(value_dim, 32) * 4 * 16 * 16;
  for (int32_t c = 0; c < columns; c++, out += value_dim) {
    const float *row = units + c / 32 * across + c % 32 / 16 * (2 * 16 * 16) + c % 16 * 16;
    for (int32_t e = 0; e < value_dim; e += 32, row += 4 * 16 * 16) {
      _mm512_mask_storeu_ps(out + e, live_elements(value_dim - e), _mm512_load_ps(row));
      if (e + 16 < value_dim) {
        _mm512_mask_storeu_ps(out + e + 16, live_elements(value_dim - e - 16), _mm512_load_ps(row + 16 * 16));
      }
    }
  }
}

/* -- the chunk ------------------------------------------------------------------------------------------ */
static TK_AMX void attend_group(const char *packed, int32_t columns, int32_t key_dim, int32_t value_dim,
                                const void *const *key_rows, const void *const *value_rows, int32_t count,
                                float scale, float *out, const workspace *w) {
  const int32_t tiles = (int32_t)ceiling(columns, 16);
  fetch_first(key_rows, count, key_dim);
  if (key_rows[0] != value_rows[0]) fetch_first(value_rows, count, value_dim);
  for (int32_t c = 0; c < group; c++) {
    w->max[c] = -INFINITY;
    w->sum[c] = 0;
    w->factor[c] = 1;
  }
  for (int32_t begin = 0; begin < count; begin += key_block) {
    const int32_t block = count - begin < key_block ? count - begin : key_block;
    const ptrdiff_t panel = panel_bytes(block);
    score_block(packed, tiles, key_dim, value_dim, key_rows + begin, value_rows + begin, block, count - begin, w);
    for (int32_t t = 0; t < tiles; t++) {
      softmax_tile(w->scores + 2 * t * panel, block, scale, w->max + 16 * t, w->sum + 16 * t, w->factor + 16 * t);
    }
    output_block(columns, value_dim, block, begin == 0, w);
  }
  write_output(columns, value_dim, w->output, out);
}

TK_AMX void tk_amx_attend_chunk(int32_t type, const void *packed, int32_t columns, int32_t key_dim,
                                int32_t value_dim, const void *const *key_rows, const void *const *value_rows,
                                int32_t count, float scale, float *out, float *max, float *sum, void *scratch) {
  if (type == TK_F32) {
    tk_avx512_attend_chunk(type, packed, columns, key_dim, value_dim, key_rows, value_rows, count, scale, out, max,
                           sum, scratch);
    return;
  }
  const workspace w = divide(columns, count, key_dim, value_dim, (uintptr_t)scratch);
  for (int32_t c = 0; c < columns; c += group) {
    const int32_t n = columns - c < group ? columns - c : group;
    attend_group((const char *)packed + (ptrdiff_t)(c / 16) * (ptrdiff_t)ceiling(key_dim, depth) * TK_TILE_BYTES, n,
                 key_dim, value_dim, key_rows, value_rows, count, scale, out + (ptrdiff_t)c * value_dim, &w);
    memcpy(max + c, w.max, (size_t)n * sizeof(float));
    memcpy(sum + c, w.sum, (size_t)n * sizeof(float));
  }
}

void tk_amx_attend_join(float *out, float *max, float *sum, const float *out_b, const float *max_b,
                        const float *sum_b, int32_t columns, int32_t value_dim) {
  tk_avx512_attend_join(out, max, sum, out_b, max_b, sum_b, columns, value_dim);
}

float tk_amx_attend_row(int32_t type, const float *scores, const uint64_t *seen, int32_t count, float scale, float *max,
                        float *sum, void *p) {
  return tk_avx512_attend_row(type, scores, seen, count, scale, max, sum, p);
}
#endif
