/* The entropy coder of `coders.py` in C. Its class IntegerAns is the definition, and this code gives the same bytes.
 *
 * This is ANS with a 64-bit state, 32-bit words and 24-bit probabilities 256 * f, where f are the 16-bit frequencies of
 * the profile's tables. The symbols of a pass are grouped by table, and the escapes follow them (docs/format.md,
 * "Entropy coding"). The code is plain C99 and allocates no memory.
 */
#include "coder.h"

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

const uint8_t trellis[8][2] = {{0, 2}, {5, 7}, {1, 3}, {6, 4}, {2, 0}, {4, 6}, {3, 1}, {7, 5}};

/* How a latent is coded: its row of frequencies, the row's reach, the mean in units of what the row codes, how many raw
 * bits follow, whether the latent is odd, and whether it moves the trellis on. */
typedef struct {
    uint32_t table;
    int32_t reach, mean;
    int raw, odd, moves;
} Place;

static Place place_of(const Tables *t, int32_t table, int32_t mean, int state) {
    const int raw = t->raw_bits[table], moves = on_trellis(t, table), odd = moves ? state & 1 : 0;
    const int32_t below = mean - 8 * odd;
    const uint32_t row = odd ? ((uint32_t)table & ~15u) | ((uint32_t)below & 15u) : (uint32_t)table;
    return (Place){row, (int32_t)(t->entries[table] - 3) / 2, below >> (raw + 4), raw, odd, moves};
}

/* Latents of components count half steps, so that `halves` is 1 there. */
static int halves_of(const Tables *t) { return t->latent_tables > TRELLIS_STOP; }

static int push_pass(Coder *c, const Tables *t, Pass pass, Sorted *sorted) {
    const int32_t *const values = pass.values, *const table = pass.table, *const mean = pass.mean;
    const uint32_t count = pass.count;
    const int halves = halves_of(t);
    uint32_t next[TABLES_MAX];
    int status = starts_by_table(t, table, count, next), more = 0, state = 0;
    if (status != OK) return status;
    for (uint32_t i = 0; i < count; i++) sorted[next[table[i]]++].at = i;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = sorted[i].at;
        if (values[at] < t->smallest || values[at] > t->largest) return OUT_OF_RANGE;
        const Place p = place_of(t, table[at], mean[at], state);
        if (halves && (values[at] & 1) != p.odd) return OFF_TRELLIS;
        const int32_t steps = values[at] >> halves, symbol = (steps >> p.raw) - p.mean;
        const int outside = symbol < -p.reach || symbol > p.reach + 1;
        const uint32_t *row = t->cumulated + t->starts[p.table] + (outside ? 2 * p.reach + 2 : symbol + p.reach);
        sorted[i].left = (uint16_t)row[0], sorted[i].less = (uint16_t)(row[1] - row[0] - 1);
        if (p.moves) state = trellis[state][outside ? 0 : steps & 1];
        sorted[i].odd = (uint8_t)p.odd;
        more |= outside | p.raw;
    }
    for (uint32_t i = more ? count : 0; i-- && status == OK;) {
        const uint32_t at = sorted[i].at;
        const Place p = place_of(t, table[at], mean[at], sorted[i].odd);
        const int32_t steps = values[at] >> halves, symbol = (steps >> p.raw) - p.mean;
        if (p.raw) status = push_uniform(c, (uint64_t)steps & ((UINT64_C(1) << p.raw) - 1), p.raw);
        if (status == OK && symbol < -p.reach) status = push_escape(c, (uint32_t)(-symbol - p.reach - 1), 1);
        if (status == OK && symbol > p.reach + 1) status = push_escape(c, (uint32_t)(symbol - p.reach - 2), 0);
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

int perigee_pop_pass(Coder *c, const Tables *t, const Pass *pass, Sorted *order) {
    int32_t *const values = pass->values;
    const int32_t *const table = pass->table, *const mean = pass->mean;
    const uint32_t count = pass->count;
    const int halves = halves_of(t);
    uint32_t next[TABLES_MAX];
    int status = starts_by_table(t, table, count, next), state = 0;
    if (status != OK) return status;
    for (uint32_t i = 0; i < count; i++) order[next[table[i]]++].at = i;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = order[i].at;
        const Place p = place_of(t, table[at], mean[at], state);
        const int32_t entry = (int32_t)pop_entry(c, t, p.table);
        if (p.moves) state = trellis[state][entry == 2 * p.reach + 2 ? 0 : (entry - p.reach + p.mean) & 1];
        order[i].odd = (uint8_t)p.odd;
        values[at] = entry;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = order[i].at;
        const Place p = place_of(t, table[at], mean[at], order[i].odd);
        int64_t value = (int64_t)values[at] - p.reach;
        if (value == p.reach + 2) {
            uint32_t excess;
            int negative;
            if (pop_escape(c, t->escape_bits, &excess, &negative) != OK) return LONG_ESCAPE;
            value = negative ? -(int64_t)excess - p.reach - 1 : (int64_t)excess + p.reach + 2;
        }
        value += p.mean;
        if (p.raw) value = value * (INT64_C(1) << p.raw) + pop_uniform(c, p.raw);
        if (halves) value = 2 * value + p.odd;
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
