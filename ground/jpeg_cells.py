"""What a JPEG file says of its original: every coefficient of the luma lies within half a quantisation step of the decoded one.

An enhanced image whose coefficients leave their cells contradicts what was received; :class:`JpegCells` moves it back. Blocks of 8x8 pixels are
those of the image's corner. ITU-T T.81, annexes A and B; the luma is that of JFIF.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from perigee.bitstream.arrays import FloatArray

SIDE = 8
LEVEL = 128  # grey levels that are taken from samples before the transform
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The orthonormal cosine transform, [frequency, sample].
_FREQUENCY, _SAMPLE = np.mgrid[0:SIDE, 0:SIDE]
COSINE = (np.cos((2 * _SAMPLE + 1) * _FREQUENCY * np.pi / 16) / np.where(_FREQUENCY, 2, 8**0.5)).astype(np.float32)


class JpegCells:
    """The cells of one file's luma."""

    def __init__(self, steps: FloatArray) -> None:
        """``steps`` float32 [8, 8]: the quantisation step of each frequency, down and across, in grey levels."""
        self._steps = steps

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


def cells_of(path: Path) -> JpegCells | None:
    """The cells of a colour JPEG file; None for other files, and for those whose tables cannot be read."""
    try:
        with Image.open(path, formats=["JPEG"]) as file:
            if file.mode != "RGB" or "adobe_transform" in file.info and file.info["adobe_transform"] != 1:
                return None
            tables: dict[int, list[int]] = getattr(file, "quantization", {})
            table = np.array(tables[0], np.float32)
    except (UnidentifiedImageError, OSError, KeyError, SyntaxError, ValueError):
        return None
    return JpegCells(table.reshape(SIDE, SIDE)) if table.size == SIDE * SIDE and (table > 0).all() else None
