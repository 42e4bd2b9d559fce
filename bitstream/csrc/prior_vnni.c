/* Kernels for x86-64 with AVX-512 and its instructions for neural networks (VNNI). */
#include "prior.h"

#ifdef X86
#include <immintrin.h>
#include <string.h>

__attribute__((target("avx512f,avx512vnni"))) static void
tile_vnni(const Layer *l, size_t column, const uint8_t *const x[ROWS], int32_t sums[ROWS][COLUMNS]) {
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

/* Puts two taps side by side as 16-bit words, whose products one instruction multiplies and adds. The weights that it
 * has loaded serve POSITIONS positions. */
__attribute__((target("avx512f,avx512bw,avx512vl"))) static void depthwise_avx512(const Layer *l, Map map, Run run,
                                                                                  uint8_t *out, size_t out_stride) {
    enum { POSITIONS = 4 };
    const size_t kernel = (size_t)l->kernel, taps = kernel * kernel, channels = (size_t)l->outputs;
    const __m512i zero = _mm512_setzero_si512(), most = _mm512_set1_epi32(255);
    /* Unpacking mixes the channels. These two put the sums of channels 0 to 15 and of channels 16 to 31 in order again.
     */
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i later = _mm512_add_epi32(order, _mm512_set1_epi32(8));
    for (size_t done = 0; done < run.count; done += POSITIONS) {
        const size_t places = run.count - done < POSITIONS ? run.count - done : POSITIONS;
        size_t from[POSITIONS];
        for (size_t n = 0; n < POSITIONS; n++)
            from[n] = (run.col + (done + (n < places ? n : 0)) * run.step) * map.stride;
        for (size_t first = 0; first < channels; first += COLUMNS) {
            const size_t width = channels - first < COLUMNS ? channels - first : COLUMNS;
            const __mmask32 real = (__mmask32)(UINT32_MAX >> (COLUMNS - width));
            const int16_t *w = (const int16_t *)l->weight + first;
            const uint8_t *corner = map.bytes + run.row * map.line * map.stride + first;
            __m512i low[POSITIONS] = {zero, zero, zero, zero}, high[POSITIONS] = {zero, zero, zero, zero};
            for (size_t tap = 0; tap < taps; tap += 2) {
                const int two = tap + 1 < taps;
                const uint8_t *a = corner + (tap / kernel * map.line + tap % kernel) * map.stride;
                const uint8_t *b = two ? corner + ((tap + 1) / kernel * map.line + (tap + 1) % kernel) * map.stride : a;
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
                    uint8_t *to = out + (done + n) * out_stride + first + 16 * half;
                    _mm_mask_storeu_epi8(to, there, _mm512_cvtepi32_epi8(sums));
                }
            }
        }
    }
}

static int usable(void) {
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
}

const Kernels kernels_vnni = {"AVX-512 VNNI", usable, tile_vnni, depthwise_avx512};
#endif
