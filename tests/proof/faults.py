"""
The program under test_faults.py: every public operation, with every fault at every one of its system calls.

It runs with the shim of faults.c preloaded. A scenario does something with udstream through `Case.call`, first
without a fault, which counts its system calls; then once for each fault and each of those calls. Whatever the fault,
the scenario goes on afterwards, as a user would, and must come to the same end: every byte there, once and in order,
or an honest error. Around it descriptors are counted, and closes of what is not open.

`python faults.py GROUP [quick]` prints what it did as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import udstream
from udstream import _activation, ancillary

# Little, because a byte takes as much of a socket's room as a page when it is sent alone.
DATA = "".join(f"lïne {number}\n" for number in range(4)).encode() + b"tail"
TEXT = DATA.decode()
# More than a socket holds whose room was made small; not to be sent a byte at a time.
MUCH = b"".join(b"%07d\n" % number for number in range(3000))
NOT_BY_BYTES = ("writing_more_than_fits",)
# How much a scenario hands over at a time.
PIECE = 14
TIMEOUT = 20.0
# Far more than a scenario needs; one that goes on and on has met a fault that it does not get past.
MOST_STEPS = 1000
# And longer than one takes.
PATIENCE = 5.0

# What can be said of any call; and what Linux may say of a close, which has closed the descriptor all the same.
ERRNOS = [
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETOOMANYREFS,
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
]
OF_CLOSE = [errno.EINTR, errno.EIO]
# Whoever is told these just calls again, for as long as it lasts.
PASSING = (errno.EINTR, errno.EAGAIN, errno.ECONNABORTED)
QUICK = [errno.ENOBUFS, errno.EAGAIN]

# Linux never says no to these on an open Unix socket, and a connection that was accepted would be lost if it did:
# CPython asks its name, and the listener's SO_RCVTIMEO is put back to what it was.
SPARED = {("accepting", "getsockname"), ("accepting", "setsockopt")}

NONE, ONE, REST, EACH = range(4)


# --- the shim ---


def shim() -> Any:
    """The functions of faults.c."""
    library = ctypes.CDLL(None)
    library.faults_name.restype = ctypes.c_char_p
    return library


SHIM = shim()


class Fault(NamedTuple):
    """One plan of the shim's."""

    how: int = NONE
    at: int = 0
    number: int = 0
    times: int = 0
    one_byte: bool = False

    def __str__(self) -> str:
        name = errno.errorcode.get(self.number, "no error")
        return (
            {
                NONE: "no fault",
                ONE: f"{name} at call {self.at}",
                REST: f"{name} from call {self.at} on",
                EACH: f"{name}, {self.times} times before each call",
            }[self.how]
        ) + (", a byte at a time" if self.one_byte else "")


# --- one run of a scenario ---


class Outcome(NamedTuple):
    """What a call came to: its value, or the error that it raised."""

    value: Any
    error: OSError | None
    # Whether its last system call failed.
    failed_last: bool = False

    @property
    def at_the_end(self) -> bool:
        """Whether it says that the file has ended; the layers of io return nothing also where there is nothing yet."""
        return self.value is not None and not self.value and not self.failed_last

    @property
    def partial(self) -> bytes:
        """What had come before the error."""
        return getattr(self.error, "partial", b"")

    @property
    def nbytes(self) -> int:
        """How much was sent before the error."""
        return getattr(self.error, "nbytes", 0)

    @property
    def dead(self) -> bool:
        """Whether the error says that the connection is gone."""
        return isinstance(self.error, ConnectionError)


class Case:
    """One run of a scenario, under one fault."""

    # What to tell strace that is at work.
    watched = ""

    def __init__(self, fault: Fault, folder: Path) -> None:
        self.fault = fault
        self.folder = folder
        self.errors = 0
        self._stack = ExitStack()
        self._steps = 0

    def call(
        self, function: Callable[..., Any], *arguments: Any, also: tuple[int, ...] = (), **more: Any
    ) -> Outcome:
        """
        Call the function, with its system calls failing as planned until it first raises.

        What it raises is the fault, as the class of `OSError` that belongs to its number, or one of *also*.
        """
        self._steps += 1
        assert self._steps < MOST_STEPS, "no end"
        armed = not self.errors
        try:
            if self.watched:
                os.access(f"/begin {self.watched}", 0)
            if armed:
                SHIM.faults_arm(1)
            try:
                value = function(*arguments, **more)
            finally:
                SHIM.faults_arm(0)
                if self.watched:
                    os.access("/end", 0)
        except OSError as error:
            if not armed or self.fault.how == NONE:
                raise
            self.errors += 1
            self._check(error, also)
            # As a user's `except` does: what hangs on its traceback goes.
            error.__traceback__ = None
            return Outcome(None, error)
        return Outcome(value, None, armed and bool(SHIM.faults_last_failed()))

    def _check(self, error: OSError, also: tuple[int, ...]) -> None:
        number = error.errno
        assert number in (self.fault.number, *also), f"{error!r}"
        assert number is not None and type(error) is type(OSError(number, "")), f"{error!r}"

    def keep(self, thing: Any) -> Any:
        """Close it in the end."""
        self._stack.callback(thing.close)
        return thing

    def use_folder_of_its_own(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=""))
        self._stack.callback(shutil.rmtree, self.folder)

    @property
    def failed_at(self) -> str:
        """The name of the system call that failed, of a fault that is at one."""
        return "" if self.fault.how in (NONE, EACH) else str(SHIM.faults_name(self.fault.at).decode())

    def end(self) -> None:
        self._stack.close()

    def pair(self, setting: str = "plain") -> tuple[udstream.UdStream, socket.socket]:
        """A stream in some setting, and the other end, which is not ours."""
        one, other = socket.socketpair()
        stream = udstream.UdStream.from_socket(one)
        if setting == "timed":
            stream.timeout = TIMEOUT
        elif setting == "nonblocking":
            stream.set_nonblocking(True)
        elif setting == "collecting":
            stream.collect_ancillary = True
        return self.keep(stream), self.keep(other)

    def server(self, path: str | Path = "") -> tuple[Any, str]:
        """A listening socket that is not ours, and its path."""
        path = str(path) or str(self.folder / "server")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()
        if not path.startswith("\0"):
            self._stack.callback(os.unlink, path)
        return self.keep(listening), path


