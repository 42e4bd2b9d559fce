/* The integer prior of `prior.py` in C: the types that Python mirrors in `compiled.py`, and what the files here share.
 *
 * NumpyPrior(int64) of prior.py is the definition, and this code gives the same integers. Activations are bytes, which
 * lie position by position ([row * cols + col][channel]). Weights are int8 and sums int32. `check_accumulators` in
 * prior.py proves that no sum reaches 2^24. So neither the order of summation nor the instruction set can change a
 * result. Hyper-latents and context are signed and stored with an offset, which the packed biases take back. The caller
 * provides all memory.
 */
#ifndef PERIGEE_PRIOR_H
#define PERIGEE_PRIOR_H

#include <stddef.h>
#include <stdint.h>

#include "api.h"

enum { ROWS = 8, COLUMNS = 32, HALF_COLUMNS = 16 };  /* A tile has 8 positions and 32 output channels. */
enum { SINGLES, QUADS_AVX2, QUADS_VNNI, QUADS_DOT }; /* How weights are packed decides which kernels multiply them. */
enum { Z_OFFSET = 64, CONTEXT_OFFSET = 127, CONTEXT_CLAMP = 127, DC_SHIFT = 2 };
enum { OUT_MIN = -4096, OUT_MAX = 4095 };
enum { FEW_SCALES = 64, OCTAVE = 6 };                 /* From index 64 on, a spread doubles every six indices. */
enum { UP1, DEPTH1, UP2, DEPTH2, MIX, PASSES };       /* the layers of the hyper-decoder, before those of the passes */
enum { CONTEXT, DEPTH, HEAD1, HEAD2, OUT, PER_PASS }; /* the layers of each pass */

/* One layer of the network. `bias` holds the rounding term. `offset` is how far the inputs are stored above their
 * value. Float32 subtracts it, to stay below 2^24 as proven; in the integer packings the bias takes it back. The
 * weights of a 1x1 layer are [inputs / n][padded][n]. Float has n = 1; int16 and int8 have n = 4. `padded` is a
 * multiple of COLUMNS, and the weights beyond the real channels are zero.
 * The weights of a depthwise layer are int16 [kernel * kernel][outputs].
 * `check` begins with the sum of all shifts and biases, and of the weights of a depthwise layer. For each block of
 * COLUMNS outputs of a 1x1 layer there follow the sums of the weights by input, and the sum of the biases. Each of
 * these sums takes in the block's outputs and all outputs before them. */
typedef struct {
    const void *weight;
    const int32_t *bias, *shift;
    const uint32_t *check;
    int32_t inputs, outputs, padded, kernel, offset;
} Layer;

/* The network. `starts` has the first channel of each slice, and the end of the last slice. `magnitudes` has a value
 * for each of 0 to `magnitude_max`, which the context shows beside each latent; it is NULL where there are no
 * magnitudes. `planes` features have one value everywhere. The context of a pass sees the pass' own channels in
 * `references` views of components that were coded before. There are `scales` scale indices. */
typedef struct {
    int32_t latents, hyper_latents, hyper, context, head, passes, packing;
    int32_t planes, references, scales, magnitude_max;
    const int32_t *starts;
    const Layer *layers;
    const uint8_t *magnitudes;
} Model;

/* One patch of rows x cols latents, and where its memory is. */
typedef struct {
    const Model *model;
    const int32_t *symbols; /* the latents q, [latents][rows][cols] */
    int32_t *table, *mean;  /* what a pass gives, [channels][rows][cols / 2] each */
    const uint8_t *shifts;  /* bits that each channel loses in the context; NULL: 2 for the first channel, else 0 */
    const int16_t *base;    /* what is added to the scale index of each channel; NULL: 0 */
    const uint8_t *views;   /* [references][latents][rows][cols], or NULL where there are none */
    uint8_t *features;      /* [rows * cols][padded(hyper)] */
    uint8_t *given;         /* [rows * cols], as many bytes each as `given_stride` in prior.c says */
    uint8_t *scratch;       /* as many bytes as `perigee_prior_scratch` says */
    uint32_t rows, cols;
    uint32_t channels; /* how many channels of the slice a pass gives, from the first one */
    uint32_t filled;   /* for how many passes `given` is prepared; 0 in the beginning */
    uint32_t shown;    /* the slice whose views are in `given`, counted from 1; 0 in the beginning */
} Patch;

