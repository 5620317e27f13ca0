/* Attend entries of the avx512 table. TK_F32 is attend_float.h over sixteen lanes; this file owns TK_BF16, with
 * vdpbf16ps: 32 products of bfloat16 pairs into 16 float lanes.
 *
 * Scores: heads in lanes. The query is packed [panel of 64 columns][pair of dimensions][column][2]; a pair of a
 * key's elements is broadcast from the row where it lies: 6 keys x 4 vectors of columns in 24 accumulators, 10
 * loads to 24 products. Dimensions go in blocks of 192, so that a panel's block (24 KB) stays in L1 under all
 * keys; partial sums rest in the score buffer.
 * Softmax: vertical in lanes over a block of 192 keys with the running maximum of online softmax.
 * Output: values are interleaved by pairs of keys, 64 dimensions at a time ([pair of keys][dimension][2], 24 KB,
 * in L1); 6 columns x 4 vectors of dimensions, 10 loads to 24 products; the accumulators are loaded, rescaled
 * and stored once per block.
 * The rows of the next block are prefetched under the output products of this one: selected rows lie anywhere in
 * memory, where no hardware prefetcher can foresee them.
 * Up to 8 columns (grouped queries) have products of their own, with keys in lanes.
 *
 * p is rounded to bfloat16 and sum adds the rounded values (see attend_float.h for why). vdpbf16ps takes
 * subnormal operands and results as 0. Error bound of out / sum: 2^-8 of sum |p v| / sum p, from p's rounding. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>

#define TK_NAME(f) float_##f
#define TK_ENTRY static
#define TK_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define TK_LANES 16
#define TK_FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define TK_TILE_KEYS 6
#define TK_TILE_VECTORS 4
#define TK_TILE_COLUMNS 6
#define TK_TILE_VALUES 4
#include "../attend_float.h"
#include "softmax.h"
#include "transpose.h"

#define BLOCK 192     /* keys; a multiple of the 6 of a score tile and of the 2 of a pair */
#define PANEL 64      /* columns of a score panel, dimensions of a value panel            */
#define PAIR_BLOCK 96 /* pairs of dimensions                                              */

/* Scratch of one call. `all` is the number of columns padded to 16. */
typedef struct {
  float *scores;           /* [block, 64] of one panel                                        */
  uint32_t *p;             /* [pair of keys, all][2] bfloat16                              */
  uint16_t *values;        /* [pair of keys, 64][2] of one value panel                        */
  float *max, *sum, *factor; /* [all]                                                         */
  size_t bytes;
} bf16_workspace;

static bf16_workspace bf16_divide(int32_t columns, uintptr_t base) {
  const size_t row = (size_t)padded_columns(columns) * sizeof(float);
  bf16_workspace w;
  size_t at = 0;
  w.scores = (float *)(base + at), at += (size_t)BLOCK * PANEL * sizeof(float);
  w.p = (uint32_t *)(base + at), at += BLOCK / 2 * row;
  w.values = (uint16_t *)(base + at), at += (size_t)BLOCK * PANEL * sizeof(uint16_t);
  w.max = (float *)(base + at), at += row;
  w.sum = (float *)(base + at), at += row;
  w.factor = (float *)(base + at), at += row;
  w.bytes = at;
  return w;
}

size_t tk_avx512_attend_query_bytes(int32_t type, int32_t columns, int32_t key_dim) {
  if (type == TK_F32) return float_attend_query_bytes(type, columns, key_dim);
  return (size_t)padded_columns(columns) * (size_t)((key_dim + 1) / 2) * 4;
}

TK_TARGET void tk_avx512_attend_pack_query(int32_t type, const void *query, ptrdiff_t query_stride, int32_t columns,
                                 int32_t key_dim, void *packed) {
  if (type == TK_F32) {
    float_attend_pack_query(type, query, query_stride, columns, key_dim, packed);
    return;
  }
  const int32_t all = padded_columns(columns), pairs = (key_dim + 1) / 2;
  char *panel = packed;
  for (int32_t begin = 0; begin < all; begin += PANEL) {
    const int32_t width = all - begin < PANEL ? all - begin : PANEL;
    for (int32_t c = 0; c < width; c += 16) {
      const char *rows = (const char *)query + (begin + c) * query_stride;
      for (int32_t pair = 0; pair < pairs; pair += 16) {
        __m512i taken[16];
        tk_avx512_take_rows(rows + 4 * (ptrdiff_t)pair, query_stride, columns - begin - c, key_dim - 2 * pair, taken);
        tk_avx512_transpose(taken);
        for (int i = 0; i < 16 && pair + i < pairs; i++) {
          _mm512_store_si512(panel + ((ptrdiff_t)(pair + i) * width + c) * 4, taken[i]);
        }
      }
    }
    panel += (ptrdiff_t)pairs * width * 4;
  }
}

