"""The command line, run as people run it: a process of its own, with real pipes and a real terminal."""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import gc
import grp
import io
import os
import pty
import pwd
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from connections import fill
from descriptors import is_open
from meanwhile import in_thread

import udstream
from udstream import UdStream, _platform
from udstream.cli import COMMANDS, identity, listen, main, relay, serving
from udstream.cli.terminal import Failure, OutputClosed

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
            process = subprocess.Popen(words(*args), **{"env": environment(), **pipes, **options})
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


def send_all_that_goes(conn: socket.socket) -> None:
    """Send until the connection takes no more, which is the error."""
    while True:
        conn.send(b"x" * 65536)


def receive_all(conn: socket.socket) -> bytes:
    """All that comes, up to the end of the file."""
    return b"".join(iter(lambda: conn.recv(65536), b""))


def has_nothing_for(conn: socket.socket) -> bool:
    """Whether the other end of the connection has neither said anything nor ended its side."""
    return not select.select([conn], [], [], 0)[0]


def eventually(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds, and fail if it never does."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def client_of_a_quiet_server(path: object) -> socket.socket:
    """A client of one that does not say when it listens."""
    clients = []

    def connected() -> bool:
        try:
            clients.append(client(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    eventually(connected)
    return clients[0]


def waiting_to_be_read(fd: int) -> int:
    """How many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def asleep(pid: int) -> bool:
    """Whether no thread of the process has anything to do."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            return False  # it ended just now
    return set(states) == {"S"}


def sockets(pid: int) -> int:
    """How many sockets the process has."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += os.readlink(fd).startswith("socket:")
    return found


def stopped_for_a_while(process: Process) -> None:
    """Stop the process, as Ctrl-Z does, and let it go on."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    process.send_signal(signal.SIGCONT)


# ---------------------------------------------------------------------------------------------- the command itself


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    """--help of the program and of each command prints its usage on stdout; status 0."""
    done = run(*filter(None, [command]), "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: udstream")
    assert done.stderr == b""


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str) -> None:
    """--version, or -V, prints the package's version."""
    assert run(option).stdout.decode() == f"udstream {udstream.__version__}\n"


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
        ["--vers"],
        ["--bogus", "connect", "p"],
        ["listen", "--mode", "0600", "@abstract"],
        ["listen", "--mode", "rw", "p"],
        ["listen", "--mode", "7777", "p"],
        *(
            ["listen", "--mode", mode, "p"]
            for mode in ("0o600", " 600 ", "6_0_0", "+600", "-0", "00600", "", "\N{ARABIC-INDIC DIGIT THREE}")
        ),
        ["listen", "--allow-user", "4294967295", "p"],
        ["listen", "--allow-group", "4294967295", "p"],
        ["listen", "--allow-user", "no-such-user", "p"],
        ["listen", "--allow-group", "no-such-group", "p"],
        ["listen", "--backlog", "-1", "p"],
        # Digits, and no number of ours.
        ["listen", "--backlog", "\N{ARABIC-INDIC DIGIT THREE}", "p"],
        ["listen", "--allow-user", "\N{ARABIC-INDIC DIGIT THREE}", "p"],
        ["pass", "p"],
        ["take", "--max", "few", "p"],
        ["take", "p", "cat"],
        ["take", "p", "--"],
        ["connect", "--idle", "0", "p"],
        ["listen", "--echo", "--idle", "1", "p"],
        ["listen", "--echo", "--no-shutdown", "p"],
        ["listen", "--echo", "p", "--", "cat"],
        ["listen", "--idle", "1", "p", "--", "cat"],
        ["listen", "--no-shutdown", "p", "--", "cat"],
        ["listen", "p", "cat"],
        ["listen", "p", "--"],
        ["listen", "p", "--", ""],
    ],
)
def test_wrong_usage(args: list[str], folder: Path) -> None:
    """Wrong usage is said on stderr, the usage first, with status 2, and makes no socket."""
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
        "stale": "Connection refused: nobody listens on it",
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


@pytest.mark.parametrize("where", ["socket", "file", "nowhere"])
def test_listen_where_a_symbolic_link_is(where: str, folder: Path, server: socket.socket) -> None:
    """A symbolic link is never replaced, wherever it leads, and the error says so."""
    (folder / "file").touch()
    link = folder / "link"
    link.symlink_to({"socket": "s", "file": "file", "nowhere": "nowhere"}[where])
    done = run("listen", link)

    assert done.stderr.decode() == (
        f"udstream: {link}: Address already in use: it is a symbolic link, and one is never replaced\n"
    )
    assert done.returncode == 1
    assert link.is_symlink()


def test_connect_through_a_symbolic_link(folder: Path) -> None:
    """A client's error is about what the link leads to."""
    (folder / "file").touch()
    (folder / "link").symlink_to("file")

    assert run("connect", folder / "link").stderr.endswith(b": it is a file, and no socket\n")


@pytest.mark.parametrize(
    "command", [["connect"], ["who"], ["pass", os.devnull]], ids=lambda command: command[0]
)
@pytest.mark.parametrize("type_", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_another_kind(command: list[str], type_: int, folder: Path) -> None:
    """Where a socket is no stream socket, the error says so."""
    with socket.socket(socket.AF_UNIX, type_) as other:
        other.bind(str(folder / "s"))
        if type_ == socket.SOCK_SEQPACKET:
            other.listen()
        done = run(command[0], folder / "s", *command[1:])

    reason = "it is a datagram or seqpacket socket, and udstream speaks to stream sockets"
    assert done.stderr.decode() == f"udstream: {folder}/s: {os.strerror(errno.EPROTOTYPE)}: {reason}\n"
    assert done.returncode == 1


def test_the_error_of_another_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of a socket is not said of a file that fails in the same way, as one on a network may."""

    def fail(name: str, _flags: int) -> int:
        raise TimeoutError(errno.ETIMEDOUT, "timed out", name)

    monkeypatch.setattr(os, "open", fail)
    assert main(["pass", str(folder / "s"), "far"]) == 1
    assert capsys.readouterr().err == "udstream: far: timed out\n"


def test_a_command_without_the_dashes_before_it() -> None:
    """Who forgets -- is told where it stands, with the usage of `take` or `listen`."""
    for command in ("take", "listen"):
        done = run(command, "in.sock", "cat", "{}")
        assert done.returncode == 2
        assert f"usage: udstream {command}".encode() in done.stderr
        assert f"before a COMMAND stands --: udstream {command} in.sock -- cat {{}}".encode() in done.stderr

    done = run("connect", "in.sock", "more")
    assert done.returncode == 2
    assert b"usage: udstream connect" in done.stderr
    assert b"unrecognized arguments: more\n" in done.stderr

    # An option that there is not is no COMMAND, wherever it stands.
    for args in (
        ["take", "--bogus", "in.sock", "--", "cat"],
        ["--bogus", "connect", "in.sock"],
        ["take", "--bogus", "in.sock"],
        ["listen", "in.sock", "--bogus"],
    ):
        assert run(*args).stderr.endswith(b"unrecognized arguments: --bogus\n")


def test_a_path_that_looks_like_an_option(folder: Path) -> None:
    """What stands after -- is no option, in commands that take no COMMAND too."""
    assert run("connect", "--", "-p", cwd=folder).stderr == b"udstream: -p: No such file or directory\n"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--max", "0", "in.sock"], b"argument --max: it must be 1 or more"),
        (["in.sock", "--", ""], b"the name of COMMAND is empty"),
        (["in.sock", "--"], b"no COMMAND after --"),
        (["--mode", "999", "in.sock"], b"'999' is no octal mode such as 0600 or 660"),
        (["--mode", "1777", "in.sock"], b"'1777' is no octal mode such as 0600 or 660"),
        (["--allow-group", "no-such", "in.sock"], b"no group is called 'no-such'"),
        (["--allow-user", "4294967295", "in.sock"], b"above 4294967294, the highest number of a user"),
        ([""], b"argument PATH: the path of a Unix socket is empty"),
        (["--backlog", "-1", "in.sock"], b"'-1' is not 0, 1, 2 or another whole number"),
    ],
)
def test_take_of_nothing(args: list[str], text: bytes) -> None:
    """What could never come to anything is refused before anybody is waited for."""
    done = run("take", *args)
    assert done.returncode == 2
    assert text in done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "inf"])
def test_wrong_timeout(seconds: str) -> None:
    """A timeout is a number of seconds above 0, and an end."""
    done = run("connect", "--timeout", seconds, "p")

    assert done.returncode == 2
    assert f"argument --timeout: '{seconds}' is no number of seconds above 0".encode() in done.stderr


def test_error_is_one_line(folder: Path) -> None:
    """A path with a newline or an escape in it cannot make an error look like two, or command the terminal."""
    done = run("connect", folder / "a\nb\x1b[2J\udcff")

    assert done.stderr.decode() == f"udstream: {folder}/a\\nb\\x1b[2J\\xff: No such file or directory\n"


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


def test_error_of_an_abstract_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abstract name that nobody has is told as it was given, whatever its bytes; it has no file to look at."""
    monkeypatch.chdir(folder)
    (folder / f"@{folder.name}").touch()
    for name in (f"@{folder.name}", f"@{folder.name}\0x"):
        assert main(["connect", name]) == 1
        shown = name.replace("\0", r"\x00")
        assert capsys.readouterr().err == f"udstream: {shown}: Connection refused: nobody listens on it\n"


def test_what_a_platform_lacks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no abstract namespace its names are an error, said in one line; status 1."""
    monkeypatch.setattr(_platform, "HAS_ABSTRACT_NAMESPACE", False)

    assert main(["connect", "@x"]) == 1
    assert capsys.readouterr().err.startswith("udstream: @x: only Linux ")


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the subject nor the reason of an error can make it two lines; a table has no blanks at its edge."""
    from udstream.cli import terminal

    terminal.complain("a\nb", b"c\nd")
    terminal.table([["a", ""], ["ab", "c"]])
    said = capsys.readouterr()
    assert (said.out, said.err) == ("a\nab  c\n", "udstream: a\\nb: c\\nd\n")


def test_error_without_a_path_or_a_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that names nothing is the command's, and what it says is told in one line."""
    from udstream.cli import doctor

    def fail(_args: object) -> int:
        raise OSError("just\nso")

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "udstream: doctor: just\\nso\n"


def test_main_returns_the_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`main` raises for nothing that a user can do; it returns the status."""
    assert main(["connect", str(folder / "p")]) == 1
    assert main(["nonsense"]) == 2
    assert main(["--version"]) == 0
    assert f"udstream {udstream.__version__}" in capsys.readouterr().out
    # A NUL, which no word of a real command line has.
    assert main(["pass", str(folder / "p"), "a\0b"]) == 2
    with redirect_stdout(io.StringIO()) as out:
        assert main(["--version"]) == 0
    assert out.getvalue() == f"udstream {udstream.__version__}\n"


def test_closed_standard_files(server: socket.socket, folder: Path) -> None:
    """With stdin, stdout and stderr closed no socket gets their numbers: a closed stdin is an empty one."""
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words("connect", folder / "s")], env=environment()
    )
    with accept(server) as conn:
        assert conn.recv(100) == b""
        if LINUX:
            numbers = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
            assert numbers == [os.devnull] * 3
    assert process.wait(LONG) == 0


def redirected(redirections: str, *args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose standard files the shell has led elsewhere, or closed."""
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", *words(*args)]
    return subprocess.run(
        shell, env=environment(), capture_output=True, stdin=subprocess.DEVNULL, timeout=LONG, **options
    )


def test_nobody_to_tell() -> None:
    """An error that nobody is there to read has the status that it has."""
    done = redirected("2>&-", "take", "p", "--")
    assert (done.returncode, done.stdout) == (2, b"")

    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(words("take", "p", "--"), env=environment(), stderr=writer, timeout=LONG)
    finally:
        os.close(writer)
    assert ended.returncode == 2


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
    done = redirected(">/dev/full", *command, cwd=folder)

    assert done.stderr == b"udstream: stdout: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize("command", [["doctor"], ["--version"], ["demo"], ["who", "s"]], ids=" ".join)
def test_result_for_a_closed_stdout(server: socket.socket, folder: Path, command: list[str]) -> None:
    """A result that nobody can get is an error."""
    done = redirected(">&-", *command, cwd=folder)

    assert done.stderr == b"udstream: stdout: Bad file descriptor\n"
    assert done.returncode == 1


@needs_linux
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["connect", "nobody"], 1),
        (["nonsense"], 2),
    ],
)
def test_error_that_cannot_be_printed(folder: Path, command: list[str], status: int) -> None:
    """A full disk under stderr changes no exit status."""
    assert redirected("2>/dev/full", *command, cwd=folder).returncode == status


