"""Who owns a descriptor, from its first instant to its last: taken over, given away, duplicated, inherited, dropped."""

from __future__ import annotations

import fcntl
import gc
import io
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blocked import Blocked
from connections import listening
from descriptors import fd_count, is_open
from meanwhile import PATIENCE
from real import environment, python

import udstream
from udstream import Shutdown, UdStream


def state(fd: int) -> tuple[int, int, int, int]:
    """All that a refusal must leave as it was: which file it is, its flags, its mode."""
    about = os.fstat(fd)
    return about.st_dev, about.st_ino, fcntl.fcntl(fd, fcntl.F_GETFD), fcntl.fcntl(fd, fcntl.F_GETFL)


# --- taking over a descriptor ---


def test_from_fd_takes_it_over() -> None:
    """from_fd makes a stream of the very fd, which closes it."""
    one, other = socket.socketpair()
    with other:
        fd = one.detach()
        with UdStream.from_fd(fd) as stream:
            assert stream.fileno() == fd
            assert stream.timeout is None
            stream.write(b"hello")
            assert other.recv(10) == b"hello"
            other.sendall(b"answer")
            assert stream.read(10) == b"answer"
        assert not is_open(fd)


@pytest.mark.parametrize("blocking", [True, False])
def test_from_fd_keeps_the_mode(blocking: bool) -> None:
    """from_fd takes a blocking fd as blocking, and a nonblocking one as nonblocking."""
    one, other = socket.socketpair()
    with other:
        os.set_blocking(one.fileno(), blocking)
        with UdStream.from_fd(one.detach()) as stream:
            assert stream.is_nonblocking() is not blocking
            assert os.get_blocking(stream.fileno()) is blocking


def test_what_is_taken_over_becomes_close_on_exec() -> None:
    """A stream's fd is close-on-exec, also one that was inherited, or made inheritable, before."""
    one, other = socket.socketpair()
    one.set_inheritable(True)
    other.set_inheritable(True)
    with UdStream.from_fd(one.detach()) as stream, UdStream.from_socket(other) as another:
        assert not os.get_inheritable(stream.fileno())
        assert not os.get_inheritable(another.fileno())


def file_descriptor(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY)


def pipe_end(folder: Path) -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


def datagram(folder: Path) -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def seqpacket(folder: Path) -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach()


def internet(folder: Path) -> int:
    return socket.socket(socket.AF_INET).detach()


def listener(folder: Path) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "s"))
    sock.listen()
    return sock.detach()


NO_STREAMS = [file_descriptor, pipe_end, datagram, seqpacket, internet, listener]
each_that_is_none = pytest.mark.parametrize("make", NO_STREAMS, ids=lambda make: make.__name__)


@each_that_is_none
@pytest.mark.parametrize("inheritable", [True, False])
@pytest.mark.parametrize("blocking", [True, False])
def test_from_fd_refuses(
    folder: Path, make: Callable[[Path], int], inheritable: bool, blocking: bool
) -> None:
    """What is no connected Unix stream socket: ValueError that names the fd, which is left open and untouched."""
    fd = make(folder)
    os.set_inheritable(fd, inheritable)
    os.set_blocking(fd, blocking)
    before = state(fd)
    with pytest.raises(ValueError, match=rf"file descriptor {fd} .*Unix stream socket"):
        UdStream.from_fd(fd)

    assert state(fd) == before
    os.close(fd)


@each_that_is_none
@pytest.mark.parametrize("timeout", [None, 0.0, 2.5])
def test_from_socket_refuses(folder: Path, make: Callable[[Path], int], timeout: float | None) -> None:
    """What owns no Unix stream socket: ValueError; it keeps its fd, its mode and its timeout."""
    fd = make(folder)
    if make in (file_descriptor, pipe_end):
        os.close(fd)
        return
    with socket.socket(fileno=fd) as sock:
        sock.settimeout(timeout)
        before = state(fd)
        with pytest.raises(ValueError, match="Unix stream socket"):
            UdStream.from_socket(sock)

        assert sock.fileno() == fd
        assert sock.gettimeout() == timeout
        assert state(fd) == before


