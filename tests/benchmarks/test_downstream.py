"""The classifier, the intervals, and codecs compared at equal bytes."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from perigee.benchmarks import classifier as c
from perigee.benchmarks import downstream
from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import decode_pillow, read_rgb

CLASSES = ("agricultural", "forest", "harbor")


@pytest.fixture(scope="module")
def codec(profile):
    return ArrayCodec(profile, threads=1)


@pytest.fixture(scope="module")
def lpips_file(scenes):
    path = scenes.parents[2] / "weights" / "lpips-squeeze" / "lpips_sq_pm1.onnx"
    if not path.is_file():
        pytest.skip(f"the LPIPS file is not at {path}; set PERIGEE_SHARED")
    return path


@pytest.fixture(scope="module")
def backbone(lpips_file):
    return c.Backbone(lpips_file, threads=1)


@pytest.fixture(scope="module")
def examples(scenes, tmp_path_factory):
    """Six real training tiles of each of three classes, in folders of their own."""
    out = tmp_path_factory.mktemp("train")
    for name in CLASSES:
        (out / name).mkdir()
        for path in sorted((scenes.parents[1] / "ucm-train" / name).iterdir())[:6]:
            shutil.copy(path, out / name / path.name)
    return out


@pytest.fixture(scope="module")
def judged(tiles, tmp_path_factory):
    """The bundled tiles that are of these classes, none of them trained on."""
    out = tmp_path_factory.mktemp("eval")
    for path in tiles:
        if path.stem.startswith("ucm_"):
            shutil.copy(path, out / path.name)
    return out


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_of_known_values(successes, trials, low, high):
    """The last is Newcombe's (1998) example."""
    assert downstream.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes of {trials}"):
        downstream.wilson(successes, trials)


def test_paired_difference():
    a, b = [True] * 60 + [False] * 40, [True] * 50 + [False] * 50
    mean, low, high = downstream.paired_difference(a, b)
    assert (
        mean == pytest.approx(0.1) and low == pytest.approx(0.05, abs=0.011) and high == pytest.approx(0.16, abs=0.011)
    )
    assert downstream.paired_difference(a, b) == (mean, low, high)
    assert downstream.paired_difference(a, a) == (0, 0, 0)  # the same tiles: no spread, however many are wrong
    _, low, high = downstream.paired_difference(a, b[::-1])  # the same shares, but right on other tiles
    assert high - low > 0.25


def test_classes_and_order_come_from_the_names_of_files(tmp_path):
    for name in ("river07.tif", "sub/beach12.jpg", "sub/beach02.jpg", "ucm_forest05.tif", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [(path.name, label) for path, label in downstream.labelled(tmp_path)]
    assert found == [
        ("river07.tif", "river"), ("beach02.jpg", "beach"), ("beach12.jpg", "beach"), ("ucm_forest05.tif", "forest"),
    ]  # fmt: skip
    assert len(downstream.labelled(tmp_path, 1)) == 3


@pytest.mark.parametrize("bpp", [0.15, 0.6])
def test_equal_bytes_are_equal_on_real_tiles(codec, tiles, bpp):
    pixels = read_rgb(tiles[0])
    theirs, quality, ours = downstream.equal_bytes(codec, pixels, bpp)
    assert len(theirs) * 8 / 65536 == pytest.approx(bpp, rel=0.2)
    assert len(ours) == pytest.approx(len(theirs), rel=0.03)
    assert ours == codec.encode(pixels, quality) and decode_pillow(theirs).shape == pixels.shape


def test_closest_takes_either_side_and_the_ends():
    sizes = []

    def encode(x):
        sizes.append(x)
        return bytes(100 if x < 0.5 else 130)

    assert len(downstream.closest(encode, 110, 0, 1, 8)[1]) == 100
    assert len(downstream.closest(encode, 120, 0, 1, 8)[1]) == 130
    assert len(downstream.closest(encode, 1, 0, 1, 8)[1]) == 100 and min(sizes) < 0.01
    assert len(downstream.closest(encode, 999, 0, 1, 8)[1]) == 130 and max(sizes) > 0.99


def test_least_squares_tells_rings_apart_and_cross_validation_sees_noise(rng):
    angle = rng.uniform(0, 2 * np.pi, 120)
    radius = np.where(np.arange(120) % 2, 1.0, 3.0) + rng.normal(0, 0.1, 120)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)  # no line parts them
    labels = ["far", "near"] * 60
    found = c.fit(points, labels)
    assert found.names == ("far", "near")
    assert list(found.predict(np.array([[0.0, 1.0], [-3.0, 0.0], [2.1, 2.1]]))) == [1, 0, 0]
    assert c.cross_validate(points, labels) > 0.95
    assert 0.3 < c.cross_validate(points, [str(label) for label in rng.permutation(labels)]) < 0.7
    with pytest.raises(ValueError, match="1 class among 3"):
        c.fit(points[:3], ["far"] * 3)


