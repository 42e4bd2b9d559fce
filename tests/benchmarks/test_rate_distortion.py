"""From images to tables: points, their CSV, BD-rates of groups, sheets."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perigee.benchmarks import anchors, crops, rate_distortion
from perigee.benchmarks.common import psnr, read_rgb
from perigee.benchmarks.points import (
    Point,
    measure,
    profile_labels,
    read_points,
    split_profile,
    write_header,
    write_points,
)
from perigee.benchmarks.published import COLUMNS, beside_ldm_rsic
from perigee.benchmarks.summary import group, image_bd_rates, image_table, set_mean_gain, summarise


def synthetic(codec, factor, folder="f", images=("a", "b", "c"), luma_only=False):
    """Points on a curve of 6 dB per doubling; image number n has 2 n dB less; ``factor`` scales the bytes."""
    points = []
    for image in images:
        n = "abc".index(image)
        for rate in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8):
            quality = 25 - 2 * n + 6 * math.log2(rate / 0.1)
            colour = math.nan if luma_only else quality
            size = round(rate * factor * 1e6)
            points.append(Point(folder, image, codec, rate, size, rate * factor, colour, quality + 1, 0.9, math.nan))
    return points


def test_profiles_and_analyses_are_told_apart():
    assert split_profile("lite") == ("lite", None)
    assert split_profile("flight:swift") == ("flight", "swift")
    assert split_profile("runs/x:y/flight") == ("runs/x:y/flight", None)
    assert split_profile("C:\\profiles\\lite") == ("C:\\profiles\\lite", None)
    assert profile_labels(["lite", "flight:swift", "runs/a/lite", "flight:swift"]) == [
        ("perigee lite", "lite"),
        ("perigee flight:swift", "flight:swift"),
        ("perigee runs/a/lite", "runs/a/lite"),
    ]


def test_summary_of_constant_savings():
    found = group("f", synthetic("jpeg2000", 1) + synthetic("hevc", 0.8) + synthetic("perigee lite", 0.6))
    assert list(found.curves) == ["perigee lite", "jpeg2000", "hevc"]
    rows = {(row["codec"], row["against"]): row for row in summarise(found, ["jpeg2000", "hevc"])}
    assert set(rows) == {
        ("perigee lite", "jpeg2000"),
        ("hevc", "jpeg2000"),
        ("perigee lite", "hevc"),
        ("jpeg2000", "hevc"),
    }
    row = rows["perigee lite", "jpeg2000"]
    assert row["images"] == 3 and row["measure"] == "RGB PSNR" and row["without overlap"] == 0
    assert float(row["median %"]) == pytest.approx(-40, abs=0.2)
    assert float(row["set mean %"]) == pytest.approx(-40, abs=0.2)
    assert float(rows["perigee lite", "hevc"]["median %"]) == pytest.approx(-25, abs=0.2)


def test_a_codec_of_luma_alone_is_compared_on_luma_with_all_others_beside():
    points = synthetic("jpeg2000", 1) + synthetic("vvc", 0.5, luma_only=True) + synthetic("perigee lite", 0.6)
    rows = summarise(group("f", points), ["jpeg2000"])
    found = {(row["codec"], row["measure"]) for row in rows}
    assert found == {("perigee lite", "RGB PSNR"), ("perigee lite", "luma PSNR"), ("vvc", "luma PSNR")}
    assert float(next(r for r in rows if r["codec"] == "vvc")["median %"]) == pytest.approx(-50, abs=0.2)


def test_images_that_one_codec_lacks_are_left_out():
    found = group("f", synthetic("jpeg2000", 1, images=("a", "b")) + synthetic("hevc", 0.8, images=("b", "c")))
    assert list(image_bd_rates(found, "hevc", "jpeg2000")) == ["f/b"]
    rows, columns = image_table(found, "jpeg2000")
    assert columns == ["image", "hevc"] and [row.get("hevc") for row in rows] == ["", "-20.0", ""]


def test_the_published_table_is_sorted_and_says_where_a_row_is_from():
    found = group(
        "ucm", synthetic("jpeg2000", 1) + synthetic("perigee lite", 0.6) + synthetic("vvc", 0.5, luma_only=True)
    )
    rows = beside_ldm_rsic(found)
    assert [row["from"] for row in rows].count("this run") == 2
    values = [float(row["set mean BD-rate %"]) for row in rows]
    assert values == sorted(values) and set(rows[0]) == set(COLUMNS)
    assert set_mean_gain(found, "perigee lite", "jpeg2000")[1] == pytest.approx(6 * math.log2(1 / 0.6), abs=0.01)


def test_points_survive_their_csv(tmp_path):
    points = synthetic("jpeg2000", 1) + synthetic("vvc", 0.5, luma_only=True)
    with (tmp_path / "points.csv").open("w", newline="") as handle:
        write_header(handle)
        write_points(handle, points)
    again = read_points(tmp_path / "points.csv")
    assert len(again) == len(points)
    for a, b in zip(points, again, strict=True):
        assert (a.folder, a.image, a.codec, a.setting, a.bytes) == (b.folder, b.image, b.codec, b.setting, b.bytes)
        assert b.luma_psnr == pytest.approx(a.luma_psnr, abs=1e-4)
        assert math.isnan(b.psnr) if math.isnan(a.psnr) else b.psnr == pytest.approx(a.psnr, abs=1e-4)


def test_a_csv_of_the_first_release_is_read_and_a_bad_line_named(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("folder,image,codec,setting,bytes,bpp,psnr\nucm,a,perigee,4,831,0.10144,22.6181\n")
    (point,) = read_points(path)
    assert point.psnr == 22.6181 and math.isnan(point.luma_psnr)
    path.write_text(path.read_text() + "ucm,a,perigee,4,many,0.10144,22.6181\n")
    with pytest.raises(ValueError, match="line 3"):
        read_points(path)


@pytest.fixture
def quick(monkeypatch, tmp_path, tiles):
    """A folder with two cut tiles, and ladders of few settings."""
    for path in tiles[:2]:
        Image.fromarray(read_rgb(path)[:96, :112]).save(tmp_path / f"{path.stem}.png")
    monkeypatch.setattr("perigee.benchmarks.points.QUALITIES", (10, 30, 50, 70, 90))
    for name in ("jpeg2000", "webp"):
        old = anchors.ANCHORS[name]
        new = anchors.Anchor(old.label, old.encode, old.decode, old.settings[::2], old.luma_only, old.check)
        monkeypatch.setitem(anchors.ANCHORS, name, new)
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rate_distortion", *map(str, arguments)])
    rate_distortion.main()


def test_the_whole_run_and_its_reuse(quick, monkeypatch, capsys):
    first, second = quick / "first", quick / "second"
    run(monkeypatch, "--data", quick, "--anchors", "jpeg2000", "webp", "--out", first)
    text = capsys.readouterr()
    assert "fewer scales" in text.err and "perigee flight3" in text.out
    points = read_points(first / "points.csv")
    assert {p.codec for p in points} == {"perigee flight3", "jpeg2000", "webp"} and len({p.image for p in points}) == 2
    assert all(p.bytes > 0 and 15 < p.psnr < 50 and 0 < p.ms_ssim < 1 and math.isnan(p.lpips) for p in points)
    for name in ("summary.json", "images.json", "tables.md", "curves.png", f"curves_{quick.name}.png"):
        assert (first / name).stat().st_size > 0

    monkeypatch.setattr("perigee.benchmarks.points.ANCHORS", {"jpeg2000": None, "webp": None})  # must not be needed
    csv_file = first / "points.csv"
    run(monkeypatch, "--scenes", quick, "--anchors", "jpeg2000", "webp", "--reuse", csv_file, "--out", second)
    again = read_points(second / "points.csv")
    key = lambda p: (p.image, p.codec, p.setting)  # noqa: E731
    assert [(key(p), p.bytes) for p in sorted(points, key=key)] == [(key(p), p.bytes) for p in sorted(again, key=key)]
    assert "each scene coded whole" in capsys.readouterr().out


def test_a_missing_model_ends_the_run_with_a_message(quick, monkeypatch):
    with pytest.raises(SystemExit, match="LPIPS"):
        run(monkeypatch, "--data", quick, "--anchors", "--lpips", quick / "absent.onnx", "--out", quick / "out")


def test_folders_without_images_or_of_one_name_are_named(quick, monkeypatch):
    (quick / "empty" / quick.name).mkdir(parents=True)
    with pytest.raises(SystemExit, match="empty has no images"):
        run(monkeypatch, "--data", quick / "empty", "--anchors", "--out", quick / "out")
    with pytest.raises(SystemExit, match="one name"):
        run(monkeypatch, "--data", quick, "--data", quick / "empty" / quick.name, "--out", quick / "out")


def test_processes_give_the_points_of_one(tiles, tmp_path):
    from perigee.benchmarks.points import Task, measure_all

    small = tmp_path / "small.png"
    Image.fromarray(read_rgb(tiles[0])[:64, :64]).save(small)
    task = Task("f", small, (), ("webp",), None, 1)
    same = [list(map(str, found)) for found in measure_all([task, task], 2)]
    assert same == [list(map(str, measure(task)))] * 2


def test_a_sheet_shows_the_same_window_of_all(tiles, tmp_path):
    pixels = read_rgb(tiles[0])
    coded = [crops.Coded(name, 1000 + 100 * n, pixels) for n, name in enumerate(("JPEG 2000", "AVIF", "Perigee"))]
    picture = np.asarray(crops.sheet("title", pixels, [(0.15, coded), (0.3, coded)], (250, 20), side=100, zoom=2))
    window = pixels[156:256, 20:120].repeat(2, 0).repeat(2, 1)
    for row in range(2):
        top = crops.TITLE_PX + row * (crops.CAPTION_PX + 200 + crops.GAP_PX) + crops.CAPTION_PX
        for column in range(4):
            left = column * (200 + crops.GAP_PX)
            assert np.array_equal(picture[top : top + 200, left : left + 200], window)
    assert crops.save(Image.fromarray(picture), tmp_path / "a.png").suffix == ".png"
    small = crops.save(Image.fromarray(picture), tmp_path / "b.png", max_bytes=20_000)
    assert small == tmp_path / "b.jpg" and small.is_file() and not (tmp_path / "b.png").exists()


def test_equal_bytes_are_equal(tiles, profile):
    from perigee.benchmarks.codec import ArrayCodec

    pixels = read_rgb(tiles[0])[:128, :128]
    coded = {c.name: c for c in crops.at_equal_bytes(pixels, ArrayCodec(profile, 1), 0.6)}
    sizes = [c.size_bytes for c in coded.values()]
    assert max(sizes) / min(sizes) < 1 + 2 * crops.TOLERANCE
    assert sizes[0] * 8 / pixels[..., 0].size == pytest.approx(0.6, rel=0.1)
    assert all(c.pixels.shape == pixels.shape and psnr(pixels, c.pixels) > 20 for c in coded.values())


def test_worst_images_and_windows(tiles):
    points = synthetic("jpeg2000", 1) + [
        p for n, image in enumerate("abc") for p in synthetic("perigee x", 0.6 + 0.2 * n, images=(image,))
    ]
    worst = crops.worst_images(points, "perigee x", "jpeg2000", 2)
    assert [name for name, _ in worst] == ["f/c", "f/b"]
    assert [rate for _, rate in worst] == pytest.approx([0, -20], abs=0.2)
    with pytest.raises(ValueError, match="wanted"):
        crops.worst_images(points, "perigee x", "hevc", 2)
    original = np.zeros((60, 80, 3), np.uint8)
    bad = original.copy()
    bad[30:40, 50:60] = 9
    row, col = crops.worst_window(original, bad, original, 20)
    assert 20 <= row <= 30 and 40 <= col <= 50
    assert crops.worst_window(original, original, bad, 200) == (0, 0)


def test_land_arguments():
    job = crops.parse_land("a harbour=some/x.tif@10,20")
    assert (job.title, job.path, job.place, job.name) == ("a harbour", Path("some/x.tif"), (10, 20), "land_a_harbour")
    assert crops.parse_land("some/x.tif").title == "x" and crops.parse_land("x.tif").place is None
