"""Do patch borders show? Squared error beside them against the same pixels inside patches: ``python -m perigee.benchmarks.seams``.

Every scene is coded twice: from its corner, and from half a patch below and right of it. What lies within 4 px of a patch
border the first time lies well inside a patch the second time. **Seam ratio**: squared error of those pixels the first
time over that of the same pixels the second time; 1 means that no border can be told. Half a patch is a multiple of the
64 px of a hyper-latent, so nothing but the borders moves.

Three codecs are judged, each by real streams:

* ``independent``: patches analysed alone and synthesised alone.
* ``default``: the same streams through the ground's decoder, which stitches latents and synthesises with overlap.
* ``compensated``: the same streams with generated detail, where ``--compensation`` names a compensator.
* ``halo N``: on board, each patch is analysed with N px of its neighbours and only its own latents are kept; on the ground
  the default. Streams stay what they are, any decoder reads them. Beyond the scene its outermost pixels are repeated.

The graphs that fly give latents and hyper-latents of the same window and cannot make hyper-latents of a part. A halo of 64
px (one hyper-latent) has hyper-latents that cover the patch exactly: they are cropped too. For 32 px they are of a second
analysis of the patch alone; a graph of its own would crop first and not need it, so costs are those of one analysis.
Costs are the ratio of areas, which is the ratio of multiply-adds, and the analysis's measured time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec, CompensatedCodec
from perigee.benchmarks.common import images, psnr, sample_folder, table, write_report
from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import FloatArray, IntArray, Pixels
from perigee.bitstream.contract import BLOCK, HYPER_BLOCK
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile
from perigee.engines.flight import FlightEngine
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region
from perigee.onboard.encoder import Encoder
from perigee.onboard.source import ArraySource, Block, Source

BORDER_PX = 4
GUARD_PX = 64  # a pixel counts only this far from every border of the second grid
HALO_MULTIPLE = 32  # the window, twice the halo larger than the patch, has a side of a multiple of 64
LIMITS = {"compensated": {30: 1.03}, "default": {30: 1.03, 70: 1.07}, "halo": {30: 1.02, 70: 1.02}}


class HaloEngine(FlightEngine):
    """The analysis of a patch that sees ``halo_px`` of its neighbours on each side."""

    def __init__(self, profile: Profile, halo_px: int, threads: int | None = None, analysis: str | None = None) -> None:
        """Raises ValueError unless the halo is a positive multiple of 32."""
        if halo_px < HALO_MULTIPLE or halo_px % HALO_MULTIPLE:
            raise ValueError(f"a halo of {halo_px} px; accepted are positive multiples of {HALO_MULTIPLE}")
        super().__init__(profile, threads, analysis=analysis)
        self.halo_px = halo_px

    def analyse(self, image: FloatArray, quality_step: int) -> tuple[IntArray, IntArray]:
        """q and z as int32 of the inside of windows float32 [N, 3, H + 2 halo, W + 2 halo], H and W multiples of 64.

        Smaller windows have no halo: so is the known patch by which the encoder checks itself.
        """
        if min(image.shape[2:]) < HYPER_BLOCK + 2 * self.halo_px:
            return super().analyse(image, quality_step)
        q, z = super().analyse(image, quality_step)
        q = _inside(q, self.halo_px // BLOCK)
        if self.halo_px % HYPER_BLOCK == 0:
            return q, _inside(z, self.halo_px // HYPER_BLOCK)
        return q, super().analyse(_inside(image, self.halo_px), quality_step)[1]


def _inside(array: npt.NDArray[Any], margin: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array[..., margin:-margin, margin:-margin])


class HaloSource(ArraySource):
    """An RGB array whose windows come with a halo; beyond the scene its outermost pixels are repeated."""

    def __init__(self, pixels: Pixels, halo_px: int) -> None:
        super().__init__(pixels.transpose(2, 0, 1))
        height, width, _ = pixels.shape
        around = [(halo_px, -n % HYPER_BLOCK + halo_px) for n in (height, width)]
        self._padded = np.pad(pixels.transpose(2, 0, 1), [(0, 0), *around], mode="edge")
        self._halo_px = halo_px

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """The window, padded to whole hyper-latents and with its halo."""
        rows, cols = (n + -n % HYPER_BLOCK + 2 * self._halo_px for n in (rows, cols))
        samples = self._padded[:, top : top + rows, left : left + cols]
        return Block(samples, np.ones(samples.shape, bool), None)


class HaloCodec(ArrayCodec):
    """An :class:`ArrayCodec` that analyses with a halo; its streams are decoded like any other."""

    def __init__(
        self, profile: str | Profile, halo_px: int, threads: int | None = None, analysis: str | None = None
    ) -> None:
        super().__init__(profile, threads, analysis)
        self.halo_px = halo_px
        self.encoder = Encoder(self.profile, HaloEngine(self.profile, halo_px, threads, analysis))

    def source(self, pixels: Pixels) -> Source:
        """The array with halos."""
        return HaloSource(pixels, self.halo_px)


def decode_alone(codec: ArrayCodec, data: bytes) -> Pixels:
    """Pixels uint8 [row, col, 3] of a stream whose patches are synthesised without their neighbours."""
    stream = parse_stream(data)
    out = np.empty((stream.header.height, stream.header.width, 3), np.uint8)
    for unit, segment in stream.segments.items():
        _, top, left, rows, cols = stream.header.unit_region(unit)
        alone = fmt.Stream(replace(stream.header, width=cols, height=rows), {0: segment._replace(unit=0)})
        alone.offsets = stream.offsets
        samples = SceneDecoder(alone, codec.ground).region(Region(0, 0, rows, cols)).samples
        out[top : top + rows, left : left + cols] = samples.transpose(1, 2, 0)
    return out


def _near_border(length: int, first: int, side: int, reach: int) -> npt.NDArray[np.bool_]:
    """Which of the positions 0..length-1 are among the ``reach`` nearest on either side of a border.

    Borders lie before the positions ``first``, ``first + side``, ...
    """
    near = np.zeros(length, bool)
    for border in range(first, length, side):
        near[max(border - reach, 0) : border + reach] = True
    return near


def compared_pixels(shape: tuple[int, ...], side: int) -> npt.NDArray[np.bool_]:
    """Which pixels of a scene of ``shape`` (rows, columns, ...) are compared, bool [row, col].

    Within 4 px of a border of the grid that starts at the corner, at least 64 px from every border of the grid that starts
    at (side / 2, side / 2), and in the part that the second grid covers.
    """
    near, inside = [], []
    for length in shape[:2]:
        near.append(_near_border(length, side, side, BORDER_PX))
        inside.append(~_near_border(length, side // 2, side, GUARD_PX))
        inside[-1][: side // 2] = False
    return (near[0][:, None] | near[1][None]) & inside[0][:, None] & inside[1][None]


def seam_ratio(pixels: Pixels, decoded: Pixels, shifted: Pixels, side: int) -> float:
    """Squared error at the borders of the first grid over that of the same pixels in the second.

    ``pixels`` and ``decoded`` uint8 [row, col, 3] are of the scene, ``shifted`` of the scene without its first ``side / 2``
    rows and columns. Raises ValueError where the scene is too small to have a border to compare, or codes without error.
    """
    shift = side // 2
    chosen = compared_pixels(pixels.shape, side)
    if not chosen.any():
        raise ValueError(
            f"a scene of {pixels.shape[1]}x{pixels.shape[0]} has no pixels to compare for patches of {side}"
        )
    first = (pixels.astype(np.int64) - decoded)[chosen]
    second = (pixels[shift:, shift:].astype(np.int64) - shifted)[chosen[shift:, shift:]]
    if not second.any():
        raise ValueError("the pixels to compare were coded without error: there is no ratio")
    return float((first**2).sum() / (second**2).sum())


def analysis_ms(engine: FlightEngine, side_px: int, repeats: int = 5) -> float:
    """Time of one analysis of a window with sides of ``side_px``, best of ``repeats``, in ms."""
    image = np.random.default_rng(1).random((1, 3, side_px, side_px), np.float32)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        FlightEngine.analyse(engine, image, 125)  # the one analysis, also of an engine with a halo
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def measure(name: str, pixels: Pixels, quality: float, codecs: dict[str, ArrayCodec]) -> list[dict[str, Any]]:
    """Rows of one scene at one quality; the codec ``default`` comes first and is also judged as ``independent``.

    Each has the seam ratio, the bytes and PSNR (dB) of the scene in the first grid, and how they differ from the default's.
    """
    rows: list[dict[str, Any]] = []
    for label, codec in codecs.items():
        side = codec.profile.contract.patch_side
        data, shifted = codec.encode(pixels, quality), codec.encode(pixels[side // 2 :, side // 2 :], quality)
        ways: dict[str, Callable[[bytes], Pixels]] = {label: codec.decode}
        if label == "default":
            ways["independent"] = partial(decode_alone, codec)
        for way, decoding in ways.items():
            decoded = decoding(data)
            row: dict[str, Any] = {
                "scene": name,
                "quality": quality,
                "codec": way,
                "bytes": len(data),
                "psnr": psnr(pixels, decoded),
            }
            first = rows[0] if rows else row
            row["bytes %"] = 100 * (len(data) / first["bytes"] - 1)
            row["psnr dB"] = row["psnr"] - first["psnr"]
            row["ratio"] = seam_ratio(pixels, decoded, decoding(shifted), side)
            rows.append(row)
    return [{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per quality and codec: median and largest ratio, median differences to ``default``, and the verdict."""
    out = []
    for quality, codec in dict.fromkeys((row["quality"], row["codec"]) for row in rows):
        part = [row for row in rows if (row["quality"], row["codec"]) == (quality, codec)]
        median = {key: float(np.median([row[key] for row in part])) for key in ("ratio", "bytes %", "psnr dB")}
        limit = LIMITS.get(codec.split()[0], {}).get(quality)
        line = {"quality": quality, "codec": codec, "scenes": len(part), "median": f"{median['ratio']:.3f}"}
        line["largest"] = f"{max(row['ratio'] for row in part):.3f}"
        if limit is not None:
            line |= {"limit": limit, "verdict": "pass" if median["ratio"] <= limit else "miss"}
        line |= {"bytes %": f"{median['bytes %']:+.2f}", "psnr dB": f"{median['psnr dB']:+.3f}"}
        out.append(line)
    return out


