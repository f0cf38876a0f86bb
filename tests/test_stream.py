"""UdStream, call by call: what each returns, what it raises, how far it says it came, and what it leaves alone."""

from __future__ import annotations

import array
import copy
import ctypes
import errno
import gzip
import importlib
import io
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytest
from connections import fill
from meanwhile import PATIENCE, blocked_in, in_thread, on_alarm
from real import environment, python

import udstream
from udstream import Shutdown, UdStream

# More than the kernel holds between the two ends of a connection.
TOO_MUCH = 1 << 20


class Interrupt(TimeoutError, ConnectionError):
    """What a signal handler raises."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """A signal handler raises Interrupt in that time."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    with on_alarm(handler, seconds):
        yield


# --- reading and writing: one system call each ---

READERS: dict[str, Callable[[UdStream, int], bytes | None]] = {}


def reader(function: Callable[[UdStream, int], bytes | None]) -> Callable[[UdStream, int], bytes | None]:
    READERS[function.__name__] = function
    return function


@reader
def read(stream: UdStream, size: int) -> bytes | None:
    return stream.read(size)


@reader
def readinto(stream: UdStream, size: int) -> bytes | None:
    buffer = bytearray(size)
    count = stream.readinto(buffer)
    return None if count is None else bytes(buffer[:count])


@reader
def readv(stream: UdStream, size: int) -> bytes | None:
    buffers = [bytearray(1), bytearray(0), bytearray(size - 1)] if size else [bytearray(0)]
    count = stream.readv(buffers)
    return None if count is None else b"".join(buffers)[:count]


WRITERS: dict[str, Callable[[UdStream, bytes], int | None]] = {
    "write": lambda stream, data: stream.write(data),
    "writev": lambda stream, data: stream.writev([b"", data[:1], data[1:]]),
}

each_reader = pytest.mark.parametrize("receive", READERS.values(), ids=READERS)
each_writer = pytest.mark.parametrize("send", WRITERS.values(), ids=WRITERS)
each_timeout = pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])


@each_timeout
@each_reader
def test_read_is_short_rather_than_waiting(
    pair: tuple[UdStream, UdStream],
    receive: Callable[[UdStream, int], bytes | None],
    timeout: float | None,
) -> None:
    """A read returns what there is, up to the size, without waiting for more; empty is the end of file."""
    here, there = pair
    here.timeout = timeout
    there.write(b"abcdef")

    assert receive(here, 4) == b"abcd"
    assert receive(here, 4) == b"ef"

    there.write(b"last")
    there.close()

    assert receive(here, 100) == b"last"
    assert receive(here, 100) == b""
    assert receive(here, 100) == b""


@each_timeout
@each_reader
def test_read_of_a_nonblocking_stream(
    pair: tuple[UdStream, UdStream],
    receive: Callable[[UdStream, int], bytes | None],
    timeout: float | None,
) -> None:
    """A nonblocking read returns None where it would have to wait, and empty at the end of file."""
    here, there = pair
    here.set_nonblocking(True)
    here.timeout = timeout

    assert receive(here, 4) is None

    there.write(b"ab")
    there.close()

    assert receive(here, 4) == b"ab"
    assert receive(here, 4) == b""


@each_timeout
@each_reader
def test_read_of_nothing_never_waits(
    pair: tuple[UdStream, UdStream],
    receive: Callable[[UdStream, int], bytes | None],
    timeout: float | None,
) -> None:
    """A read that asks for no bytes returns at once, with nothing, and takes nothing."""
    here, there = pair
    here.timeout = timeout
    with interrupted_after(0.5):
        assert receive(here, 0) == b""

    there.write(b"x")

    assert receive(here, 0) == b""
    assert receive(here, 1) == b"x"


def test_readv_into_no_buffers_never_waits(pair: tuple[UdStream, UdStream]) -> None:
    """Readv into an empty list is a read of nothing: 0 at once, blocking or not."""
    with interrupted_after(0.5):
        assert pair[0].readv([]) == 0
    pair[0].set_nonblocking(True)

    assert pair[0].readv([]) == 0
    assert pair[0].readv([bytearray()] * 2000) == 0


@each_timeout
@each_writer
def test_write_returns_what_was_sent(
    pair: tuple[UdStream, UdStream],
    send: Callable[[UdStream, bytes], int | None],
    timeout: float | None,
) -> None:
    """A write returns the number of bytes sent, 0 for nothing."""
    here, there = pair
    here.timeout = timeout

    assert send(here, b"abc") == 3
    assert send(here, b"") == 0
    assert there.read(10) == b"abc"


@each_timeout
@each_writer
def test_write_to_a_nonblocking_stream(
    pair: tuple[UdStream, UdStream],
    send: Callable[[UdStream, bytes], int | None],
    timeout: float | None,
) -> None:
    """A nonblocking write is short when not all of it fits, and None when nothing does."""
    here, there = pair
    here.set_nonblocking(True)
    here.timeout = timeout
    count = send(here, bytes(TOO_MUCH))

    assert count is not None
    assert 0 < count < TOO_MUCH
    while send(here, bytes(TOO_MUCH)) is not None:
        pass
    assert send(here, b"xy") is None

    # Not a byte more arrives than was said to be sent.
    there.set_nonblocking(True)
    there.readall()
    assert there.read(1) is None


def test_read_without_a_size_reads_all(pair: tuple[UdStream, UdStream]) -> None:
    """read(), read(-1) and read(None) are readall()."""
    here, there = pair
    there.close()
    for size in ((), (-1,), (None,), (-5,)):
        one, other = UdStream.pair()
        with one, other:
            other.write_all(bytes(100_000))
            other.shutdown(Shutdown.WRITE)
            assert one.read(*size) == bytes(100_000)
    assert here.read() == b""


def test_read_of_a_huge_size_makes_room_for_what_comes(pair: tuple[UdStream, UdStream]) -> None:
    """Read takes any size, also one that no memory holds."""
    pair[1].write(b"x")

    assert pair[0].read(1 << 62) == b"x"


def test_read_takes_an_index(pair: tuple[UdStream, UdStream]) -> None:
    """read(n) takes what has an __index__, as every raw file of io does."""

    class Two:
        def __index__(self) -> int:
            return 2

    pair[1].write(b"abc")

    assert pair[0].read(Two()) == b"ab"  # type: ignore[arg-type]


