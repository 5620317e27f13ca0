/* The learn entries of every instruction set: products with outputs in lanes and the passes over rows of scores. The
 * including learn.c owns the vector width and the instructions, by defining first
 *
 *   TK_NAME(f), TK_TARGET    as in attend_float.h
 *   TK_LANES                 floats in a vector
 *   TK_FMA(a, b, c)          a * b + c over vectors
 *   TK_TILE_VECTORS          vectors of outputs in the register tile, beside four rows
 *
 * accumulate: four rows by TK_TILE_VECTORS vectors of sums; an element of x is broadcast, w is read where it lies, 128
 * rows of it at a time so that a panel stays in L1 under all rows of x. One sum takes its inputs in ascending order
 * whatever tile computed it. matmul (inputs in lanes, a fold for each sum) is the wrong shape here: the inner dimension
 * is an indexer head, 64 or 128 wide, so that folding would cost more than multiplying. */
#ifndef TAMIS_LEARN_LANES_H
#define TAMIS_LEARN_LANES_H
#include "internal.h"

#include <math.h>
#include <string.h>

#if defined(__clang__)
#define TK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TK_UNROLL _Pragma("GCC unroll 16")
#endif
#define TK_INLINE static inline __attribute__((always_inline)) TK_TARGET

typedef float vf __attribute__((vector_size(TK_LANES * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(TK_LANES * 4), may_alias));
typedef float vf_anywhere __attribute__((vector_size(TK_LANES * 4), aligned(1), may_alias));

#include "exponential.h"

enum { TK_ROWS = 4, TK_INPUTS = 128 };

TK_INLINE vf load(const float *p) { return *(const vf_anywhere *)(const void *)p; }
TK_INLINE void store(float *p, vf x) { *(vf_anywhere *)(void *)p = x; }

/* The first n lanes, then `rest`. */
TK_INLINE vf load_part(const float *p, int32_t n, float rest) {
  vf x = broadcast(rest);
  memcpy(&x, p, (size_t)n * sizeof(float));
  return x;
}
TK_INLINE void store_part(float *p, vf x, int32_t n) { memcpy(p, &x, (size_t)n * sizeof(float)); }

TK_INLINE vf positive(vf x) { return (vf)((vi)(x > (vf){0}) & (vi)x); }

TK_INLINE float folded(vf x) {
  float lane[TK_LANES];
  memcpy(lane, &x, sizeof lane);
  TK_UNROLL for (int half = TK_LANES / 2; half > 0; half /= 2) {
    TK_UNROLL for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  }
  return lane[0];
}

TK_INLINE const float *moved(const float *p, ptrdiff_t bytes) {
  return (const float *)(const void *)((const char *)p + bytes);
}

/* -- accumulate ----------------------------------------------------------------------------------------- */

/* y [rows, vectors * lanes] of one tile. */
TK_INLINE void tile(const int rows, const int vectors, const float *x, ptrdiff_t x_row, ptrdiff_t x_column,
                    const float *w, ptrdiff_t w_stride, int32_t inputs, int32_t add, float *y, ptrdiff_t y_stride) {
  vf sum[TK_ROWS][TK_TILE_VECTORS];
  TK_UNROLL for (int r = 0; r < rows; r++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) {
      sum[r][v] = add ? load(moved(y, r * y_stride) + v * TK_LANES) : (vf){0};
    }
  }
  for (int32_t i = 0; i < inputs; i++) {
    const float *wi = moved(w, i * w_stride), *xi = moved(x, i * x_column);
    vf b[TK_TILE_VECTORS];
    TK_UNROLL for (int v = 0; v < vectors; v++) b[v] = load(wi + v * TK_LANES);
    TK_UNROLL for (int r = 0; r < rows; r++) {
      const vf a = broadcast(*moved(xi, r * x_row));
      TK_UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = TK_FMA(a, b[v], sum[r][v]);
    }
  }
  TK_UNROLL for (int r = 0; r < rows; r++) {
    TK_UNROLL for (int v = 0; v < vectors; v++) store((float *)moved(y, r * y_stride) + v * TK_LANES, sum[r][v]);
  }
}

/* Fewer outputs than a vector holds. */
TK_INLINE void tile_part(int32_t rows, int32_t outputs, const float *x, ptrdiff_t x_row, ptrdiff_t x_column,
                         const float *w, ptrdiff_t w_stride, int32_t inputs, int32_t add, float *y,
                         ptrdiff_t y_stride) {
  for (int32_t r = 0; r < rows; r++) {
    float *to = (float *)moved(y, r * y_stride);
    vf sum = add ? load_part(to, outputs, 0) : (vf){0};
    for (int32_t i = 0; i < inputs; i++) {
      const vf a = broadcast(*moved(moved(x, r * x_row), i * x_column));
      sum = TK_FMA(a, load_part(moved(w, i * w_stride), outputs, 0), sum);
    }
    store_part(to, sum, outputs);
  }
}

#define TK_STRIPE(vectors)                                                                                          \
  {                                                                                                                 \
    int32_t r = 0;                                                                                                  \
    for (; r + TK_ROWS <= rows; r += TK_ROWS) {                                                                     \
      tile(TK_ROWS, vectors, moved(xi, r * x_row), x_row, x_column, wi + o, w_stride, n, more,                      \
           (float *)moved(y, r * y_stride) + o, y_stride);                                                          \
    }                                                                                                               \
    for (; r < rows; r++) {                                                                                         \
      tile(1, vectors, moved(xi, r * x_row), x_row, x_column, wi + o, w_stride, n, more,                            \
           (float *)moved(y, r * y_stride) + o, y_stride);                                                          \
    }                                                                                                               \
  }

