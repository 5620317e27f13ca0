/* Cache files under attack: a process that is killed in the middle of a save, several that save the same document, a
 * full disk, a limit on file sizes. Whatever happens, a path holds one whole document: the old one or a new one.
 *   abi_files [KILLS]: how many processes to kill (60; more for a long run by hand). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { TOKENS = 2000, DIM = 64 };

static float rows[TOKENS * DIM];
static int32_t tokens[TOKENS];
static char folder[] = "/tmp/tamis-files-XXXXXX";
static char path[64];
static tamis_ctx *ctx;
static tamis_cache *cache;

/* Document number n: 1000 + n tokens, all rows are n. */
static tamis_seq *document(int n) {
  const int count = 1000 + n;
  for (int i = 0; i < count * DIM; i++) rows[i] = (float)n;
  for (int i = 0; i < count; i++) tokens[i] = n;
  const tamis_tensor values = {rows, TAMIS_F32, 2, {count, DIM}, {0}, NULL, 0};
  tamis_seq *seq = NULL;
  CHECK_OK(tamis_seq_create(cache, &seq));
  CHECK_OK(tamis_seq_extend(seq, tokens, (size_t)count));
  CHECK_OK(tamis_seq_write(seq, 0, 0, &values, NULL, &values));
  return seq;
}

/* The number of the document at `path`, every row of it; -1 when it does not open or is a mixture. */
static int number_at_path(void) {
  tamis_seq *seq = NULL;
  int64_t count = 0;
  if (tamis_seq_open(cache, path, "m", 1, NULL, &seq) != TAMIS_OK) {
    fprintf(stderr, "%s\n", tamis_last_error());
    return -1;
  }
  CHECK_OK(tamis_seq_length(seq, &count));
  const tamis_tensor values = {rows, TAMIS_F32, 2, {count, DIM}, {0}, NULL, 0};
  CHECK_OK(tamis_seq_read(seq, 0, 0, &values, NULL, NULL));
  const int n = (int)count - 1000;
  int64_t different = 0;
  for (int64_t i = 0; i < count * DIM; i++) different += rows[i] != (float)n;
  CHECK(different == 0);
  tamis_seq_free(seq);
  return different == 0 ? n : -1;
}

static int names_in_folder(void) {
  int count = 0;
  DIR *listing = opendir(folder);
  for (struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;) count += entry->d_name[0] != '.';
  if (listing != NULL) closedir(listing);
  return count;
}

static void kills(int count) {
  tamis_seq *const both[] = {document(1), document(2)};
  CHECK_OK(tamis_seq_save(both[0], path, "m", 1, -1));
  uint32_t state = 99;
  int seen[3] = {0};
  for (int round = 0; round < count && check_failures == 0; round++) {
    const pid_t child = fork();
    if (child == 0) {
      for (int i = 0;; i++)
        if (tamis_seq_save(both[i % 2], path, "m", 1, -1) != TAMIS_OK) _exit(1);
    }
    state = state * 1664525u + 1013904223u;
    usleep(500 + (state >> 8) % 20000);
    CHECK(kill(child, SIGKILL) == 0);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    const int n = number_at_path();
    CHECK(n == 1 || n == 2);
    if (n > 0) seen[n]++;
  }
  /* Names without a document can only come from the moment between linkat and rename. */
  printf("%d saves killed: the old or the new file (%d, %d), %d names left over\n", count, seen[1], seen[2],
         names_in_folder() - 1);
  tamis_seq_free(both[0]);
  tamis_seq_free(both[1]);
}

static void several_processes(void) {
  enum { PROCESSES = 4, SAVES = 15 };
  tamis_seq *documents[PROCESSES];
  pid_t children[PROCESSES];
  for (int i = 0; i < PROCESSES; i++) documents[i] = document(i + 1);
  CHECK_OK(tamis_seq_save(documents[0], path, "m", 1, -1));
  for (int i = 0; i < PROCESSES; i++) {
    children[i] = fork();
    if (children[i] == 0) {
      for (int save = 0; save < SAVES; save++)
        if (tamis_seq_save(documents[i], path, "m", 1, -1) != TAMIS_OK) _exit(1);
      _exit(0);
    }
  }
  for (int look = 0; look < 40; look++) CHECK(number_at_path() >= 1);
  for (int i = 0; i < PROCESSES; i++) {
    int status = 0;
    CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    tamis_seq_free(documents[i]);
  }
  CHECK(number_at_path() >= 1);
}

/* In a child: the limit is the process's. SIGXFSZ would end it. */
static void limited_file_size(void) {
  tamis_seq *small = document(0), *large = document(900);
  CHECK_OK(tamis_seq_save(small, path, "m", 1, 100));
  const pid_t child = fork();
  if (child == 0) {
    const struct rlimit limit = {100000, 100000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
    const tamis_status status = tamis_seq_save(large, path, "m", 1, -1);
    _exit(status == TAMIS_E_IO && strstr(tamis_last_error(), "File too large") != NULL ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  tamis_seq *seq = NULL;
  CHECK_OK(tamis_seq_open(cache, path, "m", 1, NULL, &seq));
  tamis_seq_free(seq);
  tamis_seq_free(small);
  tamis_seq_free(large);
}

/* On a disk of 512 KiB of its own, where the process may make one. */
static void full_disk(void) {
  tamis_seq *small = document(0), *large = document(900);
  const pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tamis", folder, "tmpfs", 0, "size=512k") != 0)
      _exit(3);
    if (tamis_seq_save(small, path, "m", 1, 1000) != TAMIS_OK) _exit(1);
    const tamis_status status = tamis_seq_save(large, path, "m", 1, -1);
    const int refused = status == TAMIS_E_IO && strstr(tamis_last_error(), "No space left") != NULL;
    _exit(refused && names_in_folder() == 1 && number_at_path() == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  if (WEXITSTATUS(status) == 3) printf("full disk: skipped, no right to mount one\n");
  CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3);
  tamis_seq_free(small);
  tamis_seq_free(large);
}

int main(int count, char **arguments) {
  if (mkdtemp(folder) == NULL) return 1;
  snprintf(path, sizeof path, "%s/document", folder);
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 1;
  tamis_cache_options shape = TAMIS_CACHE_OPTIONS_INIT;
  shape.key_dim = shape.value_dim = shape.index_dim = DIM;
  shape.kv_dtype = TAMIS_F32;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  CHECK_OK(tamis_cache_create(ctx, &shape, &cache));
  kills(count > 1 ? atoi(arguments[1]) : 60);
  several_processes();
  limited_file_size();
  full_disk();
  tamis_cache_free(cache);
  tamis_ctx_free(ctx);
  DIR *listing = opendir(folder);
  for (struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;)
    if (entry->d_name[0] != '.') unlinkat(dirfd(listing), entry->d_name, 0);
  if (listing != NULL) closedir(listing);
  rmdir(folder);
  return checked();
}
