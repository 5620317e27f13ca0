/* TamisKernels: the only place in Tamis that knows a CPU.
 *
 * One table of functions per instruction set, chosen at run time. Kernels only compute: they allocate
 * nothing, start no thread, check no argument and keep no state. Everything above them (checks, plans,
 * memory, threads, counters) is Swift. They are C because C has per-function target attributes, which give
 * run-time dispatch at the machine's full rate without unsafe build flags; Swift has none.
 *
 * Conventions of every function
 *   - Rows are contiguous in their last axis; strides between rows are bytes.
 *   - "heads in lanes": a score or attend kernel keeps the query heads in SIMD lanes and broadcasts the key,
 *     so keys are read where they lie: no transposition, no copy, any row stride, any page layout.
 *   - Determinism: the bits of a result for one (query, key) or one (query, head) depend on the values, the
 *     shapes and the table alone - never on how many keys or columns were in the call, nor on alignment.
 *   - `packed` queries and scratch are 64-byte aligned; everything else - keys, values, scales, outputs (out, max
 *     and sum of attend among them) - has only the natural alignment of its element (1 for bytes).
 */
#ifndef TAMIS_KERNELS_H
#define TAMIS_KERNELS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Arithmetic of a kernel: operand type, with 32-bit accumulation. */
enum {
  TK_I8 = 0,   /* signed 8-bit integers, exact int32 dot products              */
  TK_BF16 = 1, /* bfloat16 products, float accumulation                        */
  TK_F32 = 2,  /* float                                                        */
  TK_E4M3 = 3  /* index keys only: FP8 E4M3 keys, bfloat16 queries: each key is
                  expanded exactly to bfloat16 in a tile that stays in L1      */
};

/* Every entry but `enter` and `leave` is there; clang tells Swift, which then needs no check before a call. */
#ifdef __clang__
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wnullability-completeness"
#pragma clang diagnostic ignored "-Wnullability-extension"
#define TK_NONNULL _Nonnull
#else
#define TK_NONNULL
#endif
/* Keys in pages are scored by a call for each page. A kernel that asks memory for rows some way ahead needs to know
 * where the next page's are. */
typedef struct tk_beside {
  const void *next; /* rows of the next call, `key_stride` apart; NULL: not known      */
  int32_t asked;    /* the call before had this call's rows as its `next`              */
} tk_beside;

