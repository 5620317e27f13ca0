/* Every exported function is called with what a careless caller passes: NULL, wrong dtype, rank and shape, negative
 * and huge sizes, misaligned and overlapping memory, indices out of range, full caches, objects freed in any order.
 * Each call must be refused with one line that names the function, and must change nothing.
 * A valid call comes first, and bad calls differ from it in one thing each, so that nothing is refused by accident. */
#include <math.h>
#include <string.h>

#include "folder.h"
#include "heap.h"

enum { ROWS = 2, HEADS = 4, DIM = 32, KEYS = 40, K = 8, GROUPS = 2, VALUE = 16, LAYERS = 2, TOKENS = 20 };

/* All memory that a call may touch, so that one comparison shows whether anything changed. Inputs first. */
typedef struct memory {
  float q[ROWS * HEADS * DIM], w[ROWS * HEADS], key[KEYS * GROUPS * DIM], value[KEYS * GROUPS * VALUE];
  float wide[KEYS * 576], other[ROWS * HEADS * VALUE], other_lse[ROWS * HEADS];
  int8_t q8[ROWS * HEADS * DIM], key8[KEYS * DIM];
  float q8_scale[ROWS * HEADS], key8_scale[KEYS];
  int32_t chosen[ROWS * K], visible[ROWS];
  float scores[ROWS * KEYS];
  int32_t indices[ROWS * K];
  float top[ROWS * K], out[ROWS * HEADS * VALUE], lse[ROWS * HEADS], plain[KEYS * 576], scale[KEYS * 8];
  uint8_t bytes[KEYS * 656];
  float spare[64];
} memory;

static memory m, before;
static tamis_ctx *ctx; /* the context of the call: a real one, then NULL */
static tamis_cache *cache;
static tamis_seq *seq;
static int refusals;

static tamis_tensor tensor(void *data, int32_t dtype, int32_t ndim, int64_t a, int64_t b, int64_t c) {
  const tamis_tensor made = {data, dtype, ndim, {a, b, c, 0}, {0}, NULL, 0};
  return made;
}

static tamis_tensor scaled(tamis_tensor plain, float *scale) {
  plain.scale = scale;
  return plain;
}

/* `detail` says what was wrong with the call, for the reader of a failure. */
static void refused(int line, const char *function, const char *detail, tamis_status status) {
  const char *text = tamis_last_error();
  const int named = strncmp(text, function, strlen(function)) == 0;
  const int one_line = text[0] != 0 && strchr(text, '\n') == NULL;
  const int unchanged = memcmp(&m, &before, sizeof m) == 0;
  refusals++;
  if (status < 0 && status != TAMIS_E_INTERNAL && named && one_line && unchanged) return;
  check_failures++;
  fprintf(stderr, "bad_input.c:%d: %s (%s): %s%s%s, text \"%s\"\n", line, function, detail, tamis_status_name(status),
          named && one_line ? "" : ", wrong text", unchanged ? "" : ", memory changed", text);
  memcpy(&m, &before, sizeof m);
}

#define REFUSED(function, call) (memcpy(&before, &m, sizeof m), refused(__LINE__, function, #call, call))

