"""HEVC and VVC as codecs of single pictures: RGB to the bytes of a raw stream with one intra picture, and back.

Both are set for PSNR (psychovisual tuning cost x265 7 and 16 points of BD-rate on two tiles) and run on one thread.
Every byte of the raw stream counts, parameter sets included; x265's text about itself and VVC's access unit delimiter are
switched off.

HEVC: x265 by PyAV, preset slow, 4:4:4, 8 bits. VVC: vvenc by the ffmpeg that imageio-ffmpeg brings, as a process, preset
slow, 4:2:0, 10 bits; as its colour is halved in both directions, it comes back as luma alone, and is to be compared so.
Colour is BT.601 in full range, converted in float64; the rounding to 8 bits alone leaves about 53 dB of RGB PSNR.
"""

from __future__ import annotations

import functools
import subprocess
from fractions import Fraction

import numpy as np

from perigee.benchmarks.metrics import LUMA_WEIGHTS, Luma
from perigee.bitstream.arrays import Pixels, Samples
from perigee.bitstream.errors import PerigeeError

INSTALL = "pip install '.[bench]' in Perigee's checkout"
X265 = "qp={qp}:keyint=1:info=0:pools=none:frame-threads=1:range=full:log-level=none"
COLOUR = ":colormatrix=smpte170m"
VVC_SAMPLES = "yuv420p10le"


class AnchorError(PerigeeError):
    """A codec to compare with fails on an image."""


class MissingAnchorError(AnchorError):
    """A codec to compare with is not installed; the message says how to install it."""


def _ycbcr_matrix() -> Luma:
    red, _, blue = LUMA_WEIGHTS
    cb = (np.array([0.0, 0.0, 1.0]) - LUMA_WEIGHTS) / (2 * (1 - blue))
    cr = (np.array([1.0, 0.0, 0.0]) - LUMA_WEIGHTS) / (2 * (1 - red))
    return np.stack([LUMA_WEIGHTS, cb, cr])


TO_YCBCR = _ycbcr_matrix()
TO_RGB = np.linalg.inv(TO_YCBCR)
CHROMA_ZERO = np.array([0.0, 128.0, 128.0])


def rgb_to_ycbcr(pixels: Pixels) -> Luma:
    """Y, Cb, Cr float64 [row, col, 3], full range 0..255 with colour around 128, not rounded, of RGB uint8."""
    out: Luma = pixels.astype(np.float64) @ TO_YCBCR.T + CHROMA_ZERO
    return out


def ycbcr_to_rgb(planes: Luma | Pixels) -> Pixels:
    """RGB uint8 [row, col, 3], rounded and clipped, of Y, Cb, Cr [row, col, 3] in full range 0..255."""
    return _rounded((planes - CHROMA_ZERO) @ TO_RGB.T)


