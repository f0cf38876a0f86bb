"""Threads: one that closes under another, both directions at once, and numbers that are used again."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from blocked import Blocked
from meanwhile import PATIENCE
from places import meddle

from udstream import Shutdown, UdStream, UdStreamListener

MEBIBYTE = 1 << 20
# What each of the four directions of the two long tests moves, in MiB.
BINARY, TEXT = 256, 256
# As small as Linux lets it be, which is some 2 KiB of payload.
TINY = 1

NOT_YOURS = b"not yours\n" * 400

Pair = tuple[UdStream, UdStream]
# What is made ready over a stream, and then called: it would block.
Call = Callable[[UdStream], Callable[[], Any]]


# --- the calls ---


def on_file(mode: str, call: Callable[[Any], Any]) -> Call:
    def ready(stream: UdStream) -> Callable[[], Any]:
        file = stream.makefile(mode, encoding=None if "b" in mode else "utf-8")
        return lambda: call(file)

    return ready


def collecting(call: Callable[[UdStream], Any]) -> Call:
    def ready(stream: UdStream) -> Callable[[], Any]:
        stream.collect_ancillary = True
        return lambda: call(stream)

    return ready


def sending_file(data: bytes, kind: Callable[[Any], Any]) -> Call:
    def ready(stream: UdStream) -> Callable[[], Any]:
        file = tempfile.TemporaryFile()
        file.write(data)
        file.seek(0)

        def send() -> int:
            with file:
                return stream.sendfile(kind(file))

        return send

    return ready


class Unseekable:
    """A file of which only read() is known, so that its bytes go through Python."""

    def __init__(self, file: Any) -> None:
        self.read = file.read


def write_and_flush(file: Any, data: bytes | str) -> None:
    file.write(data)
    file.flush()


READS: dict[str, Call] = {
    "read": lambda s: lambda: s.read(10),
    "readinto": lambda s: lambda: s.readinto(bytearray(10)),
    "readv": lambda s: lambda: s.readv([bytearray(5), bytearray(5)]),
    "readall": lambda s: s.readall,
    "readline": lambda s: s.readline,
    "readlines": lambda s: s.readlines,
    "next": lambda s: lambda: next(s),
    "read_exact": lambda s: lambda: s.read_exact(5000),
    "readinto_exact": lambda s: lambda: s.readinto_exact(bytearray(5000)),
    "recv_ancillary": lambda s: lambda: s.recv_ancillary(bytearray(10)),
    "recv_fds": lambda s: lambda: s.recv_fds(10),
    "read, collecting": collecting(lambda s: s.read(10)),
    "readv, collecting": collecting(lambda s: s.readv([bytearray(10)])),
    "read_exact, collecting": collecting(lambda s: s.read_exact(5000)),
}
for _mode in ("rb", "rwb", "r", "rw"):
    READS[f"{_mode} readline"] = on_file(_mode, lambda f: f.readline())
    READS[f"{_mode} read(n)"] = on_file(_mode, lambda f: f.read(5000))
    READS[f"{_mode} read"] = on_file(_mode, lambda f: f.read())
    READS[f"{_mode} readlines"] = on_file(_mode, lambda f: f.readlines())
    READS[f"{_mode} for"] = on_file(_mode, list)
READS["rb readinto"] = on_file("rb", lambda f: f.readinto(bytearray(5000)))
READS["rb read1"] = on_file("rb", lambda f: f.read1(10))
READS["rb readinto1"] = on_file("rb", lambda f: f.readinto1(bytearray(10)))
READS["rb peek"] = on_file("rb", lambda f: f.peek(10))


def writes(data: bytes) -> dict[str, Call]:
    return {
        "write": lambda s: lambda: s.write(data),
        "writev": lambda s: lambda: s.writev([data, data]),
        "write_all": lambda s: lambda: s.write_all(data),
        "writev_all": lambda s: lambda: s.writev_all([data, data]),
        "send_fds": lambda s: lambda: s.send_fds(data, [0]),
        "send_ancillary": lambda s: lambda: s.send_ancillary(data, [[0]]),
        "sendfile": sending_file(data, lambda file: file),
        "sendfile by reading": sending_file(data, Unseekable),
        "wb write": on_file("wb", lambda f: write_and_flush(f, data)),
        "rwb write": on_file("rwb", lambda f: write_and_flush(f, data)),
        "w write": on_file("w", lambda f: write_and_flush(f, data.decode())),
        "rw write": on_file("rw", lambda f: write_and_flush(f, data.decode())),
    }


WRITES = writes(bytes(2 * MEBIBYTE))
TIMED = pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])


def fill(stream: UdStream) -> None:
    """Send until nothing more goes."""
    with socket.socket(fileno=os.dup(stream.fileno())) as sock, suppress(BlockingIOError):
        while True:
            sock.send(bytes(4096), socket.MSG_DONTWAIT)


def drain(stream: UdStream) -> None:
    """Take all there is, to the end of file or an error that stands for it."""
    stream.timeout = None
    with suppress(ConnectionError):
        while stream.read(MEBIBYTE):
            pass


@contextmanager
def handled(number: int) -> Iterator[None]:
    """A handler for this signal, which does nothing: its arrival ends system calls with EINTR all the same."""
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


class Successor:
    """Another connection's end, which gets the number of a closed file and has something to read."""

    def __init__(self) -> None:
        self._end, self._peer = socket.socketpair()
        self._peer.sendall(NOT_YOURS)
        self._fd = -1

    def __enter__(self) -> Successor:
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._end.close()
        self._peer.close()

    def take(self, fd: int) -> None:
        assert not os.path.exists(f"/proc/self/fd/{fd}"), "it is still open"
        self._fd = os.dup2(self._end.fileno(), fd, inheritable=False)

    def check_untouched(self) -> None:
        assert self._fd >= 0, "the number was never taken"
        # Nobody closed it, either, or changed its mode.
        assert os.path.sameopenfile(self._fd, self._end.fileno())
        assert os.get_blocking(self._fd)
        assert self._end.recv(len(NOT_YOURS) + 1, socket.MSG_DONTWAIT) == NOT_YOURS
        with pytest.raises(BlockingIOError):
            self._peer.recv(1, socket.MSG_DONTWAIT)


