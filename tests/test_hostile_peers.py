"""Peers that mean no good, and ones that die: no descriptor leaks, no byte is lost, nothing hangs."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from children import child, forked
from descriptors import fd_count
from meanwhile import PATIENCE, on_alarm

import udstream
from udstream import UdStream, UdStreamListener, _platform, ancillary
from udstream.ancillary import FileDescriptors

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has children under other users")

Pair = tuple[UdStream, UdStream]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected streams, with a timeout."""
    one, other = UdStream.pair()
    with one, other:
        one.timeout = other.timeout = PATIENCE
        yield one, other


@contextmanager
def flat() -> Iterator[None]:
    """No more descriptors are open at the end than at the beginning."""
    before = fd_count()
    yield
    assert fd_count() == before


class Canary:
    """The write end of a pipe: the read end tells when no process, and no socket's queue, has it any more."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for fd in (self.read, self.write):
            if fd >= 0:
                os.close(fd)

    def send(self, stream: UdStream, data: bytes = b"x", times: int = 1) -> None:
        """Send it, and have it no more."""
        stream.send_fds(data, [self.write] * times)
        os.close(self.write)
        self.write = -1

    def is_gone(self, patience: float = PATIENCE) -> bool:
        poller = select.poll()
        poller.register(self.read, select.POLLIN)
        return bool(poller.poll(patience * 1000)) and os.read(self.read, 1) == b""


def fill_table(room: int) -> None:
    """Have room for just so many more descriptors."""
    soft = max(map(int, os.listdir("/proc/self/fd"))) + 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    mine: list[int] = []
    with pytest.raises(OSError, match="Too many open files"):
        while True:
            mine.append(os.dup(0))
    for fd in mine[:room]:
        os.close(fd)


# --- floods of descriptors ---

READERS: dict[str, Callable[[UdStream], Any]] = {
    "raw": lambda stream: stream,
    "buffered": lambda stream: stream.makefile("rb"),
    "buffered, small": lambda stream: stream.makefile("rb", 7),
    "buffered rw": lambda stream: stream.makefile("rwb"),
    "text": lambda stream: stream.makefile("r"),
    "text rw": lambda stream: stream.makefile("rw"),
}


def as_bytes(line: str | bytes) -> bytes:
    return line.encode() if isinstance(line, str) else line


@pytest.mark.parametrize("name", READERS)
def test_a_program_that_only_calls_readline(name: str) -> None:
    """Descriptors sent with the lines that a program reads, 253 with each, never get into it."""
    with flat(), Canary() as canary:
        one, other = UdStream.pair()
        with one, READERS[name](other) as file:
            canary.send(one, b"first\n")
            assert as_bytes(file.readline()) == b"first\n"
            assert canary.is_gone()
            before = fd_count()
            for number in range(50):
                line = b"line %d\n" % number
                one.send_fds(line, [0] * 253)
                one.send_fds(line, [])
                for _ in range(2):
                    assert as_bytes(file.readline()) == line
                assert fd_count() == before


@pytest.mark.parametrize("name", READERS)
def test_a_flood_for_one_that_collects(name: str) -> None:
    """With collect_ancillary all of them are in collected, owned; closing that closes each."""
    with flat():
        one, other = UdStream.pair()
        with one, READERS[name](other) as file:
            before = fd_count()
            other.collect_ancillary = True
            lines = [b"%d\n" % number for number in range(40)]
            for number, line in enumerate(lines):
                one.send_fds(line, [0] * (number % 5))
            for line in lines:
                assert as_bytes(file.readline()) == line
            came = [len(received.fds) for _, received in other.collected]
            assert came == [number % 5 for number in range(40) if number % 5]
            starts = [len(b"".join(lines[:number])) for number in range(40) if number % 5]
            # A read begins at the latest with the byte that descriptors came with.
            offsets = [offset for offset, _ in other.collected]
            assert offsets == sorted(offsets)
            assert all(offset <= start for offset, start in zip(offsets, starts, strict=True))
            assert fd_count() == before + sum(came)
            while other.collected:
                other.collected.popleft()[1].close()
            assert fd_count() == before


def test_collected_and_dropped() -> None:
    """What was collected and never looked at is closed when the stream goes, with a ResourceWarning."""
    with flat(), Canary() as canary:
        one, other = UdStream.pair()
        other.collect_ancillary = True
        canary.send(one)
        one.close()
        assert other.read(10) == b"x"
        other.close()
        with pytest.warns(ResourceWarning, match="unclosed <udstream.FileDescriptors"):
            del other
            gc.collect()
        assert canary.is_gone()


@pytest.mark.parametrize("count", [1, 2, 252, 253])
def test_as_many_as_the_kernel_takes(pair: Pair, count: int) -> None:
    """Up to 253 at once arrive, all of them."""
    one, other = pair
    with flat():
        with socket.socket(fileno=os.dup(one.fileno())) as sock:
            socket.send_fds(sock, [b"x"], [0] * count)
        data, fds = other.recv_fds(10)
        with fds:
            assert (data, len(fds)) == (b"x", count)


def test_more_than_the_kernel_takes(pair: Pair) -> None:
    """254 are refused before anything is sent, whoever sends them, and in whatever pieces."""
    one, other = pair
    other.set_nonblocking(True)
    with flat():
        raw = (socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(4 * 254))
        sends: tuple[Callable[[], int], ...] = (
            lambda: one.send_fds(b"x", [0] * 254),
            lambda: one.send_ancillary(b"x", [[0] * 254]),
            lambda: one.send_ancillary(b"x", [[0] * 200, [0] * 54]),
            lambda: one.send_ancillary(b"x", [raw]),
        )
        for send in sends:
            with pytest.raises(ValueError, match=r"254 descriptors .* 253"):
                send()
        assert other.read(1) is None


# --- truncation ---


@pytest.mark.parametrize("sent", [0, 1, 2, 3, 4, 5, 252, 253])
def test_truncation_at_every_max_fds(pair: Pair, sent: int) -> None:
    """At most max_fds are kept, the rest closed, and that is said; the bytes are all there."""
    one, other = pair
    limits = range(sent + 2) if sent < 10 else (0, 1, 2, 251, 252, 253, 254)
    for limit in limits:
        kept = min(sent, limit)
        with flat(), Canary() as canary:
            buffer = bytearray(10)
            one.send_fds(b"bytes", [0] * sent)
            with other.recv_ancillary(buffer, max_fds=limit) as received:
                assert (len(received.fds), received.truncated) == (kept, sent > limit)
                assert bytes(buffer[: received.nbytes]) == b"bytes"

            canary.send(one, b"bytes", sent) if sent else one.write_all(b"bytes")
            if sent > limit:
                with pytest.raises(OSError, match=f"max_fds={limit} ") as caught:
                    other.recv_fds(10, limit)
                assert caught.value.errno == errno.EMSGSIZE
                data, fds = caught.value.data, caught.value.fds  # type: ignore[attr-defined]
                del caught
            else:
                data, fds = other.recv_fds(10, limit)
            with fds:
                assert (data, len(fds)) == (b"bytes", kept)
            if sent:
                assert canary.is_gone()


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4])
def test_truncation_at_the_limit_of_open_files(pair: Pair, room: int) -> None:
    """At RLIMIT_NOFILE the bytes come all the same, with as many descriptors as fit; the error names the limit."""
    one, other = pair

    def run() -> None:
        with Canary() as canary:
            canary_read = canary.read
            fill_table(room)
            buffer = bytearray(10)
            for _ in range(3):
                one.send_fds(b"bytes", [canary.write] * 3)
                with other.recv_ancillary(buffer) as received:
                    assert bytes(buffer[: received.nbytes]) == b"bytes"
                    assert len(received.fds) == min(room, 3)
                    assert received.truncated == (room < 3)

                one.send_fds(b"bytes", [canary.write] * 3)
                if room < 3:
                    with pytest.raises(OSError, match=r"limit of open files .*RLIMIT_NOFILE") as caught:
                        other.recv_fds(10)
                    assert caught.value.errno == errno.EMFILE
                    data, fds = caught.value.data, caught.value.fds  # type: ignore[attr-defined]
                else:
                    data, fds = other.recv_fds(10)
                with fds:
                    assert (data, len(fds)) == (b"bytes", min(room, 3))
            os.close(canary.write)
            canary.write = -1
            assert canary.is_gone()
            assert canary.read == canary_read

    with child(run):
        pass


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("collecting", [False, True])
def test_plain_reads_at_the_limit_of_open_files(name: str, collecting: bool) -> None:
    """A program at its limit goes on reading lines; if it collects, what it collected says what was lost."""
    one, other = UdStream.pair()

    def run() -> None:
        with READERS[name](other) as file:
            other.collect_ancillary = collecting
            fill_table(2)
            for number in range(20):
                one.send_fds(b"line %d\n" % number, [0] * 3)
                assert as_bytes(file.readline()) == b"line %d\n" % number
                for _offset, received in other.collected:
                    assert received.truncated
                    assert len(received.fds) == 2
                    received.close()
                assert len(other.collected) == collecting
                other.collected.clear()

    with one, other, child(run):
        pass


def test_what_comes_at_the_limit_can_be_used() -> None:
    """As a file, a stream or a socket, even if the program has no descriptor left, nor used any of it before."""
    code = """if True:
        import os, resource, sys
        from udstream import UdStream
        one, other = UdStream.pair()
        extra = UdStream.pair()
        one.send_fds(b"x", [extra[0], extra[0], extra[0]])
        mine = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        try:
            while True:
                mine.append(os.dup(0))
        except OSError:
            pass
        for fd in mine[:3]:
            os.close(fd)
        data, fds = other.recv_fds(1)
        with fds, fds.stream(0) as stream, fds.file(1, "wb", 0) as file:
            file.write(b"from the file")
            assert extra[1].read(100) == b"from the file"
        # What was closed makes room for the modules that a socket needs.
        for end in one, other, *extra:
            end.close()
        print(data.decode())
    """
    path = str(Path(udstream.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("x\n", "")


# --- every split ---

PAYLOAD = b"abcdef"


def by_recv_ancillary(stream: UdStream, size: int) -> tuple[bytes, list[int]]:
    buffer = bytearray(size)
    received = stream.recv_ancillary(buffer)
    return bytes(buffer[: received.nbytes]), received.fds.take()


def by_scattering(stream: UdStream, size: int) -> tuple[bytes, list[int]]:
    buffers = [bytearray(1) for _ in range(size)]
    received = ancillary.recv_ancillary(stream, buffers)
    return b"".join(buffers)[: received.nbytes], received.fds.take()


def by_recv_fds(stream: UdStream, size: int) -> tuple[bytes, list[int]]:
    data, fds = stream.recv_fds(size)
    return data, fds.take()


def by_collecting(stream: UdStream, size: int) -> tuple[bytes, list[int]]:
    stream.collect_ancillary = True
    data = stream.read(size)
    assert data is not None
    return data, collected(stream)


def by_collecting_readv(stream: UdStream, size: int) -> tuple[bytes, list[int]]:
    stream.collect_ancillary = True
    buffers = [bytearray(1) for _ in range(size)]
    nbytes = stream.readv(buffers)
    return b"".join(buffers)[:nbytes], collected(stream)


def collected(stream: UdStream) -> list[int]:
    fds = [fd for _, received in stream.collected for fd in received.fds.take()]
    stream.collected.clear()
    return fds


def by_plain_reads(stream: UdStream, size: int) -> tuple[bytes, list[int]]:
    data = stream.read(size)
    assert data is not None
    return data, []


SPLITTERS = [
    by_recv_ancillary,
    by_scattering,
    by_recv_fds,
    by_collecting,
    by_collecting_readv,
    by_plain_reads,
]


@pytest.mark.parametrize("receive", SPLITTERS)
def test_every_split(receive: Callable[[UdStream, int], tuple[bytes, list[int]]]) -> None:
    """However the sender parts the bytes, with and without descriptors, and the reader reads: all arrive, in order."""
    files = [os.memfd_create(str(number)) for number in range(len(PAYLOAD))]
    inodes = [os.fstat(fd).st_ino for fd in files]
    splits = range(2 ** (len(PAYLOAD) - 1))
    with flat():
        for split, odd, size in itertools.product(splits, (0, 1), (1, 2, 3, 4, 7)):
            one, other = UdStream.pair()
            with one, other:
                cuts = [0, *(i for i in range(1, len(PAYLOAD)) if split >> (i - 1) & 1), len(PAYLOAD)]
                sent = []
                for number, (start, end) in enumerate(itertools.pairwise(cuts)):
                    carried = [start] if number % 2 == odd else []
                    one.send_fds(PAYLOAD[start:end], [files[index] for index in carried])
                    sent += [inodes[index] for index in carried]
                one.shutdown(udstream.Shutdown.WRITE)
                came, got = b"", []
                while True:
                    data, fds = receive(other, size)
                    came += data
                    for fd in fds:
                        got.append(os.fstat(fd).st_ino)
                        os.close(fd)
                    if not data:
                        break
                assert came == PAYLOAD
                assert got == ([] if receive is by_plain_reads else sent)
    for fd in files:
        os.close(fd)


# --- garbage ---


class Fake:
    """A socket whose kernel delivers these control messages with one byte."""

    def __init__(self, cmsgs: Sequence[tuple[int, int, bytes]], flags: int = 0) -> None:
        self.cmsgs = list(cmsgs)
        self.flags = flags
        self.room = 0

    def recvmsg_into(self, buffers: Sequence[Any], room: int = 0, flags: int = 0) -> Any:
        buffers[0][:1] = b"x"
        self.room = room
        return 1, self.cmsgs, self.flags, None

    def recvmsg(self, size: int, room: int = 0, flags: int = 0) -> Any:
        self.room = room
        return b"x", self.cmsgs, self.flags, None


UNKNOWN = [
    pytest.param((socket.SOL_SOCKET, 29, struct.pack("@qq", 1, 2)), id="SO_TIMESTAMP"),
    pytest.param((socket.SOL_SOCKET, 84, struct.pack("@i", 3)), id="SCM_INQ"),
    pytest.param((socket.SOL_SOCKET, 9999, b""), id="a kind to come"),
    pytest.param((socket.SOL_SOCKET, 9999, b"x" * 4000), id="a long one"),
    pytest.param((socket.IPPROTO_IP, 1, struct.pack("@i", 0)), id="SCM_RIGHTS of another level"),
    pytest.param((socket.IPPROTO_IP, 4, struct.pack("@i", 0)), id="SCM_PIDFD of another level"),
    pytest.param((socket.SOL_SOCKET, 2, b"x" * 11), id="credentials too short"),
    pytest.param((socket.SOL_SOCKET, 2, b"x" * 13), id="credentials too long"),
    pytest.param((socket.SOL_SOCKET, 4, struct.pack("@i", -1)), id="no pidfd"),
    pytest.param((socket.SOL_SOCKET, 4, b"xyz"), id="pidfd too short"),
]


@pytest.mark.parametrize("cmsg", UNKNOWN)
def test_unknown_kinds_are_handed_on(cmsg: tuple[int, int, bytes]) -> None:
    """A control message of an unknown kind, or garbled, is handed on as it is, and harms none beside it."""
    credentials = (socket.SOL_SOCKET, 2, struct.pack("@iII", 1, 2, 3))
    for place in range(3):
        with flat():
            fd = os.dup(0)
            cmsgs = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", fd)), credentials]
            cmsgs.insert(place, cmsg)
            with ancillary._receive(Fake(cmsgs), bytearray(5), 253) as received:
                assert received.ancillary == [cmsg]
                assert list(received.fds) == [fd]
                assert received.credentials == (1, 2, 3)
                assert not received.truncated
                assert not received.pidfd


def test_a_kind_of_the_kernel_that_is_not_decoded(pair: Pair) -> None:
    """What the kernel itself adds and this module does not know (SO_INQ, Linux 6.17) is handed on."""
    one, other = pair
    sock = socket.socket(fileno=os.dup(other.fileno()))
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, 84, 1)
        except OSError:
            pytest.skip("this kernel has no SO_INQ for Unix sockets")
    one.send_fds(b"bytes", [0])
    with flat(), other.recv_ancillary(bytearray(2)) as received:
        assert received.ancillary == [(socket.SOL_SOCKET, 84, struct.pack("@i", 3))]
        assert len(received.fds) == 1
    other.collect_ancillary = True
    assert other.read(10) == b"tes"
    assert [item.ancillary for _, item in other.collected] == [
        [(socket.SOL_SOCKET, 84, struct.pack("@i", 0))]
    ]


def test_pidfds_that_come_unasked(pair: Pair) -> None:
    """With SO_PASSPIDFD each message brings a descriptor of its own: owned, close-on-exec, closed."""
    one, other = pair
    with socket.socket(fileno=os.dup(other.fileno())) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, 76, 1)
        except OSError:
            pytest.skip("this kernel has no SO_PASSPIDFD")
    for _ in range(20):
        with flat():
            one.send_fds(b"x", [0])
            with other.recv_ancillary(bytearray(5), max_fds=0) as received:
                assert (len(received.pidfd), len(received.fds)) == (1, 0)
                assert not os.get_inheritable(received.pidfd[0])
        with flat():
            one.write_all(b"x")
            other.recv_fds(5)[1].close()
        with flat():
            one.write_all(b"x")
            assert other.read(5) == b"x"
        with flat():
            other.collect_ancillary = True
            one.write_all(b"x")
            assert other.read(5) == b"x"
            other.collected.popleft()[1].close()
            other.collect_ancillary = False


def test_control_data_at_random() -> None:
    """Whatever comes, in whatever order: every descriptor in it is owned and closed, and nothing raises."""
    rng = random.Random(11)
    with flat():
        for _ in range(1500):
            cmsgs: list[tuple[int, int, bytes]] = []
            sent = 0
            for _ in range(rng.randrange(6)):
                if rng.random() < 0.4:
                    count = rng.randrange(4)
                    data = struct.pack(f"@{count}i", *(os.dup(0) for _ in range(count)))
                    cmsgs.append(
                        (socket.SOL_SOCKET, socket.SCM_RIGHTS, data + rng.randbytes(rng.randrange(4)))
                    )
                    sent += count
                else:
                    kind = rng.choice([2, 3, 5, 29, 84, -1, 2**31 - 1])
                    level = rng.choice([socket.SOL_SOCKET, socket.SOL_SOCKET, 0, 41])
                    cmsgs.append((level, kind, rng.randbytes(rng.choice([0, 1, 4, 11, 12, 13, 300]))))
            flags = socket.MSG_CTRUNC if rng.random() < 0.2 else 0
            limit = rng.choice([0, 1, 2, 253])
            with ancillary._receive(Fake(cmsgs, flags), bytearray(5), limit) as received:
                assert received.nbytes == 1
                assert len(received.fds) == min(sent, limit)
                assert received.truncated == (bool(flags) or sent > limit)
                known = [c for c in cmsgs if c[0] == socket.SOL_SOCKET and c[1] in (1, 3)]
                creds = [c for c in cmsgs if c[0] == socket.SOL_SOCKET and c[1] == 2 and len(c[2]) == 12]
                assert len(received.ancillary) == len(cmsgs) - len(known) - len(creds)


def test_zero_length_payloads(pair: Pair) -> None:
    """Messages without a byte, which the kernel drops, are neither an end of file nor a leak."""
    one, other = pair
    with flat(), Canary() as canary, socket.socket(fileno=os.dup(one.fileno())) as sender:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", canary.write))]
        one.write_all(b"first")
        for _ in range(20):
            sender.sendmsg([], rights)
            sender.sendmsg([b"", b""], rights)
            sender.send(b"")
        os.close(canary.write)
        canary.write = -1
        assert canary.is_gone()
        with other.recv_ancillary(bytearray(100)) as received:
            assert received.nbytes == 5
            assert not received.fds
            assert not received.truncated
        other.set_nonblocking(True)
        with pytest.raises(BlockingIOError):
            other.recv_ancillary(bytearray(100))
        assert other.read(1) is None


# --- peers that die ---


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_peer_that_dies_in_a_message(pair: Pair, how: str) -> None:
    """What it had sent, bytes and descriptors, arrives; then it is the end of file, and no hang."""
    one, other = pair

    def run() -> None:
        one.send_fds(b"half a mess", [0, 0])
        os.kill(os.getpid(), signal.SIGKILL) if how == "kill" else os._exit(0)

    for receive in (
        lambda: other.recv_fds(4),
        lambda: other.recv_fds(100),
        lambda: by_recv_ancillary(other, 100),
    ):
        os.waitpid(forked(run), 0)
        with flat():
            data, fds = receive()
            assert len(fds) == 2
            FileDescriptors(fds.take() if isinstance(fds, FileDescriptors) else fds).close()
            while len(data) < len(b"half a mess"):
                more, none = other.recv_fds(100)
                assert not none
                data += more
            assert data == b"half a mess"
    one.close()
    assert other.recv_fds(100)[0] == b""
    with other.recv_ancillary(bytearray(5)) as received:
        assert (received.nbytes, len(received.fds), received.truncated) == (0, 0, False)


def test_reads_of_a_message_that_never_ends() -> None:
    """read_exact says what came before the peer died; readline and text give the rest, then the end."""
    for name, reader in READERS.items():
        one, other = UdStream.pair()
        with flat_after(one, other):
            with child(lambda one=one: one.send_fds(b"whole\nhalf", [0] * 253)):  # type: ignore[misc]
                pass
            one.close()
            if name == "raw":
                with pytest.raises(EOFError) as caught:
                    other.read_exact(100)
                assert caught.value.partial == b"whole\nhalf"  # type: ignore[attr-defined]
                other.close()
            else:
                with reader(other) as file:
                    assert [as_bytes(line) for line in file] == [b"whole\n", b"half"]
                    assert not file.readline()


@contextmanager
def flat_after(*streams: UdStream) -> Iterator[None]:
    """As flat(), for a body that closes these streams."""
    before = fd_count() - len(streams)
    yield
    assert fd_count() == before


def test_a_peer_that_ends_with_our_bytes_unread(pair: Pair) -> None:
    """It makes the connection reset: what it had sent before still arrives first, with its descriptors."""
    one, other = pair
    other.write_all(b"never read")
    one.send_fds(b"last words", [0])
    one.close()
    with flat():
        data, fds = other.recv_fds(100)
        with fds:
            assert (data, len(fds)) == (b"last words", 1)
        with pytest.raises(ConnectionResetError):
            other.recv_fds(100)
        assert other.recv_fds(100)[0] == b""
        with pytest.raises(BrokenPipeError):
            other.send_fds(b"x", [0])
        with pytest.raises(BrokenPipeError):
            other.send_ancillary(b"x", [[0]])


# --- sockets in sockets ---


def named(stream: UdStream, name: str) -> None:
    """Give a socket a name, by which /proc/net/unix can tell whether it is there."""
    with socket.socket(fileno=os.dup(stream.fileno())) as sock:
        sock.bind(f"\0{name}")


def is_freed(name: str) -> bool:
    """Whether the kernel frees the socket: its collector runs when it wants, but soon after a close."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if f"@{name}\n" not in Path("/proc/net/unix").read_text(errors="replace"):
            return True
        for end in UdStream.pair():
            end.close()
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("cycle", ["itself", "both", "crosswise"])
def test_sockets_that_hold_each_other_are_freed(cycle: str) -> None:
    """A socket sent through itself, or two through each other, unread and closed: nothing of them is left."""
    name = f"udstream-cycle-{os.getpid()}-{cycle}"
    with flat():
        one, other = UdStream.pair()
        named(one, name)
        assert f"@{name}\n" in Path("/proc/net/unix").read_text(errors="replace")
        with one, other:
            if cycle == "itself":
                # Sent from here, it waits in the queue of the other end, of which it is the peer.
                other.send_fds(b"x", [one])
            elif cycle == "both":
                one.send_fds(b"x", [one, other])
            else:
                one.send_fds(b"x", [other])
                other.send_fds(b"x", [one])
    assert is_freed(name)


