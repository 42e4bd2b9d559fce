"""Multiply-adds per 256x256 RGB patch, on board and on the ground: ``python -m perigee.benchmarks.flops [--csv FILE]``.

One multiply-add counts 1. Counted are all convolutions of what a satellite would run: analysis, hyper-analysis, and
whatever predicts the probabilities (an encoder needs it as much as a decoder), with GDN's 1x1 over squares and our gains;
not counted, as in the papers, are biases, activations, element-wise products and the entropy coder itself. Transposed
convolutions count at their input positions. The networks are built and run once, with hooks; only the integer prior,
half of which runs on half of the positions, has a formula of its own (``bitstream.prior.macs_per_position``).
Needs torch and numpy alone; the figures depend on no machine.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.bitstream.prior import Widths, macs_per_position
from perigee.models.codec.analysis import ANALYSIS_STAGES, Analysis, HyperAnalysis
from perigee.models.codec.reference import (
    GDN,
    LATENTS,
    CamForm,
    ElicAnalysis,
    ElicEntropy,
    MeanScaleHyper,
    reference_analysis,
)
from perigee.models.codec.synthesis import Synthesis
from perigee.models.codec.transform import BlockTransform, Gains

PATCH = 256
LIMITS_G = {"swift": 0.17, "lite": 0.40, "light": 0.75}
COSMIC_G, ELIC_G = 4.9, 21.78  # COSMIC's table 1, encoder and entropy model
# our prior at the 320 latents of `paper`: the shipped split in proportion, all other widths as shipped
PAPER_WIDTHS = Widths(latents=LATENTS, slices=(24, 40, 64, 192))
NOTES = """\
Published: COSMIC's table 1, encoder and entropy model, called FLOPs. They are multiply-adds of one 256x256 tile: its ELIC
row lies within 1 % of our count with the aggregation run twice. COSMIC has published no code: M = 320, CAM's form and the
entropy model are readings. Its 4.9 is met by full 1-D CAM (k = 7) with a mean-scale hyper-prior, but as well by no or
depthwise CAM with a checkerboard context model (4.9 to 5.1, not built here), of which the transform is a quarter at most;
a counter that overlooks GDN's functional convolution would shift each by 0.79. Ground: plain decoding, without prior."""


@dataclass(frozen=True)
class Row:
    """One codec: multiply-adds per patch by part; ``ground_synthesis`` only where it is ours and complete."""

    codec: str
    analysis: int
    hyper_analysis: int
    entropy: int
    ground_synthesis: int | None = None
    published_g: float | None = None
    limit_g: float | None = None

    @property
    def total(self) -> int:
        """All that runs on board."""
        return self.analysis + self.hyper_analysis + self.entropy

    @property
    def verdict(self) -> str:
        """``pass`` or ``miss`` where there is a limit."""
        return "" if self.limit_g is None else "pass" if self.total <= self.limit_g * 1e9 else "miss"


def multiply_adds(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """Of one call of a layer; refuses a layer with weights that it does not know, so that nothing is left out."""
    if isinstance(module, nn.Conv2d):
        return out.numel() * module.weight[0].numel()
    if isinstance(module, nn.ConvTranspose2d):
        return x.numel() * module.weight[0].numel()
    if isinstance(module, BlockTransform):
        blocks = out.shape[0] * out.shape[2] * out.shape[3]
        return (
            blocks * BLOCK * BLOCK * 3 * (3 * BLOCK + BLOCK)
        )  # rows with colours, then columns, of all 768 components
    if isinstance(module, GDN):
        return out.numel() * out.shape[1]
    if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
        raise TypeError(f"{type(module).__name__} has weights of its own: multiply_adds must learn to count it")
    return 0


@torch.no_grad()
def count(network: nn.Module, x: Tensor) -> tuple[dict[str, int], Tensor]:
    """Multiply-adds of ``network(x)`` for each of its layers by name, every call added up, and the output."""
    counts: dict[str, int] = {}

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        counts[name] = counts.get(name, 0) + multiply_adds(module, inputs[0], out)

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: hook(name, m, i, o))
        for name, module in network.named_modules()
    ]
    try:
        out: Tensor = network.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
    return counts, out


def total_of(counts: dict[str, int], prefix: str = "") -> int:
    """Sum over the layers whose name starts with ``prefix``."""
    return sum(n for name, n in counts.items() if name.startswith(prefix))


