"""The command line, run as people run it: a process of its own, with real pipes and a real terminal."""

from __future__ import annotations

import ctypes
import grp
import os
import pty
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import udstream
from udstream.cli import COMMANDS, main

ROOT = Path(udstream.__file__).parent.parent
LONG = 60
LINUX = sys.platform.startswith("linux")
needs_linux = pytest.mark.skipif(not LINUX, reason="only Linux has this")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

# A process whose three pipes are there, which the type of Popen can't say.
Process = Any
Command = Callable[..., Process]


def words(*args: object) -> list[str]:
    """The words of a command line of ours."""
    return [sys.executable, "-W", "error", "-m", "udstream", *map(os.fspath, map(_word, args))]


def _word(arg: object) -> Any:
    return arg if isinstance(arg, (str, bytes, os.PathLike)) else str(arg)


def environment() -> dict[str, str]:
    """An environment in which this very package is found from any folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.fixture
def start() -> Iterator[Command]:
    """Start a command with pipes for all three; what a failing test leaves running is killed."""
    with ExitStack() as stack:

        def _start(*args: object, **options: Any) -> Process:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = subprocess.Popen(words(*args), env=environment(), **{**pipes, **options})
            stack.callback(_end, process)
            return process

        yield _start


def _end(process: Process) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except BrokenPipeError:
                pass
    process.wait(LONG)


def run(*args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(words(*args), env=environment(), capture_output=True, timeout=LONG, **options)


def ready(process: Process, path: object) -> None:
    """Wait until a listening command says that it listens on *path*."""
    assert process.stderr.readline().decode() == f"listening on {path}\n"


@pytest.fixture
def server(folder: Path) -> Iterator[socket.socket]:
    """A plain listening socket at ``folder/s``: not ours, so that both ends are not wrong alike."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        sock.listen()
        sock.settimeout(LONG)
        yield sock


def accept(server: socket.socket) -> socket.socket:
    """The next client of *server*, with an end to all waiting."""
    conn, _ = server.accept()
    conn.settimeout(LONG)
    return conn


def client(path: object) -> socket.socket:
    """A plain client of *path*."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LONG)
    try:
        sock.connect(os.fspath(_word(path)))
    except OSError:
        sock.close()
        raise
    return sock


def until_it_listens(path: object) -> socket.socket:
    """A client of a server that does not say when it listens."""
    while True:
        try:
            return client(path)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)


def send_all_that_goes(conn: socket.socket) -> None:
    """Send until the connection takes no more, which is the error."""
    while True:
        conn.send(b"x" * 65536)


def receive_all(conn: socket.socket) -> bytes:
    """All that comes, up to the end of the file."""
    return b"".join(iter(lambda: conn.recv(65536), b""))


# ---------------------------------------------------------------------------------------------- the command itself


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    """--help of the program and of each command prints its usage on stdout; status 0."""
    done = run(*filter(None, [command]), "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: udstream")
    assert done.stderr == b""


def test_version() -> None:
    """--version prints the package's version."""
    assert run("--version").stdout.decode() == f"udstream {udstream.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["no-such-command"],
        ["connect"],
        ["connect", ""],
        ["connect", "@" + "n" * 108],
        ["connect", "--timeout", "0", "p"],
        ["connect", "--time", "1", "p"],
        ["listen", "--mode", "rw", "p"],
        ["listen", "--mode", "7777", "p"],
        ["listen", "--allow-user", "no-such-user", "p"],
        ["listen", "--allow-group", "no-such-group", "p"],
        ["listen", "--backlog", "-1", "p"],
        ["pass", "p"],
        ["take", "--max", "few", "p"],
        ["take", "p", "cat"],
        ["take", "p", "--"],
    ],
)
def test_wrong_usage(args: list[str], folder: Path) -> None:
    """Wrong usage is said on stderr, with status 2, and makes no socket."""
    done = run(*args, cwd=folder)

    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr.decode().splitlines()[-1].startswith("udstream")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", [["connect"], ["who"], ["pass"]])
@pytest.mark.parametrize("what", ["missing", "stale", "file"])
def test_nobody_there(command: list[str], what: str, folder: Path) -> None:
    """A path where nobody listens is one line on stderr, with the path, the reason and its cause; status 1."""
    path = folder / "p"
    if what == "stale":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    elif what == "file":
        path.touch()

    done = run(*command, path, *(["/dev/null"] if command == ["pass"] else []))

    reason = {
        "missing": "No such file or directory",
        "stale": "Connection refused: nobody listens on it any more",
        "file": "Connection refused: it is a file, and no socket",
    }[what]
    assert done.stderr.decode() == f"udstream: {path}: {reason}\n"
    assert done.returncode == 1


def test_listen_where_something_else_is(folder: Path) -> None:
    """What is no socket stays where it is, and the error says what it is; of a name that is taken, only that."""
    done = run("listen", folder)
    assert (
        done.stderr.decode()
        == f"udstream: {folder}: Address already in use: it is a directory, and no socket\n"
    )
    assert done.returncode == 1


def test_a_command_without_the_dashes_before_it() -> None:
    """Who forgets -- is told where it stands, with the usage of `take`."""
    done = run("take", "in.sock", "cat", "{}")
    assert done.returncode == 2
    assert b"usage: udstream take" in done.stderr
    assert b"before a COMMAND stands --: udstream take in.sock -- cat {}" in done.stderr

    done = run("connect", "in.sock", "more")
    assert done.returncode == 2
    assert b"usage: udstream connect" in done.stderr
    assert b"unrecognized arguments: more\n" in done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--max", "0", "in.sock"], b"argument --max: it must be 1 or more"),
        (["in.sock", "--", ""], b"the name of COMMAND is empty"),
        (["in.sock", "--"], b"no COMMAND after --"),
        (["--mode", "999", "in.sock"], b"'999' is no octal mode such as 0600 or 660"),
        (["--backlog", "-1", "in.sock"], b"'-1' is not 0, 1, 2 or another whole number"),
    ],
)
def test_take_of_nothing(args: list[str], text: bytes) -> None:
    """What could never come to anything is refused before anybody is waited for."""
    done = run("take", *args)
    assert done.returncode == 2
    assert text in done.stderr


