/* fork after use: the child of a process whose context already has threads works on with the same context, makes
 * one of its own, and frees both; the parent does not notice. */
#define _GNU_SOURCE
#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

static work_result expected, result;

static void expect_same(tamis_ctx *ctx) {
  memset(&result, 0, sizeof result);
  CHECK_OK(work_run(ctx, &result));
  CHECK(memcmp(&result, &expected, sizeof result) == 0);
}

static int child(tamis_ctx *inherited) {
  alarm(60); /* a pool that waits for threads which did not survive the fork would hang */
  for (int i = 0; i < 20; i++) expect_same(inherited);
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 2;
  tamis_ctx *own = NULL;
  CHECK_OK(tamis_ctx_create(&options, &own));
  expect_same(own);
  tamis_ctx_free(own);
  tamis_ctx_free(inherited);
  return checked();
}

int main(void) {
  work_prepare();
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  options.threads = 4;
  tamis_ctx *ctx = NULL;
  CHECK_OK(tamis_ctx_create(&options, &ctx));
  for (int i = 0; i < 10; i++) CHECK_OK(work_run(ctx, &expected)); /* threads exist now */

  for (int generation = 0; generation < 3; generation++) {
    const pid_t pid = fork();
    if (pid == 0) _exit(child(ctx));
    int status = -1;
    expect_same(ctx); /* while the child runs */
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  expect_same(ctx);
  tamis_ctx_free(ctx);
  return checked();
}
