"""
Random histories: whatever is called, in whatever order, what comes out is what a model in plain Python says.

Each history is a run of calls that `hypothesis` draws, and makes smaller when one of them goes wrong. The same
histories are run each time. To look further, at random and for as long as you like::

    UDSTREAM_HISTORIES=50000 pytest -m "" tests/proof/test_histories.py

A call that would wait for ever is made with a timeout that is over at once: `INSTANT`.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import gc
import io
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
import termios
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import model
import pytest
from descriptors import is_open
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from udstream import Credentials, FileDescriptors, Shutdown, UdStream, _timing, ancillary

# How many histories each machine runs, and how many calls the longest of them has.
QUICK, QUICK_CALLS = 12, 20
MANY, CALLS = 1_000, 40
AT_RANDOM = int(os.environ.get("UDSTREAM_HISTORIES", "0"))

# How long a call that is compared may take, and a whole step.
PATIENCE, MUCH_PATIENCE = 5, 30
IOV_MAX = os.sysconf("SC_IOV_MAX")
INSTANT = 1e-9
TIMEOUTS = [None, None, INSTANT, 0.001, 60.0]


@pytest.fixture(autouse=True)
def time_stands_still_while_data_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No history takes as long as 60 seconds; and one whose time is over at once must not be over by chance."""
    monkeypatch.setattr(_timing._ForOneCall, "_check_time", lambda self: None)


# What is sent is cut from this, one piece after the other, so that a byte lost or doubled cannot go unseen.
LETTERS = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ" + b"\n" * 8
BLOB = random.Random(1).randbytes(1 << 20).translate(bytes(LETTERS[at % len(LETTERS)] for at in range(256)))

ME = tuple(Credentials.current())
# Only root may say that it is somebody else.
SENDERS = [ME, (os.getpid(), 12345, 54321)] if os.geteuid() == 0 else [ME]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the model knows what Linux keeps together and what it throws away"
)

sizes = st.one_of(st.integers(0, 20), st.sampled_from([100, 2_240, 5_000, 70_000, 250_000]))
which = st.integers(0, 7)
rarely = st.sampled_from([False, False, False, False, False, True])


class Pipe:
    """A descriptor to pass, which tells whether any copy of it is left anywhere, in a process or in flight."""

    def __init__(self) -> None:
        self._end, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._status = os.fstat(self.fd)

    def fileno(self) -> int:
        return self.fd

    def is_behind(self, fd: int) -> bool:
        return os.path.samestat(os.fstat(fd), self._status)

    def close(self) -> None:
        """Close it, and fail if somebody has a copy."""
        os.close(self.fd)
        try:
            assert os.read(self._end, 1) == b""
        except BlockingIOError:
            raise AssertionError("a passed descriptor is still open somewhere") from None
        finally:
            os.close(self._end)


class Names:
    """The pipes of a history, by number."""

    def __init__(self) -> None:
        self.pipes = [Pipe() for _ in range(3)]

    def of(self, fds: Iterable[int]) -> tuple[int, ...]:
        """Which these received descriptors are; each must be close-on-exec."""
        found = []
        for fd in fds:
            assert not os.get_inheritable(fd)
            found += [name for name, pipe in enumerate(self.pipes) if pipe.is_behind(fd)]
        return tuple(found)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()


class History(RuleBasedStateMachine):
    """What both machines have in common: fresh bytes, an end to each wait, and the accounts."""

    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        signal.setitimer(signal.ITIMER_REAL, MUCH_PATIENCE)
        self._before = open_numbers()
        self._position = 0

    def fresh(self, size: int) -> bytes:
        """So many bytes that were not sent before."""
        start = self._position % (len(BLOB) - size)
        self._position = start + size
        return BLOB[start : start + size]

    def teardown(self) -> None:
        self.tally["histories"] += 1
        left = open_numbers() - self._before
        if left:
            gc.collect()
            left = open_numbers() - self._before
        assert not left, f"left open: {left}"