/* The same with a demand for one particular status. */
#define REFUSED_WITH(status, function, call)                                                                 \
  do {                                                                                                       \
    memcpy(&before, &m, sizeof m);                                                                           \
    const tamis_status refused_status = call;                                                                \
    refused(__LINE__, function, #call, refused_status);                                                      \
    CHECK(refused_status == status);                                                                         \
  } while (0)

static void fill(void *memory, size_t bytes) {
  float *values = memory;
  static uint32_t state = 1;
  for (size_t i = 0; i < bytes / sizeof(float); i++) {
    state = state * 1664525u + 1013904223u;
    values[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
}

static void prepare(void) {
  memset(&m, 0x5A, sizeof m);
  fill(m.q, sizeof m.q);
  fill(m.w, sizeof m.w);
  fill(m.key, sizeof m.key);
  fill(m.value, sizeof m.value);
  fill(m.wide, sizeof m.wide);
  fill(m.other, sizeof m.other);
  fill(m.other_lse, sizeof m.other_lse);
  fill(m.q8_scale, sizeof m.q8_scale);
  fill(m.key8_scale, sizeof m.key8_scale);
  fill(m.scores, sizeof m.scores);
  fill(m.out, sizeof m.out);
  fill(m.lse, sizeof m.lse);
  for (int i = 0; i < ROWS * K; i++) m.chosen[i] = i % KEYS;
  for (int i = 0; i < ROWS; i++) m.visible[i] = KEYS - i;
}

/* ------------------------------------------------------------------------------------------- tensors, mutated */

enum { OUTPUT = 1, OPTIONAL = 2, MAX_OPERANDS = 4 };

typedef struct operand {
  tamis_tensor tensor;
  int flags;
  unsigned tied; /* bit d: axis d must agree with something else in the call */
} operand;

typedef struct subject {
  const char *function;
  tamis_status (*call)(const tamis_tensor *const *operands);
  int count;
  operand operand[MAX_OPERANDS];
} subject;

static const subject *current;
static const tamis_tensor *pointers[MAX_OPERANDS];

static void refuse_operand(int which, const tamis_tensor *mutant, const char *what) {
  char detail[64];
  snprintf(detail, sizeof detail, "operand %d: %s", which, what);
  const tamis_tensor *kept = pointers[which];
  pointers[which] = mutant;
  memcpy(&before, &m, sizeof m);
  refused(__LINE__, current->function, detail, current->call(pointers));
  pointers[which] = kept;
}

/* One field of one operand is replaced by each of some values. */
#define MUTATE(which, field, ...)                                                                            \
  do {                                                                                                       \
    const int64_t mutate_values[] = {__VA_ARGS__};                                                           \
    for (size_t v = 0; v < sizeof mutate_values / sizeof mutate_values[0]; v++) {                            \
      tamis_tensor mutant = *pointers[which];                                                                \
      char what[48];                                                                                         \
      mutant.field = mutate_values[v];                                                                       \
      snprintf(what, sizeof what, "%s = %lld", #field, (long long)mutate_values[v]);                         \
      refuse_operand(which, &mutant, what);                                                                  \
    }                                                                                                        \
  } while (0)

static int element_bytes(int32_t dtype) {
  return dtype == TAMIS_F32 || dtype == TAMIS_I32 ? 4 : dtype == TAMIS_F16 || dtype == TAMIS_BF16 ? 2 : 1;
}

static void mutate_shape(int which, unsigned tied) {
  const tamis_tensor valid = *pointers[which];
  MUTATE(which, ndim, 0, -1, 5, INT32_MAX, INT32_MIN, valid.ndim - 1);
  for (int d = 0; d < valid.ndim; d++) {
    MUTATE(which, shape[d], -1, INT64_MIN, INT64_MAX, INT64_MAX / 2 + 1);
    if (tied >> d & 1) MUTATE(which, shape[d], 0, valid.shape[d] - 1, valid.shape[d] + 1, (int64_t)1 << 32);
  }
}

static void mutate_strides(int which, int output) {
  const tamis_tensor *const packed = pointers[which];
  tamis_tensor strided = *packed;
  int64_t step = 1;
  for (int d = strided.ndim - 1; d >= 0; d--) {
    strided.stride[d] = step;
    step *= strided.shape[d];
  }
  pointers[which] = &strided;
  for (int d = 0; d < strided.ndim; d++) MUTATE(which, stride[d], -1, INT64_MIN, INT64_MAX);
  MUTATE(which, stride[strided.ndim - 1], 2);
  if (output) MUTATE(which, stride[0], 1); /* rows on top of each other */
  pointers[which] = packed;
}

static void mutate_operand(int which) {
  const operand *self = &current->operand[which];
  const tamis_tensor *valid = &self->tensor;
  tamis_tensor mutant = *valid;
  if (!(self->flags & OPTIONAL)) refuse_operand(which, NULL, "NULL");
  mutant.data = NULL;
  refuse_operand(which, &mutant, "data NULL");
  MUTATE(which, dtype, 0, -1, 9, INT32_MAX, valid->dtype == TAMIS_I32 ? TAMIS_F32 : TAMIS_I32);
  mutate_shape(which, self->tied);
  if (valid->dtype != TAMIS_MLA656 && valid->dtype != TAMIS_INDEX132) mutate_strides(which, self->flags & OUTPUT);

  if (element_bytes(valid->dtype) > 1) {
    mutant = *valid;
    mutant.data = (char *)valid->data + 1;
    refuse_operand(which, &mutant, "data misaligned");
  }
  if (valid->scale != NULL) {
    mutant = *valid;
    mutant.scale = (float *)(void *)((char *)valid->scale + 1);
    refuse_operand(which, &mutant, "scale misaligned");
    MUTATE(which, block, -1, INT64_MIN);
    if (self->flags & OUTPUT) {
      mutant.scale = NULL;
      refuse_operand(which, &mutant, "output scale NULL");
    }
  }
  for (int other = 0; self->flags & OUTPUT && other < current->count; other++) {
    if (other == which || pointers[other] == NULL) continue;
    mutant = *valid;
    mutant.data = pointers[other]->data;
    refuse_operand(which, &mutant, "overlaps another operand");
  }
}

static void mutate(const subject *self) {
  current = self;
  for (int i = 0; i < self->count; i++) pointers[i] = &self->operand[i].tensor;
  memcpy(&before, &m, sizeof m);
  CHECK_OK(self->call(pointers));
  CHECK(tamis_last_error()[0] == 0);
  memcpy(&m, &before, sizeof m); /* the same inputs for the next ones, whatever was an output here */
  for (int i = 0; i < self->count; i++) mutate_operand(i);
}

/* ----------------------------------------------------------------------------------------- the three verbs */

static tamis_status call_quantize(const tamis_tensor *const *t) { return tamis_quantize(ctx, t[0], NULL, t[1]); }
static tamis_status call_dequantize(const tamis_tensor *const *t) { return tamis_dequantize(ctx, t[0], t[1]); }
static tamis_status call_scores(const tamis_tensor *const *t) {
  return tamis_index_scores(ctx, t[0], t[1], t[2], NULL, t[3]);
}
static tamis_status call_topk(const tamis_tensor *const *t) { return tamis_topk(ctx, t[0], NULL, t[1]); }
static tamis_status call_select(const tamis_tensor *const *t) {
  const tamis_tensor weights = tensor(m.w, TAMIS_F32, 2, ROWS, HEADS, 0);
  return tamis_select(ctx, t[0], &weights, t[1], NULL, t[2], t[3]);
}
static tamis_status call_merge_candidates(const tamis_tensor *const *t) {
  return tamis_merge_candidates(ctx, t[0], t[1], t[2], t[3]);
}
static tamis_status call_attend(const tamis_tensor *const *t) {
  return tamis_attend(ctx, t[0], t[1], t[2], NULL, t[3], NULL);
}
static tamis_status call_attend_sparse(const tamis_tensor *const *t) {
  const tamis_tensor keys = tensor(m.key, TAMIS_F32, 3, KEYS, GROUPS, DIM);
  const tamis_tensor values = tensor(m.value, TAMIS_F32, 3, KEYS, GROUPS, VALUE);
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.indices = t[1];
  return tamis_attend(ctx, t[0], &keys, &values, &options, t[2], t[3]);
}
static tamis_status call_merge(const tamis_tensor *const *t) { return tamis_merge(ctx, t[0], t[1], t[2], t[3]); }
static tamis_status call_project(const tamis_tensor *const *t) { return tamis_project(ctx, t[0], t[1], t[2]); }

static void numbers(void) {
  const tamis_tensor rows = tensor(m.wide, TAMIS_F32, 2, KEYS, 64, 0), plain = tensor(m.plain, TAMIS_F32, 2, KEYS, 64, 0);
  const tamis_tensor bytes = scaled(tensor(m.bytes, TAMIS_I8, 2, KEYS, 64, 0), m.scale);
  const tamis_tensor e4m3 = scaled(tensor(m.bytes, TAMIS_F8E4M3, 2, KEYS, 64, 0), m.scale);
  const tamis_tensor wide = tensor(m.wide, TAMIS_F32, 2, KEYS, 576, 0), keys = tensor(m.wide, TAMIS_F32, 2, KEYS, 128, 0);
  const tamis_tensor mla = tensor(m.bytes, TAMIS_MLA656, 2, KEYS, 576, 0);
  const tamis_tensor paged = tensor(m.bytes, TAMIS_INDEX132, 2, KEYS, 128, 0);
  mutate(&(subject){"tamis_quantize", call_quantize, 2, {{rows, 0, 3}, {bytes, OUTPUT, 3}}});
  mutate(&(subject){"tamis_quantize", call_quantize, 2, {{rows, 0, 3}, {e4m3, OUTPUT, 3}}});
  mutate(&(subject){"tamis_quantize", call_quantize, 2, {{wide, 0, 3}, {mla, OUTPUT, 3}}});
  const tamis_tensor bf16 = tensor(m.bytes, TAMIS_BF16, 2, KEYS, 64, 0);
  mutate(&(subject){"tamis_quantize", call_quantize, 2, {{rows, 0, 3}, {bf16, OUTPUT, 3}}});
  const tamis_tensor narrow = scaled(tensor(m.key8, TAMIS_I8, 2, KEYS, DIM, 0), m.key8_scale);
  const tamis_tensor back = tensor(m.plain, TAMIS_F32, 2, KEYS, DIM, 0);
  mutate(&(subject){"tamis_dequantize", call_dequantize, 2, {{narrow, 0, 3}, {back, OUTPUT, 3}}});

  tamis_quantize_options options = TAMIS_QUANTIZE_OPTIONS_INIT;
  options.size = 3;
  REFUSED("tamis_quantize", tamis_quantize(ctx, &rows, &options, &bytes));
  options.size = sizeof options;
  options.hadamard = 1;
  const tamis_tensor odd = tensor(m.wide, TAMIS_F32, 2, KEYS, 63, 0);
  const tamis_tensor odd_bytes = scaled(tensor(m.bytes, TAMIS_I8, 2, KEYS, 63, 0), m.scale);
  REFUSED("tamis_quantize", tamis_quantize(ctx, &odd, &options, &odd_bytes));
  REFUSED("tamis_quantize", tamis_quantize(ctx, &rows, NULL, &mla));
  REFUSED("tamis_quantize", tamis_quantize(ctx, &rows, NULL, &paged));
  REFUSED("tamis_quantize", tamis_quantize(ctx, &wide, NULL, &plain));
  REFUSED("tamis_quantize", tamis_quantize(ctx, &narrow, NULL, &back));
  const float bad[] = {NAN, INFINITY, -INFINITY};
  const tamis_tensor *const quantised[] = {&bytes, &e4m3};
  for (int i = 0; i < 3; i++) {
    const float kept = m.wide[70];
    m.wide[70] = bad[i];
    for (int j = 0; j < 2; j++) REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_quantize", tamis_quantize(ctx, &rows, NULL, quantised[j]));
    REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_quantize", tamis_quantize(ctx, &wide, NULL, &mla));
    REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_quantize", tamis_quantize(ctx, &keys, NULL, &paged));
    m.wide[70] = kept;
  }
}

static void verbs(void) {
  const tamis_tensor q = tensor(m.q, TAMIS_F32, 3, ROWS, HEADS, DIM), w = tensor(m.w, TAMIS_F32, 2, ROWS, HEADS, 0);
  const tamis_tensor key = tensor(m.key, TAMIS_F32, 2, KEYS, DIM, 0);
  const tamis_tensor q8 = scaled(tensor(m.q8, TAMIS_I8, 3, ROWS, HEADS, DIM), m.q8_scale);
  const tamis_tensor key8 = scaled(tensor(m.key8, TAMIS_I8, 2, KEYS, DIM, 0), m.key8_scale);
  const tamis_tensor scores = tensor(m.scores, TAMIS_F32, 2, ROWS, KEYS, 0), top = tensor(m.top, TAMIS_F32, 2, ROWS, K, 0);
  const tamis_tensor indices = tensor(m.indices, TAMIS_I32, 2, ROWS, K, 0);
  mutate(&(subject){"tamis_index_scores", call_scores, 4, {{q, 0, 7}, {w, 0, 3}, {key, 0, 3}, {scores, OUTPUT, 3}}});
  mutate(&(subject){"tamis_index_scores", call_scores, 4, {{q8, 0, 7}, {w, 0, 3}, {key8, 0, 3}, {scores, OUTPUT, 3}}});
  mutate(&(subject){"tamis_topk", call_topk, 2, {{scores, 0, 1}, {indices, OUTPUT, 1}}});
  mutate(&(subject){"tamis_select", call_select, 4,
                    {{q, 0, 7}, {key, 0, 2}, {indices, OUTPUT, 3}, {top, OUTPUT | OPTIONAL, 3}}});
  REFUSED("tamis_select", tamis_select(ctx, &q, NULL, &key, NULL, &indices, NULL));

  tamis_tensor none = indices; /* k = 0 */
  none.shape[1] = 0;
  REFUSED("tamis_topk", tamis_topk(ctx, &scores, NULL, &none));
  REFUSED("tamis_select", tamis_select(ctx, &q, &w, &key, NULL, &none, NULL));
  REFUSED("tamis_select", tamis_select(ctx, &q8, &w, &key, NULL, &indices, NULL));
  REFUSED("tamis_index_scores", tamis_index_scores(ctx, &q8, &w, &key, NULL, &scores));

  tamis_select_options options[5];
  for (int i = 0; i < 5; i++) options[i] = (tamis_select_options)TAMIS_SELECT_OPTIONS_INIT;
  int32_t negative[ROWS] = {KEYS, -1}, beyond[ROWS] = {KEYS + 1, KEYS};
  options[0].size = 3;
  options[1].k = K + 1;
  options[2].visible = negative;
  options[3].visible = beyond;
  options[4].visible = m.visible;
  options[4].all_visible = 1;
  for (int i = 0; i < 5; i++) {
    REFUSED("tamis_topk", tamis_topk(ctx, &scores, &options[i], &indices));
    REFUSED("tamis_select", tamis_select(ctx, &q, &w, &key, &options[i], &indices, NULL));
    if (i != 1) REFUSED("tamis_index_scores", tamis_index_scores(ctx, &q, &w, &key, &options[i], &scores));
  }
  options[4].all_visible = 0;
  options[4].visible = (const int32_t *)(const void *)((const char *)m.visible + 1);
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_topk", tamis_topk(ctx, &scores, &options[4], &indices));
  options[4].visible = m.indices; /* zeros: legal counts, but in the output's own memory */
  memset(m.indices, 0, sizeof m.indices);
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_topk", tamis_topk(ctx, &scores, &options[4], &indices));
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_select", tamis_select(ctx, &q, &w, &key, &options[4], &indices, &top));
  options[4].visible = (const int32_t *)(const void *)m.scores;
  memset(m.scores, 0, sizeof m.scores);
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_index_scores", tamis_index_scores(ctx, &q, &w, &key, &options[4], &scores));
  /* Causal: n queries cannot be the last n of fewer than n positions. */
  const tamis_tensor single = tensor(m.key, TAMIS_F32, 2, 1, DIM, 0);
  REFUSED("tamis_select", tamis_select(ctx, &q, &w, &single, NULL, &indices, NULL));
}

static void candidates(void) {
  const tamis_tensor indices = tensor(m.indices, TAMIS_I32, 2, ROWS, K, 0), top = tensor(m.top, TAMIS_F32, 2, ROWS, K, 0);
  const tamis_tensor other = tensor(m.chosen, TAMIS_I32, 2, ROWS, K, 0);
  const tamis_tensor other_scores = tensor(m.scores, TAMIS_F32, 2, ROWS, K, 0);
  fill(m.top, sizeof m.top);
  for (int i = 0; i < ROWS * K; i++) m.indices[i] = 2 * (i % K), m.chosen[i] = 2 * (i % K) + 1;
  mutate(&(subject){"tamis_merge_candidates", call_merge_candidates, 4,
                    {{other, 0, 3}, {other_scores, 0, 3}, {indices, OUTPUT, 3}, {top, OUTPUT, 3}}});
  int32_t *const last[] = {&m.chosen[ROWS * K - 1], &m.indices[ROWS * K - 1]};
  for (int i = 0; i < 2; i++) {
    /* Below its neighbour, the same, no index; a key of the other list; one behind -1. */
    const int32_t kept = *last[i], bad[] = {0, last[i][-1], -2, INT32_MIN};
    for (int j = 0; j < 4; j++) {
      *last[i] = bad[j];
      REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_merge_candidates",
                   tamis_merge_candidates(ctx, &other, &other_scores, &indices, &top));
    }
    *last[i] = last[1 - i][0];
    REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_merge_candidates",
                 tamis_merge_candidates(ctx, &other, &other_scores, &indices, &top));
    *last[i] = kept;
    last[i][-1] = -1;
    REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_merge_candidates",
                 tamis_merge_candidates(ctx, &other, &other_scores, &indices, &top));
    last[i][-1] = kept - 2;
  }
  CHECK_OK(tamis_merge_candidates(ctx, &other, &other_scores, &indices, &top));
  prepare();
}

static void attends(void) {
  const tamis_tensor q = tensor(m.q, TAMIS_F32, 3, ROWS, HEADS, DIM);
  const tamis_tensor key = tensor(m.key, TAMIS_F32, 3, KEYS, GROUPS, DIM);
  const tamis_tensor value = tensor(m.value, TAMIS_F32, 3, KEYS, GROUPS, VALUE);
  const tamis_tensor out = tensor(m.out, TAMIS_F32, 3, ROWS, HEADS, VALUE), lse = tensor(m.lse, TAMIS_F32, 2, ROWS, HEADS, 0);
  const tamis_tensor other = tensor(m.other, TAMIS_F32, 3, ROWS, HEADS, VALUE);
  const tamis_tensor other_lse = tensor(m.other_lse, TAMIS_F32, 2, ROWS, HEADS, 0);
  const tamis_tensor chosen = tensor(m.chosen, TAMIS_I32, 2, ROWS, K, 0);
  mutate(&(subject){"tamis_attend", call_attend, 4, {{q, 0, 5}, {key, 0, 5}, {value, 0, 3}, {out, OUTPUT, 7}}});
  mutate(&(subject){"tamis_attend", call_attend_sparse, 4,
                    {{q, 0, 5}, {chosen, OPTIONAL, 1}, {out, OUTPUT, 7}, {lse, OUTPUT | OPTIONAL, 3}}});
  mutate(&(subject){"tamis_merge", call_merge, 4,
                    {{other, 0, 7}, {other_lse, 0, 3}, {out, OUTPUT, 7}, {lse, OUTPUT, 3}}});
  const tamis_tensor x = tensor(m.q, TAMIS_F32, 2, ROWS * HEADS, DIM, 0), weight = tensor(m.key, TAMIS_F32, 2, KEYS, DIM, 0);
  const tamis_tensor projected = tensor(m.plain, TAMIS_F32, 2, ROWS * HEADS, KEYS, 0);
  mutate(&(subject){"tamis_project", call_project, 3, {{x, 0, 3}, {weight, 0, 3}, {projected, OUTPUT, 3}}});

  const tamis_tensor three = tensor(m.q, TAMIS_F32, 3, ROWS, 3, DIM), three_out = tensor(m.out, TAMIS_F32, 3, ROWS, 3, VALUE);
  REFUSED("tamis_attend", tamis_attend(ctx, &three, &key, &value, NULL, &three_out, NULL)); /* 3 heads, 2 groups */
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.size = 3;
  REFUSED("tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
  options.size = sizeof options;
  options.indices = &chosen;
  const int32_t bad[] = {KEYS, -2, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4; i++) {
    m.chosen[ROWS * K - 1] = bad[i];
    REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
  }
  m.chosen[ROWS * K - 1] = 0;
  options.indices = NULL;
  int32_t negative[ROWS] = {KEYS, -1}, beyond[ROWS] = {KEYS + 1, KEYS};
  options.visible = negative;
  REFUSED("tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
  options.visible = beyond;
  REFUSED("tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
  options.visible = m.visible;
  options.all_visible = 1;
  REFUSED("tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
  options.all_visible = 0;
  options.sink = (const float *)(const void *)((const char *)m.spare + 2);
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
  options.sink = m.lse + 1;
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_attend", tamis_attend(ctx, &q, &key, &value, &options, &out, &lse));
}

/* ------------------------------------------------------------------------------------------------- contexts */

static void contexts(void) {
  tamis_ctx *made = (tamis_ctx *)&m;
  REFUSED("tamis_ctx_create", tamis_ctx_create(NULL, NULL));
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.size = 3;
  REFUSED("tamis_ctx_create", tamis_ctx_create(&options, &made));
  options = (tamis_ctx_options)TAMIS_CTX_OPTIONS_INIT;
  options.isa = "sse9";
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_ctx_create", tamis_ctx_create(&options, &made));
  options.isa = "";
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_ctx_create", tamis_ctx_create(&options, &made));
#if defined(__x86_64__)
  options.isa = "neon";
  REFUSED("tamis_ctx_create", tamis_ctx_create(&options, &made));
#endif
  options = (tamis_ctx_options)TAMIS_CTX_OPTIONS_INIT;
  options.alloc = heap_alloc;
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_ctx_create", tamis_ctx_create(&options, &made));
  options.alloc = NULL;
  options.release = heap_release;
  REFUSED_WITH(TAMIS_E_ARGUMENT, "tamis_ctx_create", tamis_ctx_create(&options, &made));
  CHECK(made == (tamis_ctx *)&m);

  uint64_t now = 5, peak = 6;
  size_t needed = 7;
  char text[8] = "before";
  REFUSED("tamis_ctx_bytes", tamis_ctx_bytes(NULL, &now, &peak));
  REFUSED("tamis_ctx_bytes", tamis_ctx_bytes(ctx, &now, (uint64_t *)(void *)((char *)m.spare + 1)));
  REFUSED("tamis_ctx_trim", tamis_ctx_trim(NULL));
  REFUSED("tamis_ctx_describe", tamis_ctx_describe(NULL, text, sizeof text, &needed));
  REFUSED("tamis_ctx_describe", tamis_ctx_describe(ctx, NULL, 8, &needed));
  REFUSED("tamis_ctx_describe", tamis_ctx_describe(ctx, text, sizeof text, (size_t *)(void *)((char *)m.spare + 2)));
  CHECK(now == 5 && peak == 6 && needed == 7 && strcmp(text, "before") == 0);
  CHECK_OK(tamis_ctx_describe(ctx, NULL, 0, &needed));
  CHECK(needed > sizeof text);
  CHECK_OK(tamis_ctx_describe(ctx, text, sizeof text, NULL));
  CHECK(text[sizeof text - 1] == 0 && strlen(text) == sizeof text - 1);

  tamis_counters counters = TAMIS_COUNTERS_INIT;
  REFUSED("tamis_ctx_counters", tamis_ctx_counters(NULL, TAMIS_OP_ALL, &counters));
  REFUSED("tamis_ctx_counters", tamis_ctx_counters(ctx, TAMIS_OP_ALL, NULL));
  REFUSED("tamis_ctx_counters", tamis_ctx_counters(ctx, -1, &counters));
  REFUSED("tamis_ctx_counters", tamis_ctx_counters(ctx, 10, &counters));
  REFUSED("tamis_ctx_counters", tamis_ctx_counters(ctx, INT32_MIN, &counters));
  counters.size = 3;
  REFUSED("tamis_ctx_counters", tamis_ctx_counters(ctx, TAMIS_OP_ALL, &counters));
  tamis_limits limits = TAMIS_LIMITS_INIT;
  REFUSED("tamis_ctx_limits", tamis_ctx_limits(NULL, &limits));
  REFUSED("tamis_ctx_limits", tamis_ctx_limits(ctx, NULL));
  limits.size = 3;
  REFUSED("tamis_ctx_limits", tamis_ctx_limits(ctx, &limits));

  tamis_ctx_cancel(NULL);
  tamis_ctx_free(NULL);
  tamis_cache_free(NULL);
  tamis_seq_free(NULL);
  const tamis_status statuses[] = {1, -11, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4; i++) CHECK(strcmp(tamis_status_name(statuses[i]), "unknown status") == 0);
}

/* ------------------------------------------------------------------------------------- caches and sequences */

static tamis_status call_write(const tamis_tensor *const *t) { return tamis_seq_write(seq, 1, 3, t[0], t[1], t[2]); }
static tamis_status call_read(const tamis_tensor *const *t) { return tamis_seq_read(seq, 1, 3, t[0], t[1], t[2]); }
static const int32_t one_each[] = {1, 1};
static tamis_status call_seq_select(const tamis_tensor *const *t) {
  const int32_t rows = ROWS;
  return tamis_seq_select(&seq, &rows, 1, 1, t[0], t[1], NULL, t[2], t[3]);
}
static tamis_status call_seq_attend(const tamis_tensor *const *t) {
  const int32_t rows = ROWS;
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.indices = t[1];
  return tamis_seq_attend(&seq, &rows, 1, 1, t[0], &options, t[2], t[3]);
}

static tamis_cache_options small_cache(void) {
  tamis_cache_options options = TAMIS_CACHE_OPTIONS_INIT;
  options.layers = LAYERS;
  options.kv_heads = GROUPS;
  options.key_dim = options.index_dim = DIM;
  options.value_dim = VALUE;
  options.own_values = 1;
  options.kv_dtype = options.index_dtype = TAMIS_F32;
  options.page_tokens = 16;
  options.max_tokens = 64;
  return options;
}

static void caches(void) {
  tamis_cache *made = (tamis_cache *)&m;
  tamis_cache_options options = small_cache();
  REFUSED("tamis_cache_create", tamis_cache_create(NULL, &options, &made));
  REFUSED("tamis_cache_create", tamis_cache_create(ctx, &options, NULL));
#define REFUSED_OPTION(change)                                                                               \
  options = small_cache();                                                                                   \
  change;                                                                                                    \
  REFUSED("tamis_cache_create", tamis_cache_create(ctx, &options, &made))
  REFUSED_OPTION(options.size = 3);
  REFUSED_OPTION(options.page_tokens = 15);
  REFUSED_OPTION(options.page_tokens = UINT32_MAX);
  REFUSED_OPTION(options.kv_dtype = 99);
  REFUSED_OPTION(options.kv_dtype = TAMIS_I32);
  REFUSED_OPTION(options.kv_dtype = -1);
  REFUSED_OPTION(options.index_dtype = 99);
  REFUSED_OPTION(options.index_dtype = -2);
  REFUSED_OPTION(options.index_dtype = TAMIS_INDEX132); /* index_dim is not 128 */
  REFUSED_OPTION(options.kv_dtype = TAMIS_MLA656);      /* two heads, other dims */
  REFUSED_OPTION((options.own_values = 0, options.value_dim = DIM + 1));
  REFUSED_OPTION(options.layers = options.kv_heads = options.key_dim = options.index_dim = UINT32_MAX);
#undef REFUSED_OPTION
  CHECK(made == (tamis_cache *)&m);
  uint64_t bytes = 1, tokens = 2;
  REFUSED("tamis_cache_bytes", tamis_cache_bytes(NULL, &bytes, &tokens));
  CHECK(bytes == 1 && tokens == 2);
}

static void sequence_calls(void) {
  tamis_seq *made = (tamis_seq *)&m;
  int64_t length = -7;
  REFUSED("tamis_seq_create", tamis_seq_create(NULL, &made));
  REFUSED("tamis_seq_create", tamis_seq_create(cache, NULL));
  REFUSED("tamis_seq_fork", tamis_seq_fork(NULL, -1, &made));
  REFUSED("tamis_seq_fork", tamis_seq_fork(seq, -1, NULL));
  REFUSED("tamis_seq_fork", tamis_seq_fork(seq, -2, &made));
  REFUSED("tamis_seq_fork", tamis_seq_fork(seq, TOKENS + 1, &made));
  REFUSED("tamis_seq_fork", tamis_seq_fork(seq, INT64_MAX, &made));
  const int32_t ids[] = {1, 2, 3};
  REFUSED("tamis_seq_match", tamis_seq_match(NULL, ids, 3, &made, &length));
  REFUSED("tamis_seq_match", tamis_seq_match(cache, NULL, 3, &made, &length));
  REFUSED("tamis_seq_match", tamis_seq_match(cache, ids, 3, NULL, &length));
  REFUSED("tamis_seq_match", tamis_seq_match(cache, ids, 3, &made, NULL));
  REFUSED("tamis_seq_match", tamis_seq_match(cache, ids, SIZE_MAX, &made, &length));
  CHECK(made == (tamis_seq *)&m && length == -7);

  REFUSED("tamis_seq_extend", tamis_seq_extend(NULL, NULL, 1));
  REFUSED("tamis_seq_extend", tamis_seq_extend(seq, NULL, SIZE_MAX));
  REFUSED("tamis_seq_extend", tamis_seq_extend(seq, NULL, SIZE_MAX / 2));
  REFUSED_WITH(TAMIS_E_FULL, "tamis_seq_extend", tamis_seq_extend(seq, NULL, 64));
  REFUSED("tamis_seq_truncate", tamis_seq_truncate(NULL, 0));
  REFUSED("tamis_seq_truncate", tamis_seq_truncate(seq, -1));
  REFUSED("tamis_seq_truncate", tamis_seq_truncate(seq, TOKENS + 1));
  REFUSED("tamis_seq_truncate", tamis_seq_truncate(seq, INT64_MIN));
  REFUSED("tamis_seq_length", tamis_seq_length(NULL, &length));
  REFUSED("tamis_seq_length", tamis_seq_length(seq, NULL));
  CHECK_OK(tamis_seq_length(seq, &length));
  CHECK(length == TOKENS);
}

static void sequence_rows(void) {
  const tamis_tensor key = tensor(m.key, TAMIS_F32, 3, 4, GROUPS, DIM), value = tensor(m.value, TAMIS_F32, 3, 4, GROUPS, VALUE);
  const tamis_tensor index_key = tensor(m.wide, TAMIS_F32, 2, 4, DIM, 0);
  const tamis_tensor key_out = tensor(m.plain, TAMIS_F32, 3, 4, GROUPS, DIM), value_out = tensor(m.out, TAMIS_F32, 3, 4, GROUPS, VALUE);
  const tamis_tensor index_out = tensor(m.scale, TAMIS_F32, 2, 4, DIM, 0);
  mutate(&(subject){"tamis_seq_write", call_write, 3, {{key, 0, 7}, {value, 0, 7}, {index_key, OPTIONAL, 3}}});
  mutate(&(subject){"tamis_seq_read", call_read, 3,
                    {{key_out, OUTPUT | OPTIONAL, 7}, {value_out, OUTPUT | OPTIONAL, 7}, {index_out, OUTPUT | OPTIONAL, 3}}});
  const int64_t firsts[] = {-1, TOKENS - 3, TOKENS, INT64_MAX, INT64_MAX - 3, INT64_MIN};
  for (int i = 0; i < 6; i++) {
    REFUSED("tamis_seq_write", tamis_seq_write(seq, 0, firsts[i], &key, &value, &index_key));
    REFUSED("tamis_seq_read", tamis_seq_read(seq, 0, firsts[i], &key_out, &value_out, &index_out));
  }
  const uint32_t layers[] = {LAYERS, UINT32_MAX};
  for (int i = 0; i < 2; i++) {
    REFUSED("tamis_seq_write", tamis_seq_write(seq, layers[i], 0, &key, &value, &index_key));
    REFUSED("tamis_seq_read", tamis_seq_read(seq, layers[i], 0, &key_out, &value_out, &index_out));
  }
  REFUSED("tamis_seq_write", tamis_seq_write(NULL, 0, 0, &key, &value, &index_key));
  REFUSED("tamis_seq_write", tamis_seq_write(seq, 0, 0, NULL, NULL, NULL));
  REFUSED("tamis_seq_write", tamis_seq_write(seq, 0, 0, NULL, &value, &index_key));
  REFUSED("tamis_seq_read", tamis_seq_read(NULL, 0, 0, &key_out, NULL, NULL));
}

static void sequence_verbs(void) {
  const tamis_tensor q = tensor(m.q, TAMIS_F32, 3, ROWS, HEADS, DIM), w = tensor(m.w, TAMIS_F32, 2, ROWS, HEADS, 0);
  const tamis_tensor indices = tensor(m.indices, TAMIS_I32, 2, ROWS, K, 0), top = tensor(m.top, TAMIS_F32, 2, ROWS, K, 0);
  const tamis_tensor chosen = tensor(m.chosen, TAMIS_I32, 2, ROWS, K, 0), lse = tensor(m.lse, TAMIS_F32, 2, ROWS, HEADS, 0);
  const tamis_tensor out = tensor(m.out, TAMIS_F32, 3, ROWS, HEADS, VALUE);
  mutate(&(subject){"tamis_seq_select", call_seq_select, 4,
                    {{q, 0, 5}, {w, 0, 3}, {indices, OUTPUT, 1}, {top, OUTPUT | OPTIONAL, 3}}});
  mutate(&(subject){"tamis_seq_attend", call_seq_attend, 4,
                    {{q, 0, 5}, {chosen, OPTIONAL, 1}, {out, OUTPUT, 7}, {lse, OUTPUT | OPTIONAL, 3}}});

  tamis_seq *stranger = NULL;
  tamis_cache *elsewhere = NULL;
  const tamis_cache_options options = small_cache();
  CHECK_OK(tamis_cache_create(ctx, &options, &elsewhere));
  CHECK_OK(tamis_seq_create(elsewhere, &stranger));
  CHECK_OK(tamis_seq_extend(stranger, NULL, TOKENS));
  tamis_seq *const absent[] = {seq, NULL}, *const mixed[] = {seq, stranger};
  const int32_t all = ROWS, few = 1, many = TOKENS + 1, none = 0, negative = -1, huge = INT32_MAX;
  const int32_t *const bad_rows[] = {NULL, &few, &many, &none, &negative, &huge};
#define BOTH(seqs, rows, count, layer, select_options, attend_options)                                       \
  do {                                                                                                       \
    REFUSED("tamis_seq_select", tamis_seq_select(seqs, rows, count, layer, &q, &w, select_options, &indices, NULL)); \
    REFUSED("tamis_seq_attend", tamis_seq_attend(seqs, rows, count, layer, &q, attend_options, &out, NULL)); \
  } while (0)
  BOTH(NULL, &all, 1, 0, NULL, NULL);
  BOTH(absent, one_each, 2, 0, NULL, NULL);
  BOTH(mixed, one_each, 2, 0, NULL, NULL);
  BOTH(&seq, &all, SIZE_MAX, 0, NULL, NULL);
  BOTH(&seq, &all, 0, 0, NULL, NULL);
  BOTH(&seq, &all, 1, LAYERS, NULL, NULL);
  BOTH(&seq, &all, 1, UINT32_MAX, NULL, NULL);
  for (int i = 0; i < 6; i++) BOTH(&seq, bad_rows[i], 1, 0, NULL, NULL);
  tamis_select_options select_options = TAMIS_SELECT_OPTIONS_INIT;
  tamis_attend_options attend_options = TAMIS_ATTEND_OPTIONS_INIT;
  select_options.visible = m.visible;
  attend_options.visible = m.visible;
  BOTH(&seq, &all, 1, 0, &select_options, &attend_options);
  select_options = (tamis_select_options)TAMIS_SELECT_OPTIONS_INIT;
  attend_options = (tamis_attend_options)TAMIS_ATTEND_OPTIONS_INIT;
  select_options.k = K + 1;
  attend_options.indices = &chosen;
  m.chosen[K - 1] = TOKENS;
  BOTH(&seq, &all, 1, 0, &select_options, &attend_options);
  m.chosen[K - 1] = 0;
#undef BOTH
  tamis_seq_free(stranger);
  tamis_cache_free(elsewhere);
}

/* ---------------------------------------------------------------------------------------------------- files */

static void cache_files(void) {
  static char endless[5000];
  memset(endless, 'x', sizeof endless - 1);
  const char *path = "tamis-bad-input.tamis";
  const char latin1[] = {'a', (char)0xe9, 0};
  tamis_seq *made = (tamis_seq *)&m;
  remove(path);
  REFUSED("tamis_seq_save", tamis_seq_save(NULL, path, NULL, 0, -1));
  const char *const paths[] = {NULL, "", endless, latin1, "no/such/folder/file", "/", "."};
  for (int i = 0; i < 7; i++) {
    REFUSED("tamis_seq_save", tamis_seq_save(seq, paths[i], NULL, 0, -1));
    REFUSED("tamis_seq_open", tamis_seq_open(cache, paths[i], NULL, 0, NULL, &made));
  }
  REFUSED("tamis_seq_save", tamis_seq_save(seq, path, NULL, 1, -1));
  REFUSED("tamis_seq_save", tamis_seq_save(seq, path, endless, 4097, -1));
  REFUSED("tamis_seq_save", tamis_seq_save(seq, path, endless, SIZE_MAX, -1));
  REFUSED("tamis_seq_save", tamis_seq_save(seq, path, NULL, 0, TOKENS + 1));
  REFUSED("tamis_seq_save", tamis_seq_save(seq, path, NULL, 0, INT64_MIN));
  REFUSED_WITH(TAMIS_E_IO, "tamis_seq_open", tamis_seq_open(cache, path, NULL, 0, NULL, &made));

  CHECK_OK(tamis_seq_save(seq, path, "model", 5, -1));
  REFUSED("tamis_seq_open", tamis_seq_open(NULL, path, "model", 5, NULL, &made));
  REFUSED("tamis_seq_open", tamis_seq_open(cache, path, "model", 5, NULL, NULL));
  REFUSED("tamis_seq_open", tamis_seq_open(cache, path, NULL, 5, NULL, &made));
  REFUSED("tamis_seq_open", tamis_seq_open(cache, path, endless, SIZE_MAX, NULL, &made));
  REFUSED_WITH(TAMIS_E_FORMAT, "tamis_seq_open", tamis_seq_open(cache, path, "other", 5, NULL, &made));
  tamis_open_options options = TAMIS_OPEN_OPTIONS_INIT;
  options.size = 3;
  REFUSED("tamis_seq_open", tamis_seq_open(cache, path, "model", 5, &options, &made));
  options = (tamis_open_options)TAMIS_OPEN_OPTIONS_INIT;
  options.copy = 1; /* into a cache that is full */
  tamis_seq *filler = NULL;
  CHECK_OK(tamis_seq_create(cache, &filler));
  while (tamis_seq_extend(filler, NULL, 16) == TAMIS_OK) {}
  REFUSED_WITH(TAMIS_E_FULL, "tamis_seq_open", tamis_seq_open(cache, path, "model", 5, &options, &made));
  CHECK(made == (tamis_seq *)&m);
  CHECK_OK(tamis_seq_open(cache, path, "model", 5, NULL, &made)); /* which one in the file does not mind */
  tamis_seq_free(made);
  tamis_seq_free(filler);
  remove(path);
}

static void document_store(void) {
  const char *directory = "tamis-bad-input-store";
  tamis_store *store = NULL, *made = (tamis_store *)&m;
  remove_folder(directory);
  REFUSED("tamis_store_open", tamis_store_open(NULL, directory, 0, &made));
  REFUSED("tamis_store_open", tamis_store_open(ctx, NULL, 0, &made));
  REFUSED("tamis_store_open", tamis_store_open(ctx, "", 0, &made));
  REFUSED("tamis_store_open", tamis_store_open(ctx, directory, 0, NULL));
  REFUSED_WITH(TAMIS_E_IO, "tamis_store_open", tamis_store_open(ctx, "no/such/folder", 0, &made));
  CHECK(made == (tamis_store *)&m);
  CHECK_OK(tamis_store_open(ctx, directory, 0, &store));

  tamis_seq *found = (tamis_seq *)&m, *named = NULL;
  const int32_t ids[] = {1, 2, 3};
  int64_t matched = -7;
  REFUSED("tamis_store_put", tamis_store_put(NULL, seq, NULL, 0, -1));
  REFUSED("tamis_store_put", tamis_store_put(store, NULL, NULL, 0, -1));
  REFUSED("tamis_store_put", tamis_store_put(store, seq, NULL, 0, -1)); /* tokens without ids */
  REFUSED("tamis_store_put", tamis_store_put(store, seq, NULL, 1, 0));
  REFUSED("tamis_store_put", tamis_store_put(store, seq, ids, SIZE_MAX, 0));
  REFUSED("tamis_store_put", tamis_store_put(store, seq, NULL, 0, TOKENS + 1));
  REFUSED("tamis_store_match", tamis_store_match(NULL, cache, NULL, 0, ids, 3, &found, &matched));
  REFUSED("tamis_store_match", tamis_store_match(store, NULL, NULL, 0, ids, 3, &found, &matched));
  REFUSED("tamis_store_match", tamis_store_match(store, cache, NULL, 1, ids, 3, &found, &matched));
  REFUSED("tamis_store_match", tamis_store_match(store, cache, NULL, 0, NULL, 3, &found, &matched));
  REFUSED("tamis_store_match", tamis_store_match(store, cache, NULL, 0, ids, SIZE_MAX, &found, &matched));
  REFUSED("tamis_store_match", tamis_store_match(store, cache, NULL, 0, ids, 3, NULL, &matched));
  REFUSED("tamis_store_match", tamis_store_match(store, cache, NULL, 0, ids, 3, &found, NULL));
  CHECK(found == (tamis_seq *)&m && matched == -7);

  tamis_store_stats stats = TAMIS_STORE_STATS_INIT;
  REFUSED("tamis_store_read_stats", tamis_store_read_stats(NULL, &stats));
  REFUSED("tamis_store_read_stats", tamis_store_read_stats(store, NULL));
  stats.size = 13;
  REFUSED("tamis_store_read_stats", tamis_store_read_stats(store, &stats));

  CHECK_OK(tamis_seq_create(cache, &named));
  CHECK_OK(tamis_seq_extend(named, ids, 3));
  CHECK_OK(tamis_store_put(store, named, "m", 1, -1));
  tamis_seq_free(named);
  CHECK_OK(tamis_store_match(store, cache, "m", 1, ids, 3, &found, &matched));
  stats.size = sizeof stats;
  CHECK_OK(tamis_store_read_stats(store, &stats));
  CHECK(matched == 3 && stats.documents == 1 && stats.hits == 1 && stats.tokens_reused == 3);
  tamis_store_free(store); /* before what was found in it */
  CHECK_OK(tamis_seq_length(found, &matched));
  tamis_seq_free(found);
  tamis_store *tiny = NULL;
  CHECK_OK(tamis_store_open(ctx, directory, 1, &tiny));
  CHECK_OK(tamis_seq_create(cache, &named));
  CHECK_OK(tamis_seq_extend(named, ids, 2));
  REFUSED_WITH(TAMIS_E_FULL, "tamis_store_put", tamis_store_put(tiny, named, "m", 1, -1));
  tamis_seq_free(named);
  tamis_store_free(tiny);
  tamis_store_free(NULL);
  remove_folder(directory);
}

static void splices(void) {
  const float turns[] = {1.0f, 0.5f}, odd[] = {1.0f, NAN};
  tamis_rotary rotary = TAMIS_ROTARY_INIT;
  rotary.dims = 4;
  rotary.frequencies = turns;
  tamis_seq *empty = NULL;
  int64_t length = -1;
  CHECK_OK(tamis_seq_create(cache, &empty));
  REFUSED("tamis_seq_splice", tamis_seq_splice(NULL, seq, 0, 1, &rotary));
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, NULL, 0, 1, &rotary));
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, seq, 0, 1, NULL));
  REFUSED("tamis_seq_splice", tamis_seq_splice(seq, seq, 0, 1, &rotary));
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, seq, -1, 1, &rotary));
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, seq, 1, TOKENS, &rotary));
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, seq, INT64_MAX, INT64_MAX, &rotary));
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, seq, 0, INT64_MIN, &rotary));
#define REFUSED_ROTARY(change)                                                                               \
  rotary = (tamis_rotary)TAMIS_ROTARY_INIT;                                                                  \
  rotary.dims = 4;                                                                                           \
  rotary.frequencies = turns;                                                                                \
  change;                                                                                                    \
  REFUSED("tamis_seq_splice", tamis_seq_splice(empty, seq, 0, 1, &rotary))
  REFUSED_ROTARY(rotary.size = 3);
  REFUSED_ROTARY(rotary.dims = 0);
  REFUSED_ROTARY(rotary.dims = 3);
  REFUSED_ROTARY(rotary.dims = UINT32_MAX - 1);
  REFUSED_ROTARY(rotary.frequencies = NULL);
  REFUSED_ROTARY(rotary.frequencies = odd);
  REFUSED_ROTARY(rotary.frequencies = (const float *)(const void *)((const char *)turns + 1));
  REFUSED_ROTARY(rotary.key_first = DIM - 3);
  REFUSED_ROTARY(rotary.key_first = UINT32_MAX);
  REFUSED_ROTARY(rotary.index_first = DIM - 3);
