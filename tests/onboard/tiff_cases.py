"""GeoTIFFs over the options of GDAL's TIFF driver, and some by hand whose tags lie: what the differential test reads.

Every case is a file name and a function that writes it. The files are small; between them they cover compression, predictor,
planar configuration, tiling, sparse blocks, byte order, BigTIFF, sample types, NBITS, photometric interpretation, extra samples of
every kind in any place, masks inside and beside, nodata texts, overviews, and odd sizes.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

Case = tuple[str, Callable[[Path], None]]
TYPES = {"B": (1, 1), "s": (2, 1), "H": (3, 2), "I": (4, 4), "d": (12, 8)}
GEO: dict[int, tuple[str, list[float]]] = {
    33550: ("d", [10.0, 10.0, 0.0]),
    33922: ("d", [0, 0, 0, 500000.0, 4600000.0, 0]),
    34735: ("H", [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633]),
}


def picture(bands: int, rows: int, cols: int, dtype: str, most: int | None = None) -> np.ndarray:
    """A smooth picture with some texture, [band, row, col]."""
    high = most or {"uint8": 255, "uint16": 40000, "int16": 12000}[dtype]
    y, x = np.mgrid[0:rows, 0:cols]
    wave = np.stack([0.5 + 0.3 * np.sin((x + 7 * b) / 9) + 0.2 * np.cos((y - 5 * b) / 7) for b in range(bands)])
    noise = np.random.default_rng(rows * cols + bands).normal(0, 0.01, wave.shape)
    return np.rint(np.clip(wave + noise, 0.01, 1) * high).astype(dtype)


def gdal(
    path: Path, data: np.ndarray, mask: Any = None, inside: bool = True, after: Any = None, **options: Any
) -> None:
    """A file as GDAL's driver writes it."""
    layout = {
        "driver": "GTiff", "width": data.shape[2], "height": data.shape[1], "count": data.shape[0], "dtype": data.dtype.name,
        "crs": "EPSG:32633", "transform": from_origin(5e5, 4.6e6, 10, 10),
    } | options  # fmt: skip
    environment = rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES" if inside else "NO")
    with environment, rasterio.open(path, "w", **layout) as target:
        target.write(data)
        if mask is not None:
            target.write_mask(mask)
        if after:
            after(target)


