"""
A socket that waits up to a timeout, and of which nobody else notices anything.

The kernel's own ways to time a call (``O_NONBLOCK`` with a poll, ``SO_RCVTIMEO``) change what every
duplicate and child of the descriptor sees; a signal's retry starts ``SO_RCVTIMEO`` anew. So each call here is
first made with ``MSG_DONTWAIT``, which is this call's alone and costs nothing while data flows. Only when it
would have blocked does it wait, in ``poll``, and try again.
"""

from __future__ import annotations

import errno
import os
from _socket import MSG_DONTWAIT
from time import monotonic

from ._csocket import CSocket
from ._waiting import POLLIN, POLLOUT, poller_for, wait_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeVar

    from typing_extensions import Buffer

    T = TypeVar("T")
    Cmsgs = Iterable[tuple[int, int, Buffer]]


def checked_timeout(seconds: float | None) -> float | None:
    """What a timeout was set to, as a float; `ValueError` or `TypeError` when it cannot be one."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"a timeout is a number of seconds or None, not {type(seconds).__name__}")
    # Written so that a NaN is refused as well.
    if not seconds > 0:
        raise ValueError(f"a timeout is above 0 seconds, or None for ever; not {seconds!r}")
    return float(seconds)


class TimedSocket:
    """The calls of a socket object, each of which may take *timeout* seconds; then `TimeoutError`."""

    __slots__ = ("_readable", "sock", "timeout")

    def __init__(self, sock: CSocket, timeout: float) -> None:
        self.sock = sock
        self.timeout = timeout
        # What to poll for something to receive, made when it is first needed: a conversation needs it often.
        self._readable: Any = None

    def for_one_call(self) -> TimedSocket:
        """The same, for several calls that may take *timeout* seconds together."""
        return _DeadlineSocket(self)

    def deadline(self) -> float:
        """When the call that has to wait now must have ended."""
        return monotonic() + self.timeout

    def recv_into(self, buffer: Buffer) -> int:
        try:
            return self.sock.recv_into(buffer, 0, MSG_DONTWAIT)
        except BlockingIOError:
            return self._wait_for(POLLIN, lambda: self.sock.recv_into(buffer, 0, MSG_DONTWAIT))

    def recv(self, size: int) -> bytes:
        try:
            return self.sock.recv(size, MSG_DONTWAIT)
        except BlockingIOError:
            return self._wait_for(POLLIN, lambda: self.sock.recv(size, MSG_DONTWAIT))

    def recvmsg_into(self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0) -> Any:
        flags |= MSG_DONTWAIT
        try:
            return self.sock.recvmsg_into(buffers, ancbufsize, flags)
        except BlockingIOError:
            return self._wait_for(POLLIN, lambda: self.sock.recvmsg_into(buffers, ancbufsize, flags))

    def send(self, data: Buffer, flags: int) -> int:
        try:
            return self.sock.send(data, flags | MSG_DONTWAIT)
        except BlockingIOError:
            return self._wait_for(POLLOUT, lambda: self.sock.send(data, flags | MSG_DONTWAIT))

    def sendmsg(self, buffers: Sequence[Buffer], ancillary: Cmsgs, flags: int) -> int:
        flags |= MSG_DONTWAIT
        try:
            return self.sock.sendmsg(buffers, ancillary, flags)
        except BlockingIOError:
            return self._wait_for(POLLOUT, lambda: self.sock.sendmsg(buffers, ancillary, flags))

    def _wait_for(self, event: int, call: Callable[[], T]) -> T:
        # A nonblocking descriptor never waits, and a duplicate may have made ours one: the kernel knows.
        if not os.get_blocking(self.sock.fileno()):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        deadline = self.deadline()
        poller = self._poller(event)
        while True:
            try:
                wait_by(poller, deadline)
            except RuntimeError as error:
                if "concurrent" not in str(error):
                    raise
                # Another thread is asking the same one.
                poller = poller_for(self.sock.fileno(), event)
                continue
            try:
                return call()
            except BlockingIOError:
                continue  # another reader or writer was quicker

    def _poller(self, event: int) -> Any:
        if event != POLLIN:
            return poller_for(self.sock.fileno(), event)
        if self._readable is None:
            self._readable = poller_for(self.sock.fileno(), POLLIN)
        return self._readable


class _DeadlineSocket(TimedSocket):
    """The same calls, all of which together may last until one point in time."""

    __slots__ = ("_at",)

    def __init__(self, timed: TimedSocket) -> None:
        super().__init__(timed.sock, timed.timeout)
        self._readable = timed._readable
        self._at = monotonic() + timed.timeout

    def deadline(self) -> float:
        return self._at


def for_one_call(sock: Any) -> Any:
    """What a method that takes several system calls uses instead of *sock*: one deadline for them all."""
    return sock if sock.__class__ is CSocket else sock.for_one_call()
