/* The predictive coder of `predictive.py` in C: a band of a patch, sample by sample, each predicted from its neighbours
 * and from bands before it (docs/format2.md, "Predictive segments"). IntegerPredictor in Python is the definition, and
 * this code gives the same bytes.
 */
#ifndef PERIGEE_PREDICTIVE_H
#define PERIGEE_PREDICTIVE_H

#include "coder.h"

enum { OWN_TAPS = 6, NEAR_TAPS = 8, FAR_TAPS = 4, BEFORE_MAX = 3, TAPS_MAX = OWN_TAPS + NEAR_TAPS + 2 * FAR_TAPS };
enum { CURVE_SIZE = 769, LOGS_SIZE = 4096, LEVELS = 2048 };

/* How a sample is distributed about its mean. `curve` runs from 0 to 2^24 over 24 units of spread; `logs` has 64 times
 * the logarithm to base 2 of its index; `sharpness` and `spread` turn sixteenths of a sample to places on the curve and
 * back, by level of the mean error. */
typedef struct {
    const uint32_t *curve;
    const uint16_t *logs;
    const int64_t *sharpness;
    const int64_t *spread;
} Curve;

/* A band. `samples` and `errors` begin at the upper left sample of planes of `stride` columns, which have two columns
 * and rows of padding before the samples, two columns behind and one row below. The samples are 0..top. `before` are
 * planes of the same shape, of `count` bands that were coded before; `near_errors` is the plane of errors of the first
 * of them. */
typedef struct {
    int32_t *samples;
    uint16_t *errors;
    const int32_t *before[BEFORE_MAX];
    const uint16_t *near_errors;
    const int16_t *weights;
    uint32_t rows, cols, stride, count, repeats;
    int32_t top;
} Band;

/* A symbol: its share of 2^24, and the shares of those before it. */
typedef struct {
    uint32_t left, size;
} Interval;

/* Bytes of scratch memory for bands of so many columns. */
API uint64_t perigee_predictive_scratch(uint32_t cols);

/* Fills the errors of a band whose samples are there, and the padding of both planes. Writes its symbols, at most two a
 * sample, and returns how many there are. */
API int64_t perigee_model_band(const Curve *curve, const Band *band, Interval *symbols, void *scratch);

/* Pushes symbols, so that they are read in the order in which they lie. */
API int perigee_push_intervals(Coder *coder, const Interval *symbols, uint64_t count);

/* The products [count, count] of rows of `length` numbers with each other, for the fit of weights. */
API void perigee_products(const double *rows, uint32_t count, uint64_t length, double *products);

/* Reads the samples of a band. */
API int perigee_pop_band(Coder *coder, const Curve *curve, const Band *band, void *scratch);

#endif
