"""Contenders that live in processes of their own, forked from this one and pinned as it is."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from .measure import Measure

# For each round the number of repetitions that it is to have; the time between two of them is the round's.
Rounds = Iterator[int]
Part = Callable[[Rounds], None]
# One end of a connection, and what a process does with it.
Side = Callable[[socket.socket, Rounds], None]

_ORDER = struct.Struct("q")
_REPORT = struct.Struct("d")

# Of glibc's malloc.h: two parameters, and what both are at first.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FIRST_THRESHOLD = 128 * 1024
# What asyncio allocates for each read.
_GAP = 256 * 1024


def _rounds(orders: int, reports: int) -> Rounds:
    while order := os.read(orders, _ORDER.size):
        (n,) = _ORDER.unpack(order)
        start = time.perf_counter()
        yield n
        os.write(reports, _REPORT.pack(time.perf_counter() - start))


class _Process:
    """A forked process that plays a part, round by round."""

    def __init__(self, part: Part) -> None:
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._orders)
                os.close(self._reports)
                gc.disable()
                _as_in_a_fresh_program()
                part(_rounds(orders, reports))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(orders)
        os.close(reports)

    def begin(self, n: int) -> None:
        """Order a round of *n* repetitions."""
        os.write(self._orders, _ORDER.pack(n))

    def end(self) -> float:
        """Wait for its end, and return the seconds it took."""
        report = os.read(self._reports, _REPORT.size)
        if not report:
            raise RuntimeError("a contender's process ended before its round")
        seconds: float = _REPORT.unpack(report)[0]
        return seconds

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.close(self._orders)
        os.close(self._reports)
        if error is not None:
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


@contextmanager
def played(driver: Part, partner: Part | None = None) -> Iterator[Measure]:
    """*driver* in a process of its own, and *partner* in another; what the driver takes is measured."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process(part)) for part in (partner, driver) if part]

        def measure(n: int) -> float:
            for process in processes:
                process.begin(n)
            return [process.end() for process in processes][-1]

        yield measure


@contextmanager
def between(driver: Side, partner: Side, *, in_batches: bool = False) -> Iterator[Measure]:
    """
    The same for two that are connected to each other.

    On one CPU a reader may be woken for each message, or only once the writer has filled the connection; which
    of the two becomes a habit hangs on tiny differences, and the one takes half as long again as the other.
    *in_batches* makes it always the latter.
    """
    here, there = socket.socketpair()
    with here, there:

        def drive(rounds: Rounds) -> None:
            there.close()
            if in_batches:
                _never_preempt()
            driver(here, rounds)

        def accompany(rounds: Rounds) -> None:
            here.close()
            if in_batches:
                _never_preempt()
            partner(there, rounds)

        with played(drive, accompany) as measure:
            here.close()
            there.close()
            yield measure


class _Mallinfo(ctypes.Structure):
    """What glibc's mallinfo returns; hblks is the number of blocks that are mapped, each for itself."""

    _fields_ = (
        ("arena", ctypes.c_int),
        ("ordblks", ctypes.c_int),
        ("smblks", ctypes.c_int),
        ("hblks", ctypes.c_int),
        ("others", ctypes.c_int * 6),
    )


def _as_in_a_fresh_program() -> None:
    """
    Start with as little free memory as a fresh program has, not with what earlier rows have freed.

    Whether a block of 256 KiB, which asyncio allocates for each read, has to be mapped each time hangs on it: on
    gaps in the heap that are large enough (the rows of memory leave some), and on glibc's threshold, which rises
    when a larger block is freed (as for the row of sendfile).
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        return
    library.mallopt(_M_MMAP_THRESHOLD, _FIRST_THRESHOLD)
    library.mallopt(_M_TRIM_THRESHOLD, _FIRST_THRESHOLD)
    library.malloc.restype = ctypes.c_void_p
    library.mallinfo.restype = _Mallinfo
    mapped = library.mallinfo().hblks
    while library.malloc(_GAP) and library.mallinfo().hblks == mapped:
        pass
    library.malloc_trim(0)


def _never_preempt() -> None:
    """Let this process, when it is woken, wait until the other one sleeps."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
