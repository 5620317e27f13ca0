/* Meters, a store and indexers on one context from 8 threads: what is charged and settled adds up, every thread finds
 * the documents of all, and an indexer learns the bits that it learns alone; one that is in use says E_BUSY. */
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>

#include "folder.h"
#include "work.h"

enum { THREADS = 8, ROUNDS = 6, TOKENS = 96, WIDTH = 16, ROWS = 24, HEADS = 2, DIM = 16 };

static tamis_ctx *ctx;
static tamis_cache *cache;
static tamis_store *store;
static tamis_meter *tenant; /* of all threads, with a budget */
static tamis_indexer *common;
static tamis_capture *common_capture;
static work_result expected;
static float x[TOKENS * WIDTH], r[ROWS * WIDTH], attention[ROWS * TOKENS], learnt[TOKENS * DIM];
static int32_t positions[ROWS];

static tamis_tensor matrix(float *data, int64_t rows, int64_t columns) {
  const tamis_tensor made = {data, TAMIS_F32, 2, {rows, columns}, {0}, NULL, 0};
  return made;
}

static void prepare(void) {
  uint32_t state = 99;
  for (int i = 0; i < (TOKENS + ROWS) * WIDTH; i++) {
    state = state * 1664525u + 1013904223u;
    *(i < TOKENS * WIDTH ? &x[i] : &r[i - TOKENS * WIDTH]) = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
  for (int i = 0; i < ROWS; i++) {
    positions[i] = i * 4 + 3;
    for (int s = 0; s <= positions[i]; s++) attention[i * TOKENS + s] = 1.0f / (float)(positions[i] + 1);
  }
}

/* ------------------------------------------------------------------------------------------------------- indexers */

static tamis_status capture_host(tamis_capture **capture) {
  const tamis_tensor tx = matrix(x, TOKENS, WIDTH), tr = matrix(r, ROWS, WIDTH), ta = matrix(attention, ROWS, TOKENS);
  tamis_capture_options options = TAMIS_CAPTURE_OPTIONS_INIT;
  options.positions = positions;
  const tamis_status status = tamis_capture_create(ctx, capture);
  return status == TAMIS_OK ? tamis_capture_add(*capture, &tx, &tr, &ta, &options) : status;
}

static tamis_status make_indexer(tamis_indexer **indexer) {
  tamis_indexer_options options = TAMIS_INDEXER_OPTIONS_INIT;
  options.width = WIDTH;
  options.heads = HEADS;
  options.dim = DIM;
  return tamis_indexer_create(ctx, &options, indexer);
}

static tamis_status fit(tamis_indexer *indexer, tamis_capture *capture) {
  tamis_fit_options options = TAMIS_FIT_OPTIONS_INIT;
  options.steps = 3;
  options.rows = 8;
  return tamis_indexer_fit(indexer, capture, &options, NULL);
}

/* An indexer from its creation to the keys it makes. */
static int learn(float *keys) {
  const tamis_tensor tx = matrix(x, TOKENS, WIDTH), out = matrix(keys, TOKENS, DIM);
  tamis_diagnosis found = TAMIS_DIAGNOSIS_INIT;
  tamis_capture *capture = NULL;
  tamis_indexer *indexer = NULL;
  int wrong = capture_host(&capture) != TAMIS_OK || make_indexer(&indexer) != TAMIS_OK;
  wrong = wrong || fit(indexer, capture) != TAMIS_OK;
  wrong = wrong || tamis_indexer_diagnose(indexer, capture, NULL, NULL, 0, &found) != TAMIS_OK || found.rows == 0;
  wrong = wrong || tamis_indexer_project(indexer, &tx, NULL, NULL, NULL, NULL, &out) != TAMIS_OK;
  tamis_indexer_free(indexer);
  tamis_capture_free(capture);
  return wrong;
}

/* One for all: whoever comes second is told so. */
static int share_indexer(void) {
  float keys[TOKENS * DIM];
  const tamis_tensor tx = matrix(x, TOKENS, WIDTH), out = matrix(keys, TOKENS, DIM);
  tamis_indexer_options sizes = TAMIS_INDEXER_OPTIONS_INIT;
  uint64_t rows = ROWS;
  const tamis_status statuses[] = {fit(common, common_capture),
                                   tamis_indexer_project(common, &tx, NULL, NULL, NULL, NULL, &out),
                                   tamis_indexer_info(common, &sizes),
                                   tamis_capture_size(common_capture, NULL, &rows, NULL)};
  int wrong = rows != ROWS;
  for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
    wrong += statuses[i] != TAMIS_OK && statuses[i] != TAMIS_E_BUSY;
  return wrong;
}

/* --------------------------------------------------------------------------------------------------------- store */

static tamis_status document(int number, tamis_seq **seq) {
  int32_t ids[TOKENS];
  for (int i = 0; i < TOKENS; i++) ids[i] = number * 1000 + i;
  const tamis_tensor rows = matrix(work_key, TOKENS, WORK_DIM);
  tamis_status status = tamis_seq_create(cache, seq);
  if (status == TAMIS_OK) status = tamis_seq_extend(*seq, ids, TOKENS);
  return status == TAMIS_OK ? tamis_seq_write(*seq, 0, 0, &rows, NULL, &rows) : status;
}

static int find(int number, int64_t wanted) {
  int32_t ids[TOKENS];
  int64_t matched = -1;
  tamis_seq *seq = NULL;
  for (int i = 0; i < TOKENS; i++) ids[i] = number * 1000 + i;
  const tamis_status status = tamis_store_match(store, cache, "m", 1, ids, TOKENS, &seq, &matched);
  const int wrong = status != TAMIS_OK || matched < wanted;
  tamis_seq_free(seq);
  return wrong;
}

static int use_store(int number, int round) {
  tamis_seq *seq = NULL;
  tamis_store_stats stats = TAMIS_STORE_STATS_INIT;
  int wrong = document(number * ROUNDS + round, &seq) != TAMIS_OK;
  wrong = wrong || tamis_store_put(store, seq, "m", 1, -1) != TAMIS_OK;
  tamis_seq_free(seq);
  wrong += find(number * ROUNDS + round, TOKENS);
  wrong += find((number + 1) % THREADS * ROUNDS + round, 0); /* perhaps not there yet */
  return wrong + (tamis_store_read_stats(store, &stats) != TAMIS_OK || stats.stored == 0);
}

/* --------------------------------------------------------------------------------------------------------- meters */

static int spend(tamis_meter *meter, work_result *result) {
  char text[4096];
  size_t needed = 0;
  uint64_t held = 0;
  tamis_cost cost = TAMIS_COST_INIT, read = TAMIS_COST_INIT;
  tamis_amount upper = TAMIS_AMOUNT_INIT, actual = TAMIS_AMOUNT_INIT, spent = TAMIS_AMOUNT_INIT;
  upper.units = actual.units = TAMIS_UNIT_TOKENS;
  upper.tokens = 30;
  actual.tokens = 12;
  cost.input_tokens = 10;
  cost.output_tokens = 2;
  int wrong = tamis_meter_reserve(meter, &upper, &held) != TAMIS_OK;
  wrong += tamis_meter_enter(meter) != TAMIS_OK;
  wrong += work_run(ctx, result) != TAMIS_OK || memcmp(result, &expected, sizeof *result) != 0;
  wrong += tamis_meter_leave(meter) != TAMIS_OK;
  wrong += tamis_meter_charge(meter, &cost) != TAMIS_OK;
  wrong += tamis_meter_settle(meter, held, &actual) != TAMIS_OK;
  wrong += tamis_meter_read(meter, &read) != TAMIS_OK || read.calls == 0;
  wrong += tamis_meter_budget(tenant, NULL, NULL, &spent) != TAMIS_OK || spent.tokens < 12;
  return wrong + (tamis_meter_export(&tenant, 1, TAMIS_EXPORT_JSON, NULL, text, sizeof text, &needed) != TAMIS_OK);
}

/* -------------------------------------------------------------------------------------------------------- threads */

typedef struct job {
  int number, wrong;
  tamis_cost cost;
} job;

static void *work(void *argument) {
  job *mine = argument;
  tamis_meter *meter = NULL;
  work_result *result = malloc(sizeof *result);
  float *keys = malloc(sizeof learnt);
  if (result == NULL || keys == NULL || tamis_meter_create(tenant, NULL, &meter) != TAMIS_OK) {
    mine->wrong = 1;
  } else {
    for (int round = 0; round < ROUNDS; round++) {
      memset(result, 0, sizeof *result);
      mine->wrong += spend(meter, result);
      mine->wrong += use_store(mine->number, round);
      mine->wrong += share_indexer();
      mine->wrong += learn(keys) || memcmp(keys, learnt, sizeof learnt) != 0;
    }
    mine->wrong += tamis_meter_read(meter, &mine->cost) != TAMIS_OK;
  }
  tamis_meter_free(meter);
  free(keys);
  free(result);
  return NULL;
}

int main(void) {
  char folder[] = "/tmp/tamis-objects-XXXXXX";
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  tamis_meter_options limited = TAMIS_METER_OPTIONS_INIT;
  tamis_amount budget = TAMIS_AMOUNT_INIT, held = TAMIS_AMOUNT_INIT, spent = TAMIS_AMOUNT_INIT;
  tamis_cost all = TAMIS_COST_INIT;
  work_prepare();
  prepare();
  options.threads = 2;
  shape.key_dim = shape.value_dim = shape.index_dim = WORK_DIM;
  shape.kv_dtype = shape.index_dtype = TAMIS_F32;
  budget.units = TAMIS_UNIT_TOKENS;
  budget.tokens = 1000000;
  limited.budget = &budget;
  CHECK(mkdtemp(folder) != NULL);
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  CHECK_OK(tamis_cache_create(ctx, &shape, &cache));
  CHECK_OK(tamis_store_open(ctx, folder, 0, &store));
  CHECK_OK(tamis_meter_create(NULL, &limited, &tenant));
  CHECK_OK(capture_host(&common_capture));
  CHECK_OK(make_indexer(&common));
  CHECK_OK(work_run(ctx, &expected));
  CHECK(learn(learnt) == 0);

  pthread_t thread[THREADS];
  job jobs[THREADS];
  for (int i = 0; i < THREADS && check_failures == 0; i++) {
    jobs[i] = (job){i, 0, TAMIS_COST_INIT};
    CHECK(pthread_create(&thread[i], NULL, work, &jobs[i]) == 0);
  }
  uint64_t calls = 0, scored = 0;
  for (int i = 0; i < THREADS && check_failures == 0; i++) {
    pthread_join(thread[i], NULL);
    calls += jobs[i].cost.calls;
    scored += jobs[i].cost.keys_scored;
  }
  for (int i = 0; i < THREADS && check_failures == 0; i++) CHECK(jobs[i].wrong == 0);
  CHECK_OK(tamis_meter_read(tenant, &all));
  CHECK(all.calls == calls && calls == 2 * THREADS * ROUNDS); /* a select and an attend each */
  CHECK(all.keys_scored == scored && scored == (uint64_t)THREADS * ROUNDS * (WORK_ROWS * WORK_KEYS - 3)); /* causal */
  CHECK(all.input_tokens == 10 * THREADS * ROUNDS && all.output_tokens == 2 * THREADS * ROUNDS);
  CHECK_OK(tamis_meter_budget(tenant, NULL, &held, &spent));
  CHECK(held.tokens == 0 && spent.tokens == 12 * THREADS * ROUNDS);
  tamis_store_stats stats = TAMIS_STORE_STATS_INIT;
  CHECK_OK(tamis_store_read_stats(store, &stats));
  CHECK(stats.documents == THREADS * ROUNDS && stats.stored == THREADS * ROUNDS && stats.damaged == 0);
  for (int i = 0; i < THREADS * ROUNDS; i++) CHECK(find(i, TOKENS) == 0);
  tamis_indexer_free(common);
  tamis_capture_free(common_capture);
  tamis_meter_free(tenant);
  tamis_store_free(store);
  tamis_cache_free(cache);
  tamis_ctx_free(ctx);
  remove_folder(folder);
  return checked();
}
