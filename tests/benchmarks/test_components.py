"""The benchmarks of components run on a small scene and say what can be checked by other means."""

import csv
import json
import sys

import numpy as np
import pytest
import rasterio

from perigee.benchmarks import (
    component_exactness,
    component_latency,
    component_seams,
    false_colour,
    misregistration,
    multiband,
    products,
    scale,
)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def folder(tmp_path, rng):
    """A folder with one scene of four bands that are much alike, and its index."""
    y, x = np.mgrid[0:160, 0:160]
    shared = 1500 + 700 * np.sin(x / 13) * np.cos(y / 29) + 300 * ((x // 24 + y // 40) % 2)
    samples = shared * np.linspace(0.6, 1, 4)[:, None, None] + rng.normal(0, 10, (4, 160, 160))
    path = tmp_path / "data" / "scene.tif"
    path.parent.mkdir()
    with rasterio.open(path, "w", driver="GTiff", width=160, height=160, count=4, dtype="uint16") as file:
        file.write(samples.astype(np.uint16))
    with (path.parent / "index.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["file", "sensor", "level", "bands"], ["scene.tif", "Made", "L1", 4]])
    return path.parent


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_all_priors_agree(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(component_exactness, "QUALITIES", (30,))
    run(component_exactness, monkeypatch, "--data", folder, "--int64", 0, "--out", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) >= 6 and all(row["compared"] > 0 and row["differing"] == 0 for row in rows)
    assert "samples by numpy" in capsys.readouterr().out


def test_the_scale_rises(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "QUALITIES", (0, 30, 60, 90))
    run(scale, monkeypatch, "--data", folder, "--out", tmp_path)
    (row,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert (row["sensor"], row["files"], row["bytes fall"], row["error rises"]) == ("Made L1, 4 bands", 1, 0, 0)
    assert row["RMS <= 1 from"] == "90" and "Made" in capsys.readouterr().out


def test_products_of_both_codecs_stand_side_by_side(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(products, "QUALITIES", (20, 50))
    run(products, monkeypatch, "--scene", f"{folder / 'scene.tif'}@2,3,4", "--out", tmp_path)
    rows = json.loads((tmp_path / "products.json").read_text())["rows"]
    assert [row["codec"] for row in rows] == ["Perigee", "JPEG 2000"] * 2
    errors = [float(row["NDVI"].split(",")[0]) for row in rows]
    assert errors[2] < errors[0] < 0.05 and "NDWI" in capsys.readouterr().out


def test_sheets_show_three_pictures_for_each_rate(folder, tmp_path, monkeypatch):
    scene = f"Made scene={folder / 'scene.tif'}@4,2,1@0,0"
    run(false_colour, monkeypatch, "--scene", scene, "--rates", 0.5, "--crop", 100, "--out", tmp_path)
    with false_colour.Image.open(tmp_path / "made_scene.png") as picture:
        assert picture.size == (3 * 208 - 8, 30 + 44 + 200 + 8)
        panels = [np.asarray(picture)[80:280, x : x + 200].astype(int) for x in (0, 208, 416)]
    assert all(0 < np.abs(panel - panels[0]).mean() < 40 for panel in panels[1:])


def test_bands_that_are_far_apart_are_coded_without_a_transform(folder, tmp_path, monkeypatch):
    def few():
        return {"none": lambda s: s, "apart": lambda s: np.stack([np.rot90(band, i) for i, band in enumerate(s)])}

    monkeypatch.setattr(misregistration, "disturbances", few)
    monkeypatch.setattr(misregistration, "QUALITIES", (10, 20, 30, 40))
    run(misregistration, monkeypatch, "--data", folder, "--out", tmp_path)
    rows = json.loads((tmp_path / "misregistration.json").read_text())["rows"]
    assert float(rows[0]["BD-rate %"]) < -10 and rows[0]["with"] == "4/4"
    assert abs(float(rows[1]["BD-rate %"])) < 1


def test_other_codecs_stand_beside_the_anchor(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(multiband, "COMPONENT_QUALITIES", (8, 20, 32, 44))
    run(multiband, monkeypatch, "--data", folder, "--beside", "htj2k", "--beside", "jpegxl", "--out", tmp_path)
    with (tmp_path / "points.csv").open() as handle:
        points = list(csv.DictReader(handle))
    assert {p["codec"] for p in points} == {"klt", "htj2k", "jpegxl", "perigee spectral1"}
    for codec in ("htj2k", "jpegxl"):
        best = max(float(p["psnr"]) for p in points if p["codec"] == codec)
        assert best > 40


def test_both_codecs_are_timed_at_the_same_rates(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(component_latency, "RATES", (0.5, 2.0))
    run(component_latency, monkeypatch, "--data", folder, "--repeats", 1, "--out", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["bands"], row["tiles"]) for row in rows] == [(4, 1)] * 2
    assert [float(row["bits a sample"]) for row in rows] == pytest.approx([0.5, 2.0], rel=0.1)
    assert "with synthesis" in capsys.readouterr().out


def test_seams_are_measured_with_and_without_the_synthesis(tmp_path, monkeypatch, rng):
    y, x = np.mgrid[0:600, 0:600]
    samples = (1500 + 400 * np.sin(x / 13) * np.cos(y / 29) + rng.normal(0, 20, (600, 600))).astype(np.uint16)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=600, height=600, count=1, dtype="uint16") as file:
        file.write(samples, 1)
    monkeypatch.setattr(component_seams, "QUALITIES", (20,))
    run(component_seams, monkeypatch, "--data", tmp_path, "--out", tmp_path / "out.json")
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert 0.7 < float(row["integers"]) < 2 and 0.7 < float(row["synthesis"]) < 2
