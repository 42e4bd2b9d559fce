"""What reading a large stream as a GeoTIFF decodes: ``python -m perigee.benchmarks.virtual --data FOLDER``.

A scene of tiles is encoded, opened by ``perigee.open`` and served by HTTP; a window is read by rasterio, and through ``/vsicurl/`` by gdalwarp
where GDAL's programs are installed. Told are the segments and synthesis windows that each step decodes, its seconds, and whether its samples are
those of ``ground-decode``.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import uvicorn
from rasterio.windows import Window

import perigee
from perigee.benchmarks.common import image_paths, table, write_report
from perigee.benchmarks.service_load import mosaic
from perigee.bitstream.metadata import Metadata
from perigee.ground.decoder import SceneDecoder
from perigee.ground.service.app import create_app
from perigee.ground.service.limits import Settings

PLACE = Metadata(epsg=32633, transform=(1.0, 0.0, 5e5, 0.0, -1.0, 5e6))
WINDOW = 600  # pixels on the side of what is read


class Counted:
    """Counts what scene decoders do while the block runs."""

    def __enter__(self) -> Counted:
        self.segments: set[int] = set()
        self.windows = 0
        self._symbols, self._region = SceneDecoder.symbols, SceneDecoder.region
        counted = self

        def symbols(decoder: SceneDecoder, unit: int, passes: int | None = None) -> Any:
            counted.segments.add(unit)
            return counted._symbols(decoder, unit, passes)

        def region(decoder: SceneDecoder, *args: Any, **kwargs: Any) -> Any:
            counted.windows += 1
            return counted._region(decoder, *args, **kwargs)

        SceneDecoder.symbols = symbols  # type: ignore[method-assign,assignment]
        SceneDecoder.region = region  # type: ignore[method-assign,assignment]
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        SceneDecoder.symbols, SceneDecoder.region = self._symbols, self._region  # type: ignore[method-assign]


def row_of(what: str, counted: Counted, equal: bool | None) -> dict[str, Any]:
    """A row of the table."""
    told = "-" if equal is None else str(equal)
    return {
        "step": what,
        "segments": len(counted.segments),
        "synthesis windows": counted.windows,
        "seconds": f"{counted.seconds:.2f}",
        "equal": told,
    }


def served(folder: Path) -> tuple[uvicorn.Server, str]:
    """A service of this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(Settings(scenes=folder)), host="127.0.0.1", port=port, log_level="error")
    )
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return server, f"http://127.0.0.1:{port}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of RGB tiles, which the scene is made of")
    parser.add_argument("--side", type=int, default=16_384, help="pixels of the scene (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/virtual.json"), help="JSON report")
    args = parser.parse_args()
    data = perigee.encode(mosaic(list(image_paths(args.data)), args.side, 0), 50, metadata=PLACE)
    top, left = args.side // 2 - 300, args.side // 3
    wanted = perigee.decode(data, window=(top // 1024 * 1024, left // 1024 * 1024, 2048, 2048)).samples
    wanted = wanted[:, top % 1024 :, left % 1024 :][:, :WINDOW, :WINDOW]
    rows = []
    with Counted() as counted:
        dataset = perigee.open(data)
    rows.append(row_of("perigee.open", counted, None))
    with Counted() as counted:
        found = dataset.read(window=Window(left, top, WINDOW, WINDOW))
    rows.append(row_of(f"{WINDOW} x {WINDOW} by rasterio", counted, bool(np.array_equal(found, wanted))))
    with Counted() as counted:
        dataset.read(out_shape=(3, args.side // 32, args.side // 32))
    rows.append(row_of("the whole scene at 1/32", counted, None))
    dataset.close()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.peri").write_bytes(data)
        server, address = served(folder)
        steps: dict[str, Callable[[], Any]] = {}
        if shutil.which("gdalwarp"):
            corners = [5e5 + left, 5e6 - top - WINDOW, 5e5 + left + WINDOW, 5e6 - top]
            command = [
                "gdalwarp",
                "-q",
                "-te",
                *map(str, corners),
                f"/vsicurl/{address}/scenes/large.tif",
                str(folder / "part.tif"),
            ]
            steps = {"gdalinfo over HTTP": lambda: subprocess.run(["gdalinfo", command[-2]], check=True, stdout=subprocess.DEVNULL),
                     "gdalwarp of the same window over HTTP": lambda: subprocess.run(command, check=True)}  # fmt: skip
        for what, step in steps.items():
            with Counted() as counted:
                step()
            equal = None
            if "warp" in what:
                with rasterio.open(folder / "part.tif") as part:
                    equal = bool(np.array_equal(part.read(), wanted))
            rows.append(row_of(what, counted, equal))
        server.should_exit = True
    print(f"{args.side} x {args.side} pixels, {len(data)} bytes, {(-(-args.side // 256)) ** 2} segments")
    print(table(rows, list(rows[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
