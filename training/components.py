"""Training of the prior of components: on fixed symbols, for all rates, in integers for the last part of the time.

See ``run`` for the clock and the checkpoints, and ``bands`` for the crops.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream import prior as P
from perigee.bitstream.arrays import FloatArray
from perigee.models.checkpoint import read_checkpoint
from perigee.models.codec.component import (
    STEPS_PER_OCTAVE,
    WHOLE_STEP,
    Coded,
    ComponentCodec,
    quantised,
    references_of,
    step_of,
    tables_from,
)
from perigee.training.bands import ComponentSampler
from perigee.training.loop import HYPER_PRIOR_FACTOR, RATE_FLOOR
from perigee.training.run import (
    ADAM_BETAS,
    CHECKPOINT_FILE,
    Clock,
    append_row,
    cosine_fall,
    descend,
    follow,
    save_checkpoint,
    warm_up,
)

PLANES = 6  # in a training step, at least
SIDES = (64, 128, 192)  # pixels
RATES, RATES_SHARE = (0.004, 4.0), 0.85  # bits a sample that most crops are coded at, and the share of these crops
BITS_OF_ERROR = 1 / 0.1155  # a squared error of one step is worth so many bits where the rate is high
COST_FLOOR = 300.0  # bits
VALIDATION_STEPS = (20, 60, 90, 120, 160, 200, 240)


class Batch(NamedTuple):
    """Planes of several crops: coefficients [N, H, W, 256] in steps, Q, component and crop number of each [N]."""

    y: Tensor
    quality_step: Tensor
    component: Tensor
    crop: Tensor


def drawn_quality(coefficients: FloatArray, rng: np.random.Generator) -> int:
    """Return a quality step at which the crop takes a rate that is drawn log-uniformly from ``RATES``, mostly."""
    if rng.random() > RATES_SHARE:
        return int(rng.integers(P.QUALITY_STEPS + 1))
    sizes = np.abs(coefficients.reshape(-1)[:: max(1, coefficients.size // 8192)])
    steps = np.arange(0, P.QUALITY_STEPS + 1, 10)
    guessed = [
        float(np.log2(1 + 1.5 * (sizes * 2 ** ((q - WHOLE_STEP) / STEPS_PER_OCTAVE)) ** 2).mean() / 2) for q in steps
    ]
    wanted = np.exp(rng.uniform(*np.log(RATES)))
    return int(
        np.clip(np.interp(np.log(wanted), np.log(np.maximum(guessed, 1e-6)), steps) + rng.uniform(-5, 5), 0, 250)
    )


def batch_of(crops: list[tuple[FloatArray, int]]) -> Batch:
    """Return crops of one size, each with its quality step, as one batch."""
    quality = np.concatenate([np.full(len(c), q) for c, q in crops])
    scale = step_of(torch.from_numpy(quality).double())[:, None, None, None]
    y = (torch.from_numpy(np.concatenate([c for c, _ in crops])).double() / scale).float()
    y = y.permute(0, 2, 3, 1).contiguous()
    return Batch(
        y,
        torch.from_numpy(quality),
        torch.from_numpy(np.concatenate([np.arange(len(c)) for c, _ in crops])),
        torch.from_numpy(np.concatenate([np.full(len(c), i) for i, (c, _) in enumerate(crops)])),
    )


def batches(sampler: ComponentSampler, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield batches for ever."""
    waiting: dict[int, list[tuple[FloatArray, int]]] = {}
    while True:
        coefficients = sampler.crop(SIDES[-1], rng)
        found = waiting.setdefault(coefficients.shape[2], [])
        found.append((coefficients, drawn_quality(coefficients, rng)))
        area = (16 * coefficients.shape[2] / SIDES[-1]) ** 2
        if sum(len(c) for c, _ in found) * area >= PLANES:
            yield batch_of(waiting.pop(coefficients.shape[2]))


class Costs(NamedTuple):
    """Of each crop [crops]: bits, squared error in steps, and the number of samples."""

    bits: Tensor
    error: Tensor
    samples: Tensor


def costs_of(codec: ComponentCodec, batch: Batch, noise: bool = True, strength: float = 0.1) -> tuple[Costs, Coded]:
    """Code a batch and sum up what each crop takes."""
    q = quantised(batch.y, strength)
    references = torch.cat([references_of(q[batch.crop == i]) for i in range(int(batch.crop.max()) + 1)])
    coded = codec(batch.y, q, batch.quality_step, batch.component, references, noise)
    error = (codec.reconstructed(q, coded.mean, coded.spread) - batch.y).square().flatten(1).sum(1)

    def per_crop(values: Tensor) -> Tensor:
        return torch.zeros(int(batch.crop.max()) + 1).index_add(0, batch.crop, values)

    size = torch.full_like(error, float(batch.y[0].numel()))
    return Costs(per_crop(coded.bits_y + coded.bits_z), per_crop(error), per_crop(size)), coded


