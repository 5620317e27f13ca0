/* bad_serve DIRECTORY: section 9 of the header with what a careless caller passes, and schedulers freed in any order
 * with what they use. Each such call is refused with one line that names the function, and nothing is submitted. */
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "refused.h"

static tamis_ctx *ctx;
static tamis_model *model;
static tamis_cache *cache;
static char *odd; /* an odd address */

static void creating(void) {
  tamis_scheduler *made = (tamis_scheduler *)&odd;
  tamis_scheduler_options options = TAMIS_SCHEDULER_OPTIONS_INIT;
#define CREATE(model, cache, options, to) \
  REFUSED(ARGUMENT, "tamis_scheduler_create", tamis_scheduler_create(model, cache, options, to))
  CREATE(NULL, cache, NULL, &made);
  CREATE(model, NULL, NULL, &made);
  CREATE(model, cache, NULL, NULL);
  CREATE(model, cache, NULL, (tamis_scheduler **)(void *)odd);
  options.size = 6;
  CREATE(model, cache, &options, &made);
  options = (tamis_scheduler_options)TAMIS_SCHEDULER_OPTIONS_INIT;
  options.max_running = 65537;
  CREATE(model, cache, &options, &made);
  options.max_running = 0;
  options.max_waiting = UINT32_MAX;
  CREATE(model, cache, &options, &made);
  options.max_waiting = 0;
  options.step_tokens = 1;
  CREATE(model, cache, &options, &made);
  options.step_tokens = UINT32_MAX;
  CREATE(model, cache, &options, &made);
  options.step_tokens = 0;
  options.attention = 3;
  CREATE(model, cache, &options, &made);
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  tamis_cache *other = NULL;
  CHECK_OK(tamis_cache_create(ctx, &shape, &other));
  CREATE(model, other, NULL, &made);
  tamis_cache_free(other);
#undef CREATE
  CHECK(made == (tamis_scheduler *)&odd);
  tamis_scheduler_free(NULL);
}

static void submitting(void) {
  static const int32_t good[] = {1, 2, 3}, bad[] = {1, -1, 3};
  tamis_scheduler_options few = TAMIS_SCHEDULER_OPTIONS_INIT;
  few.max_running = few.max_waiting = 1;
  tamis_scheduler *scheduler = NULL;
  tamis_scheduler_stats stats = TAMIS_SCHEDULER_STATS_INIT;
  uint64_t request = 77, left = 0;
  CHECK_OK(tamis_scheduler_create(model, cache, &few, &scheduler));
#define SUBMIT(status, scheduler, tokens, count, options, to) \
  REFUSED(status, "tamis_scheduler_submit", tamis_scheduler_submit(scheduler, tokens, count, options, to))
  SUBMIT(ARGUMENT, NULL, good, 3, NULL, &request);
  SUBMIT(ARGUMENT, scheduler, NULL, 3, NULL, &request);
  SUBMIT(ARGUMENT, scheduler, (const int32_t *)(const void *)odd, 3, NULL, &request);
  SUBMIT(ARGUMENT, scheduler, good, 0, NULL, &request);
  SUBMIT(ARGUMENT, scheduler, good, SIZE_MAX, NULL, &request);
  SUBMIT(ARGUMENT, scheduler, bad, 3, NULL, &request);
  SUBMIT(ARGUMENT, scheduler, good, 3, NULL, NULL);
  SUBMIT(ARGUMENT, scheduler, good, 3, NULL, (uint64_t *)(void *)odd);
  tamis_submit_options options = TAMIS_SUBMIT_OPTIONS_INIT;
  options.size = 7;
  SUBMIT(ARGUMENT, scheduler, good, 3, &options, &request);
  options.size = sizeof options;
  tamis_generate_options generate = TAMIS_GENERATE_OPTIONS_INIT;
  tamis_eval_options eval = TAMIS_EVAL_OPTIONS_INIT;
  tamis_sampler_options sampler = TAMIS_SAMPLER_OPTIONS_INIT;
  options.generate = &generate;
  generate.eval = &eval;
  SUBMIT(ARGUMENT, scheduler, good, 3, &options, &request);
  generate.eval = NULL;
  generate.sampler = &sampler;
  sampler.top_p = 2;
  SUBMIT(ARGUMENT, scheduler, good, 3, &options, &request);
  sampler.top_p = 0;
  generate.stop_text_count = 1;
  SUBMIT(ARGUMENT, scheduler, good, 3, &options, &request);
  generate.stop_text_count = 0;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  tamis_cache *other = NULL;
  CHECK_OK(tamis_cache_create(ctx, &shape, &other));
  CHECK_OK(tamis_seq_create(other, &options.prefix));
  SUBMIT(ARGUMENT, scheduler, good, 3, &options, &request);
  tamis_seq_free(options.prefix);
  options.prefix = NULL;
  tamis_cache_free(other);
  CHECK(request == 77);
  CHECK_OK(tamis_scheduler_read_stats(scheduler, &stats));
  CHECK(stats.submitted == 0 && stats.waiting == 0);

  generate.max_tokens = 1;
  for (int i = 0; i < 2; i++) CHECK_OK(tamis_scheduler_submit(scheduler, good, 3, &options, &request));
  CHECK(request == 2);
  SUBMIT(FULL, scheduler, good, 3, &options, &request);
#undef SUBMIT

  REFUSED(ARGUMENT, "tamis_scheduler_cancel", tamis_scheduler_cancel(NULL, 1));
  CHECK_OK(tamis_scheduler_cancel(scheduler, 0));
  CHECK_OK(tamis_scheduler_cancel(scheduler, UINT64_MAX));
  REFUSED(ARGUMENT, "tamis_scheduler_step", tamis_scheduler_step(NULL, &left));
  REFUSED(ARGUMENT, "tamis_scheduler_step", tamis_scheduler_step(scheduler, (uint64_t *)(void *)odd));
  CHECK_OK(tamis_scheduler_step(scheduler, &left));
  CHECK(left == 1);
  tamis_served served = TAMIS_SERVED_INIT;
  REFUSED(ARGUMENT, "tamis_scheduler_next", tamis_scheduler_next(NULL, &served));
  REFUSED(ARGUMENT, "tamis_scheduler_next", tamis_scheduler_next(scheduler, NULL));
  REFUSED(ARGUMENT, "tamis_scheduler_next", tamis_scheduler_next(scheduler, (tamis_served *)(void *)odd));
  served.size = 5;
  REFUSED(ARGUMENT, "tamis_scheduler_next", tamis_scheduler_next(scheduler, &served));
  served.size = sizeof served;
  CHECK_OK(tamis_scheduler_next(scheduler, &served)); /* the refused ones have lost nothing */
  CHECK(served.request == 1 && served.token_count == 1 && served.stop == TAMIS_STOP_MAX_TOKENS);
  CHECK(served.prompt_tokens == 3 && served.output_tokens == 1 && served.error[0] == 0 && served.status == TAMIS_OK);
  CHECK(served.first_seconds > 0 && served.first_seconds >= served.waiting_seconds);
  CHECK_OK(tamis_scheduler_next(scheduler, &served));
  CHECK(served.request == 0);
  REFUSED(ARGUMENT, "tamis_scheduler_read_stats", tamis_scheduler_read_stats(NULL, &stats));
  REFUSED(ARGUMENT, "tamis_scheduler_read_stats", tamis_scheduler_read_stats(scheduler, NULL));
  stats.size = 3;
  REFUSED(ARGUMENT, "tamis_scheduler_read_stats", tamis_scheduler_read_stats(scheduler, &stats));
  tamis_scheduler_free(scheduler); /* with one request left */
}