def test_error_is_one_line(folder: Path) -> None:
    """A path with a newline or an escape in it cannot make an error look like two, or command the terminal."""
    done = run("connect", folder / "a\nb\x1b[2J\udcff")

    assert done.stderr.decode() == f"udstream: {folder}/a\\nb\\x1b[2J\\udcff: No such file or directory\n"


def test_only_the_command_asked_for_is_imported(folder: Path) -> None:
    """A command does not pay for the others."""
    program = (
        "import sys; from udstream.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "connect", str(folder / "p")], env=environment(), capture_output=True
    )

    loaded = {name for name in done.stderr.decode().split() if name.startswith("udstream.cli.")}
    assert "udstream.cli.connect" in loaded
    assert loaded.isdisjoint(
        {f"udstream.cli.{module}" for module, _ in COMMANDS.values() if module != "connect"}
    )


def test_main_returns_the_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`main` raises for nothing that a user can do; it returns the status."""
    assert main(["connect", str(folder / "p")]) == 1
    assert main(["nonsense"]) == 2
    assert main(["--version"]) == 0
    assert f"udstream {udstream.__version__}" in capsys.readouterr().out


def test_closed_standard_files(server: socket.socket, folder: Path) -> None:
    """With stdin, stdout and stderr closed no socket gets their numbers: a closed stdin is an empty one."""
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words("connect", folder / "s")], env=environment()
    )
    with accept(server) as conn:
        assert conn.recv(100) == b""
    assert process.wait(LONG) == 0


def test_written_to_a_closed_stdout(server: socket.socket, folder: Path) -> None:
    """A stdout that is not open for writing is an error that names it."""
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words("connect", folder / "s")],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with accept(server) as conn:
        conn.send(b"x")
        assert process.communicate(timeout=LONG)[1] == b"udstream: stdout: Bad file descriptor\n"
    assert process.returncode == 1


PRINTING = [["doctor"], ["--version"], ["--help"], ["connect", "--help"], ["demo"], ["who", "s"]]


@needs_linux
@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_result_that_cannot_be_printed(server: socket.socket, folder: Path, command: list[str]) -> None:
    """A full disk under stdout is an error, in one line: status 1."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words(*command), env=environment(), cwd=folder, stdout=full, stderr=subprocess.PIPE, timeout=LONG
        )

    assert done.stderr == b"udstream: stdout: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize("command", [["doctor"], ["--version"], ["demo"], ["who", "s"]], ids=" ".join)
def test_result_for_a_closed_stdout(server: socket.socket, folder: Path, command: list[str]) -> None:
    """A result that nobody can get is an error."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words(*command)],
        env=environment(),
        cwd=folder,
        stderr=subprocess.PIPE,
        timeout=LONG,
    )

    assert done.stderr == b"udstream: stdout: Bad file descriptor\n"
    assert done.returncode == 1


@needs_linux
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["connect", "nobody"], 1),
        pytest.param(
            ["nonsense"],
            2,
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="its argparse is stopped by that"),
        ),
    ],
)
def test_error_that_cannot_be_printed(folder: Path, command: list[str], status: int) -> None:
    """A full disk under stderr changes no exit status."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words(*command), env=environment(), cwd=folder, stderr=full, timeout=LONG)

    assert done.returncode == status


@needs_linux
def test_note_that_cannot_be_printed(folder: Path) -> None:
    """Nor does it where all went well."""
    path = folder / "s"
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(words("listen", "--echo", path), env=environment(), stderr=full)
        with until_it_listens(path) as conn:
            conn.sendall(b"all is well")
            conn.shutdown(socket.SHUT_WR)
            assert receive_all(conn) == b"all is well"

    assert process.wait(LONG) == 0


# ----------------------------------------------------------------------------------------------------- no more threads

# The command line, where the system lets only so many threads start.
FEW_THREADS = """
import sys, threading
from udstream.cli import main

start, left = threading.Thread.start, int(sys.argv[1])

def start_if_there_may_be_one(thread):
    global left
    if not left:
        raise RuntimeError("can't start new thread")
    left -= 1
    start(thread)

threading.Thread.start = start_if_there_may_be_one
sys.exit(main(sys.argv[2:]))
"""


def with_few_threads(count: int, *args: object) -> list[str]:
    """The command that runs a command line of ours with no more than *count* threads of its own."""
    return [sys.executable, "-W", "error", "-c", FEW_THREADS, str(count), *map(os.fspath, map(_word, args))]


def test_echo_with_no_thread_left(folder: Path) -> None:
    """A client for whom there is no thread is turned away; those that are served go on, and so does the server."""
    path = folder / "s"
    # One watches for signals.
    command = with_few_threads(2, "listen", "--echo", "--keep-open", path)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        ready(process, path)
        with client(path) as served:
            served.sendall(b"one")
            assert served.recv(3) == b"one"
            for _ in range(2):
                with client(path) as turned_away:
                    assert receive_all(turned_away) == b""
                assert process.stderr.readline() == f"udstream: {path}: can't start new thread\n".encode()
            served.sendall(b"two")
            assert served.recv(3) == b"two"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
        assert process.wait(LONG) == 130


def test_connect_with_no_thread_left(server: socket.socket, folder: Path) -> None:
    """It is an error like any other."""
    command = with_few_threads(0, "connect", folder / "s")
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=LONG, check=False)

    assert done.stderr == f"udstream: {folder / 's'}: can't start new thread\n".encode()
    assert (done.returncode, done.stdout) == (1, b"")


def test_listen_with_no_thread_left(folder: Path) -> None:
    """Nothing is bound where a signal could not end it in order."""
    command = with_few_threads(0, "listen", folder / "s")
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=LONG, check=False)

    assert done.stderr == f"udstream: {folder / 's'}: can't start new thread\n".encode()
    assert (done.returncode, os.listdir(folder)) == (1, [])


# --------------------------------------------------------------------------------------------------------- connect