@needs_linux
def test_note_that_cannot_be_printed(folder: Path) -> None:
    """Nor does it where all went well."""
    path = folder / "s"
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(words("listen", "--echo", path), env=environment(), stderr=full)
        with client_of_a_quiet_server(path) as conn:
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


def test_echo_interrupted_before_a_client_has_a_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at that moment ends it as at any other, and the client is told."""
    path = folder / "s"
    begun: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        begun.append(thread)
        raise KeyboardInterrupt

    def be_the_client() -> None:
        with client_of_a_quiet_server(path) as conn:
            assert receive_all(conn) == b""

    monkeypatch.setattr(listen, "start", interrupted)
    with in_thread(be_the_client) as result:
        assert main(["listen", "--quiet", "--echo", "--keep-open", str(path)]) == 130
    assert result == [None]
    # That it starts after all harms nobody.
    begun[0].run()


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


@needs_linux
def test_connect_no_shutdown(server: socket.socket, folder: Path, start: Command) -> None:
    """With --no-shutdown the server does not see that stdin has ended; the conversation is over when it closes."""
    process = start("connect", "--no-shutdown", folder / "s")
    with accept(server) as conn:
        process.stdin.write(b"question")
        process.stdin.close()
        assert conn.recv(100) == b"question"
        # The thread that reads stdin has come to its end.
        eventually(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 1)
        assert has_nothing_for(conn)
        conn.sendall(b"answer")
    assert process.stdout.read() == b"answer"
    assert process.wait(LONG) == 0
    assert process.stderr.read() == b""


@pytest.mark.parametrize("options", [[], ["--no-shutdown"]])
def test_connect_idle(options: list[str], server: socket.socket, folder: Path, start: Command) -> None:
    """With --idle a server that has stopped talking, and keeps the connection, ends nothing badly: status 0."""
    process = start("connect", *options, "--idle", "0.05", folder / "s")
    with accept(server) as conn:
        process.stdin.close()
        conn.sendall(b"answer")
        assert process.wait(LONG) == 0
        assert process.stdout.read() == b"answer"
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


# The command line, where a SIGINT comes as a conversation is about to wait: so that Python runs none of its own steps
# between the two; or in a destructor, where it ignores whatever is raised.
INTERRUPTED_BEFORE_A_POLL = """
import ctypes, select, signal, sys, threading
from functools import partial
from operator import methodcaller
from udstream.cli import main

class Poll:
    def __init__(self):
        self.real = select_poll()
        self.register, self.unregister, self.modify = self.real.register, self.real.unregister, self.real.modify
    def poll(self, timeout=None):
        if threading.current_thread() is not threading.main_thread():
            return self.real.poll(timeout)
        if sys.argv[1] == "destructor":
            Dropped()
            return self.real.poll(timeout)
        calls = partial(ctypes.PyDLL(None)["raise"], int(signal.SIGINT)), partial(self.real.poll, timeout)
        return [*map(methodcaller("__call__"), calls)][1]

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

