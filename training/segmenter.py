"""Training of the segmenter on images with maps; resumable, driven by the clock."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from perigee.bitstream.arrays import FloatArray
from perigee.models.checkpoint import read_checkpoint
from perigee.models.segmenter import SEEN, Segmenter
from perigee.training.map_tiles import MapTile
from perigee.training.run import (
    ADAM_BETAS,
    CHECKPOINT_FILE,
    Clock,
    append_row,
    cosine_fall,
    descend,
    follow,
    half_precision,
    save_checkpoint,
    train,
    warm_up,
)

BATCH, SIDE = 8, 192
SCALES = (0.6, 1.6)  # by which a tile is resized, so that no ground sample distance is learned by heart
LIGHT, COLOUR = 0.2, 0.1  # how far brightness and contrast, and each colour, are varied
RATE_FLOOR = 0.02
SHARP = 0.5  # share of the crops that are not blurred as a decoder blurs


class CropsWithMaps:
    """Random crops of tiles, varied in size, turn, light and sharpness."""

    def __init__(self, tiles: Sequence[MapTile], seed: int) -> None:
        """Places count by the square root of the number of their tiles."""
        self._tiles, self._rng = tiles, np.random.default_rng(seed)
        places = [tile.place for tile in tiles]
        weights = np.array([places.count(place) ** -0.5 for place in places])
        self._shares = weights / weights.sum()

    def batch(self, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images [count, 3, side, side] in 0..1, masks [count, classes, side/2, side/2] and known classes [count, classes], all float32."""
        found = [
            self._crop(self._tiles[self._rng.choice(len(self._tiles), p=self._shares)], side) for _ in range(count)
        ]
        images, masks, known = (torch.from_numpy(np.stack(parts)) for parts in zip(*found, strict=True))
        return images, F.avg_pool2d(masks, 2), known

    def _crop(self, tile: MapTile, side: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        rng, rows = self._rng, tile.pixels.shape[0]
        wanted = min(round(side / rng.uniform(*SCALES)), rows)
        top, left = (int(rng.integers(0, n - wanted + 1)) for n in tile.pixels.shape[:2])
        place = np.s_[top : top + wanted, left : left + wanted]
        image = Image.fromarray(np.ascontiguousarray(tile.pixels[place])).resize((side, side), Image.Resampling.BICUBIC)
        if rng.random() > SHARP:
            small = max(side // int(rng.integers(2, 5)), 1)
            image = image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        masks = np.stack(
            [np.asarray(Image.fromarray(mask[place]).resize((side, side)), np.float32) for mask in tile.masks]
        )
        light = rng.uniform(1 - LIGHT, 1 + LIGHT) * rng.uniform(1 - COLOUR, 1 + COLOUR, (3, 1, 1))
        pixels = np.clip((pixels - 0.5) * light + 0.5 + rng.uniform(-LIGHT, LIGHT) / 2, 0, 1).astype(np.float32)
        for axis in (1, 2):
            if rng.random() < 0.5:
                pixels, masks = np.flip(pixels, axis), np.flip(masks, axis)
        if rng.random() < 0.5:
            pixels, masks = pixels.transpose(0, 2, 1), masks.transpose(0, 2, 1)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(masks), np.array(tile.known, np.float32)


def loss_of(logits: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy and one minus the soft overlap (Dice), over the classes that the maps have."""
    wrong = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((2, 3))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * masks).sum((0, 2, 3)) + 1) / ((share + masks).sum((0, 2, 3)) + 1)
    there = (known * masks.mean((2, 3))).sum(0) > 0
    return (wrong * known).sum() / known.sum().clamp_min(1) + (dice * there).sum() / there.sum().clamp_min(1)


class SegmenterTrainer:
    """Trains a segmenter in a run's folder, which holds ``checkpoint.pt`` and ``log.csv``."""

    def __init__(self, folder: Path, minutes: float, rate: float = 1e-3, seed: int = 1) -> None:
        """Start a run, or resume from its checkpoint. Raises CheckpointError for another kind of checkpoint."""
        torch.manual_seed(seed)
        self.folder, self.rate, self.seed, self.step = folder, rate, seed, 0
        self.network = Segmenter()
        self.mean = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=rate, betas=ADAM_BETAS, weight_decay=0.02)
        self.clock = Clock(minutes, 3.0)
        self.half = half_precision(torch.device("cpu"))
        path = folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path)
            self.network.load_state_dict(state["network"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "mean", "optimiser")}
        kind = {"format": 1, "kind": "segmenter", "step": self.step, "seconds": self.clock.seconds}
        save_checkpoint(self.folder, kind | parts)

    def run(self, tiles: Sequence[MapTile], held_out: Sequence[MapTile], show: bool) -> None:
        """Train until the time is spent; the log has the overlap (IoU) of each class on the tiles that are held out."""
        crops = CropsWithMaps(tiles, self.seed + self.step)

        def checkpoint(means: dict[str, float]) -> None:
            found = {name: round(value, 4) for name, value in (means | overlaps(self.mean, held_out)).items()}
            append_row(self.folder / "log.csv", {"step": self.step, "minutes": round(self.clock.minutes, 2)} | found)
            self.save()

        train(self.clock, lambda: {"loss": self.train_step(*crops.batch(BATCH, SIDE))}, checkpoint, show)

    def train_step(self, images: Tensor, masks: Tensor, known: Tensor) -> float:
        """Take one training step; return the loss."""
        fall = cosine_fall(self.clock.progress, RATE_FLOOR)
        self.optimiser.param_groups[0]["lr"] = self.rate * warm_up(self.step) * fall
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = self.network(images).float()
        loss = loss_of(logits, masks, known)
        descend(loss, self.optimiser, list(self.network.parameters()))
        follow(self.mean.parameters(), self.network.parameters(), self.step)
        self.step += 1
        return loss.item()


@torch.no_grad()
def overlaps(network: Segmenter, tiles: Sequence[MapTile]) -> dict[str, float]:
    """Intersection over union of each class over all tiles that know it; NaN where none does."""
    sums = np.zeros((2, len(SEEN)))
    for tile in tiles:
        rows, cols = (n // 32 * 32 for n in tile.pixels.shape[:2])
        image = torch.from_numpy(tile.pixels[:rows, :cols].transpose(2, 0, 1)[None].astype(np.float32)) / 255
        found = (F.interpolate(network(image), scale_factor=2.0, mode="bilinear") > 0).float()[0]
        wanted = torch.from_numpy(tile.masks[:, :rows, :cols].astype(np.float32))
        known = np.array(tile.known, float)
        sums[0] += known * (found * wanted).sum((1, 2)).numpy()
        sums[1] += known * torch.maximum(found, wanted).sum((1, 2)).numpy()
    return {
        name: float(both / either) if either else float("nan") for name, both, either in zip(SEEN, *sums, strict=True)
    }
