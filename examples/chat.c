/* A conversation with a DeepSeek-V3.2 checkpoint: questions from the arguments, or line by line from the standard
 * input; answers appear as they are made. Each turn is encoded from the beginning, and tamis_seq_match finds what an
 * earlier turn has evaluated already. At the end: what sparse attention read, and what dense attention would have.
 *
 *   cc examples/chat.c $(pkg-config --cflags --libs tamis) -o chat && ./chat DIRECTORY [QUESTION...]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tamis.h>

enum { TURNS = 64, ANSWER_TOKENS = 256, LINE = 4096 };

static void must(tamis_status status) {
  if (status == TAMIS_OK) return;
  fprintf(stderr, "%s\n", tamis_last_error());
  exit(1);
}

static void *room(size_t bytes) {
  void *memory = malloc(bytes);
  if (memory == NULL) exit(1);
  return memory;
}

typedef struct conversation {
  tamis_message message[2 * TURNS]; /* texts are ours */
  size_t count;
} conversation;

static void say(conversation *talk, int32_t role, const char *text, size_t bytes) {
  char *copy = room(bytes + 1);
  memcpy(copy, text, bytes);
  tamis_message *message = &talk->message[talk->count++];
  memset(message, 0, sizeof *message);
  message->role = role;
  message->content = copy;
  message->content_bytes = bytes;
}

/* The answer so far; printed as it grows. */
typedef struct answer {
  char *text;
  size_t bytes, capacity;
} answer;

static int32_t hear(void *user, const tamis_generated *step) {
  answer *so_far = user;
  if (so_far->bytes + step->bytes > so_far->capacity) {
    so_far->capacity = 2 * (so_far->bytes + step->bytes);
    so_far->text = realloc(so_far->text, so_far->capacity);
    if (so_far->text == NULL) exit(1);
  }
  memcpy(so_far->text + so_far->bytes, step->text, step->bytes);
  so_far->bytes += step->bytes;
  fwrite(step->text, 1, step->bytes, stdout);
  fflush(stdout);
  return 0;
}

/* Answers the last question. *seq is the conversation as far as it was evaluated. */
static void reply(tamis_model *model, tamis_cache *cache, tamis_seq **seq, conversation *talk) {
  size_t count = 0;
  must(tamis_model_chat(model, talk->message, talk->count, 0, NULL, 0, &count));
  int32_t *tokens = room(count * sizeof *tokens);
  must(tamis_model_chat(model, talk->message, talk->count, 0, tokens, count, &count));

  tamis_seq *known = NULL;
  int64_t matched = 0;
  must(tamis_seq_match(cache, tokens, count - 1, &known, &matched)); /* the last token's logits are wanted */
  tamis_seq_free(*seq);
  *seq = known;

  answer so_far = {NULL, 0, 0};
  tamis_generate_options options = TAMIS_GENERATE_OPTIONS_INIT;
  tamis_generated last = TAMIS_GENERATED_INIT;
  options.max_tokens = ANSWER_TOKENS;
  must(tamis_model_generate(model, *seq, tokens + matched, count - (size_t)matched, &options, hear, &so_far, &last));
  printf("\n[%llu tokens evaluated before, %llu read in %.2f s, %llu written in %.2f s]\n",
         (unsigned long long)matched, (unsigned long long)last.prompt_tokens, last.prefill_seconds,
         (unsigned long long)last.tokens, last.decode_seconds);
  say(talk, TAMIS_ROLE_ASSISTANT, so_far.text == NULL ? "" : so_far.text, so_far.bytes);
  free(so_far.text);
  free(tokens);
}

static void show_selection(tamis_ctx *ctx) {
  tamis_counters select = TAMIS_COUNTERS_INIT, attend = TAMIS_COUNTERS_INIT;
  must(tamis_ctx_counters(ctx, TAMIS_OP_SELECT, &select));
  must(tamis_ctx_counters(ctx, TAMIS_OP_ATTEND, &attend));
  printf("%llu keys scored, %llu selected; attend compared %llu, dense attention would have compared %llu\n",
         (unsigned long long)select.keys_scored, (unsigned long long)select.keys_selected,
         (unsigned long long)attend.keys_attended, (unsigned long long)attend.keys_dense);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: chat DIRECTORY [QUESTION...]\n");
    return 2;
  }
  tamis_ctx *ctx = NULL;
  tamis_model *model = NULL;
  tamis_cache *cache = NULL;
  tamis_seq *seq = NULL;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  char line[LINE];
  must(tamis_ctx_create(NULL, &ctx));
  must(tamis_model_open(ctx, argv[1], NULL, &model));
  must(tamis_model_describe(model, line, sizeof line, NULL));
  printf("%s\n", line);
  must(tamis_model_cache_options(model, &shape));
  must(tamis_cache_create(ctx, &shape, &cache));

  conversation talk = {.count = 0};
  for (int question = 2; talk.count + 2 <= 2 * TURNS; question++) {
    if (argc > 2 && question == argc) break;
    const char *text = argc > 2 ? argv[question] : (printf("> "), fflush(stdout), fgets(line, LINE, stdin));
    if (text == NULL) break;
    say(&talk, TAMIS_ROLE_USER, text, strcspn(text, "\n"));
    reply(model, cache, &seq, &talk);
  }
  show_selection(ctx);
  for (size_t i = 0; i < talk.count; i++) free((void *)(size_t)talk.message[i].content);
  tamis_seq_free(seq);
  tamis_cache_free(cache);
  tamis_model_free(model);
  tamis_ctx_free(ctx);
  return 0;
}
