/* two_copies LIBRARY COPY: makes COPY from LIBRARY and uses both in one process, as two plug-ins with their own
 * copy would: separate runtimes, separate errors, the same bits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { KEYS = 4096, DIM = 64, HEADS = 8, K = 100, ROUNDS = 100 };

typedef struct copy {
  tamis_status (*create)(const tamis_ctx_options *, tamis_ctx **);
  void (*release)(tamis_ctx *);
  const char *(*last_error)(void);
  tamis_status (*select)(tamis_ctx *, const tamis_tensor *, const tamis_tensor *, const tamis_tensor *,
                         const tamis_select_options *, const tamis_tensor *, const tamis_tensor *);
  tamis_ctx *ctx;
  int32_t chosen[K];
} copy;

static float q[HEADS * DIM], w[HEADS], key[KEYS * DIM];

static int duplicate(const char *from, const char *to) {
  FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
  char block[65536];
  size_t bytes;
  int ok = in != NULL && out != NULL;
  while (ok && (bytes = fread(block, 1, sizeof block, in)) > 0) ok = fwrite(block, 1, bytes, out) == bytes;
  if (in != NULL) fclose(in);
  if (out != NULL) ok &= fclose(out) == 0;
  return ok;
}

static int open_copy(const char *path, copy *library) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 0;
  }
  *(void **)&library->create = dlsym(handle, "tamis_ctx_create");
  *(void **)&library->release = dlsym(handle, "tamis_ctx_free");
  *(void **)&library->last_error = dlsym(handle, "tamis_last_error");
  *(void **)&library->select = dlsym(handle, "tamis_select");
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  return library->create(&options, &library->ctx) == TAMIS_OK;
}

static tamis_status run(copy *library) {
  const tamis_tensor queries = {q, TAMIS_F32, 3, {1, HEADS, DIM}, {0}, NULL, 0};
  const tamis_tensor weights = {w, TAMIS_F32, 2, {1, HEADS}, {0}, NULL, 0};
  const tamis_tensor keys = {key, TAMIS_F32, 2, {KEYS, DIM}, {0}, NULL, 0};
  const tamis_tensor indices = {library->chosen, TAMIS_I32, 2, {1, K}, {0}, NULL, 0};
  return library->select(library->ctx, &queries, &weights, &keys, NULL, &indices, NULL);
}

int main(int argc, char **argv) {
  static copy first, second;
  if (argc != 3) return 2;
  CHECK(duplicate(argv[1], argv[2]));
  CHECK(open_copy(argv[1], &first) && open_copy(argv[2], &second));
  if (check_failures != 0) return checked();
  CHECK(first.create != second.create); /* two copies indeed */

  srand(1);
  for (int i = 0; i < HEADS * DIM; i++) q[i] = (float)(rand() % 17 - 8);
  for (int i = 0; i < HEADS; i++) w[i] = (float)(rand() % 5 - 2);
  for (int i = 0; i < KEYS * DIM; i++) key[i] = (float)(rand() % 17 - 8);
  for (int round = 0; round < ROUNDS; round++) {
    CHECK(run(&first) == TAMIS_OK && run(&second) == TAMIS_OK);
    CHECK(memcmp(first.chosen, second.chosen, sizeof first.chosen) == 0);
  }
  CHECK(first.select(first.ctx, NULL, NULL, NULL, NULL, NULL, NULL) < 0);
  CHECK(first.last_error()[0] != 0 && second.last_error()[0] == 0);
  first.release(first.ctx);
  CHECK(run(&second) == TAMIS_OK);
  second.release(second.ctx);
  remove(argv[2]);
  return checked();
}
