/* Section 7 of the header with what a careless caller passes: negative and absurd prices, unknown currencies,
 * malformed files, counters that overflow, settling twice or more than was reserved, meters freed while in use. Every
 * such call is refused with one line that names the function, and nothing is lost or counted twice. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "refused.h"

/* ------------------------------------------------------------------------------------------------------- machines */

static tamis_machine *published(void) {
  tamis_machine *machine = NULL;
  CHECK_OK(tamis_machine_published("H800", &machine));
  return machine;
}

static void machines(tamis_ctx *ctx) {
  tamis_machine *machine = NULL, *again = NULL;
  REFUSED(ARGUMENT, "tamis_machine_published", tamis_machine_published(NULL, &machine));
  REFUSED(ARGUMENT, "tamis_machine_published", tamis_machine_published("H8000", &machine));
  REFUSED(ARGUMENT, "tamis_machine_published", tamis_machine_published("H800", NULL));
  REFUSED(ARGUMENT, "tamis_machine_published", tamis_machine_published("\xff\xfe", &machine));
  machine = published();

  char text[8192], part[16];
  size_t needed = 0, length = 0;
  REFUSED(ARGUMENT, "tamis_machine_text", tamis_machine_text(NULL, text, sizeof text, &needed));
  REFUSED(ARGUMENT, "tamis_machine_text", tamis_machine_text(machine, NULL, 1, &needed));
  CHECK_OK(tamis_machine_text(machine, NULL, 0, &needed));
  CHECK(needed > 500 && needed <= sizeof text);
  CHECK_OK(tamis_machine_text(machine, part, sizeof part, NULL));
  CHECK(strlen(part) == sizeof part - 1);
  CHECK_OK(tamis_machine_text(machine, text, sizeof text, NULL));
  length = strlen(text);
  CHECK(length + 1 == needed);
  CHECK_OK(tamis_machine_parse(text, length, &again));
  tamis_machine_free(again);
  again = NULL;
  REFUSED(ARGUMENT, "tamis_machine_parse", tamis_machine_parse(NULL, 5, &again));
  REFUSED(ARGUMENT, "tamis_machine_parse", tamis_machine_parse(text, length, NULL));
  REFUSED(ARGUMENT, "tamis_machine_parse", tamis_machine_parse(text, SIZE_MAX, &again));
  REFUSED(FORMAT, "tamis_machine_parse", tamis_machine_parse("{}", 2, &again));
  for (size_t cut = 0; cut < length - 2; cut += 7)
    REFUSED(FORMAT, "tamis_machine_parse", tamis_machine_parse(text, cut, &again));
  static const char *const spoilt[][2] = {
      {"1979000000000000.0", "-979000000000000.0"}, {"\"efficiency\": 0.4", "\"efficiency\": 400"},
      {"\"currency\": \"USD\"", "\"currency\": \"QQQ\""}, {"\"amount\": \"2\"", "\"amount\": \"-\""},
      {"\"low\": 1.0", "\"low\": 1.5"}, {"tamis-machine-1", "tamis-machine-9"}};
  for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
    char copy[8192 + 16];
    const char *at = strstr(text, spoilt[i][0]);
    CHECK(at != NULL);
    if (at == NULL) continue;
    const int written = snprintf(copy, sizeof copy, "%.*s%s%s", (int)(at - text), text, spoilt[i][1],
                                 at + strlen(spoilt[i][0]));
    const tamis_status status = tamis_machine_parse(copy, (size_t)written, &again);
    CHECK(status == TAMIS_E_ARGUMENT || status == TAMIS_E_FORMAT);
    CHECK(strncmp(tamis_last_error(), "tamis_machine_parse", 19) == 0);
  }
  CHECK(again == NULL);

  tamis_machine_options options = TAMIS_MACHINE_OPTIONS_INIT;
  REFUSED(ARGUMENT, "tamis_machine_measure", tamis_machine_measure(NULL, NULL, &again));
  REFUSED(ARGUMENT, "tamis_machine_measure", tamis_machine_measure(ctx, NULL, NULL));
  options.price_per_hour = "-1";
  REFUSED(ARGUMENT, "tamis_machine_measure", tamis_machine_measure(ctx, &options, &again));
  options.price_per_hour = "1e12";
  REFUSED(ARGUMENT, "tamis_machine_measure", tamis_machine_measure(ctx, &options, &again));
  options.price_per_hour = "two";
  REFUSED(FORMAT, "tamis_machine_measure", tamis_machine_measure(ctx, &options, &again));
  options.price_per_hour = "2";
  options.currency = "usd";
  REFUSED(ARGUMENT, "tamis_machine_measure", tamis_machine_measure(ctx, &options, &again));
  tamis_ctx *small = NULL;
  tamis_ctx_options limit = TAMIS_CTX_OPTIONS_INIT;
  limit.max_bytes = 100 << 20;
  CHECK_OK(tamis_ctx_create(&limit, &small));
  REFUSED(BUDGET, "tamis_machine_measure", tamis_machine_measure(small, NULL, &again));
  uint64_t now = 1;
  CHECK_OK(tamis_ctx_trim(small));
  CHECK_OK(tamis_ctx_bytes(small, &now, NULL));
  CHECK(now < 1 << 20); /* what its threads need */
  tamis_ctx_free(small);
  CHECK(again == NULL);
  tamis_machine_free(machine);
  tamis_machine_free(NULL);
}