@pytest.mark.parametrize(
    ("fd", "error"),
    [
        (-1, ValueError),
        (-5, ValueError),
        ("3", TypeError),
        (None, TypeError),
        (3.0, TypeError),
        (sys.stdin, TypeError),
    ],
)
def test_from_fd_of_no_descriptor(fd: Any, error: type[Exception]) -> None:
    """A negative fd is a ValueError, and what is no int a TypeError."""
    with pytest.raises(error, match="file descriptor"):
        UdStream.from_fd(fd)


def test_from_fd_of_one_that_is_not_open() -> None:
    """An fd that is not open: the kernel's OSError, EBADF."""
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        UdStream.from_fd(fd)


@pytest.mark.parametrize("wrong", [5, None, "sock", io.BytesIO()])
def test_from_socket_of_no_socket(wrong: Any) -> None:
    """What is no socket.socket at all: TypeError."""
    with pytest.raises(TypeError):
        UdStream.from_socket(wrong)


def test_from_socket_of_a_closed_one() -> None:
    """A closed socket: ValueError."""
    one, other = socket.socketpair()
    one.close()
    other.close()
    with pytest.raises(ValueError, match="closed"):
        UdStream.from_socket(one)


@pytest.mark.parametrize("timeout", [None, 0.0, 2.5])
def test_from_socket_takes_over(timeout: float | None) -> None:
    """The socket is detached; its timeout becomes the stream's and the fd blocking; nonblocking stays so."""
    one, other = socket.socketpair()
    with other:
        one.settimeout(timeout)
        fd = one.fileno()
        with UdStream.from_socket(one) as stream:
            assert one.fileno() == -1
            assert stream.fileno() == fd
            assert stream.timeout == (timeout or None)
            assert stream.is_nonblocking() is (timeout == 0.0)
            one.close()
            stream.write(b"hello")
            assert other.recv(10) == b"hello"
        assert not is_open(fd)


# --- giving it away ---


def test_detach(pair: tuple[UdStream, UdStream]) -> None:
    """Detach gives the fd, unclosed, still close-on-exec; the stream is closed, and never closes it again."""
    here, there = pair
    fd = here.fileno()
    assert here.detach() == fd
    assert here.closed
    here.close()
    assert is_open(fd)
    assert not os.get_inheritable(fd)
    with UdStream.from_fd(fd) as again:
        again.write(b"x")
        assert there.read(1) == b"x"


def test_detached_one_is_dropped_in_silence() -> None:
    """A detached stream gives no warning when it goes."""
    one, other = UdStream.pair()
    other.close()
    fd = one.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del one
        gc.collect()
    os.close(fd)


def test_detach_of_a_timed_one_leaves_nothing(pair: tuple[UdStream, UdStream]) -> None:
    """The fd that a timed stream gives away is blocking, and has no timeout of the kernel's."""
    here, _ = pair
    here.timeout = 0.01
    with pytest.raises(TimeoutError):
        here.read(1)
    with socket.socket(fileno=here.detach()) as plain:
        assert os.get_blocking(plain.fileno())
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)


def test_dup(pair: tuple[UdStream, UdStream]) -> None:
    """Dup is another UdStream on another fd of the same connection; each closes its own."""
    here, there = pair
    twin = here.dup()
    assert type(twin) is UdStream
    assert twin.fileno() != here.fileno()
    assert not os.get_inheritable(twin.fileno())
    here.write(b"a")
    twin.write(b"b")
    assert there.read_exact(2) == b"ab"
    fd = here.fileno()
    here.close()
    assert not is_open(fd)
    # Closing never shuts the connection down for the other.
    twin.write(b"c")
    assert there.read(1) == b"c"
    there.write(b"d")
    assert twin.read(1) == b"d"
    twin.close()
    assert there.read(1) == b""


