"""The loss of generated detail: squared error, perceptual distance and a critic, on images as the ground shows them.

Squared error and perceptual distance are relative to those of the base image, for each image of the batch, so that no rate
and no kind of ground dominates. How much squared error the detail may cost is given as a budget; the weight of perception
follows from it, in each band of quality.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from perigee.bitstream.prior import QUALITY_STEPS
from perigee.training.critic import Critic
from perigee.training.perceptual import PerceptualDistance
from perigee.training.projection import ProjectToCells
from perigee.training.run import half_precision

Batch = dict[str, Tensor]  # crops by name, see ``pairs.Pairs.batch``
SHIFTS = 16  # pixels by which the view of the perceptual network moves
SCALES = (1.0, 1.0, 0.75, 1.5)  # of the view
BANDS = 5  # parts of the quality range that have a weight of perception of their own
WEIGHT_START, WEIGHT_STEP, WEIGHT_RANGE = 2.0, 0.01, (0.05, 12.0)  # of the weight of perception
CRITIC_RATE, CRITIC_BETAS = 1e-3, (0.5, 0.99)  # of the critic's Adam


def grid_share(detail: Tensor) -> Tensor:
    """Return the share [N] of the energy of detail [N, C, H, W] that repeats every 8 pixels within blocks of 32.

    It is a sixteenth by chance and 1 for a grid. H and W are multiples of 32. A network with strides up to 8 can only invent
    texture on even ground as such a pattern; a perceptual distance rewards it over no texture, but the eye does not.
    """
    n, c, h, w = detail.shape
    cells = detail.reshape(n, c, h // 32, 4, 8, w // 32, 4, 8)
    cells = cells - cells.mean((3, 4, 6, 7), keepdim=True)
    repeated = cells.mean((3, 6)).square().mean((1, 2, 3, 4, 5))
    return repeated / (cells.square().mean((1, 2, 3, 4, 5, 6, 7)) + 1e-8)


def random_view(side: int) -> Callable[[Tensor], Tensor]:
    """Return a function that shifts, scales and mirrors images of ``side`` pixels in one random way.

    Without it the detail learns where the strides of the perceptual network fall and what only this network sees (Kettunen
    et al. 2019).
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


def band_of(batch: Batch) -> Tensor:
    """Return the band of quality [N], 0 to BANDS - 1, of each image of a batch."""
    return (batch["quality"] * BANDS / (QUALITY_STEPS + 1)).long()


class DetailLoss:
    """The loss and what it learns on the way: the critic, and the weight of perception in each band of quality."""

    def __init__(self, project_to_cells: ProjectToCells, device: torch.device) -> None:
        self.project_to_cells = project_to_cells.to(device)
        self.critic = Critic().to(device)
        self.weight = torch.full((BANDS,), WEIGHT_START, device=device)
        self.device, self.autocast = device, half_precision(device)
        self._perceptual: PerceptualDistance | None = None  # loaded when it is first needed
        self._critic_optimiser: torch.optim.Optimizer | None = None

    @property
    def perceptual(self) -> PerceptualDistance:
        """The perceptual distance. Raises ModuleNotFoundError where its packages are missing."""
        if self._perceptual is None:
            self._perceptual = PerceptualDistance().to(self.device)
        return self._perceptual

    def __call__(self, detail: Tensor, batch: Batch, adversary: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, relative squared error and relative perceptual distance, each [N], of base image plus detail.

        ``detail`` is [N, 3, H, W]. ``adversary`` is the weight of the critic, which takes a training step of its own with
        every call; None leaves the critic out.
        """
        image, base = batch["image"], batch["base"]
        shown = self.project_to_cells(base + detail, batch["symbols"], batch["quality"])
        error = (shown - image).square().mean((1, 2, 3)) / ((base - image).square().mean((1, 2, 3)) + 1e-6)
        perceptual = self.perceptual
        view = random_view(image.shape[-1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                reference = perceptual.features(view(image))
                plain = perceptual.features(view(base.clamp(0, 1)))
            made = perceptual.features(view(shown.clamp(0, 1)))
        distance = perceptual.distance(made, reference) / (perceptual.distance(plain, reference) + 0.02)
        worse = distance + grid_share(shown - base)
        if adversary is not None:
            self._train_critic(reference, made, plain)
            worse = worse + adversary * self.critic.verdict(made, plain)
        return error + self.weight[band_of(batch)] * worse, error, distance

    def _train_critic(self, true: list[Tensor], made: list[Tensor], base: list[Tensor]) -> None:
        """Take a training step of the critic on features of originals, of made images and of base images."""
        if self._critic_optimiser is None:
            self._critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=CRITIC_RATE, betas=CRITIC_BETAS)
        self._critic_optimiser.zero_grad(set_to_none=True)
        self.critic.loss(true, made, base).backward()  # type: ignore[no-untyped-call]
        self._critic_optimiser.step()

    @torch.no_grad()
    def adjust_weight(self, error: Tensor, batch: Batch, budget: float) -> None:
        """Raise the weight of perception in bands of quality where the error [N] is below the budget, and lower it elsewhere."""
        pull = torch.zeros_like(self.weight).index_add(0, band_of(batch), (budget - error).clamp(-0.2, 0.2))
        self.weight.mul_(torch.exp(WEIGHT_STEP / 0.1 * pull)).clamp_(*WEIGHT_RANGE)
