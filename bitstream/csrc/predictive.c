#include "predictive.h"

#include <string.h>

enum { FRACTION_BITS = 12, CENTRE = CURVE_SIZE / 2, BUCKETS_OWN = 32, BUCKETS_NEAR = 16 };
enum { LEVEL_ZERO = 512, LEVEL_LEAST = 384, COUNT_MAX = 255, COUNT_FIRST = 4, STEPS_MAX = 6, COARSE_PLACES = 4096 };
static const int64_t REACH = (int64_t)CENTRE << FRACTION_BITS;
static const uint32_t WHOLE = UINT32_C(1) << PRECISION;

typedef struct {
    uint32_t sum, count;
} Mean;

typedef struct {
    uint32_t curve[CURVE_SIZE];
    uint16_t coarse[COARSE_PLACES + 1]; /* the places of the curve that hold the multiples of 4096 */
    uint16_t repeats[16];               /* how probable it is that a sample repeats its neighbour, in 2^-16 */
    Mean means[BUCKETS_OWN * BUCKETS_NEAR];
} Adapted;

uint64_t perigee_predictive_scratch(uint32_t cols) { return sizeof(Adapted) + 16 + 12 * (uint64_t)cols; }

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* How many bits the number has beyond twelve. */
INLINE int beyond(uint32_t x) {
#if defined(__GNUC__)
    const int bits = 32 - __builtin_clz(x | 1);
    return bits > 12 ? bits - 12 : 0;
#else
    int shift = 0;
    while (x >> shift >= LOGS_SIZE) shift++;
    return shift;
#endif
}

INLINE int32_t log_of(const Curve *curve, uint32_t x) {
    const int shift = beyond(x);
    return curve->logs[x >> shift] + 64 * shift;
}

INLINE void begin(const Curve *curve, const Band *band, Adapted *adapted, int decoding) {
    const uint32_t left = WHOLE - (uint32_t)band->top - 1;
    for (uint32_t i = 0; i < CURVE_SIZE; i++)
        adapted->curve[i] = (uint32_t)((uint64_t)curve->curve[i] * left >> PRECISION);
    for (uint32_t i = 0; i < 16; i++) adapted->repeats[i] = 1 << 15;
    memset(adapted->means, 0, sizeof adapted->means);
    if (!decoding) return;
    for (uint32_t i = 0, place = 0; i <= COARSE_PLACES; i++) {
        while (place < CURVE_SIZE - 2 && adapted->curve[place + 1] <= i << (PRECISION - 12)) place++;
        adapted->coarse[i] = (uint16_t)place;
    }
}

/* The share of all samples below `value`. */
INLINE uint32_t below(const Adapted *a, const Band *band, int64_t sharpness, int32_t value, int32_t mean) {
    if (value <= 0) return 0;
    if (value > band->top) return WHOLE;
    int64_t at = ((16 * (int64_t)value - 8 - mean) * sharpness) >> 16;
    if (at <= -REACH) return a->curve[0] + (uint32_t)value;
    if (at >= REACH) return a->curve[CURVE_SIZE - 1] + (uint32_t)value;
    const uint32_t place = (uint32_t)(at + REACH), i = place >> FRACTION_BITS,
                   part = place & ((1 << FRACTION_BITS) - 1);
    const uint32_t rise = a->curve[i + 1] - a->curve[i];
    return a->curve[i] + (uint32_t)(((uint64_t)rise * part) >> FRACTION_BITS) + (uint32_t)value;
}

/* The sample whose share holds `at`: guessed from the curve, then looked for. */
INLINE int32_t sample_at(const Curve *curve, const Adapted *a, const Band *band, int32_t level, int32_t mean,
                         uint32_t at, uint32_t *left, uint32_t *right) {
    const int64_t sharpness = curve->sharpness[level];
    int32_t guess = (mean + 8) >> 4, low = 0, high = band->top;
    const uint32_t on = at > (uint32_t)guess ? at - (uint32_t)guess : 0;
    uint32_t i = a->coarse[on >> (PRECISION - 12)];
    while (i < CURVE_SIZE - 2 && a->curve[i + 1] <= on) i++;
    const uint32_t rise = a->curve[i + 1] - a->curve[i], over = on > a->curve[i] ? on - a->curve[i] : 0;
    const int64_t part = rise ? ((uint64_t)over << FRACTION_BITS) / rise : 0;
    const int64_t place = ((int64_t)i << FRACTION_BITS) + part - REACH;
    const int64_t found = (((place * curve->spread[level]) >> 33) + mean + 8) >> 4;
    guess = found < low ? low : found > high ? high : (int32_t)found;
    for (int steps = 0;; steps++) {
        *left = below(a, band, sharpness, guess, mean);
        if (*left > at) {
            high = guess - 1;
        } else {
            *right = below(a, band, sharpness, guess + 1, mean);
            if (*right > at) return guess;
            low = guess + 1;
        }
        if (steps >= STEPS_MAX) guess = low + (high - low) / 2;
        else guess = *left > at ? high : low;
    }
}