def test_a_socket_received_through_itself(pair: Pair) -> None:
    """It is one more descriptor of the same socket; closing that leaves the stream open."""
    one, other = pair
    with flat():
        one.send_fds(b"x", [one, other])
        _, fds = other.recv_fds(1)
        with fds:
            assert os.path.sameopenfile(fds[1], other.fileno())
            with fds.stream(1) as stream:
                one.write_all(b"to the copy")
                assert stream.read(100) == b"to the copy"
        one.write_all(b"to the stream")
        assert other.read(100) == b"to the stream"


def test_a_chain_of_sockets() -> None:
    """Sockets in the queue of sockets in the queue of sockets: closed unread, all are freed."""
    with flat(), Canary() as canary, ExitStack() as stack:
        ends = [UdStream.pair() for _ in range(20)]
        for pair in ends:
            for end in pair:
                stack.enter_context(end)
        canary.send(ends[0][0])
        for (_, inner), (outer, _) in itertools.pairwise(ends):
            outer.send_fds(b"x", [inner])
            inner.close()
        assert not canary.is_gone(0)
        ends[-1][1].close()
        assert canary.is_gone()


# --- never read ---


@pytest.mark.parametrize("how", ["closed", "detached", "dropped", "shut down and closed", "collecting"])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_stream_that_is_closed_unread(how: str) -> None:
    """Descriptors that nobody ever read are closed by the kernel along with the stream."""
    with flat(), Canary() as canary:
        one, other = UdStream.pair()
        canary.send(one, times=253)
        assert not canary.is_gone(0)
        if how == "detached":
            os.close(other.detach())
        elif how == "dropped":
            del other
            gc.collect()
        else:
            if how == "collecting":
                other.collect_ancillary = True
            if how.startswith("shut"):
                other.shutdown(udstream.Shutdown.BOTH)
            other.close()
        assert canary.is_gone()
        one.close()


