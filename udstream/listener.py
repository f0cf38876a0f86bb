"""A listening Unix stream socket: `UdStreamListener`."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import struct
from _operator import itemgetter
from _thread import allocate_lock
from _warnings import warn
from time import monotonic, sleep

from . import _binding, _csocket, _platform
from ._activation import inherited_sockets
from ._timing import checked_timeout
from ._waiting import POLLIN, timed_out, wait
from .address import UdSocketPath, as_filename
from .stream import UdStream, for_new_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Container, Iterator
    from typing import Any, TypeAlias, Union

    from typing_extensions import Self

    from ._csocket import CSocket
    from .address import SocketPath
    from .ancillary import Credentials

    # Whom a listener lets in.
    Authorize: TypeAlias = Union[Callable[[Credentials], object], Container[int]]

# More than any kernel allows; each takes it as its own maximum.
_MOST = 2**31 - 1
# What accept() says of one connection that broke while it waited; the next may be good.
_NEXT_MAY_BE_GOOD = (errno.ECONNABORTED, errno.EPROTO)
# What it says when something has run out. The connection stays queued, so that trying again at once would
# fail at once: for as long as it lasts attempts are kept apart, by these seconds at first and at most.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0

# A socket object that was never given a descriptor: what a listener has before and after it has one.
_NONE = _csocket.CSocket.__new__(_csocket.CSocket)


class UdStreamListener:
    """
    A listening Unix stream socket: it accepts connections, as `UdStream`.

    Made by `bind`, `from_fd`, `from_socket` and `inherited`. It owns its file descriptor, which is
    close-on-exec, and closes it once: by `close`, at the end of a ``with``, or, with a `ResourceWarning`, when
    it is dropped. Iterating over it accepts for ever, until `shutdown` or `close`. Every method of a closed one
    but `close` raises `ValueError`.
    """

    _sock: CSocket = _NONE
    # The paths of what it accepts, (local, peer), where the kernel may say something else than the user did.
    _paths: tuple[UdSocketPath | None, None] | None = None
    _claim: _binding.Claim | None = None
    _timeout: float | None = None
    _authorize: Authorize | None = None
    _name: str | None = None
    _turn: _Turn
    # The back-off: how long the next pause is, and until when the one lasts that is on.
    _pause = 0.0
    _not_before = 0.0

    def __init__(self) -> None:
        raise TypeError("use UdStreamListener.bind(), from_fd(), from_socket() or inherited()")

    # --- making one ---

    @classmethod
    def _adopt(cls, sock: CSocket) -> Self:
        turn = _Turn(sock)
        self = cls.__new__(cls)
        self._sock = sock
        self._turn = turn
        return self

    @classmethod
    def bind(
        cls,
        path: SocketPath,
        *,
        backlog: int | None = None,
        mode: int | None = None,
        owner: str | int | None = None,
        group: str | int | None = None,
        unlink: bool = True,
        reclaim_stale: bool = True,
        pass_fds: bool = True,
        authorize: Authorize | None = None,
    ) -> Self:
        """
        Listen at *path* (see `UdSocketPath.of`).

        - *backlog*: how many connections may wait to be accepted; None is the most that the kernel allows, and
          0 still lets one wait.
        - *mode* (0 to 0o777), *owner*, *group* (names or numbers): who may connect to the socket file. They
          hold from the first instant that anyone can connect, under any umask, which is not touched. None
          leaves what the umask and the folder make of it. `ValueError` with an abstract name.
        - *unlink*: `close` removes the socket file, if it is still the one made here, and only in the process
          that made it.
        - *reclaim_stale*: a socket file that no process has open is replaced. One that a process listens on, or
          has only bound yet, is ``OSError`` (``EADDRINUSE``), and so is all that is no socket. Of several that
          start at once exactly one wins.
        - *pass_fds*: False makes the kernel refuse descriptors sent to what is accepted here (Linux 6.16;
          elsewhere `NotImplementedError`).
        - *authorize*: a callable that is given the peer's `Credentials` and says whether it may come in, or a
          set (or other container) of uids. Whom it refuses is closed and never returned.

        What the kernel refuses is its `OSError`, with the path as ``filename``; then nothing is left behind.
        System calls: ``socket``, ``fchmod``, ``bind``, ``listen``.
        """
        address = UdSocketPath.of(path)
        sockaddr = address.sockaddr()
        access = _binding.Access(mode, owner, group)
        if not address.is_file and not access.is_default:
            raise ValueError("mode, owner and group are a socket file's; an abstract name has none")
        queue = _checked_backlog(backlog)
        authorize = _checked_authorize(authorize)
        sock = claim = None
        try:
            sock = _csocket.create()
            if not pass_fds:
                from . import ancillary

                ancillary.set_passrights(sock, False)
            if address.is_file:
                claim = _binding.bind(sock, address, access, reclaim_stale=reclaim_stale)
            else:
                sock.bind(sockaddr)
            sock.listen(queue)
            self = cls._adopt(sock)
        except BaseException as error:
            try:
                if claim is not None:
                    claim.remove()
            finally:
                if sock is not None:
                    _csocket.discard(sock)
            if isinstance(error, OSError) and _csocket.from_system(error):
                error.filename = as_filename(path)
                error.filename2 = None
                del error.filename2
            raise
        self._paths = (address, None)
        self._authorize = authorize
        if claim is not None and unlink:
            self._claim = claim
        elif claim is not None:
            claim.drop()
        return self

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """
        Take over the open descriptor *fd*, in whatever mode it is; it is made close-on-exec.

        Closing it leaves the socket file. `ValueError`, and the descriptor stays the caller's as it was, when
        it is not a listening Unix stream socket; `OSError` (``EBADF``) when it is not open at all. It stays the
        caller's on any error.
        """
        return _csocket.take_over(fd, cls._adopt, listening=True)

    @classmethod
    def from_socket(cls, sock: socket.socket) -> Self:
        """
        Take over what a `socket.socket` owned; it is detached.

        A timeout that was set on it becomes the listener's, and the descriptor a blocking one again; a
        nonblocking one stays nonblocking. Closing leaves the socket file. `ValueError`, and the socket keeps
        all it had, when it is not a listening Unix stream socket.
        """
        return _csocket.take_from(sock, cls._adopt, listening=True)

    @classmethod
    def inherited(cls) -> list[Self]:
        """
        The listening sockets that a service manager passed to this process (``LISTEN_FDS``), as listeners.

        In the manager's order, each with the `name` it was given. Empty when none were passed to this very
        process (``LISTEN_PID``). They are made close-on-exec, and the variables removed; closing them leaves
        the socket files, which are the manager's. `ValueError`, with everything left as it was, when one of
        them is not a listening Unix stream socket, or when the variables make no sense.
        """

        def make(sock: CSocket, name: str | None) -> Any:
            self = cls._adopt(sock)
            self._name = name
            return self

        return inherited_sockets(make, listening=True)

    # --- accepting ---

    def accept(self) -> UdStream:
        """
        Wait for the next connection, and return it: blocking, without a timeout, close-on-exec.

        `TimeoutError` when the `timeout` is over, and `BlockingIOError` when the listener is nonblocking and
        nobody waits. After `shutdown` those who had connected before are still returned, and then it is
        ``OSError`` (``EINVAL``). At the limit of open files (``EMFILE``, ``ENFILE``) it raises, and the next
        call first pauses, from 10 ms up to a second for as long as that lasts, so that a loop does not spin;
        a nonblocking one never pauses. What *authorize* raises comes through, and that connection is closed.
        System call: ``accept4``; with a timeout ``poll`` before it.
        """
        accepted: list[CSocket] = []
        try:
            if self._timeout is None and self._authorize is None and not self._pause:
                try:
                    _accept_into(accepted, self._sock)
                except OSError as error:
                    if accepted or not _csocket.from_system(error):
                        raise
                    # Rare, and many kinds of it: the long way tries again, and knows what to do.
                    self._accept_authorized(accepted)
            else:
                self._accept_authorized(accepted)
            return UdStream._adopt(accepted[0], self._paths)
        except BaseException:
            for sock in accepted:
                sock.close()
            raise

    def incoming(self) -> Iterator[UdStream]:
        """
        Accept for ever: each `accept` in turn, until `shutdown` or `close`, which end it.

        Errors are raised as `accept` raises them, and the iteration can go on after them.
        """
        self.fileno()
        return _Incoming(self)

    def __iter__(self) -> Iterator[UdStream]:
        return self.incoming()

    def shutdown(self) -> None:
        """
        Let no more connections in; who connects now is refused. From any thread, or a signal's handler.

        A blocked `accept` ends with ``OSError`` (``EINVAL``), an iteration by ending; first, those get what
        was queued already. It is the socket that ends, for every process that shares it. The socket file stays
        until `close`. System call: ``shutdown``.
        """
        self._open().shutdown(_socket.SHUT_RDWR)

    def _accept_authorized(self, accepted: list[CSocket]) -> None:
        """Put the next connection that may come in, and no other, into the list."""
        sock = self._open()
        # A nonblocking listener never waits, whatever its timeout.
        timed = self._timeout is not None and os.get_blocking(sock.fileno())
        deadline = monotonic() + self._timeout if timed and self._timeout is not None else None
        if self._pause:
            self._wait_out_pause(sock, deadline)
        while True:
            try:
                self._accept_any(sock, accepted, deadline)
            except (OSError, ValueError) as error:
                if sock.fileno() < 0:
                    # By another thread, in the middle of this.
                    raise ValueError("I/O operation on closed listener") from error
                if isinstance(error, OSError) and error.errno in _EXHAUSTED:
                    if _is_shut_down(sock):
                        raise _shut_down() from error
                    self._pause = min(self._pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
                    self._not_before = monotonic() + self._pause
                raise
            self._pause = 0.0
            if self._authorize is None or self._may_come_in(accepted[0]):
                return
            accepted.pop().close()
            _check_time(deadline)

    def _accept_any(self, sock: CSocket, accepted: list[CSocket], deadline: float | None) -> None:
        """Put the next connection into the list."""
        while True:
            try:
                if deadline is None:
                    _accept_into(accepted, sock)
                elif not self._turn.accept_into(accepted, sock, deadline):
                    continue
                return
            except BlockingIOError as error:
                if not _csocket.from_system(error):
                    raise
                if _is_shut_down(sock):
                    raise _shut_down() from None
                if not os.get_blocking(sock.fileno()):
                    raise
                # Another process that shares the socket has its SO_RCVTIMEO on.
                _check_time(deadline)
                wait(sock.fileno(), POLLIN, deadline)
            except OSError as error:
                if error.errno not in _NEXT_MAY_BE_GOOD or not _csocket.from_system(error):
                    raise
                _check_time(deadline)

    def _may_come_in(self, sock: CSocket) -> bool:
        from .ancillary import _peer_of

        peer = _peer_of(sock)
        if callable(self._authorize):
            return bool(self._authorize(peer))
        assert self._authorize is not None
        return peer.uid in self._authorize

    def _wait_out_pause(self, sock: CSocket, deadline: float | None) -> None:
        until = self._not_before if deadline is None else min(self._not_before, deadline)
        seconds = until - monotonic()
        if seconds > 0 and os.get_blocking(sock.fileno()):
            # For no event at all: only a shutdown ends it early.
            poller = select.poll()
            poller.register(sock.fileno(), 0)
            poller.poll(seconds * 1000)

    # --- the descriptor ---

    def _open(self) -> CSocket:
        sock = self._sock
        if sock.fileno() < 0:
            raise ValueError("I/O operation on closed listener")
        return sock

    def fileno(self) -> int:
        """The file descriptor's number, lent: the listener still owns and closes it."""
        return self._open().fileno()

    @property
    def closed(self) -> bool:
        """Whether it was closed or detached."""
        return self._sock.fileno() < 0

    def close(self) -> None:
        """
        Remove the socket file, if it is this listener's to remove, and close; a second time, do nothing.

        Connections that nobody has accepted yet are reset; accepted ones go on. The socket goes on for another
        process that shares it. An `accept` that another thread is blocked in is left to end by itself;
        `shutdown` ends it. System calls: ``unlink``, ``close``, never repeated.
        """
        try:
            if self._claim is not None:
                self._claim.remove()
        finally:
            self._sock.close()

    def detach(self) -> int:
        """Give the descriptor to the caller, unclosed, and leave the file. The listener is closed from then on."""
        fd = self._open().detach()
        if self._claim is not None:
            self._claim.drop()
        return fd

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            try:
                warn(f"unclosed {self!r}", ResourceWarning, 2, self)
            finally:
                self.close()

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if self.closed:
            return f"<{name} [closed]>"
        return f"<{name} fd={self.fileno()} path={str(self.local_path)!r}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The file stays this process's to remove.
        facts = {name: getattr(self, name) for name in ("timeout", "_authorize", "_paths", "_name")}
        return for_new_process(self, **facts)

    @property
    def local_path(self) -> UdSocketPath:
        """The address it listens at: as it was given to `bind`, else as the kernel tells it (``getsockname``)."""
        sock = self._open()
        return (self._paths and self._paths[0]) or UdSocketPath.from_kernel(sock.getsockname())

    @property
    def name(self) -> str | None:
        """What the service manager calls an `inherited` one (``LISTEN_FDNAMES``), or None."""
        return self._name

    # --- waiting ---

    @property
    def timeout(self) -> float | None:
        """
        The seconds that `accept` may take, above 0, or None, at first, for ever.

        Past it: `TimeoutError`, and the call can be repeated. Signals do not lengthen it, nor do refused
        peers. A nonblocking listener does not wait, whatever its timeout. 0 and below: `ValueError`. What is
        accepted has no timeout.
        """
        self.fileno()
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self.fileno()
        self._timeout = checked_timeout(seconds)

    def set_nonblocking(self, flag: bool) -> None:
        """
        Make the listening socket nonblocking, or blocking again, for whoever shares it.

        What it accepts is blocking either way. System call: ``ioctl`` or ``fcntl``.
        """
        self._open().setblocking(not flag)

    def is_nonblocking(self) -> bool:
        """Whether the listening socket is nonblocking. System call: ``fcntl``."""
        return not os.get_blocking(self.fileno())


