/* Every allocation fails once, in turn, in a scenario that uses the whole library. A call then succeeds or gives
 * TAMIS_E_MEMORY and has changed nothing: asked again it succeeds, the results are the same bits, and no byte is
 * lost. The same for a byte budget instead of a failing allocator. */
#include <string.h>

#include "folder.h"
#include "heap.h"

enum { ROWS = 2, HEADS = 4, DIM = 32, KEYS = 300, K = 40, HALF = 150 };

static float q[ROWS * HEADS * DIM], w[ROWS * HEADS], key[KEYS * DIM];
static int32_t tokens[KEYS];

typedef struct results {
  int8_t key8[KEYS * DIM];
  float key8_scale[KEYS];
  float back[KEYS * DIM];
  float scores[ROWS * KEYS];
  int32_t indices[3][ROWS * K], part[2][ROWS * K];
  float top[ROWS * K], part_top[2][ROWS * K];
  float out[4][ROWS * HEADS * DIM];
  float lse[3][ROWS * HEADS];
  float projected[ROWS * HEADS * KEYS];
  float row[DIM];
  float spliced[DIM];
  int64_t matched, length, kept[3];
} results;

static results expected, result;

/* What a refusal looks like in this run, and how to end the shortage. */
typedef struct shortage {
  tamis_status status;
  heap *allocator;
  uint64_t refused;
} shortage;

static int is_refusal(shortage *now, tamis_status status) {
  if (status != now->status || now->allocator == NULL) return 0;
  CHECK(tamis_last_error()[0] != 0);
  now->refused++;
  now->allocator->fail_at = 0; /* memory is back */
  return 1;
}

/* Calls, and once more when memory was short. */
#define STEP(call)                                                                                           \
  do {                                                                                                       \
    if (check_failures == 0) {                                                                               \
      tamis_status step_status = (call);                                                                     \
      if (is_refusal(now, step_status)) step_status = (call);                                                \
      if (step_status != TAMIS_OK) {                                                                         \
        check_failures++;                                                                                    \
        fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #call, tamis_status_name(step_status),   \
                tamis_last_error());                                                                         \
      }                                                                                                      \
    }                                                                                                        \
  } while (0)

static tamis_tensor matrix(void *data, int32_t dtype, int64_t rows, int64_t columns) {
  const tamis_tensor tensor = {data, dtype, 2, {rows, columns}, {0}, NULL, 0};
  return tensor;
}

static tamis_tensor cube(void *data, int64_t rows, int64_t heads, int64_t columns) {
  const tamis_tensor tensor = {data, TAMIS_F32, 3, {rows, heads, columns}, {0}, NULL, 0};
  return tensor;
}

