"""Descriptors and other control messages on a raw fd: all sent once, all received owned, none leaked."""

from __future__ import annotations

import array
import copy
import dis
import errno
import fcntl
import gc
import io
import multiprocessing.reduction
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from descriptors import fd_count, is_open
from real import MULTIPROCESSING_ACKNOWLEDGES

from udstream import UdStream, _collecting, ancillary
from udstream.ancillary import Credentials, FileDescriptors

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def read_and_collect(sock: socket.socket) -> None:
    """Read with `UdStream.collect_ancillary`, and close what came."""
    with UdStream.from_fd(os.dup(sock.fileno())) as stream:
        stream.collect_ancillary = True
        try:
            stream.read(10)
        finally:
            for _, received in stream.collected:
                received.close()


@pytest.fixture
def numbered() -> Iterator[Callable[[int], list[int]]]:
    """A maker of descriptors on files that each contain their own index, closed after the test."""
    made: list[int] = []

    def make(count: int) -> list[int]:
        fds = []
        for index in range(count):
            with tempfile.TemporaryFile() as file:
                file.write(b"%d" % index)
                file.flush()
                fds.append(os.dup(file.fileno()))
        made.extend(fds)
        return fds

    yield make
    for fd in made:
        os.close(fd)


def indexes(fds: Sequence[int]) -> list[int]:
    """What is in each of the files."""
    return [int(os.pread(fd, 10, 0)) for fd in fds]


class Chunked:
    """A socket that takes and sends a few bytes at a time, and counts what it was asked for."""

    def __init__(self, sock: socket.socket, most: int, fail_after: int = 10**9) -> None:
        self.sock = sock
        self.most = most
        self.fail_after = fail_after
        self.cmsgs: list[Any] = []

    def sendmsg(self, buffers: Sequence[Any], cmsgs: Any, flags: int) -> int:
        if len(self.cmsgs) == self.fail_after:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.cmsgs.append(list(cmsgs))
        return self.sock.sendmsg([b"".join(map(bytes, buffers))[: self.most]], cmsgs, flags)


# --- sending ---


@pytest.mark.parametrize("count", [1, 2, 3, 100, 253])
@pytest.mark.parametrize("by_number", [True, False])
def test_fds_arrive_in_order(
    pair: Pair, numbered: Callable[[int], list[int]], count: int, by_number: bool
) -> None:
    """Up to 253 descriptors arrive, in order, whether the socket is given as an int or as an object."""
    one, other = pair
    fds = numbered(count)

    sent = ancillary.send_fds(one.fileno() if by_number else one, b"data", fds)
    data, got = ancillary.recv_fds(other.fileno() if by_number else other, 100)

    with got:
        assert (sent, data) == (4, b"data")
        assert indexes(got) == list(range(count))


@pytest.mark.parametrize("call", ["send_fds", "send_ancillary"])
def test_more_than_253_are_refused(pair: Pair, call: str) -> None:
    """254 descriptors are a ValueError that names 253, also when split over items; nothing is sent."""
    one, other = pair
    other.setblocking(False)

    with pytest.raises(ValueError, match=r"254 .*253"):
        if call == "send_fds":
            ancillary.send_fds(one, b"data", [0] * 254)
        else:
            raw = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 0]))
            ancillary.send_ancillary(one, b"data", [[0] * 150, raw, [0] * 102])

    with pytest.raises(BlockingIOError):
        other.recv(1)


@pytest.mark.parametrize("payload", [b"", [], [b""], (b"", bytearray())])
def test_fds_without_a_byte_are_refused(pair: Pair, payload: Any) -> None:
    """Descriptors or credentials without a byte to carry them are a ValueError: the kernel would drop them."""
    one, _other = pair

    with pytest.raises(ValueError, match="need a byte"):
        ancillary.send_fds(one, payload, [0])
    with pytest.raises(ValueError, match="need a byte"):
        ancillary.send_ancillary(one, payload, [[0]])
    with pytest.raises(ValueError, match="need a byte"):
        ancillary.send_ancillary(one, payload, [Credentials.current()])


def test_nothing_to_send(pair: Pair) -> None:
    """Neither bytes nor descriptors: 0."""
    assert ancillary.send_fds(pair[0], b"", []) == 0
    assert ancillary.send_ancillary(pair[0], b"") == 0


class Named:
    """No descriptor."""

    def __repr__(self) -> str:
        return "<the wrong one>"


class Closed:
    def fileno(self) -> int:
        return -1


class Odd:
    def fileno(self) -> str:
        return "3"


