"""
Buffered and text files over a raw stream: what `UdStream.makefile` and `udstream.open` give back.

`BinaryFile` and `TextFile` are what the user holds. They stand on two halves, a `Source` that receives and
a `Sink` that sends, with the layers of `io`, in C, between. Their hot methods are slots, filled with the bound
methods of those layers: a method of ours in the way would cost as much as the layer itself.
"""

from __future__ import annotations

import atexit
import io
from _warnings import warn
from _weakref import ref
from itertools import chain
from sys import getrefcount
from time import monotonic

from ._csocket import from_system
from ._sink import Sink, TextSink
from ._source import Source
from ._timing import for_one_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, BinaryIO, TextIO

    from typing_extensions import Buffer

    from .stream import UdStream

_MODES = "'r', 'w', 'rw', 'r+' or 'w+', each with 'b' for bytes or 't' for text"
_NEWLINES = (None, "", "\n", "\r", "\r\n")


class Mode:
    """A mode string, taken apart; `ValueError` when it is none."""

    __slots__ = ("binary", "given", "reading", "writing")
    binary: bool
    given: str
    reading: bool
    writing: bool

    def __init__(self, mode: str) -> None:
        if not isinstance(mode, str):
            raise TypeError(f"mode must be str, not {type(mode).__name__}")
        letters = set(mode)
        reading, writing, both = "r" in letters, "w" in letters, "+" in letters
        if (
            len(letters) != len(mode)
            or letters - set("rwbt+")
            or not (reading or writing)
            or (reading and writing and both)
            or letters >= {"b", "t"}
        ):
            raise ValueError(f"invalid mode {mode!r}: it must be {_MODES}")
        self.given = mode
        self.reading = reading or both
        self.writing = writing or both
        self.binary = "b" in letters

    @classmethod
    def of(cls, mode: str) -> Mode:
        """The same, but each mode is taken apart only once; there are few."""
        known = _KNOWN.get(mode) if mode.__class__ is str else None
        if known is None:
            known = cls(mode)
            _KNOWN[mode] = known
        return known

    def check(self, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
        """Raise what `open` would for arguments that do not go with this mode, before anything is opened."""
        known = encoding is None or (encoding.__class__ is str and encoding in _CODECS and not self.binary)
        if known and buffering == -1 and errors is newline is None:
            return
        if not isinstance(buffering, int):
            raise TypeError(f"buffering must be int, not {type(buffering).__name__}")
        if self.binary:
            for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
                if value is not None:
                    raise ValueError(f"binary mode doesn't take the argument {name}")
            return
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O: buffering=0 needs a binary mode")
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be str or None, not {type(value).__name__}")
        if newline not in _NEWLINES:
            raise ValueError(f"illegal newline value: {newline!r}")
        # "locale" is not the name of a codec: io puts the locale's in its place.
        if encoding is not None and encoding != "locale":
            "".encode(encoding)
            _CODECS.add(encoding)


def named_encoding(mode: Mode, encoding: str | None) -> str | None:
    """The *encoding* for a file of this mode; where none was given, whoever asked for the file is warned if they want."""
    if encoding is None and not mode.binary:
        return io.text_encoding(None, 3)  # type: ignore  # typeshed does not know it
    return encoding


def make(
    stream: UdStream,
    mode: Mode,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    *,
    fresh: bool = False,
) -> Any:
    """
    The file object over *stream* that `open` and `makefile` promise.

    A *fresh* stream is a blocking one, whose arguments were checked before it was connected.
    """
    if not fresh:
        if mode.binary:
            encoding = errors = newline = None
        mode.check(buffering, encoding, errors, newline)
    if mode.binary and buffering == 0:
        stream.fileno()
        return stream
    if mode.binary and buffering == 1:
        warn(
            "line buffering (buffering=1) isn't supported in binary mode, the default buffer size will be used",
            RuntimeWarning,
            3,
        )
    both = mode.reading and mode.writing
    size = buffering if buffering > 1 else _TWO_WAYS if both else _ONE_WAY
    gathered = buffering if buffering > 1 else _GATHERED
    nonblocking = not fresh and stream.is_nonblocking()
    if mode.binary:
        careful = nonblocking or stream.timeout is not None
        source = Source(stream, careful) if mode.reading else None
        sink = Sink(stream, gathered if both else size) if mode.writing else None
        return BinaryFile(stream, mode.given, size, source, sink)
    if nonblocking:
        raise ValueError("a nonblocking stream can't be wrapped in text: make it blocking first")
    return TextFile(stream, mode, gathered, buffering == 1, encoding, errors, newline)


# The sizes of the buffers, unless one is given: of those that are there from the first, for a file that goes one way
# or both; Python's own are much larger since 3.14. And how much is gathered that takes no room before.
_ONE_WAY = max(16384, io.DEFAULT_BUFFER_SIZE // 2)
_TWO_WAYS = max(8192, io.DEFAULT_BUFFER_SIZE // 4)
_GATHERED = 65536

_KNOWN: dict[str, Mode] = {}
# The names of encodings that were asked for, and that there are.
_CODECS: set[str] = set()

# What each open file needs to send its last bytes. The garbage collector finishes off the members of a cycle in
# no helpful order, the socket before the file, say; but nothing that is held here.
_OPEN: dict[int, tuple[object, Sink | None, Any]] = {}


def _send_last_bytes() -> None:
    """Send what all open files have: as the program ends, for then the collector takes even `_OPEN`."""
    for _, sink, writer in list(_OPEN.values()):
        # One that a thread is blocked in would never come free.
        if sink is not None and sink._lock.acquire(False):
            sink._lock.release()
            try:
                if writer is not None:
                    writer.flush()
                sink.drain()
            except (OSError, ValueError):
                pass  # nobody is there any more who could be told; nor of one that was not quite closed


atexit.register(_send_last_bytes)


class _CarefulReader:
    """
    An `io.BufferedReader`, but for the calls that would lose bytes to a failing read.

    While they are at work the source is gentle: it tells of a failure by None, which makes the C code
    return what it has got. That is given back to the source, and the failure raised.
    """

    __slots__ = ("_source", "kept", "reader")
    # What is to live as long as this does.
    kept: object

    def __init__(self, reader: Any, source: Source) -> None:
        self.reader = reader
        self._source = source

    def _by_line(self) -> Callable[..., bytes]:
        # The C code's own: between two calls the reader has whole lines only, so that has nothing to lose.
        return self.reader.readline  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.reader)

    def _gently(self, call: Callable[[Any], Any], argument: Any) -> Any:
        source = self._source
        if source.excuse is not None:
            raise source.spared()
        source.one_call = for_one_call(source.raw._sock)
        source.gentle = True
        try:
            return call(argument)
        finally:
            source.gentle = False
            source.one_call = None
            self._give_back()

    def _give_back(self) -> None:
        """See to it that the reader has whole lines only: of what is no line the rest may never come."""
        if self._source.midline:
            self._source.unread(self._take_buffered())
            # A text layer over the same source may be in a line as well.
            self._source.midline = self._source.for_text

    def _take_buffered(self) -> bytes:
        """What the reader has got and not yet handed on."""
        size = self._buffered()
        return self.reader.read(size) if size else b""

    def _buffered(self) -> int:
        """How much that is."""
        source = self._source
        source.dry = True
        try:
            return len(self.reader.peek())
        finally:
            source.dry = False

    def read(self, size: int | None = -1) -> bytes | None:
        source = self._source
        if size is None or size < 0:
            source.unread(self._take_buffered())
            return source.readall()
        data: bytes | None = self._gently(self.reader.read, size)
        if source.excuse is None or source.forgives():
            return data
        source.unread(data or b"")
        raise source.spared()

    def readinto(self, buffer: Any) -> int | None:
        source = self._source
        with memoryview(buffer) as whole, whole.cast("B") as view:
            count: int | None = self._gently(self.reader.readinto, view)
            if source.excuse is None or source.forgives():
                return count
            source.unread(bytes(view[: count or 0]))
        raise source.spared()

    def read1(self, size: int = -1) -> bytes:
        return self._unless_failed(self._gently(self.reader.read1, size))  # type: ignore[no-any-return]

    def readinto1(self, buffer: Any) -> int:
        with memoryview(buffer) as whole, whole.cast("B") as view:
            # With room for more than its buffer holds the C code hands that over and reads on: what fails then
            # would take it along.
            with view[: self._buffered() or len(view)] as room:
                return self._unless_failed(self._gently(self.reader.readinto1, room))  # type: ignore[no-any-return]

    def peek(self, size: int = 0) -> bytes:
        return self._unless_failed(self._gently(self.reader.peek, size))  # type: ignore[no-any-return]

    def _unless_failed(self, result: Any) -> Any:
        # These read once at the most, so after a failure there is nothing to give back.
        if self._source.excuse is not None:
            raise self._source.spared()
        return result

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        lines: list[bytes] = []
        self._source.one_call = for_one_call(self._source.raw._sock)
        try:
            gather_lines(self._by_line(), hint, lines, b"")
        except BaseException:
            # Before what the reader has of the lines after them.
            self._source.unread(b"".join(lines) + self._take_buffered())
            raise
        finally:
            self._source.one_call = None
        return lines


class _LateReader(_CarefulReader):
    """
    One for a file that was in use before its reads could fail.

    The C reader may have a part of a line then; and whoever holds a method of its own may call that still.
    """

    __slots__ = ()

    def __init__(self, reader: Any, source: Source) -> None:
        super().__init__(reader, source)
        source.midline = source.careful = True
        source.trusting = False

    def _by_line(self) -> Callable[..., bytes]:
        return self.readline

    def readline(self, size: int | None = -1, /) -> bytes:
        self._give_back()
        return self._trusted(self.reader.readline, size)  # type: ignore[no-any-return]

    def read(self, size: int | None = -1) -> bytes | None:
        return self._trusted(super().read, size)  # type: ignore[no-any-return]

    def _trusted(self, call: Callable[[Any], Any], argument: Any) -> Any:
        source = self._source
        source.trusting = True
        try:
            return call(argument)
        finally:
            source.trusting = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


def gather_lines(readline: Callable[..., Any], hint: int | None, lines: list[Any], end: object) -> None:
    """Fill *lines* as `io.IOBase.readlines` would, up to the *end*; in C, so that none is lost to a signal's handler."""
    if hint is None or hint <= 0:
        lines.extend(iter(readline, end))
        return
    size = 0
    while size <= hint:
        lines.extend(map(readline, (-1,)))
        if not lines[-1]:
            del lines[-1]
            return
        size += len(lines[-1])


def _no_reading(*args: object) -> Any:
    raise io.UnsupportedOperation("not readable")


def _closed(*args: object) -> Any:
    raise ValueError("I/O operation on closed file")


class _Closed:
    """What a closed file has in its reader's place."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        _closed()

    def __iter__(self) -> Any:
        _closed()


_CLOSED: Any = _Closed()


def _no_writing(*args: object) -> Any:
    raise io.UnsupportedOperation("not writable")


class _Rest:
    """
    What is left of a file that was let go of while somebody holds a method of it, as ``open(path).read()`` does.

    What the methods are of has hold of this, so they can be used, and the connection ends with them.
    """

    __slots__ = ("_chunks", "_halves", "_stream", "kept")
    # What is to live as long as this does.
    kept: object

    def __init__(self, stream: UdStream, chunks: list[bytes], *halves: Source | Sink | None) -> None:
        self._stream = stream
        self._chunks = chunks
        self._halves = halves

    def __del__(self) -> None:
        try:
            if self._chunks and not self._stream.closed:
                self._stream.write_all(b"".join(self._chunks))
        finally:
            self._stream.close()
            for half in self._halves:
                if half is not None:
                    half.shut()


def _references(holder: object, name: str) -> int:
    """How many there are to the method that is in this slot."""
    method = getattr(holder, name)
    return getrefcount(method)


class _Alone:
    __slots__ = ("method",)

    def __init__(self) -> None:
        self.method: Any = [].append


# If nobody else has one.
_ALONE = _references(_Alone(), "method")


class _File:
    """What binary and text files have in common: one stream, and the two halves over it."""

    __slots__ = ()
    # The slots that are filled with methods of other objects.
    _methods: tuple[str, ...] = ()
    _source: Source | None
    _sink: Any
    _stream: UdStream
    _writer: Any
    _mode: str

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._stream.closed

    @property
    def mode(self) -> str:
        """The mode that was asked for."""
        return self._mode

    @property
    def name(self) -> int:
        """The file descriptor's number, as the ``name`` of any file made from a descriptor; -1 once it is closed."""
        return self._stream.name

    @property
    def timeout(self) -> float | None:
        """The stream's: how long a call may take, in seconds above 0; None is for ever."""
        return self._stream.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._stream.timeout = seconds

    def fileno(self) -> int:
        """The file descriptor's number, lent."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """False."""
        self._check_open()
        return False

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._check_open()
        return self._source is not None

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._check_open()
        return self._sink is not None

    def seekable(self) -> bool:
        """False."""
        self._check_open()
        return False

    def _opened(self, stream: UdStream) -> None:
        """The last step of making one: from here on it closes the stream when it is dropped."""
        _OPEN[id(self)] = (stream, self._sink, self._writer)
        stream._files += (ref(self),)
        self._stream = stream  # type: ignore[misc]

    def _check_open(self) -> None:
        if self._stream.closed:
            raise ValueError("I/O operation on closed file")

    def flush(self) -> None:
        """
        Send what was written.

        A `TimeoutError`, or a nonblocking binary file's `BlockingIOError`, says that not all could be sent: the
        rest is kept, and goes with the next call.
        """
        self._check_open()
        sink = self._sink
        if sink is None:
            return
        before = sink.begun
        sink.begun = before or monotonic()
        try:
            sink.send_written(self._writer)
        finally:
            sink.begun = before

    def close(self) -> None:
        """
        Send what was written, and close the stream. A second time, do nothing.

        The stream is closed even when the sending fails: with the error of that, a `TimeoutError` say.
        """
        stream = self._stream
        try:
            if not stream.closed:
                self._send_the_rest()
                if len(stream._files) > 1:
                    # Other files over the same stream go with it.
                    for file in stream._files_over():
                        if file is not self:
                            file._send_the_rest()
        finally:
            try:
                stream.close()
            finally:
                # The stream tells its files; but not one that is being collected, which it may not know any more, nor
                # if a signal handler raised just then.
                if id(self) in _OPEN:
                    self._stream_closed()

    def _reads_may_fail(self) -> None:
        """What the stream says when it gets a timeout, or becomes nonblocking: losses were impossible before."""

    def _send_the_rest(self) -> None:
        sink = self._sink
        # With a source beside it, a sink knows when nothing is left.
        if sink is not None and (sink.unsent or sink._chunks or sink.source is None):
            self.flush()

    def _stream_closed(self) -> None:
        """What the stream says when it is closed: the layers in C ask the halves, and are to know."""
        _OPEN.pop(id(self), None)
        if self._source is not None:
            self._source.shut()
        if self._sink is not None:
            self._sink.shut()

    def __del__(self) -> None:
        try:
            stream = self._stream
        except AttributeError:
            return  # it was never finished, and has no stream to close
        if stream.closed and id(self) not in _OPEN:
            return
        try:
            if not stream.closed:
                warn(f"unclosed file {self!r}", ResourceWarning, 2, self)
        finally:
            # Also where warnings are errors.
            if stream.closed or not self._left_to_methods():
                self.close()

    def _left_to_methods(self) -> bool:
        """Whether somebody holds methods that this file gave out; then what those are of takes it over."""
        held = [
            getattr(self, name).__self__
            for name in self._methods
            if _references(self, name) > _ALONE and hasattr(getattr(self, name), "__self__")
        ]
        if not held:
            return False
        sink = self._sink
        chunks: list[bytes] = [] if sink is None else sink._chunks
        # Without a cycle, if it can be: whoever holds it must not be held by it.
        if self._writer not in held and sink not in held:
            rest = _Rest(self._stream, chunks, self._source, sink)
        else:
            if sink is not None and len(held) == 1:
                sink.untie()
            rest = _Rest(self._stream, chunks, None if sink in held else sink)
        # Another file over the same stream, which would end that as it goes.
        rest.kept = getattr(self, "_buffer", None)
        for owner in held:
            owner.kept = rest
        _OPEN.pop(id(self), None)
        return True

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} mode={self._mode!r} over {self._stream!r}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


if TYPE_CHECKING:
    # So that they go where an IO[bytes] or an IO[str] is due, as the builtin's files do.
    class _BinaryBase(io.BufferedIOBase, BinaryIO): ...  # pyright: ignore

    class _TextBase(io.TextIOBase, TextIO): ...  # pyright: ignore
else:
    _BinaryBase, _TextBase = io.BufferedIOBase, io.TextIOBase


class BinaryFile(_File, _BinaryBase):
    """A buffered binary file over a `UdStream`: what ``open(path, "rb")``, ``"wb"`` and ``"rwb"`` give."""

    __slots__ = {
        "_mode": "",
        "_reader": "",
        "_sink": "",
        "_source": "",
        "_stream": "",
        "_writer": "",
    }
    _methods: tuple[str, ...] = ("read", "readinto", "readline", "write")
    if TYPE_CHECKING:

        def read(self, size: int | None = -1, /) -> bytes: ...  # noqa: D102
        def readinto(self, buffer: Buffer, /) -> int: ...  # noqa: D102
        def readline(self, size: int | None = -1, /) -> bytes: ...  # noqa: D102
        def write(self, data: Buffer, /) -> int: ...  # noqa: D102
    else:
        # Filled for each file with what is fastest: mostly methods of io's, in C.
        __slots__ |= {
            "read": "read(size=-1): up to *size* bytes, fewer only at the end of file; all of it without a size.",
            "readinto": "readinto(buffer): fill the buffer; fewer bytes only at the end of file.",
            "readline": "readline(size=-1): one line with its newline, or up to *size* bytes of it.",
            "write": "write(data): take all of data into the buffer; an exception means that none was taken, but for "
            "a BlockingIOError, whose characters_written says how much was, and for what a signal's handler raised.",
        }

    def __init__(
        self, stream: UdStream, mode: str, size: int, source: Source | None, sink: Sink | None
    ) -> None:
        self._mode = mode
        self._source = source
        self._sink = sink
        # The layers of io ask far less of what they stand on than their types say.
        below: Any
        self._reader: Any = None
        self._writer: Any = None
        if source is not None:
            below = source
            reader = io.BufferedReader(below, size)
            self._reader = _CarefulReader(reader, source) if source.careful else reader
            self.read = self._reader.read  # type: ignore[method-assign]
            self.readinto = self._reader.readinto  # type: ignore[method-assign]
            # Its own, also of a careful one: see `_File._left_to_methods`.
            self.readline = reader.readline  # type: ignore[method-assign]
        else:
            self.read = self.readinto = self.readline = _no_reading  # type: ignore[method-assign]
        if sink is None:
            self.write = _no_writing  # type: ignore[method-assign]
        elif source is None and sink.__class__ is Sink:
            # The C writer's lock would make a reader's thread wait for a writer's; alone it is the fastest.
            below = sink
            self._writer = io.BufferedWriter(below, size)
            self.write = self._writer.write  # type: ignore[method-assign]
        else:
            self.write = sink.put  # type: ignore[method-assign]
        if source is not None and sink is not None and source.sink is None:
            sink.tie(source)
        self._opened(stream)

    def _reads_may_fail(self) -> None:
        source, reader = self._source, self._reader
        # A text file's buffer reads with care from the first.
        if source is None or source.for_text or isinstance(reader, _LateReader):
            return
        if isinstance(reader, _CarefulReader):
            reader = reader.reader
        self._reader = late = _LateReader(reader, source)
        self.read = late.read  # type: ignore[method-assign,assignment]
        self.readinto = late.readinto  # type: ignore[method-assign,assignment]
        self.readline = late.readline  # type: ignore[method-assign]

    def _stream_closed(self) -> None:
        _File._stream_closed(self)
        # The C reader would go on handing out what it has.
        if self._reader is not None:
            self._reader = _CLOSED
            self.read = self.readinto = self.readline = _closed  # type: ignore[method-assign]

    @property
    def raw(self) -> UdStream:
        """The stream underneath."""
        return self._stream

    def _reading(self) -> Any:
        if self._reader is None:
            raise io.UnsupportedOperation("not readable")
        return self._reader

    def read1(self, size: int = -1) -> bytes:
        """Up to *size* bytes (by default, a buffer's worth), with one read of the stream at the most."""
        return self._reading().read1(size)  # type: ignore[no-any-return]

    def readinto1(self, buffer: Buffer) -> int:
        """As `readinto`, with one read of the stream at the most."""
        return self._reading().readinto1(buffer)  # type: ignore[no-any-return]

    def peek(self, size: int = 0) -> bytes:
        """What is in the buffer, without taking it out; if nothing, what one read of the stream brings."""
        return self._reading().peek(size)  # type: ignore[no-any-return]

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """All lines up to the end of file; with a *hint*, no more once they have more bytes than that."""
        return self._reading().readlines(hint)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[bytes]:
        self._check_open()
        # The reader's own iterator is the fastest; the file must live as long as it.
        return chain(iter(self._reading()), _keep(self))

    def __next__(self) -> bytes:
        line: bytes = self.readline()
        if not line:
            raise StopIteration
        return line

    def writelines(self, lines: Iterable[Buffer]) -> None:
        """Write each of the *lines*; nothing is put between them."""
        self._check_open()
        write = self.write
        for line in lines:
            write(line)


def _keep(owner: object) -> Iterator[Any]:
    """An iterator over nothing that keeps *owner* alive."""
    return
    yield owner


class _CrLfReader:
    """
    The ``readline`` of a text layer whose lines end in CR LF only.

    One of so many characters may end between the two. To the text layer the LF is the beginning of a line then, which
    a failing read would lose.
    """

    __slots__ = ("_reader", "_source", "kept")
    # What is to live as long as this does.
    kept: object

    def __init__(self, reader: Any, source: Source) -> None:
        self._reader = reader
        self._source = source

    def readline(self, size: int | None = -1) -> str:
        line: str = self._reader.readline(-1 if size is None else size)
        self._source.taken(line)
        return line


class TextFile(_File, _TextBase):
    """A text file over a `UdStream`: what ``open(path, "r")``, ``"w"`` and ``"rw"`` give."""

    __slots__ = {
        "_buffer": "",
        "_mode": "",
        "_reader": "",
        "_sink": "",
        "_source": "",
        "_stream": "",
        "_writer": "",
    }
    _methods: tuple[str, ...] = ("readline", "write")
    if TYPE_CHECKING:

        def readline(self, size: int | None = -1, /) -> str: ...  # type: ignore[override]  # noqa: D102
        def write(self, text: str, /) -> int: ...  # noqa: D102
    else:
        __slots__ |= {
            "readline": "readline(size=-1): one line, ended by a newline, or up to *size* characters of it.",
            "write": "write(text): take all of text into the buffer; an exception means that none was taken, but for "
            "what a signal's handler raised.",
        }

    def __init__(
        self,
        stream: UdStream,
        mode: Mode,
        size: int,
        line_buffering: bool,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
    ) -> None:
        self._mode = mode.given
        self._buffer: BinaryFile | None = None
        self._source = self._sink = None
        self._reader: Any = None
        self._writer: Any = None
        self.readline = _no_reading  # type: ignore[method-assign]
        self.write = _no_writing  # type: ignore[method-assign]
        # The layers of io ask far less of what they stand on than their types say.
        below: Any
        # One wrapper for each way: a single one forgets what it has read ahead when it writes.
        if mode.reading:
            self._source = below = source = Source(stream, False)
            self._reader = io.TextIOWrapper(below, encoding, errors, newline)
            source.tell_lines(newline, self._reader.encoding)
            lines = _CrLfReader(self._reader, source) if source.crlf else self._reader
            self.readline = lines.readline  # type: ignore[method-assign]
        if mode.writing:
            self._sink = below = sink = TextSink(stream, size)
            writer: Any = io.TextIOWrapper(below, encoding, errors, newline, line_buffering)
            self._writer = writer
            if size != writer._CHUNK_SIZE:
                writer._CHUNK_SIZE = size
            self.write = writer.write  # type: ignore[method-assign]
            if self._source is not None:
                sink.empties(writer)
                sink.tie(self._source)
        self._opened(stream)

    @property
    def buffer(self) -> BinaryFile:
        """
        The binary file over the same stream; its ``raw`` is the stream.

        Flush the text before writing to it; text that was read ahead is not in it any more.
        """
        if self._buffer is None:
            if self._source is not None:
                self._source.careful = True
            size = _TWO_WAYS if self._source and self._sink else _ONE_WAY
            self._buffer = BinaryFile(self._stream, _binary(self._mode), size, self._source, self._sink)
        return self._buffer

    def _either(self) -> Any:
        return self._writer if self._reader is None else self._reader

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The name of the encoding."""
        return self._either().encoding  # type: ignore[no-any-return]

    @property
    def errors(self) -> str:  # type: ignore[override]
        """How errors in decoding and encoding are treated."""
        return self._either().errors  # type: ignore[no-any-return]

    @property
    def newlines(  # type: ignore[override]
        self,
    ) -> str | tuple[str, ...] | None:
        """The kinds of line ends met so far, if they are translated."""
        return None if self._reader is None else self._reader.newlines

    @property
    def line_buffering(self) -> bool:
        """Whether each line is sent as it ends."""
        return self._writer is not None and self._writer.line_buffering

    def read(self, size: int | None = -1) -> str:
        """
        Up to *size* characters, fewer only at the end of file; without a size, everything up to there.

        When the time runs out in the middle of ``read(size)``, further reads are refused with an `OSError`.
        """
        reader, source = self._reading()
        if size is None or size < 0:
            return reader.read()  # type: ignore[no-any-return]
        source.gentle = True
        source.one_call = for_one_call(self._stream._sock)
        try:
            text: str = reader.read(size)
            source.taken(text)
            return text
        except OSError as error:
            if size > 1 and from_system(error):
                source.refuse("read(size) failed in the middle, and what it had is lost")
            raise
        finally:
            source.gentle = False
            source.one_call = None

    def readlines(self, hint: int | None = -1) -> list[str]:  # type: ignore[override]
        """
        All lines up to the end of file; with a *hint*, no more once they have more characters than that.

        When the time runs out in the middle, further reads are refused with an `OSError`.
        """
        _, source = self._reading()
        lines: list[str] = []
        source.one_call = for_one_call(self._stream._sock)
        try:
            gather_lines(self.readline, hint, lines, "")
        except BaseException:
            if lines:
                source.refuse("readlines() failed in the middle, and the lines it had are lost")
            raise
        finally:
            source.one_call = None
        return lines

    def _reading(self) -> tuple[Any, Source]:
        if self._source is None:
            raise io.UnsupportedOperation("not readable")
        return self._reader, self._source

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        self._check_open()
        reader, source = self._reading()
        if source.crlf:
            return chain(iter(self.readline, ""), _keep(self))
        # The reader's own iterator is the fastest; the file must live as long as it.
        return chain(iter(reader), _keep(self))

    def __next__(self) -> str:  # type: ignore[override]
        line: str = self.readline()
        if not line:
            raise StopIteration
        return line

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Write each of the *lines*; nothing is put between them."""
        self._check_open()
        write = self.write
        for line in lines:
            write(line)


def _binary(mode: str) -> str:
    """The mode of the binary file under a text file of this mode."""
    return mode.replace("t", "") + "b"
