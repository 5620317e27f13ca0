/* Section 8 of the header with what a careless caller passes, and with memory that runs out: NULL, wrong shapes and
 * dtypes, misaligned memory, attention that is none, fits that run away, files that are none, objects freed in any
 * order. Each such call is refused with one line that names the function; the indexer stays as it was. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "refused.h"

enum { TOKENS = 24, WIDTH = 8, FEATURES = 6, ROWS = 5, HEADS = 2, HOST = 4, GROUPS = 2, EXTENT = 8, DIM = 16 };

static float x[TOKENS * WIDTH], r[ROWS * FEATURES], attention[ROWS * TOKENS], queries[ROWS * HOST * EXTENT];
static float keys[TOKENS * GROUPS * EXTENT], q[ROWS * HEADS * DIM], w[ROWS * HEADS], key[ROWS * DIM];
static const int32_t positions[ROWS] = {3, 23, 0, 11, 17};
static tamis_ctx *ctx;
static tamis_tensor tensor(void *data, int32_t ndim, int64_t a, int64_t b, int64_t c) {
  const tamis_tensor made = {data, TAMIS_F32, ndim, {a, b, c, 0}, {0}, NULL, 0};
  return made;
}

static void prepare(void) {
  uint32_t state = 7;
  float *parts[] = {x, r, queries, keys};
  const size_t counts[] = {sizeof x / 4, sizeof r / 4, sizeof queries / 4, sizeof keys / 4};
  for (int part = 0; part < 4; part++)
    for (size_t i = 0; i < counts[part]; i++) {
      state = state * 1664525u + 1013904223u;
      parts[part][i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
  for (int i = 0; i < ROWS; i++)
    for (int s = 0; s <= positions[i]; s++) attention[i * TOKENS + s] = 1.0f / (float)(positions[i] + 1);
}

/* A capture of the host above, by probabilities. */
static tamis_capture *captured(void) {
  const tamis_tensor tx = tensor(x, 2, TOKENS, WIDTH, 0), tr = tensor(r, 2, ROWS, FEATURES, 0);
  const tamis_tensor ta = tensor(attention, 2, ROWS, TOKENS, 0);
  tamis_capture_options options = TAMIS_CAPTURE_OPTIONS_INIT;
  options.positions = positions;
  tamis_capture *made = NULL;
  CHECK_OK(tamis_capture_create(ctx, &made));
  CHECK_OK(tamis_capture_add(made, &tx, &tr, &ta, &options));
  return made;
}

static tamis_indexer_options sizes(void) {
  tamis_indexer_options options = TAMIS_INDEXER_OPTIONS_INIT;
  options.width = WIDTH;
  options.features = FEATURES;
  options.heads = HEADS;
  options.dim = DIM;
  return options;
}

/* ------------------------------------------------------------------------------------------------------- capture */

#define ADD "tamis_capture_add"

