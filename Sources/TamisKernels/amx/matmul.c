/* Matmul entries of the amx table. TK_F32 is the avx512 table's; this file owns TK_BF16 with tdpbf16ps.
 *
 * Up to 32 rows: y^T [16 outputs, 16 rows] += A, w as it lies [16 outputs][32 inputs] x B, x packed [pair of
 * inputs][16 rows][2]: w streams through tiles once, in 16 streams.
 * More rows: y [16 rows, 16 outputs] += A, x copied to adjacent tiles x B, w packed. Inputs go in blocks of 512, so
 * that 32 outputs of w (32 KB) stay in L1 while x streams by from L2; accumulators rest in scratch, exactly, between
 * blocks of inputs, and end in y.
 * Either way one accumulator adds the inputs of an output in steps of 32, in order: a row alone (its tile padded with
 * zeros: the product is free while w comes from memory) gets the bits it gets among 256. tdpbf16ps takes subnormal
 * operands and results as 0. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>

#include "../avx512/transpose.h"
#include "tiles.h"

enum {
  depth = 32,          /* inputs of one product                                */
  few_rows = 32,       /* up to here w is read where it lies                   */
  most_rows = 256,     /* rows of x, outputs of w and inputs taken at a time   */
  most_outputs = 1024,
  most_inputs = 512
};

typedef struct {
  char *x;    /* tiles [rows / 16][inputs / 32]: B for few rows, A for more      */
  char *w;    /* tiles [2][inputs / 32]: A for few rows, B for more              */
  char *sums; /* units of four accumulators [outputs / 32][rows / 32]; few: one  */
  size_t bytes;
} workspace;

static size_t ceiling(int32_t n, int32_t by) { return ((size_t)n + (size_t)by - 1) / (size_t)by; }

static int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }

static workspace divide(int32_t rows, int32_t outputs, int32_t inputs, uintptr_t base) {
  const int few = rows <= few_rows;
  const size_t column = ceiling(few ? inputs : lesser(inputs, most_inputs), depth) * TK_TILE_BYTES;
  const size_t pairs = ceiling(lesser(rows, most_rows), 32);
  workspace w;
  size_t at = 0;
  w.x = (char *)(base + at), at += 2 * pairs * column;
  w.w = (char *)(base + at), at += 2 * column;
  w.sums = (char *)(base + at), at += 4 * pairs * (few ? 1 : ceiling(lesser(outputs, most_outputs), 32)) * TK_TILE_BYTES;
  w.bytes = at;
  return w;
}

size_t tk_amx_matmul_scratch_bytes(int32_t type, int32_t rows, int32_t outputs, int32_t inputs) {
  if (type == TK_F32) return tk_avx512_matmul_scratch_bytes(type, rows, outputs, inputs);
  return divide(rows, outputs, inputs, 0).bytes;
}

/* -- operands as tiles ---------------------------------------------------------------------------------- *
 * Rows of x or w, up to `rows` of them, as an even number of rows of tiles [2 * ceiling(rows / 32)][inputs / 32]. */
static TK_AMX __mmask32 mask_of(int32_t left) {
  return left >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
}

/* B tiles: [pair of inputs][16 rows][2]. */
static TK_AMX void turn_rows(const char *from, ptrdiff_t stride, int32_t rows, int32_t inputs, char *tiles) {
  for (int32_t t = 0; t < 2 * (int32_t)ceiling(rows, 32); t++) {
    for (int32_t i = 0; i < inputs; i += depth, tiles += TK_TILE_BYTES) {
      __m512i r[16];
      tk_avx512_take_rows(from + 16 * t * stride + 2 * (ptrdiff_t)i, stride, rows - 16 * t, inputs - i, r);
      tk_avx512_transpose(r);
#pragma GCC unroll 16
      for (int k = 0; k < 16; k++) _mm512_store_si512(tiles + 64 * k, r[k]);
    }
  }
}

