/* What a call costs around its kernels, on a machine that may be busy: one thread's processor time, best of many runs,
 * variants in turns. Needs the installed library:
 *
 *   clang -O2 benchmarks/kernels/calls_bench.c $(pkg-config --cflags --libs tamis) -o calls_bench
 *   ./calls_bench [isa]
 *
 * threads: the plan for two threads run by one, through the host's `parallel`. What is spent outside its parallel
 *          regions cannot be shared, and what it spends more than the plan for one thread is the price of cutting:
 *          together they bound what two idle processors can gain.
 * pages:   select over the 64-token pages of a cache beside the same keys in one piece. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tamis.h"

enum { HEADS = 64, DIM = 128, K = 2048, COLUMNS = 128, KEY = 576, VALUE = 512, MOST = 131072 };

#define OK(call) do { if ((call) != TAMIS_OK) { puts(tamis_last_error()); exit(1); } } while (0)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static double inside;

static void on_the_caller(void *user, size_t count, void (*task)(void *arg, size_t index), void *arg) {
  const double began = now();
  (void)user;
  for (size_t i = 0; i < count; i++) task(arg, i);
  inside += now() - began;
}

static uint64_t state = 88172645463325252u;

static float draw(void) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (float)(state >> 40) / (1 << 24) - 0.5f;
}

static void *get(size_t bytes) {
  void *p = calloc(bytes + 64, 1);
  if (p == NULL) exit(1);
  return (char *)p + (64 - (size_t)p % 64) % 64;
}

static tamis_tensor view(void *data, int32_t dtype, int32_t ndim, int64_t a, int64_t b, int64_t c) {
  const tamis_tensor made = {data, dtype, ndim, {a, b, c, 0}, {0}, NULL, 0};
  return made;
}

static tamis_tensor q, w, keys, indices, latents, values, heads, out;

static void prepare(tamis_ctx *ctx) {
  float *numbers = get((size_t)MOST * KEY * 4);
  for (size_t i = 0; i < (size_t)MOST * KEY; i++) numbers[i] = draw();
  const tamis_tensor index = view(numbers, TAMIS_F32, 2, MOST, DIM, 0);
  keys = view(get((size_t)MOST * DIM), TAMIS_I8, 2, MOST, DIM, 0);
  keys.scale = get(MOST * 4);
  OK(tamis_quantize(ctx, &index, NULL, &keys));
  const tamis_tensor wide = view(numbers, TAMIS_F32, 3, MOST, 1, KEY);
  latents = view(get((size_t)MOST * KEY * 2), TAMIS_BF16, 3, MOST, 1, KEY);
  OK(tamis_quantize(ctx, &wide, NULL, &latents));
  values = latents;
  values.shape[2] = VALUE, values.stride[0] = values.stride[1] = KEY, values.stride[2] = 1;
  q = view(numbers, TAMIS_F32, 3, 1, HEADS, DIM);
  w = view(numbers + HEADS * DIM, TAMIS_F32, 2, 1, HEADS, 0);
  heads = view(latents.data, TAMIS_BF16, 3, 1, COLUMNS, KEY);
  indices = view(get(K * 4), TAMIS_I32, 2, 1, K, 0);
  out = view(get(COLUMNS * VALUE * 4), TAMIS_F32, 3, 1, COLUMNS, VALUE);
}

static void call(tamis_ctx *ctx, int work) {
  tamis_attend_options options = TAMIS_ATTEND_OPTIONS_INIT;
  options.indices = work == 1 ? &indices : NULL;
  if (work == 0) {
    OK(tamis_select(ctx, &q, &w, &keys, NULL, &indices, NULL));
  } else {
    OK(tamis_attend(ctx, &heads, &latents, &values, &options, &out, NULL));
  }
}

static void threads(tamis_ctx *one, tamis_ctx *two) {
  static const char *const names[] = {"select", "attend", "dense"};
  for (int64_t m = 8192; m <= MOST; m *= 16) {
    keys.shape[0] = latents.shape[0] = values.shape[0] = m;
    for (int work = 0; work < 3; work++) {
      double alone = 1e18, cut = 1e18, parallel = 0;
      for (int run = 0; run < (work == 2 ? 8 : 60); run++) {
        double began = now();
        call(one, work);
        const double first = now() - began;
        if (first < alone) alone = first;
        inside = 0, began = now();
        call(two, work);
        const double second = now() - began;
        if (second < cut) cut = second, parallel = inside;
      }
      printf("threads,%s,%ld keys: one %.0f us; two's plan on one %.0f us, %.1f outside regions: at most %.2fx\n",
             names[work], (long)m, alone, cut, cut - parallel, alone / (cut - parallel / 2));
    }
  }
}

static void pages(tamis_ctx *ctx) {
  for (int64_t m = 16384; m <= MOST; m *= 8) {
    tamis_cache *cache;
    tamis_seq *seq;
    const int32_t rows = 1;
    keys.shape[0] = m;
    OK(tamis_cache_create(ctx, NULL, &cache));
    OK(tamis_seq_create(cache, &seq));
    OK(tamis_seq_extend(seq, NULL, (size_t)m));
    OK(tamis_seq_write(seq, 0, 0, NULL, NULL, &keys));
    double flat = 1e18, paged = 1e18;
    for (int run = 0; run < 60; run++) {
      double began = now();
      call(ctx, 0);
      if (now() - began < flat) flat = now() - began;
      began = now();
      OK(tamis_seq_select((tamis_seq *const *)&seq, &rows, 1, 0, &q, &w, NULL, &indices, NULL));
      if (now() - began < paged) paged = now() - began;
    }
    printf("pages,%ld keys: flat %.0f us, pages %.0f us (%.2fx)\n", (long)m, flat, paged, paged / flat);
    tamis_seq_free(seq);
    tamis_cache_free(cache);
  }
}

int main(int argc, char **argv) {
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  tamis_ctx *one, *two;
  char text[200];
  options.isa = argc > 1 ? argv[1] : NULL;
  options.threads = 1;
  OK(tamis_ctx_create(&options, &one));
  options.threads = 2;
  options.parallel = on_the_caller;
  OK(tamis_ctx_create(&options, &two));
  OK(tamis_ctx_describe(one, text, sizeof text, NULL));
  puts(text);
  prepare(one);
  threads(one, two);
  pages(one);
  return 0;
}
