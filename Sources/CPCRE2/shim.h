/* PCRE2 with 8-bit code units, for the splits of tokenizer.json (TamisFormats/Regex.swift).
 * It must be C: pcre2.h builds its function names from this macro. The module map links the static archive
 * (libpcre2-8.a), so that the shared library has no further dependency; --exclude-libs or the version script
 * keeps PCRE2's symbols inside. */
#ifndef TAMIS_CPCRE2_SHIM_H
#define TAMIS_CPCRE2_SHIM_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif
