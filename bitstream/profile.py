"""A profile: a trained codec in its flight form, a folder with a manifest, a contract and the graphs of its networks.

The contract is what a stream depends on. Everything else (analysis, reconstruction, synthesis) has hashes of its own in the
manifest and may be replaced without breaking a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from perigee.bitstream.contract import Contract, load_contract, self_test
from perigee.bitstream.errors import Fault, ProfileError
from perigee.bitstream.manifest import MANIFEST_FILE, PROFILE, Manifest, kind_of, read_manifest
from perigee.bitstream.prior import PriorEngine

CONTRACT_FILE = "contract.npz"
SELF_TEST_FILE = "selftest.npz"
CONSISTENCY_FILE = "consistency.onnx"
DEFAULT_PROFILE, DEFAULT_ANALYSIS = "flight3", "swift"


@dataclass(frozen=True)
class Profile:
    """A loaded profile. Files beside the contract are hashed when they are asked for."""

    manifest: Manifest
    contract: Contract

    @property
    def name(self) -> str:
        """The profile's name, as in the manifest."""
        return self.manifest.name

    @property
    def folder(self) -> Path:
        """The folder that it was loaded from."""
        return self.manifest.folder

    @property
    def analyses(self) -> dict[str, str]:
        """Graph files of the analyses that are installed, by name. Streams of all of them decode alike.

        A superseded profile may have none: it decodes streams and encodes nothing.
        """
        details = self.manifest.details
        named = details.get("analyses") or {str(details.get("preset")): "analysis.onnx"}
        return {name: file for name, file in named.items() if self.manifest.has(file)}

    @property
    def default_analysis(self) -> str:
        """Name of the analysis that flies unless another is asked for, or of the one that made the profile's streams."""
        known = self.analyses
        if DEFAULT_ANALYSIS in known or not known:
            return DEFAULT_ANALYSIS if known else str(self.manifest.details.get("preset", DEFAULT_ANALYSIS))
        return next(iter(known))

    def is_linear(self, analysis: str) -> bool:
        """Whether an analysis is the linear transform of ``consistency.onnx`` and nothing else."""
        return analysis in self.manifest.details.get("linear", [])

    def analysis(self, name: str | None = None) -> tuple[str, Path]:
        """Name and checked graph file of one analysis; None takes ``swift``, or the first. Raises ProfileError."""
        known = self.analyses
        if not known:
            raise ProfileError(
                f"profile {self.name} has no analysis installed: it decodes streams and encodes nothing",
                Fault.MISSING,
                field="analysis",
            )
        chosen = name or self.default_analysis
        if chosen not in known:
            raise ProfileError(
                f"profile {self.name} has no analysis {chosen!r}; it has {', '.join(known)}",
                Fault.NAME,
                field="analysis",
                expected=", ".join(known),
                found=chosen,
            )
        return chosen, self.file(known[chosen])

    def file(self, name: str) -> Path:
        """Path of a file whose SHA-256 equals the manifest's. Raises ProfileError otherwise."""
        return self.manifest.file(name)

    def self_test(self, prior: PriorEngine) -> None:
        """Run the profile's known answers through an engine's prior. Raises ProfileError at the first difference."""
        self_test(prior, self.file(SELF_TEST_FILE), self.name)


def load_profile(folder: Path) -> Profile:
    """Load the profile in ``folder`` (manifest and contract; other files when used). Raises ProfileError."""
    manifest = read_manifest(folder, PROFILE)
    contract = load_contract(folder / CONTRACT_FILE)
    if contract.digest != manifest.contracts[0]:
        wanted = manifest.contracts[0].hex()
        raise ProfileError(
            f"{folder}: the contract's digest is {contract.digest.hex()}, the manifest says {wanted}",
            Fault.DIGEST,
            field="contract",
            expected=wanted,
            found=contract.digest.hex(),
        )
    return Profile(manifest, contract)


def shipped_folder() -> Path:
    """Where the profiles that come with Perigee lie."""
    return Path(str(resources.files("perigee.profiles")))


def shipped_profiles(kind: str = PROFILE) -> dict[str, Path]:
    """Names and folders of the profiles of a kind that come with Perigee."""
    folders = [path.parent for path in sorted(shipped_folder().glob(f"*/{MANIFEST_FILE}"))]
    return {folder.name: folder for folder in folders if kind_of(folder) == kind}


def find_profile(name_or_folder: str) -> Profile:
    """A shipped profile by name, or any by its folder. Raises ProfileError that names what there is."""
    known = shipped_profiles()
    folder = known.get(name_or_folder, Path(name_or_folder))
    if not (folder / MANIFEST_FILE).is_file():
        raise ProfileError(
            f"no profile {name_or_folder!r}: neither a folder with a manifest nor one of {', '.join(known) or 'none'}",
            Fault.NAME,
            field="profile",
            expected=", ".join(known),
            found=name_or_folder,
        )
    return load_profile(folder)
