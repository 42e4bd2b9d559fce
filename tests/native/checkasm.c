/* Compares the kernels of every instruction set that this machine has with the plain kernels, and the plain kernels
 * with naive loops, on random layers: `make check-native`. The results must be equal in every bit, and no byte beyond
 * them may change. Arguments: the number of cases for each kernel (default 2000) and the seed (default: the time). */
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

#include "random.h"

enum { GUARD = 64, CHANNELS = 200, INPUTS = 300, SIDE = 24, STRIDE = CHANNELS + 40, ROOM = 1 << 19 };

/* Memory that ends where reading is forbidden. The address sanitiser does not see what masked vector loads read. */
static uint8_t *fence(void) {
    uint8_t *out = mmap(NULL, ROOM + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (out == MAP_FAILED || mprotect(out + ROOM, 65536, PROT_NONE)) abort();
    return out + ROOM;
}

/* Moves the weights of a layer to the end of fenced memory. */
static const void *fenced(uint8_t *end, const void *bytes, size_t size) {
    if (size > ROOM) abort();
    return memcpy(end - size, bytes, size);
}

static int8_t *random_weights(size_t count) {
    int8_t *out = malloc(count);
    const uint32_t kind = any(4); /* One layer in four has the largest weights only. */
    for (size_t i = 0; i < count; i++) out[i] = (int8_t)(kind ? (int32_t)any(255) - 127 : any(2) ? 127 : -127);
    return out;
}

static void random_activations(uint8_t *bytes, size_t size) {
    const uint32_t kind = any(6); /* One map in six has zeros only, and one the largest value only. */
    for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)(kind == 0 ? 0 : kind == 1 ? 255 : any(256));
}

typedef struct {
    uint8_t before[GUARD];
    int32_t sums[ROWS][COLUMNS];
    uint8_t after[GUARD];
} Sums;

/* Compares `found` with `wanted`, guards included, and says where they differ first. */
static void compare_sums(const char *name, uint32_t number, Layer l, const Sums *wanted, const Sums *found) {
    if (!memcmp(wanted, found, sizeof *wanted)) return;
    printf("%s, tile, case %u (%d inputs, %d outputs): ", name, number, l.inputs, l.outputs);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++)
            if (wanted->sums[r][c] != found->sums[r][c]) {
                printf("row %d, column %d is %d instead of %d\n", r, c, found->sums[r][c], wanted->sums[r][c]);
                exit(1);
            }
    printf("bytes %s the sums have changed\n", memcmp(wanted, found, GUARD) ? "before" : "after");
    exit(1);
}

static void check_tile(int32_t packing, const Kernels *kernels, uint32_t number, uint8_t *x_end, uint8_t *w_end) {
    const int32_t inputs = 1 + (int32_t)any(INPUTS), outputs = 1 + (int32_t)any(CHANNELS);
    int8_t *weights = random_weights((size_t)inputs * (size_t)outputs);
    Layer plain = pack(SINGLES, weights, inputs, outputs, 1), layer = pack(packing, weights, inputs, outputs, 1);
    const size_t width = (size_t)layer.padded, column = COLUMNS * any((uint32_t)width / COLUMNS);
    const size_t size = packing == SINGLES ? sizeof(float) : packing == QUADS_AVX2 ? sizeof(int16_t) : sizeof(int8_t);
    const size_t stride = (size_t)layer.inputs;
    void *original = (void *)layer.weight;
    layer.weight = fenced(w_end, original, (size_t)layer.inputs * width * size);
    uint8_t *x = x_end - ROWS * stride;
    random_activations(x, ROWS * stride);
    const uint8_t *rows[ROWS];
    for (size_t r = 0; r < ROWS; r++) rows[r] = x + stride * (any(8) ? r : 0); /* Rows may be the same. */

    Sums naive, wanted, found;
    fill((uint8_t *)&naive, sizeof naive), wanted = found = naive;
    plain.offset = any(2) ? 0 : any(2) ? Z_OFFSET : CONTEXT_OFFSET;
    for (int r = 0; r < ROWS; r++)
        for (size_t c = 0; c < COLUMNS; c++) {
            int64_t sum = 0;
            for (int32_t i = 0; i < inputs && column + c < (size_t)outputs; i++)
                sum += (int64_t)(rows[r][i] - plain.offset) * weights[(column + c) * (size_t)inputs + (size_t)i];
            naive.sums[r][c] = (int32_t)sum;
        }
    kernels_plain.tile(&plain, column, rows, wanted.sums);
    compare_sums(kernels_plain.name, number, plain, &naive, &wanted);
    /* The integer packings leave the offset to the bias; some take a number of their own off each input. */
    layer.offset = packing == SINGLES ? plain.offset : 0;
    kernels->tile(&layer, column, rows, found.sums);
    for (int r = 0; r < ROWS; r++)
        for (size_t c = 0; c < COLUMNS && column + c < (size_t)outputs; c++)
            for (int32_t i = 0; i < inputs && packing != SINGLES; i++)
                found.sums[r][c] +=
                    (taken_by(packing) - plain.offset) * weights[(column + c) * (size_t)inputs + (size_t)i];
    compare_sums(kernels->name, number, layer, &wanted, &found);
    layer.weight = original;
    unpack(plain), unpack(layer), free(weights);
}

