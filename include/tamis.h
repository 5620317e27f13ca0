/* tamis.h - DeepSeek Sparse Attention on CPUs, behind one C header.
 *
 * A tamis is a cook's sieve. For every query a lightning indexer scores all past tokens cheaply (index), the best
 * k of them are chosen exactly (select), and attention runs over those alone (attend). Counters say what was
 * computed and what a dense attention would have computed.
 *
 * Contents:  1. version and errors   2. context   3. tensors and operators   4. paged cache   5. counters
 *            6. model
 *            7. cost meter
 *            8. indexer
 *            9. scheduler
 *
 * Rules, true of every function
 *   - Functions that can fail return tamis_status: TAMIS_OK (0) or a negative error; tamis_last_error() then holds
 *     one line: "function: what was wrong, what was expected". A failed call changes nothing the caller can see,
 *     except that output buffers may hold partial data after TAMIS_E_CANCELLED and TAMIS_E_MEMORY.
 *   - Arguments come in this order: the object, then inputs (const), then outputs.
 *   - The library never prints, exits, traps on bad input, reads the environment, changes signals or starts a
 *     thread before a call needs one.
 *   - *_create, *_fork, *_match and *_open make an object that you must *_free. *_free(NULL) does nothing. Objects may be
 *     freed in any order: a sequence keeps its cache alive, a cache its context.
 *   - Memory that you pass in stays yours and is used only during the call.
 *   - A context and a cache may be used from many threads at once; a sequence from one at a time (a second call
 *     meanwhile is refused with TAMIS_E_BUSY, never corrupted). Callbacks run on the calling thread, `parallel`
 *     tasks wherever the host runs them.
 *   - Option structs begin with `size` (use the _INIT macro); zero means "default" in every other field; a NULL
 *     options pointer means all defaults. New fields are only ever appended.
 *   - Same inputs, same library, same instruction set: the same bits, whatever the number of threads, the batch a
 *     query is in, or the layout of the cache.
 *   - Sizes are in elements unless a name says bytes. Everything here exists since 0.1 unless it says otherwise.
 *
 * Paper: DeepSeek-AI, "DeepSeek-V3.2-Exp: Boosting Long-Context Efficiency with DeepSeek Sparse Attention", 2025.
 */
#ifndef TAMIS_H
#define TAMIS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(TAMIS_STATIC)
#define TAMIS_API __attribute__((visibility("default")))
#else
#define TAMIS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ============================================ 1. Version and errors ============================================ */

#define TAMIS_VERSION_MAJOR 0
#define TAMIS_VERSION_MINOR 1
#define TAMIS_VERSION_PATCH 0

typedef int32_t tamis_status;
enum {
  TAMIS_OK = 0,
  TAMIS_E_ARGUMENT = -1,    /* NULL, wrong dtype, rank, shape, stride, range or overlap                    */
  TAMIS_E_MEMORY = -2,      /* an allocation failed                                                        */
  TAMIS_E_FULL = -3,        /* the cache has no room for more tokens                                       */
  TAMIS_E_IO = -4,          /* the operating system refused a file operation                               */
  TAMIS_E_FORMAT = -5,      /* a file is not what it should be                                             */
  TAMIS_E_UNSUPPORTED = -6, /* well formed, but not something this version does                            */
  TAMIS_E_CANCELLED = -7,   /* tamis_ctx_cancel was called                                                 */
  TAMIS_E_BUDGET = -8,      /* the context's max_bytes or a meter's limit does not allow it                */
  TAMIS_E_BUSY = -9,        /* the object is in use by another thread                                      */
  TAMIS_E_INTERNAL = -10    /* a defect of the library; please report it                                   */
};

/* major << 16 | minor << 8 | patch of the library in use (the macros above: of this header). */
TAMIS_API uint32_t tamis_version(void);

/* "TAMIS_E_ARGUMENT" and so on; "unknown status" for other numbers. Static text, never NULL. */
TAMIS_API const char *tamis_status_name(tamis_status status);

/* The last error of the calling thread, one line of UTF-8, "" when its latest call succeeded. Never NULL. The text
 * is valid until the thread's next call into the library. */
TAMIS_API const char *tamis_last_error(void);

/* ================================================= 2. Context ================================================== *
 * Threads, memory, instruction set, log and counters. Making one is cheap (microseconds), and a process may have
 * several. Operators also accept a NULL context: then they run on the calling thread, unmetered, with malloc.      */

typedef struct tamis_ctx tamis_ctx;

enum { TAMIS_LOG_ERROR = 1, TAMIS_LOG_WARNING = 2, TAMIS_LOG_INFO = 3 };

typedef struct tamis_ctx_options {
  uint32_t size;      /* sizeof(tamis_ctx_options) */
  uint32_t threads;   /* most threads one call uses, the caller's included. 0: what CPU affinity and the cgroup's
                         quota allow; 1: no thread is ever made                                                */
  uint64_t max_bytes; /* most bytes allocated through this context at any time; 0: no limit                    */
  const char *isa;    /* cap on the instruction set: "portable" "avx2" "avxvnni" "avx512" "amx" on x86-64,
                         "portable" "neon" on ARM; NULL: the best this machine has. "amx" (also when chosen as the
                         best) asks the Linux kernel once for tile registers, a per-process permission; name
                         "avx512" to avoid that                                                                */
  /* All memory proportional to data. Both or neither; NULL: malloc. `alloc` returns memory aligned to `alignment`
     (a power of two, at most 4096) or NULL. They may be called from any thread that calls the library.        */
  void *(*alloc)(void *user, size_t bytes, size_t alignment);
  void (*release)(void *user, void *memory, size_t bytes);
  /* The host's own threads: must call task(arg, i) once for every i in 0..count-1, on any threads, and return when
     all have returned. NULL: the library's own small pool, made when first needed.                            */
  void (*parallel)(void *user, size_t count, void (*task)(void *arg, size_t index), void *arg);
  /* NULL: silent. Called on the thread that calls the library. */
  void (*log)(void *user, int32_t level, const char *message);
  void *user; /* passed to the four callbacks */
} tamis_ctx_options;
#define TAMIS_CTX_OPTIONS_INIT { sizeof(tamis_ctx_options), 0, 0, NULL, NULL, NULL, NULL, NULL, NULL }

/* Errors: E_ARGUMENT (unknown isa, alloc without release, wrong size). */
TAMIS_API tamis_status tamis_ctx_create(const tamis_ctx_options *options, tamis_ctx **ctx);
TAMIS_API void tamis_ctx_free(tamis_ctx *ctx);

/* Ends all calls that run on this context now with E_CANCELLED, soon. Calls begun later are not affected. From any
 * thread, also from a callback; not from a signal handler. */
TAMIS_API void tamis_ctx_cancel(tamis_ctx *ctx);

/* Bytes allocated through the context now and at most so far (caches, scratch; not your own buffers). */
TAMIS_API tamis_status tamis_ctx_bytes(tamis_ctx *ctx, uint64_t *now, uint64_t *peak);

/* Gives scratch memory kept for reuse back to the allocator. */
TAMIS_API tamis_status tamis_ctx_trim(tamis_ctx *ctx);

/* One line of text such as "tamis 0.1.0, amx of portable avx2 avxvnni avx512 amx, 2 threads, <CPU name>" into text[capacity] (always
 * zero-terminated when capacity > 0, cut if too small). needed (may be NULL): bytes for the whole text with its
 * final zero. */
TAMIS_API tamis_status tamis_ctx_describe(tamis_ctx *ctx, char *text, size_t capacity, size_t *needed);

/* =========================================== 3. Tensors and operators ========================================== */

enum {
  TAMIS_F32 = 1,
  TAMIS_F16 = 2,     /* IEEE binary16                                                                          */
  TAMIS_BF16 = 3,
  TAMIS_F8E4M3 = 4,  /* OCP E4M3 (no infinities, largest 448) with float scales                                */
  TAMIS_I8 = 5,      /* signed 8-bit with float scales                                                         */
  TAMIS_I32 = 6,
  /* Two layouts found in DeepSeek-V3.2 deployments, read as they are:                                         */
  TAMIS_MLA656 = 7,  /* FlashMLA's FP8 token, 656 bytes: 512 E4M3 of the latent, 4 floats (scale of dims 0..127,
                        128..255, ...), 64 BF16 of the rotary key. Shape [m, 576] or [m, 1, 576]; stride[0] in
                        bytes (0: 656)                                                                         */
  TAMIS_INDEX132 = 8 /* DeepGEMM's paged FP8 index key, 132 bytes a token, block-planar: a page of `block` tokens
                        (0: 64) is block * 128 E4M3 bytes, then block floats. Shape [m, 128]; stride[0] in bytes
                        from page to page (0: block * 132)                                                     */
};

/* A view of the caller's memory; the fields match DLPack and numpy one to one.
 *   value[i0, i1, ...] = data[i0 * stride[0] + i1 * stride[1] + ...], strides in elements of dtype.
 * All strides zero: row major without gaps. The last axis must be contiguous (stride 1). Strides may be larger than
 * the shape needs (a view), never negative; for outputs they must not overlap.
 * F8E4M3 and I8: real value = data * scale, one float for each `block` elements of the last axis (0: the whole last
 * axis), row major without gaps over [leading axes, ceil(last / block)]; scale NULL: 1. */
typedef struct tamis_tensor {
  void *data;
  int32_t dtype;
  int32_t ndim;      /* 1..4 */
  int64_t shape[4];
  int64_t stride[4];
  float *scale;
  int64_t block;
} tamis_tensor;

/* -- 3.1 quantise --------------------------------------------------------------------------------------------- */

typedef struct tamis_quantize_options {
  uint32_t size;
  uint32_t power_of_two; /* F8E4M3, INDEX132, MLA656: scales rounded up to powers of two ("ue8m0"), as V3.2 ships */
  uint32_t hadamard;     /* rotate each row by H/sqrt(d) (Sylvester order) first, as V3.2's indexer does; the last
                            axis must be a power of two                                                         */
} tamis_quantize_options;
#define TAMIS_QUANTIZE_OPTIONS_INIT { sizeof(tamis_quantize_options), 0, 0 }

/* out = x in another dtype. x: F32, F16 or BF16, [..., d]; out: the same shape, any dtype but I32 (MLA656: d = 576,
 * INDEX132: d = 128, each of rank 2). Scales are written to out->scale (required for F8E4M3 and I8):
 *   E4M3: a = max(max|x|, 1e-4), scale = a / 448, or the next power of two at or above it; value = rne(x / scale).
 *   I8:   scale = max|x| / 127 (1 for a block of zeros), value = rne(x / scale).
 * NaN or infinity in a row that is quantised to 8 bits: E_ARGUMENT. */
TAMIS_API tamis_status tamis_quantize(tamis_ctx *ctx, const tamis_tensor *x, const tamis_quantize_options *options,
                                      const tamis_tensor *out);

/* out = x as F32, F16 or BF16. x: any dtype but I32. */
TAMIS_API tamis_status tamis_dequantize(tamis_ctx *ctx, const tamis_tensor *x, const tamis_tensor *out);

/* -- 3.2 index ------------------------------------------------------------------------------------------------ */

/* Which keys a query row may see. Row i of n sees keys 0 .. visible[i]-1. */
typedef struct tamis_select_options {
  uint32_t size;
  uint32_t k;             /* 0, or k repeated: the width of `indices` decides how many keys a row selects       */
  const int32_t *visible; /* [n], each 0..m; NULL: causal, the n queries being the last n of the m positions: row i
                             sees m - n + i + 1 keys                                                            */
  uint32_t all_visible;   /* non-zero: every row sees all m keys (visible must be NULL)                         */
} tamis_select_options;
#define TAMIS_SELECT_OPTIONS_INIT { sizeof(tamis_select_options), 0, NULL, 0 }

