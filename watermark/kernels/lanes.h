/* Vectors of LANES numbers, and what GCC's and Clang's vector types do not say well: comparisons and their use. */
typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
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

INLINE floats add_where(floats x, truth where, floats y)
{
    return (floats)_mm512_mask_add_ps((__m512)x, where, (__m512)x, (__m512)y);
}

INLINE floats keep(truth where, floats x)
{
    return (floats)_mm512_maskz_mov_ps(where, (__m512)x);
}

INLINE lanes either(truth where, lanes yes, lanes no)
{
    return (lanes)_mm512_mask_mov_epi32((__m512i)no, where, (__m512i)yes);
}

#else

typedef masks truth; /* a lane is all ones or zero */

/* bound: at most 2^31 - 1, and so is x: the comparison is of signed numbers, since AVX2 has no other. */
INLINE truth below(lanes x, uint32_t bound)
{
    return (masks)x < (int32_t)bound;
}

INLINE floats keep(truth where, floats x)
{
    return (floats)((masks)x & where);
}

/* x + y in some lanes; elsewhere x, since x - 0 is x, for -0 too */
INLINE floats add_where(floats x, truth where, floats y)
{
    return x - keep(where, -y);
}

INLINE lanes either(truth where, lanes yes, lanes no)
{
    return (yes & (lanes)where) | (no & ~(lanes)where);
}

#endif
