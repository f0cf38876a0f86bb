"""Free of surprises: what nobody expects of a file does not happen."""

from __future__ import annotations

import gc
import io
import locale
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from descriptors import is_open
from meanwhile import no_collecting

import udstream
from udstream import FileDescriptors, UdStream, UdStreamListener, ancillary

# --- small promises of files that are easy to break ---


@pytest.mark.parametrize("mode", ["w", "wb", "rw", "rwb", "r", "rb"])
def test_closed_file_takes_not_even_nothing(mode: str) -> None:
    """A closed file refuses `writelines` also where there is no line, as any closed file does."""
    stream, other = UdStream.pair()
    file = stream.makefile(mode)
    file.close()
    other.close()

    with pytest.raises(ValueError, match="closed"):
        file.writelines([])


@pytest.mark.parametrize("size", [1024, 16384])
@pytest.mark.parametrize("mode", ["wb", "rwb"])
def test_nonblocking_write_says_how_much_it_took(mode: str, size: int) -> None:
    """The `BlockingIOError` of a nonblocking file says in `characters_written` how much was taken, maybe 0.

    Whoever goes on from there sends each byte once.
    """
    stream, other = UdStream.pair()
    stream.set_nonblocking(True)
    other.set_nonblocking(True)
    written, read = bytearray(), bytearray()
    with stream.makefile(mode, size) as file, other:
        for length in (9999, 73, 7574, 16384, 1024, 40000, 3):
            data = bytes([length % 251]) * length
            with pytest.raises(BlockingIOError) as caught:
                while True:
                    written += data[: file.write(data)]
            written += data[: caught.value.characters_written]
            read += other.readall() or b""
        taken_in_flush = []
        while True:
            try:
                file.flush()
                break
            except BlockingIOError as error:
                taken_in_flush.append(error.characters_written)
                read += other.readall() or b""
        read += other.readall() or b""

    assert not any(taken_in_flush)
    assert read == written


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_encoding_of_the_locale(mode: str) -> None:
    """`encoding="locale"` is the locale's encoding, as in the builtin `open`."""
    stream, other = UdStream.pair()
    with stream.makefile(mode, encoding="locale") as file, other:
        with io.TextIOWrapper(io.BytesIO(), encoding="locale") as usual:
            assert file.encoding == usual.encoding


# One that a C int does not hold, and of which it would hold the rest: 0, say, which is open.
TOO_GREAT = [1 << 31, 1 << 32, 1 << 40, 1 << 64]


@pytest.mark.parametrize("fd", TOO_GREAT, ids=["2**31", "2**32", "2**40", "2**64"])
@pytest.mark.parametrize(
    "take",
    [
        UdStream.from_fd,
        UdStreamListener.from_fd,
        ancillary.peer_credentials,
        ancillary.get_passcred,
        lambda fd: ancillary.send_fds(fd, b"x", []),
        lambda fd: ancillary.recv_fds(fd, 1),
        lambda fd: FileDescriptors([fd]),
    ],
    ids=["stream", "listener", "peer_credentials", "get_passcred", "send_fds", "recv_fds", "FileDescriptors"],
)
def test_number_too_great_for_a_descriptor(take: Callable[[int], object], fd: int) -> None:
    """A number that no descriptor can have is a `ValueError` that says so, and no other file is touched."""
    stream, other = UdStream.pair()
    stand_in = os.dup(0)
    try:
        # Where the number would end up, were its upper half dropped.
        os.dup2(stream.fileno(), 0)
        with pytest.raises(ValueError, match=str(fd)):
            take(fd)
    finally:
        os.dup2(stand_in, 0)
        os.close(stand_in)
    with stream, other:
        other.write(b"untouched")
        assert stream.read(100) == b"untouched"


def _set_timeout(seconds: Any) -> None:
    one, other = UdStream.pair()
    with one, other:
        one.timeout = seconds


@pytest.mark.parametrize(
    "take",
    [
        lambda seconds: UdStream.connect("@nobody", timeout=seconds),
        lambda seconds: udstream.open("@nobody", timeout=seconds),
        _set_timeout,
    ],
    ids=["connect", "open", "timeout"],
)
def test_timeout_too_great(take: Callable[[Any], object]) -> None:
    """A timeout that is too great for a float is a `ValueError` that says what will do instead."""
    with pytest.raises(ValueError, match="None is for ever"):
        take(10**400)


# --- gone with the last reference ---


# What is made, used and dropped, with all that led to it; each returns its descriptors.
Drop = Callable[[Path], list[int]]


def _stream(folder: Path) -> list[int]:
    one, other = UdStream.pair()
    one.timeout = 5
    one.collect_ancillary = True
    other.write(b"x")
    one.read(10)
    return [one.fileno(), other.fileno(), one.dup().fileno()]


def _listener(folder: Path) -> list[int]:
    listener = UdStreamListener.bind(folder / "s", authorize={os.getuid()})
    client = UdStream.connect(folder / "s", timeout=5)
    accepted = next(listener.incoming())
    with pytest.raises(ConnectionRefusedError):
        UdStream.connect(f"@nobody-{os.getpid()}")
    listener.timeout = 0.001
    with suppress(TimeoutError):
        listener.accept()
    return [listener.fileno(), client.fileno(), accepted.fileno()]


def _descriptors(folder: Path) -> list[int]:
    one, other = UdStream.pair()
    one.send_fds(b"x", [0, 0])
    one.send_fds(b"x", [0])
    one.send_fds(b"x", [0])
    _, fds = other.recv_fds(1)
    received = other.recv_ancillary(bytearray(1))
    other.collect_ancillary = True
    other.read(1)
    return [one.fileno(), other.fileno(), *fds, *received.fds, *other.collected[0][1].fds]


def _lost_descriptors(folder: Path) -> list[int]:
    one, other = UdStream.pair()
    one.send_fds(b"x", [0, 0, 0])
    fds: list[int] = []
    try:
        other.recv_fds(1, max_fds=1)
    except OSError as error:
        # Not in a variable that lives on: that would be a cycle of our own.
        fds += error.fds  # type: ignore[attr-defined]
    assert fds
    return [one.fileno(), other.fileno(), *fds]


def _failing(call: Callable[[UdStream], object]) -> Drop:
    """A call of a stream that times out, would block, or meets the end of file."""

    def drop(folder: Path) -> list[int]:
        one, other = UdStream.pair()
        fds = [one.fileno(), other.fileno()]
        one.timeout = 0.001
        for stream in (one, other):
            with pytest.raises((OSError, EOFError)):
                while True:
                    call(stream)
            if stream is one:
                other.set_nonblocking(True)
        one.close()
        with suppress(OSError, EOFError):
            call(other)
        return fds

    return drop


STREAM_CALLS: dict[str, Callable[[UdStream], object]] = {
    "read_exact": lambda stream: stream.read_exact(10),
    "readinto_exact": lambda stream: stream.readinto_exact(bytearray(10)),
    "readline": lambda stream: stream.readline(),
    "readlines": lambda stream: stream.readlines(),
    "write_all": lambda stream: stream.write_all(bytes(1 << 20)),
    "writev_all": lambda stream: stream.writev_all([bytes(1 << 20)]),
    "recv_fds": lambda stream: stream.recv_fds(10),
    "recv_ancillary": lambda stream: stream.recv_ancillary([bytearray(10)]),
    "send_fds": lambda stream: stream.send_fds(bytes(1 << 20), [0]),
}

READ_CALLS: dict[str, Callable[[Any], object]] = {
    "read(n)": lambda file: file.read(10),
    "read": lambda file: file.read(),
    "readline": lambda file: file.readline(),
    "readlines": lambda file: file.readlines(),
    "next": next,
    "list": list,
}
BYTES_CALLS: dict[str, Callable[[Any], object]] = {
    **READ_CALLS,
    "readinto": lambda file: file.readinto(bytearray(10)),
    "readinto1": lambda file: file.readinto1(bytearray(10)),
    "read1": lambda file: file.read1(),
    "peek": lambda file: file.peek(),
}


def _reading(mode: str, call: Callable[[Any], object], sent: bytes) -> Drop:
    """A read of a file that times out, after a first part or with nothing."""

    def drop(folder: Path) -> list[int]:
        one, other = UdStream.pair()
        one.timeout = 0.001
        file = one.makefile(mode)
        if sent:
            other.write(sent)
        for _ in range(4):
            with suppress(OSError, StopIteration, UnicodeError):
                call(file)
        return [file.fileno(), other.fileno()]

    return drop


