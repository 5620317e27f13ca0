/* Option structs grow at the end: a caller built with an older header passes a shorter struct, which is completed
 * with defaults; one built with a newer header passes a longer struct, which is accepted while what the library does
 * not know is zero, and refused, not ignored, when it is not. Structs that the library fills grow the same way. */
#include <stddef.h>
#include <string.h>

#include "check.h"

enum { FUTURE = 64 };

#define GROWN(name, type, init)                                                                              \
  struct {                                                                                                   \
    type known;                                                                                              \
    unsigned char future[FUTURE];                                                                            \
  } name = {init, {0}};                                                                                      \
  name.known.size = (uint32_t)sizeof name

static float values[4] = {1, 2, 3, 4}, weight[1] = {1}, query[4] = {1, 0, 0, 0}, out[4], scale[1];
static int8_t bytes[4];
static int32_t chosen[1];

static const tamis_tensor x = {values, TAMIS_F32, 2, {1, 4}, {0}, NULL, 0};
static const tamis_tensor x8 = {bytes, TAMIS_I8, 2, {1, 4}, {0}, scale, 0};
static const tamis_tensor q = {query, TAMIS_F32, 3, {1, 1, 4}, {0}, NULL, 0};
static const tamis_tensor w = {weight, TAMIS_F32, 2, {1, 1}, {0}, NULL, 0};
static const tamis_tensor kv = {values, TAMIS_F32, 3, {1, 1, 4}, {0}, NULL, 0};
static const tamis_tensor indices = {chosen, TAMIS_I32, 2, {1, 1}, {0}, NULL, 0};
static const tamis_tensor attended = {out, TAMIS_F32, 3, {1, 1, 4}, {0}, NULL, 0};

static void newer_callers(tamis_ctx *ctx) {
  for (int known = 1; known >= 0; known--) {
    const tamis_status expected = known ? TAMIS_OK : TAMIS_E_UNSUPPORTED;
    const unsigned char unknown = (unsigned char)!known;
    tamis_ctx *other = NULL;
    tamis_cache *cache = NULL;
    GROWN(context, tamis_ctx_options, TAMIS_CTX_OPTIONS_INIT);
    context.future[FUTURE - 1] = unknown;
    CHECK(tamis_ctx_create((const tamis_ctx_options *)(const void *)&context, &other) == expected);
    GROWN(quantize, tamis_quantize_options, TAMIS_QUANTIZE_OPTIONS_INIT);
    quantize.future[FUTURE - 1] = unknown;
    CHECK(tamis_quantize(ctx, &x, (const tamis_quantize_options *)(const void *)&quantize, &x8) == expected);
    GROWN(select, tamis_select_options, TAMIS_SELECT_OPTIONS_INIT);
    select.future[FUTURE - 1] = unknown;
    CHECK(tamis_select(ctx, &q, &w, &x, (const tamis_select_options *)(const void *)&select, &indices, NULL) == expected);
    GROWN(attend, tamis_attend_options, TAMIS_ATTEND_OPTIONS_INIT);
    attend.future[FUTURE - 1] = unknown;
    CHECK(tamis_attend(ctx, &q, &kv, &kv, (const tamis_attend_options *)(const void *)&attend, &attended, NULL) == expected);
    GROWN(pages, tamis_cache_options, TAMIS_CACHE_OPTIONS_INIT);
    pages.future[FUTURE - 1] = unknown;
    CHECK(tamis_cache_create(ctx, (const tamis_cache_options *)(const void *)&pages, &cache) == expected);
    tamis_cache_free(cache);
    tamis_ctx_free(other);
  }
}

/* What the library fills: as much as the caller's struct has room for, zeros where it does not know the field. */
static void filled(tamis_ctx *ctx) {
  CHECK_OK(tamis_quantize(ctx, &x, NULL, &x8));
  GROWN(newer, tamis_counters, TAMIS_COUNTERS_INIT);
  memset(newer.future, 0xFF, FUTURE);
  CHECK_OK(tamis_ctx_counters(ctx, TAMIS_OP_QUANTIZE, (tamis_counters *)(void *)&newer));
  CHECK(newer.known.size == sizeof newer && newer.known.calls >= 1 && newer.known.bytes > 0);
  for (int i = 0; i < FUTURE; i++) CHECK(newer.future[i] == 0);
  tamis_counters older;
  memset(&older, 0xFF, sizeof older);
  older.size = offsetof(tamis_counters, keys_scored);
  CHECK_OK(tamis_ctx_counters(ctx, TAMIS_OP_QUANTIZE, &older));
  CHECK(older.size == offsetof(tamis_counters, keys_scored) && older.queries == newer.known.queries);
  for (size_t i = older.size; i < sizeof older; i++) CHECK(((const unsigned char *)&older)[i] == 0xFF);
  tamis_limits short_limits;
  memset(&short_limits, 0xFF, sizeof short_limits);
  short_limits.size = offsetof(tamis_limits, bf16_macs_per_second);
  short_limits.threads = 1;
  CHECK_OK(tamis_ctx_limits(ctx, &short_limits));
  CHECK(short_limits.threads == 1 && short_limits.i8_macs_per_second > 0);
  for (size_t i = short_limits.size; i < sizeof short_limits; i++) CHECK(((const unsigned char *)&short_limits)[i] == 0xFF);
}

/* A size that ends inside a field, or before the first, is no release's. */
static void cut_fields(tamis_ctx *ctx) {
  tamis_ctx *other = NULL;
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  tamis_attend_options attend = TAMIS_ATTEND_OPTIONS_INIT;
  tamis_counters counters = TAMIS_COUNTERS_INIT;
  tamis_limits limits = TAMIS_LIMITS_INIT;
  const uint32_t cuts[] = {offsetof(tamis_ctx_options, isa) + 4, sizeof options - 1, sizeof options + 3, 4, 0};
  for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
    options.size = attend.size = counters.size = limits.size = cuts[i];
    CHECK(tamis_ctx_create(&options, &other) == TAMIS_E_ARGUMENT);
    CHECK(tamis_attend(ctx, &q, &kv, &kv, &attend, &attended, NULL) == TAMIS_E_ARGUMENT);
    CHECK(tamis_ctx_counters(ctx, TAMIS_OP_ALL, &counters) == TAMIS_E_ARGUMENT);
    CHECK(tamis_ctx_limits(ctx, &limits) == TAMIS_E_ARGUMENT);
  }
}

/* Every option after `threads` is younger than this caller: what lies there is not read. */
static void older_caller(void) {
  tamis_ctx_options options;
  tamis_ctx *ctx = NULL;
  memset(&options, 0xFF, sizeof options);
  options.size = 8;
  options.threads = 1;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  CHECK_OK(tamis_quantize(ctx, &x, NULL, &x8));
  tamis_ctx_free(ctx);
}

int main(void) {
  tamis_ctx *ctx = NULL;
  CHECK_OK(tamis_ctx_create(NULL, &ctx));
  newer_callers(ctx);
  older_caller();
  filled(ctx);
  cut_fields(ctx);
  tamis_ctx_free(ctx);
  return checked();
}
