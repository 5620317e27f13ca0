/* Index scores on 64-bit ARM: int8 by sdot where the CPU has it (asked on each call) and by smull + sadalp where
 * not, bfloat16, E4M3 and float by fused multiply-add. Owns the packed query of the "neon" table; refuses nothing.
 *
 * Sixteen heads are four registers; one 32-bit word of a key row (4 int8 or 1 float) is broadcast and meets the
 * same word of the 16 heads: 6 keys x 4 registers are 24 accumulators of the 32. Rows of bfloat16 and E4M3 are
 * widened to float BLOCK elements at a time. More heads are done 16 at a time. Nothing is read beyond a row.
 * The head sum has the order of every vector table, so int8 scores have the same bits. Checked under qemu only;
 * no rate has been measured. */
#include "../internal.h"
#ifdef TK_ARM
#include <arm_neon.h>
#include <string.h>

#include "dot.h"

#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 256, TILE = 6 };

static size_t padded_heads(int32_t heads) { return ((size_t)heads + 15) / 16 * 16; }
static size_t row_words(int32_t type, int32_t dim) { return type == TK_I8 ? ((size_t)dim + 3) / 4 : (size_t)dim; }

size_t tk_neon_index_query_bytes(int32_t type, int32_t heads, int32_t dim) {
  return padded_heads(heads) * 4 * (1 + row_words(type, dim));
}

/* packed: weight [padded heads], then [sixteens of heads][words][16 heads][one word]. */
void tk_neon_index_pack_query(int32_t type, const void *query, const float *weight, int32_t heads, int32_t dim,
                              void *packed) {
  const size_t words = row_words(type, dim);
  memset(packed, 0, tk_neon_index_query_bytes(type, heads, dim));
  memcpy(packed, weight, (size_t)heads * sizeof(float));
  uint8_t *first = (uint8_t *)packed + padded_heads(heads) * sizeof(float);
  for (size_t head = 0; head < (size_t)heads; head++) {
    for (size_t d = 0; d < (size_t)dim; d++) {
      const size_t from = head * (size_t)dim + d, word = type == TK_I8 ? d / 4 : d;
      uint8_t *to = first + ((head / 16 * words + word) * 16 + head % 16) * 4;
      if (type == TK_I8) {
        to[d % 4] = ((const uint8_t *)query)[from];
      } else if (type == TK_F32) {
        memcpy(to, (const float *)query + from, sizeof(float));
      } else {
        const uint32_t wide = (uint32_t)((const uint16_t *)query)[from] << 16;
        memcpy(to, &wide, sizeof wide);
      }
    }
  }
}

/* The lanes of one key: heads 4i .. 4i + 3 of every sixteen. */
typedef struct lanes16 {
  float32x4_t quarter[4];
} lanes16;

