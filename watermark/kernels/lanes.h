/* Vectors of LANES numbers, and what GCC's and Clang's vector types do not say well: comparisons and their use. */
typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));

INLINE floats all(float x)
{
    const floats zero = {0};
    return zero + x;
}

INLINE floats load(const float *from)
{
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, floats x)
{
    memcpy(to, &x, sizeof x);
}

#if LANES == 16

typedef __mmask16 truth; /* a bit a lane */

INLINE truth below(lanes x, uint32_t bound)
{
    return _mm512_cmplt_epu32_mask((__m512i)x, _mm512_set1_epi32((int32_t)bound));
}

INLINE truth equal(lanes x, uint32_t y)
{
    return _mm512_cmpeq_epi32_mask((__m512i)x, _mm512_set1_epi32((int32_t)y));
}

/* at least the bound, or NaN */
INLINE truth not_below(floats x, float bound)
{
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_NLT_UQ);
}

INLINE truth is_nan(floats x)
{
    return _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
}

INLINE int any(truth where)
{
    return where != 0;
}

INLINE floats subtract_where(floats x, truth where, floats y)
{
    return (floats)_mm512_mask_sub_ps((__m512)x, where, (__m512)x, (__m512)y);
}

INLINE floats keep(truth where, floats x)
{
    return (floats)_mm512_maskz_mov_ps(where, (__m512)x);
}

INLINE lanes either(truth where, lanes yes, lanes no)
{
    return (lanes)_mm512_mask_mov_epi32((__m512i)no, where, (__m512i)yes);
}

INLINE floats larger(floats x, floats y)
{
    return (floats)_mm512_max_ps((__m512)x, (__m512)y);
}

#else

typedef masks truth; /* a lane is all ones or zero */

/* bound: at most 2^31 - 1, and so is x: the comparison is of signed numbers, since AVX2 has no other. */
INLINE truth below(lanes x, uint32_t bound)
{
    return (masks)x < (int32_t)bound;
}

INLINE truth equal(lanes x, uint32_t y)
{
    return x == y;
}

/* at least the bound, or NaN */
INLINE truth not_below(floats x, float bound)
{
    return ~(x < bound);
}

INLINE truth is_nan(floats x)
{
    return x != x;
}

INLINE int any(truth where)
{
#if defined(__AVX2__) && LANES == 8
    return _mm256_movemask_ps((__m256)where) != 0;
#else
    int32_t found = 0;
    for (int i = 0; i < LANES; i++)
        found |= where[i];
    return found != 0;
#endif
}

INLINE floats keep(truth where, floats x)
{
    return (floats)((masks)x & where);
}

/* x - y in some lanes; elsewhere x, since x - 0 is x, for -0 too */
INLINE floats subtract_where(floats x, truth where, floats y)
{
    return x - keep(where, y);
}

INLINE lanes either(truth where, lanes yes, lanes no)
{
    return (yes & (lanes)where) | (no & ~(lanes)where);
}

INLINE floats larger(floats x, floats y)
{
#if defined(__AVX2__) && LANES == 8
    return (floats)_mm256_max_ps((__m256)x, (__m256)y);
#else
    return (floats)either(x > y, (lanes)x, (lanes)y);
#endif
}

#endif

INLINE float largest_lane(floats x)
{
    float found = x[0];
    for (int i = 1; i < LANES; i++)
        found = x[i] > found ? x[i] : found;
    return found;
}
