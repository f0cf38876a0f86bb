"""
Bytes with descriptors and credentials, on a raw fd; and who is at the other end.

A control message (``cmsg``) rides on the bytes of one ``sendmsg``: descriptors (``SCM_RIGHTS``) arrive with
the first of them. Every function here takes a file descriptor, or any object with a ``fileno()``, of a Unix
stream socket; it borrows that, so it never owns, closes, or changes it. A blocking one blocks, and a
nonblocking one raises `BlockingIOError`.

The laws of this module: whatever is wrong with the arguments is found before anything is sent; and a
descriptor that the kernel has put into this process is in some owner's hands before the next bytecode runs,
since that is where a signal handler may raise.
"""

from __future__ import annotations

import errno
import os
from _collections_abc import Sequence
from _operator import index, itemgetter
from _socket import AF_UNIX, CMSG_SPACE, MSG_CTRUNC, SOCK_STREAM
from _warnings import warn
from itertools import repeat, starmap
from os import close as _close
from os import closerange as _closerange
from struct import Struct
from struct import error as StructError

from . import _csocket, _platform, _timing
from ._csocket import CSocket
from ._platform import (
    MSG_CMSG_CLOEXEC,
    MSG_NOSIGNAL,
    SCM_CREDENTIALS,
    SCM_PIDFD,
    SCM_RIGHTS,
    SCM_SECURITY,
    SOL_SOCKET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any, Protocol, SupportsIndex, TypeAlias, TypeVar, overload

    from typing_extensions import Buffer, Self

    from .listener import UdStreamListener
    from .stream import UdStream

    class HasFileno(Protocol):
        """What stands for a descriptor: a socket, a file, a `UdStream`."""

        def fileno(self) -> int: ...

    Fd: TypeAlias = int | HasFileno
    Buffers: TypeAlias = Buffer | Iterable[Buffer]
    Cmsg: TypeAlias = tuple[int, int, Buffer]
    Landed: TypeAlias = tuple[Any, list[tuple[int, int, bytes]], int, Any]
    T = TypeVar("T")

__all__ = [
    "MAX_FDS",
    "Credentials",
    "FileDescriptors",
    "Received",
    "get_passcred",
    "get_passrights",
    "peer_credentials",
    "peer_groups",
    "peer_pidfd",
    "peer_security",
    "recv_ancillary",
    "recv_fds",
    "send_ancillary",
    "send_fds",
    "set_passcred",
    "set_passrights",
]

MAX_FDS: int = _platform.SCM_MAX_FD

_AS_IT_IS = _csocket._AS_IT_IS
_new: Any = object.__new__
_new_tuple: Any = tuple.__new__
_FD = Struct("@i")
_MOST_FD = (1 << 31) - 1
# So many descriptors, packed; by their number.
_ARRAYS: dict[int, Struct] = {}
_UCRED = Struct("@iII")

# Room for all that the kernel can deliver at once, so that it never cuts anything for want of room:
# descriptors, credentials, a pidfd, the longest security label, and kinds that are yet to come.
_ROOM = (
    CMSG_SPACE(MAX_FDS * _FD.size)
    + CMSG_SPACE(_UCRED.size)
    + CMSG_SPACE(_FD.size)
    + CMSG_SPACE(4096)
    + CMSG_SPACE(256)
)
# The same, as map() takes them.
_ROOMS = repeat(_ROOM)
_FLAGS = repeat(MSG_CMSG_CLOEXEC)
# What the kernel answers when it has cut nothing, and made the descriptors close-on-exec itself.
_UNCUT = MSG_CMSG_CLOEXEC or None
_IOV_MAX = _platform.IOV_MAX
_MOST_BORROWED = 64
_NO_NUMBERS: list[int] = []
_THREE_NAMES = ("_fds", "_fds", "_fds")


class _Borrowed(CSocket):
    """A socket object on somebody else's descriptor: when it goes, however it goes, it lets go of that."""

    __slots__ = ()
    # In C all the way, so that no signal handler can raise before it has let go.
    __del__ = CSocket.detach


# One for each number that was used lately. Which file has that number is all the same to them: they take the
# mode of the descriptor as it is, and so know nothing but the number.
_borrowed: dict[Any, _Borrowed] = {}


def _borrow(fd: Fd) -> _Borrowed:
    sock = _borrowed.get(fd) if type(fd) is int else None
    if sock is None:
        number = _fileno(fd)
        if _AS_IT_IS:
            sock = _borrowed.get(number)
            if sock is None:
                sock = _Borrowed(AF_UNIX, SOCK_STREAM | _AS_IT_IS, 0, number)
                if len(_borrowed) >= _MOST_BORROWED:
                    _borrowed.clear()
                _borrowed[number] = sock
        else:
            blocking = os.get_blocking(number)
            sock = _Borrowed(AF_UNIX, SOCK_STREAM, 0, number)
            _csocket._leave_mode_alone(sock, blocking)
    return sock


# --- descriptors that were received ---


class FileDescriptors(Sequence[int]):
    """
    File descriptors, owned: a sequence of ints that closes what nobody took.

    They are closed by `close`, at the end of a ``with``, or, with a `ResourceWarning`, when the object goes.
    `take` hands all of them over; `file`, `socket`, `stream` and `listener` one each, in whose place the
    sequence then has -1. ``FileDescriptors(numbers)`` owns the open descriptors given from then on. To send
    them is no way to lose them: they stay open, and owned, here.
    """

    __slots__ = ("_fds",)
    _fds: list[int]

    def __init__(self, fds: Iterable[int] = ()) -> None:
        numbers = list(fds)
        for fd in numbers:
            if not isinstance(fd, int) or isinstance(fd, bool):
                raise TypeError(f"a file descriptor to own is an int, not {fd!r}")
            if fd < 0:
                raise ValueError(f"a file descriptor to own is not negative, as {fd} is")
            if fd >= _csocket.NO_FD:
                raise ValueError(f"a file descriptor to own is never as great as {fd} is")
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"a file descriptor can be owned only once: {numbers!r}")
        self._fds = numbers

    def __len__(self) -> int:
        return len(self._fds)

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, index: SupportsIndex) -> int: ...
        @overload
        def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        """The number at *index*, lent: this object still owns it. A slice is a list of such."""
        return self._fds[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def __repr__(self) -> str:
        return f"<udstream.FileDescriptors {self._fds!r}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle file descriptors: pass them with send_fds")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            fds = self._fds
        except AttributeError:
            return  # it was never finished
        if fds and max(fds) >= 0:
            try:
                warn(f"unclosed {self!r}", ResourceWarning, 2, self)
            finally:
                # Also where warnings are errors.
                self.close()

    def take(self) -> list[int]:
        """
        Hand the descriptors over: a list of ints, which the caller is to close; this object is empty then.

        Those that `file`, `socket`, `stream` or `listener` took are not in it.
        """
        fds = self._fds
        if -1 in fds:
            fds = [fd for fd in fds if fd >= 0]
        # Last of all: from here to the caller no signal handler can raise.
        self._fds = []
        return fds

    def close(self) -> None:
        """
        Close those that nobody took, and be empty. A second time, do nothing.

        What ``close`` says against one (it was closed behind our back, say) keeps no other from being
        closed, and is no error: none of them was written to through this object.
        """
        fds = self._fds
        # Each assignment below closes and forgets in a single bytecode: close() and closerange() return None, so
        # nothing passes the filter, and a signal handler that raises finds all or none done.
        if len(fds) == 1 and fds[0] >= 0:
            try:
                fds[:] = filter(_close, fds)
            except OSError as error:
                if not _csocket.from_system(error):
                    raise
                fds.clear()
        elif fds:
            starts, ends = _runs(fds)
            fds[:] = filter(None, map(_closerange, starts, ends))

    def file(
        self,
        index: int = 0,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """
        The file object over the descriptor at *index*, as `os.fdopen` makes it; the file owns that now.

        `ValueError` when that one was taken before, and for what ``open`` refuses before it has the
        descriptor, which stays here then; what fails later has closed it.
        """
        fd = self._untaken(index)

        def hand_over(name: str, flags: int) -> int:
            # From here on open() closes the descriptor if anything else goes wrong.
            self._fds[index] = -1
            return fd

        file = open(f"<fd {fd}>", mode, buffering, encoding, errors, newline, True, hand_over)
        # Anything else that was opened from a descriptor has its number for a name.
        raw: Any = getattr(file, "buffer", file)
        getattr(raw, "raw", raw).name = fd
        return file

    def socket(self, index: int = 0) -> socket.socket:
        """
        The `socket.socket` for the descriptor at *index*, of whatever family it is; it owns that now.

        Its mode, which it shares with the sender, stays: a nonblocking one is nonblocking, all others are
        without a timeout. `OSError` (``ENOTSOCK``) when it is no socket, and it stays here.
        """
        # Only who receives a socket needs the module that is so slow to import.
        import socket

        fd = self._untaken(index)
        blocking = os.get_blocking(fd)
        sock = socket.socket.__new__(socket.socket)
        try:
            self._fds[index] = -1
            sock.__init__(fileno=fd)  # type: ignore[misc]
        except BaseException:
            # Whatever was raised, and wherever, one of the two has it, and not both.
            if sock.fileno() < 0:
                self._fds[index] = fd
            raise
        if sock.getblocking() != blocking or sock.gettimeout():
            sock.setblocking(blocking)
        return sock

    def stream(self, index: int = 0) -> UdStream:
        """
        The `UdStream` over the descriptor at *index*; it owns that now.

        `ValueError`, and it stays here, when it is no Unix stream socket, or one that listens.
        """
        # Not at the head of the file: streams are made of this module, as listeners are of them.
        from .stream import UdStream

        return self._taken_over(index, UdStream._adopt, False)

    def listener(self, index: int = 0) -> UdStreamListener:
        """
        The `UdStreamListener` over the descriptor at *index*; it owns that now.

        Closing it leaves the socket file. `ValueError`, and it stays here, when it is no Unix stream socket that listens.
        """
        from .listener import UdStreamListener

        return self._taken_over(index, UdStreamListener._adopt, True)

    def _taken_over(self, index: int, make: Callable[[CSocket], T], listening: bool) -> T:
        fd = self._untaken(index)
        made: list[Any] = []
        try:
            made.extend(map(_csocket.take_over, (fd,), (make,), (listening,)))
            self._fds[index] = -1
            return made[0]  # type: ignore[no-any-return]
        except BaseException:
            # Whatever was raised, and wherever, one of the two has it, and not both.
            if self._fds[index] == fd:
                for owner in made:
                    owner.detach()
            raise

    def _untaken(self, index: int) -> int:
        fd = self._fds[index]
        if fd < 0:
            raise ValueError(f"descriptor {index} was taken before")
        return fd


def _runs(fds: list[int]) -> tuple[list[int], list[int]]:
    """
    Where the runs of consecutive numbers begin, and where they end: one system call closes each.

    Without the -1 of those that were taken: closerange() takes a negative start for 0.
    """
    numbers = sorted(fds)
    if numbers[0] < 0:
        numbers = [fd for fd in numbers if fd >= 0]
        if not numbers:
            return [], []
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return [numbers[0]], [numbers[-1] + 1]
    starts, ends = [], []
    end = -1
    for fd in numbers:
        if fd != end:
            starts.append(fd)
            ends.append(end)
        end = fd + 1
    return starts, [*ends[1:], end]


class _LeftInError(FileDescriptors):
    """What came before an error and hangs on it: nobody was asked to close that, so nobody is blamed."""

    __slots__ = ()

    def __del__(self) -> None:
        if hasattr(self, "_fds"):
            self.close()


_NO_FDS = FileDescriptors()


# --- credentials ---


class Credentials(tuple["int | None", int, int]):
    """
    Who a process is: a named tuple of *pid*, *uid* and *gid*.

    *uid* and *gid* are unsigned; 4294967295 is the kernel's "none". *pid* is None where the kernel knows
    none: the process is in a pid namespace that is not visible from here, or nobody said who it was.
    """

    __slots__ = ()
    _fields = ("pid", "uid", "gid")
    __match_args__ = ("pid", "uid", "gid")

    if TYPE_CHECKING:
        pid: int | None
        uid: int
        gid: int
    else:
        pid = property(itemgetter(0), doc="The process's number, or None.")
        uid = property(itemgetter(1), doc="The user's number.")
        gid = property(itemgetter(2), doc="The group's number.")

    def __new__(cls, pid: int | None, uid: int, gid: int) -> Self:
        """Any three numbers; what the kernel tells has None for a pid of 0."""
        return tuple.__new__(cls, (pid, uid, gid))

    @classmethod
    def current(cls) -> Self:
        """This process: its pid, and its real uid and gid, as the kernel itself attaches them."""
        return cls(os.getpid(), os.getuid(), os.getgid())

    @classmethod
    def _make(cls, fields: Iterable[Any]) -> Self:
        return cls(*fields)

    def _asdict(self) -> dict[str, int | None]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **fields: Any) -> Self:
        return type(self)(**{**self._asdict(), **fields})

    def __getnewargs__(self) -> tuple[int | None, int, int]:
        return self.pid, self.uid, self.gid

    def __repr__(self) -> str:
        return f"Credentials(pid={self.pid}, uid={self.uid}, gid={self.gid})"


