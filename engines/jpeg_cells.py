"""What a JPEG file says of its original: every coefficient of the luma lies within half a quantisation step of the decoded one.

An enhanced image whose coefficients leave their cells contradicts what was received; :class:`JpegCells` moves it back. Blocks of 8x8 pixels are
those of the image's corner. ITU-T T.81, annexes A and B; the luma is that of JFIF.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perigee.bitstream.arrays import FloatArray

HEAD_MAX_BYTES = 1 << 20  # of a file that are looked through for its headers
SIDE = 8
LOWEST = 4  # frequencies down and across sum to less than this
LEVEL = 128  # grey levels that are taken from samples before the transform
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The orthonormal cosine transform, [frequency, sample].
_FREQUENCY, _SAMPLE = np.mgrid[0:SIDE, 0:SIDE]
COSINE = (np.cos((2 * _SAMPLE + 1) * _FREQUENCY * np.pi / 16) / np.where(_FREQUENCY, 2, 8**0.5)).astype(np.float32)
START, TABLES, SCAN, ADOBE = b"\xff\xd8", 0xDB, 0xDA, 0xEE  # markers
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, coded by Huffman
# Places of a table's values: along diagonals from the upper left, in alternating directions (figure A.6).
ZIGZAG = sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8 if (n // 8 + n % 8) % 2 else n % 8))


class JpegCells:
    """The cells of one file's luma."""

    def __init__(self, steps: FloatArray) -> None:
        """``steps`` float32 [8, 8]: the quantisation step of each frequency, down and across, in grey levels."""
        self._steps = steps

    @property
    def step(self) -> float:
        """The geometric mean of the steps of the lowest frequencies."""
        return float(np.exp(np.log(self._steps[np.add.outer(range(SIDE), range(SIDE)) < LOWEST]).mean()))

    def held(self, image: FloatArray, added: FloatArray, rows: int, cols: int) -> FloatArray:
        """What is added, changed so that the luma of the sum stays in its cells. Both are float32 [3, 8 n, 8 m], for images of 0..1.

        Blocks that reach beyond the first ``rows`` and ``cols``, where the image ends, are left: their coefficients cannot be told.
        """
        half = np.float32(0.5)
        before, change = (self._coefficients(x) for x in (image, added))
        before[..., 0, 0] -= LEVEL * SIDE
        middle = np.rint(before / self._steps) * self._steps
        low, high = middle - half * self._steps - before, middle + half * self._steps - before
        back = np.clip(change, np.minimum(low, 0), np.maximum(high, 0)) - change
        back[rows // SIDE :] = back[:, cols // SIDE :] = 0
        return np.asarray(added + self._pixels(back), np.float32)

    def _coefficients(self, image: FloatArray) -> FloatArray:
        """Coefficients [rows, cols, 8, 8] of the luma of [3, 8 rows, 8 cols], in grey levels."""
        luma = 255 * np.tensordot(LUMA, image, 1)
        rows, cols = (n // SIDE for n in luma.shape)
        blocks = luma.reshape(rows, SIDE, cols, SIDE).transpose(0, 2, 1, 3)
        return np.asarray(COSINE @ blocks @ COSINE.T, np.float32)

    def _pixels(self, coefficients: FloatArray) -> FloatArray:
        """Inverse of :meth:`_coefficients`, in 0..1."""
        blocks = COSINE.T @ coefficients @ COSINE
        rows, cols = blocks.shape[:2]
        return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(rows * SIDE, cols * SIDE) / 255, np.float32)


def cells_of_file(path: Path) -> JpegCells | None:
    """As :func:`cells_of`, of a file. Raises OSError."""
    with path.open("rb") as file:
        return cells_of(file.read(HEAD_MAX_BYTES))


def cells_of(head: bytes) -> JpegCells | None:
    """The cells of a colour JPEG that begins so; None for other files, and for those whose headers cannot be read."""
    tables: dict[int, FloatArray] = {}
    at, luma = 2, None
    while head[:2] == START and at + 4 <= len(head) and head[at] == 0xFF and head[at + 1] != SCAN:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        body = head[at + 4 : at + 2 + length]
        if marker == TABLES:
            tables |= _tables(body)
        elif marker in FRAMES:
            if len(body) < 6 + 3 * 3 or body[0] != 8 or body[5] != 3:  # bits of a sample, components
                return None
            luma = body[8]  # the table of the first component
        elif marker == ADOBE and body[:5] == b"Adobe" and body[11:12] != b"\x01":
            return None  # red, green and blue themselves
        at += 2 + length
    table = None if luma is None else tables.get(luma)
    return None if table is None or not (table > 0).all() else JpegCells(table)


def _tables(body: bytes) -> dict[int, FloatArray]:
    """The quantisation tables of a segment, by number; none from one that ends early on."""
    found = {}
    at = 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 64 * (1 + (wide > 0))
        values = np.frombuffer(body[at + 1 : at + 1 + size], ">u2" if wide else "u1")
        if len(values) < 64:
            break
        table = np.empty(64, np.float32)
        table[ZIGZAG] = values
        found[number] = table.reshape(SIDE, SIDE)
        at += 1 + size
    return found