def by_hand(
    path: Path, tags: dict[int, tuple[str, Any]], blocks: list[bytes], order: str = "<", holes: tuple[int, ...] = ()
) -> None:
    """A classic TIFF with exactly these tags; 273 or 324 given as None is filled with the blocks' offsets, 0 for ``holes``."""
    pointer = 324 if 324 in tags else 273
    sizes = {}
    for code, (kind, values) in tags.items():
        values = [0] * len(blocks) if code == pointer and values is None else values
        raw = values if isinstance(values, bytes) else struct.pack(order + str(len(values)) + kind, *values)
        sizes[code] = (kind, raw)
    table = 8 + 2 + 12 * len(tags) + 4
    at = table + sum(len(raw) + len(raw) % 2 for _, raw in sizes.values() if len(raw) > 4)
    offsets = []
    for i, block in enumerate(blocks):
        offsets.append(0 if i in holes else at)
        at += 0 if i in holes else len(block)
    extra = body = b""
    for code in sorted(sizes):
        kind, raw = sizes[code]
        if code == pointer and tags[code][1] is None:
            raw = struct.pack(order + str(len(offsets)) + kind, *offsets)
        if len(raw) > 4:
            place = struct.pack(order + "I", table + len(extra))
            extra += raw + b"\0" * (len(raw) % 2)
        else:
            place = raw.ljust(4, b"\0")
        body += struct.pack(order + "HHI", code, TYPES[kind][0], len(raw) // TYPES[kind][1]) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(tags))
    path.write_bytes(head + body + b"\0" * 4 + extra + b"".join(b for i, b in enumerate(blocks) if i not in holes))


def strip(
    rows: int, cols: int, samples: int = 1, bits: int = 8, compression: int = 1, photometric: int = 1, **more: Any
) -> dict[int, tuple[str, Any]]:
    """Tags of a TIFF of one strip."""
    tags: dict[int, tuple[str, Any]] = {
        256: ("H", [cols]), 257: ("H", [rows]), 258: ("H", [bits] * samples), 259: ("H", [compression]), 262: ("H", [photometric]),
        273: ("I", None), 277: ("H", [samples]), 278: ("H", [rows]), 279: ("I", [rows * cols * samples * bits // 8]), **GEO,
    }  # fmt: skip
    return tags | {int(name[1:]): value for name, value in more.items()}


def layouts() -> Iterator[Case]:
    """Compression, predictor, planar configuration, tiling, type, size, byte order, BigTIFF."""
    compressions = ("none", "deflate", "lzw", "zstd", "packbits", "lzma", "lerc")
    for i, (compress, predictor, dtype, tiled, interleave) in enumerate(
        itertools.product(compressions, (1, 2), ("uint8", "uint16", "int16"), (False, True), ("pixel", "band"))
    ):
        if predictor == 2 and compress in ("none", "packbits", "lerc"):
            continue
        bands, (rows, cols) = (1, 3, 4, 5)[i % 4], ((64, 64), (35, 37), (1, 1), (130, 17))[i // 4 % 4]
        options: dict[str, Any] = {"interleave": interleave, "photometric": "RGB" if bands == 3 else "MINISBLACK"}
        if compress != "none":
            options["compress"] = compress
        if predictor == 2:
            options["predictor"] = 2
        if tiled:
            options |= {"tiled": True, "blockxsize": 32, "blockysize": 16 + 16 * (i % 2)}
        else:
            options["blockysize"] = (1, 7, 64)[i % 3]
        options["ENDIANNESS"] = ("LITTLE", "BIG")[i // 2 % 2]
        options["BIGTIFF"] = ("NO", "YES")[i // 3 % 2]
        yield (
            f"layout-{compress}-p{predictor}-{dtype}-{'tiled' if tiled else 'strips'}-{interleave}-{bands}",
            lambda p, b=bands, r=rows, c=cols, d=dtype, o=options: gdal(p, picture(b, r, c, d), **o),
        )
    for name, options in {
        "jpeg": {"compress": "jpeg", "photometric": "RGB"},
        "jpeg-ycbcr": {"compress": "jpeg", "photometric": "YCBCR"},
        "jpeg-tiled": {"compress": "jpeg", "photometric": "YCBCR", "tiled": True, "blockxsize": 32, "blockysize": 32},
        "jpeg-planar": {"compress": "jpeg", "interleave": "band", "photometric": "RGB"},
        "webp": {"compress": "webp", "WEBP_LOSSLESS": "YES", "photometric": "RGB"},
        "jxl": {"compress": "jxl", "JXL_LOSSLESS": "YES", "photometric": "RGB"},
        "copy-overviews": {"tiled": True, "blockxsize": 32, "blockysize": 32},
    }.items():
        yield f"codec-{name}", lambda p, o=options: gdal(p, picture(3, 96, 80, "uint8"), **o)


def sparse() -> Iterator[Case]:
    """Blocks that are not in the file, with and without nodata, and byte counts that lie."""
    for dtype, nodata, tiled in itertools.product(("uint8", "int16"), (None, 7), (False, True)):
        options: dict[str, Any] = {"SPARSE_OK": "TRUE", "nodata": nodata}
        options |= {"tiled": True, "blockxsize": 32, "blockysize": 32} if tiled else {"blockysize": 16}

        def write(path: Path, dtype: str = dtype, options: dict[str, Any] = options) -> None:
            data = picture(1, 96, 64, dtype)
            layout = {"width": 64, "height": 96, "count": 1, "dtype": dtype, "crs": "EPSG:32633", "driver": "GTiff"}
            with rasterio.open(path, "w", transform=from_origin(5e5, 4.6e6, 10, 10), **layout, **options) as target:
                target.write(data[:, :32], window=rasterio.windows.Window(0, 0, 64, 32))

        yield f"sparse-{dtype}-{nodata}-{'tiled' if tiled else 'strips'}", write
    blocks = [zlib.compress(picture(1, 64, 64, "int16")[0].tobytes()) for _ in range(4)]
    for text in (b"-9999.0\0", b"-9999\0", b" -9.999e3 \0", b"0\0", b"nan\0"):
        tags = {
            256: ("H", [128]), 257: ("H", [128]), 258: ("H", [16]), 259: ("H", [8]), 262: ("H", [1]), 277: ("H", [1]),
            322: ("H", [64]), 323: ("H", [64]), 324: ("I", None), 325: ("I", [len(blocks[0]), 0, len(blocks[2]), len(blocks[3])]),
            339: ("H", [2]), 42113: ("s", text), **GEO,
        }  # fmt: skip
        name = text.strip(b"\0 ").decode()
        yield f"hole-{name}", lambda p, t=tags: by_hand(p, t, [blocks[0], b"", *blocks[2:]], holes=(1,))
    raw = picture(1, 64, 64, "uint8")[0].tobytes()
    for name, compression, block in (("raw", 1, raw), ("deflate", 8, zlib.compress(raw))):
        yield (
            f"count-zero-{name}",
            lambda p, c=compression, b=block: by_hand(p, strip(64, 64, compression=c, t279=("I", [0])), [b]),
        )
        yield (
            f"offset-zero-{name}",
            lambda p, c=compression, b=block: by_hand(
                p, strip(64, 64, compression=c, t279=("I", [len(b)]), t273=("I", [0])), [b]
            ),
        )
    yield "count-short", lambda p: by_hand(p, strip(64, 64, t279=("I", [100])), [raw])
    yield "count-long", lambda p: by_hand(p, strip(64, 64, t279=("I", [8192])), [raw + b"\1" * 4096])


def lying() -> Iterator[Case]:
    """Tags that do not fit: predictors without a compression that has one, orientations, fill order, rows per strip."""
    raw = picture(1, 64, 64, "uint8")[0].tobytes()
    for predictor in (1, 2, 3, 5):
        yield f"predictor-{predictor}-raw", lambda p, n=predictor: by_hand(p, strip(64, 64, t317=("H", [n])), [raw])
    packed = b"".join(bytes([63]) + raw[i : i + 64] for i in range(0, 4096, 64))
    yield (
        "predictor-2-packbits",
        lambda p: by_hand(p, strip(64, 64, compression=32773, t317=("H", [2]), t279=("I", [len(packed)])), [packed]),
    )
    squeezed = zlib.compress(raw)
    for predictor in (2, 3, 7):
        tags = strip(64, 64, compression=8, t317=("H", [predictor]), t279=("I", [len(squeezed)]))
        yield f"predictor-{predictor}-deflate", lambda p, t=tags: by_hand(p, t, [squeezed])
    for orientation in (0, 1, 2, 3, 6, 8, 9):
        tags = strip(64, 64, t274=("H", [orientation]))
        yield f"orientation-{orientation}", lambda p, t=tags: by_hand(p, t, [raw])
    yield "fill-order-2", lambda p: by_hand(p, strip(64, 64, t266=("H", [2])), [raw])
    yield "rows-per-strip-huge", lambda p: by_hand(p, strip(64, 64, t278=("I", [2**32 - 1])), [raw])
    yield "rows-per-strip-missing", lambda p: by_hand(p, {k: v for k, v in strip(64, 64).items() if k != 278}, [raw])
    yield "rows-per-strip-zero", lambda p: by_hand(p, strip(64, 64, t278=("H", [0])), [raw])
    yield "min-is-white", lambda p: by_hand(p, strip(64, 64, photometric=0), [raw])
    yield "cmyk", lambda p: by_hand(p, strip(32, 32, samples=4, photometric=5), [raw])
    yield "cielab", lambda p: by_hand(p, strip(32, 32, samples=3, photometric=8), [raw[:3072]])
    yield "signed-bytes", lambda p: by_hand(p, strip(64, 64, t339=("H", [2])), [raw])
    yield "void-bytes", lambda p: by_hand(p, strip(64, 64, t339=("H", [4])), [raw])
    mixed = strip(32, 32, samples=2, t258=("H", [8, 16]))
    yield "mixed-depths", lambda p: by_hand(p, mixed, [raw])
    yield (
        "two-strips-one-listed",
        lambda p: by_hand(p, strip(64, 64, t278=("H", [32]), t279=("I", [2048])), [raw[:2048]]),
    )
    yield "truncated", lambda p: (by_hand(p, strip(64, 64), [raw]), p.write_bytes(p.read_bytes()[:-1000]))[0]
    yield "big-endian", lambda p: by_hand(p, strip(64, 64), [raw], order=">")


def depths() -> Iterator[Case]:
    """Samples that use fewer bits than their type."""
    for nbits, compress, interleave in itertools.product(
        (1, 4, 7, 9, 10, 12, 15), (None, "deflate", "lzw"), ("pixel", "band")
    ):
        dtype = "uint8" if nbits < 8 else "uint16"
        options: dict[str, Any] = {"nbits": nbits, "interleave": interleave, "photometric": "MINISBLACK"}
        if compress:
            options["compress"] = compress
        yield (
            f"nbits-{nbits}-{compress}-{interleave}",
            lambda p, d=dtype, n=nbits, o=options: gdal(p, picture(2, 33, 29, d, most=2**n - 1), **o),
        )
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    yield "nbits-12-tiled", lambda p: gdal(p, picture(1, 50, 41, "uint16", most=4095), nbits=12, **tiles)
    yield "nbits-12-jpeg", lambda p: gdal(p, picture(1, 64, 64, "uint16", most=4095), nbits=12, compress="jpeg")


def bands_and_alpha() -> Iterator[Case]:
    """Photometric interpretation, extra samples of every kind and in any place, colour interpretations by name."""
    for photometric, count, alpha in itertools.product(
        ("RGB", "MINISBLACK"), (2, 3, 4, 5, 6), ("NO", "YES", "PREMULTIPLIED", "NON-PREMULTIPLIED")
    ):
        if photometric == "RGB" and count < 4:
            continue

        def write(path: Path, n: int = count, photometric: str = photometric, alpha: str = alpha) -> None:
            data = picture(n, 40, 40, "uint8")
            data[-1, :, :15] = 0
            gdal(path, data, photometric=photometric, ALPHA=alpha)

        yield f"alpha-{photometric}-{count}-{alpha}", write
    for place, kind in itertools.product(range(3), (0, 1, 2)):
        extra = [0, 0, 0]
        extra[place] = kind
        data = picture(4, 32, 32, "uint16")
        data[1 + place, :, :9] = 0
        raw = data.transpose(1, 2, 0).astype("<u2").tobytes()
        tags = strip(32, 32, samples=4, bits=16, t338=("H", extra))
        yield f"extra-{place}-{kind}", lambda p, t=tags, r=raw: by_hand(p, t, [r])
    two = strip(32, 32, samples=4, t338=("H", [2, 2, 0]))
    yield "two-alphas", lambda p: by_hand(p, two, [picture(4, 32, 32, "uint8").transpose(1, 2, 0).tobytes()])
    yield (
        "too-few-extra-samples",
        lambda p: by_hand(p, strip(32, 32, samples=4), [picture(4, 32, 32, "uint8").transpose(1, 2, 0).tobytes()]),
    )
    for names in (
        ("blue", "green", "red", "undefined"),
        ("red", "green", "blue", "alpha"),
        ("gray", "alpha", "undefined", "undefined"),
    ):

        def write_named(path: Path, names: tuple[str, ...] = names) -> None:
            gdal(path, picture(4, 32, 32, "uint16"), photometric="MINISBLACK", ALPHA="NO")
            with rasterio.open(path, "r+") as target:
                target.colorinterp = [ColorInterp[name] for name in names]

        yield f"interpretation-{'-'.join(names)}", write_named


def validity() -> Iterator[Case]:
    """Masks inside and beside, nodata texts, both together, overviews."""
    mask = np.full((70, 60), 255, np.uint8)
    mask[:20, :33] = 0
    for dtype, inside, compress in itertools.product(("uint8", "uint16", "int16"), (True, False), (None, "deflate")):
        options = {"compress": compress} if compress else {}
        yield (
            f"mask-{dtype}-{'inside' if inside else 'beside'}-{compress}",
            lambda p, d=dtype, i=inside, o=options: gdal(p, picture(3, 70, 60, d), mask, i, photometric="RGB", **o),
        )
    yield "mask-tiled", lambda p: gdal(p, picture(1, 70, 60, "uint8"), mask, tiled=True, blockxsize=16, blockysize=16)
    yield "mask-and-nodata", lambda p: gdal(p, picture(1, 70, 60, "uint8", most=200), mask, nodata=255)
    raw = picture(1, 64, 64, "uint8")[0].copy()
    raw[:20] = 0
    raw[40:50] = 1
    for text in (
        "0",
        "0.0",
        " 0",
        "1",
        "1e0",
        "+1",
        "1.",
        "01",
        "0.5",
        "-1",
        "256",
        "300.0",
        "nan",
        "inf",
        "none",
        "",
        "0x1",
        "1 2",
        "1,5",
    ):
        tags = strip(64, 64, t42113=("s", text.encode() + b"\0"))
        yield f"nodata-{text or 'empty'}".replace("/", "-"), lambda p, t=tags: by_hand(p, t, [raw.tobytes()])
    signed = picture(1, 32, 32, "int16")[0].copy()
    signed[:9] = -9999
    for text in ("-9999", "-9999.0", "-9.999e3", "-9999.5", "-40000", "-1.7e308"):
        tags = strip(32, 32, bits=16, t339=("H", [2]), t42113=("s", text.encode() + b"\0"))
        yield f"nodata-int16-{text}", lambda p, t=tags: by_hand(p, t, [signed.astype("<i2").tobytes()])

    def overviews(path: Path) -> None:
        gdal(path, picture(3, 200, 150, "uint8"), np.pad(mask, ((0, 130), (0, 90))), photometric="RGB")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "r+") as target:
            target.build_overviews([2, 4])

    yield "overviews-and-mask", overviews

    def cog(path: Path) -> None:
        plain = path.with_name("plain-" + path.name)
        overviews(plain)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
            rasterio.shutil.copy(plain, path, driver="COG", BLOCKSIZE=128, COMPRESS="DEFLATE")
        plain.unlink()

    yield "cog-overviews-first-on-disk", cog


def described() -> Iterator[Case]:
    """Names, units, scales, tags; georeferencing of every kind, inside and beside."""

    def full(target: Any) -> None:
        target.descriptions = ("blue", None, "nir")
        target.scales, target.offsets = (0.1, 1.0, 0.5), (0.0, 2.0, 0.0)
        target.units = ("W/m2/sr/um", "", "K")
        target.update_tags(SATELLITE="X-1", NOTE="R & D <one>")
        target.update_tags(2, WAVELENGTH="560")
        target.update_tags(ns="IMAGERY", SATELLITEID="X")

    yield "described", lambda p: gdal(p, picture(3, 32, 32, "uint16"), after=full, photometric="MINISBLACK")
    yield "no-crs", lambda p: gdal(p, picture(1, 32, 32, "uint8"), crs=None)
    yield "no-transform", lambda p: gdal(p, picture(1, 32, 32, "uint8"), transform=rasterio.Affine.identity())
    yield (
        "rotated",
        lambda p: gdal(p, picture(1, 32, 32, "uint8"), transform=rasterio.Affine(8, 3, 5e5, 2, -9, 4.6e6)),
    )
    yield "south-up", lambda p: gdal(p, picture(1, 32, 32, "uint8"), transform=rasterio.Affine(8, 0, 5e5, 0, 9, 4.6e6))
    yield "point", lambda p: gdal(p, picture(1, 32, 32, "uint8"), after=lambda t: t.update_tags(AREA_OR_POINT="Point"))
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:2154", "ESRI:54009", "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80"):
        yield (
            f"crs-{crs[-12:].strip()}".replace(" ", "").replace("+", ""),
            lambda p, c=crs: gdal(p, picture(1, 32, 32, "uint8"), crs=c),
        )

    def beside(suffix: str, text: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            gdal(path, picture(2, 32, 32, "uint8"), crs=None, transform=None, photometric="MINISBLACK")
            place = path.with_name(path.name + suffix) if suffix == ".aux.xml" else path.with_suffix(suffix)
            place.write_text(text)

        return write

    yield "world-tfw", beside(".tfw", "10.0\n0.0\n0.0\n-10.0\n500005.0\n4599995.0\n")
    yield "world-wld", beside(".wld", "10 1 2 -10 500005 4599995")
    yield "world-broken", beside(".tfw", "ten\n0\n")
    wkt = rasterio.crs.CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
    pam = (
        f"<PAMDataset><SRS>{wkt}</SRS><GeoTransform>500000,10,0,4600000,0,-10</GeoTransform>"
        "<PAMRasterBand band='2'><Description>nir</Description><UnitType>K</UnitType><NoDataValue>3</NoDataValue></PAMRasterBand>"
        "<PAMRasterBand band='1'><NoDataValue>3</NoDataValue><Scale>0.5</Scale><Offset>2</Offset></PAMRasterBand></PAMDataset>"
    )
    yield "pam", beside(".aux.xml", pam)
    item = (
        '<Item name="SCALE" sample="0" role="scale">0.01</Item><Item name="D" sample="0" role="description">B8A</Item>'
    )
    for name, text in {
        "declared": f'<?xml version="1.0" encoding="UTF-8"?><GDALMetadata>{item}</GDALMetadata>',
        "comment": f"<GDALMetadata><!-- note -->{item}</GDALMetadata>",
        "cdata": f'<GDALMetadata><Item name="N"><![CDATA[a < b]]></Item>{item}</GDALMetadata>',
        "ampersand": f'<GDALMetadata><Item name="N">R & D</Item>{item}</GDALMetadata>',
        "long": f'<GDALMetadata><Item name="N">{"x" * (3 << 19)}</Item>{item}</GDALMetadata>',
    }.items():
        tags = strip(32, 32, t42112=("s", text.encode() + b"\0"))
        yield f"xml-{name}", lambda p, t=tags: by_hand(p, t, [picture(1, 32, 32, "uint8").tobytes()])


def contradictory() -> Iterator[Case]:
    """Georeferencing, nodata and masks in places where a reader easily takes another one than GDAL."""
    plain = picture(1, 32, 32, "uint8").tobytes()

    def geokeys(*entries: tuple[int, int], version: int = 1, count: int | None = None) -> dict[int, tuple[str, Any]]:
        keys = [(1024, 1), (1025, 1), *entries]
        listed = [n for key, value in keys for n in (key, 0, 1, value)]
        return {34735: ("H", [version, 1, 0, len(keys) if count is None else count, *listed])}

    def file(
        tags: dict[int, tuple[str, Any]], without: int = 0, suffix: str = "", text: str = ""
    ) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            whole = {code: value for code, value in (strip(32, 32) | tags).items() if code != without}
            by_hand(path, whole, [plain])
            if suffix:
                (path.with_name(path.name + suffix) if suffix == ".aux.xml" else path.with_suffix(suffix)).write_text(
                    text
                )

        return write

    for code in (2056, 2263, 4087, 6350, 22033, 27700, 31370):
        yield f"code-{code}", file(geokeys((3072, code)))
    for code in (4035, 4269, 4322, 4326, 4555, 4930, 4937, 4955, 7843, 7844):
        yield f"code-{code}", file({34735: ("H", [1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, code])})
    for code, unit in ((2263, 9001), (32633, 9003), (32633, 9001), (2263, 9003)):
        yield f"code-{code}-unit-{unit}", file(geokeys((3072, code), (3076, unit)))
    world = "2\n0\n0\n-2\n100\n200\n"
    ties = {33922: ("d", [0, 0, 0, 1, 2, 0, 32, 0, 0, 65, 2, 0, 0, 32, 0, 1, -62, 0])}
    yield "world-over-tiepoints", file(ties, 33550, ".tfw", world)
    yield "scale-alone", file({}, 33922)
    yield (
        "scale-alone-point",
        file({34735: ("H", [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2, 3072, 0, 1, 32633])}, 33922),
    )
    yield "world-over-scale-alone", file({}, 33922, ".tfw", world)
    yield "world-in-another-case", file({}, 33922, ".Tfw", world)
    yield "keys-of-version-2", file(geokeys((3072, 32633), version=2))
    yield "keys-fewer-than-announced", file(geokeys((3072, 32633), count=9))
    for i, text in enumerate(("1.#QNAN", "-1.#IND", "1.#INF", "\u0661")):
        yield f"nodata-print-{i}", file({42113: ("s", text.encode() + b"\0")})
    band = "<PAMDataset><PAMRasterBand band='1'>{}</PAMRasterBand></PAMDataset>"
    hexadecimal = "<NoDataValue le_hex_equiv='0000000000005940'>0</NoDataValue>"
    yield "pam-nodata-hexadecimal", file({}, 0, ".aux.xml", band.format(hexadecimal))
    yield "pam-nodata-empty", file({}, 0, ".aux.xml", band.format("<NoDataValue></NoDataValue>"))
    scaled = b'<GDALMetadata><Item name="OFFSET" sample="0" role="offset">3</Item></GDALMetadata>\0'
    yield "pam-scale-alone", file({42112: ("s", scaled)}, 0, ".aux.xml", band.format("<Scale>2</Scale>"))
    four = {338: ("H", [999]), **{code: strip(32, 32, 4, photometric=2)[code] for code in (258, 262, 277, 279)}}
    for kind in (3, 999):
        tags = strip(32, 32, 4, photometric=2) | four | {338: ("H", [kind])}
        data = picture(4, 32, 32, "uint8").transpose(1, 2, 0).tobytes()
        yield f"extra-kind-{kind}", lambda p, t=tags, d=data: by_hand(p, t, [d])
    yield "jpeg-grey-of-3", lambda p: gdal(p, picture(3, 64, 64, "uint8"), compress="JPEG", photometric="MINISBLACK")

    def in_subifd(path: Path) -> None:
        with tifffile.TiffWriter(path) as target:
            target.write(picture(1, 32, 32, "uint8")[0], subifds=1, metadata=None)
            target.write(np.arange(1024).reshape(32, 32) > 300, subfiletype=4, photometric="mask", metadata=None)

    def beside_in_capitals(path: Path) -> None:
        gdal(path, picture(1, 32, 32, "uint8"), np.arange(1024).reshape(32, 32) > 300, inside=False)
        path.with_name(path.name + ".msk").rename(path.with_name(path.name + ".MSK"))

    yield "mask-in-subifd", in_subifd
    yield "mask-beside-in-capitals", beside_in_capitals


def cases() -> list[Case]:
    """All cases, by name."""
    groups = (layouts, sparse, lying, depths, bands_and_alpha, validity, described, contradictory)
    found = [case for group in groups for case in group()]
    assert len({name for name, _ in found}) == len(found)
    return found