/* What of the predictions and contexts of a row is known before its samples. */
INLINE void prepare(const Curve *curve, const Band *band, uint32_t row, int32_t *weighted, uint32_t *around,
                    uint32_t *bucket) {
    const int64_t start = (int64_t)row * band->stride;
    const int32_t cols = (int32_t)band->cols, stride = (int32_t)band->stride;
    const int32_t *up = band->samples + start - stride, *up2 = up - stride;
    const uint16_t *errors = band->errors + start - stride, *errors2 = errors - stride;
    const int16_t *w = band->weights;
    for (int32_t c = 0; c < cols; c++)
        weighted[c] = w[2] * (up2[c] - up[c]) + w[3] * (up[c - 1] - up[c]) + w[4] * (up[c + 1] - up[c]) +
                      w[5] * (up[c + 2] - up[c]);
    for (int32_t c = 0; c < cols; c++) around[c] = 2u * errors[c] + errors[c - 1] + errors[c + 1] + errors2[c];
    w += OWN_TAPS;
    for (uint32_t k = 0; k < band->count; k++) {
        const int32_t *b = band->before[k] + start, *above = b - stride, *under = b + stride;
        for (int32_t c = 0; c < cols; c++)
            weighted[c] += w[0] * (b[c] - above[c]) + w[1] * (b[c - 1] - above[c]) + w[2] * (b[c + 1] - above[c]) +
                           w[3] * (under[c] - above[c]);
        w += FAR_TAPS;
        if (k) continue;
        for (int32_t c = 0; c < cols; c++)
            weighted[c] += w[0] * (above[c - 1] - above[c]) + w[1] * (above[c + 1] - above[c]) +
                           w[2] * (under[c - 1] - above[c]) + w[3] * (under[c + 1] - above[c]);
        w += NEAR_TAPS - FAR_TAPS;
    }
    for (int32_t c = 0; c < cols; c++) {
        uint32_t near = 0;
        if (band->count) {
            const uint16_t *e = band->near_errors + start + c;
            near = (4u * e[0] + e[-1] + e[1] + e[-stride] + e[stride]) >> 3;
            near = (uint32_t)(log_of(curve, near + 4) / 64 - 2);
        }
        bucket[c] = near;
    }
}

INLINE void pad_row(int32_t *samples, uint16_t *errors, uint32_t cols) {
    samples[-2] = samples[-1] = samples[0], samples[cols] = samples[cols + 1] = samples[cols - 1];
    errors[-2] = errors[-1] = errors[0], errors[cols] = errors[cols + 1] = errors[cols - 1];
}

/* Codes a band: with a coder it reads the samples, without one it writes symbols. Returns how many it has written, or
 * an error. */