static void captures(void) {
  tamis_capture *capture = NULL;
  REFUSED(ARGUMENT, "tamis_capture_create", tamis_capture_create(NULL, &capture));
  REFUSED(ARGUMENT, "tamis_capture_create", tamis_capture_create(ctx, NULL));
  CHECK_OK(tamis_capture_create(ctx, &capture));
  const tamis_tensor tx = tensor(x, 2, TOKENS, WIDTH, 0), tr = tensor(r, 2, ROWS, FEATURES, 0);
  const tamis_tensor ta = tensor(attention, 2, ROWS, TOKENS, 0), tk = tensor(keys, 3, TOKENS, GROUPS, EXTENT);
  const tamis_tensor tq = tensor(queries, 3, ROWS, HOST, EXTENT), odd = tensor((char *)x + 1, 2, TOKENS, WIDTH, 0);
  tamis_capture_options rows = TAMIS_CAPTURE_OPTIONS_INIT;
  rows.positions = positions;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(NULL, &tx, &tr, &ta, &rows));
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, NULL, &tr, &ta, &rows));
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &odd, &tr, &ta, &rows));
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, NULL, &rows));
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, NULL)); /* rows 0..4 see less than they attend to */
  tamis_tensor bad = tx;
  bad.shape[0] = TOKENS - 1;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &bad, &tr, &ta, &rows));
  bad.shape[0] = INT64_MAX;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &bad, &tr, &ta, &rows));
  bad.shape[0] = 0;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &bad, &tr, &ta, &rows));
  bad = tx;
  bad.dtype = TAMIS_I32;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &bad, &tr, &ta, &rows));
  bad = tr;
  bad.shape[0] = ROWS - 1;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &bad, &ta, &rows));
  bad = ta;
  bad.shape[0] = 0;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, NULL, &bad, &rows));
  tamis_capture_options options = rows;
  options.size = 4;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &options));
  options = rows;
  options.positions = (const int32_t *)((const char *)positions + 1);
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &options));
  static const int32_t beyond[ROWS] = {0, 1, 2, 3, TOKENS}, before[ROWS] = {0, 1, 2, 3, -1};
  options.positions = beyond;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &options));
  options.positions = before;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &options));
  options = rows;
  options.queries = &tq;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &options)); /* both */
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, NULL, &options)); /* queries without keys */
  options.keys = &tk;
  options.softmax_scale = -1;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, NULL, &options));
  options.softmax_scale = NAN;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, NULL, &options));
  options.softmax_scale = 0;
  bad = tk;
  bad.shape[1] = 3;
  bad.shape[0] = 16; /* 3 key heads under 4 */
  options.keys = &bad;
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, NULL, &options));
  options.keys = &tk;

  float *numbers[] = {x, r, attention, queries, keys};
  const float wrong[] = {NAN, INFINITY};
  for (int which = 0; which < 5; which++)
    for (int value = 0; value < 2; value++) {
      const float kept = numbers[which][3];
      numbers[which][3] = wrong[value];
      if (which < 3) REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &rows));
      if (which != 2) REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, NULL, &options));
      numbers[which][3] = kept;
    }
  attention[1] += 0.1f; /* a row that sums to 1.1 */
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, &tr, &ta, &rows));
  attention[1] -= 0.1f;

  uint64_t sequences = 9, held = 9, bytes = 9;
  CHECK_OK(tamis_capture_size(capture, &sequences, &held, &bytes));
  CHECK(sequences == 0 && held == 0 && bytes == 0);
  CHECK_OK(tamis_capture_add(capture, &tx, &tr, NULL, &options));
  CHECK_OK(tamis_capture_add(capture, &tx, &tr, &ta, &rows));
  REFUSED(ARGUMENT, ADD, tamis_capture_add(capture, &tx, NULL, &ta, &rows)); /* 8 features after 6 */
  CHECK_OK(tamis_capture_size(capture, &sequences, &held, NULL));
  CHECK(sequences == 2 && held == 2 * ROWS);
  REFUSED(ARGUMENT, "tamis_capture_size", tamis_capture_size(NULL, &sequences, NULL, NULL));
  REFUSED(ARGUMENT, "tamis_capture_size", tamis_capture_size(capture, (uint64_t *)((char *)&held + 1), NULL, NULL));
  tamis_capture_free(capture);
  tamis_capture_free(NULL);
}

/* ------------------------------------------------------------------------------------------------------- indexer */

static void refuse_sizes(void (*change)(tamis_indexer_options *)) {
  tamis_indexer_options options = sizes();
  tamis_indexer *made = NULL;
  change(&options);
  REFUSED(ARGUMENT, "tamis_indexer_create", tamis_indexer_create(ctx, &options, &made));
}

static void no_width(tamis_indexer_options *o) { o->width = 0; }
static void wide(tamis_indexer_options *o) { o->width = UINT32_MAX; }
static void crowded(tamis_indexer_options *o) { o->heads = 257; }
static void odd_dim(tamis_indexer_options *o) { o->dim = 24; }
static void long_dim(tamis_indexer_options *o) { o->dim = 1024; }
static void odd_rope(tamis_indexer_options *o) { o->rope_dim = 3; }
static void long_rope(tamis_indexer_options *o) { o->rope_dim = 18; }
static void huge_rope(tamis_indexer_options *o) { o->rope_dim = INT32_MAX; }
static void negative_rope(tamis_indexer_options *o) { o->rope_dim = -2; }
static void flat(tamis_indexer_options *o) { o->rope_base = 1; }
static void nothing(tamis_indexer_options *o) { o->rope_base = NAN; }
static void cut(tamis_indexer_options *o) { o->size = 6; }
static const float no_numbers[4] = {1, 0.1f, NAN, 0};
static void not_finite(tamis_indexer_options *o) { o->rope_frequencies = no_numbers; }

