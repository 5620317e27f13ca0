/* Index scores with AVX2 and FMA: int8 widened to int16 for vpmaddwd (exact: no product of two int8 pairs
 * saturates), bfloat16 and E4M3 widened to float. Owns the packed query of the "avx2" table; refuses nothing.
 *
 * Six rows at a time are widened into a tile in the first cache level, BLOCK elements at most, zero-filled at the
 * row's end. One 32-bit word of a row (2 int16 or 1 float) is then broadcast and meets the same word of 16 heads
 * in two registers: 6 keys x 2 registers are 12 accumulators of the 16 registers. More heads are done 16 at a time.
 * Error: int8 none before the float head sum; the others one fused multiply-add per element, in order (products of
 * two bfloat16 or of E4M3 and bfloat16 are exact in float; subnormals are kept). */
#include "../internal.h"
#ifdef TK_X86
#include "lanes.h"

enum { BLOCK = 256, TILE = 6 };

static size_t padded_heads(int32_t heads) { return ((size_t)heads + 15) / 16 * 16; }

/* 32-bit words of a widened row. */
static size_t row_words(int32_t type, int32_t dim) { return type == TK_I8 ? ((size_t)dim + 1) / 2 : (size_t)dim; }

size_t tk_avx2_index_query_bytes(int32_t type, int32_t heads, int32_t dim) {
  return padded_heads(heads) * 4 * (1 + row_words(type, dim));
}

/* packed: weight [padded heads], then [sixteens of heads][words][16 heads][one word]. */
void tk_avx2_index_pack_query(int32_t type, const void *query, const float *weight, int32_t heads, int32_t dim,
                              void *packed) {
  const size_t words = row_words(type, dim), elements = type == TK_I8 ? 2 : 1;
  memset(packed, 0, tk_avx2_index_query_bytes(type, heads, dim));
  memcpy(packed, weight, (size_t)heads * sizeof(float));
  uint8_t *first = (uint8_t *)packed + padded_heads(heads) * sizeof(float);
  for (size_t head = 0; head < (size_t)heads; head++) {
    for (size_t d = 0; d < (size_t)dim; d++) {
      const size_t from = head * (size_t)dim + d;
      uint8_t *to = first + ((head / 16 * words + d / elements) * 16 + head % 16) * 4;
      if (type == TK_I8) {
        const int16_t wide = ((const int8_t *)query)[from];
        memcpy(to + d % 2 * 2, &wide, sizeof wide);
      } else if (type == TK_F32) {
        memcpy(to, (const float *)query + from, sizeof(float));
      } else {
        const uint32_t wide = (uint32_t)((const uint16_t *)query)[from] << 16;
        memcpy(to, &wide, sizeof wide);
      }
    }
  }
}

/* Eight codes in 32-bit lanes. Magnitudes below 8 are fraction * 2^-9, 0x7f is NaN. */
TK_AVX2_INLINE __m256i float_of_e4m3(__m256i code) {
  const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7F));
  const __m256i sign = _mm256_slli_epi32(_mm256_andnot_si256(_mm256_set1_epi32(0x7F), code), 24);
  const __m256i normal = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), _mm256_set1_epi32(120 << 23));
  const __m256 subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0x1p-9f));
  const __m256i is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
  const __m256i is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7F));
  __m256i bits = _mm256_blendv_epi8(normal, _mm256_castps_si256(subnormal), is_subnormal);
  bits = _mm256_or_si256(bits, _mm256_and_si256(is_nan, _mm256_set1_epi32(0x7FC00000)));
  return _mm256_or_si256(bits, sign);
}

/* Eight elements of a row (16 of int8) as eight words. */
TK_AVX2_INLINE __m256i widen_eight(const int type, const uint8_t *row) {
  if (type == TK_I8) return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)row));
  if (type == TK_BF16)
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)row)), 16);
  if (type == TK_E4M3) return float_of_e4m3(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)row)));
  return _mm256_loadu_si256((const __m256i *)row);
}

/* `count` <= BLOCK elements of a row as words; the words of an incomplete eight beyond them become zero. */
TK_AVX2_INLINE void widen_row(const int type, const uint8_t *row, int count, int32_t *words) {
  const int step = type == TK_I8 ? 16 : 8;
  const size_t bytes = type == TK_F32 ? 4 : type == TK_BF16 ? 2 : 1;
  int done = 0;
  for (; done + step <= count; done += step, words += 8)
    _mm256_store_si256((__m256i *)words, widen_eight(type, row + (size_t)done * bytes));
  if (done == count) return;
  uint8_t rest[32] = {0};
  memcpy(rest, row + (size_t)done * bytes, (size_t)(count - done) * bytes);
  _mm256_store_si256((__m256i *)words, widen_eight(type, rest));
}

TK_AVX2_INLINE __m256i multiply_add(const int type, __m256i sum, __m256i query, __m256i key) {
  if (type == TK_I8) return _mm256_add_epi32(sum, _mm256_madd_epi16(query, key));
  return _mm256_castps_si256(
      _mm256_fmadd_ps(_mm256_castsi256_ps(query), _mm256_castsi256_ps(key), _mm256_castsi256_ps(sum)));
}

