"""
The contract of io.RawIOBase as data: the same checks over UdStream and, as references, over two of CPython's own.

The references are FileIO on the two ends of a pipe, and socket.SocketIO. Where one of them does not keep to what
is checked, DIFFERS says so, and the check must fail there: so each check is seen to be able to fail, or to be what
raw files do anyway.
"""

from __future__ import annotations

import array
import io
import os
import pickle
import socket
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytest

from udstream import UdStream


class Subject(ABC):
    """A raw file that reads, and another that writes to it."""

    reader: Any
    writer: Any

    @abstractmethod
    def nonblocking(self) -> None:
        """Make both nonblocking."""

    @abstractmethod
    def lone(self) -> Any:
        """A raw file more, that nobody else closes."""

    def close(self) -> None:
        """Close what is still open."""
        self.reader.close()
        self.writer.close()


class Streams(Subject):
    """A pair of UdStreams."""

    def __init__(self) -> None:
        self.reader, self.writer = UdStream.pair()

    def nonblocking(self) -> None:
        self.reader.set_nonblocking(True)
        self.writer.set_nonblocking(True)

    def lone(self) -> Any:
        one, other = UdStream.pair()
        other.close()
        return one


class TimedStreams(Streams):
    """A pair of UdStreams with a timeout, which makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.reader.timeout = self.writer.timeout = 20


class CollectingStreams(Streams):
    """A pair of UdStreams that collect ancillary data, which makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.reader.collect_ancillary = self.writer.collect_ancillary = True


class Pipe(Subject):
    """Two FileIO on a pipe."""

    def __init__(self) -> None:
        ours, theirs = os.pipe()
        self.reader, self.writer = io.FileIO(ours, "r"), io.FileIO(theirs, "w")

    def nonblocking(self) -> None:
        os.set_blocking(self.reader.fileno(), False)
        os.set_blocking(self.writer.fileno(), False)

    def lone(self) -> Any:
        return io.FileIO(os.open(os.devnull, os.O_RDWR), "r+")


class Sockets(Subject):
    """Two SocketIO, as socket.makefile makes them without a buffer."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair()
        self.reader, self.writer = (sock.makefile("rwb", 0) for sock in self.sockets)

    def nonblocking(self) -> None:
        for sock in self.sockets:
            sock.setblocking(False)

    def lone(self) -> Any:
        one, other = socket.socketpair()
        other.close()
        file = one.makefile("rwb", 0)
        one.close()
        return file

    def close(self) -> None:
        super().close()
        for sock in self.sockets:
            sock.close()


SUBJECTS: list[type[Subject]] = [Streams, TimedStreams, CollectingStreams, Pipe, Sockets]
CHECKS: dict[str, Callable[[Any], None]] = {}
TOO_MUCH = 1 << 20

# Where a reference falls short of what is checked, and how.
DIFFERS = {
    ("seek_is_unsupported", "Pipe"): "the kernel's OSError (ESPIPE) instead",
    ("read_without_a_size", "Sockets"): "no None: RawIOBase.read takes an int",
    ("drop_warns", "Sockets"): "silent; only its socket warns, when that is what is dropped",
    ("drop_warns_at_the_line_that_drops", "Sockets"): "silent",
    ("drop_closes_though_warnings_are_errors", "Sockets"): "silent",
    ("dropped_buffer_names_it", "Sockets"): "silent",
}


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Add *function* to the table; its docstring is the sentence of the contract."""
    CHECKS[function.__name__] = function
    return function


@check
def is_a_raw_file(s: Subject) -> None:
    """A raw file is an io.RawIOBase, and no buffered or text one."""
    assert isinstance(s.reader, io.RawIOBase)
    assert not isinstance(s.reader, io.BufferedIOBase | io.TextIOBase)


@check
def read_is_short(s: Subject) -> None:
    """read(n) returns what one system call gave, bytes, up to n."""
    s.writer.write(b"abcdef")
    assert s.reader.read(4) == b"abcd"
    assert s.reader.read(4) == b"ef"
    s.writer.write(b"x")
    assert type(s.reader.read(4)) is bytes