static void operators(tamis_ctx *ctx, shortage *now, results *r) {
  const tamis_tensor queries = cube(q, ROWS, HEADS, DIM), weights = matrix(w, TAMIS_F32, ROWS, HEADS);
  const tamis_tensor keys = matrix(key, TAMIS_F32, KEYS, DIM), kv = cube(key, KEYS, 1, DIM);
  const tamis_tensor back = matrix(r->back, TAMIS_F32, KEYS, DIM);
  tamis_tensor key8 = matrix(r->key8, TAMIS_I8, KEYS, DIM);
  key8.scale = r->key8_scale;
  STEP(tamis_quantize(ctx, &keys, NULL, &key8));
  STEP(tamis_dequantize(ctx, &key8, &back));

  const tamis_tensor scores = matrix(r->scores, TAMIS_F32, ROWS, KEYS);
  const tamis_tensor top = matrix(r->top, TAMIS_F32, ROWS, K);
  const tamis_tensor best = matrix(r->indices[0], TAMIS_I32, ROWS, K);
  const tamis_tensor indices = matrix(r->indices[1], TAMIS_I32, ROWS, K);
  STEP(tamis_index_scores(ctx, &queries, &weights, &key8, NULL, &scores));
  STEP(tamis_topk(ctx, &scores, NULL, &best));
  STEP(tamis_select(ctx, &queries, &weights, &key8, NULL, &indices, &top));
  CHECK(check_failures != 0 || memcmp(r->indices[0], r->indices[1], sizeof r->indices[0]) == 0);

  /* The selections of the first and the last half of the keys are that of all. */
  tamis_tensor half = key8;
  half.shape[0] = KEYS / 2;
  tamis_select_options every = TAMIS_SELECT_OPTIONS_INIT;
  every.all_visible = 1;
  const tamis_tensor first = matrix(r->part[0], TAMIS_I32, ROWS, K), second = matrix(r->part[1], TAMIS_I32, ROWS, K);
  const tamis_tensor first_top = matrix(r->part_top[0], TAMIS_F32, ROWS, K);
  const tamis_tensor second_top = matrix(r->part_top[1], TAMIS_F32, ROWS, K);
  STEP(tamis_select(ctx, &queries, &weights, &half, &every, &first, &first_top));
  half.data = (char *)half.data + half.shape[0] * DIM;
  half.scale += half.shape[0];
  half.shape[0] = KEYS - half.shape[0];
  STEP(tamis_select(ctx, &queries, &weights, &half, &every, &second, &second_top));
  for (int i = 0; i < ROWS * K; i++) r->part[1][i] += r->part[1][i] < 0 ? 0 : KEYS / 2;
  STEP(tamis_merge_candidates(ctx, &second, &second_top, &first, &first_top));
  STEP(tamis_select(ctx, &queries, &weights, &key8, &every, &second, &second_top));
  CHECK(check_failures != 0 || memcmp(r->part[0], r->part[1], sizeof r->part[0]) == 0);
  CHECK(check_failures != 0 || memcmp(r->part_top[0], r->part_top[1], sizeof r->part_top[0]) == 0);

  const tamis_tensor sparse = cube(r->out[0], ROWS, HEADS, DIM), dense = cube(r->out[1], ROWS, HEADS, DIM);
  const tamis_tensor lse = matrix(r->lse[0], TAMIS_F32, ROWS, HEADS);
  const tamis_tensor dense_lse = matrix(r->lse[1], TAMIS_F32, ROWS, HEADS);
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.indices = &indices;
  STEP(tamis_attend(ctx, &queries, &kv, &kv, &options, &sparse, &lse));
  STEP(tamis_attend(ctx, &queries, &kv, &kv, NULL, &dense, &dense_lse));
  STEP(tamis_merge(ctx, &dense, &dense_lse, &sparse, &lse));

  const tamis_tensor rows = matrix(q, TAMIS_F32, ROWS * HEADS, DIM);
  const tamis_tensor projected = matrix(r->projected, TAMIS_F32, ROWS * HEADS, KEYS);
  STEP(tamis_project(ctx, &rows, &keys, &projected));
}

