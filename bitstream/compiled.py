"""Coder and prior compiled from C (``csrc/``): the same bytes and integers as in Python, several times as fast.

``library`` is None where there was no C compiler at installation. Everything works without it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.component_prior import Sight, magnitude_table, planes_of
from perigee.bitstream.errors import EngineError, Fault, UpsetError
from perigee.bitstream.prior import (
    CONTEXT_CLAMP,
    QUALITY_STEPS,
    SCALE_COUNT,
    Z_CLAMP,
    Layer,
    LayerShape,
    Prediction,
    RunPass,
    Widths,
    coded_passes,
    layer_shapes,
    quality_plane_value,
)

FUNCTIONS = (
    "perigee_push_passes", "perigee_pop_pass", "perigee_push_runs", "perigee_pop_runs", "perigee_flush",
    "perigee_prior_scratch", "perigee_prior_given", "perigee_prior_features", "perigee_prior_pass",
    "perigee_prior_packings", "perigee_choose", "perigee_bits_by_offset", "perigee_plane", "perigee_samples",
    "perigee_predictive_scratch", "perigee_model_band", "perigee_push_intervals", "perigee_pop_band", "perigee_products",
    "perigee_abi",
)  # fmt: skip
ABI = 13  # as in csrc/module.c
COLUMNS = 32  # Output channels are stored in multiples of this.
# How many inputs lie side by side, the type of the weights, and what the kernel takes off each input.
PACKINGS: tuple[tuple[int, Any, int], ...] = ((1, np.float32, 0), (4, np.int16, 0), (4, np.int8, 0), (4, np.int8, 128))
PACKING_NAMES = ("float32", "int16, AVX2", "int8, AVX-512 VNNI", "int8, NEON dot products")


def address(array: npt.NDArray[Any]) -> int:
    """The address of a contiguous array, which the caller must keep alive."""
    at: int = array.__array_interface__["data"][0]  # takes a third of the time of ``array.ctypes``
    return at


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """The address of an array as an argument of a function whose argument types are not declared."""
    return ctypes.c_void_p(address(array))


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class NativeCoder(ctypes.Structure):
    """``Coder`` in ``csrc/coder.h``."""

    _fields_ = [("state", ctypes.c_uint64), ("words", ctypes.c_void_p), *_fields(ctypes.c_uint64, "position length")]


class NativeTables(ctypes.Structure):
    """``Tables`` in ``csrc/coder.h``."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "cumulated starts coarse entries raw_bits"),
        *_fields(ctypes.c_uint32, "latent_tables escape_bits"),
        *_fields(ctypes.c_int32, "smallest largest"),
    ]


class NativePass(ctypes.Structure):
    """``Pass`` in ``csrc/coder.h``."""

    _fields_ = [*_fields(ctypes.c_void_p, "values table mean"), ("count", ctypes.c_uint32)]


class _Layer(ctypes.Structure):
    """``Layer`` in ``csrc/prior.h``."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "weight bias shift check"),
        *_fields(ctypes.c_int32, "inputs outputs padded kernel offset"),
    ]


class _Model(ctypes.Structure):
    """``Model`` in ``csrc/prior.h``."""

    _fields_ = [
        *_fields(ctypes.c_int32, "latents hyper_latents hyper context head passes packing"),
        *_fields(ctypes.c_int32, "planes references scales magnitude_max"),
        *_fields(ctypes.c_void_p, "starts layers magnitudes"),
    ]


class _Patch(ctypes.Structure):
    """``Patch`` in ``csrc/prior.h``."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "model symbols table mean shifts base views features given scratch"),
        *_fields(ctypes.c_uint32, "rows cols channels filled shown"),
    ]


class NativeCosts(ctypes.Structure):
    """``Costs`` in ``csrc/rounding.h``."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "bits starts radius centroids"),
        ("error_bits", ctypes.c_float),
        ("scales", ctypes.c_int32),
    ]


class NativeTransform(ctypes.Structure):
    """``Transform`` in ``csrc/reconstruction.h``."""

    _fields_ = _fields(ctypes.c_void_p, "order lap cosine centroids")


class NativeCurve(ctypes.Structure):
    """``Curve`` in ``csrc/predictive.h``."""

    _fields_ = _fields(ctypes.c_void_p, "curve logs sharpness spread")


class NativeBand(ctypes.Structure):
    """``Band`` in ``csrc/predictive.h``."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "samples errors"),
        ("before", ctypes.c_void_p * 3),
        *_fields(ctypes.c_void_p, "near_errors weights"),
        *_fields(ctypes.c_uint32, "rows cols stride count repeats"),
        ("top", ctypes.c_int32),
    ]


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
    structs = (
        NativeCoder, NativeTables, NativePass, _Layer, _Model, _Patch, NativeCosts, NativeTransform, NativeCurve, NativeBand,
    )  # fmt: skip
    loaded.perigee_abi.restype = ctypes.c_uint64
    if loaded.perigee_abi() != reduce(lambda abi, struct: 257 * abi + ctypes.sizeof(struct), structs, ABI) % 2**64:
        return None  # It was built from other sources, as after an update without a new installation.
    loaded.perigee_predictive_scratch.restype = ctypes.c_uint64
    loaded.perigee_model_band.restype = ctypes.c_int64
    loaded.perigee_prior_scratch.restype = loaded.perigee_prior_given.restype = ctypes.c_uint64
    for function in (loaded.perigee_prior_features, loaded.perigee_prior_pass, loaded.perigee_prior_packings):
        function.restype = ctypes.c_uint32
    return loaded