select_poll, select.poll = select.poll, Poll
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("how", ["just before", "destructor"])
def test_connect_interrupted_before_it_waits(how: str, server: socket.socket, folder: Path) -> None:
    """Ctrl-C ends it even where it comes a moment too early to interrupt the system call, and where it is ignored."""
    command = [sys.executable, "-c", INTERRUPTED_BEFORE_A_POLL, how, "connect", str(folder / "s")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        try:
            with accept(server):
                assert process.wait(LONG) == 130
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["just before", "destructor"])
def test_listen_interrupted_before_it_waits(how: str, folder: Path) -> None:
    """So it does while nobody has come yet."""
    command = [sys.executable, "-c", INTERRUPTED_BEFORE_A_POLL, how, "listen", str(folder / "s")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        try:
            assert process.wait(LONG) == 130
        finally:
            process.kill()


def test_connect_interrupted_as_it_ends(
    server: socket.socket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Python ignores it after the last wait, that it came is not lost: a server has more clients to come."""

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def interrupted(*_: object) -> None:
        Dropped()

    monkeypatch.setattr(relay, "_hear_out", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with UdStream.connect(folder / "s") as stream, accept(server), pytest.raises(KeyboardInterrupt):
        relay.join(stream)


def test_stdin_that_is_read_when_ctrl_c_has_closed_the_stream() -> None:
    """The thread that is no longer waited for ends in silence."""
    stream, peer = UdStream.pair()
    ours, theirs = UdStream.pair()
    with peer, ours:
        stream.close()
        feeder = relay._Feeder(stream, theirs, True)
        feeder.run()
        assert feeder.error is None
        assert theirs.closed


@pytest.mark.parametrize("what", ["pair", "thread"])
def test_connect_that_cannot_begin_leaves_signals_alone(
    what: str, server: socket.socket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no more descriptors, or threads, nothing is blocked afterwards that was not before."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "none left")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with UdStream.connect(folder / "s") as stream:
        if what == "pair":
            monkeypatch.setattr(UdStream, "pair", none_left)
        else:
            monkeypatch.setattr(relay, "start", none_left)
        with pytest.raises(OSError, match="none left"):
            relay.join(stream)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert signal.set_wakeup_fd(-1) == -1


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


@pytest.mark.parametrize("command", [["connect"], ["who"], ["pass", "-"]])
def test_timeout(command: list[str], folder: Path) -> None:
    """--timeout bounds the wait for a server whose backlog is full."""
    with socket.socket(socket.AF_UNIX) as full, ExitStack() as stack:
        full.bind(str(folder / "s"))
        full.listen(0)
        stack.enter_context(client(folder / "s"))

        done = run(command[0], "--timeout", "0.2", folder / "s", *command[1:])

    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"udstream: {folder}/s: timed out: the server has no room for another client\n"
    )


@pytest.mark.parametrize("command", [["connect"], ["pass", os.devnull]], ids=lambda command: command[0])
@pytest.mark.parametrize("before", ["missing", "stale"])
def test_wait(command: list[str], before: str, folder: Path, start: Command) -> None:
    """--wait is for a server that has yet to start, whether a file lies there or not."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as late:
        if before == "stale":
            late.bind(str(path))
        process = start(command[0], "--wait", LONG, path, *command[1:], stdin=subprocess.DEVNULL)
        # It has tried, and will again.
        eventually(lambda: not LINUX or asleep(process.pid))
        if before == "missing":
            late.bind(str(path))
        late.listen()
        late.settimeout(LONG)
        with accept(late) as conn:
            receive_all(conn)
        assert process.wait(LONG) == 0
    assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [["connect"], ["pass", os.devnull]], ids=lambda command: command[0])
def test_wait_in_vain(command: list[str], folder: Path) -> None:
    """Past --wait the error is the one without it."""
    began = time.monotonic()
    done = run(command[0], "--wait", "0.1", folder / "s", *command[1:])

    assert time.monotonic() - began >= 0.1
    assert done.stderr.decode() == f"udstream: {folder}/s: No such file or directory\n"
    assert done.returncode == 1


def test_wait_is_for_a_server_that_is_not_there(folder: Path) -> None:
    """What no server that starts could change is an error at once."""
    (folder / "file").touch()
    done = run("connect", "--wait", LONG * 10, folder / "file" / "s")

    assert done.stderr.decode() == f"udstream: {folder}/file/s: Not a directory\n"
    assert done.returncode == 1


@needs_linux
def test_wait_interrupted(folder: Path, start: Command) -> None:
    """Ctrl-C ends the wait at once."""
    process = start("connect", "--wait", LONG * 10, folder / "s")
    eventually(lambda: asleep(process.pid))
    process.send_signal(signal.SIGINT)
    assert process.wait(LONG) == 130
    assert process.stderr.read() == b""


@needs_linux
def test_timeout_is_for_the_connection(server: socket.socket, folder: Path, start: Command) -> None:
    """A server that has let us in may take as long as it likes to read what we send."""
    name = "./" * 2000 + "f"
    (folder / "f").touch()
    data = os.urandom(1_000_000)
    passing = start("pass", "--timeout", "0.01", folder / "s", *[name] * 100, cwd=folder)
    with accept(server) as conn:
        eventually(lambda: asleep(passing.pid))
        # There is nothing to wait for: it is to go on doing nothing.
        with pytest.raises(subprocess.TimeoutExpired):
            passing.wait(0.05)
        payload = b""
        while more := socket.recv_fds(conn, 65536, 253):
            payload += more[0]
            for fd in more[1]:
                os.close(fd)
            if not more[0]:
                break
        assert payload == (name.encode() + b"\0") * 100
    assert passing.wait(LONG) == 0

    connecting = start("connect", "--timeout", "0.01", folder / "s")
    with accept(server) as conn:
        writer = threading.Thread(target=_write_and_close, args=(connecting.stdin, data))
        writer.start()
        with pytest.raises(subprocess.TimeoutExpired):
            connecting.wait(0.05)
        assert receive_all(conn) == data
        writer.join(LONG)
    assert connecting.wait(LONG) == 0


def _write_and_close(pipe: Any, data: bytes) -> None:
    try:
        with pipe:
            pipe.write(data)
    except BrokenPipeError:
        pass


@needs_linux
def test_connect_goes_on_after_it_was_stopped(server: socket.socket, folder: Path, start: Command) -> None:
    """Ctrl-Z in the middle of sending and of printing, and fg: not a byte is lost."""
    process = start("connect", folder / "s")
    there, back = os.urandom(1_000_000), os.urandom(1_000_000)
    with accept(server) as conn:
        writer = threading.Thread(target=_write_and_close, args=(process.stdin, there))
        writer.start()
        sender = threading.Thread(target=_send_what_goes, args=(conn, back))
        sender.start()
        # Neither stdout nor the connection is read, so that in the end it is blocked in a write to either.
        stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
        eventually(lambda: waiting_to_be_read(stdin) >= 61440 and waiting_to_be_read(stdout) >= 61440)
        eventually(lambda: asleep(process.pid))
        stopped_for_a_while(process)
        got: list[bytes] = []
        receiver = threading.Thread(target=lambda: got.append(receive_all(conn)))
        receiver.start()
        assert process.stdout.read(len(back)) == back
        for thread in (writer, sender, receiver):
            thread.join(LONG)
        assert got == [there]
    assert process.wait(LONG) == 0


@pytest.mark.parametrize("args", [["connect"], ["listen"], ["listen", "--keep-open"]])
def test_stdin_that_cannot_be_read(args: list[str], folder: Path, start: Command) -> None:
    """A stdin that fails ends the conversation, for this client and for all to come: an error that names it."""
    path = folder / "s"
    with ExitStack() as stack:
        unreadable = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, unreadable)
        if args == ["connect"]:
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            listening.listen()
            listening.settimeout(LONG)
        process = start(*args, path, stdin=unreadable)
        if args != ["connect"]:
            ready(process, path)
        with accept(listening) if args == ["connect"] else client(path) as conn:
            assert conn.recv(1) == b""
            assert process.wait(LONG) == 1
    assert process.stderr.read() == b"udstream: stdin: Bad file descriptor\n"


def test_connect_output_closed_when_the_server_has_said_all(
    server: socket.socket, folder: Path, start: Command
) -> None:
    """What of stdin has yet to be sent is lost with a stdout that nobody reads: status 141, at once."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        conn.sendall(b"one")
        conn.shutdown(socket.SHUT_WR)
        process.stdin.write(b"x")
        process.stdin.flush()
        assert conn.recv(1) == b"x"
        assert os.read(process.stdout.fileno(), 3) == b"one"
        process.stdout.close()
        assert process.wait(LONG) == 141
    assert process.stderr.read() == b""


def test_connect_output_closed_and_nothing_lost(server: socket.socket, folder: Path, start: Command) -> None:
    """A reader that leaves with all it wanted, as grep -q, is no error once stdin was sent: status 0, at once."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        conn.sendall(b"one")
        process.stdin.close()
        assert conn.recv(1) == b""
        assert os.read(process.stdout.fileno(), 3) == b"one"
        process.stdout.close()
        assert process.wait(LONG) == 0
    assert process.stderr.read() == b""


def test_connect_output_closed_before_all_was_printed(
    server: socket.socket, folder: Path, start: Command
) -> None:
    """What comes for a stdout that nobody reads is lost, though stdin was sent: status 141."""
    process = start("connect", folder / "s")
    with accept(server) as conn:
        process.stdin.close()
        assert conn.recv(1) == b""
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        conn.sendall(b"one")
        process.stdout.close()
        process.send_signal(signal.SIGCONT)
        assert process.wait(LONG) == 141


def test_connect_output_to_a_socket(server: socket.socket, folder: Path, start: Command) -> None:
    """Nor does anybody read a stdout that is a socket whose other end was closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start("connect", folder / "s", stdout=theirs)
        theirs.close()
        with accept(server) as conn:
            conn.sendall(b"one")
            assert ours.recv(3) == b"one"
            ours.close()
            assert process.wait(LONG) == 141


@needs_linux
def test_connect_meets_signals_in_its_main_thread(
    server: socket.socket, folder: Path, start: Command
) -> None:
    """The thread that reads stdin leaves the signals that end a command to the one that tidies up."""
    ending = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    process = start("connect", folder / "s")

    def blocked() -> dict[int, int]:
        masks = {}
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            found = re.search(r"SigBlk:\t(\w+)", (task / "status").read_text())
            assert found
            masks[int(task.name)] = int(found[1], 16) & ending
        return masks

    with accept(server) as conn:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert conn.recv(1) == b"x"
        # It had blocked them for as long as it took to start the other one.
        eventually(lambda: not blocked()[process.pid])
        assert sorted(blocked().values()) == [0, ending]


# --------------------------------------------------------------------------------- what connect and listen share


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Pipes for what `join` in this process takes for stdin and stdout: the ends that are ours."""
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    monkeypatch.setattr(relay, "STDIN", in_r)
    monkeypatch.setattr(relay, "STDOUT", out_w)
    yield in_w, out_r
    for fd in (in_r, in_w, out_r, out_w):
        if is_open(fd):
            os.close(fd)


def feeders() -> list[threading.Thread]:
    """The threads that read stdin."""
    return [thread for thread in threading.enumerate() if thread.name == "stdin to socket"]


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("stdin_ends", [False, True])
def test_join_ends_a_send_that_nobody_reads(
    stdin_ends: bool, pair: tuple[UdStream, UdStream], joined: tuple[int, int]
) -> None:
    """The end of a conversation ends both threads of it, also one that is blocked in sending."""
    stream, _ = pair
    stdin, stdout = joined
    fill(stream)
    os.write(stdin, b"x")

    def leave() -> None:
        eventually(lambda: waiting_to_be_read(stdin) == 0)
        if stdin_ends:
            os.close(stdin)
        os.close(stdout)

    with in_thread(leave), pytest.raises(OutputClosed):
        relay.join(stream)
    assert feeders() == []


