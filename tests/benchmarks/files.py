"""Buffered and text files, next to `socket.makefile`, and to CPython's own over a bare descriptor."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from udstream import UdStream

from . import event_loops
from .measure import Contender, Measure, Row
from .processes import Rounds, between
from .raw import SECONDS, size_name

TRIPS = "files, there and back, two processes"
ONE_WAY = "files, one way, two processes"
READING = "files, reading lines of 64 B"
WRITING = "files, writing lines of 64 B"

LINE = b"x" * 63 + b"\n"
BATCH = 1000  # lines: few enough for the kernel to hold
CHUNK = 8192


class Files(NamedTuple):
    """What to read from and what to write to, which may be one and the same."""

    reader: Any
    writer: Any


# Makes the files of a mode, with a timeout, over a socket that it takes.
Opener = Callable[[socket.socket, str, float | None], Files]


def ours(sock: socket.socket, mode: str, timeout: float | None = None) -> Files:
    """`UdStream.makefile`."""
    stream = UdStream.from_socket(sock)
    stream.timeout = timeout
    file = stream.makefile(mode, encoding=_encoding(mode))
    return Files(file, file)


def makefile(sock: socket.socket, mode: str, timeout: float | None = None) -> Files:
    """`socket.makefile`."""
    with sock:
        sock.settimeout(timeout)
        # typeshed wants the mode spelled out.
        file = sock.makefile(mode, encoding=_encoding(mode))  # type: ignore[call-overload]
    return Files(file, file)


def bare_fd(sock: socket.socket, mode: str, timeout: float | None = None) -> Files:
    """`os.fdopen`, once for each way."""
    fd = sock.detach()
    if "r" not in mode or "w" not in mode:
        file = os.fdopen(fd, mode, encoding=_encoding(mode))
        return Files(file, file)
    reader = os.fdopen(fd, mode.replace("w", ""), encoding=_encoding(mode))
    writer = os.fdopen(os.dup(fd), mode.replace("r", ""), encoding=_encoding(mode))
    return Files(reader, writer)


def _encoding(mode: str) -> str | None:
    return None if "b" in mode else "utf-8"


@contextmanager
def opened(opener: Opener, sock: socket.socket, mode: str, timeout: float | None = None) -> Iterator[Files]:
    """The files, closed at the end."""
    files = opener(sock, mode, timeout)
    with files.reader, files.writer:
        yield files


# --- in one thread ---


def connected_sockets(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A pair that holds more than a batch either way."""
    pair = socket.socketpair()
    for sock in pair:
        stack.enter_context(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return pair


def reading(opener: Opener, mode: str, how: str, timeout: float | None = None) -> Contender:
    """A batch of lines that are already there is read; *how* is ``readline()`` or ``for``."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        with ExitStack() as stack:
            feed, sock = connected_sockets(stack)
            reader, _ = stack.enter_context(opened(opener, sock, mode, timeout))
            lines = LINE * BATCH

            def measure(n: int) -> float:
                took = 0.0
                for _ in range(n):
                    for start in range(0, len(lines), CHUNK):
                        feed.sendall(lines[start : start + CHUNK])
                    began = time.perf_counter()
                    if how == "for":
                        for _ in islice(reader, BATCH):
                            pass
                    else:
                        for _ in range(BATCH):
                            reader.readline()
                    took += time.perf_counter() - began
                return took

            yield measure

    return contender


def writing(opener: Opener, mode: str) -> Contender:
    """A batch of lines is written, and sent at the end."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        with ExitStack() as stack:
            drain, sock = connected_sockets(stack)
            _, writer = stack.enter_context(opened(opener, sock, mode))
            line: Any = LINE if "b" in mode else LINE.decode()

            def measure(n: int) -> float:
                took = 0.0
                for _ in range(n):
                    began = time.perf_counter()
                    for _ in range(BATCH):
                        writer.write(line)
                    writer.flush()
                    took += time.perf_counter() - began
                    left = BATCH * len(line)
                    while left:
                        left -= len(drain.recv(1 << 16))
                return took

            yield measure

    return contender


# --- between two processes ---


def trips(opener: Opener, size: int, flush: bool) -> Contender:
    """Messages there and back over a binary file; *flush* says whether reading needs it first."""

    def driver(sock: socket.socket, rounds: Rounds) -> None:
        data = bytes(size)
        with opened(opener, sock, "rwb") as (reader, writer):
            for n in rounds:
                for _ in range(n):
                    writer.write(data)
                    if flush:
                        writer.flush()
                    reader.read(size)

    def partner(sock: socket.socket, rounds: Rounds) -> None:
        with opened(opener, sock, "rwb") as (reader, writer):
            for n in rounds:
                for _ in range(n):
                    writer.write(reader.read(size))
                    writer.flush()

    return partial(between, driver, partner)


def line_trips(opener: Opener, flush: bool) -> Contender:
    """Lines of text there and back; *flush* says whether reading needs it first."""

    def driver(sock: socket.socket, rounds: Rounds) -> None:
        line = LINE.decode()
        with opened(opener, sock, "rw") as (reader, writer):
            for n in rounds:
                for _ in range(n):
                    writer.write(line)
                    if flush:
                        writer.flush()
                    reader.readline()

    def partner(sock: socket.socket, rounds: Rounds) -> None:
        with opened(opener, sock, "rw") as (reader, writer):
            for n in rounds:
                for _ in range(n):
                    writer.write(reader.readline())
                    if flush:
                        writer.flush()
                writer.flush()

    return partial(between, driver, partner)


def one_way(opener: Opener, size: int) -> Contender:
    """From a ``wb`` file to an ``rb`` file."""

    def driver(sock: socket.socket, rounds: Rounds) -> None:
        with opened(opener, sock, "rb") as (reader, _):
            for n in rounds:
                for _ in range(n):
                    reader.read(size)

    def partner(sock: socket.socket, rounds: Rounds) -> None:
        data = bytes(size)
        with opened(opener, sock, "wb") as (_, writer):
            for n in rounds:
                for _ in range(n):
                    writer.write(data)
                writer.flush()

    return partial(between, driver, partner, in_batches=True)


# --- rows ---


def rows_between() -> Iterator[Row]:
    """The rows that take two processes."""
    for size in (64, 4096):
        name = f"rwb, {size_name(size)}"
        mine = trips(ours, size, flush=False)
        yield Row(TRIPS, name, "makefile", mine, trips(makefile, size, flush=True), 1.05, 1.2)
        yield Row(TRIPS, name, "bare fd", mine, trips(bare_fd, size, flush=True), None, 0.75)
    name = "rw, a line of 64 B, no flush()"
    mine = line_trips(ours, flush=False)
    yield Row(TRIPS, name, "makefile with flush()", mine, line_trips(makefile, flush=True), 1.1, 1.3)
    yield Row(TRIPS, name, "asyncio", mine, event_loops.asyncio_lines(len(LINE)), 4, 5)
    yield Row(TRIPS, name, "bare fd with flush()", mine, line_trips(bare_fd, flush=True), None, 0.85)
    for size, floor, goal in ((64, 1.15, 1.3), (4096, 1.15, 1.25), (65536, 1.03, 1.1)):
        name = f"wb to rb, {size_name(size)} at a time"
        yield Row(ONE_WAY, name, "makefile", one_way(ours, size), one_way(makefile, size), floor, goal)
        yield Row(ONE_WAY, name, "bare fd", one_way(ours, size), one_way(bare_fd, size), None, 0.75)


def rows_in_one_thread() -> Iterator[Row]:
    """The rows of lines read and written."""
    for mode, floor, goal in (("rb", 1.25, 1.45), ("rwb", 7, 10), ("r", 1.35, 1.6), ("rw", 1.5, 1.75)):
        bare_goal = 0.75 if "b" in mode else 0.85
        for how in ("readline()", "for"):
            name = f"{mode}, {how}"
            mine = reading(ours, mode, how)
            theirs = reading(makefile, mode, how)
            yield Row(READING, name, "makefile", mine, theirs, floor, goal, operations=BATCH)
            theirs = reading(bare_fd, mode, how)
            yield Row(READING, name, "bare fd", mine, theirs, None, bare_goal, operations=BATCH)
    name = "rb, readline(), with a timeout"
    mine = reading(ours, "rb", "readline()", SECONDS)
    theirs = reading(makefile, "rb", "readline()", SECONDS)
    yield Row(READING, name, "makefile with a timeout", mine, theirs, 1.3, 1.45, operations=BATCH)
    for mode, floor, goal in (("wb", 1.15, 1.3), ("rwb", 1.15, 1.9), ("w", 1.35, 1.65), ("rw", 2.5, 3.3)):
        bare_goal = 0.75 if "b" in mode else 0.85
        mine = writing(ours, mode)
        yield Row(WRITING, mode, "makefile", mine, writing(makefile, mode), floor, goal, operations=BATCH)
        yield Row(WRITING, mode, "bare fd", mine, writing(bare_fd, mode), None, bare_goal, operations=BATCH)


def rows() -> Iterator[Row]:
    """The rows of these families."""
    yield from rows_between()
    yield from rows_in_one_thread()