class ComponentTrainer:
    """Trains a prior in a run's folder, which holds ``checkpoint.pt`` and ``log.csv``."""

    def __init__(
        self, folder: Path, minutes: float, rate: float = 1e-3, quantise_from: float = 0.6, seed: int = 1
    ) -> None:
        torch.manual_seed(seed)
        self.folder, self.rate, self.quantise_from, self.seed = folder, rate, quantise_from, seed
        self.codec, self.mean = ComponentCodec(), ComponentCodec()
        self.mean.load_state_dict(self.codec.state_dict())
        fast = [p for n, p in self.codec.named_parameters() if n.startswith("hyper_prior.")]
        slow = [p for n, p in self.codec.named_parameters() if not n.startswith("hyper_prior.")]
        self.optimiser = torch.optim.Adam(
            [{"params": slow, "factor": 1.0}, {"params": fast, "factor": HYPER_PRIOR_FACTOR}],
            lr=rate, betas=ADAM_BETAS, fused=True,
        )  # fmt: skip
        self.clock = Clock(minutes, 5.0)
        self.step = 0

    def start(
        self, order: np.ndarray[Any, Any], levels: np.ndarray[Any, Any], amplitudes: np.ndarray[Any, Any]
    ) -> None:
        """Resume from the folder's checkpoint where there is one, else start with these statistics."""
        path = self.folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path, torch.device("cpu"))
            self.codec.load_state_dict(state["codec"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.seconds = state["step"], state["seconds"]
            return
        for codec in (self.codec, self.mean):
            codec.order.copy_(torch.from_numpy(order))
            base, shifts = tables_from(amplitudes, levels)
            codec.prior.base.copy_(base)
            codec.prior.shifts.copy_(shifts)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        save_checkpoint(
            self.folder,
            {
                "format": 1,
                "codec": self.codec.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "seconds": self.clock.seconds,
            },
        )

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """Take one training step; return bits a sample and the loss."""
        progress = self.clock.progress
        self.codec.prior.quantised = progress >= self.quantise_from
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * group["factor"] * warm_up(self.step) * cosine_fall(progress, RATE_FLOOR)
        costs, _ = costs_of(self.codec, batch)
        cost = costs.bits + BITS_OF_ERROR * costs.error
        loss = (cost / (cost.detach() + COST_FLOOR)).mean()
        descend(loss, self.optimiser, list(self.codec.parameters()))
        follow(self.mean.parameters(), self.codec.parameters(), self.step)
        self.step += 1
        return float((costs.bits.detach() / costs.samples).mean()), float(torch.log(cost.detach()).mean())

    def run(self, sampler: ComponentSampler, validation: list[FloatArray]) -> None:
        """Train until the time budget is spent; write the log and the checkpoint on the way."""
        if self.clock.spent:
            return
        stream = batches(sampler, np.random.default_rng(self.seed + self.step))
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(next, stream)
            self.clock.restart()
            sums, counted = np.zeros(2), 0
            while True:
                batch = following.result()
                following = pool.submit(next, stream)
                sums += self.train_step(batch)
                counted += 1
                if self.clock.tick():
                    append_row(
                        self.folder / "log.csv",
                        {
                            "step": self.step,
                            "minutes": round(self.clock.minutes, 2),
                            "bits": round(sums[0] / counted, 4),
                            "cost": round(sums[1] / counted, 4),
                            **evaluate(self.mean, validation, self.codec.prior.quantised),
                        },
                    )
                    self.save()
                    sums, counted = np.zeros(2), 0
                    if self.clock.spent:
                        return
                    self.clock.restart()


@torch.no_grad()
def evaluate(codec: ComponentCodec, crops: list[FloatArray], integers: bool, strength: float = 0.1) -> dict[str, Any]:
    """Return the mean logarithm of the cost of crops, and bits a sample and error in dB at each validation step."""
    codec.prior.quantised = integers
    row: dict[str, Any] = {}
    logs = []
    for quality_step in VALIDATION_STEPS:
        bits, decibels = [], []
        for crop in crops:
            batch = batch_of([(crop, quality_step)])
            costs, _ = costs_of(codec, batch, noise=False, strength=strength)
            logs.append(float(torch.log(costs.bits + BITS_OF_ERROR * costs.error)))
            bits.append(float(costs.bits / costs.samples))
            step = float(step_of(torch.tensor(float(quality_step))))
            decibels.append(-10 * np.log10(float(costs.error / costs.samples) * step**2))
        row[f"Q{quality_step}"] = f"{np.mean(bits):.4f}/{np.mean(decibels):.2f}"
    return {"log_cost": round(float(np.mean(logs)), 5), **row}