/* A tiles: as the rows lie. Row by row, as the hardware's prefetchers like to read. */
static TK_AMX void copy_rows(const char *from, ptrdiff_t stride, int32_t rows, int32_t inputs, char *tiles) {
  const int32_t steps = (int32_t)ceiling(inputs, depth);
  const __mmask32 last = mask_of(inputs - (steps - 1) * depth);
  for (int32_t r = 0; r < 32 * (int32_t)ceiling(rows, 32); r++, from += stride) {
    char *to = tiles + ((ptrdiff_t)(r / 16) * steps * 16 + r % 16) * 64;
    for (int32_t s = 0; s < steps; s++, to += TK_TILE_BYTES) {
      __m512i x = _mm512_setzero_si512();
      if (r < rows) x = s + 1 < steps ? _mm512_loadu_si512(from + s * 64) : _mm512_maskz_loadu_epi16(last, from + s * 64);
      _mm512_store_si512(to, x);
    }
  }
}

/* -- up to 32 rows -------------------------------------------------------------------------------------- */
/* Up to 32 rows against w where it lies: outputs o, o + q, o + 2q ... in one tile, q a sixteenth of all, so that memory
 * is read as 16 streams, each in order of its addresses. That is what the prefetchers of L2 follow; neighbouring
 * outputs in one tile, whose rows share pages, are read at half the rate. */
static TK_AMX void streams(const char *w, ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, char *y,
                           ptrdiff_t y_stride, const workspace *s) {
  const int32_t q = outputs / 16, steps = inputs / depth;
  const ptrdiff_t column = (ptrdiff_t)steps * TK_TILE_BYTES;
  const __m512i places = _mm512_mullo_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(4 * q));
  for (int32_t o = 0; o < q; o++) {
    const char *x = s->x;
    tk_tile_zero(0);
    tk_tile_zero(2);
    for (int32_t i = 0; i < steps; i++, x += TK_TILE_BYTES) {
      tk_tile_load(4, w + o * w_stride + 64 * (ptrdiff_t)i, q * w_stride);
      tk_tile_load(6, x, 64);
      tk_tile_multiply(0, 0, 4, 6);
      if (rows > 16) {
        tk_tile_load(7, x + column, 64);
        tk_tile_multiply(0, 2, 4, 7);
      }
    }
    tk_tile_store(0, s->sums, 64);
    tk_tile_store(2, s->sums + TK_TILE_BYTES, 64);
    for (int32_t r = 0; r < rows; r++) {
      const __m512i sums = _mm512_i32gather_epi32(
          _mm512_set_epi32(240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0),
          s->sums + r / 16 * TK_TILE_BYTES + 4 * (r % 16), 4);
      _mm512_i32scatter_epi32(y + r * y_stride + 4 * (ptrdiff_t)o, places, sums, 1);
    }
  }
}

/* Accumulators 0, 1: 32 outputs x 16 rows; 2, 3: the next 16 rows. `column`: bytes of 16 outputs, of 16 rows. */
TK_AMX_INLINE void products_of_few(const int pairs, const char *w, const char *x, ptrdiff_t column, int32_t steps) {
  tk_tile_zero(0);
  tk_tile_zero(1);
  tk_tile_zero(2);
  tk_tile_zero(3);
  for (int32_t s = 0; s < steps; s++, x += TK_TILE_BYTES, w += TK_TILE_BYTES) {
    tk_tile_load(6, x, 64);
    tk_tile_load(4, w, 64);
    tk_tile_load(5, w + column, 64);
    tk_tile_multiply(0, 0, 4, 6);
    tk_tile_multiply(0, 1, 5, 6);
    if (pairs == 2) {
      tk_tile_load(7, x + column, 64);
      tk_tile_multiply(0, 2, 4, 7);
      tk_tile_multiply(0, 3, 5, 7);
    }
  }
}