def test_dup_when_no_more_can_be_open(pair: tuple[UdStream, UdStream]) -> None:
    """What fails for want of descriptors is the kernel's OSError, and leaves nothing behind."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
        with pytest.raises(OSError, match="Too many"):
            while True:
                held.append(os.dup(0))
        for call in (pair[0].dup, UdStream.pair, lambda: UdStream.connect("@nobody")):
            with pytest.raises(OSError, match="Too many"):
                call()
        os.close(held.pop())
        # One is too few for a pair, and for a long path.
        with pytest.raises(OSError, match="Too many"):
            UdStream.pair()
        with pytest.raises(OSError, match="Too many"):
            UdStream.connect("/tmp/" + "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


# --- closing ---


def test_close_is_once(pair: tuple[UdStream, UdStream]) -> None:
    """A second close never closes whoever has got the number since."""
    fd = pair[0].fileno()
    pair[0].close()
    other = os.open(os.devnull, os.O_RDONLY)
    try:
        assert other == fd
        pair[0].close()
        pair[0].__exit__(None, None, None)
        pair[0].__del__()
        assert is_open(other)
    finally:
        os.close(other)


def test_close_that_fails_is_not_repeated() -> None:
    """Closing what somebody else closed: OSError once; the stream is closed, and the number never touched again."""
    one, other = UdStream.pair()
    with other:
        fd = one.fileno()
        os.close(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            one.close()
        assert one.closed
        again = os.open(os.devnull, os.O_RDONLY)
        try:
            assert again == fd
            one.close()
            del one
            gc.collect()
            assert is_open(again)
        finally:
            os.close(again)


def test_close_with_a_block_that_fails(pair: tuple[UdStream, UdStream]) -> None:
    """A with block closes, and lets the exception through."""
    fd = pair[0].fileno()
    with pytest.raises(KeyError), pair[0] as stream:
        assert stream is pair[0]
        raise KeyError
    assert not is_open(fd)


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])
@pytest.mark.parametrize(
    "call", [lambda s: s.read(10), lambda s: s.readinto(bytearray(10)), lambda s: s.readv([bytearray(10)])]
)
def test_close_leaves_a_blocked_call_alone(
    pair: tuple[UdStream, UdStream], call: Callable[[UdStream], object], timeout: float | None
) -> None:
    """Close returns at once, though another thread is blocked in a call; that ends by itself; no other fd is read."""
    here, there = pair
    here.timeout = timeout
    blocked = Blocked(lambda: call(here))
    fd = here.fileno()
    here.close()
    assert here.closed
    assert blocked.running
    one, other = socket.socketpair()
    with one, other:
        assert one.fileno() == fd
        other.sendall(b"not yours")
        there.write(b"for it")
        blocked.end()
        assert one.recv(20) == b"not yours"
    if timeout is None:
        assert blocked.result in (b"for it", 6)
    else:
        assert blocked.result in (b"for it", 6) or isinstance(blocked.error, (OSError, ValueError))


def test_loop_ends_when_its_stream_is_closed(pair: tuple[UdStream, UdStream]) -> None:
    """A call that takes several system calls never goes on to another fd after a close."""
    here, there = pair
    blocked = Blocked(lambda: here.read_exact(10))
    here.close()
    one, other = socket.socketpair()
    with one, other:
        other.sendall(b"not yours, really")
        there.write(b"abc")
        blocked.end()
        assert one.recv(20) == b"not yours, really"
    error: Any = blocked.error
    assert isinstance(error, (OSError, ValueError))
    assert (error.nbytes, error.partial) == (3, b"abc")  # type: ignore[union-attr]


# --- children ---

CHILD = """
import os
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd")))
"""


def test_no_child_gets_one(folder: Path, pair: tuple[UdStream, UdStream]) -> None:
    """Nothing that the library opens is there in a child process, whichever way it was made."""
    with listening(folder / "s") as plain, listening(folder / "t"):
        (folder / "long").mkdir()
        far = folder / ("l" * 120)
        far.symlink_to(folder)
        streams = [*pair, pair[0].dup(), UdStream.connect(folder / "s"), UdStream.connect(far / "t")]
        streams.append(UdStream.connect(folder / "s", timeout=5))
        streams.append(UdStream.from_socket(plain.accept()[0]))
        files = [udstream.open(folder / "s", mode) for mode in ("r", "rwb", "rw")]
        try:
            # close_fds=False: only close-on-exec keeps them out of the child.
            ran = subprocess.run(
                [sys.executable, "-c", CHILD], close_fds=False, capture_output=True, text=True
            )
            ours = {stream.fileno() for stream in streams} | {file.fileno() for file in files}
            assert not ours & set(eval(ran.stdout))
        finally:
            for file in [*files, *streams]:
                file.close()


def test_child_that_shall_get_one(pair: tuple[UdStream, UdStream]) -> None:
    """Popen(stdin=stream), then close: the connection goes on for the child."""
    here, there = pair
    with subprocess.Popen(
        [sys.executable, "-c", "print(input()); print(input())"], stdin=here, stdout=here
    ) as child:
        here.close()
        there.timeout = PATIENCE
        there.write_all(b"one\ntwo\n")
        assert there.readall() == b"one\ntwo\n"
        assert child.wait(PATIENCE) == 0


FORK = """
import os, sys
from udstream import UdStream
here, there = UdStream.pair()
file = there.makefile("rwb")
file.write(b"from the parent\\n")
child = os.fork()
if child == 0:
    here.close()
    there.close()
    del here, there
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
assert here.write(b"still there\\n") == 12
assert file.readline() == b"still there\\n"
assert here.read(100) == b"from the parent\\n"
child = os.fork()
if child == 0:
    here.write_all(b"the child's\\n")
    os._exit(0)
