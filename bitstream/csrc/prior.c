/* The integer prior of `prior.py` in C: choice of kernels, hyper features and passes. See prior.h for the terms. */
#include "prior.h"

#include <string.h>

/* --- choice of kernels ----------------------------------------------------------------------------------------- */

const Kernels *kernels_of(int32_t packing) {
    if (packing == SINGLES) return &kernels_plain;
#ifdef X86
    if (packing == QUADS_AVX2) return &kernels_avx2;
    if (packing == QUADS_VNNI) return &kernels_vnni;
#endif
#ifdef ARM
    if (packing == QUADS_DOT) return &kernels_dot;
#endif
    return NULL;
}

uint32_t perigee_prior_packings(void) {
    uint32_t out = 0;
    for (int32_t packing = SINGLES; packing <= QUADS_DOT; packing++) {
        const Kernels *kernels = kernels_of(packing);
        if (kernels && kernels->usable()) out |= 1u << packing;
    }
    return out;
}

/* --- hyper features -------------------------------------------------------------------------------------------- */

static size_t bordered(size_t rows, size_t cols, size_t reach) { return (rows + 2 * reach) * (cols + 2 * reach); }

/* Upsamples once: a 1x1 layer to four times the channels, pixel shuffle, and a depthwise layer of 3x3. The two layers
 * are `pair`. The inputs have `cols` columns, and `out` has room for [4 * count][out_stride]. The packed weights of the
 * 1x1 layer have their outputs in the order (row, col, channel). */
static uint32_t upsample(const Kernels *kernels, const Layer pair[2], Inputs x, size_t cols, uint8_t *room,
                         uint8_t *out, size_t out_stride) {
    const size_t channels = (size_t)pair[1].outputs, line = 2 * cols + 2, rows = x.count / cols;
    uint8_t *wide = room, *map = wide + x.count * 4 * channels;
    const uint32_t wrong = checked(kernels->tile, &pair[0], x, wide, 4 * channels);
    memset(map, 0, bordered(2 * rows, 2 * cols, 1) * channels);
    for (size_t row = 0; row < 2 * rows; row++)
        for (size_t col = 0; col < 2 * cols; col++) {
            const size_t from = 4 * (row / 2 * cols + col / 2) + 2 * (row % 2) + col % 2;
            memcpy(map + ((row + 1) * line + col + 1) * channels, wide + from * channels, channels);
        }
    for (size_t row = 0; row < 2 * rows; row++)
        kernels->depthwise(&pair[1], (Map){map, channels, line}, (Run){row, 0, 1, 2 * cols},
                           out + row * 2 * cols * out_stride, out_stride);
    return wrong | damaged(&pair[1]);
}

uint32_t perigee_prior_features(const Patch *p, const int32_t *z, const uint8_t *planes) {
    const Model *m = p->model;
    const Kernels *kernels = kernels_of(m->packing);
    const size_t h = p->rows / 4, w = p->cols / 4, in_stride = padded((size_t)m->hyper_latents);
    const size_t hyper = (size_t)m->hyper, positions = (size_t)p->rows * p->cols,
                 mix_stride = padded(hyper + (size_t)m->planes);
    uint8_t *hyper_z = p->scratch, *half = hyper_z + h * w * in_stride, *full = half + positions * mix_stride;
    uint8_t *room = full + positions * mix_stride;
    memset(hyper_z, 0, h * w * in_stride);
    memset(half, 0, 2 * positions * mix_stride);
    for (size_t c = 0; c < (size_t)m->hyper_latents; c++)
        for (size_t i = 0; i < h * w; i++) hyper_z[i * in_stride + c] = (uint8_t)(z[c * h * w + i] + Z_OFFSET);
    const Inputs first = {hyper_z, in_stride, h * w}, second = {half, mix_stride, positions / 4};
    uint32_t wrong = upsample(kernels, &m->layers[UP1], first, w, room, half, mix_stride);
    wrong |= upsample(kernels, &m->layers[UP2], second, 2 * w, room, full, mix_stride);
    for (size_t i = 0; i < positions; i++) memcpy(full + i * mix_stride + hyper, planes, (size_t)m->planes);
    const Inputs third = {full, mix_stride, positions};
    return wrong | checked(kernels->tile, &m->layers[MIX], third, p->features, padded(hyper));
}

/* --- passes ---------------------------------------------------------------------------------------------------- */

/* Where the inputs of the context lie in `given`, position by position: in front, up to the place that
 * `views_before` gives, one byte for each view of each channel that the pass codes; then one for each latent, and
 * behind it one for its magnitude where the model has magnitudes. A pass takes its views and what follows up to its
 * last channel. */
static size_t views_before(const Model *m) {
    int32_t most = 0;
    for (int32_t i = 0; i < m->passes / 2; i++) {
        const int32_t size = m->starts[i + 1] - m->starts[i];
        most = size > most ? size : most;
    }
    return (size_t)m->references * (size_t)most;
}

