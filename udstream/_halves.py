"""
The two halves that a buffered or text file stands on, one for each direction of the connection.

The buffering, the decoding and the encoding are CPython's, in C: `io.BufferedReader`, `io.BufferedWriter` and
`io.TextIOWrapper`. They were made for disks, though. Over a connection they lose what they had gathered when
a read times out, and text that was read ahead when something is written; and none of them knows that a
request must be on its way before anybody can wait for its reply. So these laws hold under them:

* A `Source` is what the readers read from. Before it asks the socket for more it has the sink send what was
  written; and it gives the readers nothing that a timeout could make them lose.
* A `Sink` is what the writers write to. A write that raises has taken nothing; a write that returns has
  taken all.
* Neither half ever waits for the other's thread.

The C layers ask ``closed`` of what they stand on, first thing in every call. Usually that is False or True. When
a half has something to do before the next call, it is an object that does it as it is asked for its truth:
`_BeforeRead` or `_BeforeWrite`. So the common call costs nothing, and no call gets past.
"""

from __future__ import annotations

import errno
import os
import sys
from _socket import MSG_DONTWAIT
from _thread import RLock, get_ident
from itertools import repeat, starmap
from time import monotonic

from ._csocket import CSocket
from ._platform import MSG_NOSIGNAL, SENT_WHOLE, sent_whole
from ._timing import Around, for_one_call, keep
from ._waiting import POLLIN, POLLOUT, timed_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from typing import Any, Protocol

    from typing_extensions import Buffer

    class Raw(Protocol):
        """What the halves need of the stream that they share."""

        _sock: Any

        @property
        def closed(self) -> bool: ...
        @property
        def timeout(self) -> float | None: ...

        def write_all(self, data: Buffer) -> int: ...
        def _bare(self) -> CSocket: ...
        def _wait(self, events: int, deadline: float | None) -> int: ...


_FLAGS = (MSG_NOSIGNAL,)
_NOW = MSG_NOSIGNAL | MSG_DONTWAIT
_FULL_IS_NOT_BUFFERED = sys.version_info >= (3, 13)
# How much a text file reads at once, and how long a line grows that is held back for want of its end.
_TEXT_CHUNK = 1 << 15
_LONGEST_HELD = 1 << 16
# How far from the end of what came the last newline is looked for, before all of it is taken into hand.
_NEAR_THE_END = 512


_WITHOUT_WAITING = repeat((False,))
# What the C layers ask of the halves is answered in C.
_yes: Any = True.__bool__
_no: Any = False.__bool__


def tie(source: Source | None, sink: Sink | None) -> None:
    """Let the two halves of one file know of each other, until they are closed."""
    if source is not None and sink is not None and source.sink is None:
        source.sink = sink
        sink.tie(source)


