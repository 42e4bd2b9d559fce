"""Names for the arrays that travel between modules. Shapes stand where an array is used; the type stands here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IntArray = npt.NDArray[Any]  # integers of any width: symbols, means, tables, weights
FloatArray = npt.NDArray[np.float32]  # images in 0..1, latents, features
BoolArray = npt.NDArray[np.bool_]  # validity
Samples = npt.NDArray[Any]  # pixel values in a scene's own type, uint8, uint16, int16 or float32
Pixels = npt.NDArray[np.uint8]  # RGB pictures [row, col, 3]
