"""``onboard-encode`` as an operator uses it: real processes, real files, exit codes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from perigee.bitstream import format as fmt
from perigee.bitstream.metadata import unpack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.onboard import cli


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "perigee.onboard", *map(str, args)], capture_output=True, text=True, timeout=120
    )


def write_rgb(path, rng, shape=(70, 50), **more):
    tifffile.imwrite(
        path, rng.integers(0, 255, (*shape, 3), np.uint8), photometric="rgb", planarconfig="contig", **more
    )
    return path


def test_one_tile_gives_a_stream_beside_it(tmp_path, tiles):
    tile = tmp_path / "tile.tif"
    tile.write_bytes(tiles[0].read_bytes())
    result = run(tile, "--verify")
    assert result.returncode == 0, result.stderr
    data = (tmp_path / "tile.peri").read_bytes()
    stream = parse_stream(data)
    assert (stream.header.width, stream.header.height, stream.header.bands) == (256, 256, 3)
    assert f"{len(data)} bytes" in result.stdout and result.stdout.count("\n") == 1 and not result.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "no temporary file is left"


def test_json_line_and_metadata_of_a_stac_item(tmp_path, tiles):
    item = {
        "type": "Feature", "bbox": [9.0, 50.0, 11.0, 52.0],
        "properties": {"datetime": "2024-06-01T10:20:30Z", "gsd": 0.6, "eo:cloud_cover": 12.5, "view:off_nadir": 3.25,
                       "view:azimuth": 181.0, "view:sun_azimuth": 140.5, "view:sun_elevation": -2.0},
    }  # fmt: skip
    (tmp_path / "item.json").write_text(json.dumps(item))
    result = run(
        tiles[0],
        "-o",
        tmp_path / "a.peri",
        "--json",
        "-q",
        "30",
        "--metadata",
        tmp_path / "item.json",
        "--threads",
        "1",
    )
    assert result.returncode == 0, result.stderr
    line = json.loads(result.stdout)
    data = (tmp_path / "a.peri").read_bytes()
    assert line["bytes"] == len(data) and line["bpp"] == pytest.approx(8 * len(data) / 65536, abs=1e-4)
    assert (
        line["patches"] == 1
        and (line["profile"], line["analysis"]) == ("flight3", "swift")
        and {"read", "analysis", "prior", "entropy", "write"} <= set(line["ms"])
    )
    a = unpack_metadata(parse_stream(data).metadata).acquisition
    assert (a.longitude_deg, a.latitude_deg) == (10.0, 51.0)
    assert a.timestamp.isoformat() == "2024-06-01T10:20:30+00:00"
    assert (a.cloud_cover_percent, a.off_nadir_deg, a.target_azimuth_deg, a.sun_azimuth_deg, a.sun_elevation_deg) == (
        12.5,
        3.25,
        181.0,
        140.5,
        -2.0,
    )
    assert a.gsd_m == pytest.approx(0.6)


def test_one_bad_file_of_several(tmp_path, rng, tiles):
    """The others are encoded; the exit code is the first failure's."""
    good = write_rgb(tmp_path / "good.tif", rng)
    palette = tmp_path / "palette.tif"
    tifffile.imwrite(
        palette, rng.integers(0, 9, (32, 32), np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )
    result = run(palette, good, tmp_path / "absent.tif", "--out-dir", tmp_path, "--json")
    assert result.returncode == os.EX_DATAERR
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("exit_code") for line in lines] == [65, None, 66]
    assert (
        "palette" in lines[0]["error"]
        and (tmp_path / "good.peri").exists()
        and not (tmp_path / "palette.peri").exists()
    )
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("float", "float32"), ("complex", "complex64"), ("int8", "int8"), ("33 bands", "33 bands"), ("text", "not a readable TIFF"),
        ("empty", "not a readable TIFF"), ("truncated", "ends inside"), ("corrupt", "broken"), ("cmyk", "photometric"),
    ],
)  # fmt: skip
def test_unusable_images_exit_with_65_and_say_why(tmp_path, rng, kind, words):
    path = tmp_path / "bad.tif"
    if kind == "float":
        tifffile.imwrite(path, np.zeros((8, 8), np.float32))
    elif kind == "complex":
        tifffile.imwrite(path, np.zeros((8, 8), np.complex64))
    elif kind == "int8":
        tifffile.imwrite(path, np.zeros((8, 8), np.int8))
    elif kind == "33 bands":
        tifffile.imwrite(path, np.zeros((8, 8, 33), np.uint8), photometric="minisblack", planarconfig="contig")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cmyk":
        tifffile.imwrite(path, np.zeros((8, 8, 4), np.uint8), photometric="separated", planarconfig="contig")
    elif kind == "truncated":
        write_rgb(path, rng, (300, 300))
        path.write_bytes(path.read_bytes()[:100_000])
    else:
        write_rgb(path, rng, (300, 300), compression="zlib", rowsperstrip=300)
        data = bytearray(path.read_bytes())
        data[1000:1200] = b"\xff" * 200
        path.write_bytes(data)
    result = run(path, "-o", tmp_path / "out.peri")
    assert result.returncode == os.EX_DATAERR, result.stderr
    assert words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "out.peri").exists()


