"""What an enhancer gains on images of other codecs: ``python -m perigee.benchmarks.enhance``.

Each image is coded to real files: by OpenJPEG (9/7, rate mode, colour transform) at a ladder of rates, by OpenJPEG as the enhancer never saw
it (5/3 cut to a rate, five quality layers, tiles of 128 pixels), by libjpeg (4:2:0), and as our own streams. Every file is decoded and
enhanced as ``ground-enhance`` does it. Figures are the PSNR gained, the BD-rate of the enhanced against the decoded image (JPEG 2000 and
streams: 0.1 to 1.5 bits per pixel; JPEG: qualities 30 to 90), the share of files that became worse by more than 0.02 dB, the worst of them,
MS-SSIM, with a model LPIPS, and how many samples lie within the 90 % interval. With ``--bands``, multi-band files of 16 bits are coded by
OpenJPEG without colour transform; their PSNR is that of errors over the range of each band.
"""

from __future__ import annotations

import argparse
import csv
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import image_paths, read_rgb, table, write_report
from perigee.benchmarks.metrics import Lpips, bd_rate, ms_ssim
from perigee.benchmarks.multiband import components_by_jpeg2000, range_psnr, ranges_of
from perigee.bitstream.arrays import Pixels, Samples
from perigee.bitstream.errors import CompensationError
from perigee.engines.enhancer import WINDOW
from perigee.ground.coded_file import CodedFile
from perigee.ground.enhancement import EnhancedSource
from perigee.ground.enhancing import Wish, open_enhanced
from perigee.ground.library import NONE, Library
from perigee.ground.orders import Order, open_source
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, ImageSource, Trusted
from perigee.ground.windows import STRIDE

RATES = (0.08, 0.14, 0.22, 0.34, 0.5, 0.75, 1.1, 1.7, 2.5, 4.0)  # bits per pixel
VARIANT_RATES = (0.22, 0.5, 1.1)
SEAM_MOVE = 96  # pixels: half the stride of the windows
QUALITIES = (30, 45, 60, 75, 90)
STREAM_QUALITIES = (20, 35, 50, 65, 80)
BANDS_LEVELS = tuple(range(30, 86, 6))  # dB of OpenJPEG's own scale
LOW, HIGH = 0.1, 1.5
HARM_DB = 0.02
BPP = 24.0


@dataclass(frozen=True)
class Gain:
    """One file: its bits per pixel, the PSNR of what was decoded and of what was enhanced in dB, and the seconds for the latter."""

    folder: str
    image: str
    codec: str
    setting: float
    rate: float
    psnr: float
    enhanced: float
    seconds: float
    ms_ssim: float
    ms_ssim_enhanced: float
    lpips: float
    lpips_enhanced: float
    within: float  # share of the samples within the interval


@dataclass(frozen=True)
class Bench:
    """What enhances and what measures."""

    library: Library
    method: str
    lpips: Lpips | None
    variants: bool

    def opened(self, path: Path, compensation: str) -> ImageSource:
        """A file, decoded or enhanced."""
        order = Order(compensation=compensation)
        if path.suffix == ".peri":
            return open_source(order, path.read_bytes(), self.library)
        return CodedFile(path) if compensation == NONE else open_enhanced(path, order, Wish(), self.library)

    def distance(self, a: Pixels, b: Pixels) -> float:
        """LPIPS of crops of at most 512x512 pixels, NaN without a model."""
        return np.nan if self.lpips is None else self.lpips(a[:512, :512], b[:512, :512])


def psnr(a: Pixels, b: Pixels) -> float:
    """PSNR of RGB uint8 in dB."""
    return float(10 * np.log10(255**2 / max(float(np.square(a.astype(np.float32) - b).mean()), 1e-9)))


