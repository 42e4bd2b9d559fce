"""Training of map guidance: the guide alone, on top of an exported compensator whose networks stay as they are.

The loss is that of the compensator's detail, through the projection, and how far a segmenter's answer on the image as a product shows it is
from its answer on the original: so a building that the map has and the ground does not have is a mistake, and one that both have is a gain.
The weight of this answer follows from a budget of squared error; that of perception is fixed. A segmenter should not judge images that it was
trained on: there its answer is nearly the map itself, and the guide would learn to trust every map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perigee.bitstream.arrays import Array
from perigee.bitstream.errors import Fault
from perigee.models.checkpoint import CheckpointError, read_checkpoint, read_weights
from perigee.models.compensation.compensator import Compensator, CompensatorConfig
from perigee.models.compensation.map_guide import MapGuide
from perigee.models.compensation.trunk import NOISE
from perigee.models.segmenter import Segmenter
from perigee.training.detail_loss import DetailLoss
from perigee.training.exported import exported_weights
from perigee.training.map_pairs import MapPairs
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

BATCH, SIDE = 8, 128
STRENGTH = 0.68  # of all detail, at the low rates that maps are for
PERCEPTION = 1.0  # weight of the perceptual distance
ANSWER_START, ANSWER_STEP, ANSWER_RANGE = 10.0, 0.1, (0.1, 30.0)  # of the weight of the segmenter's answer
RATE_FLOOR = 0.02
COLUMNS = (
    "relative_squared_error",
    "relative_perceptual_distance",
    "segmenter_cross_entropy",
    "segmenter_cross_entropy_without_guide",
    "segmenter_weight",
)
Judges = Sequence[tuple[Path, Sequence[str]]]  # folders of segmenters, each with patterns of the files that it judges


def _segmenter(folder: Path) -> Segmenter:
    network = Segmenter().eval().requires_grad_(False)
    network.load_state_dict(read_weights(folder))
    return network


def _random_turn() -> Callable[[Tensor], Tensor]:
    """One of the eight turns and mirrorings of images, so that the guide does not learn what only one segmenter sees."""
    turn = int(torch.randint(0, 8, ()))

    def turned(x: Tensor) -> Tensor:
        x = x.transpose(2, 3) if turn & 1 else x
        return x.flip([axis for axis, bit in ((2, 2), (3, 4)) if turn & bit])

    return turned


@dataclass(frozen=True)
class GuideConfig:
    """How a guide trains; ``budget`` is what squared error may cost, relative to the base image's."""

    minutes: float = 60.0
    learning_rate: float = 6e-4
    budget: float = 1.06
    seed: int = 1


