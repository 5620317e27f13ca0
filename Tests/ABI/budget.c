/* A thousand concurrent reservations, settlements and charges over a tree of meters: at every moment what is reserved
 * and spent is within every limit, and at the end nothing is lost and nothing is counted twice. Calls of many threads
 * in many meters of one context add up as well. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "work.h"

enum { THREADS = 1000, TENANTS = 4, EACH = 100, LIMIT = 30000, CALLERS = 8, ROUNDS = 5 };

static tamis_meter *root, *tenants[TENANTS];

typedef struct outcome {
  int index, granted, wrong;
} outcome;

static tamis_amount amount_of(const char *money, uint64_t tokens) {
  tamis_amount amount = TAMIS_AMOUNT_INIT;
  amount.units = TAMIS_UNIT_MONEY | TAMIS_UNIT_TOKENS;
  strcpy(amount.money, money);
  strcpy(amount.currency, "USD");
  amount.tokens = tokens;
  return amount;
}

static void *spend(void *argument) {
  outcome *mine = argument;
  tamis_meter *tenant = tenants[mine->index % TENANTS];
  const tamis_amount most = amount_of("0.0001", EACH), took = amount_of("0.00005", EACH / 2);
  uint64_t held = 0;
  const tamis_status status = tamis_meter_reserve(tenant, &most, &held);
  if (status != TAMIS_OK) {
    mine->wrong += status != TAMIS_E_BUDGET || strstr(tamis_last_error(), "tamis_meter_reserve") == NULL;
    return NULL;
  }
  mine->granted = 1;
  tamis_amount reserved = TAMIS_AMOUNT_INIT, spent = TAMIS_AMOUNT_INIT;
  mine->wrong += tamis_meter_budget(root, NULL, &reserved, &spent) != TAMIS_OK;
  mine->wrong += reserved.tokens + spent.tokens > LIMIT;
  mine->wrong += tamis_meter_settle(tenant, held, &took) != TAMIS_OK;
  mine->wrong += tamis_meter_settle(tenant, held, &took) != TAMIS_E_ARGUMENT;
  tamis_cost cost = TAMIS_COST_INIT;
  cost.input_tokens = EACH / 2;
  cost.cached_tokens = EACH / 4;
  mine->wrong += tamis_meter_charge(tenant, &cost) != TAMIS_OK;
  mine->wrong += tamis_meter_read(root, &cost) != TAMIS_OK || cost.cached_tokens * 2 != cost.input_tokens;
  return NULL;
}

static void a_thousand_reservations(void) {
  tamis_meter_options options = TAMIS_METER_OPTIONS_INIT;
  const tamis_amount limit = amount_of("0.03", LIMIT), half = amount_of("1", LIMIT / 2);
  options.budget = &limit;
  CHECK_OK(tamis_meter_create(NULL, &options, &root));
  options.budget = &half;
  for (int i = 0; i < TENANTS; i++) CHECK_OK(tamis_meter_create(root, &options, &tenants[i]));
  static pthread_t thread[THREADS];
  static outcome outcomes[THREADS];
  int started = 0;
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 256 << 10);
  for (int i = 0; i < THREADS; i++) {
    outcomes[i].index = i;
    if (pthread_create(&thread[i], &small, spend, &outcomes[i]) != 0) break;
    started++;
  }
  CHECK(started == THREADS);
  uint64_t granted = 0;
  for (int i = 0; i < started; i++) {
    pthread_join(thread[i], NULL);
    CHECK(outcomes[i].wrong == 0);
    granted += (uint64_t)outcomes[i].granted;
  }
  pthread_attr_destroy(&small);
  CHECK(granted >= LIMIT / EACH && granted <= LIMIT / (EACH / 2));
  tamis_amount reserved = TAMIS_AMOUNT_INIT, spent = TAMIS_AMOUNT_INIT;
  CHECK_OK(tamis_meter_budget(root, NULL, &reserved, &spent));
  char money[64];
  snprintf(money, sizeof money, "%.5f", (double)granted * 0.00005);
  while (strchr(money, '.') != NULL && (money[strlen(money) - 1] == '0' || money[strlen(money) - 1] == '.'))
    money[strlen(money) - 1] = 0;
  CHECK(reserved.tokens == 0 && spent.tokens == granted * (EACH / 2) && strcmp(spent.money, money) == 0);
  tamis_cost cost = TAMIS_COST_INIT;
  CHECK_OK(tamis_meter_read(root, &cost));
  CHECK(cost.input_tokens == granted * (EACH / 2));
  for (int i = 0; i < TENANTS; i++) tamis_meter_free(tenants[i]);
  tamis_meter_free(root);
}

/* ------------------------------------------------------------------------------------------ calls in many meters */