def test_connect_both_ways(server: socket.socket, folder: Path, start: Command) -> None:
    """What stdin has goes to the server as it comes, and what the server says to stdout, byte for byte."""
    process = start("connect", folder / "s")
    stdin, stdout = process.stdin, process.stdout
    everything = bytes(range(256))
    with accept(server) as conn:
        stdin.write(b"no newline")
        stdin.flush()
        assert conn.recv(100) == b"no newline"
        conn.send(everything)
        assert os.read(stdout.fileno(), 1000) == everything
        stdin.write(everything)
        stdin.flush()
        assert conn.recv(1000) == everything
    assert process.wait(LONG) == 0


def test_connect_half_closes(server: socket.socket, folder: Path, start: Command) -> None:
    """When stdin ends the server sees the end of the file, and can still answer."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        process.stdin.write(b"question")
        process.stdin.close()
        assert receive_all(conn) == b"question"
        assert process.poll() is None
        conn.sendall(b"answer")
    assert process.stdout.read() == b"answer"
    assert process.wait(LONG) == 0
    assert process.stderr.read() == b""


def test_connect_ends_with_the_server(server: socket.socket, folder: Path, start: Command) -> None:
    """When the server closes, connect ends at once with status 0, though its stdin, a pipe, is still open."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        conn.sendall(b"goodbye")
    assert process.wait(LONG) == 0
    assert process.stdout.read() == b"goodbye"
    assert process.stderr.read() == b""


