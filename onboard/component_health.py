"""``onboard-encode doctor`` for a component profile: whether its prior, coders and reconstruction agree here, and how fast it encodes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from perigee.bitstream import compiled
from perigee.bitstream.arrays import Samples
from perigee.bitstream.coders import available_coders
from perigee.bitstream.component_profile import ComponentProfile
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.reconstruction import Reconstruction
from perigee.engines.component_flight import ComponentFlight
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.guard import texture
from perigee.onboard.health import PACKAGES, PATCHES, SIDE
from perigee.onboard.source import ArraySource
from perigee.support.findings import Finding, machine_findings

BANDS, QUALITY, DEPTH = 4, 40, 4095


def _scene() -> Samples:
    """Four bands of 12 bits that are much alike."""
    plane = texture(SIDE)[:1]
    gains = np.linspace(0.5, 1, BANDS, dtype=np.float32)[:, None, None]
    return np.asarray(np.clip(DEPTH * plane * gains, 0, DEPTH)).astype(np.uint16)


def _profile(profile: ComponentProfile) -> Finding:
    try:
        for name in profile.manifest.files:
            profile.file(name)
    except PerigeeError as error:
        return Finding("profile", False, str(error))
    count = len(profile.manifest.files)
    return Finding(
        "profile", True, f"{profile.name}, contract {profile.contract.digest.hex()}, {count} files as hashed"
    )


def _prior(profile: ComponentProfile) -> Finding:
    if compiled.library is None:
        return Finding("compiled library", None, "not built here (no C compiler at installation): numpy serves, slower")
    try:
        prior = compiled.NativePrior(profile.contract.widths, profile.contract.layers)
        profile.self_test(prior)
    except PerigeeError as error:
        return Finding("compiled prior", False, str(error))
    return Finding("compiled prior", True, f"self-test passed, {compiled.PACKING_NAMES[prior.packing]}")


def _coders(profile: ComponentProfile, samples: Samples) -> Iterator[Finding]:
    """Every coder must give the same bytes, and decode them again."""
    first = None
    for kind in available_coders(components=True):
        try:
            data = ComponentEncoder(profile, kind).encode_scene(ArraySource(samples), QUALITY, verify=True).data
        except PerigeeError as error:
            yield Finding(f"coder {kind}", False, str(error))
            continue
        first = first or data
        same = data == first
        yield Finding(
            f"coder {kind}", same, "round trip, the same bytes" if same else "other bytes than the coder before"
        )


def _reconstruction(profile: ComponentProfile, samples: Samples) -> Finding:
    engine = ComponentFlight(profile)
    planes = ((samples[:1] - samples[:1].mean()) / DEPTH).astype(np.float32)
    none = np.zeros((1, profile.contract.widths.latents), np.int8)
    latents = engine.code(engine.analysis.coefficients(planes), none, 100).latents
    parts = latents.q[0], latents.mean[0], latents.scale_index[0], 100
    found = [Reconstruction(profile.contract, kind).plane(*parts) for kind in {False, compiled.library is not None}]
    same = all(np.array_equal(plane, found[0]) for plane in found)
    how = "compiled and numpy give the same samples" if len(found) > 1 else "numpy serves"
    return Finding("reconstruction", same, how if same else "compiled and numpy differ")


def _speed(profile: ComponentProfile, samples: Samples) -> Finding:
    encoder = ComponentEncoder(profile)
    times = []
    for _ in range(PATCHES):
        start = time.perf_counter()
        data = encoder.encode_scene(ArraySource(samples), QUALITY).data
        times.append(time.perf_counter() - start)
    middle = float(np.median(times))
    bits = 8 * len(data) / samples.size
    what = f"{1000 * middle:.1f} ms a 256x256 patch of {BANDS} bands at {bits:.2f} bits a sample"
    return Finding("speed", None, f"{what}, {samples.size / middle / 1e6:.1f} Msamples/s")


def examine_components(profile: ComponentProfile) -> Iterator[Finding]:
    """All findings, one after the other; the first that fails says what is wrong."""
    yield from machine_findings(PACKAGES)
    for check in (_profile, _prior):
        finding = check(profile)
        yield finding
        if finding.ok is False:
            return
    samples = _scene()
    yield from _coders(profile, samples)
    yield _reconstruction(profile, samples)
    yield _speed(profile, samples)
