"""Training of a compensator on pairs: stage by stage, each driven by its own time budget, resumable at any moment.

Losses are relative to the base image: the squared error over the base's, the perceptual distance over the base's, per sample, so
that no rate and no kind of ground dominates. They are those of the image as the ground shows it: held to its symbols. How
much squared error the detail may cost is given; the weight of perception follows, in bands of quality.
"""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perigee.bitstream.conditions import FIELDS
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.models.compensation.compensator import STAGES, Compensator, CompensatorConfig, config_from
from perigee.models.compensation.denoiser import STEPS, alpha_sigma
from perigee.models.compensation.paper import paper_compensator
from perigee.models.compensation.trunk import NOISE, Features
from perigee.training.critic import Critic
from perigee.training.held import HeldToSymbols
from perigee.training.loop import half_precision
from perigee.training.pairs import Pairs
from perigee.training.perceptual import PerceptualDistance

Batch = dict[str, Tensor]
FIELD_DROP, ALL_DROP = 0.15, 0.15  # known fields hidden one by one, and all together
IMAGINED = 0.25  # share of samples whose z0 is noise: the decoder must not take everything for true
SHIFTS = 16  # pixels
SCALES = (1.0, 1.0, 0.75, 1.5)
BANDS = 5  # of Q
WEIGHT_STEP, WEIGHT_RANGE = 0.01, (0.05, 12.0)  # of the weight of perception
ADVERSARY_FROM = 0.15  # share of a stage before it, in which its critic learns alone


@dataclass(frozen=True)
class StageConfig:
    """How a stage trains; sizes in pixels, times in minutes."""

    minutes: float = 30.0
    batch: int = 8
    crop: int = 128
    learning_rate: float = 4e-4
    budget: float = 1.09  # squared error over the base's: 0.37 dB
    adversary: float = 0.05  # weight of the critic beside the perceptual distance, of the stages one-step and texture
    seed: int = 1
    checkpoint_minutes: float = 4.0