class Yes:
    def fileno(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wrong", "error", "names"),
    [
        (Named(), TypeError, "<the wrong one>"),
        ("7", TypeError, "'7'"),
        (None, TypeError, "None"),
        (1.0, TypeError, "1.0"),
        (True, TypeError, "True"),
        (Odd(), TypeError, "'3'"),
        (Yes(), TypeError, "True"),
        (-1, ValueError, "-1"),
        (Closed(), ValueError, "-1"),
        (1 << 40, ValueError, str(1 << 40)),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_what_is_no_descriptor(
    pair: Pair, wrong: Any, error: type[Exception], names: str, before: int
) -> None:
    """What has no fileno() and is no int is a TypeError that names it; nothing is sent."""
    one, other = pair
    other.setblocking(False)
    fds = [0] * before + [wrong]

    sends: tuple[Callable[[], int], ...] = (
        lambda: ancillary.send_fds(one, b"data", fds),
        lambda: ancillary.send_fds(one, b"data", iter(fds)),
        lambda: ancillary.send_ancillary(one, b"data", [fds]),
    )
    for send in sends:
        with pytest.raises(error, match=names):
            send()
        with pytest.raises(BlockingIOError):
            other.recv(1)


@pytest.mark.parametrize("wrong", [Named(), True, "3", None, -1, Closed()])
def test_what_is_no_socket(wrong: Any) -> None:
    """The socket, too, is an int or has a fileno(); a bool is none."""
    with pytest.raises((TypeError, ValueError), match="descriptor"):
        ancillary.send_fds(wrong, b"data", [0])
    with pytest.raises((TypeError, ValueError), match="descriptor"):
        ancillary.recv_ancillary(wrong, bytearray(1))


def test_not_open(pair: Pair) -> None:
    """A number that is not open is the kernel's EBADF, and nothing is sent."""
    free = os.dup(0)
    os.close(free)

    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        ancillary.send_fds(pair[0], b"data", [free])

    assert caught.value.errno == errno.EBADF
    assert getattr(caught.value, "nbytes", None) == 0


def test_anything_with_fileno_is_sent(pair: Pair, tmp_path: Path) -> None:
    """Files, sockets, FileDescriptors, ints, and generators of them: all are sent, and stay open."""
    one, other = pair
    with open(tmp_path / "file", "w+b") as file, FileDescriptors([os.dup(0)]) as owned:
        things: list[Any] = [file, one, owned[0]]
        for fds in (things, (thing for thing in things)):
            ancillary.send_fds(one, b"x", fds)
            _data, got = ancillary.recv_fds(other, 1)
            with got:
                assert [os.fstat(fd).st_ino for fd in got] == [
                    os.fstat(thing).st_ino for thing in (file.fileno(), one.fileno(), 0)
                ]
        ancillary.send_fds(one, b"x", owned)
        _data, got = ancillary.recv_fds(other, 1)
        got.close()

        assert len(owned) == 1
        os.fstat(owned[0])


class Number(IntEnum):
    """Descriptors by their names."""

    INPUT = 0
    OUTPUT = 1


def test_a_named_number_is_a_descriptor(pair: Pair) -> None:
    """An IntEnum, or any other int, does for a socket as for what is sent."""
    one, other = pair
    by_name = IntEnum("by_name", {"one": one.fileno(), "other": other.fileno()})

    assert ancillary.send_fds(by_name.one, b"x", [Number.INPUT, Number.OUTPUT]) == 1
    data, fds = ancillary.recv_fds(by_name.other, 10)
    with fds:
        assert (data, len(fds)) == (b"x", 2)
        for fd, number in zip(fds, (0, 1), strict=True):
            assert os.path.sameopenfile(fd, number)


@pytest.mark.parametrize("objects", [0, 1, 3])
def test_three_descriptors_in_a_tuple(pair: Pair, objects: int) -> None:
    """A tuple of three is a control message only if its third is bytes; else it is three descriptors."""
    one, other = pair
    item = (*range(3 - objects), *(one for _ in range(objects)))

    ancillary.send_ancillary(one, b"x", [item])
    with ancillary.recv_ancillary(other, bytearray(1)) as received:
        assert len(received.fds) == 3


def test_temporary_objects_live_until_sent(pair: Pair) -> None:
    """What a generator makes on the way is not closed before it is sent."""
    one, other = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        ancillary.send_fds(one, b"x", (tempfile.TemporaryFile() for _ in range(3)))
        _data, got = ancillary.recv_fds(other, 1)
        got.close()

    assert len(got) == 0


def test_a_file_for_an_iterable_is_refused(pair: Pair, tmp_path: Path) -> None:
    """A file is an iterable of lines: given where descriptors belong it is a TypeError, and is not read."""
    path = tmp_path / "file"
    path.write_text("one\ntwo\n")
    with open(path) as file:
        with pytest.raises(TypeError, match="iterable"):
            ancillary.send_fds(pair[0], b"x", file)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="iterable"):
            ancillary.send_ancillary(pair[0], b"x", [file])

        assert file.readline() == "one\n"


@pytest.mark.parametrize("wrong", [[3], 3, [b"3"], ["3"], [None]])
def test_what_is_no_ancillary_item(pair: Pair, wrong: Any) -> None:
    """An item of ancillary that is none of the three kinds is a TypeError."""
    with pytest.raises(TypeError, match="iterable"):
        ancillary.send_ancillary(pair[0], b"x", wrong)


@pytest.mark.parametrize(
    "buffers",
    [
        b"0123456789",
        bytearray(b"0123456789"),
        memoryview(b"0123456789"),
        array.array("H", b"0123456789"),
        [b"0123456789"],
        [b"", b"0123", bytearray(b"45"), b"", memoryview(b"6789")],
        (part for part in (b"01234", b"56789")),
    ],
)
@pytest.mark.parametrize("most", [1, 3, 10])
def test_all_is_sent_and_the_fds_once(pair: Pair, buffers: Any, most: int) -> None:
    """The whole payload goes, whatever the kernel takes at once; the descriptors with its first byte alone."""
    one, other = pair
    if not isinstance(buffers, (bytes, bytearray, memoryview, array.array, list)):
        buffers = [b"01234", b"56789"]
    chunked = Chunked(one, most)

    sent = ancillary._send_fds(chunked, buffers, [0])

    assert sent == 10
    assert [len(cmsgs) for cmsgs in chunked.cmsgs] == [1] + [0] * (len(chunked.cmsgs) - 1)
    data, got = ancillary.recv_fds(other, 100)
    with got:
        while len(data) < 10:
            data += other.recv(100)
        assert (data, len(got)) == (b"0123456789", 1)


def test_large_payload(pair: Pair) -> None:
    """More than the socket's buffer holds is sent by a blocking call, and received to the last byte."""
    one, other = pair
    payload = random.Random(1).randbytes(3_000_000)
    received = bytearray()
    fds = []

    def read() -> None:
        while len(received) < len(payload):
            data, got = ancillary.recv_fds(other, 100_000)
            received.extend(data)
            fds.extend(got.take())

    reader = threading.Thread(target=read)
    reader.start()
    assert ancillary.send_fds(one, payload, [0, 1]) == len(payload)
    reader.join()

    assert received == payload
    assert len(fds) == 2
    for fd in fds:
        os.close(fd)


def test_error_on_the_way_says_how_much_went(pair: Pair) -> None:
    """An error in the middle of the payload has .nbytes, and holds no lock on the caller's bytearray."""
    payload = bytearray(b"0123456789")

    with pytest.raises(BlockingIOError) as caught:
        ancillary._send_fds(Chunked(pair[0], 3, fail_after=2), payload, [0])

    assert getattr(caught.value, "nbytes", None) == 6
    del payload[:6]


def test_nonblocking_send(pair: Pair) -> None:
    """A nonblocking socket that is full raises BlockingIOError with what went before."""
    one, _other = pair
    one.setblocking(False)

    with pytest.raises(BlockingIOError) as caught:
        ancillary.send_fds(one, bytes(10_000_000), [0])

    nbytes = getattr(caught.value, "nbytes", 0)
    assert 0 < nbytes < 10_000_000
    with pytest.raises(BlockingIOError):
        ancillary.send_ancillary(one, b"x")


def test_send_ancillary_may_be_short(pair: Pair) -> None:
    """send_ancillary is one sendmsg, whose short count it returns."""
    one, _other = pair
    one.setblocking(False)

    assert 0 < ancillary.send_ancillary(one, bytes(10_000_000), [[0]]) < 10_000_000


@pytest.mark.parametrize("empty", [0, 2000])
def test_more_buffers_than_iov_max(pair: Pair, empty: int) -> None:
    """More buffers than IOV_MAX are no error: send_fds sends them all, the others are short; no fd is lost."""
    one, other = pair
    buffers = [b""] * empty + [b"%04d" % index for index in range(3000)]
    whole = b"".join(buffers)

    assert ancillary.send_fds(one, buffers, [0]) == 12_000
    data, got = ancillary.recv_fds(other, 20_000)
    while len(data) < 12_000:
        data += other.recv(20_000)
    assert data == whole
    assert len(got) == 1
    got.close()

    short = ancillary.send_ancillary(one, buffers, [[0]])
    assert 0 < short < 12_000
    into = [bytearray(0) for _ in range(empty)] + [bytearray(1) for _ in range(12_000)]
    received = ancillary.recv_ancillary(other, into)
    assert received.nbytes == 1024
    assert b"".join(into)[:1024] == whole[:1024]
    assert len(received.fds) == 1
    received.close()


def test_broken_pipe_is_no_signal(pair: Pair) -> None:
    """Sending to a closed end is BrokenPipeError, also where SIGPIPE would kill."""
    one, other = pair
    other.close()
    old = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(BrokenPipeError):
            ancillary.send_fds(one, b"x", [0])
        with pytest.raises(BrokenPipeError):
            ancillary.send_ancillary(one, b"x")
    finally:
        signal.signal(signal.SIGPIPE, old)


# --- receiving ---


@pytest.mark.parametrize("by_number", [True, False])
def test_received_fds_are_close_on_exec(pair: Pair, by_number: bool) -> None:
    """A received descriptor is close-on-exec: an exec'd child does not have it."""
    one, other = pair
    with open(os.devnull) as null:
        os.set_inheritable(null.fileno(), True)
        ancillary.send_fds(one, b"x", [null])
        _data, got = ancillary.recv_fds(other.fileno() if by_number else other, 1)
        with got:
            assert fcntl.fcntl(got[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            ran = subprocess.run(
                [sys.executable, "-c", f"import os; os.fstat({got[0]})"],
                close_fds=False,
                capture_output=True,
                check=False,
            )
    assert b"Bad file descriptor" in ran.stderr


def test_scatter(pair: Pair) -> None:
    """The buffers are filled in turn, of whatever writable kind, and a short count says how far."""
    one, other = pair
    one.sendall(b"abcdefgh")
    first, second, third = bytearray(3), array.array("b", bytes(2)), memoryview(bytearray(10))

    received = ancillary.recv_ancillary(other, [first, bytearray(), second, third])

    assert (received.nbytes, bytes(first), second.tobytes(), bytes(third[:3])) == (8, b"abc", b"de", b"fgh")
    assert (list(received.fds), received.credentials, received.ancillary) == ([], None, [])
    assert received.truncated is False


def test_buffers_from_an_iterator(pair: Pair) -> None:
    """What is sent from, or received into, may come from a generator; what is neither is named."""
    one, other = pair
    rooms = [bytearray(2), bytearray(), bytearray(4)]

    assert ancillary.send_fds(one, iter([b"ab", b"", b"cd"]), [0]) == 4
    with ancillary.recv_ancillary(other, iter(rooms)) as received:
        assert (received.nbytes, len(received.fds)) == (4, 1)
    assert b"".join(rooms)[:4] == b"abcd"
    with pytest.raises(TypeError, match="buffers must be an iterable, not 3"):
        ancillary.recv_ancillary(other, 3)  # type: ignore[arg-type]


def test_read_only_buffer_is_refused(pair: Pair) -> None:
    """A buffer that cannot be written to is a TypeError, and nothing is received."""
    one, other = pair
    ancillary.send_fds(one, b"x", [0])

    for wrong in (b"abc", [b"abc"], 3, None):
        with pytest.raises(TypeError):
            ancillary.recv_ancillary(other, wrong)  # type: ignore[arg-type]

    _data, got = ancillary.recv_fds(other, 1)
    assert len(got) == 1
    got.close()


@pytest.mark.parametrize("buffers", [bytearray(), [], [bytearray()], (bytearray(), bytearray())])
def test_no_room_is_refused(pair: Pair, buffers: Any) -> None:
    """No room for a byte is a ValueError, and the descriptors wait for a call that has some."""
    one, other = pair
    ancillary.send_fds(one, b"x", [0])

    with pytest.raises(ValueError, match="one byte"):
        ancillary.recv_ancillary(other, buffers)
    for size in (0, -1):
        with pytest.raises(ValueError, match="bufsize"):
            ancillary.recv_fds(other, size)

    data, got = ancillary.recv_fds(other, 1)
    assert (data, len(got)) == (b"x", 1)
    got.close()


def test_the_kernel_parts_fds_from_bytes_for_an_empty_buffer(pair: Pair) -> None:
    """Why there must be room: into no buffer the kernel delivers descriptors alone, like an end of file."""
    one, other = pair
    socket.send_fds(one, [b"x"], [0])

    data, cmsgs, _flags, _address = other.recvmsg(0, 1000)

    assert data == b""
    os.close(struct.unpack("i", cmsgs[0][2])[0])


def test_end_of_file(pair: Pair) -> None:
    """At the end of file: 0 bytes, nothing else."""
    one, other = pair
    one.close()

    assert ancillary.recv_ancillary(other, bytearray(1)).nbytes == 0
    data, got = ancillary.recv_fds(other, 1)
    assert (data, list(got)) == (b"", [])


def test_nonblocking_receive(pair: Pair) -> None:
    """A nonblocking socket with nothing to read raises BlockingIOError."""
    other = pair[1]
    other.setblocking(False)

    with pytest.raises(BlockingIOError):
        ancillary.recv_ancillary(other, bytearray(1))
    with pytest.raises(BlockingIOError):
        ancillary.recv_fds(other, 1)


@pytest.mark.parametrize("count", [1, 2, 5, 253])
@pytest.mark.parametrize("kept", [0, 1, 2, 4, 252])
def test_max_fds_of_recv_ancillary(
    pair: Pair, numbered: Callable[[int], list[int]], count: int, kept: int
) -> None:
    """Never more than max_fds are kept; the rest is closed, truncated is set, and no byte is lost."""
    one, other = pair
    fds = numbered(count)
    before = fd_count()
    ancillary.send_fds(one, b"data", fds)

    buffer = bytearray(10)
    received = ancillary.recv_ancillary(other, buffer, max_fds=kept)

    assert indexes(received.fds) == list(range(min(count, kept)))
    assert (received.nbytes, bytes(buffer[:4]), received.truncated) == (4, b"data", count > kept)
    assert fd_count() == before + min(count, kept)
    received.close()
    assert fd_count() == before


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_max_fds_of_recv_fds(pair: Pair, numbered: Callable[[int], list[int]], count: int, kept: int) -> None:
    """recv_fds that lost some raises EMSGSIZE, says so, and hands over what came."""
    one, other = pair
    fds = numbered(count)
    ancillary.send_fds(one, b"data", fds)
    if count <= kept:
        data, got = ancillary.recv_fds(other, 10, kept)
        with got:
            assert (data, indexes(got)) == (b"data", list(range(count)))
        return

    with pytest.raises(OSError, match=f"max_fds={kept}") as caught:
        ancillary.recv_fds(other, 10, kept)

    error: Any = caught.value
    assert error.errno == errno.EMSGSIZE
    assert error.data == b"data"
    assert isinstance(error.fds, FileDescriptors)
    assert indexes(error.fds) == list(range(kept))
    error.fds.close()


def test_nobody_looks_at_the_error(pair: Pair) -> None:
    """What hangs on an error is closed with it, without a warning: nobody was asked to close it."""
    one, other = pair
    before = fd_count()
    ancillary.send_fds(one, b"data", [0, 0, 0])

    try:
        ancillary.recv_fds(other, 10, 2)
    except OSError:
        pass

    assert fd_count() == before


def test_negative_max_fds(pair: Pair) -> None:
    """A negative max_fds is a ValueError."""
    with pytest.raises(ValueError, match="max_fds"):
        ancillary.recv_ancillary(pair[1], bytearray(1), max_fds=-1)
    with pytest.raises(ValueError, match="max_fds"):
        ancillary.recv_fds(pair[1], 1, -1)


def test_fds_stop_a_read(pair: Pair) -> None:
    """Two messages with descriptors never merge: each comes with its own bytes, and those before it."""
    one, other = pair
    one.sendall(b"11")
    ancillary.send_fds(one, b"22", [0])
    ancillary.send_fds(one, b"33", [0])
    one.sendall(b"44")

    seen = []
    for _ in range(2):
        data, got = ancillary.recv_fds(other, 100)
        seen.append((data, len(got)))
        got.close()

    assert seen == [(b"1122", 1), (b"3344", 1)] or seen == [(b"1122", 1), (b"33", 1)]


class Scripted:
    """A socket to which the kernel says what the test wants it to have said."""

    def __init__(self, cmsgs: list[tuple[int, int, bytes]], flags: int = 0) -> None:
        self.result = (3, cmsgs, flags, None)

    def recvmsg_into(self, buffers: Any, ancbufsize: int, flags: int) -> Any:
        return self.result


def rights(count: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [os.dup(0) for _ in range(count)]).tobytes()


CREDS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 5, 6, 7))
LABEL = (socket.SOL_SOCKET, 3, b"a label\0")
INQ = (socket.SOL_SOCKET, 84, struct.pack("i", 90))
ELSE = (41, 2, b"??")


@pytest.mark.parametrize("order", range(24))
def test_messages_in_any_order(order: int) -> None:
    """Credentials before fds, fds before credentials, several of them, unknown kinds: all decoded."""
    messages = [CREDS, LABEL, INQ, ELSE]
    shuffled = random.Random(order).sample(messages, len(messages))
    shuffled.insert(order % 5, rights(2))
    shuffled.insert((order + 3) % 6, rights(1))

    with ancillary._receive(Scripted(shuffled), bytearray(3), 253) as received:
        assert len(received.fds) == 3
        assert received.credentials == (5, 6, 7)
        assert received.security == b"a label"
        assert sorted(received.ancillary) == sorted([INQ, ELSE])
        assert received.truncated is False
        assert received.nbytes == 3


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_max_fds_over_several_messages(kept: int) -> None:
    """max_fds counts the descriptors of all messages together."""
    before = fd_count()

    received = ancillary._receive(Scripted([rights(2), CREDS, rights(1)]), bytearray(3), kept)

    assert (len(received.fds), received.truncated) == (kept, kept < 3)
    received.close()
    assert fd_count() == before


def test_pidfd_message() -> None:
    """SCM_PIDFD brings a descriptor of its own, which is owned; an errno in its place is handed on."""
    before = fd_count()
    pidfd = os.dup(0)
    brought = (socket.SOL_SOCKET, 4, struct.pack("i", pidfd))
    failed = (socket.SOL_SOCKET, 4, struct.pack("i", -errno.EMFILE))

    received = ancillary._receive(Scripted([brought, rights(1)]), bytearray(3), 253)
    assert (list(received.pidfd), len(received.fds)) == ([pidfd], 1)
    received.close()
    assert fd_count() == before

    received = ancillary._receive(Scripted([failed]), bytearray(3), 253)
    assert (list(received.pidfd), received.ancillary) == ([], [failed])


def test_pidfds_of_the_kernel(pair: Pair) -> None:
    """With SO_PASSPIDFD on, each message's pidfd is owned by what was received, and recv_fds closes it."""
    one, other = pair
    try:
        other.setsockopt(socket.SOL_SOCKET, 76, 1)
    except OSError:
        pytest.skip("this kernel has no SO_PASSPIDFD")
    before = fd_count()

    ancillary.send_fds(one, b"x", [0])
    with ancillary.recv_ancillary(other, bytearray(1)) as received:
        assert (len(received.pidfd), len(received.fds)) == (1, 1)
        assert fcntl.fcntl(received.pidfd[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert f"Pid:\t{os.getpid()}" in Path(f"/proc/self/fdinfo/{received.pidfd[0]}").read_text()
    ancillary.send_fds(one, b"x", [0])
    _data, got = ancillary.recv_fds(other, 1)
    got.close()
    one.send(b"x")
    read_and_collect(other)

    assert fd_count() == before


@pytest.mark.parametrize("garbage", [b"", b"\1", b"\1\2\3", bytes(4096)])
@pytest.mark.parametrize("kind", [2, 4, 5, 99, -1])
def test_garbage_is_handed_on(garbage: bytes, kind: int) -> None:
    """Control data that is not what its kind promises is handed on as it is, and breaks nothing."""
    message = (socket.SOL_SOCKET, kind, garbage)

    received = ancillary._receive(Scripted([message, rights(1)]), bytearray(3), 253)

    assert received.ancillary == [message]
    assert len(received.fds) == 1
    received.close()


def test_unknown_message_goes_round(pair: Pair) -> None:
    """A raw (level, type, data) is sent as it is."""
    one, other = pair
    raw = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))

    assert ancillary.send_ancillary(one, [b"x", b"y"], [raw, [0, 1], FileDescriptors()]) == 2
    with ancillary.recv_ancillary(other, bytearray(2)) as received:
        assert len(received.fds) == 3

    with pytest.raises(TypeError, match="level and type"):
        ancillary.send_ancillary(one, b"x", [("a", 1, b"")])


# --- borrowing ---


def test_a_number_that_is_another_file_by_now() -> None:
    """A number means what is open under it at the time of the call, whatever was before."""
    one, other = socket.socketpair()
    number = other.fileno()
    with one:
        ancillary.send_fds(one.fileno(), b"x", [0])
        ancillary.recv_fds(number, 1)[1].close()
        other.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        ancillary.recv_fds(number, 1)

    one, other = socket.socketpair()
    with one:
        os.dup2(other.detach(), number)
        one.setblocking(False)
        one.send(b"second")
        with ancillary.recv_ancillary(number, bytearray(6)) as received:
            assert received.nbytes == 6
        os.set_blocking(number, False)
        with pytest.raises(BlockingIOError):
            ancillary.recv_fds(number, 1)
    os.dup2(0, number)
    with pytest.raises(OSError, match="non-socket"):
        ancillary.recv_fds(number, 1)
    os.close(number)


def test_many_numbers() -> None:
    """However many descriptors are used by their numbers, each call meets its own, and no memory is kept for all."""
    pairs = [socket.socketpair() for _ in range(200)]
    for _ in range(2):
        for at, (one, other) in enumerate(pairs):
            ancillary.send_fds(one.fileno(), b"%d" % at, [0])
            data, fds = ancillary.recv_fds(other.fileno(), 10)
            fds.close()
            assert data == b"%d" % at
    assert len(ancillary._borrowed) <= 64
    for pair in pairs:
        for sock in pair:
            sock.close()


@pytest.mark.parametrize("nonblocking", [True, False])
def test_the_mode_of_the_fd_stays(pair: Pair, nonblocking: bool) -> None:
    """No function changes the blocking mode, even after socket.setdefaulttimeout(); nor closes the fd."""
    one, other = pair
    os.set_blocking(one.fileno(), not nonblocking)
    os.set_blocking(other.fileno(), not nonblocking)
    socket.setdefaulttimeout(5)
    try:
        ancillary.send_fds(one.fileno(), b"ab", [0])
        ancillary.recv_fds(other.fileno(), 1)[1].close()
        ancillary.recv_ancillary(other.fileno(), bytearray(1))
        ancillary.peer_credentials(other.fileno())
        ancillary.set_passcred(other.fileno(), True)
        ancillary.get_passcred(other.fileno())
    finally:
        socket.setdefaulttimeout(None)

    assert os.get_blocking(one.fileno()) is not nonblocking
    assert os.get_blocking(other.fileno()) is not nonblocking
    os.fstat(one.fileno())


def test_no_socket_at_all() -> None:
    """A descriptor that is no socket is the kernel's ENOTSOCK, and stays open."""
    with open(os.devnull) as null:
        for call in (
            lambda: ancillary.send_fds(null, b"x", [0]),
            lambda: ancillary.recv_fds(null, 1),
            lambda: ancillary.peer_credentials(null),
            lambda: ancillary.set_passcred(null, True),
        ):
            with pytest.raises(OSError, match="non-socket") as caught:
                call()
            assert caught.value.errno == errno.ENOTSOCK
        os.fstat(null.fileno())


# --- FileDescriptors ---


def dups(count: int) -> list[int]:
    return [os.dup(0) for _ in range(count)]


def test_a_sequence_of_ints() -> None:
    """FileDescriptors is a sequence: length, index, slice, iteration, membership, truth."""
    numbers = dups(3)
    with FileDescriptors(numbers) as fds:
        assert len(fds) == 3
        assert [fds[0], fds[-1]] == [numbers[0], numbers[-1]]
        assert fds[1:] == numbers[1:]
        assert list(fds) == numbers
        assert list(reversed(fds)) == numbers[::-1]
        assert numbers[1] in fds
        assert fds.index(numbers[2]) == 2
        assert bool(fds)
        assert repr(numbers) in repr(fds)
        with pytest.raises(IndexError):
            fds[3]
    assert not fds


@pytest.mark.parametrize("holes", [(), (0,), (3,), (1, 4), (0, 2, 4, 6, 8), (9,), tuple(range(10))])
def test_close_closes_just_its_own(holes: tuple[int, ...]) -> None:
    """Closing closes every descriptor owned and no other, consecutive or not, in any order; twice is nothing."""
    numbers = dups(10)
    foreign = [numbers[hole] for hole in holes]
    own = [fd for fd in numbers if fd not in foreign]
    random.Random(len(holes)).shuffle(own)

    fds = FileDescriptors(own)
    fds.close()
    fds.close()

    assert len(fds) == 0
    assert not any(map(is_open, own))
    assert all(map(is_open, foreign))
    for fd in foreign:
        os.close(fd)


def test_with_closes() -> None:
    """The end of a with closes, also by an exception."""
    numbers = dups(2)

    with pytest.raises(KeyError), FileDescriptors(numbers):
        raise KeyError

    assert not any(map(is_open, numbers))


def test_dropped_unclosed_warns() -> None:
    """What nobody took is closed when the object goes, with a ResourceWarning that names the numbers."""
    numbers = dups(2)
    fds = FileDescriptors(numbers)

    with pytest.warns(ResourceWarning, match=str(numbers[0])):
        del fds
        gc.collect()

    assert not any(map(is_open, numbers))


@pytest.mark.parametrize("how", ["del", "with"])
def test_taken_is_not_closed(how: str) -> None:
    """take() hands over a list of ints; the object is empty then, and closes nothing."""
    numbers = dups(2)
    fds = FileDescriptors(numbers)

    taken = fds.take()
    if how == "with":
        with fds:
            pass
    assert (len(fds), list(fds), fds.take()) == (0, [], [])
    del fds
    gc.collect()

    assert taken == numbers
    for fd in taken:
        os.close(fd)


def test_warnings_as_errors() -> None:
    """Where warnings are errors, what nobody took is closed all the same."""
    (number,) = dups(1)
    heard: list[Any] = []
    hook = sys.unraisablehook
    sys.unraisablehook = heard.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FileDescriptors([number])
    finally:
        sys.unraisablehook = hook

    assert len(heard) == 1
    assert not is_open(number)


def test_still_open_at_exit() -> None:
    """At the interpreter's end an unclosed one warns and breaks nothing."""
    code = (
        "import os, udstream.ancillary as a\n"
        "fds = a.FileDescriptors([os.dup(0)])\n"
        "left = a._LeftInError([os.dup(0)])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert "ResourceWarning: unclosed" in ran.stderr
    assert "Error" not in ran.stderr.replace("ResourceWarning", "")


@pytest.mark.parametrize("wrong", [["1"], [True], [None], [-1], [0, 0]])
def test_owning_what_is_none(wrong: Any) -> None:
    """What is no descriptor, or is given twice, cannot be owned."""
    with pytest.raises((TypeError, ValueError)):
        FileDescriptors(wrong)


def test_an_fd_closed_behind_its_back() -> None:
    """A descriptor closed by number keeps no other from being closed, and is no error."""
    for count in (1, 3):
        numbers = dups(count)
        os.close(numbers[0])

        FileDescriptors(numbers).close()

        assert not any(map(is_open, numbers))


def test_no_copies() -> None:
    """A second owner of the same numbers cannot be made by copying or pickling."""
    with FileDescriptors(dups(1)) as fds:
        with pytest.raises(TypeError, match="send_fds"):
            copy.copy(fds)
        with pytest.raises(TypeError, match="send_fds"):
            pickle.dumps(fds)


def test_one_as_a_file(pair: Pair, tmp_path: Path) -> None:
    """file() makes the file object over one descriptor, which owns it; the others keep their places."""
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    with open(path) as one, open(path, "r+b") as two, open(path, "rb") as three:
        ancillary.send_fds(pair[0], b"x", [one, two, three])
    _data, fds = ancillary.recv_fds(pair[1], 1)
    numbers = list(fds)

    with fds:
        with fds.file(1, "r+b", 0) as raw, fds.file(0, encoding="ascii") as text:
            assert isinstance(raw, io.FileIO)
            assert (raw.name, text.name) == (numbers[1], numbers[0])
            assert text.read() == "hello\n"
            raw.write(b"H")
        assert list(fds) == [-1, -1, numbers[2]]
        assert not is_open(numbers[0])
        with pytest.raises(ValueError, match="taken"):
            fds.file(0)
        with pytest.raises(IndexError):
            fds.file(3)
        with fds.file(2, "rb") as buffered:
            assert isinstance(buffered, io.BufferedReader)
            assert buffered.name == numbers[2]
        assert fds.take() == []


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    """Wrong arguments leave the descriptor where it is; a later failure closes it: it never leaks."""
    before = fd_count()
    with FileDescriptors(dups(1)) as fds:
        with pytest.raises(ValueError, match="mode"):
            fds.file(0, "nonsense")
        assert fds[0] >= 0
        with pytest.raises(LookupError):
            fds.file(0, "r", encoding="no such encoding")
        assert fd_count() == before
    folder = os.open(tmp_path, os.O_RDONLY)
    with FileDescriptors([folder]) as fds, pytest.raises(IsADirectoryError):
        fds.file(0)
    assert fd_count() == before


@pytest.mark.parametrize("nonblocking", [True, False])
@pytest.mark.parametrize("default", [None, 5.0])
def test_one_as_a_socket(nonblocking: bool, default: float | None) -> None:
    """socket() makes the socket.socket of the right family and type, in the mode that the fd has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as original:
        original.setblocking(not nonblocking)
        socket.setdefaulttimeout(default)
        try:
            with FileDescriptors([os.dup(original.fileno())]) as fds, fds.socket(0) as sock:
                assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_DGRAM)
                assert sock.gettimeout() == (0.0 if nonblocking else None)
                assert list(fds) == [-1]
            assert os.get_blocking(original.fileno()) is not nonblocking
        finally:
            socket.setdefaulttimeout(None)

    with FileDescriptors(dups(1)) as fds:
        with pytest.raises(OSError, match="non-socket") as caught:
            fds.socket(0)
        assert caught.value.errno == errno.ENOTSOCK
        assert fds[0] >= 0


def test_one_as_a_stream(pair: Pair) -> None:
    """stream() makes a UdStream; what is no Unix stream socket is a ValueError and stays."""
    one, other = pair
    with FileDescriptors([os.dup(other.fileno()), os.dup(0)]) as fds:
        with fds.stream(0) as stream:
            one.send(b"hello")
            assert stream.read(10) == b"hello"
        with pytest.raises(ValueError, match="socket"):
            fds.stream(1)
        assert [fd >= 0 for fd in fds] == [False, True]


def test_one_as_a_listener(folder: Path) -> None:
    """listener() makes a UdStreamListener, which leaves the file; what does not listen is a ValueError and stays."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as original:
        original.bind(str(path))
        original.listen()
        with FileDescriptors([os.dup(original.fileno()), os.dup(0)]) as fds:
            with pytest.raises(ValueError, match="it listens, which is for UdStreamListener"):
                fds.stream(0)
            with fds.listener(0) as listener, UdStream.connect(path) as one, listener.accept() as other:
                one.write(b"hello")
                assert other.read(10) == b"hello"
            with pytest.raises(ValueError, match="socket"):
                fds.listener(1)
            assert [fd >= 0 for fd in fds] == [False, True]
    assert path.exists()


# --- the other end is not ours ---


def test_against_socket_send_fds(pair: Pair, numbered: Callable[[int], list[int]]) -> None:
    """CPython's socket.send_fds and recv_fds at the other end."""
    one, other = pair
    fds = numbered(3)

    socket.send_fds(one, [b"x"], fds)
    _data, got = ancillary.recv_fds(other, 1)
    with got:
        assert indexes(got) == [0, 1, 2]

    ancillary.send_fds(one, b"x", fds)
    _data, numbers, _flags, _address = socket.recv_fds(other, 1, 3)
    assert indexes(numbers) == [0, 1, 2]
    for fd in numbers:
        os.close(fd)


def test_against_multiprocessing(pair: Pair, numbered: Callable[[int], list[int]]) -> None:
    """multiprocessing.reduction at the other end."""
    one, other = pair
    fds = numbered(2)

    sender = threading.Thread(target=multiprocessing.reduction.sendfds, args=(one, fds))
    sender.start()
    data, got = ancillary.recv_fds(other, 1)
    with got:
        assert data == b"\2"
        assert indexes(got) == [0, 1]
        if MULTIPROCESSING_ACKNOWLEDGES:
            other.send(b"A")
    sender.join()

    ancillary.send_fds(one, b"\1", fds[:1])
    (number,) = multiprocessing.reduction.recvfds(other, 1)
    assert indexes([number]) == [0]
    os.close(number)
    if MULTIPROCESSING_ACKNOWLEDGES:
        assert one.recv(2) == b"A"


def test_another_process(pair: Pair, tmp_path: Path) -> None:
    """A child sends an open file; we read it here, with the child long gone."""
    one, other = pair
    (tmp_path / "file").write_text("from the child")
    code = (
        "import sys; from udstream import ancillary\n"
        "with open(sys.argv[2]) as file: ancillary.send_fds(int(sys.argv[1]), b'x', [file])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(one.fileno()), str(tmp_path / "file")],
        pass_fds=[one.fileno()],
        check=True,
    )

    _data, fds = ancillary.recv_fds(other, 1)
    with fds, fds.file(0) as file:
        assert file.read() == "from the child"


# --- exceptions anywhere ---


class Interrupted(TimeoutError, ConnectionError):
    """What the signal handlers here raise."""


NEVER = 1 << 30
# Does nothing, and nothing happens there; Python 3.15 leaves it out of what a "try" covers.
NOT_TAKEN = dis.opmap.get("NOT_TAKEN")


@cache
def instructions(code: CodeType) -> bytes:
    """Kept, since Python makes them anew each time."""
    return code.co_code


def in_finaliser(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def interrupt_at(step: int, call: Callable[[], Any]) -> bool:
    """
    Run *call*, raising at its *step*-th bytecode in the module; whether it got that far.

    Python 3.12 traces the bytecodes only of what has been traced before: run it once without raising.
    """
    left = step

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        # What a finaliser raises goes nowhere, and no more than one thing is raised at a time.
        if frame.f_code.co_filename not in (ancillary.__file__, _collecting.__file__) or in_finaliser(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and instructions(frame.f_code)[frame.f_lasti] != NOT_TAKEN:
            if left == 0:
                left = -1
                raise Interrupted
            left -= 1
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        pass
    finally:
        sys.settrace(old)
    return left == -1


CALLS: dict[str, Callable[[socket.socket], Any]] = {
    "recv_fds": lambda sock: ancillary.recv_fds(sock, 10),
    "recv_fds by number": lambda sock: ancillary.recv_fds(sock.fileno(), 10),
    "recv_fds with too many": lambda sock: ancillary.recv_fds(sock, 10, 1),
    "recv_ancillary": lambda sock: ancillary.recv_ancillary(sock, bytearray(10)),
    "recv_ancillary with too many": lambda sock: ancillary.recv_ancillary(sock, bytearray(10), max_fds=1),
    "collecting": read_and_collect,
    "closed": lambda sock: ancillary.recv_fds(sock, 10)[1].close(),
}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("pidfds", [False, True])
def test_an_exception_at_any_bytecode_leaks_nothing(name: str, pidfds: bool) -> None:
    """Wherever a signal handler may raise, the descriptors have an owner, and the socket keeps its own."""
    one, other = socket.socketpair()
    with one, other:
        if pidfds:
            try:
                other.setsockopt(socket.SOL_SOCKET, 76, 1)
            except OSError:
                pytest.skip("this kernel has no SO_PASSPIDFD")
        before = fd_count()
        for step in (NEVER, *range(10_000)):
            socket.send_fds(one, [b"x"], [0, 0, 0])

            def call() -> None:
                try:
                    CALLS[name](other)
                except OSError:
                    pass

            reached = interrupt_at(step, call)
            if fd_count() != before:
                gc.collect()
            assert fd_count() == before, f"at bytecode {step}"
            os.fstat(other.fileno())
            other.setblocking(False)
            try:
                ancillary.recv_ancillary(other, bytearray(10)).close()
            except BlockingIOError:
                pass
            other.setblocking(True)
            if not reached and step != NEVER:
                break
        assert step > 10


class Alarm:
    """Signals whose handler raises `Interrupted`, once each, and only during the call they are for."""

    def __init__(self) -> None:
        self.armed = False
        self.raised = 0

    def __enter__(self) -> Alarm:
        self.old = signal.signal(signal.SIGALRM, self.handle)
        self.rng = random.Random(7)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.old)

    def handle(self, number: int, frame: Any) -> None:
        if self.armed:
            self.armed = False
            raise Interrupted

    def wait(self) -> None:
        # A signal that Python was slow to notice is of no use for the next call.
        deadline = time.monotonic() + 0.1
        while self.armed and time.monotonic() < deadline:
            pass

    def during(self, call: Callable[[], object]) -> None:
        """Run *call*, with a signal a few microseconds after its start; it may come after its end."""
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(1e-6, 3e-5))
            call()
            self.wait()
            self.armed = False
        except Interrupted:
            self.raised += 1


READS: dict[str, Callable[[UdStream], Any]] = {
    "recv_fds": lambda stream: stream.recv_fds(10)[1].close(),
    "recv_ancillary": lambda stream: stream.recv_ancillary(bytearray(10)).close(),
    "recv_fds of the module": lambda stream: ancillary.recv_fds(stream, 10)[1].close(),
    "recv_ancillary of the module": lambda stream: ancillary.recv_ancillary(stream, bytearray(10)).close(),
    "by number": lambda stream: ancillary.recv_fds(stream.fileno(), 10)[1].close(),
    "read": lambda stream: stream.read(10),
    "readv": lambda stream: stream.readv([bytearray(5), bytearray(5)]),
}


# What a handler raises while a finaliser runs, Python reports and swallows.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("collecting", [False, True])
def test_a_signal_handler_that_raises_leaks_nothing(
    pair: Pair, name: str, timeout: float | None, collecting: bool
) -> None:
    """The same with real signals, at any time, also of a stream that is timed, or keeps what reads bring."""
    one, other = pair
    with UdStream.from_fd(os.dup(other.fileno())) as stream, Alarm() as alarm:
        stream.timeout = timeout
        stream.collect_ancillary = collecting
        before = fd_count()
        for _ in range(1000):
            socket.send_fds(one, [b"x"], [0, 0])
            alarm.during(lambda: READS[name](stream))
            try:
                other.recv(10, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            while stream.collected:
                stream.collected.popleft()[1].close()
        gc.collect()
        assert alarm.raised > 100
        assert fd_count() == before


def test_what_a_handler_raises_says_how_much_went(pair: Pair) -> None:
    """Not errors alone: what a signal handler raises in the middle of the payload has .nbytes too."""
    one, other = pair

    class Signalled(Chunked):
        def sendmsg(self, buffers: Sequence[Any], cmsgs: Any, flags: int) -> int:
            sent = super().sendmsg(buffers, cmsgs, flags)
            if len(self.cmsgs) == 3:
                raise Interrupted
            return sent

    with pytest.raises(Interrupted) as caught:
        ancillary._send_fds(Signalled(one, 3), b"0123456789", [0])

    assert getattr(caught.value, "nbytes", None) == 6
    _data, fds = ancillary.recv_fds(other, 10)
    fds.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_handed_over_or_kept() -> None:
    """An exception at any bytecode of socket() leaves the descriptor with one owner, never with two."""
    for step in (NEVER, *range(200)):
        with socket.socket() as original:
            fds = FileDescriptors([os.dup(original.fileno())])
            number = fds[0]
            got: list[socket.socket] = []
            reached = interrupt_at(step, lambda: got.append(fds.socket(0)))  # noqa: B023
            gc.collect(0)
            assert is_open(number) is (bool(got) or fds[0] == number)
            fds.close()
            for sock in got:
                sock.close()
            assert not is_open(number)
        if not reached and step != NEVER:
            break
    assert step > 10


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_received_from_a_stream_that_collects(pair: Pair, timeout: float | None) -> None:
    """What is asked for goes to whoever asked, not to what is collected; its bytes count for the offset."""
    one, other = pair
    with UdStream.from_fd(os.dup(other.fileno())) as stream:
        stream.timeout = timeout
        stream.collect_ancillary = True

        socket.send_fds(one, [b"abc"], [0])
        stream.recv_fds(10)[1].close()
        socket.send_fds(one, [b"de"], [0])
        stream.recv_ancillary(bytearray(10)).close()
        assert not stream.collected

        socket.send_fds(one, [b"f"], [0])
        assert stream.read(10) == b"f"
        ((offset, received),) = stream.collected
        received.close()
        assert offset == 5


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_an_empty_read_of_a_stream_that_collects(pair: Pair, timeout: float | None) -> None:
    """It takes nothing: the descriptors stay with their byte, and come with it."""
    one, other = pair
    with UdStream.from_fd(os.dup(other.fileno())) as stream:
        stream.timeout = timeout
        stream.collect_ancillary = True
        socket.send_fds(one, [b"ab"], [0, 0])

        assert stream.read(0) == b""
        assert stream.readinto(bytearray()) == 0
        assert stream.readv([bytearray(), bytearray()]) == 0
        assert stream.read_exact(0) == b""
        assert not stream.collected

        # A vector with empty ones round it is not empty.
        room = bytearray(1)
        assert stream.readv([bytearray(), room, bytearray()]) == 1
        assert room == b"a"
        ((offset, received),) = stream.collected
        received.close()
        assert (offset, received.nbytes) == (0, 1)
        assert stream.read(10) == b"b"


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_sending_from_a_stream_that_collects(
    pair: Pair, numbered: Callable[[int], list[int]], timeout: float | None
) -> None:
    """Collecting changes what reads keep, and nothing of what writes send."""
    one, other = pair
    with UdStream.from_fd(os.dup(one.fileno())) as stream:
        stream.timeout = timeout
        stream.collect_ancillary = True

        assert stream.write(b"a") == 1
        assert stream.writev([b"b", b"c"]) == 2
        assert stream.write_all(b"d") == 1
        assert stream.writev_all([b"e", b"f"]) == 2
        assert stream.send_fds(b"g", numbered(2)) == 1
        assert stream.send_ancillary([b"h"], [numbered(1)]) == 1
        # What a sender gives with it ends what one read takes.
        assert other.recv(6, socket.MSG_WAITALL) == b"abcdef"
        for text, count in ((b"g", 2), (b"h", 1)):
            data, fds = ancillary.recv_fds(other, 10)
            with fds:
                assert (data, indexes(fds)) == (text, [*range(count)])


def test_what_a_stream_collects_by_the_offset(pair: Pair) -> None:
    """The offset counts every byte read since the switching on, by whatever method, with and without descriptors."""
    one, other = pair
    ways: list[Callable[[UdStream], object]] = [
        lambda stream: stream.read(2),
        lambda stream: stream.readinto(bytearray(2)),
        lambda stream: stream.readv([bytearray(1), bytearray(1)]),
        lambda stream: stream.read_exact(2),
        lambda stream: stream.readinto_exact(bytearray(2)),
        lambda stream: stream.recv_ancillary(bytearray(2)).close(),
        lambda stream: stream.recv_fds(2)[1].close(),
        lambda stream: stream.readline(2),
    ]
    with UdStream.from_fd(os.dup(other.fileno())) as stream:
        stream.collect_ancillary = True
        for number, way in enumerate(ways):
            one.send(b"xy")
            way(stream)
            assert not stream.collected
            socket.send_fds(one, [b"z"], [0])
            assert stream.read(1) == b"z"
            ((offset, received),) = stream.collected
            received.close()
            stream.collected.clear()
            assert offset == 3 * number + 2


def test_a_pidfd_that_is_descriptor_0(pair: Pair) -> None:
    """Where that number is free it is what the kernel gives, and it is owned as any other."""
    try:
        pair[1].setsockopt(socket.SOL_SOCKET, 76, 1)
    except OSError:
        pytest.skip("this kernel has no SO_PASSPIDFD")
    code = """if True:
        import os, socket
        from udstream import ancillary
        one, other = socket.socketpair()
        other.setsockopt(socket.SOL_SOCKET, 76, 1)
        one.send(b"x")
        os.close(0)
        with ancillary.recv_ancillary(other, bytearray(1)) as received:
            assert list(received.pidfd) == [0]
            os.fstat(0)
        assert not os.path.exists("/proc/self/fd/0")
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


@pytest.mark.parametrize("max_fds", [2.0, "2", None])
def test_max_fds_that_is_no_number(max_fds: Any, pair: Any) -> None:
    """It is refused before anything is received, so nothing is lost."""
    one, other = pair
    ancillary.send_fds(one, b"x", [0, 1])
    with pytest.raises(TypeError):
        ancillary.recv_ancillary(other, bytearray(10), max_fds=max_fds)
    with pytest.raises(TypeError):
        ancillary.recv_fds(other, 10, max_fds)
    data, fds = ancillary.recv_fds(other, 10)
    with fds:
        assert (data, len(fds)) == (b"x", 2)