/* ---------------------------------------------------------------------------------------------------- predictions */

static void predictions(void) {
  tamis_machine *machine = published();
  tamis_request request = TAMIS_REQUEST_INIT;
  tamis_prediction found = TAMIS_PREDICTION_INIT;
  request.input_tokens = 4000;
  request.output_tokens = 500;
  CHECK_OK(tamis_predict_request(machine, NULL, &request, &found));
  CHECK(found.basis == TAMIS_BASIS_ANALYTIC && found.seconds > 0 && found.low_seconds <= found.seconds);
  const char *function = "tamis_predict_request";
  REFUSED(ARGUMENT, function, tamis_predict_request(NULL, NULL, &request, &found));
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, NULL, NULL, &found));
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, NULL, &request, NULL));
  request.cached_tokens = 4001;
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, NULL, &request, &found));
  request.cached_tokens = 0;
  request.input_tokens = UINT64_MAX;
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, NULL, &request, &found));
  request.input_tokens = 1;
  request.mode = 3;
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, NULL, &request, &found));
  request.mode = 0;
  tamis_architecture shape = TAMIS_ARCHITECTURE_INIT;
  shape.layers = UINT32_MAX;
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, &shape, &request, &found));
  shape.layers = 2;
  shape.index_layers = 3;
  REFUSED(ARGUMENT, function, tamis_predict_request(machine, &shape, &request, &found));
  shape.index_layers = 0;
  const double zero = request.batch;
  const double absurd[] = {-1, 1e300, DBL_MAX * 10, zero / zero};
  for (int i = 0; i < 4; i++) {
    shape.active_parameters = absurd[i];
    REFUSED(ARGUMENT, function, tamis_predict_request(machine, &shape, &request, &found));
    shape.active_parameters = 0;
    shape.cache_bytes = absurd[i];
    REFUSED(ARGUMENT, function, tamis_predict_request(machine, &shape, &request, &found));
    shape.cache_bytes = 0;
  }

  function = "tamis_predict_token";
  REFUSED(ARGUMENT, function, tamis_predict_token(NULL, NULL, TAMIS_PHASE_DECODE, 0, 1, &found));
  REFUSED(ARGUMENT, function, tamis_predict_token(machine, NULL, 0, 0, 1, &found));
  REFUSED(ARGUMENT, function, tamis_predict_token(machine, NULL, TAMIS_PHASE_DECODE, -1, 1, &found));
  REFUSED(ARGUMENT, function, tamis_predict_token(machine, NULL, TAMIS_PHASE_DECODE, 0, UINT64_MAX, &found));
  REFUSED(ARGUMENT, function, tamis_predict_token(machine, NULL, TAMIS_PHASE_DECODE, 0, 1, NULL));

  function = "tamis_predict_break_even";
  double tokens = 0;
  CHECK_OK(tamis_predict_break_even(machine, NULL, TAMIS_BREAK_EVEN_DECODE, TAMIS_MODE_SPARSE, &tokens, NULL, NULL, NULL));
  CHECK(tokens > 4871 * 0.99 && tokens < 4871 * 1.01);
  REFUSED(ARGUMENT, function, tamis_predict_break_even(NULL, NULL, 1, 1, &tokens, NULL, NULL, NULL));
  REFUSED(ARGUMENT, function, tamis_predict_break_even(machine, NULL, 4, 1, &tokens, NULL, NULL, NULL));
  REFUSED(ARGUMENT, function, tamis_predict_break_even(machine, NULL, 1, TAMIS_MODE_DENSE, &tokens, NULL, NULL, NULL));
  REFUSED(ARGUMENT, function, tamis_predict_break_even(machine, NULL, 1, 1, NULL, NULL, NULL, NULL));
  tamis_machine_free(machine);
}