class Received:
    """
    What one `recv_ancillary` brought.

    ``nbytes``
        How many bytes are in the buffers; 0 means end of file.
    ``fds``
        A `FileDescriptors`, empty if none came.
    ``credentials``
        The sender's `Credentials`, if `set_passcred` asked for them, else None; the end of file has no
        sender. Root may forge these.
    ``ancillary``
        Whatever else came, undecoded: a list of ``(level, type, bytes)``.
    ``truncated``
        Whether descriptors were lost, to *max_fds* or to the process's limit of open files.
    ``pidfd``
        A `FileDescriptors` with the sender's pidfd, if ``SO_PASSPIDFD`` is set on the socket; else empty.
    ``security``
        The sender's security label as bytes, if ``SO_PASSSEC`` is set on the socket; else None.

    `close`, or the end of a ``with``, closes ``fds`` and ``pidfd``.
    """

    __slots__ = ("nbytes", "fds", "credentials", "ancillary", "truncated", "pidfd", "security")
    nbytes: int
    fds: FileDescriptors
    credentials: Credentials | None
    ancillary: list[tuple[int, int, bytes]]
    truncated: bool
    pidfd: FileDescriptors
    security: bytes | None

    def __init__(self) -> None:
        raise TypeError("a Received is what recv_ancillary returns")

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        self.fds.close()
        self.pidfd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in ("nbytes", "fds", "credentials", "ancillary"))
        return f"<udstream.Received {' '.join(shown)}{' truncated' if self.truncated else ''}>"