size_t tk_avx512_attend_scratch_bytes(int32_t type, int32_t columns, int32_t count, int32_t key_dim,
                                      int32_t value_dim) {
  if (type == TK_F32) return float_attend_scratch_bytes(type, columns, count, key_dim, value_dim);
  return bf16_divide(columns, 0).bytes;
}

/* -- rows on their way ---------------------------------------------------------------------------------- */
typedef struct {
  const void *const *rows;
  int32_t count, next, step; /* rows, first not yet asked for, rows per call */
  ptrdiff_t bytes;           /* of a row                                     */
} approach;

TK_INLINE void fetch_row(const void *row, ptrdiff_t bytes) {
  for (ptrdiff_t at = 0; at < bytes; at += 64) _mm_prefetch((const char *)row + at, _MM_HINT_T1);
  _mm_prefetch((const char *)row + bytes - 1, _MM_HINT_T1);
}

TK_INLINE void fetch_some(approach *a) {
  int32_t end = a->next + a->step;
  if (end > a->count) end = a->count;
  for (; a->next < end; a->next++) fetch_row(a->rows[a->next], a->bytes);
}

static approach approach_rows(const void *const *rows, int32_t count, int32_t elements, int32_t calls) {
  return (approach){rows, count, 0, calls > 0 ? (count + calls - 1) / calls : count, 2 * (ptrdiff_t)elements};
}

/* -- scores --------------------------------------------------------------------------------------------- */
TK_INLINE __m512bh key_pair(const char *row, ptrdiff_t pair) {
  int32_t bits;
  memcpy(&bits, row + pair * 4, sizeof bits);
  return (__m512bh)_mm512_set1_epi32(bits);
}

TK_INLINE __m512bh last_key(const char *row, ptrdiff_t pair) {
  uint16_t bits;
  memcpy(&bits, row + pair * 4, sizeof bits);
  return (__m512bh)_mm512_set1_epi32(bits);
}

/* scores [6, stride] (+)= six keys . one panel of `vectors` x 16 columns over the pairs [begin, end), and the
 * half pair at `end` when odd. */
TK_INLINE void score_tile_bf16(const int vectors, const char *panel, const char *const *row, ptrdiff_t begin,
                               ptrdiff_t end, int odd, float *scores) {
  __m512 sum[6][4];
  TK_UNROLL for (int k = 0; k < 6; k++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      sum[k][v] = begin == 0 ? _mm512_setzero_ps() : _mm512_load_ps(scores + k * PANEL + v * 16);
    }
  }
  for (ptrdiff_t pair = begin; pair < end; pair++) {
    __m512bh q[4];
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      q[v] = (__m512bh)_mm512_load_si512(panel + (pair * vectors + v) * 64);
    }
    TK_UNROLL for (int k = 0; k < 6; k++) {
      const __m512bh key = key_pair(row[k], pair);
      TK_UNROLL for (int v = 0; v < vectors; v++) sum[k][v] = _mm512_dpbf16_ps(sum[k][v], q[v], key);
    }
  }
  if (odd) {
    TK_UNROLL for (int k = 0; k < 6; k++) {
      const __m512bh key = last_key(row[k], end);
      TK_UNROLL for (int v = 0; v < vectors; v++) {
        const __m512bh q = (__m512bh)_mm512_load_si512(panel + (end * vectors + v) * 64);
        sum[k][v] = _mm512_dpbf16_ps(sum[k][v], q, key);
      }
    }
  }
  TK_UNROLL for (int k = 0; k < 6; k++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) _mm512_store_ps(scores + k * PANEL + v * 16, sum[k][v]);
  }
}