typedef struct caller {
  tamis_ctx *ctx;
  tamis_meter *meter;
  int wrong;
} caller;

static void *call(void *argument) {
  caller *mine = argument;
  work_result *result = malloc(sizeof *result);
  for (int round = 0; result != NULL && round < ROUNDS; round++) {
    mine->wrong += tamis_meter_enter(mine->meter) != TAMIS_OK;
    mine->wrong += work_run(mine->ctx, result) != TAMIS_OK;
    mine->wrong += tamis_meter_leave(mine->meter) != TAMIS_OK;
  }
  free(result);
  return NULL;
}

static void calls_add_up(void) {
  tamis_ctx *ctx = NULL;
  tamis_meter *all = NULL;
  tamis_meter_options options = TAMIS_METER_OPTIONS_INIT;
  options.energy = 1; /* eight at a time: nobody's is measured */
  CHECK_OK(tamis_machine_published("H800", &options.machine));
  CHECK_OK(tamis_ctx_create(NULL, &ctx));
  CHECK_OK(tamis_ctx_meter(ctx, &all));
  /* The first use of the energy counters makes them, once, inside the Swift runtime, where the thread sanitizer sees no
   * order: so it is here. */
  tamis_meter *first = NULL;
  CHECK_OK(tamis_meter_create(NULL, &options, &first));
  CHECK_OK(tamis_meter_enter(first));
  CHECK_OK(tamis_meter_leave(first));
  tamis_meter_free(first);
  pthread_t thread[CALLERS];
  caller callers[CALLERS];
  for (int i = 0; i < CALLERS; i++) {
    callers[i] = (caller){ctx, NULL, 0};
    CHECK_OK(tamis_meter_create(all, &options, &callers[i].meter));
    CHECK(pthread_create(&thread[i], NULL, call, &callers[i]) == 0);
  }
  tamis_cost sum = TAMIS_COST_INIT, whole = TAMIS_COST_INIT;
  for (int i = 0; i < CALLERS; i++) {
    tamis_cost one = TAMIS_COST_INIT;
    pthread_join(thread[i], NULL);
    CHECK(callers[i].wrong == 0);
    CHECK_OK(tamis_meter_read(callers[i].meter, &one));
    CHECK(one.calls == 2 * ROUNDS && one.basis == TAMIS_BASIS_ANALYTIC && one.dense_nanoseconds > 0);
    sum.flops += one.flops;
    sum.bytes += one.bytes;
    sum.nanoseconds += one.nanoseconds;
    sum.dense_nanoseconds += one.dense_nanoseconds;
    tamis_meter_free(callers[i].meter);
  }
  CHECK_OK(tamis_meter_read(all, &whole));
  tamis_counters counters = TAMIS_COUNTERS_INIT;
  CHECK_OK(tamis_ctx_counters(ctx, TAMIS_OP_ALL, &counters));
  CHECK(whole.calls == 2 * ROUNDS * CALLERS && counters.calls == whole.calls);
  CHECK(whole.flops == sum.flops && whole.flops == counters.flops && whole.bytes == sum.bytes);
  CHECK(whole.nanoseconds == sum.nanoseconds && whole.dense_nanoseconds == sum.dense_nanoseconds);
  CHECK(whole.keys_dense > whole.keys_attended);
  tamis_machine_free(options.machine);
  tamis_meter_free(all);
  tamis_ctx_free(ctx);
}

int main(void) {
  work_prepare();
  a_thousand_reservations();
  calls_add_up();
  return checked();
}