def test_a_connection_that_is_never_accepted(folder: Path) -> None:
    """Descriptors sent to a listener that never accepts go with it."""
    with flat(), Canary() as canary:
        with UdStreamListener.bind(folder / "s"):
            with UdStream.connect(folder / "s") as client:
                canary.send(client)
            assert not canary.is_gone(0)
        assert canary.is_gone()


@pytest.mark.parametrize("refused", [lambda peer: False, set()])
def test_a_connection_that_is_refused(folder: Path, refused: Any) -> None:
    """Nor do those of a peer that authorize refuses get in."""
    with Canary() as canary, UdStreamListener.bind(folder / "s", authorize=refused) as listener:
        listener.timeout = 0.05
        with UdStream.connect(folder / "s") as client:
            canary.send(client)
            with pytest.raises(TimeoutError):
                listener.accept()
            assert canary.is_gone()


# --- the limit of descriptors in flight ---


@root
def test_too_many_in_flight() -> None:
    """A user's limit of descriptors on their way: ETOOMANYREFS that says so, nothing sent; read on, it goes on."""

    def run() -> None:
        os.setgroups([])
        os.setgid(54399)
        os.setuid(54399)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        one, other = UdStream.pair()
        with one, other:
            sent = 0
            with pytest.raises(OSError, match=r"in flight.*RLIMIT_NOFILE") as caught:
                for _ in range(10_000):
                    one.send_fds(b"x", [0] * 10)
                    sent += 1
            assert caught.value.errno == errno.ETOOMANYREFS
            assert caught.value.nbytes == 0  # type: ignore[attr-defined]
            with pytest.raises(OSError, match="in flight"):
                one.send_ancillary(b"x", [[0] * 10])
            for _ in range(sent):
                data, fds = other.recv_fds(10)
                with fds:
                    assert (data, len(fds)) == (b"x", 10)
            one.send_fds(b"again", [0])
            data, fds = other.recv_fds(10)
            with fds:
                assert (data, len(fds)) == (b"again", 1)

    with child(run):
        pass


