/* The tournament: two passes over a row for each of its marks. The first notes the cell of every token, which is its
 * coins in all layers as one number, and sums the probability mass of each cell; the second adds the logarithm of what
 * the cell's tokens are multiplied by. */

#define CELLS 256
#define FEW (LANES == 16 ? 16 : 8) /* cells that each sum their mass in a register */
#define COPIES 8 /* of the masses, so that an addition seldom waits for the one before it */
#define FLUSH 8  /* groups whose masses are summed in float32 */

/* e^x for x <= 0 within 5e-7 of its value; 0 below -87.3, where float32 loses precision. */
INLINE floats exponential(floats x)
{
    const float shift = 0x1.8p23f; /* a float of this size has no fraction, and its last bits are an integer */
    const floats shifted = x * 1.44269504f + shift, whole = shifted - shift;
#if defined(__FMA__) || defined(__AVX512F__)
    const floats rest = x - whole * 0.693147181f;
#else
    const floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2 in two parts, the first exact */
#endif
    const floats tail = ((rest * 0.00831247773f + 0.0418905504f) * rest + 0.166671157f) * rest + 0.499992281f;
    const lanes power = (lanes)shifted << 23;
    return keep(above(x, -87.3365f), (floats)((lanes)((tail * rest + 1) * rest + 1) + power));
}

/* A quad is four vectors of tokens, whose cells are packed in one. Where its vector k begins in the group: */
INLINE int64_t place(int quad, int k)
{
    return 16 * (4 * (quad >> 1 & 3) + k) + 256 * (quad & 1) + LANES * (quad >> 3);
}

#define QUADS (GROUP / 4 / LANES)

/* The cells of a group, 512 bytes: byte k of lane j of a quad belongs to lane j of its vector k. */
INLINE void pack(const row_state *r, int64_t base, uint32_t mask, uint8_t *cells)
{
    for (int part = 0; part < 16 / LANES; part++) {
        lanes word[16];
        block_words(r, (uint32_t)(base >> 9), (uint32_t)(part * LANES), word);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            const lanes a = word[4 * q], b = word[4 * q + 1], c = word[4 * q + 2], d = word[4 * q + 3];
            const lanes low = (a & mask) | (b & mask) << 8 | (c & mask) << 16 | (d & mask) << 24;
            const lanes high = (a >> 16 & mask) | (b >> 8 & mask << 8) | (c & mask << 16) | (d << 8 & mask << 24);
            memcpy(cells + (8 * part + 2 * q) * 4 * LANES, &low, sizeof low);
            memcpy(cells + (8 * part + 2 * q + 1) * 4 * LANES, &high, sizeof high);
        }
    }
}

INLINE lanes cell_of(const uint8_t *cells, int quad, int k)
{
    lanes four;
    memcpy(&four, cells + quad * 4 * LANES, sizeof four);
    return four >> 8 * k & 255;
}

/* The largest of 512 logits; NaN if one is. */
INLINE float largest_of(const float *x)
{
    floats most = load(x);
    truth nan = is_nan(most);
    for (int i = LANES; i < GROUP; i += LANES) {
        const floats next = load(x + i);
        nan |= is_nan(next);
        most = larger(most, next);
    }
    return any(nan) ? NAN : largest_lane(most);
}

typedef struct {
    _Alignas(64) float some[COPIES][CELLS]; /* of the last groups, token by token */
    floats few[FEW];                        /* of the last groups, lane by lane, and negative: see `subtract_where` */
    double all[CELLS];
    float largest; /* masses are relative to this logit's */
    int groups;    /* in `some` */
} masses;

static void flush(masses *m, int cells)
{
    if (cells <= FEW)
        for (int c = 0; c < cells; c++) {
            for (int i = 0; i < LANES; i++)
                m->all[c] -= m->few[c][i];
            m->few[c] = all(0);
        }
    else
        for (int copy = 0; copy < COPIES; copy++)
            for (int c = 0; c < cells; c++)
                m->all[c] += m->some[copy][c], m->some[copy][c] = 0;
    m->groups = 0;
}

/* Few cells: each sums its mass in a register. */
INLINE void add_few(masses *m, const float *x, const uint8_t *packed, int cells)
{
    floats sums[8];
    for (int c = 0; c < cells; c++)
        sums[c] = m->few[c];
    for (int quad = 0; quad < QUADS; quad++)
        for (int k = 0; k < 4; k++) {
            const floats mass = exponential(load(x + place(quad, k)) - m->largest);
            const lanes cell = cell_of(packed, quad, k);
            for (int c = 0; c < cells; c++)
                sums[c] = subtract_where(sums[c], equal(cell, (uint32_t)c), mass);
        }
    for (int c = 0; c < cells; c++)
        m->few[c] = sums[c];
}

#if LANES == 16
/* Sixteen cells, where there are registers for them. A comparison serves two cells: the bit that tells them apart sends
 * a mass to one of two vectors. */