TK_TARGET void TK_NAME(accumulate)(const float *x, ptrdiff_t x_row, ptrdiff_t x_column, const float *w,
                                   ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, int32_t add,
                                   float *y, ptrdiff_t y_stride) {
  const int32_t wide = TK_TILE_VECTORS * TK_LANES;
  int32_t i = 0;
  do {
    const int32_t n = inputs - i < TK_INPUTS ? inputs - i : TK_INPUTS, more = add || i > 0;
    const float *xi = moved(x, i * x_column), *wi = moved(w, i * w_stride);
    int32_t o = 0;
    for (; o + wide <= outputs; o += wide) TK_STRIPE(TK_TILE_VECTORS)
    for (; o + TK_LANES <= outputs; o += TK_LANES) TK_STRIPE(1)
    if (o < outputs) {
      tile_part(rows, outputs - o, xi, x_row, x_column, wi + o, w_stride, n, more, y + o, y_stride);
    }
    i += n;
  } while (i < inputs);
}

/* -- rows of scores ------------------------------------------------------------------------------------- */

TK_TARGET void TK_NAME(mix)(const float *a, ptrdiff_t a_stride, const float *weight, int32_t heads, int32_t count,
                            float *score) {
  int32_t s = 0;
  for (; s + TK_LANES <= count; s += TK_LANES) {
    vf sum = {0};
    for (int32_t h = 0; h < heads; h++) {
      sum = TK_FMA(positive(load(moved(a, h * a_stride) + s)), broadcast(weight[h]), sum);
    }
    store(score + s, sum);
  }
  if (s < count) {
    vf sum = {0};
    for (int32_t h = 0; h < heads; h++) {
      sum = TK_FMA(positive(load_part(moved(a, h * a_stride) + s, count - s, 0)), broadcast(weight[h]), sum);
    }
    store_part(score + s, sum, count - s);
  }
}

TK_TARGET void TK_NAME(soften)(float *x, const float *p, int32_t count, float scale, float *max, float *sum,
                               float *product) {
  const vf by = broadcast(scale);
  const int32_t whole = count / TK_LANES * TK_LANES, rest = count - whole;
  vf top = broadcast(-INFINITY), dot = {0}, all = {0};
  for (int32_t s = 0; s < whole; s += TK_LANES) {
    const vf y = load(x + s) * by;
    top = chosen((vi)(y > top), y, top);
    if (p != NULL) dot = TK_FMA(y, load(p + s), dot);
  }
  if (rest > 0) { /* the lanes behind the last repeat a score that is there */
    const vf y = load_part(x + whole, rest, x[whole]) * by;
    top = chosen((vi)(y > top), y, top);
    if (p != NULL) dot = TK_FMA(y, load_part(p + whole, rest, 0), dot);
  }
  float lane[TK_LANES], largest = -INFINITY;
  memcpy(lane, &top, sizeof lane);
  for (int i = 0; i < TK_LANES; i++) largest = lane[i] > largest ? lane[i] : largest;
  const vf from = broadcast(largest);
  for (int32_t s = 0; s < whole; s += TK_LANES) {
    const vf y = exponential(load(x + s) * by - from);
    all += y;
    store(x + s, y);
  }
  if (rest > 0) {
    const vf y = exponential(load_part(x + whole, rest, 0) * by - from);
    store_part(x + whole, y, rest);
    all += load_part(x + whole, rest, 0);
  }
  *max = largest;
  *sum = folded(all);
  *product = folded(dot);
}

TK_TARGET void TK_NAME(mix_back)(float *a, ptrdiff_t a_stride, const float *weight, int32_t heads, int32_t count,
                                 float *x, float share, const float *p, float rate, float *weight_gradient) {
  const vf part = broadcast(share), by = broadcast(rate);
  const int32_t whole = count / TK_LANES * TK_LANES, rest = count - whole;
  for (int32_t s = 0; s < whole; s += TK_LANES) store(x + s, (load(x + s) * part - load(p + s)) * by);
  if (rest > 0) {
    store_part(x + whole, (load_part(x + whole, rest, 0) * part - load_part(p + whole, rest, 0)) * by, rest);
  }
  for (int32_t h = 0; h < heads; h++) {
    float *row = (float *)moved(a, h * a_stride);
    const vf w = broadcast(weight[h]);
    vf sum = {0};
    for (int32_t s = 0; s < whole; s += TK_LANES) {
      const vf g = load(x + s), y = load(row + s);
      const vi live = (vi)(y > (vf){0});
      sum = TK_FMA(g, (vf)(live & (vi)y), sum);
      store(row + s, (vf)(live & (vi)(g * w)));
    }
    if (rest > 0) {
      const vf g = load_part(x + whole, rest, 0), y = load_part(row + whole, rest, 0);
      const vi live = (vi)(y > (vf){0});
      sum = TK_FMA(g, (vf)(live & (vi)y), sum);
      store_part(row + whole, (vf)(live & (vi)(g * w)), rest);
    }
    weight_gradient[h] = folded(sum);
  }
}
#endif