def files_of(pixels: Pixels, folder: Path, variants: bool) -> Iterable[tuple[str, float, Path]]:
    """Codec, setting and path of each file of an image."""
    image = Image.fromarray(pixels)
    path = folder / "image.j2k"
    for rate in RATES:
        image.save(
            path, "JPEG2000", quality_mode="rates", quality_layers=[BPP / rate], irreversible=True, mct=1, no_jp2=True
        )
        yield "jpeg2000", rate, path
    if variants:
        for rate in VARIANT_RATES:
            layers = [BPP / rate * factor for factor in (8, 4, 2, 1.4, 1)]
            image.save(
                path, "JPEG2000", quality_mode="rates", quality_layers=layers, irreversible=True, mct=0, no_jp2=True,
                tile_size=(128, 128), num_resolutions=4,
            )  # fmt: skip
            yield "jpeg2000 never trained on", rate, path
    path = folder / "image.peri"
    for quality in STREAM_QUALITIES:
        path.write_bytes(perigee.encode(np.ascontiguousarray(pixels.transpose(2, 0, 1)), quality, threads=1))
        yield "perigee", quality, path
    path = folder / "image.jpg"
    for quality in QUALITIES:
        image.save(path, "JPEG", quality=quality, subsampling=2)
        yield "jpeg", quality, path


def samples_of(source: ImageSource) -> Samples:
    """All samples of an image source, [row, col, band]."""
    out = np.empty((source.height, source.width, source.bands), source.dtype)
    for place, block in source.blocks():
        out[place.top : place.bottom, place.left : place.right] = block.samples.transpose(1, 2, 0)
    return out


def share_within(source: ImageSource, original: Samples, found: Samples) -> float:
    """The share of the samples of bands 1 to 3 that lie within the interval; NaN where none is known."""
    try:
        assert isinstance(source, Trusted)
        source.check_interval()
    except (AssertionError, CompensationError):
        return np.nan
    width = np.ceil(source.widest_range * source.half_width(0, Region(0, 0, source.height, source.width)))
    return float((np.abs(found[..., :3].astype(np.float32) - original[..., :3]) <= width[..., None]).mean())


def gains_of(path: Path, bench: Bench) -> Iterable[Gain]:
    """Every file of one image."""
    pixels = read_rgb(path)
    with tempfile.TemporaryDirectory() as folder:
        for codec, setting, file in files_of(pixels, Path(folder), bench.variants):
            source = bench.opened(file, bench.method)
            start = time.perf_counter()
            enhanced = samples_of(source)
            seconds = time.perf_counter() - start
            rate = 8 * file.stat().st_size / (pixels.shape[0] * pixels.shape[1])
            decoded = samples_of(bench.opened(file, NONE))
            yield Gain(
                path.parent.name, path.stem, codec, setting, rate, psnr(pixels, decoded), psnr(pixels, enhanced), seconds,
                ms_ssim(pixels, decoded), ms_ssim(pixels, enhanced), bench.distance(pixels, decoded),
                bench.distance(pixels, enhanced), share_within(source, pixels, enhanced),
            )  # fmt: skip


def band_gains_of(path: Path, bench: Bench) -> Iterable[Gain]:
    """Every JPEG 2000 file of a multi-band image of at least three bands; a rate is of one band."""
    with rasterio.open(path) as image:
        samples = image.read()
    if len(samples) < 3:
        return
    ranges = ranges_of(samples)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.j2k"
        for level in BANDS_LEVELS:
            file.write_bytes(components_by_jpeg2000(samples, level))
            source = bench.opened(file, bench.method)
            start = time.perf_counter()
            enhanced = samples_of(source)
            seconds = time.perf_counter() - start
            decoded = samples_of(bench.opened(file, NONE))
            before, after = (range_psnr(samples, x.transpose(2, 0, 1), ranges) for x in (decoded, enhanced))
            within = share_within(source, samples.transpose(1, 2, 0), enhanced)
            rate = 8 * file.stat().st_size / samples.size
            nan = np.nan
            yield Gain(
                path.parent.name,
                path.stem,
                "jpeg2000 of bands",
                level,
                rate,
                before,
                after,
                seconds,
                nan,
                nan,
                nan,
                nan,
                within,
            )


