"""Training of one codec for all rates: the loss, the schedule, resuming, and its log.

The schedule is driven by the time budget, not by steps: the learning rate follows a cosine over ``minutes`` of wall
time, summed over all resumed parts, and quantisation of the prior switches on for the last part. A checkpoint holds
everything (weights, their running mean, the optimiser, the clock), so a run can be stopped at any moment.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK
from perigee.models.codec.codec import Codec, CodecConfig, config_from, loss_of, prior_loss_of
from perigee.models.codec.grow import grow
from perigee.training.data import CropSampler, ImageSet, guessed_lambda

STITCHED_PATCH = 64
# parts that can be trained alone: what no stream depends on, and what only predicts the symbols
PARTS = {"synthesis": ("synthesis.", "reconstruction."), "prior": ("prior.", "hyper.", "hyper_prior.")}
RATES, RATES_SHARE = (0.07, 2.0), 0.85
VALIDATION_STEPS = (25, 75, 125, 175, 225)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; sizes in pixels, times in minutes."""

    minutes: float = 90.0
    batch: int = 8
    crop: int = 128
    learning_rate: float = 6e-4
    quantise_from: float = 0.6  # share of the time budget after which the prior is trained in its integers
    cut_share: float = 0.1  # share of samples trained as segments cut short
    stitched_share: float = 0.3  # share of steps whose crops are coded in patches and synthesised whole, as scenes are
    seed: int = 1
    only: tuple[str, ...] = ()  # PARTS to train, all else frozen; or everything
    checkpoint_minutes: float = 5.0


def _optimiser(codec: Codec, rate: float) -> torch.optim.Optimizer:
    trained = {n: p for n, p in codec.named_parameters() if p.requires_grad}
    fast = [p for n, p in trained.items() if n.startswith("hyper_prior.")]
    groups = [{"params": [p for n, p in trained.items() if not n.startswith("hyper_prior.")], "factor": 1.0}]
    groups += [{"params": fast, "factor": 15.0}] if fast else []
    return torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99), fused=True)


