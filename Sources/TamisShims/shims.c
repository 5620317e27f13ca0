/* The shims of TamisShims.h, and the one replacement of a Swift runtime function. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "TamisShims.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Thread_local char error_text[TAMIS_SHIMS_ERROR_BYTES];
static _Thread_local const void *entered;
static _Thread_local void *charged;

const char *tamis_shims_error_text(void) { return error_text; }
char *tamis_shims_error_buffer(void) { return error_text; }

const void *tamis_shims_entered(void) { return entered; }
void tamis_shims_set_entered(const void *table) { entered = table; }

void *tamis_shims_charged(void) { return charged; }
void tamis_shims_set_charged(void *entry) { charged = entry; }

void tamis_shims_futex_wait(const void *word, uint32_t expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

void tamis_shims_futex_wake(const void *word, int32_t count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

void tamis_shims_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

int32_t tamis_shims_affinity_count(void) {
  /* 8,192 processors: the most Linux is built for. A fixed cpu_set_t fails beyond 1,024. */
  unsigned long words[8192 / (8 * sizeof(unsigned long))] = {0};
  if (sched_getaffinity(0, sizeof words, (cpu_set_t *)words) != 0) return 1;
  const int count = CPU_COUNT_S(sizeof words, (cpu_set_t *)words);
  return count > 0 ? count : 1;
}

int32_t tamis_shims_open_nameless(const char *folder) {
  return open(folder, O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
}

int32_t tamis_shims_reserve(int32_t descriptor, int64_t bytes) {
  return fallocate(descriptor, 0, 0, bytes) == 0 ? 0 : errno;
}

void tamis_shims_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

/* libtamis.so is linked with --wrap=_swift_installCrashHandler: a library must not change its host's signal
 * handlers, which the Swift runtime would do at load when it finds a backtracer beside itself. */
int __wrap__swift_installCrashHandler(void);
int __wrap__swift_installCrashHandler(void) { return 0; }
