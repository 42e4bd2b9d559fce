"""The contract: what satellite and ground must share for a stream to decode to the same symbols.

It is the file ``contract.npz`` of a profile and holds the integer prior, the probability tables, the slices, the gains of the
analysis and the patch side. A stream's header carries its digest. Only numpy is needed to load one, and sizes are checked
before arrays are used. ``docs/format.md``, section 9, is the specification.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from perigee.bitstream.arrays import Array, FloatArray, IntArray
from perigee.bitstream.errors import EngineError, Fault, ProfileError
from perigee.bitstream.prior import (
    QUALITY_STEPS,
    Layer,
    NumpyPrior,
    Prediction,
    PriorEngine,
    Widths,
    check_accumulators,
)
from perigee.bitstream.tables import Z_BANDS_MAX, Tables

CONTRACT_MAX_BYTES = 16 << 20
DIGEST_BYTES = 8
BLOCK = 16  # pixels on the side of what one latent stands for
HYPER_BLOCK = 64  # pixels on the side of what one hyper-latent stands for
PATCH_MULTIPLE = 64  # an analysis takes images whose sides are multiples of this
PATCH_SIDES = (64, 128, 256, 512)
KNOTS = 7
GEOMETRY_MAX = 4096
# type and number of dimensions of the contract's arrays, by their whole name or by what follows the last dot
ARRAY_TYPES = {
    "geometry": (("int32", 1),),
    "magnitudes": (("uint8", 1),),
    "gain_knots": (("float32", 2),),
    "weight": (("int8", 4),),
    "bias": (("int32", 1),),
    "shift": (("uint8", 1),),
}


@dataclass(frozen=True)
class Contract:
    """What satellite and ground share. ``gain_knots`` float32 [7, latents]: log gains of the analysis over quality."""

    widths: Widths
    layers: dict[str, Layer]
    tables: Tables
    gain_knots: FloatArray
    patch_side: int

    def __post_init__(self) -> None:
        check_accumulators(self.widths, self.layers)
        bands, rest = divmod(len(self.tables.z_frequencies), self.widths.hyper_latents)
        if rest or not 1 <= bands <= Z_BANDS_MAX:
            raise ProfileError(
                f"{len(self.tables.z_frequencies)} tables for {self.widths.hyper_latents} hyper-latents, "
                f"expected 1 to {Z_BANDS_MAX} for each",
                Fault.COUNT,
                field="tables.z_frequencies",
                expected=f"1 to {Z_BANDS_MAX} times {self.widths.hyper_latents}",
                found=len(self.tables.z_frequencies),
            )
        if self.gain_knots.shape != (KNOTS, self.widths.latents):
            raise ProfileError(
                f"gain knots of shape {self.gain_knots.shape}, expected {(KNOTS, self.widths.latents)}",
                Fault.SHAPE,
                field="gain_knots",
                expected=(KNOTS, self.widths.latents),
                found=self.gain_knots.shape,
            )
        if self.patch_side not in PATCH_SIDES:
            raise ProfileError(
                f"patch side {self.patch_side}, expected 64, 128, 256 or 512",
                Fault.RANGE,
                field="patch_side",
                expected="64, 128, 256 or 512",
                found=self.patch_side,
            )

    def arrays(self) -> dict[str, Array]:
        """The contract as named arrays, as stored and hashed."""
        w = self.widths
        geometry = [w.latents, w.hyper_latents, w.hyper, w.context, w.head, self.patch_side, *w.slices]
        out: dict[str, Array] = {"geometry": np.array(geometry, np.int32), "gain_knots": self.gain_knots}
        if w.magnitudes:
            out["magnitudes"] = np.array(w.magnitudes, np.uint8)
        for name in ("radius", "frequencies", "z_frequencies"):
            out[f"tables.{name}"] = getattr(self.tables, name)
        for name, layer in self.layers.items():
            out |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias, f"{name}.shift": layer.shift}
        return out

    @cached_property
    def digest(self) -> bytes:
        """The 8 bytes that a stream's header carries."""
        return contract_digest(self.arrays())

    def gains(self, quality_step: int) -> FloatArray:
        """Gain of every latent channel at Q = 0..250, float32 [latents]: log-linear between the knots."""
        position = quality_step * (KNOTS - 1) / QUALITY_STEPS
        weights = np.maximum(1 - np.abs(position - np.arange(KNOTS)), 0)
        return np.asarray(np.exp(weights @ self.gain_knots.astype(np.float64)), np.float32)

    def reference(self, dtype: type = np.int64) -> NumpyPrior:
        """The numpy prior: int64 is the arbiter, float64 and float32 give the same integers faster."""
        return NumpyPrior(self.widths, self.layers, dtype)


