"""Every way in which something given to Perigee can be wrong, in one tree.

PerigeeError
├── BitstreamError          bytes that are not a valid stream
│   ├── TruncatedError      the bytes end too early
│   ├── ChecksumError       a CRC or a symbol checksum differs
│   ├── FormatError         a field is outside its legal range, or a chunk is out of place
│   ├── UnsupportedError    a version, a critical chunk or a mode that this reader does not know
│   ├── UnknownProfileError the stream was made with a contract that is not installed
│   └── SymbolError         entropy-coded data decode to symbols that no encoder writes
├── RasterError             an input image is unreadable or of a kind that is not supported
├── MetadataError           metadata cannot be understood or carried
├── ProfileError            a profile is missing, damaged or inconsistent
├── CompensationError       a compensator is missing or damaged, or does not fit the stream
├── MapError                a map cannot be read, or does not belong to the scene
├── EngineError             an engine is absent, fails its self-test or cannot run here
│   ├── DeviceMemoryError   a device has no memory left
│   └── UpsetError          a checksum over exact arithmetic failed: a bit has flipped
├── LimitError              a size is beyond a stated limit
├── OrderError              a request asks for something that cannot be given
│   ├── TooLargeError       the request is sound, but larger than accepted here
│   ├── UnknownJobError     no job has this name, or its product is gone
│   ├── UnfinishedJobError  the job's product does not exist yet
│   └── BusyError           there is no room for the request now
└── OutputError             the output exists already or cannot be created

Every error carries its :class:`Fault` and, where they are known, the field that is wrong, what was expected there, what was
found, and the byte at which it was found. The message says the same in a sentence.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any


class Fault(Enum):
    """What is wrong, for programs that act on it. The value is a short name that also stands in problem documents."""

    # the bytes of a stream
    MAGIC = "magic"  # the bytes do not begin as a stream does
    VERSION = "version"  # a format version that this reader does not know
    FLAGS = "flags"  # flags that this reader does not know
    ENDS_EARLY = "ends-early"  # the bytes end inside a structure, or before the end mark
    VARINT = "varint"  # a variable-length integer that is not in its shortest form, or too large
    CRC = "crc"  # a CRC-32 differs from the one stored
    SYMBOL_CHECKSUM = "symbol-checksum"  # decoded symbols have another checksum than the encoder's
    SIZE = "size"  # a structure has another size than its description says
    RANGE = "range"  # a value is outside its legal range
    REPEATED = "repeated"  # what may come once comes again
    MISSING = "missing"  # what must be there is not
    PLACE = "place"  # a structure is legal, but not here
    UNKNOWN_CRITICAL = "unknown-critical"  # a critical chunk, field or mode that this reader cannot do without
    COUNT = "count"  # a count differs from what was counted
    MASK = "mask"  # a mask does not inflate to the pixels of its patch
    TEXT = "text"  # text that is not in its encoding
    SYMBOL = "symbol"  # a symbol, an escape or a coder state that no encoder writes
    CONTRACT = "contract"  # the stream needs a contract that is not installed
    # profiles and compensators
    DIGEST = "digest"  # a file or contract has another digest than the manifest names
    SHAPE = "shape"  # an array has another type or shape than its description says
    BOUND = "bound"  # a sum could exceed what is exact
    SELF_TEST = "self-test"  # known answers are not reproduced
    NAME = "name"  # nothing of this name is known
    MISFIT = "misfit"  # two things that are sound each do not go together
    # images and metadata
    UNREADABLE = "unreadable"  # the file cannot be read at all
    KIND = "kind"  # the file is sound, but of a kind that is not supported
    PIXEL_DATA = "pixel-data"  # the pixel data are broken
    AMBIGUOUS = "ambiguous"  # the file contradicts itself
    # everything else
    LIMIT = "limit"  # a size is beyond a stated limit
    ABSENT = "absent"  # software or hardware is not here
    FAILED = "failed"  # software or hardware is here and failed
    UPSET = "upset"  # a bit has flipped in memory or in the processor
    EXISTS = "exists"  # the output exists already
    CANNOT_CREATE = "cannot-create"  # the output cannot be created
    UNSPECIFIED = "unspecified"


def _plain(value: Any) -> int | float | str:
    """A value that JSON has; it has no infinities and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float, str)) else str(value)


