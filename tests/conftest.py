"""Shared fixtures: the shipped profile, its engines, small images, and the real data where they are present."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.onboard.encoder import Encoder

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "benchmarks" / "sample"
SHARED = Path(os.environ.get("PERIGEE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def profile() -> Profile:
    return find_profile(DEFAULT_PROFILE)


@pytest.fixture(scope="session")
def two_analyses() -> Profile:
    """A shipped profile with two non-linear analyses."""
    return find_profile("flight")


@pytest.fixture(scope="session")
def flight(profile: Profile) -> FlightEngine:
    return FlightEngine(profile, threads=2)


@pytest.fixture(scope="session")
def ground(profile: Profile) -> GroundEngine:
    return GroundEngine(profile, threads=2)


@pytest.fixture(scope="session")
def encoder(profile: Profile, flight: FlightEngine) -> Encoder:
    return Encoder(profile, flight)


@pytest.fixture(scope="session")
def serve():
    """Starts a real server on loopback; returns it and its address."""
    import uvicorn

    from perigee.ground.service.app import create_app

    def start(settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_level="error"))
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.02)
        return server, f"http://127.0.0.1:{port}"

    return start


@pytest.fixture(scope="session")
def ground_serve():
    """``ground-serve`` as a process of its own with some options, as a context that gives its address."""

    @contextlib.contextmanager
    def running(*options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "perigee.ground.service", "--port", str(port), *map(str, options)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            for _ in range(300):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)

    return running


@pytest.fixture(scope="session")
def tiles() -> list[Path]:
    """Real 256x256 tiles that come with the project."""
    return sorted(SAMPLE.glob("*.tif"))


def _shared(what: str, *parts: str) -> Path:
    """A folder of data that the project does not hold; skips where it is absent."""
    folder = SHARED.joinpath("data", *parts)
    if not folder.is_dir():
        pytest.skip(f"{what} are not at {folder}; set PERIGEE_SHARED")
    return folder


@pytest.fixture(scope="session")
def multiband() -> Path:
    """Folder of real scenes and tiles of 1 to 13 bands."""
    return _shared("the multi-band scenes", "multiband")


@pytest.fixture(scope="session")
def geotiffs() -> Path:
    """Folder of real GeoTIFFs of many kinds."""
    return _shared("the GeoTIFFs", "geotiff")


@pytest.fixture(scope="session")
def jpeg2000_files() -> Path:
    """Folder of real JPEG 2000 files."""
    return _shared("the JPEG 2000 files", "jp2")


@pytest.fixture(scope="session")
def scenes() -> Path:
    """Folder of larger real scenes."""
    return _shared("the scenes", "eval", "scenes")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture(scope="session")
def guided_profiles(tmp_path_factory) -> Path:
    """A folder with the compensators cosmic and guided, whose guide adds at random where a map has objects."""
    torch = pytest.importorskip("torch")
    from perigee.export.map_guide import export_map_guide
    from perigee.ground.compensation.compensator import shipped_folders
    from perigee.models.compensation.map_guide import MapGuide

    folder = tmp_path_factory.mktemp("guided") / "profiles"
    shutil.copytree(shipped_folders()["cosmic"], folder / "cosmic")
    torch.manual_seed(4)
    guide = MapGuide()
    torch.nn.init.normal_(guide.leave.weight, std=0.03)
    state = {"kind": "map guide", "mean": guide.state_dict(), "step": 1, "seconds": 2.0}
    export_map_guide(state, folder / "cosmic", folder / "guided", "guided")
    return folder
