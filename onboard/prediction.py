"""How each band of a patch is best predicted: from which bands before it, with which weights, and whether its samples repeat.

Weights are those of a least-squares fit over some of the rows, in which differences count the less the busier their surroundings are. All sums are of
whole numbers times powers of two, so that every machine finds the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perigee.bitstream.arrays import Array, IntArray
from perigee.bitstream.predictive import (
    ABOVE,
    BEFORE_MAX,
    BESIDE,
    FAR,
    NEAR,
    OWN,
    WEIGHT_BITS,
    WEIGHTS_SUM_MAX,
    BandModel,
    products_of,
)

ROWS_APART = 9  # of the rows that weights are fitted on; odd, so that enlarged bands show all their phases
REPEATS_SHARE = 0.12  # of the samples that equal a neighbour, from which on repetition is coded
RIDGE = 1e-5  # of the mean square of the differences


def models_of(planes: Sequence[IntArray]) -> list[BandModel]:
    """Models for planes of samples int [rows, cols] from 0 on, in coding order."""
    rows, cols = planes[0].shape
    padded = [np.pad(plane, ((ABOVE, 1), (BESIDE, BESIDE)), mode="edge").astype(np.float32) for plane in planes]
    chosen = np.arange(min(1, rows - 1), rows, ROWS_APART) + ABOVE
    changes: list[IntArray] = []
    out = []
    for number, plane in enumerate(planes):
        change = (_at(padded[number], chosen, cols, (0, 0)) - _at(padded[number], chosen, cols, (-1, 0))).astype(float)
        before = _likest(change, changes)
        changes.append(change)
        weights = _weights([padded[number], *(padded[b] for b in before)], chosen, cols)
        out.append(BandModel(before, weights, int(plane.max()), int(plane[0, 0]), repeats(plane)))
    return out


def _at(padded: IntArray, rows: IntArray, cols: int, place: tuple[int, int]) -> IntArray:
    """The samples at a place beside those of some rows, [row, col]."""
    found: IntArray = padded[rows + place[0], BESIDE + place[1] : BESIDE + place[1] + cols]
    return found


def _likest(change: IntArray, others: list[IntArray]) -> tuple[int, ...]:
    """Numbers of the bands whose changes from row to row are most like a band's, the likest first."""
    likeness = []
    for other in others:
        product, size = float((change * other).sum()), float((other * other).sum())
        likeness.append(product * product / size if size else 0.0)
    return tuple(int(n) for n in np.argsort(-np.array(likeness), kind="stable")[:BEFORE_MAX])


def repeats(plane: IntArray) -> bool:
    """Whether so many samples equal their neighbour that repetition is worth coding."""
    pairs = [(plane[1:] == plane[:-1]), (plane[:, 1:] == plane[:, :-1])]
    shares = [float(pair.mean()) for pair in pairs if pair.size]
    return sum(shares) > REPEATS_SHARE * len(shares)


def _weights(padded: list[IntArray], rows: IntArray, cols: int) -> IntArray:
    """The weights of the first of the planes, which is predicted from itself and the others."""
    taps = []
    for number, plane in enumerate(padded):
        places = OWN if number == 0 else NEAR if number == 1 else FAR
        above = _at(plane, rows, cols, (-1, 0))
        taps += [_at(plane, rows, cols, place) - above for place in places]
    wanted = _at(padded[0], rows, cols, (0, 0)) - _at(padded[0], rows, cols, (-1, 0))
    columns: Array = np.stack([*taps, wanted]).reshape(len(taps) + 1, -1)
    busy = np.abs(columns[: len(OWN)]).sum(0) / len(OWN) + 2
    halvings = np.minimum(np.frexp(busy)[1] // 2, 8).astype(np.int32)  # the root of a power of two close to 1 / busy
    products: Array = products_of(np.ldexp(columns, -halvings[None]))
    matrix, right = products[:-1, :-1], products[:-1, -1]
    matrix = matrix + np.eye(len(matrix)) * (RIDGE * float(np.trace(matrix)) / len(matrix) + 1e-9)
    weights = np.rint(_solved(matrix, right) * (1 << WEIGHT_BITS))
    total = np.abs(weights).sum()
    if total > WEIGHTS_SUM_MAX:
        weights = np.trunc(weights * (WEIGHTS_SUM_MAX / total))
    return np.asarray(weights, np.int16)


def _solved(matrix: IntArray, right: IntArray) -> IntArray:
    """The solution of a symmetric positive definite system, by elimination in a fixed order."""
    rows = np.column_stack([matrix, right])
    size = len(matrix)
    for k in range(size):
        rows[k + 1 :] -= rows[k + 1 :, k : k + 1] / rows[k, k] * rows[k]
    out = np.zeros(size)
    for k in range(size - 1, -1, -1):
        out[k] = (rows[k, -1] - (rows[k, k + 1 : size] * out[k + 1 :]).sum()) / rows[k, k]
    return out
