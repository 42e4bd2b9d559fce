"""One codec out of two runs that had the same frozen transform: ``python 0007-join.py PRIOR.pt SYNTHESIS.pt OUT.pt``.

The first gives the prior, the hyper-latents and their tables, the second the synthesis and the reconstruction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

GROUND = ("synthesis.", "reconstruction.")


def main() -> None:
    prior, synthesis, out = map(Path, sys.argv[1:])
    one, other = (torch.load(path, weights_only=True) for path in (prior, synthesis))
    frozen = [n for n in one["mean"] if n.startswith(("analysis.", "gains."))]
    assert all(torch.equal(one["mean"][n], other["mean"][n]) for n in frozen), "the runs have different transforms"
    joined = {
        n: (other if n.startswith(GROUND) else one)["mean"][n] for n in one["mean"] if not n.startswith("synthesis.")
    }
    joined |= {n: v for n, v in other["mean"].items() if n.startswith("synthesis.")}
    config = one["codec_config"] | {
        part: other["codec_config"][part] for part in ("synthesis_widths", "synthesis_blocks")
    }
    state = {"mean": joined, "codec_config": config, "training_config": one["training_config"], "step": one["step"]}
    torch.save(state | {"seconds": one["seconds"]}, out)


if __name__ == "__main__":
    main()
