/* Random numbers and random layers of the prior, for the tests here. */
#ifndef PERIGEE_RANDOM_H
#define PERIGEE_RANDOM_H

#include <stdlib.h>
#include <string.h>

#include "../../bitstream/csrc/prior.h"

static uint64_t seed = 88172645463325252u;

/* Gives a random number below a limit (xorshift64). */
static uint32_t any(uint32_t below) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)(seed >> 32) % below;
}

static void fill(uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)any(256);
}

/* What a kernel subtracts from each stored input. The packed bias gives it back. */
static int32_t taken_by(int32_t packing) { return packing == QUADS_DOT ? 128 : 0; }

/* Packs weights [outputs][inputs], or [outputs][taps] of a depthwise layer, as compiled.py does. Biases and shifts are
 * random. `unpack` frees the memory. */
static Layer pack(int32_t packing, const int8_t *weights, int32_t inputs, int32_t outputs, int32_t kernel) {
    const int depthwise = kernel > 1;
    const size_t group = depthwise || packing == SINGLES ? 1 : 4;
    const size_t real = depthwise ? (size_t)kernel * (size_t)kernel : (size_t)inputs;
    const size_t depth = (real + group - 1) / group * group;
    const size_t width = depthwise ? (size_t)outputs : padded((size_t)outputs);
    const size_t blocks = depthwise ? 0 : width / COLUMNS, line = depth + 1;
    const size_t bytes = depthwise || packing == QUADS_AVX2 ? 2 : packing == SINGLES ? 4 : 1;
    void *weight = calloc(depth * width, bytes);
    int32_t *bias = calloc(width, sizeof *bias), *shift = calloc(width, sizeof *shift);
    uint32_t *check = calloc(1 + blocks * line, sizeof *check);
    for (size_t o = 0; o < width; o++) {
        bias[o] = (int32_t)any(9999) - 5000, shift[o] = (int32_t)any(24);
        check[0] += (uint32_t)bias[o] + (uint32_t)shift[o];
        for (size_t b = o / COLUMNS; b < blocks; b++) check[1 + b * line + depth] += (uint32_t)bias[o];
    }
    for (size_t o = 0; o < (size_t)outputs; o++)
        for (size_t i = 0; i < real; i++) {
            const int8_t w = weights[o * real + i];
            const size_t at = i / group * width * group + o * group + i % group;
            if (bytes == 2) ((int16_t *)weight)[at] = w;
            else if (bytes == 4) ((float *)weight)[at] = w;
            else ((int8_t *)weight)[at] = w;
            if (depthwise) check[0] += (uint32_t)w;
            for (size_t b = o / COLUMNS; b < blocks; b++) {
                check[1 + b * line + i] += (uint32_t)w;
                check[1 + b * line + depth] -= (uint32_t)(taken_by(packing) * w);
            }
        }
    return (Layer){weight, bias, shift, check, depthwise ? inputs : (int32_t)depth, outputs, (int32_t)width, kernel, 0};
}

static void unpack(Layer l) {
    free((void *)l.weight), free((void *)l.bias), free((void *)l.shift), free((void *)l.check);
}

#endif
