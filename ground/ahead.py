"""Patches that are decoded before they are needed: threads decode those of the next window while this one is synthesised and written.

The entropy coder and the prior are compiled and let go of the interpreter's lock, so the threads do work side by side. Results do not
depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
A = TypeVar("A")


class Ahead(Generic[T]):
    """Results by number. They are computed when they are asked for, or before that by threads."""

    def __init__(self, compute: Callable[[int], T]) -> None:
        self._compute = compute
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[T]] = {}

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Have so many threads while the block runs; what they have not begun by then is dropped."""
        with ThreadPoolExecutor(count, "ahead") as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None
                for future in self._begun.values():
                    future.cancel()
                self._begun.clear()

    def begin(self, numbers: Iterable[int]) -> None:
        """Let the threads compute results, in this order. Without threads nothing happens, nor for a single one beside which there is nothing else
        to do: whoever asks for it computes it sooner than a thread that has to wake up."""
        wanted = [number for number in numbers if number not in self._begun]
        if self._pool is None or len(wanted) == 1 and not self._begun:
            return
        for number in wanted:
            self._begun[number] = self._pool.submit(self._compute, number)

    def get(self, number: int) -> T:
        """A result, once only: whoever wants it again keeps it. Raises what its computation raised."""
        begun = self._begun.pop(number, None)
        return self._compute(number) if begun is None else begun.result()


def in_order(compute: Callable[[A], T], items: Iterable[A], count: int) -> Iterator[T]:
    """The results for items in their order, of which ``count`` are computed at a time: by threads, or one by one where that is 1."""
    if count == 1:
        yield from map(compute, items)
        return
    with ThreadPoolExecutor(count, "together") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(compute, item))
                if len(pending) == count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
