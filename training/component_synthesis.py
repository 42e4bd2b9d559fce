"""Training of the synthesis of components: on what the encoder of a finished profile makes of training crops.

The crops are cut into patches at random places, so that the network learns what borders of patches look like. See ``run`` for the clock
and the checkpoints, and ``bands`` for the crops.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream import prior as P
from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.component_profile import ComponentProfile
from perigee.bitstream.lapped import BLOCK, COSINE, LAP, MATRIX_BITS, REACH, analyse
from perigee.bitstream.reconstruction import CELL_BITS, STEP_BITS, centroids_of
from perigee.engines.component_flight import ComponentFlight
from perigee.models.checkpoint import read_checkpoint
from perigee.models.codec.component_synthesis import ComponentSynthesis
from perigee.training.bands import ComponentSampler
from perigee.training.components import SIDES, drawn_quality
from perigee.training.loop import RATE_FLOOR
from perigee.training.run import (
    ADAM_BETAS,
    CHECKPOINT_FILE,
    Clock,
    ahead,
    append_row,
    cosine_fall,
    descend,
    follow,
    save_checkpoint,
    train,
    warm_up,
)

RATES = (0.008, 0.7)  # bits a sample, log-uniformly: above, the integers need no help
PLANES, COMPONENTS_MAX = 6, 4  # planes of 192x192 pixels in a training step, at least; of one crop, at most
CUT_SHARE, CUT_EVERY = 0.7, 64  # of the crops are cut into patches, at multiples of so many pixels
VALIDATION_STEPS = (20, 40, 60, 80, 100, 130)
ERROR_FLOOR = 1e-3  # squared steps


class Example(NamedTuple):
    """What the synthesis sees, and what it should add, in steps. Planes are [N, 1, 16 H, 16 W], the others [N, *, H, W]."""

    latents: Tensor
    scales: Tensor
    plane: Tensor
    guide: Tensor
    quality: Tensor
    missing: Tensor

    def of(self, components: list[int]) -> Example:
        """The example of some of its components."""
        return Example(*(part[components] for part in self))


def _inverse(values: FloatArray) -> FloatArray:
    """The inverse lapped transform along the columns of [N, 16 n, m], which are changed."""
    lap, cosine = (np.array(matrix, np.float32).T * np.float32(2.0**-MATRIX_BITS) for matrix in (LAP, COSINE))
    count, length, width = values.shape
    out = np.matmul(cosine, values.reshape(count, -1, BLOCK, width)).reshape(values.shape)
    inner = out[:, REACH : length - REACH]
    if inner.shape[1]:
        inner[:] = np.matmul(lap, inner.reshape(count, -1, BLOCK, width)).reshape(inner.shape)
    return np.asarray(out)


def synthesise(coefficients: FloatArray, order: IntArray) -> FloatArray:
    """Planes float32 [N, 16 H, 16 W] of coefficients [N, 256, H, W]: the inverse of ``lapped.analyse``, in floating point."""
    count, _, rows, cols = coefficients.shape
    blocks = np.empty_like(coefficients)
    blocks[:, order] = coefficients
    values = blocks.reshape(count, BLOCK, BLOCK, rows, cols).transpose(0, 3, 1, 4, 2)
    columns = _inverse(np.ascontiguousarray(values).reshape(count, BLOCK * rows, BLOCK * cols))
    return np.ascontiguousarray(_inverse(np.ascontiguousarray(columns.swapaxes(1, 2))).swapaxes(1, 2))


class Examples:
    """Codes crops with a profile, as a satellite does."""

    def __init__(self, profile: ComponentProfile) -> None:
        self._engine = ComponentFlight(profile)
        self._contract = profile.contract
        self.order = profile.contract.order.astype(np.intp)

    def example(
        self, coefficients: FloatArray, quality_step: int, cuts: tuple[list[int], list[int]] = ([], [])
    ) -> Example:
        """Code a crop [component, 256, H, W], as shares of the range, in patches that end at rows and columns of pixels (multiples of 64)."""
        y = coefficients * np.float32(1 / self.step(quality_step))
        count, _, rows, cols = y.shape
        whole = synthesise(y, self.order)
        latents, index, plane = np.zeros_like(y), np.zeros_like(y), np.zeros_like(whole)
        edges = [[0, *cut, BLOCK * size] for cut, size in zip(cuts, (rows, cols), strict=True)]
        for (top, bottom), (left, right) in itertools.product(*(itertools.pairwise(edge) for edge in edges)):
            patch = analyse(np.ascontiguousarray(whole[:, top:bottom, left:right]), self.order)
            none = np.zeros((count, BLOCK * BLOCK), np.int8)
            decoded = self._engine.code(patch * np.float32(self.step(quality_step)), none, quality_step).latents
            parts = zip(decoded.q, decoded.mean, decoded.scale_index, strict=True)
            within = np.stack([centroids_of(self._contract, *part) for part in parts])
            place = np.s_[:, :, top // BLOCK : bottom // BLOCK, left // BLOCK : right // BLOCK]
            latents[place] = within * np.float32(2.0**-CELL_BITS)
            index[place] = decoded.scale_index
            plane[:, top:bottom, left:right] = synthesise(np.ascontiguousarray(latents[place]), self.order)
        guide = np.repeat(plane[:1], count, 0)
        guide[0] = 0
        quality = np.full((count, 1, rows, cols), quality_step / P.QUALITY_STEPS, np.float32)
        planes = (part[:, None] for part in (plane, guide))
        parts_of = (latents, index, *planes, quality, (whole - plane)[:, None])
        return Example(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts_of))

    def step(self, quality_step: int) -> float:
        """The step size at Q, as a share of the range."""
        return float(self._contract.steps[quality_step]) * 2.0**-STEP_BITS

    def batches(self, sampler: ComponentSampler, rng: np.random.Generator) -> Iterator[tuple[Example, Tensor]]:
        """Yield for ever examples of several crops of one size, with the crop's number of each plane."""
        waiting: dict[int, list[Example]] = {}
        while True:
            coefficients = sampler.crop(SIDES[-1], rng)
            count, side = len(coefficients), BLOCK * coefficients.shape[2]
            kept = list(range(count))
            if count > COMPONENTS_MAX:
                kept = sorted(rng.choice(count, rng.integers(2, COMPONENTS_MAX + 1), replace=False).tolist())
            cuts: tuple[list[int], list[int]] = ([], [])
            if side > CUT_EVERY and rng.random() < CUT_SHARE:
                places = [int(rng.choice(np.arange(0, side, CUT_EVERY))) for _ in range(2)]
                cuts = ([n for n in places[:1] if n], [n for n in places[1:] if n])
            example = self.example(coefficients, drawn_quality(coefficients, rng, RATES, 1.0), cuts)
            found = waiting.setdefault(side, [])
            found.append(example.of(kept))
            if sum(len(e.plane) for e in found) * (side / SIDES[-1]) ** 2 >= PLANES:
                done = waiting.pop(side)
                crop = torch.cat([torch.full((len(e.plane),), i) for i, e in enumerate(done)])
                yield Example(*(torch.cat(parts) for parts in zip(*done, strict=True))), crop