def test_exit_codes_of_usage_profile_and_output(tmp_path, tiles, capsys):
    for args in (["x.tif", "-q", "101"], ["a.tif", "b.tif", "-o", "c"], ["x.tif", "--nonsense"], []):
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
        assert stop.value.code == os.EX_USAGE
    assert cli.main([str(tiles[0]), "--profile", str(tmp_path)]) == os.EX_CONFIG
    target = tmp_path / "there.peri"
    target.write_bytes(b"keep")
    assert cli.main([str(tiles[0]), "-o", str(target)]) == os.EX_CANTCREAT
    assert target.read_bytes() == b"keep"
    assert cli.main([str(tiles[0]), "-o", str(target), "--overwrite"]) == os.EX_OK
    assert target.read_bytes()[:4] == fmt.MAGIC
    assert cli.main([str(tiles[0]), "-o", str(tmp_path / "no" / "folder.peri")]) == os.EX_CANTCREAT
    assert "does not exist" in capsys.readouterr().err


def test_nothing_heavy_is_imported(tmp_path, tiles):
    """The flight side never loads torch, rasterio or the web framework."""
    code = (
        "import sys; from perigee.onboard.cli import main; "
        f"assert main([{str(tiles[0])!r}, '-o', {str(tmp_path / 'x.peri')!r}]) == 0; "
        "bad = {'torch', 'rasterio', 'fastapi', 'onnx', 'scipy'} & set(sys.modules); assert not bad, bad"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_same_bytes_without_compiler_and_without_constriction(tmp_path, tiles):
    """As where nothing could be compiled, and as on aarch64, where constriction has no wheel."""
    out = []
    native, other = "sys.modules['perigee.bitstream._native'] = None; ", "sys.modules['constriction'] = None; "
    for blocked, left in (("", "native"), (native, "constriction"), (native + other, "integer"), (other, "native")):
        path = tmp_path / f"{len(out)}.peri"
        code = (
            f"import sys; {blocked}from perigee.onboard.cli import main; code = main([{str(tiles[1])!r}, '-o', {str(path)!r}]); "
            f"from perigee.bitstream.coders import available_coders; assert available_coders()[0] == {left!r}; sys.exit(code)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        out.append(path.read_bytes())
    assert out[0] == out[1] == out[2] == out[3]


def test_inputs_and_earlier_outputs_are_never_overwritten(tmp_path, rng):
    (tmp_path / "a").mkdir()
    first, second = write_rgb(tmp_path / "x.tif", rng), write_rgb(tmp_path / "a" / "x.tif", rng)
    before = first.read_bytes()
    assert cli.main([str(first), "-o", str(first), "--overwrite"]) == os.EX_CANTCREAT
    assert first.read_bytes() == before
    assert cli.main([str(first), str(second), "--out-dir", str(tmp_path), "--overwrite"]) == os.EX_CANTCREAT
    assert parse_stream((tmp_path / "x.peri").read_bytes()).header.width == 50


def test_a_listener_that_goes_away_does_not_stop_the_encoding(tmp_path, rng):
    tiles = [write_rgb(tmp_path / f"{i}.tif", rng) for i in range(3)]
    names = " ".join(str(t) for t in tiles)
    result = subprocess.run(
        f"{sys.executable} -m perigee.onboard {names} | true", shell=True, capture_output=True, text=True, timeout=120
    )
    assert not result.stderr
    assert all((tmp_path / f"{i}.peri").exists() for i in range(3))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"gsd": 1' + "0" * 400 + "}",
        '{"geometry": {"type": "Polygon", "coordinates": [[]]}}',
        '{"geometry": [1]}',
    ],
)
def test_broken_sidecars_are_data_errors(tmp_path, rng, content):
    tile = write_rgb(tmp_path / "x.tif", rng)
    (tmp_path / "x.json").write_text(content)
    assert cli.main([str(tile)]) == os.EX_DATAERR
