/* chacha8-v1 in plain C: the bias of a batch of logits, the bits of pairs, greens under many keys, distinct rows.
 *
 * Sixteen ChaCha blocks go side by side in one vector (GCC's and Clang's vector types, no intrinsics). In the bias
 * the lanes are sixteen counters, and the layout of the PRF makes what they give contiguous; for pairs the lanes are
 * sixteen pairs. On x86 under Linux each hot function is compiled for AVX-512, AVX2 and the baseline, and the
 * dynamic linker takes the best that the processor has. Pointers come as integers from native.py, which has checked
 * every shape and type; nothing here keeps one.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HAVE_THREADS 1
#endif

#define ROUNDS 8
#define LANES 16
#define GROUP 512 /* tokens that sixteen blocks cover */
#define MARKS 16
#define THREADS 64

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__linux__)
#define EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_CPU
#endif

typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));

static const uint32_t CONSTANTS[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};

#define ROTL(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#define QUARTER(s, a, b, c, d)                             \
    s[a] += s[b], s[d] = ROTL(s[d] ^ s[a], 16),            \
    s[c] += s[d], s[b] = ROTL(s[b] ^ s[c], 12),            \
    s[a] += s[b], s[d] = ROTL(s[d] ^ s[a], 8),             \
    s[c] += s[d], s[b] = ROTL(s[b] ^ s[c], 7)
#define COLUMNS(s) \
    QUARTER(s, 0, 4, 8, 12), QUARTER(s, 1, 5, 9, 13), QUARTER(s, 2, 6, 10, 14), QUARTER(s, 3, 7, 11, 15)
#define DIAGONALS(s) \
    QUARTER(s, 0, 5, 10, 15), QUARTER(s, 1, 6, 11, 12), QUARTER(s, 2, 7, 8, 13), QUARTER(s, 3, 4, 9, 14)
#define PERMUTE(s)                       \
    for (int i = 0; i < ROUNDS / 2; i++) \
        COLUMNS(s), DIAGONALS(s)

/* ---- threads: one a share of the work, for as long as one call lasts ---- */

typedef void (*work)(const void *task, int64_t from, int64_t to);
typedef struct {
    work run;
    const void *task;
    int64_t from, to;
} share;

static void *run_share(void *argument)
{
    share *s = argument;
    s->run(s->task, s->from, s->to);
    return NULL;
}

static void in_shares(work run, const void *task, int64_t items, int64_t threads)
{
    share shares[THREADS];
    threads = threads > THREADS ? THREADS : threads;
    threads = threads > items ? items : threads;
    if (threads < 1)
        threads = 1;
    for (int64_t i = 0; i < threads; i++)
        shares[i] = (share){run, task, items * i / threads, items * (i + 1) / threads};
#ifdef HAVE_THREADS
    pthread_t others[THREADS];
    int started[THREADS] = {0};
    for (int64_t i = 1; i < threads; i++)
        started[i] = pthread_create(&others[i], NULL, run_share, &shares[i]) == 0;
    run_share(&shares[0]);
    for (int64_t i = 1; i < threads; i++)
        if (started[i])
            pthread_join(others[i], NULL);
        else
            run_share(&shares[i]);
#else
    for (int64_t i = 0; i < threads; i++)
        run_share(&shares[i]);
#endif
}

/* ---- the bias ---- */

typedef struct {
    char *logits; /* rows of `columns`, `stride` elements apart; column 0 is token `first` */
    int64_t columns, stride, first, limit;
    const int64_t *contexts; /* [rows, width] */
    const int32_t *which;    /* [rows, marks], rows `which_stride` apart: indices of keys, -1 for none */
    int64_t which_stride, marks, width;
    const uint32_t *keys; /* [n, 8] */
    const int32_t *thresholds;
    const float *deltas;
    const int32_t *exempt; /* ascending */
    int64_t exempts;
    int kind; /* 0: float32, 1: bfloat16, 2: float16 */
} batch;

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
        PERMUTE(s);
        memcpy(out, s, 16), memcpy(out + 4, s + 12, 16);
    }
    return 1;
}

/* What does not change from group to group of one row: the state after the three quarter rounds that see no counter. */
typedef struct {
    uint32_t start[16], first[16];
} row_state;

