"""From components to what is coded of a patch: the lapped transform and the hyper-latents.

Everything here only chooses integers, so it may differ from machine to machine.
"""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.lapped import analyse
from perigee.bitstream.prior import Z_CLAMP

PATCH_MULTIPLE = 64
LEAK = 0.1  # of the leaky rectifiers


class ComponentAnalysis:
    """The analysis of one contract, with the weights of its hyper-analysis."""

    def __init__(self, contract: ComponentContract, weights: dict[str, FloatArray]) -> None:
        self._contract, self._weights = contract, weights
        self._order = contract.order.astype(np.intp)

    def coefficients(self, planes: FloatArray) -> FloatArray:
        """Coefficients float32 [components, 256, H, W] of components [components, rows, cols], as shares of the range.

        Sides that are no multiples of 64 are padded at the bottom and right by replication.
        """
        rows, cols = (-n % PATCH_MULTIPLE for n in planes.shape[1:])
        padded = np.pad(planes, ((0, 0), (0, rows), (0, cols)), mode="edge") if rows or cols else planes
        return analyse(padded, self._order)

    def hyper_latents(self, y: FloatArray) -> IntArray:
        """Hyper-latents int32 [hyper_latents, H/4, W/4] of a component ``y`` [256, H, W] in steps."""
        x = self._point("point1", np.log(1 + np.abs(y)))
        x = self._point("point2", self._depth("depth1", _leaky(x)))
        x = self._point("point3", self._depth("depth2", _leaky(x)))
        return np.clip(np.rint(x), -Z_CLAMP, Z_CLAMP).astype(np.int32)

    def _point(self, name: str, x: FloatArray) -> FloatArray:
        flat = self._weights[f"{name}.weight"] @ x.reshape(len(x), -1) + self._weights[f"{name}.bias"][:, None]
        return np.asarray(flat.reshape(-1, *x.shape[1:]), np.float32)

    def _depth(self, name: str, x: FloatArray) -> FloatArray:
        """A depthwise layer of stride 2 with zeros around."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        reach = weight.shape[1] // 2
        rows, cols = (n // 2 for n in x.shape[1:])
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
        out = np.repeat(bias[:, None], rows * cols, 1).reshape(-1, rows, cols)
        for i in range(weight.shape[1]):
            for j in range(weight.shape[2]):
                out = out + weight[:, i, j, None, None] * padded[:, i : i + 2 * rows : 2, j : j + 2 * cols : 2]
        return np.asarray(out, np.float32)


def _leaky(x: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(x, LEAK * x), np.float32)
