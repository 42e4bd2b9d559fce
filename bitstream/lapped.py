"""The transform of one spectral component: a lapped transform of 16x16 blocks, defined by integers.

A column of samples is first mixed across the borders of its blocks (``LAP``, 16 samples around each border inside the patch),
then every block goes through a cosine transform (``COSINE``); rows likewise. Both matrices are orthogonal up to the rounding of
their integers, so one step size serves all coefficients and the squared error of the coefficients is that of the samples. At
the borders of a patch nothing is mixed: a patch decodes alone.

The integers define the way back, from coefficients to samples; the encoder uses its inverse in floating point.
"""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray

BLOCK = 16
REACH = BLOCK // 2  # samples on each side of a border that are mixed
MATRIX_BITS = 14  # the integers are the matrices times 2**14
# fmt: off
LAP = (
    (16338, -828, -23, -212, 1, -99, 24, -52, 52, -24, 99, -1, 212, 23, 828, 46),
    (807, 16124, -1776, 85, -509, 116, -275, 178, -178, 275, -116, 509, -85, 1776, 260, -807),
    (112, 1736, 15647, -2724, 242, -841, 311, -469, 469, -311, 841, -242, 2724, 737, -1736, -112),
    (218, 213, 2667, 14921, -3550, 490, -1149, 673, -673, 1149, -490, 3550, 1463, -2667, -213, -218),
    (82, 532, 363, 3498, 14009, -4236, 847, -1397, 1397, -847, 4236, 2375, -3498, -363, -532, -82),
    (117, 173, 862, 537, 4193, 13011, -4760, 1603, -1603, 4760, 3373, -4193, -537, -862, -173, -117),
    (76, 304, 370, 1164, 881, 4732, 12259, -5080, 5080, 4125, -4732, -881, -1164, -370, -304, -76),
    (83, 205, 502, 684, 1411, 1607, 5069, 14198, 2186, -5069, -1607, -1411, -684, -502, -205, -83),
    (-83, -205, -502, -684, -1411, -1607, -5069, 2186, 14198, 5069, 1607, 1411, 684, 502, 205, 83),
    (-76, -304, -370, -1164, -881, -4732, 4125, 5080, -5080, 12259, 4732, 881, 1164, 370, 304, 76),
    (-117, -173, -862, -537, -4193, 3373, 4760, -1603, 1603, -4760, 13011, 4193, 537, 862, 173, 117),
    (-82, -532, -363, -3498, 2375, 4236, -847, 1397, -1397, 847, -4236, 14009, 3498, 363, 532, 82),
    (-218, -213, -2667, 1463, 3550, -490, 1149, -673, 673, -1149, 490, -3550, 14921, 2667, 213, 218),
    (-112, -1736, 737, 2724, -242, 841, -311, 469, -469, 311, -841, 242, -2724, 15647, 1736, 112),
    (-807, 260, 1776, -85, 509, -116, 275, -178, 178, -275, 116, -509, 85, -1776, 16124, 807),
    (46, 828, 23, 212, -1, 99, -24, 52, -52, 24, -99, 1, -212, -23, -828, 16338),
)
COSINE = (
    (4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096),
    (5765, 5543, 5109, 4478, 3675, 2731, 1682, 568, -568, -1682, -2731, -3675, -4478, -5109, -5543, -5765),
    (5681, 4816, 3218, 1130, -1130, -3218, -4816, -5681, -5681, -4816, -3218, -1130, 1130, 3218, 4816, 5681),
    (5543, 3675, 568, -2731, -5109, -5765, -4478, -1682, 1682, 4478, 5765, 5109, 2731, -568, -3675, -5543),
    (5352, 2217, -2217, -5352, -5352, -2217, 2217, 5352, 5352, 2217, -2217, -5352, -5352, -2217, 2217, 5352),
    (5109, 568, -4478, -5543, -1682, 3675, 5765, 2731, -2731, -5765, -3675, 1682, 5543, 4478, -568, -5109),
    (4816, -1130, -5681, -3218, 3218, 5681, 1130, -4816, -4816, 1130, 5681, 3218, -3218, -5681, -1130, 4816),
    (4478, -2731, -5543, 568, 5765, 1682, -5109, -3675, 3675, 5109, -1682, -5765, -568, 5543, 2731, -4478),
    (4096, -4096, -4096, 4096, 4096, -4096, -4096, 4096, 4096, -4096, -4096, 4096, 4096, -4096, -4096, 4096),
    (3675, -5109, -1682, 5765, -568, -5543, 2731, 4478, -4478, -2731, 5543, 568, -5765, 1682, 5109, -3675),
    (3218, -5681, 1130, 4816, -4816, -1130, 5681, -3218, -3218, 5681, -1130, -4816, 4816, 1130, -5681, 3218),
    (2731, -5765, 3675, 1682, -5543, 4478, 568, -5109, 5109, -568, -4478, 5543, -1682, -3675, 5765, -2731),
    (2217, -5352, 5352, -2217, -2217, 5352, -5352, 2217, 2217, -5352, 5352, -2217, -2217, 5352, -5352, 2217),
    (1682, -4478, 5765, -5109, 2731, 568, -3675, 5543, -5543, 3675, -568, -2731, 5109, -5765, 4478, -1682),
    (1130, -3218, 4816, -5681, 5681, -4816, 3218, -1130, -1130, 3218, -4816, 5681, -5681, 4816, -3218, 1130),
    (568, -1682, 2731, -3675, 4478, -5109, 5543, -5765, 5765, -5543, 5109, -4478, 3675, -2731, 1682, -568),
)
# fmt: on


def _inverse_of(matrix: tuple[tuple[int, ...], ...]) -> FloatArray:
    return np.asarray(np.linalg.inv(np.array(matrix, np.float64).T * 2.0**-MATRIX_BITS), np.float32)


LAP_FORWARD, COSINE_FORWARD = _inverse_of(LAP), _inverse_of(COSINE)


def analyse(planes: FloatArray, order: IntArray) -> FloatArray:
    """Coefficients float32 [n, len(order), rows / 16, cols / 16] of planes float32 [n, rows, cols], both multiples of 16.

    ``order`` holds 16 * u + v of each channel: frequency u along the columns, v along the rows.
    """
    count, rows, cols = planes.shape
    work = planes.copy()
    inner = work[:, REACH : rows - REACH]
    if inner.shape[1]:
        inner[:] = np.matmul(LAP_FORWARD, inner.reshape(count, -1, BLOCK, cols)).reshape(inner.shape)
    work = np.matmul(COSINE_FORWARD, work.reshape(count, -1, BLOCK, cols))
    inner = work[..., REACH : cols - REACH]
    if inner.shape[-1]:
        inner[:] = (inner.reshape(-1, BLOCK) @ LAP_FORWARD.T).reshape(inner.shape)
    blocks = (work.reshape(-1, BLOCK) @ COSINE_FORWARD.T).reshape(count, rows // BLOCK, BLOCK, cols // BLOCK, BLOCK)
    ordered = blocks.transpose(0, 2, 4, 1, 3).reshape(count, BLOCK * BLOCK, rows // BLOCK, cols // BLOCK)
    return np.ascontiguousarray(ordered[:, order])
