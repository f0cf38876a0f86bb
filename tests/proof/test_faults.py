"""
Nothing is lost, leaked or left in between when a system call fails, whichever it is and whatever it says.

faults.py does every public operation, and faults.c, preloaded, lets its system calls fail; strace, where it is
installed, lets some fail by another way, and bears witness that the shim misses none.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real import environment, python

HERE = Path(__file__).parent
PROGRAM = HERE / "faults.py"
# Seconds; the longest takes a tenth of it on a slow machine.
PATIENCE = 200
GROUPS = ["raw", "making", "reading", "writing", "ancillary", "listener"]

Prove = Callable[..., dict[str, Any]]

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload, built here."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the shim stands in for glibc's functions")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    options = ["-std=gnu11", "-Wall", "-O1", "-shared", "-fPIC", "-ldl"]
    subprocess.run([compiler, *options, HERE / "faults.c", "-o", library], check=True, timeout=PATIENCE)
    return library


@pytest.fixture
def prove(shim: Path, folder: Path, record_property: Callable[[str, object], None]) -> Prove:
    """Run one group, and record what was done."""

    def prove(group: str, *options: str) -> dict[str, Any]:
        env = environment(folder, LD_PRELOAD=str(shim))
        command = [sys.executable, str(PROGRAM), group, *options]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert ran.returncode == 0, ran.stderr
        done: dict[str, Any] = json.loads(ran.stdout)
        record_property("faults injected", done["faults"])
        record_property("runs under a fault", done["runs"])
        return done

    return prove


def check(done: dict[str, Any]) -> None:
    """Say what went wrong, a little of it."""
    failures = done["failures"]
    assert not failures, f"{len(failures)} of {done['runs']} runs failed:\n" + "\n".join(failures[:10])
    # Most faults are to be told; were none, the shim would not be at work.
    assert done["raised"] > done["runs"] / 10


@pytest.mark.parametrize("group", GROUPS)
def test_a_failing_system_call_does_no_harm(prove: Prove, group: str) -> None:
    """Whatever call fails: the error comes through, no byte or descriptor is lost, and one can go on or is told not to."""
    check(prove(group, "quick"))


@pytest.mark.long
@pytest.mark.parametrize("group", GROUPS)
def test_no_error_at_any_system_call_does_harm(prove: Prove, group: str) -> None:
    """The same of each kind of error, once, from then on, or before each call; and with all data a byte at a time."""
    check(prove(group))


# --- by another way ---


@pytest.mark.long
@needs_strace
def test_the_shim_misses_no_system_call(shim: Path, folder: Path) -> None:
    """What the shim counts is what strace sees the kernel asked for, so each of an operation's calls has had its turn."""
    log = folder / "strace"
    for group in GROUPS:
        command = ["strace", "-f", "-o", str(log), "-E", f"LD_PRELOAD={shim}", sys.executable, str(PROGRAM)]
        ran = _strace([*command, group, "count"], environment(folder))
        counted = json.loads(ran.stdout)
        seen: dict[str, list[str]] = {}
        current: list[str] = []
        thread = ""
        for line in log.read_text(errors="replace").splitlines():
            # A scenario's other threads, and what happens between its calls, are no part of them.
            if begun := re.match(r'(\d+) +access\("/begin ([^"]*)"', line):
                thread, current = begun[1], seen.setdefault(begun[2], [])
            elif re.match(rf'{thread} +access\("/end"', line):
                thread = ""
            elif (call := re.match(r"(\d+) +(\w+)\(", line)) and call[1] == thread and call[2] not in NOT_IO:
                current.append(_same(call[2]))
        called = {name: [_same(call) for call in calls] for name, calls in counted.items()}
        # A variant that there is not makes none.
        assert seen and called == {name: seen.get(name, []) for name in called}