def everything(peer: socket.socket) -> bytes:
    """All that comes up to the end of file."""
    data = b""
    try:
        while more := peer.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass  # as the end of file is told to who sent what was not read
    return data


def talk(mine: udstream.UdStream, theirs: socket.socket) -> None:
    """Bytes go both ways: the stream is as good as new."""
    mine.write_all(b"ping")
    assert theirs.recv(9) == b"ping"
    theirs.sendall(b"pong")
    assert mine.read_exact(4) == b"pong"


# --- the scenarios ---


class Scenario(NamedTuple):
    """Something to do in a case, by a name."""

    name: str
    run: Callable[[Case], None]


SCENARIOS: dict[str, list[Scenario]] = {}


def scenario(group: str, **variants: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function into the group, once for each combination of the variants of its arguments."""

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        for values in itertools.product(*variants.values()):
            chosen = dict(zip(variants, values, strict=True))
            name = " ".join([function.__name__, *(f"{key}={value}" for key, value in chosen.items())])

            def run(case: Case, chosen: dict[str, Any] = chosen) -> None:
                function(case, **chosen)

            SCENARIOS.setdefault(group, []).append(Scenario(name, run))
        return function

    return enter


SETTINGS = ["plain", "timed", "nonblocking", "collecting"]

# --- the raw stream: reading ---


def _readinto(mine: udstream.UdStream) -> bytes | None:
    buffer = bytearray(PIECE)
    count = mine.readinto(buffer)
    return None if count is None else bytes(buffer[:count])


def _readv(mine: udstream.UdStream) -> bytes | None:
    buffers = [bytearray(7), bytearray(0), bytearray(PIECE)]
    count = mine.readv(buffers)
    return None if count is None else b"".join(buffers)[:count]


def _readinto_exact(mine: udstream.UdStream) -> bytes:
    buffer = bytearray(PIECE)
    try:
        mine.readinto_exact(buffer)
    except (OSError, EOFError) as error:
        error.partial = bytes(buffer[: error.nbytes])  # type: ignore[union-attr]
        raise
    return bytes(buffer)


RAW_READERS: dict[str, Callable[[udstream.UdStream], bytes | None]] = {
    "read": lambda mine: mine.read(PIECE),
    "readinto": _readinto,
    "readv": _readv,
    "readall": lambda mine: mine.readall(),
    "readline": lambda mine: mine.readline(),
    "readlines": lambda mine: b"".join(mine.readlines(PIECE)),
    "read_exact": lambda mine: mine.read_exact(PIECE),
    "readinto_exact": _readinto_exact,
}


@scenario("raw", method=RAW_READERS, setting=SETTINGS)
def reading(case: Case, method: str, setting: str) -> None:
    """Every byte comes out, once and in order: returned, or carried by the error."""
    mine, peer = case.pair(setting)
    peer.sendall(DATA)
    peer.shutdown(socket.SHUT_WR)
    got = b""
    while True:
        try:
            outcome = case.call(RAW_READERS[method], mine)
        except EOFError as end:
            got += end.partial  # type: ignore[attr-defined]
            break
        got += outcome.partial or outcome.value or b""
        if outcome.value == b"":
            break
    assert got == DATA
    peer.settimeout(TIMEOUT)
    mine.set_nonblocking(False)
    mine.write_all(b"still there")
    assert peer.recv(99) == b"still there"


# --- the raw stream: writing ---


def _writev(mine: udstream.UdStream, data: bytes) -> int | None:
    return mine.writev([data[:7], b"", data[7:]])


RAW_WRITERS: dict[str, Callable[[udstream.UdStream, bytes], int | None]] = {
    "write": lambda mine, data: mine.write(data),
    "writev": _writev,
    "write_all": lambda mine, data: mine.write_all(data),
    "writev_all": lambda mine, data: mine.writev_all([data[:7], b"", data[7:]]),
    "send_ancillary": lambda mine, data: mine.send_ancillary(data),
    "send_ancillary with credentials": lambda mine, data: mine.send_ancillary(
        [data], [udstream.Credentials.current()]
    ),
    "send_fds of none": lambda mine, data: mine.send_fds(data, []),
}


@scenario("raw", method=RAW_WRITERS, setting=SETTINGS)
def writing(case: Case, method: str, setting: str) -> None:
    """Every byte is received, once and in order, for whoever goes by the count that is returned, or on the error."""
    mine, peer = case.pair(setting)
    left = DATA
    while left:
        outcome = case.call(RAW_WRITERS[method], mine, left[:PIECE])
        left = left[outcome.nbytes or outcome.value or 0 :]
    peer.sendall(b"still there")
    assert mine.read(99) == b"still there"
    mine.close()
    assert everything(peer) == DATA


@scenario("raw", source=["file", "unseekable", "memory"], setting=["plain", "timed", "collecting"])
def sendfile(case: Case, source: str, setting: str) -> None:
    """As much of a file is received as the count says, or the error's; and the file's position says it too."""
    mine, peer = case.pair(setting)
    if source == "memory":
        file: Any = io.BytesIO(DATA)
    else:
        file = tempfile.TemporaryFile(dir=case.folder, buffering=0)
        file.write(DATA)
        file.seek(0)
        if source == "unseekable":
            file = _Unseekable(file)
    case.keep(file)
    sent = 0
    while sent < len(DATA):
        outcome = case.call(mine.sendfile, file, 0 if source == "unseekable" else sent, PIECE)
        sent += outcome.nbytes or outcome.value or 0
        if source == "unseekable":
            if outcome.error is not None:
                # What was read of it and not sent is lost to this program; the count is true all the same.
                break
        elif outcome.value or outcome.nbytes:
            assert file.tell() == sent
    mine.close()
    assert everything(peer) == DATA[:sent]


class _Unseekable(io.RawIOBase):
    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._file.close()


# --- the raw stream: its descriptor ---


@scenario("raw", how=[udstream.Shutdown.READ, udstream.Shutdown.WRITE, udstream.Shutdown.BOTH])
def shutdown(case: Case, how: udstream.Shutdown) -> None:
    """One that failed has shut nothing down, and can be repeated."""
    mine, peer = case.pair()
    if case.call(mine.shutdown, how).error is not None:
        talk(mine, peer)
        mine.shutdown(how)
    peer.settimeout(TIMEOUT)
    if how is udstream.Shutdown.READ:
        assert mine.read(9) == b""
    else:
        assert peer.recv(9) == b""


@scenario("raw", setting=SETTINGS)
def closing(case: Case, setting: str) -> None:
    """Closed is closed, whatever the system says of it: once, and the other end sees it."""
    mine, peer = case.pair(setting)
    case.call(mine.close)
    assert mine.closed
    mine.close()
    assert peer.recv(9) == b""


@scenario("raw", what=["name", "local_path", "peer_path", "is_nonblocking", "peer_credentials", "repr"])
def asking(case: Case, what: str) -> None:
    """What is asked of a stream is answered as ever, or with the error; and the stream goes on."""
    mine, peer = case.pair()
    asked: Callable[[], Any] = {
        "name": lambda: mine.name,
        "local_path": lambda: mine.local_path,
        "peer_path": lambda: mine.peer_path,
        "is_nonblocking": mine.is_nonblocking,
        "peer_credentials": mine.peer_credentials,
        "repr": lambda: repr(mine),
    }[what]
    outcome = case.call(asked)
    assert outcome.error is not None or outcome.value == asked()
    talk(mine, peer)


@scenario("raw")
def changing_mode(case: Case) -> None:
    """A change of mode happens, or is refused."""
    mine, peer = case.pair()
    changed = case.call(mine.set_nonblocking, True).error is None
    assert mine.is_nonblocking() is changed
    mine.set_nonblocking(False)
    talk(mine, peer)


# --- making streams ---


@scenario("making")
def pair(case: Case) -> None:
    """Two streams, or an error and no descriptor."""
    outcome = case.call(udstream.UdStream.pair)
    if outcome.error is None:
        one, other = outcome.value
        with one, other:
            one.write(b"x")
            assert other.read(1) == b"x"


@scenario("making", setting=["plain", "timed"])
def dup(case: Case, setting: str) -> None:
    """A second stream, or an error and no descriptor; the first one goes on."""
    mine, peer = case.pair(setting)
    outcome = case.call(mine.dup)
    if outcome.error is None:
        with outcome.value as twin:
            assert twin.timeout == mine.timeout
            talk(twin, peer)
    talk(mine, peer)


@scenario("making", kind=[udstream.UdStream, udstream.UdStreamListener])
def from_fd(case: Case, kind: Any) -> None:
    """The descriptor is the stream's, or after an error still the caller's: open, and his to close."""
    fd = _somebodys(case, kind).detach()
    outcome = case.call(kind.from_fd, fd)
    if outcome.error is None:
        assert outcome.value.fileno() == fd
        outcome.value.close()
    else:
        os.fstat(fd)
        kind.from_fd(fd).close()


@scenario(
    "making", kind=[udstream.UdStream, udstream.UdStreamListener], setting=["plain", "timed", "nonblocking"]
)
def from_socket(case: Case, kind: Any, setting: str) -> None:
    """The connection is the stream's, or after an error still the socket's, with all it had."""
    sock = _somebodys(case, kind)
    timeout = {"plain": None, "timed": TIMEOUT, "nonblocking": 0.0}[setting]
    sock.settimeout(timeout)
    outcome = case.call(kind.from_socket, sock)
    if outcome.error is not None:
        assert sock.fileno() >= 0, "nobody has it"
        assert sock.gettimeout() == timeout
        assert os.get_blocking(sock.fileno()) is (timeout is None)
        outcome = Outcome(kind.from_socket(sock), None)
    with outcome.value as made:
        assert sock.fileno() < 0
        assert made.is_nonblocking() is (setting == "nonblocking")
        assert made.timeout == (TIMEOUT if setting == "timed" else None)


@scenario("making", kind=[udstream.UdStream, udstream.UdStreamListener])
def inherited(case: Case, kind: Any) -> None:
    """What a service manager passed is the caller's as streams; or after an error still open, for another try."""
    fd = _somebodys(case, kind).detach()
    os.set_inheritable(fd, True)
    variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "it"}
    os.environ.update(variables)
    _activation._FIRST = fd
    error: BaseException | None
    made: Any
    try:
        outcome = case.call(kind.inherited)
        error = outcome.error
    except ValueError as refusal:
        error = refusal.__cause__
    else:
        if error is None:
            (made,) = outcome.value
            assert made.fileno() == fd and not os.get_inheritable(fd)
            assert os.environ.keys().isdisjoint(variables)
            made.close()
            return
    assert isinstance(error, OSError) and error.errno == case.fault.number
    os.environ.update(variables)
    (made,) = kind.inherited()
    assert made.fileno() == fd and not os.get_inheritable(fd)
    made.close()