/* scores [count rounded up to 6, 64] of one panel; behind the last key its row is taken again, to be ignored.
 * `ahead`: rows to ask for on the first pass. */
TK_INLINE void score_panel_bf16(const int vectors, const char *panel, const void *const *rows, int32_t count,
                                int32_t key_dim, approach *ahead, float *scores) {
  const ptrdiff_t pairs = key_dim / 2;
  ptrdiff_t begin = 0;
  do {
    const ptrdiff_t end = pairs - begin > PAIR_BLOCK ? begin + PAIR_BLOCK : pairs;
    for (int32_t k = 0; k < count; k += 6) {
      const char *row[6];
      TK_UNROLL for (int i = 0; i < 6; i++) row[i] = rows[k + i < count ? k + i : count - 1];
      if (begin == 0) fetch_some(ahead);
      score_tile_bf16(vectors, panel, row, begin, end, end == pairs && key_dim % 2, scores + (ptrdiff_t)k * PANEL);
    }
    begin = end;
  } while (begin < pairs);
}

static TK_TARGET void score_panel_any(int32_t width, const char *panel, const void *const *rows, int32_t count,
                                      int32_t key_dim, approach *ahead, float *scores) {
  switch (width / 16) {
  case 1: score_panel_bf16(1, panel, rows, count, key_dim, ahead, scores); break;
  case 2: score_panel_bf16(2, panel, rows, count, key_dim, ahead, scores); break;
  case 3: score_panel_bf16(3, panel, rows, count, key_dim, ahead, scores); break;
  default: score_panel_bf16(4, panel, rows, count, key_dim, ahead, scores); break;
  }
}

/* -- softmax -------------------------------------------------------------------------------------------- *
 * One panel: scores [count, 64] -> p [pair of keys, all][2]; a missing second key of a pair gets p = 0.      */
static TK_TARGET void softmax_panel(const float *scores, int32_t count, float scale, int32_t begin, int32_t width,
                                    int32_t all, const bf16_workspace *w) {
  for (int32_t c = 0; c < width; c += 16) {
    const __m512 old = _mm512_load_ps(w->max + begin + c);
    const __m512 max = tk_avx512_block_max(scores + c, PANEL, count, scale, old);
    const __m512 from = tk_avx512_softmax_origin(max);
    const __m512 factor = tk_avx512_exp(_mm512_sub_ps(old, from));
    __m512 sum = _mm512_setzero_ps();
    for (int32_t k = 0; k < count; k += 2) {
      const __m512 x = _mm512_load_ps(scores + (ptrdiff_t)k * PANEL + c);
      const __m512 a = tk_avx512_softmax_weight(x, scale, from);
      __m512 b = _mm512_setzero_ps();
      if (k + 1 < count) {
        b = tk_avx512_softmax_weight(_mm512_load_ps(scores + (ptrdiff_t)(k + 1) * PANEL + c), scale, from);
      }
      const __m512i pair = tk_avx512_bf16_pairs(a, b);
      sum = tk_avx512_add_pairs(sum, pair);
      _mm512_store_si512(w->p + (ptrdiff_t)(k / 2) * all + begin + c, pair);
    }
    _mm512_store_ps(w->max + begin + c, max);
    _mm512_store_ps(w->factor + begin + c, factor);
    _mm512_store_ps(w->sum + begin + c, _mm512_fmadd_ps(_mm512_load_ps(w->sum + begin + c), factor, sum));
  }
}

/* -- output --------------------------------------------------------------------------------------------- *
 * values [pair of keys, 64][2]: elements [e, e + 64) of the rows, zeros beyond value_dim and behind the last. */