/* Four accumulators [2 x 16 rows][2 x 16 outputs][outputs, rows] -> y [up to 32 rows, up to 32 outputs]. */
static TK_AMX void turn_sums(const char *sums, int32_t rows, int32_t outputs, float *y, ptrdiff_t y_stride) {
  for (int32_t t = 0; t < 4; t++, sums += TK_TILE_BYTES) {
    const int32_t r = t / 2 * 16, o = t % 2 * 16;
    if (r >= rows || o >= outputs) continue;
    const __mmask16 live = outputs - o >= 16 ? 0xffff : (__mmask16)((1 << (outputs - o)) - 1);
    __m512i block[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) block[i] = _mm512_load_si512(sums + 64 * i);
    tk_avx512_transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      if (r + i < rows) _mm512_mask_storeu_epi32((char *)y + (r + i) * y_stride + 4 * (ptrdiff_t)o, live, block[i]);
    }
  }
}

/* What does not fill tiles, or ends inside one, is copied first. */
static TK_AMX void copied(const char *w, ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, float *y,
                          ptrdiff_t y_stride, const workspace *s) {
  const int32_t steps = (int32_t)ceiling(inputs, depth);
  const ptrdiff_t column = (ptrdiff_t)steps * TK_TILE_BYTES;
  const tk_waiting unit = tk_waiting_unit(s->sums);
  for (int32_t o = 0; o < outputs; o += 32, w += 32 * w_stride) {
    copy_rows(w, w_stride, lesser(outputs - o, 32), inputs, s->w);
    if (rows > 16) {
      products_of_few(2, s->w, s->x, column, steps);
    } else {
      products_of_few(1, s->w, s->x, column, steps);
    }
    tk_tile_store_all(&unit);
    turn_sums(s->sums, rows, outputs - o, y + o, y_stride);
  }
}

/* -- more rows ------------------------------------------------------------------------------------------ *
 * Accumulators 0, 1: 16 rows x 32 outputs; 2, 3: the next 16 rows. x passes by once for each 32 outputs: it is loaded
 * without displacing w from L1. */
TK_AMX_INLINE void product_step(const int opens, const char *x, const char *w, ptrdiff_t column, int first,
                                const char *unit, const tk_waiting *before) {
  tk_tile_load(6, w, 64);
  tk_tile_stream(4, x, 64);
  if (opens) tk_tile_begin(0, first, unit, before);
  tk_tile_multiply(0, 0, 4, 6);
  tk_tile_load(7, w + column, 64);
  if (opens) tk_tile_begin(1, first, unit, before);
  tk_tile_multiply(0, 1, 4, 7);
  tk_tile_stream(5, x + column, 64);
  if (opens) tk_tile_begin(2, first, unit, before);
  tk_tile_multiply(0, 2, 5, 6);
  if (opens) tk_tile_begin(3, first, unit, before);
  tk_tile_multiply(0, 3, 5, 7);
}

/* `soon`: rows of w that the next 32 outputs want, `soon_rows` of them, fetched a line of each at every step. */
static TK_AMX void products(const char *x, const char *w, int32_t steps, int first, const char *unit,
                            const tk_waiting *before, const char *soon, int32_t soon_rows, ptrdiff_t soon_stride) {
  const ptrdiff_t column = (ptrdiff_t)steps * TK_TILE_BYTES;
  for (int32_t s = 0; s < steps; s++, x += TK_TILE_BYTES, w += TK_TILE_BYTES) {
    for (int32_t r = 0; r < soon_rows; r++) _mm_prefetch(soon + r * soon_stride + s * (ptrdiff_t)64, _MM_HINT_T1);
    if (s == 0) {
      product_step(1, x, w, column, first, unit, before);
    } else {
      product_step(0, x, w, column, 0, NULL, before);
    }
  }
}

/* A unit of accumulators at the edge of y -> y [up to 32 rows, up to 32 outputs]. */
static TK_AMX void write_edge(const char *unit, int32_t rows, int32_t outputs, float *y, ptrdiff_t y_stride) {
  for (int32_t r = 0; r < lesser(rows, 32); r++) {
    for (int32_t o = 0; o < lesser(outputs, 32); o += 16) {
      const __mmask16 live = outputs - o >= 16 ? 0xffff : (__mmask16)((1 << (outputs - o)) - 1);
      const __m512i sums = _mm512_load_si512(unit + (r / 16 * 2 + o / 16) * TK_TILE_BYTES + r % 16 * 64);
      _mm512_mask_storeu_epi32((char *)y + r * y_stride + 4 * (ptrdiff_t)o, live, sums);
    }
  }
}

