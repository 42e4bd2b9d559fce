"""A profile: a trained codec in its flight form, a folder with a manifest and hashed files.

``contract.npz`` holds what both sides must share for a stream to decode: integer prior, tables, slices, gain knots and
patch geometry. Its digest (:func:`contract_digest`, over names, types, shapes and values) is what a stream's header
names. Everything else (analysis, synthesis, reconstruction) has hashes of its own in the manifest and may be replaced
without breaking a stream. Only numpy is needed to load a contract; sizes are checked before arrays are used.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import EngineError, ProfileError
from perigee.bitstream.prior import (
    QUALITY_STEPS,
    IntArray,
    Layer,
    NumpyPrior,
    Prediction,
    PriorEngine,
    Widths,
    check_accumulators,
)
from perigee.bitstream.tables import Z_BANDS_MAX, Tables

CONTRACT_FILE = "contract.npz"
SELF_TEST_FILE = "selftest.npz"
CONSISTENCY_FILE = "consistency.onnx"
MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
DEFAULT_PROFILE, DEFAULT_ANALYSIS = "flight3", "swift"
CONTRACT_MAX_BYTES = 16 << 20
DIGEST_BYTES = 8
BLOCK = 16
PATCH_MULTIPLE = 64
KNOTS = 7
HYPER_BLOCK = 64
COMPENSATION_WINDOW = 256  # pixels on the side of what a compensator's networks see at once


@dataclass(frozen=True)
class Contract:
    """What satellite and ground share. ``gain_knots`` float32 [7, latents]: log gains of the analysis over quality."""

    widths: Widths
    layers: dict[str, Layer]
    tables: Tables
    gain_knots: npt.NDArray[np.float32]
    patch_side: int

    def __post_init__(self) -> None:
        check_accumulators(self.widths, self.layers)
        bands, rest = divmod(len(self.tables.z_frequencies), self.widths.hyper_latents)
        if rest or not 1 <= bands <= Z_BANDS_MAX:
            raise ProfileError(
                f"{len(self.tables.z_frequencies)} tables for {self.widths.hyper_latents} hyper-latents, "
                f"expected 1 to {Z_BANDS_MAX} for each"
            )
        if self.gain_knots.shape != (KNOTS, self.widths.latents):
            raise ProfileError(f"gain knots of shape {self.gain_knots.shape}, expected {(KNOTS, self.widths.latents)}")
        if self.patch_side not in (64, 128, 256, 512):
            raise ProfileError(f"patch side {self.patch_side}, expected 64, 128, 256 or 512")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The contract as named arrays, as stored and hashed."""
        w = self.widths
        geometry = [w.latents, w.hyper_latents, w.hyper, w.context, w.head, self.patch_side, *w.slices]
        out: dict[str, npt.NDArray[Any]] = {"geometry": np.array(geometry, np.int32), "gain_knots": self.gain_knots}
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

    def gains(self, quality_step: int) -> npt.NDArray[np.float32]:
        """Gain of every latent channel at Q = 0..250, float32 [latents]: log-linear between the knots."""
        position = quality_step * (KNOTS - 1) / QUALITY_STEPS
        weights = np.maximum(1 - np.abs(position - np.arange(KNOTS)), 0)
        return np.asarray(np.exp(weights @ self.gain_knots.astype(np.float64)), np.float32)

    def reference(self, dtype: type = np.int64) -> NumpyPrior:
        """The numpy prior: int64 is the arbiter, float64 and float32 the same integers faster."""
        return NumpyPrior(self.widths, self.layers, dtype)