/* --------------------------------------------------------------------------------------------------------- prices */

static tamis_prices *prices_with(const tamis_prices_options *options) {
  tamis_prices *prices = NULL;
  CHECK_OK(tamis_prices_create(options, &prices));
  return prices;
}

static void prices(void) {
  const char *function = "tamis_prices_create";
  tamis_prices *made = NULL;
  tamis_prices_options options = TAMIS_PRICES_OPTIONS_INIT;
  REFUSED(ARGUMENT, function, tamis_prices_create(NULL, NULL));
  static const char *const bad[] = {"-0.28", "1e10", "-1e-30"};
  static const char *const malformed[] = {"", "0,28", "$1", "NaN", "1e", "0x1", " 1"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    options.input = options.output = bad[i];
    REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
    options.input = options.output = NULL;
    options.kilowatt_hour = bad[i];
    REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
    options.kilowatt_hour = NULL;
  }
  for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
    options.machine_hour = malformed[i];
    REFUSED(FORMAT, function, tamis_prices_create(&options, &made));
  }
  options.machine_hour = NULL;
  options.input = "1";
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made)); /* no output */
  options.output = "1";
  static const char *const codes[] = {"", "usd", "US", "USDX", "BTC", "\xc3"};
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
    options.currency = codes[i];
    REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  }
  options.currency = NULL;
  options.busy_share = "0.5";
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made)); /* of what? */
  options.machine_hour = "2";
  options.busy_share = "1.01";
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  options.busy_share = options.machine_hour = NULL;
  options.tiers = 1;
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made)); /* no array */
  const tamis_price_tier unordered[] = {{9, "1", NULL, NULL, "1"}, {9, "1", NULL, NULL, "1"}};
  options.tiers = 2;
  options.tier = unordered;
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  options.tiers = 0;
  options.tier = NULL;
  char endless[5000];
  memset(endless, '1', sizeof endless);
  options.input = endless; /* no final zero within 4,096 bytes */
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  const tamis_prices_options none = TAMIS_PRICES_OPTIONS_INIT;
  options = none;
  options.cached = "1";
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));

  static const char file[] = "{\"m\": {\"input_cost_per_token\": 2.8e-07, \"output_cost_per_token\": 4.2e-07,"
                             " \"cache_read_input_token_cost\": 2.8e-08}, \"bad\": {\"input_cost_per_token\": -1}}";
  options = none;
  options.litellm = file;
  options.litellm_bytes = sizeof file - 1;
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  options.model = "absent";
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  options.model = "bad";
  CHECK(tamis_prices_create(&options, &made) < 0);
  options.model = "m";
  for (size_t cut = 0; cut < sizeof file - 1; cut += 5) {
    options.litellm_bytes = cut;
    REFUSED(FORMAT, function, tamis_prices_create(&options, &made));
  }
  options.litellm_bytes = SIZE_MAX;
  REFUSED(ARGUMENT, function, tamis_prices_create(&options, &made));
  options.litellm_bytes = sizeof file - 1;
  CHECK(made == NULL);
  made = prices_with(&options);
  tamis_prices_free(made);
  tamis_prices_free(NULL);
}