def contract_digest(arrays: dict[str, Array]) -> bytes:
    """First 8 bytes of SHA-256 over each array in order of name: name, type, shape, little-endian values."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        sha.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        sha.update(little.tobytes())
    return sha.digest()[:DIGEST_BYTES]


def load_arrays(path: Path) -> dict[str, Array]:
    """Arrays of an .npz file, refused before allocation where they would exceed 16 MiB in all. Raises ProfileError."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > CONTRACT_MAX_BYTES:
            raise ProfileError(
                f"{path}: unpacks to {total} bytes, the limit is {CONTRACT_MAX_BYTES}",
                Fault.LIMIT,
                field=path.name,
                expected=f"at most {CONTRACT_MAX_BYTES}",
                found=total,
            )
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        raise ProfileError(f"{path}: cannot be read ({error})", Fault.UNREADABLE, field=path.name) from error


def load_contract(path: Path) -> Contract:
    """Read and check ``contract.npz``. Raises ProfileError."""
    arrays = load_arrays(path)
    for name, array in arrays.items():
        layer, _, part = name.rpartition(".")  # arrays that belong to no layer are ignored
        kinds = ARRAY_TYPES.get(part if f"{layer}.weight" in arrays else name, ())
        if kinds and (array.dtype.name, array.ndim) not in kinds:
            raise ProfileError(
                f"{path}: {name} is {array.dtype.name} of {array.ndim} dimensions, expected {kinds[0][0]} of {kinds[0][1]}",
                Fault.SHAPE,
                field=name,
                expected=f"{kinds[0][0]}, {kinds[0][1]} dimensions",
                found=f"{array.dtype.name}, {array.ndim} dimensions",
            )
    try:
        geometry = [int(v) for v in arrays["geometry"]]
        latents, hyper_latents, hyper, context, head, side = geometry[:6]
        slices = tuple(geometry[6:])
        if not slices or sum(slices) != latents or min(geometry) < 1 or max(geometry) > GEOMETRY_MAX:
            raise ProfileError(
                f"{path}: geometry {geometry} is not consistent",
                Fault.RANGE,
                field="geometry",
                expected=f"widths of 1 to {GEOMETRY_MAX}, slices that add up to the latents",
                found=str(geometry),
            )
        magnitudes = tuple(int(v) for v in arrays["magnitudes"]) if "magnitudes" in arrays else ()
        widths = Widths(latents, hyper_latents, hyper, context, head, slices, magnitudes)
        tables = Tables(arrays["tables.radius"], arrays["tables.frequencies"], arrays["tables.z_frequencies"])
        names = {name.rsplit(".", 1)[0] for name in arrays if name.endswith(".weight")}
        layers = {n: Layer(arrays[f"{n}.weight"], arrays[f"{n}.bias"], arrays[f"{n}.shift"]) for n in names}
        return Contract(widths, layers, tables, arrays["gain_knots"], side)
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise ProfileError(f"{path}: incomplete contract ({error})", Fault.MISSING, field=path.name) from error


def answer(predictions: list[Prediction]) -> IntArray:
    """Fingerprint of a prediction, uint32 [passes, 2]: CRC-32 of the table numbers and of the means."""
    return np.array(
        [[zlib.crc32(np.ascontiguousarray(part, "<i4").tobytes()) for part in (p.table, p.mean)] for p in predictions],
        np.uint32,
    )


def self_test(prior: PriorEngine, path: Path, name: str) -> None:
    """Run the known answers in the file ``path`` through an engine's prior. Raises ProfileError at the first difference.

    ``name`` is the profile's, for the message.
    """
    vectors = load_arrays(path)
    for i in range(len(vectors["quality_step"])):
        z, q = vectors["z"][i : i + 1].astype(np.int32), vectors["q"][i : i + 1].astype(np.int32)
        try:
            found = answer(prior.all_passes(z, q, int(vectors["quality_step"][i])))
        except (EngineError, ValueError, IndexError) as error:
            raise ProfileError(
                f"self-test {i} of profile {name} cannot be run: {error}", Fault.SELF_TEST, field=f"self-test {i}"
            ) from error
        wanted = vectors["answers"][i]
        if not np.array_equal(found, wanted):
            passes = np.flatnonzero((found != wanted).any(1)).tolist()
            raise ProfileError(
                f"self-test {i} of profile {name} fails in pass {passes}",
                Fault.SELF_TEST,
                field=f"self-test {i}",
                expected="the profile's known answers",
                found=f"other answers in passes {passes}",
            )