static void sequences(tamis_ctx *ctx, shortage *now, results *r) {
  tamis_cache_options options = TAMIS_CACHE_OPTIONS_INIT;
  options.layers = 2;
  options.key_dim = options.value_dim = options.index_dim = DIM;
  options.kv_dtype = TAMIS_F32;
  options.page_tokens = 16;
  tamis_cache *cache = NULL;
  tamis_seq *seq = NULL, *branch = NULL, *again = NULL;
  const tamis_tensor rows = matrix(key, TAMIS_F32, HALF, DIM), one = matrix(key, TAMIS_F32, 1, DIM);
  STEP(tamis_cache_create(ctx, &options, &cache));
  STEP(tamis_seq_create(cache, &seq));
  STEP(tamis_seq_extend(seq, tokens, HALF));
  for (uint32_t layer = 0; layer < 2; layer++) STEP(tamis_seq_write(seq, layer, 0, &rows, NULL, &rows));
  STEP(tamis_seq_fork(seq, HALF - 5, &branch));           /* the last page is shared in part */
  STEP(tamis_seq_write(branch, 1, HALF - 6, &one, NULL, &one)); /* and now copied            */
  STEP(tamis_seq_extend(branch, tokens + HALF, 20));
  STEP(tamis_seq_match(cache, tokens, HALF, &again, &r->matched));

  if (check_failures == 0) {
    tamis_seq *const both[] = {seq, branch};
    const int32_t counts[] = {1, 1};
    const tamis_tensor queries = cube(q, ROWS, HEADS, DIM), weights = matrix(w, TAMIS_F32, ROWS, HEADS);
    const tamis_tensor indices = matrix(r->indices[2], TAMIS_I32, ROWS, K);
    const tamis_tensor out = cube(r->out[2], ROWS, HEADS, DIM), lse = matrix(r->lse[2], TAMIS_F32, ROWS, HEADS);
    const tamis_tensor dense = cube(r->out[3], ROWS, HEADS, DIM), row = matrix(r->row, TAMIS_F32, 1, DIM);
    tamis_attend_options attend = TAMIS_ATTEND_OPTIONS_INIT;
    attend.indices = &indices;
    STEP(tamis_seq_select(both, counts, 2, 1, &queries, &weights, NULL, &indices, NULL));
    STEP(tamis_seq_attend(both, counts, 2, 1, &queries, &attend, &out, &lse));
    STEP(tamis_seq_attend(both, counts, 2, 1, &queries, NULL, &dense, NULL));
    STEP(tamis_seq_read(seq, 1, HALF - 6, &row, NULL, NULL)); /* the fork's write is not seen here */
    tamis_seq *kept = NULL;
    tamis_open_options open = TAMIS_OPEN_OPTIONS_INIT;
    STEP(tamis_seq_save(branch, "tamis-oom.tamis", "m", 1, -1));
    for (open.copy = 0; open.copy < 2; open.copy++) {
      STEP(tamis_seq_open(cache, "tamis-oom.tamis", "m", 1, &open, &kept));
      STEP(tamis_seq_extend(kept, NULL, 1)); /* its last page is copied */
      STEP(tamis_seq_length(kept, &r->kept[open.copy]));
      tamis_seq_free(kept);
      kept = NULL;
    }
    tamis_store *store = NULL;
    remove_folder("tamis-oom-store");
    STEP(tamis_store_open(ctx, "tamis-oom-store", 0, &store));
    STEP(tamis_store_put(store, seq, "m", 1, -1));
    STEP(tamis_store_match(store, cache, "m", 1, tokens, HALF, &kept, &r->kept[2]));
    tamis_seq_free(kept);
    tamis_store_free(store);
    static const float turns[] = {1.0f, 0.1f};
    tamis_rotary rotary = TAMIS_ROTARY_INIT;
    rotary.dims = 4;
    rotary.frequencies = turns;
    const tamis_tensor spliced = matrix(r->spliced, TAMIS_F32, 1, DIM);
    STEP(tamis_seq_splice(branch, seq, 3, 40, &rotary));
    STEP(tamis_seq_read(branch, 1, HALF + 15 + 39, &spliced, NULL, NULL));
    STEP(tamis_seq_truncate(branch, 10));
    STEP(tamis_seq_length(branch, &r->length));
    STEP(tamis_ctx_trim(ctx));
  }
  tamis_seq_free(again);
  tamis_seq_free(branch);
  tamis_seq_free(seq);
  tamis_cache_free(cache);
}

static void scenario(heap *allocator, uint64_t max_bytes, shortage *now, results *r) {
  memset(r, 0, sizeof *r);
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  options.max_bytes = max_bytes;
  options.alloc = heap_alloc;
  options.release = heap_release;
  options.user = allocator;
  tamis_ctx *ctx = NULL;
  STEP(tamis_ctx_create(&options, &ctx));
  if (check_failures == 0) {
    operators(ctx, now, r);
    sequences(ctx, now, r);
  }
  tamis_ctx_free(ctx);
  heap_expect_empty(allocator);
}

