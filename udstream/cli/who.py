"""``udstream who``."""

from __future__ import annotations

import argparse
import os
import select
import stat

from .. import UdStream
from ..address import UdSocketPath
from ..ancillary import peer_groups, peer_pidfd, peer_security
from . import identity
from .arguments import add_path, add_timeout
from .terminal import printable, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .. import Credentials


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The socket to look at."""
    parser.description = (
        "Say who listens on a socket: what the kernel noted of the process when it began to listen. To ask, it "
        "connects, sends nothing and leaves, which the server sees."
    )
    add_path(parser)
    add_timeout(parser, 5)


def run(args: argparse.Namespace) -> int:
    """Print a line for each fact; one that is missing says why."""
    # The file's facts are of use, all the more when nobody answers.
    table(_file(args.path))
    with UdStream.connect(args.path, timeout=args.timeout) as stream:
        table(_listener(stream))
    return 0


def _file(path: UdSocketPath) -> list[tuple[str, str]]:
    if not path.is_file:
        return [
            (_label("socket"), f"{printable(path)}, in the abstract namespace: it has no owner and no mode")
        ]
    status = os.stat(path.name)
    return [
        (_label("socket"), printable(path)),
        (_label("file"), f"{stat.filemode(status.st_mode)}, inode {status.st_ino}"),
        (_label("file's owner"), f"{identity.user(status.st_uid)}, {identity.group(status.st_gid)}"),
    ]


def _listener(stream: UdStream) -> list[tuple[str, str]]:
    peer = stream.peer_credentials()
    return [
        (
            _label("process"),
            "unknown: it is in a pid namespace that we can't see" if peer.pid is None else str(peer.pid),
        ),
        (_label("running"), _or_why(lambda: _running(stream))),
        (_label("program"), _or_why(lambda: _of_process(stream, peer, identity.program))),
        (_label("command"), _or_why(lambda: _of_process(stream, peer, _command))),
        (_label("user"), identity.user(peer.uid)),
        (_label("group"), identity.group(peer.gid)),
        (_label("other groups"), _or_why(lambda: _groups(stream))),
        (_label("security"), _or_why(lambda: _security(stream))),
    ]


def _label(text: str) -> str:
    # Two tables, one column.
    return text.ljust(12)


def _or_why(fact: Callable[[], str]) -> str:
    try:
        return fact()
    except NotImplementedError as error:
        return f"unknown: {error}"
    except OSError as error:
        return f"unknown: {error.strerror or error}"


def _running(stream: UdStream) -> str:
    fd = peer_pidfd(stream)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return "no: it has ended, and somebody else holds its socket" if poller.poll(0) else "yes"
    finally:
        os.close(fd)


def _of_process(stream: UdStream, peer: Credentials, ask: Callable[[int], str]) -> str:
    if peer.pid is None:
        return "unknown: the process is"
    answer = ask(peer.pid)
    try:
        running = _running(stream)
    except (NotImplementedError, OSError):
        return f"{answer} (if the process still runs: this kernel can't tell)"
    # Asked afterwards: what runs now has had its number all the time.
    return answer if running == "yes" else "unknown: the process has ended"


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    return " ".join(printable(word) for word in words)


def _groups(stream: UdStream) -> str:
    return ", ".join(identity.group(gid) for gid in peer_groups(stream)) or "none"


def _security(stream: UdStream) -> str:
    label = peer_security(stream)
    return (
        "no label: no security module of this kernel gives sockets one" if label is None else printable(label)
    )