static size_t given_stride(const Model *m) {
    const size_t beyond = m->references ? 3 : 0; /* Kernels read four inputs at a time, from where the views begin. */
    return padded(views_before(m) + (m->magnitudes ? 2 : 1) * (size_t)m->latents + beyond);
}

uint64_t perigee_prior_given(const Model *m) { return given_stride(m); }

/* Writes to `given` the symbols that pass k codes. */
CLONED static void gather(const Patch *p, uint32_t k) {
    const Model *m = p->model;
    const int32_t *starts = m->starts + k / 2;
    const uint8_t *magnitudes = m->magnitudes;
    const size_t rows = p->rows, cols = p->cols, stride = given_stride(m), step = magnitudes ? 2 : 1;
    const size_t first = (size_t)starts[0], stop = (size_t)starts[1], before = views_before(m);
    for (size_t c = first; c < stop; c++) {
        const int shift = p->shifts ? p->shifts[c] : c == 0 ? DC_SHIFT : 0;
        for (size_t row = 0; row < rows; row++) {
            const int32_t *from = p->symbols + (c * rows + row) * cols;
            uint8_t *to = p->given + row * cols * stride + before + step * c;
            for (size_t col = (row + k) % 2; col < cols; col += 2) {
                const int32_t x = clamp(from[col] >> shift, -CONTEXT_CLAMP, CONTEXT_CLAMP);
                const int32_t whole = p->shifts ? from[col] : x, size = whole < 0 ? -whole : whole;
                to[col * stride] = (uint8_t)(x + CONTEXT_OFFSET);
                if (magnitudes)
                    to[col * stride + 1] = (uint8_t)(magnitudes[clamp(size, 0, m->magnitude_max)] + CONTEXT_OFFSET);
            }
        }
    }
}

/* Writes to `given` what the earlier components have in the channels of pass k. */
CLONED static void show_views(const Patch *p, uint32_t k) {
    const Model *m = p->model;
    const size_t positions = (size_t)p->rows * p->cols, stride = given_stride(m), views = (size_t)m->references;
    const size_t first = (size_t)m->starts[k / 2], size = (size_t)m->starts[k / 2 + 1] - first;
    for (size_t view = 0; view < views; view++)
        for (size_t c = 0; c < size; c++) {
            const uint8_t *from = p->views + (view * (size_t)m->latents + first + c) * positions;
            uint8_t *to = p->given + views_before(m) - views * size + view * size + c;
            for (size_t i = 0; i < positions; i++) to[i * stride] = (uint8_t)(from[i] + CONTEXT_OFFSET);
        }
}

/* Prepares `given` for pass k, from the passes for which it is prepared already. A latent that pass k may not see yet
 * counts as 0. */
static void prepare(Patch *p, uint32_t k) {
    if (p->filled == 0 || p->filled > k) {
        memset(p->given, CONTEXT_OFFSET, (size_t)p->rows * p->cols * given_stride(p->model));
        p->filled = 1; /* Pass 0 sees no latents. */
        p->shown = 0;
    }
    for (; p->filled <= k; p->filled++) gather(p, p->filled - 1);
    if (p->model->references && p->shown != k / 2 + 1) show_views(p, k);
    p->shown = k / 2 + 1;
}

/* Computes the 1x1 layer of the context at all positions of a map with a border of 2. The pass has `seen_views` views,
 * each channel in each of them counted. */
static uint32_t context_map(const Kernels *kernels, const Layer *layers, const Patch *p, size_t seen_views,
                            uint8_t *map) {
    const size_t rows = p->rows, cols = p->cols, stride = given_stride(p->model);
    const size_t context = (size_t)p->model->context, line = cols + 4;
    const Layer *l = &layers[CONTEXT];
    const uint8_t *given = p->given + views_before(p->model) - seen_views;
    uint32_t total = 0;
    memset(map, 0, bordered(rows, cols, 2) * context);
    for (size_t row = 0; row < rows; row++) {
        const Inputs x = {given + row * cols * stride, stride, cols};
        total += pointwise(kernels->tile, l, ALL, x, map + ((row + 2) * line + 2) * context, context, NULL);
    }
    const Inputs all = {given, stride, rows * cols};
    return (total - expected(l, (size_t)l->padded, all)) | damaged(l) | damaged(&layers[DEPTH]);
}

/* Puts features and context side by side for the positions that pass k codes, even rows first. A pass that sees
 * nothing has no context, and then `map` is NULL. */
