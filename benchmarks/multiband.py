"""Rate-distortion on multi-band data against JPEG 2000 used well: ``python -m perigee.benchmarks.multiband``.

The anchor is what a good operator uses: one OpenJPEG code-stream (9/7, no colour transform) whose components are the scene's bands
behind the scene's own spectral KLT, with one scale for all components and OpenJPEG's joint rate allocation; the bytes of matrix and
means are counted. On request stand beside it: OpenJPEG behind the fixed KLT of all training images of the same sensor and bands, whose
matrix is not counted; OpenJPEG band by band, all bands at equal error; HTJ2K (OpenJPH), JPEG XL (effort 7, each component a grey image
of 16 bits) and HEVC (x265 slow, each component a grey intra picture of 12 bits) behind the same KLT.

The error of a band is taken over the band's own range, from the 0.05th to the 99.95th percentile of its valid samples, and averaged
over the bands: PSNR of the range, in dB. Rates are bits a sample. Per image a BD-rate over 0.05 to 2 bits a sample, with a second
one from files less both codecs' fixed headers; then medians, by sensor and by number of bands. RMS error, largest error and bias in
counts are listed for every file.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import rasterio
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.metrics import bd_rate
from perigee.benchmarks.video import decode_hevc_grey, encode_hevc_grey
from perigee.bitstream.arrays import FloatArray, Samples
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS
from perigee.onboard.encoders import is_component_profile

LOW, HIGH = 0.05, 2.0  # bits a sample
PERCENTILES = (0.05, 99.95)
QUALITIES = (0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 94, 100)
COMPONENT_QUALITIES = (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 54, 60)  # their scale goes on to 12 bits a sample
LEVELS = tuple(range(18, 92, 4))  # dB of OpenJPEG's own scale
HTJ2K_EXPONENTS = tuple(np.arange(3, 13.1, 0.75).tolist())  # the step is 2**-e of the range of 16 bits
JPEGXL_DISTANCES = (0.03, 0.06, 0.1, 0.2, 0.35, 0.6, 1, 1.7, 3, 5, 8, 14)
HEVC_QPS = (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44)
FIXED_BYTES = {"perigee": 44, "klt": 157, "bands": 157, "jpegxl": 12, "hevc": 83}  # the last three for each band
MATRIX_BYTES, MEAN_BYTES = 2, 4  # of each entry of the matrix, of each mean
Files = Callable[[Samples, FloatArray], Iterable[tuple[int, int, Samples]]]


@dataclass(frozen=True)
class Point:
    """One complete file of one image. Errors are in counts: root of the mean square over all bands, largest, mean difference."""

    file: str
    sensor: str
    bands: int
    codec: str
    bytes: int
    rate: float
    bare_rate: float
    psnr: float
    rmse: float
    largest: int
    bias: float


def ranges_of(samples: Samples) -> FloatArray:
    """The percentile range of each band, at least one count, float [band]."""
    low, high = np.percentile(samples.reshape(len(samples), -1), PERCENTILES, axis=1)
    return np.asarray(np.maximum(high - low, 1), np.float32)


def range_psnr(original: Samples, decoded: Samples, ranges: FloatArray) -> float:
    """PSNR in dB of the bands, each over its own range; the squared errors are averaged over the bands."""
    errors = ((original.astype(np.float64) - decoded) ** 2).mean((1, 2)) / ranges.astype(np.float64) ** 2
    mean = float(errors.mean())
    return math.inf if mean == 0 else -10 * math.log10(mean)


def klt_of(covariance: npt.NDArray[Any]) -> FloatArray:
    """The eigenvectors of bands' covariance, the strongest first, as they would be sent: float32 [components, bands]."""
    _, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return vectors.T[::-1].astype(np.float16).astype(np.float32)


