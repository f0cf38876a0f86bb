"""Conversations with servers and clients that we did not write."""

from __future__ import annotations

import http.client
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, TextIOBase
from pathlib import Path
from typing import Any

import pytest
from real import PATIENCE, Program, environment, needs, python, require, running

import udstream
from udstream import UdStream, UdStreamListener

# --- redis-server: RESP, through a binary file for both ways ------------------------------------------------


@pytest.fixture
def redis(folder: Path) -> Iterator[Program]:
    command = ["redis-server", "--port", "0", "--unixsocket", str(folder / "redis.sock"), "--save", ""]
    with running(*command, "--dir", str(folder), env=environment(folder), ready="eady to accept") as program:
        yield program


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def resp_reply(file: BufferedIOBase) -> bytes | int | list[Any] | None:
    line = file.readline()
    assert line.endswith(b"\r\n"), f"redis ended in the middle of a line: {line!r}"
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    if kind == b"$":
        length = int(rest)
        if length < 0:
            return None
        value = file.read(length + 2)
        assert value[-2:] == b"\r\n"
        return value[:-2]
    assert kind == b"*", f"redis said {line!r}"
    return [resp_reply(file) for _ in range(int(rest))]


@needs("redis-server")
def test_redis_request_and_reply(folder: Path, redis: Program) -> None:
    """A request followed by reading its reply needs no flush, and any byte may be in a value."""
    anything = bytes(range(256)) * 3

    with udstream.open(folder / "redis.sock", "rwb", timeout=PATIENCE) as file:
        file.write(resp(b"PING"))
        assert resp_reply(file) == b"PONG"
        file.write(resp(b"SET", b"key", anything))
        assert resp_reply(file) == b"OK"
        file.write(resp(b"MGET", b"key", b"nothing"))
        assert resp_reply(file) == [anything, None]


@needs("redis-server")
def test_redis_value_larger_than_the_socket_buffer(folder: Path, redis: Program) -> None:
    """A value many times larger than what socket and file buffers hold comes back whole."""
    value = random.Random(1).randbytes(3_000_000)

    with udstream.open(folder / "redis.sock", "rwb", timeout=PATIENCE) as file:
        file.write(resp(b"SET", b"large", value))
        file.write(resp(b"GET", b"large"))
        assert resp_reply(file) == b"OK"
        assert resp_reply(file) == value


