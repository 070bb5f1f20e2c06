/* dst = dst op src, element by element, with the values of hetcomm.runtime.local.reduce. */
#ifndef HETCOMM_COMBINE_H
#define HETCOMM_COMBINE_H

#include <stddef.h>
#include <stdint.h>

typedef void (*hetcomm_combine)(void *dst, const void *src, size_t count);

#define HETCOMM_COMBINE(name, type, expression)                                     \
    static void name(void *restrict to, const void *restrict from, size_t count)    \
    {                                                                               \
        type *restrict dst = (type *)to;                                            \
        const type *restrict src = (const type *)from;                              \
        for (size_t i = 0; i < count; i++) {                                        \
            const type a = dst[i], b = src[i];                                      \
            dst[i] = (type)(expression);                                            \
        }                                                                           \
    }

/* Integers wrap around: 64 unsigned bits hold the low bits of any sum and product. */
#define HETCOMM_INTEGERS(bits)                                                      \
    HETCOMM_COMBINE(hetcomm_sum_i##bits, int##bits##_t, (uint64_t)a + (uint64_t)b)  \
    HETCOMM_COMBINE(hetcomm_prod_i##bits, int##bits##_t, (uint64_t)a * (uint64_t)b) \
    HETCOMM_COMBINE(hetcomm_min_i##bits, int##bits##_t, a < b ? a : b)              \
    HETCOMM_COMBINE(hetcomm_max_i##bits, int##bits##_t, a > b ? a : b)              \
    HETCOMM_COMBINE(hetcomm_min_u##bits, uint##bits##_t, a < b ? a : b)             \
    HETCOMM_COMBINE(hetcomm_max_u##bits, uint##bits##_t, a > b ? a : b)

/* NaN comes through; of equal zeros the second stays. */
#define HETCOMM_FLOATS(bits, type)                                                  \
    HETCOMM_COMBINE(hetcomm_sum_f##bits, type, a + b)                               \
    HETCOMM_COMBINE(hetcomm_prod_f##bits, type, a * b)                              \
    HETCOMM_COMBINE(hetcomm_min_f##bits, type, (a < b || a != a) ? a : b)           \
    HETCOMM_COMBINE(hetcomm_max_f##bits, type, (a > b || a != a) ? a : b)

HETCOMM_INTEGERS(8)
HETCOMM_INTEGERS(16)
HETCOMM_INTEGERS(32)
HETCOMM_INTEGERS(64)
HETCOMM_FLOATS(32, float)
HETCOMM_FLOATS(64, double)

#define HETCOMM_INTEGERS_OF(bits)                                                                     \
    case bits / 8:                                                                                    \
        if (kind != 'f') {                                                                            \
            switch (op) {                                                                             \
            case 0: return hetcomm_sum_i##bits;                                                       \
            case 1: return hetcomm_prod_i##bits;                                                      \
            case 2: return kind == 'i' ? hetcomm_min_i##bits : hetcomm_min_u##bits;                   \
            case 3: return kind == 'i' ? hetcomm_max_i##bits : hetcomm_max_u##bits;                   \
            }                                                                                         \
        }                                                                                             \
        break;

/* The function for elements of `size` bytes of a kind 'i', 'u' or 'f', and an op: 0 sum, 1 prod, 2 min, 3 max; NULL if
 * there is none. */
static hetcomm_combine hetcomm_combine_for(char kind, int size, int op)
{
    static const hetcomm_combine singles[] = {
        hetcomm_sum_f32, hetcomm_prod_f32, hetcomm_min_f32, hetcomm_max_f32};
    static const hetcomm_combine doubles[] = {
        hetcomm_sum_f64, hetcomm_prod_f64, hetcomm_min_f64, hetcomm_max_f64};
    if (op < 0 || op > 3) {
        return NULL;
    }
    if (kind == 'f') {
        return size == 4 ? singles[op] : size == 8 ? doubles[op] : NULL;
    }
    switch (size) {
    HETCOMM_INTEGERS_OF(8)
    HETCOMM_INTEGERS_OF(16)
    HETCOMM_INTEGERS_OF(32)
    HETCOMM_INTEGERS_OF(64)
    }
    return NULL;
}

#endif
