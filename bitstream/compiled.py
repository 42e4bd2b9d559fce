"""The compiled forms of coder and prior (``csrc/``): optional, the same bytes and integers, several times as fast.

``library`` is None where there was no compiler at installation; everything works without it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.errors import EngineError, UpsetError
from perigee.bitstream.prior import (
    CONTEXT_CLAMP,
    QUALITY_STEPS,
    Z_CLAMP,
    Layer,
    LayerShape,
    Prediction,
    Step,
    Widths,
    coded_passes,
    layer_shapes,
    quality_plane_value,
)

FUNCTIONS = (
    "perigee_push_passes", "perigee_pop_pass", "perigee_push_runs", "perigee_pop_runs", "perigee_flush",
    "perigee_prior_scratch", "perigee_prior_features", "perigee_prior_pass", "perigee_prior_packings", "perigee_abi",
)  # fmt: skip
COLUMNS = 32  # output channels are stored in multiples of this
# inputs side by side, their type, what products take off them: for any machine, AVX2, AVX-512 VNNI, NEON's dot products
PACKINGS: tuple[tuple[int, Any, int], ...] = ((1, np.float32, 0), (4, np.int16, 0), (4, np.int8, 0), (4, np.int8, 128))
PACKING_NAMES = ("float32", "int16, AVX2", "int8, AVX-512 VNNI", "int8, NEON dot products")


def address(array: npt.NDArray[Any]) -> int:
    """Of a contiguous array, which the caller keeps alive."""
    at: int = array.__array_interface__["data"][0]  # in a third of the time of ``array.ctypes``
    return at


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """:func:`address` as an argument of a function without types."""
    return ctypes.c_void_p(address(array))


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "shift", "check")] + [
        (name, ctypes.c_int32) for name in ("inputs", "outputs", "padded", "kernel", "offset")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32) for name in ("latents", "hyper_latents", "hyper", "context", "head", "passes", "packing")
    ] + [(name, ctypes.c_void_p) for name in ("starts", "layers", "magnitudes")]


ABI = 7  # as in csrc/prior.c


def _load() -> Any:
    found = importlib.util.find_spec("perigee.bitstream._native")
    if found is None or found.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)
        for name in FUNCTIONS:
            getattr(loaded, name)
    except (OSError, AttributeError):
        return None
    wanted = ABI * 1_000_000 + ctypes.sizeof(_Layer) * 1000 + ctypes.sizeof(_Model)
    if loaded.perigee_abi() != wanted:  # left over from other sources, as after an update without a new installation
        return None
    loaded.perigee_prior_scratch.restype = ctypes.c_uint64
    loaded.perigee_prior_pass.restype = loaded.perigee_prior_features.restype = ctypes.c_uint32
    p, n = ctypes.c_void_p, ctypes.c_uint32
    loaded.perigee_prior_pass.argtypes = [p, n, p, p, n, n, n, p, n, p, p, p]  # plain numbers: called for every pass
    return loaded


library = _load()


def packings() -> list[int]:
    """Packings of the weights that this machine can multiply, the fastest last; empty without the compiled library."""
    usable = 0 if library is None else int(library.perigee_prior_packings())
    return [i for i in range(len(PACKINGS)) if usable >> i & 1]


def _up(n: int, multiple: int = COLUMNS) -> int:
    return -(-n // multiple) * multiple


class _NativeStep:
    """``prior.Step``: hyper features, prepared context and scratch memory of a batch of patches."""

    def __init__(self, widths: Widths, model: _Model, z: IntArray, quality_step: int) -> None:
        patches, _, h, w = z.shape
        self.widths = widths
        self.shape = (patches, widths.latents, 4 * h, 4 * w)
        self._model = ctypes.byref(model)
        self._sizes = (ctypes.c_uint32(4 * h), ctypes.c_uint32(4 * w))
        self._patch_bytes = 4 * widths.latents * 16 * h * w
        self._scratch = np.empty(library.perigee_prior_scratch(self._model, *self._sizes), np.uint8)
        views = 2 if widths.magnitudes else 1
        self.features = np.empty((patches, 16 * h * w, _up(widths.hyper)), np.uint8)
        self._given = np.empty((patches, 16 * h * w, _up(views * widths.latents)), np.uint8)
        # for every pass the same, and a microsecond each
        self._places = [(address(f), address(g)) for f, g in zip(self.features, self._given, strict=True)]
        self._room = address(self._scratch)
        self._filled = 0  # passes for which ``given`` is prepared
        z = np.ascontiguousarray(z, np.int32)
        plane = ctypes.c_uint32(quality_plane_value(quality_step))
        for one, (features, _) in zip(z, self._places, strict=True):
            places = map(ctypes.c_void_p, (features, self._room))
            if library.perigee_prior_features(self._model, pointer(one), plane, *self._sizes, *places):
                raise UpsetError("a sum of the prior's hyper-decoder cannot be")

    def __call__(self, k: int, q: IntArray, channels: int | None = None) -> Prediction:
        start, stop = self.widths.slice_of(k)
        count = stop - start if channels is None else channels
        if not 1 <= count <= stop - start:
            raise EngineError(f"{count} channels of pass {k}, accepted are 1 to {stop - start}")
        if q.shape != self.shape:
            raise EngineError(f"latents of shape {list(q.shape)}, expected {list(self.shape)}")
        q = np.ascontiguousarray(q, np.int32)
        patches, _, rows, cols = self.shape
        table, mean = np.empty((2, patches, count, rows, cols // 2), np.int32)
        before, symbols = self._filled, address(q)
        places = address(table), address(mean)
        for i, (features, given) in enumerate(self._places):
            out = (at + 4 * i * count * rows * cols // 2 for at in places)
            self._filled = library.perigee_prior_pass(
                self._model,
                k,
                features,
                symbols + i * self._patch_bytes,
                rows,
                cols,
                count,
                given,
                before,
                *out,
                self._room,
            )
            if not self._filled:
                raise UpsetError(f"a sum in pass {k} of the prior cannot be")
        return Prediction(table, mean)


class NativePrior:
    """``prior.PriorEngine`` from ``csrc/prior.c``; patches of a batch one after the other, on one thread."""

    def __init__(self, widths: Widths, layers: Mapping[str, Layer], packing: int | None = None) -> None:
        """``packing`` None takes the fastest that this machine has. Raises EngineError without the compiled library."""
        if library is None:
            raise EngineError("the compiled prior is not here: install Perigee where there is a C compiler")
        usable = packings()
        self.packing = usable[-1] if packing is None else packing
        if self.packing not in usable:
            raise EngineError(f"this machine cannot multiply packing {self.packing}; it can {usable}")
        self.widths = widths
        self._keep: list[npt.NDArray[Any]] = []
        shapes = layer_shapes(widths)
        names = ["hyper.up1", "hyper.depth1", "hyper.up2", "hyper.depth2", "hyper.mix"]
        names += [
            f"pass{k}.{part}" for k in range(widths.passes) for part in ("context", "depth", "head1", "head2", "out")
        ]
        self._layers = (_Layer * len(names))(
            *(self._layer(name, shapes[name], layers[name]) if name in shapes else _Layer() for name in names)
        )
        starts = np.array([0, *np.cumsum(widths.slices)], np.int32)
        magnitudes = np.array(widths.magnitudes, np.uint8)
        self._keep += [starts, magnitudes]
        self._model = _Model(
            widths.latents, widths.hyper_latents, widths.hyper, widths.context, widths.head, widths.passes, self.packing,
            pointer(starts), ctypes.addressof(self._layers), pointer(magnitudes) if len(magnitudes) else None,
        )  # fmt: skip

    def _layer(self, name: str, shape: LayerShape, layer: Layer) -> _Layer:
        bias = layer.bias.astype(np.int64) + ((np.int64(1) << layer.shift.astype(np.int64)) >> 1)
        order = np.arange(shape.outputs)
        place = order
        if shape.final:  # blocks of 16 means and their 16 scales, so that the first channels can be had alone
            channel = order % (shape.outputs // 2)
            place = channel // 16 * COLUMNS + order // (shape.outputs // 2) * 16 + channel % 16
        if name in ("hyper.up1", "hyper.up2"):  # pixel shuffle wants (row, col, channel)
            order = order.reshape(-1, 4).T.reshape(-1)
        inputs, width, offset = shape.inputs, shape.outputs, 0
        packed: npt.NDArray[Any]
        if shape.depthwise:
            packed = layer.weight.reshape(shape.outputs, -1).T.astype(np.int16)
        else:
            matrix = layer.weight[:, :, 0, 0]
            if self.widths.magnitudes and name.endswith(".context"):  # each latent's magnitude lies behind it
                matrix = np.stack(np.split(matrix, 2, axis=1), axis=2).reshape(shape.outputs, -1)
            offset = {"hyper.up1": Z_CLAMP}.get(name, CONTEXT_CLAMP if name.endswith(".context") else 0)
            group, dtype, less = PACKINGS[self.packing]
            taken = offset if group == 1 else less  # off the stored inputs, before they are multiplied
            bias = bias + (taken - offset) * matrix.astype(np.int64).sum(1)
            inputs, width = _up(shape.inputs, group), _up(int(place.max()) + 1)
            whole = np.zeros((width, inputs), dtype)
            whole[place, : shape.inputs] = matrix[order]
            packed = whole.reshape(width, -1, group).transpose(1, 0, 2)
        arrays = [np.ascontiguousarray(packed), np.zeros(width, np.int32), np.zeros(width, np.int32)]
        arrays[1][place] = bias[order]
        arrays[2][place] = layer.shift[order]
        constants = arrays[1].astype(np.int64).sum() + arrays[2].sum()
        check = np.array([constants + packed.astype(np.int64).sum()])
        if not shape.depthwise:
            blocks = whole.astype(np.int64).reshape(-1, COLUMNS, inputs).sum(1).cumsum(0)
            constant = arrays[1].astype(np.int64).reshape(-1, COLUMNS).sum(1).cumsum()
            constant = constant - taken * blocks.sum(1)
            check = np.concatenate([[constants], np.column_stack([blocks, constant]).reshape(-1)])
        arrays.append((check % 2**32).astype(np.uint32))
        self._keep += arrays
        return _Layer(*(pointer(a) for a in arrays), inputs, shape.outputs, width, shape.kernel, offset)

    def memory(self) -> list[npt.NDArray[Any]]:
        """All arrays that the compiled code reads."""
        return self._keep

    def start(self, z: IntArray, quality_step: int) -> Step:
        """As ``prior.PriorEngine``. It and each pass raise UpsetError where their sums are not what weights and inputs give."""
        if z.ndim != 4 or z.shape[1] != self.widths.hyper_latents or z.size and np.abs(z).max() > Z_CLAMP:
            raise EngineError(
                f"hyper-latents of shape {list(z.shape)}, expected {self.widths.hyper_latents} channels "
                f"of values -{Z_CLAMP}..{Z_CLAMP}"
            )
        if not 0 <= quality_step <= QUALITY_STEPS:
            raise EngineError(f"quality step {quality_step}, accepted are 0 to {QUALITY_STEPS}")
        return _NativeStep(self.widths, self._model, z, quality_step)

    def all_passes(self, z: IntArray, q: IntArray, quality_step: int, latents: int | None = None) -> list[Prediction]:
        return coded_passes(self.widths, self.start(z, quality_step), q, latents)
