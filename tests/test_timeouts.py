"""Timeouts: never shorter, never lengthened, noticed by nobody else; and connects that wait out a full backlog."""

from __future__ import annotations

import contextlib
import decimal
import errno
import io
import itertools
import math
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from connections import fill, listening
from fakes import in_place_of_the_kernel
from meanwhile import PATIENCE, blocked_in, in_thread, on_alarm, wait_until_asleep

import udstream
from udstream import Shutdown, UdStream, _timing, _waiting

TOO_MUCH = 1 << 20
SHORT = 0.05


@contextmanager
def storm(interval: float = 0.002, at_most: float = 5.0) -> Iterator[list[None]]:
    """Signals all the time, whose handler returns; but raises when whatever goes on lasts far too long."""
    hits: list[None] = []
    end = time.monotonic() + at_most

    def handler(number: int, frame: FrameType | None) -> None:
        hits.append(None)
        if time.monotonic() > end:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise AssertionError("the signals have lengthened the wait")

    with on_alarm(handler, interval, interval):
        yield hits


READS: dict[str, Callable[[UdStream], object]] = {
    "readinto": lambda s: s.readinto(bytearray(10)),
    "read": lambda s: s.read(10),
    "readv": lambda s: s.readv([bytearray(5), bytearray(5)]),
    "readall": lambda s: s.readall(),
    "read_exact": lambda s: s.read_exact(10),
    "readinto_exact": lambda s: s.readinto_exact(bytearray(10)),
    "recv_ancillary": lambda s: s.recv_ancillary([bytearray(10)]),
    "recv_fds": lambda s: s.recv_fds(10),
    "buffered": lambda s: io.BufferedReader(s).read(10),
}
WRITES: dict[str, Callable[[UdStream], object]] = {
    "write": lambda s: s.write(b"0123456789"),
    "writev": lambda s: s.writev([b"01234", b"56789"]),
    "write_all": lambda s: s.write_all(b"0123456789"),
    "writev_all": lambda s: s.writev_all([b"01234", b"56789"]),
    "sendfile": lambda s: s.sendfile(io.BytesIO(b"0123456789")),
    "send_ancillary": lambda s: s.send_ancillary([b"0123456789"]),
    "send_fds": lambda s: s.send_fds(b"0123456789", [0]),
}
CALLS = {**READS, **WRITES}


def not_ready(name: str, pair: tuple[UdStream, UdStream]) -> tuple[Callable[[], object], UdStream, int]:
    """The call, on a stream where it has to wait; its peer; and how many bytes lie before the peer."""
    here, there = pair
    filled = fill(here) if name in WRITES else 0
    return (lambda: CALLS[name](here)), there, filled


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:unclosed")
def test_times_out(pair: tuple[UdStream, UdStream], name: str) -> None:
    """Past its timeout a call raises the builtin TimeoutError, ETIMEDOUT, not before and not much later."""
    call, _, _ = not_ready(name, pair)
    pair[0].timeout = SHORT
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        call()

    assert SHORT <= time.monotonic() - began < 5
    assert type(caught.value) is TimeoutError
    assert caught.value.errno == errno.ETIMEDOUT
    if name == "buffered":
        pair[0].close()


@pytest.mark.parametrize("name", [name for name in CALLS if name != "buffered"])
def test_signals_do_not_lengthen_it(pair: tuple[UdStream, UdStream], name: str) -> None:
    """Under a storm of signals a call times out all the same, not before its time and not much later."""
    call, _, _ = not_ready(name, pair)
    pair[0].timeout = 2 * SHORT
    with storm() as hits:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            call()
        took = time.monotonic() - began

    assert 2 * SHORT <= took < 5
    assert len(hits) > 3


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("buffered", "sendfile")])
def test_can_be_repeated(pair: tuple[UdStream, UdStream], name: str) -> None:
    """A call that timed out can be repeated, often, and succeeds once it can."""
    call, there, filled = not_ready(name, pair)
    pair[0].timeout = 0.01
    for _ in range(3):
        with pytest.raises(TimeoutError):
            call()
    pair[0].timeout = PATIENCE
    if name in WRITES:
        there.read_exact(filled)
    else:
        there.write_all(b"0123456789")
        if name == "readall":
            there.shutdown(Shutdown.WRITE)

    result: Any = call()

    if name in WRITES:
        assert result == 10
        assert there.read(100) == b"0123456789"
    elif name == "recv_ancillary":
        assert result.nbytes == 10
    elif name == "recv_fds":
        assert result[0] == b"0123456789"
    else:
        assert result in (10, b"0123456789")


