"""Against the standard library: each end in turn is a plain socket, a socketserver, asyncio, or a process's pipe."""

from __future__ import annotations

import asyncio
import io
import os
import selectors
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pytest
from connections import listening
from meanwhile import PATIENCE, in_thread

import udstream
from udstream import Shutdown, UdStream

DATA = bytes(i % 251 for i in range(1 << 20))

# --- servers that others wrote: all of them send back what they get ---


@contextmanager
def plain_sockets(path: str) -> Iterator[None]:
    """A server made of plain sockets and a thread for each client."""

    def serve(accepted: socket.socket) -> None:
        with accepted:
            while data := accepted.recv(1 << 16):
                accepted.sendall(data)

    def accept() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            pool.submit(serve, accepted)

    with ThreadPoolExecutor() as pool, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        accepting = pool.submit(accept)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.result(PATIENCE)


class Echo(socketserver.StreamRequestHandler):
    """Sends back what it gets, through the files that socketserver makes."""

    def handle(self) -> None:
        while data := self.rfile.read1(1 << 16):  # type: ignore[attr-defined]
            self.wfile.write(data)


@contextmanager
def socket_server(path: str) -> Iterator[None]:
    """A threading socketserver."""
    with socketserver.ThreadingUnixStreamServer(path, Echo) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(PATIENCE)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@contextmanager
def asyncio_server(path: str) -> Iterator[None]:
    """An asyncio server, in a thread of its own."""
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        handlers: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            try:
                await echo(reader, writer)
            finally:
                handlers.discard(task)

        server = await asyncio.start_unix_server(handle, path)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(over.set))
        ready.set()
        await over.wait()
        server.close()
        if handlers:
            await asyncio.wait(handlers, timeout=PATIENCE)
        await server.wait_closed()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(PATIENCE)
    try:
        yield
    finally:
        stop[0]()
        thread.join(PATIENCE)


SERVERS = [plain_sockets, socket_server, asyncio_server]


@pytest.fixture(params=SERVERS, ids=lambda server: server.__name__)
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """The path of a running echo server."""
    path = folder / "s"
    with request.param(str(path)):
        yield path


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["untimed", "timed"])
def test_raw_client(server: Path, timeout: float | None) -> None:
    """A raw stream sends a megabyte to a server that others wrote, while it reads it back."""
    with UdStream.connect(server, timeout=timeout) as stream:
        with in_thread(lambda: (stream.write_all(DATA), stream.shutdown(Shutdown.WRITE))):
            assert stream.read_exact(len(DATA)) == DATA
            assert stream.read(1) == b""


def test_text_client(server: Path) -> None:
    """A text file asks and is answered, line by line."""
    with udstream.open(server, "rw", encoding="utf-8") as file:
        for number in range(200):
            file.write(f"caf\u00e9 {number}\n")
            assert file.readline() == f"caf\u00e9 {number}\n"


def test_binary_client(server: Path) -> None:
    """A binary file writes lines and bulk, reads them, and passes everything on with nothing lost."""
    with udstream.open(server, "rwb") as file:
        file.write(b"first\n")
        assert file.readline() == b"first\n"
        file.write(b"second\nthird\n")
        file.write(DATA[:50_000])
        assert file.readline() == b"second\n"
        assert file.readline() == b"third\n"
        assert file.read(50_000) == DATA[:50_000]


def test_many_clients_at_once(server: Path) -> None:
    """Clients in many threads are each answered what is theirs."""

    def client(number: int) -> bool:
        with UdStream.connect(server, timeout=PATIENCE) as stream:
            data = b"%04d" % number * 10_000
            with in_thread(lambda: stream.write_all(data)):
                return stream.read_exact(len(data)) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(24)))