/* A naive depthwise layer. */
static void depthwise_naive(const Layer *l, const int8_t *weights, Map map, Run run, uint8_t *out, size_t out_stride) {
    const size_t kernel = (size_t)l->kernel;
    for (size_t n = 0; n < run.count; n++)
        for (size_t c = 0; c < (size_t)l->outputs; c++) {
            int64_t sum = l->bias[c];
            for (size_t tap = 0; tap < kernel * kernel; tap++) {
                const size_t row = run.row + tap / kernel, col = run.col + n * run.step + tap % kernel;
                sum += (int64_t)map.bytes[(row * map.line + col) * map.stride + c] * weights[c * kernel * kernel + tap];
            }
            sum >>= l->shift[c];
            out[n * out_stride + c] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
}

static void compare_bytes(const char *name, uint32_t number, Layer l, Run run, size_t stride, const uint8_t *wanted,
                          const uint8_t *found) {
    for (size_t i = 0; i < 2 * GUARD + run.count * stride; i++) {
        if (wanted[i] == found[i]) continue;
        printf("%s, depthwise %d, case %u (%d channels, %zu positions from column %zu, step %zu): ", name, l.kernel,
               number, l.outputs, run.count, run.col, run.step);
        if (i < GUARD || i >= GUARD + run.count * stride || (i - GUARD) % stride >= (size_t)l.outputs)
            printf("byte %td outside the outputs has changed\n", (ptrdiff_t)i - GUARD);
        else
            printf("position %zu, channel %zu is %d instead of %d\n", (i - GUARD) / stride, (i - GUARD) % stride,
                   found[i], wanted[i]);
        exit(1);
    }
}

static void check_depthwise(const Kernels *kernels, uint32_t number, uint8_t *x_end, uint8_t *w_end) {
    const int32_t channels = 1 + (int32_t)any(CHANNELS), kernel = any(2) ? 3 : 5;
    const size_t rows = 1 + any(4), cols = 1 + any(SIDE), line = cols + (size_t)kernel - 1;
    const size_t stride = (size_t)channels + (any(2) ? 0 : any(8)), out_stride = (size_t)channels + any(40);
    const size_t size = (rows + (size_t)kernel - 1) * line * stride - (stride - (size_t)channels);
    const size_t step = 1 + any(2), col = any(step < cols ? (uint32_t)step : 1);
    const Run run = {any((uint32_t)rows), col, step, 1 + any((uint32_t)((cols - col - 1) / step) + 1)};
    const size_t taps = (size_t)(kernel * kernel);
    if (size > ROOM) abort();
    random_activations(x_end - size, size);
    const Map map = {x_end - size, stride, line};
    int8_t *weights = random_weights((size_t)channels * taps);
    Layer layer = pack(SINGLES, weights, channels, channels, kernel);
    void *original = (void *)layer.weight;
    layer.weight = fenced(w_end, original, (size_t)channels * taps * sizeof(int16_t));

    static uint8_t naive[2 * GUARD + SIDE * STRIDE], wanted[sizeof naive], found[sizeof naive];
    fill(naive, sizeof naive), memcpy(wanted, naive, sizeof naive), memcpy(found, naive, sizeof naive);
    depthwise_naive(&layer, weights, map, run, naive + GUARD, out_stride);
    kernels_plain.depthwise(&layer, map, run, wanted + GUARD, out_stride);
    compare_bytes(kernels_plain.name, number, layer, run, out_stride, naive, wanted);
    kernels->depthwise(&layer, map, run, found + GUARD, out_stride);
    compare_bytes(kernels->name, number, layer, run, out_stride, wanted, found);
    layer.weight = original;
    unpack(layer), free(weights);
}

int main(int argc, char **argv) {
    const uint32_t cases = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2000;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL);
    printf("checkasm: seed %llu\n", (unsigned long long)seed), fflush(stdout);
    seed = seed * 0x9E3779B97F4A7C15u | 1; /* Neighbouring seeds must give different cases, and 0 gives none. */
    uint8_t *x_end = fence(), *w_end = fence();
    for (int32_t packing = SINGLES; packing <= QUADS_DOT; packing++) {
        const Kernels *kernels = kernels_of(packing);
        if (!kernels || !kernels->usable()) continue;
        const int own = packing == SINGLES || kernels->depthwise != kernels_plain.depthwise;
        printf("%s: ", kernels->name), fflush(stdout); /* The name is there even if a kernel crashes. */
        for (uint32_t i = 0; i < cases; i++) check_tile(packing, kernels, i, x_end, w_end);
        printf("%u tiles", cases), fflush(stdout);
        for (uint32_t i = 0; own && i < cases; i++) check_depthwise(kernels, i, x_end, w_end);
        if (own) printf(" and %u depthwise rows", cases);
        printf(" are equal\n");
    }
    return 0;
}
