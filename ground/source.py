"""What every product is made of: an image source that gives blocks of samples, their validity, and where they come from.

A decoded stream is one (``ground/decoder.py``). What enhances pictures wraps a source and is one itself
(``ground/compensation/source.py``), so that everything that writes products knows sources alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray, Samples
from perigee.bitstream.metadata import ACQUISITION_RANGES, Metadata
from perigee.ground.regions import Region

PREFIX = "PERIGEE_"  # of the tags that say where the pixels of a product come from
SOURCE_PREFIX = "PERIGEE_SOURCE_"  # of those that its source already had
Progress = Callable[[int, int], None]  # how much of how much is done


class Decoded(NamedTuple):
    """A block as every writer gets it: samples [band, row, col] in the scene's type, their validity, alpha [row, col] or None.

    ``valid`` bool [band, row, col] is the one truth about what means something; invalid samples hold the fill value.
    """

    samples: Samples
    valid: BoolArray
    alpha: Samples | None

    def opacity(self, bits: int | None = None) -> Samples:
        """Validity and alpha as one alpha band [row, col] of the samples' type: 0 where any sample is invalid.

        An opaque pixel has the largest value of the type, or 1 among floats. ``bits`` says how many bits the source's alpha uses, where that is
        not all.
        """
        high = 1 if self.samples.dtype.kind == "f" else np.iinfo(self.samples.dtype).max
        alpha = np.full(self.valid.shape[1:], high, self.samples.dtype) if self.alpha is None else self.alpha
        if bits is not None:
            most = min(high, (1 << bits) - 1)
            alpha = np.rint(np.minimum(alpha, most) * (high / most))
        return np.where(self.valid.all(0), alpha, 0).astype(self.samples.dtype)


@dataclass
class Report:
    """What a decoding could not give: units decoded from a cut segment, and units lost to damage."""

    cut: dict[int, int] = field(default_factory=dict)  # unit -> passes decoded
    lost: dict[int, str] = field(default_factory=dict)  # unit -> reason
    notes: list[str] = field(default_factory=list)  # what else is uncertain


class ImageSource(Protocol):
    """An image that can be read block by block with bounded memory.

    ``width`` and ``height`` are in pixels; ``bands`` does not count an alpha band; ``dtype`` is uint8, uint16, int16 or float32.
    ``incomplete`` says that parts of the image may have no data although the metadata declare neither nodata nor a mask;
    ``has_gaps`` says that some samples may be invalid for whatever reason.
    """

    width: int
    height: int
    bands: int
    dtype: str
    metadata: Metadata
    report: Report

    @property
    def incomplete(self) -> bool: ...

    @property
    def has_gaps(self) -> bool: ...

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The image, or a region of it, as blocks of the chosen bands (from 0; None: all) in rows from the top."""
        ...

    def settle(self, samples: Samples, valid: BoolArray) -> None:
        """Give invalid samples the fill value, in place, and keep valid ones from looking like nodata."""
        ...

    def provenance(self) -> dict[str, str]:
        """Tags that say where the pixels come from; complete once the pixels have been read."""
        ...


@runtime_checkable
class Trusted(ImageSource, Protocol):
    """An image source that knows how far off its red, green and blue may be."""

    @property
    def widest_range(self) -> float:
        """How many counts :meth:`half_width` means by 1."""
        ...

    def check_interval(self) -> None:
        """Raise CompensationError where it does not know it of this image."""
        ...

    def half_width(self, group: int, region: Region) -> FloatArray:
        """Half the width of the 90 % interval around each value of bands 1 to 3 (group 0) [rows, cols]."""
        ...

    def generated_in(self, group: int, region: Region) -> BoolArray:
        """Where in a region detail was generated [rows, cols]."""
        ...


def source_name(name: str) -> str:
    """The name of a source's tag in a product: an older generation's provenance must not look like the product's own."""
    return f"{SOURCE_PREFIX}{name[len(PREFIX) :]}" if name.upper().startswith(PREFIX) else name


def source_tags(metadata: Metadata) -> dict[str, str]:
    """The provenance that the source itself carried, as that of a product that was encoded again, under changed names."""
    return {
        source_name(tag.name): tag.value
        for tag in metadata.tags
        if tag.band == 0 and not tag.domain and tag.name.upper().startswith(PREFIX)
    }


def has_generated_detail(metadata: Metadata) -> bool:
    """Whether the source says that detail was generated in it, which no later generation can take out."""
    return any(
        name.upper().endswith("GENERATED_DETAIL") and value.upper() == "YES"
        for name, value in source_tags(metadata).items()
    )


def acquisition_tags(metadata: Metadata) -> dict[str, str]:
    """The known acquisition fields as tags of a product."""
    tags: dict[str, str] = {}
    acquisition = metadata.acquisition
    if acquisition is None:
        return tags
    for name, _, _ in ACQUISITION_RANGES:
        value = getattr(acquisition, name)
        if value is not None:
            tags[f"PERIGEE_{name.upper()}"] = f"{value:.9g}"
    if acquisition.timestamp is not None:
        tags["PERIGEE_TIMESTAMP"] = acquisition.timestamp.isoformat().replace("+00:00", "Z")
    return tags
