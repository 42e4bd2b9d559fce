"""``make demo``: from a real tile to a stream, through the service, to a Cloud-Optimised GeoTIFF and a picture.

Encodes a bundled NAIP tile with ``onboard-encode``, starts ``ground-serve``, posts the stream to ``/decode``, writes the COG
and a side-by-side PNG (original, JPEG 2000 at the same bytes, Perigee), and prints bytes, bpp, PSNR and times.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw

from perigee.benchmarks.common import decode_pillow, jpeg2000, psnr, sample_folder, table
from perigee.bitstream.arrays import Pixels

TILE = "naip60_palm_springs_2020_28.tif"
ZOOM = 2
LABEL_PX = 26


def jpeg2000_of_size(pixels: Pixels, size_bytes: int) -> bytes:
    """The largest JPEG 2000 code stream of at most ``size_bytes``."""
    area = pixels.shape[0] * pixels.shape[1]
    low, high = 0.001, 8 * size_bytes / area * 1.2
    best = jpeg2000(pixels, low)
    for _ in range(14):
        middle = (low + high) / 2
        data = jpeg2000(pixels, middle)
        if len(data) <= size_bytes:
            low, best = middle, data
        else:
            high = middle
    return best


def panels(path: Path, parts: list[tuple[str, Pixels]], zoom: int = ZOOM) -> None:
    """Pictures side by side with a caption each."""
    height, width, _ = parts[0][1].shape
    sheet = Image.new("RGB", (len(parts) * width * zoom + 8 * (len(parts) - 1), height * zoom + LABEL_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, pixels) in enumerate(parts):
        left = i * (width * zoom + 8)
        draw.text((left + 4, 6), caption, fill="black", font_size=14)
        sheet.paste(
            Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST), (left, LABEL_PX)
        )
    sheet.save(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.25)
    raise SystemExit("the service did not become ready")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tile", type=Path, default=sample_folder() / TILE, help="8-bit RGB GeoTIFF (default: a bundled NAIP tile)"
    )
    parser.add_argument("--quality", type=float, default=30, help="0 to 100 (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder for what is made (default %(default)s)"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stream, cog, picture = (args.out / name for name in ("scene.peri", "scene.tif", "side-by-side.png"))

    start = time.perf_counter()
    command = [sys.executable, "-m", "perigee.onboard", str(args.tile), "-o", str(stream), "-q", str(args.quality)]
    result = subprocess.run([*command, "--json", "--overwrite", "--verify"], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    encode_s = time.perf_counter() - start
    encoded = json.loads(result.stdout)

    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "perigee.ground.service", "--port", str(port)])
    try:
        _wait_until_ready(url, server)
        request = urllib.request.Request(
            f"{url}/decode", stream.read_bytes(), {"Content-Type": "application/octet-stream"}
        )
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=120) as answer:
            cog.write_bytes(answer.read())
        decode_s = time.perf_counter() - start
    finally:
        server.terminate()
        server.wait(20)

    with rasterio.open(args.tile) as a, rasterio.open(cog) as b:
        original, decoded = (np.ascontiguousarray(d.read([1, 2, 3]).transpose(1, 2, 0)) for d in (a, b))
        same_place = (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
    size = encoded["bytes"]
    theirs = jpeg2000_of_size(original, size)
    other = decode_pillow(theirs)
    area = original.shape[0] * original.shape[1]
    rows = [
        {"": "original (raw)", "bytes": original.size, "bpp": "24.000", "PSNR dB": ""},
        {
            "": "JPEG 2000 (OpenJPEG 9/7)",
            "bytes": len(theirs),
            "bpp": f"{8 * len(theirs) / area:.3f}",
            "PSNR dB": f"{psnr(original, other):.2f}",
        },
        {"": "Perigee", "bytes": size, "bpp": f"{8 * size / area:.3f}", "PSNR dB": f"{psnr(original, decoded):.2f}"},
    ]
    panels(
        picture,
        [
            (f"original, {original.size} bytes raw", original),
            (f"JPEG 2000, {len(theirs)} bytes, {psnr(original, other):.2f} dB", other),
            (f"Perigee, {size} bytes, {psnr(original, decoded):.2f} dB", decoded),
        ],
    )
    print(table(rows, ["", "bytes", "bpp", "PSNR dB"]))
    stages = ", ".join(f"{name} {ms:.1f} ms" for name, ms in encoded["ms"].items())
    print(f"\non board: {encode_s:.2f} s for the whole process, of which {stages}")
    print(f"ground:   {decode_s:.2f} s for POST /decode with the product")
    print(f"georeferencing of the product equals the source's: {'yes' if same_place else 'NO'}")
    print(f"\n{stream}\n{cog}\n{picture}")
    if not same_place:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
