"""A plain decoder of the Perigee stream format, version 1, written from ``docs/format.md`` alone.

It is meant to be read beside that text, whose section numbers stand in the comments, and imports nothing of Perigee. It
gives the latents q, the means and the scale indices of every unit, and which samples are valid. It is slow, and refuses
what the text says a reader refuses. The floating-point arithmetic and the rescue in section 12 are out of scope.

    python plain_decoder.py STREAM.peri CONTRACT.npz
"""

import hashlib
import json
import struct
import sys
import zlib
from bisect import bisect_right
from collections import namedtuple

import numpy as np

# Section 13, limits. They stand first because the other sections check against them.
MAX_SAMPLES, MAX_SIDE_PX, MAX_BANDS, MAX_SPARE_CHUNKS = 2147483648, 1048576, 32, 1024
MAX_CHUNK_BYTES, MAX_METADATA_BYTES, MAX_CONTRACT_BYTES = 67108864, 1048576, 16 * 1024 * 1024


# Section 1, conventions.
class Refused(ValueError):
    """The stream, the segment or the contract breaks a rule, so nothing of it is decoded."""


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


class Cursor:
    """Reads bytes from front to back and refuses to read beyond the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int | None = None) -> bytes:
        """Returns the next `size` bytes, or all that are left."""
        start, self.at = self.at, len(self.data) if size is None else self.at + size
        require(self.at <= len(self.data), "the data end too early")
        return self.data[start : self.at]

    def unpack(self, form: str) -> tuple:
        """Returns the next little-endian values, of the types that struct calls `form`."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def varint(self) -> int:
        """Returns the next varint: unsigned LEB128 in its shortest form, at most 2^32 - 1."""
        value = 0
        for position in range(5):
            (byte,) = self.unpack("B")
            value |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                require((byte > 0 or position == 0) and value < 1 << 32, "a varint is too long or above 2^32 - 1")
                return value
        raise Refused("a varint has more than five bytes")

    def check_crc(self, start: int) -> None:
        """Reads a CRC-32 and compares it with that of the bytes from `start` to here."""
        require((zlib.crc32(self.data[start : self.at]),) == self.unpack("I"), "a CRC-32 is wrong")


# Section 3, the file header.
Header = namedtuple("Header", "contract sample_type side bands width height groups patches units")
SAMPLE_TYPES = {1: np.dtype("uint8"), 2: np.dtype("<u2"), 3: np.dtype("<i2")}


