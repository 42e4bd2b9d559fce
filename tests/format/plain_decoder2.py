"""A plain decoder of the Perigee stream format, version 2, written from ``docs/format2.md`` and ``docs/format.md`` alone.

It is meant to be read beside these texts, whose section numbers stand in the comments, and imports nothing of Perigee.
What version 2 shares with version 1 it takes from ``plain_decoder.py``. It gives the latents q, the means, the scale
indices and the samples, all in integers. It is slow, and refuses what the text says a reader refuses. The network that may
add to the planes, and the rescue of damaged streams, are out of scope.

    python plain_decoder2.py STREAM.peri CONTRACT.npz
"""

import json
import math
import sys
import zlib
from bisect import bisect_right
from collections import namedtuple

import numpy as np
import plain_decoder as v1
from plain_decoder import Contract, Cursor, Header, Refused, half, layer, patch_size, require

LATENTS, Q_MIN, Q_MAX, PLANE_MAX = 256, -(2**23), 2**23 - 1, 2**34


# Section 16, the stream. `segments` is {patch: Segment}, their parts joined; `masks` {patch: what read_mask returns};
# `parameters` a list of the Parameters of each row of patches, `places` int64 [band, 2], and `fields` what metadata_fields returns.
Stream = namedtuple("Stream", "header segments masks parameters places fields")
PARAMETERS, STRIP, PART, PLACES, RECORDS, ERRORS = (
    8,
    9,
    10,
    13,
    0x81,
    0x84,
)  # types of chunks, beside those of version 1
SAMPLE_TYPES = v1.SAMPLE_TYPES | {4: "float32"}


