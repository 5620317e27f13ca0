/* What compilers spell differently on 64-bit ARM, and the int8 dot product of ARMv8.2 (sdot): how to compile for it
 * and whether this CPU has it. Asked where it is used, because the "neon" table is one table for every such CPU. */
#ifndef TAMIS_KERNELS_NEON_DOT_H
#define TAMIS_KERNELS_NEON_DOT_H
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__clang__)
#define TK_UNROLL _Pragma("clang loop unroll(full)")
#define TK_DOTPROD __attribute__((target("dotprod")))
#else
#define TK_UNROLL _Pragma("GCC unroll 32")
#define TK_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

static inline int tk_has_dot_product(void) {
#if defined(__ARM_FEATURE_DOTPROD)
  return 1;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; /* HWCAP_ASIMDDP */
#else
  return 0;
#endif
}
#endif
