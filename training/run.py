"""What all training runs share: the loop, a clock, the learning rate, averaged weights, a log, and checkpoints.

A run lives in a folder. It is driven by a time budget instead of a number of training steps: the clock sums the time of all
parts of a run that was interrupted and resumed, and the learning rate follows it. A checkpoint holds everything that is
needed to go on, so a run can be stopped at any moment.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from perigee.support.files import replacing

CHECKPOINT_FILE = "checkpoint.pt"
COMMANDS_FILE = "commands.log"
WARM_UP_STEPS = 100
DECAY_MAX = 0.999  # of the averaged weights
ADAM_BETAS = (0.9, 0.99)
GRADIENT_NORM_MAX = 1.0
T = TypeVar("T")
Figures = Mapping[str, float]  # of the log, by the names of its columns


class Clock:
    """Counts the seconds that a run has trained, without the time that logging and saving take."""

    def __init__(self, minutes: float, checkpoint_minutes: float, seconds: float = 0.0) -> None:
        """``minutes`` is the budget, ``checkpoint_minutes`` the time between checkpoints, ``seconds`` what earlier parts took."""
        self.budget_s, self.checkpoint_s, self.seconds = 60 * minutes, 60 * checkpoint_minutes, seconds
        self.restart()

    def restart(self) -> None:
        """Start counting from now, and wait a whole interval for the next checkpoint."""
        self._last = self._saved = time.monotonic()

    def tick(self) -> bool:
        """Count the time since the last call and return whether a checkpoint is due."""
        now = time.monotonic()
        self.seconds += now - self._last
        self._last = now
        return self.spent or now - self._saved > self.checkpoint_s

    @property
    def spent(self) -> bool:
        """Whether the budget is spent."""
        return self.seconds >= self.budget_s

    @property
    def progress(self) -> float:
        """The share of the budget that is spent; above 1 once the budget is exceeded."""
        return self.seconds / self.budget_s

    @property
    def minutes(self) -> float:
        """The minutes trained so far."""
        return self.seconds / 60


def half_precision(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than float32 on a device: on GPUs, and on CPUs with AVX-512.

    Other CPUs emulate bfloat16, which is ten times slower.
    """
    return device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()


def warm_up(training_step: int) -> float:
    """Return the factor of the learning rate that rises to 1 over the first :data:`WARM_UP_STEPS` training steps."""
    return min(1.0, (training_step + 1) / WARM_UP_STEPS)


def cosine_fall(progress: float, floor: float) -> float:
    """Return the factor of the learning rate that falls from 1 to ``floor`` as ``progress`` goes from 0 to 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def descend(loss: Tensor, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Take one optimiser step on a scalar loss, with the norm of the gradient limited to 1.

    The step is left out where the gradient is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_MAX)):
        optimiser.step()


@torch.no_grad()
def follow(mean: Iterable[Tensor], weights: Iterable[Tensor], training_step: int) -> None:
    """Move averaged weights in place towards the present ones: an exponential moving average, faster in the beginning."""
    decay = min(DECAY_MAX, (training_step + 1) / (training_step + 10))
    torch._foreach_lerp_(list(mean), list(weights), 1 - decay)


def ahead(make: Callable[[], T]) -> Generator[T]:
    """Yield what ``make`` returns, again and again; a thread makes the next one while the last one is used. Close it at the end."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make)
        while True:
            ready = following.result()
            following = pool.submit(make)
            yield ready


def train(
    clock: Clock,
    training_step: Callable[[], Figures],
    checkpoint: Callable[[dict[str, float]], None],
    show: bool = False,
) -> None:
    """Take training steps until the time budget is spent; nothing is done where it is spent already.

    Whenever a checkpoint is due, ``checkpoint`` is called with the means of the steps' figures since the last one, in which NaN does not
    count, and the time that it takes does not count either. ``show`` draws a progress bar on stderr.
    """
    from tqdm import tqdm

    figures: list[Figures] = []
    clock.restart()
    with tqdm(
        total=round(clock.budget_s / 60, 1), initial=round(clock.minutes, 1), unit="min", disable=not show
    ) as bar:
        while not clock.spent:
            figures.append(training_step())
            if clock.tick():
                checkpoint(_means(figures))
                figures.clear()
                bar.n = round(clock.minutes, 1)
                bar.refresh()
                clock.restart()


def _means(figures: Sequence[Figures]) -> dict[str, float]:
    """Return the mean of each column without NaN, and NaN where nothing else is there."""
    known = {name: [row[name] for row in figures if not math.isnan(row[name])] for name in figures[0]}
    return {name: sum(values) / len(values) if values else math.nan for name, values in known.items()}


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a run's checkpoint atomically: a crash while writing leaves the previous one in place."""
    with replacing(folder / CHECKPOINT_FILE) as part:
        torch.save(dict(state), part)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV log, below a header of the row's names where the file is new; the cell of a NaN is empty."""
    fresh = not path.exists()
    row = {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        if fresh:
            writer.writerow(row)
        writer.writerow(row.values())


def record_command(folder: Path, program: str, arguments: Sequence[str]) -> None:
    """Append a command line to the list of commands that a run was trained with."""
    with (folder / COMMANDS_FILE).open("a", encoding="utf-8") as handle:
        handle.write(" ".join([program, *arguments]) + "\n")
