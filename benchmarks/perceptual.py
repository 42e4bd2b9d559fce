"""What compensation gives and costs: ``python -m perigee.benchmarks.perceptual --compensation cosmic --lpips ONNX``.

Every image is coded once near each asked rate; the same stream is decoded plainly and with each variant, and JPEG 2000 is set to the
same bytes. PSNR, MS-SSIM and LPIPS against the original, then means, and the differences to the base image. A variant is
``NAME:METHOD`` with optional ``,steps=N``, ``,seed=N``, ``,strength=S``, ``,metadata=absent`` or ``,metadata=shuffled`` (true by default,
where the folder's index knows any).
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.classifier import Backbone
from perigee.benchmarks.codec import ArrayCodec, pixels_of
from perigee.benchmarks.common import closest, decode_pillow, images, jpeg2000, psnr, sample_folder, table, write_report
from perigee.benchmarks.fidelity import crop_features, kernel_interval, objects
from perigee.benchmarks.metrics import Lpips, ms_ssim
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.metadata import Acquisition, Metadata, pack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.ground.compensation.compensator import Compensator, find_compensator
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder

RATES_BPP = (0.1, 0.2, 0.4, 1.0)
QUALITY_STEPS = 250
METADATA = ("true", "absent", "shuffled")
MEASURES = ("bpp", "psnr", "ms_ssim", "lpips", "seconds", "blobs", "created", "deleted")
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to compensate."""

    label: str
    compensator: str
    wanted: Compensation
    metadata: str = "true"


def variant_of(text: str) -> Variant:
    """From ``NAME:METHOD,steps=4,...``. Raises ValueError."""
    head, *options = text.split(",")
    name, _, method = head.partition(":")
    values = dict(option.split("=", 1) for option in options)
    metadata = values.pop("metadata", "true")
    casts: dict[str, Any] = {"steps": int, "seed": int, "strength": float}
    if metadata not in METADATA or not set(values) <= set(casts):
        raise ValueError(f"{text}: options are steps, seed, strength, and metadata={'|'.join(METADATA)}")
    chosen = {key: casts[key](value) for key, value in values.items()}
    return Variant(text, name, Compensation(method or None, **chosen), metadata)


def acquisitions_of(index: Path | None) -> dict[str, Acquisition]:
    """Position, GSD of each file by its stem, from a CSV with the columns file, lat, lon, gsd_m; an empty cell is unknown."""
    if index is None:
        return {}
    out = {}
    with index.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            place = (float(row["lon"]), float(row["lat"])) if row["lat"] and row["lon"] else (None, None)
            gsd = float(row["gsd_m"]) if row["gsd_m"] else None
            out[Path(row["file"]).stem] = Acquisition(longitude_deg=place[0], latitude_deg=place[1], gsd_m=gsd)
    return out


class Bench:
    """Codec, compensators and measures of one run."""

    def __init__(
        self, profile: str, variants: list[Variant], lpips: Path, folders: list[Path], threads: int | None
    ) -> None:
        self.codec = ArrayCodec(profile, threads)
        self.variants, self.lpips, self.backbone = variants, Lpips(lpips, threads), Backbone(lpips, threads)
        self.features: dict[tuple[str, float, str], list[Any]] = {}  # of crops, by folder, rate and variant
        contract = self.codec.profile.contract.digest
        names = {v.compensator for v in variants}
        self.compensators: dict[str, Compensator] = {n: find_compensator(n, contract, folders, threads) for n in names}

    def measure(
        self, folder: str, pixels: Pixels, rate: float, true: Acquisition | None, other: Acquisition | None
    ) -> list[Row]:
        """A row for each variant of one image near a rate. Steps of quality are compared by the stream's real bytes."""
        size = round(rate * pixels.shape[0] * pixels.shape[1] / 8)
        data = closest(lambda s: self.codec.encode(pixels, s / 2.5), QUALITY_STEPS, size)
        bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
        rows: list[Row] = []

        def add(label: str, decoded: Pixels, seconds: float = math.nan) -> None:
            self.features.setdefault((folder, rate, label), []).append(crop_features(self.backbone, decoded))
            there, created, deleted = objects(pixels, decoded)
            rows.append({"blobs": there, "created": created, "deleted": deleted,
                         "rate": rate, "bpp": bpp, "variant": label, "psnr": psnr(pixels, decoded),
                         "ms_ssim": ms_ssim(pixels, decoded), "lpips": self.lpips(pixels, decoded), "seconds": seconds})  # fmt: skip

        self.features.setdefault((folder, rate, "original"), []).append(crop_features(self.backbone, pixels))
        start = time.perf_counter()
        base = pixels_of(SceneDecoder(parse_stream(data), self.codec.ground))
        add("base", base, time.perf_counter() - start)
        anchor = closest(lambda s: jpeg2000(pixels, s / 1000), 4000, len(data))
        add("jpeg2000", decode_pillow(anchor))
        for variant in self.variants:
            stream = parse_stream(data)
            acquisition = {"true": true, "absent": None, "shuffled": other}[variant.metadata]
            stream.metadata = pack_metadata(Metadata(acquisition=acquisition))
            start = time.perf_counter()
            compensator = self.compensators[variant.compensator]
            decoder = CompensatedSource(SceneDecoder(stream, self.codec.ground), compensator, variant.wanted)
            decoded = pixels_of(decoder)
            add(variant.label, decoded, time.perf_counter() - start)
        return rows