def test_nonblocking_client_with_selectors(server: Path) -> None:
    """A nonblocking stream works with selectors, as any file object with a fileno does."""
    received = bytearray()
    to_send = memoryview(DATA)
    with UdStream.connect(server) as stream, selectors.DefaultSelector() as selector:
        stream.set_nonblocking(True)
        selector.register(stream, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while len(received) < len(DATA):
            for _, events in selector.select(PATIENCE):
                if events & selectors.EVENT_READ and (data := stream.read(1 << 16)) is not None:
                    received += data
                if events & selectors.EVENT_WRITE:
                    to_send = to_send[stream.write(to_send[: 1 << 16]) or 0 :]
                    if not to_send:
                        selector.modify(stream, selectors.EVENT_READ)
    assert received == DATA


# --- clients that others wrote, to a stream that sends back what it gets ---


def serve_one(listener: socket.socket, through: Callable[[UdStream], Any]) -> None:
    """Answer one client of a plain listener through a stream."""
    with UdStream.from_socket(listener.accept()[0]) as stream:
        with through(stream) as file:
            if isinstance(file, io.BufferedIOBase):
                while line := file.readline():
                    file.write(line)
                    file.flush()
            else:
                while data := file.read(1 << 16):
                    file.write_all(data)


THROUGH: dict[str, Callable[[UdStream], Any]] = {
    "raw": lambda stream: stream,
    "rwb": lambda stream: stream.makefile("rwb"),
}


@pytest.fixture(params=THROUGH)
def served(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The path of a server over a stream, for one client."""
    with listening(folder / "s") as listener:
        with in_thread(lambda: serve_one(listener, THROUGH[request.param])) as result:
            yield str(folder / "s")
        assert result == [None]


LINES = [b"line %d\n" % number for number in range(2000)]


def test_plain_socket_as_client(served: str) -> None:
    """A plain socket, and the files of its makefile, talk to a stream."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(served)
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        with client.makefile("rwb") as file:
            for line in LINES[:100]:
                file.write(line)
                file.flush()
                assert file.readline() == line


def test_asyncio_as_client(served: str) -> None:
    """An asyncio client talks to a stream, sending and receiving at once."""

    async def talk() -> list[bytes]:
        reader, writer = await asyncio.open_unix_connection(served)

        async def send() -> None:
            for line in LINES:
                writer.write(line)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        lines = [line async for line in reader]
        await sending
        writer.close()
        await writer.wait_closed()
        return lines

    assert asyncio.run(asyncio.wait_for(talk(), PATIENCE)) == LINES


# --- descriptors that go to and fro ---


def test_asyncio_takes_a_stream_over(folder: Path) -> None:
    """A stream's connection can be handed to asyncio, and half of it be ours again."""

    async def talk(sock: socket.socket) -> bytes:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        writer.write(b"from asyncio\n")
        await writer.drain()
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    one, other = UdStream.pair()
    with other:
        other.write(b"from a stream\n")
        assert asyncio.run(talk(socket.socket(fileno=one.detach()))) == b"from a stream\n"
        assert other.readall() == b"from asyncio\n"


def test_descriptors_between_socket_and_stream() -> None:
    """What socket.send_fds sends recv_fds receives, and the other way round."""
    here, there = UdStream.pair()
    with here, socket.socket(fileno=there.detach()) as plain:
        ours, theirs = os.pipe()
        socket.send_fds(plain, [b"one"], [ours])
        data, fds = here.recv_fds(10)
        with fds:
            assert data == b"one"
            os.write(theirs, b"through it")
            assert os.read(fds[0], 20) == b"through it"
        here.send_fds(b"two", [ours, theirs])
        message, received, _, _ = socket.recv_fds(plain, 10, 10)
        assert message == b"two"
        os.write(received[1], b"again")
        assert os.read(received[0], 20) == b"again"
        for fd in (ours, theirs, *received):
            os.close(fd)


def test_process_at_the_other_end() -> None:
    """A child that knows only of stdin and stdout is talked to over a stream."""
    here, there = UdStream.pair()
    code = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"
    with here, subprocess.Popen([sys.executable, "-c", code], stdin=there, stdout=there) as child:
        there.close()
        with here.makefile("rw") as file:
            for word in ("one", "two"):
                file.write(word + "\n")
                assert file.readline() == word.upper() + "\n"
            here.shutdown(Shutdown.WRITE)
            assert file.readline() == ""
        assert child.wait(PATIENCE) == 0


def test_multiprocessing_connection(folder: Path) -> None:
    """The framing of multiprocessing.connection works over a stream's descriptor, either way."""
    here, there = UdStream.pair()
    with Connection(here.detach()) as one, there:
        one.send_bytes(b"hello")
        size = int.from_bytes(there.read_exact(4), "big")
        assert there.read_exact(size) == b"hello"
        there.writev_all([(5).to_bytes(4, "big"), b"world"])
        assert one.recv_bytes() == b"world"

    path = str(folder / "s")
    with Listener(path, "AF_UNIX") as listener:
        with UdStream.connect(path) as stream, listener.accept() as accepted:
            accepted.send_bytes(b"x" * 1000)
            size = int.from_bytes(stream.read_exact(4), "big")
            assert stream.read_exact(size) == b"x" * 1000
        with in_thread(lambda: listener.accept().close()):
            Client(path, "AF_UNIX").close()
