/* chacha8-v1 in plain C: the bias of a batch of logits, the bits of pairs, greens under many keys, distinct rows.
 *
 * LANES ChaCha blocks go side by side in one vector (GCC's and Clang's vector types). In the bias the lanes are
 * counters, and the layout of the PRF makes what they give contiguous; for pairs the lanes are pairs. The hot functions
 * are compiled once for each level (AVX-512, AVX2, any processor), and the best that the processor has is chosen when
 * the module is loaded. Pointers come as integers from native.py, which has checked every shape and type; nothing here
 * keeps one.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "native.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HAVE_THREADS 1
#endif

#define THREADS 64

/* ---- levels, best first ---- */

static const level *levels[3], *chosen;

static void find_levels(void)
{
    int found = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        levels[found++] = &avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        levels[found++] = &avx2;
#endif
    levels[found] = &baseline;
    chosen = levels[0];
}

/* ---- threads: one a share of the work, for as long as one call lasts ---- */

typedef struct {
    work *run;
    const void *task;
    int64_t from, to;
} share;

static void *run_share(void *argument)
{
    share *s = argument;
    s->run(s->task, s->from, s->to);
    return NULL;
}

static void in_shares(work *run, const void *task, int64_t items, int64_t threads)
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

/* ---- what Python sees ---- */

static PyObject *py_bias(PyObject *self, PyObject *arguments)
{
    (void)self;
    batch b = {0};
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
    in_shares(chosen->bias_rows, &b, rows, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_tournament(PyObject *self, PyObject *arguments)
{
    (void)self;
    batch b = {0};
    long long rows, threads;
    unsigned long long logits, contexts, which, keys, layers, exempt;
    int failed = 0;
    if (!PyArg_ParseTuple(arguments, "KiLLLLLKLKLLKKKLL", &logits, &b.kind, &rows, &b.columns, &b.stride, &b.first,
                          &b.limit, &contexts, &b.width, &which, &b.which_stride, &b.marks, &keys, &layers, &exempt,
                          &b.exempts, &threads))
        return NULL;
    if (b.width > 7) {
        PyErr_SetString(PyExc_ValueError, "too wide");
        return NULL;
    }
    b.logits = (char *)(uintptr_t)logits;
    b.contexts = (const int64_t *)(uintptr_t)contexts;
    b.which = (const int32_t *)(uintptr_t)which;
    b.keys = (const uint32_t *)(uintptr_t)keys;
    b.layers = (const int32_t *)(uintptr_t)layers;
    b.exempt = (const int32_t *)(uintptr_t)exempt;
    b.failed = &failed;
    Py_BEGIN_ALLOW_THREADS;
    in_shares(chosen->tournament_rows, &b, rows, threads);
    Py_END_ALLOW_THREADS;
    if (failed)
        return PyErr_NoMemory();
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
    in_shares(chosen->bits_of_pairs, &t, (t.pairs + PAIRS - 1) / PAIRS, threads);
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
    in_shares(chosen->count_keys, &t, number, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_distinct_rows(PyObject *self, PyObject *arguments)
{
    (void)self;
    distinct t = {0};
    long long rows;
    unsigned long long data, keys;
    int well;
    if (!PyArg_ParseTuple(arguments, "KLLK", &data, &rows, &t.columns, &keys))
        return NULL;
    t.rows = (const uint32_t *)(uintptr_t)data;
    t.keys = (const uint64_t *)(uintptr_t)keys;
    Py_BEGIN_ALLOW_THREADS;
    well = find_distinct(&t, rows);
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

static PyObject *py_levels(PyObject *self, PyObject *nothing)
{
    (void)self, (void)nothing;
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < 3 && levels[i]; i++) {
        PyObject *name = PyUnicode_FromString(levels[i]->name);
        if (!name || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *py_use(PyObject *self, PyObject *argument)
{
    (void)self;
    for (int i = 0; i < 3 && levels[i]; i++)
        if (PyUnicode_Check(argument) && !PyUnicode_CompareWithASCIIString(argument, levels[i]->name)) {
            chosen = levels[i];
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no level %R", argument);
}

static PyMethodDef methods[] = {
    {"bias", py_bias, METH_VARARGS, NULL},
    {"tournament", py_tournament, METH_VARARGS, NULL},
    {"bits", py_bits, METH_VARARGS, NULL},
    {"count_green", py_count_green, METH_VARARGS, NULL},
    {"distinct_rows", py_distinct_rows, METH_VARARGS, NULL},
    {"levels", py_levels, METH_NOARGS, NULL},
    {"use", py_use, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    find_levels();
    return PyModule_Create(&module);
}
