"""What map guidance learns from: images with maps, and what the codec makes of the images at low rates; maps that are wrong in many ways.

A map is never quite right: it is shifted, out of date, of another place, or absent. Every batch spoils some maps, so that the guide learns what
a map may be trusted with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from perigee.bitstream.arrays import Array, BoolArray, FloatArray
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.map_planes import MAP_CLASSES, planes_of
from perigee.bitstream.profile import Profile
from perigee.models.segmenter import SEEN
from perigee.training.map_tiles import MapTile
from perigee.training.pairs import SIDE, GroundTruth, guessed_quality_step, turned

RATES = (0.025, 0.4)  # bits per pixel
VERSIONS = 6  # of each tile
BUILDING = SEEN.index("building")
DROPPED, LAYER_DROPPED, FOREIGN, HALF, SHIFTED, FAR_SHIFTED = 0.2, 0.1, 0.08, 0.15, 0.3, 0.1  # shares of the maps
SHIFT_PX, FAR_SHIFT_PX = 3, 16
OUTDATED = 0.6  # share of the maps that lack some buildings and have others that are not there
MISSING_MOST, ADDED_MOST = 0.4, 5  # share of the buildings that are missing, and number of those that are added
FILES = ("image", "base", "latents", "symbols", "quality", "masks")
NAMES_FILE = "names.txt"  # of the image of each pair; written last


def make_map_pairs(profile: Profile, tiles: Sequence[MapTile], folder: Path, seed: int = 1, show: bool = False) -> None:
    """Write pairs of all tiles of 256x256 pixels to a folder, ``VERSIONS`` of each. Raises ProfileError for a profile without cells."""
    truth, rng = GroundTruth(profile), np.random.default_rng(seed)
    small, latents = SIDE // BLOCK, profile.contract.widths.latents
    count = VERSIONS * len(tiles)
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "image": ((count, 3, SIDE, SIDE), np.uint8), "base": ((count, 3, SIDE, SIDE), np.float16),
        "latents": ((count, latents + 1, small, small), np.float16), "symbols": ((count, latents, small, small), np.int16),
        "quality": ((count,), np.uint8), "masks": ((count, len(SEEN), SIDE, SIDE), np.bool_),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    out = {n: np.lib.format.open_memmap(folder / f"{n}.npy", "w+", d, s) for n, (s, d) in shapes.items()}
    for k in tqdm(range(count), unit="pair", disable=not show):
        tile = tiles[k % len(tiles)]
        both = turned(np.concatenate([tile.pixels, 255 * tile.masks.transpose(1, 2, 0).astype(np.uint8)], 2), rng)
        pixels, masks = np.ascontiguousarray(both[..., :3]), both[..., 3:].transpose(2, 0, 1) > 0
        quality_step = guessed_quality_step(profile, pixels, math.exp(rng.uniform(*np.log(RATES))))
        out["image"][k], out["quality"][k], out["masks"][k] = pixels.transpose(2, 0, 1), quality_step, masks
        out["base"][k], out["latents"][k], out["symbols"][k] = truth.base_of(pixels, quality_step)
    for array in out.values():
        array.flush()
    (folder / NAMES_FILE).write_text("".join(f"{tiles[k % len(tiles)].name}\n" for k in range(count)))


def outdated(buildings: BoolArray, others: BoolArray, rng: np.random.Generator) -> BoolArray:
    """A mask of buildings without some of them, and with some buildings of another place where none stands, bool [rows, cols]."""
    numbers, count = ndimage.label(buildings)
    missing = rng.random(count + 1) < rng.uniform(0, MISSING_MOST)
    missing[0] = True
    out = np.asarray(~missing[numbers])
    found, there = ndimage.label(others)
    for number in rng.permutation(there)[: int(rng.integers(0, ADDED_MOST + 1))] + 1:
        shape = found == number
        moved = np.roll(shape, tuple(int(n) for n in rng.integers(0, SIDE, 2)), (0, 1))
        if not (moved & ndimage.binary_dilation(buildings, iterations=2)).any():
            out |= moved
    return out


def spoiled(masks: BoolArray, others: BoolArray, rng: np.random.Generator) -> FloatArray:
    """Planes [len(MAP_PLANES), rows, cols] of a map that is right, out of date, shifted, of another place (``others``), in part known, or
    absent. ``masks`` are bool [len(SEEN), rows, cols]."""
    known: BoolArray = np.ones(masks.shape[1:], bool)
    if rng.random() < DROPPED:
        return planes_of(np.zeros((len(MAP_CLASSES), *known.shape), np.float32), ~known)
    seen = (others if rng.random() < FOREIGN else masks).copy()
    if rng.random() < OUTDATED:
        seen[BUILDING] = outdated(seen[BUILDING], others[BUILDING], rng)
    seen[rng.random(len(seen)) < LAYER_DROPPED] = False
    for share, most in ((SHIFTED, SHIFT_PX), (FAR_SHIFTED, FAR_SHIFT_PX)):
        if rng.random() < share:
            seen = np.roll(seen, tuple(int(n) for n in rng.integers(-most, most + 1, 2)), (1, 2))
    if rng.random() < HALF:
        part = np.arange(SIDE) < rng.integers(1, SIDE)
        part = part if rng.random() < 0.5 else ~part
        known &= part[:, None] if rng.random() < 0.5 else part[None]
    shares = np.zeros((len(MAP_CLASSES), *known.shape), np.float32)
    for name, mask in zip(SEEN, seen & known, strict=True):
        shares[MAP_CLASSES.index(name)] = mask
    return planes_of(shares, known)


class MapPairs:
    """A folder of pairs, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder holds none."""
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES}
        self.names = (folder / NAMES_FILE).read_text().splitlines()

    def __len__(self) -> int:
        return len(self.arrays["quality"])

    def of_files(self, patterns: Sequence[str]) -> Array:
        """The numbers of the pairs whose images have names that fit one of some patterns, as ``fnmatch`` reads them.

        Raises RasterError where there are none.
        """
        found = [k for k, name in enumerate(self.names) if any(fnmatch(name, pattern) for pattern in patterns)]
        if not found:
            raise RasterError(f"no image has a name like {', '.join(patterns)}", Fault.MISSING, field="segmenter")
        return np.array(found)

    def batch(self, count: int, side: int, rng: np.random.Generator, numbers: Array | None = None) -> dict[str, Array]:
        """Crops of ``side`` pixels as ``training.pairs.Pairs.batch`` returns them, with ``planes`` float32 [N, len(MAP_PLANES), side, side]; of the
        pairs of some numbers, or of all."""
        out: dict[str, list[Array]] = {name: [] for name in (*FILES[:4], "planes")}
        chosen = rng.choice(len(self) if numbers is None else numbers, count)
        room, small = (SIDE - side) // BLOCK, side // BLOCK
        for k in chosen:
            row, col = (int(n) for n in rng.integers(0, room + 1, 2))
            pixels = np.s_[:, BLOCK * row : BLOCK * row + side, BLOCK * col : BLOCK * col + side]
            latents = np.s_[:, row : row + small, col : col + small]
            for name in FILES[:4]:
                out[name].append(self.arrays[name][k][pixels if name in ("image", "base") else latents])
            others = self.arrays["masks"][rng.integers(0, len(self))]
            out["planes"].append(spoiled(np.asarray(self.arrays["masks"][k]), np.asarray(others), rng)[pixels])
        return {name: np.stack(parts) for name, parts in out.items()} | {"quality": self.arrays["quality"][chosen]}
