/* The entropy coder of `coders.py` in C. Its class IntegerAns is the definition, and this code gives the same bytes.
 *
 * This is ANS with a 64-bit state, 32-bit words and 24-bit probabilities 256 * f, where f are the 16-bit frequencies of
 * the profile's tables. The symbols of a pass are grouped by table, and the escapes follow them (docs/format.md,
 * "Entropy coding"). The code is plain C99 and allocates no memory.
 */
#include "coder.h"

#define MASK ((UINT64_C(1) << PRECISION) - 1)

static int push(Coder *c, uint64_t left, uint64_t probability) {
    if (c->state >> (64 - PRECISION) >= probability) {
        if (c->position == 0) return FULL;
        c->words[--c->position] = (uint32_t)c->state;
        c->state >>= 32;
    }
    c->state = (c->state / probability) << PRECISION | (left + c->state % probability);
    return OK;
}

static void advance(Coder *c, uint64_t left, uint64_t probability) {
    c->state = (c->state >> PRECISION) * probability + (c->state & MASK) - left;
    if (c->state < UINT64_C(1) << 32 && c->position < c->length) c->state = c->state << 32 | c->words[c->position++];
}

static int push_entry(Coder *c, const Tables *t, uint32_t table, uint32_t entry) {
    const uint32_t *row = t->cumulated + t->starts[table];
    return push(c, (uint64_t)row[entry] << 8, (uint64_t)(row[entry + 1] - row[entry]) << 8);
}

static uint32_t pop_entry(Coder *c, const Tables *t, uint32_t table) {
    const uint32_t *row = t->cumulated + t->starts[table];
    const uint32_t at = (uint32_t)(c->state & MASK) >> 8;
    uint32_t entry = t->coarse[table * COARSE + (at >> 8)];
    while (row[entry + 1] <= at) entry++; /* the loop ends because the last cumulated frequency is 65536 */
    advance(c, (uint64_t)row[entry] << 8, (uint64_t)(row[entry + 1] - row[entry]) << 8);
    return entry;
}

/* Whole numbers below 2^bits, all of them equally probable. */
static int push_uniform(Coder *c, uint64_t value, int bits) {
    return push(c, value << (PRECISION - bits), UINT64_C(1) << (PRECISION - bits));
}

static uint32_t pop_uniform(Coder *c, int bits) {
    const uint64_t value = (c->state & MASK) >> (PRECISION - bits);
    advance(c, value << (PRECISION - bits), UINT64_C(1) << (PRECISION - bits));
    return (uint32_t)value;
}

static int push_bit(Coder *c, uint64_t bit) { return push_uniform(c, bit, 1); }

static int pop_bit(Coder *c) { return (int)pop_uniform(c, 1); }

/* An escape is a sign bit and the excess in Exp-Golomb code. They are pushed so that they pop in this order. */
static int push_escape(Coder *c, uint32_t excess, int negative) {
    const uint32_t value = excess + 1;
    int digits = 0, status = OK;
    while (value >> digits) digits++;
    for (int i = 0; i < digits && status == OK; i++) status = push_bit(c, value >> i & 1);
    for (int i = 1; i < digits && status == OK; i++) status = push_bit(c, 0);
    return status == OK ? push_bit(c, (uint64_t)negative) : status;
}

static int pop_escape(Coder *c, uint32_t most, uint32_t *excess, int *negative) {
    uint32_t zeros = 0;
    uint32_t value = 1;
    *negative = pop_bit(c);
    while (!pop_bit(c))
        if (++zeros > most) return LONG_ESCAPE;
    while (zeros--) value = value << 1 | (uint32_t)pop_bit(c);
    *excess = value - 1;
    return OK;
}

/* Counts where the run of each table begins when the positions are sorted by table. */
static int starts_by_table(const Tables *t, const int32_t *table, uint32_t count, uint32_t begins[TABLES_MAX]) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < t->latent_tables; i++) begins[i] = 0;
    for (uint32_t i = 0; i < count; i++) {
        if ((uint32_t)table[i] >= t->latent_tables) return BAD_TABLE;
        begins[table[i]]++;
    }
    for (uint32_t i = 0; i < t->latent_tables; i++) {
        const uint32_t size = begins[i];
        begins[i] = sum;
        sum += size;
    }
    return OK;
}

static int64_t reach_of(const Tables *t, int32_t table) { return ((int64_t)t->entries[table] - 3) / 2; }

/* Returns what a table codes of a latent: its distance from the mean, both without the bits that follow raw. */
static int64_t symbol_of(int32_t value, int32_t mean, int raw) { return (int64_t)(value >> raw) - (mean >> (raw + 4)); }