def test_readinto_takes_every_writable_buffer(pair: tuple[UdStream, UdStream]) -> None:
    """Buffers of other items than bytes are filled by their bytes."""
    here, there = pair
    numbers = array.array("i", [0, 0])
    there.write(array.array("i", [7, -1]))

    assert here.readinto(numbers) == 2 * numbers.itemsize
    assert [7, -1] == list(numbers)

    there.write(b"abcdef")
    square = memoryview(bytearray(4)).cast("B", (2, 2))

    assert here.readinto(square) == 4
    assert square.tobytes() == b"abcd"
    assert here.readinto_exact(memoryview(bytearray(9))[4:6]) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.readinto(b"readonly"),
        lambda s: s.readinto("text"),
        lambda s: s.readinto(None),
        lambda s: s.readinto(memoryview(bytearray(4))[::2]),
        lambda s: s.readv([b"readonly"]),
        lambda s: s.readv(b"bytes"),
        lambda s: s.readv(5),
        lambda s: s.readinto_exact(b"readonly"),
        lambda s: s.readinto_exact("text"),
        lambda s: s.read("1"),
        lambda s: s.read(1.0),
        lambda s: s.read_exact("1"),
        lambda s: s.read_exact(1.0),
        lambda s: s.read_exact(None),
        lambda s: s.write("text"),
        lambda s: s.write(None),
        lambda s: s.write(5),
        lambda s: s.write(memoryview(b"abcd")[::2]),
        lambda s: s.writev(["text"]),
        lambda s: s.writev("text"),
        lambda s: s.writev(b"bytes"),
        lambda s: s.writev(5),
        lambda s: s.write_all("text"),
        lambda s: s.write_all(5),
        lambda s: s.write_all(memoryview(b"abcd")[::2]),
        lambda s: s.writev_all([b"x", "text"]),
        lambda s: s.writev_all(b"bytes"),
        lambda s: s.sendfile(io.StringIO("text")),
        lambda s: s.sendfile(io.BytesIO(b"x"), "1"),
        lambda s: s.sendfile(io.BytesIO(b"x"), 0, "1"),
        lambda s: s.sendfile(io.BytesIO(b"x"), 0, 1.0),
        lambda s: s.sendfile(io.BytesIO(b"x"), 0, True),
        lambda s: s.sendfile(io.BytesIO(b"x"), 1.5),
    ],
)
def test_wrong_arguments(pair: tuple[UdStream, UdStream], call: Callable[[Any], object]) -> None:
    """What is no buffer, or a buffer that cannot be used, is a TypeError (or BufferError); nothing is moved."""
    here, there = pair
    there.write(b"here it is")
    for timeout in (None, PATIENCE):
        here.timeout = timeout
        with pytest.raises((TypeError, BufferError)):
            call(here)

    there.set_nonblocking(True)
    assert there.read(10) is None
    assert here.read(10) == b"here it is"


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.read_exact(-1),
        lambda s: s.sendfile(io.BytesIO(b"x"), -1),
        lambda s: s.sendfile(io.BytesIO(b"x"), 0, 0),
        lambda s: s.sendfile(io.BytesIO(b"x"), 0, -1),
        lambda s: s.shutdown(3),
        lambda s: s.shutdown(-1),
        lambda s: s.shutdown("write"),
        lambda s: s.shutdown(None),
    ],
)
def test_wrong_values(pair: tuple[UdStream, UdStream], call: Callable[[Any], object]) -> None:
    """A value that cannot be is a ValueError, and never reaches the kernel."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call(pair[0])

    assert not isinstance(caught.value, OSError)


def test_negative_offset(pair: tuple[UdStream, UdStream], folder: Path) -> None:
    """A negative offset is a ValueError, not whatever the kernel makes of it, with a timeout as without."""
    with regular(folder, b"x") as file, pytest.raises(ValueError, match="offset"):
        pair[0].sendfile(file, -1)
    pair[0].timeout = PATIENCE
    with regular(folder, b"x") as file, pytest.raises(ValueError, match="offset"):
        pair[0].sendfile(file, -1)


# --- scatter and gather ---


@each_timeout
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_readv_of_many_buffers(pair: tuple[UdStream, UdStream], count: int, timeout: float | None) -> None:
    """However many buffers: they are filled one after the other, and more than IOV_MAX are a short count."""
    here, there = pair
    here.timeout = timeout
    sent = bytes(i % 251 for i in range(2 * count + 2))
    there.write_all(sent)
    buffers = [bytearray(2) for _ in range(count)]

    got = here.readv(buffers)

    assert got is not None
    assert min(2 * count, 2 * 1024) == got
    assert sent[:got] == b"".join(buffers)[:got]
    assert b"".join(buffers)[got:] == bytes(2 * count - got)


@each_timeout
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_writev_of_many_buffers(pair: tuple[UdStream, UdStream], count: int, timeout: float | None) -> None:
    """However many buffers: they are sent one after the other, and more than IOV_MAX are a short count."""
    here, there = pair
    here.timeout = timeout
    buffers = [bytes([i % 251, i % 7]) for i in range(count)]

    sent = here.writev(buffers)

    assert sent is not None
    assert min(2 * count, 2 * 1024) == sent
    there.set_nonblocking(True)
    assert b"".join(buffers)[:sent] == (there.readall() or b"")


@pytest.mark.parametrize("empty", [1, 1023, 1024, 1025, 5000])
def test_empty_buffers_in_front(pair: tuple[UdStream, UdStream], empty: int) -> None:
    """Empty buffers, by the thousand, neither look like the end of file nor like a write of nothing."""
    here, there = pair

    assert here.writev([b""] * empty + [b"abc"]) == 3

    room = bytearray(2)
    assert there.readv([bytearray()] * empty + [room]) == 2
    assert room == b"ab"
    assert here.writev_all([b""] * empty + [b"abc"] + [b""] * empty) == 3
    assert there.read_exact(4) == b"cabc"


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda buffers: (buffer for buffer in buffers)])
@pytest.mark.parametrize("count", [2, 3000])
@each_timeout
def test_buffers_from_any_iterable(
    pair: tuple[UdStream, UdStream], kind: Callable[[list[Any]], Any], count: int, timeout: float | None
) -> None:
    """Readv, writev and writev_all take their buffers from any iterable, read through only once."""
    here, there = pair
    here.timeout = there.timeout = timeout
    data = [b"%04d" % i for i in range(count)]
    some = min(4 * count, 4 * 1024)

    assert some == here.writev(kind(data))
    assert b"".join(data)[:some] == there.read_exact(some)
    assert 4 * count == here.writev_all(kind(data))
    room = [bytearray(4) for _ in range(count)]
    assert some == there.readv(kind(room))
    assert b"".join(data)[:some] == b"".join(room)[:some]


def test_buffers_of_other_items(pair: tuple[UdStream, UdStream]) -> None:
    """Every length is in bytes, whatever the buffers' items are."""
    here, there = pair
    numbers = array.array("q", range(3))
    square = memoryview(bytes(range(6))).cast("B", (2, 3))
    empty = array.array("q")

    assert here.write(numbers) == 24
    assert here.write_all(numbers) == 24
    assert here.writev([numbers, empty, square]) == 30
    assert here.writev_all([numbers, empty, square]) == 30
    assert here.write_all(empty) == 0
    assert here.write_all(square) == 6
    assert numbers.tobytes() * 3 + bytes(range(6)) + numbers.tobytes() + bytes(range(6)) * 2 == there.read(
        1000
    )
    here.write(numbers)
    room = array.array("q", [9] * 3)
    assert there.readinto_exact(room) == 24
    assert numbers == room


# --- as many calls as it takes ---


@each_timeout
def test_all_of_it(pair: tuple[UdStream, UdStream], timeout: float | None) -> None:
    """write_all, writev_all, read_exact and readinto_exact move all of it, however many calls it takes."""
    here, there = pair
    here.timeout = there.timeout = timeout
    data = os.urandom(TOO_MUCH)
    pieces = [data[i : i + 500] for i in range(0, TOO_MUCH, 500)]
    for send in (
        lambda: here.write_all(data),
        lambda: here.writev_all(pieces),
        lambda: here.writev_all([data]),
    ):
        with in_thread(send) as sent:
            assert data == there.read_exact(TOO_MUCH)
        assert [TOO_MUCH] == sent
        room = bytearray(TOO_MUCH)
        with in_thread(send) as sent:
            assert TOO_MUCH == there.readinto_exact(room)
        assert [TOO_MUCH] == sent
        assert data == room
    assert here.write_all(b"") == 0
    assert here.writev_all([]) == 0
    assert there.read_exact(0) == b""
    assert there.readinto_exact(bytearray()) == 0