def _somebodys(case: Case, kind: Any) -> socket.socket:
    """A socket that a stream, or a listener, can be made of."""
    if kind is udstream.UdStream:
        sock, other = socket.socketpair()
        case.keep(other)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(b"")
        sock.listen()
    return case.keep(sock)  # type: ignore[no-any-return]


def _path(case: Case, kind: str) -> str:
    return {
        "file": str(case.folder / "s"),
        "abstract": f"\0faults-{os.getpid()}",
        "long file": str(case.folder / ("d" * 90) / ("e" * 20) / "s"),
        "long name": str(case.folder / ("n" * 108)),
    }[kind]


@scenario("making", path=["file", "abstract", "long file"], timeout=[None, TIMEOUT])
def connect(case: Case, path: str, timeout: float | None) -> None:
    """A connection, or an error that names the path and leaves no descriptor."""
    address = _path(case, path)
    if path == "long file":
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        listener = case.keep(udstream.UdStreamListener.bind(address))
        accepting: Any = listener.accept
    else:
        server, _ = case.server(address)
        accepting = lambda: server.accept()[0]  # noqa: E731
    # EAGAIN is how Linux tells of the end of a connect's time.
    outcome = case.call(udstream.UdStream.connect, address, timeout=timeout, also=(errno.ETIMEDOUT,))
    if outcome.error is not None:
        assert outcome.error.filename == address
        return
    with outcome.value as mine, accepting() as theirs:
        mine.write(b"ping")
        assert os.read(theirs.fileno(), 9) == b"ping"
        assert mine.timeout == timeout


