"""Fingerprints of streams and pictures, to show that a change moved nothing that it must not move.

``python tests/fingerprints.py LIST.csv FOLDER...`` encodes every GeoTIFF of the folders and decodes the streams to PNG, and writes
one line for each file, profile and quality: the SHA-256 of the stream and of the PNG, or the error. With ``--against OLD.csv`` it
compares the lines with a list that was made before, prints those that differ and exits with 1. Pictures can be compared on one
machine with the same library versions only; streams can be compared anywhere.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import perigee
from perigee.bitstream.errors import PerigeeError
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, make

COLUMNS = ("file", "profile", "quality", "stream_sha256", "png_sha256")


def lines(folders: list[Path], profiles: list[str], qualities: list[float]) -> Iterator[tuple[str, ...]]:
    """One line for each file, profile and quality, in this order: profiles, folders, files, qualities."""
    library = Library(threads=1)
    files = [path for folder in folders for path in sorted(folder.glob("*.tif"))]
    with tempfile.TemporaryDirectory() as temporary:
        png = Path(temporary) / "picture.png"
        for profile in profiles:
            for path in tqdm(files, desc=profile, unit="file", disable=None):
                for quality in qualities:
                    name = f"{path.parent.name}/{path.name}"
                    try:
                        data = perigee.encode(path, quality, profile, threads=1)
                    except PerigeeError as error:
                        yield name, profile, f"{quality:g}", type(error).__name__, str(error)[:80]
                        continue
                    try:
                        make(Order("png"), data, library, {IMAGE: png})
                        picture = hashlib.sha256(png.read_bytes()).hexdigest()
                    except PerigeeError as error:
                        picture = type(error).__name__
                    yield name, profile, f"{quality:g}", hashlib.sha256(data).hexdigest(), picture


def main() -> int:
    """Entry point; 1 where a line differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="LIST.csv")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--profiles", nargs="+", default=["flight3", "flight2"])
    parser.add_argument("--qualities", nargs="+", type=float, default=[20, 50, 80])
    parser.add_argument("--against", type=Path, metavar="OLD.csv", help="a list that was made before the change")
    args = parser.parse_args()
    made = list(lines(args.folders, args.profiles, args.qualities))
    with args.out.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(made)
    if args.against is None:
        return 0
    with args.against.open(newline="", encoding="utf-8") as handle:
        known = {tuple(row[:3]): tuple(row[3:]) for row in list(csv.reader(handle))[1:]}
    differing = [line for line in made if known.get(line[:3]) != line[3:]]
    for line in differing:
        print(*line[:3], "was", known.get(line[:3]), "is", line[3:])
    print(f"{len(made)} lines, {len(known)} known, {len(differing)} differ")
    return int(bool(differing) or len(made) != len(known))


if __name__ == "__main__":
    sys.exit(main())
