"""What a write took is sent, once and in order: with a second writer, and with handlers that raise or write."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from connections import conversation, data_for, ends
from meanwhile import PATIENCE, in_thread, on_alarm
from places import meddle

from udstream import UdStream

# So that a write of it sends, and that the kernel holds while nobody reads.
MORE_THAN_A_BUFFER = "c" * 100_000
BOTH = pytest.mark.parametrize("mode", ["rwb", "rw"])


class Stop(TimeoutError, ConnectionError):
    """What a handler raises."""


def stop() -> None:
    """A handler that raises; its error says how far something else had come."""
    error = Stop()
    error.nbytes = 3  # type: ignore[attr-defined]
    raise error


def everything(theirs: socket.socket) -> bytes:
    """All that arrives, also where the other end closed without having read all."""
    got = b""
    try:
        while more := theirs.recv(1 << 16):
            got += more
    except ConnectionResetError:
        pass
    return got


# io's text layer itself forgets what a second thread writes in the middle of a long write, before Python 3.13.
@pytest.mark.parametrize(
    ("mode", "call"),
    [("rwb", "flush"), ("rwb", "readline"), ("rwb", "write"), ("rw", "flush"), ("rw", "readline")],
)
def test_a_second_writer_at_any_place(
    mode: str, call: str, record_property: Callable[[str, object], None]
) -> None:
    """What another thread writes in the middle of a call of ours arrives, at the latest as the file is closed."""
    at = 0
    reached = True
    while reached:
        stream, theirs = ends()
        with theirs:
            theirs.sendall(b"answer\n")
            file = stream.makefile(mode)
            calls: dict[str, Callable[[], Any]] = {
                "flush": file.flush,
                "readline": file.readline,
                "write": partial(file.write, data_for(mode, MORE_THAN_A_BUFFER)),
            }
            file.write(data_for(mode, "a"))
            other = threading.Thread(target=file.write, args=(data_for(mode, "b"),))

            def begin(other: threading.Thread = other) -> None:
                other.start()
                # It may have to wait for the call to end.
                other.join(0.002)

            reached = meddle(calls[call], at, begin)
            if reached:
                other.join(PATIENCE)
            file.close()
            got = everything(theirs)
            assert sorted(got.replace(b"c", b"")) == sorted(b"ab" if reached else b"a"), at
            assert got.count(b"c") == (len(MORE_THAN_A_BUFFER) if call == "write" else 0)
        at += 1
    assert at > 20
    record_property("places at which another thread wrote", at)


@BOTH
@pytest.mark.parametrize("call", ["flush", "readline"])
def test_a_handler_that_raises_at_any_place(
    mode: str, call: str, record_property: Callable[[str, object], None]
) -> None:
    """What a write had taken arrives as the file is closed, wherever the call after it was stopped."""
    at = 0
    reached = True
    while reached:
        stream, theirs = ends()
        with theirs:
            theirs.sendall(b"answer\n")
            file = stream.makefile(mode)
            file.write(data_for(mode, "request\n"))

            def run(file: Any = file) -> None:
                # io.BufferedReader takes what is raised as it asks for `closed` for yes.
                with pytest.raises((Stop, ValueError)):
                    getattr(file, call)()
                    stop()

            reached = meddle(run, at, stop, for_signals=True)
            try:
                file.close()
            except Stop:
                pass  # kept for the next call that can raise it
            assert everything(theirs) == b"request\n", at
        at += 1
    assert at > 8
    record_property("places at which a handler raised", at)


# So much of it that it stays in a buffer, or that it does not.
@pytest.mark.parametrize("lines", [1, 20_000])
@pytest.mark.parametrize("mode", ["rwb", "rw", "w"])
def test_a_handler_that_writes_to_the_same_file(mode: str, lines: int) -> None:
    """Its text comes after what is being written, and nothing comes twice."""
    data = "".join(f"{number}\n" for number in range(200_000))
    stream, theirs = ends()
    reader: list[bytes] = []
    with theirs, stream.makefile(mode) as file:
        # More than there is room for: the write waits until somebody reads.
        def handler(*_: object) -> None:
            file.write(data_for(mode, "handler\n" * lines))
            receiving.start()

        receiving = threading.Thread(target=lambda: reader.append(everything(theirs)))
        with on_alarm(handler, 0.05):
            file.write(data_for(mode, data))
            file.flush()
        file.close()
        receiving.join(PATIENCE)
    (got,) = reader
    assert got.decode().replace("handler\n", "") == data
    assert got.decode().endswith("\n" + "handler\n" * lines)


def test_a_handler_that_flushes_the_same_file() -> None:
    """A flush in the middle of a flush is refused, as io's writers refuse it, and does no harm."""
    stream, theirs = ends()
    refused: list[BaseException] = []
    reader: list[bytes] = []
    with theirs, stream.makefile("rwb") as file:

        def handler(*_: object) -> None:
            try:
                file.flush()
            except RuntimeError as error:
                refused.append(error)
            receiving.start()

        receiving = threading.Thread(target=lambda: reader.append(everything(theirs)))
        with on_alarm(handler, 0.05):
            file.write(bytes(2_000_000))
            file.flush()
        file.close()
        receiving.join(PATIENCE)
    assert "reentrant" in str(refused[0])
    assert reader == [bytes(2_000_000)]