@needs("redis-server")
def test_redis_ten_thousand_pipelined_from_one_thread(folder: Path, redis: Program) -> None:
    """Ten thousand commands written before the first reply is read get their replies in order."""
    count = 10_000

    with udstream.open(folder / "redis.sock", "rwb", timeout=PATIENCE) as file:
        for number in range(count):
            file.write(resp(b"INCRBY", b"sum", b"%d" % number))
        sums = [resp_reply(file) for _ in range(count)]

    assert [number * (number + 1) // 2 for number in range(count)] == sums


@needs("redis-server")
def test_redis_ten_thousand_from_a_writer_with_a_reader(folder: Path, redis: Program) -> None:
    """While one thread writes ten thousand commands another reads the replies: all of them, in order."""
    count = 10_000
    failures: list[BaseException] = []

    def write(file: BufferedIOBase) -> None:
        try:
            for number in range(count):
                file.write(resp(b"ECHO", b"number %d" % number * 20))
            file.flush()
        except BaseException as error:
            failures.append(error)

    with udstream.open(folder / "redis.sock", "rwb", timeout=PATIENCE) as file:
        writer = threading.Thread(target=write, args=(file,))
        writer.start()
        try:
            replies = [resp_reply(file) for _ in range(count)]
        finally:
            writer.join(PATIENCE)

    assert not failures
    assert [b"number %d" % number * 20 for number in range(count)] == replies


@needs("redis-server")
def test_redis_is_who_the_kernel_says(folder: Path, redis: Program) -> None:
    """The peer's credentials are those of the process that listens."""
    with UdStream.connect(folder / "redis.sock", timeout=PATIENCE) as stream:
        peer = stream.peer_credentials()
        assert str(folder / "redis.sock") == str(stream.peer_path)

    assert (redis.pid, os.getuid(), os.getgid()) == (peer.pid, peer.uid, peer.gid)


COMMAND_LINE = "import sys; from udstream.cli import main; sys.exit(main())"


@needs("redis-server")
def test_redis_and_a_reader_that_leaves_with_its_answer(folder: Path, redis: Program) -> None:
    """`echo PING | udstream connect redis.sock | grep -q PONG` goes well, whoever of the three is quicker."""
    for _ in range(10):
        with subprocess.Popen(
            python(COMMAND_LINE, "connect", folder / "redis.sock"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(folder),
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"PING\r\n")
            process.stdin.close()
            assert process.stdout.readline() == b"+PONG\r\n"
            process.stdout.close()
            assert process.wait(PATIENCE) == 0


# --- gpg-agent: Assuan, lines of text -----------------------------------------------------------------------


@pytest.fixture
def gpg_agent(folder: Path) -> Iterator[Path]:
    # The agent runs as long as the command that it was given, which starts once its sockets listen.
    options = ["--homedir", str(folder), "--batch", "--disable-scdaemon", "--no-detach", "--daemon"]
    command = ["sh", "-c", "echo it listens; exec sleep infinity"]
    env = environment(folder, GNUPGHOME=str(folder))
    with running("gpg-agent", *options, *command, env=env, ready="it listens"):
        yield folder / "S.gpg-agent"


def assuan_reply(file: TextIOBase) -> list[str]:
    """The lines up to the one that ends a reply or asks for something."""
    lines = []
    while True:
        line = file.readline()
        assert line.endswith("\n"), f"gpg-agent ended in the middle of a line: {line!r}"
        lines.append(line.rstrip("\n"))
        if line.startswith(("OK", "ERR", "INQUIRE")):
            return lines


@needs("gpg-agent")
def test_gpg_agent_lines_of_text(folder: Path, gpg_agent: Path) -> None:
    """A server that greets first and answers line by line is a text file; an error is a line like another."""
    with udstream.open(gpg_agent, "rw", encoding="utf-8", timeout=PATIENCE) as file:
        assert file.readline().startswith("OK")
        file.write("GETINFO socket_name\n")
        assert assuan_reply(file) == [f"D {gpg_agent}", "OK"]
        file.write("NO_SUCH_COMMAND\n")
        [error] = assuan_reply(file)
        assert error.startswith("ERR ")
        file.write("GETINFO version\n")
        version, ok = assuan_reply(file)
        assert version.startswith("D 2.") and ok == "OK"
        file.write("BYE\n")
        assert file.readline().startswith("OK")
        assert file.readline() == ""


@needs("gpg-agent")
def test_gpg_agent_many_lines_read_and_written_in_turns(gpg_agent: Path) -> None:
    """With replies still unread, writing more loses none of them."""
    with udstream.open(gpg_agent, "rw", encoding="utf-8", timeout=PATIENCE) as file:
        file.readline()
        file.write("GETINFO pid\n")
        pid, _ = assuan_reply(file)
        replies = []
        for _ in range(100):
            file.write("GETINFO pid\nNOP\nGETINFO pid\n")
            replies += [file.readline(), file.readline()]
            file.write("NOP\n")
            replies += [file.readline() for _ in range(4)]

    assert [f"{pid}\n", "OK\n", "OK\n", f"{pid}\n", "OK\n", "OK\n"] * 100 == replies


@needs("gpg-agent")
def test_gpg_agent_asks_back(gpg_agent: Path) -> None:
    """A dialogue in which the server asks in the middle of a command, and answers with 8-bit data."""
    with udstream.open(gpg_agent, "rw", encoding="latin-1", timeout=PATIENCE) as file:
        file.readline()
        file.write("GENKEY --no-protection\n")
        assert assuan_reply(file)[-1] == "INQUIRE KEYPARAM"
        file.write("D (genkey (ecc (curve Ed25519)(flags eddsa)))\nEND\n")
        reply = assuan_reply(file)
        assert reply[-1] == "OK"
        [key] = [line for line in reply if line.startswith("D ")]
        assert key.startswith("D (10:public-key(3:ecc(5:curve7:Ed25519)")


# --- ssh-agent: messages in binary, each behind its length --------------------------------------------------

# The second test of RFC 8032, 7.1: secret key, public key, message and signature.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
MESSAGE = b"\x72"
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)

AGENT_SUCCESS, AGENT_REQUEST_IDENTITIES, AGENT_IDENTITIES_ANSWER = 6, 11, 12
AGENT_SIGN_REQUEST, AGENT_SIGN_RESPONSE, AGENT_ADD_IDENTITY = 13, 14, 17


def ssh_string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


KEY = ssh_string(b"ssh-ed25519") + ssh_string(PUBLIC)
KEY_TO_ADD = bytes([AGENT_ADD_IDENTITY]) + KEY + ssh_string(SECRET + PUBLIC) + ssh_string(b"a test")
REQUEST_IDENTITIES = bytes([AGENT_REQUEST_IDENTITIES])
IDENTITIES = bytes([AGENT_IDENTITIES_ANSWER]) + struct.pack(">I", 1) + ssh_string(KEY) + ssh_string(b"a test")
SIGN = bytes([AGENT_SIGN_REQUEST]) + ssh_string(KEY) + ssh_string(MESSAGE) + bytes(4)
SIGNED = bytes([AGENT_SIGN_RESPONSE]) + ssh_string(ssh_string(b"ssh-ed25519") + ssh_string(SIGNATURE))


@pytest.fixture
def ssh_agent(folder: Path) -> Iterator[Path]:
    path = folder / "ssh.sock"
    with running("ssh-agent", "-D", "-a", str(path), env=environment(folder), ready="SSH_AUTH_SOCK="):
        yield path


@needs("ssh-agent")
def test_ssh_agent_through_the_raw_stream(ssh_agent: Path) -> None:
    """write_all, writev_all and read_exact speak a protocol of length-prefixed messages without any buffer."""
    with UdStream.connect(ssh_agent, timeout=PATIENCE) as stream:

        def reply() -> bytes:
            (length,) = struct.unpack(">I", stream.read_exact(4))
            return stream.read_exact(length)

        stream.write_all(ssh_string(KEY_TO_ADD))
        assert reply() == bytes([AGENT_SUCCESS])
        stream.writev_all([struct.pack(">I", len(REQUEST_IDENTITIES)), REQUEST_IDENTITIES])
        assert reply() == IDENTITIES
        stream.writev_all([struct.pack(">I", len(SIGN)), SIGN])
        assert reply() == SIGNED


@needs("ssh-agent")
def test_ssh_agent_through_a_binary_file(ssh_agent: Path) -> None:
    """The same messages through an rwb file, some requests sent ahead of the replies; two at once."""
    with (
        udstream.open(ssh_agent, "rwb", timeout=PATIENCE) as one,
        udstream.open(ssh_agent, "rwb", timeout=PATIENCE) as other,
    ):

        def reply(file: BufferedIOBase) -> bytes:
            (length,) = struct.unpack(">I", file.read(4))
            return file.read(length)

        one.write(ssh_string(KEY_TO_ADD))
        assert reply(one) == bytes([AGENT_SUCCESS])
        for _ in range(50):
            one.write(ssh_string(SIGN))
        other.write(ssh_string(REQUEST_IDENTITIES))
        assert reply(other) == IDENTITIES
        assert [SIGNED] * 50 == [reply(one) for _ in range(50)]


@needs("ssh-agent")
def test_ssh_agent_ends_a_connection_that_breaks_the_protocol(ssh_agent: Path) -> None:
    """When the server hangs up, read_exact is an EOFError that says nothing came."""
    with UdStream.connect(ssh_agent, timeout=PATIENCE) as stream:
        stream.write_all(b"\xff\xff\xff\xff\0")
        with pytest.raises(EOFError) as caught:
            stream.read_exact(4)

    assert getattr(caught.value, "partial", None) == b""


@needs("ssh-agent")
def test_ssh_agent_answers_who_does_not_half_close(folder: Path, ssh_agent: Path) -> None:
    """A server that takes a half-close for the end of its client answers with --no-shutdown; --idle ends the wait."""
    done = subprocess.run(
        python(COMMAND_LINE, "connect", "--no-shutdown", "--idle", "2", ssh_agent),
        input=ssh_string(REQUEST_IDENTITIES),
        stdout=subprocess.PIPE,
        env=environment(folder),
        timeout=PATIENCE,
    )

    assert done.returncode == 0
    assert done.stdout == ssh_string(bytes([AGENT_IDENTITIES_ANSWER]) + bytes(4))


# --- asyncio's Protocol, whose transport closes when the client half-closes ----------------------------------

ASYNCIO_SERVER = """
import asyncio, sys

class Thinking(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        asyncio.get_running_loop().call_later(0.1, self.answer, data)

    def answer(self, data):
        self.transport.write(data.upper())
        self.transport.close()

async def serve():
    server = await asyncio.get_running_loop().create_unix_server(Thinking, sys.argv[1])
    print("it listens", flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""


def test_asyncio_answers_who_does_not_half_close(folder: Path) -> None:
    """A server made of asyncio's defaults, which thinks before it answers, does so with --no-shutdown."""
    path = folder / "asyncio.sock"
    with running(*python(ASYNCIO_SERVER, path), env=environment(folder), ready="it listens"):
        done = subprocess.run(
            python(COMMAND_LINE, "connect", "--no-shutdown", path),
            input=b"question",
            stdout=subprocess.PIPE,
            env=environment(folder),
            timeout=PATIENCE,
        )

    assert (done.returncode, done.stdout) == (0, b"QUESTION")


# --- socat and nc: clients of a listener --------------------------------------------------------------------


@contextmanager
def client(folder: Path, *command: str, stdin: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """
    A client program that reads *stdin*, and is to end well with the block.

    It prints into a file of the folder, so that no pipe of ours can hold it up.
    """
    require(command[0])
    (folder / "stdin").write_bytes(stdin)
    with open(folder / "stdin", "rb") as source, open(folder / "stdout", "wb") as sink:
        process = subprocess.Popen(command, stdin=source, stdout=sink, env=environment(folder))
    try:
        yield process
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


# Their last argument is where the socket is.
SOCAT = pytest.param(["socat", "-t", "30", "-", "UNIX-CONNECT:"], marks=needs("socat"), id="socat")
NC = pytest.param(["nc.openbsd", "-N", "-U", ""], marks=needs("nc.openbsd"), id="nc")


@pytest.mark.parametrize("command", [SOCAT, NC])
def test_client_program_line_by_line(folder: Path, command: list[str]) -> None:
    """A listener's loop of accept, makefile and lines serves a client program to its end of file."""
    lines = "".join(f"ligne {number} à répéter\n" for number in range(2000))
    path = folder / "listener.sock"

    with (
        UdStreamListener.bind(path) as listener,
        client(folder, *command[:-1], command[-1] + str(path), stdin=lines.encode()) as process,
    ):
        listener.timeout = PATIENCE
        with listener.accept() as stream, stream.makefile("rw", encoding="utf-8") as file:
            stream.timeout = PATIENCE
            peer = stream.peer_credentials()
            for line in file:
                file.write(line.upper())

    assert process.pid == peer.pid
    assert lines.upper() == (folder / "stdout").read_text("utf-8")


@pytest.mark.parametrize("command", [SOCAT, NC])
def test_client_program_megabytes_of_anything(folder: Path, command: list[str]) -> None:
    """Megabytes come out as they went in, and a half-close tells the client that this was all."""
    data = random.Random(2).randbytes(2_000_000)
    path = folder / "listener.sock"

    with (
        UdStreamListener.bind(path) as listener,
        client(folder, *command[:-1], command[-1] + str(path), stdin=data) as process,
    ):
        listener.timeout = PATIENCE
        with listener.accept() as stream:
            stream.timeout = PATIENCE
            received = stream.readall()
            stream.write_all(data[::-1])
            stream.shutdown(udstream.Shutdown.WRITE)
            assert process.wait(PATIENCE) == 0

    assert data == received
    assert data[::-1] == (folder / "stdout").read_bytes()


@needs("socat")
def test_socat_connects_to_our_abstract_name(folder: Path) -> None:
    """A name that we bind in the abstract namespace is, to its exact length, the one that socat looks for."""
    with (
        UdStreamListener.bind(f"@{folder.name}-ours") as listener,
        client(folder, "socat", "-t", "30", "-", f"ABSTRACT-CONNECT:{folder.name}-ours", stdin=b"hello\n"),
    ):
        listener.timeout = PATIENCE
        with listener.accept() as stream, stream.makefile("rwb") as file:
            stream.timeout = PATIENCE
            file.write(b"you said " + file.readline())

    assert (folder / "stdout").read_bytes() == b"you said hello\n"


@needs("socat")
def test_socat_listens_on_an_abstract_name(folder: Path) -> None:
    """We find the name that socat binds in the abstract namespace; and its echo, whatever the order of calls."""
    command = ["socat", "-d", "-d", f"ABSTRACT-LISTEN:{folder.name}-theirs", "PIPE"]
    with (
        running(*command, env=environment(folder), ready="listening on"),
        udstream.open(f"@{folder.name}-theirs", "rw", encoding="utf-8", timeout=PATIENCE) as file,
    ):
        # Three lines come back at once, so that some are read ahead when the fourth is written.
        file.write("one\ntwo\nthree\n")
        assert file.readline() == "one\n"
        file.write("four\n")
        assert [file.readline() for _ in range(3)] == ["two\n", "three\n", "four\n"]


# --- http.client over a UdStream, to the standard library's HTTP server -------------------------------------

HTTP_SERVER = """
import http.server, socketserver, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "a Unix socket"

    def end_headers(self):
        if self.close_connection:
            self.send_header("Connection", "close")
        super().end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

with Server(sys.argv[1], Handler) as server:
    print("it listens", flush=True)
    server.serve_forever()
"""


class SocketForHTTP:
    """The four methods of a socket that http.client uses."""

    def __init__(self, stream: UdStream) -> None:
        self._stream = stream
        self.sendall = stream.write_all
        self.close = stream.close

    def makefile(self, mode: str) -> Any:
        # A response outlives the connection that it came over when the server closes that one.
        return self._stream.dup().makefile(mode)


class HTTPConnection(http.client.HTTPConnection):
    """http.client's own, over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock: Any = SocketForHTTP(UdStream.connect(self._path, timeout=self.timeout))


@pytest.fixture
def http_connection(folder: Path) -> Iterator[HTTPConnection]:
    path = folder / "http.sock"
    command = python("import os, sys; os.chdir(sys.argv[2])" + HTTP_SERVER, path, folder)
    with running(*command, env=environment(folder), ready="it listens"):
        connection = HTTPConnection(path, timeout=PATIENCE)
        yield connection
        connection.close()


def test_http_requests_on_one_connection(folder: Path, http_connection: HTTPConnection) -> None:
    """http.client sends several requests, with and without a body, over one kept-alive UdStream."""
    content = random.Random(3).randbytes(700_000)
    (folder / "file").write_bytes(content)

    http_connection.request("GET", "/file")
    sock = http_connection.sock
    with http_connection.getresponse() as response:
        assert (200, "application/octet-stream") == (response.status, response.headers["Content-Type"])
        assert content == response.read()
    http_connection.request("POST", "/", body=content)
    with http_connection.getresponse() as response:
        assert content[::-1] == response.read()
    assert http_connection.sock is sock

    http_connection.request("GET", "/nothing")
    with http_connection.getresponse() as response:
        assert response.status == 404


def test_http_response_outlives_its_connection(folder: Path, http_connection: HTTPConnection) -> None:
    """When the server closes after its response, http.client closes first and reads the body after that."""
    (folder / "file").write_bytes(b"line\n" * 50_000)

    http_connection.request("GET", "/file", headers={"Connection": "close"})
    with http_connection.getresponse() as response:
        assert http_connection.sock is None
        assert [b"line\n"] * 50_000 == list(response)