@pytest.mark.usefixtures("no_endless_wait")
def test_join_leaves_stdin_to_the_next_client(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int]
) -> None:
    """What comes on stdin after the end of a conversation is not read: the next client is to have it."""
    stream, peer = pair
    wake, woken = UdStream.pair()
    os.write(joined[0], b"for the next one")
    wake.close()

    relay._Feeder(stream, woken, True).run()

    assert os.read(relay.STDIN, 100) == b"for the next one"
    stream.close()
    assert peer.readall() == b""


@pytest.fixture
def quicker(joined: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What another reader of stdin takes: the first that comes, between our poll and our read."""
    read = os.read
    taken: list[bytes] = []

    def late(fd: int, count: int) -> bytes:
        if fd == relay.STDIN and not taken:
            taken.append(read(fd, count))
        return read(fd, count)

    monkeypatch.setattr(os, "read", late)
    return taken


@pytest.mark.usefixtures("no_endless_wait")
def test_join_beside_another_reader_of_stdin(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int], quicker: list[bytes]
) -> None:
    """A nonblocking stdin whose bytes another reader takes has more later."""
    stream, peer = pair
    os.set_blocking(relay.STDIN, False)
    with in_thread(lambda: relay.join(stream)) as result:
        os.write(joined[0], b"theirs")
        eventually(lambda: quicker == [b"theirs"])
        os.write(joined[0], b"ours")
        peer.timeout = LONG
        assert peer.read(100) == b"ours"
        peer.close()
    assert result == [None]


@pytest.mark.usefixtures("no_endless_wait")
def test_join_does_not_wait_for_a_read_of_stdin(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int], quicker: list[bytes]
) -> None:
    """Where another reader has left nothing, the read that waits for more keeps neither us nor the process."""
    stdin, stdout = joined
    os.write(stdin, b"theirs")

    def leave() -> None:
        eventually(lambda: quicker == [b"theirs"])
        os.close(stdout)

    with in_thread(leave), pytest.raises(OutputClosed):
        relay.join(pair[0])
    [feeder] = feeders()
    assert feeder.daemon
    os.write(stdin, b"x")
    feeder.join(LONG)


@pytest.mark.usefixtures("no_endless_wait")
def test_join_ends_with_the_peer_though_stdin_is_read(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int], quicker: list[bytes]
) -> None:
    """Nor does it wait for that read where the peer has closed the connection."""
    stream, peer = pair
    stdin, _ = joined
    os.write(stdin, b"theirs")

    def leave() -> None:
        eventually(lambda: quicker == [b"theirs"])
        peer.close()

    with in_thread(leave):
        relay.join(stream)
    [feeder] = feeders()
    os.write(stdin, b"x")
    feeder.join(LONG)


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("ends", ["its side", "the connection"])
def test_join_looks_at_the_peer_before_stdout(
    ends: str, pair: tuple[UdStream, UdStream], joined: tuple[int, int]
) -> None:
    """Where the peer has ended the conversation, that nobody reads stdout has cut nothing short."""
    stream, peer = pair
    stdin, stdout = joined
    os.close(stdout)
    if ends == "the connection":
        peer.close()
    else:
        os.close(stdin)
        peer.shutdown(udstream.Shutdown.WRITE)

    relay.join(stream)


@pytest.mark.usefixtures("no_endless_wait")
def test_join_gives_stdin_a_moment_to_end(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end of stdin that is there, and was not read yet, is one, for a reader of stdout that was quicker."""
    stdin, stdout = joined
    waited_for = threading.Event()
    read, has_news_soon = os.read, relay._has_news_soon

    def late(fd: int, count: int) -> bytes:
        assert fd != relay.STDIN or waited_for.wait(LONG)
        return read(fd, count)

    def told(poller: select.poll) -> bool:
        waited_for.set()
        return has_news_soon(poller)

    monkeypatch.setattr(os, "read", late)
    monkeypatch.setattr(relay, "_has_news_soon", told)
    os.close(stdin)
    os.close(stdout)

    relay.join(pair[0])


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("last", [b"", b"x"])
def test_join_looks_again_at_the_peer(
    last: bytes, pair: tuple[UdStream, UdStream], joined: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while stdin may be about to end is seen at once: a word that is lost, or the end."""
    stream, peer = pair
    stdin, stdout = joined
    has_news_soon = relay._has_news_soon
    answers: list[bool] = []
    fill(stream)
    os.write(stdin, b"x")

    def leave() -> None:
        # It is about to be sent, and cannot be.
        eventually(lambda: waiting_to_be_read(stdin) == 0)
        os.close(stdin)
        os.close(stdout)

    def asked(poller: select.poll) -> bool:
        if last:
            peer.write(last)
        else:
            peer.close()
        answers.append(has_news_soon(poller))
        return answers[-1]

    monkeypatch.setattr(relay, "_has_news_soon", asked)
    with in_thread(leave), pytest.raises(OutputClosed if last else (BrokenPipeError, ConnectionResetError)):
        relay.join(stream)
    assert answers == [True]


class Polls:
    """What takes the place of the module `select`, and notes for how long each poll waits."""

    POLLIN = select.POLLIN

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def poll(self) -> Any:
        poller = select.poll()

        def poll(timeout: float | None = None) -> list[tuple[int, int]]:
            self.timeouts.append(timeout)
            return poller.poll(timeout)

        return argparse.Namespace(
            register=poller.register, unregister=poller.unregister, modify=poller.modify, poll=poll
        )


def test_join_gives_no_moment_to_a_silent_stdin(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stdin has nothing, and no end, nothing is waited for once the reader of stdout has gone."""
    polls = Polls()
    monkeypatch.setattr(relay, "select", polls)
    os.close(joined[1])

    with pytest.raises(OutputClosed):
        relay.join(pair[0])
    assert set(polls.timeouts) <= {None, 0}


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("unsent", [False, True])
def test_join_counts_no_pause_before_stdin_was_sent(
    unsent: bool, pair: tuple[UdStream, UdStream], joined: tuple[int, int]
) -> None:
    """However long stdin is silent, or the peer takes nothing, it is no idle peer until all of stdin was sent."""
    stream, peer = pair
    stdin, _ = joined
    if unsent:
        fill(stream)
        os.write(stdin, b"x")
        os.close(stdin)
    with in_thread(lambda: relay.join(stream, idle=0.001)) as result:
        eventually(lambda: len(feeders()) == 1)
        time.sleep(0.05)
        assert result == []
        if unsent:
            peer.readall()
        else:
            os.close(stdin)
    assert result == [None]


@pytest.mark.usefixtures("no_endless_wait")
def test_join_counts_a_pause_anew(pair: tuple[UdStream, UdStream], joined: tuple[int, int]) -> None:
    """A peer that goes on talking is not idle, however long it talks."""
    stream, peer = pair
    stdin, stdout = joined
    os.close(stdin)
    with in_thread(lambda: relay.join(stream, idle=1)) as result:
        for _ in range(6):
            time.sleep(0.25)
            peer.write(b"x")
            assert os.read(stdout, 1) == b"x"
    assert result == [None]


def test_join_with_a_pause_that_poll_has_no_number_for(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int]
) -> None:
    """As many seconds as anybody likes may be waited."""
    stream, peer = pair
    os.close(joined[0])
    with in_thread(lambda: relay.join(stream, idle=1e9)) as result:
        assert peer.readall() == b""
        time.sleep(0.05)
        peer.close()
    assert result == [None]


@pytest.mark.usefixtures("no_endless_wait")
def test_join_writes_all_to_a_nonblocking_stdout(
    pair: tuple[UdStream, UdStream], joined: tuple[int, int]
) -> None:
    """A stdout that takes a part of what is written gets the rest as soon as it takes more."""
    stream, peer = pair
    stdin, stdout = joined
    os.set_blocking(relay.STDOUT, False)
    os.close(stdin)
    data = os.urandom(200_000)

    def say_all() -> None:
        with peer:
            peer.write_all(data)

    with in_thread(lambda: relay.join(stream)) as result:
        with in_thread(say_all):
            # All that a pipe holds, and then one page of the next piece.
            eventually(lambda: waiting_to_be_read(stdout) == relay.CHUNK)
            got = os.read(stdout, 4096)
            eventually(lambda: waiting_to_be_read(stdout) == relay.CHUNK)
            while len(got) < len(data):
                got += os.read(stdout, 65536)
    assert result == [None]
    assert got == data


def test_join_writes_to_a_pipe_that_has_just_closed(joined: tuple[int, int]) -> None:
    """A reader of stdout that goes between our poll and our write has gone, and is no error."""
    os.close(joined[1])
    with pytest.raises(OutputClosed):
        relay._write(memoryview(b"x"))


@pytest.mark.parametrize(("number", "raised"), [("ENOTCONN", False), ("EIO", True)])
def test_join_and_a_connection_that_has_ended(number: str, raised: bool) -> None:
    """Some kernels say of a connection which the peer has closed that there is none; that is no error."""

    class Ended:
        def shutdown(self, _how: object) -> None:
            raise OSError(getattr(errno, number), number)

    ended: Any = Ended()
    if raised:
        with pytest.raises(OSError, match=number):
            relay._shutdown(ended, udstream.Shutdown.BOTH)
    else:
        relay._shutdown(ended, udstream.Shutdown.BOTH)


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


@pytest.mark.parametrize("options", [[], ["--keep-open"], ["--timeout", "60"]])
def test_listen_that_nobody_reads_any_more(options: list[str], folder: Path, start: Command) -> None:
    """It ends as soon as the reader of stdout has gone, before the words of a client are lost."""
    path = folder / "s"
    process = start("listen", *options, path)
    ready(process, path)
    process.stdout.close()

    assert process.wait(LONG) == 141
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


def test_listen_no_shutdown_and_idle(folder: Path, start: Command) -> None:
    """--no-shutdown and --idle are for each client: it is not half-closed, and left when it has stopped talking."""
    path = folder / "s"
    process = start(
        "listen", "--keep-open", "--no-shutdown", "--idle", "0.05", path, stdin=subprocess.DEVNULL
    )
    ready(process, path)
    for number in (b"1", b"2"):
        with client(path) as conn:
            conn.sendall(number)
            assert os.read(process.stdout.fileno(), 10) == number
            assert conn.recv(1) == b""
            # Not half-closed, but left.
            with pytest.raises(BrokenPipeError):
                conn.sendall(b"x")


@needs_linux
def test_listen_no_shutdown(folder: Path, start: Command) -> None:
    """With --no-shutdown a client does not see that stdin has ended."""
    path = folder / "s"
    process = start("listen", "--no-shutdown", path, stdin=subprocess.DEVNULL)
    ready(process, path)
    with client(path) as conn:
        conn.sendall(b"one")
        assert os.read(process.stdout.fileno(), 10) == b"one"
        # The threads that watch for signals and converse.
        eventually(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 2)
        assert has_nothing_for(conn)
    assert process.wait(LONG) == 0


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
@pytest.mark.parametrize(
    "args", [["listen"], ["listen", "--echo", "--keep-open"], ["take"], ["take", "--timeout", "60"]]
)
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


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (["listen"], []),
        (["listen", "--keep-open"], []),
        (["listen", "--echo"], []),
        (["listen", "--echo", "--keep-open"], []),
        (["listen"], ["--", "cat"]),
        (["listen", "--keep-open"], ["--", "cat"]),
        (["take"], []),
        (["take"], ["--", "cat"]),
    ],
    ids=" ".join,
)
def test_listening_for_so_long(args: list[str], command: list[str], folder: Path) -> None:
    """--timeout is an end to waiting for a client: one line, status 1, and the socket file goes."""
    path = folder / "s"
    done = run(*args, "--quiet", "--timeout", "0.05", path, *command)

    assert done.stderr.decode() == f"udstream: {path}: no client came within 0.05 seconds\n"
    assert (done.returncode, done.stdout) == (1, b"")
    assert not path.exists()