def test_connect_at_a_terminal(server: socket.socket, folder: Path, start: Command) -> None:
    """A person types lines, sees answers, and has the shell back as soon as the server closes."""
    ours, theirs = pty.openpty()
    try:
        process = start("connect", folder / "s", stdin=theirs, stdout=theirs, stderr=theirs)
        with accept(server) as conn:
            os.write(ours, b"hello\n")
            assert conn.recv(100) == b"hello\n"
            conn.sendall(b"hi there\n")
            seen = b""
            while b"hi there" not in seen:
                seen += os.read(ours, 100)
            os.write(ours, b"\x04")  # Ctrl-D: the end of what is typed
            assert conn.recv(100) == b""
            conn.sendall(b"bye\n")
        assert process.wait(LONG) == 0
        assert os.get_blocking(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_connect_at_a_terminal_ends_with_the_server(
    server: socket.socket, folder: Path, start: Command
) -> None:
    """A person who has typed nothing is not kept waiting after the server has closed."""
    ours, theirs = pty.openpty()
    try:
        process = start("connect", folder / "s", stdin=theirs)
        accept(server).close()
        assert process.wait(LONG) == 0
        assert process.stderr.read() == b""
    finally:
        os.close(ours)
        os.close(theirs)


def test_connect_sends_on_to_a_server_that_says_nothing(
    server: socket.socket, folder: Path, start: Command
) -> None:
    """A server that ends its own side first still gets all of stdin: it may only want to read."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        conn.shutdown(socket.SHUT_WR)
        data = os.urandom(1_000_000)
        writer = threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close()))
        writer.start()
        assert receive_all(conn) == data
        writer.join(LONG)
        assert process.wait(LONG) == 0


def test_connect_100_megabytes_through_an_echo(folder: Path, start: Command) -> None:
    """100 MB through an echo server and back drain: neither way waits for the other."""
    path = folder / "echo"
    echo = start("listen", "--echo", path)
    ready(echo, path)
    block = os.urandom(1_000_000)
    process: Process
    with subprocess.Popen(words("connect", path), env=environment(), stdin=-1, stdout=-1) as process:
        writer = threading.Thread(
            target=lambda: ([process.stdin.write(block) for _ in range(100)], process.stdin.close())
        )
        writer.start()
        for _ in range(100):
            assert process.stdout.read(len(block)) == block
        assert process.stdout.read() == b""
        writer.join(LONG)
        assert process.wait(LONG) == 0
    assert echo.wait(LONG) == 0


def test_connect_reads_while_it_cannot_write(server: socket.socket, folder: Path, start: Command) -> None:
    """A server that reads nothing until all it says was read does not make connect wait."""
    process = start("connect", folder / "s")
    data = os.urandom(2_000_000)
    with accept(server) as conn:
        writer = threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close()))
        writer.start()
        sender = threading.Thread(target=conn.sendall, args=(data,))
        sender.start()
        assert process.stdout.read(len(data)) == data
        sender.join(LONG)
        assert receive_all(conn) == data
        writer.join(LONG)
    assert process.wait(LONG) == 0


def test_connect_tells_when_the_server_missed_something(server: socket.socket, folder: Path) -> None:
    """A server that leaves with something unread is an error: not all was delivered."""
    process: Process
    with subprocess.Popen(words("connect", folder / "s"), env=environment(), stdin=-1, stderr=-1) as process:
        with accept(server) as conn:
            process.stdin.write(b"x" * 10000)
            process.stdin.flush()
            assert conn.recv(1, socket.MSG_PEEK) == b"x"
        assert re.fullmatch(
            rb"udstream: .*/s: (Connection reset by peer|Broken pipe)\n", process.stderr.read()
        )
        assert process.wait(LONG) == 1


def test_connect_tells_when_the_server_stops_reading(server: socket.socket, folder: Path) -> None:
    """A server that refuses to read on is an error, but what it still says is printed first."""
    process: Process
    with subprocess.Popen(
        words("connect", folder / "s"), env=environment(), stdin=-1, stdout=-1, stderr=-1
    ) as process:
        with accept(server) as conn:
            conn.shutdown(socket.SHUT_RD)
            process.stdin.write(b"nobody wants this")
            process.stdin.close()
            conn.sendall(b"enough")
        assert process.stdout.read() == b"enough"
        assert process.stderr.read().decode() == f"udstream: {folder}/s: Broken pipe\n"
        assert process.wait(LONG) == 1


@pytest.mark.parametrize("sent", [b"one\ntwo\n", b"y\n" * 1_000_000])
def test_connect_output_closed(sent: bytes, server: socket.socket, folder: Path, start: Command) -> None:
    """When nobody reads stdout any more, connect ends without a word: status 141, as after SIGPIPE."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        sender = threading.Thread(target=_send_what_goes, args=(conn, sent))
        sender.start()
        assert process.stdout.read(4) == sent[:4]
        process.stdout.close()
        assert process.wait(LONG) == 141
        sender.join(LONG)
    assert process.stderr.read() == b""


def _send_what_goes(conn: socket.socket, data: bytes) -> None:
    try:
        conn.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_connect_interrupted(number: int, server: socket.socket, folder: Path, start: Command) -> None:
    """Ctrl-C ends connect with 130 and without a traceback, whatever it waits for; SIGTERM ends it too."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        # It is past its start, and blocked in sending to a server that does not read.
        filler = threading.Thread(target=_write_what_goes, args=(process.stdin,))
        filler.start()
        conn.recv(1)
        process.send_signal(number)
        assert process.wait(LONG) == (130 if number == signal.SIGINT else -number)
        filler.join(LONG)
    assert process.stderr.read() == b""


def _write_what_goes(pipe: Any) -> None:
    try:
        pipe.write(b"x" * 1_000_000)
        pipe.flush()
    except BrokenPipeError:
        pass


def test_connect_leaves_the_mode_of_stdin_and_stdout(
    server: socket.socket, folder: Path, start: Command
) -> None:
    """O_NONBLOCK, which the shell shares, is as it was, while connect runs and afterwards."""
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    try:
        process = start("connect", folder / "s", stdin=in_r, stdout=out_w)
        with accept(server) as conn:
            os.write(in_w, b"x")
            assert conn.recv(1) == b"x"
            assert os.get_blocking(in_r)
            assert os.get_blocking(out_w)
        assert process.wait(LONG) == 0
        assert os.get_blocking(in_r)
        assert os.get_blocking(out_w)
    finally:
        for fd in (in_r, in_w, out_r, out_w):
            os.close(fd)


def test_connect_nonblocking_stdin_and_stdout(server: socket.socket, folder: Path, start: Command) -> None:
    """A stdin and a stdout that somebody else made nonblocking lose nothing."""
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    os.set_blocking(in_r, False)
    os.set_blocking(out_w, False)
    data = os.urandom(1_000_000)
    with open(in_w, "wb") as into, open(out_r, "rb") as out:
        process = start("connect", folder / "s", stdin=in_r, stdout=out_w)
        os.close(in_r)
        os.close(out_w)
        with accept(server) as conn:
            into.write(b"x")
            into.flush()
            assert conn.recv(1) == b"x"
            sender = threading.Thread(target=conn.sendall, args=(data,))
            sender.start()
            assert out.read(len(data)) == data
            sender.join(LONG)
        assert process.wait(LONG) == 0


def test_connect_timeout(folder: Path) -> None:
    """--timeout bounds the wait for a server whose backlog is full."""
    with socket.socket(socket.AF_UNIX) as full, ExitStack() as stack:
        full.bind(str(folder / "s"))
        full.listen(0)
        stack.enter_context(client(folder / "s"))

        done = run("connect", "--timeout", "0.2", folder / "s")

    assert done.returncode == 1
    assert re.fullmatch(rf"udstream: {folder}/s: .*timed out\n", done.stderr.decode())


@needs_linux
def test_abstract_name(folder: Path, start: Command) -> None:
    """@name is a name in the abstract namespace, for listen and for connect."""
    name = f"@{folder.name}"
    process = start("listen", name)
    ready(process, name)

    with client("\0" + name[1:]) as conn:
        conn.sendall(b"over the wall")
        process.stdin.close()
        assert conn.recv(1) == b""
    assert process.stdout.read() == b"over the wall"
    assert process.wait(LONG) == 0


# ---------------------------------------------------------------------------------------------------------- listen


def test_listen_serves_one(folder: Path, start: Command) -> None:
    """One client is joined to stdin and stdout; then listen ends, and its socket file is gone."""
    path = folder / "s"
    process = start("listen", path)
    ready(process, path)
    with client(path) as conn:
        conn.sendall(b"to the server")
        process.stdin.write(b"to the client")
        process.stdin.close()
        assert receive_all(conn) == b"to the client"
    assert process.stdout.read() == b"to the server"
    assert process.wait(LONG) == 0
    assert not path.exists()


def test_listen_admits_nobody_after_the_one(folder: Path, start: Command) -> None:
    """While the one client is served, others are refused at once rather than left waiting."""
    path = folder / "s"
    process = start("listen", path)
    ready(process, path)
    with client(path) as conn:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert conn.recv(1) == b"x"
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            client(path)
    assert process.wait(LONG) == 0


def test_listen_and_connect(folder: Path, start: Command) -> None:
    """A file goes from a connect to a listen that has no stdin to send, and arrives whole."""
    path = folder / "s"
    data = os.urandom(3_000_000)
    process = start("listen", path, stdin=subprocess.DEVNULL)
    ready(process, path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(process.stdout.read()))
    reader.start()

    assert run("connect", path, input=data).returncode == 0
    assert process.wait(LONG) == 0
    reader.join(LONG)
    assert got == [data]


def test_listen_keep_open_in_turn(folder: Path, start: Command) -> None:
    """--keep-open serves one client after the other, and stdin goes to the one that is connected."""
    path = folder / "s"
    process = start("listen", "--keep-open", path)
    ready(process, path)
    for number in (b"1", b"2", b"3"):
        with client(path) as conn:
            conn.sendall(b"from " + number)
            assert os.read(process.stdout.fileno(), 100) == b"from " + number
            process.stdin.write(b"for " + number)
            process.stdin.flush()
            assert conn.recv(100) == b"for " + number
    process.stdin.close()
    with client(path) as conn:
        assert conn.recv(1) == b""
        conn.sendall(b"still heard")
    assert os.read(process.stdout.fileno(), 100) == b"still heard"
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 143
    assert not path.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_listen_ends_by_a_signal_that_the_main_thread_does_not_meet(
    number: int, status: int, folder: Path, start: Command
) -> None:
    """A signal ends a server even where it comes a moment too early to interrupt the accept."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None:
        pytest.skip("a signal cannot be sent to one thread here")
    path = folder / "s"
    process = start("listen", "--echo", "--keep-open", path)
    ready(process, path)
    with client(path) as conn:
        conn.sendall(b"ping")
        assert conn.recv(4) == b"ping"
        # To a thread that is not in the accept, which therefore goes on.
        other = max(map(int, os.listdir(f"/proc/{process.pid}/task")))
        assert other != process.pid
        tgkill(process.pid, other, number)
        assert process.wait(LONG) == status
    assert process.stderr.read() == b""
    assert not path.exists()


def test_listen_keep_open_survives_a_client_that_breaks_off(folder: Path, start: Command) -> None:
    """A client that leaves with something unread is told on stderr, and the next one is served."""
    path = folder / "s"
    process = start("listen", "--keep-open", path)
    ready(process, path)
    with client(path) as conn:
        process.stdin.write(b"unread")
        process.stdin.flush()
        assert conn.recv(1, socket.MSG_PEEK) == b"u"
    assert process.stderr.readline().startswith(b"udstream: ")
    with client(path) as conn:
        conn.sendall(b"next")
        assert os.read(process.stdout.fileno(), 100) == b"next"


def test_listen_echo_ends_after_one(folder: Path, start: Command) -> None:
    """--echo sends back what comes; without --keep-open it ends with its client."""
    path = folder / "s"
    process = start("listen", "--echo", path)
    ready(process, path)
    with client(path) as conn:
        conn.sendall(b"abc")
        conn.shutdown(socket.SHUT_WR)
        assert receive_all(conn) == b"abc"
    assert process.wait(LONG) == 0
    assert not path.exists()


def test_listen_echo_serves_all_at_once(folder: Path, start: Command) -> None:
    """With --echo --keep-open a client that never reads keeps nobody else waiting, nor the end."""
    path = folder / "s"
    process = start("listen", "--echo", "--keep-open", path)
    ready(process, path)
    with client(path) as slow, client(path) as rude, client(path) as other:
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):
            send_all_that_goes(slow)
        rude.sendall(b"x")
        rude.close()
        for _ in range(3):
            other.sendall(b"ping")
            assert other.recv(4) == b"ping"
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
    assert process.stderr.read() == b""
    assert not path.exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("args", [["listen"], ["listen", "--echo", "--keep-open"], ["take"]])