/* scores[i, s] = sum_h w[i, h] * max(0, q[i, h] . key[s])            (paper, eq. 1; the lightning indexer)
 *   q [n, h, d]: F32, F16, BF16, or I8 / F8E4M3 with one scale per (row, head);  w [n, h]: F32;
 *   key [m, d]: F32, F16, BF16, I8 or F8E4M3 with one scale per key, or INDEX132;  scores [n, m]: F32.
 * Keys that a row does not see get -infinity. `options` may be NULL; k is ignored.
 * The key's dtype decides the arithmetic: I8 keys: q is quantised to I8 per (row, head) unless it is I8 already, dot
 * products exact; F8E4M3 and INDEX132: q is rounded to BF16 (E4M3 queries exactly), float sums; BF16: the same;
 * F16 and F32: float. Negative weights are legal. 8-bit q needs 8-bit keys of the same kind. */
TAMIS_API tamis_status tamis_index_scores(tamis_ctx *ctx, const tamis_tensor *q, const tamis_tensor *w,
                                          const tamis_tensor *key, const tamis_select_options *options,
                                          const tamis_tensor *scores);

/* -- 3.3 select ----------------------------------------------------------------------------------------------- */

/* The k = indices->shape[1] largest of each row of scores. scores [n, m]: F32; indices [n, k]: I32, ascending, -1
 * behind the last when fewer than k are visible. Exactly min(k, visible) are chosen: score descending, ties to the
 * lower index; -infinity can be chosen (last), NaN ranks as -infinity. options->k must be 0 or k. */
TAMIS_API tamis_status tamis_topk(tamis_ctx *ctx, const tamis_tensor *scores, const tamis_select_options *options,
                                  const tamis_tensor *indices);

/* index_scores and topk in one pass that never stores the scores: scratch is O(k) for each query row in work,
 * whatever m is, and the result is bit-identical to the two calls (a NaN score is reported as the -infinity that it
 * ranks as). indices [n, k]: I32; top_scores [n, k]: F32 or
 * NULL: the scores of the chosen, in the same order, -infinity where the index is -1.
 * Rows that see at most k keys choose all of them; without top_scores their keys are not even scored. */
TAMIS_API tamis_status tamis_select(tamis_ctx *ctx, const tamis_tensor *q, const tamis_tensor *w,
                                    const tamis_tensor *key, const tamis_select_options *options,
                                    const tamis_tensor *indices, const tamis_tensor *top_scores);

/* Joins two selections of the same queries over disjoint sets of keys, in place: of what select has found in two parts of
 * a context, the best of both: score descending, ties to the lower index, -infinity and -1 behind. What select gives over
 * all keys at once is what joining the selections of its parts gives, to the bit, however the keys were dealt out.
 *   indices [n, k], other [n, c]: I32, positions in the whole context, each row as select leaves it: ascending, -1 behind;
 *   top_scores [n, k], other_scores [n, c]: F32, their scores; a NaN ranks as -infinity.
 * Errors: a row that is not so, a key that both name: nothing is changed. A select over a part gives positions in the
 * part: add where it begins. The attends of the parts are joined by tamis_merge. Since 0.1. */
TAMIS_API tamis_status tamis_merge_candidates(tamis_ctx *ctx, const tamis_tensor *other,
                                              const tamis_tensor *other_scores, const tamis_tensor *indices,
                                              const tamis_tensor *top_scores);

/* -- 3.4 attend ----------------------------------------------------------------------------------------------- */

typedef struct tamis_attend_options {
  uint32_t size;
  float softmax_scale;         /* 0: 1 / sqrt(d)                                                                */
  const tamis_tensor *indices; /* [n, k]: I32, the keys of each row, -1 where none (anywhere); NULL: dense      */
  const int32_t *visible;      /* as in tamis_select_options; with indices it changes nothing but the count of
                                  keys that a dense attention would have compared                               */
  uint32_t all_visible;        /* likewise                                                                      */
  const float *sink;           /* [h]: a logit per head that joins the softmax's denominator only; NULL: none   */
} tamis_attend_options;
#define TAMIS_ATTEND_OPTIONS_INIT { sizeof(tamis_attend_options), 0.0f, NULL, NULL, 0, NULL }

/* out[i, h] = sum_s softmax_s(scale * q[i, h] . key[s, h / (H/g)]) value[s, h / (H/g)] over the row's keys.
 *   q [n, H, d]: F32, F16 or BF16;  key [m, g, d], value [m, g, e]: F32, F16, BF16, I8 or F8E4M3, or
 *   key MLA656 (then value may be NULL: its first 512 dims), H a multiple of g;  out [n, H, e]: F32, F16 or BF16;
 *   lse [n, H]: F32, log of the softmax's denominator (natural, with the scale, with the sink), or NULL.
 * Multi-head latent attention in its absorbed form is g = 1 with a value that is a view of the key's first e dims.
 * Indices: each -1 or 0..m-1; an index named twice counts twice. A row without keys gives 0 and lse -infinity (with
 * a sink: 0 and the sink's logit).
 * Arithmetic: F32 and F16 keys: float; the others: products of BF16 (q, softmax weights and expanded keys are rounded
 * to it), float sums. */
TAMIS_API tamis_status tamis_attend(tamis_ctx *ctx, const tamis_tensor *q, const tamis_tensor *key,
                                    const tamis_tensor *value, const tamis_attend_options *options,
                                    const tamis_tensor *out, const tamis_tensor *lse);

/* Joins two attends of the same queries over disjoint sets of keys, in place:
 *   out <- (out * e^lse + other * e^other_lse) / (e^lse + e^other_lse),  lse <- log(e^lse + e^other_lse).
 * out, other [n, h, e]: F32;  lse, other_lse [n, h]: F32. -infinity: that side saw no key. */
TAMIS_API tamis_status tamis_merge(tamis_ctx *ctx, const tamis_tensor *other, const tamis_tensor *other_lse,
                                   const tamis_tensor *out, const tamis_tensor *lse);

/* -- 3.5 project ---------------------------------------------------------------------------------------------- */

/* out[r, o] = sum_i x[r, i] * weight[o, i]: the linear layers around the three verbs. x [r, i]: F32, F16 or BF16;
 * weight [o, i]: F32, F16, BF16, or F8E4M3 / I8 with a scale per `block` of the row; out [r, o]: F32, F16 or BF16.
 * Arithmetic as in tamis_attend, decided by the weight. The bits of a row do not depend on the other rows. */
TAMIS_API tamis_status tamis_project(tamis_ctx *ctx, const tamis_tensor *x, const tamis_tensor *weight,
                                     const tamis_tensor *out);

/* =============================================== 4. Paged cache ================================================ *
 * Keys and values (or the shared latents of multi-head latent attention) and index keys of all layers, in pages of
 * equal size. A sequence is a list of pages; forks share pages and copy a page when they write to it.              */

typedef struct tamis_cache tamis_cache;
typedef struct tamis_seq tamis_seq;

typedef struct tamis_cache_options {
  uint32_t size;
  uint32_t layers;       /* 0: 1                                                                                */
  uint32_t kv_heads;     /* 0: 1                                                                                */
  uint32_t key_dim;      /* 0: 576                                                                              */
  uint32_t value_dim;    /* 0: 512                                                                              */
  uint32_t own_values;   /* 0: a value is a view of its key's first value_dim dims (latent); else stored beside */
  uint32_t index_dim;    /* 0: 128. Dims of the index key                                                       */
  int32_t kv_dtype;      /* 0: BF16. F32, F16, BF16, or MLA656 (kv_heads 1, 576 / 512, no own values)           */
  int32_t index_dtype;   /* 0: I8. F32, F16, BF16, I8, or INDEX132 (index_dim 128); -1: no index keys (dense)   */
  uint32_t page_tokens;  /* 0: 64. Tokens in a page, a multiple of 16                                           */
  uint64_t max_tokens;   /* most tokens held in all pages together; 0: no limit but the context's max_bytes     */
} tamis_cache_options;
#define TAMIS_CACHE_OPTIONS_INIT { sizeof(tamis_cache_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* ctx may not be NULL: the cache lives in its allocator and budget. Allocates no page yet. */
TAMIS_API tamis_status tamis_cache_create(tamis_ctx *ctx, const tamis_cache_options *options, tamis_cache **cache);
TAMIS_API void tamis_cache_free(tamis_cache *cache);

/* Bytes of the pages in use (shared pages once) and the tokens they can hold. Either may be NULL. */
TAMIS_API tamis_status tamis_cache_bytes(tamis_cache *cache, uint64_t *bytes, uint64_t *tokens);

TAMIS_API tamis_status tamis_seq_create(tamis_cache *cache, tamis_seq **seq);
TAMIS_API void tamis_seq_free(tamis_seq *seq);

/* A new sequence equal to the first `length` tokens of seq (-1: all). Full pages are shared; nothing is copied until
 * one of the two writes to a page that both hold. */
TAMIS_API tamis_status tamis_seq_fork(tamis_seq *seq, int64_t length, tamis_seq **fork);

/* A fork of the living sequence of this cache that shares the longest beginning with tokens[0..count-1], cut to
 * *matched tokens (0: a new empty sequence). Positions extended without token ids, or with ids below 0, match nothing. */
TAMIS_API tamis_status tamis_seq_match(tamis_cache *cache, const int32_t *tokens, size_t count, tamis_seq **seq,
                                       int64_t *matched);

/* Makes room for `count` more tokens at the end. tokens [count]: their ids (for tamis_seq_match) or NULL. All or
 * nothing: E_FULL, E_BUDGET or E_MEMORY leave the sequence as it was. The new rows hold zeros until written. */
TAMIS_API tamis_status tamis_seq_extend(tamis_seq *seq, const int32_t *tokens, size_t count);

/* Writes rows first .. first+n-1 of one layer (n from key). key [n, kv_heads, key_dim] ([n, key_dim] when kv_heads is
 * 1), value [n, kv_heads, value_dim] or NULL (required exactly when own_values), index_key [n, index_dim] or NULL.
 * Each F32, F16 or BF16, or the cache's own dtype with its scales (copied bit for bit); 8-bit caches quantise as
 * tamis_quantize with power_of_two for E4M3. key may be NULL when only index_key is given. The rows must be within
 * the sequence's length. */
TAMIS_API tamis_status tamis_seq_write(tamis_seq *seq, uint32_t layer, int64_t first, const tamis_tensor *key,
                                       const tamis_tensor *value, const tamis_tensor *index_key);

/* Reads rows first .. first+n-1 of one layer back as F32, F16 or BF16; each output may be NULL. Shapes as above. */
TAMIS_API tamis_status tamis_seq_read(tamis_seq *seq, uint32_t layer, int64_t first, const tamis_tensor *key,
                                      const tamis_tensor *value, const tamis_tensor *index_key);

/* Drops the tokens from `length` on (speculative decoding, edits). length 0..the current length. */
TAMIS_API tamis_status tamis_seq_truncate(tamis_seq *seq, int64_t length);
TAMIS_API tamis_status tamis_seq_length(tamis_seq *seq, int64_t *length);

/* select and attend over `count` sequences of one cache in one call (continuous batching, ragged lengths).
 * rows [count]: query rows of each sequence, being its last rows[j] positions (causal); their sum is n, and the rows
 * of q are in the same order. indices hold positions within their own sequence. Results are bit-identical to one
 * call for each sequence, and to the operators of section 3 over the same keys.
 *   select: q [n, h, index_dim], w [n, h], options (k only; visible must be NULL), indices [n, k], top_scores or NULL.
 *   attend: q [n, H, key_dim], options (indices [n, k] or NULL: dense; softmax_scale; sink; visible must be NULL),
 *           out [n, H, value_dim], lse [n, H] or NULL. */
