/* The tournament: two passes over a row for each of its marks. The first notes the cell of every token, which is its
 * coins in all layers as one number, and sums the probability mass of each cell; the second adds the logarithm of what
 * the cell's tokens are multiplied by. */

#define CELLS 256
#define FEW (LANES == 16 ? 16 : 4) /* cells that each sum their mass in a register */
#define FLUSH 8                    /* groups whose masses are summed in float32 */
#define FAR 16                     /* nats: how much more probable than the reference of the masses a token may be */

/* e^x for x <= FAR within 5e-7 of its value; 0 below -87.3, where float32 loses precision; NaN of NaN. */
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
    return keep(not_below(x, -87.3365f), (floats)((lanes)((tail * rest + 1) * rest + 1) + power));
}

/* A quad is four vectors of tokens, 16 apart, whose cells are packed in one. A group's quads, in the order in which their
 * cells are packed: `at` is where a quad's first vector begins in the group. */
#define EACH_QUAD(at)                                    \
    for (int part = 0; part < 16; part += LANES)         \
        for (int words = part; words < 256; words += 64) \
            for (int at = words; at < 512; at += 256)

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

/* The cells of the next quad. */
INLINE lanes next_four(const uint8_t **cells)
{
    lanes four;
    memcpy(&four, *cells, sizeof four);
    *cells += sizeof four;
    return four;
}

INLINE lanes cell_of(lanes four, int k)
{
    return four >> 8 * k & 255;
}

/* Whether all of 512 logits are -inf, as where only some tokens may follow. */
INLINE int is_empty(const float *x)
{
    for (int i = 0; i < GROUP; i += LANES)
        if (any(not_below(load(x + i), -FLT_MAX)))
            return 0;
    return 1;
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
    float some[4][CELLS]; /* of the last groups, token by token; four, so that an addition seldom waits for another */
    floats few[FEW];      /* of the last groups, lane by lane, and negative: see `subtract_where` */
    double all[CELLS];
    float reference; /* masses are relative to this logit's */
    int groups;      /* in `some` or `few` */
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
        for (int k = 0; k < 4; k++)
            for (int c = 0; c < cells; c++)
                m->all[c] += m->some[k][c], m->some[k][c] = 0;
    m->groups = 0;
}

/* A vector's masses, and the largest of its logits. */
INLINE floats mass_of(const masses *m, const float *x, floats *most)
{
    const floats logits = load(x);
    *most = larger(*most, logits);
    return exponential(logits - m->reference);
}

/* Few cells: each sums its mass in a register. Nothing is added if the largest logit, which is returned, is too far from
 * the reference. */
INLINE float add_few(masses *m, const float *x, const uint8_t *packed, int cells)
{
    floats sums[FEW], most = all(-INFINITY);
    for (int c = 0; c < cells; c++)
        sums[c] = m->few[c];
    EACH_QUAD (at) {
        const lanes four = next_four(&packed);
        for (int k = 0; k < 4; k++) {
            const floats mass = mass_of(m, x + at + 16 * k, &most);
            for (int c = 0; c < cells; c++)
                sums[c] = subtract_where(sums[c], equal(cell_of(four, k), (uint32_t)c), mass);
        }
    }
    const float largest = largest_lane(most);
    for (int c = 0; c < cells && largest <= m->reference + FAR; c++)
        m->few[c] = sums[c];
    return largest;
}

#if LANES == 16
/* Sixteen cells, where there are registers for them. A comparison serves two cells: the bit that tells them apart sends
 * a mass to one of two vectors. */
