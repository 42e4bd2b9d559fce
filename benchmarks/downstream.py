"""Does the science survive? Land use told from decoded tiles: ``python -m perigee.benchmarks.downstream``.

As in COSMIC's table 2, a classifier that was trained on original images is shown images that were coded and decoded:
JPEG 2000 (OpenJPEG) as close to a rate as it comes, tile by tile, and Perigee as close to the same bytes as it comes: in this
order, since JPEG 2000's sizes of small tiles lie up to a third apart and Perigee's about a hundredth. Reported are the
accuracy, its change against the originals, and how often the class is the one given to the original, right or wrong.
COSMIC judged with fMoW's classes and a classifier that it does not describe: compare changes, not levels.

Classes are read off the files' names (``river07.tif``). The intervals are of 95 % and for the choice of tiles; that
another classifier might judge otherwise is not in them. ``classifier`` says what ours is and why.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.classifier import Backbone, Classifier, cross_validate, fit, load_classifier
from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import SUFFIXES, decode_pillow, jpeg2000, read_rgb, table, write_report
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.profile import DEFAULT_PROFILE

RATES_BPP = (0.1, 0.25, 0.5)
NORMAL_95 = 1.959964
RESAMPLES = 10_000


def class_of(path: Path) -> str:
    """Class by the file's name: what precedes its number, without a prefix that ends in ``_``."""
    return path.stem.rsplit("_", 1)[-1].rstrip(string.digits)


def labelled(folder: Path, limit: int | None = None) -> list[tuple[Path, str]]:
    """Images of a folder and those below it with their classes, in order of path; at most ``limit`` of a class."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(class_of(path), []).append(path)
    return [(path, name) for name, paths in found.items() for path in paths[:limit]]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share of successes, by Wilson's score. Raises ValueError without trials."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials}")
    share, z2 = successes / trials, NORMAL_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired_difference(a: Iterable[bool], b: Iterable[bool], seed: int = 1) -> tuple[float, float, float]:
    """Share of ``a`` minus share of ``b`` over the same tiles, and its 95 % interval by bootstrap over the tiles."""
    difference = np.array(list(a), np.float64) - np.array(list(b), np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def closest(
    encode: Callable[[float], bytes], wanted_bytes: float, low: float, high: float, rounds: int
) -> tuple[float, bytes]:
    """Setting between ``low`` and ``high`` and its file whose size comes closest, by bisection in so many rounds."""
    tried: list[tuple[float, bytes]] = []
    for _ in range(rounds):
        middle = (low + high) / 2
        tried.append((middle, encode(middle)))
        low, high = (middle, high) if len(tried[-1][1]) < wanted_bytes else (low, middle)
    return min(tried, key=lambda one: abs(len(one[1]) - wanted_bytes))


def equal_bytes(codec: ArrayCodec, pixels: Pixels, bpp: float) -> tuple[bytes, float, bytes]:
    """JPEG 2000 as close to a rate as it comes, and Perigee's quality and stream as close to its bytes as they come."""
    area = pixels.shape[0] * pixels.shape[1]
    _, theirs = closest(lambda rate: jpeg2000(pixels, rate), bpp * area / 8, bpp / 4, 2 * bpp, 12)
    quality, ours = closest(lambda q: codec.encode(pixels, q), len(theirs), 0, 100, 9)  # finer than the 251 qualities
    return theirs, quality, ours


def trained(folder: Path, backbone: Backbone, cache: Path | None) -> tuple[Classifier, float | None]:
    """The classifier of a folder's images, and its accuracy by five-fold cross-validation where it was trained now.

    With ``cache`` it is read from there if it was made from the same files and network, and written there otherwise.
    """
    examples = labelled(folder)
    if len({name for _, name in examples}) < 2:
        raise SystemExit(f"{folder}: {len(examples)} images of fewer than two classes, by the names of the files")
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path, _ in examples)
    made_from = f"{backbone.digest} {hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    known = None if cache is None else load_classifier(cache, made_from)
    if known is not None:
        return known, None
    features = np.array(
        [backbone.features(read_rgb(path)) for path, _ in tqdm(examples, desc="training", unit="image", disable=None)]
    )
    labels = [name for _, name in examples]
    classifier = fit(features, labels)
    if cache is not None:
        classifier.save(cache, made_from)
    return classifier, cross_validate(features, labels)


