"""What decoded streams have in common, whatever their format version: metadata, validity, gaps, and where pixels come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import Array, BoolArray, Samples
from perigee.bitstream.errors import BitstreamError, Fault, FormatError
from perigee.bitstream.masks import unpack_mask
from perigee.bitstream.metadata import Metadata, unpack_metadata
from perigee.bitstream.samples import DTYPE_RANGE, is_value_of, keep_from_nodata, quality_of, sample_range
from perigee.bitstream.version2 import FLOAT, ComponentHeader, ComponentStream
from perigee.ground.regions import Region, squares_over
from perigee.ground.source import Decoded, Report, acquisition_tags, has_generated_detail, source_tags

UNITS_NAMED = 100  # in the tags of a product


class StreamSource(ABC):
    """A parsed stream as an image source. With ``damaged`` what cannot be decoded becomes fill, and is listed in ``report``."""

    def __init__(self, stream: fmt.Stream | ComponentStream, patch_side: int, damaged: bool) -> None:
        """``patch_side`` is the contract's. Raises FormatError where stream, metadata and contract do not go together."""
        self.damaged = damaged
        self.left_alone: str | None = None  # why compensation was asked for and not applied
        self.parsed = stream
        self._header: fmt.Header | ComponentHeader = stream.header
        self.width, self.height = self._header.width, self._header.height
        self.bands, self.dtype = self._header.bands, self._header.dtype
        self.report = Report()
        self.metadata: Metadata = self._metadata()
        self._check(patch_side)

    def _metadata(self) -> Metadata:
        if self.damaged and self.parsed.damage:
            self.report.notes.append("what was lost may have been a mask or the metadata: validity is not certain")
        if self.parsed.metadata is None:
            return Metadata()
        try:
            return unpack_metadata(self.parsed.metadata)
        except BitstreamError as error:
            if not self.damaged:
                raise
            self.report.notes.append(f"the metadata are unusable: {error}")
            return Metadata()

    def _check(self, side: int) -> None:
        h, m = self._header, self.metadata
        if m.alpha_band is not None and h.dtype == FLOAT:
            raise FormatError("an alpha band beside float samples", Fault.MISFIT, field="alpha band")
        if m.alpha_band is not None and m.alpha_band > h.bands:
            raise FormatError(
                f"alpha band {m.alpha_band} of {h.bands + 1}",
                field="alpha band",
                expected=f"0 to {h.bands}",
                found=m.alpha_band,
            )
        if m.nodata is not None and not is_value_of(m.nodata, h.dtype):
            raise FormatError(
                f"nodata {m.nodata} is not a value of {h.dtype}", field="nodata", expected=h.dtype, found=m.nodata
            )
        if h.patch_side != side:
            raise FormatError(
                f"patch side {h.patch_side}, the contract's is {side}",
                Fault.MISFIT,
                field="patch side",
                expected=side,
                found=h.patch_side,
            )

    @property
    def incomplete(self) -> bool:
        """Whether parts of the scene may have no data: a product then needs a mask of its own."""
        return self.damaged or any(s.mode == fmt.DROPPED for s in self.parsed.segments.values())

    @property
    def lossless(self) -> bool:
        """Whether every sample is what was encoded."""
        return False

    @property
    def has_gaps(self) -> bool:
        """Whether some samples may be invalid."""
        empty = any(s.mode in (fmt.EMPTY, fmt.DROPPED) for s in self.parsed.segments.values())
        return self.incomplete or empty or bool(self.parsed.masks)

    @property
    def sample_range(self) -> tuple[int, int]:
        """Smallest and largest value of a whole sample: those of its type, or of the bits that the source used of it."""
        return sample_range(self.dtype, self.metadata.nbits)

    @property
    def fill(self) -> float:
        """Value of invalid samples: nodata where declared, else 0."""
        nodata = self.metadata.nodata or 0
        return nodata if self.dtype == FLOAT else int(nodata)

    def settle(self, samples: Samples, valid: BoolArray) -> None:
        """Invalid samples become the fill value; valid ones must not look like nodata and move by one if they do."""
        if self.metadata.nodata is not None and not self.metadata.masked and self.dtype != FLOAT:
            keep_from_nodata(samples, valid, int(self.fill), self.sample_range[1])
        samples[~valid] = self.fill

    def provenance(self) -> dict[str, str]:
        """Tags that say where the pixels come from, those of an older generation under changed names."""
        segments: Iterable[Any] = self.parsed.segments.values()
        qualities = {s.quality_step for s in segments if s.mode == fmt.NETWORK}
        ends = sorted({min(qualities), max(qualities)}) if qualities else []
        return {
            "PERIGEE_SOFTWARE": f"perigee {perigee.__version__}",
            **self._origin(),
            "PERIGEE_QUALITY": "-".join(f"{quality_of(q):g}" for q in ends),
            "PERIGEE_LOSSY": "NO" if self.lossless else "YES",
            "PERIGEE_GENERATED_DETAIL": "YES" if has_generated_detail(self.metadata) else "NO",
        } | (
            acquisition_tags(self.metadata) | self._damage_tags() | source_tags(self.metadata) | self._left_alone_tag()
        )

    def _left_alone_tag(self) -> dict[str, str]:
        return {"PERIGEE_COMPENSATION_LEFT_ALONE": self.left_alone} if self.left_alone else {}

    @abstractmethod
    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The scene or a region in blocks, row by row; ``bands`` counts from 0 (None: all)."""

    @abstractmethod
    def _origin(self) -> dict[str, str]:
        """The tags that name profile, contract and engine."""

    def _damage_tags(self) -> dict[str, str]:
        """What a cut or damaged stream could not give, as far as it has been read."""
        report, notes = self.report, [*self.parsed.damage, *self.report.notes]
        if not (report.cut or report.lost or notes):
            return {}
        tags = {"PERIGEE_DAMAGE": f"{len(report.lost)} units lost, {len(report.cut)} cut short, {len(notes)} notes"}
        for name, units in (("PERIGEE_LOST_UNITS", report.lost), ("PERIGEE_CUT_UNITS", report.cut)):
            if units:
                numbers = sorted(units)
                more = f" and {len(numbers) - UNITS_NAMED} more" if len(numbers) > UNITS_NAMED else ""
                tags[name] = " ".join(map(str, numbers[:UNITS_NAMED])) + more
        return tags

    # --- validity --------------------------------------------------------------------------------------------------

    def _validity(self, region: Region, chosen: Sequence[int]) -> tuple[BoolArray, Array | None]:
        """Validity bool [chosen bands, rows, cols] and alpha [rows, cols], or None, of a pixel region."""
        h = self._header
        valid = np.ones((len(chosen), region.rows, region.cols), bool)
        alpha = None
        if self.metadata.alpha_band is not None:
            alpha = np.zeros((region.rows, region.cols), h.dtype)
        for row, col, inner, outer in squares_over(region, h.patch_side):
            part, part_alpha = self._patch_validity(row * h.grid[1] + col)
            valid[(slice(None), *outer)] = part[list(chosen)][(slice(None), *inner)]
            if alpha is not None and part_alpha is not None:
                alpha[outer] = part_alpha[inner]
        return valid, alpha

    def _patch_validity(self, patch: int) -> tuple[BoolArray, Samples | None]:
        """Validity bool [bands, rows, cols] and alpha [rows, cols], or None, of a whole patch."""
        h = self._header
        _, _, rows, cols = h.patch_region(patch)
        valid = np.ones((h.bands, rows, cols), bool)
        alpha = None
        if self.metadata.alpha_band is not None:
            alpha = np.full((rows, cols), DTYPE_RANGE[h.dtype][1], h.dtype)
        payload = self.parsed.masks.get(patch)
        if payload is not None:
            try:
                stored, stored_alpha = unpack_mask(payload, h.bands, rows, cols, h.dtype)
                if (alpha is None) != (stored_alpha is None):
                    raise FormatError(
                        f"the mask of patch {patch} and the alpha band do not go together", Fault.MISFIT, field="mask"
                    )
                valid, alpha = stored.copy(), stored_alpha
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.notes.append(f"the mask of patch {patch} is unusable: {error}")
                valid[:] = False
        sent, gone = self._delivered(patch)
        valid[gone] = False
        if alpha is not None:
            alpha = np.where(sent, alpha, 0).astype(alpha.dtype)
        return valid, alpha

    @abstractmethod
    def _delivered(self, patch: int) -> tuple[bool, list[int]]:
        """Whether all of a patch that was sent is there and any was, and the bands of which there is nothing."""