@scenario("making", timeout=[None, TIMEOUT])
def connect_refused(case: Case, timeout: float | None) -> None:
    """Nobody there: the system's refusal, or the fault, and no descriptor."""
    path = str(case.folder / "nobody")
    try:
        also = (errno.ENOENT, errno.ETIMEDOUT)
        outcome = case.call(udstream.UdStream.connect, path, timeout=timeout, also=also)
    except FileNotFoundError as refusal:
        named = refusal.filename
    else:
        assert outcome.error is not None
        named = outcome.error.filename
    assert named == path


@scenario("making", mode=["r", "w", "rw", "rb", "wb", "rwb", "unbuffered"], timeout=[None, TIMEOUT])
def opening(case: Case, mode: str, timeout: float | None) -> None:
    """A file over a connection, or an error and no descriptor."""
    server, path = case.server()
    arguments: Any = ("rwb", 0) if mode == "unbuffered" else (mode,)
    outcome = case.call(udstream.open, path, *arguments, timeout=timeout, also=(errno.ETIMEDOUT,))
    if outcome.error is None:
        with outcome.value as file, server.accept()[0] as peer:
            if "w" in mode or mode == "unbuffered":
                file.write(b"x" if "b" in file.mode else "x")
                file.flush()
                assert peer.recv(9) == b"x"


# --- files: reading ---

FILE_READERS: dict[str, Callable[[Any], Any]] = {
    "read all": lambda file: file.read(),
    "read some": lambda file: file.read(PIECE),
    "readline": lambda file: file.readline(),
    "readline of some": lambda file: file.readline(PIECE),
    "readlines": lambda file: file.readlines(PIECE),
    "next": lambda file: next(file, b"" if "b" in file.mode else ""),
    "iteration": lambda file: next(iter(file), b"" if "b" in file.mode else ""),
}


def _file_readinto(file: Any) -> bytes:
    buffer = bytearray(PIECE)
    return bytes(buffer[: file.readinto(buffer) or 0])


def _file_readinto1(file: Any) -> bytes:
    buffer = bytearray(PIECE)
    return bytes(buffer[: file.readinto1(buffer) or 0])


def _file_peek(file: Any) -> bytes:
    seen = file.peek()
    return file.read(len(seen)) if seen else b""


BINARY_READERS: dict[str, Callable[[Any], Any]] = {
    **FILE_READERS,
    "read1": lambda file: file.read1(PIECE),
    "readinto": _file_readinto,
    "readinto1": _file_readinto1,
    "peek": _file_peek,
}


class Refused(Exception):
    """The file says that it cannot be read on."""


def _read_to_the_end(case: Case, file: Any, read: Callable[[Any], Any], may_refuse: bool) -> None:
    def read_on(file: Any) -> Any:
        try:
            return read(file)
        except OSError as error:
            if "cannot read on" in str(error):
                raise Refused from None
            raise

    whole: Any = DATA if "b" in file.mode else TEXT
    got: Any = whole[:0]
    try:
        while True:
            outcome = case.call(read_on, file)
            if outcome.value:
                got += got[:0].join(outcome.value) if isinstance(outcome.value, list) else outcome.value
            elif outcome.at_the_end:
                break
    except Refused:
        assert whole.startswith(got), f"{got!r}"
        # At the end of the file a line that lacks its newline is out already, and the layers of io ask once more.
        assert SHIM.faults_injected(), "refused for no reason"
        assert may_refuse or len(whole[len(got) :].splitlines()) <= 1, "refused where nothing can be lost"
        try:
            read_on(file)
        except Refused:
            pass
        else:
            raise AssertionError("refused once, and then not")
    else:
        assert got == whole, f"{got!r}"


@scenario("reading", mode=["rb", "rwb"], method=BINARY_READERS, setting=SETTINGS, buffering=[-1, 16])
def reading_bytes(case: Case, mode: str, method: str, setting: str, buffering: int) -> None:
    """Every byte comes out of a buffered file, once and in order; or it refuses to be read on."""
    mine, peer = case.pair(setting)
    peer.sendall(DATA)
    peer.shutdown(socket.SHUT_WR)
    file = case.keep(mine.makefile(mode, buffering))
    _read_to_the_end(case, file, BINARY_READERS[method], may_refuse=setting != "timed")


