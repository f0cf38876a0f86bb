"""A connected Unix stream socket as a raw file: `UdStream`, and `open` over it."""

from __future__ import annotations

import _socket
import errno
import io
import os
import stat
import struct
import sys
from _operator import index
from _warnings import warn
from time import monotonic

from . import _csocket, _platform, files
from . import ancillary as side
from ._collecting import CollectingSocket
from ._csocket import CSocket, from_system
from ._timing import TimedSocket, checked_timeout, for_one_call, keep, receive_all, send_all
from ._waiting import timed_out, wait
from .address import UdSocketPath, as_filename, sockaddr_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections import deque
    from collections.abc import Iterable, Sequence
    from typing import IO, Any, BinaryIO, Literal, TypeAlias, overload
    from weakref import ref

    from typing_extensions import Buffer, Self

    from .address import SocketPath
    from .ancillary import Buffers, Credentials, Fd, FileDescriptors, Received

    TextMode: TypeAlias = Literal[
        "r",
        "w",
        "rw",
        "wr",
        "r+",
        "+r",
        "w+",
        "+w",
        "rt",
        "tr",
        "wt",
        "tw",
        "rwt",
        "rtw",
        "wrt",
        "wtr",
        "trw",
        "twr",
        "r+t",
        "rt+",
        "+rt",
        "+tr",
        "tr+",
        "t+r",
        "w+t",
        "wt+",
        "+wt",
        "+tw",
        "tw+",
        "t+w",
    ]
    BinaryMode: TypeAlias = Literal[
        "rb",
        "br",
        "wb",
        "bw",
        "rwb",
        "rbw",
        "wrb",
        "wbr",
        "brw",
        "bwr",
        "r+b",
        "rb+",
        "+rb",
        "+br",
        "br+",
        "b+r",
        "w+b",
        "wb+",
        "+wb",
        "+bw",
        "bw+",
        "b+w",
    ]

    # As typeshed has it for all raw files: None, where a nonblocking one has nothing yet, would have to be ruled out at
    # each call of a blocking one.
    MaybeNone: TypeAlias = Any

    # So that it goes where an IO[bytes] is due, as the builtin's unbuffered files do.
    class _RawBase(io.RawIOBase, BinaryIO): ...  # pyright: ignore

else:
    _RawBase = io.RawIOBase

    def overload(function: object) -> object:
        return function


_NOSIGNAL = _platform.MSG_NOSIGNAL
_CHUNK = 1 << 16
# More than a socket's buffer holds, unless somebody made that larger.
_AT_ONCE = 1 << 18
_MOST_FROM_KERNEL = 1 << 30
# The most that one read() makes room for: more than a Unix socket's buffers hold.
_MOST_AT_ONCE = 1 << 24


