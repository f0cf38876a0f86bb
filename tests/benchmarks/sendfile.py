"""A file sent to another process, which only reads it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import IO, BinaryIO

from udstream import UdStream

from .measure import Contender, Measure, Row
from .processes import Rounds, between
from .raw import size_name

FAMILY = "sendfile"
SIZE = 256 << 20


@cache
def file_to_send() -> IO[bytes]:
    """One for all, since how fast the kernel reads a file hangs on where in memory it lies."""
    # It goes with the program.
    file = tempfile.NamedTemporaryFile()
    block = os.urandom(1 << 20)
    for _ in range(SIZE // len(block)):
        file.write(block)
    file.flush()
    return file


def sending(sender: Callable[[BinaryIO, socket.socket, Rounds], None]) -> Contender:
    """A sender, and a process that reads the file and then says so."""

    def receiver(sock: socket.socket, rounds: Rounds) -> None:
        buffer = bytearray(1 << 20)
        for n in rounds:
            for _ in range(n):
                left = SIZE
                while left:
                    count = sock.recv_into(buffer)
                    if not count:
                        raise EOFError
                    left -= count
                sock.send(b".")

    @contextmanager
    def contender() -> Iterator[Measure]:
        with (
            open(file_to_send().name, "rb") as file,
            between(partial(sender, file), receiver) as measure,
        ):
            yield measure

    return contender


def ours(file: BinaryIO, sock: socket.socket, rounds: Rounds) -> None:
    """`UdStream.sendfile`."""
    with UdStream.from_socket(sock) as stream:
        for n in rounds:
            for _ in range(n):
                stream.sendfile(file)
                stream.read(1)


def by_socket(file: BinaryIO, sock: socket.socket, rounds: Rounds) -> None:
    """`socket.sendfile`."""
    for n in rounds:
        for _ in range(n):
            sock.sendfile(file)
            sock.recv(1)


def by_copyfileobj(file: BinaryIO, sock: socket.socket, rounds: Rounds) -> None:
    """`shutil.copyfileobj` to a file object over the socket."""
    with sock.makefile("wb") as out:
        for n in rounds:
            for _ in range(n):
                file.seek(0)
                shutil.copyfileobj(file, out)
                out.flush()
                sock.recv(1)


def rows() -> Iterator[Row]:
    """The rows of this family."""
    name = f"a file of {size_name(SIZE)}"
    yield Row(FAMILY, name, "socket.sendfile", sending(ours), sending(by_socket), 0.95, 1.0)
    yield Row(FAMILY, name, "shutil.copyfileobj", sending(ours), sending(by_copyfileobj), 1.7, 1.85)