static void creation(tamis_indexer *indexer) {
  void (*const changes[])(tamis_indexer_options *) = {no_width,  wide,      crowded,       odd_dim, long_dim,
                                                      odd_rope,  long_rope, huge_rope,     flat,    nothing,
                                                      not_finite, cut,      negative_rope};
  for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) refuse_sizes(changes[i]);
  tamis_indexer_options options = sizes();
  tamis_indexer *made = NULL;
  REFUSED(ARGUMENT, "tamis_indexer_create", tamis_indexer_create(NULL, &options, &made));
  REFUSED(ARGUMENT, "tamis_indexer_create", tamis_indexer_create(ctx, NULL, &made)); /* no width */
  REFUSED(ARGUMENT, "tamis_indexer_create", tamis_indexer_create(ctx, &options, NULL));
  REFUSED(ARGUMENT, "tamis_indexer_info", tamis_indexer_info(NULL, &options));
  REFUSED(ARGUMENT, "tamis_indexer_info", tamis_indexer_info(indexer, NULL));
  options = sizes();
  CHECK_OK(tamis_indexer_info(indexer, &options));
  CHECK(options.width == WIDTH && options.features == FEATURES && options.heads == HEADS && options.dim == DIM);
  CHECK(options.rope_dim == DIM / 2 && options.rope_frequencies == NULL);
}

#define PROJECT "tamis_indexer_project"

static void projection(tamis_indexer *indexer) {
  const tamis_tensor tx = tensor(x, 2, ROWS, WIDTH, 0), tr = tensor(r, 2, ROWS, FEATURES, 0);
  const tamis_tensor tq = tensor(q, 3, ROWS, HEADS, DIM), tw = tensor(w, 2, ROWS, HEADS, 0);
  const tamis_tensor tk = tensor(key, 2, ROWS, DIM, 0);
  static const int32_t negative[ROWS] = {0, 1, -1, 2, 3};
  CHECK_OK(tamis_indexer_project(indexer, &tx, &tr, positions, &tq, &tw, &tk));
  CHECK_OK(tamis_indexer_project(indexer, &tx, NULL, NULL, NULL, NULL, &tk));
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(NULL, &tx, &tr, NULL, &tq, NULL, NULL));
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, NULL, &tr, NULL, &tq, NULL, NULL));
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tx, NULL, NULL, &tq, NULL, NULL)); /* 6 are not 8 */
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tx, &tr, negative, &tq, NULL, NULL));
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tr, NULL, NULL, NULL, NULL, &tk));
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tx, &tr, NULL, &tw, NULL, NULL));
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tx, &tr, NULL, &tq, &tq, NULL));
  tamis_tensor over = tensor(x, 2, ROWS, DIM, 0), half = tk;
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tx, NULL, NULL, NULL, NULL, &over)); /* key over x */
  half.dtype = TAMIS_F16;
  REFUSED(ARGUMENT, PROJECT, tamis_indexer_project(indexer, &tx, NULL, NULL, NULL, NULL, &half));
}

#define LOAD "tamis_indexer_load"
#define SAVE "tamis_indexer_save"

