"""A stream and its files go where files go: as they run, and to type checkers, which read this as well."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, BinaryIO, TextIO

from real import environment

import udstream
from udstream import BinaryFile, TextFile, UdStream


def first_line(file: IO[bytes]) -> bytes:
    """What takes any binary file."""
    return file.readline()


def test_a_stream_is_a_raw_file(pair: tuple[UdStream, UdStream]) -> None:
    """Whatever takes an unbuffered file of the builtin's takes a stream."""
    here, there = pair
    raw: io.RawIOBase = here
    binary: BinaryIO = here
    assert raw.fileno() == binary.fileno()

    there.write(b"a line\n")
    assert first_line(here) == b"a line\n"

    there.write(pickle.dumps(["an", "object"]))
    assert pickle.load(here) == ["an", "object"]

    there.write(b"read")
    assert here.read(4).decode() == "read"

    there.write(gzip.compress(b"unpacked"))
    with gzip.open(here) as unpacked:
        assert unpacked.read(8) == b"unpacked"

    there.write(b"a question\n")
    command = [sys.executable, "-c", "print(input().upper())"]
    subprocess.run(command, stdin=here, stdout=here, check=True)
    assert there.read(100) == b"A QUESTION\n"


def test_a_stream_under_layers_of_io() -> None:
    """Wrapped by hand, and copied from."""
    here, there = UdStream.pair()
    with there, io.BufferedReader(here) as reader:
        there.write(b"a line\n")
        assert reader.readline() == b"a line\n"
        there.shutdown(udstream.Shutdown.WRITE)
        copy = io.BytesIO()
        shutil.copyfileobj(here, copy)
        assert copy.getvalue() == b""
    here, there = UdStream.pair()
    with there, io.TextIOWrapper(io.BufferedWriter(here), encoding="utf-8") as writer:
        writer.write("text\n")
        writer.flush()
        assert there.read(10) == b"text\n"


def test_the_names_of_the_files(pair: tuple[UdStream, UdStream]) -> None:
    """What makefile() and open() return has public names, and goes where typing's files go."""
    text = pair[0].makefile("rw", encoding="utf-8")
    binary = pair[1].makefile("rwb")
    as_text: TextIO = text
    as_binary: BinaryIO = binary
    mine: tuple[TextFile, BinaryFile] = text, binary
    assert isinstance(as_text, TextFile) and isinstance(as_binary, BinaryFile)
    assert udstream.TextFile.__module__.startswith("udstream")
    with mine[0], mine[1]:
        mine[0].write("x\n")
        mine[0].flush()
        assert mine[1].readline() == b"x\n"


ASKING = """
import udstream, warnings
one, other = udstream.UdStream.pair()
with one, other, warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    text = one.makefile("rw")
    other.makefile("rwb").close()
    text.close()
print([(each.category.__name__, each.filename, each.lineno) for each in seen])
"""


def test_who_names_no_encoding_can_be_warned(folder: Path) -> None:
    """Where Python is asked to: once, and by the line that asks for the file, as of the builtin."""
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", ASKING],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[('EncodingWarning', '<string>', 6)]\n", done.stderr