INLINE void add_sixteen(masses *m, const float *x, const uint8_t *packed)
{
    floats sums[16];
    for (int c = 0; c < 16; c++)
        sums[c] = m->few[c];
    for (int quad = 0; quad < QUADS; quad++)
        for (int k = 0; k < 4; k++) {
            const floats mass = exponential(load(x + place(quad, k)) - m->largest);
            const lanes cell = cell_of(packed, quad, k), low = cell & 7;
            const truth top = equal(cell & 8, 8);
            const floats above = keep(top, mass), below = subtract_where(mass, top, mass);
            for (int c = 0; c < 8; c++) {
                const truth here = equal(low, (uint32_t)c);
                sums[c] = subtract_where(sums[c], here, below);
                sums[c + 8] = subtract_where(sums[c + 8], here, above);
            }
        }
    for (int c = 0; c < 16; c++)
        m->few[c] = sums[c];
}
#endif

/* Many cells: one token after the other. */
INLINE void add_many(masses *m, const float *x, const uint8_t *packed)
{
    const float largest = m->largest;
    for (int quad = 0; quad < QUADS; quad++) {
        float mass[4][LANES];
        for (int k = 0; k < 4; k++)
            store(mass[k], exponential(load(x + place(quad, k)) - largest));
        for (int i = 0; i < LANES; i++)
            for (int k = 0; k < 4; k++)
                m->some[i % COPIES][packed[(quad * LANES + i) * 4 + k]] += mass[k][i];
    }
}

/* Logarithms of what each cell's tokens are multiplied by: in each layer 1 + g - S, where g is the coin and 1 - S the mass
 * of the cells with coin 0. Later layers do not read this coin, so that the two cells that it tells apart are merged. */
static void log_factors(double *mass, int layers, float *factors)
{
    double total = 0, sums[CELLS] = {0};
    for (int c = 0; c < 1 << layers; c++)
        total += mass[c];
    for (int layer = 0; layer < layers; layer++) {
        const int cells = 1 << layers >> layer;
        double without = 0;
        for (int c = 0; c < cells; c += 2)
            without += mass[c];
        without /= total;
        if (without < FLT_MIN) /* a token whose probability is below this keeps some */
            without = FLT_MIN;
        for (int c = 0; c < cells / 2; c++)
            mass[c] = mass[2 * c] * without + mass[2 * c + 1] * (1 + without);
        const double log_of[2] = {log(without), log1p(without)};
        for (int c = 0; c < 1 << layers; c++)
            sums[c] += log_of[c >> layer & 1];
    }
    for (int c = 0; c < 1 << layers; c++)
        factors[c] = (float)sums[c];
}

#if LANES == 8 && defined(__AVX2__)
INLINE floats lookup_8(const float *table, lanes index)
{
    return (floats)_mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)index);
}

/* By a bit of the index. */
INLINE floats choose(lanes index, int bit, floats zero, floats one)
{
    return (floats)_mm256_blendv_ps((__m256)zero, (__m256)one, (__m256)(index << (31 - bit)));
}
#endif

/* table[index] for indices of `layers` bits. */
INLINE floats lookup(const float *table, lanes index, int layers)
{
#if LANES == 16
    if (layers <= 4)
        return (floats)_mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(table));
    if (layers == 5)
        return (floats)_mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)index, _mm512_load_ps(table + 16));
    return (floats)_mm512_i32gather_ps((__m512i)index, table, 4);
#elif LANES == 8 && defined(__AVX2__)
    if (layers <= 3)
        return lookup_8(table, index);
    if (layers == 4)
        return choose(index, 3, lookup_8(table, index), lookup_8(table + 8, index));
    if (layers == 5)
        return choose(index, 4, choose(index, 3, lookup_8(table, index), lookup_8(table + 8, index)),
                      choose(index, 3, lookup_8(table + 16, index), lookup_8(table + 24, index)));
    return (floats)_mm256_i32gather_ps(table, (__m256i)index, 4);
#else
    (void)layers;
    floats found;
    for (int i = 0; i < LANES; i++)
        found[i] = table[index[i]];
    return found;
#endif
}

INLINE void add_factors(const float *factors, const uint8_t *packed, int layers, float *x)
{
    for (int quad = 0; quad < QUADS; quad++)
        for (int k = 0; k < 4; k++) {
            float *to = x + place(quad, k);
            store(to, load(to) + lookup(factors, cell_of(packed, quad, k), layers));
        }
}

/* A group's 512 logits where they are; or a copy, with -inf for those which are not in the row or may not be tilted. */
INLINE float *group_of(const batch *b, float *x, int64_t base, int64_t high, int64_t *exempt, float *copy)
{
    const int64_t low = b->first, start = base < low ? low : base, end = base + GROUP > high ? high : base + GROUP;
    while (*exempt < b->exempts && b->exempt[*exempt] < base)
        ++*exempt;
    if (end - start == GROUP && (*exempt == b->exempts || b->exempt[*exempt] >= end))
        return x + (base - low);
    for (int i = 0; i < GROUP; i++)
        copy[i] = -INFINITY;
    memcpy(copy + (start - base), x + (start - low), (size_t)(end - start) * 4);
    for (int64_t i = *exempt; i < b->exempts && b->exempt[i] < end; i++)
        copy[b->exempt[i] - base] = -INFINITY;
    return copy;
}