INLINE row_state begin(const uint32_t key[8], const uint32_t nonce[3])
{
    row_state r = {{0}, {0}};
    memcpy(r.start, CONSTANTS, 16), memcpy(r.start + 4, key, 32), memcpy(r.start + 13, nonce, 12);
    memcpy(r.first, r.start, 64);
    QUARTER(r.first, 1, 5, 9, 13), QUARTER(r.first, 2, 6, 10, 14), QUARTER(r.first, 3, 7, 11, 15);
    return r;
}

/* The sixteen words of a group's blocks: low halves of word i are tokens 16 i .. 16 i + 15, high halves those + 256. */
INLINE void group_words(const row_state *r, uint32_t group, lanes word[16])
{
    const lanes zero = {0}, counter = (zero + (group << 4)) | (lanes){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    lanes s[16];
    for (int i = 0; i < 16; i++)
        s[i] = i == 12 ? counter : zero + r->first[i];
    QUARTER(s, 0, 4, 8, 12);
    DIAGONALS(s);
    for (int i = 1; i < ROUNDS / 2; i++)
        COLUMNS(s), DIAGONALS(s);
    for (int i = 0; i < 16; i++)
        word[i] = s[i] + (i == 12 ? counter : zero + r->start[i]);
}

INLINE floats either(masks which, floats yes, floats no)
{
    return (floats)(((masks)yes & which) | ((masks)no & ~which));
}

/* Add delta to bias[512] where a token of the group is green; bias is -0.0 before, so that it is positive there only. */
INLINE void raise_bias(const lanes word[16], uint32_t threshold, float delta, float *bias)
{
    floats *low = (floats *)bias, *high = low + 16;
    for (int i = 0; i < 16; i++) {
        low[i] = either((word[i] & 0xffff) < threshold, low[i] + delta, low[i]);
        high[i] = either(word[i] >> 16 < threshold, high[i] + delta, high[i]);
    }
}

INLINE void raise_float(float *x, masks green, float delta)
{
    floats logits;
    memcpy(&logits, x, sizeof logits);
    logits = either(green, logits + delta, logits);
    memcpy(x, &logits, sizeof logits);
}

INLINE void raise_bfloat(uint16_t *x, masks green, float delta)
{
    shorts stored;
    memcpy(&stored, x, sizeof stored);
    const lanes logits = __builtin_convertvector(stored, lanes) << 16, raised = (lanes)((floats)logits + delta);
    const lanes rounded = raised + 0x7fff + (raised >> 16 & 1);
    stored = __builtin_convertvector(((rounded & (lanes)green) | (logits & ~(lanes)green)) >> 16, shorts);
    memcpy(x, &stored, sizeof stored);
}

/* The same for one mark and a whole group, straight into the logits. */
INLINE void raise_logits(const lanes word[16], uint32_t threshold, float delta, int kind, char *logits, int64_t column)
{
    for (int i = 0; i < 16; i++) {
        const masks low = (word[i] & 0xffff) < threshold, high = word[i] >> 16 < threshold;
        const int64_t at = column + 16 * i;
        if (kind == 0) {
            raise_float((float *)logits + at, low, delta);
            raise_float((float *)logits + at + 256, high, delta);
        } else {
            raise_bfloat((uint16_t *)logits + at, low, delta);
            raise_bfloat((uint16_t *)logits + at + 256, high, delta);
        }
    }
}

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
            const uint16_t raised = to_half(from_half(x[i]) + bias[i]);
            x[i] = bias[i] > 0 ? raised : x[i];
        }
    }
}

EVERY_CPU static void bias_rows(const void *task, int64_t from, int64_t to)
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
        for (int64_t base = low & ~(GROUP - 1); base < high && marks; base += GROUP) {
            lanes word[16];
            while (e < b->exempts && b->exempt[e] < base)
                e++;
            const int plain = e == b->exempts || b->exempt[e] >= base + GROUP;
            if (marks == 1 && plain && b->kind < 2 && base >= low && base + GROUP <= high) {
                group_words(&states[0], (uint32_t)(base >> 9), word);
                const uint32_t threshold = (uint32_t)b->thresholds[chosen[0]];
                raise_logits(word, threshold, b->deltas[chosen[0]], b->kind, logits, base - low);
                continue;
            }
            _Alignas(64) float bias[GROUP];
            for (int i = 0; i < GROUP; i++)
                bias[i] = -0.0f;
            for (int64_t m = 0; m < marks; m++) {
                group_words(&states[m], (uint32_t)(base >> 9), word);
                raise_bias(word, (uint32_t)b->thresholds[chosen[m]], b->deltas[chosen[m]], bias);
            }
            for (int64_t i = e; i < b->exempts && b->exempt[i] < base + GROUP; i++)
                bias[b->exempt[i] - base] = -0.0f;
            const int64_t start = base < low ? low : base, end = base + GROUP > high ? high : base + GROUP;
            apply(logits, b->kind, start - low, bias + (start - base), end - start);
        }
    }
}