def judge(
    tiles: list[tuple[Path, str]], backbone: Backbone, classifier: Classifier, codec: ArrayCodec
) -> list[dict[str, Any]]:
    """A row for every tile, codec and rate (``original`` without a rate): bytes, bpp and the class told."""
    rows: list[dict[str, Any]] = []
    for path, label in tqdm(tiles, desc="judging", unit="tile", disable=None):
        pixels = read_rgb(path)
        versions: list[tuple[str, float | None, float | None, int, Pixels]] = [
            ("original", None, None, pixels.size, pixels)
        ]
        for bpp in RATES_BPP:
            theirs, setting, ours = equal_bytes(codec, pixels, bpp)
            versions.append(("perigee", bpp, setting, len(ours), codec.decode(ours)))
            versions.append(("jpeg2000", bpp, None, len(theirs), decode_pillow(theirs)))
        told = classifier.predict(np.array([backbone.features(version[-1]) for version in versions]))
        for (name, rate, quality, size, _), number in zip(versions, told, strict=True):
            rows.append({"image": path.stem, "class": label, "codec": name, "rate": rate, "quality": quality,
                         "bytes": size, "bpp": 8 * size / (pixels.size / 3), "told": classifier.names[number]})  # fmt: skip
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per codec and rate: accuracy, its change against the originals, agreement with them, and ours minus JPEG 2000; %."""
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["codec"], row["rate"]), []).append(row)
    right = {key: [row["told"] == row["class"] for row in part] for key, part in groups.items()}
    original = groups["original", None]
    out = []
    for (codec, rate), part in groups.items():
        hits = right[codec, rate]
        line: dict[str, Any] = {"codec": codec, "rate": rate or "", "tiles": len(part)}
        line |= {"bpp": f"{np.mean([row['bpp'] for row in part]):.3f}"}
        line["accuracy %"] = _percent(sum(hits) / len(hits), *wilson(sum(hits), len(hits)))
        if rate is not None:
            same = sum(row["told"] == first["told"] for row, first in zip(part, original, strict=True))
            line["change"] = _percent(*paired_difference(hits, right["original", None]), sign="+")
            line["agreement %"] = _percent(same / len(part), *wilson(same, len(part)))
            if codec == "perigee":
                line["ours - JPEG 2000"] = _percent(*paired_difference(hits, right["jpeg2000", rate]), sign="+")
        out.append(line)
    return out


def _percent(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} .. {100 * high:{sign}.1f})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=Path, required=True, help="folder of original images to train on, searched with those below it"
    )
    parser.add_argument(
        "--eval", type=Path, required=True, help="folder of original images to judge, of the same classes"
    )
    parser.add_argument("--backbone", type=Path, required=True, help="ONNX file of LPIPS with SqueezeNet")
    parser.add_argument("--cache", type=Path, help="file (.npz) to keep the trained classifier in")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--analysis", help="which of the profile's analyses (default: the profile's)")
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    parser.add_argument("--limit", type=int, help="judge only the first N tiles of each class")
    parser.add_argument("--out", type=Path, default=Path("build/downstream.json"), help="JSON report")
    args = parser.parse_args()
    tiles = labelled(args.eval, args.limit)
    if not tiles:
        raise SystemExit(f"{args.eval}: no images")
    backbone = Backbone(args.backbone, args.threads)
    classifier, accuracy = trained(args.train, backbone, args.cache)
    strange = sorted({name for _, name in tiles} - set(classifier.names))
    if strange:
        raise SystemExit(f"{args.eval}: classes without training images: {', '.join(strange)}")
    rows = judge(tiles, backbone, classifier, ArrayCodec(args.profile, args.threads, args.analysis))
    summary = summarise(rows)
    if accuracy is not None:
        print(f"training images left out in turn (five folds): {100 * accuracy:.1f} % right")
    print("\nper cent, with 95 % intervals: Wilson's for shares, bootstrap over the tiles for differences\n")
    columns = ["codec", "rate", "bpp", "accuracy %", "change", "agreement %", "ours - JPEG 2000"]
    print(table(summary, columns))
    write_report(args.out, [{"cross-validation": accuracy, "summary": summary, "tiles": rows}])


if __name__ == "__main__":
    main()