@each_timeout
def test_exact_reads_say_how_much_came_before_the_end(
    pair: tuple[UdStream, UdStream], timeout: float | None
) -> None:
    """End of file before all has come: EOFError with .nbytes, and of read_exact .partial."""
    here, there = pair
    here.timeout = timeout
    there.write(b"abc")
    there.shutdown(Shutdown.WRITE)
    with pytest.raises(EOFError) as caught:
        here.read_exact(10)
    error: Any = caught.value
    assert (error.nbytes, error.partial) == (3, b"abc")

    with pytest.raises(EOFError) as caught:
        here.read_exact(10)
    error = caught.value
    assert (error.nbytes, error.partial) == (0, b"")

    here.write(b"de")
    here.close()
    room = bytearray(b"......")
    with pytest.raises(EOFError) as caught:
        there.readinto_exact(room)
    error = caught.value
    assert (error.nbytes, room) == (2, b"de....")


def test_an_exact_read_takes_no_more_memory_than_came(pair: tuple[UdStream, UdStream]) -> None:
    """Who announces more than there is memory for costs no more than what they send."""
    here, there = pair
    there.write(b"abc")
    there.shutdown(Shutdown.WRITE)
    tracemalloc.start()
    try:
        with pytest.raises(EOFError) as caught:
            here.read_exact(1 << 62)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.partial == b"abc"  # type: ignore[attr-defined]


def test_exact_reads_of_a_nonblocking_stream(pair: tuple[UdStream, UdStream]) -> None:
    """Where a nonblocking stream has no more: BlockingIOError with .nbytes, and of read_exact .partial."""
    here, there = pair
    here.set_nonblocking(True)
    there.write(b"abc")
    with pytest.raises(BlockingIOError) as caught:
        here.read_exact(10)
    error: Any = caught.value
    assert (error.nbytes, error.partial, error.errno) == (3, b"abc", errno.EAGAIN)

    there.write(b"de")
    room = bytearray(4)
    with pytest.raises(BlockingIOError) as caught:
        here.readinto_exact(room)
    error = caught.value
    assert (error.nbytes, room) == (2, b"de\0\0")


@pytest.mark.parametrize(
    "send",
    [
        lambda stream, data: stream.write_all(data),
        lambda stream, data: stream.writev_all([data]),
        lambda stream, data: stream.writev_all([data[i : i + 1000] for i in range(0, len(data), 1000)]),
    ],
    ids=["write_all", "writev_all of one", "writev_all of many"],
)
class TestSendingAll:
    """How far write_all and writev_all came when they fail on the way."""

    @staticmethod
    def arrived(stream: UdStream) -> bytes:
        """What has come to *stream*."""
        stream.set_nonblocking(True)
        return stream.readall() or b""

    @each_timeout
    def test_nonblocking(
        self,
        pair: tuple[UdStream, UdStream],
        send: Callable[[UdStream, bytes], int],
        timeout: float | None,
    ) -> None:
        """BlockingIOError on the way carries .nbytes, exactly what the other end gets."""
        here, there = pair
        here.set_nonblocking(True)
        here.timeout = timeout
        data = os.urandom(TOO_MUCH)
        with pytest.raises(BlockingIOError) as caught:
            send(here, data)
        error: Any = caught.value

        assert 0 < error.nbytes < TOO_MUCH
        assert data[: error.nbytes] == self.arrived(there)

    def test_timeout(self, pair: tuple[UdStream, UdStream], send: Callable[[UdStream, bytes], int]) -> None:
        """TimeoutError on the way carries .nbytes, exactly what the other end gets."""
        here, there = pair
        here.timeout = 0.03
        data = os.urandom(TOO_MUCH)
        with pytest.raises(TimeoutError) as caught:
            send(here, data)
        error: Any = caught.value

        assert 0 < error.nbytes < TOO_MUCH
        assert data[: error.nbytes] == self.arrived(there)

    @each_timeout
    def test_signal_handler(
        self,
        pair: tuple[UdStream, UdStream],
        send: Callable[[UdStream, bytes], int],
        timeout: float | None,
    ) -> None:
        """What a signal handler raises comes through, when nothing was sent with .nbytes 0."""
        here, there = pair
        sent = fill(here)
        here.timeout = timeout
        with interrupted_after(0.03), pytest.raises(Interrupt) as caught:
            send(here, bytes(TOO_MUCH))
        error: Any = caught.value

        assert error.nbytes == 0
        assert sent == len(self.arrived(there))

    @each_timeout
    def test_broken_pipe(
        self,
        pair: tuple[UdStream, UdStream],
        send: Callable[[UdStream, bytes], int],
        timeout: float | None,
    ) -> None:
        """BrokenPipeError on the way carries .nbytes, what the kernel took until then."""
        here, there = pair
        here.timeout = timeout
        with in_thread(lambda: send(here, bytes(TOO_MUCH))) as result:
            there.read_exact(50_000)
            there.close()
        error: Any = result[0]

        assert isinstance(error, BrokenPipeError | ConnectionResetError)
        assert 50_000 <= error.nbytes < TOO_MUCH

    def test_immediately_broken(
        self, pair: tuple[UdStream, UdStream], send: Callable[[UdStream, bytes], int]
    ) -> None:
        """BrokenPipeError of the first call carries .nbytes 0."""
        pair[1].close()
        with pytest.raises(BrokenPipeError) as caught:
            send(pair[0], b"x" * 3000)

        assert caught.value.nbytes == 0  # type: ignore[attr-defined]


@each_timeout
def test_exact_reads_and_a_signal_handler(pair: tuple[UdStream, UdStream], timeout: float | None) -> None:
    """What a signal handler raises while read_exact waits carries .nbytes and .partial too."""
    here, there = pair
    here.timeout = timeout
    there.write(b"abc")
    with interrupted_after(0.03), pytest.raises(Interrupt) as caught:
        here.read_exact(10)
    error: Any = caught.value
    assert (error.nbytes, error.partial) == (3, b"abc")

    there.write(b"abc")
    with interrupted_after(0.03), pytest.raises(Interrupt) as caught:
        here.readall()
    error = caught.value
    assert error.partial == b"abc"


def test_exact_reads_and_a_reset(pair: tuple[UdStream, UdStream]) -> None:
    """ConnectionResetError, of a peer that closed with something unread, carries .nbytes and .partial too."""
    here, there = pair
    here.write(b"never read")
    there.write(b"abc")
    there.close()
    try:
        result: Any = here.read_exact(10)
    except (ConnectionResetError, EOFError) as error:
        result = error

    assert isinstance(result, ConnectionResetError | EOFError)
    assert (result.nbytes, result.partial) == (3, b"abc")  # type: ignore[union-attr]


