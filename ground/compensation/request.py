"""What is asked of a compensator."""

from __future__ import annotations

from dataclasses import dataclass

from perigee.bitstream.errors import CompensationError, Fault

STEPS_MAX = 100
SEED_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class Compensation:
    """What is asked of a compensator; None takes its default. ``strength`` 0..1 scales its own strength at each rate.

    ``steps`` are diffusion steps. Raises CompensationError for values outside their range.
    """

    method: str | None = None
    steps: int | None = None
    seed: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, STEPS_MAX), ("strength", 0, 1), ("seed", 0, SEED_MAX)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise CompensationError(
                    f"{name} {value}: accepted are {low} to {high}",
                    Fault.RANGE,
                    field=name,
                    expected=f"{low} to {high}",
                    found=value,
                )