@BOTH
def test_what_a_handler_raised_is_not_swallowed(mode: str) -> None:
    """Where a line was at hand as it was raised in `readline`, the next call raises it."""
    for then in ("write", "flush", "close"):
        stream, theirs = ends()
        with theirs:
            theirs.sendall(b"one\ntwo\n")
            file = stream.makefile(mode)
            assert file.readline() == data_for(mode, "one\n")
            file.write(data_for(mode, "request\n"))
            sink = file._sink
            send, sink._attempts = sink._attempts, iter(partial(stop), None)
            assert file.readline() == data_for(mode, "two\n")
            sink._attempts = send
            with pytest.raises(Stop):
                getattr(file, then)(*([data_for(mode, "more\n")] if then == "write" else []))
            file.close()
            assert everything(theirs) == b"request\n"


def test_closing_one_file_sends_what_others_have(pair: tuple[UdStream, UdStream]) -> None:
    """Of two files over one stream, the first to be closed, or let go of, closes both: what was written is sent."""
    for let_go in (False, True):
        here, there = UdStream.pair()
        with there:
            reader, writer = here.makefile("rb"), here.makefile("wb")
            writer.write(b"data")
            if let_go:
                with pytest.warns(ResourceWarning, match="unclosed"):
                    del reader
            else:
                reader.close()
            assert there.readall() == b"data"
            writer.close()


def test_empty_writes_leave_nothing_behind() -> None:
    """However many there are."""
    with conversation("rwb") as (file, _):
        for _ in range(10):
            assert file.write(b"") == 0
        assert file._sink._chunks == []


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="Python 3.10 looks for signals as it comes to an except or a finally, too",
)
def test_storms_of_alarms() -> None:
    """A handler that raises now and then: what was written before it arrives whole."""
    hits = 0

    def handler(*_: object) -> None:
        raise Stop

    for mode in ("rwb", "rw"):
        stream, theirs = ends()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with in_thread(lambda theirs=theirs: everything(theirs)) as result:  # type: ignore[misc]
            file = stream.makefile(mode)
            lines = [f"{number}\n" for number in range(3_000)]
            signal.signal(signal.SIGALRM, handler)
            try:
                for line in lines:
                    file.write(data_for(mode, line))
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.00002)
                        file.flush()
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except Stop:
                        hits += 1
                    except RuntimeError:
                        raise AssertionError("a lock was kept") from None
            except Stop:
                pytest.fail("a handler ran outside the call")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
            file.close()
        theirs.close()
        assert result == ["".join(lines).encode()]
    assert hits