# --- sending ---


def send_ancillary(fd: Fd, buffers: Buffers, ancillary: Iterable[Any] = ()) -> int:
    """
    Send bytes with control messages, in one ``sendmsg``, and return how many bytes went.

    *buffers* is one bytes-like object or a sequence of them. Each item of *ancillary* is a `FileDescriptors`
    or another iterable of descriptors (ints, or objects with a ``fileno()``), a `Credentials`, or a
    ``(level, type, data)`` tuple as `socket.sendmsg` takes it. All of it goes with the first byte, so a short
    count means that the rest of the bytes is to be sent alone. Whatever is sent stays open here.

    `ValueError`, and nothing is sent: control messages without a byte to carry them, which the kernel would
    drop; more than 253 descriptors; a negative number, a closed file; credentials without a pid. `TypeError`
    for what is no descriptor. The kernel's errors: `BlockingIOError`; `BrokenPipeError`; ``EBADF`` for a
    number that is not open; ``ETOOMANYREFS``, too many descriptors in flight; ``EPERM``, credentials that are
    not ours to claim, or a receiver that refuses descriptors. More than ``IOV_MAX`` buffers, or an
    interrupted call, are a short count.
    """
    return _send(_borrow(fd), buffers, ancillary)


def send_fds(fd: Fd, buffers: Buffers, fds: Iterable[Fd]) -> int:
    """
    Send all of the bytes, the descriptors with the first of them, and return how many bytes went.

    *buffers* and the errors are those of `send_ancillary`; *fds* is an iterable of descriptors (ints, or
    objects with a ``fileno()``), which stay open here. 0 means that there was nothing to send. An error on
    the way carries the number of bytes that went as ``.nbytes``; unless that is 0, the descriptors went too.
    System call: ``sendmsg``, as often as it takes.
    """
    return _send_fds(_borrow(fd), buffers, fds)


