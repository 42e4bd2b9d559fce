"""A compensator: a folder with a manifest and hashed ONNX graphs of fixed shapes, run by the ground's engine.

It belongs to the profiles whose contracts its manifest lists: their latents are what its networks read. No torch is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.conditions import COMPENSATION_WINDOW, FIELDS
from perigee.bitstream.errors import CompensationError, Fault
from perigee.bitstream.manifest import COMPENSATOR, Manifest, kind_of, manifests_in, read_manifest
from perigee.bitstream.map_planes import MAP_PLANES
from perigee.engines.backend import CPU_BACKEND, Backend

ONE_STEP, DIFFUSION = "one-step", "diffusion"
_FIRST = ("features.onnx", "one_step.onnx")
METHODS = {ONE_STEP: _FIRST, DIFFUSION: (*_FIRST, "remainder.onnx", "denoiser.onnx")}


class Features(NamedTuple):
    """What the trunk makes of a window, at 1/8, 1/4 and 1/2 of its resolution."""

    eighth: FloatArray
    quarter: FloatArray
    half: FloatArray


@dataclass(frozen=True)
class Settings:
    """What a compensator's manifest says of how its networks are used.

    ``window`` is the side of a window in pixels, ``schedule_steps`` the length of the schedule on which the diffusion was trained,
    ``default_steps`` how many diffusion steps are taken, ``start`` the time 0..1 at which they begin. ``strength`` [n, 2] says how
    much of the detail is added at which rate in bits per pixel. ``noise`` is the number of channels of noise at half the
    resolution of which the one-step network makes texture. ``fields_seen`` are the metadata fields known in training;
    ``intervals`` gives for the base image and for each method the table from quality step to interval factor. ``planes`` names the
    planes of a map that its guide takes; without a guide there are none. ``support`` are the thresholds of ``maps.support``.
    """

    window: int
    schedule_steps: int
    method: str
    default_steps: int
    start: float
    strength: FloatArray
    noise: int
    fields_seen: tuple[str, ...]
    intervals: dict[str, FloatArray]
    planes: tuple[str, ...] = ()
    support: tuple[float, float] = (0.0, 0.0)


def settings_of(manifest: Manifest) -> Settings:
    """The settings in a manifest. Raises CompensationError where they are incomplete or for other windows or fields."""
    m = manifest.details
    try:
        settings = Settings(
            int(m["window"]),
            int(m["steps"]),
            str(m.get("method", ONE_STEP)),
            int(m.get("default_steps", 1)),
            float(m.get("start", 1.0)),
            np.array(m.get("strength", [[0.0, 1.0]]), np.float64),
            int(m.get("noise", 0)),
            tuple(m.get("fields_seen", [])),
            {name: np.array(table, np.float64) for name, table in (m.get("interval") or {}).items()},
            tuple(m.get("planes", ())),
            (float(m.get("support", (0, 0))[0]), float(m.get("support", (0, 0))[1])),
        )
        fields = list(m["fields"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CompensationError(
            f"{manifest.folder}: incomplete manifest ({error})", Fault.MISSING, field="manifest"
        ) from error
    if fields != list(FIELDS) or settings.window != COMPENSATION_WINDOW:
        raise CompensationError(
            f"{manifest.folder}: window {settings.window} and metadata fields {fields}; accepted are {COMPENSATION_WINDOW} and "
            f"{list(FIELDS)}",
            Fault.MISFIT,
            field="window, fields",
            expected=f"{COMPENSATION_WINDOW}, {list(FIELDS)}",
            found=f"{settings.window}, {fields}",
        )
    low, high = settings.support
    if not 0 <= low <= high:
        raise CompensationError(
            f"{manifest.folder}: thresholds of support {low} and {high}; the first is at most the second",
            Fault.RANGE,
            field="support",
            expected="two numbers from 0 upwards, the smaller one first",
            found=f"{low}, {high}",
        )
    if settings.planes not in ((), MAP_PLANES):
        raise CompensationError(
            f"{manifest.folder}: a guide for the planes {', '.join(settings.planes)}",
            Fault.MISFIT,
            field="planes",
            expected=", ".join(MAP_PLANES),
            found=", ".join(settings.planes),
        )
    return settings


class Compensator:
    """Loaded graphs of one compensator. All arrays have one window in them: [1, C, H, W]."""

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        contract: bytes | None = None,
        backend: Backend = CPU_BACKEND,
    ) -> None:
        """Raises CompensationError where the folder is none, a file's hash differs, or it is not for ``contract``."""
        self.manifest = read_manifest(folder, COMPENSATOR)
        self.threads = threads
        self.name, self.digest, self.contracts = self.manifest.name, self.manifest.digest, self.manifest.contracts
        self.settings = settings_of(self.manifest)
        if contract is not None and contract not in self.contracts:
            wanted = ", ".join(c.hex() for c in self.contracts)
            raise CompensationError(
                f"{self.name} is for the contracts {wanted}, the stream has {contract.hex()}",
                Fault.MISFIT,
                field="contract",
                expected=wanted,
                found=contract.hex(),
            )
        self._graphs = {name: backend(self.manifest.file(name), threads) for name in self.manifest.files}

    @property
    def methods(self) -> list[str]:
        """Which of METHODS its graphs allow."""
        return [name for name, files in METHODS.items() if set(files) <= set(self._graphs)]

    def has_interval(self, kind: str) -> bool:
        """Whether it can say how large the errors of the base image (``base``) or of a method are expected to be."""
        return "scale.onnx" in self._graphs and kind in self.settings.intervals

    def strength_of(self, bpp: float) -> float:
        """How much of the detail is added by default to a patch of so many bits per pixel: less where little was lost."""
        return float(np.interp(bpp, *self.settings.strength.T))

    def interval_factor(self, quality_step: int, kind: str) -> float:
        """What turns the expected error into half the width of a 90 % interval, found on tiles held out of training.

        ``kind``: ``base``, or a method.
        """
        return float(np.interp(quality_step, *self.settings.intervals[kind].T))

    def known_fields(self, known: FloatArray) -> FloatArray:
        """Fields that were never seen in training count as absent."""
        seen = np.array([name in self.settings.fields_seen for name in FIELDS], np.float32)
        return np.asarray(known * seen, np.float32)

    def features(self, base: FloatArray, latents: FloatArray) -> Features:
        """Of a window: base image [1, 3, S, S] in 0..1, latents with quality plane [1, M + 1, S/16, S/16]."""
        return Features(*self._graphs["features.onnx"]({"base": base, "latents": latents}))

    def one_step(self, features: Features, base: FloatArray, noise: FloatArray) -> FloatArray:
        """Detail [1, 3, S, S] to add to the base image [1, 3, S, S]; ``noise`` [1, ``settings.noise``, S/2, S/2]."""
        given = (
            {"base": base, "eighth": features.eighth, "noise": noise}
            if self.settings.noise
            else {"half": features.half}
        )
        out: FloatArray = self._graphs["one_step.onnx"](given)[0]
        return out

    def remainder(self, features: Features, z: FloatArray) -> FloatArray:
        """What z [1, 4, S/8, S/8] adds to the one-step image, [1, 3, S, S]."""
        out: FloatArray = self._graphs["remainder.onnx"]({**features._asdict(), "z": z})[0]
        return out

    def denoise(
        self, z: FloatArray, step: float, features: Features, latents: FloatArray, values: FloatArray, known: FloatArray
    ) -> FloatArray:
        """The network's v of ``z`` at a diffusion step of the schedule."""
        out: FloatArray = self._graphs["denoiser.onnx"](
            {
                "z": z,
                "step": np.array([step], np.float32),
                "eighth": features.eighth,
                "latents": latents,
                "values": values[None],
                "known": known[None],
            }
        )[0]
        return out

    def guided(self, features: Features, planes: FloatArray) -> FloatArray:
        """Detail [1, 3, S, S] that the planes of a map [1, len(MAP_PLANES), S, S] add."""
        out: FloatArray = self._graphs["guide.onnx"]({**features._asdict(), "planes": planes})[0]
        return out

    def scale(self, features: Features, base: FloatArray, detail: FloatArray) -> FloatArray:
        """Expected error [1, 2, S, S] of the base image and of the compensated one, in 0..1."""
        out: FloatArray = self._graphs["scale.onnx"]({"half": features.half, "base": base, "detail": detail})[0]
        return out


def shipped_folders() -> dict[str, Path]:
    """The compensators in the package, by name."""
    root = Path(str(resources.files("perigee.profiles"))) / "compensators"
    return {folder.name: folder for folder in manifests_in(root)}


def known_folders(folders: Iterable[Path] = ()) -> dict[str, Path]:
    """The compensators in the package and in ``folders``, by name."""
    known = shipped_folders()
    for folder in folders:
        known |= {place.name: place for place in manifests_in(folder) if kind_of(place) == COMPENSATOR}
    return known


def find_compensator(
    name: str,
    contract: bytes,
    folders: Iterable[Path] = (),
    threads: int | None = None,
    backend: Backend = CPU_BACKEND,
) -> Compensator:
    """A shipped compensator, one in a folder of compensators, or a folder itself, for streams of ``contract``.

    Raises CompensationError that names the known ones, or the profile that it does not fit.
    """
    known = known_folders(folders)
    if name not in known:
        raise CompensationError(
            f"compensation {name!r}: accepted are none, {', '.join(known) or '(none is installed)'}",
            Fault.NAME,
            field="compensation",
            expected=", ".join(["none", *known]),
            found=name,
        )
    return Compensator(known[name], threads, contract, backend)
