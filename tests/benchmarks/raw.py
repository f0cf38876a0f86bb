"""The raw stream in one thread: no waiting, no switching, only what a call costs."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from udstream import UdStream

from .c_loops import Loops
from .measure import Contender, Measure, Row, timed

FAMILY = "raw, one thread"
SECONDS = 60.0  # a timeout that nothing here comes near


def size_name(size: int) -> str:
    """A number of bytes as one says it."""
    if size >= 1 << 20:
        return f"{size >> 20} MiB"
    return f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B"


def ours(size: int, timeout: float | None = None) -> Contender:
    """`UdStream.write` and `UdStream.readinto`."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        data, buffer = bytes(size), bytearray(size)
        one, other = UdStream.pair()
        with one, other:
            one.timeout = other.timeout = timeout

            def work(n: int) -> None:
                for _ in range(n):
                    one.write(data)
                    other.readinto(buffer)

            yield timed(work)

    return contender


def by_socket(size: int, timeout: float | None = None) -> Contender:
    """`socket.send` and `socket.recv_into`."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        data, buffer = bytes(size), bytearray(size)
        one, other = socket.socketpair()
        with one, other:
            one.settimeout(timeout)
            other.settimeout(timeout)

            def work(n: int) -> None:
                for _ in range(n):
                    one.send(data)
                    other.recv_into(buffer)

            yield timed(work)

    return contender


def by_makefile(size: int) -> Contender:
    """An unbuffered `socket.makefile`."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        data, buffer = bytes(size), bytearray(size)
        one, other = socket.socketpair()
        with one, other, one.makefile("wb", buffering=0) as out, other.makefile("rb", buffering=0) as into:

            def work(n: int) -> None:
                for _ in range(n):
                    out.write(data)
                    into.readinto(buffer)

            yield timed(work)

    return contender


def by_bare_fd(size: int) -> Contender:
    """`io.FileIO` on a socket's descriptor: ``read`` and ``write``, without what makes a socket safe."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        data, buffer = bytes(size), bytearray(size)
        one, other = socket.socketpair()
        with io.FileIO(one.detach(), "wb") as out, io.FileIO(other.detach(), "rb") as into:

            def work(n: int) -> None:
                for _ in range(n):
                    out.write(data)
                    into.readinto(buffer)

            yield timed(work)

    return contender


def by_c(size: int) -> Contender:
    """``send`` and ``recv`` in C."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        loops = Loops()
        one, other = socket.socketpair()
        with one, other:
            yield timed(lambda n: loops.write_and_read(one.fileno(), other.fileno(), size, n))

    return contender


def vectors(count: int, size: int) -> tuple[list[bytes], list[bytearray]]:
    """What to gather from and what to scatter to."""
    return [bytes(size) for _ in range(count)], [bytearray(size) for _ in range(count)]


@contextmanager
def our_vectors() -> Iterator[Measure]:
    """`UdStream.writev` and `UdStream.readv`."""
    data, buffers = vectors(8, 8192)
    one, other = UdStream.pair()
    with one, other:

        def work(n: int) -> None:
            for _ in range(n):
                one.writev(data)
                other.readv(buffers)

        yield timed(work)


@contextmanager
def socket_vectors() -> Iterator[Measure]:
    """`socket.sendmsg` and `socket.recvmsg_into`."""
    data, buffers = vectors(8, 8192)
    one, other = socket.socketpair()
    with one, other:

        def work(n: int) -> None:
            for _ in range(n):
                one.sendmsg(data)
                other.recvmsg_into(buffers)

        yield timed(work)


def rows() -> Iterator[Row]:
    """The rows of this family."""
    for size in (1, 64, 4096, 65536):
        name = f"write and readinto, {size_name(size)}"
        yield Row(FAMILY, name, "socket", ours(size), by_socket(size), 0.95, 1.03)
        if size == 64:
            yield Row(FAMILY, name, "unbuffered makefile", ours(size), by_makefile(size), 1.25, 1.4)
        yield Row(FAMILY, name, "bare fd", ours(size), by_bare_fd(size))
        yield Row(FAMILY, name, "C", ours(size), by_c(size), 0.8, 0.9)
    name = "writev and readv, 8 × 8 KiB"
    yield Row(FAMILY, name, "sendmsg, recvmsg_into", our_vectors, socket_vectors, 1.0, 1.05)
    name = "write and readinto, 64 B, with a timeout"
    timed_ours = ours(64, SECONDS)
    yield Row(FAMILY, name, "socket with a timeout", timed_ours, by_socket(64, SECONDS), 1.4, 1.55)
    yield Row(FAMILY, name, "ourselves without one", timed_ours, ours(64), 0.88, 0.95)
