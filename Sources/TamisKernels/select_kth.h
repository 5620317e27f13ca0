/* The k-th largest of many scores, by brackets from a sample: the part of selection that every vector
 * instruction set shares. A select.c includes this file after defining
 *
 *   SELECT_TARGET                     the functions' target attribute
 *   count_at_least(x, n, v)           how many x[i] >= v
 *   count_above(x, n, v)              how many x[i] > v
 *   smallest_at_least(x, n, v)        the smallest x[i] >= v
 *   collect_between(x, n, low, high, inside)
 *                                     writes the x[i] with low < x[i] < high to `inside`, and up to 16 elements of
 *                                     garbage behind them; inside == x is allowed
 *
 * A pass over the scores costs a few cycles per vector, so what counts is the number of passes: a small strided
 * sample brackets the wanted rank, one pass keeps what lies inside, and the rest is a bisection over a few
 * hundred scores. A bracket that misses (sorted data) only costs a pass, and after SELECT_ROUNDS of them a bisection
 * of at most 32 steps over everything decides. Plateaus - a ReLU makes them - end up as the end of a bracket, and
 * whether the wanted score is an end is asked at once. Compares are float compares, so -0 equals +0. */
#ifndef TAMIS_SELECT_KTH_H
#define TAMIS_SELECT_KTH_H
#include "internal.h"
#include <string.h>

enum {
  SELECT_FEW = 512,        /* bisected without another round           */
  SELECT_ROUNDS = 4,       /* brackets tried before the full bisection */
  SELECT_INSIDE = 4096,    /* floats of scratch for what lies inside   */
  SELECT_SAMPLE = 2048,    /* floats of scratch for the sample ...     */
  SELECT_SAMPLE_FEW = 256, /* ... of which fewer scores take fewer ... */
  SELECT_MANY = 32768      /* ... than this many                       */
};
_Static_assert((SELECT_INSIDE + SELECT_SAMPLE) * sizeof(float) <= TK_SHRINK_SCRATCH, "scratch");

/* Order-preserving 32-bit keys, so that a bisection halves the number of distinct floats in between. */
static inline uint32_t select_key(float score) {
  uint32_t bits;
  memcpy(&bits, &score, 4);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

static inline float select_score(uint32_t key) {
  uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float score;
  memcpy(&score, &bits, 4);
  return score;
}

/* A value v in [low, high] with least <= count(x >= v) <= most; if there is none, the largest v with at least
 * `least`. */
SELECT_TARGET static float value_at_rank(const float *x, int32_t n, int32_t least, int32_t most, float low,
                                         float high) {
  uint32_t bottom = select_key(low), top = select_key(high);
  while (bottom < top) {
    const uint32_t middle = bottom + (top - bottom) / 2 + 1;
    const float value = select_score(middle);
    const int32_t count = count_at_least(x, n, value);
    if (count < least)
      top = middle - 1;
    else if (count > most)
      bottom = middle;
    else
      return value;
  }
  return select_score(bottom);
}

/* Copies every stride-th of x that lies in [low, high]; returns how many. */
SELECT_TARGET static int32_t take_sample(const float *x, int32_t n, int32_t start, int32_t stride, float low,
                                         float high, float *sample) {
  int32_t taken = 0;
  for (int32_t i = start; i < n && taken < SELECT_SAMPLE; i += stride) {
    sample[taken] = x[i];
    taken += (x[i] >= low) & (x[i] <= high);
  }
  return taken;
}

static inline int32_t select_root(int32_t n) {
  int32_t root = 1;
  while (root * root < n) root++;
  return root;
}

/* Narrows [*low, *high], in which the sample lies, to where rank `wanted` of `total` is likely: about two standard
 * deviations of the sample rank to each side. */
SELECT_TARGET static void narrow(const float *sample, int32_t taken, int32_t wanted, int32_t total, float *low,
                                 float *high) {
  const int32_t rank = (int32_t)((int64_t)wanted * taken / total);
  const int32_t nearer = rank < taken - rank ? rank : taken - rank;
  const int32_t margin = 1 + 2 * select_root(nearer), slack = margin / 8 + 1;
  const float bottom = *low, top = *high;
  if (rank + margin < taken) *low = value_at_rank(sample, taken, rank + margin, rank + margin + slack, bottom, top);
  if (rank - margin > slack) *high = value_at_rank(sample, taken, rank - margin - slack, rank - margin, *low, top);
}

/* The next float, zeros being one number. */
static inline float select_next_above(float score) { return select_score(select_key(score + 0.0f) + 1); }
static inline float select_next_below(float score) { return -select_next_above(-score); }

/* The k-th largest of x[0, n), 0 < k <= n, as +0 where it is a zero. */
SELECT_TARGET static float kth_largest(const float *x, int32_t n, int32_t k, void *scratch) {
  float *inside = scratch, *sample = inside + SELECT_INSIDE;
  float low = -__builtin_inff(), high = __builtin_inff(); /* what is wanted lies in [low, high]        */
  int32_t beyond = 0, between = n;                        /* how many x > high, how many in [low, high] */
  for (int32_t round = 0; round < SELECT_ROUNDS && n > SELECT_FEW; round++) {
    const int32_t stride = n / (n < SELECT_MANY ? SELECT_SAMPLE_FEW : SELECT_SAMPLE) + 1;
    const int32_t taken = take_sample(x, n, (stride - 1) * round / SELECT_ROUNDS, stride, low, high, sample);
    if (taken < 32) break;
    float bottom = low, top = high;
    narrow(sample, taken, k - beyond, between, &bottom, &top);
    const int32_t above_top = count_above(x, n, top), above_bottom = count_above(x, n, bottom);
    if (k <= above_top) {
      low = select_next_above(top), between = above_top - beyond;
      continue;
    }
    const int32_t from_top = count_at_least(x, n, top), from_bottom = count_at_least(x, n, bottom);
    if (k > from_bottom) {
      high = select_next_below(bottom), between -= from_bottom - beyond, beyond = from_bottom;
      continue;
    }
    if (k <= from_top) return top + 0.0f;
    if (k > above_bottom) return bottom + 0.0f;
    low = select_next_above(bottom), high = select_next_below(top);
    beyond = from_top, between = above_bottom - from_top;
    if (between <= SELECT_INSIDE - 16) {
      collect_between(x, n, bottom, top, inside);
      x = inside, n = between, k -= beyond, beyond = 0;
    }
  }
  return smallest_at_least(x, n, value_at_rank(x, n, k, k, low, high)) + 0.0f;
}
#endif
