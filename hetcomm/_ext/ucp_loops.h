/* The loops of ucp_local.h for one target, which includes this file once for each.
 *
 * HETCOMM_LOOP(name) makes their names, HETCOMM_TARGET is the attribute of every function; HETCOMM_FUSED says that
 * NumPy fuses in complex products on such processors, and HETCOMM_WIDE that they have AVX2, FMA and F16C.
 */

#define HETCOMM_FUNCTION(name)                           \
    HETCOMM_TARGET static void HETCOMM_LOOP(name)(       \
        void *to, const void *with, const void *from, size_t count, const void *value)
#define HETCOMM_ARRAYS(type)                                    \
    hetcomm_##type *dst = (hetcomm_##type *)to;                 \
    const hetcomm_##type *other = (const hetcomm_##type *)with; \
    const hetcomm_##type *src = (const hetcomm_##type *)from

/* dst = expression of a = other and b = src; `many` does the first i of them. */
#define HETCOMM_COMBINE(name, type, many, expression)      \
    HETCOMM_FUNCTION(name)                                 \
    {                                                      \
        HETCOMM_ARRAYS(type);                              \
        size_t i = 0;                                      \
        (void)value;                                       \
        many;                                              \
        HETCOMM_INDEPENDENT                                \
        for (; i < count; i++) {                           \
            const hetcomm_##type a = other[i], b = src[i]; \
            dst[i] = expression;                           \
        }                                                  \
    }

/* dst = expression of a = src and a constant */
#define HETCOMM_MAP(name, type, constant, expression)    \
    HETCOMM_FUNCTION(name)                               \
    {                                                    \
        HETCOMM_ARRAYS(type);                            \
        constant;                                        \
        (void)other;                                     \
        HETCOMM_INDEPENDENT                              \
        for (size_t i = 0; i < count; i++) {             \
            const hetcomm_##type a = src[i];             \
            dst[i] = expression;                         \
        }                                                \
    }