static void files(tamis_indexer *indexer) {
  const char *path = "bad_indexer.safetensors";
  tamis_indexer *both[2] = {indexer, indexer}, *none[1] = {NULL}, *loaded = NULL;
  const char *prefixes[2] = {"a.", "a."}, *no_text[1] = {NULL}, *no_utf8[1] = {"\xff\xfe"};
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(NULL, prefixes, 1, path));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, NULL, 1, path));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(none, prefixes, 1, path));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, prefixes, 0, path));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, prefixes, SIZE_MAX, path));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, prefixes, 2, path)); /* one name twice */
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, no_utf8, 1, path));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, prefixes, 1, NULL));
  REFUSED(ARGUMENT, SAVE, tamis_indexer_save(both, prefixes, 1, ""));
  REFUSED(IO, SAVE, tamis_indexer_save(both, prefixes, 1, "/nonexistent/folder/file"));
  CHECK_OK(tamis_indexer_save(both, no_text, 1, path)); /* no prefix */
  CHECK_OK(tamis_indexer_save(both, prefixes, 1, path));

  tamis_indexer_options options = TAMIS_INDEXER_OPTIONS_INIT;
  REFUSED(ARGUMENT, LOAD, tamis_indexer_load(NULL, path, "a.", NULL, &loaded));
  REFUSED(ARGUMENT, LOAD, tamis_indexer_load(ctx, NULL, "a.", NULL, &loaded));
  REFUSED(ARGUMENT, LOAD, tamis_indexer_load(ctx, path, "a.", NULL, NULL));
  REFUSED(FORMAT, LOAD, tamis_indexer_load(ctx, path, "b.", NULL, &loaded));
  REFUSED(FORMAT, LOAD, tamis_indexer_load(ctx, path, NULL, NULL, &loaded));
  REFUSED(IO, LOAD, tamis_indexer_load(ctx, "/nonexistent/file", "a.", NULL, &loaded));
  options.rope_dim = DIM + 2;
  REFUSED(FORMAT, LOAD, tamis_indexer_load(ctx, path, "a.", &options, &loaded));
  options.rope_dim = -7;
  REFUSED(ARGUMENT, LOAD, tamis_indexer_load(ctx, path, "a.", &options, &loaded));
  CHECK_OK(tamis_indexer_load(ctx, path, "a.", NULL, &loaded));
  tamis_indexer_free(loaded);
  FILE *file = fopen(path, "wb");
  CHECK(file != NULL && fwrite("no tensors", 1, 10, file) == 10 && fclose(file) == 0);
  REFUSED(FORMAT, LOAD, tamis_indexer_load(ctx, path, "a.", NULL, &loaded));
  remove(path);
}

/* ----------------------------------------------------------------------------------------------- fit and diagnosis */

#define FIT "tamis_indexer_fit"
#define DIAGNOSE "tamis_indexer_diagnose"

static float keys_before[ROWS * DIM];

static void projected(tamis_indexer *indexer, float *to) {
  const tamis_tensor tx = tensor(x, 2, ROWS, WIDTH, 0), tk = tensor(to, 2, ROWS, DIM, 0);
  CHECK_OK(tamis_indexer_project(indexer, &tx, NULL, NULL, NULL, NULL, &tk));
}

static void expect_unchanged(tamis_indexer *indexer) {
  projected(indexer, key);
  CHECK(memcmp(key, keys_before, sizeof key) == 0);
}

typedef struct caller {
  tamis_indexer *indexer;
  tamis_capture *capture;
} caller;

/* Uses what is in use, then stops. */
static int32_t meddle(void *user, uint32_t step, uint32_t steps, double loss) {
  const caller *of = user;
  CHECK(steps == 400 && loss > 0 && step == 1);
  REFUSED(BUSY, FIT, tamis_indexer_fit(of->indexer, of->capture, NULL, NULL));
  REFUSED(BUSY, "tamis_capture_size", tamis_capture_size(of->capture, NULL, NULL, NULL));
  return 1;
}

