"""Bits flip in orbit. What encoding relies on is checked while it runs, and made again from the profile's files where it erred.

Three nets, each for what the one before cannot see:

* the compiled prior checks its sums in every layer (``csrc/prior.c``) and raises UpsetError: the patch is computed again;
* before every patch the coder's tables must have the sum that they had at the start; every ``CHECK_EVERY`` patches all memory
  of prior and tables must have its CRC, and the analysis must give for a known patch the integers it gave then;
* the checksum of the latents is taken as soon as they are there, so that what happens to them or to the bytes later shows
  where the segment is decoded: on board with ``--verify``, else on the ground.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.coders import memory_of
from perigee.bitstream.errors import EngineError
from perigee.engines.flight import FlightEngine

CHECK_EVERY = 64
KNOWN_SIDE, KNOWN_STEP = 64, 125


def texture(side: int) -> npt.NDArray[np.float32]:
    """A patch float32 [3, side, side] in 0..1, always the same, as busy as a real one."""
    rng = np.random.default_rng(1)
    smooth = np.cumsum(np.cumsum(rng.normal(0, 1, (3, side, side)), 1), 2)
    scaled = 0.5 + 0.15 * (smooth - smooth.mean()) / smooth.std() + rng.normal(0, 0.03, (3, side, side))
    return np.asarray(scaled.clip(0, 1), np.float32)


def sum_of(arrays: Iterable[npt.NDArray[Any]]) -> int:
    """The sum of arrays, eight bytes at a time: any single flip changes it, and it costs a tenth of a millisecond."""
    total = 0
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        whole = len(data) // 8 * 8
        total += int(data[:whole].view(np.uint64).sum()) + int(data[whole:].sum())
    return total


class Guard:
    """Watches an engine; ``engine`` is the one to use, ``upsets`` counts how often it had to be made again."""

    def __init__(self, engine: FlightEngine, coder: str = "auto") -> None:
        self.engine, self._coder = engine, coder
        self.upsets = 0
        self._patches = 0
        self._sound, self._tables_sound = self._state(), self._tables()

    def _tables(self) -> int:
        """Sum of the coder's tables."""
        return sum_of(memory_of(self.engine.profile.contract.tables, self._coder))

    def _state(self) -> tuple[int, int]:
        """CRC-32 of what is held in memory, and of what the analysis makes of a known patch."""
        crc = 0
        for array in (*self.engine.prior.memory(), *memory_of(self.engine.profile.contract.tables, self._coder)):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        known = self.engine.analyse(texture(KNOWN_SIDE)[None], KNOWN_STEP)
        return crc, zlib.crc32(b"".join(np.ascontiguousarray(part).tobytes() for part in known))

    def renew(self) -> None:
        """Count an upset and load the engine again. Raises EngineError where it does not come back as it was."""
        self.upsets += 1
        self.engine = self.engine.renewed()
        if self._state() != self._sound:
            raise EngineError("an upset was found, and the profile loaded again is not what it was at the start")

    def patch_begins(self) -> None:
        """To be called before each patch: looks for upsets, and renews the engine after one."""
        due = self._patches and self._patches % CHECK_EVERY == 0
        if self._tables() != self._tables_sound or (due and self._state() != self._sound):
            self.renew()
        self._patches += 1