/* ---- pairs ---- */

typedef struct {
    const uint32_t *columns; /* [width + 1, pairs]: the context, oldest first, then the token */
    int64_t pairs, width;
    const uint32_t *keys; /* [n, 8] */
    uint32_t threshold;
    int64_t *greens;  /* [n], or NULL */
    uint16_t *values; /* [pairs], or NULL */
} scoring;

/* The bits of sixteen pairs, from pair `at` on (fewer, if they end before), under one key. */
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

EVERY_CPU static void count_keys(const void *task, int64_t from, int64_t to)
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

EVERY_CPU static void bits_of_pairs(const void *task, int64_t from, int64_t to)
{
    const scoring *t = task;
    for (int64_t at = from * LANES; at < to * LANES && at < t->pairs; at += LANES) {
        const lanes bits = pair_bits(t, t->keys, at);
        for (int64_t i = at; i < at + LANES && i < t->pairs; i++)
            t->values[i] = (uint16_t)bits[i - at];
    }
}

/* ---- distinct rows: open addressing, a slot holds 32 bits of the hash and the number of a distinct row plus one ---- */

typedef struct {
    uint64_t *slots, mask;
    int64_t *first, *counts, room, found;
    const uint32_t *rows;
    int64_t columns;
} table;

INLINE uint64_t hash_row(const uint32_t *row, int64_t columns)
{
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int64_t i = 0; i < columns; i++)
        h = (h ^ row[i]) * 0xff51afd7ed558ccdu, h ^= h >> 32;
    return h;
}

static int grow_slots(table *t)
{
    const uint64_t size = t->slots ? 2 * (t->mask + 1) : 1024;
    uint64_t *slots = calloc(size, 8);
    if (!slots)
        return 0;
    t->mask = size - 1;
    for (int64_t i = 0; i < t->found; i++) {
        const uint64_t h = hash_row(t->rows + t->first[i] * t->columns, t->columns);
        uint64_t place = h & t->mask;
        while (slots[place])
            place = (place + 1) & t->mask;
        slots[place] = (h >> 32 << 32) | (uint64_t)(i + 1);
    }
    free(t->slots);
    t->slots = slots;
    return 1;
}

static int grow_found(table *t)
{
    const int64_t room = t->room ? t->room + t->room / 2 : 1024;
    int64_t *first = realloc(t->first, (size_t)room * 8);
    if (first)
        t->first = first;
    int64_t *counts = first ? realloc(t->counts, (size_t)room * 8) : NULL;
    if (!counts)
        return 0;
    t->counts = counts, t->room = room;
    return 1;
}

#define AHEAD 16

static int fill(table *t, int64_t rows)
{
    uint64_t hashes[AHEAD];
    for (int64_t i = 0; i < rows + AHEAD; i++) {
        const uint64_t h = hashes[i % AHEAD];
        if (i < rows) {
            hashes[i % AHEAD] = hash_row(t->rows + i * t->columns, t->columns);
            if (t->slots)
                __builtin_prefetch(&t->slots[hashes[i % AHEAD] & t->mask]);
        }
        const int64_t at = i - AHEAD;
        if (at < 0 || at >= rows)
            continue;
        if ((!t->slots || 2 * (uint64_t)t->found > t->mask) && !grow_slots(t))
            return 0;
        const uint32_t *row = t->rows + at * t->columns;
        for (uint64_t place = h & t->mask;; place = (place + 1) & t->mask) {
            const uint64_t slot = t->slots[place];
            if (!slot) {
                if ((t->found == t->room && !grow_found(t)) || t->found == 0xffffffff)
                    return 0;
                t->first[t->found] = at, t->counts[t->found] = 1;
                t->slots[place] = (h >> 32 << 32) | (uint64_t)++t->found;
                break;
            }
            const int64_t known = (int64_t)(slot & 0xffffffff) - 1;
            if (slot >> 32 == h >> 32 && !memcmp(t->rows + t->first[known] * t->columns, row, (size_t)t->columns * 4)) {
                t->counts[known]++;
                break;
            }
        }
    }
    return 1;
}