class SpectralKlt:
    """The spectral transform of a scene: bands over their ranges, decorrelated by an orthonormal matrix, then one scale."""

    def __init__(self, samples: Samples, ranges: FloatArray, matrix: FloatArray | None = None) -> None:
        """``samples`` [band, row, col]. The matrix and the means are rounded as they would be sent. A ``matrix`` that is given need not
        be sent."""
        flat = samples.reshape(len(samples), -1) / ranges[:, None]
        self._ranges, self._mean = ranges, flat.mean(1, keepdims=True).astype(np.float32)
        own = matrix is None
        self._matrix = klt_of(np.cov(flat)) if matrix is None else matrix
        self._inverse = np.linalg.inv(self._matrix)
        components = self._matrix @ (flat - self._mean)
        self._scale = (2**15 - 2) / max(float(np.abs(components).max()), 1e-9)
        self.components = np.rint(components * self._scale).astype(np.int16).reshape(samples.shape)
        self.side_bytes = own * MATRIX_BYTES * self._matrix.size + MEAN_BYTES * (len(samples) + 1)

    def restored(self, components: Samples, dtype: str) -> Samples:
        """Samples [band, row, col] of components [band, row, col]."""
        shape = components.shape
        flat = self._inverse @ (components.reshape(shape[0], -1).astype(np.float32) / self._scale) + self._mean
        info = np.iinfo(dtype)
        restored = np.clip(np.rint(flat * self._ranges[:, None]), info.min, info.max).astype(dtype)
        return np.asarray(restored.reshape(shape))


def components_by_jpeg2000(planes: Samples, level: float) -> bytes:
    """One OpenJPEG code-stream of planes [band, row, col] at a quality in dB: 9/7, no colour transform."""
    data = planes[0] if len(planes) == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0))
    encode: Any = imagecodecs.jpeg2k_encode  # its annotation says int, it takes any number
    return bytes(encode(data, level=level, codecformat="j2k", reversible=False, mct=False))


def planes_by_jpeg2000(data: bytes) -> Samples:
    """Planes [band, row, col] of such a code-stream."""
    decoded = np.asarray(imagecodecs.jpeg2k_decode(data))
    return decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)


def klt_files(samples: Samples, ranges: FloatArray) -> Iterable[tuple[int, int, Samples]]:
    """Size, fixed bytes and decoded samples of the anchor at each level."""
    klt = SpectralKlt(samples, ranges)
    for level in LEVELS:
        data = components_by_jpeg2000(klt.components, level)
        yield len(data) + klt.side_bytes, FIXED_BYTES["klt"], klt.restored(planes_by_jpeg2000(data), samples.dtype.name)


def fixed_klt_files(training: Path, sensor: str, names: str) -> Files:
    """As :func:`klt_files`, behind a fixed matrix: the KLT of all training images of the same sensor and bands."""
    found = []
    with (training / "index.csv").open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            if (row["sensor"], row["band_names"], row["train_ok"]) == (sensor, names, "yes"):
                with rasterio.open(training / row["file"]) as image:
                    samples = image.read()
                found.append(np.cov(samples.reshape(len(samples), -1) / ranges_of(samples)[:, None]))
    matrix = klt_of(np.mean(found, axis=0)) if found else None

    def files(samples: Samples, ranges: FloatArray) -> Iterable[tuple[int, int, Samples]]:
        if matrix is None:
            return
        klt = SpectralKlt(samples, ranges, matrix)
        for level in LEVELS:
            data = components_by_jpeg2000(klt.components, level)
            decoded = klt.restored(planes_by_jpeg2000(data), samples.dtype.name)
            yield len(data) + klt.side_bytes, FIXED_BYTES["klt"], decoded

    return files