TAMIS_API tamis_status tamis_seq_select(tamis_seq *const *seqs, const int32_t *rows, size_t count, uint32_t layer,
                                        const tamis_tensor *q, const tamis_tensor *w,
                                        const tamis_select_options *options, const tamis_tensor *indices,
                                        const tamis_tensor *top_scores);
TAMIS_API tamis_status tamis_seq_attend(tamis_seq *const *seqs, const int32_t *rows, size_t count, uint32_t layer,
                                        const tamis_tensor *q, const tamis_attend_options *options,
                                        const tamis_tensor *out, const tamis_tensor *lse);

/* -- 4.1 Cache files ------------------------------------------------------------------------------------------ */

/* A document is read once: its sequence is saved, and any process opens the file as a sequence whose pages are the
 * file's, mapped read-only, shared and not copied. Appending to it, forking it and writing to it work as always: a page is
 * copied into the cache when it is first written to. The mapping lives as long as a sequence holds a page of it.
 * Pages in a file count neither in tamis_cache_bytes nor towards max_tokens and max_bytes.
 * Format: docs/formats.md. Every release opens the files of every earlier one.
 *
 * What a file is trusted with: its header and tables are checked against their checksums before anything else, and
 * every page against its own, unless you say otherwise. Replacing or deleting the file, by this library or by rename
 * and unlink, does not disturb those who have it open. Whoever *shortens* it in place makes their next access to a
 * mapped page beyond the new end a SIGBUS, and whoever *overwrites* it changes what they read: no program that maps
 * files can prevent that. Keep cache files where only this library writes, or open them with `copy`.               */

/* The first `length` tokens of seq (-1: all) as the file `path` (UTF-8), which is replaced if it exists. fingerprint
 * [fingerprint_bytes], at most 4096 bytes, NULL when 0: says what made the rows (a hash of the model's weights and
 * of its settings); a file opens only for the same bytes.
 * All or nothing: written without a name in the same folder, flushed to the disk, then named, and the folder flushed; a
 * process killed at any point leaves the old file or the new one. (File systems without nameless files: a killed process
 * leaves "<path>.<number>.<number>.part" behind too.) The room is reserved first, so a full disk refuses early; a limit
 * on file sizes (RLIMIT_FSIZE) is looked at, not run into. Calls in several processes may save the same path: the last wins.
 * Errors: E_IO, E_MEMORY, E_BUDGET, E_CANCELLED. */
TAMIS_API tamis_status tamis_seq_save(tamis_seq *seq, const char *path, const void *fingerprint,
                                      size_t fingerprint_bytes, int64_t length);

typedef struct tamis_open_options {
  uint32_t size;
  uint32_t copy;        /* non-zero: pages are read into memory of the cache (its budget, max_tokens) and the file is
                           closed: nothing that happens to the file later matters                               */
  uint32_t trust_pages; /* non-zero: the pages' checksums are not compared. 0: every page is read once when
                           opening, at the speed of the disk or of the page cache; with it only header and tables
                           are read (about 4 bytes a token), whatever the file's size                           */
} tamis_open_options;
#define TAMIS_OPEN_OPTIONS_INIT { sizeof(tamis_open_options), 0, 0 }

/* A new sequence of this cache with the tokens of a file, token ids included (tamis_seq_match finds it). The cache
 * must have the same layers, heads, dims, dtypes and page_tokens as the one that was saved from.
 * Errors: E_IO; E_FORMAT (no cache file, damaged, cut short, another layout, another fingerprint: the text says
 * which); E_UNSUPPORTED (a later version's file); with `copy` also E_FULL. Nothing is mapped before all is checked. */
TAMIS_API tamis_status tamis_seq_open(tamis_cache *cache, const char *path, const void *fingerprint,
                                      size_t fingerprint_bytes, const tamis_open_options *options, tamis_seq **seq);

/* -- 4.2 Document store --------------------------------------------------------------------------------------- */

/* A folder of cache files, found again by how their tokens begin: for all the processes of a machine, several models
 * and layouts side by side. Files appear whole and are never changed; making and removing them takes a lock
 * (flock of "<directory>/lock") that ends with its process, also by kill. The longest unused documents make room;
 * who has one open keeps it. Many threads may use a store at a time: they look and open side by side and put one after
 * the other. A store holds about 8 bytes for each page_tokens tokens in the directory.                             */

typedef struct tamis_store tamis_store;

/* directory: made if it does not exist (its parent must). max_bytes: most bytes of documents in the directory, enforced
 * by whoever puts one there; 0: no limit. ctx may not be NULL. Errors: E_IO. */
TAMIS_API tamis_status tamis_store_open(tamis_ctx *ctx, const char *directory, uint64_t max_bytes,
                                        tamis_store **store);
TAMIS_API void tamis_store_free(tamis_store *store);

/* Keeps the first `length` tokens of seq (-1: all) for sequences that begin alike; does little when they are there
 * already. Waits while another thread or process puts something. fingerprint as in tamis_seq_save. All tokens must have
 * ids. Errors: E_FULL (larger than max_bytes), and those of tamis_seq_save. */
TAMIS_API tamis_status tamis_store_put(tamis_store *store, tamis_seq *seq, const void *fingerprint,
                                       size_t fingerprint_bytes, int64_t length);

/* As tamis_seq_match, over the living sequences of this cache and the documents of this model and layout in the
 * directory: a new sequence that shares the longest known beginning with tokens[0..count-1], cut to *matched tokens. A
 * document's pages are mapped; the first time this store opens it they are compared with their checksums, and a
 * damaged file is removed and passed over. */
TAMIS_API tamis_status tamis_store_match(tamis_store *store, tamis_cache *cache, const void *fingerprint,
                                         size_t fingerprint_bytes, const int32_t *tokens, size_t count,
                                         tamis_seq **seq, int64_t *matched);

typedef struct tamis_store_stats {
  uint32_t size;          /* set by the caller: sizeof(tamis_store_stats)                      */
  uint32_t documents;     /* in the directory now                                              */
  uint64_t bytes;         /* of their files, and of unreadable ones                            */
  uint64_t matches;       /* calls of tamis_store_match on this object                         */
  uint64_t hits;          /* of these, those that found a token                                */
  uint64_t tokens_asked;  /* tokens given to these calls                                       */
  uint64_t tokens_reused; /* tokens found                                                      */
  uint64_t stored;        /* documents this object has written                                 */
  uint64_t evicted;       /* documents it has removed to make room                             */
  uint64_t damaged;       /* documents it has removed because a checksum was wrong             */
} tamis_store_stats;
#define TAMIS_STORE_STATS_INIT { sizeof(tamis_store_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0 }
TAMIS_API tamis_status tamis_store_read_stats(tamis_store *store, tamis_store_stats *stats);

/* -- 4.3 Re-positioning --------------------------------------------------------------------------------------- */

/* Where the position is in a row: pairs of rotary dims, turned by position * frequency. */
typedef struct tamis_rotary {
  uint32_t size;
  uint32_t dims;              /* rotary dims of a key and of an index key, even                                 */
  const float *frequencies;   /* [dims / 2], radians for each position                                          */
  uint32_t key_first;         /* the first rotary dim of a key: 512 in a latent of DeepSeek-V3.2                */
  uint32_t key_half_split;    /* 0: pairs (2i, 2i + 1); non-zero: (i, i + dims / 2)                             */
  uint32_t index_first;       /* the first rotary dim of an index key: 0 in DeepSeek-V3.2                       */
  uint32_t index_interleaved; /* 0: pairs (i, i + dims / 2), as DeepSeek-V3.2; non-zero: (2i, 2i + 1), as GLM-5 */
  uint32_t index_hadamard;    /* non-zero: index keys were multiplied with H / sqrt(index_dim) after turning    */
} tamis_rotary;
#define TAMIS_ROTARY_INIT { sizeof(tamis_rotary), 0, NULL, 0, 0, 0, 0, 0 }

/* Appends rows first .. first+count-1 (count -1: to the end) of another sequence of the same cache to seq, turned to
 * the positions that they get there. All or nothing, as tamis_seq_extend.
 * Approximate, by its nature: the rows are what the model would have computed at the new positions *without* looking
 * at anything before the document, and the document's first tokens have attended to each other as to the beginning of a
 * text. What is lost is the attention between documents; measure your answers.
 * To rounding it is exactly that: latents keep their bits; rotary dims are rounded to their dtype once more, and 8-bit
 * index keys quantised once more. */
TAMIS_API tamis_status tamis_seq_splice(tamis_seq *seq, tamis_seq *document, int64_t first, int64_t count,
                                        const tamis_rotary *rotary);

/* ================================================= 5. Counters ================================================= *
 * What a context's calls have done, counted exactly. Counters only grow: read twice and subtract.                  */

enum {
  TAMIS_OP_ALL = 0, /* the sum of the others; keys_dense: of attend alone, because select sees the same pairs */
  TAMIS_OP_QUANTIZE = 1,
  TAMIS_OP_DEQUANTIZE = 2,
  TAMIS_OP_INDEX = 3,
  TAMIS_OP_TOPK = 4,
  TAMIS_OP_SELECT = 5,
  TAMIS_OP_ATTEND = 6,
  TAMIS_OP_MERGE = 7,
  TAMIS_OP_PROJECT = 8,
  TAMIS_OP_CACHE = 9 /* rows written to and read from caches */
};

typedef struct tamis_counters {
  uint32_t size;           /* set by the caller: sizeof(tamis_counters) */
  int32_t op;              /* which operator this is about              */
  uint64_t calls;          /* successful calls                          */
  uint64_t queries;        /* query rows                                */
  uint64_t keys_scored;    /* (row, key) pairs the indexer scored       */
  uint64_t keys_selected;  /* sum over rows of min(k, visible)          */
  uint64_t keys_attended;  /* (row, key) pairs attention compared       */
  uint64_t keys_dense;     /* pairs a dense attention would have compared: sum over rows of visible             */
  uint64_t flops;          /* multiplies and adds, counted separately, of the definition above, padding excluded */
  uint64_t bytes;          /* bytes of keys, values, queries and results that the definition touches: a key that
                              several rows of one sequence share counts once per call when dense, once per row
                              when gathered                                                                      */
  uint64_t dense_flops;    /* attend: the same work without an indexer: flops and bytes over keys_dense keys in  */
  uint64_t dense_bytes;    /* the call's own form; 0 for the operators that a dense attention does not have      */
  uint64_t wall_nanoseconds;
  uint64_t cpu_nanoseconds; /* over all threads that took part */
  uint64_t keys_expanded;   /* attend: pairs that a model's long prompts computed in the expanded form (keys and values
                               of each head made from the latents), masked ones included; 0: every row took the
                               absorbed form                                                                    */
} tamis_counters;
#define TAMIS_COUNTERS_INIT { sizeof(tamis_counters), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* Fills counters for one operator (TAMIS_OP_...). */
TAMIS_API tamis_status tamis_ctx_counters(tamis_ctx *ctx, int32_t op, tamis_counters *counters);

/* This machine's own limits for one thread of this context's instruction set, measured now (about a tenth of a
 * second for each): the denominators for every percentage. */
