"""Descriptors passed to, from and through programs that we did not write."""

from __future__ import annotations

import os
import shlex
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest
from real import MULTIPROCESSING_ACKNOWLEDGES, PATIENCE, Program, environment, needs, python, running

from udstream import FileDescriptors, UdStream, UdStreamListener

NUMBERED = "file number {}"


@pytest.fixture
def numbered(folder: Path) -> Iterator[list[IO[bytes]]]:
    """As many open files as one message can carry, each of which says its own number."""
    with ExitStack() as stack:
        files: list[IO[bytes]] = []
        for number in range(253):
            path = folder / f"number-{number}"
            path.write_text(NUMBERED.format(number))
            files.append(stack.enter_context(open(path, "rb")))
        yield files


def assert_numbered(fds: FileDescriptors, numbers: Iterable[int]) -> None:
    """What was received is these files in this order, and a child of ours would not inherit them."""
    with fds:
        assert [NUMBERED.format(number) for number in numbers] == [os.pread(fd, 99, 0).decode() for fd in fds]
        assert not any(os.get_inheritable(fd) for fd in fds)


# --- dbus-daemon passes them from one connection to another -------------------------------------------------

BUS_CONFIGURATION = """
<busconfig>
  <type>session</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

METHOD_CALL = 1
PATH, INTERFACE, MEMBER, REPLY_SERIAL, DESTINATION, SIGNATURE, UNIX_FDS = 1, 2, 3, 5, 6, 8, 9


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def bus_call(serial: int, fields: dict[int, tuple[str, str | int]], body: bytes = b"") -> bytes:
    """A method call as the D-Bus specification lays it out, little-endian."""
    header = b""
    for code, (signature, value) in fields.items():
        header = padded(header) + struct.pack("<BB2s", code, 1, signature.encode())
        if isinstance(value, int):
            header += struct.pack("<I", value)
        else:
            header += struct.pack("<B" if signature == "g" else "<I", len(value)) + value.encode() + b"\0"
    start = struct.pack("<cBBBIII", b"l", METHOD_CALL, 0, 1, len(body), serial, len(header))
    return padded(start + header) + body


def bus_fields(header: bytes) -> dict[int, str | int]:
    """The fields of a message, from what follows its first 16 bytes."""
    fields: dict[int, str | int] = {}
    at = 0
    while at < len(header):
        code, signature = struct.unpack_from("<Bx2s", header, at)
        form = "<B" if signature == b"g\0" else "<I"
        (value,) = struct.unpack_from(form, header, at + 4)
        at += 4 + struct.calcsize(form)
        if signature == b"u\0":
            fields[code] = value
        else:
            fields[code] = header[at : at + value].decode()
            at += value + 1
        at += -at % 8
    return fields


class Bus:
    """A connection to the bus, each byte of which is received together with what came with it."""

    def __init__(self, path: Path) -> None:
        self.stream = UdStream.connect(path, timeout=PATIENCE)
        self.fds: list[FileDescriptors] = []
        self._serial = 0

    def __enter__(self) -> Bus:
        self.write(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        assert self.line().startswith(b"OK ")
        self.write(b"NEGOTIATE_UNIX_FD\r\n")
        assert self.line() == b"AGREE_UNIX_FD\r\n"
        self.write(b"BEGIN\r\n")
        self.send("org.freedesktop.DBus", "Hello")
        _, body = self.receive(REPLY_SERIAL, self._serial)
        self.name = body[4:-1].decode()
        return self

    def __exit__(self, *_: object) -> None:
        for fds in self.fds:
            fds.close()
        self.stream.close()

    def write(self, data: bytes) -> None:
        self.stream.write_all(data)

    def read(self, count: int) -> bytes:
        data = bytearray(count)
        done = 0
        while done < count:
            received = self.stream.recv_ancillary([memoryview(data)[done:]])
            assert received.nbytes, "dbus-daemon hung up"
            assert not received.truncated
            if received.fds:
                self.fds.append(received.fds)
            done += received.nbytes
        return bytes(data)

    def line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def send(self, to: str, member: str, files: list[IO[bytes]] | None = None) -> None:
        self._serial += 1
        fields: dict[int, tuple[str, str | int]] = {
            PATH: ("o", "/org/freedesktop/DBus"),
            INTERFACE: ("s", "org.freedesktop.DBus"),
            MEMBER: ("s", member),
            DESTINATION: ("s", to),
        }
        if files is None:
            self.write(bus_call(self._serial, fields))
            return
        fields |= {SIGNATURE: ("g", "h" * len(files)), UNIX_FDS: ("u", len(files))}
        data = bus_call(self._serial, fields, struct.pack(f"<{len(files)}I", *range(len(files))))
        assert self.stream.send_fds(data, files) == len(data)

    def receive(self, field: int, value: str | int) -> tuple[dict[int, str | int], bytes]:
        """The next message with this field, and its body; those before it are left out."""
        while True:
            body_length, length = struct.unpack("<4xI4xI", self.read(16))
            fields = bus_fields(self.read(length + -length % 8)[:length])
            body = self.read(body_length)
            if fields.get(field) == value:
                return fields, body


class FileBus(Bus):
    """A connection to the bus through a binary file, whose stream collects what comes with the bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stream.collect_ancillary = True
        self._file = self.stream.makefile("rwb")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        super().__exit__()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        assert len(data) == count, "dbus-daemon hung up"
        return bytes(data)

    def line(self) -> bytes:
        return bytes(self._file.readline())