@scenario(
    "reading",
    mode=["r", "rw"],
    method=FILE_READERS,
    setting=["plain", "timed", "collecting"],
    encoding=["utf-8", "utf-16"],
)
def reading_text(case: Case, mode: str, method: str, setting: str, encoding: str) -> None:
    """Every character comes out of a text file, once and in order; or it refuses to be read on."""
    mine, peer = case.pair(setting)
    peer.sendall(TEXT.encode(encoding))
    peer.shutdown(socket.SHUT_WR)
    file = case.keep(mine.makefile(mode, encoding=encoding))
    loses_nothing = setting == "timed" and encoding == "utf-8" and method not in ("read some", "readlines")
    _read_to_the_end(case, file, FILE_READERS[method], may_refuse=not loses_nothing)


# --- files: writing ---


@scenario("writing", mode=["wb", "rwb"], pieces=["lines", "whole"], setting=SETTINGS, buffering=[-1, 16])
def writing_bytes(case: Case, mode: str, pieces: str, setting: str, buffering: int) -> None:
    """What a write took is received, once and in order; a write that raised took nothing, and can be repeated."""
    mine, peer = case.pair(setting)
    file = mine.makefile(mode, buffering)
    _write_it_all(case, peer, file, DATA.splitlines(True) if pieces == "lines" else [DATA])


@scenario(
    "writing",
    mode=["w", "rw"],
    pieces=["lines", "whole"],
    setting=["plain", "timed", "collecting"],
    buffering=[-1, 1, 16],
)
def writing_text(case: Case, mode: str, pieces: str, setting: str, buffering: int) -> None:
    """The same of text."""
    mine, peer = case.pair(setting)
    file = mine.makefile(mode, buffering, encoding="utf-8")
    _write_it_all(case, peer, file, TEXT.splitlines(True) if pieces == "lines" else [TEXT])


def _write_it_all(case: Case, peer: socket.socket, file: Any, pieces: list[Any]) -> None:
    case.keep(file)
    whole = dead = False
    for step in [*((file.write, piece) for piece in pieces), (file.flush,)]:
        while (outcome := case.call(*step)).error is not None and not outcome.dead:
            pass
        if outcome.dead:
            dead = True
            break
    else:
        whole = True
    closed = case.call(file.close).error is None
    assert file.closed
    file.close()
    got = everything(peer)
    assert got == DATA if whole else dead and DATA.startswith(got), f"{got!r}"
    assert closed or case.errors