class Sink:
    """The sending half of a file: what was written and is not yet sent."""

    __slots__ = (
        "_attempts",
        "_before_read",
        "_chunks",
        "_limit",
        "_lock",
        "_room",
        "_sending",
        "_skip",
        "_whole",
        "_writer",
        "closed",
        "kept",
        "raw",
        "source",
        "unsent",
    )
    closed: bool | _BeforeWrite
    raw: Raw
    unsent: bool
    # What is to live as long as this does.
    kept: object
    # Whether what is written is taken even if an exception says that it cannot be sent.
    _takes_all = False

    def __init__(self, raw: Raw, limit: int) -> None:
        self.raw = raw
        self.closed = False
        # The source of the same file, if it has one; it lets us go first.
        self.source: Source | None = None
        # What that one has for its `closed` while there is something to send first.
        self._before_read: Any = None
        # Whether there may be something that a reader should send first.
        self.unsent = False
        # Always the same list, so that a chunk that another thread appends cannot get lost.
        self._chunks: list[bytes] = []
        self._limit = limit
        # The bytes that still fit; below 0 while there are none, so that the first is noticed.
        self._room = -1
        # How much of what the layer above will hand over again was sent before an exception.
        self._skip = 0
        self._lock = RLock()
        # Whether a thread that has the lock is sending: a signal handler in it has the lock as well.
        self._sending = False
        # To take the lock if it is free: with the next item, which says so. No signal handler can raise between that
        # and a "try", as it could after a call; then nobody else could ever take the lock again.
        self._attempts = starmap(self._lock.acquire, _WITHOUT_WAITING)
        # How many bytes the kernel takes as a whole or not at all, as far as is known.
        self._whole = SENT_WHOLE
        # The text layer, if there is one and a reader has to empty it.
        self._writer: Any = None

    # --- what the C layers ask ---

    # Answered in C: a method of ours would take longer to enter than to answer, and a file is made of many of these.
    readable = _no
    writable = _yes
    seekable = _no
    # Asked by the text layer once it has written.
    flush = _no
    # Asked by the layers above as they are collected, maybe before the file itself; that closes.
    close = _no

    def write(self, data: Any) -> int:
        """Send *data*; what cannot be sent now is kept, and must be gone before more is taken."""
        with self._lock:
            if self._chunks:
                self.drain()
            if self._skip:
                if self._skip < 0:
                    raise OSError(
                        errno.EIO,
                        "cannot write on: as exactly a buffer was sent, a signal handler raised, and it is not known "
                        "whether this is the rest of it",
                    )
                skip, self._skip = self._skip, 0
                return skip + self._send_or_keep(data[skip:])
            return self._send_or_keep(data)

    # --- what files ask ---

    def put(self, data: Any) -> int:
        """Take *data*, bytes-like, into the buffer; send when that is full."""
        if data.__class__ is not bytes:
            data = _bytes_of(data)
        count = len(data)
        room = self._room - count
        if room > 0 and count:
            self._room = room
            self._chunks.append(data)
            self.unsent = True
            return count
        source = self.source
        if (
            self._chunks
            or self.raw.closed
            or count >= self._limit
            or not count
            or (source is not None and source.excuse is not None)
        ):
            return self._put_with_care(data)
        self._chunks.append(data)
        self._room = self._limit - count
        self.unsent = True
        if source is not None:
            source.closed = self.raw.closed or self._before_read
        return count

    def drain(self) -> None:
        """Send all that was taken; what an exception on the way leaves is kept, to go on with."""
        chunks = self._chunks
        with self._lock:
            if self._sending:
                # Somebody in this very thread: what called us is a signal's handler, or a destructor.
                raise RuntimeError("reentrant call: a write or flush of this file is at work further out")
            try:
                self._sending = True
                # Before the last look at the chunks, so that what is put meanwhile is noted after it.
                self.all_sent()
                while True:  # see UdStream.readline()
                    if not chunks or not self._send_now():
                        break
                    data = chunks[0]
                    done: list[int] = []
                    try:
                        done.extend(map(self.raw.write_all, (data,)))
                    except BaseException as error:
                        chunks[0] = data[sum(done) or getattr(error, "nbytes", 0) :]
                        if isinstance(error, BlockingIOError):
                            # As io has it for its buffers: the 0 is how much was taken of what is being written.
                            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), 0) from None
                        raise
                    del chunks[0]
            except BaseException:
                self._something_to_send()
                raise
            finally:
                self._sending = False
            self._raise_excuse()

    def send_for_reader(self) -> bool:
        """
        Send what can be sent without waiting, in a reader's thread; return whether something is left.

        If somebody is sending at the moment, there is nothing to do: they send all there is.
        """
        # One step, not a loop.
        for free in self._attempts:
            if free:
                further_out = self._sending
                try:
                    if further_out:
                        break
                    self._sending = True
                    # Before the last look at the chunks, so that what is put meanwhile is noted after it.
                    self._room = -1
                    self.unsent = False
                    if self._writer is not None:
                        self._empty_text_layer()
                    if self._send_now():
                        self.unsent = True
                        return True
                except OSError:
                    # The peer is gone, but what it said can still be read. The next flush, or close, meets this again.
                    self.unsent = True
                except BaseException:
                    self.unsent = True
                    raise
                finally:
                    self._sending = further_out
                    self._lock.release()
            break
        return False

    def tie(self, source: Source) -> None:
        """Look after what *source* should send before it reads."""
        self._before_read = _BeforeRead(self)
        self.source = source

    def heed(self) -> None:
        """See to it that the next call, of whatever kind, looks for what a reader was spared."""
        self.unsent = True
        self._room = -1

    def untie(self) -> None:
        """Forget the reading half: nobody can use it any more."""
        self.source = self._before_read = self._writer = None

    def shut(self) -> None:
        """Take nothing more; what is left is dropped."""
        self.closed = True
        self.unsent = False
        self.source = self._before_read = self._writer = None
        self._room = -1

    # --- inside ---

    def _empty_text_layer(self) -> None:
        """Have what the text layer holds written here; only a text sink is under one."""
        raise NotImplementedError

    def _put_with_care(self, data: bytes) -> int:
        if self.raw.closed:
            raise ValueError("I/O operation on closed file")
        self._raise_excuse()
        count = len(data)
        if not count:
            return 0
        if self._chunks and self._room < count and not self._sending:
            self.drain()
        if not self._chunks:
            self._room = self._limit
        self._chunks.append(data)
        self._something_to_send()
        self._room -= count
        if self._room <= 0 and not self._sending:
            self._try_to_drain()
        return count

    def _raise_excuse(self) -> None:
        """Raise what a reader was spared, if it had no occasion since."""
        source = self.source
        if source is not None and source.excuse is not None:
            raise source.spared()

    def _something_to_send(self) -> None:
        """Note it, once it is there."""
        self.unsent = True
        source = self.source
        if source is not None:
            source.closed = self.raw.closed or self._before_read

    def all_sent(self) -> None:
        """Note that nothing is left, so that the next write is noticed."""
        self._room = -1
        self.unsent = False
        source = self.source
        if source is not None:
            source.closed = self.raw.closed

    def _gather(self) -> None:
        """Make one chunk of all that are there."""
        chunks = self._chunks
        many = len(chunks)
        chunks[:many] = [b"".join(chunks[:many])]

    def _send_now(self) -> bool:
        """Send what can be sent without waiting; return whether something is left."""
        chunks = self._chunks
        sock = self.raw._sock
        if sock.__class__ is not CSocket:
            sock = self.raw._bare()
        try:
            while chunks:
                try:
                    (data,) = chunks
                except ValueError:
                    self._gather()
                    continue
                size = len(data)
                if size > self._whole:
                    if not self._send_some(sock):
                        return True
                    continue
                if not size:
                    del chunks[0]
                    continue  # no reason to hear that the peer is gone
                # It goes as a whole or not at all, and without waiting. So it is taken out first: if a signal handler
                # raises, then as the call returns, when it must not be sent again.
                del chunks[0]
                try:
                    sent = sock.send(data, _NOW)
                except OSError as error:
                    if error.__traceback__.tb_next is None:  # type: ignore[union-attr]
                        # Raised by the call itself, and by no handler.
                        chunks.insert(0, data)
                    raise
                if sent != size:
                    chunks.insert(0, data[sent:])
                    return True
        except BlockingIOError:
            return True
        return False

    def _send_some(self, sock: CSocket) -> bool:
        """Send as much of the first chunk as can be sent without waiting; return whether that was all."""
        chunks = self._chunks
        data = chunks[0]
        if self._whole == SENT_WHOLE:
            self._whole = sent_whole(sock)
        sent: list[int] = []
        try:
            keep(sock, sent, "send", data, _NOW)
        finally:
            if sum(sent) == len(data):
                del chunks[0]
            else:
                chunks[0] = data[sum(sent) :]
        return sum(sent) == len(data)

    def _try_to_drain(self) -> None:
        try:
            self.drain()
        except ConnectionError:
            raise  # nothing that is kept will ever be sent
        except OSError:
            pass  # taken is taken: the next write, or flush, says so

    def _send_or_keep(self, data: Any) -> int:
        count = len(data)
        if not count:
            return 0  # no reason to hear that the peer is gone
        # Filled in C, so that no signal handler can raise between the sending and the counting.
        sent: list[int] = []
        try:
            self._sending = True
            sent.extend(map(self.raw._sock.send, (data,), _FLAGS))
            if sent[0] == count:
                return count
        except (TimeoutError, BlockingIOError):
            pass
        except BaseException as error:
            # The text layer has taken it already; it may be sent yet, unless the connection is gone.
            if not self._takes_all or not isinstance(error, OSError) or isinstance(error, ConnectionError):
                self._keep_in_spite_of(error, data, sum(sent))
                raise
        finally:
            self._sending = False
        # Before what a signal's handler has written meanwhile.
        self._chunks.insert(0, bytes(data[sum(sent) :]))
        try:
            self._try_to_drain()
        except BaseException as error:
            self._keep_in_spite_of(error, data, count)
            raise
        return count

    def _keep_in_spite_of(self, error: BaseException, data: Any, done: int) -> None:
        """See to the rest of *data*, of which something was sent or kept when the error came."""
        if not self._takes_all and len(data) <= self._limit:
            # io.BufferedWriter has it in its buffer, and comes with it again. But a write of exactly the buffer's
            # size some versions hand down at once, and nothing tells that from a full buffer. Only after the end of
            # the connection it does not matter which it was.
            unclear = done and len(data) == self._limit and _FULL_IS_NOT_BUFFERED
            self._skip = -1 if unclear and not isinstance(error, ConnectionError) else done
        elif done < len(data) and (done or self._takes_all):
            self._chunks.append(bytes(data[done:]))


