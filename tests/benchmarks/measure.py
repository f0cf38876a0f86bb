"""The measuring core: two contenders do the same work in short rounds, taking turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

# Does the work as often as it is told to, and returns what that cost: seconds, or bytes of memory.
Measure = Callable[[int], float]
# Sets everything up, and tears it down at the end.
Contender = Callable[[], AbstractContextManager[Measure]]

_FEWEST_ROUNDS = 5


class Unavailable(Exception):
    """A contender cannot run on this machine; the message says why."""


class Row(NamedTuple):
    """One comparison; *floor* is what the ratio must not fall under, *goal* what it is hoped to reach."""

    family: str
    name: str
    peer: str
    ours: Contender
    theirs: Contender
    floor: float | None = None
    goal: float | None = None
    operations: int = 1  # done by one repetition
    repetitions: int | None = None  # in one round; else as many as fill it
    unit: str = "s"

    @property
    def title(self) -> str:
        """What ``--rows`` is matched with."""
        return f"{self.family}: {self.name}, {self.peer}"


class Effort(NamedTuple):
    """How much time to spend."""

    rounds: int
    round_seconds: float
    row_seconds: float


class Result(NamedTuple):
    """What came of a row: a cost for each operation, and theirs over ours with its quartiles."""

    row: Row
    ours: float
    theirs: float
    low: float
    ratio: float
    high: float

    @property
    def below_floor(self) -> bool:
        """Whether we are slower than we may be."""
        return self.row.floor is not None and self.ratio < self.row.floor


def timed(work: Callable[[int], None]) -> Measure:
    """The measure of *work* that can be timed as a whole."""

    def measure(n: int) -> float:
        start = time.perf_counter()
        work(n)
        return time.perf_counter() - start

    return measure


def compare(row: Row, effort: Effort) -> Result:
    """
    Measure a row; `Unavailable` if one of its contenders is.

    Each pair of rounds, one of ours and one of theirs, gives one ratio, so whatever slows the machine down
    for longer than a round slows both. Who goes first alternates.
    """
    with row.ours() as ours, row.theirs() as theirs, _no_collecting():
        n_ours = row.repetitions or _fill(ours, effort.round_seconds)
        n_theirs = row.repetitions or _fill(theirs, effort.round_seconds)
        costs_ours: list[float] = []
        costs_theirs: list[float] = []
        deadline = time.monotonic() + effort.row_seconds
        for number in range(effort.rounds):
            if number >= _FEWEST_ROUNDS and time.monotonic() > deadline:
                break
            if number % 2:
                costs_theirs.append(theirs(n_theirs) / n_theirs)
                costs_ours.append(ours(n_ours) / n_ours)
            else:
                costs_ours.append(ours(n_ours) / n_ours)
                costs_theirs.append(theirs(n_theirs) / n_theirs)
    ratios = [t / o for o, t in zip(costs_ours, costs_theirs, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Result(
        row,
        statistics.median(costs_ours) / row.operations,
        statistics.median(costs_theirs) / row.operations,
        low,
        ratio,
        high,
    )


def _fill(measure: Measure, seconds: float) -> int:
    """How many repetitions fill a round; finding out warms everything up."""
    n = 1
    while (took := measure(n)) < 0.7 * seconds:
        n = max(2 * n, min(10 * n, int(n * seconds / max(took, 1e-9))))
    return n


@contextmanager
def _no_collecting() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