@check
def readinto_is_short(s: Subject) -> None:
    """Readinto fills what one system call gave, returns how much, and leaves the rest alone."""
    room = bytearray(b"....")
    s.writer.write(b"ab")
    assert s.reader.readinto(room) == 2
    assert room == b"ab.."


@check
def readinto_counts_bytes(s: Subject) -> None:
    """Readinto counts bytes, whatever the items of its buffer are."""
    numbers = array.array("i", [0, 0])
    s.writer.write(array.array("i", [1, 2]))
    assert s.reader.readinto(numbers) == len(bytes(numbers))
    assert list(numbers) == [1, 2]


@check
def end_of_file(s: Subject) -> None:
    """End of file is b"" of read and readall, 0 of readinto, and stays."""
    s.writer.write(b"last")
    s.writer.close()
    if isinstance(s, Sockets):
        s.sockets[1].close()
    assert s.reader.read(10) == b"last"
    for _ in range(2):
        assert s.reader.read(10) == b""
        assert s.reader.readinto(bytearray(10)) == 0
        assert s.reader.readall() == b""
        assert s.reader.read() == b""


@check
def read_without_a_size(s: Subject) -> None:
    """read(), read(-1) and read(None) read to the end of file, as readall does."""
    s.writer.write(b"abc")
    s.writer.close()
    if isinstance(s, Sockets):
        s.sockets[1].close()
    assert s.reader.read(None) == b"abc"
    assert s.reader.read(-1) == b""


@check
def read_takes_an_index(s: Subject) -> None:
    """read(n) takes what has an __index__."""

    class Two:
        def __index__(self) -> int:
            return 2

    s.writer.write(b"abc")
    assert s.reader.read(Two()) == b"ab"


@check
def would_block_is_none(s: Subject) -> None:
    """None means that a nonblocking file has nothing yet: of read, readinto and readall."""
    s.nonblocking()
    assert s.reader.read(1) is None
    assert s.reader.readinto(bytearray(1)) is None
    assert s.reader.readall() is None
    assert s.reader.read() is None


@check
def readall_of_what_there_is(s: Subject) -> None:
    """Readall of a nonblocking file returns what there is rather than None."""
    s.nonblocking()
    s.writer.write(b"abc")
    assert s.reader.readall() == b"abc"
    assert s.reader.readall() is None


@check
def write_is_short_then_none(s: Subject) -> None:
    """A nonblocking write returns how much was taken, and None when nothing was; not a byte more arrives."""
    s.nonblocking()
    total = 0
    first = s.writer.write(bytes(TOO_MUCH))
    assert 0 < first < TOO_MUCH
    count: int | None = first
    while count is not None:
        total += count
        count = s.writer.write(bytes(TOO_MUCH))
    assert len(s.reader.readall()) == total


@check
def write_counts_bytes(s: Subject) -> None:
    """Write returns a number of bytes, whatever the items of its buffer are; 0 for an empty one."""
    numbers = array.array("q", [1, 2])
    assert s.writer.write(numbers) == 16
    assert s.reader.read(100) == numbers.tobytes()
    assert s.writer.write(b"") == 0
    assert s.writer.write(memoryview(b"abcd")[1:3]) == 2
    assert s.reader.read(100) == b"bc"


@check
def buffers_are_given_back(s: Subject) -> None:
    """Once a call has returned it holds its buffer no more: a bytearray can be resized."""
    data, room = bytearray(b"abc"), bytearray(3)
    s.writer.write(data)
    s.reader.readinto(room)
    data.clear()
    room.clear()


@check
def text_is_a_type_error(s: Subject) -> None:
    """What is no buffer is a TypeError, and nothing is written."""
    for wrong in ("text", None, 5, [b"x"]):
        with pytest.raises(TypeError):
            s.writer.write(wrong)
        with pytest.raises(TypeError):
            s.reader.readinto(wrong)
    s.nonblocking()
    assert s.reader.read(1) is None


