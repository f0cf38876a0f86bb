"""
The receiving half of a buffered or text file: what its readers, the layers of `io`, read from.

The buffering and the decoding are CPython's, in C: `io.BufferedReader` and `io.TextIOWrapper`. They were made for
disks, though: what they had gathered when a read times out they lose. So these laws hold under them:

* Before it asks the socket for more, the sink of the same file has its turn: see `_sink`.
* It gives the readers nothing that a timeout could make them lose: whole lines, or what they can hand on at once.
* Where that cannot be, what was lost is never passed over in silence: from then on it refuses to be read.
"""

from __future__ import annotations

import errno
from time import monotonic

from ._csocket import CSocket, from_system
from ._timing import Around, for_one_call
from ._waiting import POLLIN, POLLOUT, timed_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ._sink import Sink, _BeforeRead

    class Raw(Protocol):
        """What a source needs of its stream."""

        _sock: Any

        @property
        def timeout(self) -> float | None: ...

        def is_nonblocking(self) -> bool: ...

        def _wait(self, events: int, deadline: float | None) -> int: ...


# How much a text file reads at once, and how long a line grows that is held back for want of its end.
_TEXT_CHUNK = 1 << 15
_LONGEST_HELD = 1 << 16
# How far from the end of what came the last newline is looked for, before all of it is taken into hand.
_NEAR_THE_END = 512


