"""The sockets that a service manager passes to the program it starts: LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES."""

from __future__ import annotations

import os

from . import _csocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._csocket import CSocket

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def inherited_sockets(*, listening: bool) -> list[tuple[CSocket, str | None]]:
    """
    The sockets passed to this very process, each with the name that the manager gave it, or None.

    Empty when none were passed, or when they are meant for another process (then the variables stay). All
    of them are taken, or none: `ValueError` that names the descriptor, with every descriptor and variable
    left as it was, when one of them is not a Unix stream socket that listens, or, with *listening* false,
    one that is connected. Taken ones are close-on-exec, and the variables are removed.
    """
    if os.environ.get("LISTEN_PID") is None or _number("LISTEN_PID") != os.getpid():
        return []
    count = _number("LISTEN_FDS")
    sockets: list[CSocket] = []
    try:
        for fd in range(_FIRST, _FIRST + count):
            try:
                _csocket.adopt(sockets, fd, listening=listening)
            except OSError as error:
                if not _csocket.from_system(error):
                    raise
                raise ValueError(f"LISTEN_FDS is {count}, but file descriptor {fd} is not open") from error
        names = _names(count)
        for sock in sockets:
            os.set_inheritable(sock.fileno(), False)
    except BaseException:
        for sock in sockets:
            sock.detach()
        raise
    for variable in _VARIABLES:
        os.environ.pop(variable, None)
    return list(zip(sockets, names, strict=True))


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"the environment variable {variable} is {text!r}, and should be a number")
    return int(text)


def _names(count: int) -> list[str | None]:
    text = os.environ.get("LISTEN_FDNAMES")
    if text is None:
        return [None] * count
    names: list[str | None] = list(text.split(":")) if text or count else []
    if len(names) != count:
        raise ValueError(f"LISTEN_FDNAMES is {text!r}: {len(names)} names, where LISTEN_FDS is {count}")
    return names