/* A block of inputs of all outputs and rows of the group. */
static TK_AMX void many(const char *w, ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, int first,
                        int last, float *y, ptrdiff_t y_stride, const workspace *s) {
  const int32_t steps = (int32_t)ceiling(inputs, depth), units = (int32_t)ceiling(rows, 32);
  const int32_t share = units >= 4 ? (int32_t)ceiling(32, units) : 0; /* fewer units have no time for it */
  const tk_waiting none = {{NULL, NULL, NULL, NULL}, 64};
  tk_waiting before = none;
  char *unit = s->sums;
  for (int32_t o = 0; o < outputs; o += 32, w += 32 * w_stride) {
    turn_rows(w, w_stride, lesser(outputs - o, 32), inputs, s->w);
    const int32_t next = lesser(outputs - o - 32, 32);
    for (int32_t u = 0; u < units; u++, unit += 4 * TK_TILE_BYTES) {
      const int32_t soon = lesser(next - u * share, share), r = 32 * u;
      products(s->x + 2 * u * (ptrdiff_t)steps * TK_TILE_BYTES, s->w, steps, first, unit, &before,
               w + (32 + u * share) * w_stride, soon, w_stride);
      char *to = (char *)(y + o) + r * y_stride;
      if (!last) {
        before = tk_waiting_unit(unit);
      } else if (rows - r >= 32 && outputs - o >= 32) {
        before = (tk_waiting){{to, to + 64, to + 16 * y_stride, to + 16 * y_stride + 64}, y_stride};
      } else {
        before = tk_waiting_unit(unit);
        tk_tile_store_all(&before);
        before = none;
        write_edge(unit, rows - r, outputs - o, (float *)(void *)to, y_stride);
      }
    }
  }
  tk_tile_store_all(&before);
}

static TK_AMX void matmul_bf16(const char *x, ptrdiff_t x_stride, const char *w, ptrdiff_t w_stride, int32_t rows,
                               int32_t outputs, int32_t inputs, float *y, ptrdiff_t y_stride, const workspace *s) {
  if (rows <= few_rows) {
    const int32_t whole = inputs % depth == 0 ? outputs / 16 * 16 : 0;
    turn_rows(x, x_stride, rows, inputs, s->x);
    streams(w, w_stride, rows, whole, inputs, (char *)y, y_stride, s);
    copied(w + whole * w_stride, w_stride, rows, outputs - whole, inputs, y + whole, y_stride, s);
    return;
  }
  for (int32_t i = 0; i < inputs; i += most_inputs) {
    const int32_t n = lesser(inputs - i, most_inputs);
    copy_rows(x + 2 * (ptrdiff_t)i, x_stride, rows, n, s->x);
    many(w + 2 * (ptrdiff_t)i, w_stride, rows, outputs, n, i == 0, i + n == inputs, y, y_stride, s);
  }
}

TK_AMX void tk_amx_matmul(int32_t type, const void *x, ptrdiff_t x_stride, const void *w, ptrdiff_t w_stride,
                          int32_t rows, int32_t outputs, int32_t inputs, float *y, ptrdiff_t y_stride,
                          void *scratch) {
  if (type == TK_F32) {
    tk_avx512_matmul(type, x, x_stride, w, w_stride, rows, outputs, inputs, y, y_stride, scratch);
    return;
  }
  const workspace s = divide(rows, outputs, inputs, (uintptr_t)scratch);
  for (int32_t r = 0; r < rows; r += most_rows) {
    for (int32_t o = 0; o < outputs; o += most_outputs) {
      matmul_bf16((const char *)x + r * x_stride, x_stride, (const char *)w + o * w_stride, w_stride,
                  lesser(rows - r, most_rows), lesser(outputs - o, most_outputs), inputs,
                  (float *)(void *)((char *)y + r * y_stride) + o, y_stride, &s);
    }
  }
}
#endif