def _rounded(values: Luma) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def check_hevc() -> None:
    """Raises MissingAnchorError where PyAV or its x265 is absent."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingAnchorError(f"PyAV is missing: {INSTALL}") from error
    if "libx265" not in av.codecs_available:
        raise MissingAnchorError(
            "this PyAV has no libx265; the wheels on PyPI have it: pip install --force-reinstall av"
        )


def encode_hevc(pixels: Pixels, qp: float) -> bytes:
    """Annex B bytes of one HEVC intra picture of RGB uint8 [row, col, 3] at a QP of 0..51.

    Sides of at least 16 pixels, odd ones too. Raises AnchorError where x265 refuses, MissingAnchorError without PyAV.
    """
    planes = _rounded(rgb_to_ycbcr(pixels)).transpose(2, 0, 1)
    return _x265(planes, "yuv444p", X265.format(qp=qp) + COLOUR)


def decode_hevc(data: bytes) -> Pixels:
    """RGB uint8 [row, col, 3] of a stream of :func:`encode_hevc`. Raises AnchorError where it is not exactly one picture."""
    planes = _of_x265(data, ("yuv444p", "yuvj444p"))  # [plane, row, col]
    return ycbcr_to_rgb(planes.astype(np.uint8, copy=False).transpose(1, 2, 0))


def encode_hevc_grey(plane: Samples, qp: float) -> bytes:
    """Annex B bytes of one HEVC intra picture 4:0:0 of 12 bits, uint16 [row, col], at a QP of -24..51. Errors as :func:`encode_hevc`."""
    return _x265(plane, "gray12le", X265.format(qp=qp))


def decode_hevc_grey(data: bytes) -> Samples:
    """Samples uint16 [row, col] of a stream of :func:`encode_hevc_grey`. Raises AnchorError."""
    return np.asarray(_of_x265(data, ("gray12le",)), np.uint16)


def _x265(planes: Samples, pix_fmt: str, parameters: str) -> bytes:
    check_hevc()
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format=pix_fmt)
    frame.pts = 0
    coder = av.CodecContext.create("libx265", "w")
    coder.width, coder.height, coder.pix_fmt = frame.width, frame.height, pix_fmt
    coder.time_base, coder.framerate = Fraction(1, 25), Fraction(25)
    coder.options = {"preset": "slow", "tune": "psnr", "x265-params": parameters}
    try:
        return b"".join(bytes(packet) for packet in [*coder.encode(frame), *coder.encode(None)])
    except (av.FFmpegError, ValueError) as error:
        raise AnchorError(
            f"x265 refuses an image of {frame.height}x{frame.width} with {parameters}: {error}"
        ) from error


def _of_x265(data: bytes, formats: tuple[str, ...]) -> Samples:
    check_hevc()
    import av

    coder = av.CodecContext.create("hevc", "r")
    coder.thread_count = 1
    try:
        packets = [*coder.parse(data), *coder.parse(None)]
        frames = [frame for packet in [*packets, None] for frame in coder.decode(packet)]
    except av.FFmpegError as error:
        raise AnchorError(f"the HEVC stream of {len(data)} bytes does not decode: {error}") from error
    if len(frames) != 1 or frames[0].format.name not in formats:
        raise AnchorError(f"{len(frames)} pictures in an HEVC stream, expected one of {' or '.join(formats)}")
    return np.asarray(frames[0].to_ndarray())


@functools.cache
def ffmpeg_with_vvenc() -> str:
    """Path of an ffmpeg that has libvvenc. Raises MissingAnchorError."""
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise MissingAnchorError(f"imageio-ffmpeg is missing: {INSTALL}") from error
    try:
        program = str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MissingAnchorError(f"imageio-ffmpeg brings no ffmpeg for this machine: {error}") from error
    codecs = subprocess.run([program, "-hide_banner", "-codecs"], capture_output=True, text=True).stdout
    if "libvvenc" not in codecs:
        raise MissingAnchorError(f"{program} has no libvvenc: pip install --upgrade imageio-ffmpeg")
    return program


def check_vvc() -> None:
    """Raises MissingAnchorError where imageio-ffmpeg or its libvvenc is absent."""
    ffmpeg_with_vvenc()


def encode_vvc(pixels: Pixels, qp: float) -> bytes:
    """Raw bytes of one VVC intra picture of RGB uint8 [row, col, 3] at an integer QP of 0..63; seconds a tile.

    An odd side is first made even by repeating its last line. Raises AnchorError, MissingAnchorError.
    """
    rows, cols, _ = pixels.shape
    even = np.pad(rgb_to_ycbcr(pixels), ((0, rows % 2), (0, cols % 2), (0, 0)), mode="edge")
    rows, cols = even.shape[:2]
    colour = even[..., 1:].reshape(rows // 2, 2, cols // 2, 2, 2).mean((1, 3))  # [row, col, Cb and Cr]
    planes = (even[..., 0], colour[..., 0], colour[..., 1])
    raw = b"".join(np.clip(np.rint(4 * p), 0, 1023).astype("<u2").tobytes() for p in planes)
    source = ["-f", "rawvideo", "-pix_fmt", VVC_SAMPLES, "-s", f"{cols}x{rows}", "-r", "1", "-i", "-", "-frames:v", "1"]
    coder = ["-c:v", "libvvenc", "-preset", "slow", "-qp", f"{qp:g}", "-qpa", "0", "-threads", "1"]
    return _ffmpeg([*source, *coder, "-vvenc-params", "accessunitdelimiter=0", "-f", "vvc", "-"], raw)


def decode_vvc(data: bytes) -> Luma:
    """Luma float64 [row, col], 0..255 in steps of a quarter, of a stream of :func:`encode_vvc`; sides are even."""
    output = ["-f", "yuv4mpegpipe", "-strict", "-1", "-pix_fmt", VVC_SAMPLES, "-"]
    raw = _ffmpeg(["-threads", "1", "-f", "vvc", "-i", "-", *output], data)
    header, _, rest = raw.partition(b"\n")
    fields = {field[:1]: field[1:] for field in header.split()[1:]}
    marker, _, samples = rest.partition(b"\n")
    if not marker.startswith(b"FRAME") or not {b"W", b"H"} <= fields.keys():
        raise AnchorError(f"ffmpeg decodes the VVC stream of {len(data)} bytes to no picture")
    rows, cols = int(fields[b"H"]), int(fields[b"W"])
    return np.frombuffer(samples, "<u2", rows * cols).reshape(rows, cols) / 4


def _ffmpeg(arguments: list[str], given: bytes) -> bytes:
    """Standard output of an ffmpeg run. Raises AnchorError with its message."""
    command = [ffmpeg_with_vvenc(), "-v", "error", *arguments]
    result = subprocess.run(command, input=given, capture_output=True)
    if result.returncode or not result.stdout:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        raise AnchorError(f"ffmpeg ends with {result.returncode}: {lines[-1]}")
    return result.stdout