static void fits(tamis_indexer *indexer, tamis_capture *capture) {
  tamis_capture *empty = NULL;
  tamis_indexer *other = NULL;
  tamis_indexer_options narrow = sizes();
  narrow.width = WIDTH + 1;
  CHECK_OK(tamis_capture_create(ctx, &empty));
  CHECK_OK(tamis_indexer_create(ctx, &narrow, &other));
  projected(indexer, keys_before);
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(NULL, capture, NULL, NULL));
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, NULL, NULL, NULL));
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, empty, NULL, NULL));
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(other, capture, NULL, NULL));
  tamis_fit_options options = TAMIS_FIT_OPTIONS_INIT;
  tamis_fit_report report = TAMIS_FIT_REPORT_INIT;
  report.size = 7;
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, capture, &options, &report));
  report.size = sizeof report;
  options.steps = UINT32_MAX;
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, capture, &options, &report));
  options.steps = 0;
  options.rows = 100000;
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, capture, &options, &report));
  options.rows = 0;
  options.selected = UINT32_MAX;
  REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, capture, &options, &report));
  options.selected = 0;
  const float rates[] = {-1, NAN, INFINITY, 1e30f}; /* the last one runs away */
  for (int i = 0; i < 4; i++) {
    options.learning_rate = rates[i];
    REFUSED(ARGUMENT, FIT, tamis_indexer_fit(indexer, capture, &options, &report));
  }
  options.learning_rate = 0;
  caller of = {indexer, capture};
  options.user = &of;
  options.on_step = meddle;
  REFUSED(CANCELLED, FIT, tamis_indexer_fit(indexer, capture, &options, &report));
  expect_unchanged(indexer);
  CHECK(report.steps == 0);
  options.on_step = NULL;
  options.steps = 20;
  CHECK_OK(tamis_indexer_fit(indexer, capture, &options, &report));
  CHECK(report.steps == 20 && report.rows == ROWS && report.last_loss < report.first_loss);
  CHECK(report.closed_start == 1);
  /* the attention is equal shares: there is nothing to learn */
  CHECK(report.warnings == (TAMIS_WARN_FEW_SEQUENCES | TAMIS_WARN_FEW_ROWS | TAMIS_WARN_NOTHING_LEARNT));
  /* what has learnt goes on from there, and an older program knows nothing of the start */
  report.size = offsetof(tamis_fit_report, closed_start);
  report.closed_start = 7;
  options.size = offsetof(tamis_fit_options, random_start);
  options.random_start = 1;
  CHECK_OK(tamis_indexer_fit(indexer, capture, &options, &report));
  CHECK(report.closed_start == 7);
  report.size = sizeof report;
  CHECK_OK(tamis_indexer_fit(indexer, capture, &options, &report));
  CHECK(report.closed_start == 0);
  tamis_indexer_free(other);
  narrow = sizes();
  CHECK_OK(tamis_indexer_create(ctx, &narrow, &other));
  options.size = sizeof options;
  CHECK_OK(tamis_indexer_fit(other, capture, &options, &report));
  CHECK(report.closed_start == 0);
  tamis_indexer_free(other);
  tamis_capture_free(empty);
}

static void diagnoses(tamis_indexer *indexer, tamis_capture *capture) {
  tamis_mass_at at[2] = {{3, 0, 0, 0, 0, 0}, {6, 0, 0, 0, 0, 0}}, none[1] = {{0, 0, 0, 0, 0, 0}};
  tamis_diagnosis found = TAMIS_DIAGNOSIS_INIT;
  tamis_diagnosis_options options = TAMIS_DIAGNOSIS_OPTIONS_INIT;
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(NULL, capture, NULL, at, 2, &found));
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, NULL, NULL, at, 2, &found));
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, NULL, NULL, 2, &found));
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, NULL, at, 65, &found));
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, NULL, at, SIZE_MAX, &found));
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, NULL, at, 2, NULL));
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, NULL, none, 1, &found)); /* k is 0 */
  none[0].k = UINT64_MAX;
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, NULL, none, 1, &found));
  options.mass = 1.5;
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, &options, at, 2, &found));
  options.mass = NAN;
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, &options, at, 2, &found));
  options.mass = 0;
  options.least_visible = TOKENS + 1;
  REFUSED(ARGUMENT, DIAGNOSE, tamis_indexer_diagnose(indexer, capture, &options, at, 2, &found));
  CHECK_OK(tamis_indexer_diagnose(indexer, capture, NULL, at, 2, &found));
  CHECK(found.rows == 3 && at[0].oracle > 0.1 && at[1].oracle <= 1 && at[1].indexer >= at[0].indexer);
  CHECK(fabs(at[0].random - (3.0 / 24 + 3.0 / 12 + 3.0 / 18) / 3) < 1e-9);

  char text[1024];
  size_t needed = 0;
  REFUSED(ARGUMENT, "tamis_diagnosis_text", tamis_diagnosis_text(NULL, at, 2, text, sizeof text, NULL));
  REFUSED(ARGUMENT, "tamis_diagnosis_text", tamis_diagnosis_text(&found, NULL, 2, text, sizeof text, NULL));
  REFUSED(ARGUMENT, "tamis_diagnosis_text", tamis_diagnosis_text(&found, at, 2, NULL, 5, NULL));
  CHECK_OK(tamis_diagnosis_text(&found, at, 2, text, sizeof text, &needed));
  CHECK(needed == strlen(text) + 1 && strncmp(text, "{\"sequences\":1,\"rows\":3,", 24) == 0);
  at[1].recall = NAN;
  REFUSED(ARGUMENT, "tamis_diagnosis_text", tamis_diagnosis_text(&found, at, 2, text, sizeof text, NULL));
}