static void join(const Kernels *kernels, const Layer *depth, const Patch *p, uint32_t k, const uint8_t *map,
                 uint8_t *joined, size_t stride) {
    const size_t rows = p->rows, cols = p->cols, hyper = (size_t)p->model->hyper, context = (size_t)p->model->context;
    const size_t used = hyper + (map ? context : 0);
    for (size_t odd = 0; odd < 2; odd++)
        for (size_t row = odd; row < rows; row += 2) {
            const size_t left = (odd + k) % 2;
            if (map)
                kernels->depthwise(depth, (Map){map, context, cols + 4}, (Run){row, left, 2, cols / 2}, joined + hyper,
                                   stride);
            for (size_t col = left; col < cols; col += 2, joined += stride) {
                memcpy(joined, p->features + (row * cols + col) * padded(hyper), hyper);
                memset(joined + used, 0, stride - used);
            }
        }
}

/* How many of a latent's lowest bits the tables of a scale index leave out. */
static int raw_bits_of(int32_t index) { return index < FEW_SCALES ? 0 : (index - FEW_SCALES + OCTAVE) / OCTAVE; }

/* Computes the last layer of a pass, and from it the means and table numbers. The layer's outputs are packed in blocks
 * of HALF_COLUMNS means and as many scales. `sums` has room for [ROWS][padded]. */
static uint32_t predict(Tile *tile, const Layer *l, const Patch *p, uint32_t k, Inputs x, int32_t *sums) {
    const size_t channels = p->channels, half = x.count, width = (size_t)l->padded;
    const size_t first = (size_t)p->model->starts[k / 2];
    const size_t blocks = (channels + HALF_COLUMNS - 1) / HALF_COLUMNS * COLUMNS;
    const size_t wanted = blocks < width ? blocks : width;
    int32_t *table = p->table, *mean = p->mean;
    uint32_t total = 0;
    for (size_t i = 0; i < half; i += ROWS) {
        const size_t count = half - i < ROWS ? half - i : ROWS;
        total += pointwise(tile, l, wanted, (Inputs){x.bytes + i * x.stride, x.stride, count}, NULL, 0, sums);
        for (size_t c = 0; c < channels; c++) {
            const int32_t base = p->base ? p->base[first + c] : 0, unit = p->shifts ? 1 << p->shifts[first + c] : 1;
            for (size_t r = 0; r < count; r++) {
                const int32_t *block = sums + r * width + c / HALF_COLUMNS * COLUMNS + c % HALF_COLUMNS;
                const int32_t mu = block[0] * unit, scale = block[HALF_COLUMNS];
                const int32_t index = clamp(((8 * scale + 328) >> 4) + base, 0, p->model->scales - 1);
                mean[c * half + i + r] = mu;
                table[c * half + i + r] = index * 16 + ((mu >> raw_bits_of(index)) & 15);
            }
        }
    }
    return (total - expected(l, wanted, x)) | damaged(l);
}

uint32_t perigee_prior_pass(Patch *p, uint32_t k) {
    const Model *m = p->model;
    const Kernels *kernels = kernels_of(m->packing);
    const Layer *layers = m->layers + PASSES + PER_PASS * k;
    const size_t half = (size_t)p->rows * p->cols / 2, context = (size_t)m->context, head = padded((size_t)m->head);
    const size_t stride = padded((size_t)m->hyper + context);
    uint8_t *map = p->scratch, *joined = map + bordered(p->rows, p->cols, 2) * padded(context);
    uint8_t *first = joined + half * stride, *second = first + half * head;
    int32_t *sums = (int32_t *)(((uintptr_t)(second + half * head) + 63) / 64 * 64);

    uint32_t wrong = 0;
    prepare(p, k);
    const size_t views = (size_t)m->references * (size_t)(m->starts[k / 2 + 1] - m->starts[k / 2]);
    const int sees = k || views;
    if (sees) wrong |= context_map(kernels, layers, p, views, map);
    join(kernels, &layers[DEPTH], p, k, sees ? map : NULL, joined, stride);
    memset(first, 0, 2 * half * head);
    wrong |= checked(kernels->tile, &layers[HEAD1], (Inputs){joined, stride, half}, first, head);
    wrong |= checked(kernels->tile, &layers[HEAD2], (Inputs){first, head, half}, second, head);
    wrong |= predict(kernels->tile, &layers[OUT], p, k, (Inputs){second, head, half}, sums);
    if (wrong) p->filled = 0;
    return wrong;
}

uint64_t perigee_prior_scratch(const Model *m, uint32_t rows, uint32_t cols) {
    const size_t positions = (size_t)rows * cols, half = positions / 2;
    const size_t hyper = (size_t)m->hyper, context = (size_t)m->context, head = padded((size_t)m->head);
    const size_t features = positions / 16 * padded((size_t)m->hyper_latents) +
                            2 * positions * padded(hyper + (size_t)m->planes) + positions * hyper +
                            bordered(rows, cols, 1) * hyper;
    const size_t pass = bordered(rows, cols, 2) * padded(context) + half * (padded(hyper + context) + 2 * head) +
                        ROWS * sizeof(int32_t) * padded(2 * (size_t)m->latents);
    return (features > pass ? features : pass) + 64; /* `sums` begins at a multiple of 64. */
}
