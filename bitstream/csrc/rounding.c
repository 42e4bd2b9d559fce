/* The choice of latents by what they cost: a search over the trellis for the cheapest way. See rounding.h. */
#include "rounding.h"

#include <float.h>
#include <math.h>

#include "coder.h"

enum { BUCKETS = 32, CELL = 128, FRACTIONS = 16, TABLED = 64, PER_OCTAVE = 6 };

/* A latent `x`, in half steps, as a choice: what it costs, and how it moves the trellis. */
typedef struct {
    float cost;
    int parity;
} Choice;

/* The bits of a symbol by one row of the tables. An escape costs about twice the bits of its excess. */
static float bits_of(const Costs *c, int32_t row, int32_t symbol) {
    const int32_t radius = c->radius[row];
    const float *entries = c->bits + c->starts[row];
    if (symbol >= -radius && symbol <= radius + 1) return entries[symbol + radius];
    return entries[2 * radius + 2] + 2 * log2f((float)(symbol < 0 ? -symbol : symbol) + 1) + 1;
}

/* Weighs the bits of a latent and what its error is worth. */
static Choice choice_of(const Costs *c, float y, int32_t table, int32_t mean, int32_t x) {
    const int32_t index = table / FRACTIONS, distance = FRACTIONS / 2 * x - mean;
    const int32_t size = distance < 0 ? -distance : distance;
    const int32_t bucket = (size + 2) >> 2 < BUCKETS ? (size + 2) >> 2 : BUCKETS - 1;
    const float inward = (float)c->centroids[index * BUCKETS + bucket] / CELL;
    const float error = y - ((float)x / 2 - (distance > 0 ? inward : distance < 0 ? -inward : 0));
    const int32_t below = mean - (x & 1) * FRACTIONS / 2, row = index * FRACTIONS + (below & (FRACTIONS - 1));
    const int32_t radius = c->radius[row], symbol = (x >> 1) - (below >> 4);
    const int outside = symbol < -radius || symbol > radius + 1;
    return (Choice){c->error_bits * error * error + bits_of(c, row, symbol), outside ? 0 : (x >> 1) & 1};
}

/* Returns the cheapest of a few whole steps, for a latent that is not on the trellis. */
static int32_t whole(const Costs *c, float y, int32_t table, int32_t mean) {
    const int32_t q = (int32_t)rintf(y), distance = FRACTIONS * q - mean;
    const int32_t nearer = distance > FRACTIONS / 2 ? q - 1 : distance < -FRACTIONS / 2 ? q + 1 : q;
    const int32_t others[2] = {nearer, 0};
    int32_t best = q;
    if (table >= TRELLIS_STOP || (nearer == q && q == 0)) return 2 * q;
    float least = choice_of(c, y, table, mean, 2 * q).cost;
    for (int k = 0; k < 2; k++) {
        if (others[k] == q) continue;
        const float cost = choice_of(c, y, table, mean, 2 * others[k]).cost;
        if (cost < least) least = cost, best = others[k];
    }
    return 2 * best;
}

/* The cheapest latents by parity of the latent itself and of its whole steps, and what they cost. */
typedef struct {
    int32_t latent[2][2];
    float cost[2][2];
} Branches;

static void consider(Branches *b, Choice choice, int32_t x) {
    float *cost = &b->cost[x & 1][choice.parity];
    if (choice.cost < *cost) *cost = choice.cost, b->latent[x & 1][choice.parity] = x;
}

static Branches branches_of(const Costs *c, float y, int32_t table, int32_t mean) {
    Branches b = {{{0}}, {{FLT_MAX, FLT_MAX}, {FLT_MAX, FLT_MAX}}};
    for (int32_t odd = 0; odd < 2; odd++) {
        const int32_t below = (int32_t)floorf(y - (float)odd / 2);
        for (int32_t k = below; k <= below + 1; k++)
            consider(&b, choice_of(c, y, table, mean, 2 * k + odd), 2 * k + odd);
        if (odd == 0 && below != 0 && below != -1) consider(&b, choice_of(c, y, table, mean, 0), 0);
    }
    return b;
}

void perigee_choose(const Costs *c, uint32_t count, const float *y, const int32_t *table, const int32_t *mean,
                    const uint32_t *order, Reached *reached, int32_t *out) {
    float cost[STATES];
    uint32_t steps = 0;
    for (int s = 0; s < STATES; s++) cost[s] = s ? FLT_MAX : 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = order[i];
        if (table[at] < TRELLIS_FROM || table[at] >= TRELLIS_STOP) {
            out[at] = whole(c, y[at], table[at], mean[at]);
            continue;
        }
        const Branches b = branches_of(c, y[at], table[at], mean[at]);
        Reached *r = &reached[steps++];
        float next[STATES];
        for (int s = 0; s < STATES; s++) next[s] = FLT_MAX;
        for (int s = 0; s < STATES; s++)
            for (int parity = 0; parity < 2; parity++) {
                const int to = trellis[s][parity];
                const float sum = cost[s] < FLT_MAX ? cost[s] + b.cost[s & 1][parity] : FLT_MAX;
                if (sum < next[to]) next[to] = sum, r->latent[to] = b.latent[s & 1][parity], r->before[to] = (uint8_t)s;
            }
        float least = FLT_MAX; /* Sums stay small, so that single precision tells them apart. */
        for (int s = 0; s < STATES; s++) least = next[s] < least ? next[s] : least;
        for (int s = 0; s < STATES; s++) cost[s] = next[s] < FLT_MAX ? next[s] - least : FLT_MAX;
    }
    int state = 0;
    for (int s = 1; s < STATES; s++)
        if (cost[s] < cost[state]) state = s;
    for (uint32_t i = count; i--;) {
        const uint32_t at = order[i];
        if (table[at] < TRELLIS_FROM || table[at] >= TRELLIS_STOP) continue;
        const Reached *r = &reached[--steps];
        out[at] = r->latent[state];
        state = r->before[state];
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