static void bills(void) {
  const char *function = "tamis_prices_bill";
  tamis_prices *list = prices_with(NULL);
  tamis_cost cost = TAMIS_COST_INIT;
  tamis_bill bill = TAMIS_BILL_INIT;
  cost.input_tokens = 10000;
  cost.cached_tokens = 9000;
  cost.output_tokens = 500;
  CHECK_OK(tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, &bill));
  CHECK(strcmp(bill.amount, "0.000742") == 0 && strcmp(bill.currency, "USD") == 0 && bill.kind == TAMIS_BILL_LIST);
  REFUSED(UNSUPPORTED, function, tamis_prices_bill(list, TAMIS_BILL_MACHINE, &cost, &bill));
  REFUSED(UNSUPPORTED, function, tamis_prices_bill(list, TAMIS_BILL_ENERGY, &cost, &bill));
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, 0, &cost, &bill));
  REFUSED(ARGUMENT, function, tamis_prices_bill(NULL, TAMIS_BILL_LIST, &cost, &bill));
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, NULL, &bill));
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, NULL));
  cost.cached_tokens = 10001;
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, &bill));
  cost.cached_tokens = UINT64_MAX;
  cost.cache_write_tokens = 2;
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, &bill));
  cost.cached_tokens = cost.cache_write_tokens = 0;
  cost.basis = 4;
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, &bill));
  cost.basis = TAMIS_BASIS_NONE;
  cost.dense_nanoseconds = 1; /* a number without its basis */
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, &bill));
  cost.dense_nanoseconds = 0;
  cost.microjoules = -2;
  REFUSED(ARGUMENT, function, tamis_prices_bill(list, TAMIS_BILL_LIST, &cost, &bill));
  cost.microjoules = -1;
  CHECK(strcmp(bill.amount, "0.000742") == 0); /* none of them wrote */
  tamis_prices_options options = TAMIS_PRICES_OPTIONS_INIT;
  options.input = "999.99999999999999999999999999";
  options.output = "1";
  tamis_prices *fine = prices_with(&options);
  cost.input_tokens = UINT64_MAX;
  REFUSED(ARGUMENT, function, tamis_prices_bill(fine, TAMIS_BILL_LIST, &cost, &bill)); /* more than 38 digits */
  tamis_prices_free(fine);
  tamis_prices_free(list);
}

/* --------------------------------------------------------------------------------------------------------- meters */

static tamis_meter *meter_with(tamis_meter *parent, const tamis_meter_options *options) {
  tamis_meter *meter = NULL;
  CHECK_OK(tamis_meter_create(parent, options, &meter));
  return meter;
}

static tamis_cost read_of(tamis_meter *meter) {
  tamis_cost cost = TAMIS_COST_INIT;
  CHECK_OK(tamis_meter_read(meter, &cost));
  return cost;
}

static void charges(tamis_ctx *ctx) {
  tamis_meter *made = NULL, *root = NULL;
  tamis_meter_options options = TAMIS_METER_OPTIONS_INIT;
  char label[300];
  memset(label, 'x', sizeof label);
  label[257] = 0;
  options.label = label;
  REFUSED(ARGUMENT, "tamis_meter_create", tamis_meter_create(NULL, &options, &made));
  options.label = "\xff";
  REFUSED(ARGUMENT, "tamis_meter_create", tamis_meter_create(NULL, &options, &made));
  REFUSED(ARGUMENT, "tamis_meter_create", tamis_meter_create(NULL, NULL, NULL));
  REFUSED(ARGUMENT, "tamis_ctx_meter", tamis_ctx_meter(NULL, &made));
  REFUSED(ARGUMENT, "tamis_ctx_meter", tamis_ctx_meter(ctx, NULL));
  CHECK_OK(tamis_ctx_meter(ctx, &root));
  made = meter_with(root, NULL);
  tamis_meter *chain[40] = {made};
  int levels = 1;
  while (levels < 40 && tamis_meter_create(chain[levels - 1], NULL, &chain[levels]) == TAMIS_OK) levels++;
  CHECK(levels == 31 && strncmp(tamis_last_error(), "tamis_meter_create", 18) == 0);
  for (int i = 1; i < levels - 1; i++) tamis_meter_free(chain[i]); /* the last one keeps them alive */

  tamis_cost cost = TAMIS_COST_INIT;
  REFUSED(ARGUMENT, "tamis_meter_charge", tamis_meter_charge(NULL, &cost));
  REFUSED(ARGUMENT, "tamis_meter_charge", tamis_meter_charge(made, NULL));
  REFUSED(ARGUMENT, "tamis_meter_read", tamis_meter_read(NULL, &cost));
  REFUSED(ARGUMENT, "tamis_meter_read", tamis_meter_read(made, NULL));
  const tamis_cost before = read_of(root);
  cost.output_tokens = UINT64_MAX - 5;
  CHECK_OK(tamis_meter_charge(chain[levels - 1], &cost));
  tamis_meter_free(chain[levels - 1]);
  CHECK(read_of(made).output_tokens == UINT64_MAX - 5); /* a freed meter's charges stay */
  cost.output_tokens = 6;
  cost.flops = 1;
  tamis_meter *other = meter_with(root, NULL);
  REFUSED(FULL, "tamis_meter_charge", tamis_meter_charge(other, &cost)); /* its parent is full */
  CHECK(read_of(other).output_tokens == 0 && read_of(other).flops == 0);
  CHECK(read_of(root).output_tokens == UINT64_MAX - 5 && read_of(root).flops == before.flops);
  cost.output_tokens = 5;
  CHECK_OK(tamis_meter_charge(other, &cost));
  cost.cached_tokens = 1; /* of no input */
  REFUSED(ARGUMENT, "tamis_meter_charge", tamis_meter_charge(other, &cost));

  /* 128-bit inside, and stopping at 2^64-1 here. */
  cost = before;
  memset((char *)&cost + 8, 0, sizeof cost - 8);
  cost.microjoules = -1;
  cost.flops = UINT64_MAX;
  cost.size = sizeof cost;
  cost.basis = TAMIS_BASIS_NONE;
  CHECK_OK(tamis_meter_charge(other, &cost));
  CHECK_OK(tamis_meter_charge(other, &cost));
  CHECK(read_of(other).flops == UINT64_MAX);
  char text[4096];
  CHECK_OK(tamis_meter_export(&other, 1, TAMIS_EXPORT_JSON, NULL, text, sizeof text, NULL));
  CHECK(strstr(text, "\"flops\":36893488147419103231") != NULL);
  tamis_meter_free(other);
  tamis_meter_free(made);
  tamis_meter_free(root);
  tamis_meter_free(NULL);
}

