"""Load: many clients, more connections than there is room for, slow peers, and lines without an end."""

from __future__ import annotations

import errno
import os
import resource
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from meanwhile import PATIENCE, wait_until_asleep
from real import environment, python

from udstream import Shutdown, UdStream, UdStreamListener

# The half of them plain sockets, the other half ours; and how many messages each sends.
CLIENTS, MESSAGES = 2000, 50
FLOOD = 60
UNENDING = 1 << 30
LIMIT = 1 << 16

Record = Callable[[str, object], None]


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Let this process, and its children, have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        pytest.skip(f"the limit of open files is {hard}, and {descriptors} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, descriptors), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- many at once ---

# All connect before the first of them speaks; then each has one question on its way at any time.
CLIENTS_OF = """
import random, selectors, socket, sys
from udstream import UdStream

path, kind, first, count, messages = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

def connected():
    if kind == "ours":
        stream = UdStream.connect(path)
        return stream, stream.write_all, stream.read
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock, sock.sendall, sock.recv

def question(number, turn):
    return f"{number} {turn} {'x' * random.Random(number * turn).randrange(200)}\\n".encode()

clients = {number: connected() for number in range(first, first + count)}
print("connected", flush=True)
assert input() == "go"
waiting = selectors.DefaultSelector()
for number, (end, send, receive) in clients.items():
    waiting.register(end, selectors.EVENT_READ, [number, 0, b"", send, receive])
    send(question(number, 0))
answered = 0
while waiting.get_map():
    for key, _ in waiting.select():
        number, turn, got, send, receive = key.data
        data = receive(65536)
        assert data, "the server has hung up"
        got += data
        key.data[2] = got
        if not got.endswith(b"\\n"):
            continue
        assert got == b"heard " + question(number, turn), got
        answered += 1
        turn += 1
        if turn == messages:
            waiting.unregister(key.fileobj)
            key.fileobj.close()
            continue
        key.data[1:3] = turn, b""
        send(question(number, turn))
print(answered)
"""


@pytest.mark.long
def test_two_thousand_clients_at_once(folder: Path, record_property: Record) -> None:
    """2,000 clients of one listener, half of them plain sockets, 100,000 messages: none lost, none mixed up."""
    path = folder / "s"
    half = CLIENTS // 2
    with (
        room_for(CLIENTS + 100),
        UdStreamListener.bind(path) as listener,
        selectors.DefaultSelector() as ready,
    ):
        listener.set_nonblocking(True)
        ready.register(listener, selectors.EVENT_READ)
        programs = [
            subprocess.Popen(
                python(CLIENTS_OF, path, kind, str(first), str(half), str(MESSAGES)),
                env=environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for kind, first in (("ours", 0), ("plain", half))
        ]
        heard: dict[str, int] = {}
        most = messages = ended = 0
        going = False
        while ended < CLIENTS:
            for key, _ in ready.select(PATIENCE):
                if key.fileobj is listener:
                    for stream in accepted(listener):
                        stream.set_nonblocking(True)
                        ready.register(stream, selectors.EVENT_READ, Conversation(stream, heard))
                elif not key.data.go_on():
                    ready.unregister(key.fileobj)
                    key.data.end()
                    ended += 1
                most = max(most, len(ready.get_map()) - 1)
            if most == CLIENTS and not going:
                going = True
                for program in programs:
                    assert program.stdin is not None
                    program.stdin.write("go\n")
                    program.stdin.flush()
        for program in programs:
            said, _ = program.communicate(timeout=PATIENCE)
            assert said.split() == ["connected", str(half * MESSAGES)]
            assert program.returncode == 0
    messages = sum(heard.values())
    assert heard == {str(number): MESSAGES for number in range(CLIENTS)}
    assert most == CLIENTS
    record_property("clients served", CLIENTS)
    record_property("messages", 2 * messages)


def accepted(listener: UdStreamListener) -> Iterator[UdStream]:
    """Those who wait."""
    while True:
        try:
            yield listener.accept()
        except BlockingIOError:
            return


class Conversation:
    """The server's side of one connection: it answers each line, and knows whose the lines must be."""

    def __init__(self, stream: UdStream, heard: dict[str, int]) -> None:
        self._stream = stream
        self._heard = heard
        self._whose: str | None = None
        self._rest = b""

    def go_on(self) -> bool:
        """Answer what has come; whether the peer is still there."""
        data = self._stream.read(65536)
        assert data is not None
        if not data:
            assert not self._rest
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            whose, turn, _ = line.decode().split(" ")
            assert self._whose in (None, whose), "two clients on one connection"
            self._whose = whose
            assert self._heard.setdefault(whose, 0) == int(turn), "out of order"
            self._heard[whose] += 1
            self._stream.write_all(b"heard " + line + b"\n")
        return True

    def end(self) -> None:
        self._stream.close()


# --- more than there is room for ---


def test_flood_against_a_full_backlog(folder: Path, record_property: Record) -> None:
    """Who is told that he is connected is served, and nobody else: a timed connect gives up, an untimed one waits.

    A nonblocking socket of the standard library is told EAGAIN at once.
    """
    path = folder / "s"
    told: list[str] = []
    refused: list[str] = []
    answers: dict[str, str] = {}

    def client(name: str, timeout: float | None) -> None:
        try:
            stream = UdStream.connect(path, timeout=timeout)
        except TimeoutError:
            refused.append(name)
            return
        told.append(name)
        with stream:
            stream.timeout = PATIENCE
            with stream.makefile("rw") as file:
                file.write(name + "\n")
                answers[name] = file.readline()

    with UdStreamListener.bind(path, backlog=3) as listener:
        listener.timeout = PATIENCE
        timed = [threading.Thread(target=client, args=[f"timed {at}", 0.2]) for at in range(FLOOD)]
        patient = [threading.Thread(target=client, args=[f"patient {at}", None]) for at in range(FLOOD)]
        for pair in zip(timed, patient, strict=True):
            for thread in pair:
                thread.start()
        plain = [nonblocking_connect(path) for _ in range(FLOOD)]
        # Those that are queued wait for their answer; the others' time is up.
        began = time.monotonic()
        while len(refused) + sum(name.startswith("timed") for name in told) < FLOOD:
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.01)
        queued = sum(sock is not None for sock in plain) + len(told)
        assert 0 < queued <= 4 and len(refused) >= FLOOD - 4
        served: list[str] = []
        for at, sock in enumerate(plain):
            if sock is not None:
                told.append(f"plain {at}")
                sock.sendall(f"plain {at}\n".encode())
        expected = FLOOD + len([name for name in told if not name.startswith("patient")])
        while len(served) < expected:
            with listener.accept() as stream, stream.makefile("rw") as file:
                name = file.readline()
                served.append(name.rstrip())
                file.write(name)
        for thread in timed + patient:
            thread.join(PATIENCE)
        for at, sock in enumerate(plain):
            if sock is not None:
                with sock:
                    answers[f"plain {at}"] = sock.recv(100).decode()
        listener.set_nonblocking(True)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert sorted(served) == sorted(told)
    assert answers == {name: name + "\n" for name in told}
    assert not set(refused) & set(told) and len(refused) + len(told) >= 2 * FLOOD
    record_property("clients served", len(served))
    record_property("connections that found no room in time", len(refused))


def nonblocking_connect(path: Path) -> socket.socket | None:
    """A plain socket that connects, or finds no room."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    code = sock.connect_ex(os.fspath(path))
    if code:
        assert code == errno.EAGAIN
        sock.close()
        return None
    sock.setblocking(True)
    sock.settimeout(PATIENCE)
    return sock


# --- a slow peer ---

# With characters and a line end that come in two halves.
SLOW = "grün und blau\r\n"
READERS = ["raw readline", "read_exact", "rb", "rwb", "r", "rw"]


def read_slow(stream: UdStream, name: str, more: int = 0) -> str:
    """What this way of reading makes of the slow line, or of that and *more* bytes."""
    if name == "raw readline":
        return stream.readline().decode()
    if name == "read_exact":
        return stream.read_exact(len(SLOW.encode()) + more).decode()
    if "b" in name:
        with stream.makefile(name) as binary:
            return str(binary.readline(), "utf-8")
    with stream.makefile(name, encoding="utf-8", newline="") as text:
        return str(text.readline())


@contextmanager
def a_byte_whenever_asleep(stream: UdStream, data: Iterator[int]) -> Iterator[list[int]]:
    """Send the next byte each time that the main thread has fallen asleep over what came; what was sent."""
    main = threading.main_thread().native_id
    assert main is not None
    enough = threading.Event()
    sent: list[int] = []

    def send() -> None:
        for byte in data:
            wait_until_asleep(main, enough)
            if enough.is_set():
                return
            sent.append(byte)
            stream.write(bytes([byte]))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        enough.set()
        thread.join(PATIENCE)


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])
@pytest.mark.parametrize("name", READERS)
def test_peer_that_sends_byte_by_byte(name: str, timeout: float | None) -> None:
    """However slowly a line comes, one byte for each time that the reader has waited: it comes whole."""
    here, there = UdStream.pair()
    here.timeout = timeout
    with here, there, a_byte_whenever_asleep(there, iter(SLOW.encode())) as sent:
        assert read_slow(here, name) == SLOW
    assert len(sent) == len(SLOW.encode())


@pytest.mark.parametrize("name", READERS)
def test_peer_too_slow_for_the_timeout(name: str) -> None:
    """A peer that goes on sending a byte now and then does not keep a call longer than its timeout."""
    came: list[int] = []
    # On a busy machine the peer may begin too late.
    while not came:
        here, there = UdStream.pair()
        here.timeout = 0.1
        began = time.monotonic()
        with here, there, a_byte_whenever_asleep(there, iter(b"x" * 1_000_000)) as sent:
            with pytest.raises(TimeoutError):
                read_slow(here, name, more=1_000_000)
            took = time.monotonic() - began
            came = list(sent)
    assert 0.1 <= took < PATIENCE / 4


# --- a line without an end ---

READ_UNENDING = """
import resource, sys
from udstream import UdStream

mode, timeout, limit = sys.argv[2], sys.argv[3], int(sys.argv[4])
stream = UdStream.from_fd(int(sys.argv[1]))
if timeout == "timed":
    stream.timeout = 20.0
text = "b" not in mode
file = stream.makefile(mode, encoding="utf-8" if text else None)
whole = "x" * limit if text else b"x" * limit
total = 0
# What it takes to read one such piece is there from here on.
total += len(file.readline(limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while piece := file.readline(limit):
    assert piece == whole or len(piece) < limit and not piece.strip(whole[:1])
    total += len(piece)
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
file.close()
"""


@pytest.mark.long
@pytest.mark.parametrize("timeout", ["untimed", "timed"])
@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_gigabyte_without_a_newline(folder: Path, mode: str, timeout: str, record_property: Record) -> None:
    """readline(limit) of a line that never ends brings it piece by piece, and the program stays as small as it was."""
    here, there = UdStream.pair()
    with here:
        with there:
            program = subprocess.Popen(
                python(READ_UNENDING, str(there.fileno()), mode, timeout, str(LIMIT)),
                env=environment(folder),
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[there.fileno()],
            )
        chunk = b"x" * (1 << 20)
        with program:
            for _ in range(UNENDING // len(chunk)):
                here.write_all(chunk)
            here.shutdown(Shutdown.WRITE)
            assert program.stdout is not None
            total, growth = map(int, program.stdout.read().split())
    assert total == UNENDING
    assert growth < 4 << 20
    record_property("MiB moved", UNENDING >> 20)