def test_readall_that_times_out_loses_nothing(pair: tuple[UdStream, UdStream]) -> None:
    """TimeoutError of readall carries in .partial all that came, also megabytes; then it goes on."""
    here, there = pair
    here.timeout = 0.1
    data = os.urandom(TOO_MUCH)
    came = b""
    with in_thread(lambda: there.write_all(data)):
        while len(came) < len(data):
            with pytest.raises(TimeoutError) as caught:
                here.readall()
            error: Any = caught.value
            came += error.partial
    assert data == came

    with pytest.raises(TimeoutError) as caught:
        here.read()
    error = caught.value
    assert error.partial == b""

    there.write(b"rest")
    there.close()
    assert here.readall() == b"rest"


def test_exact_reads_that_time_out_lose_nothing(pair: tuple[UdStream, UdStream]) -> None:
    """TimeoutError of read_exact and readinto_exact carries .nbytes, and of read_exact .partial."""
    here, there = pair
    here.timeout = 0.02
    there.write(b"abc")
    with pytest.raises(TimeoutError) as caught:
        here.read_exact(10)
    error: Any = caught.value
    assert (error.nbytes, error.partial) == (3, b"abc")

    with pytest.raises(TimeoutError) as caught:
        here.read_exact(10)
    error = caught.value
    assert (error.nbytes, error.partial) == (0, b"")

    room = bytearray(4)
    there.write(b"de")
    with pytest.raises(TimeoutError) as caught:
        here.readinto_exact(room)
    error = caught.value
    assert (error.nbytes, room) == (2, b"de\0\0")


@contextmanager
def dripping(stream: UdStream, data: bytes = b"x", pause: float = 0.01) -> Iterator[None]:
    """Send a byte every now and then to whoever is at the other end."""
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(pause):
            stream.write(data)

    with in_thread(drip):
        try:
            yield
        finally:
            stop.set()


@contextmanager
def sipping(stream: UdStream, size: int = 4096, pause: float = 0.01) -> Iterator[None]:
    """Read a little every now and then."""
    stop = threading.Event()

    def sip() -> None:
        while not stop.wait(pause):
            stream.read(size)

    with in_thread(sip):
        try:
            yield
        finally:
            stop.set()


@pytest.mark.parametrize("collect", [False, True], ids=["plain", "collecting"])
@pytest.mark.parametrize("name", ["readall", "read_exact", "readinto_exact"])
def test_timeout_is_for_the_whole_read(pair: tuple[UdStream, UdStream], name: str, collect: bool) -> None:
    """Of a read that takes several system calls the timeout is for them all, however bytes drip in."""
    here, there = pair
    here.timeout = 0.15
    here.collect_ancillary = collect
    call: Callable[[], object] = {
        "readall": here.readall,
        "read_exact": lambda: here.read_exact(150),
        "readinto_exact": lambda: here.readinto_exact(bytearray(150)),
    }[name]
    with dripping(there):
        began = time.monotonic()
        with storm(), pytest.raises(TimeoutError) as caught:
            # 150 bytes take 1.5 seconds at the least: were each call timed on its own, they would come.
            call()
            pytest.fail("it went on for as long as bytes came")
        took = time.monotonic() - began
    error: Any = caught.value

    assert 0.15 <= took < 1.2
    assert 0 < len(error.partial if name != "readinto_exact" else b"x" * error.nbytes) < 150


@pytest.mark.parametrize("name", ["write_all", "writev_all", "sendfile"])
def test_timeout_is_for_the_whole_write(pair: tuple[UdStream, UdStream], name: str) -> None:
    """Of a write that takes several system calls the timeout is for them all, however slowly it goes on."""
    here, there = pair
    fill(here)
    here.timeout = 0.15
    data = bytes(TOO_MUCH * 4)
    call: Callable[[], object] = {
        "write_all": lambda: here.write_all(data),
        "writev_all": lambda: here.writev_all([data[:1000], data[1000:]]),
        "sendfile": lambda: here.sendfile(io.BytesIO(data)),
    }[name]
    with sipping(there, 30_000):
        began = time.monotonic()
        with storm(at_most=3), pytest.raises(TimeoutError) as caught:
            call()
        took = time.monotonic() - began
    error: Any = caught.value

    # At three megabytes a second all of it would take over a second.
    assert 0.15 <= took < 1.2
    assert 0 <= error.nbytes < len(data)


def test_end_of_the_wait(pair: tuple[UdStream, UdStream]) -> None:
    """A timed call that waits is woken by data, by room, by the end of file and by a broken pipe."""
    here, there = pair
    here.timeout = PATIENCE
    with in_thread(lambda: here.read(10)) as result:
        there.write(b"data")
    assert result == [b"data"]
    filled = fill(here)
    with in_thread(lambda: here.write(b"x")) as result:
        there.read_exact(filled)
    assert result == [1]
    there.read(1)
    with in_thread(lambda: here.read(10)) as result:
        there.shutdown(Shutdown.WRITE)
    assert result == [b""]
    fill(here)
    with in_thread(lambda: here.write(b"x")) as result:
        there.close()
    assert isinstance(result[0], BrokenPipeError)