@check
def readonly_is_a_type_error(s: Subject) -> None:
    """Readinto of a read-only buffer is a TypeError, and takes nothing away."""
    s.writer.write(b"abc")
    with pytest.raises(TypeError):
        s.reader.readinto(b"...")
    assert s.reader.read(10) == b"abc"


@check
def reads_no_text_size(s: Subject) -> None:
    """A size that is no integer is a TypeError."""
    s.writer.write(b"abc")
    for wrong in ("1", 1.0, b"1"):
        with pytest.raises(TypeError):
            s.reader.read(wrong)


@check
def lines(s: Subject) -> None:
    """Readline, readlines, iteration and writelines are there."""
    s.writer.writelines([b"one\n", b"two\nthree\n", b"four"])
    s.writer.close()
    if isinstance(s, Sockets):
        s.sockets[1].close()
    assert s.reader.readline() == b"one\n"
    assert next(s.reader) == b"two\n"
    assert s.reader.readline(2) == b"th"
    assert list(s.reader) == [b"ree\n", b"four"]


@check
def lines_of_no_size(s: Subject) -> None:
    """None for a size, or any below 0, is no limit; 0 is an empty line, and takes nothing."""
    s.writer.writelines([b"one\n", b"two\n", b"three\n", b"four\n"])
    s.writer.close()
    if isinstance(s, Sockets):
        s.sockets[1].close()
    assert s.reader.readline(0) == b""
    assert s.reader.readline(None) == b"one\n"
    assert s.reader.readline(-5) == b"two\n"
    assert s.reader.readlines(None) == [b"three\n", b"four\n"]


@check
def what_it_can(s: Subject) -> None:
    """The reader is readable, the writer writable, neither seekable nor a terminal."""
    assert s.reader.readable() is True
    assert s.writer.writable() is True
    for file in (s.reader, s.writer):
        assert file.seekable() is False
        assert file.isatty() is False
        assert file.flush() is None


@check
def seek_is_unsupported(s: Subject) -> None:
    """Seek, tell and truncate raise io.UnsupportedOperation."""
    for call in (lambda: s.reader.seek(0), s.reader.tell, s.reader.truncate, lambda: s.reader.truncate(0)):
        with pytest.raises(io.UnsupportedOperation):
            call()


@check
def has_a_descriptor(s: Subject) -> None:
    """Fileno is the descriptor, the same every time, and so is name."""
    assert os.fstat(s.reader.fileno())
    assert s.reader.fileno() == s.reader.fileno() == s.reader.name
    assert "b" in s.reader.mode


@check
def closing_twice(s: Subject) -> None:
    """Close closes, once; a second close does nothing; closed says so."""
    assert s.reader.closed is False
    s.reader.close()
    assert s.reader.closed is True
    s.reader.close()
    assert s.reader.closed is True


@check
def close_closes_the_descriptor(s: Subject) -> None:
    """After close the descriptor is no more."""
    file = s.lone()
    fd = file.fileno()
    file.close()
    with pytest.raises(OSError):
        os.fstat(fd)


