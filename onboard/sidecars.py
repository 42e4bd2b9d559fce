"""Files beside a GeoTIFF that GDAL reads with it: ``.aux.xml``, world files and RPC texts."""

from __future__ import annotations

import re
from pathlib import Path

from perigee.bitstream.metadata import RPC_VALUES
from perigee.onboard.gdal_xml import XML_MAX_BYTES, GdalMetadata, from_pam

TEXT_MAX_BYTES = 1 << 20
RPC_SINGLE = (
    "ERR_BIAS", "ERR_RAND", "LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF", "LINE_SCALE", "SAMP_SCALE", "LAT_SCALE",
    "LONG_SCALE", "HEIGHT_SCALE",
)  # fmt: skip
RPC_SERIES = ("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF")
WORLD_SUFFIXES = (".tfw", ".TFW", ".tifw", ".TIFW", ".tiffw", ".wld", ".WLD")
NOT_READ = (
    ".RPB",
    ".rpb",
    ".IMD",
    ".imd",
    ".PVL",
    ".pvl",
    ".tab",
    ".TAB",
    ".XML",
    "_metadata.txt",
    "_MTL.txt",
    "_MTL.TXT",
)


def _text(path: Path, most: int = TEXT_MAX_BYTES) -> str | None:
    """The text of a small file, or None where it is none or cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > most:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def pam_of(path: Path) -> GdalMetadata:
    """What ``FILE.tif.aux.xml`` says; empty where there is none."""
    beside = path.with_name(path.name + ".aux.xml")
    if not beside.exists():
        return GdalMetadata()
    text = _text(beside, XML_MAX_BYTES)
    if text is None:
        return GdalMetadata(left_behind=[f"{beside.name}, which cannot be read"])
    return from_pam(text, beside.name)


def world_file_of(path: Path) -> tuple[tuple[float, ...] | None, str]:
    """The transform a, b, c, d, e, f of a world file, and its name or the reason why it cannot be used; "" without one."""
    for suffix in WORLD_SUFFIXES:
        beside = path.with_suffix(suffix)
        if beside == path or not beside.exists():
            continue
        text = _text(beside)
        try:
            a, d, b, e, c, f = (float(line.split()[0]) for line in (text or "").strip().splitlines()[:6])
        except (ValueError, IndexError):
            return None, f"{beside.name}, which holds no six lines with a number"
        if a * e - b * d == 0:
            return None, f"{beside.name}, whose transform is singular"
        # a world file names the centre of the upper left pixel, a transform its corner
        return (a, b, c - 0.5 * (a + b), d, e, f - 0.5 * (d + e)), beside.name
    return None, ""


def rpc_of(path: Path) -> tuple[tuple[float, ...] | None, str]:
    """The RPC model of ``NAME_RPC.TXT`` as TIFF tag 50844, and its name or the reason why it cannot be used; "" without one."""
    for suffix in ("_RPC.TXT", "_rpc.txt"):
        beside = path.with_name(path.stem + suffix)
        if not beside.exists():
            continue
        found: dict[str, float] = {}
        for key, value in re.findall(r"^\s*([A-Z_0-9]+)\s*[:=]\s*([-+0-9.eE]+)", _text(beside) or "", re.MULTILINE):
            try:
                found[key] = float(value)
            except ValueError:
                continue
        names = [*RPC_SINGLE, *(f"{name}_{i}" for name in RPC_SERIES for i in range(1, 21))]
        values = [found.get(name, -1.0 if name.startswith("ERR_") else None) for name in names]
        if len(values) != RPC_VALUES or None in values:
            return None, f"{beside.name}, which is no complete RPC model"
        return tuple(float(v) for v in values if v is not None), beside.name
    return None, ""


def unread_of(path: Path) -> list[str]:
    """Names of files beside the GeoTIFF that belong to it and that are not read."""
    names = [path.with_suffix(suffix).name if suffix[0] == "." else path.stem + suffix for suffix in NOT_READ]
    return [name for name in names if name != path.name and path.with_name(name).is_file()]
