"""Text files: encodings, split characters, newlines, and the libraries that read and write files."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

import pytest
from connections import conversation, everything, here, stream_of
from meanwhile import PATIENCE, beside

from udstream import Shutdown, UdStream

pytestmark = pytest.mark.usefixtures("no_endless_wait")

ENCODINGS = [
    "ascii",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-be",
    "utf-7",
    "latin-1",
    "cp037",
    "cp1252",
    "shift_jis",
    "euc-jp",
    "iso2022_jp",
    "gb18030",
    "big5",
    "hz",
    "koi8-r",
]
SAMPLES = {
    "ascii": "plain text",
    "latin-1": "Grüße, ça va",
    "cp037": "Grüße, ça va",
    "cp1252": "“Grüße” – €",
    "shift_jis": "日本語テスト ソ",
    "euc-jp": "日本語テスト",
    "iso2022_jp": "日本語 and テスト",
    "gb18030": "中文 𝄞 €",
    "big5": "中文 許功蓋",
    "hz": "中文 and",
    "koi8-r": "Привет",
}
UNICODE = "ä€日本𝄞ж"


def through_a_pipe(write: Callable[[Any], object], mode: str = "w", **text: Any) -> bytes:
    """The reference: the bytes of a file that the builtin opened on a pipe."""
    reading, writing = os.pipe()
    with open(reading, "rb", 0) as source:
        with open(writing, mode, **text) as file:
            write(file)
        return source.read()


def from_a_pipe(data: bytes, **text: Any) -> Any:
    """The reference: what the builtin reads from a pipe, or its exception."""
    reading, writing = os.pipe()
    with open(writing, "wb", 0) as target:
        target.write(data)
    with open(reading, **text) as file:
        try:
            return file.read(), file.newlines
        except UnicodeError as error:
            return type(error), str(error)


# --- encodings ---


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("mode", "timeout"), [("r", None), ("rw", 9.0)])
def test_every_encoding_is_read(encoding: str, mode: str, timeout: float | None) -> None:
    """Text in any encoding comes as it does from the builtin's file on a pipe, in lines and in pieces."""
    text = "".join(f"{SAMPLES.get(encoding, UNICODE)} {at}\n" for at in range(200))
    data = text.encode(encoding)
    assert from_a_pipe(data, encoding=encoding)[0] == text
    for read in (
        lambda file: file.read(),
        lambda file: "".join(file),
        lambda file: "".join(iter(lambda: file.read(7), "")),
        lambda file: "".join(iter(lambda: file.readline(5), "")),
    ):
        with conversation(mode, timeout=timeout, encoding=encoding) as (file, theirs):
            assert file.encoding == encoding
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            assert read(file) == text


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mode", ["w", "rw"])
def test_every_encoding_is_written(encoding: str, mode: str) -> None:
    """Text in any encoding is sent as the builtin's file on a pipe would, marks and shifts included."""

    def write(file: Any) -> None:
        for at in range(20):
            file.write(SAMPLES.get(encoding, UNICODE))
            if at % 3 == 0:
                file.flush()
            file.write(f" {at}\n")

    for buffering in (-1, 1, 3):
        with conversation(mode, buffering, encoding=encoding) as (file, theirs):
            write(file)
            file.close()
            assert everything(theirs) == through_a_pipe(write, buffering=buffering, encoding=encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_character_split_by_the_sender_comes_out_whole(encoding: str, timeout: float | None) -> None:
    """A line cut at every place, a write and its flush in between: it comes out whole, as does what follows."""
    line = SAMPLES.get(encoding, UNICODE) + "\n"
    first = line.encode(encoding)
    both = (line + "next\n").encode(encoding)
    for cut in range(len(first) + 1):
        with conversation("rw", timeout=timeout, encoding=encoding) as (file, theirs):
            theirs.sendall(both[:cut])
            # Let it have the beginning, if it takes one.
            begun = codecs.getincrementaldecoder(encoding)().decode(first[:cut])[:1]
            assert file.read(len(begun)) == begun
            file.write("in between\n")
            file.flush()
            assert here(theirs)
            file.write("and again\n")
            rest: list[str] = []
            with beside(lambda: rest.append(file.readline())):  # noqa: B023
                theirs.recv(100)
                theirs.sendall(both[cut:])
            assert begun + rest[0] == line, f"cut at {cut}"
            file.write("and again\n")
            assert file.readline() == "next\n"


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_line_end_split_by_the_sender_comes_out_whole(
    newline: str | None, timeout: float | None, encoding: str
) -> None:
    """Line ends of every kind, cut at every place, with writes in between: the same text as in one piece."""
    text = "a\r\nb\nc\rd\r\n\r\ne\r\r\n\n\rf"
    data = text.encode(encoding)
    expected, newlines = from_a_pipe(data, encoding=encoding, newline=newline)
    for cut in range(len(data) + 1):
        with conversation("rw", timeout=timeout, encoding=encoding, newline=newline) as (file, theirs):
            theirs.sendall(data[:cut])
            # As many characters as are sure to be there: a carriage return may be half a line end.
            sure = codecs.getincrementaldecoder(encoding)().decode(data[:cut])
            sure = sure[:-1] if sure.endswith("\r") else sure
            if newline is None:
                sure = sure.replace("\r\n", "\n").replace("\r", "\n")
            begun = file.read(len(sure))
            assert begun == sure
            file.write("in between")
            file.flush()
            file.write("and again")
            theirs.sendall(data[cut:])
            theirs.shutdown(socket.SHUT_WR)
            assert begun + file.read() == expected, f"cut at {cut}"
            assert set(as_tuple(file.newlines)) == set(as_tuple(newlines))
            assert here(theirs).decode(encoding) == "in betweenand again"


def as_tuple(newlines: Any) -> tuple[str, ...]:
    """The kinds of line ends in the attribute `newlines`."""
    return newlines if isinstance(newlines, tuple) else (newlines,) if newlines else ()


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize(("mode", "timeout"), [("r", None), ("rw", 9.0)])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_by_newline_mode(newline: str | None, mode: str, timeout: float | None, encoding: str) -> None:
    """What a line is, by `newline`: as in the builtin's file on a pipe."""
    data = "a\r\nb\nc\rd\r\n\r\ne\r\r\n\n\rf".encode(encoding)
    reading, writing = os.pipe()
    with open(writing, "wb") as target:
        target.write(data)
    with open(reading, encoding=encoding, newline=newline) as reference:
        expected = list(reference)
    with conversation(mode, timeout=timeout, encoding=encoding, newline=newline) as (file, theirs):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        assert list(file) == expected


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("mode", ["w", "rw"])
def test_written_line_ends_are_translated(newline: str | None, mode: str) -> None:
    """`newline` says what a written `\\n` becomes: as in the builtin's file."""

    def write(file: Any) -> None:
        file.write("a\nb\r\nc\rd\n\n")
        file.writelines(["e\n", "f"])
        print("g", "h", sep="\n", file=file)

    with conversation(mode, newline=newline) as (file, theirs):
        write(file)
        file.close()
        assert everything(theirs) == through_a_pipe(write, newline=newline)


@pytest.mark.parametrize("timeout", [None, 9.0])
@pytest.mark.parametrize(
    ("newline", "data"),
    [
        *((None, data) for data in ("line\n", "line\r\n", "line\rrest", "line\rrest\r")),
        *(("", data) for data in ("line\n", "line\r\n", "line\rrest", "line\rrest\r")),
        ("\n", "line\n"),
        ("\r", "line\r"),
        ("\r", "line\rrest\n"),
        ("\r\n", "line\r\n"),
    ],
)
def test_line_is_not_kept_waiting(newline: str | None, data: str, timeout: float | None) -> None:
    """A line that has come is given out at once, though no other line comes behind it."""
    start = time.monotonic()
    with conversation("rw", timeout=timeout, newline=newline, encoding="utf-8") as (file, theirs):
        theirs.sendall(data.encode())
        assert file.readline().rstrip() == "line"
    assert time.monotonic() - start < 8


# --- errors ---


@pytest.mark.parametrize("errors", ["strict", "ignore", "replace", "backslashreplace", "surrogateescape"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_errors_in_decoding(errors: str, mode: str) -> None:
    """Bytes that are no text are treated as `errors` says: as in the builtin's file; also a cut-off end."""
    for data in (b"a\xffb\xc3\n", b"end\xe6\x97", b"\x80"):
        expected, detail = from_a_pipe(data, encoding="utf-8", errors=errors)
        with conversation(mode, encoding="utf-8", errors=errors) as (file, theirs):
            assert file.errors == errors
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            if isinstance(expected, str):
                assert file.read() == expected
            else:
                with pytest.raises(expected) as caught:
                    file.read()
                assert str(caught.value) == detail


@pytest.mark.parametrize("errors", ["strict", "ignore", "replace", "backslashreplace", "xmlcharrefreplace"])
@pytest.mark.parametrize("mode", ["w", "rw"])
def test_errors_in_encoding(errors: str, mode: str) -> None:
    """Text that the encoding lacks is treated as `errors` says; a refused write takes nothing."""
    with conversation(mode, encoding="ascii", errors=errors) as (file, theirs):
        file.write("before ")
        if errors == "strict":
            with pytest.raises(UnicodeEncodeError):
                file.write("lost é lost")
            expected = b"before after"
        else:
            assert file.write("é") == 1
            expected = b"before " + "é".encode("ascii", errors) + b"after"
        file.write("after")
        file.close()
        assert everything(theirs) == expected


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_bytes_are_no_text(mode: str) -> None:
    """Writing bytes to a text file is a `TypeError`, as are other things that are no text."""
    with conversation(mode) as (file, theirs):
        for wrong in (b"bytes", bytearray(b"bytes"), 1, None, ["text"]):
            with pytest.raises(TypeError):
                file.write(wrong)
        file.close()
        assert everything(theirs) == b""


def test_bad_bytes_do_not_hurt_the_writing() -> None:
    """A `UnicodeDecodeError` in the reading of an rw file leaves the writing as it was."""
    with conversation("rw", encoding="utf-8") as (file, theirs):
        theirs.sendall(b"\xff\n")
        file.write("one ")
        with pytest.raises(UnicodeDecodeError):
            file.readline()
        file.write("two")
        file.close()
        assert everything(theirs) == b"one two"


# --- line buffering and print ---


@pytest.mark.parametrize("mode", ["w", "rw"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_line_buffered_text_reaches_the_peer_line_by_line(mode: str, encoding: str) -> None:
    """With `buffering=1` the peer sees each line as it ends, by `write`, `writelines` or `print`."""
    with conversation(mode, 1, encoding=encoding) as (file, theirs):
        for at in range(20):
            print("line", at, file=file)
            assert here(theirs).decode(encoding) == f"line {at}\n"
        file.writelines(["two\n", "lines\n"])
        assert here(theirs).decode(encoding) == "two\nlines\n"
        file.write("no end")
        assert here(theirs) == b""
        file.write(", but now\n")
        assert here(theirs).decode(encoding) == "no end, but now\n"


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_print_flushes_when_asked(mode: str) -> None:
    """`print(file=f, flush=True)` sends at once; without it the text waits."""
    with conversation(mode) as (file, theirs):
        print("waits", file=file)
        assert here(theirs) == b""
        print("goes", file=file, flush=True)
        assert here(theirs) == b"waits\ngoes\n"


# --- what reads and writes files ---


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_csv(mode: str) -> None:
    """`csv` writes and reads rows over text files with `newline=""`."""
    rows = [["a", "b\nc", 'd"e'], ["1", "", "é"]] * 50
    ours, theirs = UdStream.pair()
    with theirs.makefile("r", encoding="utf-8", newline="") as other:
        with ours.makefile(mode, encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        assert list(csv.reader(other)) == rows


def test_csv_conversation() -> None:
    """A `csv.reader` and a `csv.writer` on one rw file: each row is answered before the next comes."""
    with conversation("rw", encoding="utf-8", newline="") as (file, theirs):

        def ask() -> None:
            with theirs.makefile("rw", encoding="utf-8", newline="") as other:
                for at in range(20):
                    other.write(f"{at},{at}\r\n")
                    other.flush()
                    assert other.readline() == f"{2 * at}\r\n"
                theirs.shutdown(socket.SHUT_WR)

        with beside(ask):
            writer = csv.writer(file)
            for row in csv.reader(file):
                writer.writerow([sum(map(int, row))])


@pytest.mark.parametrize("mode", ["r", "rw", "rb", "rwb"])
def test_json(mode: str) -> None:
    """`json.dump` to one end, `json.load` at the other."""
    value = {"text": "é\n日本", "numbers": list(range(1000)), "none": None}
    ours, theirs = UdStream.pair()
    with theirs.makefile(mode) as other:
        with ours.makefile("w") as file:
            json.dump(value, file)
        assert json.load(other) == value


@pytest.mark.parametrize("mode", ["wb", "rwb"])
@pytest.mark.parametrize("protocol", [0, pickle.DEFAULT_PROTOCOL, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_pickle(mode: str, protocol: int, timeout: float | None) -> None:
    """Several pickles, small and big, one after the other through buffered files."""
    values = [1, "é" * 10, list(range(1000)), b"x" * 50_000, {"a": [None, 1.5]}]
    ours, theirs = UdStream.pair()
    theirs.timeout = timeout
    with theirs.makefile("rb" if mode == "wb" else "rwb") as other:
        with ours.makefile(mode) as file:
            for value in values:
                pickle.dump(value, file, protocol)
        assert [pickle.load(other) for _ in values] == values
        with pytest.raises(EOFError):
            pickle.load(other)


@pytest.mark.parametrize("kind", ["b", ""])
def test_copyfileobj(kind: str) -> None:
    """`shutil.copyfileobj` copies from a file and to one, more than the socket holds."""
    text = "".join(f"{at:09d}\n" for at in range(100_000))
    data: Any = text.encode() if kind else text
    for mode_out, mode_in in (("w", "r"), ("rw", "rw")):
        ours, theirs = UdStream.pair()
        target: Any = io.BytesIO() if kind else io.StringIO()
        with theirs.makefile(mode_in + kind) as other:

            def send(ours: UdStream = ours, mode_out: str = mode_out) -> None:
                with ours.makefile(mode_out + kind) as file:
                    shutil.copyfileobj(io.BytesIO(data) if kind else io.StringIO(data), file)

            with beside(send):
                shutil.copyfileobj(other, target)
        same = target.getvalue() == data
        assert same


@pytest.mark.parametrize("mode", ["rb", "rwb"])
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_http_client_reads_its_reply(mode: str, timeout: float | None) -> None:
    """`http.client` parses a reply: its `readline(limit)`, `read(n)`, `readinto` and chunks."""
    body = b"x" * 100_000
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (b"ab", body, b"cd")) + b"0\r\n\r\n"
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    for reply, expected in ((plain, body), (chunked, b"ab" + body + b"cd")):
        ours, theirs = socket.socketpair()
        stream = UdStream.from_socket(ours)
        stream.timeout = timeout

        class Connection:
            """What `HTTPResponse` wants of a socket."""

            def makefile(self, *_: object, stream: UdStream = stream) -> Any:
                return stream.makefile(mode)

        with theirs, HTTPResponse(Connection()) as response:  # type: ignore[arg-type]
            with beside(lambda: theirs.sendall(reply)):  # noqa: B023
                response.begin()
                assert response.status == 200
                store = bytearray(10)
                assert response.readinto(store) and expected.startswith(store.rstrip(b"\0"))
                got = store.rstrip(b"\0") + response.read()
            assert got == expected


@pytest.mark.parametrize("mode", ["rwb", "rw"])
def test_subprocess_takes_a_file_for_its_input_and_output(mode: str) -> None:
    """A child gets the file as its stdin and stdout, blocking, and goes on when the parent has closed its own."""
    program = (
        "import sys; print(sys.stdin.readline().upper(), end='', flush=True); print(sys.stdin.read()[::-1])"
    )
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    stream = UdStream.from_socket(ours)
    stream.timeout = 5
    with theirs:
        file = stream.makefile(mode)
        with subprocess.Popen([sys.executable, "-c", program], stdin=file, stdout=file) as child:
            file.close()
            theirs.sendall(b"hello\n")
            assert theirs.recv(100) == b"HELLO\n"
            theirs.sendall(b"abc")
            theirs.shutdown(socket.SHUT_WR)
            assert everything(theirs) == b"cba\n"
            assert child.wait(PATIENCE) == 0


def test_subprocess_output_through_a_file() -> None:
    """The output of a child on one end is read in lines at the other."""
    ours, theirs = UdStream.pair()
    output: Any = theirs
    with ours.makefile("r") as file:
        with theirs:
            child = subprocess.Popen([sys.executable, "-c", "for n in range(1000): print(n)"], stdout=output)
        assert list(file) == [f"{n}\n" for n in range(1000)]
        assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize("mode", ["wb", "rwb"])
@pytest.mark.parametrize("timeout", [None, 9.0])
def test_gzip(mode: str, timeout: float | None) -> None:
    """`gzip` writes to one end and reads at the other, without a seek."""
    data = os.urandom(30_000) + b"x" * 100_000
    ours, theirs = UdStream.pair()
    theirs.timeout = timeout
    with theirs.makefile("rb" if mode == "wb" else "rwb") as other:
        with ours.makefile(mode) as file, gzip.GzipFile(fileobj=file, mode="wb") as packed:
            packed.write(data)
        with gzip.GzipFile(fileobj=other, mode="rb") as unpacked:
            same = unpacked.read() == data
        assert same


@pytest.mark.parametrize("mode", ["wb", "rwb"])
def test_zipfile_and_tarfile(mode: str) -> None:
    """`zipfile` writes an archive as to a pipe; `tarfile` streams one; both can be read at the other end."""
    data = os.urandom(50_000)
    ours, theirs = UdStream.pair()
    with theirs.makefile("rb") as other:
        with ours.makefile(mode) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("name", data)
        with zipfile.ZipFile(io.BytesIO(other.read())) as archive:
            assert archive.read("name") == data
    ours, theirs = UdStream.pair()
    with theirs.makefile("rb") as other:
        with ours.makefile(mode) as file, tarfile.open(fileobj=file, mode="w|") as tar:
            member = tarfile.TarInfo("name")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        with tarfile.open(fileobj=other, mode="r|") as tar:
            for member in tar:
                extracted = tar.extractfile(member)
                assert extracted is not None and extracted.read() == data


@pytest.mark.parametrize("mode", ["wb", "rwb"])
def test_numpy_saves_and_loads(mode: str) -> None:
    """`numpy.save` takes the file for what it is, no file on a disk, and `numpy.load` can read what it wrote."""
    numpy = pytest.importorskip("numpy")
    values = numpy.arange(10_000, dtype="int32")
    ours, theirs = UdStream.pair()
    with theirs.makefile("rb") as other:
        with ours.makefile(mode) as file:
            numpy.save(file, values)
        assert (numpy.load(io.BytesIO(other.read())) == values).all()


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_standard_output_can_be_one(mode: str) -> None:
    """`logging` and `contextlib.redirect_stdout` write to a file as to any."""
    with conversation(mode, encoding="utf-8") as (file, theirs):
        handler = logging.StreamHandler(file)
        logger = logging.Logger("test")
        logger.addHandler(handler)
        logger.warning("größer")
        assert here(theirs) == "größer\n".encode()
        with contextlib.redirect_stdout(file):
            print("printed")
        file.close()
        assert everything(theirs) == b"printed\n"


def test_half_closed_conversation_in_text() -> None:
    """After `flush` and `shutdown(WRITE)` the peer's answer can be read to its end."""
    ours, theirs = UdStream.pair()
    with ours.makefile("rw", encoding="utf-8") as file, theirs.makefile("rwb") as other:
        file.write("frage ä")
        file.flush()
        stream_of(file).shutdown(Shutdown.WRITE)
        other.write(other.read().upper())
        other.close()
        assert file.read() == "FRAGE ä".encode().upper().decode()
