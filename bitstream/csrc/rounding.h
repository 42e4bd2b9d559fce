/* Rounding of latents by what they cost, for encoders alone: `rounding.py` has the same in numpy. It only chooses
 * integers, so it may differ from machine to machine. */
#ifndef PERIGEE_ROUNDING_H
#define PERIGEE_ROUNDING_H

#include <stdint.h>

#include "api.h"

/* What latents cost. `bits` has the cost of each entry of the tables, whose rows begin at `starts`; `radius` is by
 * table. `centroids` is [scale index][32], in 1/128 step. A squared error of one step is worth `error_bits` bits.
 * Tables from `tables` on are for latents that are rounded to the nearest. */
typedef struct {
    const float *bits;
    const int32_t *starts, *radius;
    const int8_t *centroids;
    float error_bits;
    int32_t tables;
} Costs;

/* Chooses `count` latents for the values `y`, in steps, given their table numbers and means in sixteenths. */
API void perigee_round(const Costs *costs, uint32_t count, const float *y, const int32_t *table, const int32_t *mean,
                       int32_t *out);

#endif
