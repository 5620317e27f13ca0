/* Tensors for one call. Each view owns memory of exactly the bytes its description spans, between guards, and knows
 * which of them are elements; after the call, everything the library had no right to touch must be as before.
 * A description may be wrong in any way, but one that is well formed is always backed by memory: what lies behind a
 * pointer is the caller's promise, and the library cannot check it. */
#ifndef TAMIS_FUZZ_VIEWS_H
#define TAMIS_FUZZ_VIEWS_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "input.h"
#include "tamis.h"

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_TAIL 0 /* the sanitizer watches the bytes behind a block */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_TAIL 0
#endif
#endif
#ifndef FUZZ_TAIL
#define FUZZ_TAIL 64
#endif

enum { FRONT = 64, MOST_ELEMENTS = 1 << 20, MOST_BYTES = 1 << 23, MOST_VIEWS = 8 };

typedef struct view {
  tamis_tensor t;
  const char *name;
  uint8_t *block, *before, *mask; /* [FRONT + bytes + FUZZ_TAIL]; mask: 1 where the call may write */
  float *scales, *scales_before;  /* [scale_count] */
  size_t bytes, scale_count;
  int output;
  int impossible; /* no memory could satisfy the description: it must be refused */
  int unread;     /* not part of this call */
  int tame;       /* ordinary finite numbers only */
  int shared;     /* data is another view's, */
  int with;       /* views[with]            */
} view;

static view views[MOST_VIEWS];
static int view_count;

static void violated(const char *what); /* prints and aborts */

#define MUST(condition)                   \
  do {                                    \
    if (!(condition)) violated(#condition); \
  } while (0)

/* ----------------------------------------------------------------------------------------------- layout of a view */

static size_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case TAMIS_F32:
    case TAMIS_I32: return 4;
    case TAMIS_F16:
    case TAMIS_BF16: return 2;
    default: return 1;
  }
}

static int is_packed(const tamis_tensor *t) { return t->dtype == TAMIS_MLA656 || t->dtype == TAMIS_INDEX132; }
static int is_scaled(const tamis_tensor *t) { return t->dtype == TAMIS_F8E4M3 || t->dtype == TAMIS_I8; }

/* Strides in bytes, as the header defines them. That of an axis with one element may be anything, so it may wrap. */
static void byte_strides(const tamis_tensor *t, int64_t *stride) {
  int row_major = 1;
  for (int axis = 0; axis < 4; axis++) row_major &= t->stride[axis] == 0;
  int64_t dense = (int64_t)element_bytes(t->dtype);
  for (int axis = t->ndim - 1; axis >= 0; axis--) {
    stride[axis] = row_major ? dense : (int64_t)((uint64_t)t->stride[axis] * element_bytes(t->dtype));
    dense *= t->shape[axis];
  }
}

static int64_t page_tokens(const tamis_tensor *t) { return t->block == 0 ? 64 : t->block; }

enum { BACKED, TOO_LARGE, IMPOSSIBLE };

/* The bytes a packed view spans. */
static int packed_extent(const tamis_tensor *t, int64_t *bytes) {
  const int mla = t->dtype == TAMIS_MLA656;
  const int shaped = mla ? (t->ndim == 2 && t->shape[1] == 576) ||
                               (t->ndim == 3 && t->shape[1] == 1 && t->shape[2] == 576)
                         : t->ndim == 2 && t->shape[1] == 128;
  if (!shaped) return IMPOSSIBLE;
  int64_t unit = 656, pages = t->shape[0];
  if (!mla) {
    if (__builtin_mul_overflow(page_tokens(t), (int64_t)132, &unit)) return IMPOSSIBLE;
    pages = pages / page_tokens(t) + (pages % page_tokens(t) != 0);
  }
  const int64_t stride = t->stride[0] == 0 ? unit : t->stride[0];
  if (stride < unit || stride % 4 != 0) return IMPOSSIBLE;
  if (pages == 0) return *bytes = 0, BACKED;
  if (__builtin_mul_overflow(pages - 1, stride, bytes) || __builtin_add_overflow(*bytes, unit, bytes))
    return IMPOSSIBLE;
  return *bytes > MOST_BYTES || t->shape[0] > MOST_ELEMENTS ? TOO_LARGE : BACKED;
}

