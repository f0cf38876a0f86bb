"""What an object takes, and what the import costs."""

from __future__ import annotations

import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import udstream
from udstream import UdStream

from .measure import Measure, Row

MEMORY = "memory, by tracemalloc"
IMPORT = "import"
PAIRS = 400  # two descriptors each: within the limit that most systems set

_TIMED_IMPORT = """
import sys
sys.path.append(sys.argv[1])
from time import perf_counter
start = perf_counter()
import {module}
print(perf_counter() - start)
"""


@contextmanager
def allocated(make_pair: Callable[[], tuple[Any, Any]]) -> Iterator[Measure]:
    """The bytes that Python allocates for pairs of open objects."""

    def measure(n: int) -> float:
        pairs: list[tuple[Any, Any] | None] = [None] * n
        tracemalloc.start()
        for number in range(n):
            pairs[number] = make_pair()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for pair in pairs:
            for thing in pair or ():
                thing.close()
        return float(size)

    measure(1)
    yield measure


def our_files() -> tuple[Any, Any]:
    """Two ``rwb`` files."""
    one, other = UdStream.pair()
    return one.makefile("rwb"), other.makefile("rwb")


def makefiles() -> tuple[Any, Any]:
    """Two ``rwb`` files over sockets that nothing else needs."""
    one, other = socket.socketpair()
    with one, other:
        return one.makefile("rwb"), other.makefile("rwb")


@contextmanager
def importing(module: str) -> Iterator[Measure]:
    """The import in a fresh interpreter that has nothing but its core."""
    folder = str(Path(udstream.__file__).parent.parent)
    program = _TIMED_IMPORT.format(module=module)

    def measure(n: int) -> float:
        command = [sys.executable, "-I", "-S", "-c", program, folder]
        return sum(float(subprocess.check_output(command)) for _ in range(n))

    measure(1)
    yield measure


def memory(name: str, peer: str, ours: Any, theirs: Any, floor: float, goal: float) -> Row:
    """A row of bytes for each of a pair's two objects."""
    return Row(
        MEMORY, name, peer, partial(allocated, ours), partial(allocated, theirs), floor, goal, 2, PAIRS, "B"
    )


def rows() -> Iterator[Row]:
    """The rows of these families."""
    yield memory("an open stream", "socket", UdStream.pair, socket.socketpair, 0.7, 1.0)
    yield memory("an open rwb file", "makefile", our_files, makefiles, 1.5, 1.75)
    ours, theirs = partial(importing, "udstream"), partial(importing, "socket")
    yield Row(IMPORT, "import udstream", "import socket", ours, theirs, 0.9, 2.5, repetitions=1)
