/* From latents of components to samples. See reconstruction.h.
 *
 * Sums of whole numbers below 2^53 are exact in double precision, which vectors hold. Latents so large that a sum could
 * pass 2^53 take the same way in 64-bit integers. */
#include "reconstruction.h"

#include "prior.h"

enum { BUCKETS = 32, INDEX_STOP = 64, MATRIX_BITS = 14, CELL_SHIFT = 15, REACH = BLOCK / 2, STRIPE = 8 };
#define COMPONENT_MAX ((int64_t)1 << 34)
/* Absolute values in a column of a matrix add up to less than 2^17, so that each of the four products of a transform
 * makes values eight times as large at most: 2^26 becomes 2^35 before the last product, whose sums reach 2^52. */
#define EXACT_MAX ((int64_t)1 << 26)

static int64_t rounded_shift(int64_t x, int bits) { return (x + ((int64_t)1 << (bits - 1))) >> bits; }

static int64_t clamped(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* Where a latent is expected in its cell, in steps times 2^7, times the step size: the coefficient. */
static int64_t coefficient(const Transform *t, int32_t q, int32_t mean, int32_t index, uint32_t step) {
    const int64_t distance = 8 * (int64_t)q - mean, size = distance < 0 ? -distance : distance;
    const int64_t bucket = (size + 2) >> 2;
    int64_t inward = 0;
    if (index < INDEX_STOP) inward = t->centroids[index * BUCKETS + (bucket < BUCKETS ? bucket : BUCKETS - 1)];
    const int64_t within = 64 * (int64_t)q - (distance > 0 ? inward : distance < 0 ? -inward : 0);
    return clamped(rounded_shift(within * (int64_t)step, CELL_SHIFT), -COMPONENT_MAX, COMPONENT_MAX);
}

/* Rounds half up to whole numbers: a sum of whole numbers plus a half, times 2^-14, is never halfway between two, and
 * adding 1.5 * 2^52 leaves no room for fractions. */
static inline double rounded(double sum) {
    const double whole = 6755399441055744.0;
    return ((sum + 0.5) * (1.0 / (1 << MATRIX_BITS)) + whole) - whole;
}

/* One product of a stripe of values with the transpose of a matrix, in place. `x` has BLOCK rows of STRIPE values,
 * which are `stride` apart. */
static inline void product_real(const double *matrix, Number *x, size_t stride) {
    enum { ABREAST = 4 }; /* sums of so many rows stay in registers */
    double from[BLOCK][STRIPE];
    for (int u = 0; u < BLOCK; u++)
        for (int i = 0; i < STRIPE; i++) from[u][i] = x[(size_t)u * stride + (size_t)i].real;
    for (int j = 0; j < BLOCK; j += ABREAST) {
        double y[ABREAST][STRIPE] = {{0}};
        for (int u = 0; u < BLOCK; u++)
            for (int k = 0; k < ABREAST; k++)
                for (int i = 0; i < STRIPE; i++) y[k][i] += matrix[u * BLOCK + j + k] * from[u][i];
        for (int k = 0; k < ABREAST; k++)
            for (int i = 0; i < STRIPE; i++) x[(size_t)(j + k) * stride + (size_t)i].real = rounded(y[k][i]);
    }
}

static void product_whole(const int16_t *matrix, Number *x, size_t stride) {
    int64_t y[BLOCK][STRIPE] = {{0}};
    for (int u = 0; u < BLOCK; u++)
        for (int j = 0; j < BLOCK; j++)
            for (int i = 0; i < STRIPE; i++) y[j][i] += matrix[u * BLOCK + j] * x[(size_t)u * stride + (size_t)i].whole;
    for (int j = 0; j < BLOCK; j++)
        for (int i = 0; i < STRIPE; i++) x[(size_t)j * stride + (size_t)i].whole = rounded_shift(y[j][i], MATRIX_BITS);
}

/* The inverse transform along the columns of `x` [length][width], both multiples of BLOCK. */
CLONED static void inverse_real(const double *lap, const double *cosine, Number *x, size_t length, size_t width) {
    for (size_t row = 0; row < length; row += BLOCK)
        for (size_t i = 0; i < width; i += STRIPE) product_real(cosine, x + row * width + i, width);
    for (size_t row = REACH; row + BLOCK < length; row += BLOCK)
        for (size_t i = 0; i < width; i += STRIPE) product_real(lap, x + row * width + i, width);
}

static void inverse_whole(const Transform *t, Number *x, size_t length, size_t width) {
    for (size_t row = 0; row < length; row += BLOCK)
        for (size_t i = 0; i < width; i += STRIPE) product_whole(t->cosine, x + row * width + i, width);
    for (size_t row = REACH; row + BLOCK < length; row += BLOCK)
        for (size_t i = 0; i < width; i += STRIPE) product_whole(t->lap, x + row * width + i, width);
}

static void transpose(const Number *from, Number *to, size_t rows, size_t cols) {
    for (size_t row = 0; row < rows; row += BLOCK)
        for (size_t col = 0; col < cols; col += BLOCK)
            for (size_t i = 0; i < BLOCK; i++)
                for (size_t j = 0; j < BLOCK; j++) to[(col + j) * rows + row + i] = from[(row + i) * cols + col + j];
}

void perigee_plane(const Transform *t, uint32_t rows, uint32_t cols, const int32_t *q, const int32_t *mean,
                   const int32_t *index, uint32_t step, Number *work, int32_t *plane) {
    const size_t height = (size_t)rows * BLOCK, width = (size_t)cols * BLOCK, size = height * width;
    Number *const turned = work + size;
    int64_t most = 0;
    for (size_t k = 0; k < LATENTS; k++) {
        Number *const place = work + (size_t)(t->order[k] / BLOCK) * width + t->order[k] % BLOCK;
        for (size_t row = 0; row < rows; row++)
            for (size_t col = 0; col < cols; col++, q++, mean++, index++) {
                const int64_t value = *q || *mean ? coefficient(t, *q, *mean, *index, step) : 0;
                const int64_t magnitude = value < 0 ? -value : value;
                most = magnitude > most ? magnitude : most;
                place[row * BLOCK * width + col * BLOCK].whole = value;
            }
    }
    const int exact = most < EXACT_MAX;
    if (exact) {
        double lap[LATENTS], cosine[LATENTS];
        for (int i = 0; i < LATENTS; i++) lap[i] = t->lap[i], cosine[i] = t->cosine[i];
        for (size_t i = 0; i < size; i++) work[i].real = (double)work[i].whole;
        inverse_real(lap, cosine, work, height, width);
        transpose(work, turned, height, width);
        inverse_real(lap, cosine, turned, width, height);
    } else {
        inverse_whole(t, work, height, width);
        transpose(work, turned, height, width);
        inverse_whole(t, turned, width, height);
    }
    transpose(turned, work, width, height);
    for (size_t i = 0; i < size; i++) {
        const int64_t value = exact ? (int64_t)work[i].real : work[i].whole;
        plane[i] = (int32_t)clamped(value, INT32_MIN, INT32_MAX);
    }
}

/* Planes of 32 bits and a row of up to 32 entries of 16 bits stay below 2^53, so that the first product is exact. */
CLONED static void mix(uint32_t bands, size_t stride, size_t count, const int16_t *row, const int32_t *planes,
                       double *mixed) {
    for (size_t i = 0; i < count; i++) mixed[i] = 0;
    for (uint32_t c = 0; c < bands; c++)
        for (size_t i = 0; i < count; i++) mixed[i] += (double)row[c] * planes[c * stride + i];
    for (size_t i = 0; i < count; i++) mixed[i] = rounded(mixed[i]);
}

void perigee_samples(uint32_t bands, uint32_t count, const int16_t *matrix, const int32_t *mean, const uint32_t *scale,
                     int64_t low, int64_t high, const int32_t *planes, int32_t *samples) {
    enum { CHUNK = 1024 };
    double mixed[CHUNK];
    for (size_t at = 0; at < count; at += CHUNK) {
        const size_t part = count - at < CHUNK ? count - at : CHUNK;
        for (uint32_t b = 0; b < bands; b++) {
            mix(bands, count, part, matrix + b * bands, planes + at, mixed);
            int32_t *const out = samples + (size_t)b * count + at;
            for (size_t i = 0; i < part; i++) {
                const int64_t value = clamped((int64_t)mixed[i], -COMPONENT_MAX, COMPONENT_MAX);
                out[i] = (int32_t)clamped(rounded_shift(value * (int64_t)scale[b], 28) + mean[b], low, high);
            }
        }
    }
}