def _writing(mode: str) -> Drop:
    """A file whose write fails, because nobody reads, and whose last bytes nobody can have any more."""

    def drop(folder: Path) -> list[int]:
        one, other = UdStream.pair()
        one.timeout = 0.001
        file = one.makefile(mode)
        fds = [one.fileno(), other.fileno()]
        data: Any = bytes(1 << 18) if "b" in mode else "x" * (1 << 18)
        with pytest.raises(TimeoutError):
            while True:
                file.write(data)
                file.flush()
        other.close()
        with pytest.raises(BrokenPipeError):
            file.close()
        return fds

    return drop


def _used(mode: str, buffering: int = -1) -> Drop:
    """A file that has done all that it can."""

    def drop(folder: Path) -> list[int]:
        one, other = UdStream.pair()
        other.write(b"one\ntwo\nthree")
        other.shutdown(udstream.Shutdown.WRITE)
        file: Any = one.makefile(mode, buffering)
        if file.writable():
            file.write(b"x" if "b" in mode else "x")
            file.flush()
        if file.readable():
            lines = iter(file)
            assert next(lines)
            assert file.readline()
        if hasattr(file, "buffer"):
            assert file.buffer.raw is one
        assert repr(file)
        return [file.fileno(), other.fileno()]

    return drop