class TextSink(Sink):
    """
    The sink under an `io.TextIOWrapper`, which forgets what it hands to ``write``, even if that raises.

    So ``write`` takes everything, and `_BeforeWrite` stops the next call as long as something is left.
    """

    __slots__ = ("_before_write", "_emptied_by", "_sure", "write")
    _takes_all = True
    closed: bool | _BeforeWrite
    unsent: bool
    write: Any

    def __init__(self, raw: Raw, limit: int) -> None:
        Sink.__init__(self, raw, limit)
        # The thread in which a reader is emptying the text layer.
        self._emptied_by = 0
        self._sure = False
        self.write = self._take
        self._before_write: Any = _BeforeWrite(self)

    def tie(self, source: Source) -> None:
        Sink.tie(self, source)
        self.watch()

    def empties(self, writer: io.TextIOWrapper) -> None:
        """Say what the text layer is, which a reader has to empty."""
        self._writer = writer
        # With these nothing but C code runs between its look at `closed` and the taking of the text.
        self._sure = writer.errors == "strict" and writer.encoding in ("utf-8", "UTF-8")

    def _take(self, data: bytes) -> int:
        """What ``write`` is, but while the text layer is emptied: send, or keep."""
        with self._lock:
            if self._sending:
                self._chunks.append(data)
            elif self._chunks:
                self._chunks.append(data)
                self._try_to_drain()
            else:
                self._send_or_keep(data)
            if self._chunks:
                self.watch()
        return len(data)

    def watch(self) -> None:
        """See to it that the next call of the text layer comes by `_BeforeWrite`."""
        self.closed = self.raw.closed or self._before_write

    def heed(self) -> None:
        Sink.heed(self)
        self.watch()

    def send_text(self) -> None:
        """Send all that was written, or raise."""
        if self._writer is None:
            self.drain()
            return
        with self._lock:
            try:
                self._empty_text_layer()
                self.drain()
            except BaseException:
                self.unsent = True
                raise

    def _empty_text_layer(self) -> None:
        writer = self._writer
        if writer is None:
            self.unsent = False
            return
        # From here on each write announces itself before its text is taken. One that did so before, and whose text
        # is not there yet, there is only if other Python code runs in between.
        self.unsent = not self._sure
        self.watch()
        self._emptied_by = get_ident()
        # In C, since a signal handler may raise as a method of ours begins: the text would be lost.
        self.write = self._chunks.append
        try:
            writer.flush()
        finally:
            self.write = self._take
            self._emptied_by = 0

    def shut(self) -> None:
        Sink.shut(self)
        self._before_write = None
        self.write = _closed

    def all_sent(self) -> None:
        """Only who empties the text layer knows that."""


