/* Which table runs: owns the tables, the questions to the CPU and the operating system, and nothing else. It
 * keeps no state: every call asks again, so any thread may call at any time; callers keep the table they got. */
#include "internal.h"

#include <string.h>

#define INDEX_OF(isa)                                                                                         \
  .index_query_bytes = tk_##isa##_index_query_bytes, .index_pack_query = tk_##isa##_index_pack_query,         \
  .index_scores = tk_##isa##_index_scores
#define SELECT_OF(isa)                                                                                        \
  .select_above = tk_##isa##_select_above, .select_all = tk_##isa##_select_all,                               \
  .select_shrink = tk_##isa##_select_shrink
#define ATTEND_OF(isa)                                                                                        \
  .attend_query_bytes = tk_##isa##_attend_query_bytes, .attend_pack_query = tk_##isa##_attend_pack_query,     \
  .attend_scratch_bytes = tk_##isa##_attend_scratch_bytes, .attend_chunk = tk_##isa##_attend_chunk,           \
  .attend_join = tk_##isa##_attend_join, .attend_row = tk_##isa##_attend_row
#define NUMBERS_OF(isa)                                                                                       \
  .f32_from_bf16 = tk_##isa##_f32_from_bf16, .f32_from_f16 = tk_##isa##_f32_from_f16,                         \
  .f32_from_e4m3 = tk_##isa##_f32_from_e4m3, .f32_from_i8 = tk_##isa##_f32_from_i8,                           \
  .bf16_from_f32 = tk_##isa##_bf16_from_f32, .bf16_from_e4m3 = tk_##isa##_bf16_from_e4m3,                     \
  .bf16_from_i8 = tk_##isa##_bf16_from_i8, .f16_from_f32 = tk_##isa##_f16_from_f32,                           \
  .e4m3_from_f32 = tk_##isa##_e4m3_from_f32, .i8_from_f32 = tk_##isa##_i8_from_f32,                           \
  .hadamard = tk_##isa##_hadamard
#define MATMUL_OF(isa) .matmul = tk_##isa##_matmul, .matmul_scratch_bytes = tk_##isa##_matmul_scratch_bytes
#define LEARN_OF(isa)                                                                                         \
  .accumulate = tk_##isa##_accumulate, .mix = tk_##isa##_mix, .soften = tk_##isa##_soften,                    \
  .mix_back = tk_##isa##_mix_back
#define PEAK_OF(isa) .peak = tk_##isa##_peak
#define ALL_OF(isa)                                                                                           \
  INDEX_OF(isa), SELECT_OF(isa), ATTEND_OF(isa), NUMBERS_OF(isa), MATMUL_OF(isa), LEARN_OF(isa), PEAK_OF(isa)

/* Counted, not measured: alike. */
#define FORMS_ALIKE .expanded_cost = 1, .gather_cost = 0

static const tk_table portable_table = {.name = "portable", FORMS_ALIKE, ALL_OF(portable)};
const tk_table *tk_table_portable(void) { return &portable_table; }

#ifdef TK_X86
static const tk_table avx2_table = {.name = "avx2", FORMS_ALIKE, ALL_OF(avx2)};
static const tk_table avxvnni_table = {.name = "avxvnni", FORMS_ALIKE, INDEX_OF(avxvnni), SELECT_OF(avx2),
                                       ATTEND_OF(avx2), NUMBERS_OF(avx2), MATMUL_OF(avx2), LEARN_OF(avx2),
                                       PEAK_OF(avxvnni)};
/* Measured on Intel's; Zen 4 had 1.8 while the softmax of the expanded form was not a kernel. */
#define FORMS_AVX512 .expanded_cost = 1.3f, .gather_cost = 0
static const tk_table avx512_table = {.name = "avx512", FORMS_AVX512, ALL_OF(avx512)};
static const tk_table zen_table = {.name = "avx512", FORMS_AVX512, INDEX_OF(zen), SELECT_OF(avx512),
                                   ATTEND_OF(avx512), NUMBERS_OF(avx512), MATMUL_OF(zen), LEARN_OF(avx512),
                                   PEAK_OF(avx512)};
/* Tiles multiply so fast that copying a key to where they read it takes as long as multiplying it with 80 heads. */
static const tk_table amx_table = {.name = "amx", .expanded_cost = 2.5f, .gather_cost = 5, .enter = tk_amx_enter,
                                   .leave = tk_amx_leave, INDEX_OF(amx), SELECT_OF(avx512), ATTEND_OF(amx),
                                   NUMBERS_OF(avx512), MATMUL_OF(amx), LEARN_OF(avx512), PEAK_OF(amx)};
const tk_table *tk_table_avx2(void) { return &avx2_table; }
const tk_table *tk_table_avxvnni(void) { return &avxvnni_table; }
const tk_table *tk_table_avx512(void) { return &avx512_table; }
const tk_table *tk_table_zen(void) { return &zen_table; }
const tk_table *tk_table_amx(void) { return &amx_table; }
const tk_table *tk_table_neon(void) { return NULL; }

#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct cpu {
  int amd; /* "AuthenticAMD" */
  uint32_t leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf71_eax;
  uint64_t states; /* what the operating system saves on a thread switch: XCR0 */
} cpu;

static cpu ask_cpu(void) {
  cpu c = {0};
  uint32_t a, b, d, x;
  if (__get_cpuid(0, &a, &b, &x, &d) != 0)
    c.amd = b == signature_AMD_ebx && x == signature_AMD_ecx && d == signature_AMD_edx;
  if (__get_cpuid(1, &a, &b, &c.leaf1_ecx, &d) == 0) return c;
  if (__get_cpuid_count(7, 0, &a, &c.leaf7_ebx, &c.leaf7_ecx, &c.leaf7_edx) != 0 && a >= 1)
    __get_cpuid_count(7, 1, &c.leaf71_eax, &b, &x, &d);
  if (c.leaf1_ecx & bit_OSXSAVE) {
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    c.states = (uint64_t)d << 32 | a;
  }
  return c;
}