# --- signals ---


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("receive", [by_recv_fds, by_recv_ancillary, by_scattering, by_collecting])
def test_signals_that_do_not_raise(receive: Callable[..., tuple[bytes, list[int]]], timed: bool) -> None:
    """Signals while a call waits, and while it does not, lose no byte and no descriptor."""
    one, other = UdStream.pair()
    other.timeout = PATIENCE if timed else None
    signals = 0

    def handler(number: int, frame: Any) -> None:
        nonlocal signals
        signals += 1

    def run() -> None:
        other.close()
        for number in range(100):
            one.send_fds(b"%3d" % number, [0] * (number % 3))
            if number % 10 == 0:
                time.sleep(0.01)

    with one, other:
        # Started before the timer, which the child does not inherit.
        with child(run), on_alarm(handler, 0.001, 0.001):
            one.close()
            came, fds = b"", 0
            while True:
                data, got = receive(other, 3)
                if not data:
                    break
                came += data
                fds += len(got)
                FileDescriptors(got).close()
        assert came == b"".join(b"%3d" % number for number in range(100))
        assert fds == sum(number % 3 for number in range(100))
        assert signals


class Interrupted(TimeoutError, ConnectionError):
    """What a signal handler here raises."""


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("receive", [by_recv_fds, by_recv_ancillary, by_scattering, by_collecting])
def test_a_signal_that_raises_while_a_call_waits(
    receive: Callable[..., tuple[bytes, list[int]]], timed: bool
) -> None:
    """It ends the call; nothing was received, and the next call gets all of it."""
    one, other = UdStream.pair()
    other.timeout = PATIENCE if timed else None

    def handler(number: int, frame: Any) -> None:
        raise Interrupted

    with one, other, flat():
        for _ in range(10):
            with on_alarm(handler, 0.005), pytest.raises(Interrupted):
                receive(other, 100)
        one.send_fds(b"all of it", [0, 0])
        data, fds = receive(other, 100)
        assert (data, len(fds)) == (b"all of it", 2)
        FileDescriptors(fds).close()


