"""Every way in which something given to Perigee can be wrong.

PerigeeError
├── ProfileError            a profile that is missing, damaged or inconsistent
├── EngineError             an engine that is absent, fails its self-test or misbehaves
│   └── UpsetError          a computation whose result cannot be: memory or processor has erred
├── RasterError             an input image that is unreadable or of an unsupported kind
├── MetadataError           metadata that cannot be understood or carried
├── LimitError              a request beyond a stated limit
└── BitstreamError          bytes that are not a valid stream (all carry ``offset_bytes`` where known)
    ├── TruncatedError      the bytes end too early
    ├── ChecksumError       a CRC or a symbol checksum differs
    ├── FormatError         a field outside its legal range, a chunk out of place
    ├── UnsupportedError    a critical chunk, version or mode that this reader does not know
    ├── UnknownProfileError the stream was made with a contract that is not installed
    └── SymbolError         entropy-coded data that decode to impossible symbols
"""

from __future__ import annotations


class PerigeeError(Exception):
    """Base of all errors that a caller can cause; the message says what is wrong and what would be accepted."""


class ProfileError(PerigeeError):
    """A profile is missing, damaged or inconsistent."""


class EngineError(PerigeeError):
    """An engine is absent, fails its self-test, or cannot run here."""


class CompensationError(PerigeeError):
    """A compensator is missing or damaged, does not fit the stream, or was asked for something that it cannot do."""


class UpsetError(EngineError):
    """A computation came out as it cannot: a bit has flipped in memory or processor. Doing it again may be enough."""


class RasterError(PerigeeError):
    """An input image is unreadable or of a kind that is not supported."""


class MetadataError(PerigeeError):
    """Metadata cannot be understood or carried."""


class LimitError(PerigeeError):
    """A request goes beyond a stated limit."""


class BitstreamError(PerigeeError):
    """Bytes that are not a valid stream."""

    def __init__(self, message: str, offset_bytes: int | None = None) -> None:
        self.offset_bytes = offset_bytes
        super().__init__(message if offset_bytes is None else f"{message} (at byte {offset_bytes})")


class TruncatedError(BitstreamError):
    """The bytes end before the structure that they announce."""


class ChecksumError(BitstreamError):
    """A checksum differs from the one stored."""


class FormatError(BitstreamError):
    """A field is outside its legal range, or a chunk is out of place."""


class UnsupportedError(BitstreamError):
    """A version, critical chunk or patch mode that this reader does not know."""


class UnknownProfileError(BitstreamError):
    """The stream names a contract that is not installed."""

    def __init__(self, wanted: str, known: dict[str, str]) -> None:
        self.wanted, self.known = wanted, known
        listing = ", ".join(f"{name} {digest}" for name, digest in known.items()) or "none"
        super().__init__(f"the stream needs the contract {wanted}; installed: {listing}")


class SymbolError(BitstreamError):
    """Entropy-coded data decode to symbols that no encoder writes."""
