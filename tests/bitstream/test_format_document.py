"""``docs/format.md`` and the code say the same: its tables are read here, and its example bytes."""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from dataclasses import fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perigee.bitstream import coders, contract, entropy, masks, prior
from perigee.bitstream import format as fmt
from perigee.bitstream import metadata as meta
from perigee.bitstream.contract import Contract, contract_digest
from perigee.bitstream.errors import ChecksumError, FormatError, PerigeeError, UnsupportedError
from perigee.bitstream.format import Header, Segment, read_varint, write_varint
from perigee.bitstream.metadata import Acquisition, GeoKeys, Metadata, pack_metadata, unpack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.prior import Layer, Prediction, Widths, half, layer_shapes
from perigee.bitstream.tables import ESCAPE_BITS_MAX, FREQUENCY_TOTAL, Tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "format.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
CONTRACT = bytes(range(8))


def _tables() -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Every Markdown table as its head and its rows."""
    out: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = []
    inside = False
    for line in TEXT.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if not inside:
            out.append((cells, []))
        elif not set(line) <= set("|-"):
            assert len(cells) == len(out[-1][0]), f"a row of another width than its table: {line}"
            out[-1][1].append(cells)
        inside = True
    return out


def rows(*head: str) -> list[tuple[str, ...]]:
    """Rows of the one table whose head begins so."""
    found = [body for columns, body in _tables() if columns[: len(head)] == head]
    assert len(found) == 1, f"{len(found)} tables begin with {head}"
    return found[0]


def example(name: str) -> bytes:
    """Bytes of the example of this name."""
    found = re.findall(rf"^```hex {re.escape(name)}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} examples are called {name}"
    return bytes.fromhex(found[0])


def evaluated(expression: str, names: dict[str, Any]) -> int:
    """Value of an expression of the document."""
    return int(eval(expression, {"__builtins__": {"ceil": math.ceil, "sum": sum}}, names))


CODES = {int(row[0], 16): row for row in rows("Type", "Name", "Status", "Count")}
MODES = {int(row[0]): row for row in rows("Mode", "Name", "Status")}
TAGS = {int(row[0]): row for row in rows("Tag", "Name", "Size")}
BITS = {int(row[0]): row for row in rows("Bit", "Name", "Size")}
ONE = Header(CONTRACT, 1, 1, 1, "uint8", 64)


def one_unit(*chunks: bytes) -> bytes:
    return fmt.write_header(ONE) + b"".join(chunks) + fmt.write_end(len(chunks))


EMPTY = fmt.write_segment(Segment(0, fmt.EMPTY))


class TestHeaderTable:
    HEADER = Header(bytes.fromhex("f0e1d2c3b4a59687"), 70000, 300, 5, "int16", 512)

    def test_fields(self) -> None:
        """Every field of a header of asymmetric values lies where the table says."""
        expected = {
            "magic": bytes.fromhex("89504745"),
            "version": b"\x01",
            "flags": b"\x00",
            "contract": self.HEADER.contract,
            "kind": b"\x93",
            "bands": b"\x05",
            "width": bytes.fromhex("f0a204"),
            "height": bytes.fromhex("ac02"),
        }
        data = fmt.write_header(self.HEADER)
        expected["crc"] = zlib.crc32(data[:-4]).to_bytes(4, "little")
        table = rows("Offset", "Size", "Field", "Type", "Measured in", "Legal range")
        assert [row[2] for row in table] == list(expected)
        at = 0
        for offset, size, name, kind, *_ in table:
            assert offset == "next" or int(offset) == at, name
            value = expected[name]
            assert len(value) in range(1, 6) if size == "1-5" else len(value) == int(size), name
            assert (kind == "varint") == (size == "1-5")
            assert data[at : at + len(value)] == value, name
            at += len(value)
        assert at == len(data)

    def test_fixed_part(self) -> None:
        table = rows("Offset", "Size", "Field", "Type", "Measured in", "Legal range")
        fixed = [row for row in table if row[0] != "next" and row[1] != "1-5"]
        assert "<" + "".join("B" if row[3] == "u8" else f"{row[1]}s" for row in fixed) == fmt.HEADER_FIXED.format
        assert sum(int(row[1]) for row in fixed) == fmt.HEADER_FIXED.size == 16
        legal = {row[2]: row[5] for row in table}
        assert bytes.fromhex(legal["magic"].strip("`")) == fmt.MAGIC
        assert int(legal["version"]) == fmt.VERSION and int(legal["flags"]) == 0
        assert legal["bands"] == "1 to 255"

    def test_kind(self) -> None:
        legal = next(row[5] for row in rows("Offset", "Size", "Field", "Type", "Measured in") if row[2] == "kind")
        stated = re.fullmatch(r"low 4 bits (\d) to (\d), high 4 bits (\d) to (\d)", legal)
        assert stated
        low, low_last, high, high_last = map(int, stated.groups())
        for kind in range(256):
            body = fmt.HEADER_FIXED.pack(fmt.MAGIC, 1, 0, CONTRACT, kind, 1) + b"\x01\x01"
            data = body + zlib.crc32(body).to_bytes(4, "little")
            if low <= kind & 15 <= low_last and high <= kind >> 4 <= high_last:
                header, _ = fmt.read_header(data)
                assert header.patch_side == 1 << (kind >> 4) and header.dtype == fmt.DTYPES[kind & 15]
            else:
                with pytest.raises(FormatError):
                    fmt.read_header(data)

    def test_sample_types(self) -> None:
        table = rows("Code", "Sample type")
        assert {int(row[0]): row[1] for row in table} == fmt.DTYPES
        for _, name, low, high in table:
            assert (int(low), int(high)) == (np.iinfo(name).min, np.iinfo(name).max)


class TestChunkTable:
    def test_codes(self) -> None:
        defined = {row[1]: code for code, row in CODES.items() if row[2] == "defined"}
        assert defined == {
            name: getattr(fmt, name) for name in ("END", "SEGMENT", "MASK", "METADATA", "RANGE", "OFFSETS")
        }
        assert {code: row[1] for code, row in CODES.items() if row[2] == "reserved"} == fmt.RESERVED_CRITICAL
        assert [row[5] for row in CODES.values() if row[2] == "reserved"] == ["refuses"] * len(fmt.RESERVED_CRITICAL)
        assert fmt.OPTIONAL_BIT == 0x80 and "bit 0x80 set" in TEXT

    def test_frame(self) -> None:
        table = rows("Offset", "Size", "Field", "Type", "Meaning")
        assert [row[2] for row in table] == ["type", "length", "payload", "crc"]
        data = fmt.write_chunk(0x9A, bytes(range(200)))
        assert data[:3] == b"\x9a\xc8\x01" and data[3:-4] == bytes(range(200))
        assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "little")

    def test_what_a_reader_does(self) -> None:
        payloads = {fmt.MASK: b"\0\0", fmt.RANGE: struct.pack("<ii", 0, 1), fmt.OFFSETS: zlib.compress(b"?")}
        for kind in set(range(256)) - {fmt.END, fmt.SEGMENT}:
            stream = one_unit(EMPTY, fmt.write_chunk(kind, payloads.get(kind, b"?")))
            if kind >= fmt.OPTIONAL_BIT or (kind in CODES and CODES[kind][2] == "defined"):
                assert parse_stream(stream).segments[0].mode == fmt.EMPTY
            else:
                with pytest.raises(UnsupportedError):
                    parse_stream(stream)

    @pytest.mark.parametrize("code", [code for code, row in CODES.items() if row[3].startswith("0 or 1")])
    def test_at_most_once(self, code: int) -> None:
        payload = {fmt.MASK: b"\0\0", fmt.METADATA: b"", fmt.RANGE: struct.pack("<ii", 0, 1)}[code]
        chunk = fmt.write_chunk(code, payload)
        parse_stream(one_unit(EMPTY, chunk))
        with pytest.raises(FormatError):
            parse_stream(one_unit(EMPTY, chunk, chunk))

    def test_crc_is_the_named_one(self) -> None:
        assert "0xCBF43926" in TEXT and zlib.crc32(b"123456789") == 0xCBF43926


class TestSegments:
    def test_modes(self) -> None:
        defined = {row[1]: mode for mode, row in MODES.items() if row[2] == "defined"}
        assert defined == {name: getattr(fmt, name) for name in ("NETWORK", "DROPPED", "EMPTY")}
        assert {mode: row[1] for mode, row in MODES.items() if row[2] == "reserved"} == fmt.RESERVED_MODES
        assert [row[4] for row in MODES.values() if row[2] == "reserved"] == ["refuses"] * len(fmt.RESERVED_MODES)
        assert (fmt.CUT_FLAG, fmt.LINEAR_FLAG, fmt.FIRST_FLAG) == (0x10, 0x20, 0x40) and fmt.CHANNEL_STEP == 8
        assert "0x10 is *cut*, 0x20 is *linear*, 0x40 is *first*" in TEXT and "first 8 * coded latent channels" in TEXT

    @pytest.mark.parametrize("mode", range(16))
    def test_what_a_reader_does(self, mode: int) -> None:
        body = b"\0\0\0" if mode == fmt.NETWORK else b""
        stream = one_unit(fmt.write_chunk(fmt.SEGMENT, bytes([0, mode]) + body))
        if mode in MODES and MODES[mode][2] == "defined":
            assert parse_stream(stream).segments[0].mode == mode
        else:
            with pytest.raises(UnsupportedError):
                parse_stream(stream)

    def test_layout(self) -> None:
        """A segment of asymmetric values, laid out by the two tables."""
        tables = [body for head, body in _tables() if head[-1] == "What a reader does with anything else"]
        first = next(body for body in tables if body[0][2] == "unit")
        second = next(body for body in tables if body[0][2] == "quality_step")
        assert [row[2] for row in first + second] == ["unit", "mode", "quality_step", "checksum", "coded", "words"]
        assert [row[1] for row in first + second] == ["1-5", "1", "1", "2", "0 or 1", "4n"]
        segment = Segment(300, fmt.NETWORK, 250, 0x1234, np.array([0x0A0B0C0D, 0x01020304], np.uint32), True)
        payload = bytes.fromhex("ac02 10 fa 3412 0d0c0b0a 04030201")
        assert fmt.write_segment(segment) == fmt.write_chunk(fmt.SEGMENT, payload)
        payload = bytes.fromhex("ac02 50 fa 3412 25 0d0c0b0a 04030201")
        assert fmt.write_segment(segment._replace(latents=296)) == fmt.write_chunk(fmt.SEGMENT, payload)


class TestMaskTable:
    def test_kinds(self) -> None:
        table = rows("Mask kind", "Name", "Inflated array")
        assert {row[1]: int(row[0]) for row in table} == {n: getattr(masks, n) for n in ("SHARED", "PER_BAND", "ALPHA")}

    @pytest.mark.parametrize("row", rows("Mask kind", "Name", "Inflated array"), ids=lambda row: row[1])
    def test_sizes(self, row: tuple[str, ...]) -> None:
        bands, height, width = 3, 5, 11
        valid = np.ones((bands, height, width), bool)
        valid[0, 2, 3] = False
        if row[1] == "SHARED":
            valid[:] = valid[:1]
        alpha = valid[0].astype(np.uint16) if row[1] == "ALPHA" else None
        payload = masks.pack_mask(0, valid, alpha)
        assert payload[1] == int(row[0])
        names = {"bands": bands, "rows": height, "cols": width, "size_of_a_sample": 2}
        inside = re.fullmatch(r"u8 \[(.*)\]", row[2])
        assert inside
        parts = [
            evaluated(part, names) for part in inside[1].replace("size of a sample", "size_of_a_sample").split(", ")
        ]
        assert len(zlib.decompress(payload[2:])) == math.prod(parts)


def _fields(packet: bytes) -> dict[int, bytes]:
    out, at = {}, 0
    while at < len(packet):
        length, start = read_varint(packet, at + 1)
        out[packet[at]] = packet[start : start + length]
        at = start + length
    return out


class TestMetadataTable:
    EVERYTHING = Metadata(
        epsg=70000,
        geokeys=GeoKeys((1, 1, 0, 0), (), b""),
        transform=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        gcps=((1.0, 2.0, 3.0, 4.0, 5.0), (6.0, 7.0, 8.0, 9.0, 10.0)),
        rpc=tuple(map(float, range(92))),
        pixel_is_point=True,
        nodata=-9.0,
        masked=True,
        alpha_band=4,
        colour=True,
        scales=((0.5, 1.0), (0.25, 2.0)),
        band_names=("red", "nir"),
        acquisition=Acquisition(1.0, 2.0, datetime(2024, 1, 1, tzinfo=timezone.utc), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        ancillary=b"abc",
        nbits=10,
        units=("K", ""),
        interpretations=("Red", "Undefined"),
        tags=(meta.Tag("A", "1"), meta.Tag("B", "2", 2, "D")),
        crs_wkt="LOCAL_CS",
        premultiplied=True,
        palette=bytes(range(256)) * 3,
    )

    @staticmethod
    def fits(size: int, column: str) -> bool:
        """Whether a size agrees with the table: ``8``, ``1-5``, ``>= 12``, ``40k`` or ``any``."""
        if column == "any":
            return True
        if column.startswith(">="):
            return size >= int(column[2:])
        if column.endswith("k"):
            return size % int(column[:-1]) == 0
        low, _, high = column.partition("-")
        return int(low) <= size <= int(high or low)

    def test_names(self) -> None:
        names = {"EPSG", "GEOKEYS", "NORTH_UP", "AFFINE", "GCPS", "RPC", "NODATA", "SCALES", "ACQUISITION", "ANCILLARY"}
        names |= {"BAND_NAMES", "POINT", "ALPHA", "FILL_MASKED", "COLOUR"}
        names |= {"NBITS", "UNITS", "INTERPRETATIONS", "TAGS", "CRS_WKT", "PREMULTIPLIED", "PALETTE"}
        assert {row[1]: tag for tag, row in TAGS.items()} == {name: getattr(meta, name) for name in names}
        assert meta.OPTIONAL_TAG == 128

    def test_sizes(self) -> None:
        found = _fields(pack_metadata(self.EVERYTHING))
        found |= _fields(pack_metadata(Metadata(transform=(1.0, 0.0, 2.0, 0.0, 3.0, 4.0))))
        assert set(found) == set(TAGS)
        for tag, value in found.items():
            assert self.fits(len(value), TAGS[tag][2]), TAGS[tag]
        assert len(found[meta.GCPS]) == 2 * 40 and len(found[meta.SCALES]) == 2 * 16
        assert TAGS[meta.ANCILLARY][2] == f"0-{meta.ANCILLARY_MAX_BYTES}"
        assert f"f64 [{meta.RPC_VALUES}]" == TAGS[meta.RPC][3]

    def test_values(self) -> None:
        """The values of a full packet, taken apart as the table says."""
        found = _fields(pack_metadata(self.EVERYTHING))
        assert found[meta.EPSG] == write_varint(70000)
        assert found[meta.GEOKEYS] == struct.pack("<HH4H", 4, 0, 1, 1, 0, 0)
        assert found[meta.AFFINE] == struct.pack("<6d", 1, 2, 3, 4, 5, 6)
        assert found[meta.GCPS] == struct.pack("<10d", *range(1, 11))
        assert found[meta.RPC] == struct.pack("<92d", *range(92))
        assert found[meta.NODATA] == struct.pack("<d", -9)
        assert found[meta.SCALES] == struct.pack("<4d", 0.5, 1, 0.25, 2)
        assert found[meta.BAND_NAMES] == b"red\0nir"
        assert (found[meta.POINT], found[meta.FILL_MASKED]) == (b"", b"")
        assert (found[meta.ALPHA], found[meta.COLOUR], found[meta.ANCILLARY]) == (b"\x04", b"\x01", b"abc")
        assert (found[meta.NBITS], found[meta.UNITS], found[meta.PREMULTIPLIED]) == (b"\x0a", b"K\0", b"")
        assert found[meta.INTERPRETATIONS] == b"Red\0Undefined"
        assert zlib.decompress(found[meta.TAGS]) == b"0\0\0A\x001\x002\0D\0B\x002"
        assert zlib.decompress(found[meta.CRS_WKT]) == b"LOCAL_CS"
        assert zlib.decompress(found[meta.PALETTE]) == self.EVERYTHING.palette
        assert unpack_metadata(pack_metadata(self.EVERYTHING)) == self.EVERYTHING
        keys = GeoKeys((1, 1, 0, 1, 1024, 0, 1, 1), (0.5,), b"name|\0")
        value = struct.pack("<HH8Hd", 8, 1, 1, 1, 0, 1, 1024, 0, 1, 1, 0.5) + b"name|\0"
        assert _fields(pack_metadata(Metadata(geokeys=keys)))[meta.GEOKEYS] == value
        assert unpack_metadata(pack_metadata(Metadata(geokeys=keys))).geokeys == keys

    def test_unknown_tags(self) -> None:
        for tag in set(range(256)) - set(TAGS):
            field = bytes([tag, 1, 0])
            if tag >= 128:
                assert unpack_metadata(field) == Metadata()
            else:
                with pytest.raises(UnsupportedError):
                    unpack_metadata(field)

    def test_acquisition_fields(self) -> None:
        full = self.EVERYTHING.acquisition
        assert full is not None
        names = [name for row in BITS.values() for name in row[1].split(", ")]
        assert names == [f.name for f in fields(Acquisition)]
        whole = b""
        for bit, (_, name, size, kinds, *_) in BITS.items():
            parts = name.split(", ")
            value = _fields(pack_metadata(Metadata(acquisition=Acquisition(**{n: getattr(full, n) for n in parts}))))
            body = value[meta.ACQUISITION]
            assert body[0] == 1 << bit and len(body) == 1 + int(size)
            form = "<" + "".join({"i32": "i", "i64": "q", "f32": "f"}[kind] for kind in kinds.split(", "))
            stored = struct.unpack(form, body[1:])
            if name == "timestamp":
                assert stored == (1704067200000,)
            else:
                scale = 1e7 if kinds.startswith("i32") else 1
                assert stored == tuple(round(scale * getattr(full, n)) for n in parts)
            whole += body[1:]
        assert _fields(pack_metadata(self.EVERYTHING))[meta.ACQUISITION] == b"\xff" + whole
        assert TAGS[meta.ACQUISITION][2] == f"1-{1 + len(whole)}"

    def test_acquisition_ranges(self) -> None:
        stated = {}
        for _, name, _, _, _, legal in BITS.values():
            for part, text in zip(name.split(", "), legal.split(", "), strict=True):
                if part != "timestamp":
                    low, high = re.findall(r"-?\d+(?:\.\d+)?", text)
                    stated[part] = (float(low), float(high))
        assert stated == {name: (low, high) for name, low, high in meta.ACQUISITION_RANGES}


class TestPriorTables:
    def test_constants(self) -> None:
        for name, value, _ in rows("Constant", "Value"):
            assert getattr(prior, name) == int(value), name
        assert coders.PRECISION == 24 and FREQUENCY_TOTAL == 65536 and ESCAPE_BITS_MAX == 17
        assert (contract.BLOCK, contract.PATCH_MULTIPLE, contract.HYPER_BLOCK, contract.DIGEST_BYTES) == (16, 64, 64, 8)

    def test_limits(self) -> None:
        stated = {row[0]: int(row[1]) for row in rows("Limit", "Default")}
        assert stated == {f.name: f.default for f in fields(fmt.Limits)}
        assert contract.CONTRACT_MAX_BYTES == 16 << 20
        most = re.search(r"at most patches \+ units \+ (\d+) chunks, `END` included", TEXT)
        assert most and int(most[1]) == fmt.SPARE_CHUNKS
        spare = fmt.SPARE_CHUNKS + ONE.units + ONE.units // ONE.groups - 2  # the segment and END
        parse_stream(one_unit(EMPTY, *[fmt.write_chunk(0x80, b"")] * spare))
        with pytest.raises(FormatError):
            parse_stream(one_unit(EMPTY, *[fmt.write_chunk(0x80, b"")] * (spare + 1)))

    @pytest.mark.parametrize(
        "widths", [Widths(), Widths(7, 2, 3, 5, 11, (1, 2, 4), tuple(range(128))), Widths(2, 1, 1, 1, 1, (2,))]
    )
    def test_layers(self, widths: Widths) -> None:
        table = rows("Layer", "Inputs", "Outputs", "Kernel")
        names = {name: getattr(widths, name) for name in ("latents", "hyper_latents", "hyper", "context", "head")}
        names["views"] = 2 if widths.magnitudes else 1
        stated: dict[str, tuple[Any, ...]] = {}
        for k in [None, *range(widths.passes)]:
            if k is not None:
                start = sum(widths.slices[: k // 2])
                stop = start + widths.slices[k // 2]
                names |= {"size": stop - start, "seen": start if k % 2 == 0 else stop}
            for name, inputs, outputs, kernel, depthwise, largest in table:
                absent = name in ("passK.context", "passK.depth") and not names.get("seen")
                if name.startswith("pass") == (k is not None) and not absent:
                    stated[name.replace("passK", f"pass{k}")] = (
                        evaluated(inputs, names),
                        evaluated(outputs, names),
                        int(kernel),
                        depthwise == "yes",
                        int(largest),
                        name == "passK.out",
                    )
        code = {}
        for name, s in layer_shapes(widths).items():
            code[name] = (s.inputs, s.outputs, s.kernel, s.depthwise, s.input_max, s.final)
        assert stated == code


def contract_of_zeros(widths: Widths, bias: list[int]) -> Contract:
    """A contract of the document's examples: all is 0 but the biases of the second slice, and all latent tables are the same."""
    layers = {
        name: Layer(np.zeros(s.weight_shape, np.int8), np.zeros(s.outputs, np.int32), np.zeros(s.outputs, np.uint8))
        for name, s in layer_shapes(widths).items()
    }
    for name in ("pass2.out", "pass3.out"):
        layers[name].bias[:] = bias
    row = np.array([8192, 32768, 16384, 8000, 192], np.uint16)
    z_row = np.ones((1, 129), np.uint16)
    z_row[0, 64] = 65408
    tables = Tables(np.ones(64, np.uint16), np.tile(row, 1024), z_row)
    return Contract(widths, layers, tables, np.zeros((7, widths.latents), np.float32), 64)