/* A call's counts arrive at the meter that is entered, and at its parents. */
static void entering(void) {
  tamis_ctx *ctx = NULL;
  tamis_meter *root = NULL;
  CHECK_OK(tamis_ctx_create(NULL, &ctx));
  CHECK_OK(tamis_ctx_meter(ctx, &root));
  tamis_meter *tenant = meter_with(root, NULL), *request = meter_with(tenant, NULL);
  static float scores[64];
  static int32_t chosen[8];
  const tamis_tensor from = {scores, TAMIS_F32, 2, {1, 64}, {0}, NULL, 0}, to = {chosen, TAMIS_I32, 2, {1, 8}, {0}, NULL, 0};
  CHECK_OK(tamis_topk(ctx, &from, NULL, &to)); /* the root's own */
  REFUSED(ARGUMENT, "tamis_meter_enter", tamis_meter_enter(NULL));
  REFUSED(ARGUMENT, "tamis_meter_leave", tamis_meter_leave(request));
  REFUSED(ARGUMENT, "tamis_meter_leave", tamis_meter_leave(NULL));
  CHECK_OK(tamis_meter_enter(tenant));
  CHECK_OK(tamis_meter_enter(request));
  REFUSED(ARGUMENT, "tamis_meter_leave", tamis_meter_leave(tenant)); /* not the last one */
  CHECK_OK(tamis_topk(ctx, &from, NULL, &to));
  CHECK_OK(tamis_topk(NULL, &from, NULL, &to)); /* without a context, but on this thread */
  CHECK(tamis_topk(ctx, &from, NULL, NULL) == TAMIS_E_ARGUMENT); /* a failed call costs nothing */
  CHECK_OK(tamis_meter_leave(request));
  CHECK_OK(tamis_topk(ctx, &from, NULL, &to));
  CHECK_OK(tamis_meter_leave(tenant));
  CHECK(read_of(request).calls == 2 && read_of(tenant).calls == 3 && read_of(root).calls == 4);
  CHECK(read_of(root).basis == TAMIS_BASIS_MEASURED && read_of(root).dense_nanoseconds == 0);
  CHECK(read_of(root).microjoules == -1);
  tamis_counters counters = TAMIS_COUNTERS_INIT;
  CHECK_OK(tamis_ctx_counters(ctx, TAMIS_OP_ALL, &counters));
  CHECK(counters.calls == 3);

  int deep = 0;
  while (tamis_meter_enter(request) == TAMIS_OK && deep < 100) deep++;
  CHECK(deep == 64 && strncmp(tamis_last_error(), "tamis_meter_enter", 17) == 0);
  tamis_meter_free(request); /* freed while in use: it counts on */
  CHECK_OK(tamis_topk(ctx, &from, NULL, &to));
  CHECK(read_of(tenant).calls == 4);
  for (; deep > 0; deep--) CHECK_OK(tamis_meter_leave(NULL));
  REFUSED(ARGUMENT, "tamis_meter_leave", tamis_meter_leave(NULL));
  tamis_ctx_free(ctx); /* the root lives on */
  CHECK(read_of(root).calls == 5);
  tamis_meter_free(root);
  tamis_meter_free(tenant);
}

