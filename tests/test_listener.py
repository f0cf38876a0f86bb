"""UdStreamListener: binding to every kind of address, accepting, iterating, waiting, ending."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from children import forked
from descriptors import fd_count
from fakes import in_place_of_the_kernel
from meanwhile import PATIENCE, blocked_in, in_thread, on_alarm
from real import environment

from udstream import Shutdown, UdSocketPath, UdStream, UdStreamListener, _activation, _waiting
from udstream import listener as listener_module


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, folder: Path) -> str:
    """A free address of each kind."""
    if request.param == "path":
        return str(folder / "s")
    return f"@udstream-{os.getpid()}-{os.urandom(6).hex()}"


@pytest.fixture
def listener(address: str) -> Iterator[UdStreamListener]:
    """A listener that a test cannot hang in for ever."""
    with UdStreamListener.bind(address) as listening:
        yield listening


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds, and fail if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- addresses ---


def test_accepts_what_connects(listener: UdStreamListener, address: str) -> None:
    """bind() listens, at a file or an abstract name; accept() gives the other end of a connection."""
    with UdStream.connect(address) as client, listener.accept() as served:
        client.write(b"ping")
        assert served.read(10) == b"ping"

    assert isinstance(served, UdStream)


@pytest.mark.parametrize("make", [str, os.fsencode, Path, UdSocketPath.file])
def test_every_form_of_a_path(folder: Path, make: Callable[[str], Any]) -> None:
    """str, bytes, PathLike and UdSocketPath all name a file; local_path says the path as it was given."""
    path = str(folder / "s")

    with UdStreamListener.bind(make(path)) as listener:
        assert listener.local_path == UdSocketPath.file(path)
        assert socket.socket.getsockname(_borrowed(listener)) == path


def _borrowed(listener: UdStreamListener) -> socket.socket:
    return socket.socket(fileno=os.dup(listener.fileno()))


@pytest.fixture(autouse=True)
def _collect_borrowed() -> Iterator[None]:
    """Close what `_borrowed` left to the garbage collector, without its warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket.socket", ResourceWarning)
        yield
        gc.collect()


