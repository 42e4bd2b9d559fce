"""What the diffusion learns from, computed once for all pairs: z0, the trunk's features at 1/8, and the scaled latents.

A training step then costs no more than the denoiser itself. The arrays lie beside the run's checkpoint and are made again where trunk or
encoder have changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from perigee.bitstream.arrays import Array
from perigee.models.compensation.compensator import Compensator
from perigee.training.pairs import SIDE, Pairs

FOLDER, DIGEST_FILE = "stored", "digest.txt"
PARTS = ("z0", "eighth", "scaled")
AT_ONCE = 8  # pairs
Batch = dict[str, Tensor]


def _digest(net: Compensator, pairs: Pairs) -> str:
    """What the arrays depend on."""
    found = hashlib.sha256(f"{pairs.contract} {len(pairs.shares)}".encode())
    for module in (net.trunk, net.finish, net.one_step, net.encoder):
        for value in module.state_dict().values():
            found.update(value.detach().cpu().numpy().tobytes())
    found.update(net.z_deviation.cpu().numpy().tobytes())
    return found.hexdigest()


class StoredLatents:
    """The stored arrays of all pairs, mapped into memory, with the conditions of the pairs."""

    def __init__(
        self, run: Path, pairs: Pairs, net: Compensator, device: torch.device, textured: bool, show: bool = False
    ) -> None:
        """Open the arrays in the folder of a run, or make them with the networks of ``net``, whose texture is trained or not; ``show`` draws a
        progress bar.
        """
        self.pairs, self.device = pairs, device
        folder = run / FOLDER
        digest, note = _digest(net, pairs), folder / DIGEST_FILE
        if not note.is_file() or note.read_text() != digest:
            folder.mkdir(parents=True, exist_ok=True)
            self._make(folder, net, textured, show)
            note.write_text(digest)
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in PARTS}

    @torch.no_grad()
    def _make(self, folder: Path, net: Compensator, textured: bool, show: bool) -> None:
        """Compute the arrays in float16, a few pairs at once."""
        count = len(self.pairs.shares)
        out: dict[str, Array] = {}
        for start in tqdm(range(0, count, AT_ONCE), unit="batch", disable=not show):
            numbers = np.arange(start, min(start + AT_ONCE, count))
            crops = self.pairs.crops(numbers, np.zeros((len(numbers), 2), int), SIDE)
            image, base, latents = (
                torch.from_numpy(np.asarray(crops[name])).to(self.device).float()
                for name in ("image", "base", "latents")
            )
            features = net.trunk(base, latents)
            z0 = net.encode(image / 255, net.first(features, base, textured))
            found = (z0, features.eighth, net.trunk.scaled(latents))
            for name, part in zip(PARTS, found, strict=True):
                if name not in out:
                    path = folder / f"{name}.npy"
                    out[name] = np.lib.format.open_memmap(path, "w+", np.float16, (count, *part.shape[1:]))
                out[name][numbers] = part.cpu().numpy()
        for array in out.values():
            array.flush()  # type: ignore[attr-defined]  # memory-mapped

    def batch(self, count: int, rng: np.random.Generator) -> Batch:
        """Return ``count`` pairs that may be trained on, drawn as ``Pairs.batch`` draws them, see :meth:`of`."""
        return self.of(rng.choice(len(self.pairs.shares), count, p=self.pairs.shares))

    def of(self, numbers: Array) -> Batch:
        """Return the pairs of these numbers [N], float32.

        By name: ``z0`` [N, 4, 32, 32], ``eighth`` [N, C, 32, 32], ``scaled`` [N, M + 1, 16, 16], ``values`` [N, fields, 2] and ``known``
        [N, fields].
        """
        found = {name: array[numbers] for name, array in self.arrays.items()}
        found |= {name: self.pairs.arrays[name][numbers] for name in ("values", "known")}
        return {name: torch.from_numpy(array.astype(np.float32)).to(self.device) for name, array in found.items()}
