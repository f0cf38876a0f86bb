"""Forks with open streams, files and listeners: who sends what, who closes what, who removes what."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from meanwhile import PATIENCE
from real import environment, python

CLIENTS, WORKERS = 400, 4

MODES = ["wb", "rwb", "w", "rw"]


def ran(code: str, folder: Path, *arguments: str | Path) -> str:
    """What this program prints: on its standard output, and nothing on the other."""
    program = subprocess.run(
        python(code, *arguments), env=environment(folder), capture_output=True, text=True, timeout=PATIENCE
    )
    assert (program.returncode, program.stderr) == (0, "")
    return program.stdout


# --- what was buffered ---

BUFFERED = """
import multiprocessing, os, sys, warnings
from udstream import UdStream

mode, how = sys.argv[1:]
here, there = UdStream.pair()
file = here.makefile(mode)
word = (lambda text: text.encode()) if "b" in mode else str

def child():
    there.close()
    if how == "closes the stream":
        here.close()
    elif how == "writes on":
        # What it had of the parent's was flushed by that.
        file.write(word("the child's\\n"))
        file.flush()

if how == "writes on":
    file.write(word("the parent's\\n"))
    file.flush()
else:
    file.write(word("the parent's\\n"))
if how == "multiprocessing":
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
else:
    pid = os.fork()
    if not pid:
        child()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
file.write(word("more\\n"))
file.close()
print(there.readall().decode(), end="")
there.close()
"""


@pytest.mark.parametrize("how", ["_exit", "multiprocessing", "closes the stream", "writes on"])
@pytest.mark.parametrize("mode", MODES)
def test_buffered_data_is_sent_once(folder: Path, mode: str, how: str) -> None:
    """A child that ends with os._exit(), as those of multiprocessing do, or that closes the stream, sends nothing."""
    lines = ["the parent's", *["the child's"][: how == "writes on"], "more"]
    assert ran(BUFFERED, folder, mode, how).splitlines() == lines


EXIT = """
import os, sys
from udstream import UdStream

mode, how = sys.argv[1:]
here, there = UdStream.pair()
file = here.makefile(mode)
word = (lambda text: text.encode()) if "b" in mode else str
file.write(word("the parent's\\n"))
pid = os.fork()
if not pid:
    there.close()
    if how == "closes":
        file.close()
        os._exit(0)
    if how == "exits":
        here.close()
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
file.close()
print(there.readall().decode(), end="")
there.close()
"""


@pytest.mark.parametrize("mode", MODES)
def test_child_that_closes_a_file_sends_its_copy(folder: Path, mode: str) -> None:
    """A fork copies what a file has buffered, and each copy is sent by whoever closes it, as with any file."""
    assert ran(EXIT, folder, mode, "closes").splitlines() == ["the parent's"] * 2


@pytest.mark.parametrize("mode", MODES)
def test_child_that_exits_with_a_file_open_sends_its_copy(folder: Path, mode: str) -> None:
    """So is the copy of a child that exits in the ordinary way and leaves the file open, which it is warned of."""
    program = subprocess.run(
        python(EXIT, mode, "leaves"),
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert program.stdout.splitlines() == ["the parent's"] * 2
    assert "ResourceWarning: unclosed" in program.stderr


AT_EXIT = """
import sys
from udstream import UdStream

stream = UdStream.from_fd(int(sys.argv[1]))
file = stream.makefile(sys.argv[2])

def say(text):
    # A function, so that the collector finds all that is global here in one cycle.
    file.write(text.encode() if "b" in file.mode else text)

say("last words")
"""


@pytest.mark.parametrize("mode", MODES)
def test_program_that_ends_sends_what_was_written(folder: Path, mode: str) -> None:
    """A file that is still open as the program ends sends what was written to it, whatever else refers to its stream."""
    here, there = socket.socketpair()
    with there:
        with here:
            program = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", AT_EXIT, str(here.fileno()), mode],
                env=environment(folder),
                pass_fds=[here.fileno()],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        assert (program.returncode, program.stderr) == (0, "")
        assert there.recv(100) == b"last words"


@pytest.mark.parametrize("mode", MODES)
def test_child_that_closes_the_stream_can_exit(folder: Path, mode: str) -> None:
    """Closing the stream under a file drops the copy: then even an ordinary exit sends nothing."""
    assert ran(EXIT, folder, mode, "exits").splitlines() == ["the parent's"]


# --- threads at the moment of the fork ---

WITH_THREADS = """
import os, sys, threading, warnings
from udstream import Shutdown, UdStream
sys.path.insert(0, sys.argv[2])
from blocked import Blocked