def test_listening_interrupted(
    args: list[str], number: int, status: int, folder: Path, start: Command
) -> None:
    """A signal ends a command that waits for a client, without a traceback, and the socket file goes."""
    path = folder / "s"
    process = start(*args, path)
    ready(process, path)
    assert path.is_socket()

    process.send_signal(number)

    assert process.wait(LONG) == status
    assert process.stderr.read() == b""
    assert not path.exists()


def test_listen_interrupted_while_serving(folder: Path, start: Command) -> None:
    """SIGTERM in the middle of a conversation ends it."""
    path = folder / "s"
    process = start("listen", path)
    ready(process, path)
    with client(path) as conn:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert conn.recv(1) == b"x"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 143
        assert conn.recv(1) == b""
    assert process.stderr.read() == b""


def test_listen_ignored_signal_stays_ignored(folder: Path, start: Command) -> None:
    """Under nohup, a hang-up ends nothing."""
    path = folder / "s"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("listen", "--echo", path)
    finally:
        signal.signal(signal.SIGHUP, before)
    ready(process, path)
    process.send_signal(signal.SIGHUP)
    with client(path) as conn:
        conn.sendall(b"alive")
        assert conn.recv(5) == b"alive"


def test_listen_quiet(folder: Path, start: Command) -> None:
    """--quiet leaves out the line that says when it is ready."""
    path = folder / "s"
    process = start("listen", "--quiet", "--echo", path)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(client(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert process.poll() is None
    assert process.wait(LONG) == 0
    assert process.stderr.read() == b""


@needs_linux
def test_listen_at_the_limit_of_open_files(folder: Path) -> None:
    """Out of descriptors, listen says so once, serves whom it has, and goes on when there are some again."""
    path = folder / "s"
    command = words("listen", "--echo", "--keep-open", path)
    process: Process
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -n 12; exec "$@"', "sh", *command], env=environment(), stdin=-1, stderr=-1
    ) as process:
        ready(process, path)
        with ExitStack() as stack:
            clients = [stack.enter_context(client(path)) for _ in range(20)]
            assert process.stderr.readline().decode() == f"udstream: {path}: Too many open files\n"
            clients[0].sendall(b"still served")
            assert clients[0].recv(100) == b"still served"
        with client(path) as conn:
            conn.sendall(b"again")
            assert conn.recv(100) == b"again"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 143


def test_listen_where_somebody_listens(server: socket.socket, folder: Path) -> None:
    """A live socket is not replaced: one line, status 1, and the other server goes on."""
    done = run("listen", folder / "s")

    assert done.stderr.decode() == f"udstream: {folder}/s: Address already in use\n"
    assert done.returncode == 1
    client(folder / "s").close()


@needs_linux
@pytest.mark.parametrize(
    ("options", "mode"),
    [
        (["--mode", "0600"], 0o600),
        (["--mode", "660"], 0o660),
        (["--allow-user", "0"], 0o666),
        (["--allow-user", "0", "--mode", "0640"], 0o640),
    ],
)
def test_listen_mode(options: list[str], mode: int, folder: Path, start: Command) -> None:
    """--mode is the socket file's; where users are admitted by name, the mode lets them come that far."""
    path = folder / "s"
    process = start("listen", *options, path)
    ready(process, path)

    assert stat.S_IMODE(path.stat().st_mode) == mode


@needs_linux
@pytest.mark.parametrize("option", ["--allow-user", "--allow-group"])
def test_listen_refuses(option: str, folder: Path, start: Command) -> None:
    """Whoever is not among the allowed is closed unserved, and told on stderr; listen waits on."""
    path = folder / "s"
    process = start("listen", option, 4_000_000_001, path)
    ready(process, path)

    for _ in range(2):
        with client(path) as conn:
            assert conn.recv(1) == b""
        line = process.stderr.readline().decode()
        assert line.startswith(f"udstream: {path}: refused ")
        assert f"(uid {os.geteuid()}), pid {os.getpid()}" in line
    assert process.poll() is None


@needs_linux
@pytest.mark.parametrize(
    "options",
    [
        ["--allow-user", pwd.getpwuid(os.geteuid()).pw_name],
        ["--allow-user", "4000000001", "--allow-user", os.geteuid()],
        ["--allow-group", grp.getgrgid(os.getegid()).gr_name],
        ["--allow-user", "4000000001", "--allow-group", os.getegid()],
    ],
)
def test_listen_admits(options: list[object], folder: Path, start: Command) -> None:
    """Whoever is allowed, by name or number, as a user or by a group, is served."""
    path = folder / "s"
    process = start("listen", "--echo", *options, path)
    ready(process, path)

    with client(path) as conn:
        conn.sendall(b"let me in")
        assert conn.recv(100) == b"let me in"
    assert process.wait(LONG) == 0


@needs_linux
@needs_root
@pytest.mark.parametrize(
    ("option", "groups", "answer"),
    [("--allow-user", [], b"x"), ("--allow-group", [54321], b"x"), ("--allow-group", [54322], b"")],
)
def test_listen_admits_other_users(
    option: str, groups: list[int], answer: bytes, folder: Path, start: Command
) -> None:
    """A process of another user gets in by its uid, or by a supplementary group, and not without."""
    path = folder / "s"
    folder.chmod(0o755)
    process = start("listen", "--echo", option, 54321, path)
    ready(process, path)

    program = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX);"
        f"os.setgroups({groups}); os.setgid(54320); os.setuid(54321);"
        "s.connect(sys.argv[1]); s.send(b'x'); os.write(1, s.recv(1))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, timeout=LONG)

    # One that is refused may be closed with what it sent unread.
    assert done.stdout == answer or (answer == b"" and b"ConnectionResetError" in done.stderr)


