/* Pairs: the lanes are LANES pairs. */

/* The bits of LANES pairs, from pair `at` on (fewer, if they end before), under one key. */
INLINE lanes pair_bits(const scoring *t, const uint32_t key[8], int64_t at)
{
    const lanes zero = {0};
    lanes words[8];
    const int64_t n = t->pairs - at < LANES ? t->pairs - at : LANES;
    for (int i = 0; i < 8; i++) {
        const int64_t column = i - (7 - t->width);
        words[i] = i < 4 ? zero - 1 : zero;
        if (column >= 0)
            memcpy(&words[i], t->columns + column * t->pairs + at, (size_t)n * 4);
    }
    const lanes token = words[7];
    const lanes counter = (token >> 9) << 4 | (token & 15);
    lanes s[16], start[16];
    for (int i = 0; i < 4; i++)
        start[i] = zero + CONSTANTS[i];
    for (int i = 0; i < 8; i++)
        start[4 + i] = zero + key[i];
    if (t->width > 3) {
        for (int i = 0; i < 12; i++)
            s[i] = start[i];
        for (int i = 0; i < 4; i++)
            s[12 + i] = words[i];
        PERMUTE(s);
        for (int i = 0; i < 4; i++)
            start[4 + i] = s[i], start[8 + i] = s[12 + i];
    }
    start[12] = counter, start[13] = words[4], start[14] = words[5], start[15] = words[6];
    for (int i = 0; i < 16; i++)
        s[i] = start[i];
    PERMUTE(s);
    const lanes place = (token >> 4) & 15;
    lanes word = zero;
    for (uint32_t i = 0; i < 16; i++)
        word |= (s[i] + start[i]) & (lanes)(place == i);
    return word >> (((token >> 8) & 1) << 4) & 0xffff;
}

static void count_keys(const void *task, int64_t from, int64_t to)
{
    const scoring *t = task;
    for (int64_t k = from; k < to; k++) {
        lanes green = {0};
        int64_t total = 0, at = 0;
        for (; at + LANES <= t->pairs; at += LANES)
            green -= (lanes)(pair_bits(t, t->keys + 8 * k, at) < t->threshold);
        for (int i = 0; i < LANES; i++)
            total += green[i];
        if (at < t->pairs) {
            const lanes last = pair_bits(t, t->keys + 8 * k, at);
            for (int64_t i = at; i < t->pairs; i++)
                total += last[i - at] < t->threshold;
        }
        t->greens[k] = total;
    }
}

static void bits_of_pairs(const void *task, int64_t from, int64_t to)
{
    const scoring *t = task;
    for (int64_t at = from * PAIRS; at < to * PAIRS && at < t->pairs; at += LANES) {
        const lanes bits = pair_bits(t, t->keys, at);
        for (int64_t i = at; i < at + LANES && i < t->pairs; i++)
            t->values[i] = (uint16_t)bits[i - at];
    }
}