class PerigeeError(Exception):
    """Base of all errors that a caller can cause.

    ``fault`` says what kind of error it is, ``field`` names what is wrong, ``expected`` and ``found`` are what would be accepted
    and what is there (numbers, strings or None), and ``offset_bytes`` is the place in the input where that is known.
    """

    default_fault = Fault.UNSPECIFIED

    def __init__(
        self,
        message: str,
        fault: Fault | None = None,
        *,
        field: str | None = None,
        expected: Any = None,
        found: Any = None,
        offset_bytes: int | None = None,
    ) -> None:
        self.fault = self.default_fault if fault is None else fault
        self.field, self.expected, self.found, self.offset_bytes = field, expected, found, offset_bytes
        super().__init__(message if offset_bytes is None else f"{message} (at byte {offset_bytes})")

    def __reduce__(self) -> tuple[Any, ...]:
        """How the error travels between processes, with all that it carries."""
        return _restored, (type(self), self.args, self.__dict__)

    def data(self) -> dict[str, Any]:
        """The error as JSON-ready values: its class, fault and whatever else is known of it."""
        known = {"field": self.field, "expected": self.expected, "found": self.found, "offset_bytes": self.offset_bytes}
        plain = {k: _plain(v) for k, v in known.items() if v is not None}
        return {"error": type(self).__name__, "fault": self.fault.value, **plain}


def _restored(kind: type[PerigeeError], args: tuple[Any, ...], values: dict[str, Any]) -> PerigeeError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(values)
    return error


class BitstreamError(PerigeeError):
    """Bytes that are not a valid stream."""


class TruncatedError(BitstreamError):
    """The bytes end before the structure that they announce."""

    default_fault = Fault.ENDS_EARLY


class ChecksumError(BitstreamError):
    """A checksum differs from the one stored."""

    default_fault = Fault.CRC


class FormatError(BitstreamError):
    """A field is outside its legal range, or a chunk is out of place."""

    default_fault = Fault.RANGE


class UnsupportedError(BitstreamError):
    """A version, critical chunk or patch mode that this reader does not know."""

    default_fault = Fault.UNKNOWN_CRITICAL


class UnknownProfileError(BitstreamError):
    """The stream names a contract that is not installed. ``wanted`` is its digest, ``known`` the installed ones by name."""

    default_fault = Fault.CONTRACT

    def __init__(self, wanted: str, known: dict[str, str]) -> None:
        self.wanted, self.known = wanted, known
        listing = ", ".join(f"{name} {digest}" for name, digest in known.items()) or "none"
        super().__init__(
            f"the stream needs the contract {wanted}; installed: {listing}. If you have the profile, name its folder with "
            "--profiles DIR",
            field="contract",
            expected=listing,
            found=wanted,
        )

    def data(self) -> dict[str, Any]:
        return super().data() | {"wanted": self.wanted, "known": self.known}


class SymbolError(BitstreamError):
    """Entropy-coded data decode to symbols that no encoder writes."""

    default_fault = Fault.SYMBOL


class RasterError(PerigeeError):
    """An input image is unreadable or of a kind that is not supported."""

    default_fault = Fault.KIND


class MetadataError(PerigeeError):
    """Metadata cannot be understood or carried."""

    default_fault = Fault.RANGE


class ProfileError(PerigeeError):
    """A profile is missing, damaged or inconsistent."""


class CompensationError(PerigeeError):
    """A compensator or an enhancer is missing or damaged, does not fit the image, or was asked for something that it cannot do."""


class MapError(PerigeeError):
    """A map that cannot be read, or that does not belong to the scene."""

    default_fault = Fault.TEXT


class EngineError(PerigeeError):
    """An engine is absent, fails its self-test, or cannot run here."""

    default_fault = Fault.FAILED


class DeviceMemoryError(EngineError):
    """A device has no memory left for what was asked of it."""

    default_fault = Fault.LIMIT


class UpsetError(EngineError):
    """A checksum over exact arithmetic failed: a bit has flipped in memory or processor. Computing again may be enough."""

    default_fault = Fault.UPSET


class LimitError(PerigeeError):
    """A size is beyond a stated limit."""

    default_fault = Fault.LIMIT


class OrderError(PerigeeError):
    """A request asks for something that cannot be given."""

    default_fault = Fault.RANGE


class TooLargeError(OrderError):
    """The request is sound, but larger than accepted here."""

    default_fault = Fault.LIMIT


class UnknownJobError(OrderError):
    """No job has this name, or its product is gone."""

    default_fault = Fault.NAME


class UnfinishedJobError(OrderError):
    """The job's product does not exist yet. ``problem`` is that of a job that failed."""

    default_fault = Fault.PLACE

    def __init__(self, message: str, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class BusyError(OrderError):
    """There is no room for the request now; ``retry_after_s`` says when to come again, in seconds."""

    default_fault = Fault.LIMIT

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutputError(PerigeeError):
    """The output exists already or cannot be created."""

    default_fault = Fault.CANNOT_CREATE