static TK_TARGET void interleave_values(const void *const *rows, int32_t count, int32_t e, int32_t value_dim,
                                        uint16_t *values) {
  const int32_t left = value_dim - e;
  const __mmask32 low = left >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
  const __mmask32 high = left >= 64 ? ~(__mmask32)0 : left <= 32 ? 0 : ((__mmask32)1 << (left - 32)) - 1;
  const __m512i first = tk_avx512_interleave_low(), second = tk_avx512_interleave_high();
  for (int32_t k = 0; k < count; k += 2, values += 2 * PANEL) {
    const uint16_t *a = (const uint16_t *)rows[k] + e;
    __m512i b0 = _mm512_setzero_si512(), b1 = b0;
    const __m512i a0 = _mm512_maskz_loadu_epi16(low, a), a1 = _mm512_maskz_loadu_epi16(high, a + 32);
    if (k + 1 < count) {
      const uint16_t *b = (const uint16_t *)rows[k + 1] + e;
      b0 = _mm512_maskz_loadu_epi16(low, b);
      b1 = _mm512_maskz_loadu_epi16(high, b + 32);
    }
    _mm512_store_si512(values, _mm512_permutex2var_epi16(a0, first, b0));
    _mm512_store_si512(values + 32, _mm512_permutex2var_epi16(a0, second, b0));
    _mm512_store_si512(values + 64, _mm512_permutex2var_epi16(a1, first, b1));
    _mm512_store_si512(values + 96, _mm512_permutex2var_epi16(a1, second, b1));
  }
}

/* out [columns, 64 of value_dim] <- out * factor + p . values. `left`: value elements that exist. */
TK_INLINE void output_tile_bf16(const int columns, const uint32_t *p, ptrdiff_t all, const uint16_t *values,
                                int32_t pairs, const float *factor, int first, int32_t left, float *out,
                                ptrdiff_t value_dim) {
  __m512 sum[6][4];
  __mmask16 live[4];
  TK_UNROLL for (int v = 0; v < 4; v++) {
    const int32_t n = left - v * 16;
    live[v] = (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
  }
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < 4; v++) {
      sum[c][v] = first ? _mm512_setzero_ps()
                        : _mm512_mul_ps(_mm512_maskz_loadu_ps(live[v], out + c * value_dim + v * 16),
                                        _mm512_set1_ps(factor[c]));
    }
  }
  for (int32_t k = 0; k < pairs; k++, values += 2 * PANEL, p += all) {
    __m512bh value[4];
    TK_UNROLL for (int v = 0; v < 4; v++) value[v] = (__m512bh)_mm512_load_si512(values + v * 32);
    TK_UNROLL for (int c = 0; c < columns; c++) {
      const __m512bh weight = (__m512bh)_mm512_set1_epi32((int32_t)p[c]);
      TK_UNROLL for (int v = 0; v < 4; v++) sum[c][v] = _mm512_dpbf16_ps(sum[c][v], value[v], weight);
    }
  }
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < 4; v++) _mm512_mask_storeu_ps(out + c * value_dim + v * 16, live[v], sum[c][v]);
  }
}

static TK_TARGET void output_panel_bf16(int32_t columns, int32_t all, int32_t e, int32_t value_dim, int32_t pairs,
                                        int first, const bf16_workspace *w, approach *ahead, float *out) {
  const int32_t left = value_dim - e;
  int32_t c = 0;
#define TILE(n) \
  output_tile_bf16(n, w->p + c, all, w->values, pairs, w->factor + c, first, left, \
                   out + (ptrdiff_t)c * value_dim + e, value_dim)
  for (; c + 6 <= columns; c += 6) {
    fetch_some(ahead);
    TILE(6);
  }
  fetch_some(ahead);
  switch (columns - c) {
  case 1: TILE(1); break;
  case 2: TILE(2); break;
  case 3: TILE(3); break;
  case 4: TILE(4); break;
  case 5: TILE(5); break;
  default: break;
  }
#undef TILE
}

/* -- few columns ---------------------------------------------------------------------------------------- *
 * A key head with up to 8 query heads would leave most lanes of the above empty. Here keys are in lanes: 48 rows are
 * turned, 64 pairs of dimensions at a time, and a column's pair is broadcast. Every sum has the same terms in the
 * same order, so a column has the same bits alone and among 128.                                              */
enum { FEW = 8, FEW_KEYS = 48, FEW_PAIRS = 64 };

/* turned [pairs][48 keys][2] <- pairs [first, first + pairs) of the rows; behind the last key its row again. On the
 * way it asks for some of what `keys` and `values` will need. */