typedef struct tk_table {
  const char *name; /* "portable" "avx2" "avxvnni" "avx512" "amx" "neon" */

  /* What the choice between the two forms of attention (ExpandedForm.swift) has to know of TK_BF16 here, in times of
   * attend_chunk for many columns: of a multiply-add of the expanded form (matmul and the passes around it), worked out
   * from timings of both forms; and of taking up one selected key, in those of one key for 16 columns, which
   * benchmarks/forms.py prints. It also shows where the forms cross, which is what both are for.          */
  float expanded_cost, gather_cost;

  /* Called by a thread before / after a run of kernels (tile configuration on AMX); NULL: nothing to do. */
  void (*enter)(void);
  void (*leave)(void);

  /* -- index ------------------------------------------------------------------------------------------- *
   * score[s] = key_scale[s] * sum_h weight[h] * max(0, q[h] . key[s])            (DeepSeek-V3.2-Exp, eq. 1)
   * The head sum runs over lanes of 16 heads in head order, then one fixed tree over the 16 lanes.          */

  /* Bytes of one packed query of `heads` x `dim` (weights included), a multiple of 64. */
  size_t (*TK_NONNULL index_query_bytes)(int32_t type, int32_t heads, int32_t dim);
  /* query [heads, dim] (int8_t for TK_I8, uint16_t bfloat16 for TK_BF16 and TK_E4M3, float for TK_F32), row
   * major without gaps; weight [heads] with every query scale and constant already folded in.              */
  void (*TK_NONNULL index_pack_query)(int32_t type, const void *query, const float *weight, int32_t heads, int32_t dim,
                           void *packed);
  /* keys: `count` rows of `dim` elements, `key_stride` bytes apart; key_scale: one float per key,
   * `scale_stride` bytes apart (NULL: 1). beside: what the caller knows of the calls around this one, or
   * NULL. scores [count]. A NaN stays NaN.                                                                 */
  void (*TK_NONNULL index_scores)(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys,
                       ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride, int32_t count,
                       const tk_beside *beside, float *scores);

  /* -- select ------------------------------------------------------------------------------------------ *
   * Candidates are two parallel arrays in ascending index order. NaN ranks as -infinity.                   */

  /* Appends the entries with scores[i] > threshold (index = base + i); returns how many. Writes nothing
   * beyond `count` entries; those behind the last one appended are undefined.                              */
  int32_t (*TK_NONNULL select_above)(const float *scores, int32_t count, int32_t base, float threshold,
                          float *candidate_score, int32_t *candidate_index);
  /* Appends all `count` entries, NaN replaced by -infinity. */
  void (*TK_NONNULL select_all)(const float *scores, int32_t count, int32_t base, float *candidate_score,
                     int32_t *candidate_index);
  /* Keeps in place the k best (score descending, then lower index; 0 < k <= count), order preserved, and
   * returns the smallest score kept. `scratch`: TK_SHRINK_SCRATCH bytes.                                   */
  float (*TK_NONNULL select_shrink)(float *candidate_score, int32_t *candidate_index, int32_t count, int32_t k,
                         void *scratch);

  /* -- attend ------------------------------------------------------------------------------------------ *
   * Columns are (query, head) pairs that all see the same `count` keys. For each column c:
   *   s[i] = scale * q[c] . key[i];  max[c] = max_i s[i];  p[i] = exp(s[i] - max[c]);
   *   sum[c] = sum_i p[i];  out[c] = sum_i p[i] * value[i]      (not divided by sum)
   * type: TK_BF16 or TK_F32 (keys, values and packed queries of that type; p is rounded to it for the last
   * product). count >= 1. Any columns, key_dim, value_dim >= 1.                                            */
  size_t (*TK_NONNULL attend_query_bytes)(int32_t type, int32_t columns, int32_t key_dim);
  /* query: `columns` rows of key_dim elements of `type`, `query_stride` bytes apart. */
  void (*TK_NONNULL attend_pack_query)(int32_t type, const void *query, ptrdiff_t query_stride, int32_t columns,
                            int32_t key_dim, void *packed);
  /* Bytes of scratch for attend_chunk with at most `count` keys. */
  size_t (*TK_NONNULL attend_scratch_bytes)(int32_t type, int32_t columns, int32_t count, int32_t key_dim,
                                 int32_t value_dim);
  /* key_rows, value_rows [count]: where each row begins (for MLA the value row is the key row). Rows may
   * repeat. out [columns, value_dim] float, max and sum [columns].                                         */
  void (*TK_NONNULL attend_chunk)(int32_t type, const void *packed, int32_t columns, int32_t key_dim, int32_t value_dim,
                       const void *const *key_rows, const void *const *value_rows, int32_t count, float scale,
                       float *out, float *max, float *sum, void *scratch);
  /* (out, max, sum) <- (out, max, sum) joined with the partial result b over other keys: the larger maximum
   * wins, the other side is scaled by exp(difference). A side with sum 0 (max -infinity) is absent.        */
  void (*TK_NONNULL attend_join)(float *out, float *max, float *sum, const float *out_b, const float *max_b,
                      const float *sum_b, int32_t columns, int32_t value_dim);

  /* One row of a softmax over keys that come block by block: scores [count], count >= 1, of a query that sees key i
   * where bit i % 64 of seen[i / 64] is set (seen NULL: all).  m = max(*max, max_i scale * scores[i]);
   * p[i] = exp(scale * scores[i] - m), 0 where key i is not seen, as `type`;  *sum <- *sum * factor + sum_i p[i];
   * *max <- m. Returns factor = exp(*max before - m), for the output so far. Begin with *max -infinity, *sum 0. */
  float (*TK_NONNULL attend_row)(int32_t type, const float *scores, const uint64_t *seen, int32_t count, float scale,
                                 float *max, float *sum, void *p);

  /* -- rows of numbers --------------------------------------------------------------------------------- *
   * n elements each. Narrowing rounds to nearest, ties to even; NaN stays NaN; E4M3 saturates at 448.
   * For the scaled 8-bit types one float in `scale` holds for each `block` elements (scale NULL: all 1).    */
  void (*TK_NONNULL f32_from_bf16)(const uint16_t *x, int64_t n, float *y);
  void (*TK_NONNULL f32_from_f16)(const uint16_t *x, int64_t n, float *y);
  void (*TK_NONNULL f32_from_e4m3)(const uint8_t *x, const float *scale, int64_t block, int64_t n, float *y);
  void (*TK_NONNULL f32_from_i8)(const int8_t *x, const float *scale, int64_t block, int64_t n, float *y);
  void (*TK_NONNULL bf16_from_f32)(const float *x, int64_t n, uint16_t *y);
  void (*TK_NONNULL bf16_from_e4m3)(const uint8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y);
  void (*TK_NONNULL bf16_from_i8)(const int8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y);
  void (*TK_NONNULL f16_from_f32)(const float *x, int64_t n, uint16_t *y);
  /* One scale for all n elements. e4m3: a = max(max|x|, 1e-4), scale = a/448, rounded up to a power of two
   * when pow2 != 0 (ue8m0). i8: scale = max|x|/127 (1 where that is 0), y = round to even(x/scale).        */
  float (*TK_NONNULL e4m3_from_f32)(const float *x, int64_t n, int32_t pow2, uint8_t *y);
  float (*TK_NONNULL i8_from_f32)(const float *x, int64_t n, int8_t *y);
  /* In place: x <- H x / sqrt(n), H the Sylvester-ordered Hadamard matrix, n a power of two. */
  void (*TK_NONNULL hadamard)(float *x, int64_t n);

  /* -- dense matrix product ---------------------------------------------------------------------------- *
   * y[r, o] = sum_i x[r, i] * w[o, i]; x and w of `type` (TK_BF16, TK_F32; w of TK_I8/TK_E4M3 is expanded by
   * the caller), rows x outputs x inputs; strides in bytes; y float.                                       */
  void (*TK_NONNULL matmul)(int32_t type, const void *x, ptrdiff_t x_stride, const void *w, ptrdiff_t w_stride,
                 int32_t rows, int32_t outputs, int32_t inputs, float *y, ptrdiff_t y_stride, void *scratch);
  size_t (*TK_NONNULL matmul_scratch_bytes)(int32_t type, int32_t rows, int32_t outputs, int32_t inputs);

  /* -- learning ---------------------------------------------------------------------------------------- *
   * What fitting an indexer needs beyond the above: products whose inner dimension is short or whose left side
   * lies transposed, and the passes over rows of scores. All float, any alignment, strides in bytes.        */

  /* y[r, o] = (add ? y[r, o] : 0) + sum_i x[r, i] * w[i, o], i ascending: outputs in lanes. x[r, i] lies at
   * r * x_row + i * x_column, so a transposed x is read where it lies; rows of w and y have no gaps.         */
  void (*TK_NONNULL accumulate)(const float *x, ptrdiff_t x_row, ptrdiff_t x_column, const float *w,
                     ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, int32_t add, float *y,
                     ptrdiff_t y_stride);
  /* score[s] = sum_h weight[h] * max(0, a[h, s]), h ascending; a [heads, count], a_stride from row to row.   */
  void (*TK_NONNULL mix)(const float *a, ptrdiff_t a_stride, const float *weight, int32_t heads, int32_t count,
              float *score);
  /* max = the largest scale * x[s]; product = sum_s p[s] * scale * x[s] (0 where p is NULL);
   * x[s] <- exp(scale * x[s] - max); sum = the sum of those. count >= 1, x without infinities.              */
  void (*TK_NONNULL soften)(float *x, const float *p, int32_t count, float scale, float *max, float *sum,
                 float *product);
  /* The way back through mix and the softmax of a divergence: x[s] <- rate * (share * x[s] - p[s]);
   * weight_gradient[h] = sum_s x[s] * max(0, a[h, s]);  a[h, s] <- a[h, s] > 0 ? weight[h] * x[s] : 0.      */
  void (*TK_NONNULL mix_back)(float *a, ptrdiff_t a_stride, const float *weight, int32_t heads, int32_t count,
                   float *x, float share, const float *p, float rate, float *weight_gradient);

  /* -- the machine's own limits ------------------------------------------------------------------------ *
   * Runs `iterations` rounds of the fastest register-only multiply-accumulate of this table for the type
   * and returns how many multiply-adds that was.                                                           */
  uint64_t (*TK_NONNULL peak)(int32_t type, uint64_t iterations);
} tk_table;

