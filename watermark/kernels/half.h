/* bfloat16 and float16, one number at a time. */
INLINE uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

INLINE float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

INLINE float from_half(uint16_t h)
{
    const uint32_t rest = h & 0x7fffu;
    const uint32_t u = bits_of(float_of(rest << 13) * 0x1p112f); /* right for subnormals too */
    return float_of((rest >= 0x7c00 ? rest << 13 | 0x7f800000u : u) | (uint32_t)(h & 0x8000u) << 16);
}

INLINE uint16_t to_half(float x) /* to nearest, ties to even */
{
    const uint32_t sign = bits_of(x) & 0x80000000u, u = bits_of(x) ^ sign;
    const uint32_t small = bits_of(float_of(u) + 0.5f) - bits_of(0.5f); /* the addition rounds at 2^-24 */
    const uint32_t normal = (u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13;
    const uint32_t large = u > 0x7f800000u ? 0x7e00 : 0x7c00;
    return (uint16_t)((u >= 0x47800000u ? large : u < 0x38800000u ? small : normal) | sign >> 16);
}