/* A sequence's meter is charged, whoever is entered; a fork has none. */
static void sequences(void) {
  tamis_ctx *ctx = NULL;
  tamis_cache *cache = NULL;
  tamis_seq *seq = NULL, *fork = NULL;
  tamis_cache_options options = TAMIS_CACHE_OPTIONS_INIT;
  options.key_dim = options.value_dim = 16;
  options.index_dtype = -1;
  CHECK_OK(tamis_ctx_create(NULL, &ctx));
  CHECK_OK(tamis_cache_create(ctx, &options, &cache));
  CHECK_OK(tamis_seq_create(cache, &seq));
  CHECK_OK(tamis_seq_extend(seq, NULL, 3));
  tamis_meter *own = meter_with(NULL, NULL), *entered = meter_with(NULL, NULL);
  static float rows[3 * 16];
  const tamis_tensor key = {rows, TAMIS_F32, 2, {3, 16}, {0}, NULL, 0};
  const tamis_tensor none = {rows, TAMIS_F32, 2, {0, 16}, {0}, NULL, 0};
  REFUSED(ARGUMENT, "tamis_seq_set_meter", tamis_seq_set_meter(NULL, own));
  CHECK_OK(tamis_meter_enter(entered));
  CHECK_OK(tamis_seq_set_meter(seq, own));
  CHECK_OK(tamis_seq_write(seq, 0, 0, &key, NULL, NULL));
  CHECK_OK(tamis_seq_write(seq, 0, 0, &none, NULL, NULL)); /* a call without rows */
  CHECK_OK(tamis_seq_fork(seq, -1, &fork));
  CHECK_OK(tamis_seq_write(fork, 0, 0, &key, NULL, NULL));
  CHECK(read_of(own).calls == 2 && read_of(own).queries == 3 && read_of(entered).calls == 1);
  CHECK_OK(tamis_seq_set_meter(seq, NULL));
  CHECK_OK(tamis_seq_write(seq, 0, 0, &key, NULL, NULL));
  CHECK(read_of(own).calls == 2 && read_of(entered).calls == 2);
  CHECK_OK(tamis_seq_set_meter(seq, own));
  tamis_meter_free(own); /* freed while in use: the sequence keeps it */
  CHECK_OK(tamis_seq_write(seq, 0, 0, &key, NULL, NULL));
  CHECK(read_of(entered).calls == 2);
  CHECK_OK(tamis_meter_leave(entered));
  tamis_seq_free(seq);
  tamis_seq_free(fork);
  tamis_meter_free(entered);
  tamis_cache_free(cache);
  tamis_ctx_free(ctx);
}

/* -------------------------------------------------------------------------------------------------------- budgets */

static tamis_amount amount_of(uint32_t units, const char *money, const char *currency, uint64_t tokens) {
  tamis_amount amount = TAMIS_AMOUNT_INIT;
  amount.units = units;
  strncpy(amount.money, money, sizeof amount.money);
  strncpy(amount.currency, currency, sizeof amount.currency);
  amount.tokens = tokens;
  return amount;
}