class _Incoming:
    """The iterator over a listener. Unlike a generator it goes on after an error."""

    __slots__ = ("_listener",)

    def __init__(self, listener: UdStreamListener) -> None:
        self._listener = listener

    def __iter__(self) -> _Incoming:
        return self

    def __next__(self) -> UdStream:
        listener = self._listener
        sock = listener._sock
        try:
            return listener.accept()
        except (OSError, ValueError) as error:
            ended = listener.closed or (getattr(error, "errno", None) == errno.EINVAL and _is_shut_down(sock))
            if ended and _csocket.from_system(error):
                raise StopIteration from None
            raise
        except StopIteration as error:
            # It would end the loop of a server as if nothing had been wrong.
            raise RuntimeError("authorize raised StopIteration") from error


# --- one accept ---


_ACCEPT: Any = _csocket.CSocket._accept  # type: ignore[attr-defined]
_FIRST = itemgetter(0)


def _accept_into(accepted: list[CSocket], sock: CSocket) -> None:
    """
    Append the next connection to the list. System call: ``accept4``, which makes it close-on-exec.

    From the call that makes the descriptor to the list, by way of the socket object that closes it when it is
    dropped, all is C: there is no place in between for a signal's handler to raise and leak it.
    """
    _csocket.wrap(accepted, map(_FIRST, map(_ACCEPT, (sock,))))
    if not _platform.ACCEPTED_ARE_BLOCKING:
        accepted[-1].setblocking(True)


