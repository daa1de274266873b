/* Distinct rows: open addressing, a slot holds 32 bits of the hash and the number of a distinct row plus one.
 *
 * The rows may be a stranger's, who must not be able to choose them so that they meet in one place: the hash is
 * multilinear in 64-bit keys that are drawn for each call (Lemire and Kaser 2014: of two different rows the upper 32
 * bits are independent and uniform), and then mixed. What is found does not depend on the keys. */
#include "native.h"

INLINE uint64_t hash_row(const distinct *t, int64_t number)
{
    const uint32_t *row = t->rows + number * t->columns;
    uint64_t h = t->keys[t->columns];
    for (int64_t i = 0; i < t->columns; i++)
        h += t->keys[i] * row[i];
    h = (h ^ h >> 32) * 0xff51afd7ed558ccdu;
    return h ^ h >> 32;
}

static int grow_slots(distinct *t)
{
    const uint64_t size = t->slots ? 2 * (t->mask + 1) : 1024;
    uint64_t *slots = calloc(size, 8);
    if (!slots)
        return 0;
    t->mask = size - 1;
    for (int64_t i = 0; i < t->found; i++) {
        const uint64_t h = hash_row(t, t->first[i]);
        uint64_t place = h & t->mask;
        while (slots[place])
            place = (place + 1) & t->mask;
        slots[place] = (h >> 32 << 32) | (uint64_t)(i + 1);
    }
    free(t->slots);
    t->slots = slots;
    return 1;
}

static int grow_found(distinct *t)
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

static int fill(distinct *t, int64_t rows)
{
    uint64_t hashes[AHEAD];
    for (int64_t i = 0; i < rows + AHEAD; i++) {
        const uint64_t h = hashes[i % AHEAD];
        if (i < rows) {
            hashes[i % AHEAD] = hash_row(t, i);
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

int find_distinct(distinct *d, int64_t rows)
{
    const int well = fill(d, rows);
    free(d->slots);
    return well;
}