# Python 3.12 and later warn of a fork beside threads, which is what this is about.
warnings.simplefilter("ignore", DeprecationWarning)
mode = sys.argv[1]
here, there = UdStream.pair()
file = here.makefile(mode)
word = (lambda text: text.encode()) if "b" in mode else str
reading = Blocked(file.readline)
writing = Blocked(lambda: file.write(word("x" * 1_000_000)) + (file.flush() or 0))
pid = os.fork()
if not pid:
    # Locks that those threads held are held here for ever.
    stream = file.raw if "b" in mode else file.buffer.raw
    assert stream is here
    stream.close()
    there.close()
    assert file.closed
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
got = there.read_exact(1_000_000)
there.write(b"line\\n")
reading.end()
writing.end()
assert (reading.result, writing.result, got) == (word("line\\n"), 1_000_000, b"x" * 1_000_000)
file.close()
there.close()
print("kept")
"""


@pytest.mark.parametrize("mode", ["rwb", "rw"])
def test_fork_beside_blocked_threads(folder: Path, mode: str) -> None:
    """A child forked while other threads are inside a file can close its stream, and they never notice."""
    assert ran(WITH_THREADS, folder, mode, Path(__file__).parent.parent) == "kept\n"


# --- listeners ---

PREFORK = """
import os, sys
from udstream import UdStreamListener

path, timeout, workers = sys.argv[1], sys.argv[2] == "timed", int(sys.argv[3])
listener = UdStreamListener.bind(path)
if timeout:
    listener.timeout = 20.0
pids = []
for number in range(workers):
    pid = os.fork()
    if not pid:
        served = 0
        for stream in listener:
            with stream, stream.makefile("rw") as file:
                said = file.readline()
                file.write(f"{number} heard {said}")
            served += 1
            if said == "stop\\n":
                listener.shutdown()
        # To the end of the program, with the listener open and dropped, or closed.
        if number % 2:
            listener.close()
        else:
            import warnings
            warnings.simplefilter("ignore", ResourceWarning)
        sys.exit()
    pids.append(pid)
print("ready", flush=True)
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
assert os.path.exists(path)
listener.close()
assert not os.path.exists(path)
print("removed")
"""


@pytest.mark.parametrize("timeout", ["untimed", "timed"])
def test_workers_share_a_listener(
    folder: Path, timeout: str, record_property: Callable[[str, object], None]
) -> None:
    """Forked workers accept from one listener: each client is served once; only the process that bound removes the file."""
    path = folder / "s"
    program = subprocess.Popen(
        python(PREFORK, path, timeout, str(WORKERS)),
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        answers: list[str] = []

        def ask(numbers: range) -> None:
            for number in numbers:
                answers.append(said(path, f"client {number}\n"))

        asking = [threading.Thread(target=ask, args=[range(at, CLIENTS, 4)]) for at in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(PATIENCE)
        said(path, "stop\n")
        assert program.stdout.read() == "removed\n"
    assert program.returncode == 0
    assert sorted(answer.partition(" heard ")[2] for answer in answers) == sorted(
        f"client {number}\n" for number in range(CLIENTS)
    )
    record_property("clients served", CLIENTS)


def said(path: Path, line: str) -> str:
    """What a plain socket is answered."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(os.fspath(path))
        sock.sendall(line.encode())
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile() as file:
            return file.read()


# --- received descriptors ---

RECEIVED = """
import os, tempfile
from udstream import UdStream

here, there = UdStream.pair()
with tempfile.TemporaryFile() as report:
    here.send_fds(b"x", [report])
_, fds = there.recv_fds(1)
pid = os.fork()
if not pid:
    fds.close()
    os._exit(0)
os.waitpid(pid, 0)
with fds:
    os.write(fds[0], b"still ours")
here.close()
there.close()
print("kept")
"""


def test_received_descriptors(folder: Path) -> None:
    """Descriptors that a child closes, the parent still has."""
    assert ran(RECEIVED, folder) == "kept\n"