os.waitpid(child, 0)
assert file.readline() == b"the child's\\n"
here.close()
file.close()
print("kept")
"""


def test_fork(folder: Path) -> None:
    """What a forked child closes or drops, or writes, leaves the parent's streams open."""
    ran = subprocess.run(
        python(FORK), env=environment(folder), capture_output=True, text=True, timeout=PATIENCE
    )

    assert (ran.stdout, ran.stderr) == ("kept\n", "")


# --- dropped ---


def dropped(make: Callable[[], object]) -> list[str]:
    """The warnings of what is dropped unclosed."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thing: object = make()
        del thing
        gc.collect()
    assert {ResourceWarning} >= {warning.category for warning in caught}
    return [str(warning.message) for warning in caught]


def test_dropped_stream_is_closed_and_named(folder: Path) -> None:
    """A dropped stream is closed, with one ResourceWarning that names it: its fd, and whom it was connected to."""
    one, other = UdStream.pair()
    with other:
        fds = []

        def make() -> UdStream:
            stream = one.dup()
            fds.append(stream.fileno())
            return stream

        messages = dropped(make)
        assert len(messages) == 1
        assert re.fullmatch(rf"unclosed <udstream\.\S*UdStream fd={fds[0]}>", messages[0])
        assert not is_open(fds[0])
        one.close()
    with listening(folder / "s"):
        (message,) = dropped(lambda: UdStream.connect(folder / "s"))
        assert f"{str(folder / 's')!r}" in message


def test_dropped_timed_and_collecting_ones() -> None:
    """Those with a timeout, or that collect, are closed and warned of as any other."""

    def make(**settings: Any) -> UdStream:
        one, other = UdStream.pair()
        other.close()
        for name, value in settings.items():
            setattr(one, name, value)
        return one

    for settings in ({"timeout": 1}, {"collect_ancillary": True}, {"timeout": 1, "collect_ancillary": True}):
        assert len(dropped(lambda settings=settings: make(**settings))) == 1


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r", "w", "rw"])
def test_dropped_file_is_closed_and_named(mode: str) -> None:
    """A dropped file over a stream closes the stream, with one ResourceWarning that names a file and the stream."""
    one, other = UdStream.pair()
    fd = one.fileno()

    def make(streams: list[UdStream] = [one]) -> object:  # noqa: B006 - it is handed over
        return streams.pop().makefile(mode)

    del one
    messages = dropped(make)
    assert len(messages) == 1, messages
    assert messages[0].startswith("unclosed ")
    assert f"fd={fd}" in messages[0]
    assert other.read(1) == b""
    other.close()


def test_dropped_in_a_cycle() -> None:
    """A stream that refers to itself is closed and warned of by the garbage collector."""

    def make() -> UdStream:
        one, other = UdStream.pair()
        other.close()
        one.myself = one  # type: ignore[attr-defined]
        return one

    # From Python 3.12 on the collector may finish off the socket inside first, which then warns as well.
    assert len([message for message in dropped(make) if "UdStream" in message]) == 1


def test_closed_one_is_dropped_in_silence(pair: tuple[UdStream, UdStream]) -> None:
    """A closed stream, and a file closed at any level, give no warning."""

    def make() -> UdStream:
        stream = pair[0].dup()
        stream.close()
        return stream

    assert dropped(make) == []
    for mode in ("rb", "rw"):
        assert dropped(lambda mode=mode: pair[0].dup().makefile(mode).close()) == []


def test_failures_leave_nothing_open(folder: Path) -> None:
    """A connect, a from_fd or an open() that fails gives no warning, and leaves nothing to be dropped."""
    with listening(folder / "s"):
        for call, error in (
            (lambda: UdStream.connect(folder / "missing"), FileNotFoundError),
            (lambda: UdStream.connect(folder / ("m" * 200)), FileNotFoundError),
            (lambda: UdStream.connect(folder), ConnectionRefusedError),
            (lambda: UdStream.connect(folder / "s", timeout=-1), ValueError),
            (lambda: UdStream.connect(folder / "s", timeout="1"), TypeError),  # type: ignore[arg-type]
            (lambda: udstream.open(folder / "s", "q"), ValueError),
            (lambda: udstream.open(folder / "s", "rb", encoding="utf-8"), ValueError),
            (lambda: udstream.open(folder / "s", "r", encoding="no such"), LookupError),
            (lambda: udstream.open(folder / "s", "r", newline="no such"), ValueError),
            (lambda: udstream.open(folder / "s", "r", 0), ValueError),
            (lambda: UdStream(), TypeError),
        ):

            def fails(call: Callable[[], object] = call, error: type[Exception] = error) -> None:
                with pytest.raises(error):
                    call()

            assert dropped(fails) == []


AT_EXIT = """
import builtins, sys, threading, udstream
from udstream import UdStream