def test_a_pathlike_is_always_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path("@x") is a file in the working folder, not an abstract name."""
    monkeypatch.chdir(folder)

    with UdStreamListener.bind(Path("@x")) as listener:
        assert os.listdir(folder) == ["@x"]
        assert str(listener.local_path) == "./@x"


def test_an_abstract_name_has_its_exact_length(folder: Path) -> None:
    """Abstract names are not padded, may hold NULs, and leave nothing in any folder."""
    name = os.urandom(8) + b"\0x\0"

    with UdStreamListener.bind(b"\0" + name) as listener, socket.socket(socket.AF_UNIX) as client:
        assert listener.local_path == UdSocketPath.namespaced(name)
        client.connect(b"\0" + name)
        listener.accept().close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "empty"),
        (b"", "empty"),
        ("a\0b", "NUL"),
        ("@" + "x" * 108, "108"),
        (UdSocketPath.unnamed(), "unnamed"),
    ],
)
def test_what_cannot_be_an_address(path: Any, message: str) -> None:
    """An empty path, a NUL in one, an abstract name too long and an unnamed address are ValueErrors that say so."""
    with pytest.raises(ValueError, match=message):
        UdStreamListener.bind(path)


def test_a_path_of_another_type() -> None:
    """What is no path is a TypeError that names its type."""
    with pytest.raises(TypeError, match="int"):
        UdStreamListener.bind(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "relative",
    [
        "f" * 100 + "/" + "s" * 20,
        "f" * 100 + "/" + "s" * 200,
        "s" * 108,
        "s" * 150,
        "s" * 255,
        "/".join(["f" * 200] * 5),
    ],
    ids=["long folder", "both", "just too long", "long name", "longest name", "very long"],
)
@pytest.mark.parametrize("mode", [None, 0o606])
def test_a_path_of_any_length(folder: Path, relative: str, mode: int | None) -> None:
    """A path over 107 bytes is bound all the same, by its own name alone, and removed at the end."""
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)

    with UdStreamListener.bind(path, mode=mode) as listener:
        assert os.listdir(path.parent) == [path.name]
        assert str(listener.local_path) == str(path)
        if mode is not None:
            assert path.stat().st_mode & 0o777 == mode
        with UdStream.connect(path), listener.accept():
            pass
        with pytest.raises(OSError, match="in use") as caught:
            UdStreamListener.bind(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(path))
    assert os.listdir(path.parent) == []


def test_a_path_that_just_fits(folder: Path) -> None:
    """One of 107 bytes is given to the kernel as it is, which then tells it to others."""
    path = folder / ("s" * (107 - len(str(folder)) - 1))
    with UdStreamListener.bind(path) as listener:
        assert socket.socket.getsockname(_borrowed(listener)) == str(path)


@pytest.mark.parametrize("size", range(84, 97))
def test_a_way_round_that_just_fits(folder: Path, size: int) -> None:
    """In a folder of any length a name of any length can be had, also where the way by /proc/self/fd just fits."""
    path = folder / ("f" * 100) / ("s" * size)
    path.parent.mkdir()
    with UdStreamListener.bind(path) as listener, UdStream.connect(path):
        listener.accept().close()


@pytest.mark.parametrize("reclaim_stale", [True, False])
@pytest.mark.parametrize(
    ("relative", "number"),
    [
        ("nowhere/s", errno.ENOENT),
        ("nowhere/" + "s" * 200, errno.ENOENT),
        ("file/s", errno.ENOTDIR),
        ("file", errno.EADDRINUSE),
        ("folder", errno.EADDRINUSE),
        ("dangling", errno.EADDRINUSE),
        ("new/", errno.ENOENT),
        (".", errno.EADDRINUSE),
        ("s" * 256, errno.ENAMETOOLONG),
        ("/".join(["f" * 200] * 30), errno.ENAMETOOLONG),
    ],
)
def test_what_the_kernel_refuses(folder: Path, relative: str, number: int, reclaim_stale: bool) -> None:
    """It is an OSError with the path as it was given for its filename, and the folder is as it was."""
    (folder / "file").write_text("precious")
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to(folder / "gone")
    before = sorted(os.listdir(folder))
    path = f"{folder}/{relative}"

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        UdStreamListener.bind(path, reclaim_stale=reclaim_stale)

    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (number, path, None)
    assert type(caught.value) is type(OSError(number, ""))
    assert str(caught.value).endswith(f": {path!r}")
    assert sorted(os.listdir(folder)) == before
    assert (folder / "file").read_text() == "precious"


def test_an_abstract_name_in_use(listener: UdStreamListener, address: str) -> None:
    """A second listener at the same address is EADDRINUSE, with the address as filename."""
    with pytest.raises(OSError, match="in use") as caught:
        UdStreamListener.bind(address)

    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, address)


def test_a_failure_after_the_bind_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When listen fails, or anything else once the file is there, the file goes again."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listener_module, "_Turn", fail)
    for name in ("s", "s" * 200):
        with pytest.raises(KeyboardInterrupt):
            UdStreamListener.bind(folder / name)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(("backlog", "waiting"), [(0, 1), (1, 2), (5, 6)])
def test_the_backlog(address: str, backlog: int, waiting: int) -> None:
    """backlog is how many may wait, beyond the one that the kernel always lets wait."""
    with UdStreamListener.bind(address, backlog=backlog), ExitStack() as clients:
        for _ in range(waiting):
            clients.enter_context(UdStream.connect(address, timeout=PATIENCE))
        with pytest.raises(TimeoutError):
            UdStream.connect(address, timeout=0.05)


def test_the_most_backlog_there_is(address: str) -> None:
    """backlog=None lets as many wait as the kernel allows, and a number beyond that is no error."""
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    for backlog in (None, 1 << 70):
        with UdStreamListener.bind(address, backlog=backlog) as listener:
            shown = _listen_queue(listener)
            assert shown in (None, allowed)


def _listen_queue(listener: UdStreamListener) -> int | None:
    """What `ss` says the queue's length may be; None without ss."""
    import shutil
    import subprocess

    if shutil.which("ss") is None:
        return None
    inode = str(os.fstat(listener.fileno()).st_ino)
    for line in subprocess.run(
        ["ss", "-Hxl"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if inode in line.split():
            return int(line.split()[3])
    return None


@pytest.mark.parametrize(("backlog", "error"), [(-1, ValueError), ("5", TypeError), (1.5, TypeError)])
def test_a_wrong_backlog(address: str, backlog: Any, error: type[Exception]) -> None:
    """A backlog below 0, or no number, is refused before any system call."""
    with pytest.raises(error, match="backlog"):
        UdStreamListener.bind(address, backlog=backlog)


def test_there_is_no_constructor() -> None:
    """UdStreamListener() is a TypeError that says how to make one, and half-built ones harm nobody."""
    with pytest.raises(TypeError, match="bind"):
        UdStreamListener()
    half = UdStreamListener.__new__(UdStreamListener)
    half.close()
    assert half.closed
    assert "[closed]" in repr(half)


# --- what is accepted ---


@pytest.mark.parametrize("default", [None, 5.0, 0.0])
@pytest.mark.parametrize("nonblocking", [False, True])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_what_is_accepted_is_blocking(
    address: str, default: float | None, nonblocking: bool, timeout: float | None
) -> None:
    """Accepted streams are blocking, without a timeout and close-on-exec, whatever the listener and the default are."""
    socket.setdefaulttimeout(default)
    try:
        with UdStreamListener.bind(address) as listener:
            assert not listener.is_nonblocking()
            listener.set_nonblocking(nonblocking)
            listener.timeout = timeout
            with UdStream.connect(address), listener.accept() as served:
                assert not served.is_nonblocking()
                assert served.timeout is None
                assert not os.get_inheritable(served.fileno())
            assert listener.is_nonblocking() == nonblocking
            assert not os.get_inheritable(listener.fileno())
    finally:
        socket.setdefaulttimeout(None)


def test_a_handler_that_raises_leaks_no_connection(
    listener: UdStreamListener, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However close to the accept a signal's handler raises, the connection is returned or closed."""

    class Interrupt(TimeoutError, ConnectionError):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    # It may raise in a finaliser too, which Python can only mention.
    mention = sys.unraisablehook
    monkeypatch.setattr(
        sys, "unraisablehook", lambda what: None if what.exc_type is Interrupt else mention(what)
    )
    random.seed(1)
    returned = interrupted = 0
    # What was dropped on the way is closed by its finaliser, which says so.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for turn in range(600):
            listener.timeout = PATIENCE if turn % 2 else None
            with UdStream.connect(address) as client:
                try:
                    with on_alarm(interrupt, random.uniform(1e-6, 60e-6)):
                        listener.accept().close()
                    returned += 1
                except Interrupt:
                    interrupted += 1
                    client.timeout = PATIENCE
                    listener.set_nonblocking(True)
                    with suppress(BlockingIOError):
                        listener.accept().close()
                    listener.set_nonblocking(False)
                # The server's end is closed on every path.
                assert client.read(1) == b""
        gc.collect()
    assert returned
    assert interrupted


# --- waiting ---


def test_a_timeout(listener: UdStreamListener, address: str) -> None:
    """With nobody coming accept() raises TimeoutError in time, and can be repeated."""
    listener.timeout = 0.05
    before = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        listener.accept()
    assert 0.05 <= time.monotonic() - before < PATIENCE
    assert caught.value.errno == errno.ETIMEDOUT

    with UdStream.connect(address):
        listener.accept().close()
    assert listener.timeout == 0.05


def test_a_timeout_that_is_long(listener: UdStreamListener, address: str) -> None:
    """A timeout of any size is taken, beyond what the kernel can count too."""
    for seconds in (1e-9, 1, 10**12, 1e300, float("inf")):
        listener.timeout = seconds
        assert listener.timeout == seconds
    with UdStream.connect(address):
        listener.accept().close()


@pytest.mark.parametrize("seconds", [0, -1, 0.0, float("nan"), "1", True])
def test_a_wrong_timeout(listener: UdStreamListener, seconds: Any) -> None:
    """0 and below are ValueErrors, what is no number a TypeError; the timeout stays as it was."""
    listener.timeout = 3
    with pytest.raises((ValueError, TypeError), match="timeout"):
        listener.timeout = seconds
    assert listener.timeout == 3


def test_signals_do_not_lengthen_a_timeout(listener: UdStreamListener) -> None:
    """Signals more frequent than the timeout do not keep accept() from ending."""
    listener.timeout = 0.2
    with on_alarm(lambda *_: None, 0.01, 0.01), pytest.raises(TimeoutError):
        listener.accept()


def test_a_timed_accept_leaves_the_socket_as_it_was(address: str) -> None:
    """Neither O_NONBLOCK nor SO_RCVTIMEO nor a lock stays on the socket, which others may share."""
    with UdStreamListener.bind(address) as listener, _borrowed(listener) as shared:
        listener.timeout = PATIENCE
        for _ in range(3):
            with UdStream.connect(address):
                listener.accept().close()
        assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)
        assert os.get_blocking(shared.fileno())
        locks = Path("/proc/locks").read_text()
        assert f":{os.fstat(shared.fileno()).st_ino} " not in locks


def test_a_former_owners_receive_timeout_stays(address: str) -> None:
    """SO_RCVTIMEO that was set on a socket handed over is put back, and does not end a wait without a timeout."""
    a_while = struct.pack("@ll", 0, 40_000)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(UdSocketPath.of(address).sockaddr())
        sock.listen()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, a_while)
        with UdStreamListener.from_socket(sock) as listener, _borrowed(listener) as shared:
            listener.timeout = PATIENCE
            with UdStream.connect(address):
                listener.accept().close()
            assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == a_while
            listener.timeout = None
            with on_alarm(lambda *_: UdStream.connect(address).close(), 0.15):
                listener.accept().close()


def test_threads_that_want_one_connection(listener: UdStreamListener, address: str) -> None:
    """Of threads that time the same accept one gets the connection; the others' TimeoutErrors come in time."""
    listener.timeout = 0.1
    connections = 0

    def accept() -> str:
        try:
            listener.accept().close()
            return "accepted"
        except TimeoutError:
            return "timed out"

    for _ in range(10):
        with ExitStack() as stack:
            results = [stack.enter_context(in_thread(accept)) for _ in range(4)]
            stack.enter_context(UdStream.connect(address))
            connections += 1
        done = [result[0] for result in results]
        assert done.count("accepted") + done.count("timed out") == len(done)
        # One that came too late for all of them, on a busy machine, is for the next ones.
        connections -= done.count("accepted")
        assert connections in (0, 1)
    if connections:
        listener.accept().close()


def test_processes_that_want_one_connection(folder: Path) -> None:
    """Of processes that time the same accept one gets the connection; the others' TimeoutErrors come in time."""
    with UdStreamListener.bind(folder / "s") as listener:
        listener.timeout = 0.05
        report, told = os.pipe()

        def worker() -> None:
            for _ in range(30):
                try:
                    listener.accept().close()
                    os.write(told, b"a")
                except TimeoutError:
                    os.write(told, b"t")

        pids = [forked(worker) for _ in range(4)]
        connected = 0
        while (done := [os.waitpid(pid, os.WNOHANG) for pid in pids]) and any(pid == 0 for pid, _ in done):
            pids = [pid for pid, (gone, _) in zip(pids, done, strict=True) if not gone]
            assert all(status == 0 for _, status in done)
            with UdStream.connect(folder / "s", timeout=PATIENCE):
                connected += 1
            time.sleep(0.005)
        assert all(status == 0 for _, status in done)
        os.close(told)
        got = b""
        while more := os.read(report, 1 << 16):
            got += more
        os.close(report)
        assert len(got) == 120
        assert b"a" in got


def test_processes_take_turns(listener: UdStreamListener, address: str) -> None:
    """While another process is in its turn, a timed accept() keeps off, so that neither loses its way out."""
    listener.timeout = 0.05
    ready, tell = os.pipe()
    done, finish = os.pipe()

    def hold() -> None:
        fcntl.lockf(listener, fcntl.LOCK_EX)
        os.write(tell, b"x")
        os.read(done, 1)

    pid = forked(hold)
    try:
        os.read(ready, 1)
        with UdStream.connect(address):
            with pytest.raises(TimeoutError):
                listener.accept()
            os.write(finish, b"x")
            assert os.waitpid(pid, 0)[1] == 0
            listener.accept().close()
    finally:
        for fd in (ready, tell, done, finish):
            os.close(fd)


def test_a_fork_while_a_thread_accepts(listener: UdStreamListener, address: str) -> None:
    """A child can time its accepts although another thread held the turn when it was forked."""
    listener.timeout = PATIENCE
    listener._turn._lock.acquire()
    listener.timeout = 0.5

    def accept() -> None:
        listener.accept().close()

    with UdStream.connect(address):
        pid = forked(accept)
        assert os.waitpid(pid, 0)[1] == 0
    listener._turn._lock.release()


def test_a_nonblocking_listener(listener: UdStreamListener, address: str) -> None:
    """Nonblocking, accept() raises BlockingIOError when nobody waits, whatever the timeout; else it accepts."""
    listener.set_nonblocking(True)
    for timeout in (None, PATIENCE):
        listener.timeout = timeout
        with pytest.raises(BlockingIOError):
            listener.accept()
        with pytest.raises(BlockingIOError):
            next(iter(listener))
        with UdStream.connect(address):
            listener.accept().close()
    assert listener.is_nonblocking()
    listener.set_nonblocking(False)
    assert not listener.is_nonblocking()


class Breaking:
    """What accepts in place of the kernel: raises each error once, and then does as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.usual = listener_module._accept_into
        monkeypatch.setattr(listener_module, "_accept_into", self)

    @in_place_of_the_kernel
    def __call__(self, accepted: Any, sock: Any) -> None:
        if self.numbers:
            number = self.numbers.pop(0)
            raise OSError(number, os.strerror(number))
        self.usual(accepted, sock)


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO])
def test_a_connection_that_broke_while_it_waited(
    listener: UdStreamListener,
    address: str,
    number: int,
    timeout: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that came to nothing is no error of the listener's: the next is accepted."""
    Breaking(monkeypatch, number, number)
    listener.timeout = timeout
    with UdStream.connect(address):
        listener.accept().close()


@pytest.mark.usefixtures("no_endless_wait")
def test_connections_that_break_do_not_lengthen_a_timeout(
    listener: UdStreamListener, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, past the timeout it is TimeoutError."""
    breaking = Breaking(monkeypatch, *[errno.ECONNABORTED] * 1_000_000)
    listener.timeout = 0.05
    with UdStream.connect(address), pytest.raises(TimeoutError):
        listener.accept()
    assert breaking.numbers


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_pause_after_whatever_has_run_out(
    listener: UdStreamListener, address: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these is raised, and the next call pauses first: twice as long each time, up to a second."""
    pauses = []
    # The first accept of a call is tried again, the long way; so two of each.
    Breaking(monkeypatch, number, *[number] * 10)
    with UdStream.connect(address):
        for _ in range(10):
            with pytest.raises(OSError, match=os.strerror(number)):
                listener.accept()
            pauses.append(listener._pause)
            # It is known to be waited for.
            listener._not_before = 0.0
        listener.accept().close()
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0]
    assert listener._pause == 0


@pytest.mark.usefixtures("no_endless_wait")
def test_a_connection_that_another_takes(
    listener: UdStreamListener, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was there when it was waited for, and is gone at the accept, does not make that wait for ever."""
    taken: list[socket.socket] = []

    def too_late(*args: Any) -> None:
        _waiting.wait(*args)
        if not taken:
            taken.append(shared.accept()[0])

    monkeypatch.setattr(listener_module, "wait", too_late)
    listener.timeout = 0.1
    with _borrowed(listener) as shared, UdStream.connect(address):
        with pytest.raises(TimeoutError):
            listener.accept()
    taken[0].close()


@pytest.mark.parametrize(
    "error",
    # Of the system call, and of a poll that is asked for a number which a closed one no longer has.
    [
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
        ValueError("file descriptor cannot be a negative integer"),
    ],
)
def test_an_accept_that_finds_it_closed(
    listener: UdStreamListener, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another thread closes it just before the system call, that is told as of any closed listener."""

    def too_late(_accepted: object, _sock: object) -> None:
        listener.close()
        raise error

    monkeypatch.setattr(listener_module, "_accept_into", too_late)
    listener.timeout = PATIENCE
    monkeypatch.setattr(
        listener_module._Turn,
        "accept_into",
        lambda _turn, accepted, sock, _deadline: too_late(accepted, sock),
    )
    with pytest.raises(ValueError, match="closed listener"):
        listener.accept()


# --- iterating and ending ---


def test_iteration(listener: UdStreamListener, address: str) -> None:
    """Iterating accepts one after the other; incoming() is the same."""
    for incoming in (iter(listener), listener.incoming()):
        for _ in range(3):
            with UdStream.connect(address) as client, next(incoming) as served:
                served.write(b"x")
                assert client.read(1) == b"x"


def test_iteration_goes_on_after_an_error(listener: UdStreamListener, address: str) -> None:
    """After a TimeoutError the same iterator gives the next connection."""
    listener.timeout = 0.02
    incoming = listener.incoming()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            next(incoming)
    listener.timeout = None
    with UdStream.connect(address):
        next(incoming).close()


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_shutdown_ends_a_blocked_accept(listener: UdStreamListener, timeout: float | None) -> None:
    """From another thread: the blocked accept() raises OSError (EINVAL), and so does a later one."""
    listener.timeout = timeout
    with blocked_in(listener.accept) as result:
        listener.shutdown()
    assert isinstance(result[0], OSError)
    assert result[0].errno == errno.EINVAL
    for nonblocking in (False, True):
        listener.set_nonblocking(nonblocking)
        with pytest.raises(OSError, match=r".") as caught:
            listener.accept()
        assert caught.value.errno == errno.EINVAL
        assert list(listener) == []


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_shutdown_ends_an_iteration_from_a_handler(listener: UdStreamListener, timeout: float | None) -> None:
    """In the very thread that accepts, a signal's handler can end the loop."""
    listener.timeout = timeout
    with on_alarm(lambda *_: listener.shutdown(), 0.05):
        assert list(listener) == []
    assert list(listener) == []


def test_shutdown_serves_those_who_had_connected(listener: UdStreamListener, address: str) -> None:
    """What was queued before shutdown() is still accepted; who comes later is refused."""
    with UdStream.connect(address) as one, UdStream.connect(address) as two:
        listener.shutdown()
        listener.shutdown()
        with pytest.raises(ConnectionRefusedError):
            UdStream.connect(address)
        served = list(listener)
        assert len(served) == 2
        for stream in served:
            stream.write(b"bye")
            stream.close()
        assert (one.readall(), two.readall()) == (b"bye", b"bye")


def test_close_ends_an_iteration(listener: UdStreamListener) -> None:
    """An iterator over a closed listener is at its end; a new one is a ValueError."""
    incoming = listener.incoming()
    listener.close()

    assert list(incoming) == []
    with pytest.raises(ValueError, match="closed"):
        iter(listener)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """The process is at its limit of open files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_at_the_limit_of_open_files_it_does_not_spin(
    listener: UdStreamListener, address: str, timeout: float | None
) -> None:
    """Each EMFILE is raised, with ever longer pauses between the attempts; then the connection is still there."""
    listener.timeout = timeout
    incoming = listener.incoming()
    with UdStream.connect(address):
        errors = []
        until = time.monotonic() + 0.4
        with no_free_descriptor():
            while time.monotonic() < until:
                try:
                    next(incoming)
                except OSError as error:
                    errors.append(error.errno)
        assert set(errors) == {errno.EMFILE}
        # 10 + 20 + 40 + 80 + 160 + 320 ms; without pauses it would be many thousands.
        assert 2 <= len(errors) <= 7
        next(incoming).close()
    # And the pauses are over.
    assert listener._pause == 0


def test_a_pause_ends_with_the_timeout(listener: UdStreamListener, address: str) -> None:
    """The pause after EMFILE is no longer than the timeout of the call that makes it; who waits is let in then."""
    with UdStream.connect(address):
        with no_free_descriptor(), pytest.raises(OSError, match="Too many open files"):
            listener.accept()
        listener._not_before += 3600
        listener.timeout = 0.05
        listener.accept().close()
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_nonblocking_listener_never_pauses(listener: UdStreamListener, address: str) -> None:
    """At the limit of open files a nonblocking accept() raises each time at once."""
    listener.set_nonblocking(True)
    with UdStream.connect(address):
        with no_free_descriptor():
            for _ in range(3):
                with pytest.raises(OSError, match="Too many open files"):
                    listener.accept()
        listener._not_before += 3600
        listener.accept().close()


def test_shutdown_ends_a_pause(listener: UdStreamListener, address: str) -> None:
    """shutdown() ends the iteration at the limit of open files as well, in the middle of a pause."""
    incoming = listener.incoming()
    with UdStream.connect(address), no_free_descriptor():
        with pytest.raises(OSError, match="Too many open files"):
            next(incoming)
        listener._not_before += 3600
        with on_alarm(lambda *_: listener.shutdown(), 0.05):
            assert list(incoming) == []


# --- the descriptor ---


def test_use_after_close(listener: UdStreamListener) -> None:
    """Every method of a closed listener but close() is a ValueError that says so."""
    assert not listener.closed
    listener.close()
    listener.close()

    assert listener.closed
    uses: list[Callable[[], Any]] = [
        listener.accept,
        listener.incoming,
        listener.fileno,
        listener.detach,
        listener.shutdown,
        listener.is_nonblocking,
        lambda: listener.set_nonblocking(True),
        lambda: listener.local_path,
        lambda: listener.timeout,
        lambda: setattr(listener, "timeout", 1),
        listener.__enter__,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed listener"):
            use()


def test_a_listener_closed_under_an_accept(listener: UdStreamListener, address: str) -> None:
    """close() from another thread returns at once, and a timed accept() that it met ends by itself."""
    listener.timeout = 0.1
    with in_thread(listener.accept) as result:
        listener.close()
    assert isinstance(result[0], (TimeoutError, ValueError))


def test_detach_gives_the_descriptor_away(folder: Path) -> None:
    """detach() returns the open descriptor, leaves the file, and closes the listener."""
    listener = UdStreamListener.bind(folder / "s")
    number = listener.fileno()

    fd = listener.detach()

    assert fd == number
    assert listener.closed
    listener.close()
    assert (folder / "s").is_socket()
    with UdStreamListener.from_fd(fd) as again, UdStream.connect(folder / "s"):
        again.accept().close()
    assert (folder / "s").is_socket()


def test_from_fd_takes_the_descriptor_over(address: str) -> None:
    """from_fd() owns a listening socket, makes it close-on-exec, and knows its address from the kernel."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(UdSocketPath.of(address).sockaddr())
        sock.listen()
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), True)
        fd = sock.detach()
    with UdStreamListener.from_fd(fd) as listener:
        assert listener.fileno() == fd
        assert listener.is_nonblocking()
        assert not os.get_inheritable(fd)
        assert listener.local_path == UdSocketPath.of(address)
        listener.set_nonblocking(False)
        with UdStream.connect(address):
            listener.accept().close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def wrong_descriptors() -> dict[str, Callable[[], Any]]:
    """What is no listening Unix stream socket."""

    def listening(kind: int, family: int = socket.AF_UNIX) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.bind("\0" + os.urandom(8).hex() if family == socket.AF_UNIX else ("127.0.0.1", 0))
        if kind != socket.SOCK_DGRAM:
            sock.listen()
        return sock

    return {
        "connected": lambda: socket.socketpair()[0],
        "unbound": lambda: socket.socket(socket.AF_UNIX),
        "datagram": lambda: listening(socket.SOCK_DGRAM),
        "seqpacket": lambda: listening(socket.SOCK_SEQPACKET),
        "TCP": lambda: listening(socket.SOCK_STREAM, socket.AF_INET),
        "file": lambda: open(__file__),
    }


