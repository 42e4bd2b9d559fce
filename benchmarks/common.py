"""What all benchmarks share: images, the anchors' codecs, metrics, and the facts needed to doubt a figure."""

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
PACKAGES = ("numpy", "onnxruntime", "constriction", "pillow", "imagecodecs", "torch", "rasterio")


def sample_folder() -> Path:
    """The small licensed sample that comes with Perigee."""
    return Path(str(resources.files("perigee.benchmarks"))) / "sample"


def images(folder: Path) -> Iterator[tuple[str, Pixels]]:
    """Name and RGB pixels uint8 [row, col, 3] of every 8-bit RGB image of a folder, in order of name."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            with Image.open(path) as image:
                yield path.stem, np.asarray(image.convert("RGB"))


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


def decode_pillow(data: bytes) -> Pixels:
    """Any image that Pillow decodes, as RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def avif(pixels: Pixels, quality: int) -> bytes:
    """AVIF (aom), 4:4:4, speed 4, through Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "AVIF", quality=quality, subsampling="4:4:4", speed=4, max_threads=1)
    return buffer.getvalue()


def webp(pixels: Pixels, quality: int) -> bytes:
    """WebP, method 6, through Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


def jpegxl(pixels: Pixels, distance: float) -> bytes:
    """JPEG XL at a Butteraugli distance, effort 7, through imagecodecs."""
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(pixels, distance=distance, effort=7, lossless=False))


def decode_jpegxl(data: bytes) -> Pixels:
    """Inverse of :func:`jpegxl`."""
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data))


Anchor = tuple[Callable[[Pixels, Any], bytes], Callable[[bytes], Pixels], tuple[Any, ...]]
ANCHORS: dict[str, Anchor] = {
    "jpeg2000": (jpeg2000, decode_pillow, (0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 0.95, 1.25, 1.6, 2.1)),
    "avif": (avif, decode_pillow, (8, 16, 24, 32, 41, 50, 58, 66, 74, 82)),
    "jpegxl": (jpegxl, decode_jpegxl, (20.0, 14.0, 10.0, 7.5, 5.5, 4.0, 3.0, 2.2, 1.6, 1.1)),
    "webp": (webp, decode_pillow, (1, 5, 12, 22, 35, 50, 65, 78, 86, 92)),
}


def bd_rate(
    anchor: list[tuple[float, float]], test: list[tuple[float, float]], low: float = 0.1, high: float = 1.5
) -> float:
    """Bjontegaard rate difference in % of (bpp, PSNR) points: PCHIP of log-rate over PSNR, common PSNR range.

    Only points of ``low``..``high`` bpp count, with one beyond each end kept for interpolation by clipping the common range
    to the PSNRs at those rates. NaN where the curves do not overlap.
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for points in (anchor, test):
        clean = sorted({(p, math.log(r)) for r, p in points if math.isfinite(p)})
        kept = [(p, r) for i, (p, r) in enumerate(clean) if i == 0 or (p > clean[i - 1][0] and r > clean[i - 1][1])]
        if len(kept) < 4:
            return math.nan
        quality, rate = np.array(kept).T
        by_rate = PchipInterpolator(rate, quality, extrapolate=False)
        first = quality[0] if rate[0] >= math.log(low) else float(by_rate(math.log(low)))
        last = quality[-1] if rate[-1] <= math.log(high) else float(by_rate(math.log(high)))
        curves.append((PchipInterpolator(quality, rate), first, last))
    bottom, top = max(c[1] for c in curves), min(c[2] for c in curves)
    if not top > bottom:
        return math.nan
    areas = [float(curve.integrate(bottom, top)) for curve, _, _ in curves]
    return 100 * (math.exp((areas[1] - areas[0]) / (top - bottom)) - 1)


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Rows as an aligned text table."""
    cells = [columns, *([str(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
