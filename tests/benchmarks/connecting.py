"""Connecting and accepting."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import udstream
from udstream import UdStream, UdStreamListener

from .measure import Measure, Row, timed
from .processes import Rounds, played

FAMILY = "connecting"
WAITING = 100  # connections in the backlog


@contextmanager
def socket_path() -> Iterator[str]:
    """A path for a socket, short whatever TMPDIR says."""
    with tempfile.TemporaryDirectory(prefix="uds-", dir="/tmp") as folder:
        yield os.path.join(folder, "s")


@contextmanager
def our_listener() -> Iterator[tuple[str, UdStreamListener]]:
    """A path, and our listener at it."""
    with socket_path() as path, UdStreamListener.bind(path, backlog=WAITING) as listener:
        yield path, listener


@contextmanager
def socket_listener() -> Iterator[tuple[str, socket.socket]]:
    """A path, and a listening socket at it."""
    with socket_path() as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(WAITING)
        yield path, listener


@contextmanager
def ours() -> Iterator[Measure]:
    """Connect, accept, close both."""
    with our_listener() as (path, listener):

        def work(n: int) -> None:
            for _ in range(n):
                client = UdStream.connect(path)
                server = listener.accept()
                client.close()
                server.close()

        yield timed(work)


@contextmanager
def by_socket() -> Iterator[Measure]:
    """Connect, accept, close both."""
    with socket_listener() as (path, listener):

        def work(n: int) -> None:
            for _ in range(n):
                client = socket.socket(socket.AF_UNIX)
                client.connect(path)
                server, _ = listener.accept()
                client.close()
                server.close()

        yield timed(work)


def accepting(path: str, accept: Callable[[], UdStream | socket.socket]) -> Measure:
    """Only the accepting is timed."""

    def measure(n: int) -> float:
        took = 0.0
        for _ in range(n):
            with ExitStack() as stack:
                for _ in range(WAITING):
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
                accepted = []
                began = time.perf_counter()
                for _ in range(WAITING):
                    accepted.append(accept())
                took += time.perf_counter() - began
                for server in accepted:
                    server.close()
        return took

    return measure


@contextmanager
def our_accept() -> Iterator[Measure]:
    """`UdStreamListener.accept`."""
    with our_listener() as (path, listener):
        yield accepting(path, listener.accept)


@contextmanager
def socket_accept() -> Iterator[Measure]:
    """`socket.accept`."""
    with socket_listener() as (path, listener):
        yield accepting(path, lambda: listener.accept()[0])


@contextmanager
def our_conversations() -> Iterator[Measure]:
    """Open a text file, a line out and one back, close; a server does the same."""
    with our_listener() as (path, listener):

        def client(rounds: Rounds) -> None:
            for n in rounds:
                for _ in range(n):
                    with udstream.open(path, "rw", encoding="utf-8") as file:
                        file.write("a line\n")
                        file.readline()

        def server(rounds: Rounds) -> None:
            for n in rounds:
                for _ in range(n):
                    with listener.accept().makefile("rw", encoding="utf-8") as file:
                        file.write(file.readline())

        with played(client, server) as measure:
            yield measure


@contextmanager
def makefile_conversations() -> Iterator[Measure]:
    """The same with `socket.makefile`."""
    with socket_listener() as (path, listener):

        def client(rounds: Rounds) -> None:
            for n in rounds:
                for _ in range(n):
                    with socket.socket(socket.AF_UNIX) as sock:
                        sock.connect(path)
                        with sock.makefile("rw", encoding="utf-8") as file:
                            file.write("a line\n")
                            file.flush()
                            file.readline()

        def server(rounds: Rounds) -> None:
            for n in rounds:
                for _ in range(n):
                    with listener.accept()[0] as sock, sock.makefile("rw", encoding="utf-8") as file:
                        file.write(file.readline())

        with played(client, server) as measure:
            yield measure


def rows() -> Iterator[Row]:
    """The rows of this family."""
    yield Row(FAMILY, "connect, accept, close both", "socket", ours, by_socket, 0.97, 1.03)
    yield Row(FAMILY, "accept", "socket", our_accept, socket_accept, 1.1, 1.3, operations=WAITING)
    name = "open, a line out and back, close"
    yield Row(FAMILY, name, "socket and makefile", our_conversations, makefile_conversations, 0.98, 1.1)