def summary(rows: list[Row], distances: dict[tuple[str, float, str], tuple[float, float, float]]) -> list[Row]:
    """Means by folder, rate and variant; differences to the base image of the same rows."""
    out = []
    for folder in sorted({r["folder"] for r in rows}):
        for rate in sorted({r["rate"] for r in rows}):
            part = [r for r in rows if r["folder"] == folder and r["rate"] == rate and math.isfinite(r["psnr"])]
            mean = {
                v: {k: float(np.mean([r[k] for r in part if r["variant"] == v])) for k in MEASURES}
                for v in dict.fromkeys(r["variant"] for r in part)
            }  # fmt: skip
            base = mean["base"]
            for variant, m in mean.items():
                out.append({
                    "folder": folder, "bpp": round(m["bpp"], 3), "variant": variant,
                    "psnr": round(m["psnr"], 2), "ms_ssim": round(m["ms_ssim"], 4), "lpips": round(m["lpips"], 4),
                    "d psnr": round(m["psnr"] - base["psnr"], 2), "d lpips %": round(100 * (m["lpips"] / base["lpips"] - 1), 1),
                    "created %": round(100 * m["created"] / m["blobs"], 1), "deleted %": round(100 * m["deleted"] / m["blobs"], 1),
                    "kernel": "{:.3f} ({:.3f} .. {:.3f})".format(*distances[folder, rate, variant]),
                    "seconds": round(m["seconds"], 3),
                })  # fmt: skip
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="folder of images (repeatable; default: the sample)")
    parser.add_argument("--index", type=Path, help="CSV with position and GSD of the files")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--compensation", action="append", required=True, metavar="VARIANT", help="(repeatable)")
    parser.add_argument("--compensators", type=Path, action="append", default=[], help="folder with compensators")
    parser.add_argument(
        "--lpips", type=Path, required=True, metavar="ONNX", help="model with inputs ref and dist in -1..1"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES_BPP, help="bits per pixel (default %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only the first N images of a folder")
    parser.add_argument("--every", type=int, default=1, help="only each Nth image of a folder")
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("build/perceptual"), help="folder for CSV and JSON")
    args = parser.parse_args()
    bench = Bench(args.profile, [variant_of(v) for v in args.compensation], args.lpips, args.compensators, args.threads)
    known = acquisitions_of(args.index)
    others = list(known.values())
    rows: list[Row] = []
    rng = np.random.default_rng(3)
    for folder in args.data or [sample_folder()]:
        for name, pixels in tqdm(list(images(folder))[:: args.every][: args.limit], desc=folder.name, disable=None):
            other = others[int(rng.integers(len(others)))] if others else None
            for rate in args.rates:
                found = bench.measure(folder.name, pixels, rate, known.get(name), other)
                rows += [{"folder": folder.name, "image": name, **row} for row in found]
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "points.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    distances = {}
    for (folder_name, rate, label), parts in bench.features.items():
        if label != "original":
            originals = np.concatenate(bench.features[folder_name, rate, "original"])
            distances[folder_name, rate, label] = kernel_interval(originals, np.concatenate(parts))
    means = summary(rows, distances)
    print(table(means, list(means[0])))
    write_report(args.out / "perceptual.json", means)


if __name__ == "__main__":
    main()