def contract_digest(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """First 8 bytes of SHA-256 over each array in order of name: name, type, shape, little-endian values."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        sha.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        sha.update(little.tobytes())
    return sha.digest()[:DIGEST_BYTES]


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an .npz file, refused before allocation where they would exceed 16 MiB in all."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > CONTRACT_MAX_BYTES:
            raise ProfileError(f"{path}: unpacks to {total} bytes, the limit is {CONTRACT_MAX_BYTES}")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        raise ProfileError(f"{path}: cannot be read ({error})") from error


def load_contract(path: Path) -> Contract:
    """Read and check ``contract.npz``. Raises ProfileError."""
    arrays = load_arrays(path)
    try:
        geometry = [int(v) for v in arrays["geometry"]]
        latents, hyper_latents, hyper, context, head, side = geometry[:6]
        slices = tuple(geometry[6:])
        if not slices or sum(slices) != latents or min(geometry) < 1 or max(geometry) > 4096:
            raise ProfileError(f"{path}: geometry {geometry} is not consistent")
        magnitudes = tuple(int(v) for v in arrays["magnitudes"]) if "magnitudes" in arrays else ()
        widths = Widths(latents, hyper_latents, hyper, context, head, slices, magnitudes)
        tables = Tables(*(arrays[f"tables.{name}"] for name in ("radius", "frequencies", "z_frequencies")))
        names = {name.rsplit(".", 1)[0] for name in arrays if name.endswith(".weight")}
        layers = {n: Layer(arrays[f"{n}.weight"], arrays[f"{n}.bias"], arrays[f"{n}.shift"]) for n in names}
        return Contract(widths, layers, tables, arrays["gain_knots"], side)
    except (KeyError, ValueError, IndexError) as error:
        raise ProfileError(f"{path}: incomplete contract ({error})") from error


@dataclass(frozen=True)
class Profile:
    """A loaded profile: its folder, manifest and contract. Files are hashed when they are asked for."""

    folder: Path
    manifest: dict[str, Any]
    contract: Contract

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def analyses(self) -> dict[str, str]:
        """Graph files of the analyses that fly, by preset. Streams of all of them decode alike."""
        found = self.manifest.get("analyses") or {str(self.manifest.get("preset")): "analysis.onnx"}
        return dict(found)

    def is_linear(self, preset: str) -> bool:
        """Whether an analysis is the linear transform of ``consistency.onnx`` and nothing else."""
        return preset in self.manifest.get("linear", [])

    def analysis(self, preset: str | None = None) -> tuple[str, Path]:
        """Name and checked graph file of one analysis; ``None`` takes ``swift``, or the first. Raises ProfileError."""
        known = self.analyses
        name = preset or (DEFAULT_ANALYSIS if DEFAULT_ANALYSIS in known else next(iter(known)))
        if name not in known:
            raise ProfileError(f"profile {self.name} has no analysis {name!r}; it has {', '.join(known)}")
        return name, self.file(known[name])

    def file(self, name: str) -> Path:
        """Path of a file whose SHA-256 equals the manifest's. Raises ProfileError otherwise.

        Files under ``shared`` in the manifest lie in the sibling folder named there: profiles of one transform share a synthesis.
        """
        sibling = self.manifest.get("shared", {}).get(name)
        path = (self.folder if sibling is None else self.folder.resolve().parent / Path(str(sibling)).name) / name
        wanted = self.manifest["files"].get(name)
        if wanted is None or not path.is_file():
            raise ProfileError(f"profile {self.name}: {name} is not installed in {path.parent}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != wanted:
            raise ProfileError(
                f"profile {self.name}: {name} has SHA-256 {found[:16]}..., the manifest says {wanted[:16]}..."
            )
        return path

    def self_test(self, prior: PriorEngine) -> None:
        """Run the profile's known answers through an engine. Raises ProfileError at the first difference."""
        vectors = load_arrays(self.file(SELF_TEST_FILE))
        for i in range(len(vectors["quality_step"])):
            z, q = vectors["z"][i : i + 1].astype(np.int32), vectors["q"][i : i + 1].astype(np.int32)
            try:
                found = answer(prior.all_passes(z, q, int(vectors["quality_step"][i])))
            except (EngineError, ValueError, IndexError) as error:
                raise ProfileError(f"self-test {i} of profile {self.name} cannot be run: {error}") from error
            wanted = vectors["answers"][i]
            if not np.array_equal(found, wanted):
                passes = np.flatnonzero((found != wanted).any(1)).tolist()
                raise ProfileError(f"self-test {i} of profile {self.name} fails in pass {passes}")


def answer(predictions: list[Prediction]) -> IntArray:
    """Fingerprint of a prediction, uint32 [passes, 2]: CRC-32 of the table numbers and of the means."""
    return np.array(
        [[zlib.crc32(np.ascontiguousarray(part, "<i4").tobytes()) for part in (p.table, p.mean)] for p in predictions],
        np.uint32,
    )


def load_profile(folder: Path) -> Profile:
    """Load the profile in ``folder`` (manifest and contract; other files when used). Raises ProfileError."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: no readable profile manifest ({error})") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or "name" not in manifest or "contract" not in manifest:
        raise ProfileError(f"{path}: a manifest needs name, contract and files")
    if manifest.get("manifest_version") != MANIFEST_VERSION:
        raise ProfileError(
            f"{path}: manifest version {manifest.get('manifest_version')}, this reader knows {MANIFEST_VERSION}"
        )
    contract = load_contract(folder / CONTRACT_FILE)
    if contract.digest.hex() != manifest["contract"]:
        raise ProfileError(
            f"{folder}: the contract's digest is {contract.digest.hex()}, the manifest says {manifest['contract']}"
        )
    return Profile(folder, manifest, contract)


def shipped_folder() -> Path:
    """Where the profiles that come with Perigee lie."""
    return Path(str(resources.files("perigee.profiles")))


def shipped_profiles() -> dict[str, Path]:
    """Names and folders of the profiles that come with Perigee."""
    return {path.parent.name: path.parent for path in sorted(shipped_folder().glob(f"*/{MANIFEST_FILE}"))}


def find_profile(name_or_folder: str) -> Profile:
    """A shipped profile by name, or any by its folder. Raises ProfileError naming what there is."""
    known = shipped_profiles()
    folder = known.get(name_or_folder, Path(name_or_folder))
    if not (folder / MANIFEST_FILE).is_file():
        raise ProfileError(
            f"no profile {name_or_folder!r}: neither a folder with a manifest nor one of {', '.join(known) or 'none'}"
        )
    return load_profile(folder)
