"""Files for reading and writing: what was written goes first, nothing is lost, neither direction waits."""

from __future__ import annotations

import gc
import io
import itertools
import os
import random
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from connections import conversation, data_for, everything, here, stream_of
from meanwhile import PATIENCE, beside, on_alarm

from udstream import Shutdown, UdStream, _sink

pytestmark = pytest.mark.usefixtures("no_endless_wait")

MODES = ["rwb", "rw"]
# More than a Unix socket's buffers hold, several times.
MUCH = 1_000_000


def exactly(theirs: socket.socket, count: int) -> bytes:
    """That many bytes of what arrives, or fewer at the end of file."""
    got = bytearray()
    while len(got) < count and (chunk := theirs.recv(min(count - len(got), 1 << 16))):
        got += chunk
    return bytes(got)


def numbered(count: int, width: int = 20) -> str:
    """That many lines, no two alike."""
    return "".join(f"{at:0{width}d}\n" for at in range(count))


# Each reads the line "line\n" from a file, one way or another.
READS: dict[str, Callable[[Any], Any]] = {
    "readline": lambda file: file.readline(),
    "readline(5)": lambda file: file.readline(5),
    "read": lambda file: file.read(5),
    "read(1)": lambda file: file.read(1) + file.read(4),
    "next": lambda file: next(file),
    "iterator": lambda file: next(iter(file)),
    "readlines": lambda file: file.readlines(1)[0],
}
BINARY_READS: dict[str, Callable[[Any], Any]] = {
    "read1": lambda file: file.read1(5),
    "peek": lambda file: file.peek(5)[:5] and file.read(5),
    "readinto": lambda file: (
        bytes(memoryview(bytearray(5))[: file.readinto(store := bytearray(5))]) and bytes(store)
    ),
    "readinto1": lambda file: file.readinto1(store := bytearray(5)) and bytes(store),
}


def reads_for(mode: str) -> dict[str, Callable[[Any], Any]]:
    """The ways to read of a file of this mode."""
    return READS | BINARY_READS if "b" in mode else READS


EVERY_READ = [(mode, how) for mode in MODES for how in reads_for(mode)]


# --- reading sends first ---


@pytest.mark.parametrize(("mode", "how"), EVERY_READ)
@pytest.mark.parametrize(("timeout", "buffering"), [(None, -1), (9.0, 64)])
def test_request_and_reply_need_no_flush(mode: str, how: str, timeout: float | None, buffering: int) -> None:
    """Every way of reading first sends the request that the reply waits for."""
    with conversation(mode, buffering, timeout) as (file, theirs):

        def server() -> None:
            for at in range(5):
                assert exactly(theirs, 5) == b"req%d\n" % at
                theirs.sendall(b"line\n")

        with beside(server):
            for at in range(5):
                file.write(data_for(mode, f"req{at}\n"))
                assert reads_for(mode)[how](file) == data_for(mode, "line\n")


@pytest.mark.parametrize(("mode", "how"), EVERY_READ)
@pytest.mark.parametrize(("timeout", "buffering"), [(None, -1), (9.0, 64)])
def test_reading_what_is_at_hand_sends_first(
    mode: str, how: str, timeout: float | None, buffering: int
) -> None:
    """Reading sends what was written even when the reply to an earlier request is already in the buffer."""
    with conversation(mode, buffering, timeout) as (file, theirs):
        theirs.sendall(b"line\n" * 10)
        assert file.readline() == data_for(mode, "line\n")
        for at in range(8):
            file.write(data_for(mode, f"request {at}\n"))
            assert here(theirs) == b""
            assert reads_for(mode)[how](file) == data_for(mode, "line\n")
            assert here(theirs) == b"request %d\n" % at


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_loop_over_lines_sends_each_answer(mode: str, timeout: float | None) -> None:
    """What the body of a ``for`` writes is sent before the next line is taken, at hand or not."""
    with conversation(mode, timeout=timeout) as (file, theirs):
        theirs.sendall(b"1\n2\n3\n")
        answered = 0
        for line in file:
            if answered:
                assert here(theirs) == b"answer %d\n" % answered
            answered = int(line)
            file.write(data_for(mode, f"answer {answered}\n"))
            if answered == 3:
                theirs.sendall(b"4\n5\n")
            if answered == 5:
                theirs.shutdown(socket.SHUT_WR)
        assert here(theirs) == b"answer 5\n"