static TK_TARGET void few_turn(const void *const *rows, int32_t count, int32_t first, int32_t pairs, int32_t key_dim,
                               char *turned, approach *keys, approach *values) {
  for (int32_t key = 0; key < count; key += 16) {
    for (int32_t pair = 0; pair < pairs; pair += 16) {
      const int32_t left = key_dim - 2 * (first + pair);
      const __mmask32 live = left >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
      __m512i r[16];
      fetch_some(keys), fetch_some(values);
      TK_UNROLL for (int i = 0; i < 16; i++) {
        const char *row = rows[key + i < count ? key + i : count - 1];
        r[i] = _mm512_maskz_loadu_epi16(live, row + 4 * (ptrdiff_t)(first + pair));
      }
      tk_avx512_transpose(r);
      char *to = turned + ((ptrdiff_t)pair * FEW_KEYS + key) * 4;
      TK_UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to + (ptrdiff_t)i * FEW_KEYS * 4, r[i]);
    }
  }
}

/* scores [columns, BLOCK] (+)= 48 turned keys . columns, over the pairs [first, first + pairs). */
TK_INLINE void few_scores(const int columns, const char *panel, const char *turned, int32_t first, int32_t pairs,
                          float *scores) {
  __m512 sum[FEW][3];
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < 3; v++) {
      sum[c][v] = first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(scores + c * BLOCK + v * 16);
    }
  }
  panel += (ptrdiff_t)first * 64;
  for (int32_t pair = 0; pair < pairs; pair++, panel += 64, turned += FEW_KEYS * 4) {
    __m512bh key[3];
    TK_UNROLL for (int v = 0; v < 3; v++) key[v] = (__m512bh)_mm512_load_si512(turned + v * 64);
    TK_UNROLL for (int c = 0; c < columns; c++) {
      const __m512bh q = key_pair(panel, c);
      TK_UNROLL for (int v = 0; v < 3; v++) sum[c][v] = _mm512_dpbf16_ps(sum[c][v], q, key[v]);
    }
  }
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < 3; v++) _mm512_store_ps(scores + c * BLOCK + v * 16, sum[c][v]);
  }
}

/* out [columns, vectors x 16 of value_dim] <- out * factor + p . values, read where the rows lie. */
TK_INLINE void few_output(const int columns, const int vectors, const uint32_t *p, const void *const *rows,
                          int32_t count, const float *factor, int first, int32_t e, int32_t left, float *out,
                          ptrdiff_t value_dim, approach *ahead) {
  __m512 sum[FEW][4];
  __mmask16 live[4];
  __mmask32 wide[2];
  const __m512i low = tk_avx512_interleave_low(), high = tk_avx512_interleave_high();
  TK_UNROLL for (int v = 0; v < vectors; v++) {
    const int32_t n = left - v * 16, m = left - v * 32;
    live[v] = (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
    if (v < 2) wide[v] = m >= 32 ? ~(__mmask32)0 : m <= 0 ? 0 : ((__mmask32)1 << m) - 1;
  }
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      sum[c][v] = first ? _mm512_setzero_ps()
                        : _mm512_mul_ps(_mm512_maskz_loadu_ps(live[v], out + c * value_dim + v * 16),
                                        _mm512_set1_ps(factor[c]));
    }
  }
  for (int32_t k = 0; k < count; k += 2, p += 16) {
    const uint16_t *a = (const uint16_t *)rows[k] + e, *b = k + 1 < count ? (const uint16_t *)rows[k + 1] + e : a;
    const __mmask32 second = k + 1 < count ? ~(__mmask32)0 : 0;
    __m512bh value[4];
    fetch_some(ahead);
    TK_UNROLL for (int v = 0; v < vectors; v += 2) {
      const __m512i x = _mm512_maskz_loadu_epi16(wide[v / 2], a + v * 16);
      const __m512i y = _mm512_maskz_loadu_epi16(wide[v / 2] & second, b + v * 16);
      value[v] = (__m512bh)_mm512_permutex2var_epi16(x, low, y);
      value[v + 1] = (__m512bh)_mm512_permutex2var_epi16(x, high, y);
    }
    TK_UNROLL for (int c = 0; c < columns; c++) {
      const __m512bh weight = (__m512bh)_mm512_set1_epi32((int32_t)p[c]);
      TK_UNROLL for (int v = 0; v < vectors; v++) sum[c][v] = _mm512_dpbf16_ps(sum[c][v], value[v], weight);
    }
  }
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      _mm512_mask_storeu_ps(out + c * value_dim + v * 16, live[v], sum[c][v]);
    }
  }
}

