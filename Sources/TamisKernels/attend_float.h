/* Attention over one chunk of keys in float arithmetic, heads in lanes: the one body behind the attend entries
 * of every instruction set without bfloat16 products (and of TK_F32 everywhere). It owns the order of the sums;
 * the including attend.c owns the vector width, the instructions and the tile sizes, by defining first
 *
 *   TK_NAME(f)        the name of entry f, tk_<isa>_f (or a prefix of its own)
 *   TK_ENTRY          what an entry's definition starts with (static, or nothing)
 *   TK_TARGET         the function attribute, if any
 *   TK_LANES          floats in a vector
 *   TK_FMA(a, b, c)   a * b + c over vectors
 *   TK_TILE_KEYS, TK_TILE_VECTORS       score tile: keys x vectors of columns held in registers
 *   TK_TILE_COLUMNS, TK_TILE_VALUES     output tile: columns x vectors of value elements held in registers
 *
 * The chunk is walked in blocks of 64 keys with the running maximum of "online softmax": a block's scores stay
 * in the nearest caches, and a key is widened once for all columns. Everything a column's bits depend on - the
 * blocks, the order of dimensions and of keys - is fixed; tiles only group independent columns.
 *
 * bfloat16 rows are widened, exactly, into scratch. p is rounded to the operand type, and sum adds the rounded
 * values: the quotient out / sum is then a true weighted mean of the values, which measured 1.0 to 2.5 times
 * closer to the exact result than with unrounded sums (the gain grows with the mean of the values).
 *
 * A NaN score makes its own column NaN; max passes over it. When every score is -infinity, p and sum are 0.  */
#ifndef TAMIS_ATTEND_FLOAT_H
#define TAMIS_ATTEND_FLOAT_H
#include "internal.h"

#include <math.h>
#include <string.h>

#define TK_BLOCK_KEYS 64
#if defined(__clang__)
#define TK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TK_UNROLL _Pragma("GCC unroll 16")
#endif
#define TK_INLINE static inline __attribute__((always_inline)) TK_TARGET

