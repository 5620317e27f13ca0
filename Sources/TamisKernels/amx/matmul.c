/* Matmul entries of the amx table. TK_F32 is the avx512 table's; this file owns TK_BF16 with tdpbf16ps.
 *
 * y^T [16 outputs, 16 rows] += A, w as it lies [16 outputs][32 inputs] x B, x packed [pair of inputs][16 rows][2].
 * One accumulator adds the inputs of an output in steps of 32, in order, however many rows there are: a row alone
 * (its tile padded with zeros: the product is free while w comes from memory) gets the bits it gets among 256.
 *
 * Up to 32 rows: w streams through tiles, once, in 16 streams (see there). More rows: inputs go in blocks of 2048, so
 * that x packed stays in L2, and 32 outputs of w are first copied to adjacent tiles, because rows a power of two
 * apart share their L1 sets; accumulators rest in scratch, exactly, between blocks of inputs. tdpbf16ps takes
 * subnormal operands and results as 0. */
#include "../internal.h"
#if TK_X86
#include <immintrin.h>

#include "../avx512/transpose.h"
#include "tiles.h"

enum {
  depth = 32,          /* inputs of one product                                */
  few_rows = 32,       /* up to here w is read where it lies                   */
  most_rows = 256,     /* rows of x, outputs of w and inputs taken at a time   */
  most_outputs = 4096,
  most_inputs = 2048
};

typedef struct {
  char *x;        /* B tiles [rows / 16][inputs / 32]                          */
  char *w;        /* A tiles [2][inputs / 32]                                  */
  char *sums;     /* accumulators [outputs / 32][rows / 16][2], between blocks */
  char *turned;   /* four accumulators on their way to y                       */
  size_t bytes;
} workspace;

static size_t ceiling(int32_t n, int32_t by) { return ((size_t)n + (size_t)by - 1) / (size_t)by; }

static int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }

static int32_t input_block(int32_t rows, int32_t inputs) {
  return rows <= few_rows ? inputs : lesser(inputs, most_inputs);
}

static workspace divide(int32_t rows, int32_t outputs, int32_t inputs, uintptr_t base) {
  const int32_t block = input_block(rows, inputs);
  const size_t column = ceiling(block, depth) * TK_TILE_BYTES, tiles = 2 * ceiling(lesser(rows, most_rows), 32);
  workspace w;
  size_t at = 0;
  w.x = (char *)(base + at), at += tiles * column;
  w.w = (char *)(base + at), at += 2 * column;
  w.sums = (char *)(base + at), at += block < inputs ? tiles * 2 * ceiling(lesser(outputs, most_outputs), 32) * TK_TILE_BYTES : 0;
  w.turned = (char *)(base + at), at += 4 * TK_TILE_BYTES;
  w.bytes = at;
  return w;
}

size_t tk_amx_matmul_scratch_bytes(int32_t type, int32_t rows, int32_t outputs, int32_t inputs) {
  if (type == TK_F32) return tk_avx512_matmul_scratch_bytes(type, rows, outputs, inputs);
  return divide(rows, outputs, inputs, 0).bytes;
}

/* -- operands as tiles ---------------------------------------------------------------------------------- */
TK_AMX_INLINE void put(const __m512i rows[16], char *tile) {
#pragma GCC unroll 16
  for (int r = 0; r < 16; r++) _mm512_store_si512(tile + 64 * r, rows[r]);
}

/* x [rows, inputs] -> B tiles, an even number of columns of tiles. */
static TK_AMX void pack_x(const char *x, ptrdiff_t stride, int32_t rows, int32_t inputs, char *tiles) {
  const int32_t all = 2 * (int32_t)ceiling(rows, 32);
  for (int32_t t = 0; t < all; t++) {
    for (int32_t i = 0; i < inputs; i += depth, tiles += TK_TILE_BYTES) {
      __m512i r[16];
      tk_avx512_take_rows(x + 16 * t * stride + 2 * (ptrdiff_t)i, stride, rows - 16 * t, inputs - i, r);
      tk_avx512_transpose(r);
      put(r, tiles);
    }
  }
}

/* w [up to 32 outputs, inputs] -> two rows of A tiles. */
static TK_AMX void copy_w(const char *w, ptrdiff_t stride, int32_t outputs, int32_t inputs, char *tiles) {
  for (int32_t t = 0; t < 2; t++) {
    for (int32_t i = 0; i < inputs; i += depth, tiles += TK_TILE_BYTES) {
      __m512i r[16];
      tk_avx512_take_rows(w + 16 * t * stride + 2 * (ptrdiff_t)i, stride, outputs - 16 * t, inputs - i, r);
      put(r, tiles);
    }
  }
}

/* -- products ------------------------------------------------------------------------------------------- */

