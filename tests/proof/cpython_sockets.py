"""
A socket as CPython's own tests know it, made of udstream's calls alone.

`load` gives those tests (the module ``test.test_socket`` of the running Python) with their ``socket`` module
replaced by this one. Nothing here mends a difference: a method turns its arguments round and passes on what
udstream says.
"""

from __future__ import annotations

import array
import importlib.util
import os
import socket
import sys
import tempfile
import threading
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from udstream import FileDescriptors, UdSocketPath, UdStream, UdStreamListener, ancillary

SIZEOF_INT = array.array("i").itemsize


def plain(path: UdSocketPath) -> Any:
    """An address as `socket` writes it."""
    text = str(path)
    return b"\0" + os.fsencode(text[1:]) if path.is_namespaced else text


def path_of(address: Any) -> Any:
    """The path in an address; what the tests take for a port is one."""
    address = address[1] if isinstance(address, tuple) else address
    return bytes(address) if isinstance(address, bytearray) else address


class Socket:
    """As much of `socket.socket` as CPython's tests use, over a `UdStream` or a `UdStreamListener`."""

    # What a test made, for it to be closed however the test ends.
    made: ClassVar[list[Socket]] = []
    # An item for each stream or listener that the tests have used.
    used: ClassVar[list[str]] = []

    family, type, proto = socket.AF_UNIX, socket.SOCK_STREAM, 0

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None, end: Any = None
    ) -> None:
        self.end: Any = end if fileno is None else UdStream.from_fd(fileno)
        DETACHED.discard(-1 if fileno is None else fileno)
        self._timeout: float | None = None
        self._connecting = threading.Lock()
        self.made.append(self)
        self._become(self.end)

    def _become(self, end: Any) -> None:
        self.end = end
        if end is not None:
            self.used.append("stream")
        if self._timeout is not None:
            self.settimeout(self._timeout)

    # --- making connections ---

    def bind(self, address: Any) -> None:
        self._become(UdStreamListener.bind(path_of(address)))

    def listen(self, backlog: int = 1) -> None:
        """The listener listens since `bind`."""

    def accept(self) -> tuple[Socket, Any]:
        stream = self.end.accept()
        return Socket(end=stream), plain(stream.peer_path)

    def connect(self, address: Any) -> None:
        with self._connecting:
            self._become(UdStream.connect(path_of(address), timeout=self._timeout or None))

    def dup(self) -> Socket:
        return Socket(end=self.end.dup())

    def detach(self) -> int:
        fd: int = self.end.detach()
        DETACHED.add(fd)
        return fd

    def shutdown(self, how: int) -> None:
        self.end.shutdown(how)

    def close(self) -> None:
        if self.end is not None:
            self.end.close()

    @property
    def _closed(self) -> bool:
        return self.end is None or self.end.closed

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def fileno(self) -> int:
        # A test may ask as soon as its other thread has accepted: then `connect` is not yet done with us.
        with self._connecting:
            return self.end.fileno()  # type: ignore[no-any-return]

    def getsockname(self) -> Any:
        return plain(self.end.local_path)

    def getpeername(self) -> Any:
        return plain(self.end.peer_path)

    # --- time ---

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds
        if self.end is not None:
            self.end.set_nonblocking(seconds == 0)
            self.end.timeout = seconds or None

    def setblocking(self, flag: Any) -> None:
        self.settimeout(None if flag else 0.0)

    def gettimeout(self) -> float | None:
        return 0.0 if self.end.is_nonblocking() else self.end.timeout

    def getblocking(self) -> bool:
        return self.gettimeout() != 0.0

    # --- bytes ---

    def recv(self, size: int) -> bytes:
        return not_none(self.end.read(size))  # type: ignore[no-any-return]

    def recv_into(self, buffer: Any, nbytes: int = 0) -> int:
        return not_none(self.end.readinto(memoryview(buffer)[:nbytes] if nbytes else buffer))  # type: ignore[no-any-return]

    def recvfrom(self, size: int) -> tuple[bytes, None]:
        return self.recv(size), None

    def recvfrom_into(self, buffer: Any, nbytes: int = 0) -> tuple[int, None]:
        return self.recv_into(buffer, nbytes), None

    def send(self, data: Any) -> int:
        return not_none(self.end.write(data))  # type: ignore[no-any-return]

    def sendto(self, data: Any, address: Any) -> int:
        return self.send(data)

    def sendall(self, data: Any) -> None:
        self.end.write_all(data)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        return self.end.sendfile(file, offset, count)  # type: ignore[no-any-return]

    # CPython tests each of the two ways that its sendfile has; ours chooses for itself.
    _sendfile_use_send = _sendfile_use_sendfile = sendfile

    def makefile(self, mode: str = "r", buffering: int = -1, **more: Any) -> Any:
        return self.end.makefile(mode, buffering, **more)

    # --- messages ---

    def sendmsg(
        self, buffers: Iterable[Any], cmsgs: Iterable[Any] = (), flags: int = 0, to: None = None
    ) -> int:
        if not isinstance(flags, int):
            raise TypeError("flags")
        assert flags == 0, "udstream takes no flags"
        return self.end.send_ancillary(buffers, cmsgs)  # type: ignore[no-any-return]

    def recvmsg(self, size: int, room: int = 0, flags: int = 0) -> tuple[bytes, list[Any], int, None]:
        buffer = bytearray(size)
        nbytes, cmsgs, got, _ = self.recvmsg_into([buffer], room, flags)
        return bytes(buffer[:nbytes]), cmsgs, got, None

    def recvmsg_into(
        self, buffers: Iterable[Any], room: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, None]:
        if not isinstance(flags, int):
            raise TypeError("flags")
        assert flags == 0, "udstream takes no flags"
        # The room for control messages, in bytes, is a number of descriptors here.
        max_fds = room if room < 0 else max(0, room - socket.CMSG_LEN(0)) // SIZEOF_INT
        received = self.end.recv_ancillary(buffers, max_fds=max_fds)
        cmsgs = list(received.ancillary)
        if received.fds:
            fds = array.array("i", received.fds.take()).tobytes()
            cmsgs.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, fds))
        return received.nbytes, cmsgs, socket.MSG_CTRUNC if received.truncated else 0, None