/* n = 1, 2, ...: the n-th allocation fails (alone, or with all after it until the first refusal). */
static void fail_each(int fail_after) {
  uint64_t n = 1, refusals = 0, failures = 1;
  for (; failures != 0 && check_failures == 0; n++) {
    static heap allocator;
    memset(&allocator, 0, sizeof allocator);
    pthread_mutex_init(&allocator.lock, NULL);
    allocator.fail_at = n;
    allocator.fail_after = fail_after;
    shortage now = {TAMIS_E_MEMORY, &allocator, 0};
    scenario(&allocator, 0, &now, &result);
    CHECK(memcmp(&result, &expected, sizeof result) == 0);
    if (check_failures != 0) fprintf(stderr, "when allocation %llu failed\n", (unsigned long long)n);
    refusals += now.refused;
    failures = allocator.failed;
    pthread_mutex_destroy(&allocator.lock);
  }
  printf("%llu allocations failed, %llu calls refused\n", (unsigned long long)n - 2, (unsigned long long)refusals);
  CHECK(n > 10);                        /* the hook is really used */
  CHECK(refusals > 5 || !fail_after); /* the library may free its spare memory and try again */
}

/* A refused call leaves the context usable, so a budget may be met again after a refusal; here a refusal ends the
 * run, and all budgets up to a sufficient one are tried. */
static void sweep_budgets(uint64_t enough) {
  int refused = 0;
  for (uint64_t budget = 64; budget < enough && check_failures == 0; budget += budget / 4) {
    static heap allocator;
    tamis_ctx_options options = heap_options(&allocator, 2);
    options.max_bytes = budget;
    tamis_ctx *ctx = NULL;
    tamis_status status = tamis_ctx_create(&options, &ctx);
    tamis_cache *cache = NULL;
    tamis_seq *seq = NULL;
    if (status == TAMIS_OK) status = tamis_cache_create(ctx, NULL, &cache);
    if (status == TAMIS_OK) status = tamis_seq_create(cache, &seq);
    if (status == TAMIS_OK) {
      status = tamis_seq_extend(seq, tokens, KEYS);
      int64_t length = -1;
      CHECK_OK(tamis_seq_length(seq, &length));
      CHECK(length == (status == TAMIS_OK ? KEYS : 0));
    }
    CHECK(status == TAMIS_OK || status == TAMIS_E_BUDGET);
    CHECK(allocator.live_bytes <= budget);
    refused += status == TAMIS_E_BUDGET;
    tamis_seq_free(seq);
    tamis_cache_free(cache);
    tamis_ctx_free(ctx);
    heap_expect_empty(&allocator);
    pthread_mutex_destroy(&allocator.lock);
  }
  CHECK(refused > 0);
}

int main(void) {
  uint32_t state = 7;
  float *parts[] = {q, w, key};
  const size_t counts[] = {sizeof q / 4, sizeof w / 4, sizeof key / 4};
  for (int part = 0; part < 3; part++)
    for (size_t i = 0; i < counts[part]; i++) {
      state = state * 1664525u + 1013904223u;
      parts[part][i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
  for (int i = 0; i < KEYS; i++) tokens[i] = i;

  static heap plenty;
  pthread_mutex_init(&plenty.lock, NULL);
  shortage none = {TAMIS_OK, NULL, 0};
  scenario(&plenty, 0, &none, &expected);
  CHECK(expected.matched == HALF && expected.length == 10);
  printf("%llu allocations\n", (unsigned long long)plenty.calls);
  if (check_failures == 0) fail_each(0);
  if (check_failures == 0) fail_each(1);
  if (check_failures == 0) sweep_budgets(4 << 20);
  remove("tamis-oom.tamis");
  remove_folder("tamis-oom-store");
  return checked();
}
