"""Training of one codec for all rates: the trainer, its schedule, and the evaluation that its log reports.

The learning rate follows a cosine over the time budget, and the prior is trained in integers for the last part of it. See
``run`` for the clock and the checkpoints.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import Fault
from perigee.models.checkpoint import CheckpointError, brief, read_checkpoint
from perigee.models.codec.codec import Codec, CodecConfig, config_from, loss_of, prior_loss_of
from perigee.models.codec.grow import grow
from perigee.training.data import CropSampler, ImageSet, guessed_lambda
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
    half_precision,
    save_checkpoint,
    train,
    warm_up,
)

STITCHED_PATCH = 64  # side, in pixels, of the patches that crops are coded in when they are synthesised together
# the parts that can be trained alone, and the beginnings of their parameters' names
PARTS = {"synthesis": ("synthesis.", "reconstruction."), "prior": ("prior.", "hyper.", "hyper_prior.")}
RATES, RATES_SHARE = (0.07, 2.0), 0.85  # bits per pixel that most images are trained for, and the share of these images
RATE_FLOOR = 0.03  # of the learning rate, at the end of the budget
HYPER_PRIOR_FACTOR = 15.0  # of the learning rate
VALIDATION_STEPS = (25, 75, 125, 175, 225)  # quality steps
VALIDATION_IMAGES = 12
VALIDATION_SIDE = 256  # pixels
TRANSFORM_CROPS = 1600  # from which the block transform is computed


@dataclass(frozen=True)
class TrainingConfig:
    """How a codec is trained; sizes are in pixels, times in minutes."""

    minutes: float = 90.0
    batch: int = 8
    crop: int = 128
    learning_rate: float = 6e-4
    quantise_from: float = 0.6  # share of the time budget after which the prior is trained in its integers
    cut_share: float = 0.1  # share of images that are decoded as from a segment that was cut short
    stitched_share: float = 0.3  # share of training steps that code crops in patches and synthesise them together
    seed: int = 1
    only: tuple[str, ...] = ()  # the PARTS to train while all else is frozen; empty to train everything
    checkpoint_minutes: float = 5.0


def activity_of(x: Tensor) -> Tensor:
    """Return the activity [N] of images [N, 3, H, W] in 0..1, see :func:`~perigee.training.data.guessed_lambda`."""
    luma = 255 * x.mean(1)
    return 0.5 * (luma.diff(dim=1).abs().mean((1, 2)) + luma.diff(dim=2).abs().mean((1, 2))) + 0.5


def blocks_of(images: ImageSet, rng: np.random.Generator) -> Tensor:
    """Return random blocks float32 [K, 3, 16, 16] in 0..1, from which the block transform is computed."""
    pixels = torch.from_numpy(CropSampler(images).batch(TRANSFORM_CROPS, 128, rng)).reshape(-1, 8, 16, 8, 16, 3)
    return pixels.permute(0, 1, 3, 5, 2, 4).reshape(-1, 3, BLOCK, BLOCK).float() / 255


def _optimiser(codec: Codec, rate: float) -> torch.optim.Optimizer:
    """Return the optimiser of a codec's trainable parameters; ``factor`` of a group multiplies the learning rate."""
    trained = {n: p for n, p in codec.named_parameters() if p.requires_grad}
    fast = [p for n, p in trained.items() if n.startswith("hyper_prior.")]
    groups = [{"params": [p for n, p in trained.items() if not n.startswith("hyper_prior.")], "factor": 1.0}]
    groups += [{"params": fast, "factor": HYPER_PRIOR_FACTOR}] if fast else []
    return torch.optim.Adam(groups, lr=rate, betas=ADAM_BETAS, fused=True)


