"""The segmenter: what it is trained on, that it learns, goes on where it was interrupted, and leaves its weights."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from perigee.bitstream.errors import RasterError
from perigee.models.checkpoint import read_weights
from perigee.models.segmenter import DEEPEST, SEEN, Segmenter
from perigee.training import segmenter, segmenter_cli
from perigee.training.map_tiles import load_map_tiles
from perigee.training.segmenter import CropsWithMaps, overlaps


@pytest.fixture
def folder(tmp_path, rng):
    """Tiles with bright squares, which are buildings, and one tile that may not be trained on."""
    data = tmp_path / "maps"
    data.mkdir()
    rows = [["file", "layers", "place", "layers_present", "train_ok"]]
    for number in range(4):
        pixels, raster = rng.integers(60, 90, (128, 128, 3)), np.zeros((128, 128), np.uint8)
        for row, col in rng.integers(0, 100, (5, 2)):
            pixels[row : row + 24, col : col + 24] = 220
            raster[row : row + 24, col : col + 24] = 1
        Image.fromarray(pixels.astype(np.uint8)).save(data / f"{number}.png")
        Image.fromarray(raster | 16).save(data / f"{number}_layers.png")
        rows.append(
            [f"{number}.png", f"{number}_layers.png", "town", "building+field_grass", "no" if number == 3 else "yes"]
        )
    with (data / "index.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return data


def test_tiles_that_may_not_be_trained_on_are_held_out_or_left_out(folder):
    tiles, held_out = load_map_tiles(folder)
    assert [t.name for t in tiles] == ["0.png", "1.png", "2.png"] and not held_out
    tiles, held_out = load_map_tiles(folder, ["3.*", "0.*"])
    assert [t.name for t in tiles] == ["1.png", "2.png"] and [t.name for t in held_out] == ["0.png", "3.png"]
    assert dict(zip(SEEN, tiles[0].known, strict=True)) == {
        "building": True, "road": False, "water": False, "wood": False, "field": True,
    }  # fmt: skip
    assert tiles[0].masks[SEEN.index("field")].all() and not tiles[0].masks[SEEN.index("road")].any()
    with pytest.raises(RasterError, match="may be trained on"):
        load_map_tiles(folder, ["*"])
    (folder / "1_layers.png").write_bytes(b"no picture")
    with pytest.raises(RasterError, match="no folder of maps"):
        load_map_tiles(folder)
    with pytest.raises(RasterError, match="no folder of maps"):
        load_map_tiles(folder / "nowhere")


def test_masks_stay_over_what_they_mark(folder):
    images, masks, known = CropsWithMaps(load_map_tiles(folder)[0], 2).batch(6, 64)
    assert images.shape == (6, 3, 64, 64) and masks.shape == (6, len(SEEN), 32, 32) and known[:, 0].all()
    bright = torch.nn.functional.avg_pool2d(images, 2).mean(1)
    there = masks[:, 0] > 0.5
    assert bright[there].mean() > bright[~there].mean() + 0.2


def test_it_learns_resumes_and_leaves_its_weights(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(segmenter, "BATCH", 4)
    monkeypatch.setattr(segmenter, "SIDE", 64)
    run, out = tmp_path / "run", tmp_path / "out"
    common = [str(run), "--data", str(folder), "--hold-out", "3.*", "--threads", "1", "--learning-rate", "3e-3"]
    assert segmenter_cli.main([*common, "--minutes", "0.15"]) == 0
    assert "3 tiles, 1 held out; from training step 0" in capsys.readouterr().err
    assert segmenter_cli.main([*common, "--minutes", "0.3", "--export", str(out)]) == 0
    assert "from training step 0" not in capsys.readouterr().err
    with (run / "log.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    network = Segmenter()
    network.load_state_dict(read_weights(out))
    found = overlaps(network, load_map_tiles(folder, ["3.*"])[1])
    assert 0 <= found["building"] <= 1 and np.isnan(found["road"])
    assert network(torch.rand(1, 3, DEEPEST, 2 * DEEPEST)).shape == (1, len(SEEN), DEEPEST // 2, DEEPEST)
    assert segmenter_cli.main([str(tmp_path / "x"), "--data", str(tmp_path / "none")]) == 65
