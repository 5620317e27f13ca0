/* fuzz_model COUNT SEED TOKENIZER DIRECTORY...: copies a checkpoint with a tokenizer, damages config.json, the
 * safetensors file or tokenizer.json (bits, numbers, names, missing ends), opens the copy and uses whatever opens.
 * What must hold for every input: the process lives, the status is known, an error is one line that begins with the
 * function's name, a sequence is as long as successful calls made it, and all memory comes back. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ABI/heap.h"

enum { FILES = 3, PROMPT = 24 };
static const char *const names[FILES] = {"config.json", "model.safetensors", "tokenizer.json"};

static uint64_t state;
static uint32_t seed;

/* SplitMix64, the whole of the program's chance. */
static uint64_t draw(uint64_t below) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (z ^ (z >> 31)) % below;
}

typedef struct bytes {
  char *data;
  size_t count, capacity;
} bytes;

static bytes read_file(const char *path) {
  bytes all = {NULL, 0, 0};
  FILE *file = fopen(path, "rb");
  if (file == NULL || fseek(file, 0, SEEK_END) != 0) exit(2);
  all.count = (size_t)ftell(file);
  all.capacity = all.count + 64;
  all.data = malloc(all.capacity);
  rewind(file);
  if (all.data == NULL || fread(all.data, 1, all.count, file) != all.count) exit(2);
  fclose(file);
  return all;
}

static void write_file(const char *path, const bytes *all) {
  FILE *file = fopen(path, "wb");
  if (file == NULL || fwrite(all->data, 1, all->count, file) != all->count || fclose(file) != 0) exit(2);
}

/* Replaces the number that stands at or behind a place, where there is one. */
static void change_number(bytes *all, size_t from, size_t end) {
  static const char *const numbers[] = {"0", "-1", "1", "2", "3", "64", "65537", "1e3", "0.5", "2147483648",
                                        "1048576", "4294967296", "9223372036854775807", "1e308", "[]", "null"};
  while (from < end && (all->data[from] < '0' || all->data[from] > '9')) from++;
  size_t length = 0;
  while (from + length < end && all->data[from + length] >= '0' && all->data[from + length] <= '9') length++;
  const char *number = numbers[draw(sizeof numbers / sizeof numbers[0])];
  if (length == 0 || all->count - length + strlen(number) > all->capacity) return;
  memmove(all->data + from + strlen(number), all->data + from + length, all->count - from - length);
  memcpy(all->data + from, number, strlen(number));
  all->count += strlen(number) - length;
}

static void damage(bytes *all, int is_tensors) {
  /* Of a safetensors file mostly the header, which is read; a damaged weight is a number like any other. */
  uint64_t header = 0;
  if (is_tensors) memcpy(&header, all->data, 8);
  const size_t end = is_tensors && draw(3) != 0 ? (size_t)header + 8 : all->count;
  for (uint64_t changes = 1 + draw(3); changes > 0 && all->count > 0; changes--) {
    const size_t at = (size_t)draw(end < all->count ? end : all->count);
    switch (draw(5)) {
      case 0: all->data[at] ^= (char)(1 << draw(8)); break;
      case 1: all->data[at] = "\"{}[]:,\\ \n\0\xff""0e-"[draw(15)]; break;
      case 2: all->count = draw(4) == 0 ? at : all->count; break;
      default: change_number(all, at, end < all->count ? end : all->count); break;
    }
  }
}

static void returned(const char *function, tamis_status status) {
  const char *text = tamis_last_error();
  const size_t length = strlen(function);
  const int known = status <= 0 && status > TAMIS_E_INTERNAL;
  if (known && (status == 0 ? text[0] == 0 : strncmp(text, function, length) == 0 && text[length] == ':') &&
      strchr(text, '\n') == NULL)
    return;
  check_failures++;
  fprintf(stderr, "seed %u: %s: %s, text \"%s\"\n", seed, function, tamis_status_name(status), text);
}

#define CALL(function, ...) (called = function(__VA_ARGS__), returned(#function, called), called)

/* A reply of marks and ends of marks in any order, now and then a well-formed one. */
static void parse(tamis_model *model) {
#define DSML "\xEF\xBD\x9C" "DSML" "\xEF\xBD\x9C"
  static const char *const part[] = {
      "\n\n<" DSML "function_calls", ">\n", "<" DSML "invoke", " name=\"f\"", ">\n", "<" DSML "parameter",
      " name=\"x\" string=\"", "true\">", "a\"\xff\\", "</" DSML "parameter", ">\n", "<" DSML "parameter",
      " name=\"y\" string=\"", "false\">", "[1, {}]", "</" DSML "parameter", ">\n", "</" DSML "invoke", ">\n", "</" DSML "function_calls>", "", "</think>", "<think>",
      ("<\xEF\xBD\x9C" "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>")};
  const uint64_t parts = sizeof part / sizeof part[0];
  const uint32_t thinking = (uint32_t)draw(2);
  const uint64_t chance = draw(6); /* of a change: 0: none */
  char text[4096] = "", message[4096];
  size_t needed = 0;
  tamis_status called;
  if (thinking) strcat(text, part[21]);
  for (uint64_t i = 0, added = 0; i < 21 && added < 40; i++, added++) {
    if (chance != 0 && draw(12) < chance) i = draw(parts);
    strcat(text, part[i]);
  }
  const size_t bytes = strlen(text) - (chance == 5 ? (size_t)draw(strlen(text) + 1) : 0);
  if (CALL(tamis_model_parse, model, text, bytes, thinking, message, sizeof message, &needed) == TAMIS_OK)
    CHECK(needed <= sizeof message && strlen(message) + 1 == needed && message[0] == '{');
  else
    CHECK(chance != 0 || called == TAMIS_E_UNSUPPORTED || called == TAMIS_E_MEMORY || called == TAMIS_E_BUDGET);
}