def test_listening_for_so_long_is_for_the_wait(folder: Path, start: Command) -> None:
    """Once a client is there it may take as long as it likes; the wait for the next one begins when it has gone."""
    path = folder / "s"
    process = start("listen", "--keep-open", "--timeout", "0.5", path)
    ready(process, path)
    with client(path) as conn:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
        conn.sendall(b"one")
        assert os.read(process.stdout.fileno(), 3) == b"one"
    assert process.wait(LONG) == 1


def test_listening_for_so_long_and_watching_stdout(
    folder: Path, joined: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait that watches stdout as well is the only one."""
    with udstream.UdStreamListener.bind(folder / "s") as listener:
        listener.timeout = 0.01
        monkeypatch.setattr(udstream.UdStreamListener, "accept", lambda _: pytest.fail("waits again"))
        with pytest.raises(TimeoutError):
            relay.accept(listener)


def test_listening_for_so_long_and_who_is_refused(
    pair: tuple[UdStream, UdStream], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is refused does not lengthen the wait; for whoever comes next it begins anew."""
    now = 0.0
    refused = [UdStream.pair() for _ in range(2)]
    welcome = iter([True, False, False])

    def accept(listener: Any) -> UdStream:
        nonlocal now
        left.append(listener.timeout)
        now += 4
        return listener.accept()  # type: ignore[no-any-return]

    monkeypatch.setattr(serving, "monotonic", lambda: now)
    monkeypatch.setattr(serving, "_may_enter", lambda *_: next(welcome))
    left: list[float | None] = []
    listener: Any = Accepting(pair[0], *(stream for stream, _ in refused))
    args = argparse.Namespace(path="p", timeout=7)
    come = serving.admitted(listener, args, accept)

    assert next(come) is pair[0]
    now = 100.0
    with pytest.raises(Failure, match="no client came within 7 seconds"):
        next(come)
    assert left == [7, 7, 3]
    for _, peer in refused:
        with peer:
            assert peer.read(1) == b""


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
        (["--mode", "0"], 0),
        (["--mode", "777"], 0o777),
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
@pytest.mark.parametrize("more", [[], ["--keep-open"], ["--keep-open", "--echo"]])
@pytest.mark.parametrize("option", ["--allow-user", "--allow-group"])
def test_listen_refuses(option: str, more: list[str], folder: Path, start: Command) -> None:
    """Whoever is not among the allowed is closed unserved, and told on stderr; listen waits on."""
    path = folder / "s"
    process = start("listen", *more, option, 4_000_000_001, path)
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


@needs_linux
@pytest.mark.parametrize("args", [["listen", "--echo", "--allow-user", os.geteuid()], ["take"]])
def test_an_abstract_name_is_given_no_mode(args: list[object], folder: Path, start: Command) -> None:
    """The modes that are the default for files are none for a name that has no file."""
    name = f"@{folder.name}"
    ready(start(*args, name), name)
    client("\0" + name[1:]).close()


@needs_linux
def test_listen_backlog(folder: Path, start: Command) -> None:
    """--backlog is how many may wait, beyond the one that always may, while one is served."""
    path = folder / "s"
    process = start("listen", "--keep-open", "--backlog", "0", path)
    ready(process, path)
    with client(path) as served:
        served.sendall(b"x")
        assert os.read(process.stdout.fileno(), 1) == b"x"
        with client(path), pytest.raises(BlockingIOError):
            client(path)


def test_listen_says_where_in_one_line(folder: Path, start: Command) -> None:
    """What is not printable in a path is an escape in the line that says when it is ready."""
    process = start("listen", "--echo", folder / "a\nb\x1b[2J")
    ready(process, f"{folder}/a\\nb\\x1b[2J")


def echo_here(path: Path) -> int:
    """What `listen --echo` returns in this process, after one client."""

    def be_the_client() -> None:
        eventually(path.is_socket)
        while True:
            try:
                with client(path) as conn:
                    conn.sendall(b"x")
                    assert conn.recv(1) == b"x"
                    return
            except ConnectionRefusedError:
                continue  # bound, and not listening yet

    with in_thread(be_the_client) as result:
        status = main(["listen", "--quiet", "--echo", str(path)])
    assert result == [None]
    return status


def test_listen_in_this_process_changes_nothing(folder: Path) -> None:
    """`main` puts back the handlers and the descriptor by which it hears of signals, and leaves no thread."""
    before = [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        fds = len(os.listdir("/dev/fd"))
        assert echo_here(folder / "s") == 0
        assert len(os.listdir("/dev/fd")) == fds
        assert signal.set_wakeup_fd(-1) == -1
        assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)} == {signal.SIG_DFL}
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_listen_in_another_thread(folder: Path) -> None:
    """In a thread that signals do not come to `main` listens all the same."""
    with in_thread(lambda: echo_here(folder / "s")) as result:
        pass
    assert result == [0]