# ------------------------------------------------------------------------------------------------------------ demo


def test_demo() -> None:
    """demo prints each step and ends with 0; it leaves no socket behind."""
    done = run("demo")

    out = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert "wrote PING, read PONG" in out
    assert f"(uid {os.geteuid()})" in out
    path = re.search(r"listen +on (\S+),", out)
    assert path
    assert not os.path.lexists(os.path.dirname(path[1]))


def test_demo_under_any_locale() -> None:
    """A terminal that cannot show a character gets an escape for it."""
    done = subprocess.run(
        words("demo"), env={**environment(), "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=LONG
    )

    assert done.returncode == 0, done.stderr.decode()
    assert rb"GR\xdc\u1e9e" in done.stdout or rb"GR\xdcSS" in done.stdout


def test_demo_that_fails_says_where(folder: Path) -> None:
    """A step that fails ends demo with its name, the reason, and status 1."""
    program = (
        "import sys, udstream.cli.demo as demo; from udstream.cli import main;"
        "demo.GREETING = 'no newline\\n'; demo.PATIENCE = 2; sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, timeout=LONG
    )

    assert done.returncode == 1
    assert done.stderr.startswith(b"udstream: demo: text: expected ")
    assert done.stderr.count(b"\n") == 1


def test_output_closed_at_once() -> None:
    """A command whose reader has gone prints no traceback; status 141."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            words("doctor"), env=environment(), stdout=writer, stderr=subprocess.PIPE, timeout=LONG
        )
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


# ------------------------------------------------------------------------------------------------------------- who


def facts(output: bytes) -> dict[str, str]:
    """The lines of `who`, by their label."""
    return {line[:12].rstrip(): line[12:].strip() for line in output.decode().splitlines()}


@needs_linux
def test_who(folder: Path, start: Command) -> None:
    """who names the process that listens, its program and user, and the file's mode and inode."""
    path = folder / "s"
    process = start("listen", "--keep-open", "--mode", "0600", path)
    ready(process, path)

    done = run("who", path)

    found = facts(done.stdout)
    assert done.returncode == 0, done.stderr.decode()
    assert found["socket"] == str(path)
    assert found["file"] == f"srw-------, inode {path.stat().st_ino}"
    assert found["process"] == str(process.pid)
    assert found["running"] == "yes"
    assert found["program"] == os.path.realpath(sys.executable)
    assert found["command"].endswith(f"-m udstream listen --keep-open --mode 0600 {path}")
    assert f"(uid {os.geteuid()})" in found["user"]
    assert f"(gid {os.getegid()})" in found["group"]


@needs_linux
def test_who_of_an_abstract_name(folder: Path, start: Command) -> None:
    """An abstract name has no file; all else is told."""
    name = f"@{folder.name}"
    process = start("listen", "--keep-open", name)
    ready(process, name)

    found = facts(run("who", name).stdout)

    assert found["socket"].startswith(f"{name}, in the abstract namespace")
    assert "file" not in found
    assert found["process"] == str(process.pid)


@needs_linux
def test_who_of_a_process_that_has_ended(folder: Path) -> None:
    """When the one who listened has ended and a child holds the socket, who says so, and names no other program."""
    path = folder / "s"
    program = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "os.fork() and os._exit(0); os.write(1, b'x'); sys.stdin.read()"
    )
    process: Process
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=-1, stdout=-1) as process:
        assert process.stdout.read(1) == b"x"
        # Ended, and not yet waited for: its number is not free, and /proc still has a folder for it.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        found = facts(run("who", path).stdout)

    assert found["running"].startswith(("no: it has ended", "unknown: "))
    if not found["running"].startswith("unknown: "):
        assert found["command"] == "unknown: the process has ended"
    assert found["program"].startswith("unknown: ")