def hevc_files(samples: Samples, ranges: FloatArray) -> Iterable[tuple[int, int, Samples]]:
    """As :func:`klt_files`, with HEVC: each component a grey intra picture of 12 bits, all at one QP."""
    klt = SpectralKlt(samples, ranges)
    grey = np.clip((klt.components.astype(np.int32) + 2**15 + 8) >> 4, 0, 4095).astype(np.uint16)
    for qp in HEVC_QPS:
        files = [encode_hevc_grey(plane, qp) for plane in grey]
        decoded = (np.stack([decode_hevc_grey(data) for data in files]).astype(np.int32) << 4) - 2**15
        fixed = FIXED_BYTES["hevc"] * len(files)
        yield sum(map(len, files)) + klt.side_bytes, fixed, klt.restored(decoded.astype(np.int16), samples.dtype.name)


def band_files(samples: Samples, ranges: FloatArray) -> Iterable[tuple[int, int, Samples]]:
    """As :func:`klt_files`, band by band; a level is taken down by what a band's range lacks of the widest."""
    for level in LEVELS:
        files = []
        for band, width in zip(samples, ranges, strict=True):
            files.append(components_by_jpeg2000(band[None], max(level - 20 * math.log10(width / 2**16), 1)))
        decoded = np.concatenate([planes_by_jpeg2000(data) for data in files]).astype(samples.dtype)
        yield sum(map(len, files)), FIXED_BYTES["bands"] * len(files), decoded


def htj2k_files(samples: Samples, ranges: FloatArray) -> Iterable[tuple[int, int, Samples]]:
    """As :func:`klt_files`, with HTJ2K: one code-stream of all components, all with one step."""
    klt = SpectralKlt(samples, ranges)
    for exponent in HTJ2K_EXPONENTS:
        data = imagecodecs.htj2k_encode(klt.components, level=2.0**-exponent, rgb=False, planar=True, reversible=False)
        decoded = imagecodecs.htj2k_decode(data).reshape(klt.components.shape)
        yield len(data) + klt.side_bytes, FIXED_BYTES["klt"], klt.restored(decoded, samples.dtype.name)


def jpegxl_files(samples: Samples, ranges: FloatArray) -> Iterable[tuple[int, int, Samples]]:
    """As :func:`klt_files`, with JPEG XL: a file for each component, all at one distance."""
    klt = SpectralKlt(samples, ranges)
    grey = (klt.components.astype(np.int32) + 2**15).astype(np.uint16)
    for distance in JPEGXL_DISTANCES:
        files = [imagecodecs.jpegxl_encode(plane, distance=distance, effort=7) for plane in grey]
        decoded = np.stack([imagecodecs.jpegxl_decode(data) for data in files]).astype(np.int32) - 2**15
        fixed = FIXED_BYTES["jpegxl"] * len(files)
        yield sum(map(len, files)) + klt.side_bytes, fixed, klt.restored(decoded.astype(np.int16), samples.dtype.name)


def perigee_files(profile: str) -> Files:
    """As :func:`klt_files`, by a profile."""

    def files(samples: Samples, _: FloatArray) -> Iterable[tuple[int, int, Samples]]:
        for quality in COMPONENT_QUALITIES if is_component_profile(profile) else QUALITIES:
            data = perigee.encode(samples, quality, profile, threads=1)
            yield len(data), FIXED_BYTES["perigee"], perigee.decode(data, threads=1).samples

    return files


BESIDE = {"bands": band_files, "htj2k": htj2k_files, "jpegxl": jpegxl_files, "hevc": hevc_files}


def points_of(path: Path, sensor: str, codecs: dict[str, Any]) -> list[Point]:
    """All points of one image."""
    with rasterio.open(path) as source:
        samples = source.read()
    ranges = ranges_of(samples)
    found = []
    for codec, files in codecs.items():
        for size, fixed, decoded in files(samples, ranges):
            error = samples.astype(np.float64) - decoded
            found.append(
                Point(
                    path.name,
                    sensor,
                    len(samples),
                    codec,
                    size,
                    8 * size / samples.size,
                    8 * (size - fixed) / samples.size,
                    range_psnr(samples, decoded, ranges),
                    float(np.sqrt((error**2).mean())),
                    int(np.abs(error).max()),
                    float(error.mean()),
                )  # fmt: skip
            )
    return found