# --- one closes, another is blocked ---


@pytest.mark.parametrize("how", ["interrupted", "served"])
@TIMED
@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_number_of_a_closed_stream_is_not_used_again(
    name: str, timeout: float | None, how: str, record_property: Callable[[str, object], None]
) -> None:
    """Close under a blocked call returns at once; whatever file gets the number next, the call leaves it alone.

    Neither a signal that has the system call made again, nor data that lets a loop go on, leads it there.
    """
    here, there = UdStream.pair()
    here.timeout = timeout
    with there, Successor() as successor, handled(signal.SIGUSR1):
        call = (READS.get(name) or WRITES[name])(here)
        if name in WRITES:
            fill(here)
        blocked = Blocked(call)
        fd = here.fileno()
        here.close()
        successor.take(fd)
        if how == "interrupted":
            blocked.interrupt(signal.SIGUSR1)
            blocked.settle()
        let_go(there)
        blocked.end()
        successor.check_untouched()
    # If anything: the error of a closed file, or of a connection that ended.
    assert blocked.error is None or isinstance(blocked.error, (OSError, ValueError, EOFError, StopIteration))
    assert not isinstance(blocked.error, TimeoutError)
    record_property("calls closed under, their number used again", 1)


def let_go(there: UdStream) -> None:
    """Let whoever is blocked at the other end come to an end: send him something, and take what he sends."""
    with suppress(BrokenPipeError):
        there.write(b"for it")
    there.shutdown(Shutdown.WRITE)
    drain(there)


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
@TIMED
def test_closing_a_file_under_its_reader(mode: str, timeout: float | None) -> None:
    """close() of a file does not wait for a thread that is blocked in reading it; that takes no other file's bytes."""
    here, there = UdStream.pair()
    here.timeout = timeout
    with there, Successor() as successor, handled(signal.SIGUSR1):
        file = here.makefile(mode)
        blocked = Blocked(file.readline)
        fd = here.fileno()
        file.close()
        successor.take(fd)
        assert file.closed and here.closed and blocked.running
        there.write(b"half a line")
        blocked.interrupt(signal.SIGUSR1)
        blocked.end()
        successor.check_untouched()
    assert isinstance(blocked.error, (OSError, ValueError))


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_closing_a_file_under_its_writer(mode: str) -> None:
    """close() of a file sends what was written to it, after whoever is writing; all of it arrives, in order."""
    here, there = UdStream.pair()
    file: Any = here.makefile(mode)
    fill(here)
    data = b"x" * MEBIBYTE if "b" in mode else "x" * MEBIBYTE
    with there:
        writing = Blocked(lambda: file.write(data))
        closing = threading.Thread(target=file.close)
        closing.start()
        got = bytearray()
        while chunk := there.read(MEBIBYTE):
            got += chunk
        closing.join(PATIENCE)
        writing.end()
    assert file.closed and writing.error is None
    assert got.lstrip(b"\0") == b"x" * MEBIBYTE


