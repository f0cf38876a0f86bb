"""
What a promise takes at the least: code that keeps that promise and does nothing else, next to the same peers.

None of it is udstream's. It says how much of a difference is the price of a promise, which no skill saves.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from typing import Any

from . import event_loops
from .between import c_contender, contender, socket_round_trips
from .descriptors import by_socket, credentials_by_hand, passing
from .measure import Contender, Measure, Row, timed
from .processes import Rounds
from .raw import SECONDS, by_bare_fd, by_c
from .raw import by_socket as raw_by_socket

FAMILY = "the least that a promise takes"
# Plain numbers, since what `socket` has are members of an enumeration, which are slow to combine.
NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))
NOW = int(socket.MSG_DONTWAIT)
# As much as the kernel can deliver at once.
ROOM = repeat(socket.CMSG_SPACE(253 * 4) + socket.CMSG_SPACE(12))
CLOSE_ON_EXEC = repeat(int(getattr(socket, "MSG_CMSG_CLOEXEC", 0)))


class Methods:
    """Methods of a class in Python, which never raise SIGPIPE, and say None where they would have to wait."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def write(self, data: Any) -> int | None:
        """One call."""
        try:
            return self._sock.send(data, NO_SIGNAL)
        except BlockingIOError:
            return None

    def readinto(self, buffer: Any) -> int | None:
        """One call."""
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            return None


class TimedMethods:
    """The same with a timeout, in a conversation: a poll before each read; the mode is nobody else's affair."""

    __slots__ = ("_poll", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        self._poll = poller.poll

    def write(self, data: Any) -> int:
        """One call, if there is room."""
        return self._sock.send(data, NO_SIGNAL | NOW)

    def readinto(self, buffer: Any) -> int:
        """Two calls."""
        if not self._poll(60_000):
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        return self._sock.recv_into(buffer, 0, NOW)


def raw(size: int) -> Contender:
    """`Methods`, in one thread."""

    @contextmanager
    def made() -> Iterator[Measure]:
        data, buffer = bytes(size), bytearray(size)
        pair = socket.socketpair()
        with pair[0], pair[1]:
            one, other = map(Methods, pair)

            def work(n: int) -> None:
                for _ in range(n):
                    one.write(data)
                    other.readinto(buffer)

            yield timed(work)

    return made


def timed_trips(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data, buffer = bytes(size), bytearray(size)
    stream = TimedMethods(sock)
    for n in rounds:
        for _ in range(n):
            stream.write(data)
            stream.readinto(buffer)


def timed_echo(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    buffer = bytearray(size)
    stream = TimedMethods(sock)
    for n in rounds:
        for _ in range(n):
            stream.readinto(buffer)
            stream.write(buffer)


@contextmanager
def credentials() -> Iterator[Measure]:
    """What came is in a list, where it can be found and closed, before a signal's handler can raise."""
    ucred = struct.Struct("=iII")
    data, buffer = bytes(64), bytearray(64)
    one, other = socket.socketpair()
    with one, other:
        if hasattr(socket, "SO_PASSCRED"):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

        def work(n: int) -> None:
            for _ in range(n):
                one.send(data)
                landed: list[Any] = []
                landed += map(other.recvmsg_into, ([buffer],), ROOM, CLOSE_ON_EXEC)
                for level, kind, body in landed[0][1]:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                        ucred.unpack(body)

        yield timed(work)


@contextmanager
def collecting(collect: bool) -> Iterator[Measure]:
    """The same with each read, whatever it brings; or a plain read."""
    data, buffer = bytes(8192), bytearray(8192)
    one, other = socket.socketpair()
    with one, other:

        def plain(n: int) -> None:
            for _ in range(n):
                one.send(data)
                other.recv_into(buffer)

        def work(n: int) -> None:
            for _ in range(n):
                one.send(data)
                landed: list[Any] = []
                landed += map(other.recvmsg_into, ([buffer],), ROOM, CLOSE_ON_EXEC)

        yield timed(work if collect else plain)


class Owner:
    """Owns descriptors: closes them once, whatever a signal's handler raises, and says so if nobody did."""

    __slots__ = ("fds",)

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def close(self) -> None:
        """Each is closed and forgotten in one step."""
        self.fds[:] = filter(os.close, self.fds)

    def __del__(self) -> None:
        if self.fds:
            warnings.warn(f"unclosed {self.fds}", ResourceWarning, 2, self)
            self.close()


def owning(stack: ExitStack, fds: list[int]) -> Callable[[], None]:
    """Descriptors that land in a list, and then have an `Owner`."""
    one, other = socket.socketpair()
    stack.enter_context(one)
    stack.enter_context(other)
    number = struct.Struct("@i")

    def pass_once() -> None:
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, number.pack(fds[0]))])
        landed: list[Any] = []
        landed += map(other.recvmsg, (1,), ROOM, CLOSE_ON_EXEC)
        ((_, _, body),) = landed[0][1]
        Owner([*number.unpack(body)]).close()

    return pass_once


def rows() -> Iterator[Row]:
    """The rows of this family."""
    yield Row(FAMILY, "raw, 64 B: a method in Python round each call", "socket", raw(64), raw_by_socket(64))
    yield Row(FAMILY, "raw, 64 B: io.FileIO", "C", by_bare_fd(64), by_c(64))
    ours = contender(partial(timed_trips, 64), partial(timed_echo, 64))
    name = "there and back, 64 B: a method, and a poll before the read"
    yield Row(FAMILY, name, "socket with a timeout", ours, socket_round_trips(64, SECONDS))
    ours = c_contender("receive_messages", "send_messages", 65536)
    yield Row(FAMILY, "one way, 64 KiB at a time: C", "asyncio", ours, event_loops.asyncio_one_way(65536))
    name = "1 fd: received into a list, and an owner"
    yield Row(
        FAMILY, name, "socket.send_fds, recv_fds", partial(passing, owning, 1), partial(passing, by_socket, 1)
    )
    name = "64 B and credentials: received into a list"
    yield Row(FAMILY, name, "recvmsg_into, struct", credentials, credentials_by_hand)
    name = "8 KiB: received into a list, with recvmsg_into"
    yield Row(FAMILY, name, "recv_into", partial(collecting, True), partial(collecting, False))