static void budgets(void) {
  const uint32_t both = TAMIS_UNIT_MONEY | TAMIS_UNIT_TOKENS;
  tamis_amount limit = amount_of(both, "1", "USD", 100);
  tamis_meter_options options = TAMIS_METER_OPTIONS_INIT;
  options.budget = &limit;
  tamis_meter *made = NULL;
  static const char *const wrong[][2] = {{"-1", "USD"}, {"1", "usd"}, {"1", ""}, {"", "USD"}, {"1,5", "USD"}, {"NaN", "USD"}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    limit = amount_of(both, wrong[i][0], wrong[i][1], 100);
    CHECK(tamis_meter_create(NULL, &options, &made) < 0 && made == NULL);
  }
  limit = amount_of(16, "", "", 0);
  REFUSED(ARGUMENT, "tamis_meter_create", tamis_meter_create(NULL, &options, &made));
  limit = amount_of(both, "1", "USD", 100);
  memset(limit.money, '9', sizeof limit.money); /* no final zero: 64 digits */
  CHECK(tamis_meter_create(NULL, &options, &made) < 0 && made == NULL);
  limit = amount_of(both, "1", "USD", 100);
  tamis_meter *root = meter_with(NULL, &options), *tenant = meter_with(root, NULL);

  const char *function = "tamis_meter_reserve";
  uint64_t held = 0, more = 7;
  tamis_amount wanted = amount_of(both, "0.7", "USD", 60);
  REFUSED(ARGUMENT, function, tamis_meter_reserve(NULL, &wanted, &held));
  REFUSED(ARGUMENT, function, tamis_meter_reserve(tenant, NULL, &held));
  REFUSED(ARGUMENT, function, tamis_meter_reserve(tenant, &wanted, NULL));
  CHECK_OK(tamis_meter_reserve(tenant, &wanted, &held));
  const tamis_amount dearer = amount_of(both, "0.3000000000000000000000000000001", "USD", 1);
  const tamis_amount longer = amount_of(both, "0.1", "USD", 41);
  const tamis_amount unnamed = amount_of(TAMIS_UNIT_MONEY, "0.1", "USD", 1);
  const tamis_amount euros = amount_of(both, "0.1", "EUR", 1);
  const tamis_amount negative = amount_of(both, "-0.1", "USD", 1);
  REFUSED(BUDGET, function, tamis_meter_reserve(tenant, &dearer, &more));
  REFUSED(BUDGET, function, tamis_meter_reserve(tenant, &longer, &more));
  REFUSED(ARGUMENT, function, tamis_meter_reserve(tenant, &unnamed, &more));
  REFUSED(ARGUMENT, function, tamis_meter_reserve(tenant, &euros, &more));
  REFUSED(ARGUMENT, function, tamis_meter_reserve(tenant, &negative, &more));
  CHECK(more == 7);

  function = "tamis_meter_settle";
  const tamis_amount over = amount_of(both, "0.7", "USD", 61), took = amount_of(both, "0.25", "USD", 40);
  REFUSED(ARGUMENT, function, tamis_meter_settle(NULL, held, &took));
  REFUSED(ARGUMENT, function, tamis_meter_settle(tenant, held, NULL));
  REFUSED(ARGUMENT, function, tamis_meter_settle(tenant, held, &over));
  REFUSED(ARGUMENT, function, tamis_meter_settle(tenant, held, &unnamed));
  REFUSED(ARGUMENT, function, tamis_meter_settle(tenant, held + 1, &took));
  REFUSED(ARGUMENT, function, tamis_meter_settle(root, held, &took)); /* another meter's */
  CHECK_OK(tamis_meter_settle(tenant, held, &took));
  REFUSED(ARGUMENT, function, tamis_meter_settle(tenant, held, &took)); /* twice */
  tamis_amount now = TAMIS_AMOUNT_INIT, reserved = TAMIS_AMOUNT_INIT, spent = TAMIS_AMOUNT_INIT;
  CHECK_OK(tamis_meter_budget(root, &now, &reserved, &spent));
  CHECK(now.units == both && now.tokens == 100 && strcmp(now.money, "1") == 0 && strcmp(now.currency, "USD") == 0);
  CHECK(reserved.tokens == 0 && strcmp(reserved.money, "0") == 0);
  CHECK(spent.tokens == 40 && strcmp(spent.money, "0.25") == 0);
  CHECK_OK(tamis_meter_budget(tenant, &now, NULL, NULL));
  CHECK(now.units == 0);
  REFUSED(ARGUMENT, "tamis_meter_budget", tamis_meter_budget(NULL, &now, NULL, NULL));
  spent.size = 3;
  now.tokens = 5;
  REFUSED(ARGUMENT, "tamis_meter_budget", tamis_meter_budget(root, &now, NULL, &spent));
  CHECK(now.tokens == 5);

  function = "tamis_meter_set_budget";
  const tamis_amount smaller = amount_of(both, "0.2", "USD", 10);
  REFUSED(ARGUMENT, function, tamis_meter_set_budget(NULL, &smaller));
  REFUSED(ARGUMENT, function, tamis_meter_set_budget(root, NULL));
  REFUSED(ARGUMENT, function, tamis_meter_set_budget(root, &unnamed));
  CHECK_OK(tamis_meter_set_budget(root, &smaller));
  const tamis_amount nothing = amount_of(both, "0", "USD", 0);
  REFUSED(BUDGET, "tamis_meter_reserve", tamis_meter_reserve(tenant, &nothing, &more));
  const tamis_amount larger = amount_of(both, "2", "USD", 1000);
  CHECK_OK(tamis_meter_set_budget(root, &larger));
  CHECK_OK(tamis_meter_reserve(tenant, &wanted, &held));
  tamis_meter_free(tenant); /* freed with an open reservation: spent */
  spent.size = sizeof spent;
  CHECK_OK(tamis_meter_budget(root, NULL, &reserved, &spent));
  CHECK(reserved.tokens == 0 && spent.tokens == 100 && strcmp(spent.money, "0.95") == 0);
  tamis_meter_free(root);
}

