/* chacha8-v1: LANES blocks go side by side, so that each word of the state is one vector. */
#define ROUNDS 8

static const uint32_t CONSTANTS[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};

#define ROTL(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#if defined(__AVX2__) && LANES == 8 /* no rotation here, but a shuffle of bytes, which is one instruction, not three */
INLINE lanes rotl_16(lanes x)
{
    const __m256i order = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4, 5,
                                           10, 11, 8, 9, 14, 15, 12, 13);
    return (lanes)_mm256_shuffle_epi8((__m256i)x, order);
}

INLINE lanes rotl_8(lanes x)
{
    const __m256i order = _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14, 3, 0, 1, 2, 7, 4, 5, 6,
                                           11, 8, 9, 10, 15, 12, 13, 14);
    return (lanes)_mm256_shuffle_epi8((__m256i)x, order);
}
#else
#define rotl_16(x) ROTL(x, 16)
#define rotl_8(x) ROTL(x, 8)
#endif

#define QUARTER_BY(s, a, b, c, d, by_16, by_8)  \
    s[a] += s[b], s[d] = by_16(s[d] ^ s[a]),    \
    s[c] += s[d], s[b] = ROTL(s[b] ^ s[c], 12), \
    s[a] += s[b], s[d] = by_8(s[d] ^ s[a]),     \
    s[c] += s[d], s[b] = ROTL(s[b] ^ s[c], 7)
#define QUARTER(s, a, b, c, d) QUARTER_BY(s, a, b, c, d, rotl_16, rotl_8)
#define COLUMNS(s) \
    QUARTER(s, 0, 4, 8, 12), QUARTER(s, 1, 5, 9, 13), QUARTER(s, 2, 6, 10, 14), QUARTER(s, 3, 7, 11, 15)
#define DIAGONALS(s) \
    QUARTER(s, 0, 5, 10, 15), QUARTER(s, 1, 6, 11, 12), QUARTER(s, 2, 7, 8, 13), QUARTER(s, 3, 4, 9, 14)
#define PERMUTE(s)                       \
    for (int i = 0; i < ROUNDS / 2; i++) \
        COLUMNS(s), DIAGONALS(s)

/* The same for one block. */
#define ONE_ROTL_16(x) ROTL(x, 16)
#define ONE_ROTL_8(x) ROTL(x, 8)
#define ONE_QUARTER(s, a, b, c, d) QUARTER_BY(s, a, b, c, d, ONE_ROTL_16, ONE_ROTL_8)

INLINE void permute_one(uint32_t s[16])
{
    for (int i = 0; i < ROUNDS / 2; i++) {
        for (int j = 0; j < 4; j++)
            ONE_QUARTER(s, j, 4 + j, 8 + j, 12 + j);
        for (int j = 0; j < 4; j++)
            ONE_QUARTER(s, j, 4 + (j + 1) % 4, 8 + (j + 2) % 4, 12 + (j + 3) % 4);
    }
}

/* Key and nonce of one context, and whether it is complete. */
INLINE int address(const uint32_t key[8], const int64_t *context, int64_t width, uint32_t out[8], uint32_t nonce[3])
{
    uint32_t words[7] = {~0u, ~0u, ~0u, ~0u, 0, 0, 0}, s[16];
    for (int64_t i = 0; i < width; i++) {
        if (context[i] < 0)
            return 0;
        words[7 - width + i] = (uint32_t)context[i];
    }
    memcpy(nonce, words + 4, 12);
    memcpy(out, key, 32);
    if (width > 3) {
        memcpy(s, CONSTANTS, 16), memcpy(s + 4, key, 32), memcpy(s + 12, words, 16);
        permute_one(s);
        memcpy(out, s, 16), memcpy(out + 4, s + 12, 16);
    }
    return 1;
}

/* What does not change from group to group of one row: the state after the three quarter rounds that see no counter,
 * and what is added at the end. */
typedef struct {
    uint32_t first[16], start[16];
} row_state;

INLINE row_state begin(const uint32_t key[8], const uint32_t nonce[3])
{
    row_state r = {{0}, {0}};
    memcpy(r.start, CONSTANTS, 16), memcpy(r.start + 4, key, 32), memcpy(r.start + 13, nonce, 12);
    memcpy(r.first, r.start, 64);
    ONE_QUARTER(r.first, 1, 5, 9, 13), ONE_QUARTER(r.first, 2, 6, 10, 14), ONE_QUARTER(r.first, 3, 7, 11, 15);
    return r;
}

/* The sixteen words of a group's blocks `lane` to `lane` + LANES - 1. The low half of word i belongs to the tokens
 * 16 i + lane and so on, the high half to those 256 later. */
INLINE void block_words(const row_state *r, uint32_t group, uint32_t lane, lanes word[16])
{
    const lanes zero = {0};
    lanes counter, s[16];
    for (uint32_t i = 0; i < LANES; i++)
        counter[i] = i;
    counter += (group << 4) + lane;
    for (int i = 0; i < 16; i++)
        s[i] = i == 12 ? counter : zero + r->first[i];
    QUARTER(s, 0, 4, 8, 12);
    DIAGONALS(s);
    for (int i = 1; i < ROUNDS / 2; i++)
        COLUMNS(s), DIAGONALS(s);
    for (int i = 0; i < 16; i++)
        word[i] = s[i] + (i == 12 ? counter : zero + r->start[i]);
}