@pytest.fixture
def dbus_daemon(folder: Path) -> Iterator[Program]:
    configuration = folder / "bus.conf"
    configuration.write_text(BUS_CONFIGURATION.format(folder / "bus"))
    command = [
        "dbus-daemon",
        f"--config-file={configuration}",
        "--nofork",
        "--nopidfile",
        "--print-address=1",
    ]
    with running(*command, env=environment(folder), ready="unix:path=") as program:
        yield program


@needs("dbus-daemon")
def test_dbus_daemon_hands_on_descriptors(
    folder: Path, dbus_daemon: Program, numbered: list[IO[bytes]]
) -> None:
    """Descriptors sent in a D-Bus message come out at another connection, with their message."""
    with Bus(folder / "bus") as sender, Bus(folder / "bus") as receiver:
        assert sender.name != receiver.name
        sender.send(receiver.name, "Take", numbered[3:5])
        fields, _ = receiver.receive(MEMBER, "Take")
        [fds] = receiver.fds
        assert_numbered(fds, [3, 4])

    assert fields[UNIX_FDS] == 2


@needs("dbus-daemon")
def test_dbus_message_to_a_buffered_file(
    folder: Path, dbus_daemon: Program, numbered: list[IO[bytes]]
) -> None:
    """A buffered file that reads ahead loses none of the descriptors when its stream collects them."""
    with Bus(folder / "bus") as sender, FileBus(folder / "bus") as receiver:
        for first in range(0, 30, 3):
            sender.send(receiver.name, "Take", numbered[first : first + 3])
        for _ in range(10):
            receiver.receive(MEMBER, "Take")
        arrived = list(receiver.stream.collected)
        for first, (_, received) in zip(range(0, 30, 3), arrived, strict=True):
            assert_numbered(received.fds, range(first, first + 3))

    offsets = [offset for offset, _ in arrived]
    assert sorted(set(offsets)) == offsets


@needs("dbus-daemon")
def test_dbus_daemon_is_who_the_kernel_says(folder: Path, dbus_daemon: Program) -> None:
    """The peer's credentials are those of the bus, to which EXTERNAL said who we are."""
    with Bus(folder / "bus") as bus:
        peer = bus.stream.peer_credentials()

    assert (dbus_daemon.pid, os.getuid(), os.getgid()) == (peer.pid, peer.uid, peer.gid)


# --- weston maps the memory that a client passes ------------------------------------------------------------

