"""An enhancer: a folder with a manifest and one graph that says what is to be added to an image which another codec has decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.conditions import STEP_LEAST, is_rough
from perigee.bitstream.errors import CompensationError, Fault
from perigee.bitstream.manifest import ENHANCER, Manifest, kind_of, manifests_in, read_manifest
from perigee.engines.backend import CPU_BACKEND, Backend

WINDOW = 256  # pixels on the side of what its network sees
TOKEN = 64  # pixels on the side of what a token of a generated prior covers
DEFAULT_ENHANCER = "restore"
GRAPH_FILE = "enhancer.onnx"
ROUGHER = ", rough"  # behind the name of a codec: the table of its rough images
UNKNOWN = "unknown"  # the codec of a file that does not tell


class Enhancer:
    """The graph of an enhancer. ``tokens`` is the number of channels of the noise that a generated prior begins with, else 0."""

    def __init__(self, folder: Path, threads: int | None = None, backend: Backend = CPU_BACKEND) -> None:
        """Raises CompensationError where the folder is no enhancer's, EngineError where the graph cannot be loaded."""
        manifest = read_manifest(folder, ENHANCER)
        self.name, self.digest = manifest.name, manifest.digest
        self.tokens, self.strengths = _settings(manifest)
        self._graph = backend(manifest.file(GRAPH_FILE), threads)

    def strength_of(self, codec: str | None, bits_per_pixel: float, step: float) -> float:
        """How much of what it adds is taken of an image that was quantised with a step of so many grey levels: less where little was lost, and
        of rough images. A codec that it was not trained on counts as ``unknown``."""
        name = codec or UNKNOWN
        rough = self.strengths.get(name + ROUGHER) if is_rough(bits_per_pixel, step) else None
        table = self.strengths.get(name, self.strengths[UNKNOWN]) if rough is None else rough
        return float(np.interp(np.log2(max(step, STEP_LEAST)), np.log2(table[:, 0]), table[:, 1]))

    def added(self, image: FloatArray, condition: Sequence[float], noise: FloatArray | None = None) -> FloatArray:
        """What is to be added to an image float32 [3, 256, 256] in 0..1. ``condition`` is :func:`coding_condition`'s; ``noise`` is
        [tokens, 4, 4] where the prior is generated."""
        feeds = {"image": image[None], "condition": np.array([condition], np.float32)}
        if noise is not None:
            feeds["noise"] = noise[None]
        (out,) = self._graph(feeds)
        return np.asarray(out[0], np.float32)


def _settings(manifest: Manifest) -> tuple[int, Mapping[str, FloatArray]]:
    """The channels of the noise, and by codec a table float [n, 2] of steps in grey levels and strengths."""
    try:
        tokens = int(manifest.details.get("tokens", 0))
        tables = {name: np.array(rows, np.float32) for name, rows in dict(manifest.details["strength"]).items()}
        sound = all(_is_table(t) for t in tables.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompensationError(
            f"{manifest.folder}: incomplete manifest ({error})", Fault.MISSING, field="manifest"
        ) from error
    if not sound or UNKNOWN not in tables:
        raise CompensationError(
            f"{manifest.folder}: strength needs a table of rising steps and strengths from 0 to 1 for each codec and for {UNKNOWN}",
            Fault.SHAPE,
            field="strength",
        )
    return tokens, tables


def _is_table(table: FloatArray) -> bool:
    if table.ndim != 2 or table.shape[1] != 2 or not np.isfinite(table).all():
        return False
    steps, strengths = table.T
    return bool((steps > 0).all() and (np.diff(steps) > 0).all() and (strengths >= 0).all() and (strengths <= 1).all())


def shipped_enhancers() -> dict[str, Path]:
    """The folders of the enhancers that come with the package, by name."""
    folder = Path(str(resources.files("perigee.profiles"))) / "enhancers"
    return {path.name: path for path in manifests_in(folder)}


def find_enhancer(
    name: str, folders: tuple[Path, ...] = (), threads: int | None = None, backend: Backend = CPU_BACKEND
) -> Enhancer:
    """An enhancer by the name of its folder, shipped or in one of ``folders``. Raises CompensationError naming the known ones."""
    known = shipped_enhancers()
    for folder in folders:
        known |= {path.resolve().name: path for path in manifests_in(folder) if kind_of(path) == ENHANCER}
    if name not in known:
        listing = ", ".join(sorted(known)) or "none"
        raise CompensationError(
            f"no enhancer {name}; known are {listing}", Fault.NAME, field="method", expected=listing, found=name
        )
    return Enhancer(known[name], threads, backend)
