"""Training of the prior of components: on fixed symbols, for all rates, in integers for the last part of the time.

See ``run`` for the clock and the checkpoints, and ``bands`` for the crops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
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
    Figures,
    ahead,
    append_row,
    cosine_fall,
    descend,
    follow,
    save_checkpoint,
    train,
    warm_up,
)

PLANES = 6  # in a training step, at least
SIDES = (64, 128, 192)  # pixels
RATES, RATES_SHARE = (0.004, 4.0), 0.85  # bits a sample that most crops are coded at, and the share of these crops
BITS_OF_ERROR = 1 / 0.1155  # a squared error of one step is worth so many bits where the rate is high
COST_FLOOR = 300.0  # bits
STATISTICS_CROPS = 800
VALIDATION_STEPS = (20, 60, 90, 120, 160, 200, 240)


class Batch(NamedTuple):
    """Planes of several crops: coefficients [N, H, W, 256] in steps, Q, component and crop number of each [N]."""

    y: Tensor
    quality_step: Tensor
    component: Tensor
    crop: Tensor


def drawn_quality(
    coefficients: FloatArray,
    rng: np.random.Generator,
    rates: tuple[float, float] = RATES,
    share: float = RATES_SHARE,
) -> int:
    """Return a quality step at which the crop takes a rate that is drawn log-uniformly from ``rates``, for this share of the draws."""
    if rng.random() > share:
        return int(rng.integers(P.QUALITY_STEPS + 1))
    sizes = np.abs(coefficients.reshape(-1)[:: max(1, coefficients.size // 8192)])
    steps = np.arange(0, P.QUALITY_STEPS + 1, 10)
    guessed = [
        float(np.log2(1 + 1.5 * (sizes * 2 ** ((q - WHOLE_STEP) / STEPS_PER_OCTAVE)) ** 2).mean() / 2) for q in steps
    ]
    wanted = np.exp(rng.uniform(*np.log(rates)))
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


class Statistics(NamedTuple):
    """What a prior starts from: the order of the channels, the strongest first; typical and large magnitudes of latents, in steps, at each
    quality step and channel [251, 256]."""

    order: np.ndarray[Any, Any]
    levels: np.ndarray[Any, Any]
    amplitudes: np.ndarray[Any, Any]


def statistics_of(sampler: ComponentSampler, rng: np.random.Generator) -> Statistics:
    """Return the statistics of random crops; ``sampler`` must have the order 0..255."""
    crops = [sampler.crop(SIDES[-1], rng) for _ in range(STATISTICS_CROPS)]
    power = np.stack([np.square(crop).mean((0, 2, 3)) for crop in crops])
    order = np.argsort(-np.log(power + 1e-9).mean(0), kind="stable")
    sizes = np.concatenate([np.abs(crop).mean((2, 3)) for crop in crops])[:, order]
    largest = np.concatenate([np.abs(crop).max((2, 3)) for crop in crops])[:, order]
    per_step = 2.0 ** ((np.arange(P.QUALITY_STEPS + 1) - WHOLE_STEP) / STEPS_PER_OCTAVE)[:, None]
    typical = np.exp(np.log(sizes + 1e-6).mean(0))
    return Statistics(order, typical * per_step, np.percentile(largest, 99, axis=0) * per_step)


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

    def start(self, statistics: Statistics, start_from: Path | None = None) -> None:
        """Resume from the folder's checkpoint where there is one, else start with the statistics, or from another run's weights.

        Raises CheckpointError where a checkpoint does not fit.
        """
        path = self.folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path, torch.device("cpu"))
            self.codec.load_state_dict(state["codec"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.seconds = state["step"], state["seconds"]
            return
        base, shifts = tables_from(statistics.amplitudes, statistics.levels)
        for codec in (self.codec, self.mean):
            if start_from is not None:
                codec.load_state_dict(read_checkpoint(start_from, torch.device("cpu"))["mean"])
                continue
            codec.order.copy_(torch.from_numpy(statistics.order))
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

    def train_step(self, batch: Batch) -> Figures:
        """Take one training step; return bits a sample and the logarithm of the cost."""
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
        bits = float((costs.bits.detach() / costs.samples).mean())
        return {"bits": bits, "cost": float(torch.log(cost.detach()).mean())}

    def run(self, sampler: ComponentSampler, validation: list[FloatArray], show: bool = False) -> None:
        """Train until the time budget is spent; write the log and the checkpoint on the way. ``show`` draws a progress bar."""
        stream = batches(sampler, np.random.default_rng(self.seed + self.step))
        made = ahead(lambda: next(stream))

        def checkpoint(means: dict[str, float]) -> None:
            head = {"step": self.step, "minutes": round(self.clock.minutes, 2)}
            measured = evaluate(self.mean, validation, self.codec.prior.quantised) if validation else {}
            append_row(self.folder / "log.csv", head | {name: round(v, 4) for name, v in means.items()} | measured)
            self.save()

        with closing(made):
            train(self.clock, lambda: self.train_step(next(made)), checkpoint, show)


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