def test_who_tells_the_file_though_nobody_listens(folder: Path) -> None:
    """The facts of a dead socket's file are printed, and then the error."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))

    done = run("who", path)

    assert f"inode {path.stat().st_ino}" in done.stdout.decode()
    assert done.returncode == 1


# --------------------------------------------------------------------------------------------------- pass and take


def take(start: Command, path: Path, *args: object, **options: Any) -> Process:
    """A `take` that waits on *path*."""
    process = start("take", *args, **{"stdin": subprocess.DEVNULL, **options})
    ready(process, path)
    return process


def test_take_lists(folder: Path, start: Command) -> None:
    """Without a command, take prints a line for each file: number, name, kind, size, access, target."""
    path = folder / "s"
    (folder / "file one").write_bytes(b"12345")
    process = take(start, path, path)
    reader, writer = os.pipe()
    os.close(writer)
    try:
        done = run("pass", path, "file one", ".", "-", cwd=folder, stdin=reader)
    finally:
        os.close(reader)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    lines = [re.split(r"  +", line) for line in process.stdout.read().decode().splitlines()]
    assert process.wait(LONG) == 0
    assert [line[:5] for line in lines] == [
        ["1", "file one", "file", "5 bytes", "read"],
        ["2", ".", "directory", "-", "read"],
        ["3", "-", "pipe", "-", "read"],
    ]
    if LINUX:
        assert [line[5] for line in lines[:2]] == [f"{folder}/file one", f"{folder}"]
    assert not path.exists()


def test_take_prints_no_control_characters(folder: Path, start: Command) -> None:
    """A name from the other side can neither fake a line nor command the terminal."""
    path = folder / "s"
    process = take(start, path, path)
    with client(path) as conn, open(os.devnull) as null:
        socket.send_fds(conn, [b"a\n9 \x1b[2J\xff\0"], [null.fileno()])

    out = process.stdout.read().decode()
    assert out.startswith("1  a\\n9 \\x1b[2J\\udcff  character device")
    assert out.count("\n") == 1


def test_pass_for_writing(folder: Path, start: Command) -> None:
    """--write opens for reading and writing; it makes no file."""
    path = folder / "s"
    (folder / "f").write_bytes(b"old")
    process = take(start, path, path, "--", "sh", "-c", "printf new >&3")

    assert run("pass", "--write", path, folder / "missing").returncode == 1
    assert run("pass", "--write", path, folder / "f").returncode == 0

    assert process.wait(LONG) == 0
    assert (folder / "f").read_bytes() == b"new"
    assert not (folder / "missing").exists()


def test_pass_sends_nothing_when_a_file_cannot_be_opened(folder: Path, server: socket.socket) -> None:
    """All files are opened first: an error names the one that can't be, and nobody is connected to."""
    done = run("pass", folder / "s", os.devnull, folder / "missing")

    assert done.stderr.decode() == f"udstream: {folder}/missing: No such file or directory\n"
    assert done.returncode == 1
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_pass_a_file_without_a_name(folder: Path, server: socket.socket) -> None:
    """The error is about the file, and not about the socket."""
    done = run("pass", folder / "s", "")

    assert (done.returncode, done.stderr) == (1, b"udstream: '': No such file or directory\n")


def test_pass_to_another_program(folder: Path, server: socket.socket) -> None:
    """One message carries the descriptors, and the names, each with a NUL after it."""
    for name in ("one", "two"):
        (folder / name).write_text(name)

    # Nobody has accepted yet: what was passed waits in the kernel, also after `pass` has ended.
    assert run("pass", "s", "one", "two", cwd=folder).returncode == 0

    with accept(server) as conn:
        data, fds, _, _ = socket.recv_fds(conn, 1000, 10)
        contents = []
        for fd in fds:
            with open(fd) as file:
                contents.append(file.read())
        assert conn.recv(1) == b""
    assert data == b"one\0two\0"
    assert contents == ["one", "two"]


def test_take_from_another_program(folder: Path, start: Command) -> None:
    """Descriptors from a program that says something else are taken all the same, each with the name -."""
    path = folder / "s"
    process = take(start, path, path)
    with client(path) as conn, open(os.devnull) as null:
        socket.send_fds(conn, [b"x"], [null.fileno()])
        socket.send_fds(conn, [b"y"], [null.fileno()])

    lines = [line.split()[:2] for line in process.stdout.read().decode().splitlines()]
    assert lines == [["1", "-"], ["2", "-"]]


def test_pass_many(folder: Path, start: Command) -> None:
    """More files than one message can carry arrive in order, each under its own name."""
    path = folder / "s"
    names = [f"f{number}" for number in range(300)]
    for name in names:
        (folder / name).write_text(name)
    process = take(start, path, path, "--", "sh", "-c", 'echo $UDSTREAM_FDS; cat "$@"', "sh", "{}")

    assert run("pass", "s", *names, cwd=folder).returncode == 0

    out = process.stdout.read().decode()
    assert process.wait(LONG) == 0, process.stderr.read()
    assert out == " ".join(str(fd) for fd in range(3, 303)) + "\n" + "".join(names)


@needs_linux
def test_take_runs_a_command_with_the_files_and_no_others(folder: Path, start: Command) -> None:
    """COMMAND has 0, 1, 2 and what was passed, in order, whatever take itself had inherited."""
    path = folder / "s"
    for name in ("one", "two"):
        (folder / name).write_text(name)
    extra = os.open(os.devnull, os.O_RDONLY)
    try:
        program = (
            "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1],"
            "os.read(3, 9), os.read(4, 9), os.environ['UDSTREAM_FDS'], os.environ['UDSTREAM_FDNAMES'].split('\\n'))"
        )
        process = take(start, path, path, "--", sys.executable, "-c", program, pass_fds=[extra])
    finally:
        os.close(extra)

    assert run("pass", "s", "one", "two", cwd=folder).returncode == 0

    out = process.stdout.read().decode()
    assert process.wait(LONG) == 0, process.stderr.read()
    assert out == "[0, 1, 2, 3, 4] b'one' b'two' 3 4 ['one', 'two']\n"


@needs_linux
def test_take_command_finds_its_signals_as_usual(folder: Path, start: Command) -> None:
    """COMMAND does not inherit that Python ignores SIGPIPE, and is the process that take was."""
    path = folder / "s"
    process = take(start, path, path, "--", "sh", "-c", "grep SigIgn /proc/self/status; echo $$")

    run("pass", path, os.devnull)

    ignored, pid = process.stdout.read().split(b"\n")[:2]
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert int(pid) == process.pid


