"""A component profile: the contract of spectral components, the hyper-analysis that flies, and what the ground needs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.component_contract import ComponentContract, load_component_contract
from perigee.bitstream.component_prior import ComponentPriorEngine, Sight
from perigee.bitstream.contract import load_arrays
from perigee.bitstream.errors import Fault, ProfileError
from perigee.bitstream.manifest import COMPONENTS, MANIFEST_FILE, Manifest, read_manifest
from perigee.bitstream.prior import PASSES_PER_SLICE
from perigee.bitstream.profile import CONTRACT_FILE, SELF_TEST_FILE, shipped_profiles

ANALYSIS_FILE, SYNTHESIS_FILE = "analysis.npz", "synthesis.onnx"
DEFAULT_COMPONENTS = "spectral1"


@dataclass(frozen=True)
class ComponentProfile:
    """A loaded component profile. Files beside the contract are hashed when they are asked for."""

    manifest: Manifest
    contract: ComponentContract

    @property
    def name(self) -> str:
        """The profile's name, as in the manifest."""
        return self.manifest.name

    @property
    def folder(self) -> Path:
        """The folder that it was loaded from."""
        return self.manifest.folder

    def file(self, name: str) -> Path:
        """Path of a file whose SHA-256 equals the manifest's. Raises ProfileError otherwise."""
        return self.manifest.file(name)

    def analysis(self) -> dict[str, FloatArray]:
        """The weights of the hyper-analysis. Raises ProfileError."""
        return load_arrays(self.file(ANALYSIS_FILE))

    def self_test(self, prior: ComponentPriorEngine) -> None:
        """Run the profile's known answers through an engine's prior. Raises ProfileError at the first difference."""
        vectors = load_arrays(self.file(SELF_TEST_FILE))
        for i, wanted in enumerate(vectors["answers"]):
            case = {name: vectors[name][i] for name in ("q", "z", "views", "quality_step", "component")}
            found = component_answer(self.contract, prior, **case)
            if not np.array_equal(found, wanted):
                passes = np.flatnonzero((found != wanted).any(1)).tolist()
                raise ProfileError(
                    f"self-test {i} of profile {self.name} fails in pass {passes}",
                    Fault.SELF_TEST,
                    field=f"self-test {i}",
                    expected="the profile's known answers",
                    found=f"other answers in passes {passes}",
                )


def component_answer(
    contract: ComponentContract,
    prior: ComponentPriorEngine,
    q: IntArray,
    z: IntArray,
    views: IntArray,
    quality_step: int,
    component: int,
) -> IntArray:
    """Fingerprint of a component's predictions, uint32 [passes, 2]: CRC-32 of the table numbers and of the means.

    ``q`` [latents, H, W], ``z`` [hyper_latents, h, w], ``views`` [2, latents, H, W].
    """
    step_at = int(quality_step)
    sight = Sight(contract.shifts[step_at], contract.base[step_at].astype(np.int16), views.astype(np.uint8))
    step = prior.start_component(z[None].astype(np.int32), step_at, int(component), sight)
    predictions = [step(k, q[None].astype(np.int32)) for k in range(PASSES_PER_SLICE * len(contract.widths.slices))]
    parts = [
        [zlib.crc32(np.ascontiguousarray(part, "<i4").tobytes()) for part in (p.table, p.mean)] for p in predictions
    ]
    return np.array(parts, np.uint32)


def load_component_profile(folder: Path) -> ComponentProfile:
    """Load the component profile in ``folder``. Raises ProfileError."""
    manifest = read_manifest(folder, COMPONENTS)
    contract = load_component_contract(folder / CONTRACT_FILE)
    if contract.digest != manifest.contracts[0]:
        wanted = manifest.contracts[0].hex()
        raise ProfileError(
            f"{folder}: the contract's digest is {contract.digest.hex()}, the manifest says {wanted}",
            Fault.DIGEST,
            field="contract",
            expected=wanted,
            found=contract.digest.hex(),
        )
    return ComponentProfile(manifest, contract)


def find_component_profile(name_or_folder: str) -> ComponentProfile:
    """A shipped component profile by name, or any by its folder. Raises ProfileError that names what there is."""
    known = shipped_profiles(COMPONENTS)
    folder = known.get(name_or_folder, Path(name_or_folder))
    if not (folder / MANIFEST_FILE).is_file():
        raise ProfileError(
            f"no component profile {name_or_folder!r}: neither a folder with a manifest nor one of {', '.join(known) or 'none'}",
            Fault.NAME,
            field="profile",
            expected=", ".join(known),
            found=name_or_folder,
        )
    return load_component_profile(folder)