def test_another_reader_was_quicker(pair: tuple[UdStream, UdStream], monkeypatch: pytest.MonkeyPatch) -> None:
    """A timed reader that is woken, and then finds that another reader took it all, waits on."""
    here, there = pair
    here.timeout = PATIENCE
    wait_by = _waiting.wait_by
    stolen: list[bytes | None] = []

    def thief(*arguments: Any) -> Any:
        result = wait_by(*arguments)
        if not stolen:
            stolen.append(os.read(here.fileno(), 1))
            there.write(b"second")
        return result

    monkeypatch.setattr(_timing, "wait_by", thief)
    main = threading.get_native_id()

    def write() -> None:
        wait_until_asleep(main)
        there.write(b"1")

    with in_thread(write):
        assert here.read(10) == b"second"
    assert stolen == [b"1"]

    stolen.clear()
    here.timeout = 0.5
    began = time.monotonic()
    monkeypatch.setattr(
        _timing, "wait_by", lambda *a: (wait_by(*a), stolen.append(os.read(here.fileno(), 1)))[0]
    )
    with in_thread(write), pytest.raises(TimeoutError):
        here.read(10)
    assert stolen == [b"1"]
    assert 0.5 <= time.monotonic() - began < 5


class Unlucky:
    """A socket that poll calls ready, and whose bytes, or room, another process always takes first."""

    def __init__(self, sock: UdStream) -> None:
        self.fileno = sock.fileno
        self._tries = itertools.count()

    @in_place_of_the_kernel
    def _too_late(self, *arguments: object) -> None:
        assert next(self._tries) < 100_000, "it tries for ever"
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    recv_into = recv = recvmsg_into = recvmsg = send = sendmsg = _too_late


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("recv_into", (bytearray(1),)),
        ("recv", (1,)),
        ("recvmsg_into", ([bytearray(1)],)),
        ("send", (b"x", 0)),
        ("sendmsg", ([b"x"], (), 0)),
    ],
)
def test_who_is_always_too_late_times_out(
    pair: tuple[UdStream, UdStream], name: str, arguments: tuple[Any, ...], kept: bool
) -> None:
    """However often others are quicker, the call ends with the timeout, which does not begin anew each time."""
    sock: Any = Unlucky(pair[0])
    pair[1].write(b"x")
    timed = _timing.TimedSocket(sock, SHORT)
    with pytest.raises(TimeoutError):
        if kept:
            _timing.keep(timed, [], name, *arguments, 0)
        else:
            getattr(timed, name)(*arguments)


def test_two_threads_wait_at_once(pair: tuple[UdStream, UdStream]) -> None:
    """Two threads may wait for the same stream: each gets what comes for one, or times out by itself."""
    here, there = pair
    here.timeout = PATIENCE

    def read() -> bytes | None:
        return here.read(1)

    with blocked_in(read) as one, blocked_in(read) as two:
        there.write(b"ab")
    assert sorted([*one, *two]) == [b"a", b"b"]  # type: ignore[type-var]

    here.timeout = 0.3
    with in_thread(read) as one, in_thread(read) as two:
        pass
    assert [type(result) for result in (*one, *two)] == [TimeoutError, TimeoutError]


# --- who notices ---


def options(fd: int) -> tuple[bool, bytes, bytes]:
    """What a timeout could have left on a connection: the mode, SO_RCVTIMEO and SO_SNDTIMEO."""
    sock = socket.socket(fileno=os.dup(fd))
    with sock:
        return (
            os.get_blocking(fd),
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16),
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16),
        )


UNTOUCHED = (True, bytes(16), bytes(16))


@pytest.mark.parametrize("name", [name for name in CALLS if name != "buffered"])
def test_no_duplicate_notices(pair: tuple[UdStream, UdStream], name: str) -> None:
    """Before, during and after a timed wait a duplicate of the fd sees no O_NONBLOCK and no SO_*TIMEO."""
    call, _, _ = not_ready(name, pair)
    duplicate = os.dup(pair[0].fileno())
    try:
        pair[0].timeout = 0.01
        assert options(duplicate) == UNTOUCHED
        with pytest.raises(TimeoutError):
            call()
        assert options(duplicate) == UNTOUCHED
        pair[0].timeout = PATIENCE
        with blocked_in(call):
            seen = options(duplicate)
            pair[1].close()
        assert seen == UNTOUCHED
        assert options(duplicate) == UNTOUCHED
    finally:
        os.close(duplicate)


