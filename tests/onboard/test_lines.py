"""Lines as they come from a detector: from files, files that grow and pipes, with their records, and in a bounded buffer."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rasterio

import perigee
from perigee.bitstream.errors import FormatError, MetadataError, RasterError
from perigee.bitstream.format import NETWORK
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.records import Records, RecordsOfScene, read_records, write_records
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.ground import cli as ground_cli
from perigee.onboard import cli
from perigee.onboard.arrival import Arrival, BufferedArrival
from perigee.onboard.lines import read_line_format
from perigee.onboard.pace import Pace

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
BANDS, LINES, WIDTH = 3, 540, 130
COMMAND = [sys.executable, "-m", "perigee.onboard"]


@pytest.fixture
def scene(rng):
    """Samples uint16 of 12 bits [band, line, column] that are much alike."""
    y, x = np.mgrid[0:LINES, 0:WIDTH]
    shared = 1500 + 300 * np.sin(x / 9) * np.cos(y / 23)
    return (shared + rng.normal(0, 8, (BANDS, LINES, WIDTH)) + 50 * np.arange(BANDS)[:, None, None]).astype(np.uint16)


def described(folder, **members):
    path = folder / "lines.json"
    usual = {"width": WIDTH, "bands": BANDS, "dtype": "uint16", "interleave": "bil"}
    path.write_text(json.dumps({name: value for name, value in (usual | members).items() if value is not None}))
    return path


def laid_out(samples, interleave="bil", order="<", before=None, after=None) -> bytes:
    """Samples as raw lines, between what stands around each line, uint8 [line, bytes]."""
    order_of = {"bil": (1, 0, 2), "bip": (1, 2, 0), "bsq": (0, 1, 2)}[interleave]
    raw = samples.transpose(order_of).astype(samples.dtype.newbyteorder(order)).tobytes()
    if before is None:
        return raw
    return np.concatenate([before, np.frombuffer(raw, np.uint8).reshape(len(before), -1), after], 1).tobytes()


def encoded(path, description, *options, out="out.peri"):
    stream = description.with_name(out)
    assert cli.main([str(path), "--lines", str(description), "-o", str(stream), "--overwrite", *options]) == 0
    return stream.read_bytes()


@pytest.mark.parametrize(
    "options", [["-q", "40"], ["--lossless"], ["--max-error", "3"], ["--strip-rows", "2", "--step", "4"]]
)
def test_a_pipe_a_file_and_a_geotiff_give_the_same_bytes(scene, tmp_path, options):
    tiff, raw, description = tmp_path / "a.tif", tmp_path / "a.bil", described(tmp_path)
    with rasterio.open(tiff, "w", driver="GTiff", width=WIDTH, height=LINES, count=BANDS, dtype="uint16") as file:
        file.write(scene)
    raw.write_bytes(laid_out(scene))
    strips = ["--strip-rows", "1"] if options[0] == "-q" else []
    assert cli.main([str(tiff), "-o", str(tmp_path / "tiff.peri"), *options, *strips]) == 0
    wanted = (tmp_path / "tiff.peri").read_bytes()
    assert encoded(raw, description, *options) == wanted
    piped = [*COMMAND, "-", "--lines", str(description), "-o", str(tmp_path / "pipe.peri"), *options]
    subprocess.run(piped, input=raw.read_bytes(), check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "pipe.peri").read_bytes() == wanted


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_layouts_give_the_same_stream(scene, tmp_path, interleave, order):
    description = described(tmp_path, interleave=interleave, byte_order=order, skip_bytes=7)
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"header." + laid_out(scene, interleave, "<" if order == "little" else ">"))
    assert np.array_equal(perigee.decode(encoded(raw, description, "--lossless")).samples, scene)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_types_of_samples(scene, tmp_path, dtype):
    samples = (scene / 7 - (200 if dtype != "uint8" else 0)).astype(dtype)
    samples[:, :40, :9] = 99
    (raw := tmp_path / "a.raw").write_bytes(laid_out(samples, "bip", ">"))
    description = described(tmp_path, dtype=dtype, byte_order="big", interleave="bip", nodata=99)
    image = perigee.decode(encoded(raw, description, "--lossless"))
    assert np.array_equal(image.samples, samples) and np.array_equal(image.valid, samples != 99)


def test_records_of_lines_come_back_and_can_be_taken_out(scene, tmp_path, rng, capsys):
    before, after = rng.integers(0, 256, (LINES, 5)).astype(np.uint8), np.zeros((LINES, 2), np.uint8)
    after[:, 0] = np.arange(LINES) % 256  # a counter
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene, before=before, after=after))
    description = described(tmp_path, prefix_bytes=5, suffix_bytes=2)
    for options in (["-q", "30"], ["--lossless"]):
        data = encoded(raw, description, *options)
        image = perigee.decode(data)
        assert np.array_equal(image.records.data, np.concatenate([before, after], 1)) and image.records.known.all()
        assert perigee.inspect(data)["records"] == {"lines": LINES, "bytes": 7}
    folder = tmp_path / "taken"
    assert ground_cli.main([str(tmp_path / "out.peri"), "--extract", str(folder)]) == 0
    assert (folder / "records.bin").read_bytes() == np.concatenate([before, after], 1).tobytes()
    assert ground_cli.main([str(tmp_path / "out.peri"), "--extract", str(folder)]) == 73
    assert "new folder" in capsys.readouterr().err


def test_records_of_a_lost_strip_are_lost_alone(scene, tmp_path, rng):
    before = rng.integers(0, 256, (LINES, 5)).astype(np.uint8)
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene, before=before, after=before[:, :0]))
    data = encoded(raw, described(tmp_path, prefix_bytes=5), "-q", "30")
    chunk = write_records(Records(256, before[256:512]))
    at = data.index(chunk)
    damaged = data[: at + 20] + bytes([data[at + 20] ^ 1]) + data[at + 21 :]
    records = perigee.decode(damaged, damaged=True).records
    assert (~records.known).sum() == 256 and not records.known[256:512].any()
    assert np.array_equal(records.data[records.known], before[records.known])


def test_calibration_lines_are_kept_exactly_and_others_are_not(scene, tmp_path):
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene))
    description = described(tmp_path, calibration_lines=[[300, 301]])
    for options in (["-q", "20"], ["--max-error", "5"]):
        off = np.abs(perigee.decode(encoded(raw, description, *options)).samples.astype(int) - scene)
        assert not off[:, 256:512].any() and off[:, :256].any() and off[:, 512:].any()


def test_bands_in_places_of_their_own_come_from_lines_too(scene, tmp_path, capsys):
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene))
    (sensor := tmp_path / "sensor.json").write_text(json.dumps({"band_offsets": [[0, 0], [9, -2], [4, 3]]}))
    for members in ({}, {"height": LINES}):
        data = encoded(raw, described(tmp_path, **members), "--lossless", "--sensor", str(sensor))
        assert np.array_equal(perigee.decode(data).samples, scene)
    capsys.readouterr()
    short = described(tmp_path, height=510)  # the frame ends in a strip of its own, for which no line comes
    assert np.array_equal(
        perigee.decode(encoded(raw, short, "--lossless", "--sensor", str(sensor))).samples, scene[:, :510]
    )
    assert capsys.readouterr().err.count("what follows the first 510") == 1


def test_a_file_that_grows_is_followed_and_ends_by_its_height_or_a_pause(scene, tmp_path):
    whole, raw = laid_out(scene), tmp_path / "a.raw"
    wanted = None
    for members, timeout in (({"height": LINES}, "60"), ({}, "1")):
        raw.write_bytes(whole[:100000])

        def grow():
            with raw.open("ab") as file:
                for at in range(100000, len(whole), 70000):
                    time.sleep(0.05)
                    file.write(whole[at : at + 70000])
                    file.flush()

        thread = threading.Thread(target=grow)
        thread.start()
        data = encoded(raw, described(tmp_path, **members), "--timeout", timeout)
        thread.join()
        assert perigee.inspect(data)["height"] == LINES
        wanted = wanted or data
        assert data == wanted


@pytest.mark.parametrize("buffered", [[], ["--lowest-quality", "40"]])
@pytest.mark.parametrize("members", [{}, {"height": LINES - 10}])
def test_scenes_follow_each_other_without_a_line_between_them(scene, tmp_path, members, buffered):
    before = (np.arange(LINES)[:, None] // [1, 256] % 256).astype(np.uint8)
    data = laid_out(scene, before=before, after=before[:, :0])
    description = described(tmp_path, prefix_bytes=2, calibration_lines=[[0, 3], [250, 310]], **members)
    out = tmp_path / "out.peri"
    options = ["--lines", str(description), "-o", str(out), "--scene-lines", "200", "-q", "40", *buffered]
    data = data[: len(data) // LINES * members.get("height", LINES)]
    done = subprocess.run([*COMMAND, "-", *options, "--json"], input=data, check=True, capture_output=True)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["height"] for report in reports] == [200, 200, members.get("height", LINES) - 400]
    images = [perigee.decode(tmp_path / f"out_{number:06}.peri") for number in range(3)]
    lines = members.get("height", LINES)
    assert np.array_equal(np.concatenate([image.records.data for image in images]), before[:lines])
    off = np.abs(np.concatenate([image.samples for image in images], 1).astype(int) - scene[:, :lines])
    assert not off[:, :400].any() and off[:, 400:].any() and off.max() < 60  # a patch is kept exactly as a whole
    assert not any(report["left_behind"] for report in reports) and not out.exists()
    again = subprocess.run([*COMMAND, "-", *options], input=data, check=False, capture_output=True)
    assert again.returncode == 73 and b"exists" in again.stderr


def test_what_a_scene_leaves_behind_is_reported_at_its_boundary(scene, tmp_path, capsys):
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene[:, :400]) + b"abc")
    for number, (members, said) in enumerate(
        (
            ({}, "3 bytes of a line"),
            ({"height": 1000}, "600 lines that did not come"),
            ({"height": 400}, "what follows the first"),
        )
    ):
        for more in ([], ["--lowest-quality", "10"]):
            out = tmp_path / f"{number}{len(more)}.peri"
            options = ["--lines", str(described(tmp_path, **members)), "-o", str(out), "--scene-lines", "200", *more]
            assert cli.main([str(raw), *options]) == 0
            assert said in capsys.readouterr().err
            assert cli.main([str(raw), *options, "--overwrite", "--strict"]) == 65
    assert (
        cli.main(
            [
                str(raw),
                "--lines",
                str(described(tmp_path, height=100)),
                "-o",
                str(tmp_path / "x.peri"),
                "--lowest-quality",
                "3",
            ]
        )
        == 0
    )
    assert "what follows the first 100" in capsys.readouterr().err


def test_a_silence_ends_the_input_and_no_line_before_it_is_lost(scene, tmp_path):
    description, out = described(tmp_path, height=LINES), tmp_path / "out.peri"
    command = [
        *COMMAND,
        "-",
        "--lines",
        str(description),
        "-o",
        str(out),
        "--lossless",
        "--timeout",
        "1",
        "--scene-lines",
        "200",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(laid_out(scene[:, :250]))
        process.stdin.flush()
        assert process.wait(60) == 0
        assert b"290 lines that did not come" in process.stderr.read()
    found = [perigee.decode(tmp_path / f"out_{n:06}.peri").samples for n in range(2)]
    assert np.array_equal(np.concatenate(found, 1), scene[:, :250])


def test_a_named_pipe_without_a_writer_is_waited_for_no_longer_than_asked(scene, tmp_path):
    os.mkfifo(fifo := tmp_path / "fifo")
    given = ["--lines", str(described(tmp_path)), "-o", str(tmp_path / "out.peri"), "--lossless"]
    assert cli.main([str(fifo), *given, "--timeout", "0.5"]) == 65
    writer = threading.Thread(target=lambda: (time.sleep(0.5), fifo.write_bytes(laid_out(scene))))
    writer.start()
    assert cli.main([str(fifo), *given]) == 0
    writer.join()
    assert np.array_equal(perigee.decode(tmp_path / "out.peri").samples, scene)


@pytest.mark.parametrize("options", [["--lossless"], ["--max-error", "2"], ["--lossless", "--jpeg-ls"], ["-q", "50"]])
def test_samples_that_exceed_the_bits_are_refused_and_not_clipped(scene, tmp_path, options, capsys):
    scene[1, 300, 5] = 4100
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene))
    given = ["--lines", str(described(tmp_path, bits=12)), "-o", str(tmp_path / "out.peri")]
    assert cli.main([str(raw), *given, *options]) == 65
    assert "4100, which 12 bits cannot hold" in capsys.readouterr().err and not (tmp_path / "out.peri").exists()
    with pytest.raises(RasterError, match="12 bits"):
        perigee.encode(scene, max_error=0, metadata=Metadata(nbits=12))


def test_wide_scenes_of_described_height_are_coded_whole(tmp_path, rng):
    samples = rng.integers(0, 9, (2, 3, 1 << 20)).astype(np.uint8)
    (raw := tmp_path / "a.raw").write_bytes(laid_out(samples))
    description = described(tmp_path, width=1 << 20, bands=2, dtype="uint8", height=3)
    assert np.array_equal(perigee.decode(encoded(raw, description, "--lossless")).samples, samples)


@pytest.mark.parametrize("nodata", [10**400, 1e300, True, [1], "none"])
def test_nodata_that_no_sample_can_have_is_refused(tmp_path, nodata):
    with pytest.raises(MetadataError, match="nodata"):
        read_line_format(described(tmp_path, dtype="float32", nodata=nodata))


def test_an_input_that_ends_early_gives_a_valid_stream_and_says_so(scene, tmp_path, capsys):
    line = BANDS * WIDTH * 2
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene)[: 300 * line + 11])
    data = encoded(raw, described(tmp_path, height=LINES), "--lossless")
    assert np.array_equal(perigee.decode(data).samples, scene[:, :300])
    said = capsys.readouterr().err
    assert "11 bytes of a line" in said and "240 lines that did not come" in said
    assert (
        cli.main(
            [str(raw), "--lines", str(described(tmp_path, height=LINES)), "-o", str(tmp_path / "b.peri"), "--strict"]
        )
        == 65
    )
    assert not (tmp_path / "b.peri").exists()
    data = encoded(raw, described(tmp_path, height=100), "--lossless")
    assert np.array_equal(perigee.decode(data).samples, scene[:, :100])
    assert "follows the first 100" in capsys.readouterr().err
    raw.write_bytes(b"")
    assert cli.main([str(raw), "--lines", str(described(tmp_path)), "-o", str(tmp_path / "b.peri")]) == 65
    assert "before its first line" in capsys.readouterr().err


def test_a_pipe_that_stalls_ends_after_the_timeout(scene, tmp_path):
    description, out = described(tmp_path), tmp_path / "pipe.peri"
    command = [*COMMAND, "-", "--lines", str(description), "-o", str(out), "--lossless", "--timeout", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(laid_out(scene[:, :256]))
        process.stdin.flush()
        assert process.wait(60) == 0
    assert np.array_equal(perigee.decode(out.read_bytes()).samples, scene[:, :256])


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"width": 0}, "width"), ({"bands": 33}, "bands"), ({"dtype": "float64"}, "dtype"), ({"interleave": "tiled"}, "interleave"),
        ({"byte_order": "middle"}, "byte_order"), ({"nodata": 70000}, "nodata"), ({"bits": 17}, "bits"), ({"prefix_bytes": 4097}, "prefix_bytes"),
        ({"interleave": "bsq", "suffix_bytes": 1}, "prefix_bytes"), ({"calibration_lines": [[3, 2]]}, "calibration_lines"), ({"hight": 3}, "hight"),
        ({"width": None}, "width"), ({"height": True}, "height"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_refused_by_the_name_of_what_is_wrong(tmp_path, members, named):
    with pytest.raises(MetadataError) as error:
        read_line_format(described(tmp_path, **members))
    assert error.value.field == named and "expected" in str(error.value)


def test_what_does_not_go_together_is_a_usage_error(scene, tmp_path, capsys):
    (raw := tmp_path / "a.bsq").write_bytes(laid_out(scene, "bsq"))
    description = described(tmp_path, interleave="bsq")
    piped = [*COMMAND, "-", "--lines", str(description), "-o", str(tmp_path / "no.peri")]
    done = subprocess.run(piped, input=raw.read_bytes(), check=False, capture_output=True)
    assert done.returncode == 64 and b"bil and bip" in done.stderr and not (tmp_path / "no.peri").exists()
    given = ["--lines", str(description)]
    for options in (
        ["-", *given], [str(raw), str(raw), *given], [str(raw), *given, "--format", "1"], [str(raw), "--timeout", "2"], ["-"],
        [str(raw), *given, "--lossless", "--lowest-quality", "3"], [str(raw), *given, "--timeout", "0"], [str(raw), *given, "--timeout", "1e300"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as error:
            cli.main(options)
        assert error.value.code == 64
    for options in (["--scene-lines", "9"], ["--timeout", "2"], ["--lowest-quality", "3"]):
        assert cli.main([str(raw), *given, "-o", str(tmp_path / "no.peri"), *options]) == 64
    assert cli.main([str(tmp_path), *given, "-o", str(tmp_path / "no.peri")]) == 66
    os.truncate(raw, 500)
    assert cli.main([str(raw), *given, "--overwrite", "-o", str(tmp_path / "no.peri")]) == 65


def test_lines_that_cannot_wait_are_coded_coarser_and_none_is_lost(scene, tmp_path, capsys):
    """A writer that is always ahead fills the buffer; the stream says which quality each strip has."""
    scene = np.tile(scene, (1, 5, 1))
    (raw := tmp_path / "a.raw").write_bytes(laid_out(scene))
    description, out = described(tmp_path), tmp_path / "pace.peri"
    options = ["-q", "60", "--lowest-quality", "10", "--buffer-mib", "1", "--json"]
    assert cli.main([str(raw), "--lines", str(description), "-o", str(out), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    stream = parse_component_stream(out.read_bytes())
    assert stream.header.height == 5 * LINES and report["quality_changes"]
    changes = {change["line"]: change["quality"] for change in report["quality_changes"]}
    quality = 60.0
    for patch, segment in sorted(stream.segments.items()):
        quality = changes.get(256 * patch, quality)
        assert segment.mode != NETWORK or quality == pytest.approx(segment.quality_step / 2.5, abs=0.01)
    assert any(segment.mode == NETWORK and segment.quality_step < 150 for segment in stream.segments.values())


class Fullness:
    """A buffer that is as full as one says."""

    fullness = 0.0


def test_quality_falls_with_the_buffer_and_rises_again():
    buffer = Fullness()
    pace = Pace(buffer, 20)
    steps = []
    for line, fullness in enumerate((0, 0.2, 0.5, 0.8, 1, 0.5, 0.1)):
        buffer.fullness = fullness
        steps.append(pace.quality_step(150, line))
    assert steps == [150, 150, 100, 50, 50, 100, 150]
    assert [tuple(change) for change in pace.changes] == [(2, 40.0), (3, 20.0), (5, 40.0), (6, 60.0)]


def test_a_buffer_takes_no_more_than_it_holds_and_passes_every_byte(rng):
    data = rng.integers(0, 256, 100_000).astype(np.uint8).tobytes()
    source, sink = os.pipe()
    arrival = BufferedArrival(source, 100, 5000)
    done = []

    def write():
        done.append(os.write(sink, data[:60_000]))  # as much as pipe and buffer hold: no more is taken in
        os.write(sink, data[done[0] :])
        os.close(sink)

    threading.Thread(target=write).start()
    found = b""
    while part := arrival.take(7):
        assert arrival.fullness <= 1 and len(part) % 100 == 0 and len(part) <= 700
        found += part
    assert found == data
    os.close(source)


def test_a_broken_input_is_an_error_and_no_end(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)  # a folder cannot be read
    for arrival in (Arrival(handle, 10), BufferedArrival(handle, 10, 100)):
        with pytest.raises(IsADirectoryError):
            arrival.take(1)
    os.close(handle)


def test_hostile_records_are_refused(rng):
    data = rng.integers(0, 256, (20, 6)).astype(np.uint8)
    payload = write_records(Records(3, data))[2:-4]
    start = write_records(Records(3, data)).index(b"\x03\x14\x06")
    payload = write_records(Records(3, data))[start:-4]
    found = read_records(memoryview(payload), 23, 0)
    assert found.first == 3 and np.array_equal(found.data, data)
    for wrong in (
        payload[:9],
        payload[:-1],
        payload + b"x",
        b"\x03\x00\x06" + payload[3:],
        b"\x04" + payload[1:],
        b"\x03\x14\x07" + payload[3:],
    ):
        with pytest.raises(FormatError):
            read_records(memoryview(wrong), 23, 0)
    whole = RecordsOfScene(23)
    for _ in range(4):
        whole.add(found, 0)
    with pytest.raises(FormatError, match="more than 4 times"):
        whole.add(found, 0)
    whole = RecordsOfScene(23)
    whole.add(found, 0)
    for other in (Records(3, data + 1), Records(0, data[:1, :5])):
        with pytest.raises(FormatError, match="differ"):
            whole.add(other, 0)
