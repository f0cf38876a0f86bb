"""After a timeout, or where a nonblocking stream would block, no byte is lost in silence, and none is doubled."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import Any

import connections
import pytest
from connections import data_for, everything, fill, here, stream_of
from fakes import in_place_of_the_kernel
from meanwhile import PATIENCE, blocked_in

from udstream import UdStream, _source, _timing, _waiting
from udstream import stream as stream_module

pytestmark = pytest.mark.usefixtures("no_endless_wait")

# Long enough for a call to try, short enough to be waited for thousands of times.
MOMENT = 0.001
MESSAGE = "eins\nzwö日\n\nvier"

# Here a stream has a timeout unless a test says otherwise.
conversation = partial(connections.conversation, timeout=MOMENT)


def into(method: str, size: int) -> Callable[[Any], Any]:
    """A read into a buffer, as one that returns bytes, or None."""

    def read(file: Any) -> bytes | None:
        store = bytearray(size)
        count = getattr(file, method)(store)
        return None if count is None else bytes(store[:count])

    return read


def peek_and_take(file: Any) -> Any:
    """What `peek` shows, taken out."""
    seen = file.peek()
    assert file.read(len(seen)) == seen
    return seen


# Ways to read; each returns what it got, or a list of it.
READS: dict[str, Callable[[Any], Any]] = {
    "readline": lambda file: file.readline(),
    "readline(2)": lambda file: file.readline(2),
    "readline(100)": lambda file: file.readline(100),
    "next": lambda file: next(file, None),
    "iterator": lambda file: next(iter(file), None),
    "read": lambda file: file.read(),
    "read(1)": lambda file: file.read(1),
    "read(3)": lambda file: file.read(3),
    "read(100)": lambda file: file.read(100),
    "readlines": lambda file: file.readlines(),
    "readlines(6)": lambda file: file.readlines(6),
}
BINARY_READS: dict[str, Callable[[Any], Any]] = {
    "read1": lambda file: file.read1(),
    "read1(2)": lambda file: file.read1(2),
    "peek": peek_and_take,
    "readinto": into("readinto", 3),
    "readinto(100)": into("readinto", 100),
    "readinto1": into("readinto1", 3),
    "readinto1(100000)": into("readinto1", 100_000),
}
RAW_READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda file: file.read(100),
    "read(2)": lambda file: file.read(2),
    "readinto": into("readinto", 3),
}


def reads_for(mode: str) -> dict[str, Callable[[Any], Any]]:
    """The ways to read of a file of this mode."""
    return READS | BINARY_READS if "b" in mode else READS


EVERY_READ = [(mode, how) for mode in ("rb", "rwb", "r", "rw") for how in reads_for(mode)]
# What goes on after any timeout, by the design of the file: lines always, and bytes however they are read.
NEVER_REFUSED = {
    *(("rb", how) for how in reads_for("rb")),
    *(("rwb", how) for how in reads_for("rwb")),
    *(
        (mode, how)
        for mode in ("r", "rw")
        for how in ("readline", "readline(100)", "next", "iterator", "read")
    ),
}


class Refused(Exception):
    """The file said that it can't go on."""


def collect(file: Any, read: Callable[[Any], Any], feed: Iterator[object], pieces: list[Any]) -> int:
    """
    Call *read* to the end of file, and give it more to read each time it has none; count those times.

    A refusal must be an `OSError` that says so, and must last.
    """
    failures = 0
    while True:
        try:
            piece = read(file)
        except (TimeoutError, BlockingIOError):
            failures += 1
            # On a busy machine one more timeout may come, between two pieces of what is there.
            next(feed, None)
            continue
        except OSError as error:
            if "cannot read on" not in str(error):
                raise
            next(feed, None)
            next(feed, None)
            for again in ("readline", "read", "__next__"):
                with pytest.raises(OSError, match="cannot read on"):
                    getattr(file, again)()
            raise Refused from error
        if piece is None:
            if next(feed, "over") == "over":
                return failures
            failures += 1
        elif piece:
            pieces += piece if isinstance(piece, list) else [piece]
        else:
            return failures


def feeding(theirs: socket.socket, *parts: bytes) -> Iterator[None]:
    """Send the parts, one at a time, then the end of file."""
    for part in parts:
        theirs.sendall(part)
        yield
    theirs.shutdown(socket.SHUT_WR)
    yield


@pytest.mark.parametrize(("mode", "how"), EVERY_READ)
def test_read_that_timed_out_can_be_repeated(mode: str, how: str) -> None:
    """A message cut anywhere, with a timeout at the cut: repeating the call gets all of it, once.

    Or the file refuses to be read on: never for bytes, nor for lines.
    """
    message = MESSAGE.encode()
    text = {} if "b" in mode else {"encoding": "utf-8"}
    for cut in range(len(message) + 1):
        with conversation(mode, **text) as (file, theirs):
            pieces: list[Any] = []
            feed = feeding(theirs, message[:cut], message[cut:])
            next(feed)
            try:
                assert collect(file, reads_for(mode)[how], feed, pieces) >= 1
            except Refused:
                assert (mode, how) not in NEVER_REFUSED, f"refused at {cut}"
                assert data_for(mode, MESSAGE).startswith(data_for(mode, "").join(pieces))
            else:
                assert data_for(mode, "").join(pieces) == data_for(mode, MESSAGE), f"cut at {cut}"