DROPS: dict[str, Drop] = {
    "stream": _stream,
    "listener": _listener,
    "descriptors": _descriptors,
    "lost descriptors": _lost_descriptors,
    **{f"stream.{name}": _failing(call) for name, call in STREAM_CALLS.items()},
    **{f"{mode} used": _used(mode) for mode in ("r", "w", "rw", "rb", "wb", "rwb")},
    "unbuffered used": _used("rwb", 0),
    "line-buffered used": _used("rw", 1),
    **{f"{mode} written": _writing(mode) for mode in ("w", "rw", "wb", "rwb")},
    **{
        f"{mode}.{name} after {sent!r}": _reading(mode, call, sent)
        for mode, calls in (("r", READ_CALLS), ("rw", READ_CALLS), ("rb", BYTES_CALLS), ("rwb", BYTES_CALLS))
        for name, call in calls.items()
        for sent in (b"", b"ab", b"ab\nc", b"\xff\n")
    },
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", DROPS)
def test_gone_with_the_last_reference(name: str, folder: Path) -> None:
    """What is dropped is closed at once, also after a failure: nothing waits for the garbage collector."""
    with no_collecting():
        fds = DROPS[name](folder)
        left = [fd for fd in fds if is_open(fd)]

    assert fds
    assert left == []


# --- nobody else notices ---

# What the import may bring that `import socket` does not, from the standard library: small modules, most of them in C.
BEYOND_SOCKET = {"__future__", "_operator", "_struct", "atexit", "itertools", "select", "struct"}


def _python(*arguments: str) -> str:
    """What a new interpreter prints, which has imported nothing but what it must."""
    paths = f"import sys; sys.path[:0] = {sys.path!r}; "
    *flags, program = arguments
    done = subprocess.run(
        [sys.executable, "-S", *flags, "-c", paths + program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_brings_no_more_than_socket() -> None:
    """Of the standard library `import udstream` imports what `import socket` does, if that much, and small modules."""
    program = "before = {*sys.modules}; import %s; print(*{*sys.modules} - before)"
    usual, ours = ({*_python(program % name).split()} for name in ("socket", "udstream"))
    theirs = {name for name in ours if name.partition(".")[0] != "udstream"}

    assert theirs - usual <= BEYOND_SOCKET


@pytest.mark.parametrize("flags", [[], ["-bb", "-X", "dev", "-W", "error"], ["-OO"]], ids=" ".join)
def test_no_module_starts_anything(flags: list[str]) -> None:
    """Importing each module of the package, and asking for each name, opens and starts nothing."""
    program = """
import gc, os, pkgutil, signal, threading, warnings
def state():
    fds = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    return (fds, threading.active_count(), handlers, dict(os.environ), os.getcwd(), gc.get_threshold(),
            gc.isenabled(), sys.excepthook, threading.excepthook, sys.unraisablehook, list(sys.meta_path))
before = state()
import udstream
for name in udstream.__all__:
    getattr(udstream, name)
for module in pkgutil.walk_packages(udstream.__path__, "udstream."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
        print(module.name)
if state() != before:
    sys.exit(f"{state()} is not {before}")
"""
    imported = _python(*flags, program).split()

    assert {"udstream.listener", "udstream.ancillary", "udstream.cli"} <= {*imported}


def _global_state() -> dict[str, object]:
    """What belongs to the whole process or thread, and is nobody's to change in passing."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "umask": umask,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "default timeout": socket.getdefaulttimeout(),
        "signal handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "pending signals": signal.sigpending(),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "limits": [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)],
        "threads": threading.active_count(),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "warnings": list(warnings.filters),
        "locale": locale.setlocale(locale.LC_ALL),
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "modes of the standard descriptors": [os.get_blocking(fd) for fd in (0, 1, 2)],
    }


def test_nobody_else_notices(folder: Path) -> None:
    """Whatever is done with streams, listeners and files leaves the state of the process as it was."""
    path = folder / ("long-" * 40) / "s"
    path.parent.mkdir()
    (folder / "file").write_bytes(bytes(1 << 16))
    seen: list[dict[str, object]] = []
    before = _global_state()

    def authorize(credentials: udstream.Credentials) -> bool:
        seen.append(_global_state())
        return credentials.uid == os.getuid()

    with UdStreamListener.bind(path, mode=0o600, authorize=authorize) as listener:
        with UdStream.connect(path, timeout=5) as client, listener.accept() as accepted:
            with open(folder / "file", "rb") as file:
                client.sendfile(file)
                client.timeout = None
                client.sendfile(file)
            assert len(accepted.read_exact(1 << 17)) == 1 << 17
            client.send_fds(b"x", [0])
            with accepted.recv_fds(1)[1] as fds:
                assert len(fds) == 1
            accepted.timeout = 0.001
            with pytest.raises(TimeoutError):
                accepted.read(1)
            assert client.peer_credentials().pid == os.getpid()
            accepted.shutdown(udstream.Shutdown.BOTH)
            with pytest.raises(BrokenPipeError):
                client.write(b"x")
            with open(folder / "file", "rb") as file, pytest.raises(BrokenPipeError):
                client.sendfile(file)
        with listener, suppress(BlockingIOError):
            listener.set_nonblocking(True)
            listener.accept()
    stream, other = UdStream.pair()
    with stream.makefile("rw", encoding="utf-8") as text, other:
        text.write("request\n")
        other.write(b"reply\n")
        assert text.readline() == "reply\n"

    assert seen == [before]
    assert _global_state() == before


INSIDE = """
import udstream
one, other = udstream.UdStream.pair()
with one.makefile("rw", encoding="utf-8") as file, other:
    print("a line", file=file, flush=True)
    assert other.read(100) == b"a line\\n"
    other.send_fds(b"x", [0])
    one.recv_fds(1)[1].close()
    one.timeout = 0.001
    try:
        one.read(1)
    except TimeoutError:
        pass
with udstream.UdStreamListener.bind("@udstream-%d") as listener:
    udstream.UdStream.connect(listener.local_path).close()
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
@pytest.mark.parametrize("isolated", [False, True], ids=["shared", "isolated"])
def test_subinterpreter(isolated: bool) -> None:
    """It is imported and works in another interpreter of the same process, also in an isolated one."""
    inside = f"import sys; sys.path[:0] = {sys.path!r}\n" + INSIDE % os.getpid()
    interpreters: Any
    if sys.version_info >= (3, 13):
        interpreters = pytest.importorskip("_interpreters")
        interpreter = interpreters.create("isolated" if isolated else "legacy")
        failure = interpreters.exec(interpreter, inside)
    else:
        interpreters = pytest.importorskip("_xxsubinterpreters")
        interpreter = interpreters.create(isolated=isolated)
        failure = interpreters.run_string(interpreter, inside)
    interpreters.destroy(interpreter)

    assert failure is None
