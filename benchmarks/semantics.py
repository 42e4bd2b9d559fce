"""What decoded images show of buildings: ``python -m perigee.benchmarks.semantics --maps FOLDER --guided NAME``.

Mosaics of held-out tiles are coded near some rates, decoded plainly, by a compensator, and by one that a map guides: the true map without a fifth of
the buildings and with others that are not there, half of it, one that is shifted by 16 pixels, one of another place (mirrored), and one that knows
nothing of the ground. JPEG 2000 and AVIF take the same bytes. The table has, for each class of the map, the intersection over union (IoU) of the
segmenter's answer with its answer on the original and with the map's labels; the same of buildings over mapped and over withheld ones and their
surroundings; how many invented buildings it sees; PSNR, LPIPS, the kernel distance, and how much of the original lies in the 90 % interval.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F
from tqdm import tqdm

import perigee
from perigee.benchmarks.classifier import Backbone
from perigee.benchmarks.codec import pixels_of
from perigee.benchmarks.common import closest, decode_pillow, jpeg2000, psnr, table, write_report
from perigee.benchmarks.crops import Coded, save, sheet
from perigee.benchmarks.fidelity import crop_features, kernel_interval
from perigee.benchmarks.map_mosaics import PLACE, Mosaic, invented, map_of, mosaic_of, split_objects
from perigee.benchmarks.metrics import Lpips
from perigee.bitstream.arrays import BoolArray, Pixels
from perigee.ground.library import Library
from perigee.ground.orders import Order, open_source
from perigee.ground.regions import Region
from perigee.models.checkpoint import read_weights
from perigee.models.segmenter import DEEPEST, SEEN, Segmenter

RATES_BPP = (0.05, 0.1, 0.2)
WITHHELD, INVENTED = 0.2, 0.2  # shares of the buildings
AROUND = 8  # pixels around buildings that count
SHIFT = 16
CROP = 160  # pixels on a side of the crops
MOSAICS = ("banepa=banepa_38669[2345]_22024[5678]_*:8", "kampala=kampala_12384*_21.jpg:10")
BUILDING = SEEN.index("building")
SEGMENTER = Path(__file__).resolve().parent / "segmenter"


@dataclass(frozen=True)
class Truth:
    """A mosaic with what is asked about it: the segmenter's answer for all classes, bool [len(SEEN), rows, cols], and masks bool [rows, cols] of the
    buildings that are in the map, of mapped and withheld buildings with what is around them, and of invented ones by number."""

    mosaic: Mosaic
    answers: BoolArray
    kept: BoolArray
    mapped: BoolArray
    withheld: BoolArray
    invented: Any
    maps: dict[str, Path]

    @property
    def answer(self) -> BoolArray:
        """The segmenter's answer for buildings [rows, cols]."""
        found: BoolArray = self.answers[BUILDING]
        return found


class Perception:
    """LPIPS and the kernel distance of decoded mosaics, by the same network."""

    def __init__(self, model: Path) -> None:
        self._lpips, self._backbone = Lpips(model), Backbone(model)
        self._original: tuple[Pixels, Any] | None = None  # the last one, with the features of its crops

    def __call__(self, original: Pixels, pixels: Pixels) -> dict[str, float]:
        """Both, by their names in the table."""
        if self._original is None or self._original[0] is not original:
            self._original = original, crop_features(self._backbone, original)
        distance, _, _ = kernel_interval(self._original[1], crop_features(self._backbone, pixels))
        return {"LPIPS": round(self._lpips(original, pixels), 4), "kernel distance": round(distance, 3)}


class Judge:
    """The segmenter."""

    def __init__(self, folder: Path) -> None:
        self.network = Segmenter().eval()
        self.network.load_state_dict(read_weights(folder))

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> BoolArray:
        """Where an image shows each class, bool [len(SEEN), rows, cols]."""
        rows, cols = pixels.shape[:2]
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32)) / 255
        image = F.pad(image, (0, -cols % DEEPEST, 0, -rows % DEEPEST), mode="replicate")
        logits = F.interpolate(self.network(image), scale_factor=2.0, mode="bilinear")
        return np.asarray(logits[0, :, :rows, :cols].numpy() > 0)


