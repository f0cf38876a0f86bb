"""The same loops in C, the limit of what can be had: compiled when they are first asked for."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .measure import Unavailable

_SOURCE = Path(__file__).with_name("loops.c")


@functools.cache
def _compiled() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "no C compiler"
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/loops.so"
        done = subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", library, str(_SOURCE)], capture_output=True, text=True
        )
        if done.returncode:
            return f"cc failed: {done.stderr.strip()}"
        return ctypes.CDLL(library)


class Loops:
    """The functions of loops.c, with their errors as `OSError`."""

    def __init__(self) -> None:
        library = _compiled()
        if isinstance(library, str):
            raise Unavailable(library)
        self._library = library

    def write_and_read(self, out: int, into: int, size: int, n: int) -> None:
        """Write a message to one descriptor and read it from another, *n* times."""
        fds = ctypes.c_int(out), ctypes.c_int(into)
        _check(self._library.write_and_read(*fds, ctypes.c_size_t(size), ctypes.c_long(n)))

    def trips(self, fd: int, size: int, n: int) -> None:
        """Send a message and receive its answer, *n* times."""
        self.write_and_read(fd, fd, size, n)

    def echo(self, fd: int, size: int, n: int) -> None:
        """Receive a message and send it back, *n* times."""
        self._on_one("echo", fd, size, n)

    def send_messages(self, fd: int, size: int, n: int) -> None:
        """Send *n* messages."""
        self._on_one("send_messages", fd, size, n)

    def receive_messages(self, fd: int, size: int, n: int) -> None:
        """Receive as many bytes as *n* messages have."""
        self._on_one("receive_messages", fd, size, n)

    def _on_one(self, name: str, fd: int, size: int, n: int) -> None:
        _check(getattr(self._library, name)(ctypes.c_int(fd), ctypes.c_size_t(size), ctypes.c_long(n)))


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))
