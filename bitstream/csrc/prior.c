/* The integer prior of `prior.py` compiled: the same integers as its NumpyPrior(int64), which stays the arbiter.
 *
 * Activations are bytes, position by position ([row * cols + col][channel]); weights are int8, sums int32. No sum can reach
 * 2^24 (`check_accumulators`), so neither the order of summation nor the instruction set can matter. Signed inputs
 * (hyper-latents, context) are stored with an offset, which the packed biases take back. All memory is the caller's.
 *
 * Sums that are exact can be checked exactly: what all outputs of a 1x1 layer at all positions add up to also follows from
 * the sums of its inputs and of its weights. They are compared modulo 2^32, so any single bit that flips in weights, biases
 * or sums is found; the caller computes the patch again.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#elif defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#include <arm_neon.h>
#include <sys/auxv.h>
#define ARM 1
#endif

#if defined(X86) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default"))) /* the loader takes the best */
#elif defined(X86) && defined(__gnu_linux__) && !defined(__clang__)
#define CLONED __attribute__((target_clones("avx2", "default")))
#else
#define CLONED
#endif

enum { ABI = 7 };                                    /* to be raised with every change that Python must follow */
enum { ROWS = 8, COLUMNS = 32, HALF_COLUMNS = 16 }; /* a tile: positions x output channels */
enum { SINGLES, QUADS_AVX2, QUADS_VNNI, QUADS_DOT }; /* how the weights are packed, and what multiplies them */
enum { Z_OFFSET = 64, CONTEXT_OFFSET = 127, CONTEXT_CLAMP = 127, DC_SHIFT = 2, SCALES = 64 };
enum { CHECKED = 64 };                              /* inputs whose sums are taken at a time */
enum { OUT_MIN = -4096, OUT_MAX = 4095 };
enum { UP1, DEPTH1, UP2, DEPTH2, MIX, PASSES };      /* layers of the hyper-decoder, then five of each pass */
enum { CONTEXT, DEPTH, HEAD1, HEAD2, OUT, PER_PASS };

/* 1x1 layers: `weight` is [inputs / n][padded][n] with n = 1 (float) or 4 (int16, or int8 twice), zeros
 * beyond the real channels;
 * depthwise layers: int16 [kernel * kernel][outputs]. `bias` holds the rounding term; `padded` is a multiple of COLUMNS.
 * `offset` is what the inputs are stored above their value: float32 subtracts it, to stay below 2^24 as proven; for the
 * integer packings it is in the bias already. */
typedef struct {
    const void *weight;
    const int32_t *bias, *shift;
    const uint32_t *check; /* first what `constants` gives; then, for 1x1 layers, for each block of COLUMNS outputs: they and
                            * those before, the sums of their weights by input, then of their biases */
    int32_t inputs, outputs, padded, kernel, offset;
} Layer;

typedef struct {
    int32_t latents, hyper_latents, hyper, context, head, passes, packing;
    const int32_t *starts; /* first channel of each slice, and the end */
    const Layer *layers;
    const uint8_t *magnitudes; /* of 0..127 in the context, beside each latent; NULL where the context has latents alone */
} Model;

static const size_t ALL = SIZE_MAX;

static size_t padded(size_t channels) { return (channels + COLUMNS - 1) / COLUMNS * COLUMNS; }

/* --- 1x1 layers ------------------------------------------------------------------------------------------------ */

typedef void Tile(const Layer *l, size_t column, const uint8_t *const x[ROWS], int32_t sums[ROWS][COLUMNS]);

