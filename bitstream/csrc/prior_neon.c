/* Kernels for aarch64 with the dot products of NEON. */
#include "prior.h"

#ifdef ARM
#include <arm_neon.h>
#include <string.h>
#include <sys/auxv.h>

#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
/* Multiplies signed bytes. The inputs are taken less 128, which the packed biases give back. */
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

static int usable(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

const Kernels kernels_dot = {"NEON dot products", usable, tile_dot, depthwise_plain};
#endif
