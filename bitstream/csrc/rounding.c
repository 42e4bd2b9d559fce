/* The choice of latents by what they cost: a search over the trellis for the cheapest way. See rounding.h. */
#include "rounding.h"

#include <math.h>

#include "coder.h"

enum { BUCKETS = 32, FRACTIONS = 16, TABLED = 64, PER_OCTAVE = 6 };
enum { GROUP = 64, CANDIDATES = 5, BRANCHES = 4 };
static const float NEVER = 1e30f; /* what a way costs that does not exist */

/* Latents that are weighed together: their values in steps, the numbers of their tables and their means. */
typedef struct {
    float y[GROUP];
    int32_t table[GROUP], mean[GROUP];
} Group;

/* A candidate for each latent of a group, in half steps: what it costs, and the parity of the whole steps that are
 * coded. */
typedef struct {
    int32_t x[GROUP], parity[GROUP];
    float cost[GROUP];
} Candidate;

/* What leads on from one latent, by branch: the latent is even or odd in half steps, and its whole steps likewise. */
typedef struct {
    int32_t latent[BRANCHES][GROUP];
    float cost[BRANCHES][GROUP];
} Branches;

/* The bits of an escape, beside those of its entry: about twice those of its excess. */
static float escape_bits(int32_t symbol) { return 2 * log2f((float)(symbol < 0 ? -symbol : symbol) + 1) + 1; }

/* The bits of a symbol by one row of the tables. */
static float bits_of(const Costs *c, int32_t row, int32_t symbol) {
    const int32_t radius = c->radius[row];
    const float *entries = c->bits + c->starts[row];
    if (symbol >= -radius && symbol <= radius + 1) return entries[symbol + radius];
    return entries[2 * radius + 2] + escape_bits(symbol);
}

/* A latent as a choice: what it costs without the bits of an escape, its symbol, and whether that is an escape. */
typedef struct {
    float cost;
    int32_t symbol, outside;
} Choice;

/* Weighs the bits of the latent `x`, in half steps, and what its error is worth. Without branches, so that compilers
 * can take several latents at a time. */
static inline Choice weighed(const Costs *c, float y, int32_t table, int32_t mean, int32_t x) {
    const int32_t index = table / FRACTIONS, distance = FRACTIONS / 2 * x - mean;
    const int32_t size = distance < 0 ? -distance : distance, fourths = (size + 2) >> 2;
    const float inward = c->centroids[index * BUCKETS + (fourths < BUCKETS ? fourths : BUCKETS - 1)];
    const float error = y - ((float)x / 2 - (distance > 0 ? inward : distance < 0 ? -inward : 0));
    const int32_t below = mean - (x & 1) * FRACTIONS / 2, row = index * FRACTIONS + (below & (FRACTIONS - 1));
    const int32_t radius = c->radius[row], symbol = (x >> 1) - (below >> 4);
    const int32_t outside = (symbol < -radius) | (symbol > radius + 1);
    const int32_t entry = outside ? 2 * radius + 2 : symbol + radius;
    return (Choice){c->error_bits * error * error + c->bits[c->starts[row] + entry], symbol, outside};
}

/* Weighs a candidate for each latent of a group. */
CLONED static void weigh(const Costs *c, const Group *g, Candidate *to) {
    int32_t symbols[GROUP], outside[GROUP], escapes = 0;
    for (int i = 0; i < GROUP; i++) {
        const Choice found = weighed(c, g->y[i], g->table[i], g->mean[i], to->x[i]);
        to->cost[i] = found.cost, to->parity[i] = found.outside ? 0 : (to->x[i] >> 1) & 1;
        symbols[i] = found.symbol, outside[i] = found.outside, escapes += found.outside;
    }
    for (int i = 0; escapes && i < GROUP; i++)
        if (outside[i]) to->cost[i] += escape_bits(symbols[i]);
}

/* Finds the cheapest way along each branch: the two even and the two odd latents around the value, and 0. */
CLONED static void find_branches(const Costs *c, const Group *g, Candidate *candidates, Branches *b) {
    for (int i = 0; i < GROUP; i++) {
        const int32_t even = 2 * (int32_t)floorf(g->y[i]), odd = 2 * (int32_t)floorf(g->y[i] - 0.5f) + 1;
        const int32_t latents[CANDIDATES] = {even, even + 2, 0, odd, odd + 2};
        for (int k = 0; k < CANDIDATES; k++) candidates[k].x[i] = latents[k];
        for (int k = 0; k < BRANCHES; k++) b->latent[k][i] = 0, b->cost[k][i] = NEVER;
    }
    for (int k = 0; k < CANDIDATES; k++) {
        const Candidate *const from = &candidates[k];
        weigh(c, g, &candidates[k]);
        for (int parity = 0; parity < 2; parity++) {
            int32_t *latent = b->latent[2 * (k > 2) + parity];
            float *cost = b->cost[2 * (k > 2) + parity];
            for (int i = 0; i < GROUP; i++) {
                const int better = (from->parity[i] == parity) & (from->cost[i] < cost[i]);
                latent[i] = better ? from->x[i] : latent[i];
                cost[i] = better ? from->cost[i] : cost[i];
            }
        }
    }
}

/* The two states from which each state is reached, and the branches that lead there. */
typedef struct {
    int32_t state[2][STATES], branch[2][STATES];
} Arrivals;

static Arrivals arrivals(void) {
    Arrivals a;
    int found[STATES] = {0};
    for (int s = 0; s < STATES; s++)
        for (int parity = 0; parity < 2; parity++) {
            const int to = trellis[s][parity], n = found[to]++;
            a.state[n][to] = s, a.branch[n][to] = 2 * (s & 1) + parity;
        }
    return a;
}