def grid_share(detail: Tensor) -> Tensor:
    """Share [N] of a detail's energy that repeats every 8 pixels within blocks of 32: a sixteenth by chance, 1 for a grid.

    A network of strides up to 8 has no other way to invent texture on even ground than such a pattern, and a perceptual distance
    likes any texture better than none; the eye does not.
    """
    n, c, h, w = detail.shape
    cells = detail.reshape(n, c, h // 32, 4, 8, w // 32, 4, 8)
    cells = cells - cells.mean((3, 4, 6, 7), keepdim=True)
    repeated = cells.mean((3, 6)).square().mean((1, 2, 3, 4, 5))
    return repeated / (cells.square().mean((1, 2, 3, 4, 5, 6, 7)) + 1e-8)


def random_view(side: int) -> Callable[[Tensor], Tensor]:
    """How a perceptual network looks at images of ``side`` pixels this time: at a random place, mirrored, at another scale.

    Else the detail learns where the network's strides fall and what this network alone sees (Kettunen et al. 2019).
    """
    dy, dx, scale, flips = (
        int(n) for n in torch.stack([torch.randint(0, n, ()) for n in (SHIFTS, SHIFTS, len(SCALES), 8)])
    )

    def view(x: Tensor) -> Tensor:
        x = x[..., dy : dy + side - SHIFTS, dx : dx + side - SHIFTS]
        if SCALES[scale] != 1:
            x = F.interpolate(x, scale_factor=SCALES[scale], mode="bilinear", antialias=True)
        x = x.transpose(2, 3) if flips & 1 else x
        return x.flip([axis for axis, bit in ((2, 2), (3, 4)) if flips & bit])

    return view


class CompensatorTrainer:
    """State of a run in ``folder``: ``checkpoint.pt``, a log for each stage."""

    def __init__(
        self,
        config: CompensatorConfig,
        held: HeldToSymbols,
        folder: Path,
        device: str = "cpu",
        weights: Path | None = None,
    ) -> None:
        """``weights``: a folder of Stable Diffusion, for the preset ``paper``. Raises CompensationError where it is none, ValueError
        where the run is another's."""
        self.folder, self.device = folder, torch.device(device)
        self.done: dict[str, dict[str, Any]] = {}
        path = folder / "checkpoint.pt"
        state = torch.load(path, map_location=device, weights_only=True) if path.is_file() else None
        if state:
            if "config" not in state:
                raise ValueError(f"{path} is no compensator's: give its run a folder of its own")
            config = config_from(state["config"])
        torch.manual_seed(1)
        first = paper_compensator(weights, config.latents) if weights else Compensator(config)
        self.net, self.mean = first.to(self.device), copy.deepcopy(first).to(self.device)
        self.held = held.to(self.device)
        self.critic = Critic().to(self.device)
        self.weight = torch.full((BANDS,), 2.0, device=self.device)  # of perception, by bands of Q
        self.optimiser: dict[str, Any] | None = None
        if state:
            self.net.load_state_dict(state["net"])
            self.mean.load_state_dict(state["mean"])
            self.critic.load_state_dict(state["critic"])
            self.weight.copy_(state["weight"])
            self.done, self.optimiser = state["done"], state["optimiser"]
        self.autocast = half_precision(self.device)
        self.perceptual: PerceptualDistance | None = None
        self._judging: torch.optim.Optimizer | None = None

    def save(self, stage: str, optimiser: torch.optim.Optimizer | None) -> None:
        """Write the checkpoint atomically."""
        state = {
            "format": 1,
            "config": self.net.config.plain(),
            "net": self.net.state_dict(),
            "mean": self.mean.state_dict(),
            "critic": self.critic.state_dict(),
            "weight": self.weight,
            "done": self.done,
            "optimiser": {"stage": stage, "state": optimiser.state_dict()} if optimiser else None,
        }
        part = self.folder / "checkpoint.pt.part"
        torch.save(state, part)
        os.replace(part, self.folder / "checkpoint.pt")

    def start_from(self, checkpoint: Path) -> None:
        """Begin a new run with the averaged weights of another; nothing where this one has begun. Raises ValueError."""
        if self.done:
            return
        try:
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            for net in (self.net, self.mean):
                missing = net.load_state_dict(state["mean"], strict=False)
                if missing.unexpected_keys or len(missing.missing_keys) == len(net.state_dict()):
                    raise KeyError(", ".join(missing.unexpected_keys[:3]))
        except Exception as error:  # torch.load raises nearly anything for a file that is none
            raise ValueError(f"{checkpoint}: not a checkpoint of such a compensator ({error})") from error

    def start_scales(self, pairs: Pairs) -> None:
        """Deviations of the latents, from the data."""
        rng = np.random.default_rng(0)
        y = pairs.batch(64, 256, rng)["latents"][:, :-1].astype(np.float32)
        scale = torch.from_numpy(1 / (y.std((0, 2, 3)) + 0.1 * y.std() / 8 + 1e-3))
        for net in (self.net, self.mean):
            net.trunk.input_scale.copy_(scale)

    def batch(self, pairs: Pairs, config: StageConfig, rng: np.random.Generator) -> Batch:
        """Crops on the device, images in 0..1."""
        arrays = pairs.batch(config.batch, config.crop, rng)
        out = {name: torch.from_numpy(np.ascontiguousarray(a)).to(self.device).float() for name, a in arrays.items()}
        out["image"] = out["image"] / 255
        return out

    def features(self, batch: Batch, net: Compensator) -> Features:
        """The trunk's, in half precision where that is faster."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            found: Features = net.trunk(batch["base"], batch["latents"])
        return found

    def detail(self, net: Compensator, features: Features, batch: Batch, noise: Tensor | None) -> Tensor:
        """One step's, in half precision where that is faster."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return net.detail(features, batch["base"], noise).float()

    def _judge(self, true: list[Tensor], made: list[Tensor], base: list[Tensor]) -> None:
        """A step of the critic."""
        if self._judging is None:
            self._judging = torch.optim.Adam(self.critic.parameters(), lr=1e-3, betas=(0.5, 0.99))
        self._judging.zero_grad(set_to_none=True)
        self.critic.loss(true, made, base).backward()  # type: ignore[no-untyped-call]
        self._judging.step()

    def _image_loss(
        self, detail: Tensor, batch: Batch, adversary: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [N], relative squared error and relative perceptual distance [N] of base + detail, held to the symbols.

        ``adversary``: weight of the critic, which learns beside it; None is without.
        """
        image, base = batch["image"], batch["base"]
        shown = self.held(base + detail, batch["symbols"], batch["quality"])
        error = (shown - image).square().mean((1, 2, 3)) / ((base - image).square().mean((1, 2, 3)) + 1e-6)
        if self.perceptual is None:
            self.perceptual = PerceptualDistance().to(self.device)
        view = random_view(image.shape[-1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                reference = self.perceptual.features(view(image))
                plain = self.perceptual.features(view(base.clamp(0, 1)))
            made = self.perceptual.features(view(shown.clamp(0, 1)))
        seen = self.perceptual.distance(made, reference) / (self.perceptual.distance(plain, reference) + 0.02)
        worse = seen + grid_share(shown - base)
        if adversary is not None:
            self._judge(reference, made, plain)
            worse = worse + adversary * self.critic.verdict(made, plain)
        return error + self.weight[self._band(batch)] * worse, error, seen

    @staticmethod
    def _band(batch: Batch) -> Tensor:
        return (batch["quality"] * BANDS / (QUALITY_STEPS + 1)).long()

    @torch.no_grad()
    def _spend(self, error: Tensor, batch: Batch, budget: float) -> None:
        """More weight for perception, in each band of quality, while less than the budget of error is spent there; else less."""
        pull = torch.zeros_like(self.weight).index_add(0, self._band(batch), (budget - error).clamp(-0.2, 0.2))
        self.weight.mul_(torch.exp(WEIGHT_STEP / 0.1 * pull)).clamp_(*WEIGHT_RANGE)

    def loss_of(self, stage: str, batch: Batch, config: StageConfig) -> tuple[Tensor, list[float]]:
        """Loss (scalar) and two figures for the log."""
        net = self.net
        if stage == "one-step":
            features = self.features(batch, net)
            return self._detail_loss(stage, self.detail(net, features, batch, None), batch, config)
        with torch.no_grad():
            features = self.features(batch, self.mean)
        if stage == "latent":
            return self._latent_loss(batch, features)
        if stage == "diffusion":
            return self._diffusion_loss(batch, features)
        noise = torch.randn(len(batch["base"]), NOISE, *features.half.shape[2:], device=self.device)
        if stage == "texture":
            return self._detail_loss(stage, self.detail(net, features, batch, noise), batch, config)
        with torch.no_grad():
            detail = self.detail(self.mean, features, batch, noise if "texture" in self.done else None)
        shown = self.held(batch["base"] + detail, batch["symbols"], batch["quality"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            scale = net.scale(features, batch["base"], detail).float()
        base = batch["base"]
        wrong = torch.stack([(x - batch["image"]).abs().mean(1) for x in (base, shown)], 1)
        loss = (scale.log() + wrong / scale).mean()  # likelihood of a Laplace distribution
        return loss, [loss.item(), (wrong / scale).mean().item()]

    def _detail_loss(self, stage: str, detail: Tensor, batch: Batch, config: StageConfig) -> tuple[Tensor, list[float]]:
        """Of the stages that spend the budget."""
        late = self.done[stage]["seconds"] > ADVERSARY_FROM * 60 * config.minutes
        loss, error, seen = self._image_loss(detail, batch, config.adversary if late else 0.0)
        self._spend(error, batch, config.budget)
        return loss.mean(), [error.mean().item(), seen.mean().item()]

    def _latent_loss(self, batch: Batch, features: Features) -> tuple[Tensor, list[float]]:
        net = self.net
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            z = net.encoder(batch["image"], batch["base"]).float()
        deviation = z.detach().square().mean((0, 2, 3)).sqrt() + 1e-4
        net.z_deviation.lerp_(deviation, 0.02 if self.done["latent"]["step"] > 50 else 0.5)
        z = z / net.z_deviation[None, :, None, None]
        n = len(z)
        level = torch.rand(n, 1, 1, 1, device=z.device) * 0.6
        imagined = torch.rand(n, 1, 1, 1, device=z.device) < IMAGINED
        noise = torch.randn_like(z)
        z = torch.where(imagined, 0.7 * noise, z + level * noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            detail = net.decoder(features, z)
        loss, error, seen = self._image_loss(detail.float(), batch)
        true = ~imagined.reshape(-1)
        figures = [error[true].mean().item(), seen[true].mean().item()] if true.any() else [math.nan] * 2
        return torch.where(true, loss, 0.2 * loss).mean() + 1e-3 * z.square().mean(), figures

    def _diffusion_loss(self, batch: Batch, features: Features) -> tuple[Tensor, list[float]]:
        net = self.net
        with torch.no_grad():
            z0 = self.mean.encode(batch["image"], batch["base"])
            scaled = self.mean.trunk.scaled(batch["latents"])
        n = len(z0)
        step = torch.rand(n, device=z0.device) * STEPS
        a, s = (x.reshape(n, 1, 1, 1) for x in alpha_sigma(step))
        noise = torch.randn_like(z0)
        known = batch["known"]
        known = known * (torch.rand_like(known) >= FIELD_DROP) * (torch.rand(n, 1, device=known.device) >= ALL_DROP)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            v = net.denoiser(a * z0 + s * noise, step, features, scaled, batch["values"], known)
        wrong = (v.float() - (a * noise - s * z0)).square().mean((1, 2, 3))
        late = step > 0.9 * STEPS
        return wrong.mean(), [wrong.mean().item(), wrong[late].mean().item() if late.any() else math.nan]

    def run(self, stage: str, pairs: Pairs, config: StageConfig, show: bool) -> None:
        """Train a stage until its time is spent; those before it must be done."""
        from tqdm import tqdm

        names = STAGES[stage]
        if not self.done and stage == "one-step":
            self.start_scales(pairs)
        if stage == "texture" and stage not in self.done:
            for net in (self.net, self.mean):
                net.finish.load_state_dict(net.trunk.finish.state_dict())
        state = self.done.setdefault(stage, {"step": 0, "seconds": 0.0, "config": {}})
        if state["seconds"] >= 60 * config.minutes:  # done in an earlier part of the run
            state["finished"] = True
            return
        state["config"] = asdict(config)
        if stage == "diffusion":
            state["fields"] = [n for n, k in zip(FIELDS, pairs.arrays["known"].any(0), strict=True) if k]
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in names and not name.startswith("encoder.vae."))
        trained = [p for p in self.net.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        if self.optimiser and self.optimiser["stage"] == stage:
            optimiser.load_state_dict(self.optimiser["state"])
        rng = np.random.default_rng([config.seed, state["step"]])
        torch.manual_seed(config.seed + state["step"])
        figures: list[list[float]] = []
        saved = tick = time.monotonic()
        with tqdm(total=config.minutes, unit="min", disable=not show) as bar:
            while state["seconds"] < 60 * config.minutes:
                progress = state["seconds"] / (60 * config.minutes)
                warm = min(1.0, (state["step"] + 1) / 100)
                rate = config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
                optimiser.param_groups[0]["lr"] = rate
                loss, found = self.loss_of(stage, self.batch(pairs, config, rng), config)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if torch.isfinite(torch.nn.utils.clip_grad_norm_(trained, 1.0)):
                    optimiser.step()
                decay = min(0.999, (state["step"] + 1) / (state["step"] + 10))
                with torch.no_grad():
                    for ours, theirs in zip(self.mean.parameters(), self.net.parameters(), strict=True):
                        if theirs.requires_grad:
                            ours.lerp_(theirs, 1 - decay)
                    self.mean.z_deviation.copy_(self.net.z_deviation)
                figures.append(found)
                state["step"] += 1
                now = time.monotonic()
                state["seconds"] += now - tick
                tick = now
                if now - saved > 60 * config.checkpoint_minutes or state["seconds"] >= 60 * config.minutes:
                    self._log(stage, figures)
                    self.save(stage, optimiser)
                    figures.clear()
                    saved = tick = time.monotonic()
                    bar.n = round(state["seconds"] / 60, 1)
                    bar.refresh()
        # what follows builds on the averaged weights
        self.net.load_state_dict(self.mean.state_dict())
        state["finished"] = True
        self.optimiser = None
        self.save(stage, None)

    def _log(self, stage: str, figures: list[list[float]]) -> None:
        state = self.done[stage]
        path = self.folder / f"{stage}.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            if fresh:
                writer.writerow(["step", "minutes", "first", "second"])
            seen = [[value for value in column if value == value] for column in zip(*figures, strict=True)]
            means = [round(sum(column) / len(column), 5) if column else "" for column in seen]
            writer.writerow([state["step"], round(state["seconds"] / 60, 2), *means])