/* Lanes of 16 keys from `key` on that are among `count`. */
TK_INLINE __mmask16 live_keys(int32_t key, int32_t count) {
  const int32_t left = count - key;
  return (__mmask16)(left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
}

/* scores [columns, BLOCK] -> p [pair of keys, 16][2], as softmax_panel; behind the last key p = 0. */
TK_INLINE void few_softmax(const int columns, const float *scores, int32_t count, float scale,
                           const bf16_workspace *w) {
  float origin[16];
  const __m512 by = _mm512_set1_ps(scale), old = _mm512_load_ps(w->max);
  for (int32_t c = 0; c < columns; c++) {
    __m512 max = _mm512_set1_ps(w->max[c]);
    for (int32_t k = 0; k < count; k += 16) {
      const __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + c * BLOCK + k), by);
      max = _mm512_mask_max_ps(max, live_keys(k, count), x, max);
    }
    w->max[c] = _mm512_reduce_max_ps(max);
  }
  const __m512 from = tk_avx512_softmax_origin(_mm512_load_ps(w->max));
  const __m512 factor = tk_avx512_exp(_mm512_sub_ps(old, from));
  _mm512_storeu_ps(origin, from);
  __m512 sum = _mm512_setzero_ps();
  for (int32_t k = 0; k < count; k += 32) {
    __m512i r[16];
    TK_UNROLL for (int c = columns; c < 16; c++) r[c] = _mm512_setzero_si512();
    TK_UNROLL for (int c = 0; c < columns; c++) {
      const __m512 mine = _mm512_set1_ps(origin[c]);
      const __m512 a = tk_avx512_softmax_weight(_mm512_load_ps(scores + c * BLOCK + k), scale, mine);
      const __m512 b = tk_avx512_softmax_weight(_mm512_load_ps(scores + c * BLOCK + k + 16), scale, mine);
      r[c] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_mov_ps(live_keys(k + 16, count), b),
                                          _mm512_maskz_mov_ps(live_keys(k, count), a));
    }
    tk_avx512_transpose(r);
    TK_UNROLL for (int i = 0; i < 16; i++) {
      sum = tk_avx512_add_pairs(sum, r[i]);
      _mm512_store_si512(w->p + (ptrdiff_t)(k / 2 + i) * 16, r[i]);
    }
  }
  _mm512_store_ps(w->factor, factor);
  _mm512_store_ps(w->sum, _mm512_fmadd_ps(_mm512_load_ps(w->sum), factor, sum));
}

/* All three for each number of columns: up to 4 take 64 dimensions of the values at a time, others 32. */
#define FEW_OF(n, vectors)                                                                                   \
  static TK_TARGET void few_scores_##n(const char *panel, const char *turned, int32_t first, int32_t pairs,  \
                                       float *scores) {                                                      \
    few_scores(n, panel, turned, first, pairs, scores);                                                      \
  }                                                                                                          \
  static TK_TARGET void few_softmax_##n(const float *scores, int32_t count, float scale,                    \
                                        const bf16_workspace *w) {                                           \
    few_softmax(n, scores, count, scale, w);                                                                 \
  }                                                                                                          \
  static TK_TARGET void few_output_##n(const uint32_t *p, const void *const *rows, int32_t count,            \
                                       const float *factor, int first, float *out, int32_t value_dim,        \
                                       approach *ahead) {                                                    \
    for (int32_t e = 0; e < value_dim; e += vectors * 16) {                                                  \
      few_output(n, vectors, p, rows, count, factor, first, e, value_dim - e, out + e, value_dim, ahead);    \
    }                                                                                                        \
  }
FEW_OF(1, 4)
FEW_OF(2, 4)
FEW_OF(3, 4)
FEW_OF(4, 4)
FEW_OF(5, 2)
FEW_OF(6, 2)
FEW_OF(7, 2)
FEW_OF(8, 2)

static const struct {
  void (*scores)(const char *, const char *, int32_t, int32_t, float *);
  void (*softmax)(const float *, int32_t, float, const bf16_workspace *);
  void (*output)(const uint32_t *, const void *const *, int32_t, const float *, int, float *, int32_t, approach *);
} few_of[FEW + 1] = {
#define FEW_ENTRY(n) [n] = {few_scores_##n, few_softmax_##n, few_output_##n}
    FEW_ENTRY(1), FEW_ENTRY(2), FEW_ENTRY(3), FEW_ENTRY(4), FEW_ENTRY(5), FEW_ENTRY(6), FEW_ENTRY(7), FEW_ENTRY(8),
};