def test_buffer_is_free_after_an_error(pair: tuple[UdStream, UdStream]) -> None:
    """Once readinto_exact has failed its buffer can be cut to what came, while the error is handled."""
    here, there = pair
    for timeout in (None, 0.01):
        here.timeout = timeout
        here.set_nonblocking(timeout is None)
        there.write(b"abc")
        room = bytearray(10)
        with pytest.raises((TimeoutError, BlockingIOError)) as caught:
            here.readinto_exact(room)
        error: Any = caught.value
        del room[error.nbytes :]
        assert room == b"abc"

        data = bytearray(TOO_MUCH)
        with pytest.raises((TimeoutError, BlockingIOError)) as caught:
            here.write_all(data)
        error = caught.value
        del data[: error.nbytes]
        assert len(data) == TOO_MUCH - error.nbytes
        there.read_exact(error.nbytes)

        data = bytearray(TOO_MUCH)
        with pytest.raises((TimeoutError, BlockingIOError)) as caught:
            here.writev_all([data, b"x"])
        error = caught.value
        del data[: error.nbytes]
        there.read_exact(error.nbytes)


def test_readall(pair: tuple[UdStream, UdStream]) -> None:
    """Readall returns everything up to the end of file."""
    here, there = pair
    data = os.urandom(TOO_MUCH)
    with in_thread(lambda: (there.write_all(data), there.close())):
        assert data == here.readall()
    assert here.readall() == b""


def test_readall_of_a_nonblocking_stream(pair: tuple[UdStream, UdStream]) -> None:
    """Readall of a nonblocking stream: what there is, None if that is nothing, b"" at the end of file."""
    here, there = pair
    here.set_nonblocking(True)

    assert here.readall() is None

    there.write(b"abc")

    assert here.readall() == b"abc"
    assert here.readall() is None

    there.write(b"de")
    there.close()

    assert here.readall() == b"de"
    assert here.readall() == b""


# --- sendfile ---


def regular(folder: Path, data: bytes) -> IO[bytes]:
    (folder / "data").write_bytes(data)
    return (folder / "data").open("rb")


def raw_file(folder: Path, data: bytes) -> IO[bytes]:
    (folder / "data").write_bytes(data)
    return (folder / "data").open("rb", buffering=0)  # type: ignore[return-value]


def temporary(folder: Path, data: bytes) -> IO[bytes]:
    file = tempfile.NamedTemporaryFile(dir=folder)
    file.write(data)
    file.seek(0)
    return file  # type: ignore[return-value]


def in_memory(folder: Path, data: bytes) -> IO[bytes]:
    return io.BytesIO(data)


SOURCES = [regular, raw_file, temporary, in_memory]
each_source = pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
LONG = bytes(i % 251 for i in range(700_000))


@each_timeout
@each_source
def test_sendfile(
    pair: tuple[UdStream, UdStream],
    folder: Path,
    make: Callable[[Path, bytes], IO[bytes]],
    timeout: float | None,
) -> None:
    """Sendfile sends from offset, to the end or count bytes, and leaves the file where it stopped."""
    here, there = pair
    here.timeout = timeout
    parts: list[tuple[int, int | None]] = [
        (0, None), (0, 1), (3, None), (3, 5), (0, len(LONG)), (0, len(LONG) * 2), (200_000, 300_000),
        (len(LONG) - 1, None), (len(LONG), None), (len(LONG) + 5, 7),
    ]  # fmt: skip
    with make(folder, LONG) as file:
        for offset, count in parts:
            expected = LONG[offset:] if count is None else LONG[offset : offset + count]
            with in_thread(lambda offset=offset, count=count: here.sendfile(file, offset, count)) as sent:
                assert expected == there.read_exact(len(expected))
            assert [len(expected)] == sent
            if expected:
                assert offset + len(expected) == file.tell()
    there.set_nonblocking(True)
    assert there.read(1) is None


@each_timeout
@each_source
def test_sendfile_from_a_file_in_its_middle(
    pair: tuple[UdStream, UdStream],
    folder: Path,
    make: Callable[[Path, bytes], IO[bytes]],
    timeout: float | None,
) -> None:
    """The offset, not the file's position, tells where to start, with a timeout and without one."""
    here, there = pair
    here.timeout = timeout
    with make(folder, b"0123456789") as file:
        file.read(3)

        assert here.sendfile(file) == 10
        assert file.tell() == 10
        assert there.read(20) == b"0123456789"

        file.seek(7)

        assert here.sendfile(file, 2, 3) == 3
        assert file.tell() == 5
        assert there.read(20) == b"234"