@needs_linux
def test_listen_ended_while_it_binds(folder: Path, start: Command) -> None:
    """A signal before anybody can connect ends it with its status, and nothing but what was there is left."""
    path = folder / ("s" * 200)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "short"))
    os.rename(folder / "short", path)
    held = os.open(folder, os.O_RDONLY)
    try:
        # It waits for the lock of those who replace stale files; until then the socket has a name of its own.
        fcntl.flock(held, fcntl.LOCK_EX)
        process = start("listen", path)
        eventually(lambda: len(os.listdir(folder)) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 143
    finally:
        os.close(held)
    assert process.stderr.read() == b""
    assert os.listdir(folder) == [path.name]


class Accepting:
    """A listener whose accepts end as it is told."""

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.timeout: float | None = None

    def accept(self) -> UdStream:
        end = self.ends.pop(0)
        if isinstance(end, UdStream):
            return end
        raise OSError(end, os.strerror(end))


def test_listen_at_any_limit(pair: tuple[UdStream, UdStream], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever has run out is told once, until somebody comes in again; any other error ends it."""
    errors = [errno.ENFILE, errno.EMFILE, errno.ENOBUFS]
    listener: Any = Accepting(*errors, pair[0], errno.ENOMEM, errno.ENOMEM, pair[1], errno.EINVAL)
    args = argparse.Namespace(path="p", allow_user=[], allow_group=[], timeout=None)
    come = serving.admitted(listener, args, lambda listener: listener.accept())

    assert next(come) is pair[0]
    assert capsys.readouterr().err == f"udstream: p: {os.strerror(errno.ENFILE)}\n"
    assert next(come) is pair[1]
    assert capsys.readouterr().err == f"udstream: p: {os.strerror(errno.ENOMEM)}\n"
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        next(come)


@needs_linux
def test_listen_where_groups_cannot_be_asked_for(
    pair: tuple[UdStream, UdStream], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that tells of no other groups admits by the first alone, and refuses the rest."""

    def lacking(_stream: object) -> tuple[int, ...]:
        raise NotImplementedError

    monkeypatch.setattr(serving, "peer_groups", lacking)
    for gid, admitted in ((os.getegid(), True), (4_000_000_001, False)):
        args = argparse.Namespace(path="p", allow_user=[], allow_group=[gid])
        assert serving._may_enter(pair[0], args) is admitted
    assert "refused" in capsys.readouterr().err


@needs_linux
def test_echo_goes_on_after_it_was_stopped(folder: Path, start: Command) -> None:
    """Ctrl-Z in the middle of an answer, and fg: not a byte is lost."""
    path = folder / "s"
    process = start("listen", "--echo", path)
    ready(process, path)
    data = os.urandom(2_000_000)
    with client(path) as conn:

        def say_all() -> None:
            conn.sendall(data)
            conn.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=say_all)
        sender.start()
        # Nothing is read, so that in the end it is blocked in a write, with more to be read.
        eventually(lambda: waiting_to_be_read(conn.fileno()) > 60_000)
        eventually(lambda: asleep(process.pid))
        stopped_for_a_while(process)
        assert receive_all(conn) == data
        sender.join(LONG)


def test_echo_to_all_lets_go_of_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has gone is held by nothing; who is still there at the end is disconnected, his thread over."""
    gone: list[weakref.ref[UdStream]] = []
    peers: list[UdStream] = []

    def come(_listener: object, _args: object) -> Iterator[UdStream]:
        threads = threading.active_count()
        for _ in range(2):
            peer, stream = UdStream.pair()
            gone.append(weakref.ref(stream))
            yield stream
            del stream
            peer.close()
            eventually(lambda: threading.active_count() == threads)
        peer, stream = UdStream.pair()
        peers.append(peer)
        yield stream
        del stream
        gc.collect()
        assert [ref() for ref in gone] == [None, None]
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "admitted", come)
    before = set(threading.enumerate())
    listener: Any = None
    with pytest.raises(KeyboardInterrupt):
        listen._echo_to_all(listener, argparse.Namespace())
    assert set(threading.enumerate()) == before
    with peers[0] as peer:
        assert peer.read(1) == b""


# ------------------------------------------------------------------------------------------------ listen -- COMMAND

KEEPING_OPEN = pytest.mark.parametrize("keep_open", [[], ["--keep-open"]], ids=["once", "keep-open"])


def tool(folder: Path) -> Path:
    """A command of our own, which can be removed."""
    path = folder / "tool"
    path.write_text("#!/bin/sh\nexec cat\n")
    path.chmod(0o700)
    return path


def printed_for(start: Command, path: Path, options: list[str], *command: str, **more: Any) -> bytes:
    """What a COMMAND says to a client who says nothing."""
    process = start("listen", *options, path, "--", *command, **more)
    ready(process, path)
    with client(path) as conn:
        conn.shutdown(socket.SHUT_WR)
        return receive_all(conn)


@KEEPING_OPEN
def test_listen_runs_a_command(keep_open: list[str], folder: Path, start: Command) -> None:
    """The connection is COMMAND's stdin and stdout: it hears the client, to the end, and answers."""
    path = folder / "s"
    process = start("listen", *keep_open, path, "--", "sh", "-c", "cat; echo the end; echo aside >&2")
    ready(process, path)
    with client(path) as conn:
        conn.sendall(b"one")
        assert conn.recv(3) == b"one"
        conn.shutdown(socket.SHUT_WR)
        assert receive_all(conn) == b"the end\n"
    assert process.stderr.readline() == b"aside\n"


def test_listen_becomes_the_command(folder: Path, start: Command) -> None:
    """Without --keep-open the process becomes COMMAND, which finds the socket file gone; the status is COMMAND's."""
    path = folder / "s"
    process = start(
        "listen", path, "--", "sh", "-c", 'echo $$; test -e "$1" && echo there; exit 7', "sh", path
    )
    ready(process, path)
    with client(path) as conn:
        assert receive_all(conn) == b"%d\n" % process.pid
    assert process.wait(LONG) == 7
    assert process.stderr.read() == b""


@needs_linux
@KEEPING_OPEN
def test_listen_gives_a_command_nothing_else(keep_open: list[str], folder: Path, start: Command) -> None:
    """COMMAND has 0, 1 and 2 alone, whatever listen has inherited, and finds its signals as usual."""
    program = "ls /proc/self/fd; grep -E 'SigBlk|SigIgn' /proc/self/status"
    with open(os.devnull) as inherited:
        said = printed_for(start, folder / "s", keep_open, "sh", "-c", program, pass_fds=[inherited.fileno()])

    lines = said.decode().splitlines()
    # ls has a descriptor of its own, by which it lists them.
    assert lines[:-2] == ["0", "1", "2", "3"]
    blocked, ignored = (int(line.split()[1], 16) for line in lines[-2:])
    assert blocked == 0
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGHUP):
        assert ignored & (1 << (number - 1)) == 0


@needs_linux
@KEEPING_OPEN
def test_listen_tells_a_command_who_its_client_is(keep_open: list[str], folder: Path, start: Command) -> None:
    """COMMAND knows its client by the kernel's word, and by nobody else's."""
    said = printed_for(
        start,
        folder / "s",
        keep_open,
        *("sh", "-c", "env | grep UDSTREAM_PEER_ | sort"),
        env={**environment(), "UDSTREAM_PEER_PID": "1", "UDSTREAM_PEER_NAME": "root"},
    )

    assert said.decode().split() == [
        f"UDSTREAM_PEER_GID={os.getegid()}",
        f"UDSTREAM_PEER_PID={os.getpid()}",
        f"UDSTREAM_PEER_UID={os.geteuid()}",
    ]