@pytest.mark.parametrize("what", wrong_descriptors())
@pytest.mark.filterwarnings("ignore:unclosed")
def test_from_fd_refuses(what: str) -> None:
    """What is no listening Unix stream socket is a ValueError that names it, left open and as it was."""
    with wrong_descriptors()[what]() as thing:
        fd = thing.fileno()
        os.set_inheritable(fd, True)
        os.set_blocking(fd, False)
        with pytest.raises(ValueError, match=f"descriptor {fd} .*listening"):
            UdStreamListener.from_fd(fd)
        if isinstance(thing, socket.socket):
            with pytest.raises(ValueError, match=f"descriptor {fd} .*listening"):
                UdStreamListener.from_socket(thing)
        assert os.get_inheritable(fd)
        assert not os.get_blocking(fd)
        assert thing.fileno() == fd


@pytest.mark.parametrize("made", ["from_fd", "from_socket", "inherited"])
def test_a_takeover_that_fails(address: str, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever error comes at the last moment, the descriptor stays the caller's, open and with its timeout."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no room")

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(UdSocketPath.of(address).sockaddr())
        sock.listen()
        sock.settimeout(1)
        if made == "from_socket":
            monkeypatch.setattr(UdStreamListener, "set_nonblocking", fail)
        else:
            monkeypatch.setattr(listener_module, "_Turn", fail)

        monkeypatch.setattr(_activation, "_FIRST", sock.fileno())
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        for name, value in passed.items():
            monkeypatch.setenv(name, value)
        makers: dict[str, Callable[[], object]] = {
            "from_fd": lambda: UdStreamListener.from_fd(sock.fileno()),
            "from_socket": lambda: UdStreamListener.from_socket(sock),
            "inherited": UdStreamListener.inherited,
        }
        with pytest.raises(OSError, match="no room"):
            makers[made]()
        gc.collect()
        os.fstat(sock.fileno())
        assert sock.gettimeout() == 1
        assert {name: os.environ.get(name) for name in passed} == passed


def test_from_fd_of_nothing() -> None:
    """A descriptor that is not open is EBADF; what is no descriptor a TypeError or ValueError."""
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        UdStreamListener.from_fd(fd)
    with pytest.raises(ValueError, match="negative"):
        UdStreamListener.from_fd(-1)
    with pytest.raises(TypeError, match="str"):
        UdStreamListener.from_fd("3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("timeout", "expected", "nonblocking"), [(None, None, False), (2.5, 2.5, False), (0.0, None, True)]
)
def test_from_socket(address: str, timeout: float | None, expected: float | None, nonblocking: bool) -> None:
    """A socket's timeout becomes the listener's, and it blocks again; a nonblocking one stays so; it is detached."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(UdSocketPath.of(address).sockaddr())
    sock.listen()
    sock.settimeout(timeout)

    with UdStreamListener.from_socket(sock) as listener:
        assert sock.fileno() == -1
        assert listener.timeout == expected
        assert listener.is_nonblocking() == nonblocking
        with UdStream.connect(address):
            listener.accept().close()
    if address[0] != "@":
        assert os.path.exists(address)


def test_from_socket_of_something_else() -> None:
    """A closed socket is a ValueError, what is no socket a TypeError."""
    sock = socket.socket(socket.AF_UNIX)
    sock.close()
    with pytest.raises(ValueError, match="closed"):
        UdStreamListener.from_socket(sock)
    with pytest.raises(TypeError, match="int"):
        UdStreamListener.from_socket(3)  # type: ignore[arg-type]


def test_a_dropped_listener_is_closed_with_a_warning(address: str) -> None:
    """Dropped unclosed: a ResourceWarning that names it, the descriptor closed, the file removed."""
    listener = UdStreamListener.bind(address)
    fd = listener.fileno()

    with pytest.warns(ResourceWarning, match=f"fd={fd}.*{address}"):
        del listener
        gc.collect()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    if address[0] != "@":
        assert not os.path.exists(address)


def test_repr(listener: UdStreamListener, address: str) -> None:
    """repr() names the descriptor and the address, and says when it is closed."""
    assert f"fd={listener.fileno()} path='{address}'" in repr(listener)
    listener.close()
    assert repr(listener) == "<udstream.listener.UdStreamListener [closed]>"


PROCESSES = """
import multiprocessing
import os
import sys

from udstream import UdStream, UdStreamListener

def serve(listener):
    with listener, listener.accept() as stream:
        assert (listener.timeout, str(listener.local_path)) == (9.5, sys.argv[2])
        assert not os.get_inheritable(listener.fileno())
        stream.write_all(str(os.getpid()).encode())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with UdStreamListener.bind(sys.argv[2], authorize={os.geteuid()}) as listener:
        listener.timeout = 9.5
        workers = [context.Process(target=serve, args=(listener,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        pids = set()
        for _ in workers:
            with UdStream.connect(sys.argv[2]) as client:
                pids.add(int(client.readall()))
        for worker in workers:
            worker.join()
        assert pids == {worker.pid for worker in workers}
        assert os.path.exists(sys.argv[2])
    assert not os.path.exists(sys.argv[2])
    sys.exit(any(worker.exitcode for worker in workers))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_goes_to_processes_of_multiprocessing(folder: Path, method: str) -> None:
    """A listener can be the argument of workers, however those are started; the file stays its maker's."""
    program = folder / "program.py"
    program.write_text(PROCESSES)
    command = [sys.executable, "-W", "error", str(program), method, str(folder / "s")]
    done = subprocess.run(
        command, env=environment(folder), capture_output=True, timeout=PATIENCE, check=False
    )

    assert (done.stderr, done.returncode) == (b"", 0)


def test_it_cannot_be_pickled(listener: UdStreamListener) -> None:
    """Pickling is a TypeError that says what to do instead."""
    import pickle

    with pytest.raises(TypeError, match="send_fds"):
        pickle.dumps(listener)


def test_every_descriptor_has_one_owner(folder: Path) -> None:
    """A listener holds the socket and, to remove the file, its folder; detach() and close() leave neither."""
    count = fd_count()
    for unlink in (True, False):
        with UdStreamListener.bind(folder / "s", unlink=unlink) as listener:
            assert fd_count() == count + 1 + unlink
            assert not any(map(os.get_inheritable, [listener.fileno()]))
        assert fd_count() == count
    listener = UdStreamListener.bind(folder / "s")
    fd = listener.detach()
    assert fd_count() == count + 1
    os.close(fd)


def test_accepted_streams_outlive_the_listener(listener: UdStreamListener, address: str) -> None:
    """Closing the listener leaves what it accepted alone."""
    with UdStream.connect(address) as client, listener.accept() as served:
        listener.close()
        client.write(b"still")
        client.shutdown(Shutdown.WRITE)
        assert served.readall() == b"still"
