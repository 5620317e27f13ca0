/* oom_model DIRECTORY: every allocation of a model's life fails once, in turn: opening, text, evaluation, traces and a
 * generation. A call then succeeds or gives TAMIS_E_MEMORY and has changed nothing: asked again it succeeds, the
 * results are the same bits, and no byte is lost. DIRECTORY: a checkpoint with a tokenizer. */
#include <string.h>

#include "heap.h"

enum { VOCABULARY = 2048, PROMPT = 24, LAYERS = 4, STEPS = 12, IDS = 256 };

#define LINE "import os, sys, unheard_of\n\n\ndef read_lines(path_of_a_file): # a prompt of some length\n"
static const char text[] = LINE "\xF0\x9F\xA6\x80, \xff";

typedef struct results {
  int32_t tokens[IDS], chat[IDS];
  size_t count, chat_count, bytes, message_bytes;
  char back[256], message[512];
  float logits[2][2 * VOCABULARY];
  double mass[LAYERS * 2];
  int32_t drawn, made[STEPS];
  char piece[STEPS][64];
  int64_t length[2], spliced;
  int32_t whole;
} results;

static results expected, result;
static heap *now; /* NULL: memory is plentiful */
static uint64_t refused;

/* Calls, and once more when memory was short. */
#define STEP(call)                                                                                           \
  do {                                                                                                       \
    if (check_failures != 0) break;                                                                          \
    tamis_status step_status = (call);                                                                       \
    if (step_status == TAMIS_E_MEMORY && now != NULL) {                                                      \
      CHECK(tamis_last_error()[0] != 0);                                                                     \
      refused++;                                                                                             \
      now->fail_at = 0;                                                                                      \
      step_status = (call);                                                                                  \
    }                                                                                                        \
    if (step_status == TAMIS_OK) break;                                                                      \
    check_failures++;                                                                                        \
    fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #call, tamis_status_name(step_status),       \
            tamis_last_error());                                                                             \
  } while (0)

static tamis_tensor rows(float *data, int64_t count) {
  const tamis_tensor made = {data, TAMIS_F32, 2, {count, VOCABULARY}, {0}, NULL, 0};
  return made;
}

typedef struct {
  tamis_sampler_options sampler;
  tamis_generate_options options;
} wanted;

static void want(wanted *w) {
  static const char *const stops[] = {"never", "\n\n\n\n"};
  w->sampler = (tamis_sampler_options)TAMIS_SAMPLER_OPTIONS_INIT;
  w->sampler.temperature = 1;
  w->sampler.top_k = 50;
  w->sampler.seed = 11;
  w->options = (tamis_generate_options)TAMIS_GENERATE_OPTIONS_INIT;
  w->options.sampler = &w->sampler;
  w->options.max_tokens = STEPS;
  w->options.ignore_end = 1;
  w->options.stop_texts = stops;
  w->options.stop_text_count = 2;
}

/* In one call, on a fork, as what was generated before memory ended stays in the sequence. */
static void generate_whole(tamis_model *model, tamis_seq *seq, results *r) {
  wanted w;
  want(&w);
  for (int attempt = 0; attempt < 2 && check_failures == 0; attempt++) {
    tamis_seq *fork = NULL;
    STEP(tamis_seq_fork(seq, -1, &fork));
    if (check_failures != 0) break;
    tamis_generated last = TAMIS_GENERATED_INIT;
    const tamis_status status = tamis_model_generate(model, fork, r->tokens, 3, &w.options, NULL, NULL, &last);
    r->whole = last.token;
    tamis_seq_free(fork);
    if (status == TAMIS_E_MEMORY && now != NULL && attempt == 0) {
      CHECK(tamis_last_error()[0] != 0);
      refused++;
      now->fail_at = 0;
      continue;
    }
    CHECK(status == TAMIS_OK && last.tokens == STEPS);
    break;
  }
}

static void generate(tamis_model *model, tamis_seq *seq, results *r) {
  wanted w;
  want(&w);
  tamis_generation *generation = NULL;
  STEP(tamis_generation_create(model, seq, r->tokens, PROMPT, &w.options, &generation));
  for (int i = 0; i < STEPS && check_failures == 0; i++) {
    tamis_generated step = TAMIS_GENERATED_INIT;
    STEP(tamis_generation_next(generation, &step));
    if (check_failures != 0) break;
    CHECK(step.bytes < sizeof r->piece[i]);
    r->made[i] = step.token;
    memcpy(r->piece[i], step.text, step.bytes < sizeof r->piece[i] ? step.bytes : 0);
    CHECK(step.tokens == (uint64_t)i + 1);
  }
  tamis_generation_free(generation);
}

