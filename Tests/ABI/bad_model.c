/* bad_model DIRECTORY: section 6 of the header with what a careless caller passes: NULL, misaligned and overlapping
 * memory, token ids outside the vocabulary, caches of another shape, directories that are none, too small buffers,
 * callbacks that write nonsense, objects freed in any order. Each such call is refused with one line that names the
 * function, and no sequence becomes longer. DIRECTORY: a checkpoint with a tokenizer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "refused.h"

static tamis_ctx *ctx;
static tamis_model *model;
static tamis_model_info info = TAMIS_MODEL_INFO_INIT;
static tamis_cache *cache;
static tamis_seq *seq;
static float *logits; /* [2, vocabulary] */
static char *odd;     /* an odd address */

static tamis_tensor rows(int64_t count) {
  const tamis_tensor made = {logits, TAMIS_F32, 2, {count, info.vocabulary}, {0}, NULL, 0};
  return made;
}

static int64_t length_of(tamis_seq *of) {
  int64_t length = -1;
  CHECK_OK(tamis_seq_length(of, &length));
  return length;
}

/* --------------------------------------------------------------------------------------------------------- models */

static void opening(const char *directory) {
  tamis_model *made = (tamis_model *)&odd;
  static char longest[5000];
  memset(longest, 'a', sizeof longest - 1);
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(NULL, directory, NULL, &made));
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, NULL, NULL, &made));
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, "", NULL, &made));
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, longest, NULL, &made));
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, directory, NULL, NULL));
  REFUSED(IO, "tamis_model_open", tamis_model_open(ctx, "/nonexistent/model", NULL, &made));
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, "bytes that are no \xff\xfe UTF-8", NULL, &made));
  tamis_model_options options = TAMIS_MODEL_OPTIONS_INIT;
  options.step_tokens = 65537;
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, directory, &options, &made));
  options.step_tokens = 0;
  options.size = 3;
  REFUSED(ARGUMENT, "tamis_model_open", tamis_model_open(ctx, directory, &options, &made));
  CHECK(made == (tamis_model *)&odd);

  tamis_model_info about = TAMIS_MODEL_INFO_INIT;
  REFUSED(ARGUMENT, "tamis_model_read_info", tamis_model_read_info(NULL, &about));
  REFUSED(ARGUMENT, "tamis_model_read_info", tamis_model_read_info(model, NULL));
  REFUSED(ARGUMENT, "tamis_model_read_info", tamis_model_read_info(model, (tamis_model_info *)(void *)odd));
  about.size = 9;
  REFUSED(ARGUMENT, "tamis_model_read_info", tamis_model_read_info(model, &about));
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  REFUSED(ARGUMENT, "tamis_model_cache_options", tamis_model_cache_options(NULL, &shape));
  REFUSED(ARGUMENT, "tamis_model_cache_options", tamis_model_cache_options(model, NULL));
  shape.size = 0;
  REFUSED(ARGUMENT, "tamis_model_cache_options", tamis_model_cache_options(model, &shape));
  char text[8];
  size_t needed = 0;
  REFUSED(ARGUMENT, "tamis_model_describe", tamis_model_describe(NULL, text, sizeof text, &needed));
  REFUSED(ARGUMENT, "tamis_model_describe", tamis_model_describe(model, NULL, sizeof text, &needed));
  CHECK_OK(tamis_model_describe(model, text, sizeof text, &needed));
  CHECK(needed > sizeof text && strlen(text) == sizeof text - 1);
}