typedef struct tamis_limits {
  uint32_t size;
  uint32_t threads;            /* in: how many threads to measure with together (0: 1); out: how many were used  */
  double i8_macs_per_second;   /* 8-bit integer multiply-adds                                                     */
  double bf16_macs_per_second;
  double f32_macs_per_second;
  double memory_bytes_per_second; /* reads of memory larger than the caches                                       */
} tamis_limits;
#define TAMIS_LIMITS_INIT { sizeof(tamis_limits), 0, 0, 0, 0, 0 }
TAMIS_API tamis_status tamis_ctx_limits(tamis_ctx *ctx, tamis_limits *limits);

/* ================================================== 6. Model =================================================== *
 * A decoder of the DSA family from a Hugging Face checkpoint directory: config.json (model_type deepseek_v32,
 * deepseek_v3 or glm_moe_dsa), model.safetensors or its shards (F32, BF16, F16, F8E4M3 with 128 x 128 scales), and
 * tokenizer.json where text is wanted. Weights are mapped, never copied whole. A model keeps its context alive, may be
 * used from many threads at once, and never changes.                                                               */

typedef struct tamis_model tamis_model;

typedef struct tamis_model_options {
  uint32_t size;
  uint32_t widen;       /* non-zero: matrices as F32 in memory and float products, for comparing with float
                           implementations; 0: as they are stored, BF16 and 8-bit ones multiplied in BF16       */
  uint32_t step_tokens; /* most tokens that pass through the layers together: memory for activations against
                           speed; the same result but for rounding. 0: what 128 MiB hold, 16 to 512; at most
                           65536                                                                                */
  uint32_t one_form;    /* non-zero: rows of long prompts take the same form of attention as all others, so that
                           any cut of a prompt into calls gives the same bits; slower prompts. 0: see eval      */
} tamis_model_options;
#define TAMIS_MODEL_OPTIONS_INIT { sizeof(tamis_model_options), 0, 0, 0 }

/* directory: a path in UTF-8, at most 4095 bytes. A directory without tokenizer.json, or with
 * one of an unsupported kind, opens, but has no text (E_UNSUPPORTED says why when text is asked for).
 * Errors: E_IO (a file that cannot be read), E_FORMAT (what is wrong, with its tensor or byte offset), E_UNSUPPORTED
 * (another model_type, a variant of one), E_MEMORY, E_BUDGET. */
TAMIS_API tamis_status tamis_model_open(tamis_ctx *ctx, const char *directory, const tamis_model_options *options,
                                        tamis_model **model);
TAMIS_API void tamis_model_free(tamis_model *model);

typedef struct tamis_model_info {
  uint32_t size;            /* set by the caller: sizeof(tamis_model_info)                                      */
  uint32_t layers;
  uint32_t vocabulary;      /* logits of a token                                                                */
  uint32_t hidden;
  uint32_t heads;           /* of attention                                                                     */
  uint32_t key_dim;         /* of a cached key: latent and rotary                                               */
  uint32_t value_dim;       /* its first part: the latent                                                       */
  uint32_t index_heads;     /* 0: no indexer, every token attends to all before it                              */
  uint32_t index_dim;
  uint32_t index_layers;    /* that have an indexer of their own; the others use the choice of the layer below  */
  uint32_t top_k;           /* tokens that a token attends to                                                   */
  uint32_t experts;         /* in a layer with a mixture; 0: none has one                                       */
  uint32_t experts_per_token; /* beside the shared one                                                          */
  uint32_t max_tokens;      /* in a sequence                                                                    */
  uint32_t token_count;     /* ids that the tokenizer knows; 0: no text                                           */
  int32_t begin_token;      /* -1: none                                                                         */
  int32_t end_token;        /* the first of those that end a text; -1: none                                     */
  uint64_t parameters;      /* of the tensors that the model uses                                               */
  uint64_t active_parameters; /* that one token is multiplied with                                              */
  uint64_t weight_bytes;    /* of the checkpoint's files, mapped                                                */
} tamis_model_info;
#define TAMIS_MODEL_INFO_INIT { sizeof(tamis_model_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

TAMIS_API tamis_status tamis_model_read_info(tamis_model *model, tamis_model_info *info);

/* One line such as "deepseek_v32, 4 layers, 3.2 M parameters (1.6 M active), indexer 4 x 64 chooses 128 of up to 2048"
 * into text[capacity], as tamis_ctx_describe. */
TAMIS_API tamis_status tamis_model_describe(tamis_model *model, char *text, size_t capacity, size_t *needed);

/* Fills options (its size set by the caller) for a cache that fits the model: BF16 latents and I8 index keys. kv_dtype,
 * index_dtype, page_tokens and max_tokens may be changed before tamis_cache_create. */
TAMIS_API tamis_status tamis_model_cache_options(tamis_model *model, tamis_cache_options *options);

/* tamis_seq_splice with the rotary dims and frequencies of this model, whose rows the cache holds.
 * recompute, 0 to the number of rows: so many of the first are not turned but computed from their token ids where they
 * now stand, as tamis_model_eval does, with a look at everything before them; docs/documents.md measures what that is
 * worth. All or nothing.
 * Errors: those of both. */
TAMIS_API tamis_status tamis_model_splice(tamis_model *model, tamis_seq *seq, tamis_seq *document, int64_t first,
                                          int64_t count, int64_t recompute);

/* -- 6.1 text ------------------------------------------------------------------------------------------------- */

typedef struct tamis_tokenize_options {
  uint32_t size;
  uint32_t bare;            /* non-zero: without the tokens that the tokenizer puts around a text (a begin mark) */
  uint32_t special_as_text; /* non-zero: special tokens written in the text are plain text: for text that is not
                               trusted                                                                          */
} tamis_tokenize_options;
#define TAMIS_TOKENIZE_OPTIONS_INIT { sizeof(tamis_tokenize_options), 0, 0 }

/* text [bytes], UTF-8 (each invalid part counts as U+FFFD), as token ids, the same as Hugging Face's tokenizers makes.
 * The first `capacity` of them go to tokens (may be NULL when capacity is 0); count: how many there are.
 * Errors: E_UNSUPPORTED (no tokenizer.json), E_ARGUMENT (more than 2^29 bytes), E_MEMORY, E_BUDGET. */
TAMIS_API tamis_status tamis_model_tokenize(tamis_model *model, const char *text, size_t bytes,
                                            const tamis_tokenize_options *options, int32_t *tokens, size_t capacity,
                                            size_t *count);

/* The bytes of tokens [count] into text[capacity], as tamis_ctx_describe (they may hold zeros themselves, so needed - 1
 * is their number). A token may be half a character. skip_special non-zero: special tokens (begin, end, roles) are
 * left out. Errors: E_ARGUMENT (an id that no token has), E_UNSUPPORTED, E_MEMORY, E_BUDGET. */
TAMIS_API tamis_status tamis_model_detokenize(tamis_model *model, const int32_t *tokens, size_t count,
                                              uint32_t skip_special, char *text, size_t capacity, size_t *needed);

enum {
  TAMIS_ROLE_SYSTEM = 0,
  TAMIS_ROLE_USER = 1,
  TAMIS_ROLE_ASSISTANT = 2,
  TAMIS_ROLE_TOOL = 3,     /* content: what a call gave; one message for each call, in order, behind the assistant's */
  TAMIS_ROLE_DEVELOPER = 4 /* a question that may bring tools                                                        */
};

/* One turn of a conversation; never changes, so zero what is not used. Texts are UTF-8 and may be NULL when their size
 * is 0; those marked JSON have OpenAI's form. */
typedef struct tamis_message {
  int32_t role; /* TAMIS_ROLE_... */
  const char *content;
  size_t content_bytes;
  const char *reasoning; /* of an assistant in a thinking conversation: what comes before its answer */
  size_t reasoning_bytes;
  const char *tools; /* of a system or developer, JSON: [{"type": "function", "function": {"name": ..., ...}}, ...] */
  size_t tools_bytes;
  const char *tool_calls; /* of an assistant, JSON: [{"function": {"name": ..., "arguments": "{...}"}}, ...] */
  size_t tool_calls_bytes;
  const char *response_format; /* of a system or developer, JSON: the schema of the answer, an object */
  size_t response_format_bytes;
} tamis_message;

/* A conversation as the tokens that a deepseek_v32 model continues (the encoding beside its published weights), its
 * begin mark included. thinking non-zero: the model is to think before it answers. A special token written in a content
 * is that token. tokens, capacity and count as in tamis_model_tokenize.
 * Errors: E_UNSUPPORTED (another model_type, no tokenizer.json), E_ARGUMENT (a role, an answer behind the last question
 * of a thinking conversation that has neither reasoning nor calls, a result without its call, a part that the role does
 * not have), E_FORMAT (what is wrong with JSON, and at which byte), E_MEMORY, E_BUDGET. */
TAMIS_API tamis_status tamis_model_chat(tamis_model *model, const tamis_message *messages, size_t count,
                                        uint32_t thinking, int32_t *tokens, size_t capacity, size_t *token_count);

/* The way back: the text that a deepseek_v32 model wrote behind tamis_model_chat, as an assistant's message: JSON in
 * OpenAI's form, {"role": "assistant", "content": ..., "reasoning_content": ..., "tool_calls": [{"type": "function",
 * "function": {"name": ..., "arguments": "{...}"}}, ...]}, into message[capacity], as tamis_ctx_describe. The parts go
 * back into a tamis_message as they are.
 * text [bytes]: UTF-8 (each invalid part counts as U+FFFD), as tamis_model_detokenize gives it with skip_special 0; the
 * end token may be missing, anything behind it may not be there. thinking: as in the call that made the prompt.
 * Nothing is mended. Errors: E_FORMAT (the byte at which something else was expected: reasoning without its end, a mark
 * of the encoding inside reasoning or content, a call that is cut off or written wrongly, a parameter given twice or not
 * JSON where it says so), E_UNSUPPORTED (another model_type), E_ARGUMENT (more than 2^29 bytes), E_MEMORY, E_BUDGET.
 * Since 0.1. */
TAMIS_API tamis_status tamis_model_parse(tamis_model *model, const char *text, size_t bytes, uint32_t thinking,
                                         char *message, size_t capacity, size_t *needed);

/* -- 6.2 evaluate --------------------------------------------------------------------------------------------- */

enum {
  TAMIS_ATTENTION_AUTOMATIC = 0, /* sparse where a token sees more tokens than it may choose; elsewhere dense, which
                                    is the same there                                                           */
  TAMIS_ATTENTION_DENSE = 1,     /* every token, whatever the indexer would choose                              */
  TAMIS_ATTENTION_SPARSE = 2     /* the indexer's choice, even where that is every token                        */
};

typedef struct tamis_trace tamis_trace;

typedef struct tamis_eval_options {
  uint32_t size;
  uint32_t all_logits; /* 0: after the last token of each sequence; else after every token                      */
  int32_t attention;   /* TAMIS_ATTENTION_...                                                                   */
  uint32_t top_k;      /* tokens that a token attends to; 0: as the model was trained                           */
  /* Called between the indexer's choice and the attention, on the calling thread, once for each layer, step and
   * sequence where keys are chosen. indices [rows, k]: positions in ascending order, then -1; row 0 is the token at
   * `first`. They may be rewritten in place (0 to the row's own position, ascending, -1 only at the end; else the call
   * fails). Not 0: end the call with E_CANCELLED. It may use other sequences, not those of the call. NULL: none.  */
  int32_t (*selected)(void *user, int32_t layer, int32_t seq, int64_t first, int32_t rows, int32_t k,
                      int32_t *indices);
  void *user;
  tamis_trace *const *traces; /* [count], each may be NULL: where the tokens of each sequence look; NULL: none  */
} tamis_eval_options;
#define TAMIS_EVAL_OPTIONS_INIT { sizeof(tamis_eval_options), 0, 0, 0, NULL, NULL, NULL }