one, other = UdStream.pair()
one.timeout = 5
cycle = [UdStream.pair()]
cycle.append(cycle)
builtins.kept = UdStream.pair()
sys.kept = UdStream.pair()
local = threading.local()
local.kept = UdStream.pair()
UdStream.kept = UdStream.pair()
file, sys.peer = UdStream.pair()
file = file.makefile("rw")
file.write("sent?")
{more}
print("to the end")
"""
BLOCKED = """
started = threading.Event()
def run():
    started.set()
    other.read(1)
threading.Thread(target=run, daemon=True).start()
started.wait()
"""


@pytest.mark.parametrize("more", ["", BLOCKED], ids=["idle", "a thread blocked"])
@pytest.mark.parametrize(
    "flags", [["-W", "ignore"], ["-W", "default"], ["-W", "error"]], ids=lambda flags: flags[-1]
)
def test_interpreter_shutdown(folder: Path, flags: list[str], more: str) -> None:
    """Streams left open at the end of the program end it well: no traceback, at most their ResourceWarnings."""
    ran = subprocess.run(
        [sys.executable, *flags, "-c", AT_EXIT.format(more=more)],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert (ran.returncode, ran.stdout) == (0, "to the end\n"), ran.stderr
    if flags[-1] == "ignore":
        assert ran.stderr == ""
    else:
        errors = re.findall(r"^(?:.*: )?(\w+(?:Error|Exception|Warning): .*)", ran.stderr, re.MULTILINE)
        assert [
            line for line in errors if not re.match("ResourceWarning: (unclosed|Enable tracemalloc)", line)
        ] == []
        assert "ResourceWarning" in ran.stderr


def test_exception_in_a_handler_during_connect_leaks_nothing(folder: Path) -> None:
    """Whenever a signal handler raises, a connect leaves nothing open."""

    class Interrupt(TimeoutError, ConnectionError):
        """What the handler raises."""

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    raised = 0
    try:
        with listening(folder / "s") as plain:
            plain.setblocking(False)
            gc.collect()
            fds = fd_count()
            with warnings.catch_warnings():
                # What was connected, but not yet in anybody's hands, may be dropped with a warning.
                warnings.simplefilter("ignore")
                for step in range(300):
                    stream = None
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.000_001 * (1 + step))
                        stream = UdStream.connect(folder / "s", timeout=5 if step % 2 else None)
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except Interrupt:
                        raised += 1
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    if stream is not None:
                        stream.close()
                    try:
                        plain.accept()[0].close()
                    except BlockingIOError:
                        pass
                gc.collect()
            assert fd_count() == fds
    except Interrupt:
        raised += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised > 10


def test_shutdown_reaches_the_child_and_close_does_not(pair: tuple[UdStream, UdStream]) -> None:
    """Close leaves whoever shares the connection alone; shutdown is for all of them."""
    here, there = pair
    with here.dup() as twin:
        here.close()
        twin.write(b"x")
        assert there.read(1) == b"x"
        with twin.dup() as third:
            third.shutdown(Shutdown.WRITE)
        assert there.read(1) == b""
        with pytest.raises(BrokenPipeError):
            twin.write(b"x")