def test_timeout_is_the_streams_own(pair: tuple[UdStream, UdStream]) -> None:
    """A duplicate begins with the same timeout, and has its own from then on."""
    here, _ = pair
    here.timeout = 0.01
    with here.dup() as twin:
        assert twin.timeout == 0.01
        twin.timeout = None
        assert here.timeout == 0.01
        here.timeout = 3
        assert twin.timeout is None
        with twin.dup() as third:
            assert third.timeout is None


@pytest.mark.parametrize(
    "name", [name for name in CALLS if name not in ("buffered", "sendfile", "recv_fds", "recv_ancillary")]
)
def test_nonblocking_does_not_wait(pair: tuple[UdStream, UdStream], name: str) -> None:
    """A nonblocking stream does not wait for its timeout: None, or BlockingIOError, at once."""
    call, _, _ = not_ready(name, pair)
    pair[0].timeout = 3600
    pair[0].set_nonblocking(True)
    if name in ("readinto", "read", "readv", "readall", "write", "writev"):
        assert call() is None
    else:
        with pytest.raises(BlockingIOError):
            call()


# --- the property ---


@pytest.mark.parametrize("seconds", [0.001, 1, 2.5, 1e-12, 1e9, 1e12, 1e300, 10**15, math.inf])
def test_timeouts_that_can_be(pair: tuple[UdStream, UdStream], folder: Path, seconds: float) -> None:
    """Any number of seconds above 0 will do, a tiny or a huge one too, also to connect with."""
    here, there = pair
    here.timeout = seconds
    assert here.timeout == seconds
    there.write(b"x")
    assert here.read(1) == b"x"
    if seconds >= 1:
        with in_thread(lambda: here.read(1)) as result:
            there.write(b"y")
        assert result == [b"y"]
        with in_thread(lambda: here.read_exact(2)) as result:
            there.write(b"yz")
        assert result == [b"yz"]
        with listening(folder / "s") as listener, UdStream.connect(folder / "s", timeout=seconds) as stream:
            assert stream.timeout == seconds
            assert options(stream.fileno()) == UNTOUCHED
            listener.accept()[0].close()
    else:
        with pytest.raises(TimeoutError):
            here.readinto_exact(bytearray(2))


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-0.0, ValueError),
        (-1, ValueError),
        (-1e-9, ValueError),
        (-math.inf, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        (False, TypeError),
        ("1", TypeError),
        (b"1", TypeError),
        (decimal.Decimal(1), TypeError),
        ([1], TypeError),
        (1j, TypeError),
    ],
)
def test_timeouts_that_cannot_be(
    pair: tuple[UdStream, UdStream], folder: Path, seconds: Any, error: type[Exception]
) -> None:
    """0 and below and NaN are ValueErrors, what is no number TypeErrors; the old timeout stays."""
    pair[0].timeout = 3
    with pytest.raises(error, match="timeout"):
        pair[0].timeout = seconds
    assert pair[0].timeout == 3
    # Nobody listens there: it is the timeout that is refused, before anything else happens.
    with pytest.raises(error, match="timeout"):
        UdStream.connect(folder / "missing", timeout=seconds)
    with pytest.raises(error, match="timeout"):
        udstream.open(folder / "missing", timeout=seconds)


def test_none_is_for_ever(pair: tuple[UdStream, UdStream]) -> None:
    """The timeout is None at first, can be set and unset, and a call without one waits."""
    here, there = pair
    assert here.timeout is None
    here.timeout = 0.001
    here.timeout = None
    assert here.timeout is None
    pause = threading.Event()
    with in_thread(lambda: (pause.wait(0.05), there.write(b"x"))):
        assert here.read(1) == b"x"


# --- connecting ---


@contextmanager
def clogged(path: Path) -> Iterator[socket.socket]:
    """A listener whose backlog is full."""
    waiting: list[socket.socket] = []
    with listening(path, 0) as listener:
        try:
            while True:
                client = socket.socket(socket.AF_UNIX)
                waiting.append(client)
                client.setblocking(False)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
            yield listener
        finally:
            for client in waiting:
                client.close()


def where_it_is(folder: Path, kind: str) -> tuple[Path, Path]:
    """The path to bind, and the path to connect to: for a long one, through a long way to the same folder."""
    if kind == "short":
        return folder / "s", folder / "s"
    long = folder / ("d" * 150)
    long.symlink_to(folder)
    return folder / "s", long / "s"


each_length = pytest.mark.parametrize("kind", ["short", "long"])


