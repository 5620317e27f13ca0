/* TamisShims: the few things Swift cannot say, and nothing else.
 *
 * Each function tells why it must be C. There is no policy here, no allocation, and no state but three
 * thread-local variables. Everything is async-signal unsafe unless said otherwise and safe from any thread. */
#ifndef TAMIS_SHIMS_H
#define TAMIS_SHIMS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of a thread's error text, final zero included. */
#define TAMIS_SHIMS_ERROR_BYTES 512

/* This thread's last error text; never NULL, "" when there is none. C: Swift has no thread-local storage, and
 * the pointer must stay valid for a C caller after the call that failed. */
const char *tamis_shims_error_text(void);
/* The same memory to write: TAMIS_SHIMS_ERROR_BYTES bytes. */
char *tamis_shims_error_buffer(void);

/* The kernel table this thread is running between `enter` and `leave` (NULL: none), so that a nested call does
 * not take the outer one's tile configuration away. C: thread-local storage. */
const void *tamis_shims_entered(void);
void tamis_shims_set_entered(const void *table);

/* Whom this thread's calls are charged to (NULL: the context's own meter). C: thread-local storage. */
void *tamis_shims_charged(void);
void tamis_shims_set_charged(void *entry);

/* Sleeps while *word == expected, until woken; may return early. C: syscall() is variadic. */
void tamis_shims_futex_wait(const void *word, uint32_t expected);
/* Wakes at most `count` threads that sleep on word. */
void tamis_shims_futex_wake(const void *word, int32_t count);

/* Tells the core that this is a spin loop. C: an instruction without a Swift spelling. */
void tamis_shims_pause(void);

/* Processors this process may run on, at least 1. C: the CPU_* macros, and sets of any size. */
int32_t tamis_shims_affinity_count(void);

/* A file to write that has no name in the folder yet (O_TMPFILE); -1 where the file system has none. C: glibc shows
 * the flag under _GNU_SOURCE only. */
int32_t tamis_shims_open_nameless(const char *folder);
/* Asks for room for a file of `bytes`; 0 or the errno. C: glibc shows the function under _GNU_SOURCE only. */
int32_t tamis_shims_reserve(int32_t descriptor, int64_t bytes);

/* Names the calling thread. C: glibc shows the function under _GNU_SOURCE only. */
void tamis_shims_name_thread(const char *name);

/* Unicode 9's tables of normalisation, without those of Hangul, which are arithmetic. C: Swift has no constant tables;
 * an array of thousands would be built on the heap at its first use, where it cannot fail.
 * decompose: how many scalars stand for one, in whole (0: itself); they are at *parts. compatible 0: canonical forms only.
 * compose: the scalar that stands for two (0: none). */
uint32_t tamis_shims_decompose(uint32_t scalar, uint32_t compatible, const uint32_t **parts);
uint32_t tamis_shims_compose(uint32_t first, uint32_t second);
uint8_t tamis_shims_combining_class(uint32_t scalar);

#ifdef __cplusplus
}
#endif
#endif