@pytest.mark.parametrize("mode", MODES)
def test_pipelined_requests_go_out_together(mode: str) -> None:
    """Requests that are written in a row are sent in one piece, by the first read."""
    with conversation(mode) as (file, theirs):
        for at in range(100):
            file.write(data_for(mode, f"{at:03d}\n"))
        theirs.sendall(b"reply\n" * 100)
        file.readline()
        assert here(theirs) == b"".join(b"%03d\n" % at for at in range(100))


@pytest.mark.parametrize("mode", MODES)
def test_reading_to_the_end_sends_first(mode: str) -> None:
    """`read()` and `readlines()` send what was written before they wait for the end of file."""
    for method in ("read", "readlines"):
        with conversation(mode) as (file, theirs):

            def server(theirs: socket.socket = theirs) -> None:
                assert exactly(theirs, 4) == b"bye\n"
                theirs.sendall(b"one\ntwo\n")
                theirs.shutdown(socket.SHUT_WR)

            file.write(data_for(mode, "bye\n"))
            with beside(server):
                result = getattr(file, method)()
        assert data_for(mode, "").join(result if isinstance(result, list) else [result]) == data_for(
            mode, "one\ntwo\n"
        )


def test_text_and_its_buffer_share_what_was_written() -> None:
    """What was written as text or to `.buffer` is sent in its order by a read of either."""
    with conversation("rw", encoding="ascii") as (file, theirs):
        theirs.sendall(b"1\n2\n3\n")
        file.write("text ")
        assert file.readline() == "1\n"
        assert here(theirs) == b"text "
        file.buffer.write(b"bytes ")
        file.write("text again ")
        assert file.readline() == "2\n"
        assert here(theirs) == b"bytes text again "
    with conversation("rw", encoding="ascii") as (file, theirs):
        theirs.sendall(b"1\n")
        file.write("text ")
        assert file.buffer.readline() == b"1\n"
        assert here(theirs) == b"text "