library = _load()


def packings() -> list[int]:
    """Packings of the weights that this machine can multiply, the fastest last; empty without the compiled library."""
    usable = 0 if library is None else int(library.perigee_prior_packings())
    return [i for i in range(len(PACKINGS)) if usable >> i & 1]


def _up(n: int, multiple: int = COLUMNS) -> int:
    return -(-n // multiple) * multiple


def _misshapen(name: str, expected: Sequence[int], found: Sequence[int]) -> EngineError:
    return EngineError(
        f"{name} of shape {list(found)} do not fit; expected is {list(expected)}",
        Fault.SHAPE,
        field=name,
        expected=str(list(expected)),
        found=str(list(found)),
    )


class _NativePasses:
    """``prior.RunPass`` for a batch of patches, which share their scratch memory."""

    def __init__(self, prior: NativePrior, z: IntArray, planes: Sequence[int], sight: Sight | None = None) -> None:
        patches, _, h, w = z.shape
        rows, cols, widths = 4 * h, 4 * w, prior.widths
        self._prior = prior  # owns the memory that the structs point to
        self._shape = (patches, widths.latents, rows, cols)
        stride = library.perigee_prior_given(ctypes.byref(prior.model))
        self._features = np.empty((patches, rows * cols, _up(widths.hyper)), np.uint8)
        self._given = np.empty((patches, rows * cols, stride), np.uint8)
        model = ctypes.addressof(prior.model)
        size = library.perigee_prior_scratch(ctypes.byref(prior.model), ctypes.c_uint32(rows), ctypes.c_uint32(cols))
        self._scratch = np.empty(size, np.uint8)
        self._sight: tuple[IntArray, ...] = ()
        if sight is not None:
            views = np.ascontiguousarray(sight.views, np.uint8)
            if views.shape != (widths.references, widths.latents, rows, cols):
                raise _misshapen("views", [widths.references, widths.latents, rows, cols], views.shape)
            self._sight = (sight.shifts.astype(np.uint8), sight.base.astype(np.int16), views)
        seen = tuple(address(part) for part in self._sight) or (None, None, None)
        self._patches = [
            _Patch(
                model, None, None, None, *seen, address(features), address(given), address(self._scratch), rows, cols
            )
            for features, given in zip(self._features, self._given, strict=True)
        ]
        self._references = [ctypes.byref(patch) for patch in self._patches]
        values = np.array(planes, np.uint8)
        for patch, one in zip(self._references, np.ascontiguousarray(z, np.int32), strict=True):
            if library.perigee_prior_features(patch, pointer(one), pointer(values)):
                raise UpsetError("a checksum over the prior's hyper-decoder failed: a bit has flipped", field="hyper")

    def __call__(self, k: int, q: IntArray, channels: int | None = None) -> Prediction:
        start, stop = self._prior.widths.slice_of(k)
        count = stop - start if channels is None else channels
        if not 1 <= count <= stop - start:
            raise EngineError(
                f"{count} channels of pass {k} were asked for; it has {stop - start}",
                Fault.RANGE,
                field="channels",
                expected=f"1 to {stop - start}",
                found=count,
            )
        if q.shape != self._shape:
            raise _misshapen("latents", self._shape, q.shape)
        q = np.ascontiguousarray(q, np.int32)
        patches, latents, rows, cols = self._shape
        table, mean = both = np.empty((2, patches, count, rows, cols // 2), np.int32)
        symbols, symbol_bytes = address(q), 4 * latents * rows * cols
        result, result_bytes = address(both), 2 * count * rows * cols
        for i, (patch, reference) in enumerate(zip(self._patches, self._references, strict=True)):
            patch.symbols = symbols + i * symbol_bytes
            patch.table = result + i * result_bytes
            patch.mean = result + (patches + i) * result_bytes
            patch.channels = count
            if library.perigee_prior_pass(reference, k):
                raise UpsetError(f"a checksum over pass {k} of the prior failed: a bit has flipped", field=f"pass {k}")
        return Prediction(table, mean)


class NativePrior:
    """``prior.PriorEngine`` from ``csrc/prior.c``. It computes the patches of a batch one after the other, on one thread."""

    def __init__(self, widths: Widths, layers: Mapping[str, Layer], packing: int | None = None) -> None:
        """Without ``packing`` it takes the fastest that this machine can multiply. Raises EngineError where it cannot."""
        if library is None:
            raise EngineError(
                "the compiled prior is missing: install Perigee where there is a C compiler",
                Fault.ABSENT,
                field="library",
            )
        usable = packings()
        self.packing = usable[-1] if packing is None else packing
        if self.packing not in usable:
            raise EngineError(
                f"this machine cannot multiply packing {self.packing}; it can multiply {usable}",
                Fault.ABSENT,
                field="packing",
                expected=str(usable),
                found=self.packing,
            )
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
        wide = widths.scales > SCALE_COUNT
        magnitudes = magnitude_table(widths.magnitudes) if wide else np.array(widths.magnitudes, np.uint8)
        self._keep += [starts, magnitudes]
        self.model = _Model(
            widths.latents, widths.hyper_latents, widths.hyper, widths.context, widths.head, widths.passes, self.packing,
            widths.planes, widths.references, widths.scales, max(len(magnitudes) - 1, 0),
            pointer(starts), ctypes.addressof(self._layers), pointer(magnitudes) if len(magnitudes) else None,
        )  # fmt: skip

    def _layer(self, name: str, shape: LayerShape, layer: Layer) -> _Layer:
        bias = layer.bias.astype(np.int64) + ((np.int64(1) << layer.shift.astype(np.int64)) >> 1)
        order = np.arange(shape.outputs)
        place = order
        if shape.final:  # Blocks of 16 means and their 16 scales, so that a pass can compute the first channels alone.
            channel = order % (shape.outputs // 2)
            place = channel // 16 * COLUMNS + order // (shape.outputs // 2) * 16 + channel % 16
        if name in ("hyper.up1", "hyper.up2"):  # The pixel shuffle in C expects (row, col, channel).
            order = order.reshape(-1, 4).T.reshape(-1)
        inputs, width, offset = shape.inputs, shape.outputs, 0
        packed: npt.NDArray[Any]
        if shape.depthwise:
            packed = layer.weight.reshape(shape.outputs, -1).T.astype(np.int16)
        else:
            matrix = layer.weight[:, :, 0, 0]
            if self.widths.magnitudes and name.endswith(".context"):  # Each magnitude follows its latent.
                views = self.widths.view_inputs(int(name[len("pass") : -len(".context")]))
                latents = np.stack(np.split(matrix[:, views:], 2, axis=1), axis=2).reshape(shape.outputs, -1)
                matrix = np.concatenate([matrix[:, :views], latents], axis=1)
            offset = {"hyper.up1": Z_CLAMP}.get(name, CONTEXT_CLAMP if name.endswith(".context") else 0)
            group, dtype, less = PACKINGS[self.packing]
            taken = offset if group == 1 else less  # what is subtracted from each stored input
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
        """All arrays of weights and constants that the compiled code reads."""
        return self._keep

    def start(self, z: IntArray, quality_step: int) -> RunPass:
        """As ``prior.PriorEngine``. This and each pass raise UpsetError where a checksum over their sums fails."""
        self._check(z, quality_step)
        return _NativePasses(self, z, [quality_plane_value(quality_step)])

    def start_component(self, z: IntArray, quality_step: int, component: int, sight: Sight) -> RunPass:
        """As ``component_prior.ComponentPriorEngine``. This and each pass raise UpsetError as those of :meth:`start` do."""
        self._check(z, quality_step)
        return _NativePasses(self, z, planes_of(quality_step, component), sight)

    def _check(self, z: IntArray, quality_step: int) -> None:
        if z.ndim != 4 or z.shape[1] != self.widths.hyper_latents or z.size and np.abs(z).max() > Z_CLAMP:
            expected = f"4 dimensions, {self.widths.hyper_latents} channels, values of -{Z_CLAMP} to {Z_CLAMP}"
            raise EngineError(
                f"hyper-latents of shape {list(z.shape)} do not fit; expected are {expected}",
                Fault.SHAPE,
                field="hyper-latents",
                expected=expected,
                found=str(list(z.shape)),
            )
        if not 0 <= quality_step <= QUALITY_STEPS:
            raise EngineError(
                f"quality step {quality_step} does not exist; accepted are 0 to {QUALITY_STEPS}",
                Fault.RANGE,
                field="quality step",
                expected=f"0 to {QUALITY_STEPS}",
                found=quality_step,
            )

    def all_passes(self, z: IntArray, q: IntArray, quality_step: int, latents: int | None = None) -> list[Prediction]:
        return coded_passes(self.widths, self.start(z, quality_step), q, latents)