typedef float vf __attribute__((vector_size(TK_LANES * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(TK_LANES * 4), may_alias));
typedef float vf_anywhere __attribute__((vector_size(TK_LANES * 4), aligned(1), may_alias));
typedef uint16_t vh __attribute__((vector_size(TK_LANES * 2), may_alias));
typedef uint16_t vh_anywhere __attribute__((vector_size(TK_LANES * 2), aligned(1), may_alias));

/* Scratch of one call; every part starts on 64 bytes. */
typedef struct {
  const float **keys, **values; /* [block]: rows of the block as float                   */
  float *wide_keys;             /* [block, key_dim], bfloat16 only                       */
  float *wide_values;           /* [block, value_dim], bfloat16 only                     */
  float *p;                     /* [block, columns padded to lanes]: scores, then p      */
  float *max, *sum, *factor;    /* [columns padded to lanes]; factor rescales out        */
  size_t bytes;
} workspace;

static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int32_t padded_columns(int32_t columns) { return (columns + TK_LANES - 1) / TK_LANES * TK_LANES; }

static workspace divide(int32_t type, int32_t columns, int32_t key_dim, int32_t value_dim, uintptr_t base) {
  const size_t wide = type == TK_BF16 ? TK_BLOCK_KEYS * sizeof(float) : 0;
  const size_t row = padded((size_t)padded_columns(columns) * sizeof(float));
  const size_t table = padded(TK_BLOCK_KEYS * sizeof(float *));
  workspace w;
  size_t at = 0;
  w.keys = (const float **)(base + at), at += table;
  w.values = (const float **)(base + at), at += table;
  w.wide_keys = (float *)(base + at), at += padded(wide * (size_t)key_dim);
  w.wide_values = (float *)(base + at), at += padded(wide * (size_t)value_dim);
  w.p = (float *)(base + at), at += TK_BLOCK_KEYS * row;
  w.max = (float *)(base + at), at += row;
  w.sum = (float *)(base + at), at += row;
  w.factor = (float *)(base + at), at += row;
  w.bytes = at;
  return w;
}

TK_INLINE float widened(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

#include "exponential.h"

TK_INLINE vf larger(vf x, vf or_else) { return chosen((vi)(x > or_else), x, or_else); }

TK_INLINE vf rounded_to_bf16(vf x) {
  const vi bits = (vi)x;
  const vi even = bits + 0x7fff + ((bits >> 16) & 1);
  return chosen((vi)(x == x), (vf)(even & (int32_t)0xffff0000), x);
}

/* -- query ---------------------------------------------------------------------------------------------- *
 * Panels of TK_TILE_VECTORS vectors of columns: [panel][key_dim][columns of the panel], zeros behind the last
 * column. The last panel may be narrower. */
TK_ENTRY size_t TK_NAME(attend_query_bytes)(int32_t type, int32_t columns, int32_t key_dim) {
  (void)type;
  return padded((size_t)padded_columns(columns) * (size_t)key_dim * sizeof(float));
}

TK_ENTRY void TK_NAME(attend_pack_query)(int32_t type, const void *query, ptrdiff_t query_stride, int32_t columns,
                                int32_t key_dim, void *packed) {
  const int32_t full = TK_TILE_VECTORS * TK_LANES, all = padded_columns(columns);
  float *panel = packed;
  for (int32_t begin = 0; begin < all; begin += full) {
    const int32_t width = all - begin < full ? all - begin : full;
    for (int32_t c = 0; c < width; c++) {
      const char *row = (const char *)query + (begin + c) * query_stride;
      for (int32_t d = 0; d < key_dim; d++) {
        float x = 0;
        if (begin + c < columns) {
          if (type == TK_BF16) {
            uint16_t narrow;
            memcpy(&narrow, row + d * (ptrdiff_t)sizeof narrow, sizeof narrow);
            const uint32_t bits = (uint32_t)narrow << 16;
            memcpy(&x, &bits, sizeof x);
          } else {
            memcpy(&x, row + d * (ptrdiff_t)sizeof x, sizeof x);
          }
        }
        panel[(ptrdiff_t)d * width + c] = x;
      }
    }
    panel += (ptrdiff_t)key_dim * width;
  }
}

TK_ENTRY size_t TK_NAME(attend_scratch_bytes)(int32_t type, int32_t columns, int32_t count, int32_t key_dim,
                                     int32_t value_dim) {
  (void)count;
  return divide(type, columns, key_dim, value_dim, 0).bytes;
}

/* -- one block ------------------------------------------------------------------------------------------ */
static TK_TARGET void widen_row(const void *row, int32_t n, float *wide) {
  const char *x = row;
  int32_t i = 0;
  for (; i + TK_LANES <= n; i += TK_LANES) {
    const vh narrow = *(const vh_anywhere *)(const void *)(x + 2 * (ptrdiff_t)i);
    *(vf_anywhere *)(wide + i) = (vf)(__builtin_convertvector(narrow, vi) << 16);
  }
  for (; i < n; i++) {
    uint16_t narrow;
    memcpy(&narrow, x + 2 * (ptrdiff_t)i, sizeof narrow);
    wide[i] = widened(narrow);
  }
}

/* The block's rows as float rows: where they lie, or widened. */
static TK_TARGET void take_rows(int32_t type, const void *const *rows, int32_t count, int32_t dim, float *wide,
                                const float **taken) {
  for (int32_t i = 0; i < count; i++) {
    if (type == TK_BF16) {
      widen_row(rows[i], dim, wide + (ptrdiff_t)i * dim);
      taken[i] = wide + (ptrdiff_t)i * dim;
    } else {
      taken[i] = rows[i];
    }
  }
}

/* scores [keys, stride] of `keys` keys against `vectors` vectors of columns of one panel. */
TK_INLINE void score_tile(const int keys, const int vectors, const float *panel, const float *const *rows,
                          int32_t key_dim, float scale, float *scores, ptrdiff_t stride) {
  vf sum[TK_TILE_KEYS][TK_TILE_VECTORS];
  const char *row[TK_TILE_KEYS];
  TK_UNROLL for (int k = 0; k < keys; k++) {
    row[k] = (const char *)rows[k];
    TK_UNROLL for (int v = 0; v < vectors; v++) sum[k][v] = (vf){0};
  }
  for (int32_t d = 0; d < key_dim; d++) {
    vf q[TK_TILE_VECTORS];
    TK_UNROLL for (int v = 0; v < vectors; v++) q[v] = *(const vf *)(panel + ((ptrdiff_t)d * vectors + v) * TK_LANES);
    TK_UNROLL for (int k = 0; k < keys; k++) {
      float element;
      memcpy(&element, row[k] + d * (ptrdiff_t)sizeof element, sizeof element);
      const vf key = broadcast(element);
      TK_UNROLL for (int v = 0; v < vectors; v++) sum[k][v] = TK_FMA(key, q[v], sum[k][v]);
    }
  }
  TK_UNROLL for (int k = 0; k < keys; k++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) *(vf *)(scores + k * stride + v * TK_LANES) = sum[k][v] * scale;
  }
}

TK_INLINE void score_panel(const int vectors, const float *panel, const float *const *rows, int32_t count,
                           int32_t key_dim, float scale, float *scores, ptrdiff_t stride) {
  int32_t k = 0;
  for (; k + TK_TILE_KEYS <= count; k += TK_TILE_KEYS) {
    score_tile(TK_TILE_KEYS, vectors, panel, rows + k, key_dim, scale, scores + k * stride, stride);
  }
  for (; k < count; k++) score_tile(1, vectors, panel, rows + k, key_dim, scale, scores + k * stride, stride);
}

static TK_TARGET void score_block(const float *packed, int32_t columns, int32_t key_dim, const float *const *rows,
                                  int32_t count, float scale, float *scores) {
  const int32_t all = padded_columns(columns), full = TK_TILE_VECTORS * TK_LANES;
  int32_t c = 0;
  for (; c + full <= all; c += full, packed += (ptrdiff_t)full * key_dim) {
    score_panel(TK_TILE_VECTORS, packed, rows, count, key_dim, scale, scores + c, all);
  }
  switch ((all - c) / TK_LANES) {
#if TK_TILE_VECTORS > 1
  case 1: score_panel(1, packed, rows, count, key_dim, scale, scores + c, all); break;
#endif
#if TK_TILE_VECTORS > 2
  case 2: score_panel(2, packed, rows, count, key_dim, scale, scores + c, all); break;
#endif
#if TK_TILE_VECTORS > 3
  case 3: score_panel(3, packed, rows, count, key_dim, scale, scores + c, all); break;
#endif
  default: break;
  }
}

/* Scores become p in place; max, sum and factor (exp(old maximum - new maximum)) move on. */
static TK_TARGET void softmax_block(int32_t type, int32_t all, int32_t count, const workspace *w) {
  for (int32_t c = 0; c < all; c += TK_LANES) {
    const vf old = *(vf *)(w->max + c);
    vf max = old;
    for (int32_t k = 0; k < count; k++) max = larger(*(vf *)(w->p + (ptrdiff_t)k * all + c), max);
    const vf from = chosen((vi)(max == -INFINITY), (vf){0}, max); /* nothing seen: exp(-inf - 0) = 0 */
    const vf factor = exponential(old - from);
    vf sum = {0};
    for (int32_t k = 0; k < count; k++) {
      vf *at = (vf *)(w->p + (ptrdiff_t)k * all + c);
      vf p = exponential(*at - from);
      if (type == TK_BF16) p = rounded_to_bf16(p);
      sum += p;
      *at = p;
    }
    *(vf *)(w->max + c) = max;
    *(vf *)(w->factor + c) = factor;
    *(vf *)(w->sum + c) = TK_FMA(*(vf *)(w->sum + c), factor, sum);
  }
}

/* out [columns, value_dim] <- out * factor + p . values for `columns` columns and `vectors` vectors. */
TK_INLINE void output_tile(const int columns, const int vectors, const float *p, ptrdiff_t stride,
                           const float *const *values, ptrdiff_t element, int32_t count, const float *factor,
                           int first, float *out, ptrdiff_t value_dim) {
  vf sum[TK_TILE_COLUMNS][TK_TILE_VALUES];
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      sum[c][v] = (vf){0};
      if (!first) sum[c][v] = *(vf_anywhere *)(out + c * value_dim + v * TK_LANES) * factor[c];
    }
  }
  for (int32_t k = 0; k < count; k++) {
    vf value[TK_TILE_VALUES];
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      value[v] = *(const vf_anywhere *)(const void *)((const char *)values[k] + 4 * (element + v * TK_LANES));
    }
    TK_UNROLL for (int c = 0; c < columns; c++) {
      const vf weight = broadcast(p[k * stride + c]);
      TK_UNROLL for (int v = 0; v < vectors; v++) sum[c][v] = TK_FMA(weight, value[v], sum[c][v]);
    }
  }
  TK_UNROLL for (int c = 0; c < columns; c++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) *(vf_anywhere *)(out + c * value_dim + v * TK_LANES) = sum[c][v];
  }
}

