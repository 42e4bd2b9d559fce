"""Files beside a GeoTIFF that GDAL reads with it: ``.aux.xml``, world files and RPC texts."""

from __future__ import annotations

import os
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
WORLD_SUFFIXES = (".tfw", ".tifw", ".tiffw", ".wld")
NOT_READ = (".aux", ".rpb", ".imd", ".pvl", ".tab", ".xml", "_metadata.txt", "_mtl.txt")


class Siblings:
    """The files in a GeoTIFF's folder. Names are compared without case, as GDAL compares them; the exact name goes first."""

    def __init__(self, path: Path) -> None:
        """``path`` is the GeoTIFF's; a folder that cannot be listed has no files."""
        self._folder = path.parent
        try:
            self._names = os.listdir(self._folder)
        except OSError:
            self._names = []
        self._by_lower = {name.lower(): name for name in sorted(self._names, reverse=True)}

    def find(self, name: str) -> Path | None:
        """The file of this name, or None."""
        found = name if name in self._names else self._by_lower.get(name.lower())
        return None if found is None else self._folder / found


def _text(path: Path, most: int = TEXT_MAX_BYTES) -> str | None:
    """The text of a small file, or None where it is none or cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > most:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def pam_of(path: Path, siblings: Siblings) -> GdalMetadata:
    """What ``FILE.tif.aux.xml`` says; empty where there is none."""
    beside = siblings.find(path.name + ".aux.xml")
    if beside is None:
        return GdalMetadata()
    text = _text(beside, XML_MAX_BYTES)
    if text is None:
        return GdalMetadata(left_behind=[f"{beside.name}, which cannot be read"])
    return from_pam(text, beside.name)


def world_file_of(path: Path, siblings: Siblings) -> tuple[tuple[float, ...] | None, str]:
    """The transform a, b, c, d, e, f of a world file, and its name or the reason why it cannot be used; "" without one."""
    for suffix in WORLD_SUFFIXES:
        beside = siblings.find(path.stem + suffix)
        if beside is None or beside == path:
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


def rpc_of(path: Path, siblings: Siblings) -> tuple[tuple[float, ...] | None, str]:
    """The RPC model of ``NAME_RPC.TXT`` as TIFF tag 50844, and its name or the reason why it cannot be used; "" without one."""
    beside = siblings.find(path.stem + "_RPC.TXT")
    if beside is None:
        return None, ""
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


def unread_of(path: Path, siblings: Siblings) -> list[str]:
    """Names of files beside the GeoTIFF that belong to it and that are not read."""
    found = [siblings.find(path.stem + suffix) for suffix in NOT_READ]
    return [beside.name for beside in found if beside is not None and beside != path and beside.is_file()]
