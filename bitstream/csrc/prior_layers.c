/* Layers that check themselves.
 *
 * Sums that are exact can be checked exactly. What the outputs of a 1x1 layer at all positions add up to also follows
 * from the sums of its inputs and the sums of its weights. Both are compared modulo 2^32, which finds any single bit
 * that flips in weights, biases or sums. The caller then computes the patch again.
 */
#include "prior.h"

#include <string.h>

enum { CHECKED = 64 }; /* how many inputs `expected` sums at a time */

CLONED uint32_t damaged(const Layer *l) {
    uint32_t total = 0;
    for (int32_t i = 0; i < l->padded; i++) total += (uint32_t)l->shift[i] + (uint32_t)l->bias[i];
    if (l->kernel > 1) {
        const int16_t *w = (const int16_t *)l->weight;
        for (int32_t i = 0; i < l->kernel * l->kernel * l->outputs; i++) total += (uint32_t)w[i];
    }
    return total - l->check[0];
}

CLONED uint32_t expected(const Layer *l, size_t columns, Inputs x) {
    const size_t inputs = (size_t)l->inputs;
    const uint32_t *check = l->check + 1 + (columns / COLUMNS - 1) * (inputs + 1);
    uint32_t total = (uint32_t)x.count * check[inputs];
    for (size_t first = 0; first < inputs; first += CHECKED) {
        const size_t width = inputs - first < CHECKED ? inputs - first : CHECKED;
        uint32_t sums[CHECKED] = {0};
        for (size_t start = 0; start < x.count; start += 256) { /* 256 bytes add up to less than 2^16. */
            const size_t stop = x.count - start < 256 ? x.count : start + 256;
            uint16_t part[CHECKED] = {0};
            for (size_t p = start; p < stop; p++) {
                const uint8_t *from = x.bytes + p * x.stride + first;
                if (width == CHECKED)
                    for (size_t i = 0; i < CHECKED; i++) part[i] += from[i];
                else
                    for (size_t i = 0; i < width; i++) part[i] += from[i];
            }
            for (size_t i = 0; i < width; i++) sums[i] += part[i];
        }
        for (size_t i = 0; i < width; i++) total += sums[i] * check[first + i];
    }
    return total;
}

CLONED uint32_t pointwise(Tile *tile, const Layer *l, size_t wanted, Inputs x, uint8_t *out, size_t out_stride,
                          int32_t *last) {
    const size_t columns = (size_t)l->padded < wanted ? (size_t)l->padded : wanted;
    uint32_t total = 0;
    for (size_t column = 0; column < columns; column += COLUMNS) {
        const int32_t *bias = l->bias + column, *shift = l->shift + column;
        uint32_t added[COLUMNS] = {0};
        for (size_t first = 0; first < x.count; first += ROWS) {
            const size_t rows = x.count - first < ROWS ? x.count - first : ROWS;
            const uint8_t *from[ROWS];
            int32_t sums[ROWS][COLUMNS];
            for (size_t r = 0; r < ROWS; r++) from[r] = x.bytes + x.stride * (first + (r < rows ? r : 0));
            tile(l, column, from, sums);
            for (size_t r = 0; r < rows; r++) {
                for (int c = 0; c < COLUMNS; c++) {
                    sums[r][c] += bias[c];
                    added[c] += (uint32_t)sums[r][c];
                    sums[r][c] >>= shift[c];
                }
                if (out == NULL) {
                    int32_t *to = last + (first + r) * (size_t)l->padded + column;
                    for (int c = 0; c < COLUMNS; c++) to[c] = clamp(sums[r][c], OUT_MIN, OUT_MAX);
                } else {
                    const size_t left = (size_t)l->outputs - column, width = left < COLUMNS ? left : COLUMNS;
                    uint8_t bytes[COLUMNS];
                    for (int c = 0; c < COLUMNS; c++) bytes[c] = (uint8_t)clamp(sums[r][c], 0, 255);
                    memcpy(out + (first + r) * out_stride + column, bytes, width);
                }
            }
        }
        for (int c = 0; c < COLUMNS; c++) total += added[c];
    }
    return total;
}

uint32_t checked(Tile *tile, const Layer *l, Inputs x, uint8_t *out, size_t out_stride) {
    const uint32_t total = pointwise(tile, l, ALL, x, out, out_stride, NULL);
    return (total - expected(l, (size_t)l->padded, x)) | damaged(l);
}