typedef struct rows {
  const uint8_t *first;
  ptrdiff_t stride;
  int dim;
} rows;

/* The rows' elements done .. done + count as words[keys][BLOCK]. */
TK_AVX2_INLINE void widen_tile(const int type, const int keys, const rows *r, int done, int count, int32_t *words) {
  const ptrdiff_t bytes = type == TK_F32 ? 4 : type == TK_BF16 ? 2 : 1;
  for (int i = 0; i < keys; i++)
    widen_row(type, r->first + i * r->stride + done * bytes, count, words + i * BLOCK);
}

/* sum[keys][2] += the words of the tile x [words][16 heads] of the query. */
TK_AVX2_INLINE void multiply_tile(const int type, const int keys, const uint8_t *query, const int32_t *words,
                                  int count, __m256i *sum) {
  for (int word = 0; word < count; word++, query += 64) {
    const __m256i low = _mm256_load_si256((const __m256i *)query);
    const __m256i high = _mm256_load_si256((const __m256i *)(query + 32));
    TK_UNROLL for (int i = 0; i < keys; i++) {
      const __m256i key = _mm256_set1_epi32(words[i * BLOCK + word]);
      sum[i * 2] = multiply_add(type, sum[i * 2], low, key);
      sum[i * 2 + 1] = multiply_add(type, sum[i * 2 + 1], high, key);
    }
  }
}

/* lane += weight * max(0, dot) for one sixteen of heads; `heads` of them are real: a padded float head may hold
 * 0 * infinity. */
TK_AVX2_INLINE void add_heads(const int type, __m256i sum, const float *weight, int heads, __m256 *lane) {
  const __m256i position = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 dot = type == TK_I8 ? _mm256_cvtepi32_ps(sum) : _mm256_castsi256_ps(sum);
  if (heads < 8)
    dot = _mm256_and_ps(dot, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(heads), position)));
  *lane = tk_half_add(*lane, dot, weight);
}

/* The head sums of `keys` rows. */
TK_AVX2_INLINE void score_tile(const int type, const int keys, const uint8_t *packed, int heads, const rows *r,
                               tk_half_lanes *lanes) {
  __attribute__((aligned(32))) int32_t words[TILE * BLOCK];
  const float *weight = (const float *)packed;
  const size_t row = row_words(type, r->dim);
  const uint8_t *query = packed + padded_heads(heads) * sizeof(float);
  for (int i = 0; i < keys; i++) lanes[i].half[0] = lanes[i].half[1] = _mm256_setzero_ps();
  if (r->dim <= BLOCK) widen_tile(type, keys, r, 0, r->dim, words);
  for (int first = 0; first < heads; first += 16, query += row * 64) {
    __m256i sum[TILE * 2];
    TK_UNROLL for (int i = 0; i < keys * 2; i++) sum[i] = _mm256_setzero_si256();
    for (int done = 0; done < r->dim; done += BLOCK) {
      const int count = r->dim - done < BLOCK ? r->dim - done : BLOCK;
      if (r->dim > BLOCK) widen_tile(type, keys, r, done, count, words);
      multiply_tile(type, keys, query + row_words(type, done) * 64, words, (int)row_words(type, count), sum);
    }
    TK_UNROLL for (int i = 0; i < keys; i++) {
      add_heads(type, sum[i * 2], weight + first, heads - first, &lanes[i].half[0]);
      add_heads(type, sum[i * 2 + 1], weight + first + 8, heads - first - 8, &lanes[i].half[1]);
    }
  }
}

#define SCORES_OF(type)                                                                                       \
  TK_AVX2 static void scores_##type(const uint8_t *packed, int heads, rows r, const float *scale,             \
                                    ptrdiff_t scale_stride, int count, float *scores) {                       \
    tk_half_lanes lanes[TILE];                                                                                \
    int key = 0;                                                                                              \
    for (; key + TILE <= count; key += TILE, r.first += TILE * r.stride) {                                    \
      score_tile(type, TILE, packed, heads, &r, lanes);                                                       \
      for (int i = 0; i < TILE; i++) scores[key + i] = tk_score(lanes[i], scale, scale_stride, key + i);      \
    }                                                                                                         \
    for (; key < count; key++, r.first += r.stride) {                                                         \
      score_tile(type, 1, packed, heads, &r, lanes);                                                          \
      scores[key] = tk_score(lanes[0], scale, scale_stride, key);                                             \
    }                                                                                                         \
  }
SCORES_OF(TK_I8)
SCORES_OF(TK_BF16)
SCORES_OF(TK_F32)
SCORES_OF(TK_E4M3)

void tk_avx2_index_scores(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys,
                          ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride, int32_t count,
                          const tk_beside *beside,
                          float *scores) {
  (void)beside;
  const rows r = {keys, key_stride, dim};
  if (type == TK_I8) scores_TK_I8(packed, heads, r, key_scale, scale_stride, count, scores);
  if (type == TK_BF16) scores_TK_BF16(packed, heads, r, key_scale, scale_stride, count, scores);
  if (type == TK_F32) scores_TK_F32(packed, heads, r, key_scale, scale_stride, count, scores);
  if (type == TK_E4M3) scores_TK_E4M3(packed, heads, r, key_scale, scale_stride, count, scores);
}
#endif
