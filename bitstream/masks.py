"""Which samples of a patch are valid, and its alpha band, coded losslessly.

A mask chunk's payload after the patch number is a kind byte and zlib data. Validity is one bit a pixel (1 = valid),
rows packed to whole bytes and each row XORed with the one above, for one plane that serves all bands or one plane a
band. Alpha samples are differenced row by row the same way. Sizes follow from the header alone, so nothing that the
data claim is allocated.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import BoolArray, Samples
from perigee.bitstream.errors import Fault, FormatError
from perigee.bitstream.format import write_varint

SHARED, PER_BAND, ALPHA = 0, 1, 2


def _deflate(array: npt.NDArray[np.uint8]) -> bytes:
    rows = array.copy()
    rows[..., 1:, :] ^= array[..., :-1, :]
    return zlib.compress(rows.tobytes(), 9)


def _inflate(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    size = int(np.prod(shape))
    try:
        engine = zlib.decompressobj()
        raw = engine.decompress(data, size)
        rest = engine.decompress(engine.unconsumed_tail, 1) if engine.unconsumed_tail else b""
    except zlib.error as error:
        raise FormatError(f"a mask cannot be inflated ({error})", Fault.MASK, field="mask") from error
    if len(raw) != size or rest or not engine.eof or engine.unused_data:
        raise FormatError(
            f"a mask does not inflate to the {size} bytes of its patch",
            Fault.MASK,
            field="mask",
            expected=size,
            found=len(raw),
        )
    rows = np.frombuffer(raw, np.uint8).reshape(shape)
    return np.bitwise_xor.accumulate(rows, axis=-2)


def pack_mask(patch: int, valid: BoolArray, alpha: Samples | None = None) -> bytes:
    """Payload for one patch: ``valid`` bool [band, row, col], and ``alpha`` [row, col] of the sample type if present.

    With alpha the payload holds both: invalid is where alpha is zero, so only the alpha samples are stored.
    """
    if alpha is not None:
        raw = np.ascontiguousarray(alpha, alpha.dtype.newbyteorder("<")).view(np.uint8).reshape(alpha.shape[0], -1)
        return write_varint(patch) + bytes([ALPHA]) + _deflate(raw)
    shared = bool((valid == valid[:1]).all())
    planes = valid[:1] if shared else valid
    return write_varint(patch) + bytes([SHARED if shared else PER_BAND]) + _deflate(np.packbits(planes, axis=-1))


def unpack_mask(payload: bytes, bands: int, rows: int, cols: int, dtype: str) -> tuple[BoolArray, Samples | None]:
    """Validity bool [band, row, col] and alpha [row, col] or None, from a payload without its patch number.

    Raises FormatError.
    """
    if not payload:
        raise FormatError("an empty mask", Fault.SIZE, field="mask")
    kind, data = payload[0], payload[1:]
    if kind == ALPHA:
        size = np.dtype(dtype).itemsize
        alpha = _inflate(data, (rows, cols * size)).copy().view(np.dtype(dtype).newbyteorder("<")).astype(dtype)
        return np.broadcast_to(alpha != 0, (bands, rows, cols)), alpha
    if kind not in (SHARED, PER_BAND):
        raise FormatError(
            f"mask kind {kind}, accepted are {SHARED}, {PER_BAND} and {ALPHA}",
            field="mask kind",
            expected=f"{SHARED}, {PER_BAND}, {ALPHA}",
            found=kind,
        )
    planes = _inflate(data, (1 if kind == SHARED else bands, rows, -(-cols // 8)))
    valid = np.unpackbits(planes, axis=-1, count=cols).astype(bool)
    return np.broadcast_to(valid, (bands, rows, cols)), None