/* The bytes and scales a description spans, and whether they can exist. */
static int extent(const tamis_tensor *t, int64_t *bytes, int64_t *scale_count) {
  *bytes = *scale_count = 0;
  if (t->dtype < TAMIS_F32 || t->dtype > TAMIS_INDEX132 || t->ndim < 1 || t->ndim > 4 || t->block < 0)
    return IMPOSSIBLE;
  int64_t count = 1;
  int row_major = 1;
  for (int axis = 0; axis < 4; axis++) row_major &= t->stride[axis] == 0;
  for (int axis = 0; axis < t->ndim; axis++) {
    if (t->shape[axis] < 0) return IMPOSSIBLE;
    if (__builtin_mul_overflow(count, t->shape[axis], &count)) return IMPOSSIBLE;
    if (!row_major && !is_packed(t) && t->stride[axis] < 0) return IMPOSSIBLE;
  }
  if (is_packed(t)) return packed_extent(t, bytes);
  const int64_t size = (int64_t)element_bytes(t->dtype), last = t->shape[t->ndim - 1];
  if (!row_major && last > 1 && t->stride[t->ndim - 1] != 1) return IMPOSSIBLE;
  if (count == 0) return BACKED;
  int64_t reach = 0; /* elements before the last one */
  for (int axis = 0; axis < t->ndim; axis++) {
    int64_t step;
    if (row_major) {
      if (axis == 0) reach = count - 1;
      continue;
    }
    if (__builtin_mul_overflow(t->shape[axis] - 1, t->stride[axis], &step) ||
        __builtin_add_overflow(reach, step, &reach))
      return IMPOSSIBLE;
  }
  if (__builtin_add_overflow(reach, (int64_t)1, &reach) || __builtin_mul_overflow(reach, size, bytes))
    return IMPOSSIBLE;
  if (count > MOST_ELEMENTS || *bytes > MOST_BYTES) return TOO_LARGE;
  if (is_scaled(t)) *scale_count = count / last * (t->block == 0 ? 1 : last / t->block + (last % t->block != 0));
  return BACKED;
}

/* Calls visit(v, offset in data, bytes) for every run of bytes that are elements. */
static void each_row(view *v, void (*visit)(view *v, size_t offset, size_t bytes)) {
  const tamis_tensor *t = &v->t;
  if (v->bytes == 0 || v->impossible) return;
  if (t->dtype == TAMIS_MLA656) {
    const size_t stride = t->stride[0] == 0 ? 656 : (size_t)t->stride[0];
    for (int64_t row = 0; row < t->shape[0]; row++) visit(v, (size_t)row * stride, 656);
  } else if (t->dtype == TAMIS_INDEX132) {
    const int64_t page = page_tokens(t);
    const size_t stride = t->stride[0] == 0 ? (size_t)page * 132 : (size_t)t->stride[0];
    for (int64_t row = 0; row < t->shape[0]; row++) {
      const size_t start = (size_t)(row / page) * stride, within = (size_t)(row % page);
      visit(v, start + within * 128, 128);
      visit(v, start + (size_t)page * 128 + within * 4, 4);
    }
  } else {
    int64_t stride[4] = {0}, shape[4] = {1, 1, 1, 1};
    byte_strides(t, stride);
    for (int axis = 0; axis < t->ndim - 1; axis++) shape[axis] = t->shape[axis];
    const size_t bytes = (size_t)t->shape[t->ndim - 1] * element_bytes(t->dtype);
    if (t->ndim < 4) stride[3] = 0;
    for (int64_t a = 0; a < shape[0]; a++)
      for (int64_t b = 0; b < shape[1]; b++)
        for (int64_t c = 0; c < shape[2]; c++)
          visit(v, (size_t)((t->ndim > 1 ? a * stride[0] : 0) + (t->ndim > 2 ? b * stride[1] : 0) +
                            (t->ndim > 3 ? c * stride[2] : 0)),
                bytes);
  }
}

