"""An enhancer: a folder with a manifest and one graph that says what is to be added to a decoded image, and how far off the result may be."""

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
BANDS = ", bands"  # of images that are no red, green and blue of 8 bits
UNKNOWN = "unknown"  # the codec of a file that does not tell


class Enhancer:
    """The graph of an enhancer. ``tokens`` is the number of channels of the noise that a generated prior begins with, else 0.

    ``strengths`` holds by codec a table float [n, 2] of steps in grey levels and strengths, ``intervals`` one float [n, 3] of steps and of two
    numbers by which the expected error is multiplied to give half the width of a 90 % interval: of the image as it is, and enhanced.
    """

    def __init__(self, folder: Path, threads: int | None = None, backend: Backend = CPU_BACKEND) -> None:
        """Raises CompensationError where the folder is no enhancer's, EngineError where the graph cannot be loaded."""
        manifest = read_manifest(folder, ENHANCER)
        self.name, self.digest = manifest.name, manifest.digest
        self.tokens, self.strengths, self.intervals = _settings(manifest)
        self._graph = backend(manifest.file(GRAPH_FILE), threads)

    def strength_of(self, codec: str | None, bits_per_pixel: float, step: float, colour: bool = True) -> float:
        """How much of what it adds is taken of an image that was quantised with a step of so many grey levels: less where little was lost, and
        of rough images. A codec that it was not trained on counts as ``unknown``. Bands that are no ``colour`` have tables of their own; without
        one nothing is taken."""
        name = codec or UNKNOWN
        if not colour:
            bands = self.strengths.get(name + BANDS)
            return 0.0 if bands is None else at_step(bands, step)[0]
        rough = self.strengths.get(name + ROUGHER) if is_rough(bits_per_pixel, step) else None
        return at_step(self.strengths.get(name, self.strengths[UNKNOWN]) if rough is None else rough, step)[0]

    def serves_bands(self, codec: str | None) -> bool:
        """Whether it was trained on bands of a codec that are no red, green and blue of 8 bits."""
        return (codec or UNKNOWN) + BANDS in self.strengths

    def interval_factors(self, codec: str | None, step: float, colour: bool = True) -> tuple[float, float] | None:
        """By how much the expected error is multiplied to give half the width of the 90 % interval of an image as it is, and of the enhanced one;
        None where it was not measured."""
        table = self.intervals.get((codec or UNKNOWN) + ("" if colour else BANDS))
        if table is None:
            return None
        before, after = at_step(table, step)
        return before, after

    def added(
        self, image: FloatArray, condition: Sequence[float], noise: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray | None]:
        """What is to be added to an image float32 [3, 256, 256] in 0..1, and the mean absolute error over the colours that is then expected
        [256, 256], None where the graph does not tell.

        ``condition`` is :func:`coding_condition`'s; ``noise`` is [tokens, 4, 4] where the prior is generated.
        """
        feeds = {"image": image[None], "condition": np.array([condition], np.float32)}
        if noise is not None:
            feeds["noise"] = noise[None]
        added, *expected = self._graph(feeds)
        return np.asarray(added[0], np.float32), np.asarray(expected[0][0, 0], np.float32) if expected else None


def at_step(table: FloatArray, step: float) -> list[float]:
    """What a table [n, 1 + m] of rising steps and values says of a step: m values, between its rows by the logarithm."""
    place = np.log2(max(step, STEP_LEAST))
    return [float(np.interp(place, np.log2(table[:, 0]), values)) for values in table.T[1:]]


def _settings(manifest: Manifest) -> tuple[int, Mapping[str, FloatArray], Mapping[str, FloatArray]]:
    """The channels of the noise, and the tables of strengths and intervals."""
    try:
        tokens = int(manifest.details.get("tokens", 0))
        tables = {name: np.array(rows, np.float32) for name, rows in dict(manifest.details["strength"]).items()}
        intervals = {
            name: np.array(rows, np.float32) for name, rows in dict(manifest.details.get("interval", {})).items()
        }
        sound = all(_is_table(t, 2) and (t[:, 1] <= 1).all() for t in tables.values())
        sound = sound and all(_is_table(t, 3) for t in intervals.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompensationError(
            f"{manifest.folder}: incomplete manifest ({error})", Fault.MISSING, field="manifest"
        ) from error
    if not sound or UNKNOWN not in tables:
        raise CompensationError(
            f"{manifest.folder}: strength needs a table of rising steps and strengths from 0 to 1 for each codec and for {UNKNOWN}, interval "
            "tables of rising steps and two factors",
            Fault.SHAPE,
            field="strength",
        )
    return tokens, tables, intervals


def _is_table(table: FloatArray, columns: int) -> bool:
    if table.ndim != 2 or table.shape[1] != columns or not np.isfinite(table).all():
        return False
    steps = table[:, 0]
    return bool((steps > 0).all() and (np.diff(steps) > 0).all() and (table >= 0).all())


def shipped_enhancers() -> dict[str, Path]:
    """The folders of the enhancers that come with the package, by name."""
    folder = Path(str(resources.files("perigee.profiles"))) / "enhancers"
    return {path.name: path for path in manifests_in(folder)}


def known_enhancers(folders: tuple[Path, ...] = ()) -> dict[str, Path]:
    """The folders of all enhancers by name: those that are shipped, and those in ``folders``."""
    known = shipped_enhancers()
    for folder in folders:
        known |= {path.resolve().name: path for path in manifests_in(folder) if kind_of(path) == ENHANCER}
    return known


def find_enhancer(
    name: str, folders: tuple[Path, ...] = (), threads: int | None = None, backend: Backend = CPU_BACKEND
) -> Enhancer:
    """An enhancer by the name of its folder, shipped or in one of ``folders``. Raises CompensationError naming the known ones."""
    known = known_enhancers(folders)
    if name not in known:
        listing = ", ".join(sorted(known)) or "none"
        raise CompensationError(
            f"no enhancer {name}; known are {listing}", Fault.NAME, field="method", expected=listing, found=name
        )
    return Enhancer(known[name], threads, backend)