class _Closed:
    """What a closed stream has in its socket's place, so that no other method needs to look first."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise ValueError("I/O operation on closed stream")


_CLOSED: Any = _Closed()
_new: Any = io.RawIOBase.__new__


class UdStream(_RawBase):
    """
    One end of a connected Unix stream socket, as a raw file.

    Made by `connect`, `pair`, `from_fd`, `from_socket`, `inherited`, `dup`, and by
    `UdStreamListener.accept`. It owns its file descriptor, which is close-on-exec, and closes it once: by
    `close`, at the end of a ``with``, or, with a `ResourceWarning`, when it is dropped. Every method of a
    closed stream but `close` raises `ValueError`.

    Reading and writing follow `io.RawIOBase`: one system call each, short counts, None where a nonblocking
    stream would have to wait. A write never raises ``SIGPIPE``. For buffers or text use `makefile`.

    A subclass may add methods and attributes; its ``__init__`` is not called. To override `readinto` or `write`
    changes that method alone: files over the stream, and methods that loop, make their system calls themselves.
    """

    # The socket object, or what stands round it to time or to collect; and the paths that the user gave,
    # (local, peer), where the kernel would say something else.
    # (A type checker takes `closed` for the read-only property of io's; a slot is what io's C code reads fastest.)
    __slots__ = ("_paths", "_sock", "closed")
    _sock: Any
    closed: bool  # pyright: ignore
    _paths: tuple[SocketPath | None, SocketPath | None] | None
    # Only a stream that collects has one of its own.
    _collected: deque[tuple[int, Received]] | None = None
    # The files over this stream, which are closed with it: only a stream with files has this of its own.
    _files: tuple[ref[Any], ...] = ()

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        raise TypeError("use UdStream.connect(), pair(), from_fd(), from_socket() or inherited()")

    # --- making one ---

    @classmethod
    def _adopt(
        cls, sock: CSocket | TimedSocket, paths: tuple[SocketPath | None, SocketPath | None] | None = None
    ) -> Self:
        self: Self = _new(cls)
        self._sock = sock
        self._paths = paths
        self.closed = False
        return self

    @classmethod
    def connect(cls, path: SocketPath, *, timeout: float | None = None) -> Self:
        """
        Connect to the socket at *path* (see `UdSocketPath.of`).

        *timeout*, in seconds, becomes the stream's; it bounds the connecting too, also when the server's
        backlog is full: then the kernel queues the caller until there is room, or `TimeoutError`. None waits
        for ever. `ValueError` for a path that cannot be one; what the kernel refuses is its `OSError` with
        the path as ``filename``. System calls: ``socket``, ``connect``.
        """
        sockaddr = sockaddr_of(path)
        seconds = None if timeout is None else checked_timeout(timeout)
        # A str says the same for ever; what else it may be is made so.
        given = path if isinstance(path, str) else UdSocketPath.of(path)
        sock = None
        try:
            sock = _csocket.create()
            if len(sockaddr) <= _platform.SUN_PATH_MAX or sockaddr[0] == 0:
                if seconds is None:
                    try:
                        sock.connect(sockaddr)
                    except InterruptedError as error:
                        if not from_system(error):
                            raise
                        _connect(sock, sockaddr, None)
                else:
                    _connect(sock, sockaddr, seconds)
            else:
                # A descriptor of the socket file stands for its path, in 20 bytes or so.
                fd = os.open(sockaddr, os.O_PATH | os.O_CLOEXEC)
                try:
                    _connect(sock, b"/proc/self/fd/%d" % fd, seconds)
                finally:
                    os.close(fd)
        except BaseException as error:
            if sock is not None:
                _csocket.discard(sock)
            if isinstance(error, OSError) and from_system(error):
                error.filename = as_filename(path)
            raise
        self: Self = _new(cls)
        self._sock = sock if seconds is None else TimedSocket(sock, seconds)
        self._paths = (None, given)
        self.closed = False
        return self

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Two streams connected to each other. System call: ``socketpair``."""
        one, other = _csocket.pair()
        return cls._adopt(one), cls._adopt(other)

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """
        Take over the open descriptor *fd*, in whatever mode it is; it is made close-on-exec.

        `ValueError`, and the descriptor stays the caller's, when it is no Unix stream socket, or one that listens;
        `OSError` (``EBADF``) when it is not open at all. It stays the caller's on any error.
        """
        return _csocket.take_over(fd, cls._adopt, listening=False)

    @classmethod
    def from_socket(cls, sock: socket.socket) -> Self:
        """
        Take over what a `socket.socket` owned; it is detached.

        A timeout that was set on it becomes the stream's, and the descriptor a blocking one again; a
        nonblocking one stays nonblocking. `ValueError`, and the socket keeps all it had, when it is no Unix
        stream socket, or one that listens.
        """
        return _csocket.take_from(sock, cls._adopt, listening=False)

    @classmethod
    def inherited(cls) -> list[Self]:
        """
        The connections that a service manager passed to this process (``LISTEN_FDS``), as streams.

        For services that are started once for each connection (systemd's ``Accept=yes``). Empty when none
        were passed to this process. They are made close-on-exec, and the variables removed. `ValueError`,
        everything left as it was, when one of them is no Unix stream socket, or one that listens, or when the
        variables make no sense.
        """
        from ._activation import inherited_sockets

        return inherited_sockets(lambda sock, _name: cls._adopt(sock), listening=False)

    def dup(self) -> Self:
        """
        Another stream on a duplicate of the descriptor, close-on-exec, with the same timeout.

        The two share one connection: its nonblocking mode, its end of file, its shutdown. System call:
        ``fcntl`` (``F_DUPFD_CLOEXEC``).
        """
        seconds = self.timeout
        socks: list[CSocket] = []
        try:
            _csocket.wrap(socks, map(os.dup, (self.fileno(),)))
            if self.closed:
                # By another thread, just now: the number may have been somebody else's already.
                raise ValueError("I/O operation on closed stream")
            twin = self._adopt(socks[0], self._paths)
            twin.timeout = seconds
            return twin
        except BaseException:
            for sock in socks:
                sock.close()
            raise

    # --- the descriptor ---

    def _bare(self) -> CSocket:
        """The socket object itself."""
        sock = self._sock
        while sock.__class__ is not CSocket:
            sock = sock.sock
        return sock

    def fileno(self) -> int:
        """The file descriptor's number, lent: the stream still owns and closes it."""
        sock = self._sock
        return (sock if sock.__class__ is CSocket else self._bare()).fileno()

    def detach(self) -> int:
        """
        Give the descriptor to the caller, unclosed. The stream is closed from then on, and with it the files over it.

        What was written to those is sent first; an error in that leaves all as it was. What they have read
        ahead is gone.
        """
        for file in self._files_over():
            file._send_the_rest()
        fd = self._bare().detach()
        self._forget()
        return fd

    def _files_over(self) -> list[Any]:
        return [file for reference in self._files if (file := reference()) is not None]

    def _forget(self) -> None:
        self._sock = _CLOSED
        self.closed = True
        if self._files:
            for file in self._files_over():
                file._stream_closed()

    def close(self) -> None:
        """
        Close the descriptor; a second time, do nothing.

        The connection goes on for whoever shares it: a child, a duplicate. A call that another thread is
        blocked in is left to end by itself; `shutdown` ends it. System call: ``close``, never repeated.
        """
        if self.closed:
            return
        sock = self._sock
        if sock.__class__ is CSocket and not self._files:
            self._sock = _CLOSED
            self.closed = True  # pyright: ignore
        else:
            sock = self._bare()
            try:
                self._forget()
            finally:
                sock.close()
            return
        sock.close()

    def __del__(self) -> None:
        try:
            closed = self.closed
        except AttributeError:
            return  # it was never finished, and has nothing to close
        if not closed:
            try:
                warn(f"unclosed {self!r}", ResourceWarning, 2, self)
            finally:
                # Also where warnings are errors.
                self.close()

    def _dealloc_warn(self, source: object) -> None:
        # The buffered and text files of io call this as they are dropped unclosed, with themselves.
        if not self.closed:
            warn(f"unclosed {source!r} over {self!r}", ResourceWarning, 2, source)

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if self.closed:
            return f"<{name} [closed]>"
        ends = []
        for label, path in (("local", self._path(0)), ("peer", self._path(1))):
            if path is not None and not path.is_unnamed:
                ends.append(f" {label}={str(path)!r}")
        return f"<{name} fd={self.fileno()}{''.join(ends)}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return for_new_process(self, timeout=self.timeout)

    @property
    def name(self) -> int:
        """The file descriptor's number, as the ``name`` of any file made from a descriptor; -1 once it is closed."""
        return -1 if self.closed else self.fileno()

    @property
    def mode(self) -> str:
        """``"rb+"``."""
        return "rb+"

    def readable(self) -> bool:
        """True, also after a `shutdown`."""
        self.fileno()
        return True

    def writable(self) -> bool:
        """True, also after a `shutdown`."""
        self.fileno()
        return True

    def seekable(self) -> bool:
        """False."""
        self.fileno()
        return False

    def flush(self) -> None:
        """Do nothing: nothing is held back here."""
        self.fileno()

    @property
    def local_path(self) -> UdSocketPath:
        """The address of this end; of most clients, unnamed. System call: ``getsockname``."""
        return self._path(0, strict=True)  # type: ignore[return-value]

    @property
    def peer_path(self) -> UdSocketPath:
        """
        The address of the other end: as it was given to `connect`, else as the kernel tells it.

        `OSError` (``ENOTCONN``) when there is no other end. System call: ``getpeername``.
        """
        return self._path(1, strict=True)  # type: ignore[return-value]

    def _path(self, end: int, strict: bool = False) -> UdSocketPath | None:
        sock = self._bare()
        given = self._paths[end] if self._paths else None
        if given is not None:
            return UdSocketPath.of(given)
        try:
            return UdSocketPath.from_kernel(sock.getpeername() if end else sock.getsockname())
        except OSError as error:
            if strict or not from_system(error):
                raise
            return None

    # --- waiting ---

    @property
    def timeout(self) -> float | None:
        """
        How long a call may take, in seconds above 0; None, as at first, is for ever.

        Past it a call raises `TimeoutError`, and can be repeated. It is for the whole call, also of those
        that take several system calls; signals do not lengthen it; duplicates of the descriptor never
        notice it. While data flows it costs no system call; in a conversation each wait costs one, a ``poll``.
        A nonblocking stream does not wait, whatever its timeout. 0 and below: `ValueError`.
        """
        sock = self._sock
        if isinstance(sock, CollectingSocket):
            sock = sock.sock
        if isinstance(sock, TimedSocket):
            return sock.timeout
        self.fileno()
        return None

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        seconds = checked_timeout(seconds)
        before = self.timeout
        bare: Any = self._bare()
        inner = bare if seconds is None else TimedSocket(bare, seconds)
        if isinstance(self._sock, CollectingSocket):
            self._sock.sock = inner
        else:
            self._sock = inner
        if before is None and seconds is not None:
            self._tell_files()

    def _tell_files(self) -> None:
        for file in self._files_over():
            file._reads_may_fail()

    def set_nonblocking(self, flag: bool) -> None:
        """
        Make the connection nonblocking, or blocking again, for whoever shares it.

        Nonblocking calls that would have to wait return None (`readinto`, `read`, `write`, `readv`,
        `writev`) or raise `BlockingIOError` (all others). System call: ``ioctl`` or ``fcntl``.
        """
        # Not by the number: that may be another file's as soon as another thread closes this one.
        self._bare().setblocking(not flag)
        # A timed one forgets that it had to wait for answers.
        self.timeout = self.timeout
        if flag:
            self._tell_files()

    def is_nonblocking(self) -> bool:
        """Whether the connection is nonblocking. System call: ``fcntl``."""
        return not os.get_blocking(self.fileno())

    def _wait(self, events: int, deadline: float | None) -> int:
        """Wait for *events* as `_waiting.wait` does; a nonblocking stream raises `BlockingIOError`."""
        if self.is_nonblocking():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return wait(self.fileno(), events, deadline)

    # --- one system call each ---

    def readinto(self, b: Buffer) -> int | MaybeNone:
        """
        Read as many bytes into *b* as there is room for and came already, and return how many those are.

        A short count does not mean the end of file; 0 does (or no room); None, that a nonblocking stream has
        nothing yet. `TimeoutError` past the `timeout`. System call: ``recv``.
        """
        try:
            return self._sock.recv_into(b)
        except BlockingIOError as error:
            if not from_system(error):
                raise
            return None

    def read(self, n: int | None = -1) -> bytes | MaybeNone:
        """
        Read and return up to *n* bytes; without a number, or with None or -1, as `readall`.

        Fewer than *n* do not mean the end of file; ``b""`` does; None, that a nonblocking stream has nothing
        yet. `TimeoutError` past the `timeout`. System call: ``recv``.
        """
        n = -1 if n is None else index(n)
        if n < 0:
            return self.readall()
        try:
            return self._sock.recv(min(n, _MOST_AT_ONCE))
        except BlockingIOError as error:
            if not from_system(error):
                raise
            return None

    def write(self, b: Buffer) -> int | MaybeNone:
        """
        Send the bytes of *b*, and return how many were sent, maybe fewer than given.

        With a `timeout`, or nonblocking, it sends no more than there is room for; and a signal may cut it
        short. `write_all` sends all; code that looks at no count (`shutil.copyfileobj`, `pickle.dump`) wants a
        file from `makefile`. None means that a nonblocking stream can take nothing yet. `BrokenPipeError`
        when nobody reads at the other end, never a signal; `TimeoutError` past the `timeout`, with nothing
        sent. System call: ``send`` (``MSG_NOSIGNAL``).
        """
        try:
            return self._sock.send(b, _NOSIGNAL)
        except BlockingIOError as error:
            if not from_system(error):
                raise
            return None

    def readv(self, buffers: Iterable[Buffer]) -> int | MaybeNone:
        """
        Read into *buffers*, one after the other (scatter), and return how many bytes came in all.

        As `readinto` otherwise. More buffers than the kernel takes at once (``IOV_MAX``, 1024) are a short
        count, not an error. System call: ``recvmsg``.
        """
        views: Any = buffers if buffers.__class__ is list else _sequence(buffers)
        if not views or side._is_empty(views[0]):
            # The kernel would wait for a first byte even with no room for it.
            views = _first_that_fit(views)
            if not views:
                self.fileno()
                return 0
        try:
            return self._sock.recvmsg_into(views)[0]
        except BlockingIOError as error:
            if not from_system(error):
                raise
            return None
        except OSError as error:
            if error.errno != errno.EMSGSIZE or len(views) <= _platform.IOV_MAX:
                raise
        return self.readv(_first_that_fit(views))

    def writev(self, buffers: Iterable[Buffer]) -> int | MaybeNone:
        """
        Send *buffers*, one after the other (gather), and return how many bytes were sent in all.

        As `write` otherwise. More buffers than the kernel takes at once (``IOV_MAX``, 1024) are a short
        count, not an error. System call: ``sendmsg`` (``MSG_NOSIGNAL``).
        """
        views: Any = buffers if buffers.__class__ is list else _sequence(buffers)
        try:
            return self._sock.sendmsg(views, (), _NOSIGNAL)
        except BlockingIOError as error:
            if not from_system(error):
                raise
            return None
        except OSError as error:
            if error.errno != errno.EMSGSIZE or len(views) <= _platform.IOV_MAX:
                raise
        return self.writev(_first_that_fit(views))

    # --- as many as it takes ---

    def readall(self) -> bytes | MaybeNone:
        """
        Read and return everything up to the end of file.

        A nonblocking stream returns what there is, or None if that is nothing. An exception on the way (a
        `TimeoutError`, say) carries what had come as its ``.partial``. System calls: ``recv``, repeated.
        """
        sock = for_one_call(self._sock)
        chunks: list[bytes] = []
        try:
            try:
                while True:
                    keep(sock, chunks, "recv", _CHUNK, 0)
                    if not chunks[-1]:
                        break
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                if not chunks:
                    return None
            data = b"".join(chunks)  # not further down: a handler may raise as late as this
        except BaseException as error:
            _annotate(error, partial=b"".join(chunks))
            raise
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """
        Read and return one line, with its newline, or up to *size* bytes of it; ``b""`` means end of file.

        Byte by byte, since there is no buffer for what comes after it: `makefile` is for lines. An exception
        on the way carries what had come as its ``.partial``. A nonblocking stream returns what there is of
        the line, and raises `BlockingIOError` if that is nothing. System calls: ``recv``, repeated.
        """
        sock = for_one_call(self._sock)
        limit = -1 if size is None else index(size)
        line: list[bytes] = []
        try:
            try:
                # Not "while" a condition holds: what a handler raises as such a loop goes round, Python 3.13 takes
                # past the "except".
                while True:
                    if len(line) == limit:
                        break
                    keep(sock, line, "recv", 1, 0)
                    if line[-1] in (b"\n", b""):
                        break
            except BlockingIOError as error:
                if not line or not from_system(error):
                    raise
            data = b"".join(line)
        except BaseException as error:
            # Of one that says only that there is nothing yet there is nothing to tell.
            if line or not isinstance(error, BlockingIOError):
                _annotate(error, partial=b"".join(line))
            raise
        return data

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """
        Read and return all lines up to the end of file; with a *hint*, no more once they have more bytes than that.

        An exception on the way carries all that had come as its ``.partial``. System calls: those of
        `readline`, which has the `timeout` for each line.
        """
        lines: list[bytes] = []
        size = 0
        try:
            while True:  # see readline()
                if hint is not None and 0 < hint < size:
                    break
                lines.extend(map(self.readline, (-1,)))
                if not lines[-1]:
                    del lines[-1]
                    break
                size += len(lines[-1])
        except BaseException as error:
            _annotate(error, partial=b"".join(lines) + getattr(error, "partial", b""))
            raise
        return lines

    def read_exact(self, n: int) -> bytes:
        """
        Read and return exactly *n* bytes. It takes no more memory than came, however many were announced.

        `EOFError` when the other end stops before. That, and any other exception on the way, carries
        how many bytes had come as ``.nbytes``, and the bytes as ``.partial``. System calls: ``recv``,
        repeated.
        """
        n = index(n)
        if n < 0:
            raise ValueError(f"cannot read {n} bytes")
        sock = for_one_call(self._sock)
        chunks: list[bytes] = []
        done = 0
        try:
            while True:  # see readline()
                if done == n:
                    break
                # Room for what may be there, and not for all of it: who said how much that is may be no friend.
                keep(sock, chunks, "recv", min(n - done, _AT_ONCE), 0)
                if not chunks[-1]:
                    raise EOFError(f"end of file after {done} of {n} bytes")
                done += len(chunks[-1])
            data = b"".join(chunks)
        except BaseException as error:
            came = b"".join(chunks)
            _annotate(error, nbytes=len(came), partial=came)
            raise
        return data

    def readinto_exact(self, b: Buffer) -> int:
        """
        Fill the whole buffer *b*, and return its length in bytes.

        `EOFError` when the other end stops before. That, and any other exception on the way, carries
        how many bytes had come as ``.nbytes``; they are in the buffer. System calls: ``recv``, repeated.
        """
        counts: list[int] = []
        try:
            receive_all(for_one_call(self._sock), b, counts)
            done = sum(counts)
        except BaseException as error:
            _annotate(error, nbytes=sum(counts))
            raise
        return done

    def write_all(self, b: Buffer) -> int:
        """
        Send all of *b*, and return its length in bytes.

        An exception on the way carries how many bytes were sent as ``.nbytes``. System calls: ``send``
        (``MSG_NOSIGNAL``), repeated.
        """
        counts: list[int] = []
        try:
            send_all(for_one_call(self._sock), b, counts)
            done = sum(counts)
        except BaseException as error:
            _annotate(error, nbytes=sum(counts))
            raise
        return done

    def writev_all(self, buffers: Iterable[Buffer]) -> int:
        """
        Send all of all the *buffers*, however many, and return their length in bytes.

        An exception on the way carries how many bytes were sent as ``.nbytes``. System calls: ``sendmsg``
        (``MSG_NOSIGNAL``), repeated.
        """
        sock = for_one_call(self._sock)
        opened = [memoryview(buffer).cast("B") for buffer in buffers]
        views = [view for view in opened if len(view)]
        counts: list[int] = []
        first = 0
        try:
            try:
                while True:  # see readline()
                    if first == len(views):
                        break
                    keep(sock, counts, "sendmsg", views[first : first + _platform.IOV_MAX], (), _NOSIGNAL)
                    count = counts[-1]
                    while True:
                        if first == len(views) or count < len(views[first]):
                            break
                        count -= len(views[first])
                        first += 1
                    if count:
                        views[first] = views[first][count:]
                        opened.append(views[first])
            finally:
                for view in opened:
                    view.release()
            done = sum(counts)
        except BaseException as error:
            _annotate(error, nbytes=sum(counts))
            raise
        return done

    def writelines(self, lines: Iterable[Buffer]) -> None:
        """
        Send all of each of the *lines*; nothing is put between them.

        An exception in sending carries how many bytes of all lines were sent as ``.nbytes``. System calls:
        those of `write_all`, which has the `timeout` for each line.
        """
        self.fileno()
        counts: list[int] = []
        for line in lines:
            try:
                send_all(for_one_call(self._sock), line, counts)
            except BaseException as error:
                _annotate(error, nbytes=sum(counts))
                raise

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """
        Send a file opened in binary mode, from *offset* to its end, or *count* bytes of it.

        Return how many bytes were sent, and leave the file's position at the end of what was sent. An
        exception on the way carries that number as ``.nbytes``. A nonblocking stream, a file opened as
        text, a count of 0 or less: `ValueError`. System call: ``sendfile``, on a duplicate that is closed
        again; or, for what is no regular file and for a stream with a timeout, ``read`` and ``send``.
        """
        if not hasattr(file, "read"):
            raise TypeError(f"sendfile takes an open file, not {type(file).__name__}")
        offset = index(offset)
        mode = getattr(file, "mode", "b")
        if isinstance(mode, str) and "b" not in mode:
            raise ValueError("the file must be opened in binary mode")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            raise TypeError(f"count must be a positive int or None, not {count!r}")
        if count is not None and count <= 0:
            raise ValueError(f"count must be a positive int or None, not {count!r}")
        if offset < 0:
            raise ValueError(f"offset must be 0 or above, not {offset!r}")
        if self.is_nonblocking():
            raise ValueError("sendfile needs a blocking stream")
        seekable = hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable())
        sent: list[int] = []
        try:
            try:
                if self.timeout is None and _is_plain_file(file):
                    # What was written to it may still be in its buffer.
                    file.flush()
                    self._send_from_kernel(file.fileno(), offset, count, sent)
                else:
                    # What has no position to go to is sent from where it is.
                    if seekable or offset:
                        file.seek(offset)
                    self._send_by_reading(file, count, sent)
            finally:
                total = sum(sent)
                if seekable and total:
                    file.seek(offset + total)
        except BaseException as error:
            _annotate(error, nbytes=sum(sent))
            raise
        return total

    def _send_from_kernel(self, source: int, offset: int, count: int | None, sent: list[int]) -> None:
        done = 0
        # It goes by the number, again after each signal: by one that no other thread can close.
        with self.dup() as own, _SigpipeBlocked():
            while count is None or done < count:
                wanted = _MOST_FROM_KERNEL if count is None else min(count - done, _MOST_FROM_KERNEL)
                sent.extend(map(os.sendfile, (own.fileno(),), (source,), (offset + done,), (wanted,)))
                if not sent[-1]:
                    return
                done += sent[-1]

    def _send_by_reading(self, file: IO[bytes], count: int | None, sent: list[int]) -> None:
        sock = for_one_call(self._sock)
        done = 0
        while count is None or done < count:
            chunk = file.read(_CHUNK if count is None else min(count - done, _CHUNK))
            if not chunk:
                return
            with memoryview(chunk) as view:
                gone = 0
                while gone < len(view):
                    with view[gone:] as rest:
                        keep(sock, sent, "send", rest, _NOSIGNAL)
                    gone += sent[-1]
            done += gone

    def shutdown(self, how: int) -> None:
        """
        End one or both directions, for whoever shares the connection; *how* is a `Shutdown`.

        ``WRITE``: the other end reads to the end of file. ``READ``: reads end here. ``BOTH`` ends also
        the calls that other threads are blocked in. System call: ``shutdown``.
        """
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise ValueError(f"how to shut down is a udstream.Shutdown, not {how!r}")
        self._bare().shutdown(int(how))

    # --- files ---

    @overload
    def makefile(
        self,
        mode: TextMode = "r",
        buffering: int = -1,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> files.TextFile: ...
    @overload
    def makefile(  # type: ignore[overload-overlap]
        self,
        mode: BinaryMode,
        buffering: Literal[0],
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Self: ...
    @overload
    def makefile(
        self,
        mode: BinaryMode,
        buffering: int = -1,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> files.BinaryFile: ...
    @overload
    def makefile(
        self,
        mode: str,
        buffering: int = -1,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any: ...
    def makefile(
        self,
        mode: str = "r",
        buffering: int = -1,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """
        The buffered or text file object over this stream. Closing it closes the stream.

        *mode*: ``r``, ``w`` or ``rw``, text unless ``b`` is in it. *buffering*: 0 (binary only) is the
        stream itself, 1 line buffering in text, above that the buffer's size in bytes. A binary file
        ignores *encoding*, *errors* and *newline*. `ValueError` for a mode that is none, and for text over
        a nonblocking stream.
        """
        parsed = files.Mode.of(mode)
        encoding = files.named_encoding(parsed, encoding)
        return files.make(self, parsed, buffering, encoding, errors, newline)

    # --- ancillary data ---

    def send_ancillary(self, buffers: Buffers, ancillary: Iterable[Any] = ()) -> int:
        """
        Send bytes with descriptors, credentials or other control messages; return how many bytes went.

        As `ancillary.send_ancillary`, on this stream, and with its timeout. System call: ``sendmsg``.
        """
        return side._send(self._sock, buffers, ancillary)

    def recv_ancillary(self, buffers: Buffers, *, max_fds: int = side.MAX_FDS) -> Received:
        """
        Receive bytes into *buffers*, and what came with them: a `Received`, whose ``nbytes`` of 0 is end of file.

        As `ancillary.recv_ancillary`, on this stream, and with its timeout. System call: ``recvmsg``.
        """
        return side._receive(self._sock, buffers, max_fds)

    def send_fds(self, buffers: Buffers, fds: Iterable[Fd]) -> int:
        """
        Send all of the bytes, the descriptors with the first of them; return how many bytes went.

        As `ancillary.send_fds`, on this stream, and with its timeout for the whole call. System call:
        ``sendmsg``, as often as it takes.
        """
        return side._send_fds(self._sock, buffers, fds)

    def recv_fds(self, bufsize: int, max_fds: int = side.MAX_FDS) -> tuple[bytes, FileDescriptors]:
        """
        Receive up to *bufsize* bytes, and the descriptors that came with them; empty bytes mean end of file.

        As `ancillary.recv_fds`, on this stream, and with its timeout. System call: ``recvmsg``.
        """
        return side._recv_fds(self._sock, bufsize, max_fds)

    def peer_credentials(self) -> Credentials:
        """`ancillary.peer_credentials` of this stream: who is at the other end, fixed at connect time."""
        return side._peer_of(self._bare())

    @property
    def collect_ancillary(self) -> bool:
        """
        Whether every read, also through a file over this stream, keeps the ancillary data it met.

        False at first: then a plain read costs nothing extra, and the kernel closes descriptors that
        nobody asked for. Once True, they go to `collected`.
        """
        self.fileno()
        return isinstance(self._sock, CollectingSocket)

    @collect_ancillary.setter
    def collect_ancillary(self, flag: bool) -> None:
        if bool(flag) == self.collect_ancillary:
            return
        self._sock = CollectingSocket(self._sock, self.collected, [0]) if flag else self._sock.sock

    @property
    def collected(self) -> deque[tuple[int, Received]]:
        """
        What reads have kept since `collect_ancillary` was switched on: a deque of ``(offset, received)``.

        *offset* is that of the first byte of the read it came with, counted from the switching on.
        Whoever takes an item out owns its descriptors. It is there once the stream is closed, too.
        """
        if self._collected is None:
            from collections import deque

            self._collected = deque()
        return self._collected


@overload
def open(
    path: SocketPath,
    mode: TextMode = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    timeout: float | None = None,
) -> files.TextFile: ...
@overload
def open(  # type: ignore[overload-overlap]
    path: SocketPath,
    mode: BinaryMode,
    buffering: Literal[0],
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    *,
    timeout: float | None = None,
) -> UdStream: ...
@overload
def open(
    path: SocketPath,
    mode: BinaryMode,
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    *,
    timeout: float | None = None,
) -> files.BinaryFile: ...
@overload
def open(
    path: SocketPath,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    timeout: float | None = None,
) -> Any: ...
def open(
    path: SocketPath,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    timeout: float | None = None,
) -> Any:
    """
    Connect to the Unix socket at *path*, and return a file object over the connection.

    *mode* is ``r``, ``w`` or ``rw`` (also ``r+``, ``w+``), text unless ``b`` is in it. *buffering* 0 (binary
    only) gives the `UdStream` itself; above 1 it is the buffer's size in bytes; 1 is line buffering in text.
    *timeout*, in seconds, is for connecting and for each later call. A binary mode with an encoding, errors
    or newline is a `ValueError`, as in the builtin; errors in connecting are those of `UdStream.connect`.
    """
    parsed = files.Mode.of(mode)
    parsed.check(buffering, encoding, errors, newline)
    encoding = files.named_encoding(parsed, encoding)
    stream = UdStream.connect(path, timeout=timeout)
    try:
        return files.make(stream, parsed, buffering, encoding, errors, newline, fresh=True)
    except BaseException:
        stream.close()
        raise


def _connect(sock: CSocket, sockaddr: bytes, seconds: float | None) -> None:
    """Connect a new socket, waiting out a full backlog: on a blocking one the kernel queues the caller."""
    deadline = None if seconds is None else monotonic() + seconds
    while True:
        if deadline is not None:
            left = deadline - monotonic()
            if left <= 0:
                raise timed_out() from None
            _set_send_timeout(sock, left)
        try:
            sock.connect(sockaddr)
        except (InterruptedError, BlockingIOError) as error:
            if not from_system(error):
                raise
            if error.errno == errno.EAGAIN:
                raise timed_out() from None
        else:
            break
    if deadline is not None:
        _set_send_timeout(sock, 0)


def _set_send_timeout(sock: CSocket, seconds: float) -> None:
    # The kernel takes 0 for ever; and a connect is done with long before the years that it cannot hold.
    seconds = min(seconds, 1 << 30)
    whole = int(seconds)
    micros = int(seconds % 1 * 1_000_000)
    if seconds:
        micros = micros if whole or micros else 1
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, struct.pack("@ll", whole, micros))


def for_new_process(owner: Any, **facts: object) -> Any:
    """What pickle makes of a stream or listener for a process that multiprocessing starts; else `TypeError`."""
    # Nobody else sees to it that descriptors get there.
    context = sys.modules.get("multiprocessing.context")
    if context is None or context.get_spawning_popen() is None:
        raise TypeError(f"cannot pickle {type(owner).__name__!r} object: pass its descriptor with send_fds")
    from multiprocessing.reduction import DupFd

    return _arrived, (type(owner), DupFd(owner.fileno()), facts)


def _arrived(cls: Any, duplicate: Any, facts: dict[str, object]) -> Any:
    """In a process that multiprocessing has started: one on what it was given."""
    fd = duplicate.detach()
    try:
        owner = cls.from_fd(fd)
    except BaseException:
        os.close(fd)
        raise
    for name, fact in facts.items():
        setattr(owner, name, fact)
    return owner


def _annotate(error: BaseException, **facts: object) -> None:
    """Let *error* say how far a call had come."""
    for name, fact in facts.items():
        setattr(error, name, fact)


def _sequence(buffers: Iterable[Buffer]) -> Sequence[Buffer]:
    return buffers if isinstance(buffers, (list, tuple)) else list(buffers)


def _first_that_fit(buffers: Sequence[Buffer]) -> Sequence[Buffer]:
    # Empty ones are left out: a thousand of them would look like the end of the file.
    return [buffer for buffer in buffers if memoryview(buffer).nbytes][: _platform.IOV_MAX]


def _is_plain_file(file: IO[bytes]) -> bool:
    """Whether the kernel can send it: a regular file that says how long it is, and whose bytes are its own."""
    # A GzipFile, say, has the number of the packed file's descriptor for its own.
    if not isinstance(getattr(file, "raw", file), io.FileIO):
        return False
    try:
        status = os.fstat(file.fileno())
    except io.UnsupportedOperation:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


class _SigpipeBlocked:
    """``sendfile`` has no MSG_NOSIGNAL: keep this thread from the signal, and take it if it came."""

    __slots__ = ("_was_blocked", "_was_pending")

    def __enter__(self) -> None:
        from signal import SIG_BLOCK, SIGPIPE, pthread_sigmask, sigpending

        self._was_pending = SIGPIPE in sigpending()
        self._was_blocked = SIGPIPE in pthread_sigmask(SIG_BLOCK, [SIGPIPE])

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        from signal import SIG_UNBLOCK, SIGPIPE, pthread_sigmask, sigpending, sigwait

        if not self._was_pending and SIGPIPE in sigpending():
            sigwait([SIGPIPE])
        if not self._was_blocked:
            pthread_sigmask(SIG_UNBLOCK, [SIGPIPE])
