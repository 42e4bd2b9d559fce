"""A compensator: a folder with a manifest and hashed ONNX graphs of fixed shapes, run by ONNX Runtime.

It belongs to the profiles whose contracts its manifest lists: their latents are what its networks read. No torch is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.acquisition import FIELDS
from perigee.bitstream.errors import CompensationError
from perigee.bitstream.profile import COMPENSATION_WINDOW, MANIFEST_FILE, MANIFEST_VERSION
from perigee.engines.onnxruntime import OnnxRuntimeGraph

FloatArray = npt.NDArray[np.float32]
ONE_STEP, DIFFUSION = "one-step", "diffusion"
METHODS = {ONE_STEP: ("features.onnx", "one_step.onnx"), DIFFUSION: ("features.onnx", "decoder.onnx", "denoiser.onnx")}
STEPS_MAX = 100
MANIFEST_MAX_BYTES = 1 << 20


class Features(NamedTuple):
    """What the trunk makes of a window, at 1/8, 1/4 and 1/2 of its resolution."""

    eighth: FloatArray
    quarter: FloatArray
    half: FloatArray


class Compensator:
    """Loaded graphs of one compensator. All arrays have one window in them: [1, C, H, W]."""

    def __init__(self, folder: Path, threads: int | None = None, contract: bytes | None = None) -> None:
        """Raises CompensationError where the folder is none, a file's hash differs, or it is not for ``contract``."""
        self.folder, self.threads = folder, threads
        path = folder / MANIFEST_FILE
        try:
            if path.stat().st_size > MANIFEST_MAX_BYTES:
                raise CompensationError(f"{path} is larger than {MANIFEST_MAX_BYTES} bytes")
            data = path.read_bytes()
            self.manifest: dict[str, Any] = json.loads(data)
        except (OSError, ValueError) as error:
            raise CompensationError(f"{folder}: no compensator there ({error})") from error
        m = self.manifest
        if not isinstance(m, dict) or m.get("kind") != "compensator" or m.get("manifest_version") != MANIFEST_VERSION:
            raise CompensationError(f"{path}: not a compensator's manifest of version {MANIFEST_VERSION}")
        try:
            self.name, self.window = str(m["name"]), int(m["window"])
            self.contracts = [bytes.fromhex(text) for text in m["contracts"]]
            self.steps_of_schedule = int(m["steps"])
            self.method = str(m.get("method", ONE_STEP))
            self.default_steps = int(m.get("default_steps", 1))
            self.start = float(m.get("start", 1.0))
            self._strength = np.array(m.get("strength", [[0.0, 1.0]]), np.float64)
            self.noise = int(m.get("noise", 0))  # channels of noise at 1/2 that the one-step network makes texture of
            self.fields_seen = list(m.get("fields_seen", []))
            files, fields = dict(m["files"]), list(m["fields"])
        except (KeyError, TypeError, ValueError) as error:
            raise CompensationError(f"{path}: incomplete ({error})") from error
        if fields != list(FIELDS) or self.window != COMPENSATION_WINDOW:
            raise CompensationError(
                f"{path}: window {self.window} and metadata fields {fields}; accepted are {COMPENSATION_WINDOW} and {list(FIELDS)}"
            )
        if contract is not None and contract not in self.contracts:
            wanted = ", ".join(c.hex() for c in self.contracts)
            raise CompensationError(f"{self.name} is for the contracts {wanted}, the stream has {contract.hex()}")
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self._graphs = {name: OnnxRuntimeGraph(self._checked(name, digest), threads) for name, digest in files.items()}

    def _checked(self, name: str, wanted: str) -> Path:
        path = self.folder / Path(name).name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise CompensationError(f"{path}: missing, or not the file that the manifest names")
        return path

    @property
    def methods(self) -> list[str]:
        """Which of METHODS its graphs allow."""
        return [name for name, files in METHODS.items() if set(files) <= set(self._graphs)]

    def has_interval(self, kind: str) -> bool:
        """Whether it can say how large the errors of the base image (``base``) or of a method are expected to be."""
        return "scale.onnx" in self._graphs and kind in (self.manifest.get("interval") or {})

    def strength_of(self, bpp: float) -> float:
        """How much of the detail is added by default to a patch of so many bits per pixel: less where little was lost."""
        return float(np.interp(bpp, self._strength[:, 0], self._strength[:, 1]))

    def interval_factor(self, quality_step: int, kind: str) -> float:
        """What turns the expected error into half the width of a 90 % interval, found on tiles held out of training.

        ``kind``: ``base``, or a method.
        """
        table = np.array(self.manifest["interval"][kind], np.float64)
        return float(np.interp(quality_step, table[:, 0], table[:, 1]))

    def known_fields(self, known: FloatArray) -> FloatArray:
        """Fields that were never seen in training count as absent."""
        seen = np.array([name in self.fields_seen for name in FIELDS], np.float32)
        return np.asarray(known * seen, np.float32)

    def features(self, base: FloatArray, latents: FloatArray) -> Features:
        """Of a window: base image [1, 3, S, S] in 0..1, latents with quality plane [1, M + 1, S/16, S/16]."""
        return Features(*self._graphs["features.onnx"]({"base": base, "latents": latents}))

    def one_step(self, features: Features, base: FloatArray, noise: FloatArray) -> FloatArray:
        """Detail [1, 3, S, S] to add to the base image [1, 3, S, S]; ``noise`` [1, ``self.noise``, S/2, S/2]."""
        given = {"base": base, "eighth": features.eighth, "noise": noise} if self.noise else {"half": features.half}
        out: FloatArray = self._graphs["one_step.onnx"](given)[0]
        return out

    def decode(self, features: Features, z: FloatArray) -> FloatArray:
        """Detail [1, 3, S, S] of z [1, 4, S/8, S/8]."""
        out: FloatArray = self._graphs["decoder.onnx"]({**features._asdict(), "z": z})[0]
        return out

    def denoise(
        self, z: FloatArray, step: float, features: Features, latents: FloatArray, values: FloatArray, known: FloatArray
    ) -> FloatArray:
        """v of z at a step of the schedule."""
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

    def scale(self, features: Features, base: FloatArray, detail: FloatArray) -> FloatArray:
        """Expected error [1, 2, S, S] of the base image and of the compensated one, in 0..1."""
        out: FloatArray = self._graphs["scale.onnx"]({"half": features.half, "base": base, "detail": detail})[0]
        return out


def is_compensator(folder: Path) -> bool:
    """Whether a folder's manifest says that it is one."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == "compensator"


def shipped_folders() -> dict[str, Path]:
    """The compensators in the package, by name."""
    root = Path(str(resources.files("perigee.profiles"))) / "compensators"
    return {p.parent.name: p.parent for p in sorted(root.glob(f"*/{MANIFEST_FILE}"))}


def find_compensator(
    name: str, contract: bytes, folders: Iterable[Path] = (), threads: int | None = None
) -> Compensator:
    """A shipped compensator, one in a folder of compensators, or a folder itself, for streams of ``contract``.

    Raises CompensationError that names the known ones, or the profile that it does not fit.
    """
    known = shipped_folders()
    for folder in folders:
        places = [folder, *(p.parent for p in sorted(folder.glob(f"*/{MANIFEST_FILE}")))]
        known |= {place.name: place for place in places if is_compensator(place)}
    if name not in known:
        raise CompensationError(
            f"compensation {name!r}: accepted are none, {', '.join(known) or '(none is installed)'}"
        )
    return Compensator(known[name], threads, contract)
