"""What a compensator learns from: originals and what the shipped codec makes of them, at all rates, in one folder.

Everything comes from the profile's own engines. The base image is the one that ``ground-decode`` computes before it rounds;
the latents are dequantised. The quality step of each pair is chosen such that the patch takes 0.06 to 1.3 bits per pixel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from perigee.bitstream.cells import cells_of
from perigee.bitstream.conditions import FIELDS, condition_of
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import Fault, ProfileError, RasterError
from perigee.bitstream.metadata import Acquisition
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.bitstream.profile import Profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.training.acquisitions import conditions_of
from perigee.training.bands import triplets
from perigee.training.data import ImageSet, guessed_lambda, load_folders
from perigee.training.held_out import is_held_out

Array = npt.NDArray[Any]
SIDE = 256  # of a patch, in pixels
RATES = (0.06, 1.3)  # bits per pixel
HELD_OUT_SHARE = 0.04  # of the images: never trained on, to compare and calibrate with
ABOUT_FILE = "pairs.json"
# The arrays of a folder of pairs, one file NAME.npy each. "held" marks the patches of images that are held out of training.
FILES = ("image", "base", "latents", "symbols", "quality", "values", "known", "source", "held", "number")


class GroundTruth:
    """The codec of a profile, from pixels to everything that the ground has after decoding."""

    def __init__(self, profile: Profile, threads: int | None = None) -> None:
        """``threads`` is the number of CPU threads (default: all cores).

        Raises ProfileError where the profile's analysis is not linear, because a compensated image could not be projected to
        the cells of its symbols.
        """
        self.profile = profile
        self.flight, self.ground = FlightEngine(profile, threads), GroundEngine(profile, threads)
        if not self.flight.linear:
            raise ProfileError(
                f"{profile.name}: a compensator needs a profile with a linear analysis",
                Fault.MISFIT,
                field="analysis",
                expected="a linear analysis",
                found=self.flight.analysis,
            )

    def base_of(self, pixels: Array, quality_step: int) -> tuple[Array, Array, Array]:
        """Code and decode an image uint8 [H, W, 3] with sides that are multiples of 64.

        Returns the base image float32 [3, H, W], the dequantised latents float32 [M + 1, H/16, W/16] with the quality plane
        last, and the symbols [M, H/16, W/16].
        """
        image = pixels.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 255)
        q, z = self.flight.analyse(image, quality_step)
        found = self.ground.predict(z, q, quality_step)
        latents = self.ground.reconstruct(q, found.mean, found.scale_index, quality_step)
        low, high = cells_of(q[0], self.profile.contract.gains(quality_step))
        base = self.ground.project_to_cells(self.ground.synthesise(latents), low[None], high[None])
        return base[0], latents[0], q[0]


def guessed_quality_step(profile: Profile, pixels: Array, rate: float) -> int:
    """Return the quality step at which a patch uint8 [row, col, 3] takes about ``rate`` bits per pixel.

    It is estimated from the mean difference of neighbouring pixels; the rate is right to a factor of 1.4.
    """
    luma = pixels.mean(2)
    activity = 0.5 * (np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) + 0.5
    low, high = profile.manifest.details["quality_lambda"]
    lam = guessed_lambda(rate, float(activity))
    return round(min(max(math.log(lam / low) / math.log(high / low), 0.0), 1.0) * QUALITY_STEPS)


def _windows(images: ImageSet, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return image number, top and left of all patches, without overlap, on a grid that is shifted at random in each image."""
    out = []
    for i, image in enumerate(images.images):
        rows, cols = (n // SIDE for n in image.shape[:2])
        shift = [int(rng.integers(0, n % SIDE + 1)) for n in image.shape[:2]]
        out += [(i, shift[0] + r * SIDE, shift[1] + c * SIDE) for r in range(rows) for c in range(cols)]
    return [out[i] for i in rng.permutation(len(out))]


def turned(pixels: Array, rng: np.random.Generator) -> Array:
    """Return a patch [row, col, channel], flipped and transposed at random."""
    for flip in (np.s_[::-1], np.s_[:, ::-1]):
        pixels = pixels[flip] if rng.random() < 0.5 else pixels
    return np.ascontiguousarray(pixels.transpose(1, 0, 2) if rng.random() < 0.5 else pixels)


def _new_arrays(folder: Path, count: int, latents: int) -> dict[str, Array]:
    """Create the files of ``count`` pairs, mapped into memory; ``latents`` do not include the quality plane."""
    small = SIDE // BLOCK
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "image": ((count, SIDE, SIDE, 3), np.uint8),
        "base": ((count, 3, SIDE, SIDE), np.float16),
        "latents": ((count, latents + 1, small, small), np.float16),
        "symbols": ((count, latents, small, small), np.int16),
        "quality": ((count,), np.uint8),
        "values": ((count, len(FIELDS), 2), np.float32),
        "known": ((count, len(FIELDS)), np.float32),
        "source": ((count,), np.int16),
        "held": ((count,), np.bool_),
        "number": ((count,), np.int32),  # of the image
    }
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }


def make_pairs(
    profile: Profile,
    folders: list[Path],
    out: Path,
    exclude: Iterable[str] = (),
    gsd_m: Mapping[str, float] | None = None,
    limit: int | None = None,
    seed: int = 1,
    show: bool = False,
    bands: Iterable[Path] = (),
    positions: bool = False,
) -> int:
    """Write pairs of all 256x256 patches of the images in ``folders`` to the folder ``out``; return how many there are.

    ``exclude`` names sources to leave out, ``gsd_m`` gives the ground sample distance of sources without an index, ``limit``
    is the largest number of patches, and ``show`` draws a progress bar on stderr. ``bands`` are folders of multi-band files, three bands of
    which make an image; ``positions`` lets longitude and latitude be conditions. Raises RasterError where no image is large
    enough or an index cannot be understood, and ProfileError where the profile's analysis is not linear.
    """
    images = load_folders(folders, exclude)
    for folder in bands:
        images = images.joined(triplets(folder, SIDE))
    conditions = conditions_of([*folders, *bands], positions)
    rng = np.random.default_rng(seed)
    windows = _windows(images, rng)[:limit]
    if not windows:
        raise RasterError(f"no image has at least {SIDE}x{SIDE} pixels", Fault.MISSING, expected=f"{SIDE}x{SIDE}")
    truth = GroundTruth(profile)
    out.mkdir(parents=True, exist_ok=True)
    arrays = _new_arrays(out, len(windows), profile.contract.widths.latents)
    sources = sorted(set(images.sources))
    for k, (i, top, left) in enumerate(tqdm(windows, unit="patch", disable=not show)):
        pixels = turned(images.images[i][top : top + SIDE, left : left + SIDE], rng)
        rate = math.exp(rng.uniform(*np.log(RATES)))
        quality_step = guessed_quality_step(profile, pixels, rate)
        found = conditions.get(images.names[i])
        arrays["image"][k], arrays["quality"][k] = pixels, quality_step
        arrays["base"][k], arrays["latents"][k], arrays["symbols"][k] = truth.base_of(pixels, quality_step)
        arrays["values"][k], arrays["known"][k] = found or condition_of(
            Acquisition(gsd_m=(gsd_m or {}).get(images.sources[i]))
        )
        arrays["number"][k] = i
        arrays["held"][k] = is_held_out(images.names[i], HELD_OUT_SHARE)
        arrays["source"][k] = sources.index(images.sources[i])
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]  # memory-mapped
    about = {
        "profile": profile.name,
        "contract": profile.contract.digest.hex(),
        "sources": sources,
        "count": len(windows),
    }
    (out / ABOUT_FILE).write_text(json.dumps(about))
    return len(windows)


class Pairs:
    """A folder of pairs, mapped into memory.

    Batches are drawn from the pairs that are not held out of training. Sources are drawn in proportion to the square root of
    their number of pairs times an optional weight. ``held_out`` [K] are the numbers of the pairs that are held out.
    """

    def __init__(self, folder: Path, weights: Mapping[str, float] | None = None) -> None:
        """``weights`` are by source. Raises RasterError where the folder holds no pairs, or none that may be trained on."""
        try:
            about = json.loads((folder / ABOUT_FILE).read_text())
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES}
        except (OSError, ValueError) as error:
            raise RasterError(f"{folder} holds no pairs ({error})", Fault.UNREADABLE, field=str(folder)) from error
        self.contract, self.sources = str(about["contract"]), list(about["sources"])
        counts = np.bincount(self.arrays["source"], minlength=len(self.sources))
        wanted = np.array([(weights or {}).get(name, 1.0) for name in self.sources])
        drawn = (wanted * np.sqrt(counts) / np.maximum(counts, 1))[self.arrays["source"]] * ~self.arrays["held"]
        if not drawn.sum() > 0:
            raise RasterError(f"{folder}: all pairs are held out or have weight 0", Fault.MISSING, field=str(folder))
        self.shares = drawn / drawn.sum()
        self.held_out = np.flatnonzero(self.arrays["held"])

    def batch(self, count: int, side: int, rng: np.random.Generator) -> dict[str, Array]:
        """Return ``count`` random crops of ``side`` pixels, a multiple of 16, see :meth:`crops`."""
        chosen = rng.choice(len(self.shares), count, p=self.shares)
        room = (SIDE - side) // BLOCK
        places = rng.integers(0, room + 1, (count, 2))
        return self.crops(chosen, places, side)

    def crops(self, chosen: Array, places: Array, side: int) -> dict[str, Array]:
        """Return crops of the pairs with the numbers ``chosen`` [N] at ``places`` [N, 2], row and column in latents.

        By name: ``image`` uint8 and ``base`` float16 [N, 3, side, side], ``latents`` float16 [N, M + 1, side/16, side/16],
        ``symbols`` int16 [N, M, side/16, side/16], ``quality`` uint8 [N] (quality steps), ``values`` [N, fields, 2] and
        ``known`` [N, fields].
        """
        out: dict[str, list[Array]] = {name: [] for name in ("image", "base", "latents", "symbols")}
        small = side // BLOCK
        for i, (row, col) in zip(chosen, places, strict=True):
            y, x = row * BLOCK, col * BLOCK
            out["image"].append(self.arrays["image"][i, y : y + side, x : x + side].transpose(2, 0, 1))
            out["base"].append(self.arrays["base"][i, :, y : y + side, x : x + side])
            for name in ("latents", "symbols"):
                out[name].append(self.arrays[name][i, :, row : row + small, col : col + small])
        found = {name: np.stack(parts) for name, parts in out.items()}
        return found | {name: np.asarray(self.arrays[name][chosen]) for name in ("quality", "values", "known")}