TK_INLINE void output_panel(const int vectors, int32_t columns, ptrdiff_t stride, const workspace *w,
                            ptrdiff_t element, int32_t count, int first, float *out, ptrdiff_t value_dim) {
  int32_t c = 0;
  for (; c + TK_TILE_COLUMNS <= columns; c += TK_TILE_COLUMNS) {
    output_tile(TK_TILE_COLUMNS, vectors, w->p + c, stride, w->values, element, count, w->factor + c, first,
                out + c * value_dim, value_dim);
  }
  for (; c < columns; c++) {
    output_tile(1, vectors, w->p + c, stride, w->values, element, count, w->factor + c, first,
                out + c * value_dim, value_dim);
  }
}

static TK_TARGET void output_block(int32_t columns, int32_t all, int32_t value_dim, int32_t count, int first,
                                   const workspace *w, float *out) {
  int32_t e = 0;
  for (; e + TK_TILE_VALUES * TK_LANES <= value_dim; e += TK_TILE_VALUES * TK_LANES) {
    output_panel(TK_TILE_VALUES, columns, all, w, e, count, first, out + e, value_dim);
  }
  for (; e + TK_LANES <= value_dim; e += TK_LANES) {
    output_panel(1, columns, all, w, e, count, first, out + e, value_dim);
  }
  for (; e < value_dim; e++) {
    for (int32_t c = 0; c < columns; c++) {
      float *y = out + (ptrdiff_t)c * value_dim + e, sum = first ? 0 : *y * w->factor[c];
      for (int32_t k = 0; k < count; k++) {
        float value;
        memcpy(&value, (const char *)w->values[k] + 4 * (ptrdiff_t)e, sizeof value);
        sum += w->p[(ptrdiff_t)k * all + c] * value;
      }
      *y = sum;
    }
  }
}

