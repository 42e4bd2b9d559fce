/* Kernels for x86-64 with AVX2. */
#include "prior.h"

#ifdef X86
#include <immintrin.h>
#include <string.h>

/* Multiplies four inputs as 16-bit words with four columns in a vector; until the end, two sums of two products stand
 * side by side for each column. It takes two rows and sixteen columns at a time. Each vector of sums is a variable of
 * its own, because the compiler would move an array about in memory. */
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
                const __m256i w0 = _mm256_loadu_si256((const __m256i *)w);
                const __m256i w1 = _mm256_loadu_si256((const __m256i *)(w + 16));
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
            for (int k = 0; k < 4; k++) /* The columns are 0 1 4 5 2 3 6 7 and are put in order. */
                _mm256_storeu_si256((__m256i *)&sums[r + k / 2][c + 8 * (k % 2)],
                                    _mm256_permute4x64_epi64(whole[k], 0xD8));
        }
}

static int usable(void) { return __builtin_cpu_supports("avx2"); }

const Kernels kernels_avx2 = {"AVX2", usable, tile_avx2, depthwise_plain};
#endif