/* Extends `count` sequences of one cache, sequence j by counts[j] >= 1 tokens, those of all in order in `tokens`; a
 * prompt in pieces of any size, a decode step of many sequences, or both at once. logits: F32 [count, vocabulary], or
 * [sum of counts, vocabulary] with all_logits, or NULL. The bits of a sequence do not depend on the others. How a prompt
 * is cut into calls changes no bit with one_form; without it at most the last ones (in fp32 within 1e-4 of the largest
 * logit), because 32 and more tokens at once may take the expanded form of attention, up to a position that depends on
 * the call's own tokens and on the instruction set. keys_expanded of the counters and of meters says which form ran.
 * A failed call leaves every sequence as it was. Errors: E_ARGUMENT (an id outside the vocabulary, more tokens than
 * max_tokens, a cache of another shape), E_FULL, E_MEMORY, E_BUDGET, E_BUSY, E_CANCELLED. */
TAMIS_API tamis_status tamis_model_eval(tamis_model *model, tamis_seq *const *seqs, const int32_t *tokens,
                                        const int32_t *counts, size_t count, const tamis_eval_options *options,
                                        const tamis_tensor *logits);

typedef struct tamis_sampler_options {
  uint32_t size;
  float temperature; /* 0: the best token, whatever the others say                                              */
  uint32_t top_k;    /* only the best k; 0: all                                                                 */
  float top_p;       /* only the best tokens that reach this probability together, after top_k; 0: 1, all       */
  uint64_t seed;
} tamis_sampler_options;
#define TAMIS_SAMPLER_OPTIONS_INIT { sizeof(tamis_sampler_options), 0, 0, 0, 0 }

/* A token drawn from logits [vocabulary] or [1, vocabulary], F32: a pure function of them, the options and `draws`,
 * the number of tokens drawn before. Equal logits: the lower token first; NaN is never chosen. ctx may be NULL. */
TAMIS_API tamis_status tamis_sample(tamis_ctx *ctx, const tamis_tensor *logits, const tamis_sampler_options *options,
                                    uint64_t draws, int32_t *token);

/* -- 6.3 trace ------------------------------------------------------------------------------------------------ *
 * Where answers look: the attention mass (softmax probability, averaged over heads) that traced tokens give to spans
 * of positions, summed over tokens and layers; exact for what attention read. A token gives 1 in each layer, in and
 * outside the spans together. Cost while tracing: per token and layer about half of attention's arithmetic again
 * (one of its two products, and an exponential for each head and key); none without a trace. A trace belongs to one
 * call at a time (another one meanwhile: E_BUSY); a failed call adds nothing.                                      */

/* bounds [count, 2]: begin and end of each span, ascending and disjoint; a span of one token gives that position's
 * mass. layers: 0: the sum over layers; the model's number of layers: a line for each. Errors: E_ARGUMENT, E_MEMORY,
 * E_BUDGET. */
TAMIS_API tamis_status tamis_trace_create(tamis_ctx *ctx, const int64_t *bounds, size_t count, uint32_t layers,
                                          tamis_trace **trace);
TAMIS_API void tamis_trace_free(tamis_trace *trace);

/* mass [max(layers, 1), count]: sums of all calls so far; tokens: how many gave them. Either may be NULL. */
TAMIS_API tamis_status tamis_trace_read(tamis_trace *trace, double *mass, uint64_t *tokens);

/* Forgets what was traced. */
TAMIS_API tamis_status tamis_trace_clear(tamis_trace *trace);
/* -- 6.4 generate --------------------------------------------------------------------------------------------- */

enum {
  TAMIS_STOP_NONE = 0,       /* it goes on                                            */
  TAMIS_STOP_END_TOKEN = 1,  /* the model's own, or one of stop_tokens                */
  TAMIS_STOP_TEXT = 2,       /* one of stop_texts, which is not handed out            */
  TAMIS_STOP_MAX_TOKENS = 3,
  TAMIS_STOP_FULL = 4,       /* the sequence has as many tokens as the model allows   */
  TAMIS_STOP_CALLER = 5,     /* the callback said so, or tamis_scheduler_cancel       */
  TAMIS_STOP_FAILED = 6      /* of a scheduler's request: it could not go on          */
};

typedef struct tamis_generate_options {
  uint32_t size;
  uint32_t max_tokens;                  /* 0: as many as the model has positions for                            */
  const tamis_sampler_options *sampler; /* NULL: the best token each time                                       */
  const tamis_eval_options *eval;       /* all_logits unset; traces [1]. Callbacks and traces are used as long as
                                           the generation lives                                                 */
  const int32_t *stop_tokens;           /* [stop_token_count <= 4096]                                           */
  size_t stop_token_count;
  const char *const *stop_texts;        /* [stop_text_count <= 256], zero-terminated UTF-8, 64 KiB together      */
  size_t stop_text_count;
  uint32_t ignore_end;                  /* non-zero: the model's own end tokens do not stop                     */
} tamis_generate_options;
#define TAMIS_GENERATE_OPTIONS_INIT { sizeof(tamis_generate_options), 0, NULL, NULL, NULL, 0, NULL, 0, 0 }

/* One step of a generation. The counts are of the generation so far. */
typedef struct tamis_generated {
  uint32_t size;          /* set by the caller: sizeof(tamis_generated)                                         */
  int32_t token;          /* chosen in this step; -1: none (TAMIS_STOP_FULL)                                    */
  const char *text;       /* what is certain now: whole characters of valid UTF-8 and a final zero; "" while it may
                             become a stop text, for special tokens, and without tokenizer.json. The library's own,
                             until the next call with the generation                                            */
  size_t bytes;           /* of text                                                                            */
  int32_t stop;           /* TAMIS_STOP_...                                                                     */
  uint64_t prompt_tokens;
  uint64_t tokens;        /* chosen, the end token included                                                     */
  double prefill_seconds;
  double decode_seconds;
} tamis_generated;
#define TAMIS_GENERATED_INIT { sizeof(tamis_generated), 0, NULL, 0, 0, 0, 0, 0, 0 }

typedef struct tamis_generation tamis_generation;

/* Evaluates a prompt of at least one token behind what seq holds, and prepares to continue it. The generation keeps
 * model and seq alive; seq must not be changed by others until it ends, and then holds prompt and tokens without the
 * last one chosen. Errors: those of tamis_model_eval; E_UNSUPPORTED (stop_texts without tokenizer.json). */
TAMIS_API tamis_status tamis_generation_create(tamis_model *model, tamis_seq *seq, const int32_t *tokens, size_t count,
                                               const tamis_generate_options *options,
                                               tamis_generation **generation);
TAMIS_API void tamis_generation_free(tamis_generation *generation);

/* The next token. A failed call (memory, budget, cancel) may be made again and then goes on; after a stop:
 * E_ARGUMENT. The same prompt, options and seed: the same tokens. From one thread at a time (E_BUSY). */
TAMIS_API tamis_status tamis_generation_next(tamis_generation *generation, tamis_generated *generated);

/* Called on the calling thread after each step; not 0: stop (TAMIS_STOP_CALLER). */
typedef int32_t (*tamis_on_token)(void *user, const tamis_generated *generated);

/* All of it in one call. on_token may be NULL; generated: the last step, its text NULL. */
TAMIS_API tamis_status tamis_model_generate(tamis_model *model, tamis_seq *seq, const int32_t *tokens, size_t count,
                                            const tamis_generate_options *options, tamis_on_token on_token,
                                            void *user, tamis_generated *generated);
/* ================================================ 7. Cost meter ================================================= *
 * What work cost, what a dense attention would have cost, what it will cost, and a limit that is asked before.
 *   machine     what a machine can do, measured here or published;       gives predictions and break-even contexts
 *   prices      of tokens, of a machine's hours, of energy;              give bills
 *   meter       a record that only grows and charges its parents too;    gives reads, budgets and exports
 * Money is exact decimal text ("0.000742") in one ISO 4217 currency; amounts of two currencies never meet. Machines,
 * prices and meters may be used from many threads at once. They live outside the contexts' allocators (a few KiB).  */

typedef struct tamis_machine tamis_machine;
typedef struct tamis_prices tamis_prices;
typedef struct tamis_meter tamis_meter;

/* How a number came to be; a sum has the weakest basis of its parts. */
enum {
  TAMIS_BASIS_NONE = 0,       /* there is no such number                                                        */
  TAMIS_BASIS_MEASURED = 1,   /* that work was done and timed                                                   */
  TAMIS_BASIS_CALIBRATED = 2, /* exact counts times rates measured on this machine                              */
  TAMIS_BASIS_ANALYTIC = 3    /* exact counts times rates from a publication                                    */
};

/* -- 7.1 machines --------------------------------------------------------------------------------------------- */

/* The shape of a model of the DSA family, as far as work depends on it. Zero: as DeepSeek-V3.2. */
typedef struct tamis_architecture {
  uint32_t size;
  uint32_t layers;             /* that attend. 0: 61                                                            */
  uint32_t heads;              /* 0: 128                                                                        */
  uint32_t key_dim;            /* of the absorbed (latent) form. 0: 576                                         */
  uint32_t value_dim;          /* 0: 512                                                                        */
  uint32_t expanded_key_dim;   /* of the expanded form that dense prefill uses. 0: 192, or key_dim where that is */
  uint32_t expanded_value_dim; /* given; 0: 128, or value_dim                                                   */
  uint32_t index_heads;        /* 0: 64                                                                         */
  uint32_t index_dim;          /* 0: 128                                                                        */
  uint32_t index_layers;       /* that score; the others reuse a selection. 0: all                              */
  uint32_t top_k;              /* 0: 2048                                                                       */
  uint32_t pooling;            /* tokens for which one index key stands. 0: 1                                   */
  uint32_t attention_only;     /* non-zero: no linear layers; parameters and weights are ignored                */
  double active_parameters;    /* that one token is multiplied with. 0: 36.62e9                                 */
  double weight_bytes;         /* of those parameters. 0: one for each                                          */
  double cache_bytes;          /* of the keys and values of one token in one layer. 0: 656                      */
  double index_key_bytes;      /* of one index key with its scale. 0: 132                                       */
  double index_parameters;     /* of the indexer's own projections, not among the active ones; a token that scores keys
                                  is multiplied with them, too. 0: 851.5e6 where active_parameters is 0, else none */
  double head_parameters;      /* of the active ones, those of the head, which a prompt needs once. 0: counted for
                                  every token                                                                  */
  uint64_t weight_matrices;    /* that the active parameters are in: each takes a decode step some time beside its
                                  bytes. 0: not counted                                                        */
} tamis_architecture;
#define TAMIS_ARCHITECTURE_INIT { sizeof(tamis_architecture), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

typedef struct tamis_machine_options {
  uint32_t size;
  const char *name;           /* NULL: the processor's name                                                     */
  const char *date;           /* kept as text, such as "2026-11-21"; NULL: ""                                   */
  const char *price_per_hour; /* decimal text; NULL: no price                                                   */
  const char *currency;       /* of the price; NULL: "USD"                                                      */
  const tamis_architecture *architecture; /* at whose shapes the operators run; layers and parameters are ignored */
  /* A model of ctx and of that architecture: a prompt of up to 512 tokens and tokens behind it are timed, too. Linear
   * layers are predicted by what they took, and norms, routing, gates and copies as a time for each layer; `trust` of
   * the profile says so. NULL: linear layers by products of their own, the rest not at all                     */
  tamis_model *model;
} tamis_machine_options;
#define TAMIS_MACHINE_OPTIONS_INIT { sizeof(tamis_machine_options), NULL, NULL, NULL, NULL, NULL, NULL }