/* One mark on one row of float32; packed: a byte a token, for whole groups. 0 if the row's largest logit is not finite,
 * so that nothing was done. */
INLINE int tilt(const batch *b, const row_state *r, int layers, float *x, uint8_t *packed)
{
    const int64_t low = b->first, high = b->first + b->columns < b->limit ? b->first + b->columns : b->limit;
    const int64_t begin_at = low & ~(int64_t)(GROUP - 1);
    const int cells = 1 << layers;
    _Alignas(64) float copy[GROUP], factors[CELLS];
    masses m = {.largest = -INFINITY};
    int64_t exempt = 0;
    for (int64_t base = begin_at; base < high; base += GROUP) {
        const float *group = group_of(b, x, base, high, &exempt, copy);
        uint8_t *at = packed + (base - begin_at);
        pack(r, base, (uint32_t)cells - 1, at);
        const float largest = largest_of(group);
        if (!(largest < INFINITY))
            return 0;
        if (largest == -INFINITY)
            continue;
        if (largest > m.largest) {
            flush(&m, cells);
            for (int c = 0; c < cells; c++)
                m.all[c] *= exp((double)m.largest - largest);
            m.largest = largest;
        }
        if (layers == 1)
            add_few(&m, group, at, 2);
        else if (layers == 2)
            add_few(&m, group, at, 4);
        else if (layers == 3)
            add_few(&m, group, at, 8);
#if LANES == 16
        else if (layers == 4)
            add_sixteen(&m, group, at);
#endif
        else
            add_many(&m, group, at);
        if (++m.groups == FLUSH)
            flush(&m, cells);
    }
    if (m.largest == -INFINITY)
        return 0;
    flush(&m, cells);
    log_factors(m.all, layers, factors);
    exempt = 0;
    for (int64_t base = begin_at; base < high; base += GROUP) {
        float *group = group_of(b, x, base, high, &exempt, copy);
        const uint8_t *at = packed + (base - begin_at);
        if (layers <= 3)
            add_factors(factors, at, 3, group);
        else if (layers == 4)
            add_factors(factors, at, 4, group);
        else if (layers == 5)
            add_factors(factors, at, 5, group);
        else
            add_factors(factors, at, 8, group);
        if (group == copy)
            for (int64_t i = 0; i < GROUP; i++)
                if (copy[i] > -INFINITY)
                    x[base - low + i] = copy[i];
    }
    return 1;
}

INLINE void widen(const uint16_t *x, int kind, int64_t n, float *wide)
{
    for (int64_t i = 0; i < n; i++)
        wide[i] = kind == 1 ? float_of((uint32_t)x[i] << 16) : from_half(x[i]);
}

/* Round what has changed. */
INLINE void narrow(const float *wide, int kind, int64_t n, uint16_t *x)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = bits_of(wide[i]), before = kind == 1 ? (uint32_t)x[i] << 16 : bits_of(from_half(x[i]));
        const uint16_t rounded = kind == 1 ? (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16) : to_half(wide[i]);
        x[i] = u == before ? x[i] : rounded;
    }
}

static void tournament_rows(const void *task, int64_t from, int64_t to)
{
    const batch *b = task;
    uint8_t *packed = malloc((size_t)(b->columns + 2 * GROUP));
    float *wide = b->kind ? malloc((size_t)b->columns * 4) : NULL;
    if (!packed || (b->kind && !wide))
        *b->failed = 1, to = from;
    for (int64_t row = from; row < to; row++) {
        char *logits = b->logits + row * b->stride * (b->kind ? 2 : 4);
        float *x = b->kind ? wide : (float *)logits;
        int taken = 0, changed = 0;
        for (int64_t mark = 0; mark < b->marks; mark++) {
            const int32_t k = b->which[row * b->which_stride + mark];
            uint32_t key[8], nonce[3];
            if (k < 0 || !address(b->keys + 8 * k, b->contexts + row * b->width, b->width, key, nonce))
                continue;
            if (b->kind == 1 && !taken++)
                widen((const uint16_t *)logits, 1, b->columns, wide);
            else if (b->kind == 2 && !taken++)
                widen((const uint16_t *)logits, 2, b->columns, wide);
            const row_state r = begin(key, nonce);
            changed |= tilt(b, &r, b->layers[k], x, packed);
        }
        if (b->kind == 1 && changed)
            narrow(wide, 1, b->columns, (uint16_t *)logits);
        else if (b->kind == 2 && changed)
            narrow(wide, 2, b->columns, (uint16_t *)logits);
    }
    free(packed);
    free(wide);
}
