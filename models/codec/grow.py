"""Starts a larger codec from the weights of a smaller one.

Weights that the smaller codec has keep their place and value; new ones are set such that they change nothing at first. The
synthesis may have more residual blocks at each level. The prior may have more and wider layers, slices that divide the old
ones, and magnitudes in its context. Everything else must have the same shape in both codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from perigee.bitstream.prior import Widths
from perigee.models.codec.codec import Codec, CodecConfig

LEVELS = ("level16", "level8", "level4", "level2")  # of the synthesis, in the order of its `blocks`


def with_more_blocks(state: dict[str, Tensor], have: Sequence[int], want: Sequence[int]) -> dict[str, Tensor]:
    """Rename the keys of a synthesis state with ``have`` residual blocks at its levels for one with ``want`` blocks.

    The new blocks follow the old ones of their level; the returned state has no weights for them. Raises ValueError where
    blocks would be lost.
    """
    if any(n < h for h, n in zip(have, want, strict=True)):
        raise ValueError(f"a synthesis of {list(have)} blocks cannot become one of {list(want)}")
    out = {}
    for key, value in state.items():
        level, _, rest = key.partition(".")
        if level in LEVELS:
            number, _, rest = rest.partition(".")
            place = LEVELS.index(level)
            last = int(number) >= have[place] + (place == 0)  # the first level begins with a convolution
            key = f"{level}.{int(number) + last * (want[place] - have[place])}.{rest}"
        out[key] = value
    return out


def _ancestor(have: Widths, want: Widths, k: int) -> tuple[int, int]:
    """Return the old pass that coded what pass ``k`` of ``want`` codes, and the place of its first channel in that pass.

    Raises ValueError where the new slices do not divide the old ones.
    """
    start, stop = want.slice_of(k)
    ends = list(accumulate(have.slices))
    place = next((i for i, end in enumerate(ends) if start < end), len(ends) - 1)
    first = ends[place] - have.slices[place]
    if stop > ends[place]:
        raise ValueError(f"slices {list(want.slices)} do not divide {list(have.slices)}")
    return 2 * place + k % 2, start - first


def _into(new: Tensor, old: Tensor, columns: Sequence[int] | None = None) -> Tensor:
    """Return ``new`` with ``old`` in its first rows.

    ``columns`` says which input channels the columns of ``old`` go to (default: the first). The other columns of those rows
    become zero.
    """
    out = new.clone()
    rows = len(old)
    if old.dim() == 1:
        out[:rows] = old
        return out
    out[:rows] = 0
    out[:rows, list(range(old.shape[1])) if columns is None else list(columns)] = old
    return out


def grown_prior(state: dict[str, Tensor], have: Widths, want: Widths, fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a prior of widths ``want`` that starts from the state of one of widths ``have``.

    Keys are those of :class:`TrainedPrior` (``layers...``). ``fresh`` is the state of a new prior with its random start. New
    channels keep their random weights, but the weights that read them are zero. A pass whose ancestor saw no context starts
    with the context layers of the odd pass of the same slice. Raises ValueError where the old prior does not fit into the new
    one.
    """
    out = {}
    for key, new in fresh.items():
        _, layer, kind = key.split(".")
        columns: Sequence[int] | None = None
        if not layer.startswith("pass"):
            old = state[key]
        else:
            number, part = layer.removeprefix("pass").split("_")
            k = int(number)
            ancestor, first = _ancestor(have, want, k)
            if part in ("context", "depth") and not have.context_channels(ancestor):
                ancestor += 1
            old = state[f"layers.pass{ancestor}_{part}.{kind}"]
            start, stop = want.slice_of(k)
            if part == "out":  # the first half of the rows are means, the second half scales
                old = torch.cat([half[first : first + stop - start] for half in old.chunk(2)])
            elif part == "context" and kind == "weight":
                old_seen, seen = have.context_channels(ancestor), want.context_channels(k)
                kept = min(old_seen, seen)
                columns = list(range(kept))
                if have.magnitudes:
                    columns += list(range(seen, seen + kept))
                    old = torch.cat([old[:, :kept], old[:, old_seen : old_seen + kept]], 1)
                else:
                    old = old[:, :kept]
            elif part == "head1" and kind == "weight":
                columns = [*range(have.hyper), *range(want.hyper, want.hyper + old.shape[1] - have.hyper)]
        if any(o > n for o, n in zip(old.shape, new.shape, strict=True)):
            raise ValueError(f"layer {key} of {list(old.shape)} does not fit into {list(new.shape)}")
        out[key] = _into(new, old, columns)
    return out


def grow(codec: Codec, state: dict[str, Tensor], have: CodecConfig) -> None:
    """Load ``state``, the state of a codec of configuration ``have``, into ``codec``, which may be larger.

    Raises ValueError where the weights do not fit.
    """

    def part(of: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in of.items() if key.startswith(name)}

    fresh = codec.state_dict()
    want = codec.config
    known = {key: value for key, value in state.items() if not key.startswith(("synthesis.", "prior."))}
    moved = with_more_blocks(part(state, "synthesis."), have.synthesis_blocks, want.synthesis_blocks)
    known |= {f"synthesis.{key}": value for key, value in moved.items()}
    if have.prior == want.prior:
        known |= {key: value for key, value in state.items() if key.startswith("prior.")}
    else:
        larger = grown_prior(part(state, "prior."), have.prior, want.prior, part(fresh, "prior."))
        known |= {f"prior.{key}": value for key, value in larger.items()}
    for key, value in fresh.items():
        if key not in known and key.startswith("synthesis.level"):
            known[key] = torch.zeros_like(value) if ".conv2." in key else value
    try:
        codec.load_state_dict(known)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