@pytest.mark.parametrize("mode", MODES)
def test_loop_that_writes_leaves_nothing_behind(mode: str) -> None:
    """A file that is dropped after reads and writes sends what was written since."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with theirs:
        file = UdStream.from_socket(ours).makefile(mode)
        theirs.sendall(b"1\n2\n")
        file.write(data_for(mode, "a"))
        file.readline()
        file.write(data_for(mode, "b"))
        with pytest.warns(ResourceWarning):
            del file
            gc.collect()
        assert everything(theirs) == b"ab"


# --- any order loses nothing ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_writing_does_not_drop_what_was_read_ahead(mode: str, timeout: float | None) -> None:
    """Three lines come at once; one is read, one is written: the other two are still there."""
    with conversation(mode, timeout=timeout) as (file, theirs):
        theirs.sendall(b"one\ntwo\nthree\n")
        assert file.readline() == data_for(mode, "one\n")
        file.write(data_for(mode, "reply\n"))
        file.flush()
        assert file.readline() == data_for(mode, "two\n")
        file.write(data_for(mode, "reply\n"))
        theirs.shutdown(socket.SHUT_WR)
        assert file.read() == data_for(mode, "three\n")
        assert here(theirs) == b"reply\nreply\n"


class Model:
    """What a file over a connection must do, as the simplest thing that does it: two strings."""

    def __init__(self, binary: bool) -> None:
        self.coming: Any = b"" if binary else ""
        self.going: Any = b"" if binary else ""

    def take(self, count: int) -> Any:
        """The next *count* items of what comes."""
        taken, self.coming = self.coming[:count], self.coming[count:]
        return taken

    def line(self, limit: int = -1) -> Any:
        """The next line, or up to *limit* items of it."""
        newline: Any = b"\n" if isinstance(self.coming, bytes) else "\n"
        end = self.coming.find(newline) + 1 or len(self.coming)
        return self.take(end if limit < 0 else min(end, limit))


def any_order(rng: random.Random, mode: str, file: Any, theirs: socket.socket, encoding: str) -> None:
    """Read and write at random, never more than has been sent, and compare with a model at every step."""
    model = Model("b" in mode)
    arrived = bytearray()
    sent_whole = bytearray()
    # The other end may cut characters: what it has not yet sent of what it was to send.
    backlog = b""
    decoded_upto = 0
    for _ in range(rng.randrange(10, 60)):
        action = rng.randrange(10)
        if action < 3:
            text = "".join(rng.choices(["\n", "abc", "é", "日本", "x" * 40, "𝄞"], k=rng.randrange(1, 9)))
            backlog += text.encode(encoding)
            cut = len(backlog) if "b" in mode and rng.random() < 0.3 else rng.randrange(len(backlog) + 1)
            theirs.sendall(backlog[:cut])
            sent_whole += backlog[:cut]
            backlog = backlog[cut:]
            if "b" in mode:
                model.coming += bytes(sent_whole[decoded_upto:])
                decoded_upto = len(sent_whole)
            else:
                whole = bytes(sent_whole).decode(encoding, "ignore")
                model.coming += whole[decoded_upto:]
                decoded_upto = len(whole)
        elif action < 6:
            text = "".join(rng.choices(["\n", "abc", "é", "z" * 30], k=rng.randrange(1, 5)))
            written = text.encode(encoding) if "b" in mode else text
            assert file.write(written) == len(written)
            model.going += written
        elif action == 6:
            file.flush()
        elif model.coming:
            newline: Any = b"\n" if "b" in mode else "\n"
            size = rng.randrange(1, len(model.coming) + 1)
            if action == 7:
                assert file.read(size) == model.take(size)
            elif action == 8 and newline in model.coming:
                assert (next(file) if rng.random() < 0.5 else file.readline()) == model.line()
            elif "b" in mode and rng.random() < 0.5:
                store = bytearray(size)
                assert file.readinto(store) == size and store == model.take(size)
            elif newline in model.coming:
                assert file.readline(size) == model.line(size)
            else:
                continue
            # A read has sent all that was written.
            arrived += here(theirs)
            if "b" in mode:
                assert arrived == model.going
            else:
                assert arrived.decode(encoding) == model.going
    theirs.sendall(backlog)
    theirs.shutdown(socket.SHUT_WR)
    rest = bytes(sent_whole) + backlog
    rest_text = rest[decoded_upto:] if "b" in mode else rest.decode(encoding)[decoded_upto:]
    assert file.read() == model.coming + rest_text
    file.close()
    arrived += everything(theirs)
    assert (bytes(arrived) if "b" in mode else arrived.decode(encoding)) == model.going


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be"])
def test_any_order_of_reads_and_writes_loses_nothing(mode: str, timeout: float | None, encoding: str) -> None:
    """Reads and writes in random order, the sender cutting where it likes, agree with a model at every step."""
    if "b" in mode and encoding != "utf-8":
        encoding = "latin-1" if encoding == "utf-16-le" else "ascii"
    for seed in range(60):
        rng = random.Random(seed)
        with conversation(mode, rng.choice([-1, 2, 16]), timeout, **text_for(mode, encoding)) as (
            file,
            theirs,
        ):
            try:
                any_order(rng, mode, file, theirs, "utf-8" if "b" in mode else encoding)
            except BaseException as error:
                raise AssertionError(f"seed {seed}") from error


def text_for(mode: str, encoding: str) -> dict[str, str]:
    """The arguments for text, which binary files do without."""
    return {} if "b" in mode else {"encoding": encoding, "newline": ""}


# --- two threads ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize("piece", [100, 5_000, 400_000])
def test_reader_thread_and_writer_thread_do_not_wait_for_each_other(
    mode: str, timeout: float | None, piece: int
) -> None:
    """Both ends write more than the socket holds, and both read, each in two threads: all of it arrives."""
    ours, theirs = UdStream.pair()
    ours.timeout = theirs.timeout = timeout
    lines = numbered(MUCH // 100, 99)
    data = data_for(mode, lines)
    got: dict[str, Any] = {}

    def write(file: Any) -> None:
        for at in range(0, len(data), piece):
            file.write(data[at : at + piece])
        file.flush()
        stream_of(file).shutdown(Shutdown.WRITE)

    def read(name: str, file: Any) -> None:
        got[name] = list(file)

    with ours.makefile(mode) as one, theirs.makefile(mode) as other:
        with beside(
            lambda: write(one), lambda: read("one", one), lambda: write(other), lambda: read("other", other)
        ):
            pass
    assert got["one"] == got["other"] == data.splitlines(keepends=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_reader_drains_while_a_writer_waits(mode: str, timeout: float | None) -> None:
    """While one thread is stuck in a write, another reads all that comes: the other end can go on."""
    with conversation(mode, timeout=timeout) as (file, theirs):
        data = numbered(MUCH // 21)
        stuck = threading.Event()

        def write() -> None:
            stuck.set()
            file.write(data_for(mode, data))
            file.flush()

        def other_end() -> None:
            # It reads nothing before all that it has to say is out.
            stuck.wait()
            theirs.sendall(data.encode())
            assert exactly(theirs, len(data)).decode() == data

        with beside(write, other_end):
            stuck.wait()
            for line in data.splitlines(keepends=True):
                assert file.readline() == data_for(mode, line)


@pytest.mark.parametrize("mode", MODES)
def test_writer_goes_on_while_a_reader_waits(mode: str) -> None:
    """While one thread waits in a read, another can write and flush."""
    with conversation(mode) as (file, theirs):
        waiting = threading.Event()
        lines: list[Any] = []

        def read() -> None:
            waiting.set()
            lines.append(file.readline())

        with beside(read):
            waiting.wait()
            for at in range(50):
                file.write(data_for(mode, f"{at}\n"))
                file.flush()
                assert exactly(theirs, len(f"{at}\n")) == b"%d\n" % at
            theirs.sendall(b"at last\n")
        assert lines == [data_for(mode, "at last\n")]


@pytest.mark.parametrize("mode", MODES)
def test_two_threads_keep_every_request_in_order(mode: str) -> None:
    """One thread writes small requests, another reads the replies: each arrives once, in order."""
    count = 3_000
    with conversation(mode) as (file, theirs):

        def server() -> None:
            with theirs.makefile("rb") as requests:
                for at, request in enumerate(requests):
                    assert request == b"request %d\n" % at
                    theirs.sendall(b"reply %d\n" % at)
            theirs.shutdown(socket.SHUT_WR)

        def write() -> None:
            for at in range(count):
                file.write(data_for(mode, f"request {at}\n"))
            file.flush()
            stream_of(file).shutdown(Shutdown.WRITE)

        with beside(server, write):
            for at in range(count):
                assert file.readline() == data_for(mode, f"reply {at}\n")
            assert not file.readline()


@pytest.mark.parametrize("mode", MODES)
def test_reader_thread_sends_whatever_moment_it_was_written_at(mode: str) -> None:
    """What one thread writes, without a flush, while another is reading goes out with a later read."""
    count = 1_500
    arrived = threading.Semaphore(0)
    interval = sys.getswitchinterval()
    with conversation(mode) as (file, theirs):
        over = threading.Event()

        def other_end() -> None:
            # Lines keep coming, so that reads keep being made.
            while not over.is_set():
                theirs.sendall(b"tick\n")
                for _ in range(here(theirs).count(b"\n")):
                    arrived.release()
            theirs.shutdown(socket.SHUT_WR)

        def read() -> None:
            for _ in file:
                pass

        sys.setswitchinterval(1e-6)
        try:
            with beside(other_end, read):
                try:
                    for at in range(count):
                        file.write(data_for(mode, f"request {at}\n"))
                        assert arrived.acquire(timeout=2), f"request {at} was not sent by any later read"
                finally:
                    over.set()
        finally:
            sys.setswitchinterval(interval)


# --- more than the socket holds ---


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize("buffering", [-1, 1_500_000])
def test_one_big_write_arrives_whole(mode: str, timeout: float | None, buffering: int) -> None:
    """A write of more than the socket holds, between small ones, arrives whole, to a slow reader."""
    data = numbered(MUCH // 21)
    got: list[bytes] = []
    with conversation(mode, buffering, timeout) as (file, theirs):

        def slow() -> None:
            while chunk := theirs.recv(30_011):
                got.append(chunk)

        with beside(slow):
            file.write(data_for(mode, "begin\n"))
            assert file.write(data_for(mode, data)) == len(data)
            file.write(data_for(mode, "end\n"))
            file.close()
    assert b"".join(got).decode() == f"begin\n{data}end\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_reading_does_not_wait_for_a_peer_that_talks_first(mode: str, timeout: float | None) -> None:
    """With more written than the socket takes, reading gets what comes, and sends the rest as it can."""
    with conversation(mode, 2_000_000, timeout) as (file, theirs):
        data = numbered(MUCH // 21)

        def talks_first() -> None:
            theirs.sendall(data.encode())
            assert exactly(theirs, len(data)).decode() == data
            theirs.sendall(b"thanks\n")

        file.write(data_for(mode, data))
        with beside(talks_first):
            for line in data.splitlines(keepends=True):
                assert file.readline() == data_for(mode, line)
            assert file.readline() == data_for(mode, "thanks\n")


@pytest.mark.parametrize("mode", MODES)
def test_lines_at_hand_do_not_wait_for_a_peer_that_reads_nothing(mode: str) -> None:
    """What has already come can be read while nothing more can be sent."""
    with conversation(mode, 2_000_000) as (file, theirs):
        theirs.sendall(b"one\ntwo\nthree\n")
        assert file.readline() == data_for(mode, "one\n")
        data = numbered(MUCH // 21)
        file.write(data_for(mode, data))
        assert file.readline() == data_for(mode, "two\n")
        assert file.readline() == data_for(mode, "three\n")
        with beside(file.flush):
            assert exactly(theirs, len(data)).decode() == data


# --- the other end goes away ---


def iterated(file: Any) -> Any:
    """All lines, by a ``for``; what it had when it failed is in the exception."""
    lines: list[Any] = []
    try:
        for line in file:
            lines.append(line)
    except BrokenPipeError as error:
        error.lines = lines  # type: ignore[attr-defined]
        raise
    return lines


def readinto(file: Any) -> bytes:
    """Up to 100 bytes."""
    store = bytearray(100)
    return bytes(store[: file.readinto(store)])


TO_THE_END: dict[str, Callable[[Any], Any]] = {
    "readline": lambda file: file.readline(),
    "readline(2)": lambda file: file.readline(2),
    "read()": lambda file: file.read(),
    "read(1)": lambda file: file.read(1),
    "read(3)": lambda file: file.read(3),
    "read(100)": lambda file: file.read(100),
    "readlines": lambda file: file.readlines(),
    "for": iterated,
}
BINARY_TO_THE_END = {"read1": lambda file: file.read1(100), "readinto": readinto}


@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize(
    ("mode", "how"),
    [*((mode, how) for mode in MODES for how in TO_THE_END), *(("rwb", how) for how in BINARY_TO_THE_END)],
)
def test_broken_pipe_does_not_hide_what_can_be_read(mode: str, how: str, timeout: float | None) -> None:
    """A peer that answered and went away: all of its answer can be read, whatever was written meanwhile.

    That it never got what was written is an error in the end: of a read past the answer, or of `close`.
    """
    nothing = data_for(mode, "")
    get = (TO_THE_END | BINARY_TO_THE_END)[how]
    for at_hand, last in ((True, ""), (False, ""), (True, "no end"), (False, "no end")):
        answer = f"one\ntwo\nthree\n{last}"
        pieces: list[Any] = []
        errors = 0
        with conversation(mode, timeout=timeout) as (file, theirs):
            theirs.sendall(answer.encode())
            theirs.close()
            if at_hand:
                pieces.append(file.readline())
            file.write(data_for(mode, "never read"))
            for _ in range(40):
                try:
                    piece = get(file)
                except BrokenPipeError as error:
                    errors += 1
                    piece = getattr(error, "lines", nothing)
                else:
                    if not piece:
                        break
                pieces += piece if isinstance(piece, list) else [piece]
            try:
                file.close()
            except BrokenPipeError:
                errors += 1
        assert nothing.join(pieces) == data_for(mode, answer)
        assert errors


@pytest.mark.parametrize("mode", MODES)
def test_peer_that_only_stopped_reading_is_heard_out(mode: str) -> None:
    """A peer that shut down its reading still talks: its lines come, the error is that of the writing."""
    with conversation(mode) as (file, theirs):
        theirs.shutdown(socket.SHUT_RD)
        theirs.sendall(b"one\n")
        file.write(data_for(mode, "x"))
        assert file.readline() == data_for(mode, "one\n")
        theirs.sendall(b"two\n")
        assert file.readline() == data_for(mode, "two\n")
        with pytest.raises(BrokenPipeError):
            file.flush()
        with pytest.raises(BrokenPipeError):
            file.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_end_of_file_stays(mode: str, timeout: float | None) -> None:
    """After the end of file each read gives nothing, at once; writing is still possible."""
    with conversation(mode, timeout=timeout) as (file, theirs):
        theirs.sendall(b"no end")
        theirs.shutdown(socket.SHUT_WR)
        nothing = data_for(mode, "")
        assert file.readline() == data_for(mode, "no end")
        for _ in range(3):
            assert file.readline() == file.read(1) == file.read() == nothing
            assert file.readlines() == list(file) == []
        file.write(data_for(mode, "still here"))
        assert file.read() == nothing
        assert here(theirs) == b"still here"


@pytest.mark.parametrize("mode", MODES)
def test_end_of_writing_is_seen_by_the_peer(mode: str) -> None:
    """`flush` and `shutdown(WRITE)` of the stream end one direction; the other goes on."""
    with conversation(mode) as (file, theirs):
        file.write(data_for(mode, "all"))
        file.flush()
        stream_of(file).shutdown(Shutdown.WRITE)
        assert everything(theirs) == b"all"
        theirs.sendall(b"reply\n")
        assert file.readline() == data_for(mode, "reply\n")


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_broken_pipe_is_said(mode: str) -> None:
    """Writing to nobody is `BrokenPipeError`, of a flush or of a big write, never silence."""
    for data in ("x", "x" * MUCH):
        with conversation(mode) as (file, theirs):
            theirs.close()
            with pytest.raises(BrokenPipeError):
                file.write(data_for(mode, data))
                file.flush()
            with suppress(BrokenPipeError):
                file.close()


@pytest.mark.parametrize("flushing", [False, True])
@pytest.mark.parametrize("buffering", [-1, 1])
@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_who_writes_on_after_a_broken_pipe(mode: str, buffering: int, flushing: bool) -> None:
    """A writer that goes on, as a logger does, is told so each time; what can never be sent is not heaped up."""
    if "b" in mode and buffering == 1:
        pytest.skip("binary files have no line buffering")
    for size, times in ((1000, 1000), (20_000, 50)):
        line = data_for(mode, "x" * size + "\n")
        with conversation(mode, buffering=buffering) as (file, theirs):
            theirs.close()
            tracemalloc.start()
            try:
                for _ in range(times):
                    with suppress(BrokenPipeError):
                        file.write(line)
                        if flushing:
                            file.flush()
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert kept < 300_000
            with suppress(BrokenPipeError):
                file.close()


# --- exceptions from a signal's handler ---


class Stop(TimeoutError, ConnectionError):
    """What the handler raises."""


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize("how", ["write", "flush"])
def test_handler_that_raises_neither_doubles_nor_tears(mode: str, timeout: float | None, how: str) -> None:
    """A signal handler's exception in a write that waits: nothing is sent twice, or in part, in silence.

    Either that write arrives whole or not at all, and the file can be used further; or later calls refuse.
    """

    def stop(*_: object) -> None:
        raise Stop

    data = numbered(MUCH // 21)
    got: list[bytes] = []
    refused = False
    with conversation(mode, -1 if how == "write" else 2_000_000, timeout) as (file, theirs):
        with on_alarm(stop, 0.05), pytest.raises(Stop):
            file.write(data_for(mode, data))
            file.flush()
        with beside(lambda: got.append(everything(theirs))):
            try:
                file.write(data_for(mode, "end\n"))
                file.close()
            except OSError:
                refused = True
                with suppress(OSError):
                    file.close()
    arrived = b"".join(got).decode()
    if refused:
        assert data.startswith(arrived)
    else:
        # No comparison of a megabyte in the message.
        whole = arrived == data + "end\n" or (how == "write" and arrived == "end\n")
        assert whole, f"{len(arrived)} characters of {len(data)} and 'end' arrived"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize("how", ["readline", "next"])
def test_handler_that_raises_in_a_read_loses_no_line(mode: str, timeout: float | None, how: str) -> None:
    """A signal handler's exception in a read that waits for a line: the next read gets that line."""

    def stop(*_: object) -> None:
        raise Stop

    with conversation(mode, timeout=timeout) as (file, theirs):
        with on_alarm(stop, 0.05), pytest.raises(Stop):
            reads_for(mode)[how](file)
        theirs.sendall(b"line\n")
        assert reads_for(mode)[how](file) == data_for(mode, "line\n")