# What the interpreter asks for itself, of memory, time, signals and identity; and the position in a file on a disk.
NOT_IO = {
    *("mmap", "munmap", "mremap", "brk", "madvise", "futex", "getrandom"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigtimedwait", "clock_nanosleep"),
    *("getpid", "getuid", "getgid", "lseek"),
}
# Two names for the same, glibc's and the kernel's.
KERNELS_NAME = {"recv": "recvfrom", "send": "sendto", "open": "openat"}


def _same(name: str) -> str:
    name = name.removesuffix("64")
    return "stat" if "stat" in name else KERNELS_NAME.get(name, name)


def _strace(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    if ran.returncode and "PTRACE" in ran.stderr:
        pytest.skip("strace is not allowed here")
    assert ran.returncode == 0, ran.stderr
    return ran


STRACED = """
import os, socket, sys, udstream
one, other = socket.socketpair()
mine = udstream.UdStream.from_socket(one)
if sys.argv[1] == "timed":
    mine.timeout = 20
size = 20_000
data = os.urandom(size)
os.access("/begin", 0)
mine.write_all(data)
assert mine.writev_all([data[:1000], data[1000:2000]]) == 2000
mine.send_fds(data[:1000], [0])
# Not by a call that is interfered with.
assert os.write(other.fileno(), data) == size
assert other.recv(size, socket.MSG_WAITALL) == data
assert other.recv(2000, socket.MSG_WAITALL) == data[:2000]
assert other.recv(1000, socket.MSG_WAITALL) == data[:1000]
assert mine.read_exact(size - 3) == data[:-3]
got = mine.recv_fds(3)
assert got[0] == data[-3:] and not got[1]
number = mine.fileno()
os.access("/closing %d" % number, 0)
try:
    mine.close()
except OSError as error:
    print(error.errno)
assert mine.closed
mine.close()
os.access("/end", 0)
other.close()
"""


@pytest.mark.long
@needs_strace
@pytest.mark.parametrize(
    ("fault", "timeout"),
    [
        ("recvfrom,recvmsg:error=EINTR:when=1+2", "untimed"),
        ("recvfrom,recvmsg:error=EINTR:when=1+2", "timed"),
        ("sendto,sendmsg:error=EINTR:when=1+2", "untimed"),
        ("sendto,sendmsg:error=EINTR:when=1+2", "timed"),
        # Without a timeout a blocking stream is never told to wait.
        ("sendto,sendmsg:error=EAGAIN:when=1+2", "timed"),
    ],
)
def test_interruptions_that_strace_makes(
    folder: Path, fault: str, timeout: str, record_property: Callable[[str, object], None]
) -> None:
    """Calls that are interrupted, or told to wait for nothing, every other time lose no byte."""
    log = folder / "strace"
    command = ["strace", "-f", "-o", str(log), "-e", f"inject={fault}"]
    _strace([*command, *python(STRACED, timeout)], environment(folder))
    injected = log.read_text(errors="replace").count("(INJECTED)")
    assert injected >= 3
    record_property("faults injected", injected)


@pytest.mark.long
@needs_strace
@pytest.mark.parametrize("name", ["EINTR", "EIO"])
def test_a_close_that_fails_is_not_repeated(
    folder: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    """Whatever close says, it is asked once: by a second time the number may be somebody else's."""
    log = folder / "strace"
    # The number is the same each time; which of all the closes it is that ends the stream shows without a fault.
    clean = ["strace", "-f", "-o", str(log), "-e", "trace=close,access"]
    _strace([*clean, *python(STRACED, "untimed")], environment(folder))
    lines = log.read_text(errors="replace").splitlines()
    begun = next(number for number, line in enumerate(lines) if '"/closing' in line)
    when = sum("close(" in line for line in lines[:begun]) + 1

    failing = [*clean, "-e", f"inject=close:error={name}:when={when}"]
    ran = _strace([*failing, *python(STRACED, "untimed")], environment(folder))
    lines = log.read_text(errors="replace").splitlines()
    begun = next(number for number, line in enumerate(lines) if '"/closing' in line)
    fd = re.search(r"/closing (\d+)", lines[begun])
    assert fd is not None
    closes = [line for line in lines[begun:] if f"close({fd[1]})" in line]

    assert len(closes) == 1 and "(INJECTED)" in closes[0]
    assert int(ran.stdout) == getattr(errno, name)
    record_property("faults injected", 1)
