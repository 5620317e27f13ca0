/* The paged cache: a document is read once, forked for two questions that share its pages, each decodes a few tokens
 * in one batched call, and one of them takes a token back (speculative decoding). Numbers stand in for a model.
 *
 *   cc examples/decode.c $(pkg-config --cflags --libs tamis) -o decode && ./decode
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tamis.h>

enum { DOCUMENT = 4096, LAYERS = 2, HEADS = 16, KEY = 192, VALUE = 128, INDEX_HEADS = 8, INDEX_DIM = 64, K = 256 };

static void must(tamis_status status) {
  if (status != TAMIS_OK) {
    fprintf(stderr, "%s: %s\n", tamis_status_name(status), tamis_last_error());
    exit(1);
  }
}

static tamis_tensor tensor(void *data, int32_t dtype, int32_t ndim, int64_t a, int64_t b, int64_t c) {
  tamis_tensor t = {0};
  t.data = data;
  t.dtype = dtype;
  t.ndim = ndim;
  t.shape[0] = a;
  t.shape[1] = b;
  t.shape[2] = c;
  return t;
}

static unsigned state = 1;
static void fill(float *x, size_t count) {
  size_t i;
  for (i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
}

/* Appends `count` tokens to a sequence: room first, then the rows of every layer. */
static void append(tamis_seq *seq, const int32_t *tokens, int64_t count) {
  float *keys = malloc((size_t)count * KEY * sizeof *keys), *index = malloc((size_t)count * INDEX_DIM * sizeof *index);
  int64_t length;
  uint32_t layer;
  if (keys == NULL || index == NULL) exit(1);
  must(tamis_seq_length(seq, &length));
  must(tamis_seq_extend(seq, tokens, (size_t)count));
  for (layer = 0; layer < LAYERS; layer++) {
    tamis_tensor key = tensor(keys, TAMIS_F32, 2, count, KEY, 0);
    tamis_tensor index_key = tensor(index, TAMIS_F32, 2, count, INDEX_DIM, 0);
    fill(keys, (size_t)count * KEY);
    fill(index, (size_t)count * INDEX_DIM);
    must(tamis_seq_write(seq, layer, length, &key, NULL, &index_key));
  }
  free(keys);
  free(index);
}

int main(void) {
  tamis_ctx *ctx;
  tamis_cache *cache;
  tamis_seq *document, *questions[2], *again;
  tamis_cache_options options = TAMIS_CACHE_OPTIONS_INIT;
  int32_t tokens[DOCUMENT], rows[2] = {1, 1};
  uint64_t bytes, capacity, after;
  int64_t length, matched;
  int i, step;

  must(tamis_ctx_create(NULL, &ctx));
  options.layers = LAYERS;
  options.key_dim = KEY;
  options.value_dim = VALUE;
  options.index_dim = INDEX_DIM;
  must(tamis_cache_create(ctx, &options, &cache));
  must(tamis_seq_create(cache, &document));
  for (i = 0; i < DOCUMENT; i++) tokens[i] = i % 1000;
  append(document, tokens, DOCUMENT);
  must(tamis_cache_bytes(cache, &bytes, &capacity));
  printf("document: %d tokens in %.1f MiB\n", DOCUMENT, (double)bytes / 1048576.0);

  for (i = 0; i < 2; i++) must(tamis_seq_fork(document, -1, &questions[i]));
  must(tamis_cache_bytes(cache, &after, NULL));
  printf("two forks cost %.0f bytes of pages\n", (double)(after - bytes));

  for (step = 0; step < 3; step++) {
    static float q[2 * HEADS * KEY], iq[2 * INDEX_HEADS * INDEX_DIM], w[2 * INDEX_HEADS], result[2 * HEADS * VALUE];
    static int32_t chosen[2 * K];
    uint32_t layer;
    for (i = 0; i < 2; i++) {
      int32_t token = 1000 + 10 * i + step;
      append(questions[i], &token, 1);
    }
    for (layer = 0; layer < LAYERS; layer++) {
      tamis_tensor tq = tensor(q, TAMIS_F32, 3, 2, HEADS, KEY), tiq = tensor(iq, TAMIS_F32, 3, 2, INDEX_HEADS, INDEX_DIM);
      tamis_tensor tw = tensor(w, TAMIS_F32, 2, 2, INDEX_HEADS, 0), indices = tensor(chosen, TAMIS_I32, 2, 2, K, 0);
      tamis_tensor out = tensor(result, TAMIS_F32, 3, 2, HEADS, VALUE);
      tamis_attend_options attend = TAMIS_ATTEND_OPTIONS_INIT;
      attend.indices = &indices;
      fill(q, 2 * HEADS * KEY);
      fill(iq, 2 * INDEX_HEADS * INDEX_DIM);
      fill(w, 2 * INDEX_HEADS);
      must(tamis_seq_select(questions, rows, 2, layer, &tiq, &tw, NULL, &indices, NULL));
      must(tamis_seq_attend(questions, rows, 2, layer, &tq, &attend, &out, NULL));
    }
    printf("step %d: question 0 chose %d ... %d, question 1 chose %d ... %d\n", step, chosen[0], chosen[K - 1], chosen[K],
           chosen[2 * K - 1]);
  }

  must(tamis_seq_length(questions[1], &length));
  must(tamis_seq_truncate(questions[1], length - 1));
  must(tamis_seq_length(questions[1], &length));
  printf("question 1 took its last token back: %d tokens\n", (int)length);

  /* A third question that begins like the first one finds everything it shares with it. */
  tokens[0] = 0;
  must(tamis_seq_match(cache, tokens, DOCUMENT, &again, &matched));
  printf("a new question shares %d of %d tokens at once\n", (int)matched, DOCUMENT);

  {
    tamis_counters select = TAMIS_COUNTERS_INIT, attend = TAMIS_COUNTERS_INIT;
    must(tamis_ctx_counters(ctx, TAMIS_OP_SELECT, &select));
    must(tamis_ctx_counters(ctx, TAMIS_OP_ATTEND, &attend));
    printf("scored %.0f keys, attended to %.0f; dense attention would have compared %.0f: %.1f times as many\n",
           (double)select.keys_scored, (double)attend.keys_attended, (double)attend.keys_dense,
           (double)attend.keys_dense / (double)attend.keys_attended);
  }

  /* Any order of freeing is fine. */
  tamis_ctx_free(ctx);
  tamis_cache_free(cache);
  tamis_seq_free(document);
  for (i = 0; i < 2; i++) tamis_seq_free(questions[i]);
  tamis_seq_free(again);
  return matched == DOCUMENT && length == DOCUMENT + 2 ? 0 : 1;
}