#define TK_SHRINK_SCRATCH 24576

/* The best table of at most the named capability that this CPU and operating system can run: NULL or "" for
 * the best of all; unknown names: NULL is returned. The cap is an order: portable < avx2 < avxvnni < avx512 <
 * amx on x86-64, portable < neon on 64-bit ARM. CPUID and XGETBV are both asked; on Linux the "amx" table needs
 * the kernel's permission for tile state, which is requested (for the process) the first time it is chosen. */
const tk_table *tk_choose(const char *isa_cap);
/* The names of the tables usable here, best last; returns NULL beyond the end. */
const char *tk_usable(int32_t position);
/* The CPU's brand string into text (at most capacity bytes with the final zero). */
void tk_cpu_name(char *text, size_t capacity);

/* One per file; NULL in a build that does not have that instruction set. Private to this room and its tests. */
const tk_table *tk_table_portable(void);
const tk_table *tk_table_avx2(void);
const tk_table *tk_table_avxvnni(void);
const tk_table *tk_table_avx512(void);
const tk_table *tk_table_zen(void); /* what "avx512" is on AMD's processors */
const tk_table *tk_table_amx(void);
const tk_table *tk_table_neon(void);

#ifdef __clang__
#pragma clang diagnostic pop
#endif

#ifdef __cplusplus
}
#endif
#endif