/* ------------------------------------------------------------------------------------------------------- contents */

static uint16_t half_of(float x) { /* nearest below; |x| in 2^-14 ..< 65504, else 0 */
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const int32_t exponent = (int32_t)(bits >> 23 & 255) - 112;
  return (uint16_t)((bits >> 16 & 0x8000u) |
                    (exponent > 0 && exponent < 31 ? (uint32_t)exponent << 10 | (bits >> 13 & 1023u) : 0));
}

static uint16_t bf16_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (uint16_t)(bits >> 16);
}

static uint8_t random_e4m3(void) { /* at most 2 */
  const uint32_t bits = random_bits();
  return (uint8_t)((bits & 0x80u) | (bits >> 8) % 0x41u);
}

static float random_scale(void) { return 0.01f + 0.01f * fabsf(random_unit()); }

static void put_float(uint8_t *to, float x) { memcpy(to, &x, 4); }

/* Ordinary numbers in one run of elements. */
static void fill_run(view *v, size_t offset, size_t bytes) {
  uint8_t *to = (uint8_t *)v->t.data + offset;
  const int32_t dtype = v->t.dtype;
  if (dtype == TAMIS_MLA656) {
    for (int i = 0; i < 512; i++) to[i] = random_e4m3();
    for (int i = 0; i < 4; i++) put_float(to + 512 + 4 * i, random_scale());
    for (int i = 0; i < 64; i++) {
      const uint16_t x = bf16_of(random_unit());
      memcpy(to + 528 + 2 * i, &x, 2);
    }
  } else if (dtype == TAMIS_INDEX132 && bytes == 4) {
    put_float(to, random_scale());
  } else if (dtype == TAMIS_INDEX132 || dtype == TAMIS_F8E4M3) {
    for (size_t i = 0; i < bytes; i++) to[i] = random_e4m3();
  } else if (dtype == TAMIS_I8) {
    for (size_t i = 0; i < bytes; i++) to[i] = (uint8_t)random_bits();
  } else if (dtype == TAMIS_F16 || dtype == TAMIS_BF16) {
    for (size_t i = 0; i + 1 < bytes; i += 2) {
      const float x = random_unit();
      const uint16_t narrow = dtype == TAMIS_F16 ? half_of(x) : bf16_of(x);
      memcpy(to + i, &narrow, 2);
    }
  } else {
    for (size_t i = 0; i + 3 < bytes; i += 4) put_float(to + i, random_unit());
  }
}

/* NaN, infinities, zeros and the largest numbers at a few places. */
static void spoil(view *v) {
  static const uint32_t words[] = {0x7FC00000u, 0x7F800000u, 0xFF800000u, 0x7F7FFFFFu, 0x80000000u,
                                   0x7E007C00u, 0xFC007BFFu, 0x7F7F7F7Fu, 0xFFFFFFFFu, 0x00000001u};
  const unsigned places = 1 + pick(4);
  for (unsigned i = 0; i < places; i++) {
    const uint32_t word = words[pick(10)];
    if (v->bytes >= 4) memcpy((uint8_t *)v->t.data + random_bits() % (v->bytes / 4) * 4, &word, 4);
    if (v->scale_count > 0 && chance(128)) memcpy(v->scales + random_bits() % v->scale_count, &word, 4);
  }
  v->tame = 0;
}

/* -------------------------------------------------------------------------------------------------- making a view */

static void mutate(tamis_tensor *t) {
  const int axis = (int)pick(4);
  switch (pick(10)) {
    case 0: t->dtype = (int32_t)pick(10); break;
    case 1: t->ndim = (int32_t)pick(6); break;
    case 2: t->shape[axis]++; break;
    case 3: t->shape[axis]--; break;
    case 4: t->shape[axis] = absurd(); break;
    case 5: t->stride[axis] = absurd(); break;
    case 6: t->stride[axis] = (int64_t)pick(40); break;
    case 7: t->block = chance(128) ? absurd() : (int64_t)pick(70); break;
    case 8: t->shape[axis] = 0; break;
    default: t->ndim = chance(128) ? INT32_MAX : INT32_MIN; break;
  }
}

