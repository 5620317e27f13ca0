/* An allocator for tamis_ctx_options that counts, checks what it gets back, and fails when told to. */
#ifndef TAMIS_TESTS_HEAP_H
#define TAMIS_TESTS_HEAP_H
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { HEAP_BLOCKS = 4096 };

typedef struct heap {
  pthread_mutex_t lock;
  uint64_t calls, live_bytes, failed;
  uint64_t fail_at; /* the call that gets NULL, counted from 1; 0: none */
  int fail_after;   /* non-zero: every later call gets NULL too         */
  int misused;      /* releases of unknown memory or with another size, odd requests */
  struct {
    void *memory;
    size_t bytes;
  } block[HEAP_BLOCKS];
} heap;

static inline void *heap_alloc(void *user, size_t bytes, size_t alignment) {
  heap *self = user;
  void *memory = NULL;
  pthread_mutex_lock(&self->lock);
  self->calls++;
  const int fails =
      self->fail_at != 0 && (self->calls == self->fail_at || (self->fail_after && self->calls > self->fail_at));
  self->failed += fails;
  self->misused += bytes == 0 || alignment == 0 || alignment > 4096 || (alignment & (alignment - 1)) != 0;
  if (!fails && posix_memalign(&memory, alignment < sizeof(void *) ? sizeof(void *) : alignment, bytes) == 0) {
    int slot = 0;
    while (slot < HEAP_BLOCKS && self->block[slot].memory != NULL) slot++;
    if (slot == HEAP_BLOCKS) abort(); /* the test needs a larger table */
    self->block[slot].memory = memory;
    self->block[slot].bytes = bytes;
    self->live_bytes += bytes;
  }
  pthread_mutex_unlock(&self->lock);
  return memory;
}

static inline void heap_release(void *user, void *memory, size_t bytes) {
  heap *self = user;
  pthread_mutex_lock(&self->lock);
  int slot = 0;
  while (slot < HEAP_BLOCKS && self->block[slot].memory != memory) slot++;
  if (memory == NULL || slot == HEAP_BLOCKS || self->block[slot].bytes != bytes) {
    self->misused++;
  } else {
    self->block[slot].memory = NULL;
    self->live_bytes -= bytes;
    free(memory);
  }
  pthread_mutex_unlock(&self->lock);
}

/* Options of a context on a new one. */
static inline tamis_ctx_options heap_options(heap *self, uint32_t threads) {
  tamis_ctx_options options = TAMIS_CTX_OPTIONS_INIT;
  memset(self, 0, sizeof *self);
  pthread_mutex_init(&self->lock, NULL);
  options.threads = threads;
  options.alloc = heap_alloc;
  options.release = heap_release;
  options.user = self;
  return options;
}

/* After everything is freed: all memory came back, as it was handed out. */
static inline void heap_expect_empty(heap *self) {
  CHECK(self->live_bytes == 0);
  CHECK(self->misused == 0);
}
#endif