class _Turn:
    """
    An accept that cannot hang, on a blocking socket.

    There is no ``MSG_DONTWAIT`` for accept, and between a poll that says somebody is there and the accept
    another thread or process may take the connection. ``SO_RCVTIMEO`` ends that accept, but it is on the
    socket, for all who share it: so it is on for one accept alone, a moment long. Whoever took it off under
    another would leave him to hang; so those who do this take turns, by a lock among threads and one among
    processes (POSIX's, which knows the inode and so every duplicate, and which ends with its process).
    """

    __slots__ = ("_lock", "_pid", "_usual")

    def __init__(self, sock: CSocket) -> None:
        # What the socket's former owner may have set, to be put back each time.
        self._usual = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _TIMEVAL.size)
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = allocate_lock()

    def accept_into(self, accepted: list[CSocket], sock: CSocket, deadline: float) -> bool:
        """Wait for a connection and try to get it; whether it was got. `TimeoutError` past the *deadline*."""
        wait(sock.fileno(), POLLIN, deadline)
        if self._pid != os.getpid():
            # Forked; the lock may have been held by a thread that is not here.
            self._renew()
        lock = self._lock
        # One step, not a loop: no signal handler can raise between it and the "try", as it could after a call.
        for free in map(lock.acquire, (False,)):
            if not free:
                break
            try:
                try:
                    if not _lock_among_processes(sock):
                        break
                    try:
                        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _A_MOMENT)
                        _accept_into(accepted, sock)
                    finally:
                        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, self._usual)
                    return True
                finally:
                    # Whether it was got or not: a handler may have raised as it was.
                    try:
                        fcntl.lockf(sock, fcntl.LOCK_UN)
                    except OSError as error:
                        if not _csocket.from_system(error):
                            raise
            finally:
                lock.release()
        return self._next_time(deadline)

    @staticmethod
    def _next_time(deadline: float) -> bool:
        """Let the one whose turn it is be done: he needs a moment, however long the wait for a connection."""
        if monotonic() >= deadline:
            raise timed_out() from None
        sleep(_MOMENT)
        return False