@pytest.mark.parametrize(
    ("command", "status"), [(["sh", "-c", "exit 7"], 7), (["no-such-command"], 127), (["/etc/passwd"], 126)]
)
def test_take_has_the_status_of_the_command(
    command: list[str], status: int, folder: Path, start: Command
) -> None:
    """The status is COMMAND's; 127 and 126, as the shell's, when it can't be run."""
    path = folder / "s"
    process = take(start, path, path, "--", *command)

    run("pass", path, os.devnull)

    assert process.wait(LONG) == status
    assert process.stderr.read().count(b"\n") == (status > 100)


@pytest.mark.parametrize(
    ("given", "count", "filled"),
    [
        (["cat"], 2, ["cat"]),
        (["cat", "{}"], 2, ["cat", "/dev/fd/3", "/dev/fd/4"]),
        (["x", "--in={}", "end"], 2, ["x", "--in=/dev/fd/3", "--in=/dev/fd/4", "end"]),
        (["diff", "{2}", "{1}"], 2, ["diff", "/dev/fd/4", "/dev/fd/3"]),
        (["sh", "-c", "cat {1} {2}"], 2, ["sh", "-c", "cat /dev/fd/3 /dev/fd/4"]),
        (["awk", "{print}", "{a}", "{-1}"], 1, ["awk", "{print}", "{a}", "{-1}"]),
    ],
)
def test_words_of_the_command(given: list[str], count: int, filled: list[str]) -> None:
    """{} repeats its word for each file; {N} is the Nth; other braces stay."""
    from udstream.cli import take_files

    assert take_files._filled_in(given, count) == filled


def test_take_asks_for_a_file_that_did_not_come(folder: Path, start: Command) -> None:
    """{2} when one file came is an error, and nothing is run."""
    path = folder / "s"
    process = take(start, path, path, "--", "echo", "{2}")

    run("pass", path, os.devnull)

    assert process.wait(LONG) == 1
    assert process.stdout.read() == b""
    assert b"{2}" in process.stderr.read()


@pytest.mark.parametrize("count", [2, 3])
def test_take_max(count: int, folder: Path, start: Command) -> None:
    """--max files are taken; with one more, nothing is run, and the status is 1."""
    path = folder / "s"
    process = take(start, path, "--max", 2, path, "--", "echo", "ran")

    run("pass", path, *[os.devnull] * count)

    assert process.wait(LONG) == (0 if count == 2 else 1)
    assert process.stdout.read() == (b"ran\n" if count == 2 else b"")
    assert process.stderr.read().decode() == (
        "" if count == 2 else f"udstream: {path}: more than 2 files came\n"
    )


@needs_linux
def test_take_at_the_limit_of_open_files(folder: Path, start: Command) -> None:
    """When the process may not have so many files, take says so rather than go on with fewer."""
    path = folder / "s"
    shell = ["sh", "-c", 'ulimit -n 20; exec "$@"', "sh", *words("take", path, "--", "echo", "ran")]
    process: Process
    with subprocess.Popen(shell, env=environment(), stdout=-1, stderr=-1) as process:
        ready(process, path)
        run("pass", path, *[os.devnull] * 30)
        assert process.wait(LONG) == 1
        assert process.stdout.read() == b""
        assert process.stderr.read().endswith(b"limit of open files\n")


def test_take_waits_past_a_connection_that_brings_nothing(folder: Path, start: Command) -> None:
    """A connection without a file, such as who's, does not end the waiting."""
    path = folder / "s"
    process = take(start, path, path)
    client(path).close()
    assert run("who", path).returncode == 0

    run("pass", path, os.devnull)

    assert process.wait(LONG) == 0
    assert process.stdout.read().count(b"\n") == 1


def test_take_refuses_a_flood_of_names(folder: Path, start: Command) -> None:
    """A sender that never stops talking is an error, not a process that grows."""
    path = folder / "s"
    process = take(start, path, path)
    with client(path) as conn, pytest.raises((BrokenPipeError, ConnectionResetError)):
        socket.send_fds(conn, [b"x"], [0])
        send_all_that_goes(conn)

    assert process.wait(LONG) == 1
    assert process.stderr.read().decode() == f"udstream: {path}: what came is no list of names\n"


def test_take_waits_past_a_connection_that_only_talks(folder: Path, start: Command) -> None:
    """Nor does one that says a lot, and brings no file, end the waiting."""
    path = folder / "s"
    process = take(start, path, path)
    with client(path) as conn, pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_all_that_goes(conn)
    assert (
        process.stderr.readline().decode()
        == f"udstream: {path}: turned away a client that sent much, and no file\n"
    )

    run("pass", path, os.devnull)

    assert process.wait(LONG) == 0
    assert process.stdout.read().count(b"\n") == 1


@needs_linux
def test_take_is_private(folder: Path, start: Command) -> None:
    """What a command is run with is not for everybody to choose: the mode is 0600 unless another is asked for."""
    path = folder / "s"
    take(start, path, path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# ---------------------------------------------------------------------------------------------------------- doctor


def test_doctor() -> None:
    """doctor has a line for each thing, with yes or no and what it means; status 0."""
    done = run("doctor")

    lines = [re.split(r"  +", line) for line in done.stdout.decode().splitlines()[2:]]
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(lines) > 12
    assert {line[1] for line in lines} <= {"yes", "no"}
    assert all(len(line) == 3 and line[2] for line in lines)
    answers = {line[0]: line[1] for line in lines}
    assert answers["socket files"] == answers["descriptor passing"] == "yes"
    if LINUX:
        assert answers["abstract namespace"] == answers["paths of any length"] == "yes"
        assert answers["mode before bind"] == answers["MSG_CMSG_CLOEXEC"] == "yes"


@needs_linux
def test_doctor_tries_rather_than_guesses(folder: Path) -> None:
    """A kernel that refuses an option now shows as a no, with the kernel's reason."""
    program = (
        "import sys, udstream.cli.doctor as doctor; from udstream.cli import main;"
        "doctor.SO_PASSPIDFD = 9999; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, timeout=LONG
    )

    assert done.returncode == 0
    assert re.search(rb"SO_PASSPIDFD\) +no +Protocol not available", done.stdout)