# --- odds and ends ---


def test_pair_of_files_talk_without_a_flush() -> None:
    """Two of our own files at the two ends hold a conversation without one flush."""
    ours, theirs = UdStream.pair()
    with ours.makefile("rw", encoding="utf-8") as client, theirs.makefile("rwb") as server:

        def serve() -> None:
            for line in server:
                server.write(line.upper())

        def ask() -> None:
            for at in range(200):
                client.write(f"frage {at} ä\n")
                assert client.readline() == f"FRAGE {at} ä\n"
            stream_of(client).shutdown(Shutdown.WRITE)

        with beside(serve):
            ask()


def test_stdlib_pair_would_hang_here() -> None:
    """What the standard library's own rw file does not do: it keeps the request while it waits for the reply."""
    ours, theirs = UdStream.pair()
    ours.timeout = 0.05
    raw: Any = ours
    with theirs, io.BufferedRWPair(raw, raw) as pair:
        pair.write(b"request\n")
        with pytest.raises(TimeoutError):
            pair.readline()
        theirs.timeout = 0.01
        with pytest.raises(TimeoutError):
            theirs.read(100)


@pytest.mark.parametrize("mode", MODES)
def test_no_descriptor_is_made_by_a_conversation(mode: str) -> None:
    """A file needs the stream's descriptor, and no other."""
    with conversation(mode) as (file, theirs):
        before = set(os.listdir("/proc/self/fd"))
        theirs.sendall(b"line\n" * 10)
        for _ in range(10):
            file.write(data_for(mode, "x" * 100))
            file.readline()
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_read_does_not_send_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer takes what was written, slowly and with no end in sight: the read is over when its time is."""
    rounds = itertools.count()

    def send_a_little(sink: object) -> bool:
        assert next(rounds) < 100_000, "it sends for ever"
        return True

    monkeypatch.setattr(_sink.Sink, "send_for_reader", send_a_little)
    one, other = UdStream.pair()
    one.timeout = 0.05
    with other, one.makefile("rwb") as file:
        file.write(b"x")
        with pytest.raises(TimeoutError):
            file.readline()