def test_listen_tells_a_command_what_the_kernel_knows(
    pair: tuple[UdStream, UdStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel knows no process, or tells nothing at all, nothing is made up."""

    def told() -> dict[str, str]:
        found = listen._environment(pair[0])
        return {name: value for name, value in found.items() if name not in os.environ}

    monkeypatch.setattr(UdStream, "peer_credentials", lambda _: udstream.Credentials(None, 0, 1))
    assert told() == {"UDSTREAM_PEER_UID": "0", "UDSTREAM_PEER_GID": "1"}

    def lacking(_stream: UdStream) -> udstream.Credentials:
        raise NotImplementedError

    monkeypatch.setattr(UdStream, "peer_credentials", lacking)
    assert told() == {}


@KEEPING_OPEN
@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_listen_of_no_command(keep_open: list[str], command: str, status: int, folder: Path) -> None:
    """A COMMAND that there is not, or that can't be run, is said before anybody could connect."""
    done = run("listen", *keep_open, folder / "s", "--", command)

    reason = os.strerror(errno.ENOENT if status == 127 else errno.EACCES)
    assert done.stderr.decode() == f"udstream: {command}: {reason}\n"
    assert done.returncode == status


def test_listen_becomes_a_command_that_has_gone(folder: Path, start: Command) -> None:
    """One that has gone since is said when the client has come."""
    path, command = folder / "s", tool(folder)
    process = start("listen", path, "--", command)
    ready(process, path)
    command.unlink()
    client(path).close()

    assert process.wait(LONG) == 127
    assert process.stderr.read().decode() == f"udstream: {command}: No such file or directory\n"


def test_listen_keep_open_without_its_command(folder: Path, start: Command) -> None:
    """A COMMAND that can't be started is said for each client, and those after it are served all the same."""
    path, command = folder / "s", tool(folder)
    process = start("listen", "--keep-open", path, "--", command)
    ready(process, path)
    command.rename(folder / "away")
    for _ in range(2):
        with client(path) as conn:
            assert receive_all(conn) == b""
        assert process.stderr.readline().decode() == f"udstream: {command}: No such file or directory\n"
    (folder / "away").rename(command)
    with client(path) as conn:
        conn.sendall(b"one")
        assert conn.recv(3) == b"one"


def children(pid: int) -> list[int]:
    """The processes that a process has started, and not yet waited for."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end at any moment; then another one has its children.
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


@needs_linux
def test_listen_runs_a_command_for_each_client(folder: Path, start: Command) -> None:
    """With --keep-open all clients are served at once, and nothing is left of those who have gone."""
    path = folder / "s"
    process = start("listen", "--keep-open", path, "--", "cat")
    ready(process, path)
    with client(path) as one, client(path) as other:
        for conn in (other, one):
            conn.sendall(b"ping")
            assert conn.recv(4) == b"ping"
        eventually(lambda: len(children(process.pid)) == 2)
    eventually(lambda: children(process.pid) == [])
    eventually(lambda: sockets(process.pid) == 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_listen_leaves_commands_to_their_clients(
    number: int, status: int, folder: Path, start: Command
) -> None:
    """When listen ends, a COMMAND that is at work goes on with its client."""
    path = folder / "s"
    process = start("listen", "--keep-open", path, "--", "cat")
    ready(process, path)
    with client(path) as conn:
        conn.sendall(b"one")
        assert conn.recv(3) == b"one"
        process.send_signal(number)
        assert process.wait(LONG) == status
        assert not path.exists()
        conn.sendall(b"two")
        assert conn.recv(3) == b"two"
    assert process.stderr.read() == b""


def test_listen_runs_a_command_with_no_thread_left(folder: Path) -> None:
    """A client for whom there is no thread is turned away, as with --echo."""
    path = folder / "s"
    command = with_few_threads(2, "listen", "--keep-open", path, "--", "cat")
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        ready(process, path)
        with client(path) as served:
            served.sendall(b"one")
            assert served.recv(3) == b"one"
            with client(path) as turned_away:
                assert receive_all(turned_away) == b""
            assert process.stderr.readline() == f"udstream: {path}: can't start new thread\n".encode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 143


@needs_linux
@KEEPING_OPEN
def test_listen_runs_a_command_for_the_allowed_only(
    keep_open: list[str], folder: Path, start: Command
) -> None:
    """--allow-user holds for COMMAND as well."""
    path = folder / "s"
    process = start("listen", *keep_open, "--allow-user", 4_000_000_001, path, "--", "cat")
    ready(process, path)
    with client(path) as conn:
        assert receive_all(conn) == b""
    assert b"refused" in process.stderr.readline()
    assert process.poll() is None


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


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("broken")])
@pytest.mark.parametrize("step", ["listen", "hang up"])
def test_demo_where_anything_fails(
    step: str, error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of any kind, in the server's thread too, is told with the step that it was in."""
    from udstream.cli import demo

    serve = demo._Server.serve

    def fail(*_: object, **__: object) -> None:
        raise error

    def serve_and_fail(server: demo._Server) -> None:
        serve(server)
        raise OSError(errno.EIO, "broken")

    if step == "listen":
        monkeypatch.setattr(udstream.UdStreamListener, "bind", fail)
    else:
        monkeypatch.setattr(demo._Server, "serve", serve_and_fail)
    assert main(["demo"]) == 1
    assert re.fullmatch(rf"udstream: demo: {step}: .*broken\n", capsys.readouterr().err)


def test_demo_checks_that_the_file_has_gone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket file that stays is a failure of the last step."""
    monkeypatch.setattr(os.path, "lexists", lambda _path: True)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "udstream: demo: hang up: the socket file is still there\n"


@pytest.mark.parametrize("args", [["doctor"], ["--help"]])
def test_output_closed_at_once(args: list[str]) -> None:
    """A command whose reader has gone prints no traceback; status 141."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            words(*args), env=environment(), stdout=writer, stderr=subprocess.PIPE, timeout=LONG
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


@needs_linux
@needs_root
@pytest.mark.parametrize("groups", [[], [54323]])
def test_who_of_another_user(groups: list[int], folder: Path) -> None:
    """Each number stands where it belongs, also one that has no name; what is not printable is an escape."""
    path = folder / "s"
    folder.chmod(0o777)
    program = (
        f"import os, socket, sys; os.setgroups({groups}); os.setgid(54322); os.setuid(54321);"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); os.write(1, b'x'); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path), "a\nb\x1b[2J"]
    process: Process
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout.read(1) == b"x"
        (folder / "link").symlink_to(path)
        found = facts(run("who", folder / "link").stdout)

    assert found["file"] == f"srwxr-xr-x, inode {path.stat().st_ino}"
    assert found["file's owner"] == "uid 54321, gid 54322"
    assert (found["user"], found["group"]) == ("uid 54321", "gid 54322")
    assert found["other groups"] == (", ".join(f"gid {gid}" for gid in groups) or "none")
    assert found["command"].endswith(f" {path} a\\nb\\x1b[2J")


@needs_linux
def test_who_where_the_kernel_knows_less(
    server: socket.socket, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fact that can't be had says why in its place, and one that can't be checked says that."""
    from udstream.cli import who

    def ask() -> dict[str, str]:
        assert main(["who", str(folder / "s")]) == 0
        return facts(capsys.readouterr().out.encode())

    def fail(error: Exception) -> Callable[[object], Any]:
        def _fail(_stream: object) -> None:
            raise error

        return _fail

    for error in (NotImplementedError("too old"), OSError(errno.EPERM, "too old")):
        for name in ("peer_pidfd", "peer_groups", "peer_security"):
            monkeypatch.setattr(who, name, fail(error))
        found = ask()
        assert found["running"] == found["other groups"] == found["security"] == "unknown: too old"
        assert found["program"] == (
            f"{os.path.realpath(sys.executable)} (if the process still runs: this kernel can't tell)"
        )
    monkeypatch.setattr(who, "peer_security", lambda _stream: None)
    assert ask()["security"].startswith("no label")
    monkeypatch.setattr(who, "peer_security", lambda _stream: b"label\n")
    assert ask()["security"] == "label\\n"
    nobody = udstream.Credentials(None, os.geteuid(), os.getegid())
    monkeypatch.setattr(UdStream, "peer_credentials", lambda _stream: nobody)
    found = ask()
    assert found["process"].startswith("unknown: ")
    assert found["program"] == found["command"] == "unknown: the process is"


@needs_linux
def test_who_in_this_process(server: socket.socket, folder: Path) -> None:
    """The handles by which it asks are closed again."""
    assert main(["who", str(folder / "s")]) == 0


@needs_linux
def test_who_tells_the_file_at_once(folder: Path, start: Command) -> None:
    """The facts of the file are there while the connection is waited for; the rest follows."""
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(folder / "s"))
        full.listen(0)
        with client(folder / "s"):
            process = start("who", "--timeout", LONG, folder / "s")
            assert process.stdout.readline().startswith(b"socket ")
            full.accept()[0].close()
            assert process.wait(LONG) == 0


def test_who_does_not_wait_for_ever() -> None:
    """Unless told otherwise it gives a server 5 seconds."""
    from udstream.cli import who

    parser = argparse.ArgumentParser()
    who.add_arguments(parser)
    assert parser.parse_args(["p"]).timeout == 5
    assert b"(default: 5)" in run("who", "--help").stdout


def test_names_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number without a name stands for itself; a program that we may not see has the name it gave itself."""
    assert identity.user(4_000_000_001) == "uid 4000000001"
    assert identity.group(4_000_000_001) == "gid 4000000001"
    assert identity.user_number("4294967294") == identity.group_number("4294967294") == 2**32 - 2
    for user in pwd.getpwall():
        assert identity.user_number(user.pw_name) == pwd.getpwnam(user.pw_name).pw_uid
    if LINUX:

        def not_ours(path: str) -> str:
            raise PermissionError(errno.EACCES, "not ours", path)

        monkeypatch.setattr(os, "readlink", not_ours)
        assert identity.program(os.getpid()) == Path("/proc/self/comm").read_text().rstrip("\n")
        monkeypatch.setattr(os, "readlink", lambda _path: "a\nb")
        assert identity.program(os.getpid()) == "a\\nb"
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: argparse.Namespace(pw_name="a\nb"))
    assert identity.user(1) == "a\\nb (uid 1)"


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
    assert out.startswith("1  a\\n9 \\x1b[2J\\xff  character device")
    assert out.count("\n") == 1


def test_pass_for_writing(folder: Path, start: Command) -> None:
    """--write opens for reading and writing; it makes no file."""
    path = folder / "s"
    (folder / "f").write_bytes(b"old")
    process = take(start, path, path, "--", "sh", "-c", "cat <&3; printf new >&3")

    assert run("pass", "--write", path, folder / "missing").returncode == 1
    assert run("pass", "--write", path, folder / "f").returncode == 0
    assert process.stdout.read() == b"old"

    assert process.wait(LONG) == 0
    assert (folder / "f").read_bytes() == b"oldnew"
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


def test_pass_in_this_process(folder: Path, server: socket.socket) -> None:
    """The files that it opened are closed again."""
    assert main(["pass", str(folder / "s"), os.devnull, os.devnull]) == 0


def test_pass_by_the_longest_names(folder: Path, start: Command) -> None:
    """Each name may be as long as a path."""
    path = folder / "s"
    (folder / "f").touch()
    name = "./" * 2047 + "f"
    assert len(name) == 4095
    process = take(start, path, path)

    assert run("pass", path, *[name] * 3, cwd=folder).returncode == 0

    lines = [line.split()[1].decode() for line in process.stdout.read().splitlines()]
    assert process.wait(LONG) == 0, process.stderr.read()
    assert lines == [name] * 3


