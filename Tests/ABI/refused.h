/* Calls that must be refused: with the expected status and one line of text that names the function. */
#ifndef TAMIS_TESTS_REFUSED_H
#define TAMIS_TESTS_REFUSED_H
#include <string.h>

#include "check.h"

static int refusals; /* counted by the main thread */

static inline void refused(const char *file, int line, tamis_status expected, const char *function,
                           tamis_status status) {
  const char *text = tamis_last_error();
  const size_t length = strlen(function);
  refusals++;
  if (status == expected && strncmp(text, function, length) == 0 && text[length] == ':' && strchr(text, '\n') == NULL)
    return;
  check_failures++;
  fprintf(stderr, "%s:%d: %s: %s, expected %s, text \"%s\"\n", file, line, function, tamis_status_name(status),
          tamis_status_name(expected), text);
}

#define REFUSED(status, function, call) refused(__FILE__, __LINE__, TAMIS_E_##status, function, call)
#endif