@each_length
@pytest.mark.parametrize("stormy", [False, True], ids=["calm", "storm"])
def test_connect_times_out_on_a_full_backlog(folder: Path, kind: str, stormy: bool) -> None:
    """Connect waits out a full backlog up to its timeout, under signals too: TimeoutError with the path."""
    bound, path = where_it_is(folder, kind)
    with clogged(bound):
        began = time.monotonic()
        if stormy:
            with storm(), pytest.raises(TimeoutError) as caught:
                UdStream.connect(path, timeout=2 * SHORT)
        else:
            with pytest.raises(TimeoutError) as caught:
                UdStream.connect(path, timeout=2 * SHORT)
        took = time.monotonic() - began

    assert 2 * SHORT * 0.9 <= took < 5
    assert caught.value.errno == errno.ETIMEDOUT
    assert str(path) == caught.value.filename


def test_one_late_signal_does_not_lengthen_a_connect(folder: Path) -> None:
    """A signal shortly before a connect's time is up leaves it only what is left of that."""
    with clogged(folder / "s"):
        began = time.monotonic()
        with on_alarm(lambda *_: None, 0.7), pytest.raises(TimeoutError):
            UdStream.connect(folder / "s", timeout=0.75)
        took = time.monotonic() - began

    # Waiting anew would take 1.45 seconds.
    assert 0.7 <= took < 1.35


def test_tiny_timeouts_of_a_connect(folder: Path) -> None:
    """A timeout below what the kernel can count is short, and never turns into none at all."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waits for ever")

    with on_alarm(handler, PATIENCE / 4), clogged(folder / "s"):
        for nanoseconds in range(50, 1500, 25):
            with pytest.raises(TimeoutError):
                UdStream.connect(folder / "s", timeout=nanoseconds * 1e-9)


def test_open_times_out_on_a_full_backlog(folder: Path) -> None:
    """The timeout of open() is that of its connect."""
    with clogged(folder / "s"), pytest.raises(TimeoutError) as caught:
        udstream.open(folder / "s", "rw", timeout=0.02)

    assert str(folder / "s") == caught.value.filename


def really_connected(stream: UdStream, listener: socket.socket) -> bool:
    """Whether the last in the listener's queue is the other end of *stream*."""
    stream.write_all(b"is it me?")
    while True:
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            if accepted.recv(9) == b"is it me?":
                accepted.sendall(b"yes")
                return stream.read_exact(3) == b"yes"


@each_length
@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])
@pytest.mark.parametrize("stormy", [False, True], ids=["calm", "storm"])
def test_connect_succeeds_when_room_is_made(
    folder: Path, kind: str, timeout: float | None, stormy: bool
) -> None:
    """Connect on a full backlog really connects once there is room, whatever signals came in between."""
    bound, path = where_it_is(folder, kind)
    with clogged(bound) as listener, storm(0.002 if stormy else 1000, at_most=PATIENCE) as hits:
        main = threading.main_thread().native_id
        assert main is not None
        waited = threading.Event()

        def make_room() -> None:
            wait_until_asleep(main)
            began = time.monotonic()
            while len(hits) < 20 and stormy and time.monotonic() - began < PATIENCE:
                waited.wait(0.002)
            listener.accept()[0].close()

        with in_thread(make_room):
            stream = UdStream.connect(path, timeout=timeout)
        with stream:
            assert options(stream.fileno()) == UNTOUCHED
            assert timeout == stream.timeout
            assert really_connected(stream, listener)
    assert not stormy or len(hits) >= 20


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, TimeoutError, InterruptedError, BlockingIOError, ValueError]
)
@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])
def test_connect_that_a_handler_ends(folder: Path, kind: type[BaseException], timeout: float | None) -> None:
    """What a signal handler raises, whatever it is, ends a waiting connect, and leaves nothing open."""
    raised = []

    def handler(number: int, frame: FrameType | None) -> None:
        raised.append(
            kind("by the handler") if len(raised) < 5 else AssertionError("it was never let through")
        )
        raise raised[-1]

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with clogged(folder / "s"), pytest.raises(kind) as caught:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.1)
            try:
                UdStream.connect(folder / "s", timeout=timeout)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert caught.value is raised[0]


def test_listener_that_goes_away_ends_a_waiting_connect(folder: Path) -> None:
    """A connect that waits for room fails when the listener closes instead: ConnectionRefusedError."""
    main = threading.main_thread().native_id
    assert main is not None
    for timeout in (None, PATIENCE):
        path = folder / f"s{timeout}"
        with clogged(path) as listener:

            def leave(listener: socket.socket = listener) -> None:
                wait_until_asleep(main)
                listener.close()

            with in_thread(leave), pytest.raises(ConnectionRefusedError) as caught:
                UdStream.connect(path, timeout=timeout)
        assert str(path) == caught.value.filename


