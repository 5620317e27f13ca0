/* What the files of this room share: the naming rule and the tables' parts.
 *
 * Every implementation of an entry `f` of tk_table for the instruction set `isa` is called tk_<isa>_<f> and
 * lives in <isa>/<room>.c (tk_zen_*, the avx512 table's on AMD's processors, in avx512/) with <room> one of index, select, attend, numbers, matmul, learn. A table may borrow an
 * entry from a weaker set (see dispatch.c), so a new CPU starts with one file. */
#ifndef TAMIS_KERNELS_INTERNAL_H
#define TAMIS_KERNELS_INTERNAL_H
#include "TamisKernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#define TK_X86 1
#elif defined(__aarch64__)
#define TK_ARM 1
#endif

#define TK_DECLARE_INDEX(isa)                                                                                 \
  size_t tk_##isa##_index_query_bytes(int32_t type, int32_t heads, int32_t dim);                              \
  void tk_##isa##_index_pack_query(int32_t type, const void *query, const float *weight, int32_t heads,       \
                                   int32_t dim, void *packed);                                                \
  void tk_##isa##_index_scores(int32_t type, const void *packed, int32_t heads, int32_t dim, const void *keys, \
                               ptrdiff_t key_stride, const float *key_scale, ptrdiff_t scale_stride,          \
                               int32_t count, const tk_beside *beside, float *scores)

#define TK_DECLARE_SELECT(isa)                                                                                \
  int32_t tk_##isa##_select_above(const float *scores, int32_t count, int32_t base, float threshold,          \
                                  float *candidate_score, int32_t *candidate_index);                          \
  void tk_##isa##_select_all(const float *scores, int32_t count, int32_t base, float *candidate_score,        \
                             int32_t *candidate_index);                                                       \
  float tk_##isa##_select_shrink(float *candidate_score, int32_t *candidate_index, int32_t count, int32_t k,  \
                                 void *scratch)

#define TK_DECLARE_ATTEND(isa)                                                                                \
  size_t tk_##isa##_attend_query_bytes(int32_t type, int32_t columns, int32_t key_dim);                       \
  void tk_##isa##_attend_pack_query(int32_t type, const void *query, ptrdiff_t query_stride, int32_t columns, \
                                    int32_t key_dim, void *packed);                                           \
  size_t tk_##isa##_attend_scratch_bytes(int32_t type, int32_t columns, int32_t count, int32_t key_dim,       \
                                         int32_t value_dim);                                                  \
  void tk_##isa##_attend_chunk(int32_t type, const void *packed, int32_t columns, int32_t key_dim,            \
                               int32_t value_dim, const void *const *key_rows,                                \
                               const void *const *value_rows, int32_t count, float scale, float *out,         \
                               float *max, float *sum, void *scratch);                                        \
  void tk_##isa##_attend_join(float *out, float *max, float *sum, const float *out_b, const float *max_b,     \
                              const float *sum_b, int32_t columns, int32_t value_dim);                       \
  float tk_##isa##_attend_row(int32_t type, const float *scores, const uint64_t *seen, int32_t count,         \
                              float scale, float *max, float *sum, void *p)

#define TK_DECLARE_NUMBERS(isa)                                                                               \
  void tk_##isa##_f32_from_bf16(const uint16_t *x, int64_t n, float *y);                                      \
  void tk_##isa##_f32_from_f16(const uint16_t *x, int64_t n, float *y);                                       \
  void tk_##isa##_f32_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, float *y);    \
  void tk_##isa##_f32_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, float *y);       \
  void tk_##isa##_bf16_from_f32(const float *x, int64_t n, uint16_t *y);                                      \
  void tk_##isa##_bf16_from_e4m3(const uint8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y); \
  void tk_##isa##_bf16_from_i8(const int8_t *x, const float *scale, int64_t block, int64_t n, uint16_t *y);   \
  void tk_##isa##_f16_from_f32(const float *x, int64_t n, uint16_t *y);                                       \
  float tk_##isa##_e4m3_from_f32(const float *x, int64_t n, int32_t pow2, uint8_t *y);                        \
  float tk_##isa##_i8_from_f32(const float *x, int64_t n, int8_t *y);                                         \
  void tk_##isa##_hadamard(float *x, int64_t n)

#define TK_DECLARE_MATMUL(isa)                                                                                \
  void tk_##isa##_matmul(int32_t type, const void *x, ptrdiff_t x_stride, const void *w, ptrdiff_t w_stride,  \
                         int32_t rows, int32_t outputs, int32_t inputs, float *y, ptrdiff_t y_stride,         \
                         void *scratch);                                                                      \
  size_t tk_##isa##_matmul_scratch_bytes(int32_t type, int32_t rows, int32_t outputs, int32_t inputs)

#define TK_DECLARE_LEARN(isa)                                                                                 \
  void tk_##isa##_accumulate(const float *x, ptrdiff_t x_row, ptrdiff_t x_column, const float *w,             \
                             ptrdiff_t w_stride, int32_t rows, int32_t outputs, int32_t inputs, int32_t add,  \
                             float *y, ptrdiff_t y_stride);                                                   \
  void tk_##isa##_mix(const float *a, ptrdiff_t a_stride, const float *weight, int32_t heads, int32_t count,  \
                      float *score);                                                                          \
  void tk_##isa##_soften(float *x, const float *p, int32_t count, float scale, float *max, float *sum,        \
                         float *product);                                                                     \
  void tk_##isa##_mix_back(float *a, ptrdiff_t a_stride, const float *weight, int32_t heads, int32_t count,   \
                           float *x, float share, const float *p, float rate, float *weight_gradient)

#define TK_DECLARE_PEAK(isa) uint64_t tk_##isa##_peak(int32_t type, uint64_t iterations)

#define TK_DECLARE_ALL(isa)                                                                                   \
  TK_DECLARE_INDEX(isa);                                                                                      \
  TK_DECLARE_SELECT(isa);                                                                                     \
  TK_DECLARE_ATTEND(isa);                                                                                     \
  TK_DECLARE_NUMBERS(isa);                                                                                    \
  TK_DECLARE_MATMUL(isa);                                                                                     \
  TK_DECLARE_LEARN(isa);                                                                                      \
  TK_DECLARE_PEAK(isa)

TK_DECLARE_ALL(portable);
TK_DECLARE_ALL(avx2);
TK_DECLARE_INDEX(avxvnni);
TK_DECLARE_PEAK(avxvnni);
TK_DECLARE_ALL(avx512);
TK_DECLARE_INDEX(zen);
TK_DECLARE_MATMUL(zen);
TK_DECLARE_INDEX(amx);
TK_DECLARE_ATTEND(amx);
TK_DECLARE_MATMUL(amx);
TK_DECLARE_PEAK(amx);
TK_DECLARE_ALL(neon);
void tk_amx_enter(void);
void tk_amx_leave(void);

#endif
