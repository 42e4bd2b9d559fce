"""What an enhancer gains on images of other codecs: ``python -m perigee.benchmarks.enhance``.

Each image is coded to real files: by OpenJPEG (9/7, rate mode, colour transform) at a ladder of rates, by OpenJPEG as the enhancer never saw
it (5/3 cut to a rate, five quality layers, tiles of 128 pixels), and by libjpeg (4:2:0). Every file is decoded and enhanced as
``ground-enhance`` does it. Figures are the PSNR gained, the BD-rate of the enhanced against the decoded image (JPEG 2000: 0.1 to 1.5 bits
per pixel; JPEG: qualities 30 to 90), the share of files that became worse by more than 0.02 dB, and the worst of them.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from perigee.benchmarks.common import image_paths, read_rgb, table, write_report
from perigee.benchmarks.metrics import bd_rate
from perigee.bitstream.arrays import Pixels
from perigee.engines.enhancer import Enhancer, find_enhancer
from perigee.engines.jpeg_cells import cells_of_file
from perigee.ground.coded_file import CodedFile
from perigee.ground.enhancement import EnhancedSource

RATES = (0.08, 0.14, 0.22, 0.34, 0.5, 0.75, 1.1, 1.7, 2.5, 4.0)  # bits per pixel
VARIANT_RATES = (0.22, 0.5, 1.1)
QUALITIES = (30, 45, 60, 75, 90)
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
    path = folder / "image.jpg"
    for quality in QUALITIES:
        image.save(path, "JPEG", quality=quality, subsampling=2)
        yield "jpeg", quality, path


def pixels_of(source: CodedFile | EnhancedSource) -> Pixels:
    """The pixels uint8 [row, col, 3] of an image source of three bands."""
    out = np.empty((source.height, source.width, 3), np.uint8)
    for place, block in source.blocks():
        out[place.top : place.bottom, place.left : place.right] = block.samples.transpose(1, 2, 0)
    return out


def gains_of(path: Path, enhancer: Enhancer, variants: bool) -> Iterable[Gain]:
    """Every file of one image."""
    pixels = read_rgb(path)
    with tempfile.TemporaryDirectory() as folder:
        for codec, setting, file in files_of(pixels, Path(folder), variants):
            coded = CodedFile(file)
            start = time.perf_counter()
            enhanced = pixels_of(EnhancedSource(coded, enhancer, coded.coding, cells=cells_of_file(file)))
            seconds = time.perf_counter() - start
            rate = 8 * file.stat().st_size / (pixels.shape[0] * pixels.shape[1])
            before, after = psnr(pixels, pixels_of(coded)), psnr(pixels, enhanced)
            yield Gain(path.parent.name, path.stem, codec, setting, rate, before, after, seconds)


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
                low, high = (LOW, HIGH) if codec == "jpeg2000" else (1e-3, 100.0)
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
                }
            )  # fmt: skip
    return rows


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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of RGB images (repeatable)")
    parser.add_argument("--method", default="restore", help="enhancer: name or folder (default restore)")
    parser.add_argument("--limit", type=int, help="only the first N images of each folder")
    parser.add_argument("--no-variants", action="store_true", help="leave out the JPEG 2000 that was never trained on")
    parser.add_argument("--out", type=Path, default=Path("build/enhance"), help="folder for CSV and JSON")
    args = parser.parse_args()
    folder = Path(args.method)
    enhancer = Enhancer(folder, 1) if folder.is_dir() else find_enhancer(args.method, threads=1)
    gains: list[Gain] = []
    for data in args.data:
        for path in tqdm(list(image_paths(data))[: args.limit], desc=data.name, unit="image", disable=None):
            gains += gains_of(path, enhancer, not args.no_variants)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "gains.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(asdict(gains[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(gain) for gain in gains)
    rows = summary(gains)
    print(table(rows, list(rows[0])))
    settings = by_setting(gains)
    print(table(settings, list(settings[0])))
    write_report(args.out / "summary.json", rows)


if __name__ == "__main__":
    main()