static void text(void) {
  int32_t tokens[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  size_t count = 77;
  const char *hello = "hello, hello, hello, hello";
#define TOKENIZE(of, bytes, options, to, room, where) \
  REFUSED(ARGUMENT, "tamis_model_tokenize", tamis_model_tokenize(of, hello, bytes, options, to, room, where))
  tamis_tokenize_options options = TAMIS_TOKENIZE_OPTIONS_INIT;
  options.size = 3;
  TOKENIZE(NULL, 5, NULL, tokens, 8, &count);
  TOKENIZE(model, SIZE_MAX, NULL, tokens, 8, &count);
  TOKENIZE(model, ((size_t)1 << 29) + 1, NULL, tokens, 8, &count);
  TOKENIZE(model, 5, &options, tokens, 8, &count);
  TOKENIZE(model, 5, NULL, NULL, 8, &count);
  TOKENIZE(model, 5, NULL, tokens, SIZE_MAX, &count);
  TOKENIZE(model, 5, NULL, (int32_t *)(void *)odd, 8, &count);
  TOKENIZE(model, 5, NULL, tokens, 8, NULL);
  TOKENIZE(model, 5, NULL, tokens, 8, (size_t *)(void *)odd);
  hello = NULL;
  TOKENIZE(model, 5, NULL, tokens, 8, &count);
  CHECK(count == 77 && tokens[0] == -1);
#undef TOKENIZE
  CHECK_OK(tamis_model_tokenize(model, NULL, 0, NULL, NULL, 0, &count));
  hello = "hello, hello, hello, hello";
  CHECK_OK(tamis_model_tokenize(model, hello, strlen(hello), NULL, tokens, 2, &count));
  CHECK(count > 4 && tokens[1] != -1 && tokens[2] == -1);

  char back[4];
  size_t needed = 55;
  const int32_t unknown[] = {0, INT32_MAX}, negative[] = {-1};
#define DETOKENIZE(of, from, number, to, room) \
  REFUSED(ARGUMENT, "tamis_model_detokenize", tamis_model_detokenize(of, from, number, 0, to, room, &needed))
  DETOKENIZE(NULL, tokens, 2, back, sizeof back);
  DETOKENIZE(model, NULL, 2, back, sizeof back);
  DETOKENIZE(model, tokens, SIZE_MAX, back, sizeof back);
  DETOKENIZE(model, (const int32_t *)(const void *)odd, 1, back, sizeof back);
  DETOKENIZE(model, unknown, 2, back, sizeof back);
  DETOKENIZE(model, negative, 1, back, sizeof back);
  DETOKENIZE(model, tokens, 2, NULL, 4);
  CHECK(needed == 55);
#undef DETOKENIZE
  CHECK_OK(tamis_model_detokenize(model, tokens, 2, 0, back, sizeof back, &needed));
  CHECK(needed > sizeof back && back[3] == 0 && memcmp(back, "hel", 3) == 0);
}

/* ----------------------------------------------------------------------------------------------------- evaluation */

static int32_t stop(void *user, int32_t layer, int32_t number, int64_t first, int32_t count, int32_t k, int32_t *indices) {
  (void)user, (void)layer, (void)number, (void)first, (void)count, (void)k, (void)indices;
  return 1;
}

/* user: the key that goes to the first place. */
static int32_t spoil(void *user, int32_t layer, int32_t number, int64_t first, int32_t count, int32_t k, int32_t *indices) {
  (void)layer, (void)number, (void)first, (void)count, (void)k;
  indices[0] = *(const int32_t *)user;
  return 0;
}

static void evaluation(void) {
  enum { MANY = 4000 };
  static int32_t many[MANY], good[] = {1, 2, 3};
  const int32_t outside[] = {1, (int32_t)info.vocabulary, 3}, negative[] = {1, -1, 3};
  const int32_t three = 3, zero = 0, minus = -1, most = INT32_MAX, all = MANY;
  const int32_t *const bad_counts[] = {NULL, &zero, &minus, (const int32_t *)(const void *)odd};
  const tamis_tensor one = rows(1), two = rows(2);
  const int64_t before = length_of(seq);
#define EVAL(status, of, seqs, tokens, counts, count, options, out) \
  REFUSED(status, "tamis_model_eval", tamis_model_eval(of, seqs, tokens, counts, count, options, out))
  EVAL(ARGUMENT, NULL, &seq, good, &three, 1, NULL, &one);
  EVAL(ARGUMENT, model, NULL, good, &three, 1, NULL, &one);
  EVAL(ARGUMENT, model, (tamis_seq *const *)(void *)odd, good, &three, 1, NULL, &one);
  EVAL(ARGUMENT, model, &seq, NULL, &three, 1, NULL, &one);
  EVAL(ARGUMENT, model, &seq, (const int32_t *)(const void *)odd, &three, 1, NULL, &one);
  for (int i = 0; i < 4; i++) EVAL(ARGUMENT, model, &seq, good, bad_counts[i], 1, NULL, &one);
  EVAL(ARGUMENT, model, &seq, good, &three, 0, NULL, &one);
  EVAL(ARGUMENT, model, &seq, good, &three, SIZE_MAX, NULL, &one);
  EVAL(ARGUMENT, model, &seq, outside, &three, 1, NULL, &one);
  EVAL(ARGUMENT, model, &seq, negative, &three, 1, NULL, &one);
  EVAL(ARGUMENT, model, &seq, many, &all, 1, NULL, &one); /* more than the model has positions */
  EVAL(ARGUMENT, model, &seq, good, &three, 1, NULL, &two);
  tamis_seq *const twice[] = {seq, seq};
  const int32_t each[] = {1, 1}, overflowing[] = {most, most};
  EVAL(ARGUMENT, model, twice, good, each, 2, NULL, &two);
  EVAL(ARGUMENT, model, twice, good, overflowing, 2, NULL, &two);
  tamis_tensor wrong = one;
  wrong.dtype = TAMIS_F16;
  EVAL(ARGUMENT, model, &seq, good, &three, 1, NULL, &wrong);
  wrong = one;
  wrong.shape[1]--;
  EVAL(ARGUMENT, model, &seq, good, &three, 1, NULL, &wrong);
  wrong.ndim = 9;
  EVAL(ARGUMENT, model, &seq, good, &three, 1, NULL, &wrong);
  EVAL(ARGUMENT, model, &seq, (int32_t *)(void *)logits, &three, 1, NULL, &one); /* tokens inside the logits */

  tamis_eval_options options = TAMIS_EVAL_OPTIONS_INIT;
  options.attention = 3;
  EVAL(ARGUMENT, model, &seq, good, &three, 1, &options, &one);
  options.attention = TAMIS_ATTENTION_SPARSE;
  options.selected = stop;
  EVAL(CANCELLED, model, &seq, good, &three, 1, &options, &one);
  options.selected = spoil;
  const int32_t nonsense[] = {-2, INT32_MIN, INT32_MAX, (int32_t)before + 3};
  for (int i = 0; i < 4; i++) {
    options.user = (void *)(uintptr_t)&nonsense[i];
    EVAL(ARGUMENT, model, &seq, good, &three, 1, &options, &one);
  }
  options.selected = NULL;
  options.traces = (tamis_trace *const *)(void *)odd;
  EVAL(ARGUMENT, model, &seq, good, &three, 1, &options, &one);
  options.traces = NULL;
  options.size = 9;
  EVAL(ARGUMENT, model, &seq, good, &three, 1, &options, &one);

  tamis_cache *other = NULL;
  tamis_seq *stranger = NULL;
  CHECK_OK(tamis_cache_create(ctx, NULL, &other));
  CHECK_OK(tamis_seq_create(other, &stranger));
  EVAL(ARGUMENT, model, &stranger, good, &three, 1, NULL, &one);
  tamis_seq *const mixed[] = {seq, stranger}, *const absent[] = {seq, NULL};
  EVAL(ARGUMENT, model, mixed, good, each, 2, NULL, &two);
  EVAL(ARGUMENT, model, absent, good, each, 2, NULL, &two);
#undef EVAL
  CHECK(length_of(seq) == before && length_of(stranger) == 0);
  tamis_seq_free(stranger);
  tamis_cache_free(other);
  CHECK_OK(tamis_model_eval(model, &seq, good, &three, 1, NULL, &one));
  CHECK(length_of(seq) == before + 3);
}

/* A document is read; its rows go to the end of another sequence of the same cache. */
static void splicing(void) {
  static int32_t ids[] = {1, 2, 3, 4};
  const int32_t four = 4;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  shape.layers = info.layers + 1;
  tamis_cache *other = NULL;
  tamis_seq *document = NULL, *target = NULL, *stranger = NULL;
  CHECK_OK(tamis_seq_create(cache, &document));
  CHECK_OK(tamis_seq_create(cache, &target));
  CHECK_OK(tamis_cache_create(ctx, &shape, &other));
  CHECK_OK(tamis_seq_create(other, &stranger));
  CHECK_OK(tamis_model_eval(model, &document, ids, &four, 1, NULL, NULL));
#define SPLICE(of, to, from, first, count)                                                                       \
  REFUSED(ARGUMENT, "tamis_model_splice", tamis_model_splice(of, to, from, first, count, 0));                     \
  REFUSED(ARGUMENT, "tamis_model_splice", tamis_model_splice(of, to, from, first, count, 1))
  SPLICE(NULL, target, document, 0, -1);
  SPLICE(model, NULL, document, 0, -1);
  SPLICE(model, target, NULL, 0, -1);
  SPLICE(model, document, document, 0, -1);
  SPLICE(model, stranger, document, 0, -1);
  SPLICE(model, target, document, -1, 1);
  SPLICE(model, target, document, 2, 3);
  SPLICE(model, target, document, 0, -2);
#undef SPLICE
  const int64_t rows[] = {-1, 3, INT64_MIN, INT64_MAX};
  for (int i = 0; i < 4; i++)
    REFUSED(ARGUMENT, "tamis_model_splice", tamis_model_splice(model, target, document, 1, 2, rows[i]));
  CHECK(length_of(target) == 0 && length_of(stranger) == 0 && length_of(document) == 4);
  CHECK_OK(tamis_model_splice(model, target, document, 1, 3, 0));
  CHECK_OK(tamis_model_splice(model, target, document, 0, -1, 4));
  CHECK_OK(tamis_model_splice(model, target, document, 0, -1, 2));
  CHECK(length_of(target) == 11);
  /* Without ids nothing can be computed. */
  CHECK_OK(tamis_seq_extend(document, NULL, 1));
  REFUSED(ARGUMENT, "tamis_model_splice", tamis_model_splice(model, target, document, 0, -1, 5));
  CHECK(length_of(target) == 11);
  tamis_seq_free(document);
  tamis_seq_free(target);
  tamis_seq_free(stranger);
  tamis_cache_free(other);
}

/* Structs of older and newer callers, as in growth.c. */
static void growth(void) {
  struct {
    tamis_eval_options known;
    unsigned char future[64];
  } options = {TAMIS_EVAL_OPTIONS_INIT, {0}};
  struct {
    tamis_model_info known;
    unsigned char future[64];
  } about;
  const int32_t ids[] = {1, 2, 3}, three = 3;
  const tamis_eval_options *newer = (const tamis_eval_options *)(const void *)&options;
  options.known.size = sizeof options;
  CHECK_OK(tamis_model_eval(model, &seq, ids, &three, 1, newer, NULL));
  options.future[63] = 1;
  REFUSED(UNSUPPORTED, "tamis_model_eval", tamis_model_eval(model, &seq, ids, &three, 1, newer, NULL));

  memset(&about, 0xFF, sizeof about);
  about.known.size = sizeof about;
  CHECK_OK(tamis_model_read_info(model, (tamis_model_info *)(void *)&about));
  CHECK(about.known.layers == info.layers && about.known.weight_bytes == info.weight_bytes);
  for (size_t i = 0; i < sizeof about.future; i++) CHECK(about.future[i] == 0);
  memset(&about, 0xFF, sizeof about);
  about.known.size = 16; /* of a caller who knows layers, vocabulary and hidden */
  CHECK_OK(tamis_model_read_info(model, (tamis_model_info *)(void *)&about));
  CHECK(about.known.hidden == info.hidden && about.known.heads == UINT32_MAX);
}

static void sampling(void) {
  const tamis_tensor one = rows(1), two = rows(2);
  int32_t token = -5;
#define SAMPLE(from, options, to) REFUSED(ARGUMENT, "tamis_sample", tamis_sample(ctx, from, options, 0, to))
  tamis_sampler_options options = TAMIS_SAMPLER_OPTIONS_INIT;
  SAMPLE(NULL, NULL, &token);
  SAMPLE(&two, NULL, &token);
  SAMPLE(&one, NULL, NULL);
  SAMPLE(&one, NULL, (int32_t *)(void *)odd);
  const float bad[] = {-1.0f, NAN, INFINITY};
  for (int i = 0; i < 3; i++) {
    options.temperature = bad[i];
    SAMPLE(&one, &options, &token);
  }
  options.temperature = 1;
  options.top_p = 1.5f;
  SAMPLE(&one, &options, &token);
  options.top_p = NAN;
  SAMPLE(&one, &options, &token);
  options.size = 3;
  SAMPLE(&one, &options, &token);
  float unlikely[] = {NAN, -INFINITY, NAN};
  const tamis_tensor nowhere = {unlikely, TAMIS_F32, 1, {3}, {0}, NULL, 0};
  const tamis_tensor integers = {unlikely, TAMIS_I32, 1, {3}, {0}, NULL, 0};
  SAMPLE(&nowhere, NULL, &token);
  SAMPLE(&integers, NULL, &token);
#undef SAMPLE
  CHECK(token == -5);
  CHECK_OK(tamis_sample(NULL, &one, NULL, 0, &token));
  CHECK(token >= 0 && (uint32_t)token < info.vocabulary);
}

static void chat(void) {
  int32_t tokens[4] = {-1, -1, -1, -1};
  size_t count = 77;
  const tamis_message good[] = {{.role = TAMIS_ROLE_USER, .content = "hi", .content_bytes = 2}};
#define CHAT(of, turns, number, to, room, where) \
  REFUSED(ARGUMENT, "tamis_model_chat", tamis_model_chat(of, turns, number, 1, to, room, where))
  CHAT(NULL, good, 1, tokens, 4, &count);
  CHAT(model, NULL, 1, tokens, 4, &count);
  CHAT(model, (const tamis_message *)(const void *)odd, 1, tokens, 4, &count);
  CHAT(model, good, 0, tokens, 4, &count);
  CHAT(model, good, SIZE_MAX, tokens, 4, &count);
  CHAT(model, good, 1, NULL, 4, &count);
  CHAT(model, good, 1, tokens, SIZE_MAX, &count);
  CHAT(model, good, 1, tokens, 4, NULL);
  tamis_message bad[] = {good[0], {.role = TAMIS_ROLE_ASSISTANT, .content = "yes", .content_bytes = 3}};
  CHAT(model, bad, 2, tokens, 4, &count); /* an answer without the reasoning that it follows from */
  bad[1].role = TAMIS_ROLE_TOOL;
  CHAT(model, bad, 2, tokens, 4, &count); /* a result without its call */
  bad[1].role = TAMIS_ROLE_USER;
  bad[1].tools = "[]";
  bad[1].tools_bytes = 2;
  CHAT(model, bad, 2, tokens, 4, &count); /* tools of a user */
  bad[1].role = TAMIS_ROLE_SYSTEM;
  bad[1].tools_bytes = SIZE_MAX;
  CHAT(model, bad, 2, tokens, 4, &count);
  bad[1].tools_bytes = 1;
  REFUSED(FORMAT, "tamis_model_chat", tamis_model_chat(model, bad, 2, 0, tokens, 4, &count));
  bad[1].tools = NULL;
  CHAT(model, bad, 2, tokens, 4, &count);
  bad[0].role = 5;
  CHAT(model, bad, 1, tokens, 4, &count);
  bad[0].role = -1;
  CHAT(model, bad, 1, tokens, 4, &count);
  bad[0].role = TAMIS_ROLE_USER;
  bad[0].content_bytes = SIZE_MAX;
  CHAT(model, bad, 1, tokens, 4, &count);
  bad[0].content = NULL;
  bad[0].content_bytes = 1;
  CHAT(model, bad, 1, tokens, 4, &count);
#undef CHAT
  CHECK(count == 77 && tokens[0] == -1);
  CHECK_OK(tamis_model_chat(model, good, 1, 0, tokens, 4, &count));
  CHECK(count > 4 && tokens[3] != -1);
}

static void parse(void) {
  static const char reply[] = "yes</think>2", broken[] = "\n\n<\xEF\xBD\x9C" "DSML\xEF\xBD\x9C" "function_calls>\n";
  static const char expected[] =
      "{\"role\": \"assistant\", \"content\": \"2\", \"reasoning_content\": \"yes\", \"tool_calls\": []}";
  char message[128] = "before";
  size_t needed = 77;
#define PARSE(status, of, text, bytes, thinking, to, room, where) \
  REFUSED(status, "tamis_model_parse", tamis_model_parse(of, text, bytes, thinking, to, room, where))
  PARSE(ARGUMENT, NULL, reply, 12, 1, message, sizeof message, &needed);
  PARSE(ARGUMENT, model, NULL, 12, 1, message, sizeof message, &needed);
  PARSE(ARGUMENT, model, reply, SIZE_MAX, 1, message, sizeof message, &needed);
  PARSE(ARGUMENT, model, reply, 12, 1, NULL, sizeof message, &needed);
  PARSE(ARGUMENT, model, reply, 12, 1, message, SIZE_MAX, &needed);
  PARSE(ARGUMENT, model, reply, 12, 1, message, sizeof message, (size_t *)(void *)odd);
  PARSE(FORMAT, model, reply, 12, 0, message, sizeof message, &needed); /* it did not have to think */
  PARSE(FORMAT, model, reply, 9, 1, message, sizeof message, &needed);
  PARSE(FORMAT, model, NULL, 0, 1, message, sizeof message, &needed);
  PARSE(FORMAT, model, broken, sizeof broken - 1, 0, message, sizeof message, &needed);
#undef PARSE
  CHECK(needed == 77 && strcmp(message, "before") == 0);
  CHECK_OK(tamis_model_parse(model, reply, 12, 1, NULL, 0, &needed));
  CHECK(needed == sizeof expected);
  CHECK_OK(tamis_model_parse(model, reply, 12, 1, message, 10, &needed));
  CHECK(needed == sizeof expected && strlen(message) == 9 && strncmp(message, expected, 9) == 0);
  CHECK_OK(tamis_model_parse(model, reply, 12, 1, message, sizeof message, NULL));
  CHECK(strcmp(message, expected) == 0);
}

/* ----------------------------------------------------------------------------------------------------- generation */

static int32_t after_two(void *user, const tamis_generated *generated) {
  CHECK(generated->text != NULL && strlen(generated->text) == generated->bytes);
  ++*(int *)user;
  return generated->tokens == 2;
}

static void generation(void) {
  const int32_t good[] = {1, 2, 3}, outside[] = {1, (int32_t)info.vocabulary};
  const int64_t before = length_of(seq);
  tamis_generation *made = (tamis_generation *)&odd;
  tamis_generated step = TAMIS_GENERATED_INIT;
  int calls = 0;
#define GENERATE(status, of, on, tokens, count, options)                                                     \
  do {                                                                                                       \
    REFUSED(status, "tamis_generation_create", tamis_generation_create(of, on, tokens, count, options, &made)); \
    REFUSED(status, "tamis_model_generate", tamis_model_generate(of, on, tokens, count, options, NULL, NULL, &step)); \
  } while (0)
  GENERATE(ARGUMENT, NULL, seq, good, 3, NULL);
  GENERATE(ARGUMENT, model, NULL, good, 3, NULL);
  GENERATE(ARGUMENT, model, seq, NULL, 3, NULL);
  GENERATE(ARGUMENT, model, seq, (const int32_t *)(const void *)odd, 3, NULL);
  GENERATE(ARGUMENT, model, seq, good, 0, NULL);
  GENERATE(ARGUMENT, model, seq, good, SIZE_MAX, NULL);
  GENERATE(ARGUMENT, model, seq, outside, 2, NULL);
  REFUSED(ARGUMENT, "tamis_generation_create", tamis_generation_create(model, seq, good, 3, NULL, NULL));
  REFUSED(ARGUMENT, "tamis_model_generate", tamis_model_generate(model, seq, good, 3, NULL, NULL, NULL, NULL));
  step.size = 3;
  REFUSED(ARGUMENT, "tamis_model_generate", tamis_model_generate(model, seq, good, 3, NULL, NULL, NULL, &step));
  step.size = sizeof step;

  static char longest[70000];
  memset(longest, 'a', sizeof longest - 1);
  const char *const bad_texts[] = {NULL, "", "\xff", longest};
  tamis_generate_options options = TAMIS_GENERATE_OPTIONS_INIT;
  for (int i = 0; i < 4; i++) {
    options.stop_texts = &bad_texts[i];
    options.stop_text_count = 1;
    GENERATE(ARGUMENT, model, seq, good, 3, &options);
  }
  options.stop_text_count = SIZE_MAX;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  options.stop_text_count = 1;
  options.stop_texts = NULL;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  options.stop_texts = (const char *const *)(const void *)odd;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  options.stop_text_count = 0;
  options.stop_token_count = 1;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  options.stop_token_count = SIZE_MAX;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  options.stop_token_count = 0;
  tamis_sampler_options sampler = TAMIS_SAMPLER_OPTIONS_INIT;
  tamis_eval_options eval = TAMIS_EVAL_OPTIONS_INIT;
  options.sampler = &sampler;
  options.eval = &eval;
  sampler.temperature = -1;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  sampler.temperature = 0;
  eval.all_logits = 1;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  eval.all_logits = 0;
  eval.attention = 7;
  GENERATE(ARGUMENT, model, seq, good, 3, &options);
  eval.attention = TAMIS_ATTENTION_SPARSE;
  eval.selected = stop;
  GENERATE(CANCELLED, model, seq, good, 3, &options);
  eval = (tamis_eval_options)TAMIS_EVAL_OPTIONS_INIT;
#undef GENERATE
  CHECK(made == (tamis_generation *)&odd && length_of(seq) == before && step.tokens == 0);

  options.ignore_end = 1;
  CHECK_OK(tamis_model_generate(model, seq, good, 3, &options, after_two, &calls, &step));
  CHECK(calls == 2 && step.tokens == 2 && step.stop == TAMIS_STOP_CALLER && step.text == NULL);
  CHECK(length_of(seq) == before + 4);
  options.max_tokens = 2;
  CHECK_OK(tamis_generation_create(model, seq, good, 3, &options, &made));
  REFUSED(ARGUMENT, "tamis_generation_next", tamis_generation_next(NULL, &step));
  REFUSED(ARGUMENT, "tamis_generation_next", tamis_generation_next(made, NULL));
  step.size = 12;
  REFUSED(ARGUMENT, "tamis_generation_next", tamis_generation_next(made, &step));
  step.size = sizeof step;
  CHECK_OK(tamis_generation_next(made, &step));
  CHECK(step.tokens == 1 && step.stop == TAMIS_STOP_NONE && strlen(step.text) == step.bytes);
  CHECK_OK(tamis_generation_next(made, &step));
  CHECK(step.stop == TAMIS_STOP_MAX_TOKENS);
  REFUSED(ARGUMENT, "tamis_generation_next", tamis_generation_next(made, &step));
  tamis_generation_free(made);
  tamis_generation_free(NULL);
}

/* --------------------------------------------------------------------------------------------------------- traces */

static void traces(void) {
  tamis_trace *made = (tamis_trace *)&odd, *trace = NULL;
  const int64_t spans[][4] = {{5, 5, 6, 7}, {-1, 3, 4, 5}, {0, 4, 3, 5}, {4, 6, 0, 2}, {3, 2, 4, 5}};
  const int64_t good[] = {0, 2, 2, 4000};
#define TRACE(on, bounds, count, layers, to) \
  REFUSED(ARGUMENT, "tamis_trace_create", tamis_trace_create(on, bounds, count, layers, to))
  for (int i = 0; i < 5; i++) TRACE(ctx, spans[i], 2, 0, &made);
  TRACE(NULL, good, 2, 0, &made);
  TRACE(ctx, NULL, 2, 0, &made);
  TRACE(ctx, (const int64_t *)(const void *)odd, 2, 0, &made);
  TRACE(ctx, good, 0, 0, &made);
  TRACE(ctx, good, SIZE_MAX, 0, &made);
  TRACE(ctx, good, 2, 0, NULL);
#undef TRACE
  CHECK(made == (tamis_trace *)&odd);

  /* Lines for another number of layers than the model has, and one trace for two sequences. */
  const int32_t ids[] = {1, 2}, one = 1;
  double mass[2 * 64] = {0};
  uint64_t tokens = 0;
  tamis_eval_options options = TAMIS_EVAL_OPTIONS_INIT;
  options.traces = &trace;
  CHECK_OK(tamis_trace_create(ctx, good, 2, info.layers + 1, &trace));
  const int64_t before = length_of(seq);
  REFUSED(ARGUMENT, "tamis_model_eval", tamis_model_eval(model, &seq, ids, &one, 1, &options, NULL));
  CHECK(length_of(seq) == before);
  tamis_trace_free(trace);
  CHECK_OK(tamis_trace_create(ctx, good, 2, info.layers, &trace));
  CHECK_OK(tamis_model_eval(model, &seq, ids, &one, 1, &options, NULL));
  CHECK_OK(tamis_trace_read(trace, mass, &tokens));
  CHECK(tokens == 1);
  for (uint32_t layer = 0; layer < info.layers && layer < 64; layer++)
    CHECK(fabs(mass[2 * layer] + mass[2 * layer + 1] - 1) < 1e-3);
  REFUSED(ARGUMENT, "tamis_trace_read", tamis_trace_read(NULL, mass, &tokens));
  REFUSED(ARGUMENT, "tamis_trace_read", tamis_trace_read(trace, (double *)(void *)odd, &tokens));
  REFUSED(ARGUMENT, "tamis_trace_clear", tamis_trace_clear(NULL));
  CHECK_OK(tamis_trace_clear(trace));
  CHECK_OK(tamis_trace_read(trace, NULL, &tokens));
  CHECK(tokens == 0);
  tamis_trace_free(trace);
  tamis_trace_free(NULL);
  tamis_model_free(NULL);
}

/* A context, a model, its cache and a sequence, freed in each of the 24 orders; a sequence needs no model. */
static void any_order(const char *directory) {
  for (int order = 0; order < 24; order++) {
    static heap allocator;
    tamis_ctx_options options = heap_options(&allocator, 1);
    tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
    tamis_ctx *owner = NULL;
    tamis_model *opened = NULL;
    tamis_cache *pages = NULL;
    tamis_seq *own = NULL;
    const int32_t ids[] = {1, 2, 3}, three = 3;
    CHECK_OK(tamis_ctx_create(&options, &owner));
    CHECK_OK(tamis_model_open(owner, directory, NULL, &opened));
    CHECK_OK(tamis_model_cache_options(opened, &shape));
    CHECK_OK(tamis_cache_create(owner, &shape, &pages));
    CHECK_OK(tamis_seq_create(pages, &own));

    int left[] = {0, 1, 2, 3}, code = order, has_model = 1, has_sequence = 1;
    for (int remaining = 4; remaining > 0; remaining--) {
      const int pick = code % remaining, object = left[pick];
      code /= remaining;
      left[pick] = left[remaining - 1];
      if (has_model && has_sequence) CHECK_OK(tamis_model_eval(opened, &own, ids, &three, 1, NULL, NULL));
      if (object == 0) tamis_ctx_free(owner);
      if (object == 1) tamis_model_free(opened), has_model = 0;
      if (object == 2) tamis_cache_free(pages);
      if (object == 3) tamis_seq_free(own), has_sequence = 0;
    }
    heap_expect_empty(&allocator);
    pthread_mutex_destroy(&allocator.lock);
  }
}

int main(int count, char **arguments) {
  if (count != 2) return 2;
  static int64_t aligned[32];
  odd = (char *)aligned + 1;
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  CHECK_OK(tamis_model_open(ctx, arguments[1], NULL, &model));
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  CHECK_OK(tamis_model_read_info(model, &info));
  CHECK_OK(tamis_model_cache_options(model, &shape));
  CHECK_OK(tamis_cache_create(ctx, &shape, &cache));
  CHECK_OK(tamis_seq_create(cache, &seq));
  logits = calloc(2 * (size_t)info.vocabulary, sizeof *logits);
  if (check_failures != 0 || logits == NULL) return 1;

  opening(arguments[1]);
  text();
  evaluation();
  splicing();
  growth();
  sampling();
  chat();
  parse();
  generation();
  traces();
  any_order(arguments[1]);
  free(logits);
  tamis_seq_free(seq);
  tamis_cache_free(cache);
  tamis_model_free(model);
  tamis_ctx_free(ctx);
  printf("%d calls refused\n", refusals);
  return checked();
}
