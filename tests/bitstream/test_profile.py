"""Profiles: a flipped bit anywhere is found before it can decode anything."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from perigee.bitstream.contract import load_contract
from perigee.bitstream.errors import ProfileError
from perigee.bitstream.prior import Layer, NumpyPrior
from perigee.bitstream.profile import CONTRACT_FILE, find_profile, load_profile, shipped_profiles
from perigee.engines.flight import FlightEngine


@pytest.fixture
def copy(profile, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(profile.folder, folder)
    return folder


def test_shipped_profiles_load_and_have_all_their_files():
    assert {"flight", "flight2", "flight3", "lite"} <= set(shipped_profiles())
    for name in shipped_profiles():
        loaded = find_profile(name)
        for file in loaded.manifest.files:
            assert loaded.file(file).is_file()


def test_every_file_is_hashed(copy, rng):
    loaded = load_profile(copy)
    for name in loaded.manifest.files:
        path = copy / name
        data = bytearray(path.read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(ProfileError, match="SHA-256"):
            loaded.file(name)


def test_files_can_be_shared_with_a_sibling(copy, tmp_path):
    """A profile may name the folder beside it that holds a file; nothing outside of its parent can be reached so."""
    sibling = copy.parent / "sibling"
    sibling.mkdir()
    (copy / "synthesis.onnx").rename(sibling / "synthesis.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    for place in ("sibling", "../sibling", "/etc/sibling"):
        (copy / "manifest.json").write_text(json.dumps(manifest | {"shared": {"synthesis.onnx": place}}))
        assert load_profile(copy).file("synthesis.onnx") == sibling.resolve() / "synthesis.onnx"
    (sibling / "synthesis.onnx").write_bytes(b"another")
    with pytest.raises(ProfileError, match="SHA-256"):
        load_profile(copy).file("synthesis.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ProfileError, match="not installed"):
        load_profile(copy).file("synthesis.onnx")


def test_a_changed_weight_changes_the_digest(copy, profile):
    arrays = dict(np.load(copy / CONTRACT_FILE))
    arrays["pass3.head1.weight"][7, 9, 0, 0] ^= 1
    np.savez_compressed(copy / CONTRACT_FILE, **arrays)
    assert load_contract(copy / CONTRACT_FILE).digest != profile.contract.digest
    with pytest.raises(ProfileError, match="digest"):
        load_profile(copy)


def test_the_self_test_finds_a_weight_that_is_off_by_one(profile):
    layers = dict(profile.contract.layers)
    layer = layers["pass2.out"]
    weight = layer.weight.copy()
    index = np.unravel_index(np.abs(weight.astype(int)).argmax(), weight.shape)
    weight[:, index[1]] -= np.sign(weight[:, index[1]])
    layers["pass2.out"] = Layer(weight, layer.bias, layer.shift)
    with pytest.raises(ProfileError, match="self-test"):
        profile.self_test(NumpyPrior(profile.contract.widths, layers, np.float64))


def test_a_self_test_of_other_shapes_is_refused(copy):
    """Vectors of a foreign profile must not reach compiled code."""
    np.savez(copy / "selftest.npz", q=np.zeros((1, 1, 1, 1), np.int16), z=np.zeros((1, 1, 64, 64), np.int8),
             quality_step=np.zeros(1, np.uint8), answers=np.zeros((1, 8, 2), np.uint32))  # fmt: skip
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["selftest.npz"] = hashlib.sha256((copy / "selftest.npz").read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ProfileError, match="cannot be run"):
        FlightEngine(load_profile(copy), 1)


def test_the_self_test_finds_half_precision(profile):
    with pytest.raises(ProfileError, match="self-test"), np.errstate(all="ignore"):
        profile.self_test(NumpyPrior(profile.contract.widths, profile.contract.layers, np.float16))


def test_the_self_test_passes_for_the_reference(profile):
    profile.self_test(profile.contract.reference(np.float64))


@pytest.mark.parametrize("fault", ["no manifest", "not json", "no contract", "not a zip", "wrong version", "bomb"])
def test_unusable_folders_are_refused(copy, fault):
    manifest = copy / "manifest.json"
    if fault == "no manifest":
        manifest.unlink()
    elif fault == "not json":
        manifest.write_text("{")
    elif fault == "no contract":
        (copy / CONTRACT_FILE).unlink()
    elif fault == "not a zip":
        (copy / CONTRACT_FILE).write_bytes(b"PK\x03\x04 nothing")
    elif fault == "wrong version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"manifest_version": 99}))
    else:
        np.savez_compressed(copy / CONTRACT_FILE, geometry=np.zeros(40_000_000, np.int8))
    with pytest.raises(ProfileError):
        load_profile(copy)


def test_unknown_name_lists_what_there_is():
    with pytest.raises(ProfileError, match="lite"):
        find_profile("no-such-profile")


def test_contract_survives_storage(profile, tmp_path):
    np.savez_compressed(tmp_path / "contract.npz", **profile.contract.arrays())
    assert load_contract(tmp_path / "contract.npz").digest == profile.contract.digest
