/* Selection with NEON: filter scores by a threshold, and keep the k best of a candidate list.
 *
 * The compare mask of four lanes becomes a number, which picks one of 16 byte shuffles (tbl); the full register is
 * stored, and what lies behind the last survivor is overwritten by the next vector. The last scores of an array are
 * done one by one. The k-th best comes from select_kth.h; here are its passes and the compaction. Nothing beyond
 * ARMv8.0 is used; no buffer and no policy is owned here. */
#include "../internal.h"
#ifdef TK_ARM
#include <arm_neon.h>

#define SELECT_TARGET

/* Entry m: the bytes of the lanes whose bit is set in m, side by side; 255 gives 0. */
#define LANE(l) 4 * (l), 4 * (l) + 1, 4 * (l) + 2, 4 * (l) + 3
#define NONE 255, 255, 255, 255
static const uint8_t survivors[16][16] = {
    {NONE, NONE, NONE, NONE},          {LANE(0), NONE, NONE, NONE},
    {LANE(1), NONE, NONE, NONE},       {LANE(0), LANE(1), NONE, NONE},
    {LANE(2), NONE, NONE, NONE},       {LANE(0), LANE(2), NONE, NONE},
    {LANE(1), LANE(2), NONE, NONE},    {LANE(0), LANE(1), LANE(2), NONE},
    {LANE(3), NONE, NONE, NONE},       {LANE(0), LANE(3), NONE, NONE},
    {LANE(1), LANE(3), NONE, NONE},    {LANE(0), LANE(1), LANE(3), NONE},
    {LANE(2), LANE(3), NONE, NONE},    {LANE(0), LANE(2), LANE(3), NONE},
    {LANE(1), LANE(2), LANE(3), NONE}, {LANE(0), LANE(1), LANE(2), LANE(3)}};

static inline uint32_t lanes_of(uint32x4_t compared) {
  static const uint32_t bits[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(compared, vld1q_u32(bits)));
}

/* Stores the lanes of the mask side by side, and garbage up to the fourth element; returns how many. */
static inline int32_t append_scores(float *to, float32x4_t score, uint32_t mask) {
  const uint8x16_t lanes = vld1q_u8(survivors[mask]);
  vst1q_u8((uint8_t *)to, vqtbl1q_u8(vreinterpretq_u8_f32(score), lanes));
  return __builtin_popcount(mask);
}

static inline int32_t append(float *to_score, int32_t *to_index, float32x4_t score, int32x4_t index, uint32_t mask) {
  const uint8x16_t lanes = vld1q_u8(survivors[mask]);
  vst1q_u8((uint8_t *)to_index, vqtbl1q_u8(vreinterpretq_u8_s32(index), lanes));
  return append_scores(to_score, score, mask);
}

static int32_t count_at_least(const float *x, int32_t n, float v) {
  const float32x4_t limit = vdupq_n_f32(v);
  uint32x4_t counts = vdupq_n_u32(0);
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) counts = vsubq_u32(counts, vcgeq_f32(vld1q_f32(x + i), limit));
  int32_t count = (int32_t)vaddvq_u32(counts);
  for (; i < n; i++) count += x[i] >= v;
  return count;
}

static int32_t count_above(const float *x, int32_t n, float v) {
  const float32x4_t limit = vdupq_n_f32(v);
  uint32x4_t counts = vdupq_n_u32(0);
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) counts = vsubq_u32(counts, vcgtq_f32(vld1q_f32(x + i), limit));
  int32_t count = (int32_t)vaddvq_u32(counts);
  for (; i < n; i++) count += x[i] > v;
  return count;
}

static float smallest_at_least(const float *x, int32_t n, float v) {
  const float32x4_t limit = vdupq_n_f32(v), infinity = vdupq_n_f32(__builtin_inff());
  float32x4_t smallest = infinity;
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t score = vld1q_f32(x + i);
    smallest = vminq_f32(smallest, vbslq_f32(vcgeq_f32(score, limit), score, infinity));
  }
  float least = vminvq_f32(smallest);
  for (; i < n; i++) least = x[i] >= v && x[i] < least ? x[i] : least;
  return least;
}

static void collect_between(const float *x, int32_t n, float low, float high, float *inside) {
  const float32x4_t bottom = vdupq_n_f32(low), top = vdupq_n_f32(high);
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t score = vld1q_f32(x + i);
    inside += append_scores(inside, score, lanes_of(vandq_u32(vcgtq_f32(score, bottom), vcltq_f32(score, top))));
  }
  for (; i < n; i++) {
    *inside = x[i];
    inside += (x[i] > low) & (x[i] < high);
  }
}

#include "../select_kth.h"

static inline int32x4_t lane_numbers(int32_t first) {
  static const int32_t lanes[4] = {0, 1, 2, 3};
  return vaddq_s32(vdupq_n_s32(first), vld1q_s32(lanes));
}

int32_t tk_neon_select_above(const float *scores, int32_t count, int32_t base, float threshold,
                             float *candidate_score, int32_t *candidate_index) {
  const float32x4_t limit = vdupq_n_f32(threshold);
  int32_t kept = 0, i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t score = vld1q_f32(scores + i);
    const uint32_t above = lanes_of(vcgtq_f32(score, limit));
    kept += append(candidate_score + kept, candidate_index + kept, score, lane_numbers(base + i), above);
  }
  for (; i < count; i++) {
    candidate_score[kept] = scores[i];
    candidate_index[kept] = base + i;
    kept += scores[i] > threshold;
  }
  return kept;
}

void tk_neon_select_all(const float *scores, int32_t count, int32_t base, float *candidate_score,
                        int32_t *candidate_index) {
  const float32x4_t lowest = vdupq_n_f32(-__builtin_inff());
  int32_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t score = vld1q_f32(scores + i);
    vst1q_f32(candidate_score + i, vbslq_f32(vceqq_f32(score, score), score, lowest));
    vst1q_s32(candidate_index + i, lane_numbers(base + i));
  }
  tk_portable_select_all(scores + i, count - i, base + i, candidate_score + i, candidate_index + i);
}

/* Keeps what is above `least` and the first `ties` of what equals it, in place and in order. */
static void keep(float *candidate_score, int32_t *candidate_index, int32_t count, float least, int32_t ties) {
  const float32x4_t limit = vdupq_n_f32(least);
  int32_t kept = 0, i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t score = vld1q_f32(candidate_score + i);
    const int32x4_t index = vld1q_s32(candidate_index + i);
    uint32_t equal = lanes_of(vceqq_f32(score, limit));
    if (ties == 0) equal = 0;
    while (__builtin_popcount(equal) > ties) equal &= ~(0x80000000u >> __builtin_clz(equal));
    ties -= __builtin_popcount(equal);
    kept += append(candidate_score + kept, candidate_index + kept, score, index,
                   lanes_of(vcgtq_f32(score, limit)) | equal);
  }
  for (; i < count; i++) {
    const float score = candidate_score[i];
    const int32_t tie = (score == least) & (ties > 0);
    candidate_score[kept] = score;
    candidate_index[kept] = candidate_index[i];
    kept += (score > least) | tie;
    ties -= tie;
  }
}

float tk_neon_select_shrink(float *candidate_score, int32_t *candidate_index, int32_t count, int32_t k,
                            void *scratch) {
  const float least = kth_largest(candidate_score, count, k, scratch);
  keep(candidate_score, candidate_index, count, least, k - count_above(candidate_score, count, least));
  return least;
}
#endif