class LeapingClock:
    """A clock that our modules look at, and that leaps ahead of all timeouts at a certain look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.leap_at = float("inf")
        for module in (_timing, _source):
            monkeypatch.setattr(module, "monotonic", self.look)

    def look(self) -> float:
        self.looks += 1
        return time.monotonic() + (1000 if self.looks >= self.leap_at else 0)

    def start(self, leap_at: float) -> None:
        self.looks = 0
        self.leap_at = leap_at


@pytest.mark.parametrize(("mode", "how"), EVERY_READ)
@pytest.mark.parametrize("message", [MESSAGE, MESSAGE + "\n"])
def test_read_whose_time_is_up_at_any_moment_can_be_repeated(
    mode: str, how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is there, the end too, and the time is up at whichever look at the clock: nothing is lost, as above."""
    text = {} if "b" in mode else {"encoding": "utf-8"}
    expected = data_for(mode, message)
    clock = LeapingClock(monkeypatch)
    leap_at = 0
    while leap_at <= clock.looks:
        leap_at += 1
        clock.start(leap_at)
        with conversation(mode, timeout=PATIENCE, **text) as (file, theirs):
            pieces: list[Any] = []
            theirs.sendall(message.encode())
            theirs.shutdown(socket.SHUT_WR)
            try:
                collect(file, reads_for(mode)[how], repeat(None, 5), pieces)
            except Refused:
                assert (mode, how) not in NEVER_REFUSED, f"refused at look {leap_at}"
                assert expected.startswith(expected[:0].join(pieces))
            else:
                assert expected[:0].join(pieces) == expected, f"at look {leap_at}"


@pytest.mark.parametrize("how", RAW_READS)
def test_raw_read_that_timed_out_can_be_repeated(how: str) -> None:
    """The stream itself: a message cut anywhere comes whole."""
    message = MESSAGE.encode()
    for cut in range(len(message) + 1):
        ours, theirs = socket.socketpair()
        with theirs, UdStream.from_socket(ours) as stream:
            stream.timeout = MOMENT
            pieces: list[bytes] = []
            feed = feeding(theirs, message[:cut], message[cut:])
            next(feed)
            assert collect(stream, RAW_READS[how], feed, pieces) >= 1
            assert b"".join(pieces) == message


@pytest.mark.parametrize("how", ["readline", "readline(100)", "next", "readlines", "readlines(100)"])
def test_raw_lines_that_timed_out_are_not_lost_in_silence(how: str) -> None:
    """The lines of an unbuffered file: what had come is the `TimeoutError`'s `partial`, or comes again."""
    message = MESSAGE.encode()
    calls: dict[str, Callable[[Any], Any]] = {
        "readline": lambda file: file.readline(),
        "readline(100)": lambda file: file.readline(100),
        "next": lambda file: next(file, b""),
        "readlines": lambda file: file.readlines(),
        "readlines(100)": lambda file: file.readlines(100),
    }
    for cut in range(len(message) + 1):
        ours, theirs = socket.socketpair()
        with theirs, UdStream.from_socket(ours).makefile("rb", 0) as file:
            file.timeout = MOMENT
            feed = feeding(theirs, message[:cut], message[cut:])
            next(feed)
            got = b""
            while True:
                try:
                    piece = calls[how](file)
                except TimeoutError as error:
                    got += getattr(error, "partial", b"")
                    next(feed, None)
                    continue
                if not piece:
                    break
                got += b"".join(piece) if isinstance(piece, list) else piece
            assert got == message, f"cut at {cut}"


def test_raw_readall_that_timed_out_says_what_it_had() -> None:
    """`readall` of the stream: what had come is the error's `partial`, and the next call has the rest."""
    ours, theirs = socket.socketpair()
    with theirs, UdStream.from_socket(ours) as stream:
        stream.timeout = MOMENT
        theirs.sendall(b"first ")
        with pytest.raises(TimeoutError) as caught:
            stream.readall()
        assert caught.value.partial == b"first "  # type: ignore[attr-defined]
        theirs.sendall(b"second")
        theirs.shutdown(socket.SHUT_WR)
        assert stream.readall() == b"second"


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
@pytest.mark.parametrize("buffering", [-1, 16])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "shift_jis"])
def test_any_reads_through_any_timeouts(mode: str, buffering: int, encoding: str) -> None:
    """Random reads of a message that comes in random pieces, a timeout at each: all of it, or a refusal."""
    if "b" in mode and encoding != "utf-8":
        return
    whole_runs = 0
    for seed in range(20):
        rng = random.Random(seed)
        text = "".join(rng.choices(["\n", "abc", "z\r\n", "y\r", "日本", "x" * 30], k=rng.randrange(1, 15)))
        message = text.encode(encoding)
        cuts = sorted(rng.choices(range(len(message) + 1), k=rng.randrange(1, 5)))
        parts = [message[start:end] for start, end in zip([0, *cuts], [*cuts, len(message)], strict=True)]
        newline = ("", "\n", "", "\r\n", "\r\n", "\n", "\r", "\r")[seed % 8]
        options = {} if "b" in mode else {"encoding": encoding, "newline": newline}
        # Every second run does only what is never refused.
        safe = [how for how in reads_for(mode) if (mode, how) in NEVER_REFUSED]
        names = rng.choices(safe if seed % 2 else list(reads_for(mode)), k=100)
        turn = iter([reads_for(mode)[name] for name in names])
        with conversation(mode, buffering, **options) as (file, theirs):
            pieces: list[Any] = []
            expected: Any = message if "b" in mode else text
            feed = feeding(theirs, *parts)
            try:
                collect(file, lambda file, turn=turn: next(turn, READS["read"])(file), feed, pieces)  # type: ignore[misc]
            except Refused:
                assert "b" not in mode
                assert expected.startswith(expected[:0].join(pieces)), f"seed {seed}"
            else:
                whole_runs += 1
                assert expected[:0].join(pieces) == expected, f"seed {seed}"
    # Where bytes do not show the ends of lines, a timeout may be final.
    assert whole_runs >= (20 if "b" in mode else 10 if encoding in ("utf-8", "shift_jis") else 0)