class _BeforeWrite:
    """What a text sink has for ``closed`` while it wants to know of the next write before it is taken."""

    __slots__ = ("_sink",)
    _sink: TextSink

    def __init__(self, sink: TextSink) -> None:
        self._sink = sink

    def __bool__(self) -> bool:
        sink = self._sink
        if sink._emptied_by and sink._emptied_by == get_ident():
            return False
        if sink._chunks:
            sink.drain()
        source = sink.source
        raw = sink.raw
        if source is not None and source.excuse is not None:
            raise source.spared()
        # From here until the text is taken there is no call and no jump back, where another thread, or a signal
        # handler, could come between.
        if source is not None:
            source.closed = raw.closed or sink._before_read
        sink.unsent = True
        sink.closed = closed = raw.closed
        return closed


class _BeforeRead:
    """What a source has for ``closed`` while its sink has something to send before the next read."""

    __slots__ = ("_sink",)
    _sink: Sink

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __bool__(self) -> bool:
        sink = self._sink
        source = sink.source
        if source is not None:
            source.closed = sink.raw.closed
            try:
                # It sends what it can without waiting; lines that are at hand must not wait for the rest.
                sink.send_for_reader()
            except BaseException as error:  # noqa: BLE001
                # A signal handler's. For io.BufferedReader anything that is raised here means that it is closed.
                source.excuse = error
                sink.heed()
        return sink.raw.closed


