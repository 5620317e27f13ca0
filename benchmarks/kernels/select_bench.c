/* Top-k of one row of scores: the schemes that a driver can build from the three select kernels, timed beside each
 * other and checked against sorting. Owns no production code: the driver is Swift (TamisOperators); this program says
 * which scheme, tile and capacity it should use.
 *
 *   cc -O2 -I Sources/TamisKernels -I Sources/TamisKernels/include benchmarks/kernels/select_bench.c \
 *      Sources/TamisKernels/{portable,avx2,avx512}/select.c -lm -o select_bench
 *   ./select_bench [scores.f32 k]        a file of floats, or the built-in distributions with k = 2048
 *
 * Thread CPU time, best of the repetitions, microseconds per row, CSV. select_bench.py runs it together with numpy. */
#include "internal.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct kernels {
  const char *name;
  int32_t (*above)(const float *, int32_t, int32_t, float, float *, int32_t *);
  void (*all)(const float *, int32_t, int32_t, float *, int32_t *);
  float (*shrink)(float *, int32_t *, int32_t, int32_t, void *);
} kernels;

#define KERNELS(isa) {#isa, tk_##isa##_select_above, tk_##isa##_select_all, tk_##isa##_select_shrink}
static const kernels tables[] = {KERNELS(portable),
#if defined(TK_X86)
                                 KERNELS(avx2), KERNELS(avx512)
#elif defined(TK_ARM)
                                 KERNELS(neon)
#endif
};

static int usable(const kernels *table) {
#ifdef TK_X86
  if (strcmp(table->name, "avx2") == 0) return __builtin_cpu_supports("avx2");
  if (strcmp(table->name, "avx512") == 0) return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return table != NULL;
}

/* -- streaming: what the fused select does ----------------------------------------------------------------- */

typedef struct stream {
  const kernels *kernel;
  int32_t k, capacity, count, shrinks;
  float threshold; /* nothing is known below -infinity: see `filtering` */
  int filtering;
  float *score;
  int32_t *index;
  void *scratch;
} stream;

static void stream_begin(stream *s, int filtering, float threshold) {
  s->count = s->shrinks = 0, s->filtering = filtering, s->threshold = threshold;
}

static void stream_shrink(stream *s) {
  if (s->count <= s->k) return;
  s->threshold = s->kernel->shrink(s->score, s->index, s->count, s->k, s->scratch);
  s->count = s->k, s->filtering = 1, s->shrinks++;
}

/* Scores of keys base ... base + n - 1, in ascending order of calls; n <= capacity - k. */
static void stream_offer(stream *s, const float *tile, int32_t n, int32_t base) {
  if (s->count + n > s->capacity) stream_shrink(s);
  if (s->filtering) {
    s->count += s->kernel->above(tile, n, base, s->threshold, s->score + s->count, s->index + s->count);
  } else {
    s->kernel->all(tile, n, base, s->score + s->count, s->index + s->count);
    s->count += n;
  }
}

static void stream_row(stream *s, const float *x, int32_t n, int32_t tile) {
  for (int32_t i = 0; i < n; i += tile) stream_offer(s, x + i, n - i < tile ? n - i : tile, i);
  stream_shrink(s);
}

/* -- whole rows: a threshold guessed from a strided sample first -------------------------------------------- */

/* The score that `rank` of the sample's scores reach. */
static float guess(const stream *s, const float *x, int32_t n, int32_t stride, int32_t rank) {
  int32_t taken = 0;
  for (int32_t i = 0; i < n; i += stride, taken++) {
    s->score[taken] = x[i] == x[i] ? x[i] : -INFINITY;
    s->index[taken] = taken;
  }
  return s->kernel->shrink(s->score, s->index, taken, rank, s->scratch);
}

/* Returns how often the guess failed (0 or 1). `deviations`: how far above k the guess aims, in standard deviations of
 * the sample's count; 2.5 fails on less than one random row in a hundred for any k. */
static int sampled_row(stream *s, const float *x, int32_t n, int32_t tile, int32_t stride, double deviations) {
  const double expected = (double)s->k / stride;
  const int32_t rank = (int32_t)ceil(expected + deviations * sqrt(expected));
  const int pays = expected >= 4 && 2 * rank < n / stride;
  stream_begin(s, pays, pays ? guess(s, x, n, stride, rank) : 0);
  stream_row(s, x, n, tile);
  if (!pays || s->count == s->k) return 0;
  stream_begin(s, 0, 0);
  stream_row(s, x, n, tile);
  return 1;
}

/* -- data and checking -------------------------------------------------------------------------------------- */

static uint64_t random_state = 88172645463325252ull;

static double uniform(void) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return ((double)(random_state >> 11) + 0.5) * 0x1p-53;
}

static float normal(void) { return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform())); }