/* Goes on by one latent, whose branches cost `branch`: each state keeps the cheaper of the ways that lead to it. */
CLONED static void go_on(const Arrivals *a, const float branch[BRANCHES], float cost[STATES], uint8_t second[STATES]) {
    float first[STATES], other[STATES], least = NEVER;
    for (int s = 0; s < STATES; s++) {
        first[s] = cost[a->state[0][s]] + branch[a->branch[0][s]];
        other[s] = cost[a->state[1][s]] + branch[a->branch[1][s]];
    }
    for (int s = 0; s < STATES; s++) {
        second[s] = other[s] < first[s];
        cost[s] = other[s] < first[s] ? other[s] : first[s];
        least = cost[s] < least ? cost[s] : least;
    }
    for (int s = 0; s < STATES; s++) cost[s] -= least; /* Sums stay small, so that single precision tells them apart. */
}

/* Returns the cheapest of a few whole steps, for a latent that is not on the trellis. */
static int32_t whole(const Costs *c, float y, int32_t table, int32_t mean) {
    const int32_t q = (int32_t)rintf(y), distance = FRACTIONS * q - mean;
    const int32_t nearer = distance > FRACTIONS / 2 ? q - 1 : distance < -FRACTIONS / 2 ? q + 1 : q;
    const int32_t latents[3] = {q, nearer, 0};
    int32_t best = q;
    float least = NEVER;
    if (table >= TRELLIS_STOP || (nearer == q && q == 0)) return 2 * q;
    for (int k = 0; k < 3; k++) {
        const Choice found = weighed(c, y, table, mean, 2 * latents[k]);
        const float cost = found.cost + (found.outside ? escape_bits(found.symbol) : 0);
        if (cost < least) least = cost, best = latents[k];
    }
    return 2 * best;
}

/* Sorts the places of the latents that are on the trellis by their tables and returns how many there are. The others
 * become whole steps. */
static uint32_t places_on_trellis(const Costs *c, uint32_t count, const float *y, const int32_t *table,
                                  const int32_t *mean, uint32_t *order, int32_t *out) {
    uint32_t begins[TRELLIS_STOP - TRELLIS_FROM] = {0}, sum = 0;
    for (uint32_t i = 0; i < count; i++)
        if (table[i] >= TRELLIS_FROM && table[i] < TRELLIS_STOP) begins[table[i] - TRELLIS_FROM]++;
        else out[i] = whole(c, y[i], table[i], mean[i]);
    for (int t = 0; t < TRELLIS_STOP - TRELLIS_FROM; t++) {
        const uint32_t size = begins[t];
        begins[t] = sum, sum += size;
    }
    for (uint32_t i = 0; i < count; i++)
        if (table[i] >= TRELLIS_FROM && table[i] < TRELLIS_STOP) order[begins[table[i] - TRELLIS_FROM]++] = i;
    return sum;
}

void perigee_choose(const Costs *c, uint32_t count, const float *y, const int32_t *table, const int32_t *mean,
                    uint32_t *order, Reached *reached, int32_t *out) {
    const uint32_t places = places_on_trellis(c, count, y, table, mean, order, out);
    const Arrivals a = arrivals();
    Candidate candidates[CANDIDATES];
    Group group;
    Branches b;
    float cost[STATES];
    for (int s = 0; s < STATES; s++) cost[s] = s ? NEVER : 0;
    for (uint32_t first = 0; first < places; first += GROUP) {
        const uint32_t size = places - first < GROUP ? places - first : GROUP;
        for (uint32_t i = 0; i < GROUP; i++) { /* A group that is not full repeats its last latent. */
            const uint32_t at = order[first + (i < size ? i : size - 1)];
            group.y[i] = y[at], group.table[i] = table[at], group.mean[i] = mean[at];
        }
        find_branches(c, &group, candidates, &b);
        for (uint32_t i = 0; i < size; i++) {
            Reached *r = &reached[first + i];
            float branch[BRANCHES];
            for (int k = 0; k < BRANCHES; k++) branch[k] = b.cost[k][i], r->latent[k] = b.latent[k][i];
            go_on(&a, branch, cost, r->second);
        }
    }
    int state = 0;
    for (int s = 1; s < STATES; s++)
        if (cost[s] < cost[state]) state = s;
    for (uint32_t i = places; i--;) {
        const int second = reached[i].second[state];
        out[order[i]] = reached[i].latent[a.branch[second][state]];
        state = a.state[second][state];
    }
}

void perigee_bits_by_offset(const Costs *c, uint32_t channels, uint32_t latents, const int32_t *x, const int32_t *table,
                            const int32_t *mean, uint32_t count, const int32_t *offsets, double *bits) {
    for (uint32_t k = 0; k < channels; k++, bits += count)
        for (uint32_t i = 0; i < latents; i++, x++, table++, mean++)
            for (uint32_t o = 0; o < count; o++) {
                int32_t index = *table / FRACTIONS + offsets[o], raw = 0;
                index = index < 0 ? 0 : index >= c->scales ? c->scales - 1 : index;
                if (index >= TABLED) raw = (index - TABLED) / PER_OCTAVE + 1, index -= PER_OCTAVE * raw;
                const int32_t below = *mean - (*x & 1) * FRACTIONS / 2;
                const int32_t row = index * FRACTIONS + ((below >> raw) & (FRACTIONS - 1));
                bits[o] += raw + bits_of(c, row, (*x >> 1 >> raw) - (below >> (raw + 4)));
            }
}