def open_numbers() -> set[int]:
    """The descriptors that are open, and for a moment the one that lists them."""
    numbers = set(map(int, os.listdir("/proc/self/fd")))
    return {fd for fd in numbers if fd < 3 or is_open(fd)}


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises; an error without its traceback, whose frames would keep streams alive."""
    try:
        return call()
    except (OSError, EOFError, ValueError) as error:
        error.__context__ = None
        return error.with_traceback(None)


def attempt(call: Callable[[], Any]) -> Any:
    """What a call returns or raises, which has to be soon."""
    History.tally["calls"] += 1
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        return outcome(call)
    finally:
        signal.setitimer(signal.ITIMER_REAL, MUCH_PATIENCE)


def facts(result: Any) -> Any:
    """What there is to compare of a result: of an error its class, its errno and what it carries."""
    if isinstance(result, BaseException):
        carried = {name: fact for name, fact in vars(result).items() if name in CARRIED}
        return type(result), getattr(result, "errno", None), carried
    return result


def plainly(result: Any) -> Any:
    """As `facts`, but of an error no more than its class and errno."""
    return facts(result)[:2] if isinstance(result, BaseException) else result


CARRIED = ("nbytes", "partial", "data")


def queued(stream: UdStream) -> int:
    """How much of its buffer for sending the kernel has in use, by its own accounts."""
    return int(struct.unpack("@i", fcntl.ioctl(stream, termios.TIOCOUTQ, b"\0" * 4))[0])


def buffer_size(stream: UdStream) -> int:
    with borrowed(stream) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@contextmanager
def borrowed(stream: UdStream) -> Iterator[socket.socket]:
    sock = socket.socket(fileno=stream.fileno())
    try:
        yield sock
    finally:
        sock.detach()


def is_full(stream: UdStream) -> bool:
    """Whether the kernel takes nothing more from this end."""
    return queued(stream) >= buffer_size(stream)


def fits(stream: UdStream, size: int, *, at_once: bool = True) -> bool:
    """Whether the kernel surely takes that much, in one system call or a few."""
    used, room = queued(stream), buffer_size(stream)
    # One piece is taken as long as there is any room; of more, each costs its bytes and then some.
    return used < room and ((at_once and size <= piece_of(room)) or used + 3 * size + 16_384 < room)


def piece_of(room: int) -> int:
    """The longest message that stays in one piece."""
    return min(room // 2 - 64, 16_000)


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let this process open so many more files, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = open_numbers()
    free = [fd for fd in range(len(taken) + count + 1) if fd not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class OnStream:
    """A stream, and what the model says of it."""

    def __init__(self, stream: UdStream, said: model.Stream) -> None:
        self.stream = stream
        self.said = said

    def hold_to(self, promise: Callable[[], Any], call: Callable[[], Any]) -> Any:
        """Make the call, and compare its outcome with what was promised."""
        promised = outcome(promise)
        with self._no_waiting(isinstance(promised, TimeoutError)):
            actual = attempt(call)
        assert facts(actual) == facts(promised)
        return actual

    def send(
        self,
        size: int,
        call: Callable[[], Any],
        *,
        stops: bool = False,
        silent: bool = False,
        at_once: bool = True,
    ) -> int:
        """
        Make a call that sends, and return how many bytes it says went.

        How many of them the kernel takes is its own to say; what must hold is that it took some if it had
        room, and all of them if it still has. A call that *stops* may be short, one that does not ends in an
        error then; a *silent* one has None for that. What is not sent *at_once* takes several system calls.
        """
        said, end = self.said, self.said.end
        with self._no_waiting(not end.outgoing.ended and not fits(self.stream, size, at_once=at_once)):
            full = not end.outgoing.ended and is_full(self.stream)
            actual = attempt(call)
        if end.outgoing.ended and (size or stops):
            assert facts(actual) == facts(model.broken_pipe(**({} if stops else {"nbytes": 0})))
            return 0
        sent = (
            0 if actual is None else getattr(actual, "nbytes", 0) if isinstance(actual, OSError) else actual
        )
        assert isinstance(sent, int) and 0 <= sent <= size
        if size:
            assert bool(sent) != full, "nothing was sent though there was room, or something without room"
            assert sent == size or is_full(self.stream), "less was sent than there was room for"
        if sent < size and (full or not stops):
            stalled = said.stalled(**({} if stops else {"nbytes": sent}))
            assert facts(actual) == facts(None if silent and end.nonblocking else stalled)
        return sent

    @contextmanager
    def _no_waiting(self, for_ever: bool) -> Iterator[None]:
        """See to it that what would wait for long, or for ever, does not."""
        brief = for_ever and (self.said.timeout is None or self.said.timeout > 1)
        if brief:
            self.stream.timeout = INSTANT
        try:
            yield
        finally:
            if brief:
                self.stream.timeout = self.said.timeout


def into(read: Callable[[Any], int | None], *lengths: int) -> Callable[[], bytes | None]:
    """A call that reads into a buffer, or into a list of several, as one that returns what came."""

    def call() -> bytes | None:
        buffers = [bytearray(length) for length in lengths]
        count = read(buffers[0] if len(buffers) == 1 else buffers)
        return None if count is None else b"".join(buffers)[:count]

    return call


# Calls that end with one receive, or several; each is given a stream and a size.
READS: dict[str, Callable[[UdStream, int], Any]] = {
    "read": lambda stream, size: stream.read(size),
    "readinto": lambda stream, size: into(stream.readinto, size)(),
    "readinto an array": lambda stream, size: into_array(stream, size),
    "readv": lambda stream, size: into(stream.readv, size // 3, 0, size - size // 3)(),
    "readv of many": lambda stream, size: into(stream.readv, *[1] * min(size, 30), max(size - 30, 0), 0)(),
}
LOOPS: dict[str, tuple[Callable[[UdStream, int], Any], Callable[[model.Stream, int], Any]]] = {
    "readall": (lambda stream, _: stream.readall(), lambda said, _: said.readall()),
    "read()": (lambda stream, _: stream.read(), lambda said, _: said.readall()),
    "readline": (lambda stream, _: stream.readline(), lambda said, _: said.readline()),
    "readline(n)": (lambda stream, size: stream.readline(size), lambda said, size: said.readline(size)),
    "readlines": (lambda stream, _: stream.readlines(), lambda said, _: said.readlines()),
    "readlines(n)": (lambda stream, size: stream.readlines(size), lambda said, size: said.readlines(size)),
    "next": (lambda stream, _: next(stream, b""), lambda said, _: said.readline()),
    "read_exact": (lambda stream, size: stream.read_exact(size), lambda said, size: said.read_exact(size)),
    "readinto_exact": (
        lambda stream, size: exactly_into(stream, size),
        lambda said, size: said.read_exact(size),
    ),
}


def into_array(stream: UdStream, size: int) -> bytes | None:
    """A buffer whose items are no bytes."""
    buffer = array("H", bytes(size // 2 * 2))
    if size % 2:
        return stream.read(size)
    count = stream.readinto(buffer)
    return None if count is None else buffer.tobytes()[:count]


def exactly_into(stream: UdStream, size: int) -> bytes:
    """`readinto_exact`, whose buffer says what had come."""
    buffer = bytearray(size)
    try:
        assert stream.readinto_exact(buffer) == size
    except (OSError, EOFError) as error:
        model.telling(error, partial=bytes(buffer[: vars(error)["nbytes"]]))
        raise
    return bytes(buffer)


def in_parts(data: bytes) -> list[Any]:
    """The same bytes in several buffers, some of them empty, not all of them bytes."""
    cut = len(data) // 3
    return [data[:cut], b"", bytearray(data[cut : 2 * cut]), memoryview(data)[2 * cut :]]


def lines_of(stream: UdStream, data: bytes) -> int:
    """`writelines`, as a call that returns how much it sent."""
    stream.writelines(in_parts(data))
    return len(data)


# Anything that a closed stream is asked for is a ValueError.
ASKED_OF_CLOSED: list[Callable[[UdStream], object]] = [
    *(lambda s, c=call: c(s, 3) for call in READS.values()),
    *(lambda s, c=call: c(s, 3) for call, _ in LOOPS.values()),
    lambda s: s.read(0),
    lambda s: s.readinto(b""),
    lambda s: s.readv([]),
    lambda s: s.write(b""),
    lambda s: s.write(b"x"),
    lambda s: s.writev([]),
    lambda s: s.writev([b"x", b"y"]),
    lambda s: s.write_all(b"x"),
    lambda s: s.writev_all([b"x"]),
    lambda s: s.writelines([b"x"]),
    lambda s: s.sendfile(io.BytesIO(b"x")),
    lambda s: s.send_fds(b"x", [0]),
    lambda s: s.send_ancillary(b"x"),
    lambda s: s.recv_fds(1),
    lambda s: s.recv_ancillary(bytearray(1)),
    lambda s: s.peer_credentials(),
    lambda s: s.shutdown(Shutdown.BOTH),
    lambda s: s.dup(),
    lambda s: s.detach(),
    lambda s: s.fileno(),
    lambda s: s.readable(),
    lambda s: s.writable(),
    lambda s: s.seekable(),
    lambda s: s.flush(),
    lambda s: s.isatty(),
    lambda s: s.seek(0),
    lambda s: s.tell(),
    lambda s: s.truncate(),
    lambda s: s.set_nonblocking(True),
    lambda s: s.is_nonblocking(),
    lambda s: s.timeout,
    lambda s: setattr(s, "timeout", 1.0),
    lambda s: s.collect_ancillary,
    lambda s: setattr(s, "collect_ancillary", True),
    lambda s: s.local_path,
    lambda s: s.peer_path,
    lambda s: s.makefile("rb"),
    lambda s: s.makefile("rb", 0),
    lambda s: s.makefile("w"),
    lambda s: s.__enter__(),
    lambda s: iter(s),
]


class Streams(History):
    """Raw streams: both ends of a connection, with duplicates, descriptors, credentials and every mode."""

    @initialize(tiny=st.tuples(st.booleans(), st.booleans()), timeout=st.sampled_from(TIMEOUTS))
    def connected(self, tiny: tuple[bool, bool], timeout: float | None) -> None:
        self.names = Names()
        self.file: Any = tempfile.TemporaryFile()
        self.file.write(BLOB)
        self.file.seek(0)
        sockets = socket.socketpair()
        directions = []
        for sock, small in zip(sockets, tiny, strict=True):
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            directions.append(model.Direction(room // 2 - 64))
        there, back = directions
        self.ends = [model.End(back, there), model.End(there, back)]
        # Closed ones stay in the list: there is something to promise of them, too.
        self.all = [
            OnStream(UdStream.from_socket(sock), model.Stream(end))
            for sock, end in zip(sockets, self.ends, strict=True)
        ]
        self._set_timeout(self.all[0], timeout)

    def teardown(self) -> None:
        if hasattr(self, "all"):
            for each in self.all:
                each.stream.close()
                self._take_collected(each)
            self.file.close()
            self.names.close()
        super().teardown()

    def open_ones(self) -> list[OnStream]:
        return [each for each in self.all if not each.said.closed]

    def pick(self, at: int) -> OnStream:
        live = self.open_ones()
        return live[at % len(live)]

    any_open = precondition(lambda self: self.open_ones())

    # --- receiving ---

    @any_open
    @rule(at=which, how=st.sampled_from(sorted(READS)), size=sizes)
    def read(self, at: int, how: str, size: int) -> None:
        on = self.pick(at)
        on.hold_to(lambda: on.said.read(size), lambda: READS[how](on.stream, size))

    @any_open
    @rule(at=which, how=st.sampled_from(sorted(LOOPS)), size=sizes)
    def read_on(self, at: int, how: str, size: int) -> None:
        on = self.pick(at)
        call, promise = LOOPS[how]
        on.hold_to(lambda: promise(on.said, size), lambda: call(on.stream, size))

    @any_open
    @rule(
        at=which,
        size=st.one_of(st.integers(1, 20), st.just(5_000)),
        most=st.sampled_from([0, 1, 2, 253]),
        room=st.sampled_from([None, None, 0, 1]),
        plain=st.booleans(),
    )
    def receive_fds(self, at: int, size: int, most: int, room: int | None, plain: bool) -> None:
        on = self.pick(at)
        lost: list[int] = []

        def promise() -> Any:
            try:
                arrival = on.said.receive(size)
            except model.WouldBlock:
                raise on.said.stalled() from None
            count = len(arrival.fds)
            given = count if room is None else min(count, room)
            kept = arrival.fds[: min(given, most)]
            if plain and len(kept) < count:
                lost.append(errno.EMFILE if given < count else errno.EMSGSIZE)
                return lost[0], arrival.data, kept
            if plain:
                return arrival.data, kept
            return arrival.data, kept, arrival.sender, len(kept) < count

        def receive() -> Any:
            if not plain:
                head, rest = bytearray(size // 2), bytearray(size - size // 2)
                with on.stream.recv_ancillary([head, rest], max_fds=most) as received:
                    assert not received.ancillary and not received.pidfd and received.security is None
                    data = bytes(head + rest)[: received.nbytes]
                    return data, self.names.of(received.fds), received.credentials, received.truncated
            try:
                data, fds = on.stream.recv_fds(size, most)
            except OSError as error:
                if not hasattr(error, "fds"):
                    raise
                with error.fds as fds:
                    return error.errno, error.data, self.names.of(fds)  # type: ignore[attr-defined]
            with fds:
                return data, self.names.of(fds)

        def call() -> Any:
            if room is None:
                return receive()
            with room_for(room):
                return receive()

        on.hold_to(promise, call)

    @any_open
    @rule(at=which, flag=st.booleans())
    def collect(self, at: int, flag: bool) -> None:
        on = self.pick(at)
        on.stream.collect_ancillary = flag
        on.said.collect(flag)

    @rule(at=which)
    def take_collected(self, at: int) -> None:
        # Also of a closed one: what it has kept is still the user's.
        self._take_collected(self.all[at % len(self.all)])

    def _take_collected(self, on: OnStream) -> None:
        found = []
        while on.stream.collected:
            offset, received = on.stream.collected.popleft()
            with received:
                assert not received.truncated
                sender = received.credentials
                found.append(model.Kept(offset, received.nbytes, self.names.of(received.fds), sender))
        assert found == on.said.collected
        on.said.collected.clear()

    # --- sending ---

    def _gone(self, on: OnStream, data: bytes, fds: tuple[int, ...] = (), sender: Any = None) -> None:
        """Note in the model what was sent."""
        if sender is None:
            asked = any(end.passcred for end in self.ends)
            sender = ME if asked else model.ANONYMOUS
        on.said.end.outgoing.send(data, fds, sender)

    @any_open
    @rule(at=which, size=sizes, how=st.sampled_from(["write", "writev", "writev of many"]))
    def write(self, at: int, size: int, how: str) -> None:
        on = self.pick(at)
        data = self.fresh(size)
        if how == "write":
            sent = on.send(size, lambda: on.stream.write(data), stops=True, silent=True)
        elif how == "writev":
            sent = on.send(size, lambda: on.stream.writev(in_parts(data)), stops=True, silent=True)
        else:
            many = [data[:1]] * 1_500
            data = b"".join(many[:IOV_MAX])
            sent = on.send(len(data), lambda: on.stream.writev(many), stops=True, silent=True)
        self._gone(on, data[:sent])

    @any_open
    @rule(
        at=which,
        size=sizes,
        how=st.sampled_from(["write_all", "writev_all", "writev_all of many", "writelines"]),
    )
    def write_all(self, at: int, size: int, how: str) -> None:
        on = self.pick(at)
        data = self.fresh(size)
        if how == "write_all":
            sent = on.send(size, lambda: on.stream.write_all(data))
        elif how == "writev_all":
            sent = on.send(size, lambda: on.stream.writev_all(in_parts(data)))
        elif how == "writelines":
            sent = on.send(size, lambda: lines_of(on.stream, data), at_once=False)
        else:
            many = [data[:3]] * 1_500
            data = b"".join(many)
            sent = on.send(len(data), lambda: on.stream.writev_all(many), at_once=False)
        self._gone(on, data[:sent])

    @any_open
    @rule(at=which, size=st.one_of(st.integers(0, 20), st.sampled_from([5_000, 50_000])), kept=st.booleans())
    def send_file(self, at: int, size: int, kept: bool) -> None:
        on = self.pick(at)
        data = self.fresh(size)
        offset = self._position - size
        source = io.BytesIO(BLOB) if kept or not fits(on.stream, 10 * size) else self.file

        def call() -> int:
            return on.stream.sendfile(source, offset, size)

        if on.said.end.nonblocking or not size:
            on.hold_to(wrong_value, call)
            return
        sent = on.send(size, call)
        self._gone(on, data[:sent])
        if sent:
            assert source.tell() == offset + sent

    @any_open
    @rule(
        at=which,
        size=st.one_of(st.integers(0, 20), st.sampled_from([2_000, 9_000])),
        fds=st.lists(st.integers(0, 2), max_size=4),
        how=st.sampled_from(["ints", "objects", "owned", "many"]),
    )
    def send_fds(self, at: int, size: int, fds: list[int], how: str) -> None:
        on = self.pick(at)
        # The kernel counts what is in flight; as a plain user one may not have many more than open files.
        if how == "many" and sum(end.incoming.fds for end in self.ends) < 400:
            fds = fds[:1] * 253
        names = tuple(fds)
        data = self.fresh(size)
        given: Any = [self.names.pipes[name] for name in names]
        if how != "objects":
            given = [pipe.fd for pipe in given]
        if how == "owned":
            given = FileDescriptors(map(os.dup, given))
        call: Callable[[], Any] = lambda: on.stream.send_fds(in_parts(data) if size % 2 else data, given)  # noqa: E731
        if names and not size:
            on.hold_to(wrong_value, call)
        else:
            sent = on.send(size, call)
            self._gone(on, data[:sent], names)
        if how == "owned":
            assert self.names.of(given) == names
            given.close()

    @any_open
    @rule(
        at=which,
        size=st.one_of(st.integers(0, 20), st.just(9_000)),
        fds=st.lists(st.integers(0, 2), max_size=3),
        sender=st.sampled_from([None, None, *SENDERS]),
        how=st.sampled_from(["one item", "two items", "packed"]),
    )
    def send_ancillary(self, at: int, size: int, fds: list[int], sender: Any, how: str) -> None:
        on = self.pick(at)
        data = self.fresh(size)
        numbers = [self.names.pipes[name].fd for name in fds]
        items: list[Any] = [numbers]
        if how == "two items":
            items = [numbers[:1], numbers[1:]]
        elif how == "packed" and numbers:
            items = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers))]
        if sender is not None:
            items.append(Credentials(*sender))
        call = lambda: on.stream.send_ancillary(data, items)  # noqa: E731
        if not size and (fds or sender):
            on.hold_to(wrong_value, call)
            return
        sent = on.send(size, call, stops=True)
        self._gone(on, data[:sent], tuple(fds), sender)

    # --- modes ---

    @any_open
    @rule(at=which, how=st.sampled_from([Shutdown.READ, Shutdown.WRITE, Shutdown.BOTH]), sure=rarely)
    def shut_down(self, at: int, how: Shutdown, sure: bool) -> None:
        if not sure:
            return
        on = self.pick(at)
        on.stream.shutdown(how)
        if how != Shutdown.READ:
            on.said.end.outgoing.ended = True
        if how != Shutdown.WRITE:
            on.said.end.incoming.ended = True

    @any_open
    @rule(at=which, seconds=st.sampled_from(TIMEOUTS))
    def set_timeout(self, at: int, seconds: float | None) -> None:
        self._set_timeout(self.pick(at), seconds)

    def _set_timeout(self, on: OnStream, seconds: float | None) -> None:
        on.stream.timeout = seconds
        on.said.timeout = seconds

    @any_open
    @rule(at=which, flag=st.booleans())
    def set_nonblocking(self, at: int, flag: bool) -> None:
        on = self.pick(at)
        on.stream.set_nonblocking(flag)
        on.said.end.nonblocking = flag

    @any_open
    @rule(at=which, flag=st.booleans())
    def ask_for_credentials(self, at: int, flag: bool) -> None:
        on = self.pick(at)
        ancillary.set_passcred(on.stream, flag)
        on.said.end.passcred = flag

    # --- owners ---

    @any_open
    @rule(at=which)
    def duplicate(self, at: int) -> None:
        if len(self.open_ones()) < 6:
            on = self.pick(at)
            self.all.append(OnStream(on.stream.dup(), model.Stream(on.said.end, on.said.timeout)))

    @any_open
    @rule(at=which, seconds=st.sampled_from([-1, None, 0, 0.001]))
    def give_away_and_take_over(self, at: int, seconds: float | None) -> None:
        """By its number, or as a `socket.socket` with this timeout."""
        on = self.pick(at)
        end = on.said.end
        fd = on.stream.detach()
        on.said.closed = True
        if seconds == -1:
            taken = UdStream.from_fd(fd)
            seconds = None
        else:
            sock = socket.socket(fileno=fd)
            sock.settimeout(seconds)
            taken = UdStream.from_socket(sock)
            # Whatever it was before: this is what socket.settimeout does, and from_socket takes half of it back.
            end.nonblocking = seconds == 0
        assert taken.fileno() == fd
        end.streams -= 1
        self.all.append(OnStream(taken, model.Stream(end, seconds or None)))

    @any_open
    @rule(at=which, last=rarely, how=st.sampled_from(["close", "with", "drop"]))
    def close(self, at: int, last: bool, how: str) -> None:
        on = self.pick(at)
        if on.said.end.streams == 1 and not last:
            return
        on.said.close()
        if how == "close" or len(self.all) == 1:
            on.stream.close()
        elif how == "with":
            with on.stream as same:
                assert same is on.stream
        else:
            self._take_collected(on)
            self.all.remove(on)
            with pytest.warns(ResourceWarning, match="unclosed <udstream"):
                del on.stream

    @precondition(lambda self: len(self.open_ones()) < len(self.all))
    @rule(at=which, ask=st.sampled_from(ASKED_OF_CLOSED))
    def use_after_close(self, at: int, ask: Callable[[UdStream], object]) -> None:
        over = [each for each in self.all if each.said.closed]
        stream = over[at % len(over)].stream
        stream.close()
        assert stream.closed and "closed" in repr(stream)
        with pytest.raises(ValueError, match=r"closed|seek|truncate|tell"):
            ask(stream)

    @any_open
    @rule(at=which)
    def ask(self, at: int) -> None:
        on = self.pick(at)
        stream, said = on.stream, on.said
        assert not stream.closed and stream.readable() and stream.writable() and not stream.seekable()
        assert stream.timeout == said.timeout
        assert stream.is_nonblocking() == said.end.nonblocking
        assert stream.collect_ancillary == said.collecting
        assert ancillary.get_passcred(stream) == said.end.passcred
        assert stream.peer_credentials() == ME
        assert stream.peer_path.is_unnamed
        assert stream.makefile("rb", 0) is stream
        assert not os.get_inheritable(stream.fileno())
        moves: list[Callable[[], object]] = [lambda: stream.seek(0), stream.tell, stream.truncate]
        for move in moves:
            with pytest.raises(io.UnsupportedOperation):
                move()


# --- files ---

BINARY_MODES = ["rb", "wb", "rwb", "rwb", "r+b"]
TEXT_MODES = ["r", "w", "rw", "rw", "w+"]
# Each with words that it can say, and that mean trouble where they are cut.
ENCODINGS = {
    "utf-8": ["\n", "abc", "z\r\n", "日本", "x" * 30, "\r", "é\n", "𝄞"],
    "latin-1": ["\n", "abc", "z\r\n", "é", "x" * 30, "\r"],
    "utf-8-sig": ["\n", "abc", "z\r\n", "日本"],
    "utf-16": ["\n", "abc", "z\r\n", "日本", "਍"],
    "shift_jis": ["\n", "abc", "z\r\n", "日本", "ソ"],
}

TEXT_READS: dict[str, tuple[Callable[[Any, int], Any], Callable[[model.Incoming, int], Any]]] = {
    "read()": (lambda file, _: file.read(), lambda said, _: said.read(-1)),
    "read(n)": (lambda file, size: file.read(size), lambda said, size: said.read(size)),
    "readline": (lambda file, _: file.readline(), lambda said, _: said.readline()),
    "readline(n)": (lambda file, size: file.readline(size), lambda said, size: said.readline(size)),
    "readlines": (lambda file, _: file.readlines(), lambda said, _: said.readlines()),
    "readlines(n)": (lambda file, size: file.readlines(size), lambda said, size: said.readlines(size)),
    "next": (lambda file, _: next(file, None), lambda said, _: said.readline() or None),
    "iterator": (lambda file, _: next(iter(file), None), lambda said, _: said.readline() or None),
}
BINARY_READS = TEXT_READS | {
    "readinto": (lambda file, size: into(file.readinto, size)(), lambda said, size: said.read(size)),
}
# What gives as much as it likes, but something if there is anything; the last does not take it out.
SOME: dict[str, Callable[[Any, int], Any]] = {
    "read1": lambda file, _: file.read1(),
    "read1(n)": lambda file, size: file.read1(size),
    "readinto1": lambda file, size: into(file.readinto1, size)(),
    "peek": lambda file, _: file.peek(),
}

ASKED_OF_CLOSED_FILE: list[Callable[[Any, Any], object]] = [
    *(lambda f, _, c=call: c(f, 3) for call, _ in TEXT_READS.values()),
    lambda f, data: f.write(data),
    lambda f, data: f.writelines([data]),
    lambda f, _: f.flush(),
    lambda f, _: f.fileno(),
    lambda f, _: f.readable(),
    lambda f, _: f.writable(),
    lambda f, _: f.seekable(),
    lambda f, _: f.isatty(),
    lambda f, _: f.__enter__(),
    lambda f, _: iter(f),
]


WAYS_TO_CLOSE = ["file", "stream", "with", "drop", "detach"]


class Files(History):
    """A buffered or text file on one end; on the other, a plain socket."""

    @initialize(
        mode=st.sampled_from(BINARY_MODES + TEXT_MODES),
        encoding=st.sampled_from(["utf-8", *ENCODINGS]),
        newline=st.sampled_from([None, "", "\n", "\r", "\r\n"]),
        buffering=st.sampled_from([-1, -1, 1, 2, 16, 100, 5_000]),
        tiny=st.booleans(),
        timeout=st.sampled_from(TIMEOUTS),
        nonblocking=rarely,
    )
    def connected(
        self,
        mode: str,
        encoding: str,
        newline: str | None,
        buffering: int,
        tiny: bool,
        timeout: float | None,
        nonblocking: bool,
    ) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        if tiny:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.stream = UdStream.from_socket(ours)
        self.stream.timeout = self.timeout = timeout
        self.binary = "b" in mode
        self.nonblocking = nonblocking and self.binary
        self.stream.set_nonblocking(self.nonblocking)
        self.reads = mode[0] == "r" or "+" in mode
        self.writes = "w" in mode or "+" in mode
        self.encoding = "" if self.binary else encoding
        self.newline = newline
        self.line_buffered = buffering == 1 and not self.binary
        if self.binary and buffering == 1:
            buffering = -1
        self.size = buffering if buffering > 1 else 8192
        self.file: Any = self.stream.makefile(mode, buffering, encoding=encoding, newline=newline)
        # Whether it may hold back the beginning of a line: from its first timeout on.
        self.holds_back = self.nonblocking or timeout is not None
        self.incoming = model.Incoming(self.encoding, newline)
        self.outgoing = model.Outgoing(self.encoding, newline)
        # What the peer has yet to send, and what it has got.
        self.speech = codecs.getincrementalencoder(encoding)()
        self.outbox = b""
        self.arrived = self.heard = b""
        self.may_refuse = self.refused = False
        # Whether text was read ahead maybe up to the middle of a line: without a timeout, or for so many characters.
        self.ahead = False
        # Whether what is sent gets there no more; and whether a write has met with that.
        self.cut_off = self.broken = False
        # Whether a read could not send all.
        self.rest = False

    def teardown(self) -> None:
        if hasattr(self, "file"):
            if self.file is not None and not self.stream.closed:
                self._close(self.file.close)
            self._peer_reads()
            self.peer.close()
            del self.file, self.stream
        super().teardown()

    still_open = precondition(lambda self: not self.stream.closed)
    reading = precondition(lambda self: self.reads and not self.stream.closed)
    writing = precondition(lambda self: self.writes and not self.stream.closed)

    # --- the peer ---

    @still_open
    @rule(at=st.lists(which, max_size=8), cut=st.one_of(st.integers(0, 30), st.just(1 << 20)))
    def peer_sends(self, at: list[int], cut: int) -> None:
        self._peer_says(at, cut)

    def _peer_says(self, at: list[int], cut: int) -> None:
        if self.binary:
            self.outbox += self.fresh(3 * len(at))
        else:
            words = ENCODINGS[self.encoding]
            self.outbox += self.speech.encode("".join(words[each % len(words)] for each in at))
        self._peer_sends(cut)

    @still_open
    @rule(size=st.sampled_from([3_000, 9_000, 20_000, 70_000]), lines=st.booleans())
    def peer_sends_much(self, size: int, lines: bool) -> None:
        if lines:
            text = "".join(f"{number:99}\n" for number in range(size // 100))
        else:
            text = "x" * size + "\n"
        self.outbox += text.encode() if self.binary else self.speech.encode(text)
        self._peer_sends(1 << 20)

    def _peer_sends(self, size: int) -> None:
        if self.outbox and not self.incoming.ended:
            try:
                sent = self.peer.send(self.outbox[:size])
            except BlockingIOError:
                return
            self.incoming.arrive(self.outbox[:sent])
            self.heard += self.outbox[:sent]
            self.outbox = self.outbox[sent:]

    def _peer_ends(self) -> None:
        if not self.incoming.ended:
            self._peer_sends(1 << 20)
            if not self.outbox:
                self.peer.shutdown(socket.SHUT_WR)
                self.incoming.arrive(b"", ended=True)

    @rule()
    def peer_reads(self) -> None:
        self._peer_reads()

    def _peer_reads(self) -> None:
        """All that has been sent."""
        while True:
            try:
                data = self.peer.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                break
            self.arrived += data
        assert self.outgoing.taken.startswith(self.arrived), "what arrives is not what was written"

    def sent(self) -> int:
        """How much has left the file, read by the peer or not."""
        waiting: int = struct.unpack("@i", fcntl.ioctl(self.peer, termios.FIONREAD, b"\0" * 4))[0]
        return len(self.arrived) + waiting

    def unsent(self) -> int:
        left = len(self.outgoing.taken) - self.sent()
        assert left >= 0, "more was sent than was written"
        return left

    def all_sent(self) -> None:
        """Of what was written as much is on its way as the kernel takes."""
        assert self.cut_off or not self.unsent() or is_full(self.stream), "what was written is held back"

    def sent_by_read(self, waited: bool) -> None:
        """The same, after a read: it has sent first, but for a rest that had no room when a read tried before."""
        if waited or not self.rest:
            self.all_sent()
        self.rest = self.writes and self.unsent() > 0

    # --- reading ---

    @reading
    @rule(how=st.sampled_from(sorted(BINARY_READS)), size=sizes)
    def read(self, how: str, size: int) -> None:
        self._read_one(how, size)

    @reading
    @rule(
        reads=st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from(sorted(BINARY_READS)), st.integers(0, 20)),
            min_size=2,
            max_size=8,
        )
    )
    def listen(self, reads: list[tuple[int, str, int]]) -> None:
        """Several reads in a row, while the peer says so many words before each."""
        for words, how, size in reads:
            if words:
                self._peer_says([size + word for word in range(words)], 3 * words + size % 3)
            self._read_one(how, size)

    def _read_one(self, how: str, size: int) -> None:
        if how not in TEXT_READS and not self.binary:
            return
        if how == "readline(n)" and not self.binary:
            # In text, CPython's own readline(0) waits for something to come.
            size = max(size, 1)
        call, promise = BINARY_READS[how]
        before = self.incoming.pending
        try:
            promised = promise(self.incoming, size)
        except model.WouldBlock:
            promised = self._without(how, size)
        held_back = how == "readline(n)" and self._holds_back(promised)
        waits = held_back or isinstance(promised, TimeoutError)
        actual = self._read(lambda: call(self.file, size), waits)
        if self._refuses(actual, size):
            self.incoming.pending = before
            return
        if held_back and isinstance(actual, OSError):
            self.incoming.pending = before
            promised = self._stalled()
        assert plainly(actual) == plainly(promised)
        if isinstance(promised, OSError):
            self.may_refuse = self.may_refuse or self._loses(how, size)
        self.ahead = self.ahead or self.timeout is None or how == "read(n)"
        self.sent_by_read(isinstance(promised, OSError))

    @precondition(lambda self: self.binary and self.reads and not self.stream.closed)
    @rule(how=st.sampled_from(sorted(SOME)), size=st.integers(1, 20))
    def read_some(self, how: str, size: int) -> None:
        before = self.incoming.pending
        promised: Any = b"something"
        if not before and not self.incoming.ended:
            promised = self._stalled()
        waits = isinstance(promised, TimeoutError)
        actual = self._read(lambda: SOME[how](self.file, size), waits)
        if self._refuses(actual, size):
            return
        if isinstance(promised, OSError):
            assert plainly(actual) == plainly(promised)
            self.may_refuse = self.may_refuse or self._loses(how, size)
        else:
            assert isinstance(before, bytes) and before.startswith(actual)
            assert bool(actual) == bool(before)
            assert "1" not in how or how == "read1" or len(actual) <= size
            if how != "peek":
                self.incoming.take(len(actual))
        self.sent_by_read(isinstance(promised, OSError))

    def _holds_back(self, promised: Any) -> bool:
        """
        Whether a file that reads with care may keep this part of a line.

        It gives its readers whole lines only, and cannot know of a limit.
        """
        return self.holds_back and bool(promised) and not isinstance(promised, OSError)

    def _read(self, call: Callable[[], Any], waits: bool) -> Any:
        """Make the call; if it would wait for ever, with a timeout."""
        if waits and (self.timeout is None or self.timeout > 1):
            self._set_timeout(INSTANT)
        try:
            return attempt(call)
        finally:
            if waits:
                self.stream.timeout = self.timeout

    def _stalled(self) -> OSError:
        return model.not_now() if self.nonblocking else model.timed_out()

    def _without(self, how: str, size: int) -> Any:
        """What is promised of a read that would have to wait for more."""
        if self.nonblocking and how in ("read()", "read(n)", "readinto"):
            # It makes do with what there is.
            return self.incoming.take(len(self.incoming.pending)) or None
        return self._stalled()

    def _loses(self, how: str, size: int) -> bool:
        """Whether a read that fails may be the last."""
        if self.binary:
            return len(self.incoming.pending) > 60_000
        return (
            self.ahead
            or self.encoding == "utf-16"
            or how in ("readlines", "readlines(n)")
            or (how == "read(n)" and size > 1)
            or (not self.newline and "\r" in self.said())
            or len(self.incoming.pending) > 30_000
        )

    def said(self) -> str:
        """All that the peer has said."""
        return self.heard.decode(self.encoding, "ignore")

    def _refuses(self, actual: Any, size: int) -> bool:
        """Whether the file says that it cannot go on; where it has to, it must, for good."""
        refuses = plainly(actual) == plainly(model.refused())
        if refuses:
            assert "cannot read on" in str(actual)
            assert self.may_refuse, "nothing was lost, and yet the file refuses to read on"
            self.refused = True
        elif self.refused:
            assert not size, "the file read on, with a loss in the middle"
        return refuses or self.refused

    # --- writing ---

    @writing
    @rule(size=sizes, line=st.booleans(), how=st.sampled_from(["write", "write", "writelines"]))
    def write(self, size: int, line: bool, how: str) -> None:
        data: Any = self.fresh(size)
        if not self.binary:
            data = data.decode().replace("\n", "|") + "\n" * line + ENCODINGS[self.encoding][3]
        call = lambda: self.file.write(data)  # noqa: E731
        if how == "writelines":
            call = lambda: self.file.writelines([data]) or len(data)  # noqa: E731
        before = self.unsent()
        actual = self._send(call, 4 * size + 16)
        if isinstance(actual, OSError):
            expected = model.broken_pipe() if self.cut_off else self._stalled()
            assert plainly(actual) == plainly(expected)
            assert self.cut_off or is_full(self.stream), "a write failed though there was room"
            self.broken = self.cut_off
            return
        assert actual == len(data)
        self.outgoing.take(data)
        self.rest = self.rest and not data
        if not self.cut_off:
            if self.line_buffered and line:
                self.all_sent()
            elif before + 4 * size + 16 < self.size and not self.line_buffered and not before:
                assert self.unsent() or not data, "what was written is sent though the buffer has room"

    @still_open
    @rule()
    def flush(self) -> None:
        actual = self._send(self.file.flush, 0)
        left = self.unsent()
        if self.cut_off and left:
            assert plainly(actual) == plainly(model.broken_pipe())
        elif self.broken:
            # What a failed write brought may or may not be tried again: it can only fail.
            assert actual is None or plainly(actual) == plainly(model.broken_pipe())
        elif left:
            assert plainly(actual) == plainly(self._stalled())
            assert is_full(self.stream), "flush failed though there was room"
        else:
            assert actual is None

    def _send(self, call: Callable[[], Any], size: int) -> Any:
        """Make a call that may send all that was written, and so much more, without waiting for ever."""
        waits = not self.cut_off and not fits(self.stream, self.unsent() + size)
        brief = waits and (self.timeout is None or self.timeout > 1)
        if brief:
            self.stream.timeout = INSTANT
        try:
            return attempt(call)
        finally:
            if brief and not self.stream.closed:
                self.stream.timeout = self.timeout

    # --- modes and ends ---

    @still_open
    @rule(seconds=st.sampled_from(TIMEOUTS))
    def set_timeout(self, seconds: float | None) -> None:
        self.timeout = seconds
        self._set_timeout(seconds)

    def _set_timeout(self, seconds: float | None) -> None:
        self.stream.timeout = seconds
        self.holds_back = self.holds_back or seconds is not None

    @still_open
    @rule(flag=st.booleans())
    def set_nonblocking(self, flag: bool) -> None:
        # Text never is.
        if self.binary:
            self.nonblocking = flag
            self.stream.set_nonblocking(flag)
            self.holds_back = self.holds_back or flag

    @still_open
    @rule()
    def ask(self) -> None:
        file, stream = self.file, self.stream
        assert not file.closed and file.fileno() == file.name == stream.fileno()
        assert file.readable() == self.reads and file.writable() == self.writes
        assert not file.seekable() and not file.isatty()
        assert (file.raw if self.binary else file.buffer.raw) is stream
        refused: list[Callable[[], object]] = []
        if not self.reads:
            refused += [lambda: file.read(1), file.readline, lambda: next(file), file.readlines]
        if not self.writes:
            refused += [lambda: file.write(b"" if self.binary else "")]
        for call in refused:
            with pytest.raises(io.UnsupportedOperation):
                call()

    @still_open
    @rule(
        what=st.sampled_from(
            [None] * 18 + ["peer ends", "peer hears no more", "no more is sent", *WAYS_TO_CLOSE]
        )
    )
    def something_ends(self, what: str | None) -> None:
        if what == "peer ends":
            self._peer_ends()
        elif what in ("peer hears no more", "no more is sent"):
            self._peer_reads()
            if what == "no more is sent":
                self.stream.shutdown(Shutdown.WRITE)
            else:
                self.peer.shutdown(socket.SHUT_RD)
            self.cut_off = True
        elif what:
            self._end(what)

    def _end(self, how: str) -> None:
        if how == "stream":
            # What the file had not sent is lost with its stream.
            self.stream.close()
            return
        if how == "detach":
            self._detach()
            return
        arrives = not self.broken and (
            not self.unsent() or (not self.cut_off and fits(self.stream, self.unsent()))
        )
        if how == "drop" and arrives:
            self._close(self._drop)
        elif how == "with":
            self._close(lambda: self.file.__exit__(None, None, None))
        else:
            self._close(self.file.close)

    def _detach(self) -> None:
        """Give the descriptor away: what was written is sent first, or nothing has happened."""
        actual = self._send(self.stream.detach, 0)
        if isinstance(actual, OSError):
            expected = model.broken_pipe() if self.cut_off else self._stalled()
            assert (self.unsent() or self.broken) and plainly(actual) == plainly(expected)
            assert not self.stream.closed and not self.file.closed
        else:
            os.close(actual)
            assert self.stream.closed and (self.file.closed or self.file is None)
            assert self.broken or not self.unsent(), "given away, and not all was sent"

    def _drop(self) -> None:
        with pytest.warns(ResourceWarning, match="unclosed"):
            self.file = None
        assert self.stream.closed, "something keeps a dropped file from being closed"

    def _close(self, call: Callable[[], Any]) -> None:
        """Close the file: what was written arrives, or the call says that it does not."""
        full = is_full(self.stream)
        actual = self._send(call, 0)
        assert self.stream.closed
        left = self.unsent()
        if isinstance(actual, OSError):
            expected = model.broken_pipe() if self.cut_off else self._stalled()
            assert (left or self.broken) and plainly(actual) == plainly(expected)
        else:
            assert not left or not self.writes or full, "closed, and not all was sent"

    @precondition(lambda self: self.stream.closed and self.file is not None)
    @rule(ask=st.sampled_from(ASKED_OF_CLOSED_FILE))
    def use_after_close(self, ask: Callable[[Any, Any], object]) -> None:
        self.file.close()
        assert self.file.closed and "closed" in repr(self.file)
        with pytest.raises(ValueError):  # noqa: PT011
            ask(self.file, b"x" if self.binary else "x")


def wrong_value() -> None:
    raise ValueError


@pytest.fixture(autouse=True)
def no_endless_wait() -> Iterator[None]:
    """Turn a call that hangs into one that fails."""

    def give_up(*_: object) -> None:
        raise AssertionError("it still waits after many seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run(machine: type[History], histories: int, calls: int, record: Callable[[str, object], None]) -> None:
    machine.tally.clear()
    chosen = settings(
        max_examples=AT_RANDOM or histories,
        stateful_step_count=calls,
        derandomize=not AT_RANDOM,
        database=None,
        deadline=None,
        print_blob=True,
        # One is enough, and where calls hang each takes its time.
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)
    record("random histories run", machine.tally["histories"])
    record("calls compared with a model", machine.tally["calls"])


def test_streams_keep_their_word_in_a_few_histories(record_property: Callable[[str, object], None]) -> None:
    """Bytes, descriptors, credentials and errors are what was promised, after any calls in any order."""
    run(Streams, QUICK, QUICK_CALLS, record_property)


@pytest.mark.long
def test_streams_keep_their_word_in_many_histories(record_property: Callable[[str, object], None]) -> None:
    """The same, for as many histories as there is time for."""
    run(Streams, MANY, CALLS, record_property)


def test_files_keep_their_word_in_a_few_histories(record_property: Callable[[str, object], None]) -> None:
    """A buffered or text file loses, doubles and holds back nothing, after any calls in any order."""
    run(Files, QUICK, QUICK_CALLS, record_property)


@pytest.mark.long
def test_files_keep_their_word_in_many_histories(record_property: Callable[[str, object], None]) -> None:
    """The same, for as many histories as there is time for."""
    run(Files, MANY, CALLS, record_property)
