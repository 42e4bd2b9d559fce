"""What a compensator learns from: originals and what the shipped codec makes of them, at all rates, in one folder.

Everything comes from the profile's own engines: the base image is the one that ``ground-decode`` gives before it rounds, the
latents are the dequantised ones. The quality of each pair is drawn such that the patch takes 0.06 to 1.3 bits per pixel.
"""

from __future__ import annotations

import csv
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from perigee.bitstream.cells import cells_of
from perigee.bitstream.conditions import FIELDS, condition_of
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import ProfileError, RasterError
from perigee.bitstream.metadata import Acquisition
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.bitstream.profile import Profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.training.data import ImageSet, guessed_lambda, load_folders

SIDE = 256
RATES = (0.06, 1.3)
Array = npt.NDArray[Any]
FILES = ("image", "base", "latents", "symbols", "quality", "values", "known", "source", "held", "number")
HELD_SHARE = 0.04  # of the images: never trained on, to compare and calibrate with


class GroundTruth:
    """The codec of a profile, from pixels to what the ground has."""

    def __init__(self, profile: Profile, threads: int | None = None) -> None:
        self.profile = profile
        self.flight, self.ground = FlightEngine(profile, threads), GroundEngine(profile, threads)
        if not self.flight.linear:
            raise ProfileError(f"{profile.name}: a compensator holds to symbols, which needs a linear analysis")

    def base_of(self, pixels: Array, step: int) -> tuple[Array, Array, Array]:
        """Of uint8 [H, W, 3], sides multiples of 64: base image float32 [3, H, W], dequantised latents [M + 1, H/16, W/16] and
        symbols [M, H/16, W/16]."""
        image = pixels.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 255)
        q, z = self.flight.analyse(image, step)
        found = self.ground.predict(z, q, step)
        latents = self.ground.reconstruct(q, found.mean, found.scale_index, step)
        low, high = cells_of(q[0], self.profile.contract.gains(step))
        base = self.ground.project_to_cells(self.ground.synthesise(latents), low[None], high[None])
        return base[0], latents[0], q[0]


def guessed_step(profile: Profile, pixels: Array, rate: float) -> int:
    """Q at which a patch takes about ``rate`` bits per pixel, from the mean difference of its neighbours (to a factor of 1.4)."""
    luma = pixels.mean(2)
    activity = 0.5 * (np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) + 0.5
    low, high = profile.manifest.details["quality_lambda"]
    lam = guessed_lambda(rate, float(activity))
    return round(min(max(math.log(lam / low) / math.log(high / low), 0.0), 1.0) * QUALITY_STEPS)


def conditions_of(folders: Iterable[Path]) -> dict[str, tuple[Array, Array]]:
    """What the folders' ``index.csv`` know of each file, as values and known fields (see ``bitstream.acquisition``).

    Columns gsd_m, lat, lon and date (2018 or 2018-06-29), empty where not known; an hour is never known.
    """
    out: dict[str, tuple[Array, Array]] = {}
    for folder in folders:
        index = folder / "index.csv"
        if not index.is_file():
            continue
        with index.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                day = [int(part) for part in row.get("date", "").split("-") if part]
                year, month, date = (day + [1, 1])[:3] if day else (1, 1, 1)
                acquisition = Acquisition(
                    longitude_deg=float(row["lon"]) if row.get("lon") else None,
                    latitude_deg=float(row["lat"]) if row.get("lat") else None,
                    timestamp=datetime(year, month, date, tzinfo=timezone.utc) if day else None,
                    gsd_m=float(row["gsd_m"]) if row.get("gsd_m") else None,
                )
                values, known = condition_of(acquisition)
                known[FIELDS.index("hour")] = 0
                if len(day) < 3:
                    known[FIELDS.index("season")] = 0
                out[Path(row["file"]).name] = values * known[:, None], known
    return out