INLINE int64_t code_band(Coder *coder, const Curve *curve, const Band *band, Interval *symbols, void *scratch) {
    Adapted *a = scratch;
    int32_t *weighted = (int32_t *)(a + 1);
    uint32_t *around = (uint32_t *)weighted + band->cols, *bucket = around + band->cols;
    const int decoding = coder != 0;
    const int32_t cols = (int32_t)band->cols, stride = (int32_t)band->stride, top = band->top;
    const int32_t w_left = band->weights[0], w_left2 = band->weights[1];
    const Interval *first = symbols;
    begin(curve, band, a, decoding);
    for (uint32_t r = 0; r < band->rows; r++) {
        int32_t *p = band->samples + (int64_t)r * stride;
        uint16_t *e = band->errors + (int64_t)r * stride;
        const int32_t *up = p - stride;
        prepare(curve, band, r, weighted, around, bucket);
        p[-2] = p[-1] = up[0], e[-2] = e[-1] = e[-stride];
        for (int32_t c = 0; c < cols; c++) {
            const int32_t sum = weighted[c] + w_left * (p[c - 1] - up[c]) + w_left2 * (p[c - 2] - up[c]);
            int32_t mean = 16 * up[c] + ((sum + 128) >> 8), value = p[c];
            mean = mean < 0 ? 0 : mean > 16 * top ? 16 * top : mean;
            int known = 0;
            if (band->repeats) {
                const int across = p[c - 1] == up[c - 1], down = up[c] == up[c - 1];
                if (across | down) {
                    const int further = p[c - 2] == up[c - 2], after = up[c + 1] == up[c];
                    uint16_t *chance = &a->repeats[across | further << 1 | down << 2 | after << 3];
                    const uint32_t share = (uint32_t)*chance << 8;
                    const int32_t repeated = across ? up[c] : p[c - 1];
                    if (decoding) {
                        known = (uint32_t)(coder->state & (WHOLE - 1)) < share;
                        if (known) advance(coder, 0, share);
                        else advance(coder, share, WHOLE - share);
                        if (known) value = repeated;
                    } else {
                        known = value == repeated;
                        *symbols++ = known ? (Interval){0, share} : (Interval){share, WHOLE - share};
                    }
                    uint32_t next = *chance;
                    next = known ? next + ((65535 - next) >> 5) : next - (next >> 5);
                    *chance = (uint16_t)(next < 32 ? 32 : next > 65504 ? 65504 : next);
                }
            }
            if (!known) {
                const uint32_t activity = (around[c] + 2u * e[c - 1] + e[c - 2]) >> 3;
                Mean *m = &a->means[(log_of(curve, activity + 4) / 32 - 4) * BUCKETS_NEAR + bucket[c]];
                if (!m->count) m->sum = COUNT_FIRST * (activity + 4), m->count = COUNT_FIRST;
                int32_t level = log_of(curve, m->sum) - log_of(curve, m->count) + LEVEL_ZERO;
                if (level < LEVEL_LEAST) level = LEVEL_LEAST;
                if (decoding) {
                    uint32_t left, right;
                    const uint32_t at = (uint32_t)(coder->state & (WHOLE - 1));
                    value = sample_at(curve, a, band, level, mean, at, &left, &right);
                    advance(coder, left, right - left);
                } else {
                    const uint32_t left = below(a, band, curve->sharpness[level], value, mean);
                    const uint32_t right = below(a, band, curve->sharpness[level], value + 1, mean);
                    *symbols++ = (Interval){left, right - left};
                }
                const int32_t off = 16 * value - mean;
                const uint32_t error = (uint32_t)(off < 0 ? -off : off);
                m->sum += error > 65535 ? 65535 : error;
                if (++m->count > COUNT_MAX) m->sum >>= 1, m->count >>= 1;
            }
            const int32_t off = 16 * value - mean, size = off < 0 ? -off : off;
            e[c] = (uint16_t)(size > 65535 ? 65535 : size);
            if (decoding) p[c] = value;
        }
        pad_row(p, e, band->cols);
    }
    /* what the bands behind see around it */
    for (int32_t row = -2; row < 0; row++) {
        memcpy(band->samples + (int64_t)row * stride - 2, band->samples - 2, (size_t)(cols + 4) * sizeof(int32_t));
        memcpy(band->errors + (int64_t)row * stride - 2, band->errors - 2, (size_t)(cols + 4) * sizeof(uint16_t));
    }
    const int64_t last = (int64_t)(band->rows - 1) * stride - 2;
    memcpy(band->samples + last + stride, band->samples + last, (size_t)(cols + 4) * sizeof(int32_t));
    memcpy(band->errors + last + stride, band->errors + last, (size_t)(cols + 4) * sizeof(uint16_t));
    return symbols - first;
}

CLONED int64_t perigee_model_band(const Curve *curve, const Band *band, Interval *symbols, void *scratch) {
    return code_band(0, curve, band, symbols, scratch);
}

int perigee_push_intervals(Coder *coder, const Interval *symbols, uint64_t count) {
    int status = OK;
    while (count-- && status == OK) status = push(coder, symbols[count].left, symbols[count].size);
    return status;
}

CLONED int perigee_pop_band(Coder *coder, const Curve *curve, const Band *band, void *scratch) {
    return (int)code_band(coder, curve, band, 0, scratch);
}

CLONED void perigee_products(const double *rows, uint32_t count, uint64_t length, double *products) {
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j <= i; j++) {
            const double *a = rows + i * length, *b = rows + j * length;
            double sums[8] = {0}, sum = 0;
            uint64_t k = 0;
            for (; k + 8 <= length; k += 8)
                for (int l = 0; l < 8; l++) sums[l] += a[k + l] * b[k + l];
            for (; k < length; k++) sum += a[k] * b[k];
            for (int l = 0; l < 8; l++) sum += sums[l];
            products[(uint64_t)i * count + j] = products[(uint64_t)j * count + i] = sum;
        }
}