/* Rows farther apart than they need to be. */
static void pad_strides(tamis_tensor *t, unsigned padding) {
  if (t->dtype == TAMIS_MLA656) {
    t->stride[0] = 656 + 4 * (int64_t)padding;
  } else if (t->dtype == TAMIS_INDEX132) {
    t->stride[0] = page_tokens(t) * 132 + 4 * (int64_t)padding;
  } else {
    int64_t dense = 1;
    for (int axis = t->ndim - 1; axis >= 0; axis--) {
      t->stride[axis] = dense;
      dense = dense * t->shape[axis] + padding;
    }
  }
}

static void allocate(view *v, int64_t bytes, int64_t scale_count) {
  v->bytes = (size_t)bytes;
  v->scale_count = (size_t)scale_count;
  const size_t whole = FRONT + v->bytes + FUZZ_TAIL;
  v->block = malloc(whole);
  v->before = malloc(whole);
  v->mask = calloc(whole, 1);
  v->scales = scale_count > 0 ? malloc(v->scale_count * 4) : NULL;
  v->scales_before = scale_count > 0 ? malloc(v->scale_count * 4) : NULL;
  if (v->block == NULL || v->before == NULL || v->mask == NULL) abort();
  memset(v->block, 0x5A, whole);
  v->t.data = v->block + FRONT;
  for (size_t i = 0; i < v->scale_count; i++) v->scales[i] = random_scale();
  v->t.scale = v->scales;
}

static void allow_run(view *v, size_t offset, size_t bytes) { memset(v->mask + FRONT + offset, 1, bytes); }

/* A view of the given description, now and then wrong in one thing. */
static view *make_view_of(const char *name, int output, tamis_tensor plain) {
  if (view_count == MOST_VIEWS) abort();
  view *v = &views[view_count++];
  memset(v, 0, sizeof *v);
  v->name = name;
  v->output = output;
  v->tame = 1;
  v->t = plain;
  if (chance(48)) pad_strides(&v->t, pick(9));
  const tamis_tensor correct = v->t;
  if (chance(6)) mutate(&v->t);
  int64_t bytes, scale_count;
  int kind = extent(&v->t, &bytes, &scale_count);
  if (kind == TOO_LARGE) {
    v->t = correct;
    kind = extent(&v->t, &bytes, &scale_count);
    if (kind == TOO_LARGE) { /* of a cache with absurd dims */
      const tamis_tensor small = {NULL, TAMIS_F32, 2, {1, 1}, {0}, NULL, 0};
      v->t = small;
      kind = extent(&v->t, &bytes, &scale_count);
    }
  }
  v->impossible = kind == IMPOSSIBLE;
  allocate(v, v->impossible ? 64 : bytes, v->impossible ? 0 : scale_count);
  each_row(v, fill_run);
  if (chance(6)) spoil(v);
  if (v->impossible) v->tame = 0;
  if (chance(2) && v->bytes > 0) v->t.data = NULL, v->impossible = 1;
  if (chance(4)) v->t.scale = NULL, v->tame = 0;
  if (chance(3) && view_count > 1) { /* shares memory with an earlier one */
    v->with = (int)pick((unsigned)view_count - 1);
    const view *other = &views[v->with];
    if (!other->impossible && !other->shared && v->bytes <= other->bytes && !v->impossible) {
      v->t.data = other->t.data;
      v->shared = 1;
      v->tame = 0;
    }
  }
  return v;
}

static view *make_view(const char *name, int output, int32_t dtype, int ndim, int64_t a, int64_t b, int64_t c) {
  const tamis_tensor plain = {NULL, dtype, ndim, {a, b, c, 0}, {0}, NULL, 0};
  return make_view_of(name, output, plain);
}