def _send(sock: Any, buffers: Any, ancillary: Iterable[Any]) -> int:
    if type(ancillary) is list and len(ancillary) == 1 and type(ancillary[0]) is Credentials:
        cmsgs: Any = ((SOL_SOCKET, _scm_credentials(), _packed_credentials(ancillary[0])),)
    else:
        cmsgs, _held = _cmsgs(ancillary)
    if type(buffers) is bytes:
        views: Any = (buffers,)
        size = len(buffers)
    else:
        views, size = _payload(buffers)
    if cmsgs and not size:
        raise ValueError("control messages need a byte to carry them: the kernel would drop them in silence")
    try:
        sent: int = sock.sendmsg(views if len(views) <= _IOV_MAX else views[:_IOV_MAX], cmsgs, MSG_NOSIGNAL)
    except OSError as error:
        _explain(error)
        raise
    return sent


def _send_fds(sock: Any, buffers: Any, fds: Any) -> int:
    if type(fds) is list and len(fds) == 1 and type(fds[0]) is int and 0 <= fds[0] <= _MOST_FD:
        cmsgs: Any = ((SOL_SOCKET, SCM_RIGHTS, _FD.pack(fds[0])),)
    else:
        numbers, _held = _numbers(fds)
        cmsgs = ((SOL_SOCKET, SCM_RIGHTS, _packed(numbers)),) if numbers else ()
    if type(buffers) is bytes:
        views: Any = (buffers,)
        size = len(buffers)
    else:
        views, size = _payload(buffers)
    if not size:
        if cmsgs:
            raise ValueError("descriptors need a byte to carry them: the kernel would drop them in silence")
        if not isinstance(sock, CSocket):
            sock.for_one_call()  # a closed stream says so
        return 0
    # Counted by C code, so that whatever a signal handler raises has it right.
    steps: list[int] = []
    first = views if len(views) <= _IOV_MAX else views[:_IOV_MAX]
    try:
        if sock.__class__ is not CSocket and isinstance(sock, _timing.Around):
            sock = sock.for_one_call()
            sock.keep(steps, "sendmsg", (first, cmsgs, MSG_NOSIGNAL))
        else:
            steps += starmap(sock.sendmsg, ((first, cmsgs, MSG_NOSIGNAL),))
        if steps[0] != size:
            _send_rest(sock, views, size, steps)
    except BaseException as error:
        if isinstance(error, OSError):
            _explain(error)
        error.nbytes = sum(steps)  # type: ignore[attr-defined]
        raise
    return size


def _send_rest(sock: Any, buffers: Sequence[Buffer], size: int, steps: list[int]) -> None:
    """Send what there is after the *steps* that were made; they get what each call sent, as it does."""
    sent = skip = sum(steps)
    views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    first = 0
    try:
        while True:  # see UdStream.readline()
            if sent == size:
                break
            while True:
                if skip < len(views[first]):
                    break
                skip -= len(views[first])
                first += 1
            with views[first][skip:] as head:
                more = [head, *views[first + 1 : first + _IOV_MAX]]
                _timing.keep(sock, steps, "sendmsg", more, (), MSG_NOSIGNAL)
            sent += steps[-1]
            skip += steps[-1]
    finally:
        # The error's traceback keeps them alive, and with them the lock on a bytearray's size.
        for view in views:
            view.release()


def _payload(buffers: Any) -> tuple[Sequence[Any], int]:
    """The buffers as a sequence that one system call takes, and how many bytes there are in all of them."""
    if not isinstance(buffers, (list, tuple)):
        if isinstance(buffers, str):
            raise TypeError("buffers must be bytes-like, not str: encode it first")
        try:
            return (buffers,), memoryview(buffers).nbytes
        except TypeError:
            buffers = list(_iterated(buffers, "buffers"))
    if len(buffers) == 1 and type(buffers[0]) is bytes:
        return buffers, len(buffers[0])
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    if len(buffers) > _IOV_MAX:
        # Without the empty ones: a thousand of them would leave no byte for the control messages.
        buffers = [buffer for buffer, size in zip(buffers, sizes, strict=True) if size]
    return buffers, sum(sizes)