/* ---- what Python sees ---- */

static PyObject *py_bias(PyObject *self, PyObject *arguments)
{
    (void)self;
    batch b;
    long long rows, threads;
    unsigned long long logits, contexts, which, keys, thresholds, deltas, exempt;
    if (!PyArg_ParseTuple(arguments, "KiLLLLLKLKLLKKKKLL", &logits, &b.kind, &rows, &b.columns, &b.stride, &b.first,
                          &b.limit, &contexts, &b.width, &which, &b.which_stride, &b.marks, &keys, &thresholds, &deltas,
                          &exempt, &b.exempts, &threads))
        return NULL;
    if (b.marks > MARKS || b.width > 7) {
        PyErr_SetString(PyExc_ValueError, "too many marks, or too wide");
        return NULL;
    }
    b.logits = (char *)(uintptr_t)logits;
    b.contexts = (const int64_t *)(uintptr_t)contexts;
    b.which = (const int32_t *)(uintptr_t)which;
    b.keys = (const uint32_t *)(uintptr_t)keys;
    b.thresholds = (const int32_t *)(uintptr_t)thresholds;
    b.deltas = (const float *)(uintptr_t)deltas;
    b.exempt = (const int32_t *)(uintptr_t)exempt;
    Py_BEGIN_ALLOW_THREADS;
    in_shares(bias_rows, &b, rows, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_bits(PyObject *self, PyObject *arguments)
{
    (void)self;
    scoring t = {0};
    long long threads;
    unsigned long long columns, key, values;
    if (!PyArg_ParseTuple(arguments, "KLLKKL", &columns, &t.pairs, &t.width, &key, &values, &threads))
        return NULL;
    t.columns = (const uint32_t *)(uintptr_t)columns;
    t.keys = (const uint32_t *)(uintptr_t)key;
    t.values = (uint16_t *)(uintptr_t)values;
    Py_BEGIN_ALLOW_THREADS;
    in_shares(bits_of_pairs, &t, (t.pairs + LANES - 1) / LANES, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_count_green(PyObject *self, PyObject *arguments)
{
    (void)self;
    scoring t = {0};
    long long number, threads;
    unsigned long long columns, keys, greens;
    if (!PyArg_ParseTuple(arguments, "KLLKLIKL", &columns, &t.pairs, &t.width, &keys, &number, &t.threshold, &greens,
                          &threads))
        return NULL;
    t.columns = (const uint32_t *)(uintptr_t)columns;
    t.keys = (const uint32_t *)(uintptr_t)keys;
    t.greens = (int64_t *)(uintptr_t)greens;
    Py_BEGIN_ALLOW_THREADS;
    in_shares(count_keys, &t, number, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_distinct_rows(PyObject *self, PyObject *arguments)
{
    (void)self;
    table t = {0};
    long long rows;
    unsigned long long data;
    int well;
    if (!PyArg_ParseTuple(arguments, "KLL", &data, &rows, &t.columns))
        return NULL;
    t.rows = (const uint32_t *)(uintptr_t)data;
    Py_BEGIN_ALLOW_THREADS;
    well = fill(&t, rows);
    free(t.slots);
    Py_END_ALLOW_THREADS;
    PyObject *found = NULL;
    if (well)
        found = Py_BuildValue("NN", PyByteArray_FromStringAndSize((const char *)t.first, t.found * 8),
                              PyByteArray_FromStringAndSize((const char *)t.counts, t.found * 8));
    else
        PyErr_NoMemory();
    free(t.first);
    free(t.counts);
    return found;
}

static PyMethodDef methods[] = {
    {"bias", py_bias, METH_VARARGS, NULL},
    {"bits", py_bits, METH_VARARGS, NULL},
    {"count_green", py_count_green, METH_VARARGS, NULL},
    {"distinct_rows", py_distinct_rows, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModule_Create(&module);
}
