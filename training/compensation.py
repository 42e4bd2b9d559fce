"""Training of a compensator on pairs: stage by stage, each with a time budget of its own, resumable at any moment.

Losses on images see them as the ground shows them, projected to the cells of their symbols (see ``detail_loss``). Later stages
build on the averaged weights of earlier ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream.conditions import FIELDS
from perigee.bitstream.errors import Fault
from perigee.models.checkpoint import CheckpointError, brief, read_checkpoint
from perigee.models.compensation.compensator import STAGES, Compensator, CompensatorConfig, config_from
from perigee.models.compensation.denoiser import DIFFUSION_STEPS, alpha_sigma
from perigee.models.compensation.latent import CHANNELS
from perigee.models.compensation.paper import paper_compensator
from perigee.models.compensation.trunk import NOISE, Features
from perigee.training.detail_loss import Batch, DetailLoss
from perigee.training.exported import exported_weights
from perigee.training.pairs import Pairs
from perigee.training.projection import ProjectToCells
from perigee.training.run import (
    ADAM_BETAS,
    CHECKPOINT_FILE,
    Clock,
    Figures,
    append_row,
    cosine_fall,
    descend,
    follow,
    half_precision,
    save_checkpoint,
    train,
    warm_up,
)
from perigee.training.stored import StoredLatents

FIELD_DROP, ALL_DROP = (
    0.15,
    0.15,
)  # shares of known metadata fields that are hidden one by one, and of images without any
IMAGINED = 0.25  # share of images whose z0 is noise: the decoder must not take every z0 for a true one
LATENT_NOISE = 0.6  # largest standard deviation of the noise on a true z0
LATENT_BUDGET = 1.0  # squared error of an image that is decoded from its true z0, relative to the base image's
LATE = 0.9  # share of the diffusion steps after which z is called nearly pure noise
SAMPLING_STEPS = (1, 2, 4)  # of which each batch of the stage sampling takes one number
ADVERSARY_FROM = 0.15  # share of a stage in which the critic learns before the detail learns from it
RATE_FLOOR = 0.02  # of the learning rate, at the end of a stage
# columns of a stage's log after `step` and `minutes`; means over the training steps since the last row
LOG_COLUMNS = {
    "one-step": ("relative_squared_error", "relative_perceptual_distance"),
    "texture": ("relative_squared_error", "relative_perceptual_distance"),
    "latent": ("relative_squared_error", "relative_perceptual_distance"),
    "diffusion": ("v_squared_error", "v_squared_error_noisiest_tenth"),
    "sampling": ("relative_squared_error", "relative_perceptual_distance"),
    "scale": ("negative_log_likelihood", "error_over_scale"),
}


@dataclass(frozen=True)
class StageConfig:
    """How a stage trains; sizes are in pixels, times in minutes."""

    minutes: float = 30.0
    batch: int = 8
    crop: int = 128
    learning_rate: float = 4e-4
    budget: float = 1.09  # squared error that detail may cost, relative to the base image's; 1.09 is 0.37 dB
    adversary: float = (
        0.05  # weight of the critic beside the perceptual distance, in the stages one-step, texture and sampling
    )
    seed: int = 1
    checkpoint_minutes: float = 4.0


def _some(known: Tensor) -> Tensor:
    """Return which fields [N, fields] are shown as known: some are hidden one by one, and all of some images."""
    kept = torch.rand_like(known) >= FIELD_DROP
    return known * kept * (torch.rand(len(known), 1, device=known.device) >= ALL_DROP)


class CompensatorTrainer:
    """Trains a compensator in a run's folder, which holds ``checkpoint.pt`` and a log for each stage.

    The log ``STAGE.csv`` has a row for each checkpoint: ``step`` (training steps of the stage so far), ``minutes``, and two
    columns of means since the last row, by stage:

    * ``one-step``, ``texture`` and ``sampling``: ``relative_squared_error`` and ``relative_perceptual_distance`` of the compensated image,
      each relative to the base image's;
    * ``latent``: the same for images that are decoded from their true z0 with noise;
    * ``diffusion``: ``v_squared_error``, and ``v_squared_error_noisiest_tenth``, its mean over the last tenth of the diffusion
      steps;
    * ``scale``: ``negative_log_likelihood`` of the errors under a Laplace distribution, and ``error_over_scale``, the mean
      ratio of the error to its predicted magnitude, which should be 1.
    """

    def __init__(
        self,
        config: CompensatorConfig,
        project_to_cells: ProjectToCells,
        folder: Path,
        device: str = "cpu",
        weights: Path | None = None,
    ) -> None:
        """Start a run in ``folder``, or resume from its checkpoint.

        ``weights`` is a folder of Stable Diffusion to start from. Raises CompensationError where it holds none, and
        CheckpointError where the folder's checkpoint is another network's.
        """
        self.folder, self.device = folder, torch.device(device)
        self.done: dict[str, dict[str, Any]] = {}  # by stage: training steps, seconds, configuration
        self.begun: set[str] = set()  # stages that are trained again, from the weights that they have
        path = folder / CHECKPOINT_FILE
        state = read_checkpoint(path, self.device) if path.is_file() else None
        if state:
            if "config" not in state:
                raise CheckpointError(
                    f"{path} is not a compensator's: give its run a folder of its own", Fault.KIND, field=str(path)
                )
            config = config_from(state["config"])
        torch.manual_seed(1)
        net = paper_compensator(weights, config.latents) if weights else Compensator(config)
        self.net, self.mean = net.to(self.device), copy.deepcopy(net).to(self.device)  # present and averaged weights
        self.detail_loss = DetailLoss(project_to_cells, self.device)
        self.optimiser: dict[str, Any] | None = None  # the state of an interrupted stage's optimiser
        if state:
            self.net.load_state_dict(state["net"])
            self.mean.load_state_dict(state["mean"])
            self.detail_loss.critic.load_state_dict(state["critic"])
            self.detail_loss.weight.copy_(state["weight"])
            self.done, self.optimiser = state["done"], state["optimiser"]
        self.autocast = half_precision(self.device)

    def save(self, stage: str, optimiser: torch.optim.Optimizer | None) -> None:
        """Write the checkpoint atomically; ``optimiser`` is that of an unfinished stage."""
        save_checkpoint(
            self.folder,
            {
                "format": 1,
                "config": self.net.config.plain(),
                "net": self.net.state_dict(),
                "mean": self.mean.state_dict(),
                "critic": self.detail_loss.critic.state_dict(),
                "weight": self.detail_loss.weight,
                "done": self.done,
                "optimiser": {"stage": stage, "state": optimiser.state_dict()} if optimiser else None,
            },
        )

    def start_from(self, source: Path, stages: Iterable[str]) -> None:
        """Start a new run that trains ``stages`` with the weights of another run's checkpoint, averaged, or of an exported compensator; a run
        that has begun is left as it is.

        The other stages count as done where they were done there. Raises CheckpointError where the source is no such compensator, and
        OSError where it cannot be opened.
        """
        if self.done:
            return
        try:
            if source.is_dir():
                weights, done = exported_weights(source)
            else:
                state = read_checkpoint(source, self.device)
                weights, done = state["mean"], state["done"]
            self.done = {name: state for name, state in done.items() if name not in set(stages)}
            self.begun = set(done) - set(self.done)
            for net in (self.net, self.mean):
                missing = net.load_state_dict(weights, strict=False)
                if missing.unexpected_keys or len(missing.missing_keys) == len(net.state_dict()):
                    raise KeyError(", ".join(missing.unexpected_keys[:3]))
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{source}: not a checkpoint of such a compensator ({brief(error)})", field=str(source)
            ) from error

    def _start_scales(self, pairs: Pairs) -> None:
        """Set the scales of the trunk's latents from their deviations in the data."""
        rng = np.random.default_rng(0)
        y = pairs.batch(64, 256, rng)["latents"][:, :-1].astype(np.float32)
        scale = torch.from_numpy(1 / (y.std((0, 2, 3)) + 0.1 * y.std() / 8 + 1e-3))
        for net in (self.net, self.mean):
            net.trunk.input_scale.copy_(scale)

    def batch(self, pairs: Pairs, config: StageConfig, rng: np.random.Generator) -> Batch:
        """Return a batch of crops as float32 on the device, with original images in 0..1."""
        arrays = pairs.batch(config.batch, config.crop, rng)
        out = {name: torch.from_numpy(np.ascontiguousarray(a)).to(self.device).float() for name, a in arrays.items()}
        out["image"] = out["image"] / 255
        return out

    def features(self, batch: Batch, net: Compensator) -> Features:
        """Return the features of a network's trunk, computed in bfloat16 where that is faster."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            found: Features = net.trunk(batch["base"], batch["latents"])
        return found

    def detail(self, net: Compensator, features: Features, batch: Batch, noise: Tensor | None) -> Tensor:
        """Return one-step detail [N, 3, H, W], computed in bfloat16 where that is faster."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return net.detail(features, batch["base"], noise).float()

    def loss_of(self, stage: str, batch: Batch, config: StageConfig) -> tuple[Tensor, list[float]]:
        """Return the loss (scalar) and the two figures for the log, see :data:`LOG_COLUMNS`; NaN where a figure is unknown."""
        net = self.net
        if stage == "diffusion":
            return self._diffusion_loss(batch)
        if stage == "one-step":
            features = self.features(batch, net)
            return self._budget_loss(stage, self.detail(net, features, batch, None), batch, config)
        with torch.no_grad():
            features = self.features(batch, self.mean)
        if stage == "latent":
            return self._latent_loss(batch, features)
        noise = torch.randn(len(batch["base"]), NOISE, *features.half.shape[2:], device=self.device)
        if stage == "texture":
            return self._budget_loss(stage, self.detail(net, features, batch, noise), batch, config)
        if stage == "sampling":
            return self._budget_loss(stage, self._sampled(features, batch), batch, config)
        return self._scale_loss(batch, features, noise if self.textured else None)

    def _budget_loss(self, stage: str, detail: Tensor, batch: Batch, config: StageConfig) -> tuple[Tensor, list[float]]:
        """Return the loss of the stages that spend the budget of squared error."""
        late = self.done[stage]["seconds"] > ADVERSARY_FROM * 60 * config.minutes
        loss, error, distance = self.detail_loss(detail, batch, config.adversary if late else 0.0)
        self.detail_loss.adjust_weight(error, batch, config.budget)
        return loss.mean(), [error.mean().item(), distance.mean().item()]

    def _latent_loss(self, batch: Batch, features: Features) -> tuple[Tensor, list[float]]:
        """Return the loss of encoder and decoder, and update the deviation of z0."""
        net = self.net
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            first = net.first(features, batch["base"], self.textured)
            z = net.encoder(batch["image"], first).float()
        deviation = z.detach().square().mean((0, 2, 3)).sqrt() + 1e-4
        net.z_deviation.lerp_(deviation, 0.02 if self.done["latent"]["step"] > 50 else 0.5)
        z = z / net.z_deviation[None, :, None, None]
        n = len(z)
        level = torch.rand(n, 1, 1, 1, device=z.device) * LATENT_NOISE
        imagined = torch.rand(n, 1, 1, 1, device=z.device) < IMAGINED
        noise = torch.randn_like(z)
        z = torch.where(imagined, 0.7 * noise, z + level * noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            detail = self._one_step(features, batch).detach() + net.decoder(features, z)
        loss, error, distance = self.detail_loss(detail.float(), batch)
        true = ~imagined.reshape(-1)
        # what a true z0 gains in squared error is spent on perception, which is what one step is compared in
        self.detail_loss.adjust_weight(torch.where(true, error, LATENT_BUDGET), batch, LATENT_BUDGET)
        figures = [error[true].mean().item(), distance[true].mean().item()] if true.any() else [math.nan] * 2
        return torch.where(true, loss, 0.2 * loss).mean() + 1e-3 * z.square().mean(), figures

    def _diffusion_loss(self, batch: Batch) -> tuple[Tensor, list[float]]:
        """Return the loss of the denoiser on stored latents: the squared error of v at random diffusion steps."""
        net, z0, eighth = self.net, batch["z0"], batch["eighth"]
        features = Features(eighth, eighth, eighth)  # it sees those at 1/8 alone
        n = len(z0)
        diffusion_step = torch.rand(n, device=z0.device) * DIFFUSION_STEPS
        a, s = (x.reshape(n, 1, 1, 1) for x in alpha_sigma(diffusion_step))
        noise = torch.randn_like(z0)
        known = _some(batch["known"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            v = net.denoiser(a * z0 + s * noise, diffusion_step, features, batch["scaled"], batch["values"], known)
        wrong = (v.float() - (a * noise - s * z0)).square().mean((1, 2, 3))
        late = diffusion_step > LATE * DIFFUSION_STEPS
        return wrong.mean(), [wrong.mean().item(), wrong[late].mean().item() if late.any() else math.nan]

    @property
    def textured(self) -> bool:
        """Whether the one-step network has learned texture."""
        return "texture" in self.done

    def _one_step(self, features: Features, batch: Batch) -> Tensor:
        """Return what the averaged one-step network adds [N, 3, H, W], with new texture where it has any."""
        noise = torch.randn(len(batch["base"]), NOISE, *features.half.shape[2:], device=self.device)
        with torch.no_grad():
            found: Tensor = self.detail(self.mean, features, batch, noise if self.textured else None)
        return found

    def _sampled(self, features: Features, batch: Batch) -> Tensor:
        """Return the detail [N, 3, H, W] of the diffusion, sampled from noise in a few steps through which gradients pass.

        Fine-tuning a diffusion model through its own few steps with the losses of the image is known from one-step diffusion (Wu et al. 2024,
        OSEDiff), and LDM-RSIC trains its four steps together with what they serve.
        """
        n, _, height, width = features.eighth.shape
        steps = SAMPLING_STEPS[int(torch.randint(0, len(SAMPLING_STEPS), ()))]
        z = torch.randn(n, CHANNELS, height, width, device=self.device)
        with torch.no_grad():
            scaled = self.mean.trunk.scaled(batch["latents"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            times = [1 - i / steps for i in range(steps + 1)]
            z = self.net.sample(z, times, features, scaled, batch["values"], _some(batch["known"]))
            detail: Tensor = self.net.decoder(features, z)
        return self._one_step(features, batch) + detail.float()

    def _scale_loss(self, batch: Batch, features: Features, noise: Tensor | None) -> tuple[Tensor, list[float]]:
        """Return the loss of the scale head: the negative log-likelihood of a Laplace distribution."""
        base = batch["base"]
        with torch.no_grad():
            detail = self.detail(self.mean, features, batch, noise)
        shown = self.detail_loss.project_to_cells(base + detail, batch["symbols"], batch["quality"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            scale = self.net.scale(features, base, detail).float()
        wrong = torch.stack([(x - batch["image"]).abs().mean(1) for x in (base, shown)], 1)
        loss = (scale.log() + wrong / scale).mean()
        return loss, [loss.item(), (wrong / scale).mean().item()]

    def run(self, stage: str, pairs: Pairs, config: StageConfig, show: bool) -> None:
        """Train a stage until its time is spent. The stages before it must be finished.

        ``show`` draws a progress bar on stderr.
        """
        self._prepare(stage, pairs)
        state = self.done.setdefault(stage, {"step": 0, "seconds": 0.0, "config": {}})
        if state["seconds"] >= 60 * config.minutes:  # finished in an earlier part of the run
            state["finished"] = True
            return
        state["config"] = asdict(config)
        if stage == "diffusion":
            state["fields"] = [n for n, k in zip(FIELDS, pairs.arrays["known"].any(0), strict=True) if k]
        trained, optimiser = self._select(stage, config.learning_rate)
        rng = np.random.default_rng([config.seed, state["step"]])
        torch.manual_seed(config.seed + state["step"])
        stored = (
            StoredLatents(self.folder, pairs, self.mean, self.device, self.textured, show)
            if stage == "diffusion"
            else None
        )
        clock = Clock(config.minutes, config.checkpoint_minutes, state["seconds"])

        def training_step() -> Figures:
            state["seconds"] = clock.seconds
            fall = cosine_fall(clock.progress, RATE_FLOOR)
            optimiser.param_groups[0]["lr"] = config.learning_rate * warm_up(state["step"]) * fall
            batch = stored.batch(config.batch, rng) if stored else self.batch(pairs, config, rng)
            loss, found = self.loss_of(stage, batch, config)
            descend(loss, optimiser, trained)
            self._average(state["step"])
            state["step"] += 1
            return dict(zip(LOG_COLUMNS[stage], found, strict=True))

        def checkpoint(means: dict[str, float]) -> None:
            state["seconds"] = clock.seconds
            head = {"step": state["step"], "minutes": round(clock.minutes, 2)}
            append_row(self.folder / f"{stage}.csv", head | {name: round(v, 5) for name, v in means.items()})
            self.save(stage, optimiser)

        train(clock, training_step, checkpoint, show)
        self.net.load_state_dict(self.mean.state_dict())  # later stages build on the averaged weights
        state["finished"] = True
        self.optimiser = None
        self.save(stage, None)

    def _prepare(self, stage: str, pairs: Pairs) -> None:
        """Set what a stage starts from, where it is new."""
        if not self.done and stage == "one-step":
            self._start_scales(pairs)
        if stage == "texture" and stage not in self.done and stage not in self.begun:
            for net in (self.net, self.mean):
                net.finish.load_state_dict(net.trunk.finish.state_dict())

    def _select(self, stage: str, rate: float) -> tuple[list[Tensor], torch.optim.Optimizer]:
        """Freeze all but a stage's parameters; return these and their optimiser, resumed where the stage was interrupted."""
        names = STAGES[stage]
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in names and not name.startswith("encoder.vae."))
        trained: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=rate, betas=ADAM_BETAS, fused=True)
        if self.optimiser and self.optimiser["stage"] == stage:
            optimiser.load_state_dict(self.optimiser["state"])
        return trained, optimiser

    @torch.no_grad()
    def _average(self, training_step: int) -> None:
        """Update the averaged weights of the parameters that are trained."""
        pairs = zip(self.mean.parameters(), self.net.parameters(), strict=True)
        trained = [(ours, theirs) for ours, theirs in pairs if theirs.requires_grad]
        follow([ours for ours, _ in trained], [theirs for _, theirs in trained], training_step)
        self.mean.z_deviation.copy_(self.net.z_deviation)