class GuideTrainer:
    """Trains a guide in a run's folder, which holds ``checkpoint.pt`` and ``guide.csv``."""

    def __init__(
        self, folder: Path, compensator: Path, judges: Judges, project_to_cells: ProjectToCells, config: GuideConfig
    ) -> None:
        """``compensator`` and the segmenters of ``judges`` are exported folders. Raises CompensationError or CheckpointError where one is none."""
        torch.manual_seed(config.seed)
        self.folder, self.config, self.step = folder, config, 0
        weights, _ = exported_weights(compensator)
        self.net = Compensator(CompensatorConfig(len(weights["trunk.input_scale"]))).eval().requires_grad_(False)
        self.net.load_state_dict(weights, strict=False)
        self.judges = [(_segmenter(path), patterns) for path, patterns in judges]
        self.guide = MapGuide()
        self.mean = copy.deepcopy(self.guide)
        device = torch.device("cpu")
        self.detail_loss = DetailLoss(project_to_cells, device)
        self.detail_loss.weight.fill_(PERCEPTION)
        self.answer_weight = ANSWER_START
        self.optimiser = torch.optim.Adam(self.guide.parameters(), lr=config.learning_rate, betas=ADAM_BETAS)
        self.clock, self.half = Clock(config.minutes, 4.0), half_precision(device)
        path = folder / CHECKPOINT_FILE
        if path.is_file():
            state = read_checkpoint(path)
            if state.get("kind") != "map guide":
                raise CheckpointError(f"{path} is not a map guide's", Fault.KIND, field=str(path))
            for name in ("guide", "mean", "optimiser"):
                getattr(self, name).load_state_dict(state[name])
            self.answer_weight = state["answer_weight"]
            self.step, self.clock.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        parts = {name: getattr(self, name).state_dict() for name in ("guide", "mean", "optimiser")}
        about = {"format": 1, "kind": "map guide", "step": self.step, "seconds": self.clock.seconds}
        save_checkpoint(self.folder, about | {"answer_weight": self.answer_weight} | parts)

    def loss_of(self, batch: dict[str, Tensor], judge: Segmenter) -> tuple[Tensor, list[float]]:
        """The loss (scalar) by the answers of a segmenter, and the figures of ``COLUMNS``."""
        net, base = self.net, batch["base"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            with torch.no_grad():
                features = net.trunk(base, batch["latents"])
                noise = torch.randn(len(base), NOISE, *features.half.shape[2:])
                own = net.detail(features, base, noise).float()
            guided = self.guide(features, batch["planes"]).float()
        detail = STRENGTH * (own + guided)
        loss, error, distance = self.detail_loss(detail, batch)
        missed, unguided = self._missed(batch, detail, judge), self._missed(batch, STRENGTH * own, judge)
        weight = self.answer_weight
        room = min(max(self.config.budget - error.mean().item(), -0.2), 0.2)
        self.answer_weight = min(max(weight * math.exp(ANSWER_STEP * room), ANSWER_RANGE[0]), ANSWER_RANGE[1])
        figures = [error.mean().item(), distance.mean().item(), missed.item(), unguided.item(), weight]
        return loss.mean() + weight * missed, figures

    def _missed(self, batch: dict[str, Tensor], detail: Tensor, judge: Segmenter) -> Tensor:
        """How far a segmenter's answer on base image plus detail is from its answer on the original, both turned in one random way: the mean
        cross-entropy (scalar)."""
        project, turn = self.detail_loss.project_to_cells, _random_turn()
        shown = project(batch["base"] + detail, batch["symbols"], batch["quality"]).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            with torch.no_grad():
                wanted = judge(turn(batch["image"])).float().sigmoid()
            found = judge(turn(shown)).float()
        return F.binary_cross_entropy_with_logits(found, wanted)

    def run(self, pairs: MapPairs, show: bool) -> None:
        """Train until the time is spent; ``show`` draws a progress bar."""
        rng = np.random.default_rng([self.config.seed, self.step])
        judged = [(judge, pairs.of_files(patterns)) for judge, patterns in self.judges]
        shares = np.array([len(numbers) for _, numbers in judged], float)

        def training_step() -> Figures:
            judge, numbers = judged[rng.choice(len(judged), p=shares / shares.sum())]
            return self.train_step(pairs.batch(BATCH, SIDE, rng, numbers), judge)

        def checkpoint(means: dict[str, float]) -> None:
            head = {"step": self.step, "minutes": round(self.clock.minutes, 2)}
            append_row(self.folder / "guide.csv", head | {name: round(value, 5) for name, value in means.items()})
            self.save()

        train(self.clock, training_step, checkpoint, show)

    def train_step(self, arrays: Mapping[str, Array], judge: Segmenter) -> Figures:
        """Take one training step; return the figures of the log."""
        batch = {name: torch.from_numpy(np.ascontiguousarray(a)).float() for name, a in arrays.items()}
        batch["image"] = batch["image"] / 255
        fall = cosine_fall(self.clock.progress, RATE_FLOOR)
        self.optimiser.param_groups[0]["lr"] = self.config.learning_rate * warm_up(self.step) * fall
        loss, found = self.loss_of(batch, judge)
        descend(loss, self.optimiser, list(self.guide.parameters()))
        follow(self.mean.parameters(), self.guide.parameters(), self.step)
        self.step += 1
        return dict(zip(COLUMNS, found, strict=True))