def _to_tensor(pixels: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return images uint8 [N, H, W, 3] as float32 [N, 3, H, W] in 0..1 on a device."""
    x = torch.from_numpy(np.ascontiguousarray(pixels).copy()).to(device, non_blocking=True)
    return x.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


class Trainer:
    """Trains a codec in a run's folder, which holds ``checkpoint.pt`` and ``log.csv``.

    ``log.csv`` has a row for each checkpoint: ``step`` (training steps so far), ``minutes``; ``bpp`` and ``mse``, the mean rate
    and squared error of the training crops since the last row; ``quantised``, 1 where the prior is trained in its integers;
    for each analysis, by its name, the mean logarithm of the cost of the validation images; and ``Q25`` to ``Q225``, the
    estimated bits per pixel and the PSNR in dB at that quality step for the last analysis.
    """

    def __init__(self, codec_config: CodecConfig, config: TrainingConfig, folder: Path, device: str = "cpu") -> None:
        self.config = config
        self.folder = folder
        self.device = torch.device(device)
        torch.manual_seed(config.seed)
        self.codec = Codec(codec_config).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = Codec(codec_config).to(self.device)  # with averaged weights
        if config.only:
            trained = tuple(prefix for part in config.only for prefix in PARTS[part])
            for name, parameter in self.codec.named_parameters():
                parameter.requires_grad_(name.startswith(trained))
        self.optimiser = _optimiser(self.codec, config.learning_rate)
        self.projects = config.only == ("synthesis",) and set(codec_config.analyses) == {"swift"}
        self.training_step = 0
        self.clock = Clock(config.minutes, config.checkpoint_minutes)
        self.autocast = half_precision(self.device)

    def start(self, images: ImageSet, start_from: Path | None = None) -> None:
        """Resume from the folder's checkpoint where there is one, else start a new run.

        A new run starts from the weights of the checkpoint ``start_from``, whose codec may be smaller (see
        ``models.codec.grow``), or else from the transform codec that suits the images. Raises CheckpointError where the
        checkpoint does not fit, and OSError where it cannot be opened.
        """
        path = self.folder / CHECKPOINT_FILE
        if path.is_file():
            self._resume(path)
            return
        if start_from is not None:
            state = read_checkpoint(start_from, self.device)
            try:
                grow(self.codec, state["mean"], config_from(state["codec_config"]))
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"{start_from}: not a checkpoint of such a codec ({brief(error)})", field=str(start_from)
                ) from error
        else:
            self.codec.start_from_transform(blocks_of(images, np.random.default_rng(self.config.seed)))
        self.mean.load_state_dict(self.codec.state_dict())

    def _resume(self, path: Path) -> None:
        """Load the checkpoint of this run."""
        state = read_checkpoint(path, self.device)
        try:
            self.codec.load_state_dict(state["codec"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.training_step, self.clock.seconds = state["step"], state["seconds"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: the run cannot go on with these options ({brief(error)}); give another run a folder of its own",
                Fault.MISFIT,
                field=str(path),
            ) from error

    def save(self) -> None:
        """Write the checkpoint atomically."""
        save_checkpoint(
            self.folder,
            {
                "format": 1,
                "codec_config": self.codec.config.plain(),
                "training_config": asdict(self.config),
                "codec": self.codec.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.training_step,
                "seconds": self.clock.seconds,
            },
        )

    def _qualities(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw quality steps [N] for images [N, 3, H, W]: mostly those at which an image takes ``RATES`` bits per pixel.

        What an image takes is estimated from its activity. The remaining images get any quality step.
        """
        activity = activity_of(x)
        low, high = (self.codec.config.quality_of(guessed_lambda(rate, activity)) for rate in RATES)
        drawn = [torch.rand(len(x), generator=generator).to(x.device) for _ in range(3)]
        there = low + drawn[0] * (high - low)
        return torch.where(drawn[1] < RATES_SHARE, there, P.QUALITY_STEPS * drawn[2]).round()

    def train_step(self, x: Tensor, generator: torch.Generator) -> Figures:
        """Take one training step on images [N, 3, H, W] in 0..1; return bits per pixel and squared error, means of the batch."""
        codec, config, progress = self.codec, self.config, self.clock.progress
        codec.prior.quantised = progress >= config.quantise_from or bool(config.only)
        for group in self.optimiser.param_groups:
            fall = warm_up(self.training_step) * cosine_fall(progress, RATE_FLOOR)
            group["lr"] = config.learning_rate * group["factor"] * fall
        quality = self._qualities(x, generator)
        kept = None
        if config.cut_share:
            count = len(codec.config.prior.slices)
            cut = torch.rand(len(x), generator=generator) < config.cut_share
            kept = torch.where(cut, torch.randint(0, count, (len(x),), generator=generator), count).to(self.device)
        stitched = torch.rand((), generator=generator).item() < config.stitched_share
        patch = STITCHED_PATCH if stitched else None
        if config.only == ("prior",):
            loss, bpp, mse = prior_loss_of(codec, x, quality, self.autocast)
        else:
            output = codec(x, quality, autocast=self.autocast, slices_kept=kept, patch=patch)
            loss, bpp, mse = loss_of(output, x, codec.config.lambda_of(quality))
        descend(loss, self.optimiser, [p for p in codec.parameters() if p.requires_grad])
        follow(self.mean.parameters(), codec.parameters(), self.training_step)
        self.training_step += 1
        return {"bpp": bpp.detach().mean().item(), "mse": mse.detach().mean().item()}

    def run(self, training: ImageSet, validation: ImageSet, weights: dict[str, float], show: bool) -> None:
        """Train until the time budget is spent, and write the log and the checkpoint on the way.

        Nothing is done where the budget is spent already. ``weights`` multiply the probabilities of sources by name; ``show``
        draws a progress bar on stderr.
        """
        if self.clock.spent:
            return
        if self.projects:
            self.codec.enable_projection()
            self.mean.enable_projection()
        sampler, seed = CropSampler(training, weights), self.config.seed + self.training_step
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        batches = ahead(lambda: sampler.batch(self.config.batch, self.config.crop, rng))

        def checkpoint(means: dict[str, float]) -> None:
            self._log(means, validation)
            self.save()

        with closing(batches):
            train(
                self.clock, lambda: self.train_step(_to_tensor(next(batches), self.device), generator), checkpoint, show
            )

    def _log(self, means: dict[str, float], validation: ImageSet) -> None:
        """Evaluate the averaged weights and append a row to the log; without validation images its cells are empty."""
        quantised, analyses = self.codec.prior.quantised, self.codec.config.analyses
        if validation.images:
            results = {name: evaluate(self.mean, validation, quantised, name, VALIDATION_IMAGES) for name in analyses}
            measured: dict[str, Any] = {
                **{name: round(float(np.mean([r["log_cost"] for r in rows])), 4) for name, rows in results.items()},
                **{f"Q{r['quality_step']}": f"{r['bpp']:.4f}/{r['psnr']:.2f}" for r in results[analyses[-1]]},
            }
        else:
            measured = dict.fromkeys((*analyses, *(f"Q{step}" for step in VALIDATION_STEPS)), "")
        row = {
            "step": self.training_step,
            "minutes": round(self.clock.minutes, 2),
            "bpp": round(means["bpp"], 4),
            "mse": round(means["mse"], 6),
            "quantised": int(self.codec.prior.quantised),
            **measured,
        }
        append_row(self.folder / "log.csv", row)


@torch.no_grad()
def evaluate(
    codec: Codec, images: ImageSet, quantised: bool, analysis: str, limit: int | None = None
) -> list[dict[str, float]]:
    """Measure a codec on the centres of the first ``limit`` images, at most 256x256 pixels, at five quality steps.

    Each row has ``quality_step`` and three means over the images: ``log_cost``, the natural logarithm of the cost
    ``bpp + lambda * 255**2 * MSE``; ``bpp``, the estimated bits per pixel (code length without the container); and ``psnr``
    in dB. ``quantised`` measures with the prior in its integers.
    """
    device = next(codec.parameters()).device
    codec.prior.quantised = quantised
    rows = []
    for quality_step in VALIDATION_STEPS:
        sums = np.zeros(3)
        chosen = images.images[:limit]
        for image in chosen:
            side = min(VALIDATION_SIDE, min(image.shape[:2]) // 64 * 64)
            top, left = ((n - side) // 2 for n in image.shape[:2])
            x = _to_tensor(image[None, top : top + side, left : left + side], device)
            quality = torch.full((1,), float(quality_step), device=device)
            out = codec(x, quality, noise=False, analysis=analysis)
            lam = codec.config.lambda_of(quality)
            _, bpp, mse = loss_of(out, x, lam)
            rounded = (out.image.clamp(0, 1) * 255).round() / 255
            psnr = -10 * math.log10(max(float((rounded - x).square().mean()), 1e-10))
            sums += (math.log(float(bpp + lam * 65025 * mse)), float(bpp), psnr)
        cost_mean, bpp_mean, psnr_mean = sums / max(len(chosen), 1)
        rows.append({"quality_step": quality_step, "log_cost": cost_mean, "bpp": bpp_mean, "psnr": psnr_mean})
    return rows
