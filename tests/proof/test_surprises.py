"""Free of surprises: what nobody expects of a file does not happen."""

from __future__ import annotations

from typing import Any

import pytest

from udstream import UdStream

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
        while True:
            try:
                file.flush()
                break
            except BlockingIOError as error:
                assert error.characters_written == 0
                read += other.readall() or b""
        read += other.readall() or b""

    assert read == written