/* Measures this machine with ctx's instruction set and threads: peak rates (int8, bf16, fp32), memory, and the
 * operators at the architecture's shapes with BF16 latents and INT8 index keys, cold, at several context lengths, both
 * forms of attention, and products of one row with matrices of 0.25 to 16 MB; rates
 * and fixed times are fitted to that. One thread is timed by its own processor time, more by the wall's. Takes a few
 * seconds and about 300 MB of ctx's memory, which it gives back; its calls are counted like others.
 * Basis: CALIBRATED. Errors: E_MEMORY, E_BUDGET, E_CANCELLED, E_ARGUMENT. */
TAMIS_API tamis_status tamis_machine_measure(tamis_ctx *ctx, const tamis_machine_options *options,
                                             tamis_machine **machine);

/* A published machine by name. "H800": the one of DeepSeek's Figure 3, at 2 USD an hour, whose profile reproduces the
 * figure's four curves. Basis: ANALYTIC. E_ARGUMENT for other names. */
TAMIS_API tamis_status tamis_machine_published(const char *name, tamis_machine **machine);

/* A machine from the JSON text that tamis_machine_text wrote (docs/cost.md has the members). Rates that no machine
 * has are refused: E_FORMAT or E_ARGUMENT. */
TAMIS_API tamis_status tamis_machine_parse(const char *text, size_t bytes, tamis_machine **machine);

/* The profile as JSON, with its rates, its price, how far to trust it and why ("trust"). text, capacity and needed as
 * in tamis_ctx_describe. */
TAMIS_API tamis_status tamis_machine_text(tamis_machine *machine, char *text, size_t capacity, size_t *needed);
TAMIS_API void tamis_machine_free(tamis_machine *machine);

/* -- 7.2 predictions ------------------------------------------------------------------------------------------ */

enum {
  TAMIS_MODE_AUTOMATIC = 0, /* DSA that scores no key while all are selected (as tamis_select)                  */
  TAMIS_MODE_SPARSE = 1,    /* DSA as published: every visible key is scored                                    */
  TAMIS_MODE_DENSE = 2      /* full attention without an indexer                                                */
};
enum { TAMIS_PHASE_PREFILL = 1, TAMIS_PHASE_DECODE = 2 };

typedef struct tamis_request {
  uint32_t size;
  uint32_t mode;          /* TAMIS_MODE_...                                                                     */
  uint64_t input_tokens;  /* cached ones included; together with output_tokens at most 2^39                     */
  uint64_t cached_tokens; /* of the input: read from a cache                                                    */
  uint64_t output_tokens;
  uint32_t batch;         /* sequences that share a read of the weights in decode. 0: 1                         */
  uint32_t chunk;         /* tokens that share it in prefill. 0: 512                                            */
} tamis_request;
#define TAMIS_REQUEST_INIT { sizeof(tamis_request), 0, 0, 0, 0, 0, 0 }

typedef struct tamis_prediction {
  uint32_t size;
  uint32_t basis;         /* CALIBRATED or ANALYTIC                                                             */
  double seconds;         /* = prefill_seconds + decode_seconds                                                 */
  double low_seconds;     /* the machine's profile says how far its figures may be off                          */
  double high_seconds;
  double prefill_seconds;
  double decode_seconds;
  double flops;
  double bytes;
} tamis_prediction;
#define TAMIS_PREDICTION_INIT { sizeof(tamis_prediction), 0, 0, 0, 0, 0, 0, 0, 0 }

/* A whole request. architecture NULL: DeepSeek-V3.2. */
TAMIS_API tamis_status tamis_predict_request(tamis_machine *machine, const tamis_architecture *architecture,
                                             const tamis_request *request, tamis_prediction *prediction);

/* One token that sees `keys` keys (at most 2^40), in one phase; of a chunk of 512 tokens in prefill, alone in decode. */
TAMIS_API tamis_status tamis_predict_token(tamis_machine *machine, const tamis_architecture *architecture,
                                           int32_t phase, int32_t mode, uint64_t keys, tamis_prediction *prediction);

enum {
  TAMIS_BREAK_EVEN_DECODE = 1,  /* one decoded token                                                            */
  TAMIS_BREAK_EVEN_PREFILL = 2, /* one prefilled token                                                          */
  TAMIS_BREAK_EVEN_PROMPT = 3   /* a whole prompt, whose dearer beginning is paid back first                    */
};

/* From how many tokens of context on `mode` is cheaper than dense: below, it costs more. low and high: with the
 * profile's uncertainty about sparse against dense. -1: not within 2^24 tokens. low, high and basis may be NULL. */
TAMIS_API tamis_status tamis_predict_break_even(tamis_machine *machine, const tamis_architecture *architecture,
                                                int32_t kind, int32_t mode, double *tokens, double *low, double *high,
                                                uint32_t *basis);

/* -- 7.3 prices ----------------------------------------------------------------------------------------------- */

/* Text that is read: UTF-8 with a final zero, at most 4,096 bytes; prices are decimal numbers as JSON writes them
 * ("0.28", "2.8e-07"), at least 0, of at most 38 digits, and not absurd (at most 1,000 a token, 1e9 an hour or kWh). */
typedef struct tamis_price_tier {
  uint64_t above;          /* for requests of more input tokens than this; the whole request is billed so        */
  const char *input;       /* for a million tokens, like the others                                             */
  const char *cached;      /* NULL: as input                                                                    */
  const char *cache_write; /* NULL: as input                                                                    */
  const char *output;
} tamis_price_tier;

typedef struct tamis_prices_options {
  uint32_t size;
  uint32_t tiers;            /* how many are in `tier`, at most 63                                              */
  const char *name;          /* of the list; NULL: ""                                                           */
  const char *currency;      /* of all prices here; NULL: "USD"                                                 */
  const char *source;        /* where the list is from; NULL: ""                                                */
  const char *date;          /* of the list; NULL: ""                                                           */
  /* A list: for a million tokens. input and output, or neither                                                 */
  const char *input;
  const char *cached;        /* tokens read from a cache; NULL: as input                                        */
  const char *cache_write;   /* tokens written to one; NULL: as input                                           */
  const char *output;
  const char *cache_storage; /* for a million tokens kept an hour; NULL: 0                                      */
  const tamis_price_tier *tier; /* ascending, for long inputs                                                   */
  /* Or litellm's model_prices_and_context_window.json as it is (USD), and which entry of it                    */
  const char *litellm;
  size_t litellm_bytes;
  const char *model;
  /* A machine and electricity, each beside a list or without one                                               */
  const char *machine_hour;
  const char *busy_share;    /* of the hours paid for, more than 0 and at most 1; NULL: 1                       */
  const char *kilowatt_hour;
} tamis_prices_options;
#define TAMIS_PRICES_OPTIONS_INIT \
  { sizeof(tamis_prices_options), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, \
    NULL, NULL, NULL }

/* Prices of up to three kinds. Options without any price, or NULL: DeepSeek's list at the V3.2-Exp release (0.28, cached
 * 0.028, output 0.42 USD). Errors: E_ARGUMENT (negative or absurd price, unknown currency or model, unordered tiers),
 * E_FORMAT (a malformed file or number). */
TAMIS_API tamis_status tamis_prices_create(const tamis_prices_options *options, tamis_prices **prices);
TAMIS_API void tamis_prices_free(tamis_prices *prices);

/* What work cost, or will cost. Fields only grow in a meter: read twice and subtract. */
typedef struct tamis_cost {
  uint32_t size;
  uint32_t basis;                /* TAMIS_BASIS_... of dense_nanoseconds                                        */
  uint64_t calls;                /* these six and flops, bytes as in tamis_counters, all operators together     */
  uint64_t queries;
  uint64_t keys_scored;
  uint64_t keys_selected;
  uint64_t keys_attended;
  uint64_t keys_dense;           /* of attend alone; less keys_attended: not selected, and avoided if not expanded */
  uint64_t input_tokens;         /* cached and written ones included                                            */
  uint64_t cached_tokens;
  uint64_t cache_write_tokens;   /* that a provider wrote to its cache                                          */
  uint64_t cache_token_seconds;  /* tokens times seconds that a provider kept them                              */
  uint64_t output_tokens;
  uint64_t flops;                /* 2^64-1 also stands for more; the exports print every digit                  */
  uint64_t bytes;
  uint64_t nanoseconds;
  uint64_t cpu_nanoseconds;      /* over all threads                                                            */
  uint64_t dense_flops;          /* of a dense attention for the same calls                                     */
  uint64_t dense_bytes;
  uint64_t dense_nanoseconds;    /* 0 while basis is NONE                                                       */
  int64_t microjoules;           /* -1: not measured, or not throughout                                         */
  uint64_t keys_expanded;        /* of keys_dense: computed in the expanded form, as in tamis_counters; 0: all
                                    rows took the absorbed one                                                 */
} tamis_cost;
#define TAMIS_COST_INIT { sizeof(tamis_cost), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0 }

enum {
  TAMIS_BILL_LIST = 1,    /* tokens; cached and written ones are part of the input and billed once              */
  TAMIS_BILL_MACHINE = 2, /* nanoseconds times busy_share of the price of an hour                               */
  TAMIS_BILL_ENERGY = 3   /* microjoules                                                                        */
};

typedef struct tamis_bill {
  uint32_t size;
  int32_t kind;
  char amount[64];  /* decimal text; list prices exactly, the others rounded to 10^-15                          */
  char currency[8];
} tamis_bill;
#define TAMIS_BILL_INIT { sizeof(tamis_bill), 0, "", "" }

/* The bill of one kind for a cost. Errors: E_UNSUPPORTED (no price of that kind, or energy was not measured),
 * E_ARGUMENT (more cached and written than input tokens; an amount that needs more than 38 digits). */
TAMIS_API tamis_status tamis_prices_bill(tamis_prices *prices, int32_t kind, const tamis_cost *cost, tamis_bill *bill);

/* -- 7.4 meters ----------------------------------------------------------------------------------------------- *
 * A tree of records: a context has a root, and a child (a tenant, a request) charges its parents too. A call is
 * charged, when it succeeds, to the meters of its sequences, or else to the one that its thread has entered last,
 * whatever its context, or else to the root of its context. Charges, reads and budgets are one consistent moment each,
 * from any number of threads.                                                                                       */

/* Amounts that budgets limit: the units in `units` count, the others are ignored. */
enum { TAMIS_UNIT_MONEY = 1, TAMIS_UNIT_TOKENS = 2, TAMIS_UNIT_FLOPS = 4, TAMIS_UNIT_NANOSECONDS = 8 };

typedef struct tamis_amount {
  uint32_t size;
  uint32_t units;      /* TAMIS_UNIT_... added up                                                               */
  char money[64];      /* decimal text, at least 0                                                              */
  char currency[8];    /* "USD"                                                                                 */
  uint64_t tokens;     /* input and output together                                                             */
  uint64_t flops;
  uint64_t nanoseconds;
} tamis_amount;
#define TAMIS_AMOUNT_INIT { sizeof(tamis_amount), 0, "", "", 0, 0, 0 }

typedef struct tamis_meter_options {
  uint32_t size;
  uint32_t energy;            /* non-zero: while a thread is inside, the processor packages' energy (RAPL) is read.
                                 It is the whole machine's: with two such meters entered at a time it counts as not
                                 measured, and so where there are no counters                                   */
  const char *label;          /* UTF-8, at most 256 bytes; NULL: ""                                             */
  tamis_machine *machine;     /* estimates dense_nanoseconds of what is charged here. NULL: the parent's, or
                                 none. Calls that ran densely count as measured without it                      */
  const tamis_amount *budget; /* limits of what may be reserved here and below; NULL: none                      */
} tamis_meter_options;
#define TAMIS_METER_OPTIONS_INIT { sizeof(tamis_meter_options), 0, NULL, NULL, NULL }