def costs(codecs: dict[str, ArrayCodec]) -> list[dict[str, Any]]:
    """Area and measured time of the analysis of one patch with each halo, measured in turn four times over."""
    side = next(iter(codecs.values())).profile.contract.patch_side
    sides = {label: side + 2 * getattr(codec, "halo_px", 0) for label, codec in codecs.items()}
    times: dict[str, list[float]] = {label: [] for label in codecs}
    for _ in range(4):
        for label, codec in codecs.items():
            times[label].append(analysis_ms(codec.encoder.engine, sides[label]))
    first = min(next(iter(times.values())))
    out = []
    for label, ms in times.items():
        row = {"codec": label, "window px": sides[label], "area": f"{(sides[label] / side) ** 2:.2f}"}
        out.append(row | {"analysis ms": f"{min(ms):.1f}", "time": f"{min(ms) / first:.2f}"})
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenes", type=Path, default=sample_folder(),
        help="folder of 8-bit RGB images with sides of at least one and a half patches (default: the bundled sample)",
    )  # fmt: skip
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--analysis", help="which of the profile's analyses (default: the profile's)")
    parser.add_argument("--quality", type=float, nargs="+", default=[30, 70], help="qualities (default 30 70)")
    parser.add_argument(
        "--halo", type=int, nargs="*", default=[32, 64], metavar="PX",
        help="on-board halos to try, multiples of 32 px; none with an empty list (default 32 64)",
    )  # fmt: skip
    parser.add_argument("--compensation", metavar="NAME[:METHOD]", help="also judge images compensated by this")
    parser.add_argument("--compensators", type=Path, action="append", default=[], help="folder with compensators")
    parser.add_argument("--threads", type=int, default=1, help="of all networks, also when timed (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N scenes")
    parser.add_argument("--out", type=Path, default=Path("build/seams.json"), help="JSON report")
    args = parser.parse_args()
    codecs: dict[str, ArrayCodec] = {"default": ArrayCodec(args.profile, args.threads, args.analysis)}
    side = codecs["default"].profile.contract.patch_side
    found = [(n, p) for n, p in images(args.scenes) if compared_pixels(p.shape, side).any()][: args.limit]
    if not found:
        raise SystemExit(
            f"no image in {args.scenes} is large enough to have a border between patches of {side} px and room to shift it: "
            f"--scenes FOLDER with images of at least {side + side // 2} px a side"
        )
    for halo in args.halo:
        try:
            codecs[f"halo {halo}"] = HaloCodec(codecs["default"].profile, halo, args.threads, args.analysis)
        except ValueError as error:
            parser.error(str(error))
    if args.compensation:
        first = codecs["default"]
        codecs["compensated"] = CompensatedCodec(first, args.compensation, args.compensators, args.threads)
    rows: list[dict[str, Any]] = []
    for name, pixels in tqdm(found, desc="scenes", unit="scene", disable=None):
        for quality in args.quality:
            rows += measure(name, pixels, quality, codecs)
    summary, cost = summarise(rows), costs(codecs)
    print(table(rows, ["scene", "quality", "codec", "ratio", "bytes", "psnr"]))
    print("\nseam ratio over the scenes; bytes and PSNR of the whole scene against the default, medians\n")
    print(table(summary, ["quality", "codec", "scenes", "median", "largest", "limit", "verdict", "bytes %", "psnr dB"]))
    print(f"\nanalysis of one patch, {args.threads} thread(s)\n")
    print(table(cost, ["codec", "window px", "area", "analysis ms", "time"]))
    write_report(args.out, [{"scenes": rows, "summary": summary, "costs": cost}])


if __name__ == "__main__":
    main()
