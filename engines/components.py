"""The engine of component profiles, on board and on the ground: the compiled prior, or numpy where there is no compiler."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.compiled import NativePrior, library
from perigee.bitstream.component_prior import ComponentPriorEngine
from perigee.bitstream.component_profile import ComponentProfile


class ComponentEngine:
    """A component profile with a prior that passed its self-test."""

    def __init__(self, profile: ComponentProfile) -> None:
        """Raises ProfileError where the prior does not give the profile's known answers."""
        self.profile = profile
        contract = profile.contract
        self.name = "numpy" if library is None else "compiled"
        self.prior: ComponentPriorEngine = (
            contract.reference(np.float64) if library is None else NativePrior(contract.widths, contract.layers)
        )
        profile.self_test(self.prior)
