/* The arithmetic limit of plain C on this build's baseline: the same loops as portable/index.c on data that stays
 * in registers or the first cache level. */
#include "../internal.h"

#include <string.h>

enum { WIDTH = 64 };

static uint64_t peak_int16(uint64_t iterations) {
  int16_t a[WIDTH], b[WIDTH];
  int32_t sum[4] = {0};
  for (int i = 0; i < WIDTH; i++) a[i] = (int16_t)(i - 7), b[i] = (int16_t)(3 - i);
  for (uint64_t round = 0; round < iterations; round++) {
    int32_t dot = 0;
    for (int i = 0; i < WIDTH; i++) dot += (int32_t)a[i] * b[i];
    sum[round & 3] += dot & 1;
    __asm__ volatile("" : : "r"(a), "r"(b), "r"(sum) : "memory"); /* the data may have changed: multiply again */
  }
  return iterations * WIDTH;
}

static uint64_t peak_float(uint64_t iterations) {
  float sum[WIDTH] = {0}, factor[WIDTH];
  for (int i = 0; i < WIDTH; i++) factor[i] = 0.5f + (float)i / WIDTH;
  for (uint64_t round = 0; round < iterations; round++) {
    const float key = (float)(round & 1);
    for (int i = 0; i < WIDTH; i++) sum[i] += factor[i] * key;
  }
  __asm__ volatile("" : : "r"(sum) : "memory");
  return iterations * WIDTH;
}

uint64_t tk_portable_peak(int32_t type, uint64_t iterations) {
  return type == TK_I8 ? peak_int16(iterations) : peak_float(iterations);
}
