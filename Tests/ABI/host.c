/* host LIBRARY: what loading and using the library does to its host: no signal handler, no alternate signal stack,
 * no output, and no thread before one is needed or after its context is freed. The library is not linked. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

enum { SIGNALS = 65, KEYS = 8192, DIM = 128, HEADS = 16, K = 64 };

static int count_threads(void) {
  DIR *tasks = opendir("/proc/self/task");
  int count = 0;
  for (struct dirent *entry; tasks != NULL && (entry = readdir(tasks)) != NULL;) count += entry->d_name[0] != '.';
  if (tasks != NULL) closedir(tasks);
  return count;
}

/* A joined thread may still be listed for a moment while the kernel buries it. */
static int threads_become(int wanted) {
  for (int i = 0; i < 1000 && count_threads() != wanted; i++) usleep(1000);
  return count_threads() == wanted;
}

typedef struct signals {
  struct sigaction action[SIGNALS];
  stack_t stack;
  sigset_t mask;
} signals;

static void read_signals(signals *state) {
  memset(state, 0, sizeof *state);
  for (int i = 1; i < SIGNALS; i++) sigaction(i, NULL, &state->action[i]);
  sigaltstack(NULL, &state->stack);
  pthread_sigmask(SIG_SETMASK, NULL, &state->mask);
}

static int same_signals(const signals *a, const signals *b) {
  for (int i = 1; i < SIGNALS; i++)
    if (a->action[i].sa_handler != b->action[i].sa_handler || a->action[i].sa_flags != b->action[i].sa_flags)
      return 0;
  return a->stack.ss_sp == b->stack.ss_sp && a->stack.ss_flags == b->stack.ss_flags &&
         memcmp(&a->mask, &b->mask, sizeof a->mask) == 0;
}

static float q[HEADS * DIM], w[HEADS], key[KEYS * DIM];
static int32_t chosen[K];

/* One select over KEYS keys through pointers got by dlsym. */
static void use(void *library) {
  tamis_status (*create)(const tamis_ctx_options *, tamis_ctx **);
  void (*release)(tamis_ctx *);
  tamis_status (*select_keys)(tamis_ctx *, const tamis_tensor *, const tamis_tensor *, const tamis_tensor *,
                              const tamis_select_options *, const tamis_tensor *, const tamis_tensor *);
  *(void **)&create = dlsym(library, "tamis_ctx_create");
  *(void **)&release = dlsym(library, "tamis_ctx_free");
  *(void **)&select_keys = dlsym(library, "tamis_select");
  CHECK(create != NULL && release != NULL && select_keys != NULL);
  if (create == NULL || release == NULL || select_keys == NULL) return;

  const int before = count_threads();
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 3;
  tamis_ctx *ctx = NULL;
  CHECK(create(&options, &ctx) == TAMIS_OK);
  CHECK(count_threads() == before);
  const tamis_tensor queries = {q, TAMIS_F32, 3, {1, HEADS, DIM}, {0}, NULL, 0};
  const tamis_tensor weights = {w, TAMIS_F32, 2, {1, HEADS}, {0}, NULL, 0};
  const tamis_tensor keys = {key, TAMIS_F32, 2, {KEYS, DIM}, {0}, NULL, 0};
  const tamis_tensor indices = {chosen, TAMIS_I32, 2, {1, K}, {0}, NULL, 0};
  CHECK(select_keys(ctx, &queries, &weights, &keys, NULL, &indices, NULL) == TAMIS_OK);
  CHECK(chosen[0] == 0 && chosen[K - 1] == K - 1); /* all scores are zero: ties go to the lower index */
  CHECK(select_keys(ctx, NULL, &weights, &keys, NULL, &indices, NULL) == TAMIS_E_ARGUMENT);
  release(ctx);
  CHECK(threads_become(before));
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  signals before, after;
  struct stat written;
  char path[] = "/tmp/tamis-host-XXXXXX";
  const int output = mkstemp(path), terminal = dup(STDERR_FILENO);
  CHECK(output >= 0 && terminal >= 0);
  unlink(path);
  read_signals(&before);
  const int threads = count_threads();

  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  const int opened = library != NULL, threads_opened = count_threads();
  read_signals(&after);
  if (opened) use(library);
  CHECK(fstat(output, &written) == 0);
  dup2(terminal, STDERR_FILENO);

  if (!opened) fprintf(stderr, "%s\n", dlerror());
  CHECK(opened);
  CHECK(threads_opened == threads);
  CHECK(same_signals(&before, &after));
  read_signals(&after);
  CHECK(same_signals(&before, &after));
  CHECK(written.st_size == 0);

  /* dlclose is legal at any time; the library stays mapped (docs/abi.md) and may be opened again. */
  if (opened) CHECK(dlclose(library) == 0);
  library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  CHECK(library != NULL);
  if (library != NULL) use(library);
  return checked();
}
