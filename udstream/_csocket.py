"""
CPython's own socket object, kept from its habits.

A ``_socket.socket`` is the only thing in CPython that sends with flags, receives control messages, and is
safe to close while another thread is inside a call: once closed it holds -1, never a number that somebody
else may have got. But left alone it makes a descriptor nonblocking as soon as `socket.setdefaulttimeout`
was called, for every duplicate and child of it. The law of this module: nothing here ever does that.
"""

from __future__ import annotations

import _socket
import os
import stat
from itertools import repeat

from . import _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    T = TypeVar("T")

CSocket = _socket.socket

# A type with SOCK_NONBLOCK in it tells the socket object that its descriptor's mode is somebody else's
# affair: it neither looks at the default timeout nor touches the descriptor.
_AS_IT_IS = getattr(_socket, "SOCK_NONBLOCK", 0)

# What is given to the socket object for a descriptor that is there already, as map() takes it.
_FAMILY = repeat(_socket.AF_UNIX)
_TYPE = repeat(_socket.SOCK_STREAM | _AS_IT_IS)
_PROTOCOL = repeat(0)

# Descriptors are C ints. A socket object drops the rest of a greater number, and works on another file.
NO_FD = 1 << 31


def _leave_mode_alone(sock: CSocket, blocking: bool) -> CSocket:
    if _platform.SO_NOSIGPIPE is not None:
        sock.setsockopt(_socket.SOL_SOCKET, _platform.SO_NOSIGPIPE, 1)
    # A default timeout of 0.0 is one too.
    if sock.gettimeout() is not None:
        sock.setblocking(blocking)
    return sock


def from_system(error: BaseException) -> bool:
    """
    Whether the system said so, and not a signal's handler that Python ran as the call was interrupted or returned.

    A handler may raise whatever it likes, a `TimeoutError` most of all; nobody but the caller may act on that. All
    code that a system's error comes through is ours; and the system gives it a number.
    """
    if isinstance(error, OSError) and error.errno is None:
        return False
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__package__") != __package__:
            return False
        traceback = traceback.tb_next
    return True


def create(kind: int = _socket.SOCK_STREAM) -> CSocket:
    """A new Unix socket: blocking, close-on-exec."""
    if _AS_IT_IS:
        sock = CSocket(_socket.AF_UNIX, kind | _AS_IT_IS)
        # It is nobody else's yet. The object goes on taking it as it is; so a connect that a signal
        # interrupts is an InterruptedError, and not, as CPython otherwise has it, a success.
        try:
            os.set_blocking(sock.fileno(), True)
        except BaseException:
            discard(sock)
            raise
        return sock
    return _leave_mode_alone(CSocket(_socket.AF_UNIX, kind), True)


def discard(sock: CSocket) -> None:
    """Close one that came to nothing, for an error that is to be told: what the system says of the close is not."""
    try:
        sock.close()
    except OSError:
        pass  # Linux has closed it all the same


def pair() -> tuple[CSocket, CSocket]:
    """Two connected stream sockets: blocking, close-on-exec."""
    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return _leave_mode_alone(one, True), _leave_mode_alone(other, True)


def wrap(socks: list[CSocket], fds: Iterable[int]) -> None:
    """
    Append the socket object for each of *fds*, which are known to be Unix stream sockets; their modes stay.

    It is in the list, where it can be found and closed, or let go of, before a signal's handler can raise.
    """
    before = len(socks)
    socks.extend(map(CSocket, _FAMILY, _TYPE, _PROTOCOL, fds))
    if not _AS_IT_IS:
        for sock in socks[before:]:
            _leave_mode_alone(sock, os.get_blocking(sock.fileno()))


def adopt(socks: list[CSocket], fd: int, *, listening: bool) -> None:
    """
    Append the socket object for a descriptor that somebody hands over: theirs again, if it is detached.

    `ValueError`, the descriptor untouched, when it is no Unix stream socket, or when it listens and must
    not, or the other way round; `OSError` (``EBADF``) when it is not open.
    """
    wanted = "a listening Unix stream socket" if listening else "a connected Unix stream socket"
    if not isinstance(fd, int):
        raise TypeError(f"a file descriptor is an int, not {type(fd).__name__}")
    if fd < 0:
        raise ValueError(f"file descriptor {fd} is not {wanted}: it is negative")
    if fd >= NO_FD:
        raise ValueError(f"file descriptor {fd} is not {wanted}: no number is as great")
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ValueError(f"file descriptor {fd} is not {wanted}: it is no socket")
    wrap(socks, (fd,))
    problem = _problem(socks[-1], listening)
    if problem:
        raise ValueError(f"file descriptor {fd} is not {wanted}: {problem}")


def take_over(fd: int, make: Callable[[CSocket], T], listening: bool) -> T:
    """
    What *make* makes of the descriptor, which owns it from then on, close-on-exec.

    On any error, a signal handler's too, it stays the caller's.
    """
    socks: list[CSocket] = []
    made: list[Any] = []
    try:
        adopt(socks, fd, listening=listening)
        os.set_inheritable(fd, False)
        made.extend(map(make, socks))
        return made[0]  # type: ignore[no-any-return]
    except BaseException:
        for owner in made or socks:
            owner.detach()
        raise


def take_from(sock: CSocket, make: Callable[[CSocket], T], listening: bool) -> T:
    """
    `take_over` of a socket object's descriptor, with the timeout of that; it is detached.

    On any error, a signal handler's too, the socket object keeps all it had, or what was made owns it.
    """
    if not isinstance(sock, CSocket):
        raise TypeError(f"expected a socket.socket, not {type(sock).__name__}")
    seconds = sock.gettimeout()
    if sock.fileno() < 0:
        raise ValueError("the socket is closed")
    made: list[Any] = []
    try:
        made.extend(map(take_over, (sock.fileno(),), (make,), (listening,)))
        new = made[0]
        if seconds:
            new.set_nonblocking(False)
            new.timeout = seconds
        sock.detach()
        return new  # type: ignore[no-any-return]
    except BaseException:
        if sock.fileno() >= 0:
            for new in made:
                new.detach()
            if seconds:
                sock.settimeout(seconds)
        raise


def _problem(sock: CSocket, listening: bool) -> str | None:
    if _domain(sock) != _socket.AF_UNIX:
        return "its address family is not AF_UNIX"
    if sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_TYPE) != _socket.SOCK_STREAM:
        return "its type is not SOCK_STREAM"
    # macOS knows the name SO_ACCEPTCONN and refuses to answer; there a listener is found out by its use.
    try:
        listens: bool | None = bool(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
    except OSError as error:
        if not from_system(error):
            raise
        return None
    if listens and not listening:
        return "it listens, which is for UdStreamListener"
    if listening and not listens:
        return "it does not listen"
    return None


def _domain(sock: CSocket) -> int:
    if hasattr(_socket, "SO_DOMAIN"):
        return sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_DOMAIN)
    detected: Any = CSocket(fileno=sock.fileno())
    try:
        return int(detected.family)
    finally:
        detected.detach()