def read_header(cursor: Cursor) -> tuple[Header, bool, bool]:
    require(cursor.take(4) == b"\x89PGE" and cursor.unpack("B") == (2,), "this is no Perigee stream of version 2")
    contract, kind, bands = cursor.unpack("8sBB")
    features, width, height = cursor.varint(), cursor.varint(), cursor.varint()
    cursor.check_crc(0)
    require(features & ~133 == 0, "the stream needs a feature that is reserved or unassigned")
    require(kind & 15 in SAMPLE_TYPES and 6 <= kind >> 4 <= 9, "the sample type or the patch side is unknown")
    floats = kind & 15 == 4
    require(features & 4 == 4 * floats and (features & 1 or not floats), "the features do not fit the sample type")
    require(kind >> 4 <= 8 or not floats, "patches of float samples are too large")
    require(0 < width <= v1.MAX_SIDE_PX and 0 < height <= v1.MAX_SIDE_PX, "a side of the scene is illegal")
    require(0 < bands <= v1.MAX_BANDS and width * height * bands <= v1.MAX_SAMPLES, "the number of samples is illegal")
    side, groups = 1 << (kind >> 4), -(-bands // 3)  # `validity` asks for groups, which version 2 does not have
    patches = -(-height // side) * -(-width // side)
    sample_type = SAMPLE_TYPES[kind & 15]
    header = Header(contract, sample_type, side, bands, width, height, groups, patches, patches * groups)
    return header, features & 128 == 128, features & 1 == 1


def read_stream(data: bytes) -> Stream:
    """Parses a whole stream strictly: the bytes of a file to a Stream. No segment's words are decoded yet."""
    cursor = Cursor(data)
    header, placed, predicting = read_header(cursor)
    segments, parts, masks, sets, strips, fields, places = {}, {}, {}, {}, {}, None, None
    measured, count, floats, records = False, 0, header.sample_type == "float32", {}
    patch_rows = -(-header.height // header.side)
    kind, payload = v1.read_chunk(cursor)
    while kind != v1.END:
        count += 1
        require(count < 17 * header.patches + 4 * patch_rows + 1024, "there are too many chunks")  # END counts too
        if kind == v1.SEGMENT:
            segment = read_segment(payload, header.bands, floats)
            require(predicting or segment.mode not in (PREDICTED, STORED), "a predicted segment without its feature")
            require(not floats or segment.mode not in (v1.NETWORK, STORED), "float samples in a segment that has none")
            require(segment.patch < header.patches and segment.patch not in segments, "a patch is illegal or double")
            segments[segment.patch] = segment
        elif kind == PART:
            part = Cursor(payload)
            key = (part.varint(), *part.unpack("B"))
            require(key not in parts, "a part comes twice")
            parts[key] = read_words(part)
        elif kind == v1.MASK:
            patch, mask = v1.read_mask(payload, header)
            require(patch not in masks, "a patch has two masks")
            masks[patch] = mask
        elif kind == v1.METADATA:
            require(fields is None, "there are two metadata packets")
            fields = v1.metadata_fields(payload)
        elif kind == PARAMETERS:
            number = Cursor(payload).varint()
            require(sets.setdefault(number, payload) == payload, "parameters come again with other bytes")
        elif kind == STRIP:
            strip = Cursor(payload)
            first, rows, number = strip.varint(), strip.varint(), strip.varint()
            require(rows > 0 and first + rows <= patch_rows and not strip.take(), "a strip is illegal")
            same = all(strips.setdefault(row, number) == number for row in range(first, first + rows))
            require(same, "a row of patches has two sets of parameters")
        elif kind == PLACES and placed:
            own = read_places(payload, header)
            require(places is None or np.array_equal(own, places), "there are two different sets of places")
            places = own
        elif kind == RECORDS:
            read_records(payload, header.height, records)
        elif kind == ERRORS:
            numbers = np.frombuffer(payload, "<f4") if len(payload) == 12 * header.bands else np.zeros(0)
            sound = numbers.size and np.isfinite(np.delete(numbers, np.s_[1::3])).all()
            require(bool(sound) and not measured, "the measured errors are misshapen or come twice")
            measured = True
        else:
            require(kind >= 0x80, "a critical chunk is unknown or reserved")
        kind, payload = v1.read_chunk(cursor)
    end, fields = Cursor(payload), fields or {}
    require(end.varint() == count and not end.take() and not cursor.take(), "the END chunk does not fit the stream")
    require(len(segments) == header.patches, "a patch has no segment")
    # The rest needs several chunks, which may come in any order.
    expected = {(patch, 1 + n) for patch, segment in segments.items() for n in range(segment.parts)}
    require(parts.keys() == expected, "a part is missing or belongs to no segment")
    for patch, number in sorted(parts):
        segments[patch] = segments[patch]._replace(words=segments[patch].words + parts[patch, number])
    sets = {number: read_parameters(payload, header.bands) for number, payload in sets.items()}
    numbers = [strips.get(row, 0) for row in range(patch_rows)]
    across = -(-header.width // header.side)
    wanted = {numbers[patch // across] for patch, segment in segments.items() if segment.mode == v1.NETWORK}
    require(wanted <= sets.keys(), "parameters are missing")
    fits = all((mask_kind == v1.ALPHA) == ("ALPHA" in fields) for mask_kind, _ in masks.values())
    require(fits and fields.get("ALPHA", 0) <= header.bands, "the metadata do not fit the masks or the bands")
    require(placed == (places is not None), "the places of the bands are missing")
    require(not placed or "ALPHA" not in fields, "bands beside an alpha band have places of their own")
    places = np.zeros((header.bands, 2), np.int64) if places is None else places
    require(not floats or "ALPHA" not in fields, "an alpha band beside float samples")
    require(is_legal(fields.get("NODATA", 0.0), header.sample_type), "NODATA is no value of the sample type")
    return Stream(header, segments, masks, [sets.get(number) for number in numbers], places, fields)


def is_legal(nodata: float, sample_type: str) -> bool:
    """Whether a sample can have this value."""
    if sample_type == "float32":
        return math.isnan(nodata) or float(np.float32(nodata)) == nodata
    return np.iinfo(sample_type).min <= nodata <= np.iinfo(sample_type).max and nodata.is_integer()


# Section 18.3, records of lines.
def read_records(payload: bytes, height: int, known: dict) -> None:
    """Parses the payload of a RECORDS chunk into {line: record}, and counts how many there were under "taken"."""
    cursor = Cursor(payload)
    first, lines, size = cursor.varint(), cursor.varint(), cursor.varint()
    legal = lines > 0 and first + lines <= height and 0 < size <= 4096 and size * height <= 1 << 26
    require(legal, "records of lines are outside of their range")
    steps = np.frombuffer(inflate(cursor.take(), lines * size), np.uint8).reshape(size, lines)
    known["taken"] = known.get("taken", 0) + lines
    require(known["taken"] <= 4 * height, "records of lines come too often")
    for line, record in enumerate(np.cumsum(steps, 1, np.uint8).T, first):
        require(known.setdefault(line, record.tobytes()) == record.tobytes(), "a line has two records")
    require(len({len(known[line]) for line in known if line != "taken"}) == 1, "records of lines have two sizes")


def inflate(data: bytes, size: int) -> bytes:
    """Inflates a zlib stream to exactly so many bytes."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, size + 1)  # the byte more shows what is too long
    except zlib.error as error:
        raise Refused(f"no zlib stream: {error}") from error
    require(inflater.eof and not inflater.unused_data and len(inflated) == size, "a zlib stream has the wrong size")
    return inflated


# Section 18.2, places of bands.
def read_places(payload: bytes, header: Header) -> np.ndarray:
    """Parses the payload of a PLACES chunk: int64 [band, 2], line and column."""
    cursor = Cursor(payload)
    places = np.array([(cursor.varint(), cursor.varint()) for _ in range(header.bands)], np.int64)
    require(not cursor.take(), "bytes are left behind the places")
    near = (places.max(0) < (header.height, header.width)).all() and places.max() <= 1024
    require(bool(near), "the bands are too far apart")
    return places


# Section 17, segments. All but `patch` and `mode` belong to mode 0 alone; `steps` is Q of each component.
# `codes` are the BandCodes of a segment of mode 1, `stored` the StoredBands of one of mode 4.
Segment = namedtuple(
    "Segment", "patch mode flags parts checksum steps coded words codes stored", defaults=(0, 0, 0, (), (), (), (), ())
)
PREDICTED, STORED = 1, 4
QUALITIES, IN_PARTS = 0x20, 0x40


def read_words(cursor: Cursor) -> tuple[int, ...]:
    size = len(cursor.data) - cursor.at
    require(size % 4 == 0, "the words of a segment or a part are no multiple of 4 bytes")
    return cursor.unpack(f"{size // 4}I")


def read_segment(payload: bytes, n: int, floats: bool) -> Segment:
    """Parses the payload of a SEGMENT chunk of n components. `patch` is checked by read_stream."""
    cursor = Cursor(payload)
    patch, (mode,) = cursor.varint(), cursor.unpack("B")
    if mode in (v1.DROPPED, v1.EMPTY):
        require(not cursor.take(), "a segment without latents has further bytes")
        return Segment(patch, mode)
    if mode == PREDICTED:
        (checksum,) = cursor.unpack("H")
        codes = tuple(read_band_code(cursor, number, floats) for number in range(n))
        return Segment(patch, mode, 0, 0, checksum, (), (), read_words(cursor), codes)
    if mode == STORED:
        stored = tuple(read_stored_band(cursor) for _ in range(n))
        require(not cursor.take(), "bytes are left behind the bands of a segment")
        return Segment(patch, mode, stored=stored)
    require(mode & ~(v1.CUT | QUALITIES | IN_PARTS) == v1.NETWORK, "the mode or a flag of a segment is illegal")
    parts = cursor.unpack("B")[0] if mode & IN_PARTS else 0
    quality_step, checksum = cursor.unpack("BH")
    qualities = cursor.unpack(f"{n}b") if mode & QUALITIES else [0] * n
    coded = cursor.unpack(f"{n}B")
    require(parts <= 15 and (parts > 0 or not mode & IN_PARTS), "the number of parts is illegal")
    require(quality_step <= 250 and max(coded) <= 32, "a field of a segment is outside its range")
    steps = tuple(min(max(quality_step + added, 0), 250) for added in qualities)
    return Segment(patch, v1.NETWORK, mode & 0xF0, parts, checksum, steps, coded, read_words(cursor))


# Section 23, predicted segments.
BandCode = namedtuple("BandCode", "relative repeats bound low top start before weights values")
OWN = ((0, -1), (0, -2), (-2, 0), (-1, -1), (-1, 1), (-1, 2))
FURTHER = ((0, 0), (0, -1), (0, 1), (1, 0))
FIRST = (*FURTHER, (-1, -1), (-1, 1), (1, -1), (1, 1))


def read_band_code(cursor: Cursor, number: int, floats: bool) -> BandCode:
    """Parses the fields of a band."""
    (flags,) = cursor.unpack("B")
    require(flags < 16, "a flag of a band is unknown")
    n, relative = flags & 3, bool(flags & 8)
    bound, m, top, start = (cursor.varint() for _ in range(4))
    low = m >> 1 ^ -(m & 1)
    most = 0x7F7FFFFF if floats and not relative else 65535
    legal = bound <= most and (bound > 0 or not relative) and abs(low) <= 65535 * (not floats) and start <= top <= 65535
    require(legal, "a field of a band is outside its range")
    before = cursor.unpack(f"{n}B")
    require(len(set(before)) == n and all(b < number for b in before), "a band is predicted from one that is not there")
    weights = cursor.unpack(f"{(6, 14, 18, 22)[n]}h")
    require(sum(map(abs, weights)) <= 32767, "the weights of a band are too large")
    values = read_values(cursor, top + 1) if floats else None
    return BandCode(relative, bool(flags & 4), bound, low, top, start, before, weights, values)


# Section 23.5, float samples.
def read_values(cursor: Cursor, count: int) -> np.ndarray:
    """Parses the table of values of a band: float32 [count]."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(cursor.take(cursor.varint()), 5 * count + 1)
    except zlib.error as error:
        raise Refused(f"the values are no zlib stream: {error}") from error
    require(inflater.eof and not inflater.unused_data, "the values are no zlib stream, or too long")
    steps = Cursor(inflated)
    keys = [steps.varint() for _ in range(count)]
    require(not steps.take() and all(keys[1:]), "the values have the wrong number or do not rise")
    keys = np.cumsum(np.array(keys, np.int64))
    require(int(keys[-1]) < 2**32, "the values are too large")
    return np.where(keys >= 2**31, keys - 2**31, 2**32 - 1 - keys).astype(np.uint32).view(np.float32)


# Section 24, stored segments.
StoredBand = namedtuple("StoredBand", "coding bound low data")


def read_stored_band(cursor: Cursor) -> StoredBand:
    """Parses a band of a stored segment."""
    (coding,) = cursor.unpack("B")
    bound, m = cursor.varint(), cursor.varint()
    low = m >> 1 ^ -(m & 1)
    require(coding in (0, 1) and bound <= 255 * coding and abs(low) <= 65535 * coding, "a stored band is illegal")
    return StoredBand(coding, bound, low, cursor.take(cursor.varint()))


def stored_samples(band: StoredBand, rows: int, cols: int, sample_type: str) -> np.ndarray:
    """The samples of a stored band, int64 [row, col], before they are clamped. JPEG-LS is left to a library."""
    if band.coding:
        import imagecodecs

        try:
            image = imagecodecs.jpegls_decode(band.data)
        except imagecodecs.JpeglsError as error:
            raise Refused(f"a band is no JPEG-LS image: {error}") from error
        require(image.shape == (rows, cols), "a JPEG-LS image has the wrong size")
        return image.astype(np.int64) + band.low
    kind = np.dtype(sample_type).newbyteorder("<")
    samples = np.frombuffer(inflate(band.data, rows * cols * kind.itemsize), kind)
    return samples.reshape(rows, cols).astype(np.int64)


def spread_tables() -> tuple[list[int], list[int], list[int]]:
    """The tables of section 23.2."""
    share = [0.98 / (1 + math.exp(-x)) + 0.02 / (1 + math.exp(-x / 3)) for x in (i / 32 - 12 for i in range(769))]
    curve = [round(2**24 * (s - share[0]) / (share[-1] - share[0])) for s in share]
    logs = [0] + [round(64 * math.log2(i)) for i in range(1, 4096)]
    return curve, logs, [round(2**33 / (2 ** ((n - 512) / 64) / (2.08 * math.log(2)))) for n in range(2048)]


def log(logs: list[int], x: int) -> int:
    b = max(x.bit_length() - 12, 0)
    return logs[x >> b] + 64 * b


class Plane(dict):
    """The codes or errors of a band by (row, column), which repeat beyond its edges once it is done."""

    def __init__(self, rows: int, cols: int, start: int) -> None:
        super().__init__()
        self.last, self.start, self.done = (rows - 1, cols - 1), start, -1  # `done` is the last row that is

    def __missing__(self, place: tuple[int, int]) -> int:
        r, c = place
        if self.done < self.last[0]:
            if r < 0:
                return self.start
            if r > self.done and c < 0:
                return self[r - 1, 0]
        return self[min(max(r, 0), self.last[0]), min(max(c, 0), self.last[1])]


def decode_codes(segment: Segment, rows: int, cols: int) -> list[Plane]:
    """Decodes the codes of all bands of a patch."""
    require(segment.words[:1] != (0,), "the first word is 0")
    tables, coder, done = spread_tables(), v1.Coder(segment.words), []
    for code in segment.codes:
        band = Plane(rows, cols, code.start), Plane(rows, cols, 0)
        chances, means = [32768] * 16, {}
        for r in range(rows):
            for c in range(cols):
                decode_code(coder, tables, code, [*(done[b] for b in code.before), band], (r, c), chances, means)
            for plane in band:
                plane.done = r
        done.append(band)
    require(coder.remaining() == 0, "words or a state are left behind the last code")
    codes = b"".join(np.array([p[r, c] for r in range(rows) for c in range(cols)], "<i4").tobytes() for p, _ in done)
    require(zlib.crc32(codes) % 65536 == segment.checksum, "a checksum is wrong")
    return [p for p, _ in done]


def decode_code(coder, tables, code: BandCode, bands: list, place: tuple[int, int], chances: list, means: dict) -> None:
    """Decodes one code and keeps it and its error. The last of `bands` is the band itself, the first the first of `before`."""
    (curve, logs, sharpness), (r, c), (p, e), (_, near) = tables, place, bands[-1], bands[0]
    taps = [(p, place) for place in OWN]
    for n, (plane, _) in enumerate(bands[:-1]):
        taps += [(plane, place) for place in (FURTHER if n else FIRST)]
    differences = [plane[r + y, c + x] - plane[r - 1, c] for plane, (y, x) in taps]
    mean = 16 * p[r - 1, c] + ((sum(w * d for w, d in zip(code.weights, differences, strict=True)) + 128) >> 8)
    mean, value = min(max(mean, 0), 16 * code.top), None
    across, down = p[r, c - 1] == p[r - 1, c - 1], p[r - 1, c] == p[r - 1, c - 1]
    if code.repeats and (across or down):
        k = across + 2 * (p[r, c - 2] == p[r - 1, c - 2]) + 4 * down + 8 * (p[r - 1, c + 1] == p[r - 1, c])
        equal = coder.pop([0, chances[k], 65536]) == 0
        value = (p[r - 1, c] if across else p[r, c - 1]) if equal else None
        chances[k] = min(max(chances[k] + ((65535 - chances[k]) >> 5 if equal else -(chances[k] >> 5)), 32), 65504)
    known = value is not None
    if not known:
        activity = 2 * e[r - 1, c] + e[r - 1, c - 1] + e[r - 1, c + 1] + e[r - 2, c] + 2 * e[r, c - 1] + e[r, c - 2]
        activity, beside = activity >> 3, 0
        if code.before:
            beside = 4 * near[r, c] + near[r, c - 1] + near[r, c + 1] + near[r - 1, c] + near[r + 1, c]
            beside = log(logs, (beside >> 3) + 4) // 64
        k = log(logs, activity + 4) // 32, beside
        total, count = means.get(k, (4 * (activity + 4), 4))
        sharp = sharpness[max(log(logs, total) - log(logs, count) + 512, 384)]

        def below(v: int) -> int:
            if v <= 0 or v > code.top:
                return 0 if v <= 0 else 1 << 24
            at = min(max(((16 * v - 8 - mean) * sharp) >> 16, -384 * 4096), 384 * 4096) + 384 * 4096
            ends = [(curve[min(i, 768)] * (2**24 - code.top - 1)) >> 24 for i in (at >> 12, (at >> 12) + 1)]
            return ends[0] + (((ends[1] - ends[0]) * (at & 4095)) >> 12) + v

        value = bisect_right(range(code.top + 1), coder.state % (1 << 24), key=below) - 1
        coder.take(below(value), below(value + 1))
    p[r, c], e[r, c] = value, min(abs(16 * value - mean), 65535)
    if not known:
        total, count = total + e[r, c], count + 1
        means[k] = (total >> 1, count >> 1) if count > 255 else (total, count)


def levels(bound: int) -> list[int]:
    """The levels of section 23.1."""
    found, first = [0], 1
    while first <= 65535:
        level = x = first + (bound * first >> 16)
        while x + 1 - (bound * (x + 1) >> 16) <= level:
            x += 1
        found.append(level)
        first = x + 1
    return found


def band_samples(code: BandCode, plane: Plane, rows: int, cols: int) -> np.ndarray:
    """The samples of a band, int64 [row, col], before they are clamped."""
    numbers = np.array([[plane[r, c] for c in range(cols)] for r in range(rows)], np.int64)
    if code.values is not None:
        return code.values[numbers]
    if not code.relative:
        return code.low + numbers * (2 * code.bound + 1)
    known, numbers = np.array(levels(code.bound)), numbers + code.low
    return np.sign(numbers) * known[np.minimum(np.abs(numbers), len(known) - 1)]


# Section 18, parameters. All are int64: mean and scale [band], matrix [band, component], offsets [component, channel].
Parameters = namedtuple("Parameters", "mean scale matrix offsets")


def read_parameters(payload: bytes, n: int) -> Parameters:
    """Parses the payload of a PARAMETERS chunk of n bands."""
    cursor = Cursor(payload)
    _, (flags,) = cursor.varint(), cursor.unpack("B")
    require(flags <= 3, "a flag of the parameters is unknown")
    pairs = np.array([(cursor.varint(), cursor.varint()) for _ in range(n)], np.int64)
    mean, scale = pairs[:, 0] >> 1 ^ -(pairs[:, 0] & 1), pairs[:, 1]
    require(scale.min() >= 1 and scale.max() <= 33554431, "the range of a band is illegal")
    matrix, offsets = 16384 * np.eye(n, dtype=np.int64), np.zeros((n, LATENTS), np.int64)
    if flags & 1:
        matrix = np.frombuffer(cursor.take(2 * n * n), "<i2").reshape(n, n).astype(np.int64)
    if flags & 2:
        offsets = np.frombuffer(inflate(cursor.take(), offsets.size), np.int8).reshape(n, LATENTS).astype(np.int64)
    require(not cursor.take(), "bytes are left behind the parameters")
    return Parameters(mean, scale, matrix, offsets)


# Section 19, the contract. It becomes a Contract of version 1, whose `arrays` are int64 here.
FIXED = {
    "magnitudes": ("<u1", (128,)),
    "steps": ("<u4", (251,)),
    "base": ("<i1", (251, LATENTS)),
    "shifts": ("<u1", (251, LATENTS)),
    "order": ("<u1", (LATENTS,)),
    "lap": ("<i2", (16, 16)),
    "cosine": ("<i2", (16, 16)),
    "centroids": ("<i1", (64, 32)),
    "tables.radius": ("<u2", (64,)),
}


def load_contract(path: str) -> Contract:
    """Reads the file `contract.npz` and makes all the checks of sections 9, 10 and 19."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            require(sum(file.file_size for file in archive.zip.infolist()) <= v1.MAX_CONTRACT_BYTES, "it is too large")
            found = {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # The libraries raise errors of many kinds when a file is damaged.
        raise Refused(f"the contract cannot be read: {error}") from error
    formed = {name: (array.dtype.str.replace("|", "<"), array.shape) for name, array in found.items()}
    geometry, z_tables = formed.get("component_geometry", ("", ())), formed.get("tables.z_frequencies", ("", ()))
    require(geometry[0] == "<i4" and len(geometry[1]) == 1 and geometry[1][0] >= 7, "the geometry is misshapen")
    require(all(formed.get(name) == form for name, form in FIXED.items()), "an array is missing or misshapen")
    *widths, side = found["component_geometry"][:6].tolist()
    slices = found["component_geometry"][6:].tolist()
    require(all(1 <= width <= 4096 for width in [*widths, *slices]) and widths[0] == LATENTS, "a width is illegal")
    require(side in (64, 128, 256, 512) and sum(slices) == LATENTS, "the patch side or a slice is illegal")
    edges = [sum(slices[:n]) for n in range(len(slices) + 1)]
    passes = [(edges[n], edges[n + 1], edges[n + odd]) for n in range(len(slices)) for odd in (0, 1)]
    sizes = [2 * reach + 3 for reach in found["tables.radius"].tolist() for _ in range(16)]
    levels = max(1, z_tables[1][0] // widths[1]) if z_tables[1] else 0
    legal = FIXED | {"component_geometry": geometry, "tables.frequencies": ("<u2", (sum(sizes),))}
    legal |= {"tables.z_frequencies": ("<u2", (levels * widths[1], 129))}
    rows = list(layer_rows(widths, passes))
    for name, inputs, outputs, kernel, depthwise, _ in rows:
        shape = (outputs, 1 if depthwise else inputs, kernel, kernel)
        legal |= {f"{name}.{part}": (v1.PARTS[part], shape if part == "weight" else shape[:1]) for part in v1.PARTS}
    kept = {name: array for name, array in found.items() if name in legal or name.endswith(".weight")}
    require({name: formed[name] for name in kept} == legal and levels <= 16, "an array is missing or misshapen")
    arrays = {name: array.astype(np.int64) for name, array in kept.items()}
    contract = Contract(arrays, v1.digest(kept), widths, side, passes, {}, [], [])
    magnitudes, steps = arrays["magnitudes"], arrays["steps"]
    require(magnitudes[0] == 0 and magnitudes.max() <= 127, "the magnitudes are illegal")
    require(steps[-1] > 0 and steps[0] < 1 << 31 and bool((np.diff(steps) < 0).all()), "the steps are illegal")
    require(arrays["shifts"].max() <= 13 and np.abs(arrays["centroids"]).max() <= 64, "a shift or centroid is illegal")
    require(sorted(arrays["order"]) == list(range(LATENTS)), "the order is no permutation")
    require(all(np.abs(arrays[name]).sum(0).max() < 1 << 17 for name in ("lap", "cosine")), "a matrix is too large")
    for name, _, _, _, _, largest in rows:
        weight, bias, shift = (arrays[f"{name}.{part}"] for part in v1.PARTS)
        require(weight.min() >= -127 and shift.max() <= 23, f"a weight or a shift of {name} is illegal")
        bound = np.abs(weight).sum(axis=(1, 2, 3)) * largest + np.abs(bias) + ((1 << shift) >> 1)
        require(bool((bound < 1 << 24).all()), f"an accumulator of {name} could become too large")
        contract.layers[name] = (weight.astype(np.float64), bias[:, None, None], shift[:, None, None])
    latent_tables = np.split(arrays["tables.frequencies"], np.cumsum(sizes)[:-1])
    for tables, sums in ((latent_tables, contract.tables), (arrays["tables.z_frequencies"], contract.z_tables)):
        for table in tables:
            sums.append([0, *np.cumsum(table).tolist()])
            require(table.min() >= 1 and sums[-1][-1] == 65536, "the frequencies of a table are illegal")
    return contract


def layer_rows(widths: list[int], passes: list[tuple[int, int, int]]):
    """Yields the rows of the table of layers, as section 20 changes it: name, inputs, outputs, kernel, depthwise, largest."""
    _, hyper_latents, hyper, context, head = widths
    yield "hyper.up1", hyper_latents, 4 * hyper, 1, False, 64
    yield "hyper.depth1", hyper, hyper, 3, True, 255
    yield "hyper.up2", hyper, 4 * hyper, 1, False, 255
    yield "hyper.depth2", hyper, hyper, 3, True, 255
    yield "hyper.mix", hyper + 2, hyper, 1, False, 255
    for k, (start, stop, seen) in enumerate(passes):
        yield f"pass{k}.context", 2 * (stop - start) + 2 * seen, context, 1, False, 127
        yield f"pass{k}.depth", context, context, 5, True, 255
        yield f"pass{k}.head1", hyper + context, head, 1, False, 255
        yield f"pass{k}.head2", head, head, 1, False, 255
        yield f"pass{k}.out", head, 2 * (stop - start), 1, False, 255


# Section 20, latents.
def magnitude(contract: Contract, q: np.ndarray) -> np.ndarray:
    size = np.minimum(np.abs(q), 65536)
    e = np.maximum(np.frexp(size)[1].astype(np.int64) - 7, 0)  # frexp gives the number of bits; 0 if |q| < 128
    return np.minimum(contract.arrays["magnitudes"][size >> e] + 8 * e, 127)


def hyper_features(contract: Contract, z: np.ndarray, step: int, c: int) -> np.ndarray:
    x = layer(contract, "hyper.depth1", v1.shuffle(layer(contract, "hyper.up1", z)))
    x = layer(contract, "hyper.depth2", v1.shuffle(layer(contract, "hyper.up2", x)))
    planes = [np.full((1, *x.shape[1:]), value) for value in (step, 16 * min(c, 15))]
    return layer(contract, "hyper.mix", np.concatenate([x, *planes]))


def pass_prior(contract: Contract, k: int, features: np.ndarray, q: np.ndarray, c: int, step: int, offsets: np.ndarray):
    """Makes the means and scale indices of pass k of component c, int64 [size, H, W / 2], of q [component, 256, H, W]."""
    start, stop, seen = contract.passes[k]
    before = magnitude(contract, q[:c, start:stop])
    views = [some.max(axis=0, initial=0) for some in (before, before[-1:])]  # V0 and V1
    shifts = contract.arrays["shifts"][step][:, None, None]
    known = np.stack([np.clip(q[c, :seen] >> shifts[:seen], -127, 127), magnitude(contract, q[c, :seen])])
    if k % 2 == 1:
        known[:, start:stop] *= 1 - np.indices(q.shape[2:]).sum(axis=0) % 2
    x = layer(contract, f"pass{k}.depth", layer(contract, f"pass{k}.context", np.concatenate([*views, *known])))
    x = np.concatenate([half(features, k % 2), half(x, k % 2)])
    for name in ("head1", "head2", "out"):
        x = layer(contract, f"pass{k}.{name}", x)
    mean, scale = np.split(x, 2)
    added = contract.arrays["base"][step] + offsets[c]
    index = np.clip(((8 * scale + 328) >> 4) + added[start:stop, None, None], 0, 127)
    return mean << shifts[start:stop], index


def escape(coder: v1.Coder, radius: int) -> int:
    """Decodes the symbol behind an escape, as in section 11 but with at most 24 zeros."""
    bit = [0, 32768, 65536]
    negative, zeros, v = coder.pop(bit), 0, 1
    while coder.pop(bit) == 0:
        zeros += 1
        require(zeros <= 24, "an escape has more than 24 zeros")
    for _ in range(zeros):
        v = 2 * v + coder.pop(bit)
    return -radius - v if negative else radius + 1 + v  # v = excess + 1


# The state of the trellis behind each state, by the parity of the whole steps.
NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))


def decode_pass(contract: Contract, coder: v1.Coder, mean: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Decodes the latents of one pass. All arrays are int64 [channels, H, W / 2], of the channels that are coded."""
    means, indices, shape = mean.ravel().tolist(), index.ravel().tolist(), mean.shape
    raw = [0 if i < 64 else (i - 58) // 6 for i in indices]
    table = [16 * i + ((m >> r) & 15) for i, m, r in zip(indices, means, raw, strict=True)]
    order = sorted(range(len(table)), key=table.__getitem__)  # this sort is stable
    radii, state, popped = contract.arrays["tables.radius"].tolist(), 0, []
    for i in order:
        known = indices[i] if indices[i] < 64 else 58 + (indices[i] - 58) % 6
        moves = 11 <= indices[i] < 64
        odd = state % 2 if moves else 0
        below, radius = means[i] - 8 * odd, radii[known]
        entry = coder.pop(contract.tables[16 * known + ((below >> raw[i]) & 15)])
        steps, escaped = entry - radius + (below >> (raw[i] + 4)), entry == 2 * radius + 2
        popped.append((i, odd, below, radius, steps, escaped))
        if moves:
            state = NEXT[state][0 if escaped else steps & 1]
    latents = np.zeros(len(table), np.int64)
    for i, odd, below, radius, steps, escaped in popped:
        if escaped:
            steps = escape(coder, radius) + (below >> (raw[i] + 4))
        if raw[i]:  # the running sums of a table whose entries are equally probable
            steps = (steps << raw[i]) + coder.pop(range(0, 65537, 1 << (16 - raw[i])))
        latents[i] = 2 * steps + odd
    require(bool((np.clip(latents, Q_MIN, Q_MAX) == latents).all()), "a latent is outside its range")
    return latents.reshape(shape)


def decode_latents(contract: Contract, segment: Segment, offsets: np.ndarray, rows: int, cols: int) -> tuple:
    """Decodes a segment of mode 0 of `rows` x `cols` pixels.

    Returns q, the means in sixteenths and the scale indices, all int64 [component, 256, H, W], and how many passes count.
    """
    require(
        segment.mode == v1.NETWORK and segment.words[:1] != (0,), "the segment has no latents or its first word is 0"
    )
    n, cut, hyper_latents = len(segment.coded), bool(segment.flags & v1.CUT), contract.widths[1]
    h, w = -(-rows // 64), -(-cols // 64)
    levels, counts, features = len(contract.z_tables) // hyper_latents, True, {}
    coder = v1.Coder(segment.words)
    for c in range(n):
        if segment.coded[c] > 0:
            z, first = np.zeros(hyper_latents * h * w, np.int64), segment.steps[c] * levels // 251 * hyper_latents
            if counts:
                z[:] = [coder.pop(contract.z_tables[first + i // (h * w)]) - 64 for i in range(z.size)]
                counts = not (cut and coder.remaining() < 2)
            z = z.reshape(hyper_latents, h, w) * counts
            features[c] = hyper_features(contract, z, segment.steps[c], c)
    (q, means, indices), decoded = np.zeros((3, n, LATENTS, 4 * h, 4 * w), np.int64), 0
    order = [(k + odd, c) for k in range(0, len(contract.passes), 2) for c in range(n) for odd in (0, 1)]
    for k, c in order:
        start, stop, _ = contract.passes[k]
        own = min(stop, 8 * segment.coded[c]) - start  # the channels of the pass that are coded
        if own <= 0:
            continue
        mean, index = pass_prior(contract, k, features[c], q, c, segment.steps[c], offsets)
        mean, index = mean[:own], index[:own]
        if counts:
            try:
                values = decode_pass(contract, coder, mean, index)
                counts = not (cut and coder.remaining() < 2)
            except Refused:
                require(cut, "an escape or a latent is illegal")
                counts = False
            decoded += counts
        if not counts:
            values = np.clip(2 * ((mean + 8) >> 4), Q_MIN, Q_MAX - 1)
        for whole, part in ((q, values), (means, mean), (indices, index)):  # the inverse of `half`
            place = whole[c, start : start + own]
            place[:, 0::2, k % 2 :: 2], place[:, 1::2, 1 - k % 2 :: 2] = np.split(part, 2, axis=1)
    require(cut or coder.remaining() == 0, "words or a state are left behind the last symbol")
    coded = b"".join(q[c, : 8 * segment.coded[c]].astype("<i4").tobytes() for c in range(n))
    require(cut or zlib.crc32(coded) % 65536 == segment.checksum, "a checksum is wrong")
    return q, means, indices, decoded


# Section 21, from latents to samples.
def rounded(x: np.ndarray, n: int) -> np.ndarray:
    return (x + (1 << (n - 1))) >> n


def plane(contract: Contract, step: int, q: np.ndarray, mean: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Steps 1 to 3 for one component: int64 [256, H, W] to its plane, int64 [16 H, 16 W], in 2^-20 of the range."""
    _, rows, cols = q.shape
    d = 8 * q - mean
    inwards = contract.arrays["centroids"][np.minimum(index, 63), np.minimum((np.abs(d) + 2) >> 2, 31)]
    v = 64 * q - np.where(index < 64, np.sign(d) * inwards, 0)  # d is 0 where nothing is coded
    coefficients = np.clip(rounded(v * contract.arrays["steps"][step], 15), -PLANE_MAX, PLANE_MAX)
    blocks = np.zeros_like(coefficients)
    blocks[contract.arrays["order"]] = coefficients
    x = blocks.reshape(16, 16, rows, cols).transpose(2, 0, 3, 1).reshape(16 * rows, 16 * cols)
    return np.clip(inverse_lines(contract, inverse_lines(contract, x).T).T, -(2**31), 2**31 - 1)


def inverse_lines(contract: Contract, x: np.ndarray) -> np.ndarray:
    """Transforms every column of an array whose columns have blocks of 16 values."""
    cosine, lap = contract.arrays["cosine"], contract.arrays["lap"]
    y = rounded(np.matmul(cosine.T, x.reshape(-1, 16, x.shape[1])), 14).reshape(x.shape)
    inner = y[8:-8].reshape(-1, 16, x.shape[1])
    y[8:-8] = rounded(np.matmul(lap.T, inner), 14).reshape(-1, x.shape[1])
    return y


def patch_samples(contract: Contract, stream: Stream, patch: int, latents: tuple | None) -> tuple:
    """Returns the samples of a patch, int64 or float32 [band, row, col], their validity, and the alpha band or None.

    `latents` is what decode_latents returns, or None for a segment without any.
    """
    header, segment, fields = stream.header, stream.segments[patch], stream.fields
    rows, cols = patch_size(header, patch)
    floats = header.sample_type == "float32"
    legal = None if floats else np.iinfo(header.sample_type)
    samples = np.zeros((header.bands, rows, cols), np.float32 if floats else np.int64)
    if segment.mode == PREDICTED:
        planes = decode_codes(segment, rows, cols)
        samples = np.stack([band_samples(*one, rows, cols) for one in zip(segment.codes, planes, strict=True)])
    if segment.mode == STORED:
        samples = np.stack([stored_samples(band, rows, cols, header.sample_type) for band in segment.stored])
    if segment.mode in (PREDICTED, STORED) and not floats:
        samples = np.clip(samples, legal.min, min(legal.max, (1 << fields.get("NBITS", 16)) - 1))
    if latents is not None:
        mean, scale, matrix, _ = stream.parameters[patch // -(-header.width // header.side)]
        components = zip(segment.steps, *latents[:3], strict=True)
        planes = np.stack([plane(contract, *component)[:rows, :cols] for component in components])
        mixed = np.clip(rounded(np.tensordot(matrix, planes, 1), 14), -PLANE_MAX, PLANE_MAX)
        samples = mean[:, None, None] + rounded(mixed * scale[:, None, None], 28)
        samples = np.clip(samples, legal.min, min(legal.max, (1 << fields.get("NBITS", 16)) - 1))
    # Step 5 of section 12.1, with section 6: validity and alpha are those of a unit for every three bands.
    known = segment._replace(mode=v1.NETWORK) if segment.mode in (PREDICTED, STORED) else segment
    units = {patch * header.groups + group: known for group in range(header.groups)}
    without_alpha = header._replace(sample_type="uint8") if floats else header  # floats go without alpha
    valid, alpha = v1.validity(v1.Stream(without_alpha, units, stream.masks, None, None, None, fields), patch)
    nodata = fields.get("NODATA", 0.0) if floats else int(fields.get("NODATA", 0))
    if not floats and "NODATA" in fields and "FILL_MASKED" not in fields:
        samples[samples == nodata] += -1 if nodata == min(legal.max, (1 << fields.get("NBITS", 16)) - 1) else 1
    return np.where(valid, samples, nodata), valid, alpha


# What is decoded of a stream: `latents` is {patch: what decode_latents returns}; samples and their validity [band, row, col],
# and alpha, [row, col] or None.
Scene = namedtuple("Scene", "latents samples valid alpha")


def decode_scene(contract: Contract, stream: Stream) -> Scene:
    """Decodes all patches of a stream."""
    header, latents, across = stream.header, {}, -(-stream.header.width // stream.header.side)
    require(contract.digest == header.contract and contract.side == header.side, "the stream names another contract")
    samples = np.zeros((header.bands, header.height, header.width), header.sample_type)
    scene = Scene(latents, samples, samples > 0, np.zeros_like(samples[0]) if "ALPHA" in stream.fields else None)
    for patch, segment in stream.segments.items():
        if segment.mode == v1.NETWORK:
            offsets = stream.parameters[patch // across].offsets
            latents[patch] = decode_latents(contract, segment, offsets, *patch_size(header, patch))
        top, left = (header.side * place for place in divmod(patch, across))
        place = np.s_[..., top : top + header.side, left : left + header.side]
        found = patch_samples(contract, stream, patch, latents.get(patch))
        for whole, part in zip(scene[1:], found, strict=True):
            if whole is not None:
                whole[place] = part
    # Section 18.2: every band is taken out of the frame at its place.
    (rows, cols) = np.array([header.height, header.width]) - stream.places.max(0)
    for name in ("samples", "valid"):
        bands = [w[y : y + rows, x : x + cols] for w, (y, x) in zip(getattr(scene, name), stream.places, strict=True)]
        scene = scene._replace(**{name: np.stack(bands)})
    return scene


def main(stream_path: str, contract_path: str) -> None:
    """Decodes a stream and prints its header, and the CRC-32 of every patch's latents and of the samples, as JSON."""
    stream = read_stream(np.fromfile(stream_path, np.uint8).tobytes())
    scene = decode_scene(load_contract(contract_path), stream)
    latents = {patch: zlib.crc32(found[0].astype("<i4").tobytes()) for patch, found in sorted(scene.latents.items())}
    fields = stream.header._asdict() | {"contract": stream.header.contract.hex()}
    fields |= {"sample_type": scene.samples.dtype.name}
    print(json.dumps({"header": fields, "latents": latents, "samples": zlib.crc32(scene.samples.tobytes())}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
