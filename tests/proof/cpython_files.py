"""
Files as CPython's own tests know them, made of udstream's streams.

`load` gives those tests (the module ``test.test_io`` of the running Python) with their imitations of raw files,
and their files on disk, replaced by one end of a connection: what a test wants to read is sent from the other
end, each piece so that the kernel hands it on by itself; what it writes arrives there. So the layers of `io`, or
the files of udstream in their place, stand on real sockets.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from types import ModuleType
from typing import Any, ClassVar
from weakref import WeakSet, ref

from cpython_sockets import Facade, copy_of

from udstream import UdStream, ancillary
from udstream._csocket import CSocket


class OtherEnd:
    """The other end of a `Fed`: sends what the test is to read, and keeps what it wrote."""

    def __init__(self, stream: UdStream, pieces: Iterable[bytes | None]) -> None:
        self.stream = stream
        self.pieces = deque(pieces)
        self.got: list[bytes] = []
        self._lock = threading.Lock()
        stream.set_nonblocking(True)
        OTHER_ENDS.append(ref(self))
        self.exchange()

    def exchange(self) -> None:
        """Take all there is, and send the next pieces, up to a None: there a read is to find nothing yet."""
        with self._lock:
            if self.stream.closed:
                return
            try:
                while data := self.stream.read(1 << 16):
                    self.got.append(data)
            except ConnectionResetError:
                pass  # this end was closed with something unread
            except (OSError, ValueError):
                return  # it is garbage, and the collector closes it just now
            try:
                while self.pieces and self.pieces[0] is not None:
                    piece = self.pieces.popleft()
                    if not piece:
                        continue
                    # A descriptor goes with each piece: the kernel ends a read before the next one.
                    sent = ancillary.send_ancillary(self.stream, [piece], [[self.stream]])
                    if sent < len(piece):
                        self.pieces.appendleft(piece[sent:])
                if not self.pieces:
                    self.stream.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                self.pieces.appendleft(piece)  # full: the rest goes when there is room
            except (OSError, ValueError):
                self.pieces.clear()  # the test, or the collector, has closed its end

    def close(self) -> None:
        with self._lock:
            self.stream.close()


# A list, which a thread can copy at any time.
OTHER_ENDS: list[ref[OtherEnd]] = []


def other_ends() -> list[OtherEnd]:
    """Those whose tests still know of them."""
    return [end for reference in OTHER_ENDS[:] if (end := reference()) is not None]


class Fed(UdStream):
    """One end of a connection, in place of ``MockRawIO`` and ``BytesIO``; the test knows what the other end has."""

    made: ClassVar[WeakSet[Fed]] = WeakSet()
    other_end: OtherEnd
    _theirs: UdStream

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        ours, theirs = UdStream.pair()
        self = cls._adopt(CSocket(fileno=ours.detach()))
        self._theirs = theirs
        cls.made.add(self)
        USED.append("stream")
        return self

    def __init__(self, given: bytes | Iterable[bytes | None] = ()) -> None:
        pieces = [given] if isinstance(given, (bytes, bytearray)) else list(given)
        self._reads = self._extraneous_reads = 0
        self.read_history: list[int | None] = []
        if None in pieces:
            self.set_nonblocking(True)
        self.other_end = OtherEnd(self._theirs, pieces)

    @property
    def _write_stack(self) -> list[bytes]:
        self.other_end.exchange()
        return self.other_end.got

    def getvalue(self) -> bytes:
        return b"".join(self._write_stack)

    def _count(self, got: Any) -> Any:
        count = got if got is None or isinstance(got, int) else len(got)
        self._reads += 1
        self._extraneous_reads += count == 0
        self.read_history.append(count)
        pieces = self.other_end.pieces
        if got is None and pieces and pieces[0] is None:
            pieces.popleft()
            self.other_end.exchange()
        return got

    def readinto(self, buffer: Any) -> int | None:
        return self._count(super().readinto(buffer))  # type: ignore[no-any-return]

    def read(self, size: int | None = -1) -> Any:
        return self._count(super().read(size))

    def readall(self) -> bytes | None:  # type: ignore[override]
        return self._count(super().readall())  # type: ignore[no-any-return]

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        finally:
            self.other_end.exchange()


class CloseFailure(Fed):
    def close(self) -> None:
        if not self.closed:
            super().close()
            raise OSError


class SlowFlush(Fed):
    def __init__(self) -> None:
        super().__init__()
        self.in_flush = threading.Event()

    def flush(self) -> None:
        self.in_flush.set()
        threading.Event().wait(0.25)

    def close(self) -> None:
        # As io.IOBase does it.
        if not self.closed:
            self.flush()
        super().close()


class OtherEnds(threading.Thread):
    """Keeps the other ends at work while a test is."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.001):
            for end in other_ends():
                end.exchange()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self.join()
        DISK.clear()
        # Also what a test that failed has left.
        for fed in list(Fed.made):
            UdStream.close(fed)
        for end in other_ends():
            end.close()
        Fed.made.clear()
        OTHER_ENDS.clear()