/* Rows at equal distances, as far as three of them tell: memory gives those faster when they are asked for a few at a
 * time, gathered ones in bursts (docs/kernels/attend.md). */
static int evenly_spaced(const void *const *rows, int32_t count) {
  const uintptr_t first = (uintptr_t)rows[0], last = (uintptr_t)rows[count - 1];
  return count > 2 && last - first == ((uintptr_t)rows[1] - first) * (uintptr_t)(count - 1);
}

static TK_TARGET void ask(approach *a, int32_t rows) {
  a->step = rows;
  fetch_some(a);
  a->step = 0;
}

static TK_TARGET void few_chunk(const char *packed, int32_t columns, int32_t key_dim, int32_t value_dim,
                                const void *const *key_rows, const void *const *value_rows, int32_t count,
                                float scale, float *out, const bf16_workspace *w) {
  const int32_t pairs = (key_dim + 1) / 2;
  char *turned = (char *)(w->scores + FEW * BLOCK);
  approach keys = approach_rows(key_rows, count, key_dim, 0);
  approach values = approach_rows(value_rows, value_rows == key_rows ? 0 : count, value_dim, 0);
  const int together = evenly_spaced(key_rows, count);
  ask(&keys, FEW_KEYS);
  for (int32_t begin = 0; begin < count; begin += BLOCK) {
    const int32_t block = count - begin < BLOCK ? count - begin : BLOCK;
    keys.step = together ? (begin == 0 ? 8 : 4) : 0;
    values.step = together && begin == 0 ? 4 : 0;
    for (int32_t k = 0; k < block; k += FEW_KEYS) {
      const int32_t group = block - k < FEW_KEYS ? block - k : FEW_KEYS;
      if (!together) ask(&keys, FEW_KEYS), ask(&values, FEW_KEYS);
      for (int32_t first = 0; first < pairs; first += FEW_PAIRS) {
        const int32_t here = pairs - first < FEW_PAIRS ? pairs - first : FEW_PAIRS;
        few_turn(key_rows + begin + k, group, first, here, key_dim, turned, &keys, &values);
        few_of[columns].scores(packed, turned, first, here, w->scores + k);
      }
    }
    few_of[columns].softmax(w->scores, block, scale, w);
    values.step = together ? 1 : 0;
    few_of[columns].output(w->p, value_rows + begin, block, w->factor, begin == 0, out, value_dim, &values);
  }
}

/* -- the chunk ------------------------------------------------------------------------------------------ */
static TK_TARGET void bf16_chunk(const char *packed, int32_t columns, int32_t key_dim, int32_t value_dim,
                                 const void *const *key_rows, const void *const *value_rows, int32_t count,
                                 float scale, float *out, const bf16_workspace *w) {
  const int32_t all = padded_columns(columns);
  const int32_t tiles = (columns / 6 + 1) * ((value_dim + PANEL - 1) / PANEL);
  for (int32_t begin = 0; begin < count; begin += BLOCK) {
    const int32_t block = count - begin < BLOCK ? count - begin : BLOCK;
    const int32_t next = count - begin - block < BLOCK ? count - begin - block : BLOCK;
    /* The first block has nobody before it to ask for its rows: two tiles ahead of the scores must do. */
    approach none = approach_rows(NULL, 0, 0, 1), ahead = none;
    if (begin == 0) {
      ahead = approach_rows(key_rows, block, key_dim, 0);
      ahead.step = 12;
      fetch_some(&ahead);
      ahead.step = 6;
    }
    for (int32_t c = 0; c < all; c += PANEL) {
      const int32_t width = all - c < PANEL ? all - c : PANEL;
      score_panel_any(width, packed + (ptrdiff_t)c * ((key_dim + 1) / 2) * 4, key_rows + begin, block, key_dim,
                      &ahead, w->scores);
      softmax_panel(w->scores, block, scale, c, width, all, w);
      ahead = none;
    }
    approach keys = approach_rows(key_rows + begin + block, next, key_dim, tiles);
    for (int32_t e = 0; e < value_dim; e += PANEL) {
      interleave_values(value_rows + begin, block, e, value_dim, w->values);
      output_panel_bf16(columns, all, e, value_dim, (block + 1) / 2, begin == 0, w, &keys, out);
    }
  }
}