DISPLAY, DISPLAY_ERROR, SHM_INVALID_FD = 1, 0, 2


class Wayland:
    """A client of a Wayland compositor."""

    def __init__(self, stream: UdStream) -> None:
        self._stream = stream
        self._last_id = DISPLAY

    def request(self, target: int, opcode: int, payload: bytes, fds: list[int] | None = None) -> None:
        message = struct.pack("=II", target, (8 + len(payload)) << 16 | opcode) + payload
        if fds is None:
            self._stream.write_all(message)
        else:
            assert self._stream.send_fds(message, fds) == len(message)

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def event(self) -> tuple[int, int, bytes]:
        sender, word = struct.unpack("=II", self._stream.read_exact(8))
        return sender, word & 0xFFFF, self._stream.read_exact((word >> 16) - 8)

    def error(self) -> tuple[int, int]:
        """The object and the code of the protocol error that is to come."""
        while (event := self.event())[:2] != (DISPLAY, DISPLAY_ERROR):
            pass
        sender, code = struct.unpack_from("=II", event[2])
        return sender, code

    def round_trip(self) -> list[bytes]:
        """What came until all that was requested before was carried out; a protocol error fails the test."""
        callback = self.new_id()
        self.request(DISPLAY, 0, struct.pack("=I", callback))
        payloads = []
        while (event := self.event())[0] != callback:
            assert event[:2] != (DISPLAY, DISPLAY_ERROR), event[2]
            payloads.append(event[2])
        return payloads

    def bind_shm(self) -> int:
        registry, name = self.new_id(), struct.pack("=I8s", 7, b"wl_shm")
        self.request(DISPLAY, 1, struct.pack("=I", registry))
        [offer] = [payload for payload in self.round_trip() if payload[4:16] == name]
        shm = self.new_id()
        self.request(registry, 0, offer[:4] + name + struct.pack("=II", 1, shm))
        return shm


@pytest.fixture
def weston(folder: Path) -> Iterator[Program]:
    # The socket listens before the shell is loaded. This shell starts no clients of its own.
    options = ["--backend=headless-backend.so", "--shell=kiosk-shell.so", "--no-config", "--idle-time=0"]
    command = ["weston", *options, "--socket=wayland"]
    with running(*command, env=environment(folder), ready="/kiosk-shell.so") as program:
        yield program


@needs("weston")
def test_weston_maps_the_memory_it_was_passed(folder: Path, weston: Program) -> None:
    """A Wayland compositor takes the descriptor with wl_shm.create_pool, and maps the memory behind it."""
    memory = os.memfd_create("udstream-test-pool")
    try:
        os.ftruncate(memory, 8192)
        with UdStream.connect(folder / "wayland", timeout=PATIENCE) as stream:
            wayland = Wayland(stream)
            shm, pool = wayland.bind_shm(), wayland.new_id()
            wayland.request(shm, 0, struct.pack("=Ii", pool, 8192), [memory])
            # A buffer of 32 by 32 pixels of 4 bytes in the second half of the pool.
            wayland.request(pool, 0, struct.pack("=IiiiiI", wayland.new_id(), 4096, 32, 32, 128, 0))
            wayland.round_trip()
            mapped = Path(f"/proc/{weston.pid}/maps").read_text()
    finally:
        os.close(memory)

    assert "/memfd:udstream-test-pool" in mapped


@needs("weston")
def test_weston_refuses_what_is_no_memory(folder: Path, weston: Program) -> None:
    """It is the passed descriptor that the compositor looks at: a pipe's is its protocol error invalid_fd."""
    reading, writing = os.pipe()
    try:
        with UdStream.connect(folder / "wayland", timeout=PATIENCE) as stream:
            wayland = Wayland(stream)
            shm = wayland.bind_shm()
            wayland.request(shm, 0, struct.pack("=Ii", wayland.new_id(), 8192), [reading])
            error = wayland.error()
    finally:
        os.close(reading)
        os.close(writing)

    assert (shm, SHM_INVALID_FD) == error