/* Gives the bytes that each position of a patch takes in `given`. */
API uint64_t perigee_prior_given(const Model *m);

/* Gives the bytes of scratch memory that a patch needs. */
API uint64_t perigee_prior_scratch(const Model *m, uint32_t rows, uint32_t cols);

/* Computes the features from the hyper-latents z, int32 [hyper_latents][rows / 4][cols / 4], and the values of the
 * planes. */
API uint32_t perigee_prior_features(const Patch *p, const int32_t *z, const uint8_t *planes);

/* Computes table numbers and means of pass k, in the order of `half` in prior.py. The symbols must be complete for the
 * passes before it. Like `perigee_prior_features`, this returns 0 where all checksums hold; any other number means that
 * a bit has flipped and that the patch must be computed again. */
API uint32_t perigee_prior_pass(Patch *p, uint32_t k);

/* Says which packings this machine can multiply, one bit for each. The highest of them is the fastest. */
API uint32_t perigee_prior_packings(void);

/* A map of activations. The position (row, col) begins at bytes + (row * line + col) * stride. A border of zeros, half
 * a kernel wide, surrounds the real positions. */
typedef struct {
    const uint8_t *bytes;
    size_t stride, line;
} Map;

/* Some positions of a row, counted without the border: every `step`th one from `col` on. */
typedef struct {
    size_t row, col, step, count;
} Run;

/* Sums the products of a 1x1 layer, without biases, for COLUMNS outputs from `column` on at ROWS positions. */
typedef void Tile(const Layer *l, size_t column, const uint8_t *const x[ROWS], int32_t sums[ROWS][COLUMNS]);

/* Computes a depthwise layer at the positions of a run. The outputs of the positions lie `out_stride` bytes apart. */
typedef void Depthwise(const Layer *l, Map map, Run run, uint8_t *out, size_t out_stride);

/* The kernels of an instruction set. `usable` says whether this machine has it. */
typedef struct {
    const char *name;
    int (*usable)(void);
    Tile *tile;
    Depthwise *depthwise;
} Kernels;

INTERNAL extern const Kernels kernels_plain, kernels_avx2, kernels_vnni, kernels_dot;
INTERNAL Depthwise depthwise_plain; /* also serves the instruction sets that have no depthwise kernel of their own */

/* Gives the kernels of a packing, or NULL where this library has none for it. */
INTERNAL const Kernels *kernels_of(int32_t packing);

/* The inputs of a 1x1 layer: `count` positions, `stride` bytes apart. */
typedef struct {
    const uint8_t *bytes;
    size_t stride, count;
} Inputs;

#define ALL SIZE_MAX

/* Returns 0 where the constants of a layer add up to what they did when it was packed. The sums of the outputs cannot
 * show every change of them: shifts do not enter those sums, nor does the top bit of a bias over 32 positions. The
 * weights of a depthwise layer have no other check. */
INTERNAL uint32_t damaged(const Layer *l);

/* Computes from the sums of the inputs what the first `columns` outputs (a multiple of COLUMNS) must add up to. */
INTERNAL uint32_t expected(const Layer *l, size_t columns, Inputs x);

/* Computes the first `wanted` outputs of a 1x1 layer, which are a multiple of COLUMNS, or ALL. Activations go to `out`,
 * [count][out_stride]. Where `out` is NULL, as in the last layer of a pass, the clamped sums go to `last`,
 * [count][padded]. The function returns what all sums add up to. */
INTERNAL uint32_t pointwise(Tile *tile, const Layer *l, size_t wanted, Inputs x, uint8_t *out, size_t out_stride,
                            int32_t *last);

/* Computes the activations of a 1x1 layer and checks them. The function returns 0 where the checksums hold. */
INTERNAL uint32_t checked(Tile *tile, const Layer *l, Inputs x, uint8_t *out, size_t out_stride);

static inline size_t padded(size_t channels) { return (channels + COLUMNS - 1) / COLUMNS * COLUMNS; }

static inline int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

#endif