def truth_of(mosaic: Mosaic, judge: Judge, folder: Path) -> Truth:
    """What is asked about a mosaic, with its maps as files in a folder."""
    numbers, withheld = split_objects(mosaic.buildings, WITHHELD)
    kept, hidden = (numbers > 0) & ~withheld[numbers], (numbers > 0) & withheld[numbers]
    answers, classes = judge(mosaic.pixels), mosaic.others()
    added = invented(mosaic.buildings | answers[BUILDING], round(INVENTED * numbers.max()))
    left = np.arange(kept.shape[1]) < kept.shape[1] // 2
    half = {name: mask & left for name, mask in classes.items()}
    turned = {name: np.ascontiguousarray(mask[::-1, ::-1]) for name, mask in classes.items()}
    corner = np.zeros_like(kept)
    corner[:1, :1] = True
    maps = {
        "true": map_of([kept], folder / "true.geojson", others=classes),
        "with invented": map_of([kept, added > 0], folder / "invented.geojson", others=classes),
        "half": map_of([kept & left], folder / "half.geojson", others=half),
        "shifted": map_of([kept], folder / "shifted.geojson", SHIFT, classes),
        "foreign": map_of([np.ascontiguousarray(kept[::-1, ::-1])], folder / "foreign.geojson", others=turned),
        "empty": map_of([corner], folder / "empty.geojson"),
    }
    near = [ndimage.binary_dilation(mask, iterations=AROUND) for mask in (kept, hidden)]
    return Truth(mosaic, answers, kept, near[0] & ~hidden, near[1] & ~kept, added, maps)


def iou(found: BoolArray, wanted: BoolArray, within: BoolArray) -> float:
    """Intersection over union of two masks within a third."""
    return float((found & wanted & within).sum() / max(int(((found | wanted) & within).sum()), 1))


def avif(pixels: Pixels, quality: int) -> bytes:
    """AVIF 4:4:4 through Pillow."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "AVIF", quality=quality, subsampling="4:4:4", speed=6)
    return out.getvalue()


@dataclass(frozen=True)
class Way:
    """A decoded mosaic uint8 [rows, cols, 3]; what share of its samples lies within the 90 % interval, where that was asked; and how many of the
    map's buildings its symbols support or contradict."""

    pixels: Pixels
    covered: float | None = None
    buildings: str = ""
    size_bytes: int | None = None  # where it is not that of the stream


def decoded(data: bytes, library: Library, truth: Truth, plain: str, guided: str | None) -> Iterator[tuple[str, Way]]:
    """The images of a stream by each way; intervals for the plain compensator and the true map."""
    yield "base", Way(pixels_of(open_source(Order(), data, library)))
    yield plain, compensated(truth, open_source(Order(compensation=plain), data, library), True)
    if guided:
        for name, path in truth.maps.items():
            source = open_source(Order(compensation=guided), data, library, guide=path)
            yield f"{guided}, {name} map", compensated(truth, source, name == "true")


def anchors(pixels: Pixels, size: int) -> dict[str, Way]:
    """What JPEG 2000 and AVIF make of a mosaic with about as many bytes."""
    found = {
        "JPEG 2000": closest(lambda s: jpeg2000(pixels, s / 1000), 4000, size),
        "AVIF": closest(lambda s: avif(pixels, s), 100, size),
    }
    return {name: Way(decode_pillow(data), size_bytes=len(data)) for name, data in found.items()}


def compensated(truth: Truth, source: Any, with_interval: bool) -> Way:
    """The image of a compensated stream."""
    pixels, covered = pixels_of(source), None
    if with_interval:
        width = np.ceil(255 * source.half_width(0, Region(0, 0, *pixels.shape[:2])))
        covered = float((np.abs(pixels.astype(np.float32) - truth.mosaic.pixels) <= width[..., None]).mean())
    counts = "" if source.support is None else "/".join(str(n) for n in source.support.counts.values())
    return Way(pixels, covered, counts)


def rows_of(
    truth: Truth,
    rate: float,
    judge: Judge,
    perception: Perception | None,
    ways: dict[str, Way],
    bpp: float,
    painted: str,
) -> list[dict[str, Any]]:
    """A row for each way, and one for the map painted over the answer on ``painted``."""
    mosaic, out = truth.mosaic, []
    everywhere = np.ones_like(truth.answer)
    count = int(truth.invented.max())
    answers = {name: judge(way.pixels) for name, way in ways.items()}
    over = answers[painted].copy()
    over[BUILDING] |= truth.kept
    for name, found in (answers | {f"{painted}, map painted over": over}).items():
        way, built = ways.get(name), found[BUILDING]
        seen = ndimage.mean(built & ~truth.answer, truth.invented, range(1, count + 1)) if count else []
        own = 8 * way.size_bytes / truth.answer.size if way is not None and way.size_bytes else bpp
        row = {"mosaic": mosaic.name, "rate": rate, "bpp": round(own, 4), "way": name}
        for number, label in enumerate(SEEN):
            if mosaic.classes[number].any():
                row[label] = round(iou(found[number], truth.answers[number], everywhere), 4)
                row[f"{label}, labels"] = round(iou(found[number], mosaic.classes[number], everywhere), 4)
        zones = {"mapped": truth.mapped, "withheld": truth.withheld}
        row |= {zone: round(iou(built, truth.answer, within), 4) for zone, within in zones.items() if within.any()}
        out.append(row | {
            "invented seen, %": round(100 * float(np.mean(np.asarray(seen) > 0.5)), 1) if count else "",
            "PSNR": "" if way is None else round(psnr(mosaic.pixels, way.pixels), 2),
            **({} if way is None or perception is None else perception(mosaic.pixels, way.pixels)),
            "in the interval, %": "" if way is None or way.covered is None else round(100 * way.covered, 1),
            "supported/unsupported/contradicted": "" if way is None else way.buildings,
        })  # fmt: skip
    return out