# --- systemd-socket-activate leaves its sockets to the program that it becomes ------------------------------

SERVE_INHERITED = """
import os
from udstream import UdStreamListener

listeners = UdStreamListener.inherited()
assert not [name for name in os.environ if name.startswith("LISTEN_")]
assert not any(os.get_inheritable(listener.fileno()) for listener in listeners)
for listener in listeners:
    with listener, listener.accept() as stream, stream.makefile("rw", encoding="utf-8") as file:
        file.write(f"{listener.local_path} got {file.readline()}")
print("served", len(listeners), UdStreamListener.inherited())
"""

SERVE_ACCEPTED = """
import os
from udstream import UdStream

[stream] = UdStream.inherited()
assert not [name for name in os.environ if name.startswith("LISTEN_")]
assert not os.get_inheritable(stream.fileno())
with stream, stream.makefile("rw", encoding="utf-8") as file:
    file.write(f"{os.getpid()} got {file.readline()}")
"""


# It hands on no variables but those that it is told to.
ACTIVATE = ["systemd-socket-activate", "--setenv=PYTHONPATH", "--setenv=LC_ALL"]


@needs("systemd-socket-activate")
def test_listeners_from_systemd(folder: Path) -> None:
    """A program that the first connection starts serves it, on each of the sockets that it was passed."""
    one, other = folder / "one.sock", folder / "other.sock"
    command = [*ACTIVATE, f"--listen={one}", f"--listen={other}", "--fdname=one:other"]
    with running(
        *command, *python(SERVE_INHERITED), env=environment(folder), ready=f"{other} as 4."
    ) as program:
        for path in (one, other):
            with UdStream.connect(path, timeout=PATIENCE) as stream, stream.makefile("rw") as file:
                file.write("a line\n")
                assert file.readline() == f"{path} got a line\n"
        assert "served 2 []" in program.finish()

    assert one.is_socket() and other.is_socket()


@needs("systemd-socket-activate")
def test_connections_from_systemd(folder: Path) -> None:
    """With --accept a program is started for each connection, which is the stream that it inherits."""
    path = folder / "activated.sock"
    command = [*ACTIVATE, "--accept", f"--listen={path}", *python(SERVE_ACCEPTED)]
    with running(*command, env=environment(folder), ready=f"{path} as 3."):
        served = set()
        for _ in range(2):
            with UdStream.connect(path, timeout=PATIENCE) as stream, stream.makefile("rw") as file:
                file.write("a line\n")
                pid, _, rest = file.readline().partition(" ")
                assert rest == "got a line\n"
                served.add(int(pid))

    assert len(served) == 2


# --- ssh is handed its connection by its proxy command ------------------------------------------------------

SSH_PROXY = """
import sys
from udstream import UdStream, ancillary

with UdStream.connect(sys.argv[1]) as connection:
    ancillary.send_fds(sys.stdout.fileno(), b"-", [connection])
"""

SSH_MSG_KEXINIT = 20