TK_TARGET void tk_avx512_attend_chunk(int32_t type, const void *packed, int32_t columns, int32_t key_dim,
                                      int32_t value_dim, const void *const *key_rows,
                                      const void *const *value_rows, int32_t count, float scale, float *out,
                                      float *max, float *sum, void *scratch) {
  if (type == TK_F32) {
    float_attend_chunk(type, packed, columns, key_dim, value_dim, key_rows, value_rows, count, scale, out, max,
                       sum, scratch);
    return;
  }
  const bf16_workspace w = bf16_divide(columns, (uintptr_t)scratch);
  for (int32_t c = 0; c < padded_columns(columns); c++) {
    w.max[c] = -INFINITY;
    w.sum[c] = 0;
  }
  (columns <= FEW ? few_chunk : bf16_chunk)(packed, columns, key_dim, value_dim, key_rows, value_rows, count, scale,
                                            out, &w);
  memcpy(max, w.max, (size_t)columns * sizeof(float));
  memcpy(sum, w.sum, (size_t)columns * sizeof(float));
}

/* -- a row, block by block ------------------------------------------------------------------------------ */
/* Which of keys i ..< i + 32 the row sees. */
TK_INLINE __mmask32 seen_of(const uint64_t *seen, int32_t count, int32_t i) {
  const __mmask32 all = count - i >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (count - i)) - 1;
  return seen != NULL ? all & (__mmask32)(seen[i / 64] >> i % 64) : all;
}

static TK_TARGET float row_bf16(const float *scores, const uint64_t *seen, int32_t count, float scale, float *max,
                                float *sum, uint16_t *p) {
  const __m512 by = _mm512_set1_ps(scale), old = _mm512_set1_ps(*max);
  __m512 a = old, b = old;
  for (int32_t i = 0; i < count; i += 32) {
    const __mmask32 live = seen_of(seen, count, i);
    const __mmask16 low = (__mmask16)live, high = (__mmask16)(live >> 16);
    a = _mm512_mask_max_ps(a, low, _mm512_mul_ps(_mm512_maskz_loadu_ps(low, scores + i), by), a);
    b = _mm512_mask_max_ps(b, high, _mm512_mul_ps(_mm512_maskz_loadu_ps(high, scores + i + 16), by), b);
  }
  const __m512 now = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(a, b)));
  const __m512 from = tk_avx512_softmax_origin(now);
  __m512 total = _mm512_setzero_ps();
  for (int32_t i = 0; i < count; i += 32) {
    const __mmask32 live = seen_of(seen, count, i);
    const __m512 x = tk_avx512_softmax_weight(_mm512_maskz_loadu_ps((__mmask16)live, scores + i), scale, from);
    const __m512 y =
        tk_avx512_softmax_weight(_mm512_maskz_loadu_ps((__mmask16)(live >> 16), scores + i + 16), scale, from);
    const __m512i pair = (__m512i)_mm512_maskz_cvtne2ps_pbh(live, y, x);
    total = tk_avx512_add_pairs(total, pair);
    _mm512_mask_storeu_epi16(p + i, count - i >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (count - i)) - 1, pair);
  }
  const float factor = _mm512_cvtss_f32(tk_avx512_exp(_mm512_sub_ps(old, from)));
  *max = _mm512_cvtss_f32(now);
  *sum = *sum * factor + _mm512_reduce_add_ps(total);
  return factor;
}

TK_TARGET float tk_avx512_attend_row(int32_t type, const float *scores, const uint64_t *seen, int32_t count,
                                     float scale, float *max, float *sum, void *p) {
  if (type == TK_F32) return float_attend_row(type, scores, seen, count, scale, max, sum, p);
  return row_bf16(scores, seen, count, scale, max, sum, p);
}

TK_TARGET void tk_avx512_attend_join(float *out, float *max, float *sum, const float *out_b, const float *max_b,
                                     const float *sum_b, int32_t columns, int32_t value_dim) {
  float_attend_join(out, max, sum, out_b, max_b, sum_b, columns, value_dim);
}
#endif