#undef REFUSED_ROTARY
  rotary.index_first = 0;
  CHECK_OK(tamis_seq_length(empty, &length));
  CHECK(length == 0);
  CHECK_OK(tamis_seq_splice(empty, seq, TOKENS - 1, 1, &rotary));
  tamis_seq_free(empty);
}

/* ------------------------------------------------------------------------------------- budgets and lifetimes */

static void exhausted_budget(void) {
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.max_bytes = 256 << 10;
  tamis_ctx *poor = NULL;
  tamis_cache *small = NULL;
  tamis_seq *hungry = NULL;
  CHECK_OK(tamis_ctx_create(&options, &poor));
  CHECK_OK(tamis_cache_create(poor, NULL, &small));
  CHECK_OK(tamis_seq_create(small, &hungry));
  uint64_t before_bytes = 0, after_bytes = 1, peak = 0;
  CHECK_OK(tamis_ctx_bytes(poor, &before_bytes, NULL));
  REFUSED_WITH(TAMIS_E_BUDGET, "tamis_seq_extend", tamis_seq_extend(hungry, NULL, 100000));
  CHECK_OK(tamis_ctx_bytes(poor, &after_bytes, &peak));
  CHECK(before_bytes == after_bytes && peak <= options.max_bytes);
  CHECK_OK(tamis_seq_extend(hungry, NULL, 1));
  tamis_seq_free(hungry);
  tamis_cache_free(small);
  tamis_ctx_free(poor);
}