class Source:
    """The receiving half of a file: hands on what arrives, after the sink had its turn."""

    __slots__ = (
        "_end",
        "_refusal",
        "_universal",
        "careful",
        "closed",
        "dry",
        "excuse",
        "gentle",
        "held",
        "midline",
        "one_call",
        "raw",
        "sink",
    )
    careful: bool
    closed: bool | _BeforeRead
    dry: bool
    gentle: bool
    held: bytes
    midline: bool
    raw: Raw

    def __init__(self, raw: Raw, careful: bool) -> None:
        self.raw = raw
        self.closed = False
        # The sink of the same file, if it has one.
        self.sink: Sink | None = None
        # Whether a binary file's readers are such as can do with a read that fails.
        self.careful = careful
        # What was received and not yet handed on.
        self.held = b""
        # True while a reader is at work that keeps what it gets; then no line is held back for it.
        self.gentle = False
        # True while a reader only wants to know what it has already got.
        self.dry = False
        # The error that a reader was spared, to be raised when it can.
        self.excuse: BaseException | None = None
        # What ends a line, if that can be told before decoding; and whether a carriage return does, too.
        self._end: bytes | None = b"\n"
        self._universal = False
        # For a call that may read several times: what has the deadline for all of them.
        self.one_call: Any = None
        # Whether a reader has got a part of a line, which it would lose in a timeout.
        self.midline = False
        self._refusal: str | None = None

    def tell_lines(self, newline: str | None, encoding: str) -> None:
        """Say what ends a line in what is received, if its bytes show that before they are decoded."""
        self._universal = not newline
        if not newline and encoding in ("utf-8", "UTF-8"):
            return
        # Two, because the first may come with a byte order mark.
        end = (newline or "\n") * 2
        # In UTF-16, say, they do not: nothing is held back there, and a timeout may be final.
        in_bytes = (newline or "\n").encode()
        self._end = in_bytes if end.encode(encoding).endswith(in_bytes * 2) else None

    def shut(self) -> None:
        """Hand on nothing more."""
        self.closed = True
        self.sink = None

    # --- what the C layers ask ---

    readable = _yes
    writable = _no
    seekable = _no
    # Nothing to do: reading sends on its own, and the file closes.
    flush = _no
    close = _no

    def readinto(self, buffer: Any) -> int | None:
        """As a raw file's, for `io.BufferedReader`."""
        if self.careful or self.held or self._refusal is not None:
            return self._readinto_with_care(buffer)
        sock = self.raw._sock
        try:
            sink = self.sink
            if sink is not None and sink.unsent:
                self._let_sink_send(sock)
            count: int = sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except TimeoutError:
            self.refuse("the timeout was set after the file was made, and what a timed-out read had is lost")
            raise
        except OSError:
            self.refuse("a read failed, and what it had is lost")
            raise
        return count

    def read1(self, size: int = -1) -> bytes:
        """As a buffered file's, for `io.TextIOWrapper`, which takes however much it is given."""
        sock = self.raw._sock
        timed = sock.__class__ is not CSocket and self.raw.timeout is not None
        if timed or self.held or self._refusal is not None:
            return self._read1_with_care()
        try:
            sink = self.sink
            if sink is not None and sink.unsent:
                self._let_sink_send(sock)
            data: bytes = sock.recv(_TEXT_CHUNK)
        except OSError:
            self._refuse_if_midline()
            raise
        if data:
            self.midline = self._end is None or not data.endswith(self._end)
        return data

    def read(self, size: int = -1) -> bytes:
        """Everything up to the end of file, for `io.TextIOWrapper.read`."""
        return self.to_the_end()

    def readall(self) -> bytes | None:
        """As a raw file's, for `io.BufferedReader.read`, which drops what it had if this fails."""
        try:
            return self.to_the_end()
        except BlockingIOError:
            data, self.held = self.held, b""
            self.midline = False
            return data or None
        except BaseException:
            if not self.careful:
                self.refuse("read() failed, and what had been read ahead is lost")
            raise

    def to_the_end(self) -> bytes:
        """Everything up to the end of file; an exception on the way leaves what had come in `held`."""
        self._check_refusal()
        chunks = [self.held]
        sock = for_one_call(self.raw._sock)
        try:
            while chunk := self._receive(sock, 1 << 16):
                chunks.append(chunk)
        except BaseException:
            self.held = b"".join(chunks)
            raise
        self.held = b""
        self.midline = False
        return b"".join(chunks)

    # --- what the careful readers ask ---

    def unread(self, data: bytes) -> None:
        """Take back what a reader could not make use of."""
        self.held = data + self.held

    def spared(self) -> BaseException:
        """
        The error that a reader was spared, to be raised.

        It is kept here no longer, nor in a variable on the way: its traceback has hold of the file, so the file
        would have hold of itself.
        """
        error, self.excuse = self.excuse, None
        assert error is not None
        return error

    def refuse(self, why: str) -> None:
        """Let no more be read: something was lost, and going on would hide it."""
        self._refusal = why

    # --- inside ---

    def _check_refusal(self) -> None:
        if self._refusal is not None:
            raise OSError(errno.EIO, f"cannot read on: {self._refusal}")

    def _refuse_if_midline(self) -> None:
        if self.midline:
            self.refuse("a read failed in the middle of a line, and the beginning of that line is lost")

    def _let_sink_send(self, sock: Any) -> None:
        """Have the sink send; while it cannot send all, wait until it can, or there is something to read."""
        if self.excuse is not None:
            raise self.spared()
        sink = self.sink
        deadline: float | None = None
        while sink is not None and sink.send_for_reader():
            if deadline is None:
                deadline = sock.deadline() if isinstance(sock, Around) else None
            elif monotonic() >= deadline:
                raise timed_out() from None
            try:
                events = self.raw._wait(POLLIN | POLLOUT, deadline)
            except BlockingIOError:
                return
            if events & ~POLLOUT:
                return

    def _receive(self, sock: Any, size: int) -> bytes:
        sink = self.sink
        if sink is not None and sink.unsent:
            self._let_sink_send(sock)
        data: bytes = sock.recv(size)
        return data

    def _handed_on(self, data: bytes) -> bytes:
        if data:
            self.midline = self._end is None or not data.endswith(self._end)
        return data

    def _readinto_with_care(self, buffer: Any) -> int | None:
        if not (self.gentle or self.dry or self.held or self.one_call or self._refusal is not None):
            # Straight into the buffer; only what comes after the last newline is held back.
            sock = self.raw._sock
            sink = self.sink
            if sink is not None and sink.unsent:
                self._let_sink_send(sock)
            try:
                count: int = sock.recv_into(buffer)
            except BaseException:
                self._refuse_if_midline()
                raise
            if not count:
                return 0
            start = max(0, count - _NEAR_THE_END)
            near = bytes(buffer[start:count])
            if cut := near.rfind(b"\n") + 1:
                self.held = near[cut:]
                self.midline = False
                return start + cut
            self.held = bytes(buffer[:count])
        data = self._next(len(buffer))
        if data is None:
            return None
        buffer[: len(data)] = data
        return len(data)

    def _read1_with_care(self) -> bytes:
        data = self._next(_LONGEST_HELD)
        if data is None:
            raise self.spared()
        return data

    def _next(self, room: int) -> bytes | None:
        """The next bytes for a reader, at most *room*; None when a gentle reader is to make do without."""
        self._check_refusal()
        if self.dry:
            return None
        sock = self.one_call or for_one_call(self.raw._sock)
        if self.gentle:
            if not self.held:
                try:
                    self.held = self._receive(sock, room)
                except BaseException as error:  # noqa: BLE001
                    # Any, a signal handler's too, or the reader loses what it has got; it raises this itself.
                    self.excuse = error
                    return None
            cut = self._whole_lines(room) or room
        else:
            cut = self._wait_for_lines(sock, room)
        data, self.held = self.held[:cut], self.held[cut:]
        return self._handed_on(data)

    def _wait_for_lines(self, sock: Any, room: int) -> int:
        """Receive until a line is whole, has grown too long, or the file ends; how much to hand on then."""
        while not (cut := self._whole_lines(room)):
            try:
                data = self._receive(sock, room)
            except BaseException:
                self._refuse_if_midline()
                raise
            if not data:
                return room
            self.held += data
        return cut

    def _whole_lines(self, room: int) -> int:
        """How much of what is held are whole lines, up to *room*; 0 if the first one is not whole."""
        held = self.held
        if self._end is None:
            return min(len(held), room)
        at = held.rfind(self._end, 0, room)
        cut = at + len(self._end) if at >= 0 else 0
        # A lone carriage return may end a line as well, and the decoder waits for what follows it: then
        # nothing can be held back.
        if self._universal and held.find(b"\r", cut, room) >= 0:
            return min(len(held), room)
        if not cut and (len(held) >= _LONGEST_HELD or held.find(self._end) >= 0):
            return room
        return cut


def _closed(*_: object) -> Any:
    raise ValueError("I/O operation on closed file")


def _bytes_of(data: Buffer) -> bytes:
    with memoryview(data) as view:
        return view.tobytes()