/* In float32, which is exact below 2^24 and which every compiler can turn into vectors. */
CLONED static void tile_singles(const Layer *l, size_t column, const uint8_t *const x[ROWS],
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

#ifdef X86
/* Four inputs as 16-bit words against four columns a vector: sums of two products stand side by side until the end.
 * Two rows and sixteen columns at a time, each sum a variable of its own: arrays would be moved about. */
__attribute__((target("avx2"))) static void tile_avx2(const Layer *l, size_t column, const uint8_t *const x[ROWS],
                                                      int32_t sums[ROWS][COLUMNS]) {
    const __m256i zero = _mm256_setzero_si256();
    const size_t step = 4 * (size_t)l->padded;
    for (int r = 0; r < ROWS; r += 2)
        for (int c = 0; c < COLUMNS; c += 16) {
            const int16_t *w = (const int16_t *)l->weight + 4 * (column + (size_t)c);
            const uint8_t *p = x[r], *q = x[r + 1], *const end = p + l->inputs;
            __m256i a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
            for (; p < end; p += 4, q += 4, w += step) {
                int32_t four, other;
                memcpy(&four, p, sizeof four), memcpy(&other, q, sizeof other);
                const __m256i words_a = _mm256_unpacklo_epi8(_mm256_set1_epi32(four), zero);
                const __m256i words_b = _mm256_unpacklo_epi8(_mm256_set1_epi32(other), zero);
                const __m256i w0 = _mm256_loadu_si256((const __m256i *)w), w1 = _mm256_loadu_si256((const __m256i *)(w + 16));
                a0 = _mm256_add_epi32(a0, _mm256_madd_epi16(words_a, w0));
                b0 = _mm256_add_epi32(b0, _mm256_madd_epi16(words_b, w0));
                a1 = _mm256_add_epi32(a1, _mm256_madd_epi16(words_a, w1));
                b1 = _mm256_add_epi32(b1, _mm256_madd_epi16(words_b, w1));
                const __m256i w2 = _mm256_loadu_si256((const __m256i *)(w + 32));
                const __m256i w3 = _mm256_loadu_si256((const __m256i *)(w + 48));
                a2 = _mm256_add_epi32(a2, _mm256_madd_epi16(words_a, w2));
                b2 = _mm256_add_epi32(b2, _mm256_madd_epi16(words_b, w2));
                a3 = _mm256_add_epi32(a3, _mm256_madd_epi16(words_a, w3));
                b3 = _mm256_add_epi32(b3, _mm256_madd_epi16(words_b, w3));
            }
            const __m256i whole[4] = {_mm256_hadd_epi32(a0, a1), _mm256_hadd_epi32(a2, a3), _mm256_hadd_epi32(b0, b1),
                                      _mm256_hadd_epi32(b2, b3)};
            for (int k = 0; k < 4; k++) /* columns 0 1 4 5 2 3 6 7, put in order */
                _mm256_storeu_si256((__m256i *)&sums[r + k / 2][c + 8 * (k % 2)],
                                    _mm256_permute4x64_epi64(whole[k], 0xD8));
        }
}

__attribute__((target("avx512f,avx512vnni"))) static void tile_vnni(const Layer *l, size_t column,
                                                                    const uint8_t *const x[ROWS],
                                                                    int32_t sums[ROWS][COLUMNS]) {
    const int8_t *w = (const int8_t *)l->weight + 4 * column;
    __m512i s[ROWS][2];
    for (int r = 0; r < ROWS; r++) s[r][0] = s[r][1] = _mm512_setzero_si512();
    for (int32_t i = 0; i < l->inputs; i += 4, w += 4 * (size_t)l->padded) {
        const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);
        for (int r = 0; r < ROWS; r++) {
            int32_t four;
            memcpy(&four, x[r] + i, sizeof four);
            const __m512i quad = _mm512_set1_epi32(four);
            s[r][0] = _mm512_dpbusd_epi32(s[r][0], quad, w0);
            s[r][1] = _mm512_dpbusd_epi32(s[r][1], quad, w1);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) _mm512_storeu_si512(&sums[r][16 * h], s[r][h]);
}
#endif

#ifdef ARM
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
/* Products of signed bytes: inputs are taken less 128, which the packed biases give back. */
static void tile_dot(const Layer *l, size_t column, const uint8_t *const x[ROWS], int32_t sums[ROWS][COLUMNS]) {
    for (int r = 0; r < ROWS; r += 2)
        for (int c = 0; c < COLUMNS; c += 16) {
            const int8_t *w = (const int8_t *)l->weight + 4 * (column + (size_t)c);
            int32x4_t s[2][4];
            for (int k = 0; k < 2; k++)
                for (int j = 0; j < 4; j++) s[k][j] = vdupq_n_s32(0);
            for (int32_t i = 0; i < l->inputs; i += 4, w += 4 * (size_t)l->padded)
                for (int k = 0; k < 2; k++) {
                    uint32_t four;
                    memcpy(&four, x[r + k] + i, sizeof four);
                    const int8x16_t quad = vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
                    for (int j = 0; j < 4; j++) s[k][j] = vdotq_s32(s[k][j], vld1q_s8(w + 16 * j), quad);
                }
            for (int k = 0; k < 2; k++)
                for (int j = 0; j < 4; j++) vst1q_s32(&sums[r + k][c + 4 * j], s[k][j]);
        }
}
#pragma GCC pop_options
#endif

static Tile *tile_of(int32_t packing) {
#ifdef X86
    if (packing == QUADS_VNNI) return tile_vnni;
    if (packing == QUADS_AVX2) return tile_avx2;
#endif
#ifdef ARM
    if (packing == QUADS_DOT) return tile_dot;
#endif
    (void)packing;
    return tile_singles;
}

static int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

/* Sum of what the sums of outputs cannot be trusted with: shifts, biases (the top bits of one vanish over 32 positions), and
 * a depthwise layer's weights. */
CLONED static uint32_t constants(const Layer *l) {
    uint32_t total = 0;
    for (int32_t i = 0; i < l->padded; i++) total += (uint32_t)l->shift[i] + (uint32_t)l->bias[i];
    if (l->kernel > 1) {
        const int16_t *w = (const int16_t *)l->weight;
        for (int32_t i = 0; i < l->kernel * l->kernel * l->outputs; i++) total += (uint32_t)w[i];
    }
    return total;
}

/* What the outputs in `columns` (a multiple of COLUMNS) add up to at all positions, from the sums of the inputs. */
CLONED static uint32_t expected(const Layer *l, size_t columns, const uint8_t *x, size_t stride, size_t count) {
    const size_t inputs = (size_t)l->inputs;
    const uint32_t *check = l->check + 1 + (columns / COLUMNS - 1) * (inputs + 1);
    uint32_t total = (uint32_t)count * check[inputs];
    for (size_t first = 0; first < inputs; first += CHECKED) {
        const size_t width = inputs - first < CHECKED ? inputs - first : CHECKED;
        uint32_t sums[CHECKED] = {0};
        for (size_t start = 0; start < count; start += 256) { /* 256 bytes add up to less than 2^16 */
            const size_t stop = count - start < 256 ? count : start + 256;
            uint16_t part[CHECKED] = {0};
            for (size_t p = start; p < stop; p++) {
                const uint8_t *from = x + p * stride + first;
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

/* The first `wanted` (a multiple of COLUMNS, or ALL) outputs of one layer at `count` positions, `stride` bytes apart in x. Activations go to `out` ([count][out_stride]); of the last
 * layer of a pass (`out` NULL) the clamped sums go to `last` ([count][padded]). Returns what all sums add up to. */
CLONED static uint32_t pointwise(Tile *tile, const Layer *l, size_t wanted, const uint8_t *x, size_t stride, size_t count,
                                 uint8_t *out, size_t out_stride, int32_t *last) {
    const size_t columns = (size_t)l->padded < wanted ? (size_t)l->padded : wanted;
    uint32_t total = 0;
    for (size_t column = 0; column < columns; column += COLUMNS) {
        const int32_t *bias = l->bias + column, *shift = l->shift + column;
        uint32_t added[COLUMNS] = {0};
        for (size_t first = 0; first < count; first += ROWS) {
            const size_t rows = count - first < ROWS ? count - first : ROWS;
            const uint8_t *from[ROWS];
            int32_t sums[ROWS][COLUMNS];
            for (size_t r = 0; r < ROWS; r++) from[r] = x + stride * (first + (r < rows ? r : 0));
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

/* `pointwise` of activations, checked: 0 where its sums are sound. */
static uint32_t checked(Tile *tile, const Layer *l, const uint8_t *x, size_t stride, size_t count, uint8_t *out,
                        size_t out_stride) {
    const uint32_t total = pointwise(tile, l, ALL, x, stride, count, out, out_stride, NULL);
    return (total - expected(l, (size_t)l->padded, x, stride, count)) | (constants(l) - l->check[0]);
}

/* --- depthwise layers ------------------------------------------------------------------------------------------ */

/* At `count` positions of a row, every `step`th from `col` on, of a map with a border of zeros half a kernel wide and `cols` real
 * columns; `out` [count][out_stride]. */
typedef void Depthwise(const Layer *l, const uint8_t *map, size_t stride, size_t cols, size_t row, size_t col, size_t step,
                       size_t count, uint8_t *out, size_t out_stride);

CLONED static void depthwise_plain(const Layer *l, const uint8_t *map, size_t stride, size_t cols, size_t row, size_t col,
                                   size_t step, size_t count, uint8_t *out, size_t out_stride) {
    const size_t kernel = (size_t)l->kernel, line = cols + kernel - 1, channels = (size_t)l->outputs;
    for (; count--; col += step, out += out_stride)
        for (size_t first = 0; first < channels; first += COLUMNS) {
            const size_t width = channels - first < COLUMNS ? channels - first : COLUMNS;
            int32_t sums[COLUMNS] = {0};
            for (size_t i = 0; i < kernel; i++)
                for (size_t j = 0; j < kernel; j++) {
                    const uint8_t *x = map + ((row + i) * line + col + j) * stride + first;
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

#ifdef X86
/* Two taps side by side as 16-bit words, whose products are added in one step, at POSITIONS places with the same weights. */
__attribute__((target("avx512f,avx512bw,avx512vl"))) static void depthwise_avx512(
    const Layer *l, const uint8_t *map, size_t stride, size_t cols, size_t row, size_t col, size_t step, size_t count,
    uint8_t *out, size_t out_stride) {
    enum { POSITIONS = 4 };
    const size_t kernel = (size_t)l->kernel, taps = kernel * kernel, line = cols + kernel - 1, channels = (size_t)l->outputs;
    const __m512i zero = _mm512_setzero_si512(), most = _mm512_set1_epi32(255);
    /* what unpacking mixed up, in order again: 32-bit sums of channels 0 to 15 and 16 to 31 */
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i later = _mm512_add_epi32(order, _mm512_set1_epi32(8));
    for (size_t done = 0; done < count; done += POSITIONS) {
        const size_t places = count - done < POSITIONS ? count - done : POSITIONS;
        size_t from[POSITIONS];
        for (size_t n = 0; n < POSITIONS; n++) from[n] = (col + (done + (n < places ? n : 0)) * step) * stride;
        for (size_t first = 0; first < channels; first += COLUMNS) {
            const size_t width = channels - first < COLUMNS ? channels - first : COLUMNS;
            const __mmask32 real = (__mmask32)(UINT32_MAX >> (COLUMNS - width));
            const int16_t *w = (const int16_t *)l->weight + first;
            const uint8_t *corner = map + row * line * stride + first;
            __m512i low[POSITIONS] = {zero, zero, zero, zero}, high[POSITIONS] = {zero, zero, zero, zero};
            for (size_t tap = 0; tap < taps; tap += 2) {
                const int two = tap + 1 < taps;
                const uint8_t *a = corner + (tap / kernel * line + tap % kernel) * stride;
                const uint8_t *b = two ? corner + ((tap + 1) / kernel * line + (tap + 1) % kernel) * stride : a;
                const __m512i v = _mm512_maskz_loadu_epi16(real, w + tap * channels);
                const __m512i u = two ? _mm512_maskz_loadu_epi16(real, w + (tap + 1) * channels) : zero;
                const __m512i w0 = _mm512_unpacklo_epi16(v, u), w1 = _mm512_unpackhi_epi16(v, u);
                for (size_t n = 0; n < POSITIONS; n++) {
                    const __m512i x = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(real, a + from[n]));
                    const __m512i y = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(real, b + from[n]));
                    low[n] = _mm512_add_epi32(low[n], _mm512_madd_epi16(_mm512_unpacklo_epi16(x, y), w0));
                    high[n] = _mm512_add_epi32(high[n], _mm512_madd_epi16(_mm512_unpackhi_epi16(x, y), w1));
                }
            }
            for (size_t half = 0; half < 2; half++) {
                const __mmask16 there = (__mmask16)(real >> (16 * half));
                const __m512i bias = _mm512_maskz_loadu_epi32(there, l->bias + first + 16 * half);
                const __m512i shift = _mm512_maskz_loadu_epi32(there, l->shift + first + 16 * half);
                for (size_t n = 0; n < places; n++) {
                    __m512i sums = _mm512_permutex2var_epi32(low[n], half ? later : order, high[n]);
                    sums = _mm512_srav_epi32(_mm512_add_epi32(sums, bias), shift);
                    sums = _mm512_min_epi32(_mm512_max_epi32(sums, zero), most);
                    _mm_mask_storeu_epi8(out + (done + n) * out_stride + first + 16 * half, there, _mm512_cvtepi32_epi8(sums));
                }
            }
        }
    }
}
#endif

static Depthwise *depthwise_of(int32_t packing) {
#ifdef X86
    if (packing == QUADS_VNNI) return depthwise_avx512;
#endif
    (void)packing;
    return depthwise_plain;
}

/* --- hyper-decoder --------------------------------------------------------------------------------------------- */

static size_t bordered(size_t rows, size_t cols, size_t reach) { return (rows + 2 * reach) * (cols + 2 * reach); }

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Bytes of scratch memory for patches of rows x cols latents. */
API uint64_t perigee_prior_scratch(const Model *m, uint32_t rows, uint32_t cols) {
    const size_t positions = (size_t)rows * cols, half = positions / 2;
    const size_t hyper = positions / 16 * padded((size_t)m->hyper_latents) + positions / 4 * 4 * (size_t)m->hyper +
                         bordered(rows, cols, 1) * padded((size_t)m->hyper) + 2 * positions * padded((size_t)m->hyper + 1);
    const size_t pass = bordered(rows, cols, 2) * padded((size_t)m->context) +
                        half * (padded((size_t)m->hyper + (size_t)m->context) + 2 * padded((size_t)m->head)) +
                        ROWS * 2 * sizeof(int32_t) * padded(2 * (size_t)m->latents);
    return most(hyper, pass) + 256;
}

/* One step of upsampling: 1x1 to four times the channels, pixel shuffle, depthwise 3x3. `x` [rows * cols][in_stride] to
 * `out` [4 * rows * cols][out_stride]. The packed weights of the 1x1 have their outputs in the order (row, col, channel). */
static uint32_t upsample(Tile *tile, Depthwise *depthwise, const Layer *up, const Layer *depth, const uint8_t *x, size_t in_stride, size_t rows,
                     size_t cols, uint8_t *wide, uint8_t *map, uint8_t *out, size_t out_stride) {
    const size_t channels = (size_t)depth->outputs, line = 2 * cols + 2;
    const uint32_t wrong = checked(tile, up, x, in_stride, rows * cols, wide, 4 * channels);
    memset(map, 0, bordered(2 * rows, 2 * cols, 1) * channels);
    for (size_t row = 0; row < 2 * rows; row++)
        for (size_t col = 0; col < 2 * cols; col++) {
            const uint8_t *from = wide + ((row / 2) * cols + col / 2) * 4 * channels + (2 * (row & 1) + (col & 1)) * channels;
            memcpy(map + ((row + 1) * line + col + 1) * channels, from, channels);
        }
    for (size_t row = 0; row < 2 * rows; row++)
        depthwise(depth, map, channels, 2 * cols, row, 0, 1, 2 * cols, out + row * 2 * cols * out_stride, out_stride);
    return wrong | (constants(depth) - depth->check[0]);
}

/* z int32 [hyper_latents][rows / 4][cols / 4] to features [rows * cols][padded(hyper)]. Returns 0 where all sums are sound. */
API uint32_t perigee_prior_features(const Model *m, const int32_t *z, uint32_t quality_plane, uint32_t rows, uint32_t cols,
                                uint8_t *features, uint8_t *scratch) {
    Tile *tile = tile_of(m->packing);
    const size_t h = rows / 4, w = cols / 4, in_stride = padded((size_t)m->hyper_latents), hyper = (size_t)m->hyper;
    const size_t positions = (size_t)rows * cols, mix_stride = padded(hyper + 1);
    uint8_t *hyper_z = scratch, *wide = hyper_z + h * w * in_stride, *map = wide + positions / 4 * 4 * hyper;
    uint8_t *half = map + bordered(rows, cols, 1) * padded(hyper), *full = half + positions * mix_stride;
    memset(hyper_z, 0, h * w * in_stride);
    memset(half, 0, 2 * positions * mix_stride);
    for (size_t c = 0; c < (size_t)m->hyper_latents; c++)
        for (size_t p = 0; p < h * w; p++) hyper_z[p * in_stride + c] = (uint8_t)(z[c * h * w + p] + Z_OFFSET);
    uint32_t wrong = upsample(tile, depthwise_of(m->packing), &m->layers[UP1], &m->layers[DEPTH1], hyper_z, in_stride, h, w, wide, map, half, mix_stride);
    wrong |= upsample(tile, depthwise_of(m->packing), &m->layers[UP2], &m->layers[DEPTH2], half, mix_stride, 2 * h, 2 * w, wide, map, full, mix_stride);
    for (size_t p = 0; p < positions; p++) full[p * mix_stride + hyper] = (uint8_t)quality_plane;
    return wrong | checked(tile, &m->layers[MIX], full, mix_stride, positions, features, padded(hyper));
}

/* --- a pass ---------------------------------------------------------------------------------------------------- */

/* Bytes a position takes in `given`: each latent, and behind each its magnitude where the model has them. */
static size_t views(const Model *m) { return m->magnitudes ? 2 : 1; }

/* Channels start..stop - 1 of q as bytes, position by position, where (row + col) % 2 == parity. */
CLONED static void gather(const int32_t *q, size_t rows, size_t cols, size_t parity, size_t start, size_t stop,
                          const uint8_t *magnitudes, uint8_t *given, size_t stride) {
    const size_t positions = rows * cols, step = magnitudes ? 2 : 1;
    for (size_t c = start; c < stop; c++)
        for (size_t row = 0; row < rows; row++) {
            const int32_t *from = q + c * positions + row * cols;
            uint8_t *to = given + row * cols * stride + step * c;
            for (size_t col = (row + parity) % 2; col < cols; col += 2) {
                const int32_t x = clamp(from[col] >> (c == 0 ? DC_SHIFT : 0), -CONTEXT_CLAMP, CONTEXT_CLAMP);
                to[col * stride] = (uint8_t)(x + CONTEXT_OFFSET);
                if (magnitudes) to[col * stride + 1] = (uint8_t)(magnitudes[x < 0 ? -x : x] + CONTEXT_OFFSET);
            }
        }
}

/* What pass k may see of q, as bytes [rows * cols][padded(views * latents)], where `filled` passes have prepared it before:
 * a latent not known yet counts as 0. Returns for how many passes it is prepared now. */
static uint32_t prepare(const Model *m, uint32_t k, uint32_t filled, const int32_t *q, uint32_t rows, uint32_t cols,
                        uint8_t *given) {
    const size_t stride = padded(views(m) * (size_t)m->latents);
    if (filled == 0 || filled > k) {
        memset(given, CONTEXT_OFFSET, (size_t)rows * cols * stride);
        filled = 1; /* pass 0 sees nothing */
    }
    for (; filled <= k; filled++) { /* what the pass before has coded */
        const uint32_t coded = filled - 1;
        gather(q, rows, cols, coded % 2, (size_t)m->starts[coded / 2], (size_t)m->starts[coded / 2 + 1], m->magnitudes, given,
               stride);
    }
    return filled;
}

/* Pass k from the features and q int32 [latents][rows][cols], complete for the earlier passes: table numbers and means of
 * the slice's first `channels`, int32 [channels][rows][cols / 2], in the order of `half` in prior.py. The last layer's outputs
 * are packed in blocks of HALF_COLUMNS means and as many scales. `given` (rows * cols * padded(views * latents) bytes) is kept from
 * pass to pass; `filled` is 0 at first, then what the call before returned. Returns 0 where a sum was not sound. */
API uint32_t perigee_prior_pass(const Model *m, uint32_t k, const uint8_t *features, const int32_t *q, uint32_t rows,
                            uint32_t cols, uint32_t channels, uint8_t *given, uint32_t filled, int32_t *table, int32_t *mean,
                            uint8_t *scratch) {
    Tile *tile = tile_of(m->packing);
    Depthwise *depthwise = depthwise_of(m->packing);
    const Layer *layers = m->layers + PASSES + PER_PASS * k;
    const size_t half = (size_t)rows * cols / 2, parity = k % 2, line = cols + 4;
    const size_t start = (size_t)m->starts[k / 2], slice = (size_t)m->starts[k / 2 + 1] - start;
    const size_t seen = parity ? start + slice : start, seen_stride = padded(views(m) * (size_t)m->latents), hyper = (size_t)m->hyper;
    const size_t context = (size_t)m->context, join_stride = padded(hyper + context), head = padded((size_t)m->head);
    uint8_t *map = scratch, *joined = map + bordered(rows, cols, 2) * padded(context), *first = joined + half * join_stride;
    uint8_t *second = first + half * head;
    int32_t *sums = (int32_t *)(((uintptr_t)(second + half * head) + 63) / 64 * 64);

    uint32_t wrong = 0;
    filled = prepare(m, k, filled, q, rows, cols, given);
    if (seen) {
        memset(map, 0, bordered(rows, cols, 2) * context);
        uint32_t total = 0;
        for (size_t row = 0; row < rows; row++)
            total += pointwise(tile, &layers[CONTEXT], ALL, given + row * cols * seen_stride, seen_stride, cols,
                               map + ((row + 2) * line + 2) * context, context, NULL);
        wrong |= total - expected(&layers[CONTEXT], (size_t)layers[CONTEXT].padded, given, seen_stride, (size_t)rows * cols);
        wrong |= constants(&layers[CONTEXT]) - layers[CONTEXT].check[0];
        wrong |= constants(&layers[DEPTH]) - layers[DEPTH].check[0];
    }
    size_t at = 0;
    for (size_t odd = 0; odd < 2; odd++)
        for (size_t row = odd; row < rows; row += 2) {
            const size_t left = (odd + parity) % 2;
            uint8_t *to = joined + at * join_stride;
            if (seen) depthwise(&layers[DEPTH], map, context, cols, row, left, 2, cols / 2, to + hyper, join_stride);
            for (size_t col = left; col < cols; col += 2, at++, to += join_stride) {
                memcpy(to, features + (row * cols + col) * padded(hyper), hyper);
                memset(to + hyper + (seen ? context : 0), 0, join_stride - hyper - (seen ? context : 0));
            }
        }
    memset(first, 0, 2 * half * head);
    wrong |= checked(tile, &layers[HEAD1], joined, join_stride, half, first, head);
    wrong |= checked(tile, &layers[HEAD2], first, head, half, second, head);
    const size_t width = (size_t)layers[OUT].padded, wanted = (channels + HALF_COLUMNS - 1) / HALF_COLUMNS * COLUMNS;
    uint32_t total = 0;
    for (size_t p = 0; p < half; p += ROWS) {
        const size_t count = half - p < ROWS ? half - p : ROWS;
        total += pointwise(tile, &layers[OUT], wanted, second + p * head, head, count, NULL, 0, sums);
        for (size_t c = 0; c < channels; c++)
            for (size_t r = 0; r < count; r++) {
                const int32_t *block = sums + r * width + c / HALF_COLUMNS * COLUMNS + c % HALF_COLUMNS;
                const int32_t mu = block[0], scale = block[HALF_COLUMNS];
                mean[c * half + p + r] = mu;
                table[c * half + p + r] = clamp((8 * scale + 328) >> 4, 0, SCALES - 1) * 16 + (mu & 15);
            }
    }
    wrong |= constants(&layers[OUT]) - layers[OUT].check[0];
    wrong |= total - expected(&layers[OUT], wanted < width ? wanted : width, second, head, half);
    return wrong ? 0 : filled;
}

/* Sizes of what Python hands over: a library built from other sources is not to be called. */
API uint32_t perigee_abi(void) { return (uint32_t)(ABI * 1000000 + sizeof(Layer) * 1000 + sizeof(Model)); }

/* The packings that this machine can multiply, one bit each; the highest is the fastest. */
API uint32_t perigee_prior_packings(void) {
    uint32_t out = 1u << SINGLES;
#ifdef X86
    if (__builtin_cpu_supports("avx2")) out |= 1u << QUADS_AVX2;
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) out |= 1u << QUADS_VNNI;
#endif
#ifdef ARM
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) out |= 1u << QUADS_DOT;
#endif
    return out;
}
