"""Single promises that random histories (`test_histories`) found broken, each in the shortest way to break it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from connections import fill
from meanwhile import no_collecting

from udstream import Shutdown, UdStream, ancillary

# A timeout that is over before anything can be waited for.
INSTANT = 1e-9


@pytest.mark.parametrize("how", ["recv_ancillary", "collected"])
def test_end_of_file_has_no_sender(how: str) -> None:
    """The end of file comes without credentials: the kernel's zeros there would say that root sent it."""
    here, there = UdStream.pair()
    with here, there:
        ancillary.set_passcred(there, True)
        here.shutdown(Shutdown.WRITE)
        if how == "recv_ancillary":
            with there.recv_ancillary(bytearray(1)) as received:
                assert received.nbytes == 0 and received.credentials is None
        else:
            there.collect_ancillary = True
            assert there.read(1) == b""
            assert not there.collected


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_nothing_to_send_does_not_fail(mode: str) -> None:
    """A file that has nothing to send does not say that the peer is gone: neither in `flush` nor in `close`."""
    here, there = UdStream.pair()
    there.close()
    file = here.makefile(mode)
    file.write(b"" if "b" in mode else "")
    file.flush()
    file.close()


def test_read_takes_what_is_there_however_late() -> None:
    """A read whose time was up before it began still gives what is at hand, though not all could be sent first."""
    here, there = UdStream.pair()
    there.write(b"at hand")
    here.timeout = INSTANT
    with there, here.makefile("rwb", 10_000_000) as file:
        file.write(bytes(1_000_000))
        assert file.read1() == b"at hand"
        here.shutdown(Shutdown.BOTH)
        with pytest.raises(BrokenPipeError):
            file.close()


READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda file: file.read(10),
    "readinto": lambda file: file.readinto(bytearray(10)),
    "read1": lambda file: file.read1(),
    "peek": lambda file: file.peek(),
    "readline": lambda file: file.readline(),
    "readlines": lambda file: file.readlines(),
}


@pytest.mark.parametrize("nonblocking", [False, True])
@pytest.mark.parametrize(
    ("mode", "how"),
    [("rb", how) for how in READS] + [("r", how) for how in ("read", "readline", "readlines")],
)
def test_file_that_timed_out_is_closed_as_it_is_dropped(mode: str, how: str, nonblocking: bool) -> None:
    """A read that found nothing keeps nobody from closing the file: it goes with its last reference."""
    if nonblocking and mode == "r":
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def use() -> None:
        stream = UdStream.from_socket(ours)
        stream.timeout = INSTANT
        stream.set_nonblocking(nonblocking)
        file = stream.makefile(mode)
        try:
            READS[how](file)
        except (TimeoutError, BlockingIOError):
            pass

    with theirs, no_collecting():
        with pytest.warns(ResourceWarning, match="unclosed"):
            use()
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("nonblocking", [False, True])
def test_writelines_of_a_stream_sends_all_or_says_so(nonblocking: bool) -> None:
    """`writelines` of a raw stream sends every byte, or raises, with the number that it sent; it never drops any."""
    here, there = UdStream.pair()
    here.timeout = 0.05
    here.set_nonblocking(nonblocking)
    with here, there:
        here.writelines([])
        here.writelines([b"one", bytearray(b"two")])
        assert there.read_exact(6) == b"onetwo"
        with pytest.raises(BlockingIOError if nonblocking else TimeoutError) as failure:
            here.writelines([b"first", bytes(1_000_000)])
        sent: int = failure.value.nbytes  # type: ignore[attr-defined]
        assert 5 < sent < 1_000_005
        assert there.read_exact(sent) == b"first" + bytes(sent - 5)
    with pytest.raises(ValueError, match="closed"):
        here.writelines([])


@pytest.mark.parametrize("mode", ["rb", "rwb", "r", "rw"])
def test_limited_line_with_a_timeout_waits_for_its_end(mode: str) -> None:
    """With a timeout, `readline(n)` comes with the end of the line; the time may run out first, and nothing is lost."""
    here, there = UdStream.pair()
    here.timeout = INSTANT
    with there, here.makefile(mode) as file:
        there.write(b"no end")
        with pytest.raises(TimeoutError):
            file.readline(2)
        there.write(b" but now\n")
        said = [file.readline(2), file.readline(), file.readline(0)]
        assert said == ([b"no", b" end but now\n", b""] if "b" in mode else ["no", " end but now\n", ""])


@pytest.mark.parametrize(("mode", "size", "encoding"), [("rw", 1_000, "utf-16-le"), ("rwb", 80_000, None)])
def test_time_that_is_over_in_sending(mode: str, size: int, encoding: str | None) -> None:
    """A read in the middle of a line, over before what was written is sent: the line is not lost in silence."""
    here, there = UdStream.pair()
    here.timeout = 0.05
    with there, here.makefile(mode, encoding=encoding) as file:
        fill(here)
        file.write("request" if encoding else b"request")
        # More than is held back, which is nothing in UTF-16, and without an end.
        there.write_all(("x" * size).encode(encoding or "ascii"))
        with pytest.raises(TimeoutError):
            file.readline()
        there.write_all("\n".encode(encoding or "ascii"))
        with pytest.raises(OSError, match="cannot read on"):
            file.readline()
        there.set_nonblocking(True)
        while there.read(1 << 20):
            pass