def _cmsgs(ancillary: Iterable[Any]) -> tuple[list[Cmsg], list[Any]]:
    """The control messages for *ancillary*, all checked, and what has to live until they are sent."""
    numbers: list[int] = []
    cmsgs: list[Cmsg] = []
    held: list[Any] = []
    raw_fds = 0
    for item in _iterated(ancillary, "ancillary"):
        if isinstance(item, Credentials):
            cmsgs.append((SOL_SOCKET, _scm_credentials(), _packed_credentials(item)))
        elif isinstance(item, tuple) and len(item) == 3 and _is_data(item[2]):
            level, kind, data = item
            if not isinstance(level, int) or not isinstance(kind, int):
                raise TypeError(f"the level and type of a control message are ints, not {level!r}, {kind!r}")
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                raw_fds += memoryview(data).nbytes // _FD.size
            cmsgs.append(item)
        elif isinstance(item, (int, str, bytes)):
            raise TypeError(
                "an item of ancillary is an iterable of descriptors, a Credentials or a (level, type, data) "
                f"tuple, not {item!r}"
            )
        else:
            more, kept = _numbers(item)
            numbers += more
            held.append(kept)
    _check_count(len(numbers) + raw_fds)
    if numbers:
        # One message for them all, which is what the kernel would make of several.
        cmsgs.append((SOL_SOCKET, SCM_RIGHTS, _packed(numbers)))
    return cmsgs, held


def _is_data(thing: Any) -> bool:
    if hasattr(thing, "fileno"):
        return False
    try:
        memoryview(thing).release()
    except TypeError:
        return False
    return True


def _iterated(things: Any, what: str) -> Iterator[Any]:
    # A file is an iterable too, of its lines, and iterating over it would read it.
    if hasattr(things, "fileno"):
        raise TypeError(f"{what} must be an iterable; for one alone write [{type(things).__name__}]")
    try:
        return iter(things)
    except TypeError:
        raise TypeError(
            f"{what} must be an iterable, not {things!r}; for one alone write [{things!r}]"
        ) from None


def _numbers(fds: Any) -> tuple[list[int], Any]:
    """The numbers of *fds*, and what has to live as long as they are used."""
    if isinstance(fds, FileDescriptors):
        numbers = fds._fds
        things: Any = fds
    else:
        things = list(fds) if type(fds) in (list, tuple) else list(_iterated(fds, "fds"))
        numbers = things if _all_ints(things) else [_fileno(thing) for thing in things]
    if len(numbers) > MAX_FDS:
        _check_count(len(numbers))
    return numbers, things


def _all_ints(things: list[Any]) -> bool:
    """Whether these are numbers already, and no bools among them; in C, since there may be many."""
    try:
        return sorted(things)[0] > 1 or {*map(type, things)} == {int}
    except (TypeError, IndexError):
        return False


def _check_count(count: int) -> None:
    if count > MAX_FDS:
        raise ValueError(f"{count} descriptors in one message: the most the kernel takes is {MAX_FDS}")


def _fileno(thing: Any) -> int:
    """The number of an int, or of an object with a ``fileno()``."""
    if type(thing) is int:
        fd = thing
    elif isinstance(thing, int) and not isinstance(thing, bool):
        fd = int(thing)
    else:
        method = getattr(thing, "fileno", None)
        if method is None:
            raise TypeError(f"{thing!r} is no file descriptor: it is no int, and has no fileno()")
        fd = method()
        if not isinstance(fd, int) or isinstance(fd, bool):
            raise TypeError(f"{thing!r} is no file descriptor: its fileno() is {fd!r}")
    if fd < 0:
        raise ValueError(f"{thing!r} is no open file descriptor: its number is {fd}")
    if fd >= _csocket.NO_FD:
        raise ValueError(f"{fd} is no open file descriptor: no number is as great")
    return fd


def _packed(numbers: list[int]) -> bytes:
    count = len(numbers)
    array = _ARRAYS.get(count)
    if array is None:
        # As unsigned, so that a negative number is an error; for the kernel's int the bytes are the same.
        array = _ARRAYS[count] = Struct(f"@{count}I")
    try:
        return array.pack(*numbers)
    except StructError:
        for number in numbers:
            if _fileno(number) >= 1 << 32:
                raise ValueError(f"{number} is no open file descriptor") from None
        raise


def _packed_credentials(credentials: Credentials) -> bytes:
    try:
        return _UCRED.pack(*credentials)
    except StructError:
        if credentials.pid is None:
            text = f"{credentials!r} cannot be sent without a pid: Credentials.current() has one"
        else:
            text = f"{credentials!r} cannot be sent: a number in it does not fit"
        raise ValueError(text) from None


def _explain(error: OSError) -> None:
    """Say what the kernel means by an errno whose own text is about something else."""
    text = _SENDING_ERRORS.get(error.errno or 0)
    if text is not None and _csocket.from_system(error):
        error.strerror = text


_SENDING_ERRORS = {
    errno.ETOOMANYREFS: "Too many descriptors in flight: the user is at the limit (RLIMIT_NOFILE)",
    errno.EPERM: "Operation not permitted: the receiver refuses descriptors, or the credentials are not ours",
}