@TIMED
@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_shutdown_ends_a_blocked_call(name: str, timeout: float | None) -> None:
    """shutdown(BOTH) in another thread ends every blocked call: a read with the end of file, a write with EPIPE."""
    here, there = UdStream.pair()
    here.timeout = timeout
    with there, here:
        call = (READS.get(name) or WRITES[name])(here)
        if name in WRITES:
            fill(here)
        blocked = Blocked(call)
        here.shutdown(Shutdown.BOTH)
        blocked.end()
        if name in WRITES:
            assert isinstance(blocked.error, BrokenPipeError)
        elif blocked.error is not None:
            assert isinstance(blocked.error, (EOFError, StopIteration))
        elif name == "recv_fds":
            assert blocked.result[0] == b""
        else:
            assert not getattr(blocked.result, "nbytes", blocked.result)
        with suppress(BrokenPipeError):
            here.close()


# --- a listener ---


class SuccessorListener:
    """Another listener, which gets the number of a closed one and has somebody waiting."""

    def __init__(self, folder: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(folder / "other"))
        self._sock.listen()
        self._client = socket.socket(socket.AF_UNIX)
        self._client.connect(str(folder / "other"))
        self._fd = -1

    def __enter__(self) -> SuccessorListener:
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._client.close()
        self._sock.close()

    def take(self, fd: int) -> None:
        assert not os.path.exists(f"/proc/self/fd/{fd}"), "it is still open"
        self._fd = os.dup2(self._sock.fileno(), fd, inheritable=False)

    def check_untouched(self) -> None:
        assert self._fd >= 0, "the number was never taken"
        assert os.path.sameopenfile(self._fd, self._sock.fileno())
        assert os.get_blocking(self._fd)
        assert not any(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
        assert select.select([self._sock], [], [], 0)[0]


ACCEPTS: dict[str, Callable[[UdStreamListener], Any]] = {
    "accept": lambda listener: listener.accept(),
    "iteration": lambda listener: next(iter(listener)),
}
LISTENERS: dict[str, dict[str, Any]] = {"": {}, "authorized": {"authorize": {os.getuid()}}}


@TIMED
@pytest.mark.parametrize("name", ACCEPTS)
@pytest.mark.parametrize("kind", LISTENERS)
def test_number_of_a_closed_listener_is_not_used_again(
    folder: Path,
    kind: str,
    name: str,
    timeout: float | None,
    record_property: Callable[[str, object], None],
) -> None:
    """Close under a blocked accept returns at once; whatever listener gets the number next keeps its clients."""
    listener = UdStreamListener.bind(folder / "s", **LISTENERS[kind])
    listener.timeout = timeout
    with SuccessorListener(folder) as successor, handled(signal.SIGUSR1):
        blocked = Blocked(lambda: ACCEPTS[name](listener))
        fd = listener.fileno()
        listener.close()
        successor.take(fd)
        blocked.interrupt(signal.SIGUSR1)
        blocked.end()
        successor.check_untouched()
    assert isinstance(blocked.error, (OSError, ValueError, StopIteration))
    record_property("calls closed under, their number used again", 1)


# --- one closes, another is at any place of the library's code ---


@pytest.mark.long
@TIMED
def test_close_at_every_place(timeout: float | None, record_property: Callable[[str, object], None]) -> None:
    """Wherever a thread is in a call as another closes the stream, no file that gets the number is read or written."""
    places = 0
    # More than any file gathers, and no more than the kernel holds of two.
    calls = {**READS, **writes(b"x" * 70_000), **OTHERS}
    for name, ready in calls.items():
        at = 0
        while close_at(at, name, ready, timeout):
            at += 1
        assert at > 5, name
        places += at
    record_property("places in a call at which its stream was closed", places)


def close_at(at: int, name: str, ready: Call, timeout: float | None) -> bool:
    here, there = UdStream.pair()
    here.timeout = timeout
    with there, Successor() as successor:
        call = ready(here)
        # A read ends at each descriptor, so whatever loops does so here.
        for _ in range(2):
            there.send_fds(b"a\n", [there])
        there.shutdown(Shutdown.WRITE)

        def close() -> None:
            fd = here.fileno()
            here.close()
            successor.take(fd)

        def run() -> None:
            try:
                result = call()
            except (OSError, ValueError, EOFError, StopIteration):
                return
            for each in result if isinstance(result, tuple) else [result]:
                if isinstance(each, UdStream):
                    # A duplicate is of the connection that was asked for.
                    each.write(b"duplicated")
                if hasattr(each, "close"):
                    each.close()

        reached = meddle(run, at, close)
        for _, received in here.collected:
            received.close()
        if reached:
            assert here.closed
            successor.check_untouched()
        here.close()
    return reached


OTHERS: dict[str, Call] = {
    "dup": lambda s: s.dup,
    "set_nonblocking": lambda s: lambda: s.set_nonblocking(True),
    "shutdown": lambda s: lambda: s.shutdown(Shutdown.BOTH),
}


@pytest.mark.long
@TIMED
@pytest.mark.parametrize("kind", LISTENERS)
def test_listener_closed_at_every_place(
    folder: Path, kind: str, timeout: float | None, record_property: Callable[[str, object], None]
) -> None:
    """Wherever a thread is in accept as another closes the listener, it takes no other listener's client."""
    at = 0
    while close_listener_at(at, folder, kind, timeout):
        at += 1
    assert at > 5
    record_property("places in a call at which its stream was closed", at)


def close_listener_at(at: int, folder: Path, kind: str, timeout: float | None) -> bool:
    path = folder / f"s{at}"
    listener = UdStreamListener.bind(path, **LISTENERS[kind])
    listener.timeout = timeout
    sub = folder / str(at)
    sub.mkdir()
    with SuccessorListener(sub) as successor, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))

        def close() -> None:
            fd = listener.fileno()
            listener.close()
            successor.take(fd)

        def run() -> None:
            with suppress(OSError, ValueError):
                with listener.accept() as accepted:
                    accepted.write(b"you")
                assert client.recv(10) == b"you"

        reached = meddle(run, at, close)
        if reached:
            successor.check_untouched()
        listener.close()
    return reached


