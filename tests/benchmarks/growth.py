"""Many connections: what one more costs, and what they leave behind."""

from __future__ import annotations

import gc
import os
import resource
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from udstream import UdStream

from .connecting import our_listener, socket_listener
from .measure import Measure, Row, Unavailable
from .processes import Rounds, played

FAMILY = "one selector loop"
DATA = bytes(64)


def more_descriptors(count: int) -> None:
    """Let this process open *count* descriptors, and some to spare; `Unavailable` if it may not."""
    count += 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Unavailable(f"the limit of open files is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@contextmanager
def looping(part: Callable[[int, Rounds], None], connections: int) -> Iterator[Measure]:
    """A process of its own, so that each contender has all the descriptors that one process may have."""
    more_descriptors(2 * connections)
    with played(partial(part, connections)) as measure:
        yield measure


def in_turn(clients: list[Any]) -> Iterator[Any]:
    """One client after the other, for ever."""
    while True:
        yield from clients


def ours(connections: int, rounds: Rounds) -> None:
    """Echoes to clients that speak in turn, over `UdStream`."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = []
        for _ in range(connections):
            client, server = UdStream.pair()
            clients.append(stack.enter_context(client))
            stack.enter_context(server).set_nonblocking(True)
            selector.register(server, selectors.EVENT_READ, server)
        turns = in_turn(clients)
        buffer, answer = bytearray(len(DATA)), bytearray(len(DATA))
        for n in rounds:
            for _ in range(n):
                client = next(turns)
                client.write(DATA)
                for key, _ in selector.select():
                    key.data.readinto(buffer)
                    key.data.write(buffer)
                client.readinto(answer)


def by_socket(connections: int, rounds: Rounds) -> None:
    """The same over `socket`."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = []
        for _ in range(connections):
            client, server = socket.socketpair()
            clients.append(stack.enter_context(client))
            stack.enter_context(server).setblocking(False)
            selector.register(server, selectors.EVENT_READ, server)
        turns = in_turn(clients)
        buffer, answer = bytearray(len(DATA)), bytearray(len(DATA))
        for n in rounds:
            for _ in range(n):
                client = next(turns)
                client.send(DATA)
                for key, _ in selector.select():
                    key.data.recv_into(buffer)
                    key.data.send(buffer)
                client.recv_into(answer)


def rows() -> Iterator[Row]:
    """The rows of this family."""
    for connections in (10, 100, 1000, 5000):
        name = f"an echo among {connections:,} connections"
        mine, theirs = partial(looping, ours, connections), partial(looping, by_socket, connections)
        yield Row(FAMILY, name, "socket", mine, theirs, None, 1.0)


def left_behind(count: int) -> str:
    """What *count* connections leave in this process once they are closed, ours and those of `socket`."""
    with our_listener() as (path, listener):

        def connect() -> None:
            with UdStream.connect(path), listener.accept():
                pass

        mine = _growth(connect, count)
    with socket_listener() as (path, server):

        def connect_socket() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                server.accept()[0].close()

        theirs = _growth(connect_socket, count)
    return f"{count:,} connects and closes leave {mine} behind (`socket`: {theirs})."


def _growth(connect: Callable[[], None], count: int) -> str:
    for _ in range(count // 10):
        connect()
    gc.collect()
    fds, pages = _usage()
    for _ in range(count):
        connect()
    gc.collect()
    more_fds, more_pages = _usage()
    kib = (more_pages - pages) * resource.getpagesize() // 1024
    return f"{more_fds - fds} descriptors and {kib} KiB of resident memory"


def _usage() -> tuple[int, int]:
    """How many descriptors are open, and how many pages are resident."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return len(os.listdir("/proc/self/fd")), int(file.read().split()[1])