@needs_linux
def test_take_lists_what_files_are_open_for(folder: Path, start: Command) -> None:
    """Kinds of every sort, what they are open for, and where they lead, in escapes where it is not printable."""
    path = folder / "s"
    process = take(start, path, path)
    odd = folder / "a\nb"
    odd.touch()
    (folder / "link").symlink_to(odd)
    with ExitStack() as stack:
        fds = [
            os.open(odd, os.O_WRONLY | os.O_APPEND),
            os.open(odd, os.O_RDWR | os.O_DSYNC),
            os.open(odd, os.O_RDWR | os.O_SYNC | os.O_NONBLOCK),
            os.open(odd, os.O_PATH),
            os.open(folder / "link", os.O_PATH | os.O_NOFOLLOW),
            os.eventfd(0),
        ]
        for fd in fds:
            stack.callback(os.close, fd)
        plain = stack.enter_context(socket.socket(socket.AF_UNIX))
        conn = stack.enter_context(client(path))
        socket.send_fds(conn, [b"x"], [*fds, plain.fileno()])

    lines = [re.split(r"  +", line)[2:] for line in process.stdout.read().decode().splitlines()]
    assert [line[2] for line in lines[:5]] == [
        "write,append",
        "read-write",
        "read-write,nonblocking,sync",
        "path only",
        "path only",
    ]
    kinds = ["file", "file", "file", "file", "symbolic link", "other", "socket"]
    assert [line[0] for line in lines] == kinds
    assert lines[0][3] == f"{folder}/a\\nb"


def test_take_where_nothing_says_where_a_file_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc the list has the reason in that place."""
    from udstream.cli import take_files

    def missing(path: str) -> str:
        raise FileNotFoundError(errno.ENOENT, "no such file", path)

    monkeypatch.setattr(os, "readlink", missing)
    assert take_files._target(0) == "unknown: no such file"


@pytest.mark.parametrize("payload", [b"a\0b", b"a", b"a\0b\0", b"\0\0"])
def test_take_of_what_are_no_names(payload: bytes, folder: Path, start: Command) -> None:
    """Bytes that are not one name for each file, with its NUL, are none."""
    path = folder / "s"
    process = take(start, path, path)
    with client(path) as conn, open(os.devnull) as null:
        socket.send_fds(conn, [payload], [null.fileno()])

    assert process.stdout.read().split()[:2] == [b"1", b"-"]
    assert process.wait(LONG) == 0


def test_take_tells_the_names_one_a_line(folder: Path, start: Command) -> None:
    """A name with a newline in it is not two in UDSTREAM_FDNAMES."""
    path = folder / "s"
    process = take(start, path, path, "--", "sh", "-c", 'printf %s "$UDSTREAM_FDNAMES"')
    with client(path) as conn, open(os.devnull) as null:
        socket.send_fds(conn, [b"a\nb\0c\0"], [null.fileno()] * 2)

    assert process.stdout.read() == b"a\\nb\nc"


@pytest.mark.parametrize("numbers", [[4, 3], [3, 4], [4, 5]])
def test_take_gives_the_files_their_numbers(numbers: list[int], folder: Path) -> None:
    """Whatever numbers the files came with, and whether these are wanted for others."""
    for name in ("one", "two"):
        (folder / name).write_text(name)
    program = (
        "import os; from udstream.cli import running; fds = [os.open(n, 0) for n in ('one', 'two')];"
        "moved = [os.dup2(os.dup2(fd, 20 + fd), 40 + fd) for fd in fds];"
        f"[os.dup2(fd, number, False) for fd, number in zip(moved, {numbers})];"
        f"running.become(['sh', '-c', 'cat <&3; cat <&4'], dict(zip((3, 4), {numbers})), dict(os.environ))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), cwd=folder, capture_output=True, timeout=LONG
    )

    assert (done.stdout, done.stderr) == (b"onetwo", b"")


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
    program = (
        "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1],"
        "os.read(3, 9), os.read(4, 9), os.environ['UDSTREAM_FDS'], os.environ['UDSTREAM_FDNAMES'].split('\\n'))"
    )
    inherited = " ".join(f"{number}</dev/null" for number in range(3, 10))
    shell = ["sh", "-c", f'exec "$@" {inherited}', "sh"]
    process: Process
    with subprocess.Popen(
        [*shell, *words("take", path, "--", sys.executable, "-c", program)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=-1,
        stderr=-1,
    ) as process:
        ready(process, path)
        assert run("pass", "s", "one", "two", cwd=folder).returncode == 0

        out = process.stdout.read().decode()
        assert process.wait(LONG) == 0, process.stderr.read()
    assert out == "[0, 1, 2, 3, 4] b'one' b'two' 3 4 ['one', 'two']\n"


@needs_linux
def test_take_command_has_an_empty_stdin_for_a_closed_one(folder: Path) -> None:
    """Nor does a file that COMMAND opens get the number of a stdin that was closed."""
    path = folder / "s"
    command = words("take", path, "--", "readlink", "/proc/self/fd/0")
    process: Process
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], env=environment(), stdout=-1, stderr=-1
    ) as process:
        ready(process, path)
        run("pass", path, os.devnull)
        assert process.stdout.read() == b"/dev/null\n"
    assert process.returncode == 0


@needs_linux
def test_take_command_finds_its_signals_as_usual(folder: Path, start: Command) -> None:
    """COMMAND does not inherit that Python ignores two signals, and is the process that take was."""
    path = folder / "s"
    process = take(start, path, path, "--", "sh", "-c", "grep SigIgn /proc/self/status; echo $$")

    run("pass", path, os.devnull)

    ignored, pid = process.stdout.read().split(b"\n")[:2]
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert int(ignored.split()[1], 16) & (1 << (number - 1)) == 0
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


@pytest.mark.parametrize("word", ["{2}", "{0}"])
def test_take_asks_for_a_file_that_did_not_come(word: str, folder: Path, start: Command) -> None:
    """{2} when one file came is an error, as is {0}, and nothing is run."""
    path = folder / "s"
    process = take(start, path, path, "--", "echo", word)

    run("pass", path, os.devnull)

    assert process.wait(LONG) == 1
    assert process.stdout.read() == b""
    assert word.encode() in process.stderr.read()


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


@pytest.mark.parametrize("count", [299, 300])
def test_take_max_of_more_than_one_message(count: int, folder: Path, start: Command) -> None:
    """--max counts all files that come, and may be more than a message can carry."""
    path = folder / "s"
    process = take(start, path, "--max", 299, path, "--", "echo", "ran")

    run("pass", path, *[os.devnull] * count)

    assert process.wait(LONG) == (0 if count == 299 else 1)
    assert process.stderr.read().decode() == (
        "" if count == 299 else f"udstream: {path}: more than 299 files came\n"
    )


@needs_linux
@pytest.mark.parametrize("options", [[], ["--max", "100"]])
def test_take_at_the_limit_of_open_files(options: list[str], folder: Path, start: Command) -> None:
    """When the process may not have so many files, take says so rather than go on with fewer."""
    path = folder / "s"
    shell = ["sh", "-c", 'ulimit -n 20; exec "$@"', "sh", *words("take", *options, path, "--", "echo", "ran")]
    process: Process
    with subprocess.Popen(shell, env=environment(), stdout=-1, stderr=-1) as process:
        ready(process, path)
        run("pass", path, *[os.devnull] * 30)
        assert process.wait(LONG) == 1
        assert process.stdout.read() == b""
        assert process.stderr.read().endswith(b"limit of open files\n")


def test_take_waits_past_a_connection_that_brings_nothing(folder: Path, start: Command) -> None:
    """A connection without a file, such as who's, does not end the waiting, whatever it says."""
    path = folder / "s"
    process = take(start, path, path)
    client(path).close()
    with client(path) as conn:
        conn.sendall(b"hello")
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


def test_take_turns_away_who_says_nothing(folder: Path, start: Command) -> None:
    """With --timeout a client that sends nothing holds nobody up for longer; one that sends a part ends it."""
    path = folder / "s"
    process = start("take", "-q", "--timeout", "0.5", path)
    with client_of_a_quiet_server(path) as silent, client(path) as talker:
        socket.send_fds(talker, [b"name"], [0])
        told = process.stderr.readline().decode()
        assert told == f"udstream: {path}: turned away a client that sent nothing\n"
        assert process.wait(LONG) == 1
        assert silent.recv(1) == b""
    told = process.stderr.read().decode()
    assert told == f"udstream: {path}: timed out: the client has not said that this is all\n"


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
        assert answers["half-close"] == answers["no SIGPIPE"] == answers["shutdown of a listener"] == "yes"
        assert answers["peer credentials"] == answers["credentials by message (SO_PASSCRED)"] == "yes"


@needs_linux
def test_doctor_in_a_deep_folder(folder: Path) -> None:
    """What the kernel can do is found out however long the name of the temporary folder is."""
    deep = folder / ("d" * 200)
    deep.mkdir()
    done = subprocess.run(
        words("doctor"), env={**environment(), "TMPDIR": str(deep)}, capture_output=True, timeout=LONG
    )

    assert re.search(rb"mode before bind +yes +a mode given", done.stdout)


def test_doctor_in_this_process() -> None:
    """What it tries leaves no descriptor open, and SIGPIPE as it was."""
    before = signal.getsignal(signal.SIGPIPE)
    assert main(["doctor"]) == 0
    assert signal.getsignal(signal.SIGPIPE) is before


def test_doctor_says_no_whatever_goes_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that fails in any way is a no with its reason, and the next one follows."""
    from udstream.cli import doctor

    errors = [doctor._No("so"), NotImplementedError("so"), ValueError("so"), OSError(errno.EPERM, "so")]

    def probe(error: Exception) -> Callable[[Path], str]:
        def fail(_folder: Path) -> str:
            raise error

        return fail

    monkeypatch.setattr(doctor, "PROBES", [("thing", probe(error)) for error in errors])
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["thing  no  so"] * 4


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
