/* float16 and bfloat16 to float32 and back, rounded to nearest even. A half stands in the upper 16 bits of a word.
 *
 * Without branches and without packing, so that a compiler vectorises loops over words of two halves.
 */
#ifndef HETCOMM_HALVES_H
#define HETCOMM_HALVES_H

#include <stdint.h>
#include <string.h>

static inline float hetcomm_as_float(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

static inline uint32_t hetcomm_bits_of(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof(bits));
    return bits;
}

static inline uint32_t hetcomm_select(int condition, uint32_t yes, uint32_t no)
{
    const uint32_t mask = -(uint32_t)condition;
    return (yes & mask) | (no & ~mask);
}

static inline float hetcomm_from_bfloat16(uint32_t word)
{
    return hetcomm_as_float(word & 0xffff0000);
}

/* All NaNs become one, but for the sign, as in ml_dtypes. */
static inline uint32_t hetcomm_to_bfloat16(float number)
{
    const uint32_t bits = hetcomm_bits_of(number);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), nan = (bits & 0x80000000) | 0x7fc00000;
    return hetcomm_select(number != number, nan, rounded) & 0xffff0000;
}

static inline float hetcomm_from_float16(uint32_t word)
{
    const uint32_t magnitude = (word & 0x7fff0000) >> 3;
    const uint32_t normal = magnitude + (112u << 23);  /* the exponent has another bias */
    const uint32_t special = magnitude + (224u << 23); /* infinity and NaN */
    const uint32_t subnormal = hetcomm_bits_of(hetcomm_as_float(magnitude + (113u << 23)) - 0x1p-14f);
    const uint32_t finite = hetcomm_select(magnitude < 0x00800000, subnormal, normal);
    return hetcomm_as_float((word & 0x80000000) | hetcomm_select(magnitude < 0x0f800000, finite, special));
}

/* A NaN stays what it is, quiet and cut off, as in NumPy and in F16C. */
static inline uint32_t hetcomm_to_float16(float number)
{
    const uint32_t bits = hetcomm_bits_of(number), magnitude = bits & 0x7fffffff;
    const uint32_t normal = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
    const uint32_t subnormal = (hetcomm_bits_of(hetcomm_as_float(magnitude) + 0.5f) << 13) - (0x3f000000u << 13);
    const uint32_t finite = hetcomm_select(magnitude < 0x38800000, subnormal, normal);
    const uint32_t special = hetcomm_select(number != number, 0x0fc00000 | (magnitude & 0x007fe000), 0x0f800000);
    return (bits & 0x80000000) | (hetcomm_select(magnitude < 0x47800000, finite, special) << 3 & 0x7fff0000);
}

/* The order of numbers as that of integers, but for NaN; both zeros are one. */
static inline int16_t hetcomm_key(int16_t half)
{
    const int16_t sign = half >> 15;
    return (int16_t)(((half & 0x7fff) ^ sign) - sign);
}

#endif
