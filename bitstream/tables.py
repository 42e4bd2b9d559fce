"""The probability tables of a contract: discretised distributions for the latents, by scale and fraction of
the mean, and one table per hyper-latent channel and band of quality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.errors import Fault, ProfileError
from perigee.bitstream.prior import MEAN_FRACTIONS, Q_MAX, Q_MIN, QUALITY_STEPS, SCALE_COUNT, Z_CLAMP

FREQUENCY_TOTAL = 1 << 16
Z_BANDS_MAX = 16
WIDE_SCALE_COUNT = 128  # of a component's contract, whose latents have any size
OCTAVE = 6  # scale indices by which a spread doubles there: those from 64 on use the tables of 58 to 63
TRELLIS_FROM = 11  # the scale index from which, up to 63, latents are coded on a trellis
# The state behind each of the eight states, by the parity of the whole steps that were coded; odd states code half steps.
TRELLIS = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))
WIDE_Q_MIN, WIDE_Q_MAX = -(1 << 23), (1 << 23) - 1
ESCAPE_BITS_MAX, WIDE_ESCAPE_BITS_MAX = 17, 24


def raw_bits_of(index: IntArray) -> IntArray:
    """How many of a latent's lowest bits the tables of scale indices leave out."""
    return np.where(index < SCALE_COUNT, 0, (index - SCALE_COUNT + OCTAVE) // OCTAVE)


class Place(NamedTuple):
    """How a latent of a component is coded: its table and that table's radius, the mean in units of what the table codes, how many
    raw bits follow, whether the latent is odd, and whether it moves the trellis on."""

    table: int
    radius: int
    mean: int
    raw: int
    odd: int
    on_trellis: bool


@dataclass(frozen=True)
class Tables:
    """Integer frequencies of the latent tables and of the hyper-latent tables.

    ``radius`` uint16 [64]: table (i, f) covers the symbols -radius[i] .. radius[i] + 1, then the escape.
    ``frequencies`` uint16: all latent tables one after the other, table number 16 * i + f.
    ``z_frequencies`` uint16 [bands * hyper_latents, 129]: for z = -64..64; quality is divided into so many equal bands.
    ``scales``: how many scale indices there are, 64, or 128 for components, whose latents have any size and count half steps. An
    index i from 64 on has the table of 58 + (i - 58) % 6, which codes whole steps without their lowest (i - 58) // 6 bits; these
    follow as they are. Indices 11 to 63 are coded on a trellis: its state says whether a latent is odd.
    """

    radius: IntArray
    frequencies: IntArray
    z_frequencies: IntArray
    scales: int = SCALE_COUNT

    def __post_init__(self) -> None:
        if (
            self.radius.shape != (SCALE_COUNT,)
            or self.z_frequencies.ndim != 2
            or self.z_frequencies.shape[1] != 2 * Z_CLAMP + 1
        ):
            raise ProfileError(
                f"tables need 64 radii and {2 * Z_CLAMP + 1} frequencies for each hyper-latent channel",
                Fault.SHAPE,
                field="tables",
            )
        if self.frequencies.shape != (int(self.sizes.sum()),):
            expected = int(self.sizes.sum())
            raise ProfileError(
                f"latent frequencies of shape {self.frequencies.shape}, expected {expected} of them",
                Fault.SHAPE,
                field="tables.frequencies",
                expected=expected,
                found=self.frequencies.size,
            )
        sums = np.add.reduceat(self.frequencies.astype(np.int64), self.starts)
        z_sums = self.z_frequencies.astype(np.int64).sum(1)
        if (sums != FREQUENCY_TOTAL).any() or (z_sums != FREQUENCY_TOTAL).any():
            raise ProfileError(
                f"the frequencies of each table must sum to {FREQUENCY_TOTAL}", Fault.COUNT, field="tables.frequencies"
            )
        if not self.frequencies.all() or not self.z_frequencies.all():
            raise ProfileError("every frequency must be at least 1", Fault.RANGE, field="tables.frequencies")
        if any(part.dtype != np.uint16 for part in (self.radius, self.frequencies, self.z_frequencies)):
            raise ProfileError("tables are of type uint16", Fault.SHAPE, field="tables", expected="uint16")

    def __getstate__(self) -> dict[str, Any]:
        """Without what coders keep: it has pointers, and is made again when needed."""
        return {name: value for name, value in self.__dict__.items() if name != "models"}

    @property
    def latent_tables(self) -> int:
        """How many table numbers latents have: 16 for each scale index. The numbers of hyper-latents come behind them."""
        return self.scales * MEAN_FRACTIONS

    @property
    def latent_range(self) -> tuple[int, int]:
        """Smallest and largest latent."""
        return (Q_MIN, Q_MAX) if self.scales == SCALE_COUNT else (WIDE_Q_MIN, WIDE_Q_MAX)

    @property
    def escape_bits(self) -> int:
        """The most zeros that the code of an escape may begin with."""
        return ESCAPE_BITS_MAX if self.scales == SCALE_COUNT else WIDE_ESCAPE_BITS_MAX

    @cached_property
    def raw_bits(self) -> npt.NDArray[np.int32]:
        """By table number, how many of a latent's lowest bits the table does not code."""
        return np.repeat(raw_bits_of(np.arange(self.scales, dtype=np.int32)), MEAN_FRACTIONS)

    @cached_property
    def shared(self) -> npt.NDArray[np.int32]:
        """By table number, the number of the table below 1024 that has its frequencies."""
        number = np.arange(self.latent_tables, dtype=np.int32)
        return number - self.raw_bits * (OCTAVE * MEAN_FRACTIONS)

    def place_of(self, number: int, mean: int, state: int) -> Place:
        """How a latent of a component is coded whose table number and mean (1/16 step) were predicted, in a state of the trellis."""
        index = number // MEAN_FRACTIONS
        on_trellis = TRELLIS_FROM <= index < SCALE_COUNT
        odd = state & 1 if on_trellis else 0
        raw = int(self.raw_bits[number])
        below = mean - MEAN_FRACTIONS // 2 * odd
        table = int(self.shared[index * MEAN_FRACTIONS]) + (below >> raw & MEAN_FRACTIONS - 1)
        return Place(table, int(self.table_radius[number]), below >> raw + 4, raw, odd, on_trellis)

    @cached_property
    def table_radius(self) -> npt.NDArray[np.int32]:
        """Radius by table number."""
        return np.asarray(np.repeat(self.radius.astype(np.int32), MEAN_FRACTIONS)[self.shared])

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Entries of each of the 1024 tables that have frequencies, escape included."""
        return np.repeat(2 * self.radius.astype(np.int64) + 3, MEAN_FRACTIONS)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First entry of each table in ``frequencies``."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    @cached_property
    def models(self) -> dict[Any, Any]:
        """What coders keep of the tables, made when first used: building it costs more than a run of symbols."""
        return {}

    def first_z_table(self, quality_step: int, hyper_latents: int) -> int:
        """Number of the table of hyper-latent channel 0 at Q = 0..250; those of the other channels follow."""
        bands = len(self.z_frequencies) // hyper_latents
        return self.latent_tables + quality_step * bands // (QUALITY_STEPS + 1) * hyper_latents

    def row(self, table: int) -> IntArray:
        """Frequencies of one table: of latents below ``latent_tables``, of hyper-latents from there on."""
        if table >= self.latent_tables:
            return np.asarray(self.z_frequencies[table - self.latent_tables])
        table = int(self.shared[table])
        start = int(self.starts[table])
        return self.frequencies[start : start + int(self.sizes[table])]