/* A meter below parent, which it keeps alive; parent NULL: a root of its own. At most 32 levels. */
TAMIS_API tamis_status tamis_meter_create(tamis_meter *parent, const tamis_meter_options *options, tamis_meter **meter);

/* The root meter of a context: all its calls, since it was made, that were charged to no other meter or to one below.
 * Freed like one that was created; the meter itself lives on. */
TAMIS_API tamis_status tamis_ctx_meter(tamis_ctx *ctx, tamis_meter **meter);

/* A thread that is inside keeps the meter alive. Reservations that nobody settled count as spent by the parents. */
TAMIS_API void tamis_meter_free(tamis_meter *meter);

/* From now on this thread's calls are charged to the meter; enters may be nested, at most 64 deep. Leave meters in the
 * reverse order (E_ARGUMENT: it is not the one entered last), on the same thread, before it ends. leave(NULL) leaves
 * the one entered last, such as one whose handle was freed meanwhile. */
TAMIS_API tamis_status tamis_meter_enter(tamis_meter *meter);
TAMIS_API tamis_status tamis_meter_leave(tamis_meter *meter);

/* From now on what calls do for this sequence is charged to the meter, whoever calls, and not to the meter that the
 * thread has entered; NULL: to that one again. The sequence keeps the meter alive; a fork has none. So a batch charges
 * each tenant its own: keys, query rows and their FLOP exactly; the bytes of weights, which the batch reads once, by
 * rows; seconds by FLOP. The parts add up to the call exactly, but for `calls`: it is one for each of its sequences. Energy is
 * that of the entered meter. E_BUSY: the sequence is in use by another thread. */
TAMIS_API tamis_status tamis_seq_set_meter(tamis_seq *seq, tamis_meter *meter);

/* Adds a cost here and to all parents, or nowhere: tokens, which only the caller knows, or work done elsewhere. E_FULL:
 * a counter would pass 2^64-1. */
TAMIS_API tamis_status tamis_meter_charge(tamis_meter *meter, const tamis_cost *cost);
TAMIS_API tamis_status tamis_meter_read(tamis_meter *meter, tamis_cost *cost);

/* Holds an upper bound before the work, here and in all parents. E_BUDGET: one of them has not that much left, and
 * nothing is held. E_ARGUMENT: a unit is limited and the amount does not name it. E_FULL: 65,536 are open. */
TAMIS_API tamis_status tamis_meter_reserve(tamis_meter *meter, const tamis_amount *amount, uint64_t *reservation);

/* Replaces a reservation by what the work took, in the same units, and at most as much (else E_ARGUMENT, and it stays
 * open: settle what was reserved). Settling twice: E_ARGUMENT. */
TAMIS_API tamis_status tamis_meter_settle(tamis_meter *meter, uint64_t reservation, const tamis_amount *actual);

/* New limits in the units of the old ones. A limit below what is held and spent refuses all more. */
TAMIS_API tamis_status tamis_meter_set_budget(tamis_meter *meter, const tamis_amount *budget);

/* The limit, what open reservations hold and what is spent, in one moment; each may be NULL. */
TAMIS_API tamis_status tamis_meter_budget(tamis_meter *meter, tamis_amount *limit, tamis_amount *reserved,
                                          tamis_amount *spent);

enum {
  TAMIS_EXPORT_JSON = 1,          /* a line for each meter                                                      */
  TAMIS_EXPORT_PROMETHEUS = 2,    /* the text format 0.0.4                                                      */
  TAMIS_EXPORT_OPENTELEMETRY = 3, /* one JSON object of attributes, gen_ai.usage.* and tamis.*; one meter       */
  TAMIS_EXPORT_OPENAI = 4,        /* the `usage` object of a chat completion; one meter                         */
  TAMIS_EXPORT_LANGCHAIN = 5,     /* `usage_metadata`; one meter                                                */
  TAMIS_EXPORT_CSV = 6            /* a header and a row for each meter                                          */
};

typedef struct tamis_export_options {
  uint32_t size;
  uint32_t no_header;             /* non-zero: CSV rows only                                                    */
  const char *model;              /* the model's name; NULL: ""                                                 */
  tamis_prices *prices;           /* adds their bills; NULL: none                                               */
  uint64_t time_unix_nanoseconds; /* of the record; 0: left out                                                 */
} tamis_export_options;
#define TAMIS_EXPORT_OPTIONS_INIT { sizeof(tamis_export_options), 0, NULL, NULL, 0 }

/* The records of some meters, as they are now, in another program's form (docs/cost.md). text, capacity and needed as
 * in tamis_ctx_describe; a meter that counts meanwhile may need more the next time. E_FULL: more than 16 MiB. */
TAMIS_API tamis_status tamis_meter_export(tamis_meter *const *meters, size_t count, int32_t format,
                                          const tamis_export_options *options, char *text, size_t capacity,
                                          size_t *needed);

/* ================================================= 8. Indexer ================================================== *
 * A lightning indexer for an attention that never had one, learnt from what that attention does:
 *   capture     hidden states, query features and attention of a host model's layer, a sequence at a time
 *   indexer     the parameters of one layer's indexer; fitted, saved, and used with tamis_select or a cache
 *   diagnosis   the attention mass that k keys capture, chosen by the attention itself, by the indexer, or without
 * Fit on some sequences and diagnose on others. Captured mass is no measure of a model's answers: docs/indexer.md. Both
 * objects live in their context's allocator and budget, and are used by one thread at a time (E_BUSY).               */

typedef struct tamis_capture tamis_capture;
typedef struct tamis_indexer tamis_indexer;

/* -- 8.1 capture ---------------------------------------------------------------------------------------------- */

typedef struct tamis_capture_options {
  uint32_t size;
  float softmax_scale;         /* of q . key. 0: 1 / sqrt(dim)                                                  */
  const int32_t *positions;    /* [n]: where the rows are in the sequence; NULL: row i is position i            */
  uint32_t all_visible;        /* non-zero: every row sees every token (encoders); else those up to its own     */
  const tamis_tensor *queries; /* [n, H, e]: F32, F16 or BF16, as the attention multiplies them (after rope)    */
  const tamis_tensor *keys;    /* [m, g, e]: H a multiple of g; both, or neither and `attention`                */
} tamis_capture_options;
#define TAMIS_CAPTURE_OPTIONS_INIT { sizeof(tamis_capture_options), 0.0f, NULL, 0, NULL, NULL }

/* Empty. ctx may not be NULL. */
TAMIS_API tamis_status tamis_capture_create(tamis_ctx *ctx, tamis_capture **capture);
TAMIS_API void tamis_capture_free(tamis_capture *capture);

/* Copies one sequence of m tokens, of which n rows are queries. All F32, F16 or BF16.
 *   x [m, width]: what the layer's attention reads (after its norm);  r [n, features]: what index queries are made
 *   from (V3.2: the normalised query latent), NULL: x of the rows;  attention [n, m], or [H, n, m] to be averaged:
 *   probabilities, each row summing to 1 (within 0.02) over what it sees; NULL: computed from options->queries and
 *   keys when needed, a few rows at a time, and never stored.
 * All captures of one object have the same width and features. NaN, infinity, rows that are no probabilities, no rows:
 * E_ARGUMENT. All or nothing. */
TAMIS_API tamis_status tamis_capture_add(tamis_capture *capture, const tamis_tensor *x, const tamis_tensor *r,
                                         const tamis_tensor *attention, const tamis_capture_options *options);

/* What is held: sequences, query rows, bytes. Each may be NULL. */
TAMIS_API tamis_status tamis_capture_size(tamis_capture *capture, uint64_t *sequences, uint64_t *rows,
                                          uint64_t *bytes);

/* -- 8.2 indexer ---------------------------------------------------------------------------------------------- */

typedef struct tamis_indexer_options {
  uint32_t size;
  uint32_t width;     /* of x                                                                                   */
  uint32_t features;  /* of r. 0: width                                                                         */
  uint32_t heads;     /* 0: 4                                                                                   */
  uint32_t dim;       /* of a head and of the key, a multiple of 16 up to 512. 0: 64                            */
  int32_t rope_dim;   /* the first dims, turned with the position (half-split pairs). 0: half of dim; -1: none  */
  float rope_base;    /* 0: 10000                                                                               */
  const float *rope_frequencies; /* [rope_dim / 2]: radians for each position (YaRN and others); NULL: from base */
  uint64_t seed;      /* of the first parameters                                                                */
} tamis_indexer_options;
#define TAMIS_INDEXER_OPTIONS_INIT { sizeof(tamis_indexer_options), 0, 0, 0, 0, 0, 0.0f, NULL, 0 }

/* Random parameters: nothing is learnt yet. ctx may not be NULL. */
TAMIS_API tamis_status tamis_indexer_create(tamis_ctx *ctx, const tamis_indexer_options *options,
                                            tamis_indexer **indexer);
TAMIS_API void tamis_indexer_free(tamis_indexer *indexer);

/* From the tensors <prefix>wq_b.weight, wk.weight, k_norm.weight, k_norm.bias and weights_proj.weight (F32, F16 or
 * BF16) of a safetensors file, such as prefix "model.layers.0.self_attn.indexer." of a DeepSeek-V3.2 checkpoint. Sizes
 * are the tensors'; of the options only the rope fields are used (NULL: their defaults). E_IO, E_FORMAT. */
TAMIS_API tamis_status tamis_indexer_load(tamis_ctx *ctx, const char *path, const char *prefix,
                                          const tamis_indexer_options *options, tamis_indexer **indexer);

/* Writes `count` indexers, one with each prefix, into one safetensors file (F32), all or nothing. */
TAMIS_API tamis_status tamis_indexer_save(tamis_indexer *const *indexers, const char *const *prefixes, size_t count,
                                          const char *path);

/* The sizes, defaults filled in (rope_frequencies: NULL, seed: 0). */
TAMIS_API tamis_status tamis_indexer_info(tamis_indexer *indexer, tamis_indexer_options *options);

/* What tamis_select takes, for n positions (NULL: 0, 1, ...). x [n, width], r [n, features] or NULL (x): F32, F16 or
 * BF16; outputs F32, each may be NULL: q [n, heads, dim], w [n, heads] (with heads^-1/2 dim^-1/2), key [n, dim]. */
TAMIS_API tamis_status tamis_indexer_project(tamis_indexer *indexer, const tamis_tensor *x, const tamis_tensor *r,
                                             const int32_t *positions, const tamis_tensor *q, const tamis_tensor *w,
                                             const tamis_tensor *key);

/* -- 8.3 fit -------------------------------------------------------------------------------------------------- */

/* After each step, on the calling thread: loss is the mean divergence of the step's rows in nats. Not 0: stop. */
typedef int32_t (*tamis_on_step)(void *user, uint32_t step, uint32_t steps, double loss);

typedef struct tamis_fit_options {
  uint32_t size;
  uint32_t steps;       /* each over some rows of one sequence. 0: 400                                          */
  uint32_t rows;        /* query rows of a step. 0: 128                                                         */
  float learning_rate;  /* the highest, of Adam. 0: 0.01                                                        */
  uint32_t selected;    /* 0: over everything a row sees (warm-up); else over the k keys that the indexer chooses,
                           both sides renormalised (DeepSeek-V3.2's sparse stage)                               */
  uint64_t seed;        /* of the order of sequences and rows                                                   */
  tamis_on_step on_step; /* may be NULL                                                                         */
  void *user;
  uint32_t random_start; /* non-zero: an indexer that has learnt nothing yet begins with its random parameters; else
                           in closed form (tamis_indexer_fit). Others go on from what they have                 */
} tamis_fit_options;
#define TAMIS_FIT_OPTIONS_INIT { sizeof(tamis_fit_options), 0, 0, 0.0f, 0, 0, NULL, NULL, 0 }