# --- receiving ---


def recv_ancillary(fd: Fd, buffers: Buffers, *, max_fds: int = MAX_FDS) -> Received:
    """
    Receive bytes into *buffers*, and the control messages that came with them, in one ``recvmsg``.

    *buffers* is one writable bytes-like object or a sequence of them, with room for one byte at least:
    `ValueError` otherwise, since descriptors that come alone could not be told from the end of file. They
    are filled in turn; a short count does not mean the end of file, ``nbytes`` 0 does.

    At most *max_fds* descriptors are kept, from their first instant close-on-exec (on macOS right after);
    the others are closed, and ``truncated`` is set, as it is when the process was at its limit of open
    files. The bytes are never lost because of the descriptors. 0 keeps none; below 0: `ValueError`. A
    nonblocking descriptor with nothing there: `BlockingIOError`.
    """
    return _receive(_borrow(fd), buffers, max_fds)


def recv_fds(fd: Fd, bufsize: int, max_fds: int = MAX_FDS) -> tuple[bytes, FileDescriptors]:
    """
    Receive up to *bufsize* bytes, and the descriptors that came with them, in one ``recvmsg``.

    Empty bytes mean end of file. When descriptors were lost: `OSError`, whose ``.data`` and ``.fds`` hold
    what came: ``EMFILE`` when the process was at its limit of open files, ``EMSGSIZE`` when more than
    *max_fds* came. Credentials and other control messages are not reported; `recv_ancillary` has them.
    *bufsize* below 1, *max_fds* below 0: `ValueError`. A nonblocking descriptor with nothing there:
    `BlockingIOError`.
    """
    return _recv_fds(_borrow(fd), bufsize, max_fds)


def _receive(sock: Any, buffers: Any, max_fds: int) -> Received:
    if type(max_fds) is not int:
        max_fds = index(max_fds)
    if max_fds < 0:
        raise ValueError(f"max_fds is 0 or more, not {max_fds}")
    views = (buffers,) if type(buffers) is bytearray and buffers else _rooms(buffers)
    landed: list[Landed] = []
    try:
        _land(sock, landed, views)
        return _decoded(landed, max_fds)
    except BaseException:
        _discard(landed)
        raise


def _land(sock: Any, landed: list[Landed], buffers: Sequence[Any]) -> None:
    """Receive, and put what the kernel said into *landed*: in one bytecode, from the call in C into the list."""
    if isinstance(sock, CSocket):
        landed += map(sock.recvmsg_into, (buffers,), _ROOMS, _FLAGS)
    else:
        _timing.keep(sock, landed, "recvmsg_into", buffers, _ROOM, MSG_CMSG_CLOEXEC)


def _recv_fds(sock: Any, bufsize: int, max_fds: int = MAX_FDS) -> tuple[bytes, FileDescriptors]:
    if type(max_fds) is not int:
        max_fds = index(max_fds)
    if not max_fds >= 0 < bufsize:
        if max_fds < 0:
            raise ValueError(f"max_fds is 0 or more, not {max_fds}")
        raise ValueError(f"bufsize is 1 or more, not {bufsize}: no byte, no descriptor")
    landed: list[Landed] = []
    fds: Any = None
    try:
        if isinstance(sock, CSocket):
            landed += map(sock.recvmsg, (bufsize,), _ROOMS, _FLAGS)
        else:
            _timing.keep(sock, landed, "recvmsg", bufsize, _ROOM, MSG_CMSG_CLOEXEC)
        data, cmsgs, flags, _ = landed[0]
        if flags == _UNCUT and len(cmsgs) == 1:
            ((level, kind, body),) = cmsgs
            size = len(body)
            if kind == SCM_RIGHTS and level == SOL_SOCKET and size <= max_fds * 4:
                fds = _new(FileDescriptors)
                # With this they have their owner, and nothing else does.
                fds._fds = [*_FD.unpack(body)] if size == 4 else memoryview(body).cast("i").tolist()
                return data, fds
        received = _decoded(landed, max_fds)
    except BaseException:
        if getattr(fds, "_fds", None):
            fds.close()
        else:
            _discard(landed)
        raise
    received.pidfd.close()
    if not received.truncated:
        return data, received.fds
    raise _lost(flags, max_fds, data, received.fds)


def _lost(flags: int, max_fds: int, data: bytes, fds: FileDescriptors) -> OSError:
    """The error for lost descriptors, with what came; no frame of its traceback refers to it."""
    if flags & MSG_CTRUNC:
        number = errno.EMFILE
        text = "descriptors were lost: the process is at its limit of open files (RLIMIT_NOFILE)"
    else:
        number = errno.EMSGSIZE
        text = f"descriptors were lost: more came than max_fds={max_fds} admits"
    error: Any = OSError(number, text)
    error.data = data
    error.fds = _LeftInError()
    # For a moment they share one list, which whoever closes it first leaves empty.
    error.fds._fds = fds._fds
    fds._fds = []
    return error  # type: ignore[no-any-return]