def share_left(missing: Tensor, added: Tensor, crop: Tensor) -> Tensor:
    """Return which share of each crop's squared error is left, [crops]."""
    count = int(crop.max()) + 1

    def per_crop(x: Tensor) -> Tensor:
        return torch.zeros(count).index_add(0, crop, x.square().flatten(1).mean(1))

    return per_crop(missing - added) / (per_crop(missing) + ERROR_FLOOR)


class SynthesisTrainer:
    """Trains a synthesis in a run's folder, which holds ``checkpoint.pt`` and ``log.csv``."""

    def __init__(
        self, folder: Path, profile: ComponentProfile, minutes: float, rate: float = 1e-3, seed: int = 1
    ) -> None:
        """Resume from the folder's checkpoint where there is one. Raises CheckpointError where it does not fit."""
        torch.manual_seed(seed)
        self.folder, self.rate, self.seed = folder, rate, seed
        self.examples = Examples(profile)
        self.network, self.mean = ComponentSynthesis(), ComponentSynthesis()
        self.mean.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=rate, betas=ADAM_BETAS)
        self.clock = Clock(minutes, 5.0)
        self.step = 0
        path = folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path, torch.device("cpu"))
            self.network.load_state_dict(state["network"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        save_checkpoint(
            self.folder,
            {
                "format": 1,
                "network": self.network.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "seconds": self.clock.seconds,
            },
        )

    def train_step(self, example: Example, crop: Tensor) -> float:
        """Take one training step; return the share of the squared error that is left."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm_up(self.step) * cosine_fall(self.clock.progress, RATE_FLOOR)
        left = share_left(example.missing, self.network(*example[:-1]), crop).mean()
        descend(left, self.optimiser, list(self.network.parameters()))
        follow(self.mean.parameters(), self.network.parameters(), self.step)
        self.step += 1
        return float(left.detach())

    def run(self, sampler: ComponentSampler, validation: list[FloatArray], show: bool = False) -> None:
        """Train until the time budget is spent; write the log and the checkpoint on the way. ``show`` draws a progress bar."""
        stream = self.examples.batches(sampler, np.random.default_rng(self.seed + self.step))
        made = ahead(lambda: next(stream))

        def checkpoint(means: dict[str, float]) -> None:
            head = {"step": self.step, "minutes": round(self.clock.minutes, 2)}
            rounded = {name: round(value, 4) for name, value in means.items()}
            append_row(self.folder / "log.csv", head | rounded | self.gains(validation))
            self.save()

        with closing(made):
            train(self.clock, lambda: {"left": self.train_step(*next(made))}, checkpoint, show)

    @torch.no_grad()
    def gains(self, crops: list[FloatArray]) -> dict[str, float]:
        """Return the gain in dB at each validation step, mean over the crops."""
        row = {}
        for quality_step in VALIDATION_STEPS if crops else ():
            found = []
            for coefficients in crops:
                example = self.examples.example(coefficients, quality_step)
                crop = torch.zeros(len(example.plane), dtype=torch.long)
                found.append(-10 * np.log10(float(share_left(example.missing, self.mean(*example[:-1]), crop))))
            row[f"Q{quality_step}"] = round(float(np.mean(found)), 3)
        return row