/* What to know before believing a report. */
enum {
  TAMIS_WARN_FEW_SEQUENCES = 1, /* fewer than 8: a diffuse attention is overfitted                              */
  TAMIS_WARN_FEW_ROWS = 2,      /* fewer than 1,024 query rows                                                  */
  TAMIS_WARN_NOTHING_LEARNT = 4 /* a fit that ended no nearer to the attention than equal shares for all keys  */
};

typedef struct tamis_fit_report {
  uint32_t size;
  uint32_t steps;
  uint32_t warnings;    /* TAMIS_WARN_..., added up                                                             */
  uint64_t sequences;
  uint64_t rows;        /* captured                                                                             */
  double first_loss;    /* mean divergence in nats of the first sixteenth of the steps                          */
  double last_loss;     /* and of the last                                                                      */
  double seconds;
  double flops;         /* of the steps' matrix products; multiply and add counted separately                   */
  uint32_t closed_start; /* 1: it began in closed form                                                           */
} tamis_fit_report;
#define TAMIS_FIT_REPORT_INIT { sizeof(tamis_fit_report), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* Learns the captured attention: minimises the mean over rows of KL(attention averaged over heads, softmax of the
 * index scores). An indexer that was neither fitted nor loaded begins with the best bilinear score in closed form, two
 * of its heads and the unturned dims of its key (docs/indexer.md): sums over the captured rows, then about 2,000 n^2
 * multiplications and 24 n^2 bytes, n the larger of width and features, which are given back before the first step.
 * Fewer than two heads, no unturned dims or more than 8,192 numbers in x or r: it begins at random. The same inputs,
 * seed and instruction set give the same bits. A fit that fails, diverges (E_ARGUMENT) or is stopped (E_CANCELLED)
 * leaves the indexer as it was; a second fit goes on from the first. report may be NULL. */
TAMIS_API tamis_status tamis_indexer_fit(tamis_indexer *indexer, tamis_capture *capture,
                                         const tamis_fit_options *options, tamis_fit_report *report);

/* -- 8.4 diagnosis -------------------------------------------------------------------------------------------- */

/* Means over rows of the attention mass (1: all of it) that k keys capture. */
typedef struct tamis_mass_at {
  uint64_t k;
  double oracle;        /* the k largest attention weights of the row: the most that k keys can                 */
  double indexer;       /* the k best index scores                                                              */
  double recency;       /* the k nearest positions                                                              */
  double random;        /* expected of k keys drawn at random                                                   */
  double recall;        /* of the oracle's keys, the share that the indexer chooses                             */
} tamis_mass_at;

typedef struct tamis_diagnosis_options {
  uint32_t size;
  uint32_t least_visible; /* rows that see fewer keys are left out. 0: half of the longest sequence, more than k */
  double mass;          /* wanted. 0: 0.9                                                                       */
} tamis_diagnosis_options;
#define TAMIS_DIAGNOSIS_OPTIONS_INIT { sizeof(tamis_diagnosis_options), 0, 0.0 }

typedef struct tamis_diagnosis {
  uint32_t size;
  uint32_t warnings;    /* TAMIS_WARN_..., added up                                                             */
  uint64_t sequences;
  uint64_t rows;        /* that the means are over                                                              */
  double divergence;    /* mean, in nats                                                                        */
  double mass;          /* that was wanted                                                                      */
  uint64_t oracle_k;    /* the smallest k that captures it on average                                           */
  uint64_t indexer_k;
} tamis_diagnosis;
#define TAMIS_DIAGNOSIS_INIT { sizeof(tamis_diagnosis), 0, 0, 0, 0, 0, 0, 0 }

/* at [count]: the caller sets k (at least 1; at most 64 of them), the rest is filled in; may be NULL when count is 0. */
TAMIS_API tamis_status tamis_indexer_diagnose(tamis_indexer *indexer, tamis_capture *capture,
                                              const tamis_diagnosis_options *options, tamis_mass_at *at, size_t count,
                                              tamis_diagnosis *diagnosis);

/* A diagnosis as one JSON object. text, capacity and needed as in tamis_ctx_describe. */
TAMIS_API tamis_status tamis_diagnosis_text(const tamis_diagnosis *diagnosis, const tamis_mass_at *at, size_t count,
                                            char *text, size_t capacity, size_t *needed);

/* ================================================ 9. Scheduler ================================================= *
 * A scheduler runs many requests on one model and one cache, together: a step evaluates one token of every text in the
 * making and pieces of prompts beside them, so that weights are read once for all. The host drives it, from one thread
 * at a time (E_BUSY); submit, cancel and read_stats may be called by any thread at any moment.
 *
 *   do {
 *     tamis_scheduler_step(scheduler, &left);
 *     while (tamis_scheduler_next(scheduler, &served) == TAMIS_OK && served.request != 0) ...
 *   } while (left > 0);
 *
 * Each request gets the tokens that it would get alone, bit for bit, whatever runs beside it and however often it is
 * preempted. Order: tenants get equal shares of evaluated tokens while they have requests waiting; within a tenant the
 * higher priority begins first, then the earlier one. Requests begin while there are places (max_running) and pages for
 * all their tokens; one that does not fit holds up the later ones. When pages run out the request of the lowest
 * priority, of these the youngest, loses its pages and evaluates its tokens again later; the oldest of all never does,
 * so every request ends. One that nobody can give way to ends with TAMIS_STOP_FAILED, and the others go on.         */

typedef struct tamis_scheduler tamis_scheduler;

typedef struct tamis_scheduler_options {
  uint32_t size;
  uint32_t max_running;  /* requests that hold pages at a time. 0: 64; at most 65536                            */
  uint32_t max_waiting;  /* requests that may wait. 0: 4096; at most 2^20                                       */
  uint32_t step_tokens;  /* most tokens that a step evaluates; at least a quarter of them are for prompts while
                            there are some. Fewer: an even pace; more: faster prompts. 0: 256; 2 to 65536       */
  uint64_t max_bytes;    /* most bytes of the cache's pages in use (tamis_cache_bytes) with which a request grows;
                            0: no limit but the cache's max_tokens and the context's max_bytes                  */
  int32_t attention;     /* TAMIS_ATTENTION_..., of all requests                                                */
  uint32_t top_k;        /* tokens that a token attends to; 0: as the model was trained                         */
} tamis_scheduler_options;
#define TAMIS_SCHEDULER_OPTIONS_INIT { sizeof(tamis_scheduler_options), 0, 0, 0, 0, 0, 0 }

/* The cache has the model's shape; others may use it too. The scheduler keeps both alive. Errors: E_ARGUMENT. */
TAMIS_API tamis_status tamis_scheduler_create(tamis_model *model, tamis_cache *cache,
                                              const tamis_scheduler_options *options, tamis_scheduler **scheduler);

/* Requests that have not ended are forgotten. */
TAMIS_API void tamis_scheduler_free(tamis_scheduler *scheduler);

typedef struct tamis_submit_options {
  uint32_t size;
  int32_t priority;    /* 0: as most; higher: sooner                                                            */
  uint64_t tenant;     /* on whose behalf; any number                                                           */
  tamis_seq *prefix;   /* of the same cache: what comes before the prompt, such as a document; its pages are shared
                          from now on, and it may be changed or freed. NULL: nothing                            */
  tamis_meter *meter;  /* pays for the request's part of every step (tamis_seq_set_meter) and for its tokens, those
                          of the prefix as cached. NULL: whoever pays for the stepping thread's calls           */
  const tamis_generate_options *generate; /* its eval must be NULL. NULL: the defaults                          */
} tamis_submit_options;
#define TAMIS_SUBMIT_OPTIONS_INIT { sizeof(tamis_submit_options), 0, 0, NULL, NULL, NULL }

/* A prompt of at least one token to be continued. request: its number, from 1 on. Errors: E_ARGUMENT, E_BUSY (the prefix
 * is in use), E_FULL (max_running + max_waiting requests whose end was not taken), E_UNSUPPORTED (stop_texts without
 * tokenizer.json), E_MEMORY, E_BUDGET. */
TAMIS_API tamis_status tamis_scheduler_submit(tamis_scheduler *scheduler, const int32_t *tokens, size_t count,
                                              const tamis_submit_options *options, uint64_t *request);

/* The request ends with the next step (TAMIS_STOP_CALLER). Nothing happens when it has ended already. */
TAMIS_API tamis_status tamis_scheduler_cancel(tamis_scheduler *scheduler, uint64_t request);

/* One iteration. left (may be NULL): requests that wait or run after it; 0: nothing is to be done. A failed call
 * (E_CANCELLED by tamis_ctx_cancel) changes nothing and may be made again. */
TAMIS_API tamis_status tamis_scheduler_step(tamis_scheduler *scheduler, uint64_t *left);

/* What is new of one request. Counts and times are of the request so far. */
typedef struct tamis_served {
  uint32_t size;           /* set by the caller: sizeof(tamis_served)                                           */
  int32_t stop;            /* TAMIS_STOP_...; not NONE: the last news, the number is forgotten                  */
  uint64_t request;        /* 0: there are no news                                                              */
  const int32_t *tokens;   /* [token_count] chosen since its latest news; the scheduler's own, until the next step or
                              next                                                                              */
  size_t token_count;
  const char *text;        /* certain since then, as in tamis_generated; the scheduler's own                    */
  size_t bytes;            /* of text                                                                           */
  int32_t status;          /* of TAMIS_STOP_FAILED: why                                                         */
  uint32_t preemptions;    /* how often it lost its pages                                                       */
  uint64_t prefix_tokens;
  uint64_t prompt_tokens;
  uint64_t output_tokens;  /* chosen, the end token included                                                    */
  double waiting_seconds;  /* from its submission until it began                                                */
  double first_seconds;    /* from its submission to its first token; 0: none yet                               */
  double seconds;          /* from its submission to its latest token, or its end without one                   */
  char error[160];         /* of TAMIS_STOP_FAILED: one line; else ""                                           */
} tamis_served;
#define TAMIS_SERVED_INIT { sizeof(tamis_served), 0, 0, NULL, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, "" }

/* The news that have waited longest, of one request. */
TAMIS_API tamis_status tamis_scheduler_next(tamis_scheduler *scheduler, tamis_served *served);

typedef struct tamis_scheduler_stats {
  uint32_t size;             /* set by the caller: sizeof(tamis_scheduler_stats)                                */
  uint32_t waiting;          /* now: without pages                                                              */
  uint32_t running;          /* now: with pages                                                                 */
  uint32_t untaken;          /* ended, and tamis_scheduler_next has not said so                                 */
  uint64_t submitted;
  uint64_t finished;
  uint64_t cancelled;
  uint64_t failed;
  uint64_t preemptions;
  uint64_t steps;
  uint64_t evaluated_tokens; /* of prompts and texts                                                            */
  uint64_t repeated_tokens;  /* of these: again after a preemption                                              */
  uint64_t output_tokens;    /* chosen                                                                          */
  double step_seconds;       /* spent in steps                                                                  */
} tamis_scheduler_stats;
#define TAMIS_SCHEDULER_STATS_INIT { sizeof(tamis_scheduler_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
TAMIS_API tamis_status tamis_scheduler_read_stats(tamis_scheduler *scheduler, tamis_scheduler_stats *stats);

#ifdef __cplusplus
}
#endif
#endif /* TAMIS_H */
