/* Many threads on one context get the bits that one thread gets; the host's own `parallel` gives them too; a call
 * can be cancelled from a callback; a busy sequence refuses a second call. */
#define _GNU_SOURCE
#include <pthread.h>

#include "work.h"

enum { THREADS = 8, ROUNDS = 10 };

static work_result expected;

/* ------------------------------------------------------------------------------------ many threads, one context */

typedef struct job {
  tamis_ctx *ctx;
  int wrong;
} job;

static void *work_many(void *argument) {
  job *mine = argument;
  work_result *result = malloc(sizeof *result);
  for (int round = 0; result != NULL && round < ROUNDS; round++) {
    memset(result, 0, sizeof *result);
    mine->wrong += work_run(mine->ctx, result) != TAMIS_OK || memcmp(result, &expected, sizeof *result) != 0;
    /* Errors are per thread: nobody else's success may clear this one. */
    mine->wrong += tamis_topk(mine->ctx, NULL, NULL, NULL) != TAMIS_E_ARGUMENT;
    mine->wrong += strstr(tamis_last_error(), "tamis_topk") == NULL;
  }
  free(result);
  return NULL;
}

static void share_a_context(uint32_t threads_of_context) {
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = threads_of_context;
  tamis_ctx *ctx = NULL;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  pthread_t thread[THREADS];
  job jobs[THREADS];
  for (int i = 0; i < THREADS; i++) {
    jobs[i] = (job){ctx, 0};
    CHECK(pthread_create(&thread[i], NULL, work_many, &jobs[i]) == 0);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(thread[i], NULL);
    CHECK(jobs[i].wrong == 0);
  }
  tamis_counters counters = TAMIS_COUNTERS_INIT;
  CHECK_OK(tamis_ctx_counters(ctx, TAMIS_OP_SELECT, &counters));
  CHECK(counters.calls == THREADS * ROUNDS);
  tamis_ctx_free(ctx);
}

/* --------------------------------------------------------------------------------------- the host's own threads */

typedef struct host {
  tamis_ctx *ctx;
  tamis_seq *seq;
  int calls, cancel, probe;
  pthread_t probe_thread;
  tamis_status probed[3];
} host;

typedef struct span {
  void (*task)(void *arg, size_t index);
  void *arg;
  size_t first, last;
} span;

static void *run_span(void *argument) {
  const span *part = argument;
  for (size_t i = part->last; i > part->first; i--) part->task(part->arg, i - 1); /* backwards: any order is legal */
  return NULL;
}

/* A second call on the busy sequence, from a thread of its own. */
static void *probe(void *argument) {
  host *self = argument;
  int64_t length = -1;
  self->probed[0] = tamis_seq_length(self->seq, &length);
  self->probed[1] = tamis_seq_extend(self->seq, NULL, 1);
  self->probed[2] = tamis_seq_truncate(self->seq, 0);
  return NULL;
}

static void host_parallel(void *user, size_t count, void (*task)(void *arg, size_t index), void *arg) {
  host *self = user;
  self->calls++;
  if (self->cancel) tamis_ctx_cancel(self->ctx);
  if (self->probe) {
    self->probe = 0;
    if (pthread_create(&self->probe_thread, NULL, probe, self) == 0) pthread_join(self->probe_thread, NULL);
  }
  span upper = {task, arg, count / 2, count}, lower = {task, arg, 0, count / 2};
  pthread_t thread;
  const int started = pthread_create(&thread, NULL, run_span, &upper) == 0;
  run_span(&lower);
  if (started) pthread_join(thread, NULL);
  else run_span(&upper);
}

static tamis_ctx *host_context(host *self) {
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  options.parallel = host_parallel;
  options.user = self;
  CHECK_OK(tamis_ctx_create(&options, &self->ctx));
  return self->ctx;
}

static void host_threads_and_cancel(void) {
  static work_result result;
  host self = {0};
  tamis_ctx *ctx = host_context(&self);
  CHECK_OK(work_run(ctx, &result));
  CHECK(self.calls > 0);
  CHECK(memcmp(&result, &expected, sizeof result) == 0);

  self.cancel = 1;
  CHECK(work_run(ctx, &result) == TAMIS_E_CANCELLED);
  CHECK(strstr(tamis_last_error(), "tamis_select") != NULL);
  self.cancel = 0;
  tamis_ctx_cancel(ctx); /* nothing runs: later calls are not affected */
  memset(&result, 0, sizeof result);
  CHECK_OK(work_run(ctx, &result));
  CHECK(memcmp(&result, &expected, sizeof result) == 0);
  tamis_ctx_free(ctx);
}

static void busy_sequence(void) {
  host self = {0};
  tamis_ctx *ctx = host_context(&self);
  tamis_cache_options options = TAMIS_CACHE_OPTIONS_INIT;
  options.key_dim = options.value_dim = options.index_dim = WORK_DIM;
  options.kv_dtype = options.index_dtype = TAMIS_F32;
  tamis_cache *cache = NULL;
  CHECK_OK(tamis_cache_create(ctx, &options, &cache));
  CHECK_OK(tamis_seq_create(cache, &self.seq));
  CHECK_OK(tamis_seq_extend(self.seq, NULL, WORK_KEYS));
  const tamis_tensor rows = {work_key, TAMIS_F32, 2, {WORK_KEYS, WORK_DIM}, {0}, NULL, 0};
  CHECK_OK(tamis_seq_write(self.seq, 0, 0, &rows, NULL, &rows));

  static int32_t chosen[WORK_ROWS * WORK_K];
  const tamis_tensor q = {work_q, TAMIS_F32, 3, {WORK_ROWS, WORK_HEADS, WORK_DIM}, {0}, NULL, 0};
  const tamis_tensor w = {work_w, TAMIS_F32, 2, {WORK_ROWS, WORK_HEADS}, {0}, NULL, 0};
  const tamis_tensor indices = {chosen, TAMIS_I32, 2, {WORK_ROWS, WORK_K}, {0}, NULL, 0};
  const int32_t row_count = WORK_ROWS;
  self.calls = 0;
  self.probe = 1;
  CHECK_OK(tamis_seq_select(&self.seq, &row_count, 1, 0, &q, &w, NULL, &indices, NULL));
  CHECK(self.calls > 0 && self.probe == 0); /* the probe ran in the middle of the select */
  for (int i = 0; i < 3; i++) CHECK(self.probed[i] == TAMIS_E_BUSY);
  CHECK(memcmp(chosen, expected.indices, sizeof chosen) == 0);
  int64_t length = 0;
  CHECK_OK(tamis_seq_length(self.seq, &length));
  CHECK(length == WORK_KEYS);
  tamis_seq_free(self.seq);
  tamis_cache_free(cache);
  tamis_ctx_free(ctx);
}

int main(void) {
  work_prepare();
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 1;
  tamis_ctx *alone = NULL;
  CHECK_OK(tamis_ctx_create(&options, &alone));
  CHECK_OK(work_run(alone, &expected));
  tamis_ctx_free(alone);
  static work_result without;
  CHECK_OK(work_run(NULL, &without));
  CHECK(memcmp(&without, &expected, sizeof without) == 0);

  share_a_context(1);
  share_a_context(4);
  host_threads_and_cancel();
  busy_sequence();
  return checked();
}
