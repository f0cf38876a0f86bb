"""Programs that others wrote: started for a test on a socket in its folder, and surely stopped after it."""

from __future__ import annotations

import multiprocessing.reduction
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import udstream

# Every wait is bounded by this, many times what the slowest of them takes.
PATIENCE = 20.0

# Whether multiprocessing says with a byte that descriptors have arrived: on macOS, and since Python 3.14 everywhere.
MULTIPROCESSING_ACKNOWLEDGES: bool = getattr(multiprocessing.reduction, "ACKNOWLEDGE", True)

# Which Debian package has a program whose name isn't the package's.
PACKAGES = {
    "dbus-daemon": "dbus",
    "nc.openbsd": "netcat-openbsd",
    "ssh": "openssh-client",
    "ssh-agent": "openssh-client",
    "systemd-socket-activate": "systemd",
}

REQUIRED = os.environ.get("UDSTREAM_REQUIRE_REAL") == "1"


def _missing(program: str) -> str:
    return f"{program} is not installed: apt-get install {PACKAGES.get(program, program)}"


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test whose program is missing, unless UDSTREAM_REQUIRE_REAL=1, where starting it then fails."""
    return pytest.mark.skipif(shutil.which(program) is None and not REQUIRED, reason=_missing(program))


def require(program: str) -> None:
    """Fail the test if *program*, which is about to be started, is missing."""
    if shutil.which(program) is None:
        pytest.fail(_missing(program))


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What a program sees: nothing of the user's settings and sessions, and this very udstream."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(folder),
        "PYTHONPATH": str(Path(udstream.__file__).parent.parent),
        **more,
    }


def python(code: str, *arguments: str | Path) -> list[str]:
    """The command that runs *code* in this Python, warnings being errors."""
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


class Program:
    """A child process in a session of its own, and all that it has printed so far."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        require(command[0])
        self._name = command[0]
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"output of {self._name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.decode(errors="replace"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        """What it has printed, on its standard output and its standard error."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, text: str) -> None:
        """Wait until it has printed *text*, and fail the test if it ends without it."""

        def printed() -> bool:
            return text in "".join(self._lines)

        with self._news:
            self._news.wait_for(lambda: printed() or self._ended, PATIENCE)
            assert printed(), f"{self._name} never printed {text!r}"

    def finish(self) -> str:
        """Wait for its end, which is to be a success, and return all that it printed."""
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), f"{self._name} does not end"
        assert self._process.wait(PATIENCE) == 0, f"{self._name} failed"
        return self.output

    def stop(self) -> None:
        """End it, and all that it started; print what it said, which pytest shows when the test failed."""
        # Until it is waited for, its number is that of its group and of nobody else's. Its output ends
        # when the last process of the group is gone.
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            self._reader.join(PATIENCE / 4)
            self._signal(signal.SIGKILL)
        status = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()
        print(f"--- {self._name} (status {status}) said:\n{self.output}", file=sys.stderr)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextmanager
def running(*command: str, env: Mapping[str, str], ready: str = "") -> Iterator[Program]:
    """Start *command*, wait until it has printed *ready*, and stop it at the end of the block."""
    program = Program(command, env)
    try:
        if ready:
            program.wait_for(ready)
        yield program
    finally:
        program.stop()