# What was written to a path, for who opens it to read.
DISK: dict[Any, OtherEnd] = {}

# An item for each stream that the tests have used.
USED: list[str] = []


def open_file(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: None = None,
) -> Any:
    """A connection to what was written to *file*, or that keeps what will be; or over the descriptor *file*."""
    stream: UdStream
    if isinstance(file, int):
        USED.append("descriptor")
        stream = UdStream.from_fd(file)
    elif mode.startswith("r"):
        DISK[file].exchange()
        stream = Fed(b"".join(DISK[file].got))
    else:
        stream = fed = Fed()
        if file in DISK:
            DISK[file].close()  # or it would be told of as unclosed, whenever that is, in the place of a file
        DISK[file] = fed.other_end
    try:
        return stream.makefile(mode, buffering, encoding=encoding, errors=errors, newline=newline)
    except BaseException:
        stream.close()
        raise


def file_io(file: Any, mode: str = "r") -> Any:
    return open_file(file, mode.replace("b", "") + "b", 0)


def buffered(mode: str) -> Any:
    """What makes a binary file of this mode, in place of `io.BufferedReader` or its like."""

    def make(raw: UdStream, buffer_size: int = io.DEFAULT_BUFFER_SIZE) -> Any:
        return raw.makefile(mode, buffer_size)

    return staticmethod(make)


def text(
    buffer: UdStream,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    line_buffering: bool = False,
    write_through: bool = False,
) -> Any:
    return buffer.makefile(
        "rw", 1 if line_buffering else -1, encoding=encoding, errors=errors, newline=newline
    )


def as_it_is(raw: UdStream, buffer_size: int = 0) -> UdStream:
    """The layer that our text files do not need between."""
    return raw


IO = Facade(io, open=open_file, FileIO=file_io)

STREAMS = {
    **{name: getattr(io, name) for name in io.__all__},
    "MockRawIO": Fed,
    "MockRawIOWithoutRead": Fed,
    "MockFileIO": Fed,
    "MockUnseekableIO": Fed,
    "BytesIO": Fed,
    "CloseFailureIO": CloseFailure,
    "SlowFlushRawIO": SlowFlush,
    "open": staticmethod(open_file),
    "FileIO": staticmethod(file_io),
    "io": IO,
    "is_C": True,
}


def pipe() -> tuple[int, int]:
    """Two descriptors, of which the first can read what is written to the second: a connection's."""
    one, other = UdStream.pair()
    return one.detach(), other.detach()


def close_if_open(fd: int) -> None:
    """A stream has closed its descriptor before, where the tests ask for a file that does not."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def load() -> Any:
    """CPython's tests of files, on streams."""
    tests = ModuleType("cpython_test_io")
    spec = importlib.util.find_spec("test.test_io")
    # Since Python 3.15 it is a package.
    parts = ["bufferedio", "general", "signals", "textio"] if spec and spec.submodule_search_locations else []
    for name in [f"test_io.test_{part}" for part in parts] or ["test_io"]:
        module = copy_of(name)
        module.os = Facade(os, pipe=pipe, close=close_if_open)
        module.io = IO
        module.open = open_file
        vars(tests).update({name: value for name, value in vars(module).items() if isinstance(value, type)})
    sys.modules[tests.__name__] = tests
    return tests