def rates_of(points: list[Point], codec: str, anchor: str, bare: bool = False) -> float:
    """BD-rate in % of one image's points against the anchor; NaN where the codec has none."""

    def curve(name: str) -> list[tuple[float, float]]:
        return [(p.bare_rate if bare else p.rate, p.psnr) for p in points if p.codec == name]

    return bd_rate(curve(anchor), curve(codec), LOW, HIGH) if curve(codec) else math.nan


def kind_of(bands: int) -> str:
    """How an image counts by its number of bands."""
    return "1 band" if bands == 1 else "3 to 4 bands" if bands <= 4 else "5 to 10 bands" if bands <= 10 else "13 bands"


def summarise(points: list[Point], codecs: Iterable[str], anchor: str) -> list[dict[str, Any]]:
    """Medians of the images' BD-rates: of all, by number of bands and by sensor."""
    files: dict[str, list[Point]] = {}
    for point in points:
        files.setdefault(point.file, []).append(point)
    groups: dict[str, list[str]] = {"all": list(files)}
    for name, found in files.items():
        groups.setdefault(kind_of(found[0].bands), []).append(name)
        groups.setdefault(found[0].sensor, []).append(name)
    rows = []
    for group, names in groups.items():
        for codec in codecs:
            if codec == anchor:
                continue
            row: dict[str, Any] = {"group": group, "images": len(names), "codec": codec, "against": anchor}
            for key, bare in (("median %", False), ("without headers %", True)):
                rates = np.array([rates_of(files[name], codec, anchor, bare) for name in names])
                rates = rates[np.isfinite(rates)]
                row[key] = f"{np.median(rates):+.1f}" if len(rates) else "-"
                row[key.replace("median", "quartiles")] = (
                    f"{np.percentile(rates, 25):+.1f} .. {np.percentile(rates, 75):+.1f}" if len(rates) else "-"
                )
            rows.append(row)
    return rows


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of a folder's index by file name; empty where it has none."""
    index = folder / "index.csv"
    if not index.exists():
        index = folder.parent / "index.csv"
    if not index.exists():
        return {}
    with index.open(newline="", encoding="utf-8") as handle:
        return {Path(row["file"]).name: row for row in csv.DictReader(handle)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of GeoTIFFs (repeatable)")
    parser.add_argument("--profile", action="append", help=f"name or folder (repeatable; default {DEFAULT_COMPONENTS})")
    parser.add_argument(
        "--beside", choices=BESIDE, action="append", default=[], help="another codec beside the anchor (repeatable)"
    )
    parser.add_argument(
        "--train", type=Path, help="folder of training images with their index: adds the anchor behind fixed matrices"
    )
    parser.add_argument("--limit", type=int, help="only the first N files of each folder")
    parser.add_argument("--out", type=Path, default=Path("build/multiband"), help="folder for CSV and JSON")
    args = parser.parse_args()
    codecs: dict[str, Any] = {"klt": klt_files}
    codecs |= {name: BESIDE[name] for name in args.beside}
    codecs |= {f"perigee {Path(name).name}": perigee_files(name) for name in args.profile or [DEFAULT_COMPONENTS]}
    points: list[Point] = []
    for folder in args.data:
        rows = rows_of(folder)
        for path in tqdm(sorted(folder.glob("*.tif"))[: args.limit], desc=folder.name, unit="image", disable=None):
            row = rows.get(path.name, {"sensor": "unknown", "band_names": ""})
            if args.train:
                codecs["fixed klt"] = fixed_klt_files(args.train, row["sensor"], row["band_names"])
            points += points_of(path, row["sensor"], codecs)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "points.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(asdict(points[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
    summary = summarise(points, codecs, "klt")
    print(table(summary, ["group", "images", "codec", "median %", "quartiles %", "without headers %"]))
    write_report(args.out / "summary.json", summary)


if __name__ == "__main__":
    main()