def outlined(truth: Truth) -> Pixels:
    """The mosaic in grey with the outlines of the map's buildings in green, and of the invented ones in red."""
    out = np.repeat(truth.mosaic.pixels.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    for mask, colour in ((truth.kept, (0, 220, 0)), (truth.invented > 0, (255, 0, 0))):
        out[mask & ~ndimage.binary_erosion(mask)] = colour
    return out


def shown_ways(args: argparse.Namespace) -> tuple[str, ...]:
    """What a sheet of crops shows beside the original and the map."""
    return ("base", args.compensation, f"{args.guided}, true map", f"{args.guided}, with invented map")


def windows_of(truth: Truth) -> list[tuple[int, int]]:
    """Row and column of the crops of a mosaic: where most buildings are mapped, and where most are invented."""
    found = []
    for mask in (truth.kept, truth.invented > 0):
        total = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums = total[CROP:, CROP:] - total[:-CROP, CROP:] - total[CROP:, :-CROP] + total[:-CROP, :-CROP]
        row, col = np.unravel_index(int(sums.argmax()), sums.shape)
        found.append((int(row), int(col)))
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, required=True, metavar="DIR", help="folder of tiles with class rasters")
    parser.add_argument(
        "--segmenter", type=Path, default=SEGMENTER, metavar="DIR", help="exported segmenter (default: the project's)"
    )
    parser.add_argument("--compensation", default="cosmic", help="compensator without a map (default %(default)s)")
    parser.add_argument("--guided", help="compensator with a map (default: none)")
    parser.add_argument(
        "--profiles", type=Path, action="append", default=[], help="folder of compensators (repeatable)"
    )
    parser.add_argument(
        "--mosaic", action="append", metavar="NAME=PATTERN:TILES", help=f"(repeatable; default {MOSAICS})"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES_BPP, help="bits per pixel (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    parser.add_argument("--lpips", type=Path, metavar="ONNX", help="model with inputs ref and dist in -1..1")
    parser.add_argument(
        "--sheets",
        type=Path,
        metavar="DIR",
        help="also write crops of each mosaic, with the map, and with invented buildings",
    )
    parser.add_argument("--out", type=Path, default=Path("build/semantics.json"), help="JSON report")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    library, judge = Library(args.profiles, args.threads), Judge(args.segmenter)
    perception = Perception(args.lpips) if args.lpips else None
    rows: list[dict[str, Any]] = []
    for text in tqdm(args.mosaic or MOSAICS, unit="mosaic", disable=None):
        name, _, rest = text.partition("=")
        pattern, _, width = rest.rpartition(":")
        mosaic = mosaic_of(args.maps, name, pattern, int(width))
        planes = np.ascontiguousarray(mosaic.pixels.transpose(2, 0, 1))
        crops: list[tuple[float, list[Coded]]] = []
        with tempfile.TemporaryDirectory() as folder:
            truth = truth_of(mosaic, judge, Path(folder))
            for rate in args.rates:
                size = round(rate * mosaic.buildings.size / 8)
                data = closest(lambda s: perigee.encode(planes, s / 2.5, metadata=PLACE), 250, size)  # noqa: B023
                ways = dict(decoded(data, library, truth, args.compensation, args.guided))
                ways |= anchors(mosaic.pixels, len(data))
                rows += rows_of(
                    truth, rate, judge, perception, ways, 8 * len(data) / mosaic.buildings.size, args.compensation
                )
                crops.append(
                    (rate, [Coded(name, len(data), ways[name].pixels) for name in ways if name in shown_ways(args)])
                )
        if args.sheets:
            for number, place in enumerate(windows_of(truth)):
                drawn = [
                    (rate, [Coded("map: green; invented: red", parts[0].size_bytes, outlined(truth)), *parts])
                    for rate, parts in crops
                ]
                save(sheet(name, mosaic.pixels, drawn, place, CROP), args.sheets / f"{name}_{number}.png")
    print(table(rows, list(dict.fromkeys(column for row in rows for column in row))))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