/* -------------------------------------------------------------------------------------------------------- exports */

static void exports(void) {
  const char *function = "tamis_meter_export";
  tamis_meter_options named = TAMIS_METER_OPTIONS_INIT;
  named.label = "a \"b\"\n\\";
  tamis_meter *meters[2] = {meter_with(NULL, &named), meter_with(NULL, NULL)}, *none[1] = {NULL};
  tamis_export_options options = TAMIS_EXPORT_OPTIONS_INIT;
  options.prices = prices_with(NULL);
  char text[16384], part[10];
  size_t needed = 0, again = 0;
  for (int32_t format = TAMIS_EXPORT_JSON; format <= TAMIS_EXPORT_CSV; format++) {
    CHECK_OK(tamis_meter_export(meters, 1, format, &options, NULL, 0, &needed));
    CHECK_OK(tamis_meter_export(meters, 1, format, &options, text, sizeof text, &again));
    CHECK(needed == again && strlen(text) + 1 == needed);
    CHECK_OK(tamis_meter_export(meters, 1, format, &options, part, sizeof part, NULL));
    CHECK(strlen(part) == sizeof part - 1 && strncmp(part, text, sizeof part - 1) == 0);
    const int many = format != TAMIS_EXPORT_OPENTELEMETRY && format != TAMIS_EXPORT_OPENAI && format != TAMIS_EXPORT_LANGCHAIN;
    CHECK(tamis_meter_export(meters, 2, format, &options, NULL, 0, NULL) == (many ? TAMIS_OK : TAMIS_E_ARGUMENT));
    REFUSED(ARGUMENT, function, tamis_meter_export(NULL, 1, format, &options, text, sizeof text, NULL));
    REFUSED(ARGUMENT, function, tamis_meter_export(none, 1, format, &options, text, sizeof text, NULL));
    REFUSED(ARGUMENT, function, tamis_meter_export(meters, 0, format, &options, text, sizeof text, NULL));
    REFUSED(ARGUMENT, function, tamis_meter_export(meters, SIZE_MAX, format, &options, text, sizeof text, NULL));
    REFUSED(ARGUMENT, function, tamis_meter_export(meters, 1, format, &options, NULL, 9, NULL));
  }
  REFUSED(ARGUMENT, function, tamis_meter_export(meters, 1, 0, NULL, text, sizeof text, NULL));
  REFUSED(ARGUMENT, function, tamis_meter_export(meters, 1, 7, NULL, text, sizeof text, NULL));
  options.model = "\xfe";
  REFUSED(ARGUMENT, function, tamis_meter_export(meters, 1, TAMIS_EXPORT_JSON, &options, text, sizeof text, NULL));
  tamis_prices_free(options.prices);
  tamis_meter_free(meters[0]);
  tamis_meter_free(meters[1]);
}

int main(void) {
  tamis_ctx *ctx = NULL;
  CHECK_OK(tamis_ctx_create(NULL, &ctx));
  if (check_failures != 0) return checked();
  machines(ctx);
  predictions();
  prices();
  bills();
  charges(ctx);
  entering();
  sequences();
  budgets();
  exports();
  tamis_ctx_free(ctx);
  printf("%d calls refused\n", refusals);
  return checked();
}
