/* The choice of latents by what they cost, for encoders alone: `rounding.py` says what it is for. It only chooses
 * integers, so it may differ from machine to machine. */
#ifndef PERIGEE_ROUNDING_H
#define PERIGEE_ROUNDING_H

#include <stdint.h>

#include "api.h"

enum { STATES = 8 };

/* What latents cost. `bits` has the cost of each entry of the tables, whose rows begin at `starts`; `radius` is by
 * table. `centroids` is [scale index][32], in steps. A squared error of one step is worth `error_bits` bits. There
 * are `scales` scale indices. `perigee_bits_by_offset` needs neither centroids nor the worth of an error. */
typedef struct {
    const float *bits;
    const int32_t *starts, *radius;
    const float *centroids;
    float error_bits;
    int32_t scales;
} Costs;

/* How the states of the trellis were reached at one latent: the latents, in half steps, that its branches stand for,
 * and for each state whether it was reached by the second of the two ways that lead to it. */
typedef struct {
    int32_t latent[4];
    uint8_t second[STATES];
} Reached;

/* Chooses `count` latents, in half steps, for the values `y`, in steps, given their table numbers and means in
 * sixteenths of a step. `order` and `reached` have room for `count`. */
API void perigee_choose(const Costs *costs, uint32_t count, const float *y, const int32_t *table, const int32_t *mean,
                        uint32_t *order, Reached *reached, int32_t *out);

/* Adds to `bits` [channels][count] what the latents `x` [channels][latents], in half steps, take where each of `count`
 * offsets is added to their scale indices. */
API void perigee_bits_by_offset(const Costs *costs, uint32_t channels, uint32_t latents, const int32_t *x,
                                const int32_t *table, const int32_t *mean, uint32_t count, const int32_t *offsets,
                                double *bits);

#endif