static int has(uint64_t word, uint64_t bits) { return (word & bits) == bits; }
#define BIT(n) (1ull << (n))

static int runs_avx2(const cpu *c) { /* FMA 12, F16C 29, AVX 28; BMI1 3, AVX2 5, BMI2 8 */
  return has(c->states, 0x6) && has(c->leaf1_ecx, BIT(12) | BIT(28) | BIT(29)) &&
         has(c->leaf7_ebx, BIT(3) | BIT(5) | BIT(8));
}
static int runs_avxvnni(const cpu *c) { return runs_avx2(c) && has(c->leaf71_eax, BIT(4)); }
static int runs_avx512(const cpu *c) { /* F 16, DQ 17, BW 30, VL 31; VBMI 1, VNNI 11; BF16 5 */
  return runs_avx2(c) && has(c->states, 0xE6) && has(c->leaf7_ebx, BIT(16) | BIT(17) | BIT(30) | BIT(31)) &&
         has(c->leaf7_ecx, BIT(1) | BIT(11)) && has(c->leaf71_eax, BIT(5));
}
static int runs_zen(const cpu *c) { return runs_avx512(c) && c->amd; }
static int has_amx(const cpu *c) { /* BF16 22, TILE 24, INT8 25 */
  return runs_avx512(c) && has(c->states, BIT(17) | BIT(18)) &&
         has(c->leaf7_edx, BIT(22) | BIT(24) | BIT(25));
}

/* Linux saves tiles (state component 18) only for a process that asked for it; asking again does no harm. It may
 * refuse, for instance where a thread's alternate signal stack is too small for the larger frame. */
static int may_use_tiles(void) {
#ifdef __linux__
  enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  uint64_t allowed = 0;
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return 0;
  return syscall(SYS_arch_prctl, GET_PERMISSION, &allowed) == 0 && has(allowed, BIT(TILE_DATA));
#else
  return 0;
#endif
}
static int runs_amx(const cpu *c) { return has_amx(c) && may_use_tiles(); }
static int runs_anywhere(const cpu *c) {
  (void)c;
  return 1;
}

typedef struct choice {
  const tk_table *table;
  int (*runs)(const cpu *c);
} choice;

/* Of two tables of one name the later is the better one. */
static const choice choices[] = {
    {&portable_table, runs_anywhere}, {&avx2_table, runs_avx2}, {&avxvnni_table, runs_avxvnni},
    {&avx512_table, runs_avx512},     {&zen_table, runs_zen},   {&amx_table, runs_amx},
};

void tk_cpu_name(char *text, size_t capacity) {
  uint32_t words[13] = {0};
  uint32_t *at = words;
  for (uint32_t leaf = 0x80000002u; leaf <= 0x80000004u; leaf++, at += 4)
    if (__get_cpuid(leaf, &at[0], &at[1], &at[2], &at[3]) == 0) break;
  const char *name = (const char *)words;
  while (*name == ' ') name++;
  size_t length = strlen(name);
  while (length > 0 && name[length - 1] == ' ') length--;
  if (capacity == 0) return;
  if (length > capacity - 1) length = capacity - 1;
  memcpy(text, name, length);
  text[length] = 0;
}

#else /* not x86-64 */

const tk_table *tk_table_avx2(void) { return NULL; }
const tk_table *tk_table_avxvnni(void) { return NULL; }
const tk_table *tk_table_avx512(void) { return NULL; }
const tk_table *tk_table_zen(void) { return NULL; }
const tk_table *tk_table_amx(void) { return NULL; }

typedef struct cpu {
  char nothing;
} cpu;
static cpu ask_cpu(void) { return (cpu){0}; }
static int runs_anywhere(const cpu *c) {
  (void)c;
  return 1;
}

typedef struct choice {
  const tk_table *table;
  int (*runs)(const cpu *c);
} choice;

#ifdef TK_ARM
static const tk_table neon_table = {.name = "neon", FORMS_ALIKE, ALL_OF(neon)};
const tk_table *tk_table_neon(void) { return &neon_table; }
static const choice choices[] = {{&portable_table, runs_anywhere}, {&neon_table, runs_anywhere}};
#define CPU_NAME "64-bit ARM"
#else
const tk_table *tk_table_neon(void) { return NULL; }
static const choice choices[] = {{&portable_table, runs_anywhere}};
#define CPU_NAME "unknown"
#endif

void tk_cpu_name(char *text, size_t capacity) {
  if (capacity == 0) return;
  strncpy(text, CPU_NAME, capacity - 1);
  text[capacity - 1] = 0;
}
#endif

enum { CHOICES = sizeof choices / sizeof choices[0] };

const tk_table *tk_choose(const char *isa_cap) {
  const cpu c = ask_cpu();
  int position = CHOICES - 1;
  if (isa_cap != NULL && isa_cap[0] != 0)
    while (position >= 0 && strcmp(choices[position].table->name, isa_cap) != 0) position--;
  while (position >= 0 && !choices[position].runs(&c)) position--;
  return position >= 0 ? choices[position].table : NULL;
}

const char *tk_usable(int32_t position) {
  const cpu c = ask_cpu();
  const char *before = "";
  for (int i = 0; i < CHOICES; i++) {
    if (!choices[i].runs(&c) || strcmp(choices[i].table->name, before) == 0) continue;
    before = choices[i].table->name;
    if (position-- == 0) return before;
  }
  return NULL;
}
