"""Free of surprises: what nobody expects of a file does not happen."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import pytest

import udstream
from udstream import FileDescriptors, UdStream, UdStreamListener, ancillary

# --- small promises of files that are easy to break ---


@pytest.mark.parametrize("mode", ["w", "wb", "rw", "rwb", "r", "rb"])
def test_closed_file_takes_not_even_nothing(mode: str) -> None:
    """A closed file refuses `writelines` also where there is no line, as any closed file does."""
    stream, other = UdStream.pair()
    file = stream.makefile(mode)
    file.close()
    other.close()

    with pytest.raises(ValueError, match="closed"):
        file.writelines([])


@pytest.mark.parametrize("size", [1024, 16384])
@pytest.mark.parametrize("mode", ["wb", "rwb"])
def test_nonblocking_write_says_how_much_it_took(mode: str, size: int) -> None:
    """The `BlockingIOError` of a nonblocking file says in `characters_written` how much was taken, maybe 0.

    Whoever goes on from there sends each byte once.
    """
    stream, other = UdStream.pair()
    stream.set_nonblocking(True)
    other.set_nonblocking(True)
    written, read = bytearray(), bytearray()
    with stream.makefile(mode, size) as file, other:
        for length in (9999, 73, 7574, 16384, 1024, 40000, 3):
            data = bytes([length % 251]) * length
            with pytest.raises(BlockingIOError) as caught:
                while True:
                    written += data[: file.write(data)]
            written += data[: caught.value.characters_written]
            read += other.readall() or b""
        taken_in_flush = []
        while True:
            try:
                file.flush()
                break
            except BlockingIOError as error:
                taken_in_flush.append(error.characters_written)
                read += other.readall() or b""
        read += other.readall() or b""

    assert not any(taken_in_flush)
    assert read == written


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_encoding_of_the_locale(mode: str) -> None:
    """`encoding="locale"` is the locale's encoding, as in the builtin `open`."""
    stream, other = UdStream.pair()
    with stream.makefile(mode, encoding="locale") as file, other:
        with io.TextIOWrapper(io.BytesIO(), encoding="locale") as usual:
            assert file.encoding == usual.encoding


# One that a C int does not hold, and of which it would hold the rest: 0, say, which is open.
TOO_GREAT = [1 << 31, 1 << 32, 1 << 40, 1 << 64]


@pytest.mark.parametrize("fd", TOO_GREAT, ids=["2**31", "2**32", "2**40", "2**64"])
@pytest.mark.parametrize(
    "take",
    [
        UdStream.from_fd,
        UdStreamListener.from_fd,
        ancillary.peer_credentials,
        ancillary.get_passcred,
        lambda fd: ancillary.send_fds(fd, b"x", []),
        lambda fd: ancillary.recv_fds(fd, 1),
        lambda fd: FileDescriptors([fd]),
    ],
    ids=["stream", "listener", "peer_credentials", "get_passcred", "send_fds", "recv_fds", "FileDescriptors"],
)
def test_number_too_great_for_a_descriptor(take: Callable[[int], object], fd: int) -> None:
    """A number that no descriptor can have is a `ValueError` that says so, and no other file is touched."""
    stream, other = UdStream.pair()
    stand_in = os.dup(0)
    try:
        # Where the number would end up, were its upper half dropped.
        os.dup2(stream.fileno(), 0)
        with pytest.raises(ValueError, match=str(fd)):
            take(fd)
    finally:
        os.dup2(stand_in, 0)
        os.close(stand_in)
    with stream, other:
        other.write(b"untouched")
        assert stream.read(100) == b"untouched"


def _set_timeout(seconds: Any) -> None:
    one, other = UdStream.pair()
    with one, other:
        one.timeout = seconds


@pytest.mark.parametrize(
    "take",
    [
        lambda seconds: UdStream.connect("@nobody", timeout=seconds),
        lambda seconds: udstream.open("@nobody", timeout=seconds),
        _set_timeout,
    ],
    ids=["connect", "open", "timeout"],
)
def test_timeout_too_great(take: Callable[[Any], object]) -> None:
    """A timeout that is too great for a float is a `ValueError` that says what will do instead."""
    with pytest.raises(ValueError, match="None is for ever"):
        take(10**400)
