"""What ``listen`` and ``take`` share: running the COMMAND that stands after ``--``."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import signal
from typing import NoReturn

from .terminal import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen

NOT_FOUND, NOT_EXECUTABLE = 127, 126


def check(args: argparse.Namespace) -> None:
    """End with wrong usage where a COMMAND was announced, and there is none."""
    if args.words is not None and not args.words:
        args.usage_error("no COMMAND after --")
    if args.words is not None and not args.words[0]:
        args.usage_error("the name of COMMAND is empty")


def look_up(words: list[str]) -> None:
    """`Failure` where there is no such COMMAND, or none that can be run, before anybody is kept waiting for it."""
    import shutil

    if shutil.which(words[0]) is None:
        number = errno.EACCES if shutil.which(words[0], os.F_OK) else errno.ENOENT
        raise _failure(words, OSError(number, os.strerror(number)))


def child(words: list[str], fd: int, environment: dict[str, str]) -> Popen[bytes]:
    """Run COMMAND with *fd* as its stdin and stdout, and no other but stderr; `OSError` where it can't be run."""
    import subprocess

    return subprocess.Popen(words, stdin=fd, stdout=fd, env=environment)


def become(words: list[str], fds: dict[int, int], environment: dict[str, str]) -> NoReturn:
    """Run COMMAND in this process's place, with *fds* under the numbers they have there, and no other but 0, 1, 2."""
    end = max([2, *fds]) + 1
    # Out of the way first: a number that is wanted for one may be that of another.
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end) for number, fd in fds.items()}
    for number, fd in moved.items():
        os.dup2(fd, number)
    for entry in os.listdir("/dev/fd"):
        if int(entry) >= end:
            _close_on_exec(int(entry))
    # Python ignores these two, and what is ignored stays so in the command, which counts on them.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise _failure(words, error) from None


def _failure(words: list[str], error: OSError) -> Failure:
    status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    return Failure(words[0], error.strerror, status)


def _close_on_exec(fd: int) -> None:
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return  # it was the one that listed the folder
