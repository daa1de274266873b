/* What native.c, the levels (baseline.c, avx2.c, avx512.c) and distinct.c share. Nothing here keeps a pointer. */
#ifndef STILLMARK_NATIVE_H
#define STILLMARK_NATIVE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define GROUP 512 /* tokens that sixteen ChaCha blocks cover */
#define MARKS 16
#define PAIRS 16 /* pairs that are scored together, at every level */

#define INLINE static inline __attribute__((always_inline))

/* A share of some work: items `from` to `to`, without `to`. */
typedef void work(const void *task, int64_t from, int64_t to);

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
    const int32_t *layers; /* of the tournament, which has no thresholds and deltas */
    int *failed;           /* set if memory did not suffice */
} batch;

typedef struct {
    const uint32_t *columns; /* [width + 1, pairs]: the context, oldest first, then the token */
    int64_t pairs, width;
    const uint32_t *keys; /* [n, 8] */
    uint32_t threshold;
    int64_t *greens;  /* [n], or NULL */
    uint16_t *values; /* [pairs], or NULL */
} scoring;

/* The hot functions, compiled for one kind of processor. */
typedef struct {
    const char *name;
    work *bias_rows, *tournament_rows; /* of a batch: rows */
    work *count_keys;                  /* of a scoring: keys */
    work *bits_of_pairs;               /* of a scoring: sixteens of pairs */
} level;

#pragma GCC visibility push(hidden)

extern const level baseline;
#if defined(__x86_64__)
extern const level avx2, avx512;
#endif

typedef struct {
    const uint32_t *rows; /* [n, columns] */
    int64_t columns;
    const uint64_t *keys; /* [columns + 1], random */
    int64_t *first, *counts, found; /* of each distinct row: where it first stands, and how often; the caller frees */
    uint64_t *slots, mask;
    int64_t room;
} distinct;

/* 0: memory did not suffice. */
int find_distinct(distinct *d, int64_t rows);

#pragma GCC visibility pop

#endif
