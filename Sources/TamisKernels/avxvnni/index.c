/* Index scores with AVX-VNNI: int8 by vpdpbusd on 256-bit registers; the other types are AVX2's. Owns the packed
 * int8 query of the "avxvnni" table; refuses nothing.
 *
 * Four int8 of a key row are broadcast and meet the same four of 16 heads: 6 keys x 2 registers are 12
 * accumulators. vpdpbusd multiplies unsigned by signed, so queries are stored biased by 128 and the accumulators
 * of a key start at -128 * sum(key): the int32 dot product is exact, and scores have the bits of every table. */
#include "../internal.h"
#ifdef TK_X86
#include "../avx2/lanes.h"

#define TK_AVXVNNI __attribute__((target("avx2,fma,f16c,bmi,bmi2,avxvnni")))
#define TK_AVXVNNI_INLINE static inline __attribute__((always_inline)) TK_AVXVNNI

enum { TILE = 6 };

static size_t padded_heads(int32_t heads) { return ((size_t)heads + 15) / 16 * 16; }
static size_t row_words(int32_t dim) { return ((size_t)dim + 3) / 4; }

size_t tk_avxvnni_index_query_bytes(int32_t type, int32_t heads, int32_t dim) {
  if (type != TK_I8) return tk_avx2_index_query_bytes(type, heads, dim);
  return padded_heads(heads) * 4 * (1 + row_words(dim));
}

/* packed: weight [padded heads], then [sixteens of heads][words][16 heads][4 biased int8]. */
void tk_avxvnni_index_pack_query(int32_t type, const void *query, const float *weight, int32_t heads, int32_t dim,
                                 void *packed) {
  if (type != TK_I8) {
    tk_avx2_index_pack_query(type, query, weight, heads, dim, packed);
    return;
  }
  const size_t padded = padded_heads(heads), words = row_words(dim);
  uint8_t *first = (uint8_t *)packed + padded * sizeof(float);
  memset(packed, 0, padded * sizeof(float));
  memcpy(packed, weight, (size_t)heads * sizeof(float));
  memset(first, 0x80, padded * words * 4);
  for (size_t head = 0; head < (size_t)heads; head++)
    for (size_t d = 0; d < (size_t)dim; d++)
      first[((head / 16 * words + d / 4) * 16 + head % 16) * 4 + d % 4] =
          (uint8_t)(((const int8_t *)query)[head * (size_t)dim + d] ^ 0x80);
}

/* -128 * sum of a row. */
TK_AVXVNNI_INLINE int32_t bias_of_row(const uint8_t *row, int dim) {
  const __m256i bias = _mm256_set1_epi8((char)0x80);
  __m256i sum = _mm256_setzero_si256();
  int done = 0;
  for (; done + 32 <= dim; done += 32)
    sum = _mm256_dpbusd_avx_epi32(sum, bias, _mm256_loadu_si256((const __m256i *)(row + done)));
  if (done < dim) {
    uint8_t rest[32] = {0};
    memcpy(rest, row + done, (size_t)(dim - done));
    sum = _mm256_dpbusd_avx_epi32(sum, bias, _mm256_loadu_si256((const __m256i *)rest));
  }
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return -_mm_cvtsi128_si32(four);
}

/* Word `word` of the rows, `bytes` of it real, against 16 heads. */
TK_AVXVNNI_INLINE void multiply_word(const int keys, const uint8_t *query, const uint8_t *row, ptrdiff_t stride,
                                     const size_t bytes, __m256i *sum) {
  const __m256i low = _mm256_load_si256((const __m256i *)query);
  const __m256i high = _mm256_load_si256((const __m256i *)(query + 32));
  TK_UNROLL for (int i = 0; i < keys; i++) {
    int32_t value = 0;
    memcpy(&value, row + i * stride, bytes);
    const __m256i key = _mm256_set1_epi32(value);
    sum[i * 2] = _mm256_dpbusd_avx_epi32(sum[i * 2], low, key);
    sum[i * 2 + 1] = _mm256_dpbusd_avx_epi32(sum[i * 2 + 1], high, key);
  }
}

/* The head sums of `keys` rows. */
TK_AVXVNNI_INLINE void score_tile(const int keys, const uint8_t *packed, int heads, int dim, const uint8_t *row,
                                  ptrdiff_t stride, tk_half_lanes *lanes) {
  const float *weight = (const float *)packed;
  const uint8_t *query = packed + padded_heads(heads) * sizeof(float);
  int32_t start[TILE];
  for (int i = 0; i < keys; i++) {
    start[i] = bias_of_row(row + i * stride, dim);
    lanes[i].half[0] = lanes[i].half[1] = _mm256_setzero_ps();
  }
  for (int first = 0; first < heads; first += 16) {
    __m256i sum[TILE * 2];
    TK_UNROLL for (int i = 0; i < keys * 2; i++) sum[i] = _mm256_set1_epi32(start[i / 2]);
    for (int word = 0; word < dim / 4; word++, query += 64)
      multiply_word(keys, query, row + word * 4, stride, 4, sum);
    if (dim % 4 != 0) {
      multiply_word(keys, query, row + dim / 4 * 4, stride, (size_t)dim % 4, sum);
      query += 64;
    }
    TK_UNROLL for (int i = 0; i < keys * 2; i++) {
      __m256 *lane = &lanes[i / 2].half[i % 2];
      *lane = tk_half_add(*lane, _mm256_cvtepi32_ps(sum[i]), weight + first + i % 2 * 8);
    }
  }
}

TK_AVXVNNI static void scores_int8(const uint8_t *packed, int heads, int dim, const uint8_t *row, ptrdiff_t stride,
                                   const float *scale, ptrdiff_t scale_stride, int count, float *scores) {
  tk_half_lanes lanes[TILE];
  int key = 0;
  for (; key + TILE <= count; key += TILE, row += TILE * stride) {
    score_tile(TILE, packed, heads, dim, row, stride, lanes);
    for (int i = 0; i < TILE; i++) scores[key + i] = tk_score(lanes[i], scale, scale_stride, key + i);
  }
  for (; key < count; key++, row += stride) {
    score_tile(1, packed, heads, dim, row, stride, lanes);
    scores[key] = tk_score(lanes[0], scale, scale_stride, key);
  }
}

void tk_avxvnni_index_scores(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys,
                             ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride, int32_t count,
                             const tk_beside *beside,
                             float *scores) {
  if (type == TK_I8)
    scores_int8(packed, heads, dim, keys, key_stride, key_scale, scale_stride, count, scores);
  else
    tk_avx2_index_scores(type, packed, heads, dim, keys, key_stride, key_scale, scale_stride, count, beside, scores);
}
#endif
