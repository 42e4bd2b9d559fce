"""Training of the synthesis of components, on the integers that a trained prior predicts. See ``run`` for the clock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.lapped import synthesis_matrix
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.models.checkpoint import read_checkpoint
from perigee.models.codec.component import SPREAD_MIN, SPREADS_PER_OCTAVE, ComponentCodec, quantised, references_of
from perigee.models.codec.component_synthesis import ComponentSynthesis
from perigee.training.bands import ComponentSampler
from perigee.training.components import VALIDATION_STEPS, Batch, batch_of, batches
from perigee.training.loop import RATE_FLOOR
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
    warm_up,
)


class Example(NamedTuple):
    """What the synthesis sees, and the error that it should remove, in steps. Planes are [N, 1, H, W]."""

    latents: Tensor
    scales: Tensor
    plane: Tensor
    guide: Tensor
    quality: Tensor
    missing: Tensor


def planes_of(y: Tensor, order: Tensor) -> Tensor:
    """Return planes [N, 1, 16H, 16W] of coefficients [N, H, W, 256]."""
    n, rows, cols, latents = y.shape
    blocks = torch.zeros_like(y)
    blocks[..., order] = y
    plane = blocks.reshape(n, rows, cols, 16, 16).permute(0, 1, 3, 2, 4).reshape(n, 16 * rows, 16 * cols)
    left, right = (torch.from_numpy(synthesis_matrix(16 * size)).float() for size in (rows, cols))
    return (left @ plane @ right.T)[:, None]


@torch.no_grad()
def example_of(codec: ComponentCodec, batch: Batch) -> Example:
    """Code a batch and return what the ground has of it."""
    q = quantised(batch.y)
    crops = int(batch.crop.max()) + 1
    references = torch.cat([references_of(q[batch.crop == i]) for i in range(crops)])
    coded = codec(batch.y, q, batch.quality_step, batch.component, references, noise=False)
    latents = codec.reconstructed(q, coded.mean, coded.spread)
    plane = planes_of(latents, codec.order)
    firsts = torch.tensor([int(torch.nonzero(batch.crop == i)[0]) for i in range(crops)])
    guide = plane[firsts][batch.crop] * (batch.component > 0)[:, None, None, None]
    index = SPREADS_PER_OCTAVE * torch.log2(coded.spread / SPREAD_MIN)
    rows, cols = q.shape[1:3]
    quality = (batch.quality_step / QUALITY_STEPS)[:, None, None, None].expand(-1, 1, rows, cols)
    missing = planes_of(batch.y - latents, codec.order)
    return Example(latents.permute(0, 3, 1, 2), index.permute(0, 3, 1, 2), plane, guide, quality, missing)


def share_left(missing: Tensor, added: Tensor, crop: Tensor) -> Tensor:
    """Return which share of each crop's squared error is left, [crops]."""
    count = int(crop.max()) + 1

    def per_crop(x: Tensor) -> Tensor:
        return torch.zeros(count).index_add(0, crop, x.square().flatten(1).mean(1))

    return per_crop(missing - added) / (per_crop(missing) + 1e-4)


class SynthesisTrainer:
    """Trains a synthesis in a run's folder, which holds ``checkpoint.pt`` and ``log.csv``."""

    def __init__(self, folder: Path, prior: Path, minutes: float, rate: float = 1e-3, seed: int = 1) -> None:
        """``prior`` is the checkpoint of a component codec, which may be of a run that goes on."""
        torch.manual_seed(seed)
        self.folder, self.prior, self.rate, self.seed = folder, prior, rate, seed
        self.codec = ComponentCodec()
        self.network, self.mean = ComponentSynthesis(), ComponentSynthesis()
        self.mean.load_state_dict(self.network.state_dict())
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=rate, betas=ADAM_BETAS, fused=True)
        self.clock = Clock(minutes, 5.0)
        self.step = 0
        self.autocast = half_precision(torch.device("cpu"))
        path = folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path, torch.device("cpu"))
            self.network.load_state_dict(state["network"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.seconds = state["step"], state["seconds"]

    def refresh(self) -> None:
        """Take the prior's present weights."""
        self.codec.load_state_dict(read_checkpoint(self.prior, torch.device("cpu"))["mean"])

    def added(self, network: ComponentSynthesis, example: Example) -> Tensor:
        """Return what a network adds."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out: Tensor = network(*example[:-1]).float()
        return out

    def train_step(self, batch: Batch) -> float:
        """Take one training step; return the share of the squared error that is left."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm_up(self.step) * cosine_fall(self.clock.progress, RATE_FLOOR)
        example = example_of(self.codec, batch)
        left = share_left(example.missing, self.added(self.network, example), batch.crop)
        descend(left.mean(), self.optimiser, list(self.network.parameters()))
        follow(self.mean.parameters(), self.network.parameters(), self.step)
        self.step += 1
        return float(left.detach().mean())

    def run(self, sampler: ComponentSampler, validation: list[FloatArray]) -> None:
        """Train until the time budget is spent; write the log and the checkpoint on the way."""
        if self.clock.spent:
            return
        self.refresh()
        stream = batches(sampler, np.random.default_rng(self.seed + self.step))
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(next, stream)
            self.clock.restart()
            total, counted = 0.0, 0
            while True:
                batch = following.result()
                following = pool.submit(next, stream)
                total += self.train_step(batch)
                counted += 1
                if self.clock.tick():
                    row = {
                        "step": self.step,
                        "minutes": round(self.clock.minutes, 2),
                        "left": round(total / counted, 4),
                    }
                    append_row(self.folder / "log.csv", {**row, **self.evaluate(validation)})
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
                    total, counted = 0.0, 0
                    if self.clock.spent:
                        return
                    self.refresh()
                    self.clock.restart()

    @torch.no_grad()
    def evaluate(self, crops: list[FloatArray]) -> dict[str, Any]:
        """Return the gain in dB at each validation step, mean over the crops."""
        row = {}
        for quality_step in VALIDATION_STEPS:
            gains = []
            for crop in crops:
                batch = batch_of([(crop, quality_step)])
                example = example_of(self.codec, batch)
                gains.append(
                    -10 * np.log10(float(share_left(example.missing, self.added(self.mean, example), batch.crop)))
                )
            row[f"Q{quality_step}"] = round(float(np.mean(gains)), 3)
        return row