@needs("ssh")
def test_ssh_talks_down_the_connection_that_it_was_passed(folder: Path) -> None:
    """With ProxyUseFdpass ssh speaks SSH on the descriptor that its proxy command sent it, and ended."""
    path = folder / "sshd.sock"
    options = {
        "ProxyUseFdpass": "yes",
        "ProxyCommand": shlex.join(python(SSH_PROXY, path)).replace("%", "%%"),
        "UserKnownHostsFile": "none",
        "GlobalKnownHostsFile": "none",
        "BatchMode": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    with (
        UdStreamListener.bind(path) as listener,
        running("ssh", "-F", "none", *words, "nowhere", "true", env=environment(folder)),
    ):
        listener.timeout = PATIENCE
        with listener.accept() as stream, stream.makefile("rwb") as file:
            stream.timeout = PATIENCE
            proxy = stream.peer_credentials().pid
            file.write(b"SSH-2.0-test\r\n")
            banner = file.readline()
            length, _, message = struct.unpack(">IBB", file.read(6))
            rest = file.read(length - 2)
            proxy_is_gone = not os.path.exists(f"/proc/{proxy}")

    assert banner.startswith(b"SSH-2.0-OpenSSH") and banner.endswith(b"\r\n")
    assert SSH_MSG_KEXINIT == message
    assert b"curve25519-sha256" in rest
    assert proxy_is_gone


# --- CPython at the other end, in another process -----------------------------------------------------------

SOCKET_PEER = """
import os, socket, sys

path, *names = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(path)
    fds = [os.open(name, os.O_RDONLY) for name in names]
    assert socket.send_fds(sock, [b"as many ", b"as there are"], fds) == 20
    data, fds, flags, _ = socket.recv_fds(sock, 100, len(names))
    assert not flags & socket.MSG_CTRUNC
    for fd in fds:
        print(os.pread(fd, 100, 0).decode())
    sock.sendall(data[::-1])
"""


@pytest.mark.parametrize("count", [1, 2, 3, 253])
def test_socket_send_fds_and_recv_fds(folder: Path, numbered: list[IO[bytes]], count: int) -> None:
    """What socket.send_fds sent is received, and what we send socket.recv_fds receives; up to 253."""
    path = folder / "peer.sock"
    files = numbered[:count]
    command = python(SOCKET_PEER, path, *(file.name for file in files))

    with UdStreamListener.bind(path) as listener, running(*command, env=environment(folder)) as peer:
        listener.timeout = PATIENCE
        with listener.accept() as stream:
            stream.timeout = PATIENCE
            data, fds = stream.recv_fds(100)
            assert data == b"as many as there are"
            assert_numbered(fds, range(count))
            assert stream.send_fds([b"and ", b"back"], files[::-1]) == 8
            assert stream.read_exact(8) == b"kcab dna"
        printed = peer.finish()

    assert [NUMBERED.format(number) for number in reversed(range(count))] == printed.splitlines()


MULTIPROCESSING_PEER = """
import os, socket, sys
from multiprocessing import reduction
from multiprocessing.connection import Client

path, *names = sys.argv[1:]
with Client(path, "AF_UNIX") as connection:
    connection.send_bytes(b"one follows, then %d" % len(names))
    fds = [os.open(name, os.O_RDONLY) for name in names]
    reduction.send_handle(connection, fds[0], None)
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        reduction.sendfds(sock, fds)
        one = reduction.recv_handle(connection)
        many = reduction.recvfds(sock, len(names))
    connection.send_bytes(b", ".join(os.pread(fd, 100, 0) for fd in [one, *many]))
"""


def test_multiprocessing_reduction(folder: Path, numbered: list[IO[bytes]]) -> None:
    """multiprocessing's handles and messages are exchanged with us on one connection, none read too far."""
    path = folder / "peer.sock"
    files = numbered[:3]
    command = python(MULTIPROCESSING_PEER, path, *(file.name for file in files))

    def message(stream: UdStream) -> bytes:
        (length,) = struct.unpack(">i", stream.read_exact(4))
        return stream.read_exact(length)

    with UdStreamListener.bind(path) as listener, running(*command, env=environment(folder)) as peer:
        listener.timeout = PATIENCE
        with listener.accept() as stream:
            stream.timeout = PATIENCE
            assert message(stream) == b"one follows, then 3"
            for numbers in ([0], [0, 1, 2]):
                # The one byte that carries them says how many they are.
                data, fds = stream.recv_fds(1)
                assert data == bytes([len(numbers)])
                assert_numbered(fds, numbers)
                if MULTIPROCESSING_ACKNOWLEDGES:
                    stream.write_all(b"A")
            stream.send_fds(b"\1", [files[2]])
            stream.send_fds(b"\3", files)
            if MULTIPROCESSING_ACKNOWLEDGES:
                assert stream.read_exact(2) == b"AA"
            assert message(stream) == b"file number 2, file number 0, file number 1, file number 2"
        peer.finish()
