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