@scenario(
    "writing",
    how=["write_all", "writev_all", "sendfile", "send_fds", "wb", "rwb", "w"],
    setting=["plain", "timed"],
)
def writing_more_than_fits(case: Case, how: str, setting: str) -> None:
    """More than a socket holds, to a peer who reads meanwhile: waits fail too, and every byte arrives once."""
    mine, peer = case.pair(setting)
    with socket.socket(fileno=os.dup(mine.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(everything(peer)))
    reader.start()
    dead = False
    try:
        if how in ("wb", "rwb", "w"):
            file: Any = mine.makefile(how, 1000)
            pieces = [MUCH[at : at + 6000] for at in range(0, len(MUCH), 6000)]
            steps = [(file.write, piece if "b" in how else piece.decode()) for piece in pieces]
            for step in [*steps, (file.flush,)]:
                while not dead and (outcome := case.call(*step)).error is not None:
                    dead = outcome.dead
            case.call(file.close)
        else:
            sent = 0
            while sent < len(MUCH):
                arguments: dict[str, tuple[Any, ...]] = {
                    "write_all": (MUCH[sent:],),
                    "writev_all": ([MUCH[sent : sent + 5000], MUCH[sent + 5000 :]],),
                    "sendfile": (io.BytesIO(MUCH), sent),
                    "send_fds": (MUCH[sent:], []),
                }
                outcome = case.call(getattr(mine, how), *arguments[how])
                sent += outcome.nbytes or outcome.value or 0
    finally:
        mine.close()
        reader.join()
    assert got == [MUCH] or (dead and MUCH.startswith(got[0]))


@scenario(
    "writing", mode=["w", "rw", "wb", "rwb"], setting=["plain", "timed"], how=["close", "with", "stream"]
)
def closing_a_file(case: Case, mode: str, setting: str, how: str) -> None:
    """Closing sends what was written, or says that it could not; either way file and stream are closed, once."""
    mine, peer = case.pair(setting)
    file = mine.makefile(mode)
    file.write(DATA if "b" in mode else TEXT)

    def leave() -> None:
        with file:
            pass

    close = {"close": file.close, "with": leave, "stream": mine.close}[how]
    outcome = case.call(close)
    assert file.closed and mine.closed
    file.close()
    mine.close()
    got = everything(peer)
    if how == "stream":
        assert got == b""
    else:
        assert got == DATA or (outcome.error is not None and DATA.startswith(got))


@scenario("writing", mode=["rw", "rwb"], setting=["plain", "timed", "collecting"], buffering=[-1, 16])
def conversation(case: Case, mode: str, setting: str, buffering: int) -> None:
    """Requests and answers in turn: each request arrives once, each answer is read once, or the file is dead."""
    mine, peer = case.pair(setting)
    binary = "b" in mode
    file = case.keep(mine.makefile(mode, buffering))
    asked = b""
    for number in range(3):
        question = b"what is %d?\n" % number
        answer = b"it is %d\n" % number
        peer.sendall(answer)
        while (outcome := case.call(file.write, question if binary else question.decode())).error is not None:
            if outcome.dead:
                return
        asked += question
        line: Any = b"" if binary else ""
        while not line.endswith("\n" if not binary else b"\n"):
            outcome = case.call(_readline_or_refusal, file)
            if isinstance(outcome.value, Refused):
                break
            # The layers of io return what there is of a line where they are told that they would have to wait.
            line += outcome.value or line[:0]
        else:
            assert line == (answer if binary else answer.decode())
            continue
        assert SHIM.faults_injected(), "refused for no reason"
        break
    while (outcome := case.call(file.flush)).error is not None:
        if outcome.dead:
            return
    case.call(file.close)
    assert everything(peer) == asked


def _readline_or_refusal(file: Any) -> Any:
    try:
        return file.readline()
    except OSError as error:
        if "cannot read on" in str(error):
            return Refused()
        raise


# --- descriptors and credentials ---


def numbered_fd(case: Case, number: int) -> int:
    """A descriptor of a file that contains its own number."""
    fd = os.memfd_create("numbered")
    os.write(fd, b"%d" % number)
    case.keep(udstream.FileDescriptors([fd]))
    return fd


def number_of(fd: int) -> int:
    return int(os.pread(fd, 9, 0))


def whom(mine: udstream.UdStream, through: str) -> Any:
    """The functions of the side module, as methods of the stream or on its number."""
    if through == "stream":
        return mine
    fd = mine.fileno()

    class OnTheNumber:
        @staticmethod
        def recv_fds(*arguments: Any) -> Any:
            return ancillary.recv_fds(fd, *arguments)

        @staticmethod
        def recv_ancillary(*arguments: Any, **more: Any) -> Any:
            return ancillary.recv_ancillary(fd, *arguments, **more)

        @staticmethod
        def send_fds(*arguments: Any) -> int:
            return ancillary.send_fds(fd, *arguments)

        @staticmethod
        def send_ancillary(*arguments: Any) -> int:
            return ancillary.send_ancillary(fd, *arguments)

    return OnTheNumber


@scenario("ancillary", through=["stream", "number"], setting=SETTINGS, count=[1, 3], most=[253, 1])
def receiving_fds(case: Case, through: str, setting: str, count: int, most: int) -> None:
    """Every byte and every descriptor comes, once and in order, or the loss is told; and none is left open."""
    mine, peer = case.pair(setting)
    for first in (0, count):
        socket.send_fds(peer, [DATA], [numbered_fd(case, number) for number in range(first, first + count)])
    recv_fds = whom(mine, through).recv_fds

    def receive() -> tuple[bytes, Any, bool]:
        try:
            return (*recv_fds(len(DATA), most), False)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            # What hangs on the error is the caller's.
            return error.data, error.fds, True  # type: ignore[attr-defined]

    data, lost = b"", 0
    numbers: list[int] = []
    while len(data) < 2 * len(DATA):
        outcome = case.call(receive)
        if outcome.error is None:
            more, fds, some_lost = outcome.value
            data += more
            lost += some_lost
            with fds:
                numbers += map(number_of, fds)
    assert data == DATA * 2
    assert lost == (0 if count <= most else 2)
    kept = min(count, most)
    assert numbers == [*range(kept), *range(count, count + kept)]


@scenario("ancillary", through=["stream", "number"], setting=SETTINGS, most=[253, 1, 0])
def receiving_ancillary(case: Case, through: str, setting: str, most: int) -> None:
    """The same with buffers, and with the sender's credentials."""
    mine, peer = case.pair(setting)
    ancillary.set_passcred(mine, True)
    socket.send_fds(peer, [DATA], [numbered_fd(case, number) for number in range(3)])
    recv_ancillary = whom(mine, through).recv_ancillary
    data, truncated = b"", False
    numbers: list[int] = []
    while len(data) < len(DATA):
        buffers = [bytearray(5), bytearray(PIECE)]
        outcome = case.call(recv_ancillary, buffers, max_fds=most)
        if outcome.error is None:
            with outcome.value as received:
                data += b"".join(buffers)[: received.nbytes]
                numbers += map(number_of, received.fds)
                truncated |= received.truncated
                assert received.credentials == udstream.Credentials.current()
    assert data == DATA
    assert numbers == list(range(min(most, 3)))
    assert truncated is (most < 3)


@scenario("ancillary", timed=[False, True], file=[None, "rb", "r"])
def collecting(case: Case, timed: bool, file: str | None) -> None:
    """What a plain read, or a file, meets of descriptors is kept, once, with the place where it came."""
    mine, peer = case.pair("timed" if timed else "plain")
    mine.collect_ancillary = True
    socket.send_fds(peer, [b"one\n"], [numbered_fd(case, 0), numbered_fd(case, 1)])
    socket.send_fds(peer, [b"two\n"], [numbered_fd(case, 2)])
    peer.shutdown(socket.SHUT_WR)
    reader: Any = mine if file is None else case.keep(mine.makefile(file))
    try:
        while True:
            outcome = case.call(_readline_or_refusal, reader)
            if outcome.at_the_end:
                break
            if isinstance(outcome.value, Refused):
                while mine.read(99):
                    pass
                break
    finally:
        numbers: list[tuple[int, int]] = []
        while mine.collected:
            offset, received = mine.collected.popleft()
            with received:
                numbers += ((offset, number_of(fd)) for fd in received.fds)
    assert [number for _, number in numbers] == [0, 1, 2]
    # A read that began after the first byte of one message may go on into the next one.
    assert numbers[0][0] == numbers[1][0] == 0 < numbers[2][0] <= 4


@scenario("ancillary", through=["stream", "number"], setting=SETTINGS, method=["send_fds", "send_ancillary"])
def sending_fds(case: Case, through: str, setting: str, method: str) -> None:
    """Descriptors arrive with the bytes, once: an error that has sent none of the bytes has sent none of them."""
    mine, peer = case.pair(setting)
    fds = udstream.FileDescriptors([os.dup(numbered_fd(case, number)) for number in range(3)])
    send = getattr(whom(mine, through), method)
    left, to_send = DATA, [fds]
    with fds:
        while left:
            arguments = (fds if to_send else (),) if method == "send_fds" else (to_send,)
            outcome = case.call(send, left, *arguments)
            sent = outcome.nbytes or outcome.value or 0
            left = left[sent:]
            if sent:
                to_send = []
        assert len(fds) == 3 and [number_of(fd) for fd in fds] == [0, 1, 2]
    mine.close()
    data = b""
    numbers: list[int] = []
    while True:
        more, got, _, _ = socket.recv_fds(peer, 999, 99)
        if not more:
            break
        data += more
        with udstream.FileDescriptors(got) as owned:
            numbers += map(number_of, owned)
    assert data == DATA
    assert numbers == [0, 1, 2]


@scenario("ancillary", how=["close", "file", "socket", "stream"], count=[1, 3])
def disposing(case: Case, how: str, count: int) -> None:
    """Received descriptors are closed, or handed on, whatever the system says; none has two owners or none."""
    ends = [socket.socketpair() for _ in range(count)]
    fds = udstream.FileDescriptors([one.detach() for one, _ in ends])
    for _, other in ends:
        case.keep(other)
    case.keep(fds)
    arguments = {"file": (0, "rb", 0)}.get(how, ())
    outcome = case.call(getattr(fds, how), *arguments)
    if outcome.value is not None:
        outcome.value.close()
        assert fds[0] == -1
    fds.close()
    for _, other in ends:
        assert other.recv(1) == b""


@scenario(
    "ancillary",
    what=[
        ancillary.peer_credentials,
        ancillary.peer_groups,
        ancillary.peer_security,
        ancillary.get_passcred,
        ancillary.get_passrights,
    ],
    through=["stream", "number"],
)
def asking_who(case: Case, what: Callable[[Any], Any], through: str) -> None:
    """The answer, or the error; the borrowed descriptor stays open."""
    mine, peer = case.pair()
    fd = mine if through == "stream" else mine.fileno()
    try:
        outcome = case.call(what, fd)
    except NotImplementedError:
        pass
    else:
        assert outcome.error is not None or outcome.value == what(fd)
    talk(mine, peer)


@scenario("ancillary")
def asking_for_a_pidfd(case: Case) -> None:
    """A descriptor that is the caller's, or an error and none."""
    mine, peer = case.pair()
    try:
        outcome = case.call(ancillary.peer_pidfd, mine)
    except NotImplementedError:
        pass
    else:
        if outcome.error is None:
            os.close(outcome.value)
    talk(mine, peer)


@scenario("ancillary", what=["passcred", "passrights"])
def changing_what_passes(case: Case, what: str) -> None:
    """The option is set, or was refused and is as it was."""
    mine, peer = case.pair()
    get, set_ = getattr(ancillary, f"get_{what}"), getattr(ancillary, f"set_{what}")
    try:
        before = get(mine)
    except NotImplementedError:
        return
    changed = case.call(set_, mine, not before).error is None
    assert get(mine) is (before is not changed)
    talk(mine, peer)


# --- the listener ---


UNREMOVED = ("getsockname", "fstatat64", "unlinkat")


@scenario(
    "listener",
    path=["file", "abstract", "long file", "long name"],
    mode=[None, 0o600],
    stale=[False, True],
    pass_fds=[True, False],
)
def bind(case: Case, path: str, mode: int | None, stale: bool, pass_fds: bool) -> None:
    """A listener, and the file with its mode; or an error that names the path, and nothing left of it."""
    if path == "abstract" and (mode or stale):
        return
    case.use_folder_of_its_own()
    address = _path(case, path)
    if path != "abstract":
        Path(address).parent.mkdir(parents=True, exist_ok=True)
    if stale:
        with udstream.UdStreamListener.bind(address, unlink=False):
            pass
    # An inquiry that fails lets whatever is in the way count as alive.
    also = (errno.EADDRINUSE,) if stale else ()
    try:
        outcome = case.call(udstream.UdStreamListener.bind, address, mode=mode, pass_fds=pass_fds, also=also)
    except NotImplementedError:
        return
    left = set(os.listdir(Path(address).parent)) if path != "abstract" else set()
    if outcome.error is not None:
        assert outcome.error.filename == address
        # What was stale may be there or not. And where the system will not say which file is the new one, or will
        # not remove it, that is left, a stale one.
        if case.failed_at not in UNREMOVED:
            assert left <= ({Path(address).name} if stale else set()), left
        # Somebody else can have the name at once.
        listener = udstream.UdStreamListener.bind(address)
    else:
        assert not left or left == {Path(address).name}, left
        listener = outcome.value
        if mode is not None:
            assert Path(address).stat().st_mode & 0o777 == mode
    with listener, udstream.UdStream.connect(address) as client, listener.accept() as accepted:
        client.write(b"x")
        assert accepted.read(1) == b"x"
    assert path == "abstract" or not Path(address).exists()


@scenario(
    "listener", how=["accept", "incoming"], setting=["plain", "timed", "nonblocking"], authorize=[False, True]
)
def accepting(case: Case, how: str, setting: str, authorize: bool) -> None:
    """Those who have connected are accepted, each once and in order, after whatever error."""
    path = str(case.folder / "s")
    listener = case.keep(udstream.UdStreamListener.bind(path, authorize={os.getuid()} if authorize else None))
    listener.timeout = TIMEOUT if setting == "timed" else None
    listener.set_nonblocking(setting == "nonblocking")
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for number, client in enumerate(clients):
        case.keep(client)
        client.connect(path)
        client.sendall(b"%d" % number)
    accept = listener.accept if how == "accept" else listener.incoming().__next__
    served = []
    while _is_waiting(listener):
        outcome = case.call(accept)
        if outcome.error is None:
            with outcome.value as stream:
                served.append(int(stream.read_exact(1)))
                assert not stream.is_nonblocking() and stream.timeout is None
    # One of whom the kernel would not say who he was is let go, with the error.
    assert served == [0, 1, 2] or (
        authorize and case.errors and len(served) == 2 and served == sorted(served)
    )


def _is_waiting(listener: udstream.UdStreamListener) -> bool:
    import select

    return bool(select.select([listener], [], [], 0)[0])


@scenario("listener", path=["file", "abstract"], how=["close", "shutdown"])
def ending(case: Case, path: str, how: str) -> None:
    """Closed is closed, whatever the system says, and once; one that could not be shut down goes on."""
    address = _path(case, path)
    listener = case.keep(udstream.UdStreamListener.bind(address))
    outcome = case.call(getattr(listener, how))
    if how == "close":
        assert listener.closed
        listener.close()
    elif outcome.error is not None:
        with udstream.UdStream.connect(address), listener.accept():
            pass
    else:
        assert list(listener) == []
    # The file may be there when the system would not let it go; then it is a stale one.
    listener.close()
    udstream.UdStreamListener.bind(address).close()


# --- all of it ---


class Proof:
    """What one group came to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.faults = 0
        self.raised = 0
        self.failures: list[str] = []
        self.unraisable: list[str] = []
        sys.unraisablehook = lambda what: self.unraisable.append(repr(what.exc_value))

    def run(self, scenario: Scenario, fault: Fault) -> list[str]:
        """Run the scenario under the fault; the names of the system calls that it made."""
        before = open_fds()
        self.unraisable.clear()
        case = Case(fault, self.folder)
        SHIM.faults_plan(fault.how, fault.at, fault.number, fault.times, fault.one_byte)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            try:
                scenario.run(case)
            finally:
                SHIM.faults_arm(0)
                case.end()
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Exception as error:
            self.failed(scenario, fault, "".join(traceback.format_exception(error)[-3:]))
            error.__traceback__ = None
        if open_fds() != before:
            gc.collect()
            if open_fds() != before:
                self.failed(scenario, fault, f"descriptors {before} before, {open_fds()} after")
        if SHIM.faults_unowned_closes():
            self.failed(scenario, fault, "closed what was not open")
        if self.unraisable:
            self.failed(scenario, fault, f"on the side: {self.unraisable}")
        self.runs += 1
        self.faults += SHIM.faults_injected()
        self.raised += case.errors
        return [SHIM.faults_name(call).decode() for call in range(SHIM.faults_calls())]

    def failed(self, scenario: Scenario, fault: Fault, what: str) -> None:
        calls = [SHIM.faults_name(call).decode() for call in range(SHIM.faults_calls())]
        if fault.how in (ONE, REST):
            what = f"({calls[fault.at] if fault.at < len(calls) else 'not reached'}) {what}"
        self.failures.append(f"{scenario.name}: {fault} {what}")

    def count(self, scenario: Scenario) -> list[str]:
        """The names of the system calls that the scenario makes without a fault; and strace is told of each stretch."""
        self.run(scenario, Fault())
        Case.watched = scenario.name
        try:
            return self.run(scenario, Fault())
        finally:
            Case.watched = ""

    def prove(self, scenario: Scenario, quick: bool) -> None:
        """The scenario without a fault, and then with each."""
        # What is imported for the first time is none of its system calls.
        self.run(scenario, Fault())
        whole = self.run(scenario, Fault())
        kind = scenario.name.split()[0]
        for fault in faults(whole, False, quick):
            if fault.how == EACH or (kind, whole[fault.at]) not in SPARED:
                self.run(scenario, fault)
        if not quick and kind not in NOT_BY_BYTES:
            by_bytes = self.run(scenario, Fault(one_byte=True))
            # The same calls: there were no bytes to move.
            if by_bytes != whole:
                for fault in faults(by_bytes, True, quick):
                    self.run(scenario, fault)


def faults(calls: list[str], one_byte: bool, quick: bool) -> Iterator[Fault]:
    """All that can befall these calls."""
    for times, number in ((3, errno.EINTR), (1, errno.EAGAIN)):
        yield Fault(EACH, 0, number, times, one_byte)
    for at, name in enumerate(calls):
        numbers = OF_CLOSE if name == "close" else QUICK if quick else ERRNOS
        if one_byte:
            # So many calls that it must do to have each number somewhere.
            numbers = [numbers[(at + step) % len(numbers)] for step in (0, 5)]
        for number in numbers:
            yield Fault(ONE, at, number, 0, one_byte)
            if not one_byte and not quick and name != "close" and number not in PASSING:
                yield Fault(REST, at, number, 0)


def hangs(*_: object) -> None:
    raise AssertionError("it hangs")


def open_fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def main(group: str, *options: str) -> None:
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, hangs)
    gc.disable()
    gc.collect()
    with tempfile.TemporaryDirectory(prefix="uds-", dir="/tmp") as folder:
        proof = Proof(Path(folder))
        if "count" in options:
            print(json.dumps({each.name: proof.count(each) for each in SCENARIOS[group]}))
            return
        for each in SCENARIOS[group]:
            proof.prove(each, "quick" in options)
    summary = {name: getattr(proof, name) for name in ("runs", "faults", "raised", "failures")}
    print(json.dumps({"scenarios": len(SCENARIOS[group]), **summary}))


if __name__ == "__main__":
    main(*sys.argv[1:])