def half_precision(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: every GPU, and CPUs with AVX-512; emulated it is ten times slower."""
    return device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()


def _to_tensor(pixels: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(pixels).copy()).to(device, non_blocking=True)
    return x.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def _batches(sampler: CropSampler, config: TrainingConfig, seed: int) -> Iterator[np.ndarray[Any, Any]]:
    """Crops, the next batch prepared while the last is used."""
    rng = np.random.default_rng(seed)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(sampler.batch, config.batch, config.crop, rng)
        while True:
            ready = following.result()
            following = pool.submit(sampler.batch, config.batch, config.crop, rng)
            yield ready


class Trainer:
    """State of a run in ``folder``: ``checkpoint.pt``, ``log.csv``."""

    def __init__(self, codec_config: CodecConfig, config: TrainingConfig, folder: Path, device: str = "cpu") -> None:
        self.config = config
        self.folder = folder
        self.device = torch.device(device)
        torch.manual_seed(config.seed)
        self.codec = Codec(codec_config).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = Codec(codec_config).to(self.device)
        if config.only:
            trained = tuple(prefix for part in config.only for prefix in PARTS[part])
            for name, parameter in self.codec.named_parameters():
                parameter.requires_grad_(name.startswith(trained))
        self.optimiser = _optimiser(self.codec, config.learning_rate)
        self.holds = config.only == ("synthesis",) and set(codec_config.presets) == {"swift"}
        self.step, self.seconds = 0, 0.0
        self.autocast = half_precision(self.device)

    def start(self, images: ImageSet, start_from: Path | None = None) -> None:
        """Resume from the folder's checkpoint; else begin with another run's weights, or the transform codec of the data.

        The other run's codec may be smaller, see ``models.codec.grow``. Raises ValueError where it does not fit into this one.
        """
        path = self.folder / "checkpoint.pt"
        if path.is_file():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.codec.load_state_dict(state["codec"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]
            return
        if start_from is not None:
            try:
                state = torch.load(start_from, map_location=self.device, weights_only=True)
                grow(self.codec, state["mean"], config_from(state["codec_config"]))
            except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{start_from}: not a checkpoint of such a codec ({error})") from error
            self.mean.load_state_dict(self.codec.state_dict())
            return
        rng = np.random.default_rng(self.config.seed)
        sampler = CropSampler(images)
        blocks = torch.from_numpy(sampler.batch(1600, 128, rng)).reshape(-1, 8, 16, 8, 16, 3)
        blocks = blocks.permute(0, 1, 3, 5, 2, 4).reshape(-1, 3, BLOCK, BLOCK).float() / 255
        self.codec.start_from_transform(blocks)
        self.mean.load_state_dict(self.codec.state_dict())

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "format": 1,
            "codec_config": asdict(self.codec.config),
            "training_config": asdict(self.config),
            "codec": self.codec.state_dict(),
            "mean": self.mean.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.folder / "checkpoint.pt.part"
        torch.save(state, part)
        os.replace(part, self.folder / "checkpoint.pt")

    def _rate_factor(self, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))

    def _qualities(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Q [N] for images [N, 3, H, W]: mostly those at which the image takes ``RATES`` bits per pixel, else any.

        What an image takes is guessed from the mean absolute difference of neighbouring pixels, to a factor of 1.4.
        """
        luma = 255 * x.mean(1)
        activity = 0.5 * (luma.diff(dim=1).abs().mean((1, 2)) + luma.diff(dim=2).abs().mean((1, 2))) + 0.5
        low, high = (self.codec.config.quality_of(guessed_lambda(rate, activity)) for rate in RATES)
        drawn = [torch.rand(len(x), generator=generator).to(x.device) for _ in range(3)]
        there = low + drawn[0] * (high - low)
        return torch.where(drawn[1] < RATES_SHARE, there, P.QUALITY_STEPS * drawn[2]).round()

    def train_step(self, x: Tensor, generator: torch.Generator) -> tuple[float, float]:
        """One step on images [N, 3, H, W]; returns bpp and MSE, means over the batch."""
        codec, progress = self.codec, self.seconds / (60 * self.config.minutes)
        codec.prior.quantised = progress >= self.config.quantise_from or bool(self.config.only)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * group["factor"] * self._rate_factor(progress)
        quality = self._qualities(x, generator)
        kept = None
        if self.config.cut_share:
            count = len(codec.config.prior.slices)
            cut = torch.rand(len(x), generator=generator) < self.config.cut_share
            kept = torch.where(cut, torch.randint(0, count, (len(x),), generator=generator), count).to(self.device)
        stitched = torch.rand((), generator=generator).item() < self.config.stitched_share
        patch = STITCHED_PATCH if stitched else None
        if self.config.only == ("prior",):
            loss, bpp, mse = prior_loss_of(codec, x, quality, self.autocast)
        else:
            output = codec(x, quality, autocast=self.autocast, slices_kept=kept, patch=patch)
            loss, bpp, mse = loss_of(output, x, codec.config.lambda_of(quality))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_([p for p in codec.parameters() if p.requires_grad], 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        decay = min(0.999, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), list(codec.parameters()), 1 - decay)
        self.step += 1
        return bpp.detach().mean().item(), mse.detach().mean().item()

    def run(self, training: ImageSet, validation: ImageSet, weights: dict[str, float], show: bool) -> None:
        """Train until the time budget is spent, logging and checkpointing on the way."""
        from tqdm import tqdm

        config = self.config
        if self.holds:
            self.codec.hold()
            self.mean.hold()
        sampler = CropSampler(training, weights)
        generator = torch.Generator().manual_seed(config.seed + self.step)
        saved = tick = time.monotonic()
        sums = np.zeros(2)
        counted = 0
        with tqdm(total=config.minutes, initial=round(self.seconds / 60, 1), unit="min", disable=not show) as bar:
            for pixels in _batches(sampler, config, config.seed + self.step):
                sums += self.train_step(_to_tensor(pixels, self.device), generator)
                counted += 1
                now = time.monotonic()
                self.seconds += now - tick
                tick = now
                done = self.seconds >= 60 * config.minutes
                if done or now - saved > 60 * config.checkpoint_minutes:
                    row = self._log_row(sums / counted, validation)
                    bar.n = round(self.seconds / 60, 1)
                    bar.set_postfix_str(f"step {self.step} validation {row[self.codec.config.presets[-1]]}")
                    self.save()
                    sums[:], counted = 0, 0
                    saved = tick = time.monotonic()
                if done:
                    return

    def _log_row(self, means: np.ndarray[Any, Any], validation: ImageSet) -> dict[str, Any]:
        quantised, presets = self.codec.prior.quantised, self.codec.config.presets
        results = {name: evaluate(self.mean, validation, quantised, name, limit=12) for name in presets}
        row = {
            "step": self.step,
            "minutes": round(self.seconds / 60, 2),
            "bpp": round(float(means[0]), 4),
            "mse": round(float(means[1]), 6),
            "quantised": int(self.codec.prior.quantised),
            **{name: round(float(np.mean([r["log_cost"] for r in rows])), 4) for name, rows in results.items()},
            **{f"Q{r['quality_step']}": f"{r['bpp']:.4f}/{r['psnr']:.2f}" for r in results[presets[-1]]},
        }
        path = self.folder / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        return row


@torch.no_grad()
def evaluate(
    codec: Codec, images: ImageSet, quantised: bool, preset: str, limit: int | None = None
) -> list[dict[str, float]]:
    """Means over the images' centres of 256x256, at five qualities: estimated bpp (code length, no container), PSNR, and
    the natural logarithm of the Lagrangian cost ``bpp + lambda * 255**2 * MSE``."""
    device = next(codec.parameters()).device
    codec.prior.quantised = quantised
    rows = []
    for step in VALIDATION_STEPS:
        sums = np.zeros(3)
        chosen = images.images[:limit]
        for image in chosen:
            side = min(256, min(image.shape[:2]) // 64 * 64)
            top, left = ((n - side) // 2 for n in image.shape[:2])
            x = _to_tensor(image[None, top : top + side, left : left + side], device)
            quality = torch.full((1,), float(step), device=device)
            out = codec(x, quality, noise=False, preset=preset)
            lam = codec.config.lambda_of(quality)
            _, bpp, mse = loss_of(out, x, lam)
            rounded = (out.image.clamp(0, 1) * 255).round() / 255
            psnr = -10 * math.log10(max(float((rounded - x).square().mean()), 1e-10))
            sums += (math.log(float(bpp + lam * 65025 * mse)), float(bpp), psnr)
        cost_mean, bpp_mean, psnr_mean = sums / max(len(chosen), 1)
        rows.append({"quality_step": step, "log_cost": cost_mean, "bpp": bpp_mean, "psnr": psnr_mean})
    return rows