class Moved:
    """An image source from so many rows and columns below and right of its corner."""

    def __init__(self, source: ImageSource, offset: int) -> None:
        self._source, self._offset = source, offset
        self.width, self.height = source.width - offset, source.height - offset
        self.bands, self.dtype = source.bands, source.dtype
        self.metadata, self.report = source.metadata, source.report
        self.incomplete, self.has_gaps = source.incomplete, source.has_gaps
        self.settle, self.provenance = source.settle, source.provenance

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """As the source."""
        whole, move = region or Region(0, 0, self.height, self.width), self._offset
        for place, block in self._source.blocks(whole._replace(top=whole.top + move, left=whole.left + move), bands):
            yield place._replace(top=place.top - move, left=place.left - move), block


def seam_ratio(path: Path, bench: Bench, rate: float) -> float:
    """Squared error of a JPEG 2000 file's enhanced image within 4 pixels of the borders of its windows, over that of the same pixels where the
    windows begin elsewhere; 1 means that no border can be told."""
    pixels = read_rgb(path).astype(np.float64)
    with tempfile.TemporaryDirectory() as folder:
        codec, setting, file = next(f for f in files_of(read_rgb(path), Path(folder), False) if f[1] == rate)
        assert codec == "jpeg2000" and setting == rate
        coded = CodedFile(file)
        enhancer = bench.library.enhancer(bench.method)
        first = np.square(samples_of(EnhancedSource(coded, enhancer, coded.coding)) - pixels).sum(2)
        moved = Moved(coded, SEAM_MOVE)
        second = np.square(
            samples_of(EnhancedSource(moved, enhancer, coded.coding)) - pixels[SEAM_MOVE:, SEAM_MOVE:]
        ).sum(2)
    rows, cols = second.shape
    borders = [[is_border(at + SEAM_MOVE) and not is_border(at, 16) for at in range(count)] for count in (rows, cols)]
    chosen = np.zeros(second.shape, bool)
    chosen[np.array(borders[0])], chosen[:, np.array(borders[1])] = True, True
    inside = first[SEAM_MOVE:, SEAM_MOVE:]
    return float(inside[chosen].sum() / second[chosen].sum())


def is_border(at: int, reach: int = 4) -> bool:
    """Whether a row or column lies so close to where a window begins or ends."""
    return any(
        abs(at - edge) <= reach
        for start in range(0, at + WINDOW, STRIDE)
        for edge in (start, start + WINDOW)
        if start or edge != start
    )


def summary(gains: list[Gain]) -> list[dict[str, Any]]:
    """A row for each folder and codec."""
    rows = []
    for folder in dict.fromkeys(g.folder for g in gains):
        for codec in dict.fromkeys(g.codec for g in gains):
            own = [g for g in gains if (g.folder, g.codec) == (folder, codec)]
            if not own:
                continue
            images = {name: [g for g in own if g.image == name] for name in dict.fromkeys(g.image for g in own)}
            rates = []
            for found in images.values():
                low, high = (LOW, HIGH) if codec in ("jpeg2000", "perigee") else (1e-3, 100.0)
                pairs = [[(g.rate, value) for g, value in zip(found, values, strict=True)] for values in
                         ([g.psnr for g in found], [g.enhanced for g in found])]  # fmt: skip
                rates.append(bd_rate(pairs[0], pairs[1], low, high))
            change = np.array([g.enhanced - g.psnr for g in own])
            worst = own[int(change.argmin())]
            rows.append(
                {
                    "set": folder, "codec": codec, "images": len(images),
                    "BD-rate %, median": f"{np.median(rates):+.1f}" if np.isfinite(rates).all() else "-",
                    "quartiles %": f"{np.percentile(rates, 25):+.1f} .. {np.percentile(rates, 75):+.1f}"
                    if np.isfinite(rates).all() else "-",
                    "median gain dB": f"{np.median(change):+.2f}",
                    "worse by over 0.02 dB": f"{100 * (change < -HARM_DB).mean():.1f} %",
                    "worst": f"{change.min():+.3f} dB ({worst.image}, {worst.setting:g})",
                    "MS-SSIM": _before_after(own, "ms_ssim", 4),
                    "LPIPS": _before_after(own, "lpips", 3),
                    "within 90 %": f"{100 * np.nanmean([g.within for g in own]):.1f} %"
                    if np.isfinite([g.within for g in own]).any() else "-",
                    "s an image": f"{np.median([g.seconds for g in own]):.3f}",
                }
            )  # fmt: skip
    return rows


