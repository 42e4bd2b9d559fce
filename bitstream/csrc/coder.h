/* The entropy coder of `coders.py` in C: its types, which Python mirrors in `compiled.py`, and its functions.
 *
 * Every function returns OK or one of the negative errors below. The caller provides all memory.
 */
#ifndef PERIGEE_CODER_H
#define PERIGEE_CODER_H

#include <stdint.h>

#include "api.h"

enum { PRECISION = 24, TABLES_MAX = 2048, COARSE = 256 };
enum { TRELLIS_FROM = 11 * 16, TRELLIS_STOP = 64 * 16 }; /* the numbers of tables that are coded on the trellis */
enum { OK = 0, BAD_TABLE = -1, FULL = -2, LONG_ESCAPE = -3, OUT_OF_RANGE = -4, BAD_ENTRY = -5, OFF_TRELLIS = -6 };

/* An encoder fills `words` from their end towards their front, and a decoder reads them from front to end. So the words
 * are always in reading order. `position` is the word that was written last, or the one that will be read next. */
typedef struct {
    uint64_t state;
    uint32_t *words;
    uint64_t position, length;
} Coder;

#define MASK ((UINT64_C(1) << PRECISION) - 1)

static inline int push(Coder *c, uint64_t left, uint64_t probability) {
    if (c->state >> (64 - PRECISION) >= probability) {
        if (c->position == 0) return FULL;
        c->words[--c->position] = (uint32_t)c->state;
        c->state >>= 32;
    }
    c->state = (c->state / probability) << PRECISION | (left + c->state % probability);
    return OK;
}

static inline void advance(Coder *c, uint64_t left, uint64_t probability) {
    c->state = (c->state >> PRECISION) * probability + (c->state & MASK) - left;
    if (c->state < UINT64_C(1) << 32 && c->position < c->length) c->state = c->state << 32 | c->words[c->position++];
}

/* The profile's tables. The cumulated frequencies of a table run from 0 to 65536, one more than it has entries, and
 * begin at `cumulated[starts[table]]`. `coarse` has 256 numbers for each table: the entries that hold the multiples of
 * 256. A table does not code the lowest `raw_bits` bits of a latent, which follow as they are. Latents have the first
 * `latent_tables` numbers and lie in `smallest` to `largest`. Where there are more than 1024 of them, latents count
 * half steps, and the tables from TRELLIS_FROM to TRELLIS_STOP are coded on a trellis. */
typedef struct {
    const uint32_t *cumulated;
    const uint32_t *starts;
    const uint16_t *coarse;
    const uint32_t *entries; /* the number of entries of each table */
    const uint8_t *raw_bits;
    uint32_t latent_tables, escape_bits;
    int32_t smallest, largest;
} Tables;

/* The symbols of a pass. Each of the `count` values has the number of its table and a mean in sixteenths of a step. */
typedef struct {
    int32_t *values;
    const int32_t *table, *mean;
    uint32_t count;
} Pass;

/* A symbol in coding order: its place in the pass and the frequencies that it is coded with. */
typedef struct {
    uint32_t at;
    uint16_t left, less; /* the cumulated frequency before the symbol, and the symbol's own frequency less 1 */
    uint8_t odd;         /* whether the latent is odd in half steps */
} Sorted;

/* The state of the trellis behind each state, by the parity of the whole steps that were coded. Odd states code latents
 * that are odd in half steps. */
INTERNAL extern const uint8_t trellis[8][2];

static inline int on_trellis(const Tables *t, int32_t table) {
    return t->latent_tables > TRELLIS_STOP && table >= TRELLIS_FROM && table < TRELLIS_STOP;
}

/* Pushes the passes of a patch, which are given in the order in which they will be read. `sorted` has room for the
 * largest pass. */
API int perigee_push_passes(Coder *c, const Tables *t, uint32_t passes, const Pass *pass, Sorted *sorted);

/* Reads the values of a pass. `order` has room for as many as there are values. */
API int perigee_pop_pass(Coder *c, const Tables *t, const Pass *pass, Sorted *order);

/* Push or read `runs` runs of `count` entries each. The first run uses `table`, the next one the table after it, and so
 * on. The hyper-latents are coded in this way, channel by channel. */
API int perigee_push_runs(Coder *c, const Tables *t, uint32_t table, uint32_t runs, uint32_t count,
                          const int32_t *entries);
API int perigee_pop_runs(Coder *c, const Tables *t, uint32_t table, uint32_t runs, uint32_t count, int32_t *entries);

/* Writes the state in front of the words, its most significant word first. Nothing can be pushed afterwards. */
API int perigee_flush(Coder *c);

#endif
