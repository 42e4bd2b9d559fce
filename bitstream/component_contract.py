"""The contract of a component profile: all integers by which latents of components are decoded and turned into samples.

It is the file ``contract.npz`` of such a profile. ``docs/format2.md``, sections 19 and 20, are the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from perigee.bitstream.arrays import Array, IntArray
from perigee.bitstream.component_prior import VIEWS, ComponentPrior
from perigee.bitstream.contract import GEOMETRY_MAX, PATCH_SIDES, contract_digest, load_arrays
from perigee.bitstream.errors import Fault, ProfileError
from perigee.bitstream.lapped import BLOCK
from perigee.bitstream.prior import CONTEXT_CLAMP, QUALITY_STEPS, SCALE_COUNT, Layer, Widths, check_accumulators
from perigee.bitstream.tables import WIDE_SCALE_COUNT, Z_BANDS_MAX, Tables

LATENTS = BLOCK * BLOCK
CENTROID_BUCKETS = 32
SHIFT_MAX = 13
MATRIX_SUM_MAX = 1 << 17  # of the absolute values in a column: sums stay within 64 bits
Q_COUNT = QUALITY_STEPS + 1
# type and shape of the arrays beside the layers and tables; None: any size
ARRAYS: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "component_geometry": ("int32", (None,)),
    "magnitudes": ("uint8", (CONTEXT_CLAMP + 1,)),
    "steps": ("uint32", (Q_COUNT,)),
    "base": ("int8", (Q_COUNT, LATENTS)),
    "shifts": ("uint8", (Q_COUNT, LATENTS)),
    "order": ("uint8", (LATENTS,)),
    "lap": ("int16", (BLOCK, BLOCK)),
    "cosine": ("int16", (BLOCK, BLOCK)),
    "centroids": ("int8", (SCALE_COUNT, CENTROID_BUCKETS)),
}


@dataclass(frozen=True)
class ComponentContract:
    """What satellite and ground share to code components.

    ``steps`` uint32 [251]: the step size at each Q, in 2**-28 of the range; ``base`` and ``shifts`` [251, 256]: see
    ``component_prior.Sight``; ``order`` [256]: the place 16 * u + v of each latent channel in its block; ``lap`` and ``cosine``
    int16 [16, 16]: the transform, see ``lapped``; ``centroids`` int8 [64, 32]: see ``reconstruction``.
    """

    widths: Widths
    layers: dict[str, Layer]
    tables: Tables
    steps: IntArray
    base: IntArray
    shifts: IntArray
    order: IntArray
    lap: IntArray
    cosine: IntArray
    centroids: IntArray
    patch_side: int

    def __post_init__(self) -> None:
        check_accumulators(self.widths, self.layers)
        levels, rest = divmod(len(self.tables.z_frequencies), self.widths.hyper_latents)
        named = {name: getattr(self, name) for name in ARRAYS if hasattr(self, name)}
        wrong = [name for name, array in named.items() if (array.dtype.name, array.shape) != ARRAYS[name]]
        if wrong:
            raise ProfileError(
                f"{', '.join(wrong)} do not have the type and shape of a contract", Fault.SHAPE, field=wrong[0]
            )
        faults = {
            "tables.z_frequencies": rest or not 1 <= levels <= Z_BANDS_MAX,
            "component_geometry": self.patch_side not in PATCH_SIDES or self.widths.latents != LATENTS,
            "steps": (np.diff(self.steps.astype(np.int64)) >= 0).any()
            or not self.steps.all()
            or self.steps[0] >= 1 << 31,
            "shifts": int(self.shifts.max()) > SHIFT_MAX,
            "order": len(set(self.order.tolist())) < LATENTS,
            "lap": np.abs(self.lap.astype(np.int64)).sum(0).max() >= MATRIX_SUM_MAX,
            "cosine": np.abs(self.cosine.astype(np.int64)).sum(0).max() >= MATRIX_SUM_MAX,
            "centroids": int(self.centroids.min()) < -64 or int(self.centroids.max()) > 64,
        }
        for name, fault in faults.items():
            if fault:
                raise ProfileError(f"{name} are not what a component contract may have", Fault.RANGE, field=name)

    def arrays(self) -> dict[str, Array]:
        """The contract as named arrays, as stored and hashed."""
        w = self.widths
        geometry = [w.latents, w.hyper_latents, w.hyper, w.context, w.head, self.patch_side, *w.slices]
        out: dict[str, Array] = {
            "component_geometry": np.array(geometry, np.int32),
            "magnitudes": np.array(w.magnitudes, np.uint8),
        }
        out |= {name: getattr(self, name) for name in ARRAYS if hasattr(self, name)}
        for name in ("radius", "frequencies", "z_frequencies"):
            out[f"tables.{name}"] = getattr(self.tables, name)
        for name, layer in self.layers.items():
            out |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias, f"{name}.shift": layer.shift}
        return out

    @cached_property
    def digest(self) -> bytes:
        """The 8 bytes that a stream's header carries."""
        return contract_digest(self.arrays())

    def reference(self, dtype: type = np.int64) -> ComponentPrior:
        """The numpy prior: int64 is the arbiter, float64 and float32 give the same integers faster."""
        return ComponentPrior(self.widths, self.layers, dtype)


def component_widths(geometry: list[int], magnitudes: tuple[int, ...]) -> Widths:
    """The sizes of a component's prior from the first five numbers of the geometry and the slices."""
    latents, hyper_latents, hyper, context, head, _, *slices = geometry
    return Widths(
        latents, hyper_latents, hyper, context, head, tuple(slices), magnitudes,
        references=VIEWS, planes=2, scales=WIDE_SCALE_COUNT,
    )  # fmt: skip


def load_component_contract(path: Path) -> ComponentContract:
    """Read and check the ``contract.npz`` of a component profile. Raises ProfileError."""
    arrays = load_arrays(path)
    try:
        for name, (dtype, shape) in ARRAYS.items():
            array = arrays[name]
            if array.dtype.name != dtype or array.ndim != len(shape):
                raise ProfileError(
                    f"{path}: {name} is {array.dtype.name} of {array.ndim} dimensions, expected {dtype} of {len(shape)}",
                    Fault.SHAPE,
                    field=name,
                    expected=f"{dtype}, {len(shape)} dimensions",
                    found=f"{array.dtype.name}, {array.ndim} dimensions",
                )
        geometry = [int(v) for v in arrays["component_geometry"]]
        if len(geometry) < 7 or min(geometry) < 1 or max(geometry) > GEOMETRY_MAX or sum(geometry[6:]) != geometry[0]:
            raise ProfileError(
                f"{path}: geometry {geometry} is not consistent",
                Fault.RANGE,
                field="component_geometry",
                expected=f"widths of 1 to {GEOMETRY_MAX}, slices that add up to the latents",
                found=str(geometry),
            )
        widths = component_widths(geometry, tuple(int(v) for v in arrays["magnitudes"]))
        tables = Tables(
            arrays["tables.radius"], arrays["tables.frequencies"], arrays["tables.z_frequencies"], WIDE_SCALE_COUNT
        )
        names = {name.rsplit(".", 1)[0] for name in arrays if name.endswith(".weight")}
        layers = {n: Layer(arrays[f"{n}.weight"], arrays[f"{n}.bias"], arrays[f"{n}.shift"]) for n in names}
        rest = {name: arrays[name] for name in ("steps", "base", "shifts", "order", "lap", "cosine", "centroids")}
        return ComponentContract(widths, layers, tables, **rest, patch_side=geometry[5])
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise ProfileError(f"{path}: incomplete contract ({error})", Fault.MISSING, field=path.name) from error