def example_contract() -> Contract:
    """The contract of the document's coded segment."""
    widths = Widths(latents=3, hyper_latents=1, hyper=1, context=1, head=1, slices=(1, 2))
    return contract_of_zeros(widths, [19, -5, 0, -10])


def example_q() -> np.ndarray[Any, Any]:
    found = re.search(r"^```text example-q\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return np.array(found[1].split(), np.int32).reshape(3, 4, 4)


class TestContract:
    def test_arrays(self) -> None:
        plain = example_contract()
        assert "magnitudes" not in plain.arrays(), "the array is optional"
        widths = replace(plain.widths, magnitudes=tuple(range(128)))
        layers = {
            name: Layer(np.zeros(s.weight_shape, np.int8), plain.layers[name].bias, plain.layers[name].shift)
            for name, s in layer_shapes(widths).items()
        }
        contract = replace(plain, widths=widths, layers=layers)
        w = contract.widths
        names = {"latents": w.latents, "hyper_latents": w.hyper_latents, "slices": len(w.slices), "levels": 1}
        found = contract.arrays()
        stated = set()
        for name, kind, shape, _ in rows("Array", "Type", "Shape"):
            if not name.startswith("LAYER"):
                stated.add(name)
                assert found[name].dtype.name == kind, name
                if name == "tables.frequencies":
                    expected: tuple[int, ...] = (sum(16 * (2 * int(r) + 3) for r in contract.tables.radius),)
                    assert shape == "[sum over i of 16 * (2 * radius[i] + 3)]"
                else:
                    expected = tuple(evaluated(part, names) for part in shape.strip("[]").split(", "))
                assert found[name].shape == expected, name
                continue
            for layer, s in layer_shapes(w).items():
                array = found[name.replace("LAYER", layer)]
                stated.add(name.replace("LAYER", layer))
                inputs = 1 if s.depthwise else s.inputs
                sizes = {"outputs": s.outputs, "inputs": inputs, "kernel": s.kernel}
                assert array.dtype.name == kind
                assert array.shape == tuple(evaluated(part, sizes) for part in shape.strip("[]").split(", "))
        assert stated == set(found)
        assert found["geometry"].tolist() == [3, 1, 1, 1, 1, 64, 1, 2]

    def test_digest(self) -> None:
        arrays: dict[str, np.ndarray[Any, Any]] = {"b": np.array([1, -2], np.int32), "a": np.array([[7]], np.uint8)}
        assert contract_digest(arrays) == example("digest")
        assert hashlib.sha256(example("digest-input")).digest()[:8] == example("digest")
        assert contract_digest({"b": arrays["b"].astype(">i4"), "a": arrays["a"]}) == example("digest")
        assert example_contract().digest == example("example-contract")


class TestExamples:
    def test_all_are_used(self) -> None:
        used = set(re.findall(r'example\("([a-z-]+)"\)', Path(__file__).read_text(encoding="utf-8")))
        assert set(re.findall(r"^```hex (\S+)", TEXT, re.MULTILINE)) == used

    def test_header(self) -> None:
        data = example("header")
        header = Header(CONTRACT, 640, 480, 3, "uint8", 256)
        assert fmt.read_header(data) == (header, len(data))
        assert fmt.write_header(header) == data

    def test_smallest_stream(self) -> None:
        data = example("smallest-stream")
        stream = parse_stream(data)
        assert stream.header == ONE and list(stream.segments) == [0] and stream.segments[0].mode == fmt.EMPTY
        assert one_unit(EMPTY) == data

    def test_end(self) -> None:
        assert fmt.write_end(3) == example("end")
        chunks = fmt.write_chunk(0x80, b"") * 2 + EMPTY
        assert list(parse_stream(fmt.write_header(ONE) + chunks + example("end")).segments) == [0]

    def test_dropped(self) -> None:
        assert fmt.write_segment(Segment(300, fmt.DROPPED)) == example("dropped")
        header = Header(CONTRACT, 301 * 64, 1, 1, "uint8", 64)
        others = [fmt.write_segment(Segment(u, fmt.EMPTY)) for u in range(300)]
        stream = parse_stream(fmt.write_header(header) + b"".join(others) + example("dropped") + fmt.write_end(301))
        assert stream.segments[300] == Segment(300, fmt.DROPPED, words=stream.segments[300].words)

    def test_ranges(self) -> None:
        wanted = np.array([[-12, 4000], [100, 65535]])
        assert fmt.write_ranges(wanted) == example("ranges")
        header = Header(CONTRACT, 1, 1, 2, "uint16", 64)
        stream = parse_stream(fmt.write_header(header) + example("ranges") + EMPTY + fmt.write_end(2))
        assert stream.ranges is not None and stream.ranges.tolist() == wanted.tolist()

    def test_mask(self) -> None:
        header = Header(CONTRACT, 9, 5 * 64 + 3, 1, "uint8", 64)
        others = b"".join(fmt.write_segment(Segment(u, fmt.EMPTY)) for u in range(6))
        stream = parse_stream(fmt.write_header(header) + example("mask") + others + fmt.write_end(7))
        valid, alpha = masks.unpack_mask(stream.masks[5], 1, 3, 9, "uint8")
        wanted = np.ones((1, 3, 9), bool)
        wanted[0, 1, 4:8] = wanted[0, 2, 4:9] = False
        assert alpha is None and np.array_equal(valid, wanted)
        ours = masks.pack_mask(5, wanted)
        assert ours[:2] == b"\x05\x00"
        assert zlib.decompress(ours[2:]) == zlib.decompress(example("mask")[4:-4])

    def test_alpha_mask(self) -> None:
        header = Header(CONTRACT, 3, 2, 1, "uint16", 64)
        ranges = fmt.write_ranges(np.array([[0, 1]]))
        stream = parse_stream(fmt.write_header(header) + example("mask-alpha") + ranges + EMPTY + fmt.write_end(3))
        valid, alpha = masks.unpack_mask(stream.masks[0], 1, 2, 3, "uint16")
        wanted = np.array([[65535, 65535, 0], [65535, 256, 0]], np.uint16)
        assert np.array_equal(alpha, wanted) and np.array_equal(valid[0], wanted != 0)
        ours = masks.pack_mask(0, valid, wanted)
        assert ours[:2] == b"\x00\x02"
        assert zlib.decompress(ours[2:]) == zlib.decompress(example("mask-alpha")[4:-4])

    def test_metadata(self) -> None:
        data = example("metadata")
        acquisition = Acquisition(
            longitude_deg=13.404954,
            latitude_deg=52.520008,
            timestamp=datetime(2024, 6, 1, 10, 20, 30, 250000, tzinfo=timezone.utc),
            gsd_m=0.5,
            cloud_cover_percent=12.5,
            off_nadir_deg=8.25,
            target_azimuth_deg=101.5,
            sun_azimuth_deg=157.75,
            sun_elevation_deg=58.5,
        )
        wanted = Metadata(epsg=32633, transform=(0.5, 0.0, 391000.0, 0.0, -0.5, 5820000.0), acquisition=acquisition)
        assert unpack_metadata(data) == wanted
        assert pack_metadata(wanted) == data
        assert len(data) == 82 and "packet** of 82 bytes" in TEXT
        assert meta.write_metadata_packet(meta.pack_metadata(wanted)) == fmt.write_chunk(fmt.METADATA, data)
        assert meta.read_metadata_packet(fmt.write_chunk(fmt.METADATA, data)) == wanted

    def test_coded_segment(self) -> None:
        """The document's segment, decoded and encoded again by its contract with every coder that is here."""
        contract = example_contract()
        header = Header(contract.digest, 64, 64, 1, "uint8", 64)
        segment = parse_stream(fmt.write_header(header) + example("example-segment") + fmt.write_end(1)).segments[0]
        assert (segment.unit, segment.mode, segment.quality_step, segment.cut) == (0, fmt.NETWORK, 125, False)
        assert segment.checksum == fmt.checksum_of(example_q()) == 0x2960
        assert segment.words.tolist() == [0x0824634B, 0x0B003E33, 0x9F2D0E62, 0x7A6D8000]
        reference = contract.reference()
        q, z = example_q(), np.full((1, 1, 1), -2, np.int32)
        predictions = reference.all_passes(z[None], q[None], 125)
        assert [np.unique(p.table).tolist() for p in predictions] == [[320], [320], [251, 323], [251, 323]]
        passes = []
        for k, p in enumerate(predictions):
            start, stop = contract.widths.slice_of(k)
            passes.append((half(q[None, start:stop], k % 2)[0], Prediction(p.table[0], p.mean[0])))
        for kind in coders.available_coders():
            words = entropy.encode_symbols(contract.widths, contract.tables, z, passes, 125, kind)
            assert words.tolist() == segment.words.tolist(), kind
            assert fmt.write_segment(segment._replace(words=words)) == example("example-segment")
            decoded = entropy.decode_symbols(
                contract.widths, contract.tables, reference, segment.words, 125, (1, 1), kind=kind
            )
            assert np.array_equal(decoded.q, q) and decoded.passes == 4

    def test_first_channels(self) -> None:
        widths = Widths(latents=9, hyper_latents=1, hyper=1, context=1, head=1, slices=(8, 1))
        contract = contract_of_zeros(widths, [19, 0])
        assert contract.digest == example("first-contract")
        header = Header(contract.digest, 64, 64, 1, "uint8", 64)
        segment = parse_stream(fmt.write_header(header) + example("first-segment") + fmt.write_end(1)).segments[0]
        assert (segment.latents, segment.quality_step, segment.checksum) == (8, 0, 0xA86B)
        q, z = np.zeros((9, 4, 4), np.int32), np.zeros((1, 1, 1), np.int32)
        q[0, 0, 0], q[7, 3, 3] = 2, -1
        assert fmt.checksum_of(q) == segment.checksum
        predictions = contract.reference().all_passes(z[None], q[None], 0, 8)
        passes = [(half(q[None, :8], k)[0], Prediction(p.table[0], p.mean[0])) for k, p in enumerate(predictions)]
        for kind in coders.available_coders():
            words = entropy.encode_symbols(contract.widths, contract.tables, z, passes, 0, kind)
            assert fmt.write_segment(segment._replace(words=words)) == example("first-segment"), kind
            decoded = entropy.decode_symbols(
                contract.widths, contract.tables, contract.reference(), segment.words, 0, (1, 1), kind=kind, latents=8
            )
            assert np.array_equal(decoded.q, q) and decoded.passes == 2 and (decoded.mean[8] == 19).all()

    def test_golden_stream(self) -> None:
        """Every byte of the stream stands in the table; of the words, the first."""
        path = DOCUMENT.parents[1] / "tests" / "golden" / "v1_lite_7d7f716860b24c10_cut.peri"
        assert path.name in TEXT
        data, at, found = path.read_bytes(), 0, {}
        for offset, size, stated, name, _ in rows("Offset", "Size", "Bytes"):
            assert int(offset) == at, name
            value, start = data[at : at + int(size)], bytes.fromhex(stated.strip("`").removesuffix("..."))
            assert value.startswith(start) and (value == start or stated.endswith("...`")), name
            found[name] = value
            at += int(size)
        assert at == len(data)
        segment = parse_stream(data).segments[0]
        assert segment.cut and segment.quality_step == found["quality_step"][0]
        assert segment.words.astype("<u4").tobytes() == found["words"] and f"{len(segment.words)} words" in TEXT

    @pytest.mark.parametrize(("words", "passes"), [(4, 3), (3, 2), (2, 1), (1, 0), (0, 0)])
    def test_coded_segment_cut(self, words: int, passes: int) -> None:
        contract = example_contract()
        header = Header(contract.digest, 64, 64, 1, "uint8", 64)
        segment = parse_stream(fmt.write_header(header) + example("example-segment") + fmt.write_end(1)).segments[0]
        cut = segment._replace(words=segment.words[:words], cut=True)
        wanted = np.zeros((3, 4, 4), np.int32)
        wanted[1] = 1
        even = np.indices((4, 4)).sum(0) % 2 == 0
        if passes:
            wanted[0, even] = example_q()[0, even]
        if passes >= 2:
            wanted[0] = example_q()[0]
        if passes == 3:
            wanted[1:, even] = example_q()[1:, even]
        for kind in coders.available_coders():
            decoded = entropy.decode_symbols(
                contract.widths, contract.tables, contract.reference(), cut.words, 125, (1, 1), cut=True, kind=kind
            )
            assert decoded.passes == passes and np.array_equal(decoded.q, wanted), kind

    def test_any_wrong_byte_of_an_example_is_found(self) -> None:
        data = bytearray(example("smallest-stream"))
        for at in range(len(data)):
            data[at] ^= 0x55
            with pytest.raises(PerigeeError):
                parse_stream(bytes(data))
            data[at] ^= 0x55
        data[-1] ^= 1
        with pytest.raises(ChecksumError):
            parse_stream(bytes(data))
