/* One decode step of DeepSeek Sparse Attention on plain memory: index -> select -> attend over 32,768 keys, beside
 * dense attention over all of them, and the counters that prove what was saved.
 *
 *   cc examples/select.c $(pkg-config --cflags --libs tamis) -o select && ./select
 */
#include <stdio.h>
#include <stdlib.h>

#include <tamis.h>

enum { KEYS = 32768, HEADS = 128, LATENT = 512, KEY = 576, INDEX_HEADS = 64, INDEX_DIM = 128, K = 2048 };

static void must(tamis_status status) {
  if (status != TAMIS_OK) {
    fprintf(stderr, "%s: %s\n", tamis_status_name(status), tamis_last_error());
    exit(1);
  }
}

/* Counters only grow, so the time of a call is the difference of two reads. */
static double milliseconds(tamis_ctx *ctx) {
  tamis_counters c = TAMIS_COUNTERS_INIT;
  must(tamis_ctx_counters(ctx, TAMIS_OP_ALL, &c));
  return 1e-6 * (double)c.wall_nanoseconds;
}

static tamis_tensor tensor(int32_t dtype, void *data, int32_t ndim, int64_t a, int64_t b, int64_t c) {
  tamis_tensor t = {0};
  t.data = data;
  t.dtype = dtype;
  t.ndim = ndim;
  t.shape[0] = a;
  t.shape[1] = b;
  t.shape[2] = c;
  return t;
}

/* Random numbers stand in for a model's activations. */
static float *numbers(size_t count, unsigned seed) {
  float *x = malloc(count * sizeof *x);
  unsigned state = seed;
  size_t i;
  if (x == NULL) exit(1);
  for (i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
  return x;
}

static tamis_tensor as(int32_t dtype, tamis_ctx *ctx, tamis_tensor x, size_t element) {
  tamis_tensor out = x;
  size_t rows = (size_t)x.shape[0] * (size_t)(x.ndim == 3 ? x.shape[1] : 1);
  out.dtype = dtype;
  out.data = malloc(rows * (size_t)x.shape[x.ndim - 1] * element);
  out.scale = malloc(rows * sizeof(float)); /* one scale for each row: used by the 8-bit dtypes */
  if (out.data == NULL || out.scale == NULL) exit(1);
  must(tamis_quantize(ctx, &x, NULL, &out));
  return out;
}

int main(void) {
  tamis_ctx *ctx;
  char text[256];
  must(tamis_ctx_create(NULL, &ctx));
  must(tamis_ctx_describe(ctx, text, sizeof text, NULL));
  printf("%s\n", text);

  /* One query token, KEYS cached tokens: latents (key and value in one) and index keys. */
  float *x_latent = numbers((size_t)KEYS * KEY, 1), *x_index = numbers((size_t)KEYS * INDEX_DIM, 2);
  float *x_q = numbers((size_t)HEADS * KEY, 3), *x_iq = numbers((size_t)INDEX_HEADS * INDEX_DIM, 4);
  float *x_w = numbers(INDEX_HEADS, 5);
  tamis_tensor latent = as(TAMIS_BF16, ctx, tensor(TAMIS_F32, x_latent, 3, KEYS, 1, KEY), 2);
  tamis_tensor index_key = as(TAMIS_I8, ctx, tensor(TAMIS_F32, x_index, 2, KEYS, INDEX_DIM, 0), 1);
  tamis_tensor q = tensor(TAMIS_F32, x_q, 3, 1, HEADS, KEY);
  tamis_tensor index_q = tensor(TAMIS_F32, x_iq, 3, 1, INDEX_HEADS, INDEX_DIM);
  tamis_tensor weights = tensor(TAMIS_F32, x_w, 2, 1, INDEX_HEADS, 0);
  tamis_tensor value = latent; /* the value is the first 512 numbers of the latent key */
  value.shape[2] = LATENT;
  value.stride[0] = value.stride[1] = KEY;
  value.stride[2] = 1;

  static int32_t chosen[K];
  static float sparse[HEADS * LATENT], dense[HEADS * LATENT];
  tamis_tensor indices = tensor(TAMIS_I32, chosen, 2, 1, K, 0);
  tamis_tensor out = tensor(TAMIS_F32, sparse, 3, 1, HEADS, LATENT);
  tamis_tensor out_dense = tensor(TAMIS_F32, dense, 3, 1, HEADS, LATENT);
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.indices = &indices;

  double best_sparse = 1e9, best_dense = 1e9;
  int run;
  for (run = 0; run < 5; run++) {
    double t0 = milliseconds(ctx), t1, t2;
    must(tamis_select(ctx, &index_q, &weights, &index_key, NULL, &indices, NULL));
    must(tamis_attend(ctx, &q, &latent, &value, &options, &out, NULL));
    t1 = milliseconds(ctx);
    must(tamis_attend(ctx, &q, &latent, &value, NULL, &out_dense, NULL));
    t2 = milliseconds(ctx);
    if (t1 - t0 < best_sparse) best_sparse = t1 - t0;
    if (t2 - t1 < best_dense) best_dense = t2 - t1;
  }
  printf("keys chosen: %d %d %d ... %d (of %d, ascending)\n", chosen[0], chosen[1], chosen[2], chosen[K - 1], KEYS);
  printf("one step: sparse %.2f ms, dense %.2f ms, %.1f times faster\n", best_sparse, best_dense, best_dense / best_sparse);

  tamis_counters select = TAMIS_COUNTERS_INIT, attend = TAMIS_COUNTERS_INIT;
  must(tamis_ctx_counters(ctx, TAMIS_OP_SELECT, &select));
  must(tamis_ctx_counters(ctx, TAMIS_OP_ATTEND, &attend));
  printf("counted: %.0f keys scored, %.0f selected; attend compared %.0f, dense alone would have %.0f\n",
         (double)select.keys_scored, (double)select.keys_selected, (double)attend.keys_attended,
         (double)attend.keys_dense);

  tamis_ctx_free(ctx);
  free(latent.data), free(latent.scale), free(index_key.data), free(index_key.scale);
  free(x_latent), free(x_index), free(x_q), free(x_iq), free(x_w);
  return select.keys_selected == 5 * K ? 0 : 1;
}
