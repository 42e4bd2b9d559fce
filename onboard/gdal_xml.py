"""GDAL's metadata in XML: tag 42112 of a GeoTIFF, and the file ``.aux.xml`` beside one.

GDAL's own parser is lenient, and files with a stray ``&`` or without a proper encoding are common. A text that is not well-formed
is therefore mended where that is safe, and refused to be understood (not silently dropped) where it is not.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from xml.etree import ElementTree

from perigee.bitstream.metadata import Tag

XML_MAX_BYTES = 16 << 20
STRAY_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]+|#x[0-9a-fA-F]+);)")
DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
DERIVED = ("STATISTICS_", "OVR_RESAMPLING_ALG")  # describe the file that was left behind, not the scene
STRUCTURE_DOMAINS = {"IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "COLOR_PROFILE", "rio_creation_kwds", "rio_overview"}


@dataclass
class GdalMetadata:
    """What GDAL knows of a dataset beside its TIFF tags; by band from 0 where a value belongs to one."""

    descriptions: dict[int, str] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    offsets: dict[int, float] = field(default_factory=dict)
    units: dict[int, str] = field(default_factory=dict)
    interpretations: dict[int, str] = field(default_factory=dict)
    nodata: dict[int, str] = field(default_factory=dict)
    tags: list[Tag] = field(default_factory=list)
    wkt: str | None = None
    epoch: str | None = None
    transform: tuple[float, ...] | None = None
    left_behind: list[str] = field(default_factory=list)

    def update(self, other: GdalMetadata) -> None:
        """Add what ``other`` says; where both say something, ``other`` counts, as GDAL lets ``.aux.xml`` override a file."""
        for name in ("descriptions", "scales", "offsets", "units", "interpretations", "nodata"):
            getattr(self, name).update(getattr(other, name))
        known = {(t.domain, t.band, t.name): t for t in self.tags}
        known |= {(t.domain, t.band, t.name): t for t in other.tags}
        self.tags = list(known.values())
        self.wkt, self.epoch = other.wkt or self.wkt, other.epoch or self.epoch
        self.transform = other.transform or self.transform
        self.left_behind += other.left_behind


def parse(text: str, what: str) -> tuple[ElementTree.Element | None, str]:
    """The root of an XML text, or None and the reason why it cannot be understood."""
    text = text.strip("\0 \r\n\t")
    if len(text) > XML_MAX_BYTES:
        return None, f"{what} has {len(text)} characters; up to {XML_MAX_BYTES} are read"
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None, f"{what} defines entities, which are not read"
    text = NOT_XML.sub(" ", DECLARATION.sub("", text))
    try:
        return ElementTree.fromstring(text), ""
    except ElementTree.ParseError:
        pass
    try:
        return ElementTree.fromstring(STRAY_AMPERSAND.sub("&amp;", text)), ""
    except ElementTree.ParseError as error:
        return None, f"{what} is not well-formed XML ({error})"


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").strip())
    except ValueError:
        return None


def _unescaped(text: str) -> str:
    """Text whose XML escapes are resolved once more: GDAL escapes the values of tag 42112 twice, and resolves them twice."""
    for escape, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&")):
        text = text.replace(escape, character)
    return text


def _keep(found: GdalMetadata, name: str, value: str, band: int, domain: str) -> None:
    """Remember a tag, unless it describes the file itself."""
    if domain in STRUCTURE_DOMAINS or name.startswith(DERIVED) or name == "AREA_OR_POINT":
        return
    if domain.startswith("xml:") or domain == "RPC":
        found.left_behind.append(f"metadata of the domain {domain}")
        return
    found.tags.append(Tag(name, value, band, domain))


def from_tiff(text: str) -> GdalMetadata:
    """Tag 42112. What cannot be understood stands in ``left_behind``."""
    found = GdalMetadata()
    root, reason = parse(text, "GDAL_METADATA")
    if root is None:
        found.left_behind.append(reason)
        return found
    for item in root.iter("Item"):
        name, value = item.get("name", ""), _unescaped(item.text or "")
        sample = item.get("sample", "")
        band = int(sample) if sample.isdecimal() and len(sample) < 6 else -1
        role = item.get("role", "")
        if band < 0 or role not in ("scale", "offset", "description", "unittype", "colorinterp"):
            _keep(found, name, value, band + 1, item.get("domain", ""))
        else:
            _take(found, role, band, value)
    return found


def _take(found: GdalMetadata, role: str, band: int, value: str) -> None:
    if role in ("scale", "offset"):
        number = _number(value)
        if number is None:
            found.left_behind.append(f"the {role} of band {band + 1}, which is {value!r}")
        else:
            (found.scales if role == "scale" else found.offsets)[band] = number
        return
    kept = {"description": found.descriptions, "unittype": found.units, "colorinterp": found.interpretations}
    if value:
        kept[role][band] = value


PAM_BAND_FIELDS = {
    "Description": "description",
    "UnitType": "unittype",
    "Offset": "offset",
    "Scale": "scale",
    "ColorInterp": "colorinterp",
}
PAM_DERIVED = {"Histograms", "HistItem", "GDALRasterAttributeTable"}


def from_pam(text: str, name: str) -> GdalMetadata:
    """A file ``.aux.xml`` of this name. What cannot be understood or carried stands in ``left_behind``."""
    found = GdalMetadata()
    root, reason = parse(text, name)
    if root is None or root.tag != "PAMDataset":
        found.left_behind.append(reason or f"{name}, which is no PAMDataset")
        return found
    for node in root:
        if node.tag == "SRS":
            found.wkt = (node.text or "").strip() or None
            if found.wkt is None:
                found.left_behind.append(f"an empty SRS in {name}, with which GDAL takes the CRS away")
            found.epoch = node.get("coordinateEpoch")
        elif node.tag == "GeoTransform":
            numbers = [_number(part) for part in (node.text or "").split(",")]
            if len(numbers) == 6 and None not in numbers:
                c, a, b, f, d, e = (float(n) for n in numbers if n is not None)
                found.transform = (a, b, c, d, e, f)
            else:
                found.left_behind.append(f"the geotransform in {name}")
        elif node.tag == "Metadata":
            for item in node.iter("MDI"):
                _keep(found, item.get("key", ""), item.text or "", 0, node.get("domain", ""))
        elif node.tag == "PAMRasterBand":
            _take_pam_band(found, node, name)
        elif node.tag not in PAM_DERIVED:
            found.left_behind.append(f"{node.tag} in {name}")
    return found


def _take_pam_band(found: GdalMetadata, node: ElementTree.Element, name: str) -> None:
    number = node.get("band", "1")
    band = int(number) - 1 if number.isdecimal() and 0 < int(number) < 100_000 else 0
    for part in node:
        if part.tag in PAM_BAND_FIELDS:
            _take(found, PAM_BAND_FIELDS[part.tag], band, (part.text or "").strip())
        elif part.tag == "NoDataValue":
            text = _nodata_text(part)
            if text:
                found.nodata[band] = text
        elif part.tag == "Metadata":
            for item in part.iter("MDI"):
                _keep(found, item.get("key", ""), item.text or "", band + 1, part.get("domain", ""))
        elif part.tag not in PAM_DERIVED:
            found.left_behind.append(f"{part.tag} of band {band + 1} in {name}")
    if band in found.scales or band in found.offsets:  # GDAL takes both from here where one stands here
        found.scales.setdefault(band, 1.0)
        found.offsets.setdefault(band, 0.0)


def _nodata_text(part: ElementTree.Element) -> str:
    """The text of a nodata value: from its eight bytes where they are given, else from the element."""
    try:
        return repr(struct.unpack("<d", bytes.fromhex(part.get("le_hex_equiv", "")))[0])
    except (ValueError, struct.error):
        return (part.text or "").strip()