def read_header(cursor: Cursor) -> Header:
    require(cursor.take(4) == b"\x89PGE", "this is not a Perigee stream")
    require(cursor.unpack("BB") == (1, 0), "this version or a flag of the header is unsupported")
    contract, kind, bands = cursor.unpack("8sBB")
    require(kind & 15 in SAMPLE_TYPES and 6 <= kind >> 4 <= 9, "the sample type or the patch side is unknown")
    width, height = cursor.varint(), cursor.varint()
    cursor.check_crc(0)
    require(0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX, "a side of the scene is illegal")
    require(0 < bands <= MAX_BANDS and width * height * bands <= MAX_SAMPLES, "the number of samples is illegal")
    side = 1 << (kind >> 4)
    groups, patches = -(-bands // 3), -(-height // side) * -(-width // side)  # all quotients are rounded up
    return Header(contract, SAMPLE_TYPES[kind & 15], side, bands, width, height, groups, patches, patches * groups)


def patch_size(header: Header, patch: int) -> tuple[int, int]:
    """Returns the rows and columns of a patch, which ends where the scene ends."""
    top, left = (header.side * place for place in divmod(patch, -(-header.width // header.side)))
    return min(header.side, header.height - top), min(header.side, header.width - left)


# Sections 2 and 4, the stream and its chunks. `segments` is {unit: Segment}, `masks` {patch: what read_mask returns},
# `ranges` int32 [bands, 2], `offsets` int8 [groups, latents] or None, `metadata` the packet as bytes or None, and `fields`
# what metadata_fields returns for it.
Stream = namedtuple("Stream", "header segments masks ranges offsets metadata fields")
END, SEGMENT, MASK, METADATA, RANGE, OFFSETS = 0, 1, 2, 3, 4, 8  # types of chunks
SHARED, PER_BAND, ALPHA = range(3)  # kinds of masks


def read_chunk(cursor: Cursor) -> tuple[int, bytes]:
    """Reads one chunk and returns its type and its payload, after the CRC was found right."""
    start = cursor.at
    (kind,), length = cursor.unpack("B"), cursor.varint()
    require(length <= (MAX_METADATA_BYTES if kind == METADATA else MAX_CHUNK_BYTES), "a chunk exceeds a limit")
    payload = cursor.take(length)
    cursor.check_crc(start)
    return kind, payload


def read_stream(data: bytes) -> Stream:
    """Parses a whole stream strictly: the bytes of a file to a Stream. No segment's words are decoded yet."""
    cursor = Cursor(data)
    header = read_header(cursor)
    segments, masks, ranges, offsets, metadata, fields, count = {}, {}, None, None, None, {}, 0
    kind, payload = read_chunk(cursor)
    while kind != END:
        count += 1
        require(count < header.patches + header.units + MAX_SPARE_CHUNKS, "there are too many chunks")  # END counts too
        if kind == SEGMENT:
            segment = read_segment(payload)
            require(segment.unit < header.units and segment.unit not in segments, "a unit is illegal or double")
            segments[segment.unit] = segment
        elif kind == MASK:
            patch, mask = read_mask(payload, header)
            require(patch not in masks, "a patch has two masks")
            masks[patch] = mask
        elif kind == METADATA:
            require(metadata is None, "there are two metadata packets")
            metadata, fields = payload, metadata_fields(payload)
        elif kind == RANGE:  # Section 7, coding ranges.
            require(ranges is None and len(payload) == 8 * header.bands, "the coding ranges are double or misshapen")
            ranges = np.frombuffer(payload, "<i4").reshape(header.bands, 2)
            require(bool((ranges[:, 1] > ranges[:, 0]).all()), "a coding range is empty")
        elif kind == OFFSETS:
            own = read_offsets(payload, header)
            require(offsets is None or np.array_equal(own, offsets), "there are two different sets of offsets")
            offsets = own
        else:
            require(kind >= 0x80, "a critical chunk is unknown or reserved")
        kind, payload = read_chunk(cursor)
    end = Cursor(payload)
    require(end.varint() == count and not end.take() and not cursor.take(), "the END chunk does not fit the stream")
    require(len(segments) == header.units, "a unit has no segment")
    # The rest needs several chunks, which may come in any order.
    require(ranges is not None or header.sample_type == np.uint8, "the coding ranges are missing")
    ranges = np.array([[0, 255]] * header.bands, np.int32) if ranges is None else ranges
    fits = all((mask_kind == ALPHA) == ("ALPHA" in fields) for mask_kind, _ in masks.values())
    require(fits and fields.get("ALPHA", 0) <= header.bands, "the metadata do not fit the masks or the bands")
    nodata, legal = fields.get("NODATA", 0.0), np.iinfo(header.sample_type)
    require(legal.min <= nodata <= legal.max and nodata.is_integer(), "NODATA is no value of the sample type")
    return Stream(header, segments, masks, ranges, offsets, metadata, fields)


# Section 7.1, offsets of the tables.
def read_offsets(payload: bytes, header: Header) -> np.ndarray:
    """Parses the payload of an OFFSETS chunk: int8 [groups, latents]. decode_latents checks the number of latents."""
    inflater, most = zlib.decompressobj(), 2048 * header.groups
    try:
        data = inflater.decompress(payload, most + 1)
    except zlib.error as error:
        raise Refused(f"the offsets are no zlib stream: {error}") from error
    require(inflater.eof and not inflater.unused_data, "the offsets are not one zlib stream")
    require(0 < len(data) <= most and len(data) % header.groups == 0, "the offsets have the wrong size")
    return np.frombuffer(data, np.int8).reshape(header.groups, -1)


# Section 5, segments. All but `unit` and `mode` belong to mode 0 alone; `coded` is None without the flag FIRST.
Segment = namedtuple("Segment", "unit mode flags quality_step checksum coded words", defaults=(0, 0, 0, None, ()))
NETWORK, DROPPED, EMPTY, CUT, LINEAR, FIRST = 0, 2, 3, 0x10, 0x20, 0x40


def read_segment(payload: bytes) -> Segment:
    """Parses the payload of a SEGMENT chunk. `unit` is checked by read_stream, `coded` and `words` by decode_latents."""
    cursor = Cursor(payload)
    unit, (mode,) = cursor.varint(), cursor.unpack("B")
    if mode in (DROPPED, EMPTY):
        require(not cursor.take(), "a segment without latents has further bytes")
        return Segment(unit, mode)
    require(mode & ~(CUT | LINEAR | FIRST) == NETWORK, "the mode or a flag of a segment is reserved or unassigned")
    quality_step, checksum = cursor.unpack("BH")
    coded = cursor.unpack("B")[0] if mode & FIRST else None
    size = len(payload) - cursor.at
    require(quality_step <= 250 and coded != 0 and size % 4 == 0, "a field of a segment is outside its range")
    return Segment(unit, NETWORK, mode & 0xF0, quality_step, checksum, coded, cursor.unpack(f"{size // 4}I"))


# Section 6, masks.
def read_mask(payload: bytes, header: Header) -> tuple[int, tuple[int, np.ndarray]]:
    """Parses the payload of a MASK chunk: patch, (kind, uint8 [planes, rows, bytes of a row]), the XOR undone."""
    cursor = Cursor(payload)
    patch, (kind,) = cursor.varint(), cursor.unpack("B")
    require(patch < header.patches and kind in (SHARED, PER_BAND, ALPHA), "a mask's patch or kind is illegal")
    rows, cols = patch_size(header, patch)
    row_bytes = cols * header.sample_type.itemsize if kind == ALPHA else (cols + 7) // 8
    planes = header.bands if kind == PER_BAND else 1
    size, inflater = planes * rows * row_bytes, zlib.decompressobj()
    try:
        inflated = inflater.decompress(cursor.take(), size + 1)  # the byte more shows a stream that is too long
    except zlib.error as error:
        raise Refused(f"a mask is no zlib stream: {error}") from error
    require(inflater.eof and not inflater.unused_data and len(inflated) == size, "a mask has the wrong size")
    stored = np.frombuffer(inflated, np.uint8).reshape(planes, rows, row_bytes)
    return patch, (kind, np.bitwise_xor.accumulate(stored, axis=1))


def validity(stream: Stream, patch: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns a patch's valid samples, bool [band, row, col], and alpha, in the scene's type [row, col], or None."""
    header, (rows, cols) = stream.header, patch_size(stream.header, patch)
    modes = [stream.segments[patch * header.groups + band // 3].mode for band in range(header.bands)]
    valid = np.ones((1, rows, cols), bool) & (np.array(modes) == NETWORK)[:, None, None]
    alpha = np.full((rows, cols), np.iinfo(header.sample_type).max, header.sample_type)
    if patch in stream.masks:
        kind, mask = stream.masks[patch]
        alpha = mask[0].view(header.sample_type) if kind == ALPHA else alpha
        valid &= alpha != 0 if kind == ALPHA else np.unpackbits(mask, axis=2)[:, :, :cols] == 1
    shown = valid.any() and DROPPED not in modes
    return valid, (alpha if shown else np.zeros_like(alpha)) if "ALPHA" in stream.fields else None


# Section 8, the metadata packet. Both tables are in the order of the text.
FIELDS = {
    1: ("EPSG", lambda value: value.varint()),
    2: ("GEOKEYS", lambda value: read_geokeys(value, *value.unpack("HH"))),
    3: ("NORTH_UP", lambda value: value.unpack("4d")),
    4: ("AFFINE", lambda value: value.unpack("6d")),
    5: ("GCPS", lambda value: np.frombuffer(value.take(), "<f8").reshape(-1, 5)),
    6: ("RPC", lambda value: value.unpack("92d")),
    7: ("NODATA", lambda value: value.unpack("d")[0]),
    8: ("SCALES", lambda value: np.frombuffer(value.take(), "<f8").reshape(-1, 2)),
    9: ("ACQUISITION", lambda value: read_acquisition(value)),
    10: ("ANCILLARY", lambda value: value.take()),
    11: ("BAND_NAMES", lambda value: value.take().decode("utf-8").split("\0")),
    12: ("POINT", lambda value: True),
    13: ("ALPHA", lambda value: value.unpack("B")[0]),
    14: ("FILL_MASKED", lambda value: True),
    15: ("COLOUR", lambda value: value.unpack("B")[0]),
    128: ("NBITS", lambda value: value.unpack("B")[0]),
    129: ("UNITS", lambda value: value.take().decode("utf-8").split("\0")),
    130: ("INTERPRETATIONS", lambda value: value.take().decode("utf-8").split("\0")),
    131: ("TAGS", lambda value: read_tags(inflated(value).decode("utf-8").split("\0"))),
    132: ("CRS_WKT", lambda value: inflated(value).decode("utf-8")),
    133: ("PREMULTIPLIED", lambda value: True),
    134: ("PALETTE", lambda value: np.frombuffer(inflated(value), np.uint8).reshape(256, 3)),
}
NORTH_UP, AFFINE = 3, 4
ACQUISITION = [  # bit, name, type, smallest and largest value
    (0, "longitude_deg", "i", -180, 180),
    (0, "latitude_deg", "i", -90, 90),
    (1, "timestamp", "q", -62135596800000, 253402300799999),  # years 1 to 9999
    (2, "gsd_m", "f", 0.0001, 1000000),
    (3, "cloud_cover_percent", "f", 0, 100),
    (4, "off_nadir_deg", "f", 0, 90),
    (5, "target_azimuth_deg", "f", 0, 360),
    (6, "sun_azimuth_deg", "f", 0, 360),
    (7, "sun_elevation_deg", "f", -90, 90),
]


def metadata_fields(packet: bytes) -> dict[str, object]:
    """Reads a metadata packet: the bytes to {name: value}, GCPS float64 [k, 5], SCALES [k, 2], ACQUISITION a dict."""
    cursor, fields, values = Cursor(packet), {}, {}
    while cursor.at < len(packet):
        (tag,), length = cursor.unpack("B"), cursor.varint()
        value = Cursor(cursor.take(length))
        require(tag not in values and (tag in FIELDS or tag >= 128), "a metadata field is double or unknown")
        values[tag] = value
    for tag in FIELDS.keys() & values.keys() - ({AFFINE} if NORTH_UP in values else set()):
        name, read = FIELDS[tag]
        try:
            fields[name] = read(values[tag])
        except ValueError as error:  # numpy and the UTF-8 decoder raise it
            raise Refused(f"{name} is illegal: {error}") from error
        require(not values[tag].take(), f"{name} has the wrong size")
    require(len(fields.get("ANCILLARY", b"")) <= 65536 and fields.get("COLOUR", 0) <= 1, "a field is out of range")
    require(1 <= fields.get("NBITS", 1) <= 16, "NBITS is out of range")
    return fields


def inflated(value: Cursor) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(value.take(), 1 << 20)
    except zlib.error as error:
        raise Refused(f"a field is no zlib stream: {error}") from error
    require(inflater.eof and not inflater.unused_data, "a field has the wrong size")
    return text


def read_tags(texts: list[str]) -> list[list[str]]:
    bands = texts[::4]
    require(len(texts) % 4 == 0 and all(b.isdecimal() and len(b) <= 3 for b in bands), "tags come in fours")
    return [texts[i : i + 4] for i in range(0, len(texts), 4)]


def read_geokeys(value: Cursor, n: int, m: int) -> tuple:
    require(n >= 4, "there are fewer than 4 keys")
    return value.unpack(f"{n}H"), value.unpack(f"{m}d"), value.take()


def read_acquisition(value: Cursor) -> dict[str, float]:
    (bits,), parts = value.unpack("B"), {}
    for bit, name, form, low, high in ACQUISITION:
        if bits >> bit & 1:
            (number,) = value.unpack(form)
            parts[name] = number / 1e7 if bit == 0 else number
            low -= 0 if name == "timestamp" else 0.000001 * abs(low)
            require(low <= parts[name] <= high, f"{name} is outside its range")  # not a number fails as well
    return parts


# Section 9, the contract. `widths` are latents, hyper_latents, hyper, context and head; `passes` holds start, stop and
# seen of each pass, `layers` weight, bias and shift of each layer, `tables` and `z_tables` running sums of frequencies.
Contract = namedtuple("Contract", "arrays digest widths side passes layers tables z_tables")
PARTS = {"weight": "<i1", "bias": "<i4", "shift": "<u1"}


def digest(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns the 8 bytes by which a stream names the contract of these arrays, which may have any shape and dtype."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes("C"))
    return sha.digest()[:8]


def load_contract(path: str) -> Contract:
    """Reads the file `contract.npz`, whose arrays section 9 lists with dtypes and shapes, and makes all the checks."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            require(sum(file.file_size for file in archive.zip.infolist()) <= MAX_CONTRACT_BYTES, "it is too large")
            found = {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # The libraries raise errors of many kinds when a file is damaged.
        raise Refused(f"the contract cannot be read: {error}") from error
    first = {name: (found[name].dtype.str, found[name].ndim) for name in {"geometry", "tables.radius"} & found.keys()}
    whole = first == {"geometry": ("<i4", 1), "tables.radius": ("<u2", 1)} and "tables.z_frequencies" in found
    require(whole, "an array is missing or misshapen")
    geometry = found["geometry"].tolist()
    widths, side, slices = geometry[:5], geometry[5:6], geometry[6:]
    require(all(1 <= width <= 4096 for width in [*widths, *slices]), "a width is not 1 to 4096")
    require(side in ([64], [128], [256], [512]) and sum(slices) == widths[0], "the patch side or a slice is illegal")
    edges = [sum(slices[:n]) for n in range(len(slices) + 1)]
    passes = [(edges[n], edges[n + 1], edges[n + odd]) for n in range(len(slices)) for odd in (0, 1)]
    sizes = [2 * reach + 3 for reach in found["tables.radius"].tolist() for _ in range(16)]
    levels = found["tables.z_frequencies"].size // (129 * widths[1])
    legal = {"geometry": ("<i4", (6 + len(slices),)), "gain_knots": ("<f4", (7, widths[0]))}
    legal |= {"tables.radius": ("<u2", (64,)), "tables.frequencies": ("<u2", (sum(sizes),))}
    legal |= {"tables.z_frequencies": ("<u2", (levels * widths[1], 129))}
    legal |= {"magnitudes": ("<u1", (128,))} if "magnitudes" in found else {}
    rows = list(layer_rows(widths, passes, 2 if "magnitudes" in found else 1))
    for name, inputs, outputs, kernel, depthwise, _ in rows:
        shape = (outputs, 1 if depthwise else inputs, kernel, kernel)
        legal |= {f"{name}.{part}": (PARTS[part], shape if part == "weight" else shape[:1]) for part in PARTS}
    arrays = {name: array for name, array in found.items() if name in legal or name.endswith(".weight")}
    formed = {name: (array.dtype.str.replace("|", "<"), array.shape) for name, array in arrays.items()}
    require(formed == legal and 1 <= levels <= 16, "an array is missing, unknown, misshapen or of the wrong type")
    contract = Contract(arrays, digest(arrays), widths, side[0], passes, {}, [], [])
    magnitudes = arrays.get("magnitudes", np.zeros(128))
    require(magnitudes[0] == 0 and magnitudes.max() <= 127, "the magnitudes are illegal")
    for name, _, _, _, _, largest in rows:
        weight, bias, shift = (arrays[f"{name}.{part}"].astype(np.int64) for part in PARTS)
        require(weight.min() >= -127 and shift.max() <= 23, f"a weight or a shift of {name} is illegal")
        bound = np.abs(weight).sum(axis=(1, 2, 3)) * largest + np.abs(bias) + ((1 << shift) >> 1)
        require(bool((bound < 1 << 24).all()), f"an accumulator of {name} could become too large")
        contract.layers[name] = (weight.astype(np.float64), bias[:, None, None], shift[:, None, None])
    latent_tables = np.split(arrays["tables.frequencies"], np.cumsum(sizes)[:-1])
    for tables, sums in ((latent_tables, contract.tables), (arrays["tables.z_frequencies"], contract.z_tables)):
        for table in tables:
            sums.append([0, *np.cumsum(table, dtype=np.int64).tolist()])
            require(table.min() >= 1 and sums[-1][-1] == 65536, "the frequencies of a table are illegal")
    return contract


# Section 10, the integer prior.
def layer_rows(widths: list[int], passes: list[tuple[int, int, int]], views: int):
    """Yields the rows of the table of layers: name, inputs, outputs, kernel, depthwise, largest input."""
    _, hyper_latents, hyper, context, head = widths
    yield "hyper.up1", hyper_latents, 4 * hyper, 1, False, 64
    yield "hyper.depth1", hyper, hyper, 3, True, 255
    yield "hyper.up2", hyper, 4 * hyper, 1, False, 255
    yield "hyper.depth2", hyper, hyper, 3, True, 255
    yield "hyper.mix", hyper + 1, hyper, 1, False, 255
    for k, (start, stop, seen) in enumerate(passes):
        if seen > 0:
            yield f"pass{k}.context", views * seen, context, 1, False, 127
            yield f"pass{k}.depth", context, context, 5, True, 255
        yield f"pass{k}.head1", hyper + (context if seen > 0 else 0), head, 1, False, 255
        yield f"pass{k}.head2", head, head, 1, False, 255
        yield f"pass{k}.out", head, 2 * (stop - start), 1, False, 255


def layer(contract: Contract, name: str, x: np.ndarray) -> np.ndarray:
    """Runs one layer: int64 [inputs, rows, cols] to int64 [outputs, rows, cols]; float64 keeps all its sums exact."""
    weight, bias, shift = contract.layers[name]
    (_, rows, cols), kernel = x.shape, weight.shape[2]
    padded = np.pad(x, ((0, 0), ((kernel - 1) // 2,) * 2, ((kernel - 1) // 2,) * 2)).astype(np.float64)
    acc = 0
    for i, j in np.ndindex(kernel, kernel):  # Exactly the layers with a kernel larger than 1 are depthwise.
        w, view = weight[:, :, i, j], padded[:, i : i + rows, j : j + cols]
        acc = acc + (w[:, :, None] * view if kernel > 1 else np.tensordot(w, view, 1))
    low, high = (-4096, 4095) if name.endswith(".out") else (0, 255)
    return np.clip((acc.astype(np.int64) + bias + ((1 << shift) >> 1)) >> shift, low, high)


def shuffle(x: np.ndarray) -> np.ndarray:
    """Turns [4 * C, r, c] into [C, 2 * r, 2 * c]."""
    _, rows, cols = x.shape
    return x.reshape(-1, 2, 2, rows, cols).transpose(0, 3, 1, 4, 2).reshape(-1, 2 * rows, 2 * cols)


def half(x: np.ndarray, p: int) -> np.ndarray:
    """Returns the half of the checkerboard with (row + col) mod 2 = p: [C, H, W] to [C, H, W / 2]."""
    return np.concatenate([x[:, 0::2, p::2], x[:, 1::2, 1 - p :: 2]], axis=1)


def pass_prior(contract: Contract, k: int, features: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes the means and scale indices of pass k, int64 [size, H, W / 2], of [hyper, H, W] and [latents, H, W]."""
    start, stop, seen = contract.passes[k]
    x = half(features, k % 2)
    if seen > 0:
        known = q[:seen].copy()
        known[0] >>= 2
        known = np.clip(known, -127, 127)
        if k % 2 == 1:
            known[start:stop] *= 1 - np.indices(q.shape[1:]).sum(axis=0) % 2
        if "magnitudes" in contract.arrays:
            known = np.concatenate([known, contract.arrays["magnitudes"].astype(np.int64)[np.abs(known)]])
        known = layer(contract, f"pass{k}.depth", layer(contract, f"pass{k}.context", known))
        x = np.concatenate([x, half(known, k % 2)])
    for name in ("head1", "head2", "out"):
        x = layer(contract, f"pass{k}.{name}", x)
    mean, scale = np.split(x, 2)
    return mean, np.clip((8 * scale + 328) >> 4, 0, 63)


# Section 11, the entropy coder. A table is given as its running sums.
class Coder:
    """The state S of the entropy decoder and the words that are left, the next one last."""

    def __init__(self, words: tuple[int, ...]) -> None:
        self.left, self.state = list(reversed(words)), 0
        while self.state < 1 << 32 and self.left:
            self.state = (self.state << 32) + self.left.pop()

    def pop(self, sums: list[int]) -> int:
        """Takes one entry off the state."""
        e = bisect_right(sums, self.state % (1 << 24) // 256) - 1  # p[e] and left[e] are 256 times what the sums say
        self.take(256 * sums[e], 256 * sums[e + 1])
        return e

    def take(self, left: int, right: int) -> None:
        """Takes the entry of an interval off the state, which lies in it."""
        self.state = (self.state >> 24) * (right - left) + self.state % (1 << 24) - left
        if self.state < 1 << 32 and self.left:
            self.state = (self.state << 32) + self.left.pop()

    def escape(self, radius: int) -> int:
        bit = [0, 32768, 65536]
        negative, zeros, v = self.pop(bit), 0, 1
        while self.pop(bit) == 0:
            zeros += 1
            require(zeros <= 17, "an escape has more than 17 zeros")
        for _ in range(zeros):
            v = 2 * v + self.pop(bit)
        return -radius - 1 - (v - 1) if negative else radius + 2 + (v - 1)

    def remaining(self) -> int:
        """Returns the number of words that are not yet read plus those that the state fills."""
        return len(self.left) + (self.state > 0) + (self.state >= 1 << 32)


def decode_pass(contract: Contract, coder: Coder, mean: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Decodes the latents of one pass. All arrays are int64 [channels, H, W / 2], of the channels that are coded."""
    table = (16 * index + (mean & 15)).ravel()
    order = np.argsort(table, kind="stable").tolist()
    radius = contract.arrays["tables.radius"].astype(np.int64)[index.ravel()]
    entry = np.zeros(table.size, np.int64)
    for i in order:
        entry[i] = coder.pop(contract.tables[table[i]])
    symbol = entry - radius
    for i in order:
        if entry[i] == 2 * radius[i] + 2:
            symbol[i] = coder.escape(int(radius[i]))
    latents = symbol.reshape(mean.shape) + (mean >> 4)
    require(bool((np.clip(latents, -32768, 32767) == latents).all()), "a latent is outside its range")
    return latents


def decode_latents(contract: Contract, segment: Segment, rows: int, cols: int, offsets: np.ndarray | None) -> tuple:
    """Decodes a segment of mode 0 of `rows` x `cols` pixels; `offsets` are those of its group, or None.

    Returns q, the means in sixteenths and the scale indices, all int64 [latents, H, W], and how many passes count.
    """
    (latents, hyper_latents), cut = contract.widths[:2], bool(segment.flags & CUT)
    h, w = -(-rows // 64), -(-cols // 64)
    coded = latents if segment.coded is None else 8 * segment.coded
    require(segment.mode == NETWORK and coded <= latents, "the segment does not fit the contract")
    require(segment.words[:1] != (0,), "the first word is 0")
    offsets = np.zeros(latents, np.int8) if offsets is None else offsets
    require(len(offsets) == latents, "the offsets do not fit the contract")
    coder = Coder(segment.words)
    first = segment.quality_step * (len(contract.z_tables) // hyper_latents) // 251 * hyper_latents
    z = [coder.pop(contract.z_tables[first + c]) - 64 for c in range(hyper_latents) for _ in range(h * w)]
    counts = not (cut and coder.remaining() < 2)
    x = np.array(z if counts else [0] * len(z)).reshape(hyper_latents, h, w)
    # Section 10, the hyper features.
    x = layer(contract, "hyper.depth1", shuffle(layer(contract, "hyper.up1", x)))
    x = layer(contract, "hyper.depth2", shuffle(layer(contract, "hyper.up2", x)))
    plane = np.full((1, 4 * h, 4 * w), (32 * segment.quality_step + 125) // 250)
    features = layer(contract, "hyper.mix", np.concatenate([x, plane]))
    (q, means, indices), decoded = np.zeros((3, latents, 4 * h, 4 * w), np.int64), 0
    for k, (start, stop, _) in enumerate(contract.passes):
        mean, index = pass_prior(contract, k, features, q)
        own = max(0, min(stop, coded) - start)  # the channels of the pass that are coded; the others are 0 in any case
        values = np.zeros_like(mean)
        if own > 0 and counts:
            try:
                moved = np.clip(index[:own] + offsets[start : start + own, None, None].astype(np.int64), 0, 63)
                values[:own] = decode_pass(contract, coder, mean[:own], moved)
                counts = not (cut and coder.remaining() < 2)
            except Refused:
                require(cut, "an escape or a latent is illegal")
                counts = False
            decoded += counts
        if not counts:
            values[:own] = np.clip((mean[:own] + 8) >> 4, -32768, 32767)
        for whole, part in ((q, values), (means, mean), (indices, index)):  # the inverse of `half`
            whole[start:stop, 0::2, k % 2 :: 2], whole[start:stop, 1::2, 1 - k % 2 :: 2] = np.split(part, 2, axis=1)
    require(cut or coder.remaining() == 0, "words or a state are left behind the last symbol")
    require(cut or zlib.crc32(q.astype("<i2").tobytes()) % 65536 == segment.checksum, "a checksum is wrong")
    return q, means, indices, decoded


def main(stream_path: str, contract_path: str) -> None:
    """Decodes a stream and prints its header and the CRC-32 of every unit's latents as JSON."""
    stream = read_stream(np.fromfile(stream_path, np.uint8).tobytes())
    contract, header, latents, passes = load_contract(contract_path), stream.header, {}, {}
    require(contract.digest == header.contract and contract.side == header.side, "the stream names another contract")
    for unit, segment in sorted(stream.segments.items()):
        if segment.mode == NETWORK:
            patch, group = divmod(unit, header.groups)
            offsets = None if stream.offsets is None else stream.offsets[group]
            q, _, _, passes[unit] = decode_latents(contract, segment, *patch_size(header, patch), offsets)
            latents[unit] = zlib.crc32(q.astype("<i2").tobytes())
    fields = header._asdict() | {"contract": header.contract.hex(), "sample_type": header.sample_type.name}
    print(json.dumps({"header": fields, "latents": latents, "passes": passes}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
