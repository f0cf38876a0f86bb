"""
A socket that waits up to a timeout, and of which nobody else notices anything.

The kernel's own ways to time a call (``O_NONBLOCK`` with a poll, ``SO_RCVTIMEO``) change what every
duplicate and child of the descriptor sees; a signal's retry starts ``SO_RCVTIMEO`` anew. So each call here is
first made with ``MSG_DONTWAIT``, which is this call's alone and costs nothing while data flows. Only when it
would have blocked does it wait, in ``poll``, and try again. In a conversation, where an answer is never there
yet, it learns to wait first.
"""

from __future__ import annotations

import errno
from _socket import MSG_DONTWAIT
from itertools import starmap
from os import get_blocking, strerror
from time import monotonic

from ._csocket import CSocket, from_system
from ._platform import MSG_NOSIGNAL
from ._waiting import POLLIN, POLLOUT, poller_for, timed_out, wait_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from typing_extensions import Buffer

    Cmsgs = Iterable[tuple[int, int, Buffer]]

_SENDING_NOW = MSG_NOSIGNAL | MSG_DONTWAIT
# An answer is waited for before the first try, for so many milliseconds. One that took less than so many seconds was
# there already; after so many of those in a row the next is tried for first.
_MOMENT = 10
_AT_ONCE = 1e-6
_ANSWERS = 4