def _before_after(gains: list[Gain], name: str, digits: int) -> str:
    """The mean of a measure, of what was decoded and of what was enhanced."""
    before, after = (float(np.mean([getattr(g, field) for g in gains])) for field in (name, f"{name}_enhanced"))
    return "-" if np.isnan(before) else f"{before:.{digits}f} .. {after:.{digits}f}"


def by_setting(gains: list[Gain]) -> list[dict[str, Any]]:
    """The median gain in dB at each setting, by folder and codec."""
    rows = []
    for key in dict.fromkeys((g.folder, g.codec, g.setting) for g in gains):
        own = [g.enhanced - g.psnr for g in gains if (g.folder, g.codec, g.setting) == key]
        rows.append(
            {"set": key[0], "codec": key[1], "setting": f"{key[2]:g}", "median gain dB": f"{np.median(own):+.2f}",
             "least": f"{min(own):+.2f}"}
        )  # fmt: skip
    return rows


def by_kind(gains: list[Gain]) -> list[dict[str, Any]]:
    """The median gain of JPEG 2000 by the kind of land, as the names of the images have it, at low and at middle rates."""
    rows = []
    kinds: dict[tuple[str, str], list[Gain]] = {}
    for gain in gains:
        if gain.codec == "jpeg2000":
            kinds.setdefault((gain.folder, re.sub(r"[\d_]+$", "", gain.image)), []).append(gain)
    for (folder, kind), own in sorted(kinds.items()):
        ranges = {"0.08 to 0.34 bpp": (0.0, 0.4), "0.5 to 1.1 bpp": (0.4, 1.4)}
        told = {
            name: [g.enhanced - g.psnr for g in own if low <= g.setting < high] for name, (low, high) in ranges.items()
        }
        images = len({g.image for g in own})
        rows.append(
            {"set": folder, "kind": kind, "images": images}
            | {f"dB, {n}": f"{np.median(v):+.2f}" for n, v in told.items()}
        )
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of RGB images (repeatable)")
    parser.add_argument(
        "--bands", type=Path, action="append", default=[], help="folder of multi-band GeoTIFFs (repeatable)"
    )
    parser.add_argument(
        "--seams", type=Path, action="append", default=[], help="an image whose seams are measured (repeatable)"
    )
    parser.add_argument("--lpips", type=Path, metavar="MODEL", help="ONNX model of LPIPS")
    parser.add_argument("--method", default="restore", help="enhancer: name or folder (default restore)")
    parser.add_argument("--limit", type=int, help="only the first N images of each folder")
    parser.add_argument("--no-variants", action="store_true", help="leave out the JPEG 2000 that was never trained on")
    parser.add_argument("--out", type=Path, default=Path("build/enhance"), help="folder for CSV and JSON")
    args = parser.parse_args()
    folder = Path(args.method)
    library = Library([folder] if folder.is_dir() else [], 1)
    bench = Bench(library, folder.name, Lpips(args.lpips, 1) if args.lpips else None, not args.no_variants)
    gains: list[Gain] = []
    for data in args.data:
        for path in tqdm(list(image_paths(data))[: args.limit], desc=data.name, unit="image", disable=None):
            gains += gains_of(path, bench)
    for data in args.bands:
        for path in tqdm(sorted(data.glob("*.tif"))[: args.limit], desc=data.name, unit="image", disable=None):
            gains += band_gains_of(path, bench)
    if gains:
        report(gains, args.out)
    for path in args.seams:
        ratios = {rate: seam_ratio(path, bench, rate) for rate in VARIANT_RATES}
        print(
            f"seam ratio of {path.stem}:", ", ".join(f"{ratio:.3f} at {rate:g} bpp" for rate, ratio in ratios.items())
        )


def report(gains: list[Gain], folder: Path) -> None:
    """Print the tables, and write them and every gain into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gains.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(asdict(gains[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(gain) for gain in gains)
    rows = summary(gains)
    for found in (rows, by_kind(gains), by_setting(gains)):
        if found:
            print(table(found, list(found[0])))
    write_report(folder / "summary.json", rows)


if __name__ == "__main__":
    main()
