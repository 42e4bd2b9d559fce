"""Map guidance: maps that are spoiled on purpose, and a guide that learns and without a map adds nothing."""

import csv

import numpy as np
import pytest
import torch

from perigee.bitstream.errors import RasterError
from perigee.bitstream.map_planes import MAP_CLASSES, MAP_PLANES, edge_distance
from perigee.models.checkpoint import WEIGHTS_FILE, CheckpointError, write_weights
from perigee.models.compensation.map_guide import MapGuide
from perigee.models.compensation.trunk import WIDTHS, Features
from perigee.models.segmenter import SEEN, Segmenter
from perigee.training import map_guidance
from perigee.training.map_guidance import GuideConfig, GuideTrainer
from perigee.training.map_pairs import BUILDING, MapPairs, make_map_pairs, outdated, spoiled
from perigee.training.map_tiles import MapTile
from perigee.training.projection import ProjectToCells


def town(seed):
    rng = np.random.default_rng(seed)
    pixels, masks = rng.integers(70, 90, (256, 256, 3)).astype(np.uint8), np.zeros((len(SEEN), 256, 256), bool)
    for row, col in rng.integers(0, 220, (8, 2)):
        pixels[row : row + 28, col : col + 20] = 200
        masks[BUILDING, row : row + 28, col : col + 20] = True
    return MapTile(f"{seed}.png", "town", pixels, masks, (True, False, False, False, False))


def test_distance_to_edges():
    solid = np.zeros((40, 40), bool)
    solid[10:30, 10:30] = True
    found = edge_distance(solid)
    assert found[20, 20] == 1 and found[0, 0] == -1 and found[10, 20] == 1 / 8 and found[9, 20] == -1 / 8
    assert not edge_distance(np.ones((9, 9), bool)).max() > 1


def test_an_outdated_map_lacks_buildings_and_has_others_beside_the_true_ones():
    one, two = town(1).masks[BUILDING], town(2).masks[BUILDING]
    rng, lacking, added = np.random.default_rng(3), 0, 0
    for _ in range(20):
        found = outdated(one, two, rng)
        lacking += bool((one & ~found).any())
        added += bool((found & ~one).any())
    assert lacking > 5 and added > 5


def test_spoiled_maps_are_planes_of_all_kinds():
    rng = np.random.default_rng(5)
    found = [spoiled(town(1).masks, town(2).masks, rng) for _ in range(40)]
    known = np.array([planes[MAP_PLANES.index("known")].mean() for planes in found])
    assert (known == 0).sum() > 2 and (known == 1).sum() > 10 and ((known > 0) & (known < 1)).any()
    for planes in found:
        assert planes.shape == (len(MAP_PLANES), 256, 256) and planes.dtype == np.float32
        assert not planes[:, planes[MAP_PLANES.index("known")] == 0].any(), "nothing is said where nothing is known"
        assert not planes[MAP_CLASSES.index("rail")].any()


def test_without_a_map_the_guide_adds_nothing():
    torch.manual_seed(1)
    guide = MapGuide()
    torch.nn.init.normal_(guide.leave.weight)
    features = Features(
        *(torch.randn(1, width, 64 // f, 64 // f) for width, f in zip(WIDTHS[1:], (8, 4, 2), strict=True))
    )
    planes = torch.zeros(1, len(MAP_PLANES), 64, 64)
    assert not guide(features, planes).any()
    planes[:, 0, 20:40, 20:40] = 1
    assert guide(features, planes).abs().mean() > 0


def test_a_guide_learns_and_resumes(profile, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(map_guidance, "BATCH", 2)
    monkeypatch.setattr(map_guidance, "SIDE", 64)
    folder = tmp_path / "pairs"
    make_map_pairs(profile, [town(1), town(2)], folder)
    pairs = MapPairs(folder)
    assert len(pairs) == 12 and pairs.of_files(["2.*"]).tolist() == [1, 3, 5, 7, 9, 11]
    with pytest.raises(RasterError, match="no image has a name like 3"):
        pairs.of_files(["3.*"])
    batch = pairs.batch(3, 64, np.random.default_rng(1))
    assert batch["planes"].shape == (3, len(MAP_PLANES), 64, 64) and batch["latents"].shape == (3, 449, 4, 4)
    judge = tmp_path / "segmenter"
    judge.mkdir()
    write_weights(Segmenter(), judge / WEIGHTS_FILE)
    cosmic = profile.folder.parent / "compensators" / "cosmic"
    run = tmp_path / "run"
    run.mkdir()
    project = ProjectToCells(profile)
    first = GuideTrainer(run, cosmic, [(judge, ["*"])], project, GuideConfig(minutes=0.08))
    first.run(pairs, False)
    assert first.guide.leave.weight.abs().max() > 0 and first.step > 0
    second = GuideTrainer(run, cosmic, [(judge, ["*"])], project, GuideConfig(minutes=first.clock.minutes + 0.08))
    assert second.step == first.step
    second.run(pairs, False)
    with (run / "guide.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 and int(rows[1]["step"]) > int(rows[0]["step"])
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    torch.save({"kind": "segmenter"}, run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not a map guide"):
        GuideTrainer(run, cosmic, [(judge, ["*"])], project, GuideConfig())
