/* One select and one attend over the same random numbers every time, to compare results between threads, processes
 * and contexts bit by bit. */
#ifndef TAMIS_TESTS_WORK_H
#define TAMIS_TESTS_WORK_H
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { WORK_ROWS = 3, WORK_KEYS = 5000, WORK_HEADS = 8, WORK_DIM = 64, WORK_K = 256 };

typedef struct work_result {
  int32_t indices[WORK_ROWS * WORK_K];
  float scores[WORK_ROWS * WORK_K];
  float out[WORK_ROWS * WORK_HEADS * WORK_DIM];
  float lse[WORK_ROWS * WORK_HEADS];
} work_result;

static float work_q[WORK_ROWS * WORK_HEADS * WORK_DIM];
static float work_w[WORK_ROWS * WORK_HEADS];
static float work_key[WORK_KEYS * WORK_DIM];

static inline void work_prepare(void) {
  uint32_t state = 12345;
  float *parts[] = {work_q, work_w, work_key};
  const size_t counts[] = {sizeof work_q / 4, sizeof work_w / 4, sizeof work_key / 4};
  for (int part = 0; part < 3; part++)
    for (size_t i = 0; i < counts[part]; i++) {
      state = state * 1664525u + 1013904223u;
      parts[part][i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
}

/* Returns the first status that is not TAMIS_OK. */
static inline tamis_status work_run(tamis_ctx *ctx, work_result *result) {
  const tamis_tensor q = {work_q, TAMIS_F32, 3, {WORK_ROWS, WORK_HEADS, WORK_DIM}, {0}, NULL, 0};
  const tamis_tensor w = {work_w, TAMIS_F32, 2, {WORK_ROWS, WORK_HEADS}, {0}, NULL, 0};
  const tamis_tensor index_key = {work_key, TAMIS_F32, 2, {WORK_KEYS, WORK_DIM}, {0}, NULL, 0};
  const tamis_tensor indices = {result->indices, TAMIS_I32, 2, {WORK_ROWS, WORK_K}, {0}, NULL, 0};
  const tamis_tensor scores = {result->scores, TAMIS_F32, 2, {WORK_ROWS, WORK_K}, {0}, NULL, 0};
  const tamis_status status = tamis_select(ctx, &q, &w, &index_key, NULL, &indices, &scores);
  if (status != TAMIS_OK) return status;

  const tamis_tensor key = {work_key, TAMIS_F32, 3, {WORK_KEYS, 1, WORK_DIM}, {0}, NULL, 0};
  const tamis_tensor out = {result->out, TAMIS_F32, 3, {WORK_ROWS, WORK_HEADS, WORK_DIM}, {0}, NULL, 0};
  const tamis_tensor lse = {result->lse, TAMIS_F32, 2, {WORK_ROWS, WORK_HEADS}, {0}, NULL, 0};
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.indices = &indices;
  return tamis_attend(ctx, &q, &key, &key, &options, &out, &lse);
}
#endif