static float sum_of_lanes(lanes16 lanes) {
  const float32x4_t low = vaddq_f32(lanes.quarter[0], lanes.quarter[2]);
  const float32x4_t high = vaddq_f32(lanes.quarter[1], lanes.quarter[3]);
  const float32x4_t four = vaddq_f32(low, high);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static void store_scores(const lanes16 *lanes, int keys, const float *scale, ptrdiff_t stride, float *scores) {
  for (int i = 0; i < keys; i++) {
    float factor = 1.0f;
    if (scale != NULL) memcpy(&factor, (const char *)scale + i * stride, sizeof factor);
    scores[i] = sum_of_lanes(lanes[i]) * factor;
  }
}

/* lane + weight * max(0, dot); fmax keeps a NaN. */
INLINE float32x4_t add_heads(float32x4_t lane, float32x4_t dot, const float *weight) {
  return vfmaq_f32(lane, vld1q_f32(weight), vmaxq_f32(vdupq_n_f32(0), dot));
}

typedef struct rows {
  const uint8_t *first;
  ptrdiff_t stride;
  int dim;
} rows;

/* ---- int8 ---------------------------------------------------------------------------------------------------- */

/* Four (or the last few) int8 of a row, repeated. */
INLINE int8x16_t broadcast_word(const uint8_t *row, size_t bytes) {
  int32_t value = 0;
  memcpy(&value, row, bytes);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

TK_DOTPROD INLINE void dot_word(const int keys, const int8_t *query, const uint8_t *row, ptrdiff_t stride,
                                const size_t bytes, int32x4_t *sum) {
  int8x16_t q[4];
  TK_UNROLL for (int j = 0; j < 4; j++) q[j] = vld1q_s8(query + j * 16);
  TK_UNROLL for (int i = 0; i < keys; i++) {
    const int8x16_t key = broadcast_word(row + i * stride, bytes);
    TK_UNROLL for (int j = 0; j < 4; j++) sum[i * 4 + j] = vdotq_s32(sum[i * 4 + j], q[j], key);
  }
}

TK_DOTPROD INLINE void dot_tile(const int keys, const uint8_t *packed, int heads, const rows *r, lanes16 *lanes) {
  const float *weight = (const float *)packed;
  const int8_t *query = (const int8_t *)packed + padded_heads(heads) * sizeof(float);
  for (int i = 0; i < keys; i++)
    for (int j = 0; j < 4; j++) lanes[i].quarter[j] = vdupq_n_f32(0);
  for (int first = 0; first < heads; first += 16) {
    int32x4_t sum[TILE * 4];
    TK_UNROLL for (int i = 0; i < keys * 4; i++) sum[i] = vdupq_n_s32(0);
    for (int word = 0; word < r->dim / 4; word++, query += 64)
      dot_word(keys, query, r->first + word * 4, r->stride, 4, sum);
    if (r->dim % 4 != 0) {
      dot_word(keys, query, r->first + r->dim / 4 * 4, r->stride, (size_t)r->dim % 4, sum);
      query += 64;
    }
    TK_UNROLL for (int i = 0; i < keys * 4; i++) {
      float32x4_t *lane = &lanes[i / 4].quarter[i % 4];
      *lane = add_heads(*lane, vcvtq_f32_s32(sum[i]), weight + first + i % 4 * 4);
    }
  }
}

TK_DOTPROD static void dot_scores(const uint8_t *packed, int heads, rows r, const float *scale, ptrdiff_t scale_stride,
                               int count, float *scores) {
  lanes16 lanes[TILE];
  for (int key = 0; key < count;) {
    const int keys = key + TILE <= count ? TILE : 1;
    if (keys == TILE) dot_tile(TILE, packed, heads, &r, lanes);
    else dot_tile(1, packed, heads, &r, lanes);
    store_scores(lanes, keys, scale, scale_stride, scores + key);
    key += keys, r.first += keys * r.stride;
    if (scale != NULL) scale = (const float *)((const char *)scale + keys * scale_stride);
  }
}

/* One word of a row against 16 heads; each head has two sums side by side: 8 registers. */
INLINE void long_word(const int8_t *query, const uint8_t *row, size_t bytes, int32x4_t *sum) {
  const int8x8_t key = vget_low_s8(broadcast_word(row, bytes));
  TK_UNROLL for (int j = 0; j < 8; j++) sum[j] = vpadalq_s16(sum[j], vmull_s8(vld1_s8(query + j * 8), key));
}

static void long_scores(const uint8_t *packed, int heads, rows r, const float *scale, ptrdiff_t scale_stride,
                        int count, float *scores) {
  const float *weight = (const float *)packed;
  for (int key = 0; key < count; key++, r.first += r.stride) {
    const int8_t *query = (const int8_t *)packed + padded_heads(heads) * sizeof(float);
    lanes16 lanes;
    for (int j = 0; j < 4; j++) lanes.quarter[j] = vdupq_n_f32(0);
    for (int first = 0; first < heads; first += 16) {
      int32x4_t sum[8];
      for (int j = 0; j < 8; j++) sum[j] = vdupq_n_s32(0);
      for (int at = 0; at < r.dim; at += 4, query += 64) {
        if (at + 4 <= r.dim) long_word(query, r.first + at, 4, sum);
        else long_word(query, r.first + at, (size_t)(r.dim - at), sum);
      }
      for (int j = 0; j < 4; j++)
        lanes.quarter[j] = add_heads(lanes.quarter[j], vcvtq_f32_s32(vpaddq_s32(sum[j * 2], sum[j * 2 + 1])),
                                     weight + first + j * 4);
    }
    store_scores(&lanes, 1, scale, scale_stride, scores + key);
    if (scale != NULL) scale = (const float *)((const char *)scale + scale_stride);
  }
}

/* ---- bfloat16, E4M3, float ------------------------------------------------------------------------------------- */

/* Four codes. Magnitudes below 8 are fraction * 2^-9, 0x7f is NaN. */
INLINE float32x4_t float_of_e4m3(uint32x4_t code) {
  const uint32x4_t magnitude = vandq_u32(code, vdupq_n_u32(0x7F));
  const uint32x4_t sign = vshlq_n_u32(vandq_u32(code, vdupq_n_u32(0x80)), 24);
  const uint32x4_t normal = vaddq_u32(vshlq_n_u32(magnitude, 20), vdupq_n_u32(120u << 23));
  const float32x4_t subnormal = vmulq_n_f32(vcvtq_f32_u32(magnitude), 0x1p-9f);
  uint32x4_t bits = vbslq_u32(vcltq_u32(magnitude, vdupq_n_u32(8)), vreinterpretq_u32_f32(subnormal), normal);
  bits = vorrq_u32(bits, vandq_u32(vceqq_u32(magnitude, vdupq_n_u32(0x7F)), vdupq_n_u32(0x7FC00000)));
  return vreinterpretq_f32_u32(vorrq_u32(bits, sign));
}

/* Eight elements of a row. */
INLINE void widen_eight(const int type, const uint8_t *row, float *wide) {
  if (type == TK_F32) {
    memcpy(wide, row, 32);
  } else if (type == TK_BF16) {
    const uint16x8_t bits = vreinterpretq_u16_u8(vld1q_u8(row));
    vst1q_f32(wide, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)));
    vst1q_f32(wide + 4, vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16)));
  } else {
    const uint16x8_t codes = vmovl_u8(vld1_u8(row));
    vst1q_f32(wide, float_of_e4m3(vmovl_u16(vget_low_u16(codes))));
    vst1q_f32(wide + 4, float_of_e4m3(vmovl_u16(vget_high_u16(codes))));
  }
}

