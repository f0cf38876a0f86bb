"""``udstream take``: the other end of ``udstream pass``."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import stat
from contextlib import ExitStack

from .. import UdStream
from ..ancillary import MAX_FDS
from . import arguments, running, serving
from .arguments import add_path
from .kinds import kind
from .terminal import Failure, complain, printable, table

# The first descriptor that COMMAND gets: the one after stderr.
FIRST = 3

# A name as long as the kernel allows a path to be, and its NUL.
_LONGEST_NAME = 4096 + 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to wait, and what to do with what comes."""
    parser.usage = "udstream take [options] PATH [-- COMMAND ...]"
    parser.description = (
        "Wait for one 'udstream pass PATH FILE...'. Without a COMMAND, print a line about each file. With one, "
        "run it with the files as descriptors 3, 4 and so on: UDSTREAM_FDS lists them, a word of COMMAND that has "
        "{} in it stands there once for each with {} replaced by its /dev/fd/N, and {1} is that of the first."
    )
    add_path(parser)
    parser.add_argument(
        "--max",
        metavar="N",
        type=arguments.positive_count,
        help="refuse to go on when more than N files come",
    )
    serving.add_arguments(parser, mode=0o600)


def run(args: argparse.Namespace) -> int:
    """Receive what one sender sends, and list it or become COMMAND."""
    running.check(args)
    with ExitStack() as owned:
        with serving.listening(args) as listener:
            fds: list[int] = []
            names: list[str] = []
            for stream in serving.admitted(listener, args):
                with stream:
                    stream.timeout = args.timeout
                    fds, names = _receive(stream, args, owned)
                # Somebody may have connected only to see who is here.
                if fds:
                    break
        if args.words is None:
            table(_description(fd, index, names) for index, fd in enumerate(fds))
            return 0
        words = _filled_in(args.words, len(fds))
        running.become(words, dict(enumerate(fds, FIRST)), _environment(names))


def _receive(stream: UdStream, args: argparse.Namespace, owned: ExitStack) -> tuple[list[int], list[str]]:
    """All that the stream brings, up to its end: the descriptors, *owned* by the caller, and their names."""
    fds: list[int] = []
    payload = bytearray()
    buffer = memoryview(bytearray(64 * 1024))
    while True:
        room = MAX_FDS if args.max is None else min(MAX_FDS, args.max - len(fds))
        try:
            received = stream.recv_ancillary(buffer, max_fds=room)
        except TimeoutError:
            if fds:
                raise Failure(args.path, "timed out: the client has not said that this is all") from None
            complain(args.path, "turned away a client that sent nothing")
            return [], []
        # Not enter_context(), for which Python 3.15 imports a module, when there may be no descriptor left to do it with.
        owned.callback(received.fds.close)
        fds += received.fds
        if received.truncated:
            reason = "this process is at its limit of open files"
            if args.max is not None and len(received.fds) == room:
                reason = f"more than {args.max} file{'s' * (args.max != 1)} came"
            # What is to be done on the way out may need a descriptor itself.
            owned.close()
            raise Failure(args.path, reason)
        if not received.nbytes:
            return fds, _names(bytes(payload), len(fds))
        payload += buffer[: received.nbytes]
        if len(payload) > max(1, len(fds)) * _LONGEST_NAME:
            if fds:
                raise Failure(args.path, "what came is no list of names")
            complain(args.path, "turned away a client that sent much, and no file")
            return [], []


def _names(payload: bytes, count: int) -> list[str]:
    """The names of the files; ``-`` for each when the sender speaks in another way."""
    *names, rest = payload.split(b"\0")
    return ["-"] * count if rest or len(names) != count else [os.fsdecode(name) for name in names]


_ACCESS = {os.O_RDONLY: "read", os.O_WRONLY: "write", os.O_RDWR: "read-write"}

_FLAGS = ((os.O_APPEND, "append"), (os.O_NONBLOCK, "nonblocking"), (os.O_SYNC, "sync"))


def _description(fd: int, index: int, names: list[str]) -> list[str]:
    status = os.fstat(fd)
    size = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "-"
    return [str(index + 1), printable(names[index]), kind(status.st_mode), size, _flags(fd), _target(fd)]


def _flags(fd: int) -> str:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & getattr(os, "O_PATH", 0):
        return "path only"
    also = [name for bits, name in _FLAGS if flags & bits == bits]
    return ",".join([_ACCESS.get(flags & os.O_ACCMODE, "no access"), *also])


def _target(fd: int) -> str:
    try:
        return printable(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError as error:
        return f"unknown: {error.strerror}"


def _filled_in(words: list[str], count: int) -> list[str]:
    def numbered(match: re.Match[str]) -> str:
        number = int(match[1])
        if not 1 <= number <= count:
            raise Failure("take", f"COMMAND asks for {match[0]}, but only {count} came")
        return f"/dev/fd/{FIRST + number - 1}"

    filled = []
    for word in words:
        word = re.sub(r"\{([0-9]+)\}", numbered, word)
        if "{}" in word:
            filled += [word.replace("{}", f"/dev/fd/{fd}") for fd in range(FIRST, FIRST + count)]
        else:
            filled.append(word)
    return filled


def _environment(names: list[str]) -> dict[str, str]:
    """This process's environment, with the files' numbers and names in it."""
    return {
        **os.environ,
        "UDSTREAM_FDS": " ".join(str(number) for number in range(FIRST, FIRST + len(names))),
        "UDSTREAM_FDNAMES": "\n".join(printable(name) for name in names),
    }
