"""The sockets that a service manager passes to the program it starts: LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES."""

from __future__ import annotations

import os

from . import _csocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ._csocket import CSocket

    T = TypeVar("T")

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def inherited_sockets(make: Callable[[CSocket, str | None], T], *, listening: bool) -> list[T]:
    """
    What *make* makes of each socket passed to this very process, and of the name that the manager gave it, or None.

    Empty when none were passed, or when they are meant for another process (then the variables stay). All
    of them are taken, or none: `ValueError` that names the descriptor, with every descriptor and variable
    left as it was, when one of them is not a Unix stream socket that listens, or, with *listening* false,
    one that does not. Taken ones are close-on-exec, and the variables are removed.
    """
    if os.environ.get("LISTEN_PID") is None or _number("LISTEN_PID") != os.getpid():
        return []
    count = _number("LISTEN_FDS")
    sockets: list[CSocket] = []
    made: list[Any] = []
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
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
        made.extend(map(make, sockets, names))
        for name in variables:
            del os.environ[name]
        return made
    except BaseException:
        # A signal handler's as well, which may come after the last of these.
        for owner in (*made, *sockets):
            if owner.fileno() >= 0:
                owner.detach()
        os.environ.update(variables)
        raise


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