/* Accumulators 0, 1: 32 outputs x 16 rows; 2, 3: the next 16 rows. `column`: bytes of 16 outputs, of 16 rows. */
TK_AMX_INLINE void products(const int pairs, const char *w, const char *x, ptrdiff_t column, int32_t steps) {
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

TK_AMX_INLINE void begin_sums(const char *sums, int first) {
  if (first) {
    tk_tile_zero(0);
    tk_tile_zero(1);
    tk_tile_zero(2);
    tk_tile_zero(3);
  } else {
    tk_tile_load(0, sums, 64);
    tk_tile_load(1, sums + TK_TILE_BYTES, 64);
    tk_tile_load(2, sums + 2 * TK_TILE_BYTES, 64);
    tk_tile_load(3, sums + 3 * TK_TILE_BYTES, 64);
  }
}

TK_AMX_INLINE void keep_sums(char *sums) {
  tk_tile_store(0, sums, 64);
  tk_tile_store(1, sums + TK_TILE_BYTES, 64);
  tk_tile_store(2, sums + 2 * TK_TILE_BYTES, 64);
  tk_tile_store(3, sums + 3 * TK_TILE_BYTES, 64);
}

/* Four accumulators [2 x 16 rows][2 x 16 outputs][outputs, rows] -> y [up to 32 rows, up to 32 outputs]. */
static TK_AMX void turn(const char *sums, int32_t rows, int32_t outputs, char *y, ptrdiff_t y_stride) {
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
      if (r + i < rows) _mm512_mask_storeu_epi32(y + (r + i) * y_stride + 4 * (ptrdiff_t)o, live, block[i]);
    }
  }
}

/* Up to 32 outputs, a block of inputs, all rows of the group. `sums`: the group's accumulators, when inputs come in
 * more than one block. */
static TK_AMX void stripe(const char *w, ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, int first,
                          int last, char *sums, float *y, ptrdiff_t y_stride, const workspace *s) {
  const int32_t steps = (int32_t)ceiling(inputs, depth);
  const ptrdiff_t column = (ptrdiff_t)steps * TK_TILE_BYTES;
  copy_w(w, w_stride, outputs, inputs, s->w);
  for (int32_t r = 0; r < rows; r += 32, sums += 4 * TK_TILE_BYTES) {
    const char *x = s->x + r / 16 * column;
    begin_sums(sums, first);
    if (rows - r > 16) {
      products(2, s->w, x, column, steps);
    } else {
      products(1, s->w, x, column, steps);
    }
    if (last) {
      keep_sums(s->turned);
      turn(s->turned, rows - r, outputs, (char *)y + r * y_stride, y_stride);
    } else {
      keep_sums(sums);
    }
  }
}

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
    tk_tile_store(0, s->turned, 64);
    tk_tile_store(2, s->turned + TK_TILE_BYTES, 64);
    for (int32_t r = 0; r < rows; r++) {
      const __m512i sums = _mm512_i32gather_epi32(
          _mm512_set_epi32(240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0),
          s->turned + r / 16 * TK_TILE_BYTES + 4 * (r % 16), 4);
      _mm512_i32scatter_epi32(y + r * y_stride + 4 * (ptrdiff_t)o, places, sums, 1);
    }
  }
}

static TK_AMX void matmul_bf16(const char *x, ptrdiff_t x_stride, const char *w, ptrdiff_t w_stride, int32_t rows,
                               int32_t outputs, int32_t inputs, int32_t block, float *y, ptrdiff_t y_stride,
                               const workspace *s) {
  const ptrdiff_t stripe_sums = (ptrdiff_t)ceiling(rows, 32) * 4 * TK_TILE_BYTES;
  for (int32_t i = 0; i < inputs; i += block) {
    const int32_t n = lesser(inputs - i, block);
    const int first = i == 0, last = i + n == inputs;
    pack_x(x + 2 * (ptrdiff_t)i, x_stride, rows, n, s->x);
    int32_t o = 0;
    if (rows <= few_rows && inputs % depth == 0) {
      o = outputs / 16 * 16;
      streams(w, w_stride, rows, o, inputs, (char *)y, y_stride, s);
    }
    for (; o < outputs; o += 32) {
      char *sums = first && last ? s->turned : s->sums + o / 32 * stripe_sums;
      stripe(w + o * w_stride + 2 * (ptrdiff_t)i, w_stride, rows, lesser(outputs - o, 32), n, first, last, sums, y + o,
             y_stride, s);
    }
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
  const int32_t block = input_block(rows, inputs);
  for (int32_t r = 0; r < rows; r += most_rows) {
    for (int32_t o = 0; o < outputs; o += most_outputs) {
      matmul_bf16((const char *)x + r * x_stride, x_stride, (const char *)w + o * w_stride, w_stride,
                  lesser(rows - r, most_rows), lesser(outputs - o, most_outputs), inputs, block,
                  (float *)(void *)((char *)y + r * y_stride) + o, y_stride, &s);
    }
  }
}
#endif
