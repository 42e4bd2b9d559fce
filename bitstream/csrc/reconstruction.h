/* From latents of components to samples, in integers: docs/format2.md, section 21. Every machine gives the same. */
#ifndef PERIGEE_RECONSTRUCTION_H
#define PERIGEE_RECONSTRUCTION_H

#include <stdint.h>

#include "api.h"

enum { BLOCK = 16, LATENTS = BLOCK * BLOCK };

/* The integers of a contract: the place 16 * u + v of each channel in its block, and the arrays of the same names. */
typedef struct {
    const uint8_t *order;
    const int16_t *lap, *cosine;
    const int8_t *centroids;
} Transform;

/* A value on its way through the transform, in one of two arithmetics that give the same. */
typedef union {
    double real;
    int64_t whole;
} Number;

/* Gives one component `plane` [16 * rows][16 * cols] of its latents `q`, in half steps, their `mean` and scale `index`
 * [LATENTS][rows][cols], and the step size in 2^-28 of the range. `work` has room for twice the plane. */
API void perigee_plane(const Transform *transform, uint32_t rows, uint32_t cols, const int32_t *q, const int32_t *mean,
                       const int32_t *index, uint32_t step, Number *work, int32_t *plane);

/* Turns `bands` components [bands][count] into bands: `matrix` [bands][bands] leads from components to bands, `scale`
 * is in 1/256 count. The samples lie within `low` and `high`. */
API void perigee_samples(uint32_t bands, uint32_t count, const int16_t *matrix, const int32_t *mean,
                         const uint32_t *scale, int64_t low, int64_t high, const int32_t *planes, int32_t *samples);

#endif
