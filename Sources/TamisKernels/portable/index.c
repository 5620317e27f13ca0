/* Index scores in plain C for any CPU: the arithmetic every other table is compared with. Written so that a
 * compiler's vectoriser finds the loops on the baseline of each architecture (16-bit dot product for int8, heads
 * in lanes for the rest). Owns the packed query of the "portable" table; refuses nothing.
 *
 * The head sum has the order and the roundings of the vector tables: a chain of fused multiply-adds per lane of
 * 16 heads, then one tree. int8 scores therefore have the same bits in every table. bfloat16 and float dot
 * products are plain float sums in dimension order (not fused), which differs from the vector tables in the last
 * bits; products of two bfloat16 or of E4M3 and bfloat16 are exact in float, subnormals are kept. */
#include "../internal.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 256, LANES = 16 }; /* elements of a key row widened at a time; heads per lane block */

static size_t padded_heads(int32_t heads) { return ((size_t)heads + LANES - 1) / LANES * LANES; }

/* int8 queries are widened to int16 [heads][dim], the others to float [dim][padded heads]. */
size_t tk_portable_index_query_bytes(int32_t type, int32_t heads, int32_t dim) {
  const size_t padded = padded_heads(heads);
  const size_t query = padded * (size_t)dim * (type == TK_I8 ? sizeof(int16_t) : sizeof(float));
  return (padded * sizeof(float) + query + 63) / 64 * 64;
}

static float float_of_bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

/* Codes below 8 are fraction * 2^-9; the others are rebiased from 7 to 127; 0x7f and 0xff are NaN. */
static float float_of_e4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7F;
  uint32_t bits = magnitude == 0x7F ? 0x7FC00000u : (magnitude << 20) + (120u << 23);
  float value;
  if (magnitude < 8) {
    value = (float)magnitude * 0x1p-9f;
    memcpy(&bits, &value, sizeof bits);
  }
  bits |= (uint32_t)(code & 0x80) << 24;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* weight [padded heads] first, zero for the padding. */
void tk_portable_index_pack_query(int32_t type, const void *query, const float *weight, int32_t heads, int32_t dim,
                                  void *packed) {
  const size_t padded = padded_heads(heads);
  memset(packed, 0, tk_portable_index_query_bytes(type, heads, dim));
  memcpy(packed, weight, (size_t)heads * sizeof(float));
  float *wide = (float *)packed + padded;
  int16_t *words = (int16_t *)wide;
  for (size_t head = 0; head < (size_t)heads; head++) {
    for (size_t d = 0; d < (size_t)dim; d++) {
      const size_t from = head * (size_t)dim + d, to = d * padded + head;
      if (type == TK_I8) words[from] = ((const int8_t *)query)[from];
      else if (type == TK_F32) wide[to] = ((const float *)query)[from];
      else wide[to] = float_of_bf16(((const uint16_t *)query)[from]);
    }
  }
}

/* round(a * b + c) once. Without hardware for it: the product is exact in double, the sum is rounded to odd
 * there, so that the rounding to float is the only one that shows. */
static float multiply_add(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return fmaf(a, b, c);
#else
  const double product = (double)a * (double)b, addend = (double)c, sum = product + addend;
  const double back = sum - product;
  const double rest = (product - (sum - back)) + (addend - back);
  int64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  if ((rest > 0 || rest < 0) && (bits & 1) == 0) bits += (rest > 0) == (sum > 0) ? 1 : -1;
  double odd;
  memcpy(&odd, &bits, sizeof odd);
  return (float)odd;
#endif
}

/* lane[l] += weight * max(0, dot), heads first .. first + 15; a NaN passes. */
static void add_heads(float *lane, const float *dot, const float *weight) {
  for (int l = 0; l < LANES; l++) lane[l] = multiply_add(weight[l], dot[l] <= 0 ? 0 : dot[l], lane[l]);
}

static float tree(const float *lane) {
  float sum[LANES];
  memcpy(sum, lane, sizeof sum);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int l = 0; l < width; l++) sum[l] += sum[l + width];
  return sum[0];
}

static int32_t dot_int16(const int16_t *a, const int16_t *b, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; i++) sum += (int32_t)a[i] * b[i];
  return sum;
}

static float score_int8(const int16_t *query, const float *weight, int32_t heads, int32_t dim, const int8_t *key) {
  float lane[LANES] = {0};
  for (int32_t first = 0; first < heads; first += LANES) {
    const int32_t count = heads - first < LANES ? heads - first : LANES;
    int32_t sum[LANES] = {0};
    for (int32_t done = 0; done < dim; done += BLOCK) {
      const int32_t size = dim - done < BLOCK ? dim - done : BLOCK;
      int16_t wide[BLOCK];
      for (int32_t d = 0; d < size; d++) wide[d] = key[done + d];
      for (int32_t l = 0; l < count; l++)
        sum[l] += dot_int16(query + (size_t)(first + l) * (size_t)dim + done, wide, size);
    }
    float dot[LANES];
    for (int l = 0; l < LANES; l++) dot[l] = (float)sum[l];
    add_heads(lane, dot, weight + first);
  }
  return tree(lane);
}

static void widen_row(int32_t type, const uint8_t *row, int32_t done, int32_t size, float *wide) {
  if (type == TK_F32) {
    memcpy(wide, row + (size_t)done * sizeof(float), (size_t)size * sizeof(float));
  } else if (type == TK_E4M3) {
    for (int32_t d = 0; d < size; d++) wide[d] = float_of_e4m3(row[done + d]);
  } else {
    uint16_t bits[BLOCK];
    memcpy(bits, row + (size_t)done * sizeof bits[0], (size_t)size * sizeof bits[0]);
    for (int32_t d = 0; d < size; d++) wide[d] = float_of_bf16(bits[d]);
  }
}

static float score_float(int32_t type, const float *query, const float *weight, int32_t heads, int32_t dim,
                         const uint8_t *row) {
  const size_t padded = padded_heads(heads);
  float lane[LANES] = {0};
  for (int32_t first = 0; first < heads; first += LANES) {
    float dot[LANES] = {0};
    for (int32_t done = 0; done < dim; done += BLOCK) {
      const int32_t size = dim - done < BLOCK ? dim - done : BLOCK;
      float wide[BLOCK];
      widen_row(type, row, done, size, wide);
      for (int32_t d = 0; d < size; d++) {
        const float *q = query + (size_t)(done + d) * padded + first;
        for (int l = 0; l < LANES; l++) dot[l] += q[l] * wide[d];
      }
    }
    for (int32_t l = heads - first; l < LANES; l++) dot[l] = 0; /* padding times infinity is NaN */
    add_heads(lane, dot, weight + first);
  }
  return tree(lane);
}

void tk_portable_index_scores(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys,
                              ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride, int32_t count,
                              const tk_beside *beside,
                              float *scores) {
  (void)beside;
  const float *weight = packed;
  const float *query = weight + padded_heads(heads);
  for (int32_t i = 0; i < count; i++) {
    const uint8_t *row = (const uint8_t *)keys + i * key_stride;
    float scale = 1;
    if (key_scale != NULL) memcpy(&scale, (const char *)key_scale + i * scale_stride, sizeof scale);
    scores[i] = scale * (type == TK_I8 ? score_int8((const int16_t *)query, weight, heads, dim, (const int8_t *)row)
                                       : score_float(type, query, weight, heads, dim, row));
  }
}