_MOMENT = 0.001
_TIMEVAL = struct.Struct("@ll")
_A_MOMENT = _TIMEVAL.pack(0, int(_MOMENT * 1_000_000))


def _lock_among_processes(sock: CSocket) -> bool:
    """Take the lock on the socket's inode; whether that was possible, or there are no such locks."""
    try:
        fcntl.lockf(sock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not _csocket.from_system(error):
            raise
        # Otherwise it is a system whose sockets cannot be locked, where only threads take turns.
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True


def _check_time(deadline: float | None) -> None:
    """Whoever looks again does so in time: a wait that begins late still has one look."""
    if deadline is not None and monotonic() >= deadline:
        raise timed_out() from None


def _shut_down() -> OSError:
    # As the kernel has it; but a nonblocking accept it tells EAGAIN, and one without a free descriptor EMFILE.
    return OSError(errno.EINVAL, "the listener was shut down")


def _is_shut_down(sock: CSocket) -> bool:
    poller = select.poll()
    poller.register(sock.fileno(), 0)
    return any(found & select.POLLHUP for _, found in poller.poll(0))


# --- arguments ---


def _checked_backlog(backlog: int | None) -> int:
    if backlog is None:
        return _MOST
    if not isinstance(backlog, int):
        raise TypeError(f"backlog is a number or None, not {type(backlog).__name__}")
    if backlog < 0:
        raise ValueError(f"backlog is 0 or above, or None for the most there may be; not {backlog}")
    return min(backlog, _MOST)


def _checked_authorize(authorize: Authorize | None) -> Authorize | None:
    if authorize is None or callable(authorize):
        return authorize
    if isinstance(authorize, (str, bytes, bytearray)) or not hasattr(authorize, "__contains__"):
        raise TypeError(
            f"authorize is a callable on the peer's Credentials, or a set of uids, not {type(authorize).__name__}"
        )
    if isinstance(authorize, (set, frozenset, list, tuple, dict)):
        for uid in authorize:
            if not isinstance(uid, int):
                raise TypeError(f"authorize holds {uid!r}, which is not a uid: those are numbers")
    return authorize