# --- from the first instant ---


@pytest.mark.parametrize("name", ["recv_fds", "recv_ancillary", "collected"])
def test_a_flood_while_programs_are_started(pair: Pair, name: str) -> None:
    """None of 253 descriptors gets into a program that is started: each is close-on-exec."""
    one, other = pair
    one.send_fds(b"x", [0] * 253)
    with flat():
        if name == "recv_fds":
            fds = other.recv_fds(1)[1]
        elif name == "recv_ancillary":
            fds = other.recv_ancillary(bytearray(1)).fds
        else:
            other.collect_ancillary = True
            other.read(1)
            fds = other.collected.popleft()[1].fds
        with fds:
            assert len(fds) == 253
            assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)


def test_the_room_is_for_the_most_the_kernel_can_deliver(pair: Pair) -> None:
    """253 descriptors with credentials, a pidfd and a security label, all at once: nothing is cut."""
    one, other = pair
    ancillary.set_passcred(other, True)
    pidfd = 0
    with socket.socket(fileno=os.dup(other.fileno())) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, 76, 1)
            pidfd = 1
        except OSError:
            pass
    one.send_ancillary(b"x", [[0] * 253, ancillary.Credentials.current()])
    with flat(), other.recv_ancillary(bytearray(1)) as received:
        assert not received.truncated
        assert (len(received.fds), len(received.pidfd)) == (_platform.SCM_MAX_FD, pidfd)
        assert received.credentials == ancillary.Credentials.current()

    fake = Fake([])
    ancillary._receive(fake, bytearray(1), 0)
    ancillary._recv_fds(fake, 1, 0)
    # Labels, which no kernel here may have, are of a page at the most.
    assert fake.room >= sum(map(socket.CMSG_SPACE, (253 * 4, 12, 4, 4096)))