/* Call after the last change of the contents, right before the call. */
static void freeze_views(void) {
  for (int i = 0; i < view_count; i++) {
    view *v = &views[i];
    memcpy(v->before, v->block, FRONT + v->bytes + FUZZ_TAIL);
    if (v->scale_count > 0) memcpy(v->scales_before, v->scales, v->scale_count * 4);
    if (v->output && !v->shared) each_row(v, allow_run);
  }
}

/* Inputs and guards are as before the call; so are outputs unless they `may_be_written`. */
static void check_views(int may_be_written) {
  for (int i = 0; i < view_count; i++) {
    const view *v = &views[i];
    for (size_t at = 0; at < FRONT + v->bytes + FUZZ_TAIL; at++)
      if (v->block[at] != v->before[at] && !(may_be_written && v->mask[at])) violated(v->name);
    if (!(v->output && may_be_written) && v->scale_count > 0 &&
        memcmp(v->scales, v->scales_before, v->scale_count * 4) != 0)
      violated(v->name);
  }
}

/* The memory of all views, to see whether another call with the same inputs gives the same bits. */
static uint8_t *saved[MOST_VIEWS];

static void save_views(void) {
  for (int i = 0; i < view_count; i++) {
    const size_t whole = FRONT + views[i].bytes + FUZZ_TAIL;
    saved[i] = malloc(whole);
    if (saved[i] == NULL) abort();
    memcpy(saved[i], views[i].block, whole);
  }
}

static void compare_views(int must_be_same) {
  for (int i = 0; i < view_count; i++) {
    if (must_be_same && memcmp(saved[i], views[i].block, FRONT + views[i].bytes + FUZZ_TAIL) != 0)
      violated("the same bits in another context");
    free(saved[i]);
  }
}

static void free_views(void) {
  for (int i = 0; i < view_count; i++) {
    free(views[i].block);
    free(views[i].before);
    free(views[i].mask);
    free(views[i].scales);
    free(views[i].scales_before);
  }
  view_count = 0;
}

static void describe_views(void) {
  for (int i = 0; i < view_count; i++) {
    const view *v = &views[i];
    fprintf(stderr, "  %-10s dtype %d ndim %d shape", v->name, v->t.dtype, v->t.ndim);
    for (int axis = 0; axis < 4; axis++) fprintf(stderr, " %lld", (long long)v->t.shape[axis]);
    fprintf(stderr, " stride");
    for (int axis = 0; axis < 4; axis++) fprintf(stderr, " %lld", (long long)v->t.stride[axis]);
    fprintf(stderr, " block %lld, %zu bytes%s%s%s%s%s\n", (long long)v->t.block, v->bytes,
            v->t.scale != NULL ? ", scales" : "", v->impossible ? ", impossible" : "", v->tame ? "" : ", wild",
            v->shared ? ", shared" : "", v->output ? ", output" : "");
  }
}

/* The tensor to pass: NULL for no view. */
static const tamis_tensor *pass(const view *v) { return v == NULL ? NULL : &v->t; }

/* Element [i, j] of a rank-2 view of 4-byte elements. */
static const void *element(const view *v, int64_t i, int64_t j) {
  int64_t stride[4] = {0};
  byte_strides(&v->t, stride);
  return (const uint8_t *)v->t.data + i * stride[0] + j * stride[1];
}

static float float_at(const view *v, int64_t i, int64_t j) {
  float x;
  memcpy(&x, element(v, i, j), 4);
  return x;
}

static int32_t int_at(const view *v, int64_t i, int64_t j) {
  int32_t x;
  memcpy(&x, element(v, i, j), 4);
  return x;
}

static void expect_finite_run(view *v, size_t offset, size_t bytes) {
  const uint8_t *at = (const uint8_t *)v->t.data + offset;
  const size_t step = element_bytes(v->t.dtype);
  for (size_t i = 0; i < bytes; i += step) {
    uint32_t bits = 0;
    memcpy(&bits, at + i, step);
    const uint32_t exponent = v->t.dtype == TAMIS_F32   ? 0x7F800000u
                              : v->t.dtype == TAMIS_F16 ? 0x7C00u
                                                        : 0x7F80u;
    MUST((bits & exponent) != exponent && "finite");
  }
}
#endif
