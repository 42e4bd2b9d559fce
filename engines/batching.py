"""Runs of one graph that several threads ask for at the same time are gathered into batches, which is what a GPU is fast at.

A batch always has the same size: what is missing is filled with zeros, since the algorithm that a library chooses may depend on the size, and an
image must not depend on its neighbours. Where a device runs out of memory the size is halved, for good.
"""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from perigee.bitstream.arrays import Array
from perigee.bitstream.errors import DeviceMemoryError
from perigee.engines.graph import Graph

DELAY_S = 0.002  # how long a run waits for others
WAITING = 64  # runs that may wait; whoever asks for more waits before that
log = logging.getLogger("perigee.engines")
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class _Run(NamedTuple):
    feeds: dict[str, Array]
    future: Future[list[Array]]

    @property
    def shapes(self) -> Shapes:
        return tuple(sorted((name, array.shape) for name, array in self.feeds.items()))


class Batched:
    """A graph of which each caller gives one image: the first axis of all inputs and outputs has length 1."""

    def __init__(self, graph: Graph, size: int, delay_s: float = DELAY_S) -> None:
        """``size`` is that of a batch."""
        self._graph, self.size, self._delay_s = graph, size, delay_s
        self._queue: queue.Queue[_Run] = queue.Queue(WAITING)
        self._later: list[_Run] = []  # of other shapes than the batch that is being gathered
        threading.Thread(target=self._work, daemon=True, name="perigee-batches").start()

    def __call__(self, feeds: dict[str, Array], /) -> list[Array]:
        """The outputs for one image. Raises EngineError."""
        run = _Run(feeds, Future())
        self._queue.put(run)
        return run.future.result()

    def _work(self) -> None:
        while True:
            runs = self._gathered()
            while runs:
                now, runs = runs[: self.size], runs[self.size :]
                try:
                    outputs = self._outputs(now)
                except DeviceMemoryError as error:
                    if self.size == 1:
                        self._fail(now, error)
                        continue
                    self.size //= 2
                    log.warning("the device is out of memory: batches have %d images from now on", self.size)
                    runs = now + runs
                    continue
                except Exception as error:  # whoever asked is told
                    self._fail(now, error)
                    continue
                for number, run in enumerate(now):
                    run.future.set_result([out[number : number + 1] for out in outputs])

    def _gathered(self) -> list[_Run]:
        """Runs of one shape, as many as come in time and fit a batch."""
        first = self._later.pop(0) if self._later else self._queue.get()
        runs: list[_Run] = [first]
        others: list[_Run] = []
        for run in self._later:
            (runs if run.shapes == first.shapes and len(runs) < self.size else others).append(run)
        self._later = others
        while len(runs) < self.size:
            try:
                run = self._queue.get(timeout=self._delay_s)
            except queue.Empty:
                break
            (runs if run.shapes == first.shapes else self._later).append(run)
        return runs

    def _outputs(self, runs: list[_Run]) -> list[Array]:
        feeds = {}
        for name, array in runs[0].feeds.items():
            batch = np.zeros((self.size, *array.shape[1:]), array.dtype)
            for number, run in enumerate(runs):
                batch[number] = run.feeds[name][0]
            feeds[name] = batch
        return self._graph(feeds)

    @staticmethod
    def _fail(runs: list[_Run], error: Exception) -> None:
        for run in runs:
            run.future.set_exception(error)