enum { NORMAL, RELU, LOGNORMAL, TIED, RISING, RECENT, KINDS };
static const char *const kind_name[KINDS] = {"normal", "relu", "lognormal", "tied", "rising", "recent"};

static void fill(float *x, int32_t n, int kind) {
  for (int32_t i = 0; i < n; i++) {
    const float z = normal();
    switch (kind) {
    case RELU: x[i] = z > 0 ? z : 0; break;
    case LOGNORMAL: x[i] = expf(2 * z); break;
    case TIED: x[i] = roundf(4 * z) / 4; break;
    case RISING: x[i] = (float)i; break;                            /* worst for streaming            */
    case RECENT: x[i] = z + 3 * expf((float)(i - n) / 4096); break; /* late keys score higher, as text */
    default: x[i] = z;
    }
  }
}

static const float *compared;

static int by_rank(const void *a, const void *b) {
  const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
  if (compared[i] != compared[j]) return compared[i] > compared[j] ? -1 : 1;
  return i < j ? -1 : 1;
}

static int by_index(const void *a, const void *b) {
  const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
  return (i > j) - (i < j);
}

/* The k best of x, ascending. */
static void sort_reference(const float *x, int32_t n, int32_t k, int32_t *order) {
  for (int32_t i = 0; i < n; i++) order[i] = i;
  compared = x;
  qsort(order, (size_t)n, sizeof *order, by_rank);
  qsort(order, (size_t)k, sizeof *order, by_index);
}

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- the table of results ----------------------------------------------------------------------------------- */

typedef struct scheme {
  const char *name;
  int32_t tile, capacity_in_k, stride; /* stride 0: no sample */
  double deviations;
} scheme;

static const scheme schemes[] = {
    {"stream", 1024, 2, 0, 0},  {"stream", 1024, 4, 0, 0},    {"stream", 4096, 2, 0, 0},
    {"stream", 4096, 4, 0, 0},  {"sample", 1024, 2, 64, 1.5}, {"sample", 1024, 2, 64, 2.5},
    {"sample", 1024, 2, 32, 2.5}, {"sample", 4096, 2, 64, 2.5},
};

static void run(const kernels *kernel, const scheme *how, const char *data, const float *x, int32_t n, int32_t k,
                const int32_t *wanted) {
  const int32_t capacity = how->capacity_in_k * k + how->tile;
  const size_t room = (size_t)(capacity > n / 16 ? capacity : n / 16) + 16;
  static _Alignas(64) char scratch[TK_SHRINK_SCRATCH];
  stream s = {kernel, k, capacity, 0, 0, 0, 0, malloc(room * 4), malloc(room * 4), scratch};
  double best = 1;
  int failed = 0;
  if (s.score == NULL || s.index == NULL) abort();
  for (int repetition = 0; repetition < 60; repetition++) {
    const double start = cpu_seconds();
    if (how->stride) {
      failed = sampled_row(&s, x, n, how->tile, how->stride, how->deviations);
    } else {
      stream_begin(&s, 0, 0);
      stream_row(&s, x, n, how->tile);
    }
    const double seconds = cpu_seconds() - start;
    best = seconds < best ? seconds : best;
  }
  const int exact = s.count == k && memcmp(s.index, wanted, (size_t)k * sizeof *wanted) == 0;
  printf("%s,%s,%d,%d,%s,%d,%d,%d,%.1f,%d,%d,%.1f,%s\n", kernel->name, data, n, k, how->name, how->tile, capacity,
         how->stride, how->deviations, s.shrinks, failed, best * 1e6, exact ? "exact" : "WRONG");
  free(s.score), free(s.index);
}

static void run_all(const char *data, const float *x, int32_t n, int32_t k) {
  int32_t *wanted = malloc((size_t)n * sizeof *wanted);
  if (wanted == NULL) abort();
  sort_reference(x, n, k, wanted);
  for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
    for (size_t i = 0; usable(&tables[t]) && i < sizeof schemes / sizeof *schemes; i++)
      run(&tables[t], &schemes[i], data, x, n, k, wanted);
  free(wanted);
}

int main(int argc, char **argv) {
  const int32_t limit = 1 << 20;
  float *x = malloc((size_t)limit * sizeof *x);
  if (x == NULL) return 1;
  puts("isa,data,n,k,scheme,tile,capacity,stride,deviations,shrinks,failed,us,check");
  if (argc == 3) {
    FILE *file = fopen(argv[1], "rb");
    if (file == NULL) return 1;
    const int32_t n = (int32_t)fread(x, sizeof *x, (size_t)limit, file), k = atoi(argv[2]);
    fclose(file);
    if (k < 1 || k > n) return 1;
    run_all("file", x, n, k);
  } else {
    for (int kind = 0; kind < KINDS; kind++) {
      fill(x, 131072, kind);
      run_all(kind_name[kind], x, 131072, 2048);
    }
  }
  free(x);
  return 0;
}
