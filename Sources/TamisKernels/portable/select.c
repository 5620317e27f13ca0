/* Selection in plain C, for any CPU: filter scores by a threshold, and keep the k best of a candidate list.
 *
 * The k-th best is found by a radix count over order-preserving 32-bit keys, 11 + 11 + 10 bits, from the top.
 * It shares no step with the vector versions (select_kth.h), so the tests can hold one against the other.
 * This file owns no buffer and no policy: when to shrink is the driver's choice. */
#include "../internal.h"
#include <string.h>

enum { BINS = 2048 };

/* Scores in ascending order have keys in ascending order; -0 and +0 have the same key. */
static inline uint32_t key_of(float score) {
  uint32_t bits;
  memcpy(&bits, &score, 4);
  if (bits == 0x80000000u) bits = 0;
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

static inline float score_of(uint32_t key) {
  uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float score;
  memcpy(&score, &bits, 4);
  return score;
}

int32_t tk_portable_select_above(const float *scores, int32_t count, int32_t base, float threshold,
                                 float *candidate_score, int32_t *candidate_index) {
  int32_t kept = 0;
  for (int32_t i = 0; i < count; i++) { /* no branch: what passes is not predictable */
    candidate_score[kept] = scores[i];
    candidate_index[kept] = base + i;
    kept += scores[i] > threshold;
  }
  return kept;
}

void tk_portable_select_all(const float *scores, int32_t count, int32_t base, float *candidate_score,
                            int32_t *candidate_index) {
  for (int32_t i = 0; i < count; i++) {
    candidate_score[i] = scores[i] == scores[i] ? scores[i] : -__builtin_inff();
    candidate_index[i] = base + i;
  }
}

/* Counts, by the `bits` key bits above `shift`, the scores whose higher bits equal those of `prefix`. */
static void count_digits(const float *score, int32_t count, uint32_t prefix, int32_t shift, int32_t bits,
                         uint32_t *bin) {
  const uint64_t above = (uint64_t)prefix >> (shift + bits);
  memset(bin, 0, sizeof(uint32_t) << bits);
  for (int32_t i = 0; i < count; i++) {
    const uint32_t key = key_of(score[i]);
    bin[(key >> shift) & ((1u << bits) - 1)] += ((uint64_t)key >> (shift + bits)) == above;
  }
}

/* The key of the k-th best score; *ties becomes how many of the scores equal to it belong to the k best. */
static uint32_t kth_key(const float *score, int32_t count, int32_t k, uint32_t *bin, int32_t *ties) {
  static const int32_t shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
  uint32_t key = 0, wanted = (uint32_t)k;
  for (int32_t pass = 0; pass < 3; pass++) {
    count_digits(score, count, key, shifts[pass], widths[pass], bin);
    uint32_t digit = (1u << widths[pass]) - 1;
    while (digit > 0 && bin[digit] < wanted) wanted -= bin[digit--];
    key |= digit << shifts[pass];
  }
  *ties = (int32_t)wanted;
  return key;
}

float tk_portable_select_shrink(float *candidate_score, int32_t *candidate_index, int32_t count, int32_t k,
                                void *scratch) {
  _Static_assert(BINS * sizeof(uint32_t) <= TK_SHRINK_SCRATCH, "one digit's bins fit the scratch");
  int32_t ties, kept = 0;
  const uint32_t least = kth_key(candidate_score, count, k, scratch, &ties);
  for (int32_t i = 0; i < count; i++) {
    const float score = candidate_score[i];
    const uint32_t key = key_of(score);
    const int32_t tie = (key == least) & (ties > 0);
    candidate_score[kept] = score;
    candidate_index[kept] = candidate_index[i];
    kept += (key > least) | tie;
    ties -= tie;
  }
  return score_of(least);
}