/* Elements done .. done + count of the rows as float [keys][BLOCK]. */
INLINE void widen_tile(const int type, const int keys, const rows *r, int done, int count, float *wide) {
  const size_t bytes = type == TK_F32 ? 4 : type == TK_BF16 ? 2 : 1;
  for (int i = 0; i < keys; i++) {
    const uint8_t *row = r->first + i * r->stride + (size_t)done * bytes;
    int d = 0;
    for (; d + 8 <= count; d += 8) widen_eight(type, row + (size_t)d * bytes, wide + i * BLOCK + d);
    if (d == count) continue;
    uint8_t rest[32] = {0};
    memcpy(rest, row + (size_t)d * bytes, (size_t)(count - d) * bytes);
    widen_eight(type, rest, wide + i * BLOCK + d);
  }
}

INLINE void float_tile(const int type, const int keys, const uint8_t *packed, int heads, const rows *r,
                       lanes16 *lanes) {
  float wide[TILE * BLOCK];
  const float *weight = (const float *)packed, *query = weight + padded_heads(heads);
  for (int i = 0; i < keys; i++)
    for (int j = 0; j < 4; j++) lanes[i].quarter[j] = vdupq_n_f32(0);
  if (r->dim <= BLOCK) widen_tile(type, keys, r, 0, r->dim, wide);
  for (int first = 0; first < heads; first += 16) {
    float32x4_t sum[TILE * 4];
    TK_UNROLL for (int i = 0; i < keys * 4; i++) sum[i] = vdupq_n_f32(0);
    for (int done = 0; done < r->dim; done += BLOCK) {
      const int count = r->dim - done < BLOCK ? r->dim - done : BLOCK;
      if (r->dim > BLOCK) widen_tile(type, keys, r, done, count, wide);
      for (int d = 0; d < count; d++, query += 16) {
        float32x4_t q[4];
        TK_UNROLL for (int j = 0; j < 4; j++) q[j] = vld1q_f32(query + j * 4);
        TK_UNROLL for (int i = 0; i < keys * 4; i++) sum[i] = vfmaq_n_f32(sum[i], q[i % 4], wide[i / 4 * BLOCK + d]);
      }
    }
    TK_UNROLL for (int i = 0; i < keys * 4; i++) {
      /* A padded head may hold 0 * infinity. */
      const uint32x4_t position = vaddq_u32((uint32x4_t){0, 1, 2, 3}, vdupq_n_u32((uint32_t)(first + i % 4 * 4)));
      const uint32x4_t real = vcltq_u32(position, vdupq_n_u32((uint32_t)heads));
      const float32x4_t dot = vreinterpretq_f32_u32(vandq_u32(real, vreinterpretq_u32_f32(sum[i])));
      float32x4_t *lane = &lanes[i / 4].quarter[i % 4];
      *lane = add_heads(*lane, dot, weight + first + i % 4 * 4);
    }
  }
}

INLINE void float_scores(const int type, const uint8_t *packed, int heads, rows r, const float *scale,
                         ptrdiff_t scale_stride, int count, float *scores) {
  lanes16 lanes[TILE];
  for (int key = 0; key < count;) {
    const int keys = key + TILE <= count ? TILE : 1;
    if (keys == TILE) float_tile(type, TILE, packed, heads, &r, lanes);
    else float_tile(type, 1, packed, heads, &r, lanes);
    store_scores(lanes, keys, scale, scale_stride, scores + key);
    key += keys, r.first += keys * r.stride;
    if (scale != NULL) scale = (const float *)((const char *)scale + keys * scale_stride);
  }
}

void tk_neon_index_scores(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys,
                          ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride, int32_t count,
                          const tk_beside *beside,
                          float *scores) {
  (void)beside;
  const rows r = {keys, key_stride, dim};
  if (type == TK_I8) {
    if (tk_has_dot_product()) dot_scores(packed, heads, r, key_scale, scale_stride, count, scores);
    else long_scores(packed, heads, r, key_scale, scale_stride, count, scores);
  } else if (type == TK_BF16) {
    float_scores(TK_BF16, packed, heads, r, key_scale, scale_stride, count, scores);
  } else if (type == TK_F32) {
    float_scores(TK_F32, packed, heads, r, key_scale, scale_stride, count, scores);
  } else {
    float_scores(TK_E4M3, packed, heads, r, key_scale, scale_stride, count, scores);
  }
}
#endif
