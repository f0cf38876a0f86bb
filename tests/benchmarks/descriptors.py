"""Descriptors and credentials, sent and received in one thread."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from udstream import UdStream, ancillary

from .measure import Measure, Row, Unavailable, timed

FAMILY = "descriptors and credentials"
DATA = bytes(64)


@contextmanager
def passing(make_pass: Callable[[ExitStack, list[int]], Callable[[], None]], count: int) -> Iterator[Measure]:
    """*count* descriptors are sent, received and closed by what *make_pass* makes."""
    with ExitStack() as stack:
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        for fd in fds:
            stack.callback(os.close, fd)
        pass_once = make_pass(stack, fds)

        def work(n: int) -> None:
            for _ in range(n):
                pass_once()

        yield timed(work)


def by_stream(stack: ExitStack, fds: list[int]) -> Callable[[], None]:
    """`UdStream.send_fds` and `UdStream.recv_fds`."""
    one, other = UdStream.pair()
    stack.enter_context(one)
    stack.enter_context(other)

    def pass_once() -> None:
        one.send_fds(b"x", fds)
        _, received = other.recv_fds(1, len(fds))
        received.close()

    return pass_once


def by_socket(stack: ExitStack, fds: list[int]) -> Callable[[], None]:
    """`socket.send_fds` and `socket.recv_fds`."""
    one, other = socket.socketpair()
    stack.enter_context(one)
    stack.enter_context(other)

    def pass_once() -> None:
        socket.send_fds(one, [b"x"], fds)
        _, received, _, _ = socket.recv_fds(other, 1, len(fds))
        for fd in received:
            os.close(fd)

    return pass_once


def by_our_number(stack: ExitStack, fds: list[int]) -> Callable[[], None]:
    """`ancillary.send_fds` and `ancillary.recv_fds`, which take an fd's number."""
    pair = socket.socketpair()
    one, other = (stack.enter_context(sock).fileno() for sock in pair)

    def pass_once() -> None:
        ancillary.send_fds(one, b"x", fds)
        _, received = ancillary.recv_fds(other, 1, len(fds))
        received.close()

    return pass_once


def by_socket_number(stack: ExitStack, fds: list[int]) -> Callable[[], None]:
    """The functions of `socket`, which need a socket object round the number."""
    pair = socket.socketpair()
    one, other = (stack.enter_context(sock).fileno() for sock in pair)

    def pass_once() -> None:
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, one)
        socket.send_fds(sender, [b"x"], fds)
        sender.detach()
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, other)
        _, received, _, _ = socket.recv_fds(receiver, 1, len(fds))
        receiver.detach()
        for fd in received:
            os.close(fd)

    return pass_once


@contextmanager
def our_credentials() -> Iterator[Measure]:
    """`UdStream.recv_ancillary`."""
    one, other = UdStream.pair()
    with one, other:
        ancillary.set_passcred(other, True)
        buffer = bytearray(len(DATA))

        def work(n: int) -> None:
            for _ in range(n):
                one.write(DATA)
                other.recv_ancillary(buffer).credentials  # noqa: B018, to read it is the work

        yield timed(work)


@contextmanager
def credentials_by_hand() -> Iterator[Measure]:
    """`socket.recvmsg_into`, and `struct` to decode what it brings."""
    if not hasattr(socket, "SCM_CREDENTIALS"):
        raise Unavailable("no SCM_CREDENTIALS")
    ucred = struct.Struct("=iII")
    room = socket.CMSG_SPACE(ucred.size)
    one, other = socket.socketpair()
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        buffer = bytearray(len(DATA))

        def work(n: int) -> None:
            for _ in range(n):
                one.send(DATA)
                _, messages, _, _ = other.recvmsg_into([buffer], room)
                for level, kind, data in messages:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                        ucred.unpack(data)

        yield timed(work)


@contextmanager
def reads(collecting: bool) -> Iterator[Measure]:
    """Reads of 8 KiB, with `UdStream.collect_ancillary` on or off."""
    data, buffer = bytes(8192), bytearray(8192)
    one, other = UdStream.pair()
    with one, other:
        other.collect_ancillary = collecting

        def work(n: int) -> None:
            for _ in range(n):
                one.write(data)
                other.readinto(buffer)

        yield timed(work)


def rows() -> Iterator[Row]:
    """The rows of this family."""
    for count, floor, goal in ((1, 0.96, 1.0), (100, 1.4, 1.6)):
        name = f"{count} fd{'s' if count > 1 else ''}"
        ours, theirs = partial(passing, by_stream, count), partial(passing, by_socket, count)
        yield Row(FAMILY, name, "socket.send_fds, recv_fds", ours, theirs, floor, goal)
    ours, theirs = partial(passing, by_our_number, 1), partial(passing, by_socket_number, 1)
    yield Row(
        FAMILY, "1 fd, by the number of a socket's fd", "socket.send_fds, recv_fds", ours, theirs, 1.1, 1.2
    )
    name = "64 B and credentials"
    yield Row(FAMILY, name, "recvmsg_into, struct", our_credentials, credentials_by_hand, 0.84, 0.9)
    name = "collect_ancillary on, 8 KiB"
    yield Row(FAMILY, name, "off", partial(reads, True), partial(reads, False), 0.95, 1.0)