def test_connect_in_many_threads(folder: Path) -> None:
    """Many that wait for a full backlog at once are all connected in the end, each to a server of its own."""
    with clogged(folder / "s") as listener:
        results: list[bytes] = []

        def client(number: int) -> None:
            with UdStream.connect(folder / "s", timeout=PATIENCE) as stream:
                stream.write_all(b"%04d" % number)
                results.append(stream.read_exact(4))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        # The first is what clogs it.
        listener.accept()[0].close()
        for _ in range(20):
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(PATIENCE)
                accepted.sendall(accepted.recv(4))
                assert accepted.recv(1) == b""
        for thread in threads:
            thread.join(PATIENCE)

    assert [b"%04d" % number for number in range(20)] == sorted(results)


def test_connect_timeout_stays_the_streams(folder: Path) -> None:
    """The timeout given to connect is the stream's from then on; the socket keeps no trace of it."""
    with listening(folder / "s") as listener:
        with UdStream.connect(folder / "s", timeout=SHORT) as stream:
            accepted, _ = listener.accept()
            with accepted:
                assert stream.timeout == SHORT
                assert options(stream.fileno()) == UNTOUCHED
                with pytest.raises(TimeoutError):
                    stream.read(1)


def test_default_timeout_does_not_hurry_a_connect(folder: Path) -> None:
    """socket.setdefaulttimeout() is not the timeout of a connect, not even 0."""
    pause = threading.Event()
    for default in (0.0, 0.01):
        path = folder / f"s{default}"
        with clogged(path) as listener:
            with in_thread(lambda listener=listener: (pause.wait(0.1), listener.accept()[0].close())):
                try:
                    socket.setdefaulttimeout(default)
                    stream = UdStream.connect(path)
                finally:
                    socket.setdefaulttimeout(None)
            with stream:
                assert options(stream.fileno()) == UNTOUCHED
                assert really_connected(stream, listener)


def test_timeout_while_another_thread_closes(pair: tuple[UdStream, UdStream]) -> None:
    """A timed call whose stream another thread closes ends by itself, at its time, and touches no other fd."""
    here, _ = pair
    here.timeout = 0.2
    fd = here.fileno()
    with blocked_in(lambda: here.read(10)) as result:
        here.close()
        # Whoever gets the number next is not read from.
        one, other = socket.socketpair()
        with one, other:
            assert one.fileno() == fd
            other.sendall(b"not yours")
            while not result:
                threading.Event().wait(0.01)
            assert one.recv(20) == b"not yours"

    assert isinstance(result[0], (TimeoutError, OSError, ValueError))


def test_option_really_looks(folder: Path) -> None:
    """The check that nobody notices would notice: a plain timeout, and options that are set."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(1)
        assert not options(one.fileno())[0]
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 1, 0))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 1, 0))
        assert all(
            a != b for a, b in itertools.islice(zip(options(other.fileno()), UNTOUCHED, strict=True), 1, None)
        )


class Calls(list[str]):
    """What was asked of the system, in order; others can wait for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def append(self, name: str) -> None:
        with self.changed:
            super().append(name)
            self.changed.notify_all()

    def await_(self, name: str, times: int = 1) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count(name) >= times, PATIENCE)


class Noted:
    """A socket object, or a poller, that notes what is asked of it."""

    def __init__(self, sock: Any, calls: Calls) -> None:
        self.sock = sock
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        if name != "fileno":
            self.calls.append(name)
        return getattr(self.sock, name)