TK_ENTRY TK_TARGET void TK_NAME(attend_chunk)(int32_t type, const void *packed, int32_t columns, int32_t key_dim,
                                     int32_t value_dim, const void *const *key_rows,
                                     const void *const *value_rows, int32_t count, float scale, float *out,
                                     float *max, float *sum, void *scratch) {
  const workspace w = divide(type, columns, key_dim, value_dim, (uintptr_t)scratch);
  const int32_t all = padded_columns(columns);
  for (int32_t c = 0; c < all; c++) {
    w.max[c] = -INFINITY;
    w.sum[c] = 0;
  }
  for (int32_t begin = 0; begin < count; begin += TK_BLOCK_KEYS) {
    const int32_t block = count - begin < TK_BLOCK_KEYS ? count - begin : TK_BLOCK_KEYS;
    take_rows(type, key_rows + begin, block, key_dim, w.wide_keys, w.keys);
    score_block(packed, columns, key_dim, w.keys, block, scale, w.p);
    softmax_block(type, all, block, &w);
    take_rows(type, value_rows + begin, block, value_dim, w.wide_values, w.values);
    output_block(columns, all, value_dim, block, begin == 0, &w, out);
  }
  memcpy(max, w.max, (size_t)columns * sizeof(float));
  memcpy(sum, w.sum, (size_t)columns * sizeof(float));
}

/* -- a row, block by block ------------------------------------------------------------------------------ */
/* Scores i ..< i + TK_LANES times scale; -infinity where the row does not see the key. */
TK_INLINE vf seen_scores(const int hides, const float *scores, const uint64_t *seen, int32_t i, float scale) {
  const vf x = *(const vf_anywhere *)(scores + i) * scale;
  if (!hides) return x;
  vi bit;
  TK_UNROLL for (int j = 0; j < TK_LANES; j++) bit[j] = 1 << j;
  const int32_t bits = (int32_t)(uint32_t)(seen[i / 64] >> i % 64);
  return chosen((vi)((((vi){0} + bits) & bit) != 0), x, broadcast(-INFINITY));
}

/* p of one vector of scaled scores: its first n elements. */
TK_INLINE vf share(const int32_t type, vf scores, float from, void *p, int32_t i, int32_t n) {
  vf x = exponential(scores - from);
  if (type == TK_BF16) {
    x = rounded_to_bf16(x);
    const vh narrow = __builtin_convertvector((vi)x >> 16, vh);
    if (n == TK_LANES) {
      *(vh_anywhere *)(void *)((uint16_t *)p + i) = narrow;
    } else {
      memcpy((uint16_t *)p + i, &narrow, (size_t)n * sizeof(uint16_t));
    }
  } else if (n == TK_LANES) {
    *(vf_anywhere *)(void *)((float *)p + i) = x;
  } else {
    memcpy((float *)p + i, &x, (size_t)n * sizeof(float));
  }
  return x;
}