class Source:
    """The receiving half of a file: hands on what arrives, after the sink had its turn."""

    __slots__ = (
        "_end",
        "_ended",
        "_lf_left",
        "_refusal",
        "_universal",
        "careful",
        "closed",
        "crlf",
        "dry",
        "excuse",
        "for_text",
        "gentle",
        "held",
        "midline",
        "one_call",
        "raw",
        "sink",
        "trusting",
    )
    careful: bool
    closed: bool | _BeforeRead
    crlf: bool
    dry: bool
    for_text: bool
    gentle: bool
    held: bytes
    midline: bool
    raw: Raw
    trusting: bool

    def __init__(self, raw: Raw, careful: bool) -> None:
        self.raw = raw
        self.closed = False
        # The sink of the same file, if it has one.
        self.sink: Sink | None = None
        # Whether a binary file's readers are such as can do with a read that fails.
        self.careful = careful
        # Whether a reader that is not gentle has no more to lose than the line that it is at.
        self.trusting = True
        # Whether a text layer reads from it.
        self.for_text = False
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
        # Whether only CR LF ends a line; then a reader of so many characters may leave the LF behind, and whether it did.
        self.crlf = False
        self._lf_left = False
        self._refusal: str | None = None
        # Whether the end of the file has come, and the reader was only given what came before.
        self._ended = False

    def tell_lines(self, newline: str | None, encoding: str) -> None:
        """Say that it is text, and what ends a line in what is received, if its bytes show that before they are decoded."""
        self.for_text = True
        self._universal = not newline
        self.crlf = newline == "\r\n"
        if not newline and encoding in ("utf-8", "UTF-8"):
            return
        if encoding.lower().startswith("hz"):
            # A newline may be no character there, but the continuation of a line.
            self._end = None
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

    # As of a sink: answered in C.
    readable: Any = True.__bool__
    writable: Any = False.__bool__
    seekable: Any = False.__bool__
    # Nothing to do: reading sends on its own, and the file closes.
    flush: Any = False.__bool__
    close: Any = False.__bool__

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
        except OSError as error:
            if from_system(error):
                if isinstance(error, BlockingIOError):
                    return None
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
        except OSError as error:
            if from_system(error):
                self._refuse_if_midline()
            raise
        # As _handed_on does; a call would cost each conversation.
        self.midline = (self._end is None or not data.endswith(self._end)) if data else False
        self._lf_left = False
        return data

    def read(self, size: int = -1) -> bytes:
        """Everything up to the end of file, for `io.TextIOWrapper.read`."""
        return self.to_the_end()

    def readall(self) -> bytes | None:
        """As a raw file's, for `io.BufferedReader.read`, which drops what it had if this fails."""
        try:
            return self.to_the_end()
        except BaseException as error:
            if isinstance(error, BlockingIOError) and from_system(error):
                data, self.held = self.held, b""
                self.midline = False
                return data or None
            if not (self.careful and self.trusting):
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
        self.midline = self._lf_left = False
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

    def forgives(self) -> bool:
        """Whether the reader was spared nothing but to hear that there is no more yet; then that is forgotten."""
        error = self.excuse
        if isinstance(error, BlockingIOError) and from_system(error):
            self.excuse = None
            return True
        return False

    def taken(self, text: str) -> None:
        """Note what a reader took of the text that it has: it may have left a part of a line's end."""
        if self.crlf and text:
            self._lf_left = text.endswith("\r")

    def refuse(self, why: str) -> None:
        """Let no more be read: something was lost, and going on would hide it."""
        self._refusal = why

    # --- inside ---

    def _check_refusal(self) -> None:
        if self._refusal is not None:
            raise OSError(errno.EIO, f"cannot read on: {self._refusal}; close it and connect anew")

    def _refuse_if_midline(self) -> None:
        if self.midline or self._lf_left:
            self.refuse("a read failed in the middle of a line, and the beginning of that line is lost")
        elif not self.trusting:
            self.refuse("a method that was got before reads could fail was used, and what it had is lost")

    def _let_sink_send(self, sock: Any) -> bool:
        """
        Have the sink send; while it cannot send all, wait until it can, or there is something to read.

        Return whether it waited.
        """
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
            except BlockingIOError as error:
                if not from_system(error):
                    raise
                break
            if events & ~POLLOUT:
                break
        return deadline is not None

    def _receive(self, sock: Any, size: int) -> bytes:
        sink = self.sink
        if sink is not None and sink.unsent:
            self._let_sink_send(sock)
        data: bytes = sock.recv(size)
        return data

    def _handed_on(self, data: bytes) -> bytes:
        # At the end of the file the reader gives whatever it has, and a read after that has nothing to lose.
        self.midline = (self._end is None or not data.endswith(self._end)) if data else False
        self._lf_left = False
        return data

    def _readinto_with_care(self, buffer: Any) -> int | None:
        begun = monotonic()
        count: int | None = None
        try:
            sock = self._for_one_receive()
            if sock is not None:
                count = sock.recv_into(buffer)
        except BaseException:
            self._refuse_if_midline()
            raise
        if count is not None:
            # Straight into the buffer; only what comes after the last newline is held back.
            if not count:
                self.midline = False
                return 0
            start = max(0, count - _NEAR_THE_END)
            near = bytes(buffer[start:count])
            if cut := near.rfind(b"\n") + 1:
                self.held = near[cut:]
                self.midline = False
                return start + cut
            self.held = bytes(buffer[:count])
        data = self._next(len(buffer), begun)
        if data is None:
            return None
        buffer[: len(data)] = data
        return len(data)

    def _read1_with_care(self) -> bytes:
        begun = monotonic()
        data: bytes | None = None
        try:
            sock = self._for_one_receive()
            if sock is not None:
                data = sock.recv(_TEXT_CHUNK)
        except BaseException:
            self._refuse_if_midline()
            raise
        if data is not None:
            if not data or self._end is None or data.endswith(self._end):
                return self._handed_on(data)
            self.held = data
        some = self._next(_LONGEST_HELD, begun)
        if some is None:
            raise self.spared()
        return some

    def _for_one_receive(self) -> Any:
        """What to receive from if one system call may do; None when there is something to heed, or time has passed."""
        if self.gentle or self.dry or self.held or self.one_call or self._ended or self._refusal is not None:
            return None
        sock = self.raw._sock
        sink = self.sink
        if sink is not None and sink.unsent and self._let_sink_send(sock):
            return None
        return sock

    def _next(self, room: int, begun: float) -> bytes | None:
        """The next bytes for a reader, at most *room*; None when a gentle reader is to make do without."""
        self._check_refusal()
        if self.dry:
            return None
        sock = self.one_call or for_one_call(self.raw._sock, begun)
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
            if self._ended:
                self._ended = False
                return room
            if self.held and self.raw.timeout is None and not self.raw.is_nonblocking():
                # No time can run out any more: a reader of so many bytes is not to wait for the end of the line.
                return room
            try:
                data = self._receive(sock, room)
            except BaseException:
                self._refuse_if_midline()
                raise
            if not data:
                # The reader asks once more; that must not fail, or it would lose what it got.
                self._ended = bool(self.held)
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
