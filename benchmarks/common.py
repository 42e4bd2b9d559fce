"""What all benchmarks share: images, PSNR, the incumbent JPEG 2000, tables, and the facts needed to doubt a figure."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
SUFFIXES = {".tif", ".tiff", ".png", ".jpg"}
PACKAGES = ("numpy", "onnxruntime", "constriction", "pillow", "imagecodecs", "av", "imageio-ffmpeg", "torch", "rasterio")  # fmt: skip


def sample_folder() -> Path:
    """The small licensed sample that comes with Perigee."""
    return Path(str(resources.files("perigee.benchmarks"))) / "sample"


def image_paths(folder: Path) -> list[Path]:
    """Files of a folder that are images by their suffix, in order of name."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]


def image_size(path: Path) -> tuple[int, int]:
    """Rows and columns of an image file."""
    with Image.open(path) as image:
        return image.height, image.width


def read_rgb(path: Path) -> Pixels:
    """RGB pixels uint8 [row, col, 3] of an 8-bit image."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def images(folder: Path) -> Iterator[tuple[str, Pixels]]:
    """Name and RGB pixels uint8 [row, col, 3] of every 8-bit RGB image of a folder, in order of name."""
    for path in image_paths(folder):
        yield path.stem, read_rgb(path)


def facts() -> dict[str, Any]:
    """Machine, versions, commit, command and time."""

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).resolve().parent
    ).stdout.strip()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit or "unknown",
        "command": "python -m " + " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
    }


def write_report(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON with the facts and the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"facts": facts(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def psnr(a: Pixels, b: Pixels) -> float:
    """PSNR in dB over all bands of 8-bit images; infinite for equal ones."""
    mse = float(np.mean((a.astype(np.float64) - b) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def jpeg2000(pixels: Pixels, bpp: float) -> bytes:
    """OpenJPEG 9/7 in rate mode with the colour transform, raw code stream, through Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, "JPEG2000", quality_mode="rates", quality_layers=[24 / bpp], irreversible=True, mct=1, no_jp2=True
    )
    return buffer.getvalue()


def closest(encode: Callable[[int], bytes], last: int, size_bytes: int) -> bytes:
    """The file closest to a size, by bisection over settings 0..``last`` of rising size."""
    low, high, best = 0, last, b""
    while low <= high:
        middle = (low + high) // 2
        data = encode(middle)
        if not best or abs(len(data) - size_bytes) < abs(len(best) - size_bytes):
            best = data
        low, high = (middle + 1, high) if len(data) < size_bytes else (low, middle - 1)
    return best


def decode_pillow(data: bytes) -> Pixels:
    """Any image that Pillow decodes, as RGB uint8 [row, col, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Rows as an aligned text table."""
    cells = [columns, *([str(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