#define HETCOMM_FILL(type)                                              \
    HETCOMM_FUNCTION(fill_##type)                                       \
    {                                                                   \
        const hetcomm_##type constant = *(const hetcomm_##type *)value; \
        (void)with;                                                     \
        (void)from;                                                     \
        for (size_t i = 0; i < count; i++) {                            \
            ((hetcomm_##type *)to)[i] = constant;                       \
        }                                                               \
    }

#define HETCOMM_FACTOR(type) const hetcomm_##type factor = *(const hetcomm_##type *)value
#define HETCOMM_NRANKS(type) const type nranks = (type) * (const hetcomm_int64 *)value

/* ---- integers
 *
 * They wrap around: unsigned bits hold the low bits of any sum and product. An average is truncated towards zero; the
 * quotient of narrow integers, rounded to a float with more bits than the dividend, never reaches the next integer.
 */

#define HETCOMM_ORDERED(type)                                    \
    HETCOMM_COMBINE(min_##type, type, , a < b ? a : b)           \
    HETCOMM_COMBINE(max_##type, type, , a > b ? a : b)
#define HETCOMM_INTEGERS(bits, wide, signed_quotient, unsigned_quotient)                                              \
    HETCOMM_COMBINE(sum_int##bits, uint##bits, , (uint##bits##_t)((wide)a + (wide)b))                                 \
    HETCOMM_COMBINE(prod_int##bits, uint##bits, , (uint##bits##_t)((wide)a * (wide)b))                                \
    HETCOMM_ORDERED(int##bits)                                                                                        \
    HETCOMM_ORDERED(uint##bits)                                                                                       \
    HETCOMM_COMBINE(band_##bits, uint##bits, , a & b)                                                                 \
    HETCOMM_COMBINE(bor_##bits, uint##bits, , a | b)                                                                  \
    HETCOMM_COMBINE(bxor_##bits, uint##bits, , a ^ b)                                                                 \
    HETCOMM_COMBINE(land_##bits, uint##bits, , (a != 0) & (b != 0))                                                   \
    HETCOMM_COMBINE(lor_##bits, uint##bits, , (a | b) != 0)                                                           \
    HETCOMM_COMBINE(lxor_##bits, uint##bits, , (a != 0) ^ (b != 0))                                                   \
    HETCOMM_MAP(average_int##bits, int##bits, HETCOMM_NRANKS(signed_quotient),                                        \
                (int##bits##_t)((signed_quotient)a / nranks))                                                         \
    HETCOMM_MAP(average_uint##bits, uint##bits, HETCOMM_NRANKS(unsigned_quotient),                                    \
                (uint##bits##_t)((unsigned_quotient)a / nranks))                                                      \
    HETCOMM_MAP(multiply_int##bits, uint##bits, HETCOMM_FACTOR(uint##bits), (uint##bits##_t)((wide)a * (wide)factor)) \
    HETCOMM_FILL(uint##bits)

HETCOMM_INTEGERS(8, uint32_t, float, float)
HETCOMM_INTEGERS(16, uint32_t, float, float)
HETCOMM_INTEGERS(32, uint32_t, double, double)
HETCOMM_INTEGERS(64, uint64_t, int64_t, uint64_t)

/* ---- float32 and float64: NaN comes through; of equal zeros the second stays */

#ifdef HETCOMM_WIDE /* as the instructions do it */
#define HETCOMM_EXTREMES(letter, vector, op)                                                                          \
    for (const size_t each = sizeof(vector) / sizeof(*dst); i + each <= count; i += each) {                           \
        const vector a = _mm256_loadu_p##letter((const void *)(other + i));                                           \
        const vector extreme = _mm256_##op##_p##letter(a, _mm256_loadu_p##letter((const void *)(src + i)));           \
        const vector is_nan = _mm256_cmp_p##letter(a, a, _CMP_UNORD_Q);                                               \
        _mm256_storeu_p##letter((void *)(dst + i), _mm256_blendv_p##letter(extreme, a, is_nan));                      \
    }
#else
#define HETCOMM_EXTREMES(letter, vector, op)
#endif
#define HETCOMM_FLOATS(type, c_type, letter, vector)                                                                  \
    HETCOMM_COMBINE(sum_##type, type, , a + b)                                                                        \
    HETCOMM_COMBINE(prod_##type, type, , a * b)                                                                       \
    HETCOMM_COMBINE(min_##type, type, HETCOMM_EXTREMES(letter, vector, min), a != a ? a : a < b ? a : b)              \
    HETCOMM_COMBINE(max_##type, type, HETCOMM_EXTREMES(letter, vector, max), a != a ? a : a > b ? a : b)              \
    HETCOMM_MAP(average_##type, type, HETCOMM_NRANKS(c_type), a / nranks)                                             \
    HETCOMM_MAP(multiply_##type, type, HETCOMM_FACTOR(type), a * factor)

HETCOMM_FLOATS(float32, float, s, __m256)
HETCOMM_FLOATS(float64, double, d, __m256d)

/* ---- complex64 and complex128: fused where NumPy does so with arrays of several elements */

#ifdef HETCOMM_FUSED
#define HETCOMM_MULTIPLY_ADD(suffix, a, b, c) __builtin_fma##suffix(a, b, c)
#else
#define HETCOMM_MULTIPLY_ADD(suffix, a, b, c) ((a) * (b) + (c))
#endif
#ifdef HETCOMM_WIDE
#define HETCOMM_PRODUCTS(letter, vector, each, reals, imaginaries, swapped)                                           \
    for (; i + (each) <= count; i += (each)) {                                                                        \
        const vector a = _mm256_loadu_p##letter((const void *)(other + i));                                           \
        const vector b = _mm256_loadu_p##letter((const void *)(src + i));                                             \
        const vector cross = _mm256_mul_p##letter(imaginaries, swapped);                                              \
        _mm256_storeu_p##letter((void *)(dst + i), _mm256_fmaddsub_p##letter(reals, b, cross));                       \
    }
#define HETCOMM_PRODUCTS_complex64 \
    HETCOMM_PRODUCTS(s, __m256, 4, _mm256_moveldup_ps(a), _mm256_movehdup_ps(a), _mm256_permute_ps(b, 0xb1))
#define HETCOMM_PRODUCTS_complex128 \
    HETCOMM_PRODUCTS(d, __m256d, 2, _mm256_movedup_pd(a), _mm256_permute_pd(a, 0xf), _mm256_permute_pd(b, 0x5))
#else
#define HETCOMM_PRODUCTS_complex64
#define HETCOMM_PRODUCTS_complex128
#endif
#define HETCOMM_PRODUCT(type, suffix, a, b)                                                                           \
    (hetcomm_##type)                                                                                                  \
    {                                                                                                                 \
        HETCOMM_MULTIPLY_ADD(suffix, (a).re, (b).re, -((a).im * (b).im)),                                             \
            HETCOMM_MULTIPLY_ADD(suffix, (a).re, (b).im, (a).im *(b).re)                                              \
    }
#define HETCOMM_COMPLEX(type, part, suffix)                                                                           \
    HETCOMM_COMBINE(prod_##type, type, HETCOMM_PRODUCTS_##type, HETCOMM_PRODUCT(type, suffix, a, b))                  \
    HETCOMM_MAP(multiply_##type, type, HETCOMM_FACTOR(type), HETCOMM_PRODUCT(type, suffix, a, factor))                \
    HETCOMM_FUNCTION(sum_##type) { HETCOMM_LOOP(sum_##part)(to, with, from, 2 * count, value); }                      \
    HETCOMM_FUNCTION(average_##type) { HETCOMM_LOOP(average_##part)(to, with, from, 2 * count, value); }              \
    HETCOMM_FILL(type)

HETCOMM_COMPLEX(complex64, float32, f)
HETCOMM_COMPLEX(complex128, float64, )

/* ---- bfloat16 and float16: computed in float32 and rounded once, two to a word or eight at a time */

#define HETCOMM_BOTH(type, convert, with, from) const type a = convert(with), b = convert(from)
#define HETCOMM_SOURCE(type, convert, with, from) const type a = convert(from)
#ifdef HETCOMM_WIDE
#define HETCOMM_GET_8(at) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at)))
#define HETCOMM_PUT_8(at, eight) _mm_storeu_si128((__m128i *)(at), _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT))
#define HETCOMM_EIGHTS_float16(operands, expression)              \
    for (; i + 8 <= count; i += 8) {                              \
        operands(__m256, HETCOMM_GET_8, other + i, src + i);      \
        HETCOMM_PUT_8(dst + i, expression);                       \
    }
#else
#define HETCOMM_EIGHTS_float16(operands, expression)
#endif
#define HETCOMM_EIGHTS_bfloat16(operands, expression)

#define HETCOMM_HALVES(name, type, constant, operands, expression)                                                    \
    HETCOMM_FUNCTION(name##_##type)                                                                                   \
    {                                                                                                                 \
        HETCOMM_ARRAYS(uint16);                                                                                       \
        hetcomm_uint32 *dst_words = (hetcomm_uint32 *)to;                                                             \
        const hetcomm_uint32 *other_words = (const hetcomm_uint32 *)with;                                             \
        const hetcomm_uint32 *src_words = (const hetcomm_uint32 *)from;                                               \
        size_t i = 0;                                                                                                 \
        (void)other, (void)other_words;                                                                               \
        constant;                                                                                                     \
        HETCOMM_EIGHTS_##type(operands, expression);                                                                  \
        HETCOMM_INDEPENDENT                                                                                           \
        for (size_t j = i / 2; j < count / 2; j++) {                                                                  \
            uint32_t low, high;                                                                                       \
            {                                                                                                         \
                operands(float, hetcomm_from_##type, other_words[j] << 16, src_words[j] << 16);                       \
                low = hetcomm_to_##type(expression) >> 16;                                                            \
            }                                                                                                         \
            {                                                                                                         \
                operands(float, hetcomm_from_##type, other_words[j], src_words[j]);                                   \
                high = hetcomm_to_##type(expression);                                                                 \
            }                                                                                                         \
            dst_words[j] = high | low;                                                                                \
        }                                                                                                             \
        if (count & 1) {                                                                                              \
            i = count - 1;                                                                                            \
            operands(float, hetcomm_from_##type, (uint32_t)other[i] << 16, (uint32_t)src[i] << 16);                   \
            dst[i] = (uint16_t)(hetcomm_to_##type(expression) >> 16);                                                 \
        }                                                                                                             \
    }

/* A NaN comes through as it is, the first of two. */
#define HETCOMM_IS_NAN(infinity, half) (((half) & 0x7fff) > (infinity))
#define HETCOMM_CHOOSE(infinity, order)                                                                               \
    (HETCOMM_IS_NAN(infinity, a) | ((hetcomm_key(a) order hetcomm_key(b)) & !HETCOMM_IS_NAN(infinity, b))) ? a : b

#define HETCOMM_HALF_FLOATS(type, infinity, before, after)                                                            \
    HETCOMM_HALVES(sum, type, (void)value, HETCOMM_BOTH, a + b)                                                       \
    HETCOMM_HALVES(prod, type, (void)value, HETCOMM_BOTH, a * b)                                                      \
    HETCOMM_COMBINE(min_##type, int16, , HETCOMM_CHOOSE(infinity, before))                                            \
    HETCOMM_COMBINE(max_##type, int16, , HETCOMM_CHOOSE(infinity, after))                                             \
    HETCOMM_HALVES(average, type, HETCOMM_NRANKS(float), HETCOMM_SOURCE, a / nranks)                                  \
    HETCOMM_HALVES(multiply, type,                                                                                    \
                   const float factor = hetcomm_from_##type((uint32_t) * (const hetcomm_uint16 *)value << 16),        \
                   HETCOMM_SOURCE, a * factor)

HETCOMM_HALF_FLOATS(bfloat16, 0x7f80, <, >)  /* of equal zeros ml_dtypes takes the second, */
HETCOMM_HALF_FLOATS(float16, 0x7c00, <=, >=) /* and NumPy the first */

/* ---- the table */

#define HETCOMM_BITS(bits)                                                                                            \
    HETCOMM_LOOP(band_##bits), HETCOMM_LOOP(bor_##bits), HETCOMM_LOOP(bxor_##bits), HETCOMM_TRUTHS(bits)
#define HETCOMM_TRUTHS(bits) HETCOMM_LOOP(land_##bits), HETCOMM_LOOP(lor_##bits), HETCOMM_LOOP(lxor_##bits)
#define HETCOMM_NO_BITS NULL, NULL, NULL, NULL, NULL, NULL
#define HETCOMM_ROW(type, sum, prod, min, max, bits, average, multiply, fill)                                         \
    {#type,                                                                                                           \
     {HETCOMM_LOOP(sum), HETCOMM_LOOP(prod), min, max, bits, HETCOMM_LOOP(average), HETCOMM_LOOP(multiply),           \
      HETCOMM_LOOP(fill)}}
#define HETCOMM_INTEGER_ROW(type, bits)                                                                               \
    HETCOMM_ROW(type, sum_int##bits, prod_int##bits, HETCOMM_LOOP(min_##type), HETCOMM_LOOP(max_##type),              \
                HETCOMM_BITS(bits), average_##type, multiply_int##bits, fill_uint##bits)
#define HETCOMM_FLOAT_ROW(type, bits)                                                                                 \
    HETCOMM_ROW(type, sum_##type, prod_##type, HETCOMM_LOOP(min_##type), HETCOMM_LOOP(max_##type), HETCOMM_NO_BITS,   \
                average_##type, multiply_##type, fill_uint##bits)
#define HETCOMM_COMPLEX_ROW(type)                                                                                     \
    HETCOMM_ROW(type, sum_##type, prod_##type, NULL, NULL, HETCOMM_NO_BITS, average_##type, multiply_##type,          \
                fill_##type)
/* Of bool any byte but 0 is true, and all ops are logical ones. */
#define HETCOMM_BOOL_ROW                                                                                              \
    {"bool",                                                                                                          \
     {NULL, NULL, HETCOMM_LOOP(land_8), HETCOMM_LOOP(lor_8), HETCOMM_TRUTHS(8), HETCOMM_TRUTHS(8), NULL, NULL,        \
      HETCOMM_LOOP(fill_uint8)}}

static const struct hetcomm_loops HETCOMM_LOOP(loops)[] = {
    HETCOMM_BOOL_ROW,
    HETCOMM_INTEGER_ROW(int8, 8),
    HETCOMM_INTEGER_ROW(int16, 16),
    HETCOMM_INTEGER_ROW(int32, 32),
    HETCOMM_INTEGER_ROW(int64, 64),
    HETCOMM_INTEGER_ROW(uint8, 8),
    HETCOMM_INTEGER_ROW(uint16, 16),
    HETCOMM_INTEGER_ROW(uint32, 32),
    HETCOMM_INTEGER_ROW(uint64, 64),
    HETCOMM_FLOAT_ROW(float16, 16),
    HETCOMM_FLOAT_ROW(bfloat16, 16),
    HETCOMM_FLOAT_ROW(float32, 32),
    HETCOMM_FLOAT_ROW(float64, 64),
    HETCOMM_COMPLEX_ROW(complex64),
    HETCOMM_COMPLEX_ROW(complex128),
    {NULL, {NULL}},
};

#undef HETCOMM_FUNCTION
#undef HETCOMM_ARRAYS
#undef HETCOMM_COMBINE
#undef HETCOMM_MAP
#undef HETCOMM_FILL
#undef HETCOMM_FACTOR
#undef HETCOMM_NRANKS
#undef HETCOMM_ORDERED
#undef HETCOMM_INTEGERS
#undef HETCOMM_EXTREMES
#undef HETCOMM_FLOATS
#undef HETCOMM_MULTIPLY_ADD
#undef HETCOMM_PRODUCTS
#undef HETCOMM_PRODUCTS_complex64
#undef HETCOMM_PRODUCTS_complex128
#undef HETCOMM_PRODUCT
#undef HETCOMM_COMPLEX
#undef HETCOMM_BOTH
#undef HETCOMM_SOURCE
#undef HETCOMM_GET_8
#undef HETCOMM_PUT_8
#undef HETCOMM_EIGHTS_float16
#undef HETCOMM_EIGHTS_bfloat16
#undef HETCOMM_HALVES
#undef HETCOMM_IS_NAN
#undef HETCOMM_CHOOSE
#undef HETCOMM_HALF_FLOATS
#undef HETCOMM_BITS
#undef HETCOMM_TRUTHS
#undef HETCOMM_NO_BITS
#undef HETCOMM_BOOL_ROW
#undef HETCOMM_ROW
#undef HETCOMM_INTEGER_ROW
#undef HETCOMM_FLOAT_ROW
#undef HETCOMM_COMPLEX_ROW