/* A context, a model, its cache, a sequence that is somebody's prefix, a meter and a scheduler with requests in it, freed
 * in many orders. */
static void any_order(const char *directory) {
  for (int order = 0; order < 40; order++) {
    static heap allocator;
    tamis_ctx_options options = heap_options(&allocator, 1);
    tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
    tamis_submit_options submit = TAMIS_SUBMIT_OPTIONS_INIT;
    tamis_ctx *owner = NULL;
    tamis_model *opened = NULL;
    tamis_cache *pages = NULL;
    tamis_scheduler *scheduler = NULL;
    const int32_t ids[] = {1, 2, 3}, three = 3;
    CHECK_OK(tamis_ctx_create(&options, &owner));
    CHECK_OK(tamis_model_open(owner, directory, NULL, &opened));
    CHECK_OK(tamis_model_cache_options(opened, &shape));
    CHECK_OK(tamis_cache_create(owner, &shape, &pages));
    CHECK_OK(tamis_seq_create(pages, &submit.prefix));
    CHECK_OK(tamis_model_eval(opened, &submit.prefix, ids, &three, 1, NULL, NULL));
    CHECK_OK(tamis_meter_create(NULL, NULL, &submit.meter));
    CHECK_OK(tamis_scheduler_create(opened, pages, NULL, &scheduler));
    uint64_t request = 0;
    for (int i = 0; i < 3; i++) CHECK_OK(tamis_scheduler_submit(scheduler, ids, 3, &submit, &request));

    int left[] = {0, 1, 2, 3, 4, 5}, code = order * 17;
    for (int remaining = 6; remaining > 0; remaining--) {
      const int pick = code % remaining, object = left[pick];
      code /= remaining;
      left[pick] = left[remaining - 1];
      if (scheduler != NULL) CHECK_OK(tamis_scheduler_step(scheduler, NULL));
      if (object == 0) tamis_ctx_free(owner);
      if (object == 1) tamis_model_free(opened);
      if (object == 2) tamis_cache_free(pages);
      if (object == 3) tamis_seq_free(submit.prefix);
      if (object == 4) tamis_meter_free(submit.meter);
      if (object == 5) tamis_scheduler_free(scheduler), scheduler = NULL;
    }
    heap_expect_empty(&allocator);
    pthread_mutex_destroy(&allocator.lock);
  }
}

int main(int count, char **arguments) {
  if (count != 2) return 2;
  static int64_t aligned[64];
  odd = (char *)aligned + 1;
  CHECK_OK(tamis_ctx_create(NULL, &ctx));
  CHECK_OK(tamis_model_open(ctx, arguments[1], NULL, &model));
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  CHECK_OK(tamis_model_cache_options(model, &shape));
  CHECK_OK(tamis_cache_create(ctx, &shape, &cache));
  if (check_failures != 0) return 1;
  creating();
  submitting();
  any_order(arguments[1]);
  tamis_cache_free(cache);
  tamis_model_free(model);
  tamis_ctx_free(ctx);
  printf("%d calls refused\n", refusals);
  return checked();
}