@each_source
def test_sendfile_asks_the_kernel(
    pair: tuple[UdStream, UdStream],
    folder: Path,
    make: Callable[[Path, bytes], IO[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is a regular file goes by the system call sendfile, unless there is a timeout to keep; all else is read."""
    here, there = pair
    asked: list[object] = []
    by_kernel = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda *call: asked.append(call) or by_kernel(*call))
    with make(folder, b"0123456789") as file:
        assert here.sendfile(file) == 10
        assert bool(asked) is (make is not in_memory)
        asked.clear()

        here.timeout = 20
        assert here.sendfile(file) == 10
        assert not asked
    assert there.read_exact(20) == b"0123456789" * 2


@each_timeout
@pytest.mark.parametrize("buffering", [0, -1])
def test_sendfile_from_a_pipe(pair: tuple[UdStream, UdStream], buffering: int, timeout: float | None) -> None:
    """What cannot be sought is sent from where it stands, to its end or count bytes."""
    here, there = pair
    here.timeout = timeout
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb", buffering) as pipe:
        os.write(theirs, b"0123456789")
        assert here.sendfile(pipe, 0, 4) == 4
        assert there.read(20) == b"0123"
        os.close(theirs)
        assert here.sendfile(pipe) == 6
        assert there.read(20) == b"456789"
        assert here.sendfile(pipe) == 0


@each_timeout
def test_sendfile_from_another_stream(pair: tuple[UdStream, UdStream], timeout: float | None) -> None:
    """A stream, or a file over one, can be what is sent."""
    here, there = pair
    here.timeout = timeout
    one, other = UdStream.pair()
    with one, other:
        one.write(b"0123456789")
        one.shutdown(Shutdown.WRITE)
        assert here.sendfile(other) == 10  # type: ignore[arg-type]
        assert there.read(20) == b"0123456789"


@each_timeout
@pytest.mark.parametrize(
    "path", ["/proc/self/status", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
def test_sendfile_of_what_does_not_know_its_length(
    pair: tuple[UdStream, UdStream], path: str, timeout: float | None
) -> None:
    """A file of /proc, which says that it is empty, or of /sys, which says it is longer, is sent whole."""
    if not os.path.exists(path):
        pytest.skip(f"no {path}")
    here, there = pair
    here.timeout = timeout
    with open(path, "rb") as file:
        sent = here.sendfile(file)

    assert sent > 0
    assert len(there.read(100_000) or b"") == sent


@each_timeout
def test_sendfile_of_an_empty_file(
    pair: tuple[UdStream, UdStream], folder: Path, timeout: float | None
) -> None:
    """An empty file: nothing is sent, 0."""
    pair[0].timeout = timeout
    with regular(folder, b"") as file:
        assert pair[0].sendfile(file) == 0
    assert pair[0].sendfile(io.BytesIO()) == 0


@each_timeout
def test_sendfile_of_a_file_that_unpacks(
    pair: tuple[UdStream, UdStream], folder: Path, timeout: float | None
) -> None:
    """Of a file object that unpacks, what it reads as is sent, or it is refused: never the packed bytes."""
    here, there = pair
    here.timeout = timeout
    with gzip.open(folder / "packed", "wb") as packed:
        packed.write(b"0123456789")
    with gzip.open(folder / "packed", "rb") as file:
        try:
            here.sendfile(file)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            pass
        else:
            assert there.read(100) == b"0123456789"
    there.set_nonblocking(True)
    assert there.read(100) is None


def test_sendfile_needs_a_blocking_stream_and_a_binary_file(
    pair: tuple[UdStream, UdStream], folder: Path
) -> None:
    """A nonblocking stream or a file opened as text: ValueError, as of socket.sendfile."""
    (folder / "data").write_bytes(b"x")
    with (folder / "data").open() as text, pytest.raises(ValueError, match="binary"):
        pair[0].sendfile(text)  # type: ignore[arg-type]
    pair[0].set_nonblocking(True)
    with regular(folder, b"x") as file, pytest.raises(ValueError, match="blocking"):
        pair[0].sendfile(file)


@each_source
def test_sendfile_that_times_out_can_go_on(
    pair: tuple[UdStream, UdStream], folder: Path, make: Callable[[Path, bytes], IO[bytes]]
) -> None:
    """Sendfile that times out says .nbytes, leaves the file there, and can go on from there."""
    here, there = pair
    here.timeout = 0.03
    with make(folder, LONG) as file:
        with pytest.raises(TimeoutError) as caught:
            here.sendfile(file, 10)
        error: Any = caught.value
        assert 0 < error.nbytes < len(LONG)
        assert 10 + error.nbytes == file.tell()
        assert LONG[10 : 10 + error.nbytes] == there.read_exact(error.nbytes)
        here.timeout = None
        with in_thread(lambda: here.sendfile(file, file.tell())) as sent:
            rest = there.read_exact(len(LONG) - 10 - error.nbytes)
        assert LONG[10 + error.nbytes :] == rest
        assert [len(rest)] == sent


@each_timeout
@each_source
def test_sendfile_to_a_broken_pipe(
    pair: tuple[UdStream, UdStream],
    folder: Path,
    make: Callable[[Path, bytes], IO[bytes]],
    timeout: float | None,
) -> None:
    """BrokenPipeError of sendfile says .nbytes, and the file stands there; no signal stays pending or blocked."""
    here, there = pair
    here.timeout = timeout
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with make(folder, LONG) as file:
        with in_thread(lambda: here.sendfile(file)) as result:
            there.read_exact(50_000)
            there.close()
        error: Any = result[0]
        assert isinstance(error, BrokenPipeError | ConnectionResetError)
        assert 50_000 <= error.nbytes < len(LONG)
        assert file.tell() == error.nbytes
        with pytest.raises(BrokenPipeError) as caught:
            here.sendfile(file)
        assert caught.value.nbytes == 0  # type: ignore[attr-defined]
    assert mask == signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGPIPE not in signal.sigpending()


def test_sendfile_through_a_storm_of_signals(pair: tuple[UdStream, UdStream], folder: Path) -> None:
    """Signals whose handlers return neither end sendfile early nor make it send anything twice."""
    here, there = pair
    hits = []
    with on_alarm(lambda *_: hits.append(None), 0.0005, 0.0005):
        with regular(folder, LONG) as file, in_thread(lambda: there.read_exact(len(LONG) * 5)) as result:
            for _ in range(5):
                assert here.sendfile(file) == len(LONG)

    assert [LONG * 5] == result


# --- SIGPIPE ---

SIGPIPE = """
import io, os, signal, sys
from udstream import UdStream
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
for call in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        here, there = UdStream.pair()
        if sys.argv[1] == "timed":
            here.timeout = 5
        there.close()
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 2)
        def buffered(mode, data, *more):
            file = here.makefile(mode, *more)
            file.write(data)
            file.flush()
        try:
            eval(call)
        except BrokenPipeError as error:
            os._exit(error.errno)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

WRITING_CALLS = [
    "here.write(b'x')",
    "here.writev([b'x', b'y'])",
    "here.write_all(b'x')",
    "here.writev_all([b'x'])",
    "here.sendfile(open(sys.executable, 'rb'))",
    "here.sendfile(io.BytesIO(b'x'))",
    "here.send_fds(b'x', [null])",
    "here.send_ancillary([b'x'], [[null]])",
    "buffered('wb', b'x')",
    "buffered('rwb', b'x')",
    "buffered('w', 'x')",
    "buffered('rw', 'x')",
    "buffered('rw', 'x\\n', 1)",
    "here.makefile('wb', 0).write(b'x')",
    "io.BufferedWriter(here, 1).write(b'xyz')",
    "here.writelines([b'x'])",
]


@pytest.mark.parametrize("timed", ["timed", "untimed"])
def test_no_signal_ever(folder: Path, timed: str) -> None:
    """Whatever writes to a closed connection raises BrokenPipeError, though SIGPIPE would kill the process."""
    # The last one is to show that this would be noticed.
    calls = [*WRITING_CALLS, "os.write(here.fileno(), b'x')"]
    ran = subprocess.run(
        python(SIGPIPE, timed, *calls),
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    ended = dict(zip(calls, map(int, ran.stdout.split()), strict=True))

    assert ended.pop(calls[-1]) == -signal.SIGPIPE
    assert ended == dict.fromkeys(WRITING_CALLS, errno.EPIPE)


def test_own_handler_of_sigpipe_is_never_called(pair: tuple[UdStream, UdStream], folder: Path) -> None:
    """A handler that a program has for SIGPIPE is not called by our writes either."""
    here, there = pair
    there.close()
    calls: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: calls.append(number))
    try:
        with regular(folder, b"x") as file:
            for call in (lambda: here.write(b"x"), lambda: here.writev([b"x"]), lambda: here.sendfile(file)):
                with pytest.raises(BrokenPipeError):
                    call()
    finally:
        signal.signal(signal.SIGPIPE, before)

    assert calls == []


# --- shutdown, and who else shares the connection ---


@pytest.mark.parametrize("how", [Shutdown.WRITE, socket.SHUT_WR, 1])
def test_shutdown_of_writing(pair: tuple[UdStream, UdStream], how: int) -> None:
    """shutdown(WRITE): the other end reads to the end of file, and can still write."""
    here, there = pair
    here.write(b"last")
    here.shutdown(how)

    assert there.readall() == b"last"
    with pytest.raises(BrokenPipeError):
        here.write(b"x")
    there.write(b"answer")
    assert here.read(10) == b"answer"
    assert here.readable()
    assert here.writable()


@pytest.mark.parametrize("how", [Shutdown.READ, socket.SHUT_RD, 0])
def test_shutdown_of_reading(pair: tuple[UdStream, UdStream], how: int) -> None:
    """shutdown(READ): reads give the end of file, writing goes on."""
    here, there = pair
    here.shutdown(how)

    assert here.read(10) == b""
    assert here.write(b"x") == 1
    assert there.read(10) == b"x"
    assert here.readable()
    assert here.writable()


@pytest.mark.parametrize("how", [Shutdown.BOTH, socket.SHUT_RDWR, 2])
def test_shutdown_of_both(pair: tuple[UdStream, UdStream], how: int) -> None:
    """shutdown(BOTH): the end of file both ways, and for whoever shares the connection."""
    here, there = pair
    with here.dup() as twin:
        here.shutdown(how)

        assert (here.read(1), twin.read(1), there.read(1)) == (b"", b"", b"")
        for stream in (here, twin, there):
            with pytest.raises(BrokenPipeError):
                stream.write(b"x")
            assert stream.readable()
            assert stream.writable()


def test_shutdown_names() -> None:
    """Shutdown is an IntEnum with the values of socket.SHUT_*."""
    assert {"READ": socket.SHUT_RD, "WRITE": socket.SHUT_WR, "BOTH": socket.SHUT_RDWR} == {
        how.name: how.value for how in Shutdown
    }
    assert isinstance(Shutdown.READ, int)
    assert udstream.Shutdown is Shutdown


BLOCKING_CALLS: dict[str, Callable[[UdStream], object]] = {
    "read": lambda s: s.read(10),
    "readinto": lambda s: s.readinto(bytearray(10)),
    "readv": lambda s: s.readv([bytearray(10)]),
    "readall": lambda s: s.readall(),
    "read_exact": lambda s: s.read_exact(10),
    "readline": lambda s: s.readline(),
    "recv_ancillary": lambda s: s.recv_ancillary([bytearray(10)]).nbytes,
}
BLOCKING_WRITES: dict[str, Callable[[UdStream], object]] = {
    "write": lambda s: s.write(bytes(10)),
    "writev": lambda s: s.writev([bytes(10)]),
    "write_all": lambda s: s.write_all(bytes(10)),
    "writev_all": lambda s: s.writev_all([bytes(10)]),
    "sendfile": lambda s: s.sendfile(io.BytesIO(b"x")),
    "sendfile of a file": lambda s: s.sendfile(open("/etc/passwd", "rb")),
    "send_ancillary": lambda s: s.send_ancillary([b"x"]),
}


@each_timeout
@pytest.mark.parametrize("name", BLOCKING_CALLS)
def test_shutdown_ends_a_blocked_read(
    pair: tuple[UdStream, UdStream], name: str, timeout: float | None
) -> None:
    """shutdown(BOTH) ends a read that another thread is blocked in: the end of file."""
    pair[0].timeout = timeout
    with blocked_in(lambda: BLOCKING_CALLS[name](pair[0])) as result:
        pair[0].shutdown(Shutdown.BOTH)

    if name == "read_exact":
        assert isinstance(result[0], EOFError)
    else:
        assert not result[0]


@each_timeout
@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("name", BLOCKING_WRITES)
def test_shutdown_ends_a_blocked_write(
    pair: tuple[UdStream, UdStream], name: str, timeout: float | None
) -> None:
    """shutdown(BOTH) ends a write that another thread is blocked in: BrokenPipeError, and no signal."""
    fill(pair[0])
    pair[0].timeout = timeout
    with blocked_in(lambda: BLOCKING_WRITES[name](pair[0])) as result:
        pair[0].shutdown(Shutdown.BOTH)

    assert isinstance(result[0], BrokenPipeError)


def test_nonblocking_mode_is_shared_by_duplicates(pair: tuple[UdStream, UdStream]) -> None:
    """set_nonblocking and is_nonblocking are the kernel's mode, which every duplicate shares."""
    here = pair[0]
    with here.dup() as twin:
        assert here.is_nonblocking() is False
        assert twin.is_nonblocking() is False
        twin.set_nonblocking(True)
        assert here.is_nonblocking() is True
        assert os.get_blocking(here.fileno()) is False
        here.set_nonblocking(False)
        assert twin.is_nonblocking() is False


# --- what a file object says of itself ---


def test_what_it_is(pair: tuple[UdStream, UdStream]) -> None:
    """A UdStream is a raw file that reads and writes, and cannot be sought."""
    here = pair[0]

    assert isinstance(here, io.RawIOBase)
    assert (here.readable(), here.writable(), here.seekable(), here.isatty()) == (True, True, False, False)
    assert here.closed is False
    assert isinstance(here.fileno(), int)
    assert here.name == here.fileno()
    assert here.flush() is None  # type: ignore[func-returns-value]
    for call in (
        lambda: here.seek(0),
        lambda: here.seek(0, 2),
        here.tell,
        here.truncate,
        lambda: here.truncate(0),
    ):
        with pytest.raises(io.UnsupportedOperation):
            call()


def test_lines_of_the_raw_file(pair: tuple[UdStream, UdStream]) -> None:
    """What io.IOBase gives every raw file works: readline, readlines, iteration, writelines."""
    here, there = pair
    there.writelines([b"one\n", b"two\n", b"three\nfour"])
    there.close()

    assert here.readline() == b"one\n"
    assert next(here) == b"two\n"
    assert here.readlines() == [b"three\n", b"four"]


@pytest.mark.parametrize("multiprocessing", ["imported", "not imported"])
def test_no_copies(
    pair: tuple[UdStream, UdStream], multiprocessing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream can be neither copied nor pickled: TypeError that says so."""
    if multiprocessing == "imported":
        importlib.import_module("multiprocessing.context")
    else:
        monkeypatch.delitem(sys.modules, "multiprocessing.context", raising=False)
    for call in (
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda s: pickle.dumps(s, 0),
        lambda s: pickle.dumps([s]),
    ):
        with pytest.raises(TypeError, match="UdStream"):
            call(pair[0])  # type: ignore[operator]


PROCESSES = """
import multiprocessing, os, sys
from udstream import UdStream

def answer(stream):
    with stream:
        assert stream.timeout == 9.5
        assert not os.get_inheritable(stream.fileno())
        stream.write_all(stream.read_exact(5).upper())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    here, there = UdStream.pair()
    with here:
        with there:
            there.timeout = 9.5
            process = context.Process(target=answer, args=(there,))
            process.start()
        here.write_all(b"hello")
        assert here.read_exact(5) == b"HELLO"
        assert here.read(1) == b""
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_goes_to_a_process_of_multiprocessing(folder: Path, method: str) -> None:
    """A stream can be an argument of a process, however that is started, which then has a duplicate of its own."""
    program = folder / "program.py"
    program.write_text(PROCESSES)
    command = [sys.executable, "-W", "error", str(program), method]
    done = subprocess.run(
        command, env=environment(folder), capture_output=True, timeout=PATIENCE, check=False
    )

    assert done.stderr == b""
    assert done.returncode == 0


def test_repr(pair: tuple[UdStream, UdStream], folder: Path) -> None:
    """The repr names the class, the fd and whom it is connected to; of a closed one, that."""
    here = pair[0]
    assert re.fullmatch(rf"<udstream\.\S*UdStream fd={here.fileno()}>", repr(here))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        with UdStream.connect(folder / "s") as stream:
            assert f"fd={stream.fileno()}" in repr(stream)
            assert f"{str(folder / 's')!r}" in repr(stream)
            with UdStream.from_socket(listener.accept()[0]) as accepted:
                assert f"{str(folder / 's')!r}" in repr(accepted)
    here.close()
    assert re.fullmatch(r"<udstream\.\S*UdStream \[closed\]>", repr(here))


def test_made_only_by_its_makers() -> None:
    """UdStream() itself says how one is made, and leaves nothing half made behind."""
    for call in (UdStream, lambda: UdStream.__new__(UdStream), lambda: UdStream(3)):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"connect\(\).*pair\(\).*from_fd\(\).*from_socket\(\)"):
            call()


def test_subclass(folder: Path) -> None:
    """Each maker of a subclass makes one of that subclass, and so does dup()."""

    class Mine(UdStream):
        """A subclass with a method of its own."""

        def hello(self) -> int:
            return self.write_all(b"hello")

    one, other = Mine.pair()
    with one, other, one.dup() as twin, Mine.from_fd(other.dup().detach()) as taken:
        assert {Mine} == {type(stream) for stream in (one, other, twin, taken)}
        assert twin.hello() == 5
        assert taken.read(10) == b"hello"
        assert "Mine fd=" in repr(one)


def test_subclass_that_overrides() -> None:
    """It is made without its ``__init__``; what it overrides is that method alone, and its attributes are its own."""

    class Shouting(UdStream):
        """A subclass that changes what it sends."""

        def __init__(self) -> None:
            raise AssertionError("it is not called")

        def write(self, data: Any) -> Any:
            return super().write(bytes(data).upper())

    here, there = Shouting.pair()
    with here, there:
        here.mine = 1  # type: ignore[attr-defined]
        here.write(b"a")
        here.write_all(b"b")
        with here.makefile("w") as file:
            file.write("c")
        assert there.readall() == b"Abc"


# --- after close ---

ON_A_CLOSED_ONE: dict[str, Callable[[UdStream], object]] = {
    "fileno": lambda s: s.fileno(),
    "detach": lambda s: s.detach(),
    "dup": lambda s: s.dup(),
    "readable": lambda s: s.readable(),
    "writable": lambda s: s.writable(),
    "seekable": lambda s: s.seekable(),
    "seek": lambda s: s.seek(0),
    "tell": lambda s: s.tell(),
    "truncate": lambda s: s.truncate(),
    "isatty": lambda s: s.isatty(),
    "flush": lambda s: s.flush(),
    "readinto": lambda s: s.readinto(bytearray(1)),
    "readinto nothing": lambda s: s.readinto(bytearray()),
    "read": lambda s: s.read(1),
    "read nothing": lambda s: s.read(0),
    "read all": lambda s: s.read(),
    "readall": lambda s: s.readall(),
    "readline": lambda s: s.readline(),
    "readlines": lambda s: s.readlines(),
    "next": lambda s: next(s),
    "iter": lambda s: iter(s),
    "write": lambda s: s.write(b"x"),
    "write nothing": lambda s: s.write(b""),
    "writelines": lambda s: s.writelines([b"x"]),
    "writelines nothing": lambda s: s.writelines([]),
    "readv": lambda s: s.readv([bytearray(1)]),
    "readv nothing": lambda s: s.readv([]),
    "writev": lambda s: s.writev([b"x"]),
    "writev nothing": lambda s: s.writev([]),
    "read_exact": lambda s: s.read_exact(1),
    "read_exact nothing": lambda s: s.read_exact(0),
    "readinto_exact": lambda s: s.readinto_exact(bytearray(1)),
    "readinto_exact nothing": lambda s: s.readinto_exact(bytearray()),
    "write_all": lambda s: s.write_all(b"x"),
    "write_all nothing": lambda s: s.write_all(b""),
    "writev_all": lambda s: s.writev_all([b"x"]),
    "writev_all nothing": lambda s: s.writev_all([]),
    "sendfile": lambda s: s.sendfile(io.BytesIO(b"x")),
    "sendfile nothing": lambda s: s.sendfile(io.BytesIO(b"")),
    "shutdown": lambda s: s.shutdown(Shutdown.BOTH),
    "set_nonblocking": lambda s: s.set_nonblocking(True),
    "is_nonblocking": lambda s: s.is_nonblocking(),
    "timeout": lambda s: s.timeout,
    "timeout set": lambda s: setattr(s, "timeout", 1.0),
    "timeout unset": lambda s: setattr(s, "timeout", None),
    "local_path": lambda s: s.local_path,
    "peer_path": lambda s: s.peer_path,
    "makefile r": lambda s: s.makefile("r"),
    "makefile rb": lambda s: s.makefile("rb"),
    "makefile wb": lambda s: s.makefile("wb"),
    "makefile rwb": lambda s: s.makefile("rwb"),
    "makefile rw": lambda s: s.makefile("rw"),
    "makefile raw": lambda s: s.makefile("rwb", 0),
    "send_ancillary": lambda s: s.send_ancillary([b"x"]),
    "recv_ancillary": lambda s: s.recv_ancillary([bytearray(1)]),
    "send_fds": lambda s: s.send_fds(b"x", [0]),
    "send_fds nothing": lambda s: s.send_fds(b"", []),
    "recv_fds": lambda s: s.recv_fds(1),
    "peer_credentials": lambda s: s.peer_credentials(),
    "collect_ancillary": lambda s: s.collect_ancillary,
    "collect_ancillary set": lambda s: setattr(s, "collect_ancillary", True),
    "enter": lambda s: s.__enter__(),
}


@pytest.mark.parametrize("how", ["close", "detach"])
@pytest.mark.parametrize("name", ON_A_CLOSED_ONE)
@each_timeout
def test_closed_one(pair: tuple[UdStream, UdStream], name: str, how: str, timeout: float | None) -> None:
    """Every method of a closed or detached stream raises ValueError, and closing it again does nothing."""
    here = pair[0]
    here.timeout = timeout
    fd = here.fileno()
    if how == "close":
        here.close()
    else:
        assert fd == here.detach()
        os.close(fd)

    with pytest.raises(ValueError, match=r"closed|not supported|seek|truncate|tell"):
        ON_A_CLOSED_ONE[name](here)

    assert here.closed
    here.close()


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r", "w", "rw", "unbuffered"])
def test_the_name_of_a_closed_one(pair: tuple[UdStream, UdStream], mode: str) -> None:
    """The number that a socket has then; whoever prints a handler of a log that is over, say, asks for it."""
    stream = pair[0]
    file: Any = stream if mode == "unbuffered" else stream.makefile(mode)
    assert file.name == stream.fileno()
    repr(logging.StreamHandler(file))
    file.close()
    assert file.name == -1
    repr(logging.StreamHandler(file))


@pytest.mark.parametrize("mode", ["w", "wb", "rw", "rwb"])
def test_detaching_sends_what_files_have(pair: tuple[UdStream, UdStream], mode: str) -> None:
    """The files over a stream are at their end with it: what was written to them is sent first."""
    stream, other = pair
    file = stream.makefile(mode)
    file.write("STARTTLS\n" if "b" not in mode else b"STARTTLS\n")
    fd = stream.detach()
    assert file.closed
    other.timeout = 5
    assert other.read(100) == b"STARTTLS\n"
    os.close(fd)


def test_a_detach_that_cannot_send_leaves_all_as_it_was(pair: tuple[UdStream, UdStream]) -> None:
    """Its TimeoutError can be dealt with, and then it is repeated."""
    stream, other = pair
    file = stream.makefile("rwb")
    file.write(b"last words")
    filled = fill(stream)
    stream.timeout = 0.01
    with pytest.raises(TimeoutError):
        stream.detach()
    assert not file.closed
    other.timeout = 5
    assert len(other.read_exact(filled)) == filled
    os.close(stream.detach())
    assert other.readall() == b"last words"


ROOM_WITHOUT_LENGTH: dict[str, Callable[[UdStream, Any], Any]] = {
    "readinto": lambda s, b: s.readinto(b),
    "readinto_exact": lambda s, b: s.readinto_exact(b),
    "readv": lambda s, b: s.readv([b]),
    "recv_ancillary": lambda s, b: s.recv_ancillary(b).nbytes,
    "recv_ancillary of several": lambda s, b: s.recv_ancillary([b]).nbytes,
}


@pytest.mark.parametrize("collecting", [False, True])
@pytest.mark.parametrize("name", ROOM_WITHOUT_LENGTH)
def test_buffers_that_have_no_length(pair: tuple[UdStream, UdStream], name: str, collecting: bool) -> None:
    """Whatever gives its memory is a buffer, also a number of C's, which has no len()."""
    here, there = pair
    here.collect_ancillary = collecting
    there.write(b"\1\0\0\0")
    number = ctypes.c_uint32()
    assert ROOM_WITHOUT_LENGTH[name](here, number) == 4
    assert int(number.value).to_bytes(4, sys.byteorder) == b"\1\0\0\0"


def test_sendfile_sends_what_the_file_has_in_its_buffer(pair: tuple[UdStream, UdStream]) -> None:
    """With a timeout or without."""
    here, there = pair
    for timeout in (None, 5):
        here.timeout = timeout
        with tempfile.TemporaryFile() as file:
            file.write(b"on disk, ")
            file.flush()
            file.write(b"in the buffer")
            assert here.sendfile(file) == 22
        assert there.read(100) == b"on disk, in the buffer"


def test_every_public_method_is_in_the_list_of_the_closed() -> None:
    """The test above knows every public name of UdStream."""
    known = {name.split()[0] for name in ON_A_CLOSED_ONE}
    # Makers, close and closed themselves; what a closed one collected may still be taken; and what any file has, to be
    # shown.
    known |= {
        "connect",
        "pair",
        "from_fd",
        "from_socket",
        "inherited",
        "close",
        "closed",
        "collected",
        "mode",
        "name",
    }

    assert {name for name in dir(UdStream) if not name.startswith("_")} <= known


# --- whatever the default timeout is ---


@pytest.mark.parametrize("default", [0.0, 0.05, 5.0])
def test_default_timeout_of_sockets_means_nothing(folder: Path, default: float) -> None:
    """socket.setdefaulttimeout() makes no stream nonblocking, gives it no timeout, and hurries no call."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        try:
            socket.setdefaulttimeout(default)
            one, other = UdStream.pair()
            client = UdStream.connect(folder / "s")
            twin = one.dup()
            accepted = UdStream.from_fd(listener._accept()[0])  # type: ignore[attr-defined]
            timed = UdStream.connect(folder / "s", timeout=PATIENCE)
            for stream in (one, other, client, twin, accepted, timed):
                with stream:
                    assert not stream.is_nonblocking()
                    assert (PATIENCE if stream is timed else None) == stream.timeout
                    if stream is one:
                        with in_thread(lambda: threading.Event().wait(0.1) or other.write(b"x")):
                            assert one.read(1) == b"x"
                        assert twin.read_exact(0) == b""
                        file = one.makefile("rw")
                        other.write(b"line\n")
                        assert file.readline() == "line\n"
                        assert not one.is_nonblocking()
                        descriptor = os.open("/dev/null", os.O_RDONLY)
                        twin.send_fds(b"x", [descriptor])
                        os.close(descriptor)
                        received, fds = other.recv_fds(1)
                        assert received == b"x"
                        fds.close()
                        twin.peer_credentials()
                        assert not twin.is_nonblocking()
                        file.close()
        finally:
            socket.setdefaulttimeout(None)


# --- one system call each ---

STRACED = """
import os, threading, sys
from udstream import UdStream
here, there = UdStream.pair()
if {timeout}:
    here.timeout = there.timeout = 5
room, rooms, data = bytearray(64), [bytearray(32), bytearray(32)], bytes(64)
calls = {{
    "write": lambda: here.write(data), "readinto": lambda: there.readinto(room),
    "writev": lambda: here.writev([data]), "readv": lambda: there.readv(rooms),
    "write_all": lambda: here.write_all(data), "read": lambda: there.read(64),
    "writev_all": lambda: here.writev_all([data]), "read_exact": lambda: there.read_exact(64),
    "write again": lambda: here.write(data), "readinto_exact": lambda: there.readinto_exact(room),
}}
if {waits}:
    # Reads that have to wait first, each for the answer of another thread.
    asked = threading.Semaphore(0)
    def answer():
        for _ in range({waits}):
            asked.acquire()
            threading.Event().wait(0.003)
            here.write(data)
    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range({waits}):
        asked.release()
        there.readinto(room)
    thread.join()
for call in calls.values():
    call()
for name, call in calls.items():
    os.access("/begin " + name, 0)
    call()
    os.access("/end", 0)
"""

ONE_CALL = {
    "write": "sendto",
    "writev": "sendmsg",
    "write_all": "sendto",
    "writev_all": "sendmsg",
    "write again": "sendto",
    "readinto": "recvfrom",
    "readv": "recvmsg",
    "read": "recvfrom",
    "read_exact": "recvfrom",
    "readinto_exact": "recvfrom",
}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("timeout", "waits"), [(False, 0), (True, 0), (True, 20)], ids=["untimed", "timed", "timed after waits"]
)
def test_system_calls_while_data_flows(folder: Path, timeout: bool, waits: int) -> None:
    """Each call is one system call while data flows, and a timeout adds none."""
    log = folder / "strace"
    command = ["strace", "-f", "-o", str(log), *python(STRACED.format(timeout=timeout, waits=waits))]
    ran = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=PATIENCE)
    if ran.returncode and "PTRACE" in ran.stderr:
        pytest.skip("strace is not allowed here")
    assert ran.returncode == 0, ran.stderr
    seen: dict[str, list[str]] = {}
    current = thread = None
    for line in log.read_text().splitlines():
        if begun := re.search(r'^(\d+) +access\("/begin ([^"]*)"', line):
            # The other thread may still be on its way out.
            thread = begun[1]
            current = seen.setdefault(begun[2], [])
        elif re.search(r'access\("/end"', line):
            current = None
        elif current is not None and (call := re.match(rf"{thread} +(\w+)\(", line)):
            current.append(call[1])

    assert {name: [call] for name, call in ONE_CALL.items()} == seen


def test_the_connection_that_a_program_was_started_on(folder: Path) -> None:
    """Where inetd, or systemd, passes the connection as descriptor 0, from_fd(0) takes it over."""
    ours, theirs = socket.socketpair()
    code = (
        "from udstream import UdStream\nwith UdStream.from_fd(0) as stream: stream.write_all(stream.read(10))"
    )
    with ours:
        with theirs:
            ours.send(b"hello")
            subprocess.run(python(code), stdin=theirs, env=environment(folder), check=True, timeout=PATIENCE)
        assert ours.recv(10) == b"hello"