INLINE float add_sixteen(masses *m, const float *x, const uint8_t *packed)
{
    floats sums[16], most = all(-INFINITY);
    for (int c = 0; c < 16; c++)
        sums[c] = m->few[c];
    EACH_QUAD (at) {
        const lanes four = next_four(&packed);
        for (int k = 0; k < 4; k++) {
            const floats mass = mass_of(m, x + at + 16 * k, &most);
            const lanes cell = cell_of(four, k), low = cell & 7;
            const truth top = equal(cell & 8, 8);
            const floats above = keep(top, mass), below = subtract_where(mass, top, mass);
            for (int c = 0; c < 8; c++) {
                const truth here = equal(low, (uint32_t)c);
                sums[c] = subtract_where(sums[c], here, below);
                sums[c + 8] = subtract_where(sums[c + 8], here, above);
            }
        }
    }
    const float largest = largest_lane(most);
    for (int c = 0; c < 16 && largest <= m->reference + FAR; c++)
        m->few[c] = sums[c];
    return largest;
}
#endif

/* Many cells: one token after the other. */
INLINE float add_many(masses *m, const float *x, const uint8_t *packed)
{
    float mass[GROUP];
    floats most = all(-INFINITY);
    for (int i = 0; i < GROUP; i += LANES)
        store(mass + i, mass_of(m, x + i, &most));
    const float largest = largest_lane(most);
    if (!(largest <= m->reference + FAR))
        return largest;
    EACH_QUAD (at)
        for (int lane = 0; lane < LANES; lane++, packed += 4) {
            uint32_t four;
            memcpy(&four, packed, 4);
            for (int k = 0; k < 4; k++)
                m->some[k][four >> 8 * k & 255] += mass[at + 16 * k + lane];
        }
    return largest;
}

#if LANES == 16
#define TABLE_BITS 4
#elif LANES == 8 && defined(__AVX2__)
#define TABLE_BITS 3
#else
#define TABLE_BITS 8
#endif
#define TABLES ((8 + TABLE_BITS - 1) / TABLE_BITS)

/* What is added to the logits of a cell: the sum of what each table has for the next TABLE_BITS layers of its coins. */
typedef struct {
    _Alignas(64) float of[TABLES][1 << TABLE_BITS];
} tables;

/* In each layer a token is multiplied by 1 + g - S, where g is its coin and 1 - S the mass of the cells with coin 0. Later
 * layers do not read this coin, so that the two cells that it tells apart are merged. 0 if the masses are no numbers, or
 * none is left. */
static int fill_tables(double *mass, int layers, tables *t)
{
    double total = 0, sums[TABLES][1 << TABLE_BITS] = {{0}};
    for (int c = 0; c < 1 << layers; c++)
        total += mass[c];
    if (!(total > 0 && total < INFINITY))
        return 0;
    for (int layer = 0; layer < layers; layer++) {
        double without = 0;
        for (int c = 0; c < 1 << layers >> layer; c += 2)
            without += mass[c];
        without /= total;
        if (without < FLT_MIN) /* a token whose probability is below this keeps some */
            without = FLT_MIN;
        for (int c = 0; c < 1 << layers >> layer >> 1; c++)
            mass[c] = mass[2 * c] * without + mass[2 * c + 1] * (1 + without);
        const double log_of[2] = {log(without), log1p(without)};
        for (int c = 0; c < 1 << TABLE_BITS; c++)
            sums[layer / TABLE_BITS][c] += log_of[c >> layer % TABLE_BITS & 1];
    }
    for (int i = 0; i < TABLES; i++)
        for (int c = 0; c < 1 << TABLE_BITS; c++)
            t->of[i][c] = (float)sums[i][c];
    return 1;
}

/* table[index] by the lowest TABLE_BITS bits. */
INLINE floats lookup(const float *table, lanes index)
{
#if LANES == 16
    return (floats)_mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(table));
#elif LANES == 8 && defined(__AVX2__)
    return (floats)_mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)index);
#else
    floats found;
    for (int i = 0; i < LANES; i++)
        found[i] = table[index[i] & 255];
    return found;
#endif
}

/* used: how many of the tables. */
INLINE void add_factors(const tables *t, const uint8_t *packed, int used, float *x)
{
    EACH_QUAD (at) {
        const lanes four = next_four(&packed);
        for (int k = 0; k < 4; k++) {
            floats factor = lookup(t->of[0], four >> 8 * k);
            for (int i = 1; i < used; i++)
                factor += lookup(t->of[i], four >> (8 * k + TABLE_BITS * i));
            float *to = x + at + 16 * k;
            store(to, load(to) + factor);
        }
    }
}

