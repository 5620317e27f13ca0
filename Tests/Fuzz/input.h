/* The bytes of one fuzz input, taken from the front. Behind the last byte come zeros, and zero always means the
 * ordinary choice, so that a short input is a valid call. Numbers in tensors come from a generator that the input
 * seeds. It refuses to know the library. */
#ifndef TAMIS_FUZZ_INPUT_H
#define TAMIS_FUZZ_INPUT_H
#include <stddef.h>
#include <stdint.h>

static struct {
  const uint8_t *at, *end;
  uint32_t numbers;
} input;

static unsigned byte(void) { return input.at < input.end ? *input.at++ : 0; }

/* 0 ..< n. */
static unsigned pick(unsigned n) { return byte() % n; }

/* True for `in_256` of the 256 bytes, never for zero. */
static int chance(unsigned in_256) { return byte() >= 256 - in_256; }

static uint32_t random_bits(void) {
  input.numbers = input.numbers * 1664525u + 1013904223u;
  return input.numbers >> 8;
}

/* -1 ..< 1. */
static float random_unit(void) { return (float)random_bits() / 8388608.0f - 1.0f; }

/* What nobody should pass as a size, a count or a position. */
static int64_t absurd(void) {
  static const int64_t values[] = {-1,      0,         INT64_MAX, INT64_MIN, INT64_MAX / 4, INT64_MAX / 2 + 1,
                                   1 << 30, INT32_MAX, INT32_MIN, 1LL << 31, 1LL << 32,     1LL << 40};
  return values[pick(sizeof values / sizeof values[0])];
}
#endif
