"""Training of an enhancer: the enhancement network alone, or with a prior.

Stage I of LDM-RSIC trains the network with the oracle's prior, stage II starts from its weights and trains what guesses that prior,
together with the network. See ``run`` for the clock and the checkpoints, and ``degraded`` for the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perigee.models.checkpoint import read_checkpoint, read_weights
from perigee.models.enhancement.network import COMPACT, Preset
from perigee.models.enhancement.prior import TOKEN, Enhancer, Kind
from perigee.training.bands import Raster
from perigee.training.data import ImageSet
from perigee.training.degraded import Pairs
from perigee.training.enhancement_strength import fitted
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

CROPS, SIDE = 8, 128  # of a training step
POOL = 600  # pairs
PRIOR_WEIGHT = 0.1  # of the distance between the guessed and the true prior
RATE_FLOOR = 0.02  # of the learning rate, at the end
DOUBTS = (-9.0, 0.0)  # logarithms of an error, of images in 0..1
ERROR_FLOOR = 2e-6  # squared error, of images in 0..1: what the input has less of weighs less


def share_left(original: Tensor, decoded: Tensor, added: Tensor) -> Tensor:
    """Return which share of each image's squared error is left, [N]."""
    missing = original - decoded
    after, before = ((x.square().mean((1, 2, 3))) for x in (missing - added, missing))
    return after / (before + ERROR_FLOOR)


def misfit(original: Tensor, decoded: Tensor, added: Tensor, doubt: Tensor) -> Tensor:
    """Return the negative log likelihood of the error that is left, if it has a Laplace distribution with the expected width."""
    error = (original - decoded - added.detach()).float().abs().mean(1, keepdim=True)
    doubt = doubt.float().clamp(*DOUBTS)
    out: Tensor = (error * torch.exp(-doubt) + doubt).mean()
    return out


class EnhancementTrainer:
    """Trains an enhancer in a run's folder, which holds ``checkpoint.pt`` and ``log.csv``."""

    def __init__(
        self,
        folder: Path,
        minutes: float,
        kind: Kind = "none",
        preset: Preset = COMPACT,
        rate: float = 6e-4,
        seed: int = 1,
        start_from: Path | None = None,
        half: bool = False,
    ) -> None:
        """Resume from the folder's checkpoint where there is one, else take what fits of the weights of another run or of an exported
        enhancer (``start_from``). ``half`` computes convolutions and matrix products in bfloat16; weights stay in float32.

        Raises CheckpointError where a checkpoint does not fit.
        """
        torch.manual_seed(seed)
        self.folder, self.rate, self.seed, self.preset, self.half = folder, rate, seed, preset, half
        self.strength: dict[str, Any] = {}  # by codec, once it was fitted
        self.interval: dict[str, Any] = {}
        self.network, self.mean = Enhancer(preset, kind), Enhancer(preset, kind)
        if start_from is not None:
            self.network.load_state_dict(read_weights(start_from), strict=False)
        if kind in ("regressed", "generated") and self.network.oracle is not None:
            self.network.oracle.requires_grad_(False)
        self.mean.load_state_dict(self.network.state_dict())
        for network in (self.network, self.mean):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self._trained, lr=rate, betas=ADAM_BETAS)
        self.clock = Clock(minutes, 5.0)
        self.step = 0
        path = folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path, torch.device("cpu"))
            self.network.load_state_dict(state["network"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.seconds = state["step"], state["seconds"]
            self.strength, self.interval = state.get("strength", {}), state.get("interval", {})

    def save(self) -> None:
        """Write the checkpoint atomically."""
        save_checkpoint(
            self.folder,
            {
                "format": 1,
                "prior": self.network.kind,
                "preset": asdict(self.preset),
                "strength": self.strength,
                "interval": self.interval,
                "network": self.network.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "seconds": self.clock.seconds,
            },
        )

    def train_step(self, originals: Any, decoded: Any, conditions: Any) -> float:
        """Take one training step; return the share of the squared error that is left."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm_up(self.step) * cosine_fall(self.clock.progress, RATE_FLOOR)
        wanted, image = (torch.from_numpy(x).float() / 255 for x in (originals, decoded))
        image, condition = image.contiguous(memory_format=torch.channels_last), torch.from_numpy(conditions)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            left, further = self.costs(wanted, image, condition)
        descend(left + further, self.optimiser, self._trained)
        follow(self.mean.parameters(), self.network.parameters(), self.step)
        self.step += 1
        return float(left.detach())

    def fit_strength(self, images: ImageSet, rasters: Sequence[Raster] = ()) -> None:
        """Find how much of what is added should be taken, and how wide the intervals are, on images and multi-band files that were held out, and
        keep both in the checkpoint."""
        if self.network.kind != "oracle" and not self.strength:
            self.strength, self.interval = fitted(self.mean.eval(), images, rasters)
            self.save()

    def costs(self, wanted: Tensor, image: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of the squared error that is left, and what else is made small: how far the guessed prior is from the oracle's,
        and how badly the error that is expected fits the one that is left."""
        enhancer = self.network
        prior, apart = None, torch.zeros(())
        if enhancer.kind != "none":
            true = enhancer.true_prior(wanted, image, condition)
            prior = true
            if enhancer.kind != "oracle":
                noise = torch.randn(len(image), enhancer.tokens, image.shape[2] // TOKEN, image.shape[3] // TOKEN)
                prior = enhancer.guessed_prior(image, condition, noise)
                apart = (prior - true.detach()).abs().mean()
        added, doubt = enhancer.network(image, condition, prior)
        return share_left(wanted, image, added).mean(), PRIOR_WEIGHT * apart + misfit(wanted, image, added, doubt)

    def run(self, pairs: Pairs, show: bool = False) -> None:
        """Train until the time budget is spent; write the log and the checkpoint on the way. ``show`` draws a progress bar."""
        batches = ahead(lambda: pairs.batch(CROPS, SIDE))

        def checkpoint(means: dict[str, float]) -> None:
            head = {"step": self.step, "minutes": round(self.clock.minutes, 2)}
            append_row(self.folder / "log.csv", head | {name: round(value, 4) for name, value in means.items()})
            self.save()

        with closing(batches):
            train(self.clock, lambda: {"left": self.train_step(*next(batches))}, checkpoint, show)
