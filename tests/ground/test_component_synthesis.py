"""What a synthesis adds to components: where it helps, where it stays away, and that its windows do not show."""

import shutil

import numpy as np
import pytest
import rasterio
import torch

from perigee.bitstream import format as fmt
from perigee.bitstream.component_profile import find_component_profile, load_component_profile
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.export.component_synthesis import add_synthesis
from perigee.ground import cli as ground_cli
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.models.codec.component_synthesis import ComponentSynthesis
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.source import ArraySource

SPECTRAL1 = find_component_profile("spectral1")


@pytest.fixture(scope="module")
def codec():
    return ComponentEncoder(SPECTRAL1)


@pytest.fixture(scope="module")
def integers():
    return GroundComponents(SPECTRAL1, synthesis=False)


@pytest.fixture(scope="module")
def network():
    """An untrained synthesis whose additions are large enough to be seen."""
    torch.manual_seed(4)
    network = ComponentSynthesis()
    with torch.no_grad():
        network.fine[-1].weight.mul_(40)
    return network.eval()


@pytest.fixture(scope="module")
def wild(tmp_path_factory, network):
    """A profile with that synthesis."""
    folder = tmp_path_factory.mktemp("profiles") / "wild"
    shutil.copytree(SPECTRAL1.folder, folder)
    add_synthesis(network, folder, {"steps": 0})
    return GroundComponents(load_component_profile(folder), 1)


def scene(bands: int, rows: int, cols: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    y, x = np.mgrid[0:rows, 0:cols]
    shared = np.sin(x / 9) * np.cos(y / 23) + 0.5 * ((x // 40 + y // 24) % 2)
    gains = np.linspace(0.5, 1, bands)[:, None, None]
    return np.clip(2000 + 500 * gains * shared + rng.normal(0, 15, (bands, rows, cols)), 0, 65535).astype(np.uint16)


def product(data: bytes, engine: GroundComponents, region: Region | None = None, damaged: bool = False) -> np.ndarray:
    decoder = ComponentDecoder(parse_component_stream(data, damaged=damaged), engine, damaged=damaged)
    return decoder.region(region or Region(0, 0, decoder.height, decoder.width)).samples.astype(int)


def test_the_graph_is_the_network(wild, network):
    rng = np.random.default_rng(1)
    shapes = [(1, 256, 5, 7), (1, 256, 5, 7), (1, 1, 80, 112), (1, 1, 80, 112), (1, 1, 5, 7)]
    inputs = [rng.normal(0, 9, shape).astype(np.float32) for shape in shapes]
    with torch.no_grad():
        wanted = network(*map(torch.from_numpy, inputs)).numpy()
    assert np.abs(wanted).max() > 0.1 and np.allclose(wild.synthesise(*inputs), wanted, atol=1e-4)


def test_the_shipped_synthesis_brings_products_closer_to_the_original(codec, integers, tiles):
    shipped = GroundComponents(SPECTRAL1, 1)
    assert shipped.can_synthesise
    for quality in (8, 20, 32):
        left = []
        for tile in tiles[:3]:
            with rasterio.open(tile) as file:
                samples = file.read()
            data = codec.encode_scene(ArraySource(samples), quality).data
            errors = [np.square(product(data, engine) - samples).mean() for engine in (shipped, integers)]
            left.append(errors[0] / errors[1])
        assert np.mean(left) < 0.99


def test_it_changes_products_of_low_quality_alone(codec, integers, wild):
    samples = scene(3, 130, 200)
    for quality, changed in ((20, True), (47, True), (48, False), (90, False)):
        data = codec.encode_scene(ArraySource(samples), quality).data
        assert np.array_equal(product(data, wild), product(data, integers)) != changed


def test_windows_do_not_show(codec, wild, integers):
    samples = scene(2, 530, 1100)
    data = codec.encode_scene(ArraySource(samples), 20).data
    whole = product(data, wild)
    added = np.abs(whole - product(data, integers))
    assert added.max() > 30
    for region in (
        Region(0, 0, 530, 300),
        Region(200, 240, 100, 40),
        Region(511, 0, 19, 1100),
        Region(300, 1000, 230, 100),
    ):
        part = product(data, wild, region)
        inside = whole[:, region.top : region.bottom, region.left : region.right]
        assert np.abs(part - inside).max() <= 0.05 * added.max()
    decoder = ComponentDecoder(parse_component_stream(data), wild)
    for place, block in decoder.blocks():
        inside = whole[:, place.top : place.bottom, place.left : place.right]
        assert np.abs(block.samples - inside).max() <= 0.05 * added.max()


def test_strips_with_other_transforms_are_not_mixed(codec, wild):
    samples = scene(3, 600, 300)
    samples[:, 256:] = samples[::-1, 256:] * 2
    data = codec.encode_scene(ArraySource(samples), 30, strip_rows=1).data
    stream = parse_component_stream(data)
    rows = {number: stream.parameters[number] for number in (0, 1, 2)}
    assert not np.array_equal(rows[1].spectral.matrix, rows[2].spectral.matrix)
    whole = product(data, wild)
    for top, bottom in ((0, 256), (256, 512), (512, 600)):
        assert np.array_equal(product(data, wild, Region(top, 0, bottom - top, 300)), whole[:, top:bottom])


def test_beside_a_lost_patch_the_others_come_back(codec, wild, integers):
    samples = scene(2, 300, 600)
    data = codec.encode_scene(ArraySource(samples), 20).data
    lost = bytearray(data)
    segment = parse_component_stream(data).segments[1]
    lost[data.index(segment.words.astype("<u4").tobytes()) + 8] ^= 1
    found = product(bytes(lost), wild, damaged=True)
    assert (found[:, :256, 256:512] == 0).all()
    assert np.abs(found - product(bytes(lost), integers, damaged=True)).max() < 1000
    assert parse_component_stream(data).segments[0].mode == fmt.NETWORK


def test_the_command_leaves_the_synthesis_out_on_request(codec, integers, tmp_path, tiles, capsys):
    with rasterio.open(tiles[0]) as file:
        samples = file.read()
    data = codec.encode_scene(ArraySource(samples), 20).data
    (tmp_path / "a.peri").write_bytes(data)
    found = {}
    for effort in ("full", "fast"):
        assert (
            ground_cli.main([str(tmp_path / "a.peri"), "-o", str(tmp_path / f"{effort}.tif"), "--effort", effort]) == 0
        )
        with rasterio.open(tmp_path / f"{effort}.tif") as file:
            found[effort], tag = file.read(), file.tags()["PERIGEE_SYNTHESIS"]
        assert tag == ("YES" if effort == "full" else "NO")
    assert np.array_equal(found["fast"], product(data, integers)) and not np.array_equal(found["full"], found["fast"])
    with pytest.raises(SystemExit) as caught:
        ground_cli.main([str(tmp_path / "a.peri"), "-o", str(tmp_path / "b.tif"), "--effort", "none"])
    assert caught.value.code == 64
