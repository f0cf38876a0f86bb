"""What most tests begin with: plain sockets of Python's, and streams and files that talk to them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meanwhile import PATIENCE

from udstream import UdStream


@contextmanager
def listening(address: str | bytes | Path, backlog: int = 128) -> Iterator[socket.socket]:
    """A plain socket that listens on what the kernel is to be told."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(address))
        listener.listen(backlog)
        listener.settimeout(PATIENCE)
        yield listener


def ends(timeout: Any = None) -> tuple[Any, socket.socket]:
    """A stream, and the other end of its connection as a plain socket that never waits for ever."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    stream = UdStream.from_socket(ours)
    stream.timeout = timeout
    return stream, theirs


@contextmanager
def conversation(
    mode: str, buffering: Any = -1, timeout: Any = None, **text: Any
) -> Iterator[tuple[Any, socket.socket]]:
    """A file over a stream, and the other end of its connection as `ends` makes it."""
    stream, theirs = ends(timeout)
    with theirs, stream.makefile(mode, buffering, **text) as file:
        yield file, theirs


def data_for(mode: str, text: str) -> Any:
    """The text as what a file of this mode reads and writes."""
    return text.encode() if "b" in mode else text


def stream_of(file: Any) -> UdStream:
    """The stream under a file of any kind."""
    stream = file if isinstance(file, UdStream) else file.raw if hasattr(file, "raw") else file.buffer.raw
    assert isinstance(stream, UdStream)
    return stream


def here(theirs: socket.socket) -> bytes:
    """What has arrived by now."""
    theirs.setblocking(False)
    try:
        return theirs.recv(1 << 20)
    except BlockingIOError:
        return b""
    finally:
        theirs.settimeout(PATIENCE)


def everything(theirs: socket.socket) -> bytes:
    """All that arrives up to the end of file."""
    return b"".join(iter(lambda: theirs.recv(1 << 16), b""))


def fill(stream: UdStream) -> int:
    """Write until the kernel takes no more, and return how many bytes it took."""
    was = stream.is_nonblocking()
    stream.set_nonblocking(True)
    total = 0
    while (count := stream.write(bytes(4096))) is not None:
        total += count
    stream.set_nonblocking(was)
    return total