TK_INLINE float row(const int32_t type, const int hides, const float *scores, const uint64_t *seen, int32_t count,
                    float scale, float *max, float *sum, void *p) {
  const int32_t whole = count / TK_LANES * TK_LANES, rest = count - whole;
  /* The last keys, and lanes that the row does not see behind them. */
  float last[TK_LANES] = {0};
  memcpy(last, scores + whole, (size_t)rest * sizeof(float));
  uint64_t sees = ((uint64_t)1 << rest) - 1;
  if (hides && rest > 0) sees &= seen[whole / 64] >> whole % 64;
  const vf end = seen_scores(1, last, &sees, 0, scale);

  const float old = *max;
  vf a = broadcast(old), b = larger(end, broadcast(-INFINITY)); /* two chains: what follows waits for no comparison */
  int32_t i = 0;
  for (; i + 2 * TK_LANES <= whole; i += 2 * TK_LANES) {
    a = larger(seen_scores(hides, scores, seen, i, scale), a);
    b = larger(seen_scores(hides, scores, seen, i + TK_LANES, scale), b);
  }
  if (i < whole) a = larger(seen_scores(hides, scores, seen, i, scale), a);
  float now = old;
  for (int j = 0; j < TK_LANES; j++) {
    now = a[j] > now ? a[j] : now;
    now = b[j] > now ? b[j] : now;
  }

  const float from = now == -INFINITY ? 0 : now; /* nothing seen: exp(-inf - 0) = 0 */
  vf total = {0};
  for (i = 0; i < whole; i += TK_LANES) {
    total += share(type, seen_scores(hides, scores, seen, i, scale), from, p, i, TK_LANES);
  }
  if (rest > 0) total += share(type, end, from, p, whole, rest);
  float all = 0;
  for (int j = 0; j < TK_LANES; j++) all += total[j];
  const float factor = exponential(broadcast(old - from))[0];
  *max = now;
  *sum = *sum * factor + all;
  return factor;
}

TK_ENTRY TK_TARGET float TK_NAME(attend_row)(int32_t type, const float *scores, const uint64_t *seen, int32_t count,
                                             float scale, float *max, float *sum, void *p) {
  if (type == TK_BF16) {
    if (seen == NULL) return row(TK_BF16, 0, scores, seen, count, scale, max, sum, p);
    return row(TK_BF16, 1, scores, seen, count, scale, max, sum, p);
  }
  if (seen == NULL) return row(TK_F32, 0, scores, seen, count, scale, max, sum, p);
  return row(TK_F32, 1, scores, seen, count, scale, max, sum, p);
}

/* out * a + out_b * b over one row. */
static TK_TARGET void blend(float *out, const float *out_b, int32_t n, float a, float b) {
  int32_t i = 0;
  for (; i + TK_LANES <= n; i += TK_LANES) {
    const vf y = *(vf_anywhere *)(out + i) * a, z = *(const vf_anywhere *)(out_b + i) * b;
    *(vf_anywhere *)(out + i) = y + z;
  }
  for (; i < n; i++) {
    const float y = out[i] * a, z = out_b[i] * b;
    out[i] = y + z;
  }
}

TK_ENTRY TK_TARGET void TK_NAME(attend_join)(float *out, float *max, float *sum, const float *out_b, const float *max_b,
                                    const float *sum_b, int32_t columns, int32_t value_dim) {
  for (int32_t c = 0; c < columns; c++) {
    float *y = out + (ptrdiff_t)c * value_dim;
    const float *z = out_b + (ptrdiff_t)c * value_dim;
    if (sum_b[c] == 0) continue; /* an absent side's out is never read: it may hold anything */
    if (sum[c] == 0) {
      memcpy(y, z, (size_t)value_dim * sizeof(float));
      max[c] = max_b[c];
      sum[c] = sum_b[c];
      continue;
    }
    const float joined = max[c] > max_b[c] ? max[c] : max_b[c];
    const float from = joined == -INFINITY ? 0 : joined; /* only with NaN sums */
    const vf weights = exponential((vf){max[c] - from, max_b[c] - from});
    blend(y, z, value_dim, weights[0], weights[1]);
    sum[c] = sum[c] * weights[0] + sum_b[c] * weights[1];
    max[c] = joined;
  }
}
#endif
