/* What a rank does alone on host memory, with the values of hetcomm.execution.local: dst = other op src, dst = src scaled,
 * dst filled.
 *
 * The loops are in ucp_loops.h, written for a compiler that vectorises and compiled here once for every processor of
 * the platform and, on x86-64, once more for those with AVX2, FMA and F16C. Compile without contraction
 * (-ffp-contract=off): where NumPy fuses a product and a sum, the loops say so.
 */
#ifndef HETCOMM_LOCAL_H
#define HETCOMM_LOCAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ucp_halves.h"

#if defined(__x86_64__)
#define HETCOMM_HAS_WIDE
#include <cpuid.h>
#include <immintrin.h>
#endif

/* `dst` is equal to each of the others or shares no element with it; `value` is one element, or for an average the number
 * of ranks as an int64. Nothing need be aligned. A combination does not look at `value`, what is scaled comes from `src`,
 * and a fill looks at neither array. */
typedef void (*hetcomm_loop)(void *dst, const void *other, const void *src, size_t count, const void *value);

/* Elements wherever they lie. */
#define HETCOMM_ELEMENT __attribute__((aligned(1), may_alias))
typedef int8_t HETCOMM_ELEMENT hetcomm_int8;
typedef int16_t HETCOMM_ELEMENT hetcomm_int16;
typedef int32_t HETCOMM_ELEMENT hetcomm_int32;
typedef int64_t HETCOMM_ELEMENT hetcomm_int64;
typedef uint8_t HETCOMM_ELEMENT hetcomm_uint8;
typedef uint16_t HETCOMM_ELEMENT hetcomm_uint16;
typedef uint32_t HETCOMM_ELEMENT hetcomm_uint32;
typedef uint64_t HETCOMM_ELEMENT hetcomm_uint64;
typedef float HETCOMM_ELEMENT hetcomm_float32;
typedef double HETCOMM_ELEMENT hetcomm_float64;

typedef struct {
    hetcomm_float32 re, im;
} hetcomm_complex64;
typedef struct {
    hetcomm_float64 re, im;
} hetcomm_complex128;

static const char *const hetcomm_loop_names[] = {"sum",  "prod", "min",  "max",     "band",     "bor", "bxor",
                                                 "land", "lor",  "lxor", "average", "multiply", "fill"};
#define HETCOMM_NLOOPS (sizeof(hetcomm_loop_names) / sizeof(*hetcomm_loop_names))

struct hetcomm_loops {
    const char *dtype;
    hetcomm_loop loops[HETCOMM_NLOOPS];
};

#if defined(__clang__)
#define HETCOMM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define HETCOMM_INDEPENDENT _Pragma("GCC ivdep")
#endif

#define HETCOMM_LOOP(name) hetcomm_##name##_plain
#define HETCOMM_TARGET
#if defined(__FP_FAST_FMA) || defined(__aarch64__)
#define HETCOMM_FUSED
#endif
#include "ucp_loops.h"
#undef HETCOMM_LOOP
#undef HETCOMM_TARGET
#undef HETCOMM_FUSED

#ifdef HETCOMM_HAS_WIDE
#define HETCOMM_LOOP(name) hetcomm_##name##_wide
#define HETCOMM_TARGET __attribute__((target("avx2,fma,f16c")))
#define HETCOMM_FUSED
#define HETCOMM_WIDE
#include "ucp_loops.h"
#undef HETCOMM_LOOP
#undef HETCOMM_TARGET
#undef HETCOMM_FUSED
#undef HETCOMM_WIDE
#endif

/* Whether this processor takes the wide loops, and the system saves its wide registers. */
static int hetcomm_is_wide(void)
{
#ifdef HETCOMM_HAS_WIDE
    unsigned eax, ebx, ecx, edx;
    const unsigned wanted = bit_FMA | bit_F16C | bit_OSXSAVE;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & wanted) == wanted) {
        __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
        return (eax & 6) == 6 && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_AVX2);
    }
#endif
    return 0;
}

/* The loops of this processor; `plain` asks for those of every processor. One thread at a time. */
static const struct hetcomm_loops *hetcomm_all_loops(int plain)
{
#ifdef HETCOMM_HAS_WIDE
    static int known, is_wide; /* asking takes many microseconds in a virtual machine */
    if (!known) {
        is_wide = hetcomm_is_wide();
        known = 1;
    }
    if (is_wide && !plain) {
        return hetcomm_loops_wide;
    }
#endif
    (void)plain;
    return hetcomm_loops_plain;
}

/* The loop for elements of a type by NumPy's name and one of hetcomm_loop_names; NULL if there is none. */
static hetcomm_loop hetcomm_loop_for(const char *dtype, const char *what, int plain)
{
    for (const struct hetcomm_loops *row = hetcomm_all_loops(plain); row->dtype != NULL; row++) {
        for (size_t i = 0; i < HETCOMM_NLOOPS && !strcmp(row->dtype, dtype); i++) {
            if (!strcmp(hetcomm_loop_names[i], what)) {
                return row->loops[i];
            }
        }
    }
    return NULL;
}

#endif
