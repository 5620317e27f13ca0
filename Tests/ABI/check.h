/* The whole test framework of the C programs here: CHECK says where it failed and goes on, `return checked()` ends
 * main. It refuses to be more. */
#ifndef TAMIS_TESTS_CHECK_H
#define TAMIS_TESTS_CHECK_H
#include <stdio.h>
#include <tamis.h>

static int check_failures; /* counted by the main thread, or under the caller's own lock */

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      check_failures++;                                                                                      \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                        \
    }                                                                                                        \
  } while (0)

#define CHECK_OK(call)                                                                                       \
  do {                                                                                                       \
    const tamis_status check_status = (call);                                                                \
    if (check_status != TAMIS_OK) {                                                                          \
      check_failures++;                                                                                      \
      fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #call, tamis_status_name(check_status),    \
              tamis_last_error());                                                                           \
    }                                                                                                        \
  } while (0)

static inline int checked(void) {
  if (check_failures != 0) fprintf(stderr, "%d checks failed\n", check_failures);
  return check_failures != 0;
}
#endif