@pytest.fixture
def calls(pair: tuple[UdStream, UdStream], monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the first of the pair, which has a timeout and has waited for one answer, asks of the system."""
    calls = Calls()
    here, there = pair
    real, get_blocking = _waiting.poller_for, os.get_blocking

    def mode(fd: int) -> bool:
        calls.append("mode")
        return get_blocking(fd)

    monkeypatch.setattr(_timing, "poller_for", lambda *args: Noted(real(*args), calls))
    monkeypatch.setattr(_timing, "get_blocking", mode)
    here.timeout = PATIENCE
    here._sock.sock = Noted(here._sock.sock, calls)
    here.write(b"x")
    answer_late(lambda: here.readinto(bytearray(1)), there, calls)
    assert calls == ["send", "recv_into", "mode", "poll", "recv_into"]
    calls.clear()
    return calls


def answer_late(read: Callable[[], object], there: UdStream, calls: Calls) -> object:
    """What *read* returns if there is something to read as soon as it polls."""
    with in_thread(read) as result:
        calls.await_("poll")
        there.write(b"y")
    return result[0]


def test_in_a_conversation_a_read_waits_first(pair: tuple[UdStream, UdStream], calls: Calls) -> None:
    """An answer that is not there yet costs a poll, and no try in vain before it."""
    here, there = pair
    for _ in range(3):
        here.write(b"x")
        assert answer_late(lambda: here.readinto(bytearray(1)), there, calls) == 1
        # This machine may have been longer than a moment about it.
        assert calls in (
            ["send", "poll", "recv_into"],
            ["send", "poll", "mode", "poll", "recv_into"],
        )
        calls.clear()
    here.write(b"x")
    assert answer_late(lambda: here.read(1), there, calls) == b"y"
    assert calls[:2] == ["send", "poll"]


@pytest.mark.parametrize("mode", ["wb", "w", "rwb", "rw"])
def test_a_conversation_of_a_file_is_one_too(
    mode: str, pair: tuple[UdStream, UdStream], calls: Calls
) -> None:
    """Lines of a file that go out and come back with a timeout cost as many system calls as those of the stream."""
    here, there = pair
    file: Any = here.makefile(mode)
    reading = file if "r" in mode else here.makefile(mode.replace("w", "r"))
    assert there.read(1) == b"x"
    there_too = there.makefile("rwb")
    for _ in range(3):
        calls.clear()
        file.write(b"x\n" if "b" in mode else "x\n")
        if reading is not file:
            file.flush()
        with in_thread(reading.readline) as result:
            calls.await_("poll")
            assert there_too.readline() == b"x\n"
            there_too.write(b"y\n")
            there_too.flush()
        assert result == [b"y\n" if "b" in mode else "y\n"]
        # The sending is the bare socket's in some.
        assert calls[calls.count("send")] == "poll", calls
    file.close()
    reading.close()
    there_too.close()


@pytest.mark.parametrize(
    "send",
    [
        lambda s: s.write_all(b"x"),
        lambda s: s.writev([b"x"]),
        lambda s: s.writev_all([b"x"]),
        lambda s: s.writelines([b"x"]),
        lambda s: s.send_fds(b"x", [0]),
    ],
)
def test_whatever_sends_begins_a_conversation(
    send: Callable[[UdStream], object], pair: tuple[UdStream, UdStream], calls: Calls
) -> None:
    """The answer to what `write_all` and the like sent is waited for first, by `read_exact` and the like as well."""
    here, there = pair
    for read in (
        lambda: here.readinto(bytearray(1)),
        lambda: here.readv([bytearray(1)]),
        lambda: here.read_exact(1),
        lambda: here.recv_fds(1),
        here.readall,
    ):
        calls.clear()
        send(here)
        if read == here.readall:
            there.shutdown(Shutdown.WRITE)
            read()
        else:
            answer_late(read, there, calls)
        assert calls[1] == "poll", calls


@pytest.mark.parametrize("at_once", [PATIENCE, 0.0], ids=["early", "late"])
def test_answers_that_are_there_are_not_waited_for(
    at_once: float, pair: tuple[UdStream, UdStream], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where answers come early, the reads soon find out that there is nothing to wait for; then none polls."""
    here, there = pair
    monkeypatch.setattr(_timing, "_AT_ONCE", at_once)
    for _ in range(_timing._ANSWERS + 1):
        there.write(b"y")
        here.write(b"x")
        calls.clear()
        assert here.readinto(bytearray(1)) == 1
    assert calls == (["recv_into"] if at_once else ["poll", "recv_into"])


def test_the_rest_of_an_answer_is_not_waited_for(pair: tuple[UdStream, UdStream], calls: Calls) -> None:
    """Only the first read after a write takes what it reads for an answer that is yet to come."""
    here, there = pair
    there.write(b"yyy")
    here.write(b"x")
    for _ in range(3):
        assert here.readinto(bytearray(1)) == 1
    assert calls == ["send", "poll", "recv_into", "recv_into", "recv_into"]

    calls.clear()
    there.write(b"yyy\n")
    here.write_all(b"x")
    assert here.readline() == b"yyy\n"
    assert calls == ["send", "poll", "recv", "recv", "recv", "recv"]


def test_a_conversation_made_nonblocking(pair: tuple[UdStream, UdStream], calls: Calls) -> None:
    """A read does not wait then; where a duplicate made it so, it asks for the mode after a moment."""
    here, _ = pair
    with here.dup() as twin:
        here.write(b"x")
        twin.set_nonblocking(True)
        assert here.readinto(bytearray(1)) is None
        assert calls == ["send", "poll", "mode"]
        twin.set_nonblocking(False)
    calls.clear()

    here.set_nonblocking(True)
    here.write(b"x")
    assert here.readinto(bytearray(1)) is None
    assert "poll" not in calls


@pytest.mark.parametrize("seconds", [1.0, _timing._MOMENT / 2000])
def test_an_answer_that_does_not_come(
    seconds: float, pair: tuple[UdStream, UdStream], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout is counted from the beginning, also where a read waits before its first try."""
    here, there = pair
    here.timeout = seconds
    here.write(b"x")
    with contextlib.suppress(TimeoutError):
        answer_late(lambda: here.readinto(bytearray(1)), there, calls)
    here.write(b"x")
    deadlines: list[float] = []

    def time_is_up(poller: object, deadline: float) -> None:
        deadlines.append(deadline)
        raise TimeoutError

    monkeypatch.setattr(_timing, "wait_by", time_is_up)
    # A clock that says later each time it is asked.
    monkeypatch.setattr(_timing, "monotonic", itertools.count(100.0, 100.0).__next__)
    with pytest.raises(TimeoutError):
        while here.readinto(bytearray(1)):
            pass  # the answer before, if that came too late
    assert deadlines == [100.0 + seconds]


def test_an_answer_that_two_threads_wait_for(pair: tuple[UdStream, UdStream], calls: Calls) -> None:
    """One poller serves one thread at a time, and a second makes its own."""
    here, there = pair
    here.write(b"x")
    with in_thread(lambda: here.readinto(bytearray(1))) as first:
        calls.await_("poll")
        here.write(b"x")
        with in_thread(lambda: here.readinto(bytearray(1))) as second:
            calls.await_("poll", 3)
            there.write(b"yy")
    assert first == second == [1]


def test_the_error_of_a_handler_while_an_answer_is_waited_for(
    pair: tuple[UdStream, UdStream], calls: Calls
) -> None:
    """What a handler raises is not taken for the poller's refusal, even if it is of the same class."""
    here, _ = pair

    def handler(number: int, frame: FrameType | None) -> None:
        raise RuntimeError("a signal's handler")

    here.write(b"x")
    with on_alarm(handler, 0.001), pytest.raises(RuntimeError, match="handler"):
        here.readinto(bytearray(1))


def test_a_conversation_made_nonblocking_by_somebody_else(
    pair: tuple[UdStream, UdStream], calls: Calls
) -> None:
    """The first read finds that out; none after it waits even for a moment."""
    here, _ = pair
    os.set_blocking(here.fileno(), False)
    for asked in (["send", "poll", "mode"], ["send", "recv_into", "mode"]):
        calls.clear()
        here.write(b"x")
        assert here.readinto(bytearray(1)) is None
        assert calls == asked


ENDLESS: dict[str, Callable[[UdStream], object]] = {
    "readall": lambda s: s.readall(),
    "read_exact": lambda s: s.read_exact(1 << 24),
    "readlines": lambda s: s.makefile("rb").readlines(),
    "read of rb": lambda s: s.makefile("rb").read(),
    "read(n) of rb": lambda s: s.makefile("rb").read(1 << 24),
    "readinto of rb": lambda s: s.makefile("rb").readinto(bytearray(1 << 24)),
    "read of r": lambda s: s.makefile("r").read(),
    "read(n) of r": lambda s: s.makefile("r").read(1 << 24),
    "readlines of r": lambda s: s.makefile("r").readlines(),
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("collecting", [False, True])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_peer_that_never_stops(name: str, collecting: bool) -> None:
    """The timeout is for the whole call, also where there is always something to read."""
    here, there = UdStream.pair()
    here.timeout = SHORT
    here.collect_ancillary = collecting
    stop = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                there.write(b"some text, and the end of a line\n")
                stop.wait(SHORT / 5)

    with there, here, in_thread(drip):
        try:
            with pytest.raises(TimeoutError):
                ENDLESS[name](here)
        finally:
            stop.set()


@pytest.mark.parametrize("mode", ["rb", "rwb"])
def test_nonblocking_reads_never_run_out_of_time(mode: str) -> None:
    """A nonblocking stream does not wait, so what takes several calls there is not too late, whatever the timeout."""
    here, there = UdStream.pair()
    here.timeout = 1e-9
    here.set_nonblocking(True)
    with there, here.makefile(mode) as file:
        there.write(b"x" * 10)
        assert file.read() == b"x" * 10
        assert file.read() is None


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("collecting", [False, True])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_peer_that_never_pauses(name: str, collecting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it take a moment in which there is nothing."""
    here, there = UdStream.pair()
    with here, there, here.dup() as what_is_left:
        here.timeout = 5
        here.collect_ancillary = collecting
        for _ in range(30):
            # The descriptor ends a read.
            there.send_fds(b"some text, and the end of a line\n", [0])
        there.shutdown(Shutdown.WRITE)
        # Each look at the clock takes a second.
        monkeypatch.setattr(_timing, "monotonic", itertools.count(time.monotonic()).__next__)
        with pytest.raises(TimeoutError):
            ENDLESS[name](here)
        assert what_is_left.read(1) == b"s"
        for _, received in here.collected:
            received.close()