def test_a_saved_classifier_comes_back_only_for_what_it_was_made_from(tmp_path, rng):
    points = rng.normal(size=(20, 4))
    found = c.fit(points, ["a", "b"] * 10)
    path = tmp_path / "deep" / "classifier.npz"
    assert c.load_classifier(path, "x") is None
    found.save(path, "x")
    again = c.load_classifier(path, "x")
    assert again is not None and again.names == found.names
    assert np.array_equal(again.predict(points), found.predict(points))
    assert c.load_classifier(path, "y") is None


def test_the_network_behind_lpips_is_found_and_tells_images_apart(backbone, tiles):
    pixels = read_rgb(tiles[0])
    features = backbone.features(pixels)
    assert features.shape == (2 * (384 + 512),) and (features >= 0).all() and features.max() > 0
    assert np.array_equal(features, backbone.features(pixels.copy()))
    assert (
        np.abs(features - backbone.features(pixels[:, ::-1])).max()
        < np.abs(features - backbone.features(read_rgb(tiles[1]))).max()
    )
    with pytest.raises(ValueError, match="40x31"):
        backbone.features(pixels[:31, :40])


def test_another_network_is_refused(profile):
    with pytest.raises(SystemExit, match="LPIPS with SqueezeNet has 8"):
        c.Backbone(profile.file("synthesis.onnx"))


def test_training_is_cached_until_its_files_change(backbone, examples, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(examples, folder)
    cache = tmp_path / "classifier.npz"
    first, accuracy = downstream.trained(folder, backbone, cache)
    assert first.names == CLASSES and accuracy is not None and accuracy > 0.6  # a third by chance
    again, nothing = downstream.trained(folder, backbone, cache)
    assert nothing is None and np.array_equal(again.weights, first.weights)
    (folder / "forest" / sorted(p.name for p in (folder / "forest").iterdir())[0]).unlink()
    other, accuracy = downstream.trained(folder, backbone, cache)
    assert accuracy is not None and len(other.examples) == len(first.examples) - 1
    with pytest.raises(SystemExit, match="fewer than two classes"):
        downstream.trained(folder / "forest", backbone, None)


def test_the_whole_command_on_real_tiles(lpips_file, examples, judged, tmp_path, monkeypatch, capsys):
    def run(folder: Path) -> str:
        monkeypatch.setattr(
            sys, "argv",
            ["downstream", "--train", str(examples), "--eval", str(folder), "--backbone", str(lpips_file), "--threads", "1",
             "--out", str(tmp_path / "report.json")],
        )  # fmt: skip
        downstream.main()
        return capsys.readouterr().out

    monkeypatch.setattr(downstream, "RATES_BPP", (0.25,))
    lines = [line.split() for line in run(judged).splitlines()]
    assert [line[0] for line in lines if line[:1] in (["original"], ["perigee"], ["jpeg2000"])] == [
        "original", "perigee", "jpeg2000",
    ]  # fmt: skip
    assert (tmp_path / "report.json").is_file()
    strange = tmp_path / "strange"
    strange.mkdir()
    shutil.copy(next(judged.iterdir()), strange / "volcano01.tif")
    with pytest.raises(SystemExit, match="classes without training images: volcano"):
        run(strange)


def test_summary_counts_pairs_of_tiles():
    def row(codec, rate, told):
        return {"codec": codec, "rate": rate, "told": told, "class": "a", "bpp": 1.0}

    rows = [row("original", None, "a")] * 3 + [row("original", None, "b")]
    rows += [row("perigee", 0.1, told) for told in "aaab"] + [row("jpeg2000", 0.1, told) for told in "acab"]
    original, ours, theirs = downstream.summarise(rows)
    assert original["accuracy %"].startswith("75.0 (") and "change" not in original
    assert ours["change"].startswith("+0.0 (+0.0 .. +0.0") and ours["agreement %"].startswith("100.0 (")
    assert ours["ours - JPEG 2000"].startswith("+25.0 (+0.0 .. +75.0")
    assert theirs["accuracy %"].startswith("50.0 (") and theirs["agreement %"].startswith("75.0 (")
    assert theirs["change"].startswith("-25.0 (")
