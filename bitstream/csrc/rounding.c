/* Rounding of latents by what they cost. See rounding.h. */
#include "rounding.h"

#include <math.h>

enum { BUCKETS = 32, CELL = 128, FRACTIONS = 16 };

/* Returns the bits of a latent and what its error is worth. An escape costs about twice the bits of its excess. */
static float cost_of(const Costs *c, float y, int32_t table, int32_t mean, int32_t q) {
    const int32_t distance = FRACTIONS * q - mean, size = distance < 0 ? -distance : distance;
    const int32_t bucket = (size + 2) >> 2 < BUCKETS ? (size + 2) >> 2 : BUCKETS - 1;
    const float inward = (float)c->centroids[table / FRACTIONS * BUCKETS + bucket] / CELL;
    const float error = y - ((float)q - (distance > 0 ? inward : distance < 0 ? -inward : 0));
    const int32_t radius = c->radius[table], symbol = q - (mean >> 4);
    const int outside = symbol < -radius || symbol > radius + 1;
    const float *row = c->bits + c->starts[table];
    const float bits = outside ? row[2 * radius + 2] + 2 * log2f((float)(symbol < 0 ? -symbol : symbol) + 1) + 1
                               : row[symbol + radius];
    return c->error_bits * error * error + bits;
}

void perigee_round(const Costs *c, uint32_t count, const float *y, const int32_t *table, const int32_t *mean,
                   int32_t *out) {
    for (uint32_t i = 0; i < count; i++) {
        const int32_t q = (int32_t)rintf(y[i]), distance = FRACTIONS * q - mean[i];
        const int32_t nearer = distance > FRACTIONS / 2 ? q - 1 : distance < -FRACTIONS / 2 ? q + 1 : q;
        out[i] = q;
        if (table[i] >= c->tables || (nearer == q && q == 0)) continue;
        float least = cost_of(c, y[i], table[i], mean[i], q);
        const int32_t others[2] = {nearer, 0};
        for (int k = 0; k < 2; k++) {
            if (others[k] == q) continue;
            const float cost = cost_of(c, y[i], table[i], mean[i], others[k]);
            if (cost < least) least = cost, out[i] = others[k];
        }
    }
}