def not_none(result: Any) -> Any:
    """What a raw file says by None, a socket says by an exception."""
    if result is None:
        raise BlockingIOError
    return result


class Facade(types.ModuleType):
    """A module with some of its names replaced."""

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def create_connection(address: Any, timeout: float | None = None) -> Socket:
    return Socket(end=UdStream.connect(path_of(address), timeout=timeout))


def socketpair(*kind: int) -> tuple[Socket, Socket]:
    one, other = UdStream.pair()
    return Socket(end=one), Socket(end=other)


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> Socket:
    return Socket(fileno=os.dup(fd))


def send_fds(sock: Socket, buffers: Any, fds: Iterable[int]) -> int:
    return ancillary.send_fds(sock, buffers, fds)


def recv_fds(sock: Socket, bufsize: int, max_fds: int) -> tuple[bytes, list[int], int, None]:
    data, fds = ancillary.recv_fds(sock, bufsize, max_fds)
    assert isinstance(fds, FileDescriptors)
    return data, fds.take(), 0, None


def bind_port(sock: Socket, host: str = "") -> str:
    """A path in a new folder, which stands for a port; the folder goes with what listens there."""
    path = Path(tempfile.mkdtemp(prefix="uds-", dir="/tmp")) / "s"
    FOLDERS.append(path.parent)
    sock.bind(str(path))
    return str(path)


FOLDERS: list[Path] = []

# Descriptors that a test has taken out of one socket and not put into another.
DETACHED: set[int] = set()


def copy_of(name: str) -> Any:
    """A copy of one of the modules of CPython's tests, in which names can be replaced."""
    spec = importlib.util.find_spec(f"test.{name}")
    assert spec is not None and spec.origin is not None
    # Beside the original, where its relative imports look.
    package, _, last = spec.name.rpartition(".")
    spec = importlib.util.spec_from_file_location(f"{package}.cpython_{last}", spec.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def load() -> Any:
    """CPython's tests of sockets, on ours."""
    module = copy_of("test_socket")
    module.socket = Facade(
        socket,
        socket=Socket,
        create_connection=create_connection,
        socketpair=socketpair,
        fromfd=fromfd,
        send_fds=send_fds,
        recv_fds=recv_fds,
    )
    module.socket_helper = Facade(module.socket_helper, bind_port=bind_port)
    # A client of ours has no name of its own.
    module.ThreadedSocketTestMixin.bindClient = lambda test: setattr(test, "cli_addr", "")
    run_client = module.ThreadableTest.clientRun

    def client_run(test: Any, test_func: Any) -> None:
        """A client is done even if its tear-down fails, as that of a file at a broken pipe: the test waits for it."""
        try:
            run_client(test, test_func)
        finally:
            test.done.set()

    module.ThreadableTest.clientRun = client_run
    return module


@contextmanager
def cleaned_up() -> Iterator[None]:
    """Close what a test leaves, as one that fails does."""
    try:
        yield
    finally:
        while Socket.made:
            Socket.made.pop().close()
        while DETACHED:
            os.close(DETACHED.pop())
        while FOLDERS:
            FOLDERS.pop().rmdir()