@check
def closed_one(s: Subject) -> None:
    """Each method of a closed file but close raises ValueError."""
    file = s.lone()
    file.close()
    calls: list[Callable[[], object]] = [
        lambda: file.read(1), lambda: file.read(0), lambda: file.read(), file.readall,
        lambda: file.readinto(bytearray(1)), lambda: file.write(b"x"), lambda: file.write(b""),
        file.readable, file.writable, file.seekable, file.isatty, file.flush, file.readline, file.readlines,
        lambda: file.writelines([]), lambda: next(file), lambda: iter(file), file.__enter__,
        file.tell, file.truncate, lambda: file.seek(0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError):
            call()


@check
def closed_one_has_no_fileno(s: Subject) -> None:
    """Fileno of a closed file raises ValueError."""
    file = s.lone()
    file.close()
    with pytest.raises(ValueError):
        file.fileno()


@check
def context_manager(s: Subject) -> None:
    """A with block gives the file itself, and closes it, also when it is left by an exception."""
    with s.lone() as file:
        assert not file.closed
    assert file.closed
    with pytest.raises(KeyError), s.lone() as file:
        raise KeyError
    assert file.closed


@check
def drop_closes(s: Subject) -> None:
    """A file that is dropped unclosed closes its descriptor."""
    file = s.lone()
    fd = file.fileno()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del file
    with pytest.raises(OSError):
        os.fstat(fd)


@check
def drop_warns(s: Subject) -> None:
    """A file that is dropped unclosed gives one ResourceWarning, which has its repr in it."""
    file = s.lone()
    name = repr(file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del file
    assert [ResourceWarning] == [warning.category for warning in caught]
    assert name in str(caught[0].message)


@check
def drop_warns_at_the_line_that_drops(s: Subject) -> None:
    """The warning of a dropped file is shown for the line that dropped it."""
    file = s.lone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = sys._getframe().f_lineno + 1
        del file
    assert [(__file__, line)] == [(warning.filename, warning.lineno) for warning in caught]


@check
def drop_closes_though_warnings_are_errors(s: Subject) -> None:
    """Where warnings are errors a dropped file closes its descriptor all the same; the warning is unraisable."""
    file = s.lone()
    fd = file.fileno()
    unraisable: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda args: unraisable.append(args.exc_type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del file
    finally:
        sys.unraisablehook = before
    with pytest.raises(OSError):
        os.fstat(fd)
    assert unraisable == [ResourceWarning]


@check
def no_pickle(s: Subject) -> None:
    """A file cannot be pickled: TypeError."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(s.reader, protocol)


@check
def attributes(s: Subject) -> None:
    """A raw file takes attributes of the user's own, and can be weakly referenced."""
    import weakref

    s.reader.note = "mine"
    assert s.reader.note == "mine"
    assert weakref.ref(s.reader)() is s.reader


@check
def standard_buffers_by_hand(s: Subject) -> None:
    """BufferedReader, BufferedWriter and TextIOWrapper work over it, and close it."""
    with (
        io.BufferedWriter(s.writer) as writer,
        io.TextIOWrapper(io.BufferedReader(s.reader), "utf-8") as reader,
    ):
        writer.write("caf\u00e9\nline\n".encode())
        writer.flush()
        assert reader.readline() == "caf\u00e9\n"
        assert reader.readline() == "line\n"
        assert reader.buffer.raw is s.reader
        assert reader.fileno() == s.reader.fileno()
    assert s.reader.closed
    assert s.writer.closed


@check
def buffered_reader_returns_a_line_at_once(s: Subject) -> None:
    """Readline of a BufferedReader does not wait for more than the line: a raw read is one system call."""
    reader = io.BufferedReader(s.reader, 1 << 16)
    s.writer.write(b"line\n")
    assert reader.readline() == b"line\n"
    reader.detach()


@check
def dropped_buffer_names_it(s: Subject) -> None:
    """A BufferedReader that is dropped unclosed gives a ResourceWarning that names it."""
    reader = io.BufferedReader(s.lone())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del reader
    assert [ResourceWarning] == [warning.category for warning in caught]
    assert "BufferedReader" in str(caught[0].message)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)
def test_contract(kind: type[Subject], name: str) -> None:
    """Each sentence of the contract holds for a UdStream, and for the references but where DIFFERS says so."""
    subject = kind()
    try:
        if (name, kind.__name__) in DIFFERS:
            with pytest.raises(Exception):  # noqa: B017 - whatever it is
                CHECKS[name](subject)
        else:
            CHECKS[name](subject)
    finally:
        subject.close()


def test_only_references_differ() -> None:
    """Nothing is excused for a UdStream, and each excuse is of a check that there is."""
    assert {kind for _, kind in DIFFERS} <= {"Pipe", "Sockets"}
    assert {name for name, _ in DIFFERS} <= CHECKS.keys()