static void use(tamis_ctx *ctx, tamis_model *model) {
  static const char text[] = "def f(x):\n  return x + 1  # \xF0\x9F\xA6\x80 \xff <|eos|>";
  tamis_status called;
  tamis_model_info info = TAMIS_MODEL_INFO_INIT;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  int32_t tokens[256], prompt[PROMPT];
  size_t count = 0;
  char back[1024];
  if (CALL(tamis_model_read_info, model, &info) != TAMIS_OK) return;
  if (CALL(tamis_model_tokenize, model, text, sizeof text - 1, NULL, tokens, 256, &count) == TAMIS_OK && count <= 256)
    CALL(tamis_model_detokenize, model, tokens, count, 0, back, sizeof back, &count);
  for (int i = 0; i < 8; i++) parse(model);
  for (int i = 0; i < PROMPT; i++) prompt[i] = (int32_t)draw(info.vocabulary);

  tamis_cache *cache = NULL;
  tamis_seq *seq = NULL;
  if (CALL(tamis_model_cache_options, model, &shape) == TAMIS_OK &&
      CALL(tamis_cache_create, ctx, &shape, &cache) == TAMIS_OK && CALL(tamis_seq_create, cache, &seq) == TAMIS_OK) {
    const int32_t some = PROMPT;
    const tamis_status first = CALL(tamis_model_eval, model, &seq, prompt, &some, 1, NULL, NULL);
    tamis_generate_options options = TAMIS_GENERATE_OPTIONS_INIT;
    tamis_generated last = TAMIS_GENERATED_INIT;
    int64_t length = -1;
    options.max_tokens = 3;
    const tamis_status second = CALL(tamis_model_generate, model, seq, prompt, 2, &options, NULL, NULL, &last);
    CALL(tamis_seq_length, seq, &length);
    CHECK(second != TAMIS_OK || length == (first == TAMIS_OK ? PROMPT : 0) + 1 + (int64_t)last.tokens);
  }
  tamis_seq_free(seq);
  tamis_cache_free(cache);
}

static int open_and_use(const char *folder) {
  static heap allocator;
  tamis_status called;
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  tamis_ctx *ctx = NULL;
  tamis_model *model = NULL;
  memset(&allocator, 0, sizeof allocator);
  pthread_mutex_init(&allocator.lock, NULL);
  options.threads = 1;
  options.max_bytes = 64 << 20;
  options.alloc = heap_alloc;
  options.release = heap_release;
  options.user = &allocator;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  const int opened = CALL(tamis_model_open, ctx, folder, NULL, &model) == TAMIS_OK;
  CHECK(opened == (model != NULL));
  if (opened) use(ctx, model);
  tamis_model_free(model);
  tamis_ctx_free(ctx);
  heap_expect_empty(&allocator);
  pthread_mutex_destroy(&allocator.lock);
  return opened;
}

int main(int count, char **arguments) {
  if (count < 5) return 2;
  char folder[] = "/tmp/tamis-fuzz-XXXXXX", path[4096];
  if (mkdtemp(folder) == NULL) return 2;
  int opened = 0;
  const uint32_t inputs = (uint32_t)strtoul(arguments[1], NULL, 10), first = (uint32_t)strtoul(arguments[2], NULL, 10);
  for (seed = first; seed < first + inputs && check_failures == 0; seed++) {
    state = seed;
    const char *source = arguments[4 + draw((uint64_t)count - 4)];
    const uint64_t damaged = draw(FILES), also = draw(4) == 0 ? draw(FILES) : damaged;
    for (unsigned i = 0; i < FILES; i++) {
      snprintf(path, sizeof path, "%s/%s", source, names[i]);
      bytes all = read_file(i == 2 ? arguments[3] : path);
      if (i == damaged || i == also) damage(&all, i == 1);
      snprintf(path, sizeof path, "%s/%s", folder, names[i]);
      write_file(path, &all);
      free(all.data);
    }
    opened += open_and_use(folder);
    if (check_failures != 0) fprintf(stderr, "with seed %u\n", seed);
  }
  for (int i = 0; i < FILES && check_failures == 0; i++) { /* a failing input stays to be looked at */
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    unlink(path);
  }
  rmdir(folder);
  printf("%u inputs, %d of them opened\n", inputs, opened);
  CHECK(opened > 0 && (uint32_t)opened < inputs);
  return checked();
}