static void use(tamis_ctx *ctx, tamis_model *model, tamis_cache *cache, results *r) {
  static const int64_t spans[] = {0, 10, 10, 2000};
  static const char tools[] = "[{\"function\": {\"name\": \"f\\n\", \"depth\": 1.5}}]";
#define DSML "\xEF\xBD\x9C" "DSML" "\xEF\xBD\x9C"
  static const char reply[] = "Hm \xff</think>Yes.\n\n<" DSML "function_calls>\n<" DSML "invoke name=\"f\">\n<" DSML
      "parameter name=\"a\" string=\"true\">1</" DSML "parameter>\n<" DSML
      "parameter name=\"b\" string=\"false\">[1]</" DSML "parameter>\n</" DSML "invoke>\n</" DSML "function_calls>";
  const tamis_message question[] = {
      {.role = TAMIS_ROLE_SYSTEM, .tools = tools, .tools_bytes = sizeof tools - 1},
      {.role = TAMIS_ROLE_USER, .content = "why?", .content_bytes = 4}};
  const int32_t counts[] = {PROMPT, 5}, one = 1;
  tamis_seq *pair[2] = {NULL, NULL};
  tamis_trace *trace = NULL;
  STEP(tamis_model_tokenize(model, text, sizeof text - 1, NULL, r->tokens, IDS, &r->count));
  CHECK(r->count > PROMPT + 5 && r->count <= IDS);
  STEP(tamis_model_detokenize(model, r->tokens, r->count, 0, r->back, sizeof r->back, &r->bytes));
  STEP(tamis_model_chat(model, question, 2, 0, r->chat, IDS, &r->chat_count));
  STEP(tamis_model_parse(model, reply, sizeof reply - 1, 1, r->message, sizeof r->message, &r->message_bytes));
  STEP(tamis_seq_create(cache, &pair[0]));
  STEP(tamis_seq_create(cache, &pair[1]));
  STEP(tamis_trace_create(ctx, spans, 2, LAYERS, &trace));
  if (check_failures == 0) {
    const tamis_tensor both = rows(r->logits[0], 2), last = rows(r->logits[1], 1);
    tamis_trace *const traces[] = {trace, NULL};
    tamis_eval_options options = TAMIS_EVAL_OPTIONS_INIT;
    options.attention = TAMIS_ATTENTION_SPARSE;
    options.top_k = 8;
    options.traces = traces;
    STEP(tamis_model_eval(model, pair, r->tokens, counts, 2, &options, &both));
    STEP(tamis_model_eval(model, pair, r->tokens + 3, &one, 1, NULL, &last));
    STEP(tamis_trace_read(trace, r->mass, NULL));
    tamis_sampler_options sampler = TAMIS_SAMPLER_OPTIONS_INIT;
    sampler.temperature = 1;
    STEP(tamis_sample(ctx, &last, &sampler, 0, &r->drawn));
    generate_whole(model, pair[1], r);
    generate(model, pair[1], r);
    for (int i = 0; i < 2; i++) STEP(tamis_seq_length(pair[i], &r->length[i]));
    STEP(tamis_model_splice(model, pair[0], pair[1], 0, 5, 2));
    STEP(tamis_seq_length(pair[0], &r->spliced));
  }
  tamis_trace_free(trace);
  tamis_seq_free(pair[0]);
  tamis_seq_free(pair[1]);
}

static void scenario(heap *allocator, const char *directory, results *r) {
  memset(r, 0, sizeof *r);
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  options.alloc = heap_alloc;
  options.release = heap_release;
  options.user = allocator;
  tamis_ctx *ctx = NULL;
  tamis_model *model = NULL;
  tamis_cache *cache = NULL;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  STEP(tamis_ctx_create(&options, &ctx));
  STEP(tamis_model_open(ctx, directory, NULL, &model));
  STEP(tamis_model_cache_options(model, &shape));
  STEP(tamis_cache_create(ctx, &shape, &cache));
  if (check_failures == 0) use(ctx, model, cache, r);
  tamis_cache_free(cache);
  tamis_model_free(model);
  tamis_ctx_free(ctx);
  heap_expect_empty(allocator);
}

int main(int count, char **arguments) {
  if (count != 2) return 2;
  static heap plenty;
  pthread_mutex_init(&plenty.lock, NULL);
  scenario(&plenty, arguments[1], &expected);
  CHECK(strcmp(expected.back, LINE "\xF0\x9F\xA6\x80, \xEF\xBF\xBD") == 0);
  CHECK(expected.spliced == PROMPT + 6);
  CHECK(expected.length[0] == PROMPT + 1 && expected.length[1] == 5 + PROMPT + STEPS - 1);
  printf("%llu allocations\n", (unsigned long long)plenty.calls);
  uint64_t failures = 1, n = 1;
  for (; failures != 0 && check_failures == 0; n++) {
    static heap allocator;
    memset(&allocator, 0, sizeof allocator);
    pthread_mutex_init(&allocator.lock, NULL);
    allocator.fail_at = n;
    allocator.fail_after = 1; /* until the first refusal: spare memory does not help */
    now = &allocator;
    scenario(&allocator, arguments[1], &result);
    CHECK(memcmp(&result, &expected, sizeof result) == 0);
    if (check_failures != 0) fprintf(stderr, "when allocation %llu failed\n", (unsigned long long)n);
    failures = allocator.failed;
    pthread_mutex_destroy(&allocator.lock);
  }
  printf("%llu allocations failed, %llu calls refused\n", (unsigned long long)n - 2, (unsigned long long)refused);
  CHECK(refused > 100);
  return checked();
}
