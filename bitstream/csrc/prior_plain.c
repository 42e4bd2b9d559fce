/* The plain kernels, which every compiler can build. They are the reference for the kernels of all instruction sets. */
#include "prior.h"

/* Multiplies in float32, which is exact below 2^24 and which compilers turn into vectors. */
CLONED static void tile_plain(const Layer *l, size_t column, const uint8_t *const x[ROWS],
                              int32_t sums[ROWS][COLUMNS]) {
    float s[ROWS][COLUMNS] = {{0}};
    const float *w = (const float *)l->weight + column;
    for (int32_t i = 0; i < l->inputs; i++, w += l->padded)
        for (int r = 0; r < ROWS; r++) {
            const float value = (float)(x[r][i] - l->offset);
            for (int c = 0; c < COLUMNS; c++) s[r][c] += value * w[c];
        }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = (int32_t)s[r][c];
}

CLONED void depthwise_plain(const Layer *l, Map map, Run run, uint8_t *out, size_t out_stride) {
    const size_t kernel = (size_t)l->kernel, channels = (size_t)l->outputs;
    for (; run.count--; run.col += run.step, out += out_stride)
        for (size_t first = 0; first < channels; first += COLUMNS) {
            const size_t width = channels - first < COLUMNS ? channels - first : COLUMNS;
            int32_t sums[COLUMNS] = {0};
            for (size_t i = 0; i < kernel; i++)
                for (size_t j = 0; j < kernel; j++) {
                    const uint8_t *x = map.bytes + ((run.row + i) * map.line + run.col + j) * map.stride + first;
                    const int16_t *w = (const int16_t *)l->weight + (i * kernel + j) * channels + first;
                    if (width == COLUMNS)
                        for (size_t c = 0; c < COLUMNS; c++) sums[c] += x[c] * w[c];
                    else
                        for (size_t c = 0; c < width; c++) sums[c] += x[c] * w[c];
                }
            for (size_t c = 0; c < width; c++)
                out[first + c] = (uint8_t)clamp((sums[c] + l->bias[first + c]) >> l->shift[first + c], 0, 255);
        }
}

static int usable(void) { return 1; }

const Kernels kernels_plain = {"plain", usable, tile_plain, depthwise_plain};