/* A group's 512 logits where they are; or a copy, with -inf for those which are not in the row or may not be tilted.
 * exempt: where the group's exempt tokens begin; from call to call it moves with the groups. */
INLINE float *group_of(const batch *b, float *x, int64_t base, int64_t high, int64_t *exempt, float *copy)
{
    const int64_t low = b->first, start = base < low ? low : base, end = base + GROUP > high ? high : base + GROUP;
    while (*exempt < b->exempts && b->exempt[*exempt] < base)
        ++*exempt;
    while (*exempt > 0 && b->exempt[*exempt - 1] >= base)
        --*exempt;
    if (end - start == GROUP && (*exempt == b->exempts || b->exempt[*exempt] >= end))
        return x + (base - low);
    for (int i = 0; i < GROUP; i++)
        copy[i] = -INFINITY;
    memcpy(copy + (start - base), x + (start - low), (size_t)(end - start) * 4);
    for (int64_t i = *exempt; i < b->exempts && b->exempt[i] < end; i++)
        copy[b->exempt[i] - base] = -INFINITY;
    return copy;
}

INLINE float add_masses(masses *m, const float *x, const uint8_t *packed, int layers)
{
    if (layers == 1)
        return add_few(m, x, packed, 2);
    if (layers == 2)
        return add_few(m, x, packed, 4);
#if LANES == 16
    if (layers == 3)
        return add_few(m, x, packed, 8);
    if (layers == 4)
        return add_sixteen(m, x, packed);
#endif
    return add_many(m, x, packed);
}

/* From now on relative to another logit. */
static void refer(masses *m, float reference, int cells)
{
    flush(m, cells);
    for (int c = 0; c < cells; c++)
        m->all[c] *= exp((double)m->reference - reference);
    m->reference = reference;
}

/* One mark on one row of float32; packed: a byte a token, for whole groups. 0 if a logit is NaN or infinite, or all are
 * -inf, so that nothing was done. */
INLINE int tilt(const batch *b, const row_state *r, int layers, float *x, uint8_t *packed)
{
    const int64_t low = b->first, high = b->first + b->columns < b->limit ? b->first + b->columns : b->limit;
    const int64_t begin_at = low & ~(int64_t)(GROUP - 1);
    const int cells = 1 << layers;
    float copy[GROUP];
    tables t;
    masses m = {.reference = -INFINITY};
    int64_t exempt = 0, base;
    for (base = begin_at; base < high; base += GROUP) {
        const float *group = group_of(b, x, base, high, &exempt, copy);
        if (is_empty(group))
            continue;
        uint8_t *at = packed + (base - begin_at);
        pack(r, base, (uint32_t)cells - 1, at);
        if (m.reference == -INFINITY)
            m.reference = largest_of(group);
        const float largest = add_masses(&m, group, at, layers);
        if (!(largest < INFINITY && m.reference < INFINITY))
            return 0;
        if (largest > m.reference + FAR) {
            refer(&m, largest, cells);
            add_masses(&m, group, at, layers);
        }
        if (++m.groups == FLUSH)
            flush(&m, cells);
    }
    flush(&m, cells);
    if (!fill_tables(m.all, layers, &t))
        return 0;
    while (base > begin_at) { /* backwards, since the last groups are still in the cache */
        base -= GROUP;
        float *group = group_of(b, x, base, high, &exempt, copy);
        if (is_empty(group))
            continue;
        const uint8_t *at = packed + (base - begin_at);
        if (layers <= TABLE_BITS)
            add_factors(&t, at, 1, group);
        else if (layers <= 2 * TABLE_BITS)
            add_factors(&t, at, 2, group);
        else
            add_factors(&t, at, TABLES, group);
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