/* A context, its cache, a sequence and its fork, freed in each of the 24 orders, and used until the last one goes. */
static void any_order(void) {
  for (int order = 0; order < 24; order++) {
    static heap allocator;
    tamis_ctx_options options = heap_options(&allocator, 2);
    const tamis_cache_options shape = small_cache();
    tamis_ctx *owner = NULL;
    tamis_cache *pages = NULL;
    tamis_seq *pair[2] = {NULL, NULL};
    CHECK_OK(tamis_ctx_create(&options, &owner));
    CHECK_OK(tamis_cache_create(owner, &shape, &pages));
    CHECK_OK(tamis_seq_create(pages, &pair[0]));
    CHECK_OK(tamis_seq_extend(pair[0], NULL, TOKENS));
    CHECK_OK(tamis_seq_fork(pair[0], -1, &pair[1]));

    int left[] = {0, 1, 2, 3}, code = order;
    for (int remaining = 4; remaining > 0; remaining--) {
      const int pick = code % remaining, object = left[pick];
      code /= remaining;
      left[pick] = left[remaining - 1];
      if (object == 0) tamis_ctx_free(owner);
      if (object == 1) tamis_cache_free(pages);
      if (object >= 2) {
        tamis_seq_free(pair[object - 2]);
        pair[object - 2] = NULL;
      }
      for (int i = 0; i < 2; i++) {
        if (pair[i] == NULL) continue;
        int64_t length = 0;
        CHECK_OK(tamis_seq_extend(pair[i], NULL, 1));
        CHECK_OK(tamis_seq_length(pair[i], &length));
        CHECK(length > TOKENS);
      }
    }
    heap_expect_empty(&allocator);
    pthread_mutex_destroy(&allocator.lock);
  }
}

int main(void) {
  tamis_ctx *real = NULL;
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  const tamis_cache_options shape = small_cache();
  prepare();
  CHECK_OK(tamis_ctx_create(&options, &real));
  CHECK_OK(tamis_cache_create(real, &shape, &cache));
  CHECK_OK(tamis_seq_create(cache, &seq));
  CHECK_OK(tamis_seq_extend(seq, NULL, TOKENS));
  if (check_failures != 0) return checked();

  ctx = real;
  contexts();
  caches();
  sequence_calls();
  sequence_rows();
  sequence_verbs();
  cache_files();
  document_store();
  splices();
  exhausted_budget();
  any_order();
  for (int pass = 0; pass < 2; pass++) { /* operators: with a context, and without */
    ctx = pass == 0 ? real : NULL;
    numbers();
    verbs();
    candidates();
    attends();
  }
  tamis_seq_free(seq);
  tamis_cache_free(cache);
  tamis_ctx_free(real);
  printf("%d calls refused\n", refusals);
  return checked();
}
