"""
The sending half of a buffered or text file: what its writers, the layers of `io`, write to.

The buffering and the encoding are CPython's, in C: `io.BufferedWriter` and `io.TextIOWrapper`. They were made for
disks, though: text that they took they forget as soon as they have handed it down, and none of them knows that a
request must be on its way before anybody can wait for its reply. So these laws hold under them:

* A write that raises has taken nothing; a write that returns has taken all.
* Before a reader of the same file waits for more, what was written is sent.
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

from ._csocket import CSocket, from_system
from ._platform import MSG_NOSIGNAL, SENT_WHOLE, sent_whole
from ._timing import for_one_call, keep, send_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from typing import Any, Protocol

    from typing_extensions import Buffer

    from ._source import Source

    class Raw(Protocol):
        """What a sink needs of its stream."""

        _sock: Any

        @property
        def closed(self) -> bool: ...

        def _bare(self) -> CSocket: ...


_NOW = MSG_NOSIGNAL | MSG_DONTWAIT
_WITHOUT_WAITING = repeat((False,))
_FULL_IS_NOT_BUFFERED = sys.version_info >= (3, 13)


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
        "begun",
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
        # When the call of the file's began that may send several times, and has one deadline for all of them.
        self.begun: float | None = None
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
    readable: Any = False.__bool__
    writable: Any = True.__bool__
    seekable: Any = False.__bool__
    # Asked by the text layer once it has written.
    flush: Any = False.__bool__
    # Asked by the layers above as they are collected, maybe before the file itself; that closes.
    close: Any = False.__bool__

    def write(self, data: Any) -> int:
        """Send *data*; what cannot be sent now is kept, and must be gone before more is taken."""
        skip = 0
        taken: list[int] = []
        try:
            with self._lock:
                sock = None
                if self._chunks:
                    sock = self._for_one_call()
                    self.drain(sock)
                if self._skip < 0:
                    raise OSError(
                        errno.EIO,
                        "cannot write on: as exactly a buffer was sent, a signal handler raised, and it is not known "
                        "whether this is the rest of it",
                    )
                skip, self._skip = self._skip, 0
                self._send_or_keep(data[skip:] if skip else data, sock, taken)
        except BaseException as error:
            if taken:
                # As the lock was given back.
                self._keep_in_spite_of(error, data, skip + taken[0])
            elif self._skip >= 0:
                self._skip += skip
            raise
        return skip + taken[0]

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

    def send_written(self, writer: Any) -> None:
        """Send all that was written, or raise; *writer* is the layer above, where there is one."""
        if writer is not None:
            writer.flush()
        self.drain()

    def drain(self, sock: Any = None) -> None:
        """
        Send all that was taken; what an exception on the way leaves is kept, to go on with.

        *sock* is what has the deadline of a call that has sent before.
        """
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
                        sock = sock or self._for_one_call()
                        send_all(sock, data, done)
                    except BaseException as error:
                        chunks[0] = data[sum(done) :]
                        if isinstance(error, BlockingIOError) and from_system(error):
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
                        self._empty_text_layer(self._writer)
                    if self._send_now():
                        self.unsent = True
                        return True
                except BaseException as error:
                    self.unsent = True
                    # The peer is gone, but what it said can still be read. The next flush, or close, meets this again.
                    if not isinstance(error, OSError) or not from_system(error):
                        raise
                finally:
                    self._sending = further_out
                    self._lock.release()
            break
        return False

    def tie(self, source: Source) -> None:
        """Belong to the same file as *source*: look after what is to be sent before that reads."""
        source.sink = self
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

    def _empty_text_layer(self, writer: io.TextIOWrapper) -> None:
        """Have what the text layer holds written here; only a text sink is under one."""
        raise NotImplementedError

    def _put_with_care(self, data: bytes) -> int:
        if self.raw.closed:
            raise ValueError("I/O operation on closed file")
        self._raise_excuse()
        count = len(data)
        if not count:
            return 0
        sock = None
        if self._chunks and self._room < count and not self._sending:
            sock = self._for_one_call()
            self.drain(sock)
        if not self._chunks:
            self._room = self._limit
        self._chunks.append(data)
        self._something_to_send()
        self._room -= count
        if self._room <= 0 and not self._sending:
            self._try_to_drain(sock)
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
            if chunks:
                sock.expect_answer()
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
                    # As from_system() has it; but that is a call, in which a handler might raise.
                    if error.__traceback__.tb_next is None:  # type: ignore[union-attr]
                        chunks.insert(0, data)
                    raise
                if sent != size:
                    chunks.insert(0, data[sent:])
                    return True
        except BlockingIOError as error:
            if not from_system(error):
                raise
            return True
        return False

    def _send_some(self, sock: CSocket) -> bool:
        """Send as much of the first chunk as can be sent without waiting; return whether that was all."""
        chunks = self._chunks
        data = chunks[0]
        if self._whole == SENT_WHOLE:
            self._whole = sent_whole(sock)
        size = len(data)
        sent: list[int] = []
        try:
            keep(sock, sent, "send", data, _NOW)
        finally:
            # Without a call, after which a handler might raise.
            for count in sent:
                if count == size:
                    del chunks[0]
                else:
                    chunks[0] = data[count:]
        return sent[0] == size

    def _for_one_call(self) -> Any:
        return for_one_call(self.raw._sock, self.begun)

    def _try_to_drain(self, sock: Any = None) -> None:
        try:
            self.drain(sock)
        except OSError as error:
            # Taken is taken: the next write, or flush, says so. But after the end of the connection nothing that is
            # kept will ever be sent.
            if isinstance(error, ConnectionError) or not from_system(error):
                raise

    def _send_or_keep(self, data: Any, sock: Any, taken: list[int]) -> None:
        """
        Send *data*, by *sock* if the call has a deadline already, and keep what cannot be sent now.

        *taken* gets the length of it, without a call, after which a signal handler might raise.
        """
        count = len(data)
        if not count:
            taken += (0,)
            return  # no reason to hear that the peer is gone
        # Filled in C, so that no signal handler can raise between the sending and the counting.
        sent: list[int] = []
        begun = None
        try:
            self._sending = True
            first = sock or self.raw._sock
            if first.__class__ is CSocket:
                sent.extend(starmap(first.send, ((data, MSG_NOSIGNAL),)))
            else:
                begun = self.begun or monotonic()
                keep(first, sent, "send", data, MSG_NOSIGNAL)
            if sent[0] == count:
                taken += (count,)
                return
        except BaseException as error:
            later = False
            try:
                later = self._is_to_be_kept(error)
            finally:
                if not later:
                    self._keep_in_spite_of(error, data, sum(sent))
            if not later:
                raise
        finally:
            self._sending = False
        kept = False
        try:
            # Before what a signal's handler writes meanwhile; and without a call, after which one might raise.
            self._sending = True
            self._chunks[:0] = (bytes(data[sum(sent) :]),)
            kept = True
            self._sending = False
            self._try_to_drain(sock or for_one_call(self.raw._sock, begun))
            taken += (count,)
        except BaseException as error:
            self._sending = False
            self._keep_in_spite_of(error, data, count if kept else sum(sent))
            raise

    def _is_to_be_kept(self, error: BaseException) -> bool:
        """Whether what this *error* kept from being sent is to be sent later, and nothing said of it now."""
        if not isinstance(error, OSError) or not from_system(error):
            return False
        if isinstance(error, (TimeoutError, BlockingIOError)):
            return True
        # The text layer has taken it already; it may be sent yet, unless the connection is gone.
        return self._takes_all and not isinstance(error, ConnectionError)

    def _keep_in_spite_of(self, error: BaseException, data: Any, done: int) -> None:
        """See to the rest of *data*, of which something was sent or kept when the error came."""
        if not self._takes_all and len(data) <= self._limit:
            # io.BufferedWriter has it in its buffer, and comes with it again. But a write of exactly the buffer's
            # size some versions hand down at once, and nothing tells that from a full buffer. Only after the end of
            # the connection it does not matter which it was.
            unclear = done and len(data) == self._limit and _FULL_IS_NOT_BUFFERED
            gone = isinstance(error, ConnectionError) and from_system(error)
            self._skip = -1 if unclear and not gone else done
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
            try:
                if self._sending:
                    self._chunks.append(data)
                elif self._chunks:
                    self._chunks.append(data)
                    self._try_to_drain()
                else:
                    self._send_or_keep(data, None, [])
            finally:
                # Also where the peer has gone: or what can never be sent would be kept without end.
                if self._chunks:
                    self.watch()
        return len(data)

    def watch(self) -> None:
        """See to it that the next call of the text layer comes by `_BeforeWrite`."""
        self.closed = self.raw.closed or self._before_write

    def heed(self) -> None:
        Sink.heed(self)
        self.watch()

    def send_written(self, writer: io.TextIOWrapper | None) -> None:
        with self._lock:
            try:
                # The binary file that is this one's `buffer` has none.
                if writer is not None:
                    self._empty_text_layer(writer)
                self.drain()
            except BaseException:
                self.unsent = True
                raise

    def _empty_text_layer(self, writer: io.TextIOWrapper) -> None:
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
                # A signal handler's. Up to Python 3.14, for io.BufferedReader anything raised here means that it is closed.
                source.excuse = error
                sink.heed()
        return sink.raw.closed


def _closed(*_: object) -> Any:
    raise ValueError("I/O operation on closed file")


def _bytes_of(data: Buffer) -> bytes:
    with memoryview(data) as view:
        return view.tobytes()