def _rooms(buffers: Any) -> Sequence[Any]:
    """The buffers to receive into, as a sequence that one system call takes and that has room."""
    if not isinstance(buffers, (list, tuple)):
        try:
            buffers = (buffers,) if memoryview(buffers).nbytes else ()
        except TypeError:
            buffers = list(_iterated(buffers, "buffers"))
    if len(buffers) > _IOV_MAX or any(map(_is_empty, buffers)):
        buffers = [buffer for buffer in buffers if not _is_empty(buffer)][:_IOV_MAX]
    if not buffers:
        raise ValueError("the buffers must have room for one byte at least")
    return buffers  # type: ignore[no-any-return]


def _is_empty(buffer: Any) -> bool:
    try:
        return not len(buffer)
    except TypeError:
        # A ctypes structure, say.
        return not memoryview(buffer).nbytes


def _decoded(landed: list[Landed], max_fds: int) -> Received:
    """What has landed, as a `Received`, which owns the descriptors from the moment *landed* is empty."""
    nbytes, cmsgs, flags, _ = landed[0]
    received: Received = _new(Received)
    received.nbytes = nbytes
    received.fds = received.pidfd = _NO_FDS
    received.credentials = received.security = None
    received.ancillary = others = []
    received.truncated = flags & MSG_CTRUNC != 0
    numbers = pidfds = _NO_NUMBERS
    for cmsg in cmsgs:
        level, kind, data = cmsg
        if level != SOL_SOCKET:
            others.append(cmsg)
        elif kind == SCM_RIGHTS:
            numbers = [*numbers, *_ints(data)]
        elif kind == SCM_CREDENTIALS and len(data) == 12:
            # Nobody sent the end of file; yet the kernel fills in zeros there, which are root's numbers.
            if nbytes:
                pid, uid, gid = _UCRED.unpack(data)
                received.credentials = _new_tuple(Credentials, (pid or None, uid, gid))
        elif kind == SCM_PIDFD and len(data) == 4 and _FD.unpack(data)[0] >= 0:
            pidfds = [*pidfds, *_FD.unpack(data)]
        elif kind == SCM_SECURITY:
            received.security = _label(data)
        else:
            others.append(cmsg)
    if not numbers and not pidfds:
        return received
    if not MSG_CMSG_CLOEXEC:
        for fd in numbers:
            os.set_inheritable(fd, False)
    kept, pidfd, excess = FileDescriptors(), FileDescriptors(), FileDescriptors()
    # One bytecode gives each its descriptors and empties the list, setattr() returning None: before it
    # the list is the owner, after it they are.
    owners = (kept, pidfd, excess)
    landed[:] = filter(
        None, map(setattr, owners, _THREE_NAMES, (numbers[:max_fds], pidfds, numbers[max_fds:]))
    )
    received.fds = kept
    received.pidfd = pidfd
    if excess:
        received.truncated = True
        excess.close()
    return received