def _windows(images: ImageSet, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Image, top and left of all windows of SIDE without overlap, the grid of each image shifted at random."""
    out = []
    for i, image in enumerate(images.images):
        rows, cols = (n // SIDE for n in image.shape[:2])
        shift = [int(rng.integers(0, n % SIDE + 1)) for n in image.shape[:2]]
        out += [(i, shift[0] + r * SIDE, shift[1] + c * SIDE) for r in range(rows) for c in range(cols)]
    return [out[i] for i in rng.permutation(len(out))]


def make_pairs(
    profile: Profile,
    folders: list[Path],
    out: Path,
    exclude: Iterable[str] = (),
    gsd_m: Mapping[str, float] | None = None,
    limit: int | None = None,
    seed: int = 1,
    show: bool = False,
) -> int:
    """Write pairs of all windows of the images to ``out``; returns how many. ``gsd_m`` by source, where no index knows it.

    Raises RasterError where nothing is left to learn from.
    """
    images = load_folders(folders, exclude)
    conditions = conditions_of(folders)
    rng = np.random.default_rng(seed)
    windows = _windows(images, rng)[:limit]
    if not windows:
        raise RasterError(f"no image of at least {SIDE}x{SIDE} pixels")
    truth = GroundTruth(profile)
    latents = profile.contract.widths.latents + 1
    small = SIDE // BLOCK
    n = len(windows)
    out.mkdir(parents=True, exist_ok=True)
    shapes = {
        "image": ((n, SIDE, SIDE, 3), np.uint8),
        "base": ((n, 3, SIDE, SIDE), np.float16),
        "latents": ((n, latents, small, small), np.float16),
        "symbols": ((n, latents - 1, small, small), np.int16),
        "quality": ((n,), np.uint8),
        "values": ((n, len(FIELDS), 2), np.float32),
        "known": ((n, len(FIELDS)), np.float32),
        "source": ((n,), np.int16),
        "held": ((n,), np.bool_),
        "number": ((n,), np.int32),  # of the image
    }
    arrays = {
        name: np.lib.format.open_memmap(out / f"{name}.npy", "w+", dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }
    sources = sorted(set(images.sources))
    for k, (i, top, left) in enumerate(tqdm(windows, unit="patch", disable=not show)):
        pixels = images.images[i][top : top + SIDE, left : left + SIDE]
        for flip in (np.s_[::-1], np.s_[:, ::-1]):
            pixels = pixels[flip] if rng.random() < 0.5 else pixels
        pixels = np.ascontiguousarray(pixels.transpose(1, 0, 2) if rng.random() < 0.5 else pixels)
        rate = math.exp(rng.uniform(*np.log(RATES)))
        step = guessed_step(profile, pixels, rate)
        found = conditions.get(images.names[i])
        arrays["image"][k], arrays["quality"][k] = pixels, step
        arrays["base"][k], arrays["latents"][k], arrays["symbols"][k] = truth.base_of(pixels, step)
        arrays["values"][k], arrays["known"][k] = found or condition_of(
            Acquisition(gsd_m=(gsd_m or {}).get(images.sources[i]))
        )
        arrays["number"][k] = i
        arrays["held"][k] = is_held(images.names[i])
        arrays["source"][k] = sources.index(images.sources[i])
    for array in arrays.values():
        array.flush()
    (out / "pairs.json").write_text(
        json.dumps({"profile": profile.name, "contract": profile.contract.digest.hex(), "sources": sources, "count": n})
    )
    return n


def is_held(name: str) -> bool:
    """Whether an image is held back from training, by a hash of its file name."""
    return zlib.crc32(name.encode()) % 1000 < 1000 * HELD_SHARE


class Pairs:
    """A folder of pairs, mapped into memory; batches come from those that are not held back, sources by the square root of their
    size times an optional weight."""

    def __init__(self, folder: Path, weights: Mapping[str, float] | None = None) -> None:
        try:
            about = json.loads((folder / "pairs.json").read_text())
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES}
        except (OSError, ValueError) as error:
            raise RasterError(f"{folder}: no pairs there ({error})") from error
        self.contract, self.sources = str(about["contract"]), list(about["sources"])
        counts = np.bincount(self.arrays["source"], minlength=len(self.sources))
        wanted = np.array([(weights or {}).get(name, 1.0) for name in self.sources])
        drawn = (wanted * np.sqrt(counts) / np.maximum(counts, 1))[self.arrays["source"]] * ~self.arrays["held"]
        self.shares = drawn / drawn.sum()
        self.held = np.flatnonzero(self.arrays["held"])

    def batch(self, count: int, side: int, rng: np.random.Generator) -> dict[str, Array]:
        """``count`` crops of ``side`` pixels, a multiple of 16, by name."""
        chosen = rng.choice(len(self.shares), count, p=self.shares)
        room = (SIDE - side) // BLOCK
        places = rng.integers(0, room + 1, (count, 2))
        return self.crops(chosen, places, side)

    def crops(self, chosen: Array, places: Array, side: int) -> dict[str, Array]:
        """Pairs by number, cut at ``places`` (in latents)."""
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
