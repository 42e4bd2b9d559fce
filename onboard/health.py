"""``onboard-encode doctor``: what this machine has, which engines pass their self-tests, and how fast it will encode."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from perigee.bitstream import compiled
from perigee.bitstream.coders import available_coders
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.profile import Profile
from perigee.engines import choice
from perigee.engines.flight import FlightEngine
from perigee.onboard.encoder import Encoder
from perigee.onboard.guard import texture
from perigee.support.findings import Finding, machine_findings

PACKAGES = ("numpy", "onnxruntime", "tifffile", "imagecodecs", "constriction")
QUALITY_STEP, SIDE = 100, 256
PATCHES = 12


def _profile(profile: Profile) -> Finding:
    try:
        for name in profile.manifest.files:
            profile.file(name)
    except PerigeeError as error:
        return Finding("profile", False, str(error))
    count = len(profile.manifest.files)
    return Finding(
        "profile", True, f"{profile.name}, contract {profile.contract.digest.hex()}, {count} files as hashed"
    )


def _prior(profile: Profile) -> Finding:
    if compiled.library is None:
        return Finding(
            "compiled library", None, "not built here (no C compiler at installation): the graphs serve, slower"
        )
    try:
        prior = compiled.NativePrior(profile.contract.widths, profile.contract.layers)
        profile.self_test(prior)
    except PerigeeError as error:
        return Finding("compiled prior", False, str(error))
    return Finding("compiled prior", True, f"self-test passed, {compiled.PACKING_NAMES[prior.packing]}")


def _engine(profile: Profile) -> Finding:
    try:
        FlightEngine(profile, 1, use_compiled_prior=False)
    except PerigeeError as error:
        return Finding("engine onnxruntime", False, str(error))
    return Finding("engine onnxruntime", True, "CPU provider, self-test of the prior's graph passed")


def _gpu_engines(profile: Profile) -> Iterator[Finding]:
    """An engine that is not here is no fault; one that is here and fails is."""
    for name in choice.GPU_ENGINES:
        absent = choice.missing(name, profile)
        reason = absent or choice.failing(name, profile)
        ok = None if absent else reason is None
        yield Finding(
            f"engine {name}", ok, f"not here: {absent}" if absent else reason or "self-test of the prior passed"
        )


def _circle(profile: Profile, engine: FlightEngine) -> Iterator[Finding]:
    """Encode and decode a patch with every coder; all must give the same bytes and the same symbols."""
    written = set()
    for kind in available_coders():
        try:
            segment = Encoder(profile, engine, kind).encode_image(texture(SIDE), QUALITY_STEP)
            Encoder(profile, engine, kind).verify(segment, (SIDE, SIDE))
        except PerigeeError as error:
            yield Finding(f"coder {kind}", False, str(error))
            continue
        written.add(segment.words.tobytes())
        same = len(written) == 1
        yield Finding(
            f"coder {kind}", same, "round trip, the same bytes" if same else "other bytes than the coder before"
        )


def _speed(profile: Profile, threads: int | None) -> Iterator[Finding]:
    patch = texture(SIDE)
    for name in profile.analyses:
        engine = FlightEngine(profile, threads, check=False, analysis=name)
        encoder = Encoder(profile, engine)
        encoder.encode_image(patch, QUALITY_STEP)
        times = []
        for _ in range(PATCHES):
            start = time.perf_counter()
            segment = encoder.encode_image(patch, QUALITY_STEP)
            times.append(time.perf_counter() - start)
        middle = float(np.median(times))
        bpp = 32 * len(segment.words) / patch[0].size
        what = f"{1000 * middle:.1f} ms a 256x256 patch at {bpp:.2f} bpp, {patch[0].size / middle / 1e6:.1f} Mpx/s"
        yield Finding(f"speed of {name}", None, what)


def examine(profile: Profile, threads: int | None = None) -> Iterator[Finding]:
    """All findings, one after the other; the first that fails says what is wrong."""
    yield from machine_findings(PACKAGES)
    for check in (_profile, _engine, _prior):
        finding = check(profile)
        yield finding
        if finding.ok is False and check is not _prior:
            return
    yield from _gpu_engines(profile)
    engine = FlightEngine(profile, threads, use_compiled_prior=False)
    yield from _circle(profile, engine)
    yield from _speed(profile, threads)