/* ------------------------------------------------------------------------------------------- memory that runs out */

static tamis_status whole(tamis_ctx *own) {
  const tamis_tensor tx = tensor(x, 2, TOKENS, WIDTH, 0), tq = tensor(queries, 3, ROWS, HOST, EXTENT);
  const tamis_tensor tr = tensor(r, 2, ROWS, FEATURES, 0), tk = tensor(keys, 3, TOKENS, GROUPS, EXTENT);
  const tamis_tensor out = tensor(key, 2, ROWS, DIM, 0), few = tensor(x, 2, ROWS, WIDTH, 0);
  const tamis_indexer_options shape = sizes();
  tamis_capture_options how = TAMIS_CAPTURE_OPTIONS_INIT;
  how.positions = positions;
  how.queries = &tq;
  how.keys = &tk;
  tamis_fit_options options = TAMIS_FIT_OPTIONS_INIT;
  options.steps = 2;
  options.selected = 4;
  tamis_diagnosis found = TAMIS_DIAGNOSIS_INIT;
  tamis_capture *capture = NULL;
  tamis_indexer *indexer = NULL, *loaded = NULL;
  const char *prefix = "a.", *path = "oom_indexer.safetensors";
  tamis_status status = tamis_capture_create(own, &capture);
  if (status == TAMIS_OK) status = tamis_capture_add(capture, &tx, &tr, NULL, &how);
  if (status == TAMIS_OK) status = tamis_indexer_create(own, &shape, &indexer);
  if (status == TAMIS_OK) status = tamis_indexer_fit(indexer, capture, &options, NULL);
  if (status == TAMIS_OK) status = tamis_indexer_diagnose(indexer, capture, NULL, NULL, 0, &found);
  if (status == TAMIS_OK) status = tamis_indexer_save(&indexer, &prefix, 1, path);
  if (status == TAMIS_OK) status = tamis_indexer_load(own, path, prefix, NULL, &loaded);
  if (status == TAMIS_OK) status = tamis_indexer_project(loaded, &few, NULL, NULL, NULL, NULL, &out);
  tamis_ctx_free(own); /* the objects keep what they need */
  tamis_indexer_free(indexer);
  tamis_capture_free(capture);
  tamis_indexer_free(loaded);
  remove(path);
  return status;
}

static void out_of_memory(void) {
  uint64_t n = 1, failed = 1;
  for (; failed != 0 && check_failures == 0; n++) {
    static heap allocator;
    tamis_ctx_options options = heap_options(&allocator, 2);
    allocator.fail_at = n;
    allocator.fail_after = 1;
    tamis_ctx *own = NULL;
    CHECK_OK(tamis_ctx_create(&options, &own));
    const tamis_status status = whole(own);
    failed = allocator.failed;
    CHECK(status == (failed == 0 ? TAMIS_OK : TAMIS_E_MEMORY));
    heap_expect_empty(&allocator);
    pthread_mutex_destroy(&allocator.lock);
  }
  CHECK(n > 30);
}

int main(void) {
  prepare();
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  captures();
  tamis_capture *capture = captured();
  const tamis_indexer_options shape = sizes();
  tamis_indexer *indexer = NULL;
  CHECK_OK(tamis_indexer_create(ctx, &shape, &indexer));
  if (check_failures == 0) {
    creation(indexer);
    projection(indexer);
    files(indexer);
    fits(indexer, capture);
    diagnoses(indexer, capture);
    out_of_memory();
  }
  tamis_ctx_free(ctx); /* any order */
  tamis_indexer_free(indexer);
  tamis_capture_free(capture);
  tamis_indexer_free(NULL);
  printf("%d calls refused\n", refusals);
  return checked();
}