def _ints(data: bytes) -> list[int]:
    return memoryview(data)[: len(data) // 4 * 4].cast("i").tolist()


def _discard(landed: list[Landed]) -> None:
    """Close every descriptor of what landed and got no owner."""
    for _, cmsgs, _, _ in landed:
        for level, kind, data in cmsgs:
            if level == SOL_SOCKET and kind in (SCM_RIGHTS, SCM_PIDFD):
                FileDescriptors(fd for fd in _ints(data) if fd >= 0).close()
    landed.clear()


# --- who is there ---


def peer_credentials(fd: Fd) -> Credentials:
    """
    Who is at the other end, from the kernel, as it was when the two were connected.

    Nobody can forge it, and it never changes (on macOS, but for the pid, which is that of the process that
    used the socket last): a child that got the connection, or a process that changed its user since, shows
    as whoever connected, or listened, or made the pair. ``pid`` is None where the kernel says 0; never take a
    pid for proof, as it may be in use again (`peer_pidfd`). Of a listening socket Linux tells who listened; of
    one that is not connected, None and 4294967295. uid and gid are the effective ones.

    System call: ``getsockopt`` (``SO_PEERCRED``; on macOS and FreeBSD ``LOCAL_PEERCRED``, on NetBSD
    ``LOCAL_PEEREID``). Elsewhere: `NotImplementedError`.
    """
    return _peer_of(_borrow(fd))


def _peer_of(sock: CSocket) -> Credentials:
    how = _platform.PEER_CREDENTIALS
    if how is None:
        raise _missing("peer_credentials")
    level, option, size, decode, pid_option = how
    pid, uid, gid = decode(sock.getsockopt(level, option, size))
    if pid_option is not None:
        pid = sock.getsockopt(level, pid_option)
    return Credentials(pid or None, uid, gid)


def peer_groups(fd: Fd) -> tuple[int, ...]:
    """
    The supplementary groups of the process at the other end, as they were when the two were connected.

    However many they are. Linux 4.13; `NotImplementedError` elsewhere. `OSError` (``ENODATA``) for a socket
    that is not connected. System call: ``getsockopt`` (``SO_PEERGROUPS``).
    """
    data = _long_option("peer_groups", _borrow(fd), _platform.SO_PEERGROUPS)
    return tuple(memoryview(data).cast("I"))


def peer_pidfd(fd: Fd) -> int:
    """
    A pidfd of the process at the other end: for waiting (``poll``) until it ends, and for signals to it.

    Without a race: it is of the process that connected, even if its pid is in use again. The caller owns
    the descriptor, which is close-on-exec. Linux 6.5, and of a process that has ended and was waited for
    only since 6.16: before, `ProcessLookupError`. `OSError` (``ENODATA``) for a socket that is not connected.
    `NotImplementedError` where there is none. System call: ``getsockopt`` (``SO_PEERPIDFD``).
    """
    option = _platform.SO_PEERPIDFD
    if option is None:
        raise _missing("peer_pidfd")
    landed: list[int] = []
    try:
        landed += starmap(_borrow(fd).getsockopt, ((SOL_SOCKET, option),))
        return landed[0]
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            raise _missing("peer_pidfd", "Linux 6.5") from error
        if error.errno in (errno.ESRCH, errno.EINVAL):
            # The class of the error follows from its number.
            text = "the peer process has ended, and this kernel makes no pidfd of such a one"
            raise OSError(errno.ESRCH, text) from error
        raise
    except BaseException:
        any(map(_close, landed))
        raise


def peer_security(fd: Fd) -> bytes | None:
    """
    The security label (SELinux, AppArmor, Smack) of the process at the other end, without a trailing NUL.

    None where no such module is active. Linux; `NotImplementedError` elsewhere. System call: ``getsockopt``
    (``SO_PEERSEC``).
    """
    try:
        return _label(_long_option("peer_security", _borrow(fd), _platform.SO_PEERSEC))
    except NotImplementedError as error:
        if isinstance(error.__cause__, OSError):
            return None
        raise


def set_passcred(fd: Fd, flag: bool) -> None:
    """
    Ask the kernel to attach its sender's `Credentials` to each message that is received, or no longer to.

    They are ``Received.credentials`` then. Set it on the listener: what that accepts inherits it, so that no
    message slips by before. Set later, it shows what is already there with a pid of None and uid and gid
    65534. Messages of two processes then no longer merge into one read. What is set before a ``connect``
    gives the socket an abstract name. Root may forge per-message credentials; `peer_credentials` nobody can.
    Linux; `NotImplementedError` elsewhere. System call: ``setsockopt`` (``SO_PASSCRED``).
    """
    _set_option("set_passcred", fd, _platform.SO_PASSCRED, flag)


def get_passcred(fd: Fd) -> bool:
    """Whether messages are received with credentials: see `set_passcred`."""
    return _get_option("get_passcred", fd, _platform.SO_PASSCRED)


def set_passrights(fd: Fd, flag: bool) -> None:
    """
    Allow descriptors to be sent to this end, as at first, or forbid it.

    With False the kernel refuses them, and the sender gets `PermissionError`, having sent nothing; those on
    their way still arrive. What a listener accepts inherits it. Linux 6.16; `NotImplementedError`
    elsewhere. System call: ``setsockopt`` (``SO_PASSRIGHTS``).
    """
    _set_option("set_passrights", fd, _platform.SO_PASSRIGHTS, flag, "Linux 6.16")


def get_passrights(fd: Fd) -> bool:
    """Whether descriptors may be sent to this end: see `set_passrights`."""
    return _get_option("get_passrights", fd, _platform.SO_PASSRIGHTS, "Linux 6.16")


def _missing(name: str, needs: str = "Linux") -> NotImplementedError:
    return NotImplementedError(f"{name} needs {needs}: this is {_platform.KERNEL}")


def _scm_credentials() -> int:
    if SCM_CREDENTIALS is None:
        raise _missing("sending Credentials")
    return SCM_CREDENTIALS


def _set_option(name: str, fd: Fd, option: int | None, flag: bool, needs: str = "Linux") -> None:
    if option is None:
        raise _missing(name)
    try:
        _borrow(fd).setsockopt(SOL_SOCKET, option, 1 if flag else 0)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            raise _missing(name, needs) from error
        raise


def _get_option(name: str, fd: Fd, option: int | None, needs: str = "Linux") -> bool:
    if option is None:
        raise _missing(name)
    try:
        return bool(_borrow(fd).getsockopt(SOL_SOCKET, option))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            raise _missing(name, needs) from error
        raise


def _label(data: bytes) -> bytes:
    return data[:-1] if data.endswith(b"\0") else data


def _long_option(name: str, sock: _Borrowed, option: int | None) -> bytes:
    """The answer to a socket option, however long it is."""
    if option is None:
        raise _missing(name)
    try:
        return sock.getsockopt(SOL_SOCKET, option, 1024)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            raise _missing(name, "another kernel") from error
        if error.errno != errno.ERANGE:
            raise
    return _beyond_1024(sock.fileno(), option)


def _beyond_1024(fd: int, option: int) -> bytes:
    # CPython's getsockopt() has room for 1024 bytes and no more. Nobody else needs this import.
    import ctypes

    getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt
    size = ctypes.c_uint(1024)
    while True:
        # The kernel says how much it would have taken; but a little more never hurts.
        room = ctypes.create_string_buffer(max(size.value, 2048))
        size.value = len(room)
        if getsockopt(fd, SOL_SOCKET, option, room, ctypes.byref(size)) == 0:
            return room.raw[: size.value]
        number = ctypes.get_errno()
        if number != errno.ERANGE or size.value <= len(room):
            raise OSError(number, os.strerror(number))
