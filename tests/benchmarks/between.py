"""Messages between two processes, there and back and one way, with whatever can carry them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

from udstream import UdStream

from . import event_loops
from .c_loops import Loops
from .measure import Contender, Measure, Row
from .processes import Rounds, Side, between
from .raw import SECONDS, size_name

THERE_AND_BACK = "there and back, two processes"
ONE_WAY = "one way, two processes"


def contender(driver: Side, partner: Side) -> Contender:
    """Two sides, in two processes."""
    return partial(between, driver, partner)


# --- udstream ---


def our_trips(size: int, timeout: float | None, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data, buffer = bytes(size), bytearray(size)
    with UdStream.from_socket(sock) as stream:
        stream.timeout = timeout
        for n in rounds:
            for _ in range(n):
                stream.write(data)
                stream.readinto(buffer)


def our_echo(size: int, timeout: float | None, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    buffer = bytearray(size)
    with UdStream.from_socket(sock) as stream:
        stream.timeout = timeout
        for n in rounds:
            for _ in range(n):
                stream.readinto(buffer)
                stream.write(buffer)


def our_sender(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that sends."""
    data = bytes(size)
    with UdStream.from_socket(sock) as stream:
        for n in rounds:
            for _ in range(n):
                stream.write(data)


def our_receiver(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that receives."""
    buffer = bytearray(size)
    with UdStream.from_socket(sock) as stream:
        for n in rounds:
            left = n * size
            while left:
                count = stream.readinto(buffer)
                if not count:
                    raise EOFError
                left -= count


def our_round_trips(size: int, timeout: float | None = None) -> Contender:
    """There and back with `UdStream`."""
    return contender(partial(our_trips, size, timeout), partial(our_echo, size, timeout))


# --- socket ---


def socket_trips(size: int, timeout: float | None, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data, buffer = bytes(size), bytearray(size)
    sock.settimeout(timeout)
    for n in rounds:
        for _ in range(n):
            sock.send(data)
            sock.recv_into(buffer)


def socket_echo(size: int, timeout: float | None, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    buffer = bytearray(size)
    sock.settimeout(timeout)
    for n in rounds:
        for _ in range(n):
            sock.recv_into(buffer)
            sock.send(buffer)


def socket_sender(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that sends."""
    data = bytes(size)
    for n in rounds:
        for _ in range(n):
            sock.send(data)


def socket_receiver(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that receives."""
    buffer = bytearray(size)
    for n in rounds:
        left = n * size
        while left:
            count = sock.recv_into(buffer)
            if not count:
                raise EOFError
            left -= count


def socket_round_trips(size: int, timeout: float | None = None) -> Contender:
    """There and back with `socket`."""
    return contender(partial(socket_trips, size, timeout), partial(socket_echo, size, timeout))


# --- multiprocessing ---


def multiprocessing_trips(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data = bytes(size)
    with Connection(sock.detach()) as connection:
        for n in rounds:
            for _ in range(n):
                connection.send_bytes(data)
                connection.recv_bytes()


def multiprocessing_echo(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    with Connection(sock.detach()) as connection:
        for n in rounds:
            for _ in range(n):
                connection.send_bytes(connection.recv_bytes())


def multiprocessing_sender(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that sends."""
    data = bytes(size)
    with Connection(sock.detach()) as connection:
        for n in rounds:
            for _ in range(n):
                connection.send_bytes(data)


def multiprocessing_receiver(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that receives."""
    with Connection(sock.detach()) as connection:
        for n in rounds:
            for _ in range(n):
                connection.recv_bytes()


# --- C ---


def c_contender(driver: str, partner: str, size: int) -> Contender:
    """Two functions of loops.c."""

    @contextmanager
    def connected() -> Iterator[Measure]:
        loops = Loops()

        def side(name: str, sock: socket.socket, rounds: Rounds) -> None:
            for n in rounds:
                getattr(loops, name)(sock.fileno(), size, n)

        with between(partial(side, driver), partial(side, partner)) as measure:
            yield measure

    return connected


# --- rows ---


def there_and_back(size: int) -> Iterator[Row]:
    """The rows of messages of one size that are answered."""
    name = f"raw, {size_name(size)}"
    ours = our_round_trips(size)
    yield Row(THERE_AND_BACK, name, "socket", ours, socket_round_trips(size), 0.98, 1.02)
    theirs = contender(partial(multiprocessing_trips, size), partial(multiprocessing_echo, size))
    yield Row(THERE_AND_BACK, name, "multiprocessing", ours, theirs, 1.7, 1.8)
    yield Row(THERE_AND_BACK, name, "asyncio", ours, event_loops.asyncio_round_trips(size), 5, 6)
    yield Row(THERE_AND_BACK, name, "anyio", ours, event_loops.anyio_round_trips(size))
    yield Row(THERE_AND_BACK, name, "trio", ours, event_loops.trio_round_trips(size), 4.5, 5)
    yield Row(THERE_AND_BACK, name, "C", ours, c_contender("trips", "echo", size), 0.87, 0.92)


def one_way(size: int) -> Iterator[Row]:
    """The rows of messages of one size that are not answered."""
    name = f"raw, {size_name(size)} at a time"
    ours = contender(partial(our_receiver, size), partial(our_sender, size))
    theirs = contender(partial(socket_receiver, size), partial(socket_sender, size))
    yield Row(ONE_WAY, name, "socket", ours, theirs, 0.95, 1.0)
    if size != 65536:
        return
    theirs = contender(partial(multiprocessing_receiver, size), partial(multiprocessing_sender, size))
    yield Row(ONE_WAY, name, "multiprocessing", ours, theirs, 1.6, 1.7)
    yield Row(ONE_WAY, name, "asyncio", ours, event_loops.asyncio_one_way(size), 9, 10)
    yield Row(ONE_WAY, name, "anyio", ours, event_loops.anyio_one_way(size))
    yield Row(ONE_WAY, name, "trio", ours, event_loops.trio_one_way(size))
    theirs = c_contender("receive_messages", "send_messages", size)
    yield Row(ONE_WAY, name, "C", ours, theirs, 0.88, 0.95)


def rows() -> Iterator[Row]:
    """The rows of these families."""
    for size in (64, 4096):
        yield from there_and_back(size)
    name = "raw, 64 B, with a timeout"
    ours, theirs = our_round_trips(64, SECONDS), socket_round_trips(64, SECONDS)
    yield Row(THERE_AND_BACK, name, "socket with a timeout", ours, theirs, 1.0, 1.1)
    for size in (4096, 65536, 1 << 20):
        yield from one_way(size)