@pytest.mark.parametrize("ending", ["timeout", "reset"])
@pytest.mark.parametrize("buffering", [-1, 16])
@pytest.mark.parametrize("mode", ["rb", "rwb"])
def test_readinto1_with_much_room_loses_nothing(mode: str, buffering: int, ending: str) -> None:
    """What the buffer has comes first, alone; what then cannot be read on does not take it along."""
    with conversation(mode, buffering) as (file, theirs):
        if ending == "reset":
            file.raw.write(b"unread")
        theirs.sendall(b"one\ntwo\n")
        assert file.readline() == b"one\n"
        if ending == "reset":
            theirs.close()
        store = bytearray(200_000)
        assert file.readinto1(store) == 4 and store.startswith(b"two\n")
        with pytest.raises(TimeoutError if ending == "timeout" else ConnectionResetError):
            file.readinto1(store)
        if ending == "timeout":
            theirs.sendall(b"three\n")
            assert file.readline() == b"three\n"


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1), (1, 2), (3,), (1, -1)])
@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("method", ["read", "readline"])
def test_a_line_end_that_is_read_in_parts_and_wholly(method: str, mode: str, sizes: tuple[int, ...]) -> None:
    """Once all of a line is read, in whatever pieces, a timeout loses nothing, and the file goes on."""
    with conversation(mode, newline="\r\n", encoding="utf-8") as (file, theirs):
        theirs.sendall(b"a\r\n")
        pieces = [file.readline() if size < 0 else getattr(file, method)(size) for size in sizes]
        assert "".join(pieces) == "a\r\n"
        with pytest.raises(TimeoutError):
            file.readline()
        theirs.sendall(b"b\rc\r\n")
        assert file.read(2) == "b\r"
        assert next(iter(file)) == "c\r\n"
        with pytest.raises(TimeoutError):
            file.readline()
        theirs.sendall(b"next\r\n")
        assert file.readline() == "next\r\n"


@pytest.mark.parametrize("newline", ["", "\n", "\r\n", "\r"])
@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("method", ["read", "readline"])
def test_a_line_end_that_is_read_in_part(method: str, mode: str, newline: str) -> None:
    """A read that ends between CR and LF leaves the LF: it comes with the next, or that one refuses to go on."""
    with conversation(mode, newline=newline, encoding="utf-8") as (file, theirs):
        theirs.sendall(b"ab\r\n")
        got = getattr(file, method)(3)
        assert got == "ab\r"
        pieces: list[Any] = [got]
        try:
            collect(file, lambda file: file.readline(), feeding(theirs, b"next\r\n"), pieces)
        except Refused:
            assert newline == "\r\n"
        else:
            assert "".join(pieces) == "ab\r\nnext\r\n"


def test_a_timeout_where_a_newline_may_be_no_end_of_a_line() -> None:
    """In hz, `~` before a newline continues the line: the text that had come is lost, and the file refuses to go on."""
    with conversation("r", encoding="hz") as (file, theirs):
        theirs.sendall(b"abc~\n")
        with pytest.raises(TimeoutError):
            file.readline()
        theirs.sendall(b"def\n")
        with pytest.raises(OSError, match="cannot read on"):
            file.readline()


class Ending(_timing.Around):
    """A stream's socket, from which come these words, then the end of the file, and then there is no time left."""

    def __init__(self, stream: UdStream, *words: bytes) -> None:
        self.sock = stream._bare()
        self._words = [*words, b""]

    def for_one_call(self, begun: float | None = None) -> Ending:
        return self

    @in_place_of_the_kernel
    def recv(self, size: int) -> bytes:
        if not self._words:
            raise TimeoutError(errno.ETIMEDOUT, "no time")
        return self._words.pop(0)

    def recv_into(self, buffer: Any) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_last_line_that_ends_with_the_file_and_the_time(mode: str) -> None:
    """A last line without an end comes as soon as the end of the file was seen, though the time be over then."""
    with conversation(mode) as (file, _):
        stream: Any = stream_of(file)
        stream._sock = Ending(stream, b"no ", b"end")
        assert file.readline() == data_for(mode, "no end")