def checked_timeout(seconds: float | None) -> float | None:
    """What a timeout was set to, as a float; `ValueError` or `TypeError` when it cannot be one."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"a timeout is a number of seconds or None, not {type(seconds).__name__}")
    # Written so that a NaN is refused as well.
    if not seconds > 0:
        raise ValueError(f"a timeout is above 0 seconds, or None for ever; not {seconds!r}")
    try:
        return float(seconds)
    except OverflowError:
        raise ValueError("a timeout of so many seconds is no float: None is for ever") from None


class Around:
    """What stands round a socket object, and has the calls of it that streams and their files make."""

    __slots__ = ("sock",)
    sock: Any

    def for_one_call(self, begun: float | None = None) -> Around:
        """The same, for all the calls that one method makes, which *begun* then; None: just now."""
        raise NotImplementedError

    def deadline(self) -> float | None:
        """When the call that begins now must have ended; None: it has for ever."""
        raise NotImplementedError

    def expect_answer(self) -> None:
        """Take note that something was sent, past this."""
        raise NotImplementedError

    def keep(self, results: list[Any], name: str, arguments: tuple[Any, ...]) -> None:
        """See `keep`."""
        raise NotImplementedError


class TimedSocket(Around):
    """
    The calls of a socket object, each of which may take *timeout* seconds; then `TimeoutError`.

    Of all the calls that one method makes the deadline is one: `for_one_call`.
    """

    __slots__ = ("_answers", "_due", "_readable", "timeout")
    sock: CSocket

    def __init__(self, sock: CSocket, timeout: float) -> None:
        self.sock = sock
        self.timeout = timeout
        # What to poll for something to receive, made when it is first needed: a conversation needs it often.
        self._readable: Any = None
        # How many more answers may be there already before reads try first again; and whether an answer is due.
        self._answers = 0
        self._due = False

    def for_one_call(self, begun: float | None = None) -> TimedSocket:
        return _ForOneCall(self, (monotonic() if begun is None else begun) + self.timeout)

    def deadline(self) -> float:
        return monotonic() + self.timeout

    def expect_answer(self) -> None:
        self._due = self._answers > 0

    def recv_into(self, buffer: Buffer) -> int:
        deadline = self._wait_for_answer() if self._due else None
        while True:
            try:
                return self.sock.recv_into(buffer, 0, MSG_DONTWAIT)
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                deadline = self._wait(POLLIN, deadline)

    def recv(self, size: int) -> bytes:
        deadline = self._wait_for_answer() if self._due else None
        while True:
            try:
                return self.sock.recv(size, MSG_DONTWAIT)
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                deadline = self._wait(POLLIN, deadline)

    def recvmsg_into(self, buffers: Iterable[Buffer]) -> Any:
        deadline = self._wait_for_answer() if self._due else None
        while True:
            try:
                return self.sock.recvmsg_into(buffers, 0, MSG_DONTWAIT)
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                deadline = self._wait(POLLIN, deadline)

    def send(self, data: Buffer, _flags: int) -> int:
        # Which are never others than these.
        self._due = self._answers > 0
        deadline = None
        while True:
            try:
                return self.sock.send(data, _SENDING_NOW)
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                deadline = self._wait(POLLOUT, deadline)

    def sendmsg(self, buffers: Sequence[Buffer], ancillary: Cmsgs, flags: int) -> int:
        self._due = self._answers > 0
        deadline = None
        while True:
            try:
                return self.sock.sendmsg(buffers, ancillary, flags | MSG_DONTWAIT)
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                deadline = self._wait(POLLOUT, deadline)

    def keep(self, results: list[Any], name: str, arguments: tuple[Any, ...]) -> None:
        now = (*arguments[:-1], arguments[-1] | MSG_DONTWAIT)
        receives = name.startswith("recv")
        deadline = None
        if not receives:
            self.expect_answer()
        elif self._due:
            deadline = self._wait_for_answer()
        call = getattr(self.sock, name)
        while True:
            try:
                results += starmap(call, (now,))
                return
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                deadline = self._wait(POLLIN if receives else POLLOUT, deadline)

    def _wait_for_answer(self) -> float | None:
        """
        Wait before the first try, which would be in vain; return what `_wait` does if that had to go on with it.

        For a moment only, since the mode is not asked before.
        """
        self._due = False
        begun = monotonic()
        try:
            ready = self._readable.poll(_MOMENT)
        except RuntimeError as error:
            if "concurrent" not in str(error):
                raise
            return None  # another thread is asking, and may take what comes
        if not ready:
            return self._wait(POLLIN, None, begun)
        if monotonic() - begun < _AT_ONCE:
            self._answers -= 1
        else:
            self._answers = _ANSWERS
        return None

    def _wait(self, event: int, deadline: float | None, begun: float | None = None) -> float:
        """
        Wait for *event*; return the call's deadline.

        That is given once the call has waited before; or else when it *begun*, if that was not just now.
        """
        fd = self.sock.fileno()
        poller = self._readable if event == POLLIN else None
        if poller is None:
            poller = self._poller(event)
        if deadline is None:
            # A nonblocking descriptor never waits, and a duplicate may have made ours one: the kernel knows.
            if not get_blocking(fd):
                self._answers = 0
                raise BlockingIOError(errno.EAGAIN, strerror(errno.EAGAIN)) from None
            deadline = self._deadline(begun)
        elif monotonic() >= deadline:
            # Whatever is there by now, others were quicker the last time too.
            raise timed_out() from None
        try:
            wait_by(poller, deadline)
        except RuntimeError as error:
            if "concurrent" not in str(error):
                raise
            # Another thread is asking the same one.
            wait_by(poller_for(fd, event), deadline)
        if event == POLLIN and self.timeout * 1000 > _MOMENT:
            self._answers = _ANSWERS
        return deadline

    def _deadline(self, begun: float | None) -> float:
        return (begun or monotonic()) + self.timeout

    def _poller(self, event: int) -> Any:
        if event != POLLIN:
            return poller_for(self.sock.fileno(), event)
        if self._readable is None:
            self._readable = poller_for(self.sock.fileno(), POLLIN)
        return self._readable


class _ForOneCall(TimedSocket):
    """
    The same calls, all of which together may last until a point of `time.monotonic`.

    What it learns about the conversation, and asks of it, is the stream's, and stays when this is gone.
    """

    __slots__ = ("_begun", "_conversation", "_until")

    def __init__(self, conversation: TimedSocket, until: float) -> None:
        self.sock = conversation.sock
        self.timeout = conversation.timeout
        self._conversation = conversation
        self._readable = conversation._poller(POLLIN)
        self._until = until
        # Whether one of the calls was made.
        self._begun = False

    @property
    def _answers(self) -> int:
        return self._conversation._answers

    @_answers.setter
    def _answers(self, count: int) -> None:
        self._conversation._answers = count

    @property
    def _due(self) -> bool:
        return self._conversation._due

    @_due.setter
    def _due(self, flag: bool) -> None:
        self._conversation._due = flag

    def for_one_call(self, begun: float | None = None) -> TimedSocket:
        return self

    def deadline(self) -> float:
        return self._until

    def expect_answer(self) -> None:
        self._conversation.expect_answer()

    def recv(self, size: int) -> bytes:
        self._check_time()
        return super().recv(size)

    def keep(self, results: list[Any], name: str, arguments: tuple[Any, ...]) -> None:
        self._check_time()
        super().keep(results, name, arguments)

    def _deadline(self, begun: float | None) -> float:
        return self._until

    def _check_time(self) -> None:
        """Any of the calls but the first may come too late, also without a wait; not where nothing waits."""
        if self._begun and monotonic() >= self._until and get_blocking(self.sock.fileno()):
            raise timed_out()
        self._begun = True


def for_one_call(sock: Any, begun: float | None = None) -> Any:
    """What a method that takes several system calls uses instead of *sock*: one deadline for them all."""
    return sock if sock.__class__ is CSocket else sock.for_one_call(begun)


def send_all(sock: Any, data: Buffer, counts: list[int]) -> None:
    """Send all of *data* by *sock*; *counts* gets what each call sent, as it does."""
    done = 0
    with memoryview(data) as whole, whole.cast("B") as view:
        while True:  # see UdStream.readline()
            if done == len(view):
                break
            with view[done:] as rest:
                keep(sock, counts, "send", rest, MSG_NOSIGNAL)
            done += counts[-1]


def receive_all(sock: Any, buffer: Buffer, counts: list[int]) -> None:
    """Fill the *buffer* from *sock*, or `EOFError`; *counts* gets what each call received, as it does."""
    done = 0
    with memoryview(buffer) as whole, whole.cast("B") as view:
        while True:  # see UdStream.readline()
            if done == len(view):
                break
            with view[done:] as rest:
                keep(sock, counts, "recv_into", rest, 0, 0)
            if not counts[-1]:
                raise EOFError(f"end of file after {done} of {len(view)} bytes")
            done += counts[-1]


def keep(sock: Any, results: list[Any], name: str, *arguments: Any) -> None:
    """
    Call the method *name* of *sock*, and append what it returns to *results*; the flags come last.

    In one bytecode, from the system call into the list: a signal handler that raises finds it done and
    noted, or not done.
    """
    if sock.__class__ is not CSocket and isinstance(sock, Around):
        sock.keep(results, name, arguments)
    else:
        results += starmap(getattr(sock, name), (arguments,))