# --- both directions at once ---


# Says again what it is told, by one thread: it takes nothing more until it has been rid of what it has.
ECHO = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(sys.argv[2]))
while data := sock.recv(65536):
    sock.sendall(data)
sock.close()
"""
LINE = 4096
TAILS = [bytes([97 + at]) * (LINE - 11) for at in range(26)]


def line(number: int) -> bytes:
    """A line that is like no other."""
    return b"%010d%s\n" % (number, TAILS[number % 26])


@pytest.mark.long
@pytest.mark.parametrize(("mode", "mebibytes"), [("rwb", BINARY), ("rw", TEXT)])
def test_two_threads_through_the_smallest_buffers(
    mode: str, mebibytes: int, record_property: Callable[[str, object], None]
) -> None:
    """One thread writes an rw file while another reads it: however little fits between the two ends, all comes back.

    The other end answers with what it was sent, and takes nothing in while it cannot send: so neither of the
    two threads may ever wait for the other.
    """
    here, there = UdStream.pair()
    with socket.socket(fileno=os.dup(here.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TINY)
    with there:
        command = [sys.executable, "-c", ECHO, str(there.fileno()), str(TINY)]
        peer = subprocess.Popen(command, pass_fds=[there.fileno()])
    lines = mebibytes * MEBIBYTE // LINE
    binary = "b" in mode
    with peer, here.makefile(mode, encoding=None if binary else "utf-8", newline="\n") as file:

        def send() -> None:
            for number in range(lines):
                file.write(line(number) if binary else line(number).decode())
            file.flush()
            here.shutdown(Shutdown.WRITE)

        sending = threading.Thread(target=send)
        sending.start()
        count = 0
        for count, got in enumerate(file, 1):
            if got != (line(count - 1) if binary else line(count - 1).decode()):
                here.shutdown(Shutdown.BOTH)
                pytest.fail(f"line {count} is not what was sent: {got[:30]!r}...")
        sending.join(PATIENCE)
    assert count == lines
    record_property("MiB moved", 2 * mebibytes)