@pytest.mark.parametrize("words", [1, 100])
@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_read_that_fails_after_the_end_of_file_refuses_no_other(mode: str, words: int) -> None:
    """Also a last line that was too long to be held back is nobody's to lose once the end of the file was seen."""
    word = "x" * 1_000
    with conversation(mode) as (file, _):
        stream: Any = stream_of(file)
        stream._sock = Ending(stream, *[word.encode()] * words)
        assert file.readline() == data_for(mode, word * words)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                file.readline()


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
@pytest.mark.parametrize("size", [8_191, 8_192, 8_193, 65_535, 65_536, 70_000, 200_000])
def test_long_line_through_a_timeout(mode: str, size: int) -> None:
    """A line that is longer than any buffer, with a timeout in the middle, comes whole, or reads are refused."""
    line = "x" * size + "\n"
    with conversation(mode) as (file, theirs):
        # Room for all of it: a timeout that comes early is not to leave us waiting for ourselves.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        pieces: list[Any] = []
        feed = feeding(theirs, line[: size // 2].encode(), (line[size // 2 :] + "next\n").encode())
        next(feed)
        try:
            collect(file, lambda file: file.readline(), feed, pieces)
        except Refused:
            assert size > 60_000
            assert pieces == []
        else:
            assert pieces == [data_for(mode, line), data_for(mode, "next\n")]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", reads_for("rb"))
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_buffer_of_text_reads_with_care(mode: str, how: str, late: bool) -> None:
    """The binary file under a text file loses nothing in a timeout either, nor does it refuse without a loss."""
    with conversation(mode, timeout=None if late else MOMENT, encoding="utf-8") as (file, theirs):
        buffer = file.buffer
        file.timeout = MOMENT
        theirs.sendall(b"first\nsec")
        assert file.readline() == "first\n" if not late else buffer.readline() == b"first\n"
        pieces: list[Any] = []
        collect(buffer, reads_for("rb")[how], feeding(theirs, b"ond\nthi", b"rd\nlast"), pieces)
        assert b"".join(pieces) == b"second\nthird\nlast"


def test_buffer_of_text_knows_the_end() -> None:
    """On a stream that becomes nonblocking, nothing yet is no end of the file there either."""
    with conversation("r", timeout=None) as (file, theirs):
        stream_of(file).set_nonblocking(True)
        with pytest.raises(BlockingIOError):
            file.buffer.readline()
        theirs.sendall(b"line\n")
        assert file.buffer.readline() == b"line\n"


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_without_its_timeout_a_file_holds_nothing_back(mode: str, failed: bool) -> None:
    """Once the timeout is taken away, `readline(n)` comes as soon as n bytes are there; and a new one loses nothing."""
    with conversation(mode) as (file, theirs):
        if failed:
            theirs.sendall(b"abcde")
            with pytest.raises(TimeoutError):
                file.readline()
        file.timeout = None
        if not failed:
            theirs.sendall(b"abcde")
        assert file.readline(3) == data_for(mode, "abc")
        file.timeout = MOMENT
        if "b" not in mode:
            return
        with pytest.raises(TimeoutError):
            file.readline()
        theirs.sendall(b"f\n")
        assert file.readline() == b"def\n"


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r", "w", "rw"])
def test_timeout_of_a_file_is_its_streams(mode: str) -> None:
    """A file's `timeout` is its stream's, to be read and set; that of a closed one is a ValueError."""
    with conversation(mode, timeout=None) as (file, theirs):
        assert file.timeout is None
        file.timeout = MOMENT
        assert file.timeout == stream_of(file).timeout == MOMENT
        with pytest.raises(ValueError, match="above 0"):
            file.timeout = 0
        if mode[0] == "r":
            with pytest.raises(TimeoutError):
                file.readline()
        else:
            fill(stream_of(file))
            file.write(data_for(mode, "x"))
            with pytest.raises(TimeoutError):
                file.flush()
            here(theirs)
    with pytest.raises(ValueError, match="closed"):
        file.timeout = 1.0
    with pytest.raises(ValueError, match="closed"):
        file.timeout  # noqa: B018


@pytest.mark.parametrize("mode", ["rb", "rwb"])
def test_a_long_line_that_came_whole_leaves_nothing_behind(mode: str) -> None:
    """After a line longer than what is held back, a timeout is no reason to refuse anything."""
    with conversation(mode, timeout=PATIENCE) as (file, theirs):
        theirs.sendall(b"x" * 100_000 + b"\nnext\n")
        assert file.readline() == b"x" * 100_000 + b"\n"
        assert file.readline() == b"next\n"
        theirs.sendall(b"one\n")
        assert file.readline() == b"one\n"
        file.timeout = MOMENT
        with pytest.raises(TimeoutError):
            file.readline()
        theirs.sendall(b"two\n")
        assert file.readline() == b"two\n"


@pytest.mark.parametrize("first", [b"first\n", b"first\npart", b"first\nsecond\npart"])
@pytest.mark.parametrize(("mode", "how"), EVERY_READ)
def test_timeout_set_later_loses_nothing(mode: str, how: str, first: bytes) -> None:
    """A timeout that is set when a file has already been read from, up to a line or beyond, counts as well."""
    with conversation(mode, timeout=None) as (file, theirs):
        theirs.sendall(first)
        assert file.readline() == data_for(mode, "first\n")
        stream_of(file).timeout = MOMENT
        pieces: list[Any] = []
        expected = data_for(mode, first[6:].decode() + " of a line\nlast\n")
        try:
            collect(file, reads_for(mode)[how], feeding(theirs, b" of a line\n", b"last\n"), pieces)
        except Refused:
            # A text file has decoded it.
            assert mode in ("r", "rw") and (first != b"first\n" or (mode, how) not in NEVER_REFUSED)
            assert expected.startswith(data_for(mode, "").join(pieces))
        else:
            assert data_for(mode, "").join(pieces) == expected


@pytest.mark.parametrize("mode", ["rb", "rwb"])
@pytest.mark.parametrize("how", reads_for("rb"))
def test_nonblocking_set_later_loses_nothing(mode: str, how: str) -> None:
    """A binary file over a stream that becomes nonblocking then: nothing yet is never taken for the end."""
    with conversation(mode, timeout=None) as (file, theirs):
        theirs.sendall(b"first\npart")
        assert file.readline() == b"first\n"
        stream_of(file).set_nonblocking(True)
        pieces: list[Any] = []
        collect(file, reads_for(mode)[how], feeding(theirs, b" of a line\n", b"last\n"), pieces)
        assert b"".join(pieces) == b"part of a line\nlast\n"


@pytest.mark.parametrize("mode", ["rb", "rwb"])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("how", ["readline", "read", "read(100)", "readinto(100)", "iterator"])
def test_a_method_from_before_the_timeout(how: str, used: bool, mode: str) -> None:
    """What was held of a file when its timeout was set loses nothing in silence: the file refuses to go on."""
    with conversation(mode, timeout=None) as (file, theirs):
        held: dict[str, Callable[[], Any]] = {
            "readline": file.readline,
            "read": file.read,
            "read(100)": partial(file.read, 100),
            "readinto(100)": partial(file.readinto, bytearray(100)),
            "iterator": iter(file).__next__,
        }
        theirs.sendall(b"first\n")
        assert file.readline() == b"first\n"
        stream_of(file).timeout = MOMENT
        theirs.sendall(b"second\n")
        if used:
            assert file.readline() == b"second\n"
        if how not in ("readline", "iterator"):
            theirs.sendall(b"third\n")
        elif not used:
            assert held[how]() == b"second\n"
        with pytest.raises(TimeoutError):
            held[how]()
        theirs.sendall(b"last\n")
        with pytest.raises(OSError, match="cannot read on"):
            file.readline()


@pytest.mark.parametrize("mode", ["rb", "rwb"])
def test_timeout_set_while_a_thread_reads(mode: str) -> None:
    """Setting a timeout waits for no read that is on its way; that one goes on as it began."""
    with conversation(mode, timeout=None) as (file, theirs):
        theirs.sendall(b"part")
        with blocked_in(file.readline) as line:
            stream_of(file).timeout = PATIENCE
            theirs.sendall(b" of a line\nlast")
        assert line == [b"part of a line\n"]
        stream_of(file).timeout = MOMENT
        with pytest.raises(TimeoutError):
            file.readline()
        theirs.sendall(b" line\n")
        assert file.readline() == b"last line\n"


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_timeout_taken_away_lets_the_read_wait(mode: str) -> None:
    """After a timeout in the middle of a line, a stream without one waits for the rest of that line."""
    with conversation(mode) as (file, theirs):
        theirs.sendall(b"begin ")
        with pytest.raises(TimeoutError):
            file.readline()
        stream_of(file).timeout = None
        later = threading.Timer(0.02, theirs.sendall, [b"end\nnext\n"])
        later.start()
        assert file.readline() == data_for(mode, "begin end\n")
        assert file.readline() == data_for(mode, "next\n")
        later.join()


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_read_takes_no_longer_than_the_timeout(mode: str) -> None:
    """The timeout is for the whole call, though bytes keep dribbling in."""
    with conversation(mode, timeout=0.2) as (file, theirs):
        enough = threading.Event()

        def dribble() -> None:
            while not enough.wait(0.02):
                theirs.sendall(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                file.readline()
            assert 0.1 < time.monotonic() - start < 5
        finally:
            enough.set()
            thread.join()


@pytest.mark.parametrize(
    ("mode", "at_first"),
    [
        *((mode, "a part comes") for mode in ("rb", "rwb", "r", "rw")),
        *((mode, at_first) for mode in ("rwb", "rw") for at_first in ("stalled, a part comes", "stalled")),
    ],
)
@pytest.mark.parametrize("how", ["readline", "next", "readlines", "read"])
def test_what_comes_in_parts_does_not_lengthen_the_timeout(
    how: str, mode: str, at_first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that comes, or room to send, shortly before the time is over leaves no more than the rest of it."""
    now = 1_000.0
    deadlines: list[float] = []
    with conversation(mode, timeout=1.0) as (file, theirs):

        def waiting(_: object, deadline: float) -> int:
            """Something happens when three quarters of the time are over, and nothing after that."""
            nonlocal now
            deadlines.append(deadline)
            if len(deadlines) > 1:
                raise _waiting.timed_out()
            now += 0.75
            if at_first == "stalled":
                here(theirs)
                return _waiting.POLLOUT
            theirs.sendall(b"part")
            return _waiting.POLLIN

        for module in (_timing, _source):
            monkeypatch.setattr(module, "monotonic", lambda: now)
        monkeypatch.setattr(_timing, "wait_by", waiting)
        monkeypatch.setattr(stream_module, "wait", lambda fd, events, deadline: waiting(fd, deadline))
        if at_first != "a part comes":
            fill(stream_of(file))
            file.write(data_for(mode, "request"))
        with pytest.raises(TimeoutError):
            READS[how](file)
        monkeypatch.undo()
        here(theirs)
    assert deadlines == [1_001.0, 1_001.0]


@pytest.mark.parametrize("mode", ["rwb", "rw"])
def test_request_that_cannot_be_sent_lets_the_read_time_out(mode: str) -> None:
    """A peer that neither reads nor talks: the read times out, and the request is sent whole later on."""
    with conversation(mode, 2_000_000, timeout=0.01) as (file, theirs):
        request = "".join(f"{at:08d}\n" for at in range(100_000))
        file.write(data_for(mode, request))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                file.readline()
        theirs.sendall(b"reply\n")
        assert file.readline() == data_for(mode, "reply\n")
        arrived = bytearray()
        while len(arrived) < len(request):
            arrived += theirs.recv(1 << 20)
            with suppress(TimeoutError):
                file.flush()
        assert arrived.decode() == request


# --- writing ---


def persistent_writes(
    rng: random.Random, file: Any, theirs: socket.socket, datas: list[Any], flushes: float
) -> tuple[bytes, int]:
    """Write and flush each until it succeeds; the other end reads only then. What arrives, and how many failed."""
    arrived = bytearray()
    failures = 0

    def until_it_works(call: Callable[[], object]) -> None:
        nonlocal failures, arrived
        while True:
            try:
                call()
            except (TimeoutError, BlockingIOError) as error:
                if getattr(error, "characters_written", 0):
                    raise
                failures += 1
                arrived += theirs.recv(rng.randrange(1, 100_000))
            else:
                return

    for data in datas:
        until_it_works(lambda data=data: file.write(data))  # type: ignore[misc]
        if rng.random() < flushes:
            until_it_works(file.flush)
    until_it_works(file.flush)
    file.close()
    return bytes(arrived) + b"".join(iter(lambda: theirs.recv(1 << 20), b"")), failures


SENDING: dict[str, Callable[[Any], Any]] = {
    "write": lambda file: file.write(data_for(file.mode, "x" * 300_000)),
    "flush": lambda file: file.write(data_for(file.mode, "x")) and file.flush(),
    "close": lambda file: file.write(data_for(file.mode, "x")) and file.close(),
}


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
@pytest.mark.parametrize("how", SENDING)
def test_a_write_waits_no_longer_than_the_timeout(
    how: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout is for the whole call, however many layers try to send."""
    waited = 0.0

    def waiting(poller: Any, deadline: float) -> int:
        nonlocal waited
        waited += max(0.0, deadline - time.monotonic())
        return _waiting.wait_by(poller, deadline)

    monkeypatch.setattr(_timing, "wait_by", waiting)
    with conversation(mode, timeout=None) as (file, theirs):
        stream = stream_of(file)
        fill(stream)
        stream.timeout = 0.05
        with suppress(TimeoutError):
            SENDING[how](file)
        theirs.close()
        with suppress(OSError):
            file.close()
    assert 0 < waited <= 0.05


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
@pytest.mark.parametrize(("buffering", "flushes"), [(-1, 0.3), (1, 0), (16, 0), (16, 0.3), (100_000, 0.3)])
def test_write_that_timed_out_can_be_repeated(mode: str, buffering: int, flushes: float) -> None:
    """Writes and flushes through timeouts, each repeated until it succeeds: all arrives once, in order."""
    if buffering == 1 and "b" in mode:
        return
    for seed in range(2):
        rng = random.Random(seed)
        texts = []
        for at in range(40):
            lines = rng.choice([1, 5, 300, 4_000, 20_000] if at % 10 == 0 else [1, 5, 300, 1_000])
            texts.append("".join(f"{seed} {at} {line}\n" for line in range(lines)))
        with conversation(mode, buffering) as (file, theirs):
            stream_of(file)._bare().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            datas = [data_for(mode, text) for text in texts]
            arrived, failures = persistent_writes(rng, file, theirs, datas, flushes)
        # No comparison of a megabyte in the message.
        same = arrived.decode() == "".join(texts)
        assert same, f"seed {seed}: {len(arrived)} bytes of {len(''.join(texts))} arrived"
        assert failures


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_big_writes_through_timeouts(mode: str) -> None:
    """Writes of more than the socket holds, through timeouts: all arrives once, in order."""
    texts = ["".join(f"{part} {line}\n" for line in range(60_000)) for part in range(3)]
    with conversation(mode) as (file, theirs):
        datas = [data_for(mode, text) for text in texts]
        arrived, failures = persistent_writes(random.Random(1), file, theirs, datas, 0)
    same = arrived.decode() == "".join(texts)
    assert same and failures


@pytest.mark.parametrize("mode", ["w", "rw"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-8-sig"])
def test_encoded_writes_through_timeouts(mode: str, encoding: str) -> None:
    """A timeout in text of wide characters, or with a mark at the beginning: all of it, and one mark."""
    texts = [f"{at} é\n" * 500 for at in range(40)]
    with conversation(mode, encoding=encoding) as (file, theirs):
        stream_of(file)._bare().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        arrived, failures = persistent_writes(random.Random(1), file, theirs, list(texts), 0.1)
    assert arrived == "".join(texts).encode(encoding)
    assert failures


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_flush_that_got_halfway_goes_on_from_there(mode: str) -> None:
    """A flush that waits, sends some more, and then times out: what it sent is not sent again."""
    with conversation(mode, 2_000_000, timeout=0.05) as (file, theirs):
        text = "".join(f"{at:08d}\n" for at in range(100_000))
        file.write(data_for(mode, text))
        arrived = bytearray()

        def read_some() -> None:
            while len(arrived) < 400_000:
                arrived.extend(theirs.recv(50_000))

        reader = threading.Thread(target=read_some)
        reader.start()
        while reader.is_alive():
            with suppress(TimeoutError):
                file.flush()
        with pytest.raises(TimeoutError):
            file.flush()
        stream_of(file).timeout = None
        reader = threading.Thread(target=lambda: arrived.extend(everything(theirs)))
        reader.start()
        file.close()
        reader.join()
        same = arrived.decode() == text
        assert same, f"{len(arrived)} bytes of {len(text)} arrived"


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_failed_flush_keeps_what_it_could_not_send(mode: str) -> None:
    """A flush that times out says so, each time, and keeps the rest; `close` says so, too."""
    with conversation(mode, 2_000_000) as (file, theirs):
        text = "".join(f"{at:08d}\n" for at in range(100_000))
        file.write(data_for(mode, text))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                file.flush()
        before = here(theirs)
        assert text.encode().startswith(before)
        with pytest.raises(TimeoutError):
            file.close()
        rest = b"".join(iter(lambda: theirs.recv(1 << 20), b""))
        assert text.encode().startswith(before + rest) and len(before + rest) < len(text)


@pytest.mark.parametrize("mode", ["rwb", "rw"])
def test_reads_and_writes_through_timeouts(mode: str) -> None:
    """Reads and writes in random order, timeouts in both: each way arrives whole, once, in order."""
    for seed in range(5):
        rng = random.Random(seed)
        with conversation(mode) as (file, theirs):
            stream_of(file)._bare().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            to_come = [f"line {at} {'x' * rng.randrange(60)}\n".encode() for at in range(300)]
            coming = b"".join(to_come)
            going: list[str] = []
            got: list[Any] = []
            arrived = bytearray()
            sent = 0
            while sent < len(coming) or len(got) < len(to_come):
                action = rng.randrange(4)
                if action == 0:
                    step = rng.randrange(1, 400)
                    theirs.sendall(coming[sent : sent + step])
                    sent += step
                elif action == 1:
                    arrived += here(theirs)
                elif action == 2 and len(got) < len(to_come):
                    with suppress(TimeoutError):
                        got.append(file.readline())
                else:
                    text = f"{len(going)} {'y' * rng.randrange(3_000)}\n"
                    try:
                        file.write(data_for(mode, text))
                    except TimeoutError:
                        continue
                    going.append(text)
            reader = threading.Thread(target=lambda: arrived.extend(everything(theirs)))  # noqa: B023
            reader.start()
            stream_of(file).timeout = None
            file.close()
            reader.join()
        assert got == [data_for(mode, line.decode()) for line in to_come]
        same = arrived.decode() == "".join(going)
        assert same, f"seed {seed}"


# --- nonblocking ---


@pytest.mark.parametrize(("mode", "how"), [each for each in EVERY_READ if "b" in each[0]])
@pytest.mark.parametrize("when", ["before", "after"])
def test_nonblocking_read_can_be_repeated(mode: str, how: str, when: str) -> None:
    """A nonblocking binary file: a message cut anywhere comes whole, and nothing yet is told from the end."""
    message = MESSAGE.encode()
    for cut in range(len(message) + 1):
        ours, theirs = socket.socketpair()
        stream = UdStream.from_socket(ours)
        if when == "before":
            stream.set_nonblocking(True)
        with theirs, stream.makefile(mode) as file:
            stream.set_nonblocking(True)
            pieces: list[Any] = []
            feed = feeding(theirs, message[:cut], message[cut:])
            next(feed)
            read = reads_for(mode)[how]
            if when == "after":
                # The buffers of the standard library do what they do with None: they lose nothing.
                collect_until_done(file, read, feed, pieces)
            else:
                collect(file, read, feed, pieces)
            assert b"".join(pieces) == message, f"cut at {cut}"


def collect_until_done(
    file: Any, read: Callable[[Any], Any], feed: Iterator[object], pieces: list[Any]
) -> None:
    """As `collect`, but where nothing yet may look like the end, as it does in the standard library."""
    while True:
        try:
            piece = read(file)
        except BlockingIOError:
            piece = None
        if piece:
            pieces += piece if isinstance(piece, list) else [piece]
        elif next(feed, "over") == "over":
            return


@pytest.mark.parametrize("mode", ["rb", "rwb"])
def test_nonblocking_read_returns_what_there_is(mode: str) -> None:
    """`read(n)` and `readinto` of a nonblocking file: what has come; None, if that is nothing; b"" at the end."""
    ours, theirs = socket.socketpair()
    stream = UdStream.from_socket(ours)
    stream.set_nonblocking(True)
    with theirs, stream.makefile(mode) as file:
        assert file.read(10) is None
        assert file.read() is None
        assert file.readinto(bytearray(10)) is None
        theirs.sendall(b"abc")
        assert file.read(10) == b"abc"
        theirs.sendall(b"def")
        assert file.read() == b"def"
        assert file.read(10) is None
        theirs.sendall(b"no end")
        with pytest.raises(BlockingIOError):
            file.readline()
        theirs.shutdown(socket.SHUT_WR)
        assert file.readline() == b"no end"
        assert file.read(10) == file.read() == file.readline() == b""


@pytest.mark.parametrize("mode", ["wb", "rwb"])
def test_nonblocking_write_counts_what_it_took(mode: str) -> None:
    """A nonblocking file that is full raises `BlockingIOError`; what it took by then arrives once, in order."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    stream = UdStream.from_socket(ours)
    stream.set_nonblocking(True)
    taken = bytearray()
    arrived = bytearray()
    with theirs, stream.makefile(mode) as file:
        refusals = 0
        for at in range(4_000):
            rest = b"%d %s\n" % (at, b"x" * 300)
            while rest:
                try:
                    count = file.write(rest)
                except BlockingIOError as error:
                    count = getattr(error, "characters_written", 0)
                    refusals += 1
                    arrived += theirs.recv(100_000)
                taken += rest[:count]
                rest = rest[count:]
        while True:
            try:
                file.flush()
                break
            except BlockingIOError:
                arrived += theirs.recv(100_000)
        file.close()
        arrived += everything(theirs)
    assert refusals
    same = arrived == taken
    assert same


@pytest.mark.parametrize("mode", ["rwb"])
def test_nonblocking_conversation(mode: str) -> None:
    """Reading a nonblocking rw file sends what it can, and never waits for the rest."""
    ours, theirs = socket.socketpair()
    stream = UdStream.from_socket(ours)
    stream.set_nonblocking(True)
    with theirs, stream.makefile(mode, 2_000_000) as file:
        file.write(b"request\n")
        assert file.read(5) is None
        assert here(theirs) == b"request\n"
        file.write(b"x" * 1_000_000)
        assert file.read(5) is None
        theirs.settimeout(PATIENCE)
        theirs.sendall(b"reply\n")
        assert file.readline() == b"reply\n"
        stream.set_nonblocking(False)
        arrived = bytearray()
        reader = threading.Thread(target=lambda: arrived.extend(everything(theirs)))
        reader.start()
        file.close()
        reader.join()
        assert arrived == b"x" * 1_000_000


@pytest.mark.parametrize("mode", ["rwb", "rw"])
@pytest.mark.parametrize("collecting", [False, True])
def test_the_request_that_nobody_takes_is_in_the_time_of_the_read(mode: str, collecting: bool) -> None:
    """A read that has to send first, to a peer that takes nothing, ends with the timeout; nothing of either is lost."""
    with conversation(mode, timeout=0.05) as (file, theirs):
        stream = stream_of(file)
        stream.collect_ancillary = collecting
        stream.set_nonblocking(True)
        size = 0
        while (count := stream.write(bytes(1 << 16))) is not None:
            size += count
        while (count := stream.write(b"\0")) is not None:
            size += count
        stream.set_nonblocking(False)
        file.write(data_for(mode, "request\n"))

        with pytest.raises(TimeoutError):
            file.readline()
        assert theirs.recv(size, socket.MSG_WAITALL) == bytes(size)
        theirs.send(b"reply\n")
        assert file.readline() == data_for(mode, "reply\n")
        assert theirs.recv(100) == b"request\n"


@pytest.mark.parametrize("sent", [b"\rabc", b"\r\rabc", b"x\rabc"])
def test_a_carriage_return_ends_a_line_at_once(sent: bytes) -> None:
    """Of what came, each line is handed out, whatever ends it: none is held back for want of a newline."""
    with conversation("r", timeout=PATIENCE / 2) as (file, theirs):
        theirs.send(sent)
        for line in sent.split(b"\r")[:-1]:
            assert file.readline() == line.decode() + "\n"
        theirs.send(b"\n")
        assert file.readline() == "abc\n"


@pytest.mark.parametrize("size", [2, 3, 100])
def test_text_that_times_out_in_its_middle_is_the_last(size: int) -> None:
    """What read(size) of a text file had got is lost then: whoever reads on is told, and again; read(1) loses nothing."""
    with conversation("r", timeout=0.05) as (file, theirs):
        with pytest.raises(TimeoutError):
            file.read(1)
        theirs.send(b"x")
        assert file.read(1) == "x"
        theirs.send(b"y")
        with pytest.raises(TimeoutError):
            file.read(size)
        theirs.send(b"z\n")
        for _ in range(2):
            with pytest.raises(OSError, match="cannot read on"):
                file.readline()