def own_entropy(y: Tensor, widths: Widths) -> tuple[int, int]:
    """Our hyper-analysis with the gains, and our integer prior, for latents [1, C, H, W]."""
    gains = Gains(widths.latents, torch.zeros(KNOTS))
    gained = y * gains(torch.zeros(1)).detach()
    hyper, _ = count(HyperAnalysis(widths.latents, widths.hyper_latents), gained)
    interpolation = gains.knots.numel()
    positions = y.shape[2] * y.shape[3]
    return total_of(hyper) + y.numel() + interpolation, round(macs_per_position(widths) * positions)


def flight_row(preset: str, patch: int = PATCH) -> Row:
    """One of our presets, with the synthesis that decodes it."""
    widths = Widths()
    analysis, y = count(Analysis((preset,), widths.latents), torch.zeros(1, 3, patch, patch))
    latents = torch.zeros(1, widths.latents + 1, patch // BLOCK, patch // BLOCK)
    synthesis, _ = count(Synthesis(widths.latents), latents)
    return Row(preset, total_of(analysis), *own_entropy(y, widths), total_of(synthesis), None, LIMITS_G[preset])


def paper_rows(cam: CamForm | None, own_prior: bool, patch: int = PATCH) -> Iterator[Row]:
    """COSMIC's encoder with one form of CAM: with our entropy part where asked for, and with the mean-scale one."""
    analysis, y = count(reference_analysis("paper", cam=cam), torch.zeros(1, 3, patch, patch))
    name = f"paper, {'no' if cam is None else cam} CAM"
    if own_prior:
        own = own_entropy(y, PAPER_WIDTHS)
        yield Row(f"{name}, our prior", total_of(analysis), *own, published_g=COSMIC_G)
    counts, _ = count(MeanScaleHyper(), y)
    parts = total_of(counts, "hyper_analysis"), total_of(counts, "hyper_synthesis")
    yield Row(f"{name}, mean-scale", total_of(analysis), *parts, published_g=COSMIC_G)


def elic_rows(patch: int = PATCH) -> Iterator[Row]:
    """ELIC as re-implemented (aggregation run twice over all positions), and with the aggregation counted once."""
    analysis, y = count(ElicAnalysis(), torch.zeros(1, 3, patch, patch))
    counts, _ = count(ElicEntropy(), y)
    hyper = total_of(counts, "hyper_analysis")
    rest = total_of(counts) - hyper
    yield Row("elic", total_of(analysis), hyper, rest, published_g=ELIC_G)
    once = rest - total_of(counts, "aggregation") // 2
    yield Row("elic, aggregation once", total_of(analysis), hyper, once, published_g=ELIC_G)


def all_rows() -> list[Row]:
    """Every codec of the table."""
    rows = [flight_row(preset) for preset in ANALYSIS_STAGES]
    forms: tuple[tuple[CamForm | None, bool], ...] = (
        (None, True),
        ("depthwise", True),
        ("ghost", True),
        ("full", False),
    )
    for cam, own_prior in forms:
        rows.extend(paper_rows(cam, own_prior))
    return [*rows, *elic_rows()]


def table(rows: Sequence[Row]) -> str:
    """Aligned text in G multiply-adds."""

    def g(value: int | None) -> str:
        return "-" if value is None else f"{value / 1e9:.3f}"

    def plain(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    heads = ("codec", "analysis", "hyper-an.", "prior", "ON BOARD", "published", "limit", "", "ground synth.")
    cells = [heads]
    for r in rows:
        parts = g(r.analysis), g(r.hyper_analysis), g(r.entropy), g(r.total)
        cells.append((r.codec, *parts, plain(r.published_g), plain(r.limit_g), r.verdict, g(r.ground_synthesis)))
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the rows here, in single multiply-adds")
    args = parser.parse_args(arguments)
    rows = all_rows()
    print(f"G multiply-adds per {PATCH}x{PATCH} RGB patch (10^9; one multiply-add = 1), torch {torch.__version__}\n")
    print(table(rows) + "\n\n" + NOTES)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            records = [{**asdict(row), "on_board": row.total, "verdict": row.verdict} for row in rows]
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)


if __name__ == "__main__":
    main()
