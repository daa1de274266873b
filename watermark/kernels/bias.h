/* The green list: each mark's delta is added to the logits of its green tokens. */

INLINE void raise_floats(float *x, truth where, float delta)
{
    store(x, subtract_where(load(x), where, all(-delta)));
}

INLINE void raise_bfloats(uint16_t *x, truth where, float delta)
{
    shorts stored;
    memcpy(&stored, x, sizeof stored);
    const lanes logits = __builtin_convertvector(stored, lanes) << 16, sum = (lanes)((floats)logits + delta);
    const lanes rounded = sum + 0x7fff + (sum >> 16 & 1);
    stored = __builtin_convertvector(either(where, rounded, logits) >> 16, shorts);
    memcpy(x, &stored, sizeof stored);
}

/* One mark and a whole group, straight into the logits. */
INLINE void raise_group(const row_state *r, int64_t base, uint32_t threshold, float delta, int kind, char *logits,
                        int64_t column)
{
    for (uint32_t lane = 0; lane < 16; lane += LANES) {
        lanes word[16];
        block_words(r, (uint32_t)(base >> 9), lane, word);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const truth low = below(word[i] & 0xffff, threshold), high = below(word[i] >> 16, threshold);
            const int64_t at = column + 16 * i + lane;
            if (kind == 0) {
                raise_floats((float *)logits + at, low, delta);
                raise_floats((float *)logits + at + 256, high, delta);
            } else {
                raise_bfloats((uint16_t *)logits + at, low, delta);
                raise_bfloats((uint16_t *)logits + at + 256, high, delta);
            }
        }
    }
}

/* Add to the logits what is positive. */
INLINE void apply(char *logits, int kind, int64_t column, const float *bias, int64_t n)
{
    if (kind == 0) {
        float *x = (float *)logits + column;
        for (int64_t i = 0; i < n; i++)
            x[i] = bias[i] > 0 ? x[i] + bias[i] : x[i];
    } else if (kind == 1) {
        uint16_t *x = (uint16_t *)logits + column;
        for (int64_t i = 0; i < n; i++) {
            const uint32_t u = bits_of(float_of((uint32_t)x[i] << 16) + bias[i]);
            x[i] = bias[i] > 0 ? (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16) : x[i];
        }
    } else {
        uint16_t *x = (uint16_t *)logits + column;
        for (int64_t i = 0; i < n; i++) {
            const uint16_t sum = to_half(from_half(x[i]) + bias[i]);
            x[i] = bias[i] > 0 ? sum : x[i];
        }
    }
}

static void bias_rows(const void *task, int64_t from, int64_t to)
{
    const batch *b = task;
    const int64_t low = b->first, high = b->first + b->columns < b->limit ? b->first + b->columns : b->limit;
    for (int64_t row = from; row < to; row++) {
        row_state states[MARKS];
        uint32_t key[8], nonce[3];
        int32_t chosen[MARKS];
        int64_t marks = 0, e = 0;
        for (int64_t m = 0; m < b->marks; m++) {
            const int32_t k = b->which[row * b->which_stride + m];
            if (k >= 0 && address(b->keys + 8 * k, b->contexts + row * b->width, b->width, key, nonce))
                states[marks] = begin(key, nonce), chosen[marks++] = k;
        }
        char *logits = b->logits + row * b->stride * (b->kind ? 2 : 4);
        for (int64_t base = low & ~(int64_t)(GROUP - 1); base < high && marks; base += GROUP) {
            while (e < b->exempts && b->exempt[e] < base)
                e++;
            const int plain = e == b->exempts || b->exempt[e] >= base + GROUP;
            if (marks == 1 && plain && b->kind < 2 && base >= low && base + GROUP <= high) {
                const uint32_t threshold = (uint32_t)b->thresholds[chosen[0]];
                raise_group(&states[0], base, threshold, b->deltas[chosen[0]], b->kind, logits, base - low);
                continue;
            }
            _Alignas(64) float bias[GROUP]; /* -0 where no mark says otherwise, so that it is positive there only */
            for (int i = 0; i < GROUP; i++)
                bias[i] = -0.0f;
            for (int64_t m = 0; m < marks; m++) {
                const uint32_t threshold = (uint32_t)b->thresholds[chosen[m]];
                raise_group(&states[m], base, threshold, b->deltas[chosen[m]], 0, (char *)bias, 0);
            }
            for (int64_t i = e; i < b->exempts && b->exempt[i] < base + GROUP; i++)
                bias[b->exempt[i] - base] = -0.0f;
            const int64_t start = base < low ? low : base, end = base + GROUP > high ? high : base + GROUP;
            apply(logits, b->kind, start - low, bias + (start - base), end - start);
        }
    }
}