static int push_pass(Coder *c, const Tables *t, Pass pass, Sorted *sorted) {
    const int32_t *const values = pass.values, *const table = pass.table, *const mean = pass.mean;
    const uint32_t count = pass.count;
    uint32_t next[TABLES_MAX];
    int status = starts_by_table(t, table, count, next), bits = 0;
    if (status != OK) return status;
    for (uint32_t i = 0; i < count; i++) {
        if (values[i] < t->smallest || values[i] > t->largest) return OUT_OF_RANGE;
        const int raw = t->raw_bits[table[i]];
        const int64_t symbol = symbol_of(values[i], mean[i], raw), reach = reach_of(t, table[i]);
        const int outside = symbol < -reach || symbol > reach + 1;
        const uint32_t *row = t->cumulated + t->starts[table[i]] + (outside ? 2 * reach + 2 : symbol + reach);
        sorted[next[table[i]]++] = (Sorted){i, (uint16_t)row[0], (uint16_t)(row[1] - row[0] - 1)};
        bits |= outside | raw;
    }
    for (uint32_t i = bits ? count : 0; i-- && status == OK;) {
        const uint32_t at = sorted[i].at;
        const int raw = t->raw_bits[table[at]];
        const int64_t symbol = symbol_of(values[at], mean[at], raw), reach = reach_of(t, table[at]);
        if (raw) status = push_uniform(c, (uint64_t)values[at] & ((UINT64_C(1) << raw) - 1), raw);
        if (status == OK && symbol < -reach) status = push_escape(c, (uint32_t)(-symbol - reach - 1), 1);
        if (status == OK && symbol > reach + 1) status = push_escape(c, (uint32_t)(symbol - reach - 2), 0);
    }
    for (uint32_t i = count; i-- && status == OK;)
        status = push(c, (uint64_t)sorted[i].left << 8, ((uint64_t)sorted[i].less + 1) << 8);
    return status;
}

int perigee_push_passes(Coder *c, const Tables *t, uint32_t passes, const Pass *pass, Sorted *sorted) {
    int status = OK;
    for (uint32_t k = passes; k-- && status == OK;) status = push_pass(c, t, pass[k], sorted);
    return status;
}

int perigee_pop_pass(Coder *c, const Tables *t, const Pass *pass, uint32_t *order) {
    int32_t *const values = pass->values;
    const int32_t *const table = pass->table, *const mean = pass->mean;
    const uint32_t count = pass->count;
    uint32_t next[TABLES_MAX];
    int status = starts_by_table(t, table, count, next);
    if (status != OK) return status;
    for (uint32_t i = 0; i < count; i++) order[next[table[i]]++] = i;
    for (uint32_t i = 0; i < count; i++) values[order[i]] = (int32_t)pop_entry(c, t, (uint32_t)table[order[i]]);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = order[i];
        const int raw = t->raw_bits[table[at]];
        const int64_t reach = reach_of(t, table[at]);
        int64_t value = values[at] - reach;
        if (value == reach + 2) {
            uint32_t excess;
            int negative;
            if ((status = pop_escape(c, t->escape_bits, &excess, &negative)) != OK) return status;
            value = negative ? -(int64_t)excess - reach - 1 : (int64_t)excess + reach + 2;
        }
        value += mean[at] >> (raw + 4);
        if (raw) value = value * (INT64_C(1) << raw) + pop_uniform(c, raw);
        if (value < t->smallest || value > t->largest)
            status = OUT_OF_RANGE; /* the rest is read all the same, as the definition does */
        values[at] = (int32_t)value;
    }
    return status;
}

int perigee_push_runs(Coder *c, const Tables *t, uint32_t table, uint32_t runs, uint32_t count,
                      const int32_t *entries) {
    int status = OK;
    for (uint32_t i = runs * count; i-- && status == OK;) {
        const uint32_t number = table + i / count;
        if ((uint32_t)entries[i] >= t->entries[number]) return BAD_ENTRY;
        status = push_entry(c, t, number, (uint32_t)entries[i]);
    }
    return status;
}

int perigee_pop_runs(Coder *c, const Tables *t, uint32_t table, uint32_t runs, uint32_t count, int32_t *entries) {
    for (uint32_t i = 0; i < runs * count; i++) entries[i] = (int32_t)pop_entry(c, t, table + i / count);
    return OK;
}

int perigee_flush(Coder *c) {
    for (; c->state; c->state >>= 32) {
        if (c->position == 0) return FULL;
        c->words[--c->position] = (uint32_t)c->state;
    }
    return OK;
}
