"""The buffered and text files that `udstream.open` and `UdStream.makefile` give: arguments, names, ownership."""

from __future__ import annotations

import array
import copy
import errno
import gc
import io
import locale
import os
import pickle
import random
import select
import socket
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from connections import conversation, data_for, ends, everything, here, listening, stream_of
from meanwhile import PATIENCE, no_collecting

import udstream
from udstream import UdSocketPath, UdStream, files

pytestmark = pytest.mark.usefixtures("no_endless_wait")

READING = ["r", "rt", "tr", "rb", "br"]
WRITING = ["w", "wt", "tw", "wb", "bw"]
BOTH = [
    "rw",
    "wr",
    "r+",
    "w+",
    "+r",
    "rwt",
    "r+t",
    "rwb",
    "wrb",
    "rbw",
    "bwr",
    "r+b",
    "rb+",
    "w+b",
    "wb+",
    "+br",
]
MODES = READING + WRITING + BOTH
ORDINARY = ["r", "w", "rw", "rb", "wb", "rwb"]
NO_MODES = [
    "",
    "x",
    "a",
    "rr",
    "rbt",
    "b",
    "t",
    "+",
    "bt",
    "rw+",
    "U",
    "rU",
    "r ",
    "R",
    "rwx",
    "r++",
    "r\0",
    "é",
]


# Without their overloads, since most of what is tried here is wrong.
open_any: Any = udstream.open


# --- modes ---


@pytest.mark.parametrize("mode", MODES)
def test_mode_says_directions_and_kind(mode: str) -> None:
    """Letters of a mode in any order: which ways it goes, bytes or text, and `.mode` says what was asked for."""
    with conversation(mode) as (file, _):
        assert file.readable() is ("r" in mode or "+" in mode)
        assert file.writable() is ("w" in mode or "+" in mode)
        assert file.mode == mode
        assert isinstance(file, io.BufferedIOBase if "b" in mode else io.TextIOBase)


@pytest.mark.parametrize("mode", MODES)
def test_open_takes_the_same_modes(folder: Path, mode: str) -> None:
    """`open` knows the modes that `makefile` knows, and its file goes the same ways."""
    with listening(folder / "s") as listener, open_any(folder / "s", mode) as file:
        with listener.accept()[0] as theirs:
            theirs.sendall(b"hello\n")
            if file.readable():
                assert file.readline() == data_for(mode, "hello\n")
            if file.writable():
                file.write(data_for(mode, "goodbye\n"))
                file.flush()
                assert theirs.recv(100) == b"goodbye\n"
        assert file.mode == mode


def test_wrong_mode_is_a_value_error_that_lists_the_right_ones(folder: Path) -> None:
    """A wrong mode is a `ValueError` that shows it and the right ones, and comes before any system call."""
    stream, theirs = ends()
    with theirs, stream:
        for mode in NO_MODES:
            refuses_mode(stream, folder, mode)
        assert not stream.closed


def refuses_mode(stream: Any, folder: Path, mode: str) -> None:
    """Check the errors for one wrong mode."""
    for call, arguments in ((open_any, (folder / "nobody", mode)), (stream.makefile, (mode,))):
        with pytest.raises(ValueError, match=r"mode") as caught:
            call(*arguments)
        for right in (repr(mode), "'r'", "'w'", "'rw'"):
            assert right in str(caught.value)


@pytest.mark.parametrize("mode", [None, 0, b"r", ["r"], {"r"}])
def test_mode_that_is_no_string_is_a_type_error(folder: Path, mode: Any) -> None:
    """A mode of another type is a `TypeError` before any system call."""
    stream, theirs = ends()
    with theirs, stream:
        with pytest.raises(TypeError, match="mode"):
            open_any(folder / "nobody", mode)
        with pytest.raises(TypeError, match="mode"):
            stream.makefile(mode)


@pytest.mark.parametrize("mode", ORDINARY)
def test_wrong_direction_is_unsupported(mode: str) -> None:
    """Reading what is for writing, and the reverse, is `io.UnsupportedOperation`, of each method."""
    data = data_for(mode, "x")
    reading: list[Callable[[Any], object]] = [
        lambda file: file.read(),
        lambda file: file.read(1),
        lambda file: file.readline(),
        lambda file: file.readlines(),
        lambda file: next(file),
        lambda file: list(file),
    ]
    if "b" in mode:
        reading += [
            lambda file: file.read1(),
            lambda file: file.peek(),
            lambda file: file.readinto(bytearray(1)),
            lambda file: file.readinto1(bytearray(1)),
        ]
    writing: list[Callable[[Any], object]] = [
        lambda file: file.write(data),
        lambda file: file.writelines([data]),
    ]
    with conversation(mode) as (file, theirs):
        for call in [] if "r" in mode else reading:
            with pytest.raises(io.UnsupportedOperation):
                call(file)
        for call in [] if "w" in mode else writing:
            with pytest.raises(io.UnsupportedOperation):
                call(file)
        assert here(theirs) == b""


# --- buffering ---


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb", "r+b"])
def test_unbuffered_is_the_stream_itself(folder: Path, mode: str) -> None:
    """`buffering=0` in a binary mode gives the `UdStream`, from `open` and from `makefile`."""
    stream, theirs = ends()
    with theirs, stream:
        assert stream.makefile(mode, 0) is stream
    with listening(folder / "s"), open_any(folder / "s", mode, 0) as file:
        assert type(file) is UdStream


@pytest.mark.parametrize("mode", ["r", "w", "rw", "r+t"])
def test_unbuffered_text_is_a_value_error(folder: Path, mode: str) -> None:
    """`buffering=0` in text is a `ValueError` that says what it needs, before any system call."""
    stream, theirs = ends()
    with theirs, stream:
        with pytest.raises(ValueError, match=r"unbuffered.*binary"):
            stream.makefile(mode, 0)
        with pytest.raises(ValueError, match=r"unbuffered.*binary"):
            open_any(folder / "nobody", mode, 0)
        assert stream.write(b"still usable") == 12


@pytest.mark.parametrize("mode", ["rb", "wb", "rwb"])
def test_line_buffering_in_binary_warns_and_is_the_default(folder: Path, mode: str) -> None:
    """`buffering=1` in a binary mode is a `RuntimeWarning` at the caller's line, and the default size."""
    stream, theirs = ends()
    with theirs:
        with pytest.warns(RuntimeWarning, match="line buffering") as caught:
            file = stream.makefile(mode, 1)
        assert [warning.filename for warning in caught] == [__file__]
        with file:
            if file.writable():
                file.write(b"line\n")
                assert here(theirs) == b""
    with listening(folder / "s"):
        with pytest.warns(RuntimeWarning, match="line buffering") as caught:
            file = open_any(folder / "s", mode, 1)
        assert [warning.filename for warning in caught] == [__file__]
        file.close()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_warning_that_is_an_error_leaks_nothing(folder: Path) -> None:
    """When the warning for `buffering=1` is made an exception, `open` leaves no connection behind."""
    with listening(folder / "s") as listener:
        with pytest.raises(RuntimeWarning):
            open_any(folder / "s", "rb", 1)
        if select_readable(listener):
            with listener.accept()[0] as theirs:
                assert everything(theirs) == b""
    stream, theirs = ends()
    with theirs, stream:
        with pytest.raises(RuntimeWarning):
            stream.makefile("rb", 1)
        assert not stream.closed


def select_readable(sock: socket.socket) -> bool:
    """Whether a listening socket has a connection waiting."""
    return bool(select.select([sock], [], [], 0)[0])


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
@pytest.mark.parametrize("size", [2, 16, 100_000])
def test_buffering_is_the_size_of_the_buffer(mode: str, size: int) -> None:
    """What fits in a buffer of the size asked for waits there; twice as much does not."""
    with conversation(mode, size) as (file, theirs):
        file.write(data_for(mode, "x" * (size - 1)))
        assert here(theirs) == b""
        file.write(data_for(mode, "y" * (size + 1)))
        assert here(theirs).startswith(b"x" * (size - 1))


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
@pytest.mark.parametrize("buffering", [-1, None])
def test_default_buffer_holds_small_writes(mode: str, buffering: int | None) -> None:
    """By default nothing small is sent before it must be: by `flush`, by `close`, by reading."""
    with conversation(mode, *([] if buffering is None else [buffering])) as (file, theirs):
        for _ in range(10):
            file.write(data_for(mode, "line\n"))
        assert here(theirs) == b""
        file.flush()
        assert here(theirs) == b"line\n" * 10


@pytest.mark.parametrize("mode", ["w", "rw", "r+", "wt"])
def test_line_buffering_shows_each_line_at_once(mode: str) -> None:
    """`buffering=1` in text sends each line as it ends, without a flush, and no sooner."""
    with conversation(mode, 1) as (file, theirs):
        assert file.line_buffering is True
        file.write("begin")
        assert here(theirs) == b""
        file.write(" end\n")
        assert here(theirs) == b"begin end\n"
        print("printed", file=file)
        assert here(theirs) == b"printed\n"
        file.write("\n\nrest")
        assert here(theirs).startswith(b"\n\n")
    with conversation(mode) as (file, _):
        assert file.line_buffering is False


@pytest.mark.parametrize("buffering", ["1", 1.0, None, b"1"])
def test_buffering_that_is_no_int_is_a_type_error(folder: Path, buffering: Any) -> None:
    """A buffering of another type is a `TypeError`, before any system call."""
    stream, theirs = ends()
    with theirs, stream:
        for mode in ("r", "rb"):
            with pytest.raises(TypeError, match="buffering"):
                open_any(folder / "nobody", mode, buffering)
            with pytest.raises(TypeError, match="buffering"):
                stream.makefile(mode, buffering)
        assert not stream.closed


# --- encoding, errors, newline ---


@pytest.mark.parametrize("buffering", [-1, 0, 100])
@pytest.mark.parametrize(("mode", "argument"), [("rb", "encoding"), ("wb", "errors"), ("rwb", "newline")])
def test_text_arguments_in_binary(folder: Path, mode: str, buffering: int, argument: str) -> None:
    """A binary mode with encoding, errors or newline: `ValueError` in `open`, ignored by `makefile`."""
    values = {"encoding": "utf-8", "errors": "strict", "newline": "\n"}
    with pytest.raises(ValueError, match=f"binary.*{argument}"):
        open_any(folder / "nobody", mode, buffering, **{argument: values[argument]})
    stream, theirs = ends()
    with theirs, stream.makefile(mode, buffering, **{argument: "no such thing"}) as file:
        assert file.readable() or file.writable()


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("encoding", "no such encoding", LookupError),
        ("encoding", "hex", LookupError),
        ("encoding", b"utf-8", TypeError),
        ("encoding", 8, TypeError),
        ("errors", 1, TypeError),
        ("errors", b"strict", TypeError),
        ("newline", "x", ValueError),
        ("newline", "\n\r", ValueError),
        ("newline", 1, TypeError),
        ("newline", b"\n", TypeError),
    ],
)
@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_wrong_text_arguments(folder: Path, mode: str, argument: str, value: Any, error: type) -> None:
    """What the builtin refuses in text is refused with its exception, before any connection is made."""
    with pytest.raises(error):
        open(os.devnull, **{argument: value})
    with pytest.raises(error):
        open_any(folder / "nobody", mode, **{argument: value})
    stream, theirs = ends()
    with theirs, stream:
        with pytest.raises(error):
            stream.makefile(mode, **{argument: value})
        assert stream.write(b"still usable") == 12
        assert theirs.recv(100) == b"still usable"


def test_makefile_takes_text_arguments_by_keyword_only() -> None:
    """`makefile` takes mode and buffering by position, the rest by keyword, as `socket.makefile` does."""
    stream, theirs = ends()
    with theirs, stream, pytest.raises(TypeError):
        stream.makefile("r", -1, "utf-8")


def test_nonblocking_stream_is_not_wrapped_in_text() -> None:
    """Text over a nonblocking stream is a `ValueError` that says so; the stream stays as it was."""
    stream, theirs = ends()
    with theirs, stream:
        stream.set_nonblocking(True)
        for mode in ("r", "w", "rw"):
            with pytest.raises(ValueError, match="nonblocking"):
                stream.makefile(mode)
        assert stream.is_nonblocking() and stream.write(b"x") == 1


# --- open ---


def test_open_by_default_reads_text(folder: Path) -> None:
    """`open(path)` is text, for reading, in the locale's encoding, strict, as the builtin's."""
    with listening(folder / "s") as listener, open_any(str(folder / "s")) as file:
        assert (file.mode, file.readable(), file.writable()) == ("r", True, False)
        assert file.encoding.lower() == locale.getpreferredencoding(False).lower()
        assert (file.errors, file.newlines, file.line_buffering) == ("strict", None, False)
        with listener.accept()[0] as theirs:
            theirs.sendall(b"line\r\n")
        assert file.read() == "line\n"
        assert file.newlines == "\r\n"


@pytest.mark.parametrize("kind", ["str", "bytes", "Path", "file", "@str", "@bytes", "namespaced"])
def test_open_takes_every_kind_of_path(folder: Path, kind: str) -> None:
    """A `str`, `bytes`, `os.PathLike` or `UdSocketPath`, of a file or of an abstract name."""
    path = folder / "s"
    name = f"udstream-test-{os.getpid()}-{random.getrandbits(64)}".encode()
    kinds: dict[str, tuple[Any, str | bytes]] = {
        "str": (str(path), str(path)),
        "bytes": (os.fsencode(path), str(path)),
        "Path": (path, str(path)),
        "file": (UdSocketPath.file(path), str(path)),
        "@str": ("@" + name.decode(), b"\0" + name),
        "@bytes": (b"@" + name, b"\0" + name),
        "namespaced": (UdSocketPath.namespaced(name), b"\0" + name),
    }
    where, bound = kinds[kind]
    with listening(bound) as listener, open_any(where, "rw", encoding="ascii") as file:
        with listener.accept()[0] as theirs:
            theirs.sendall(b"PONG\n")
            file.write("PING\n")
            assert file.readline() == "PONG\n"
            assert theirs.recv(100) == b"PING\n"


def test_arguments_of_open_by_position(folder: Path) -> None:
    """path, mode, buffering, encoding, errors and newline go by position, timeout by keyword only."""
    with listening(folder / "s"), open_any(folder / "s", "w", 1, "latin-1", "replace", "\r\n") as file:
        assert (file.encoding, file.errors, file.line_buffering) == ("latin-1", "replace", True)
    with pytest.raises(TypeError):
        open_any(folder / "s", "w", 1, "latin-1", "replace", "\r\n", 1.0)


@pytest.mark.parametrize("mode", ORDINARY)
def test_timeout_of_open_is_the_streams(folder: Path, mode: str) -> None:
    """`timeout=` stays the stream's after the connecting, and holds for the file's calls."""
    with listening(folder / "s") as listener, open_any(folder / "s", mode, timeout=0.01) as file:
        with listener.accept()[0]:
            assert stream_of(file).timeout == 0.01
            if file.readable():
                with pytest.raises(TimeoutError):
                    file.readline()
    with listening(folder / "t"), open_any(folder / "t", mode) as file:
        assert stream_of(file).timeout is None


@pytest.mark.parametrize("timeout", [0, -1, 0.0, float("nan")])
def test_wrong_timeout_of_open(folder: Path, timeout: float) -> None:
    """A timeout of 0 or below is a `ValueError`, before any connection is made."""
    with pytest.raises(ValueError, match="timeout"):
        open_any(folder / "nobody", timeout=timeout)


@pytest.mark.parametrize("mode", ["r", "rwb"])
def test_open_says_what_it_could_not_open(folder: Path, mode: str) -> None:
    """A missing socket, one that nobody listens on, a regular file: the kernel's error, with the path."""
    (folder / "file").write_text("no socket")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "stale"))
    for name, error in [
        ("missing", FileNotFoundError),
        ("stale", ConnectionRefusedError),
        ("file", ConnectionRefusedError),
    ]:
        with pytest.raises(error) as caught:
            open_any(folder / name, mode)
        assert caught.value.filename == str(folder / name)


# --- what it is ---


@pytest.mark.parametrize("mode", ORDINARY)
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_kind_of_object(mode: str, timeout: float | None) -> None:
    """A `BufferedIOBase` or `TextIOBase`, and nothing that a library takes for a seekable file."""
    seekable = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
    with conversation(mode, timeout=timeout) as (file, _):
        assert isinstance(file, io.BufferedIOBase) is ("b" in mode)
        assert isinstance(file, io.TextIOBase) is ("b" not in mode)
        for level in (file, stream_of(file), *([] if "b" in mode else [file.buffer])):
            assert isinstance(level, io.IOBase) and not isinstance(level, seekable)
        if "b" not in mode:
            assert isinstance(file.buffer, io.BufferedIOBase)


@pytest.mark.parametrize("mode", ORDINARY)
def test_stream_stays_reachable(mode: str) -> None:
    """`.raw` of a buffered file and `.buffer.raw` of a text file is the stream; `fileno()` and `name` agree."""
    stream, theirs = ends()
    with theirs, stream.makefile(mode) as file:
        levels = [file] if "b" in mode else [file, file.buffer]
        assert levels[-1].raw is stream
        assert levels[-1] is (file if "b" in mode else file.buffer)
        for level in [*levels, stream]:
            assert level.fileno() == level.name == stream.fileno()


@pytest.mark.parametrize("mode", ORDINARY)
def test_is_no_terminal_and_does_not_seek(mode: str) -> None:
    """`isatty` and `seekable` are False; `seek`, `tell` and `truncate` are `io.UnsupportedOperation`."""
    with conversation(mode) as (file, _):
        for level in [file] if "b" in mode else [file, file.buffer]:
            assert level.isatty() is False and level.seekable() is False
            for name, arguments in (("seek", (0,)), ("tell", ()), ("truncate", ()), ("truncate", (0,))):
                with pytest.raises(io.UnsupportedOperation):
                    getattr(level, name)(*arguments)


@pytest.mark.parametrize("mode", ORDINARY)
def test_repr_names_mode_and_stream(mode: str) -> None:
    """`repr` shows the kind, the mode and the stream, also of a closed file."""
    with conversation(mode) as (file, _):
        assert repr(mode) in repr(file) and repr(stream_of(file)) in repr(file)
    assert "closed" in repr(file)


@pytest.mark.parametrize("mode", ORDINARY)
def test_is_not_copied_or_pickled(mode: str) -> None:
    """A file can be neither pickled nor copied: `TypeError`, as of the builtin's."""
    with conversation(mode) as (file, _):
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                call(file)


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_text_attributes_are_read_only(mode: str) -> None:
    """`encoding`, `errors`, `newlines`, `buffer` and the rest only tell."""
    with conversation(mode, encoding="ascii", errors="ignore") as (file, _):
        assert (file.encoding, file.errors) == ("ascii", "ignore")
        for name in ("encoding", "errors", "newlines", "line_buffering", "buffer", "mode", "name", "closed"):
            with pytest.raises(AttributeError):
                setattr(file, name, None)


# --- closing ---


def closers(mode: str) -> list[str]:
    """The levels of a file of this mode, by how they are reached from it."""
    return ["file", "raw"] if "b" in mode else ["file", "buffer", "buffer.raw"]


def level(file: Any, name: str) -> Any:
    """The level of that name."""
    for part in [] if name == "file" else name.split("."):
        file = getattr(file, part)
    return file


CLOSINGS = [(mode, name) for mode in ORDINARY for name in closers(mode)]


@pytest.mark.parametrize(("mode", "name"), CLOSINGS)
def test_closing_any_level_closes_the_stream_once(mode: str, name: str) -> None:
    """Whatever level is closed, all are, the peer sees the end, and the descriptor is closed once."""
    stream, theirs = ends()
    with theirs:
        file = stream.makefile(mode)
        levels = [level(file, which) for which in closers(mode)]
        fd = stream.fileno()
        level(file, name).close()
        assert [each.closed for each in levels] == [True] * len(levels)
        assert everything(theirs) == b""
        # A new descriptor takes the old one's number: a second close would hit it.
        taken = os.dup2(theirs.fileno(), fd)
        for each in levels:
            each.close()
        del levels, each, file, stream
        gc.collect()
        os.fstat(taken)
        os.close(taken)


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_close_sends_what_was_written(mode: str, timeout: float | None) -> None:
    """`close`, and the end of a ``with``, also by an exception, send what is in the buffer."""
    with conversation(mode, timeout=timeout) as (file, theirs):
        file.write(data_for(mode, "last words"))
        file.close()
        assert everything(theirs) == b"last words"
    stream, theirs = ends(timeout)
    with theirs:
        with pytest.raises(KeyError), stream.makefile(mode) as file:
            file.write(data_for(mode, "last words"))
            raise KeyError
        assert everything(theirs) == b"last words"


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_closing_text_sends_what_went_to_its_buffer(mode: str) -> None:
    """What was written to `.buffer` is sent in its turn, by `flush` and `close` of the text file as well."""
    with conversation(mode) as (file, theirs):
        file.buffer.write(b"1")
        file.write("2")
        file.flush()
        assert here(theirs) == b"12"
        file.buffer.write(b"3")
        file.flush()
        assert here(theirs) == b"3"
        file.write("4")
        file.flush()
        file.buffer.write(b"5")
        file.close()
        assert everything(theirs) == b"45"


def calls_on_closed(mode: str) -> dict[str, Callable[[Any], object]]:
    """Every call that a closed file must refuse."""
    data = data_for(mode, "x")
    calls: dict[str, Callable[[Any], object]] = {
        "readable": lambda f: f.readable(),
        "writable": lambda f: f.writable(),
        "seekable": lambda f: f.seekable(),
        "isatty": lambda f: f.isatty(),
        "fileno": lambda f: f.fileno(),
        "flush": lambda f: f.flush(),
        "with": lambda f: f.__enter__(),
    }
    if "r" in mode:
        calls |= {
            "read()": lambda f: f.read(),
            "read(1)": lambda f: f.read(1),
            "readline": lambda f: f.readline(),
            "readlines": lambda f: f.readlines(),
            "next": lambda f: next(f),
            "for": lambda f: list(f),
        }
    if "r" in mode and "b" in mode:
        calls |= {
            "read1": lambda f: f.read1(),
            "read1(1)": lambda f: f.read1(1),
            "readinto": lambda f: f.readinto(bytearray(1)),
            "readinto1": lambda f: f.readinto1(bytearray(1)),
            "peek": lambda f: f.peek(),
        }
    if "w" in mode:
        calls |= {"write": lambda f: f.write(data), "writelines": lambda f: f.writelines([data])}
    return calls


@pytest.mark.parametrize("mode", ORDINARY)
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_closed_file_refuses_every_call(mode: str, timeout: float | None) -> None:
    """Every call of a closed file is `ValueError`, also when lines that were read ahead are at hand."""
    for call in calls_on_closed(mode).values():
        with conversation(mode, timeout=timeout) as (file, theirs):
            theirs.sendall(b"one\ntwo\nthree\n")
            if file.readable():
                file.readline()
            iterator = iter(file) if file.readable() else None
            file.close()
            with pytest.raises(ValueError, match="closed"):
                call(file)
            if iterator is not None:
                with pytest.raises(ValueError, match="closed"):
                    next(iterator)


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
def test_file_whose_stream_was_closed_takes_nothing(mode: str) -> None:
    """After the stream itself was closed, a write is a `ValueError`, not data that is silently lost."""
    with conversation(mode) as (file, _):
        stream_of(file).close()
        with pytest.raises(ValueError, match="closed"):
            file.write(data_for(mode, "x"))
        with pytest.raises(ValueError, match="closed"):
            file.flush()


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
def test_close_that_cannot_send_closes_all_the_same(mode: str) -> None:
    """`close` with nobody at the other end says `BrokenPipeError`, once, and leaves nothing open."""
    stream, theirs = ends()
    file = stream.makefile(mode)
    theirs.close()
    file.write(data_for(mode, "x"))
    with pytest.raises(BrokenPipeError):
        file.close()
    assert file.closed and stream.closed
    file.close()
    del file
    gc.collect()


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
def test_close_that_times_out_closes_all_the_same(mode: str) -> None:
    """`close` with a peer that doesn't read says `TimeoutError`: what was written is not lost in silence."""
    stream, theirs = ends(timeout=0.02)
    with theirs:
        file = stream.makefile(mode)
        file.write(data_for(mode, "x" * 1_000_000))
        with pytest.raises(TimeoutError):
            file.close()
        assert file.closed and stream.closed
        file.close()


# --- dropping ---


@contextmanager
def warnings_of_dropping() -> Iterator[list[str]]:
    """Collect the `ResourceWarning`\\ s up to the end of the block, and then what the collector finds."""
    messages: list[str] = []
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
        gc.collect()
    assert {warning.category for warning in caught} <= {ResourceWarning}
    messages += [str(warning.message) for warning in caught]


@pytest.mark.parametrize("mode", ORDINARY)
@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("buffering", [-1, 100])
def test_dropped_file_sends_closes_and_warns(mode: str, timeout: float | None, buffering: int) -> None:
    """A file dropped unclosed sends what was written, closes the stream, and is named in one warning."""
    stream, theirs = ends(timeout)
    with theirs:
        with warnings_of_dropping() as messages:
            file = stream.makefile(mode, buffering)
            name = repr(file)
            if file.writable():
                file.write(data_for(mode, "last words"))
            del file
            assert stream.closed
        assert messages == [f"unclosed file {name}"]
        assert everything(theirs) == (b"last words" if "w" in mode else b"")


@pytest.mark.parametrize("mode", ORDINARY)
def test_dropped_file_of_open_names_its_path(folder: Path, mode: str) -> None:
    """The warning for a dropped file of `open` names the path."""
    with listening(folder / "s") as listener:
        with warnings_of_dropping() as messages:
            open_any(folder / "s", mode)
        assert len(messages) == 1 and str(folder / "s") in messages[0] and repr(mode) in messages[0]
        with listener.accept()[0] as theirs:
            assert everything(theirs) == b""


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
def test_file_dropped_in_a_cycle_sends_closes_and_warns(mode: str) -> None:
    """A file that only the garbage collector finds sends what was written, too, and is named by the warning."""
    stream, theirs = ends()
    with theirs:
        with warnings_of_dropping() as messages:
            file = stream.makefile(mode)
            name = repr(file)
            file.write(data_for(mode, "last words"))
            cycle: list[object] = [file]
            cycle.append(cycle)
            del file, stream, cycle
        assert everything(theirs) == b"last words"
        assert messages == [f"unclosed file {name}"]


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
def test_file_left_open_at_exit_sends_closes_and_warns(folder: Path, mode: str) -> None:
    """A program that ends with a file open has sent what was written, and hears a warning."""
    program = """
import sys, udstream
path, mode = sys.argv[1:]
file = udstream.open(path, mode)
file.write(b"last words" if "b" in mode else "last words")
"""
    with listening(folder / "s") as listener:
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", program, str(folder / "s"), mode],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(Path(udstream.__file__).parent.parent)},
        )
        assert done.returncode == 0, done.stderr
        with listener.accept()[0] as theirs:
            assert everything(theirs) == b"last words"
    assert done.stderr.count("ResourceWarning") == 1 and str(folder / "s") in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr, done.stderr


@pytest.mark.parametrize("mode", ORDINARY)
def test_closed_file_is_dropped_in_silence(mode: str) -> None:
    """A file that was closed, at whatever level, says nothing when it goes."""
    for name in closers(mode):
        stream, theirs = ends()
        with theirs, warnings_of_dropping() as messages:
            file = stream.makefile(mode)
            level(file, name).close()
            del file, stream
        assert messages == []


@pytest.mark.parametrize("mode", ORDINARY)
def test_dropped_file_whose_descriptor_somebody_else_closed(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of its close is told of, as any that nobody can catch; and no trace of the file is kept."""
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: heard.append(what.exc_value.errno))
    stream, theirs = ends()
    with theirs, warnings_of_dropping() as messages:
        # The collector breaks the weak reference that the stream has to it, before it finishes the file off.
        cycle: list[Any] = [stream.makefile(mode)]
        cycle.append(cycle)
        os.close(stream.fileno())
        del stream, cycle
        gc.collect()
    assert heard == [errno.EBADF]
    assert len(messages) == 1
    assert not files._OPEN


@pytest.mark.parametrize("mode", ORDINARY)
def test_dropped_file_goes_at_once(mode: str) -> None:
    """A file makes no reference cycle: the last reference to it closes it, used or not."""
    with no_collecting():
        with conversation(mode) as (file, theirs):
            theirs.sendall(b"one\ntwo\n")
            if file.writable():
                file.write(data_for(mode, "x"))
            if file.readable():
                file.readline()
                for _ in file:
                    break
            if "b" not in mode:
                assert file.buffer
            stream = weakref.ref(stream_of(file))
        del file
        assert stream() is None


@pytest.mark.parametrize("mode", ["r", "rw", "rb", "rwb"])
def test_iterator_keeps_the_file(mode: str) -> None:
    """A ``for`` over a file that nothing else refers to gets every line; then it is a dropped file."""
    stream, theirs = ends()
    with theirs:
        theirs.sendall(b"one\ntwo\n")
        theirs.shutdown(socket.SHUT_WR)
        with warnings_of_dropping() as messages:
            lines = [line for line in stream.makefile(mode)]  # noqa: C416
        assert lines == [data_for(mode, "one\n"), data_for(mode, "two\n")]
        assert len(messages) == 1


# --- as the builtin's ---


def pipe_reader(data: bytes, mode: str, **text: Any) -> Any:
    """The reference: the builtin's file on a pipe with *data* in it."""
    reading, writing = os.pipe()
    with open(writing, "wb", 0) as pipe:
        assert pipe.write(data) == len(data)
    return open(reading, mode, **text)


def stream_reader(data: bytes, mode: str, timeout: float | None = None, **text: Any) -> Any:
    """Ours, on a stream with *data* in it and its end behind that."""
    stream, theirs = ends(timeout)
    with theirs:
        theirs.sendall(data)
    return stream.makefile(mode, **text)


MAKERS: dict[str, Callable[..., Any]] = {
    "builtin": lambda data, binary, **more: pipe_reader(data, "rb" if binary else "r", **more),
    "read": lambda data, binary, **more: stream_reader(data, "rb" if binary else "r", **more),
    "both": lambda data, binary, **more: stream_reader(data, "rwb" if binary else "rw", **more),
    "read, timed": lambda data, binary, **more: stream_reader(data, "rb" if binary else "r", 9.0, **more),
    "both, timed": lambda data, binary, **more: stream_reader(data, "rwb" if binary else "rw", 9.0, **more),
}
BYTES = b"one\ntwo\n\nfour\r\n" + b"x" * 40 + b"\nno end"


@pytest.fixture(params=MAKERS)
def reader(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes files for reading, each closed in the end: the builtin's, as the reference, and ours."""
    made: list[Any] = []

    def make(data: bytes, **more: Any) -> Any:
        made.append(MAKERS[request.param](data, **{"binary": True, **more}))
        return made[-1]

    yield make
    for file in made:
        file.close()


def test_read(reader: Callable[..., Any]) -> None:
    """`read(n)` gives n bytes, fewer only at the end; `read()`, `read(-1)` and `read(None)` all the rest."""
    file = reader(BYTES)
    assert file.read(0) == b""
    assert file.read(3) == BYTES[:3]
    assert file.read(50) == BYTES[3:53]
    assert file.read(1000) == BYTES[53:]
    assert file.read(1) == file.read() == b""
    for size in ((), (-1,), (None,)):
        file = reader(BYTES)
        assert file.read(3) + file.read(*size) == BYTES
        assert file.read(*size) == b""


def test_read1_and_peek(reader: Callable[..., Any]) -> None:
    """`peek` takes nothing; `read1` gives what is in the buffer, at most n, and reads once if it is empty."""
    file = reader(BYTES)
    seen = file.peek()
    assert seen and BYTES.startswith(seen)
    assert file.peek(1) == seen
    assert file.read1(2) == BYTES[:2]
    assert file.read1(0) == b""
    rest = b"".join(iter(file.read1, b""))
    assert rest == BYTES[2:]
    assert file.peek() == file.read1() == file.read1(5) == b""


@pytest.mark.parametrize("method", ["readinto", "readinto1"])
def test_readinto(reader: Callable[..., Any], method: str) -> None:
    """`readinto` fills any writable buffer, of any item size, and counts bytes."""
    file = reader(BYTES)
    readinto = getattr(file, method)
    buffer = bytearray(4)
    assert readinto(buffer) == 4 and buffer == BYTES[:4]
    assert readinto(memoryview(buffer)[1:3]) == 2 and buffer == BYTES[:1] + BYTES[4:6] + BYTES[3:4]
    numbers = array.array("i", [0, 0])
    assert readinto(numbers) == 8 and numbers.tobytes() == BYTES[6:14]
    assert readinto(bytearray(0)) == 0
    with pytest.raises((TypeError, BufferError)):
        readinto(b"read-only")
    whole = bytearray(1000)
    at = 0
    while count := readinto(memoryview(whole)[at:]):
        at += count
    assert whole[:at] == BYTES[14:]


def test_readline(reader: Callable[..., Any]) -> None:
    """`readline` gives a line with its newline, or up to its limit of bytes of it, or what is left."""
    file = reader(BYTES)
    assert file.readline() == b"one\n"
    assert file.readline(0) == b""
    assert file.readline(2) == b"tw"
    assert file.readline(-1) == b"o\n"
    assert file.readline(1) == b"\n"
    assert file.readline(None) == b"four\r\n"
    assert file.readline(40) == b"x" * 40
    assert file.readline(1000) == b"\n"
    assert file.readline() == b"no end"
    assert file.readline() == b""


def test_readlines(reader: Callable[..., Any]) -> None:
    """`readlines` stops after the line with which it has more than *hint* bytes."""
    lines = BYTES.splitlines(keepends=True)
    for hint in (None, -1, 0, 1, 4, 5, 8, 9, 10, 1000):
        file = reader(BYTES)
        wanted = len(lines)
        if hint is not None and hint > 0:
            wanted = next((n for n in range(len(lines)) if sum(map(len, lines[:n])) > hint), len(lines))
        assert file.readlines(hint) == lines[:wanted]
        assert file.readlines() == lines[wanted:]


def test_iteration(reader: Callable[..., Any]) -> None:
    """Iteration gives the lines; it can be left, mixed with reads, taken up again, and ends for good."""
    file = reader(BYTES)
    for line in file:
        assert line == b"one\n"
        break
    assert file.readline() == b"two\n"
    assert next(file) == b"\n"
    assert file.read(2) == b"fo"
    iterator = iter(file)
    assert next(iterator) == b"ur\r\n"
    assert file.readline() == b"x" * 40 + b"\n"
    assert list(iterator) == [b"no end"]
    assert list(file) == []
    with pytest.raises(StopIteration):
        next(file)


@pytest.mark.parametrize("buffering", [-1, 4096])
@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_how_much_is_gathered(mode: str, buffering: int) -> None:
    """What is written leaves when the buffer is full: as much of it as the docs say, or as was asked for."""
    default = 16384 if mode == "wb" and sys.version_info < (3, 14) else 65536
    size = default if buffering == -1 else buffering
    with conversation(mode, buffering) as (file, theirs):
        written = 0
        while not here(theirs):
            written += file.write(data_for(mode, "x" * 1024))
        assert size <= written <= size + 1024


def test_long_lines(reader: Callable[..., Any]) -> None:
    """Lines that are longer than any buffer come whole."""
    sizes = [1, 8191, 8192, 8193, 20_000, 0]
    lines = [bytes([ord("a") + at]) * size + b"\n" for at, size in enumerate(sizes)]
    assert reader(b"".join(lines)).readlines() == lines
    assert list(reader(b"".join(lines), buffering=16)) == lines


def random_reads(rng: random.Random, binary: bool) -> list[tuple[str, tuple[Any, ...]]]:
    """A program of reads whose results depend on the data alone."""
    reads: list[Callable[[], tuple[str, tuple[Any, ...]]]] = [
        lambda: ("read", (rng.choice([0, 1, 2, 3, 7, 20, 60]),)),
        lambda: ("readline", ()),
        lambda: ("readline", (rng.choice([-1, 0, 1, 3, 10, 50]),)),
        lambda: ("readlines", (rng.choice([1, 5, 20]),)),
        lambda: ("__next__", ()),
    ]
    if binary:
        reads.append(lambda: ("readinto", (bytearray(rng.choice([1, 5, 30])),)))
    return [rng.choice(reads)() for _ in range(rng.randrange(1, 12))] + [("read", ())]


def outcome(file: Any, method: str, arguments: tuple[Any, ...]) -> Any:
    """What a call gave: its result, what it put in a buffer, or which exception."""
    try:
        result = getattr(file, method)(*arguments)
    except (StopIteration, UnicodeError) as error:
        return type(error)
    return result, [bytes(each) for each in arguments if isinstance(each, bytearray)]


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "builtin"])
@pytest.mark.parametrize("binary", [True, False])
def test_any_program_of_reads_gives_what_the_builtin_gives(maker: str, binary: bool) -> None:
    """Random sequences of reads, buffer sizes and newline modes: the results are the builtin's on a pipe."""
    rng = random.Random(2024)
    for _ in range(60):
        alphabet = ["\n", "\r\n", "\r", "abc", "é", "x" * 30, "日本"]
        data = "".join(rng.choices(alphabet, weights=[4, 3, 1, 6, 2, 1, 2], k=rng.randrange(40))).encode()
        more: dict[str, Any] = {"binary": binary, "buffering": rng.choice([-1, 2, 16])}
        if not binary:
            more |= {"encoding": "utf-8", "newline": rng.choice([None, "", "\n", "\r", "\r\n"])}
        program = random_reads(rng, binary)
        with MAKERS["builtin"](data, **more) as theirs, MAKERS[maker](data, **more) as ours:
            for method, arguments in program:
                expected = outcome(theirs, method, tuple(copy.copy(each) for each in arguments))
                assert expected == outcome(ours, method, arguments), (data, more, program, method, arguments)


def written(kind: str, mode: str, program: list[tuple[str, Any]], **more: Any) -> tuple[list[Any], bytes]:
    """The outcome of each write, and the bytes that arrive, of the builtin's file on a pipe or of ours."""
    if kind == "builtin":
        reading, writing = os.pipe()
        file = open(writing, mode.replace("r", ""), **more)
        source: Any = open(reading, "rb", 0)
    else:
        stream, source = ends(9.0 if kind == "timed" else None)
        file = stream.makefile(mode, more.pop("buffering", -1), **more)
    results: list[Any] = []
    with source:
        with file:
            for method, argument in program:
                call = getattr(file, method)
                try:
                    results.append(call(argument) if argument is not None else call())
                except (TypeError, UnicodeError) as error:
                    results.append(type(error))
        return results, source.read() if kind == "builtin" else everything(source)


@pytest.mark.parametrize("kind", ["plain", "timed"])
@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_any_program_of_writes_gives_what_the_builtin_gives(mode: str, kind: str) -> None:
    """Random writes, `writelines` and flushes: the same results, errors and bytes as the builtin's on a pipe."""
    rng = random.Random(7)
    binary = "b" in mode
    for _ in range(60):
        program: list[tuple[str, Any]] = []
        for _ in range(rng.randrange(1, 15)):
            text = "".join(
                rng.choices(["a", "\n", "\r\n", "é", "\ud800", "x" * 50], weights=[9, 5, 2, 2, 0.2, 2], k=6)
            )
            value: Any = text
            if binary:
                value = text.encode(errors="replace")
                value = rng.choice([value, bytearray(value), memoryview(value), array.array("h", [1, 2, 3])])
            wrong: Any = rng.choice(["text", None.__class__, 1] if binary else [b"bytes", 1])
            program.append(
                rng.choice(
                    [
                        ("write", value),
                        ("write", value),
                        ("write", wrong),
                        ("writelines", [value, value]),
                        ("writelines", []),
                        ("flush", None),
                    ]
                )
            )
        more: dict[str, Any] = {"buffering": rng.choice([-1, 2, 16])}
        if not binary:
            more |= {
                "encoding": rng.choice(["utf-8", "utf-16", "latin-1", "ascii"]),
                "errors": rng.choice(["strict", "replace", "backslashreplace"]),
                "newline": rng.choice([None, "", "\n", "\r", "\r\n"]),
            }
        assert written("builtin", mode, program, **more) == written(kind, mode, program, **more), (
            program,
            more,
        )


@pytest.mark.parametrize("mode", ["wb", "rwb"])
def test_written_buffer_may_change_afterwards(mode: str) -> None:
    """`write` copies what it takes: the caller may use the buffer again at once."""
    with conversation(mode) as (file, theirs):
        buffer = bytearray(b"first ")
        assert file.write(buffer) == 6
        buffer[:] = b"second"
        assert file.write(memoryview(buffer)) == 6
        buffer[:] = b"third!"
        buffer.clear()
        file.close()
        assert everything(theirs) == b"first second"


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_refused_write_takes_nothing(mode: str) -> None:
    """A write of the wrong type is a `TypeError`, and nothing of it is sent; nor are items after it."""
    wrong: Any = "text" if "b" in mode else b"bytes"
    with conversation(mode) as (file, theirs):
        file.write(data_for(mode, "good "))
        with pytest.raises(TypeError):
            file.write(wrong)
        with pytest.raises(TypeError):
            file.writelines([data_for(mode, "first "), wrong, data_for(mode, "never")])
        file.close()
        assert everything(theirs) == b"good first "


# --- the standard wrappers, by hand ---


def test_stdlib_reader_and_writer_over_a_stream() -> None:
    """`io.BufferedReader` and `io.BufferedWriter` over a `UdStream` work, and close it."""
    stream, theirs = ends()
    with theirs:
        theirs.sendall(BYTES)
        theirs.shutdown(socket.SHUT_WR)
        with io.BufferedReader(stream, 16) as reading:
            assert reading.readline() == b"one\n"
            assert reading.peek(1)[:1] == b"t"
            assert reading.read(4) == b"two\n"
            assert reading.read() == BYTES[8:]
            assert reading.raw is stream and reading.fileno() == stream.fileno()
        assert stream.closed
    stream, theirs = ends()
    with theirs:
        with io.BufferedWriter(stream, 16) as writing:
            for at in range(100):
                writing.write(b"%d\n" % at)
        assert stream.closed
        assert everything(theirs) == b"".join(b"%d\n" % at for at in range(100))


def test_stdlib_pair_over_a_stream() -> None:
    """`io.BufferedRWPair` over a `UdStream` holds a conversation."""
    stream, theirs = ends()
    with theirs, io.BufferedRWPair(stream, stream) as pair:
        theirs.sendall(b"question\nrest")
        assert pair.readline() == b"question\n"
        pair.write(b"answer\n")
        pair.flush()
        assert theirs.recv(100) == b"answer\n"
        assert pair.read(4) == b"rest"
    assert stream.closed


def test_stdlib_text_over_a_stream() -> None:
    """`io.TextIOWrapper` over the standard buffers over a `UdStream` reads and writes text."""
    stream, theirs = ends()
    with theirs:
        theirs.sendall("zwölf\r\nelf\n".encode("latin-1"))
        theirs.shutdown(socket.SHUT_WR)
        with io.TextIOWrapper(io.BufferedReader(stream), "latin-1") as reading:
            assert list(reading) == ["zwölf\n", "elf\n"]
    stream, theirs = ends()
    with theirs:
        with io.TextIOWrapper(
            io.BufferedWriter(stream), "utf-8", newline="\r\n", line_buffering=True
        ) as writing:
            print("zwölf", file=writing)
            assert theirs.recv(100) == "zwölf\r\n".encode()
    stream, theirs = ends()
    pair: Any = io.BufferedRWPair(stream, stream)
    with theirs, io.TextIOWrapper(pair, "utf-8") as both:
        both.write("ping\n")
        both.flush()
        assert theirs.recv(100) == b"ping\n"
        theirs.sendall(b"pong\n")
        assert both.readline() == "pong\n"


def test_stdlib_random_refuses_a_stream() -> None:
    """`io.BufferedRandom`, which must seek, refuses a `UdStream` and leaves it open."""
    stream, theirs = ends()
    with theirs, stream:
        with pytest.raises(io.UnsupportedOperation):
            io.BufferedRandom(stream)
        assert not stream.closed


def test_stdlib_wrapper_dropped_sends_closes_and_warns() -> None:
    """A standard wrapper dropped unclosed sends what was written; the warning names it and the stream."""
    stream, theirs = ends()
    name = repr(stream)
    with theirs:
        with warnings_of_dropping() as messages:
            writing = io.BufferedWriter(stream)
            writing.write(b"last words")
            del writing
            assert stream.closed
        assert len(messages) == 1 and name in messages[0] and "BufferedWriter" in messages[0]
        assert everything(theirs) == b"last words"


def test_stdlib_wrapper_detached_leaves_the_stream() -> None:
    """`detach` of a standard wrapper gives the stream back, open and unharmed."""
    stream, theirs = ends()
    with theirs, stream:
        writing = io.TextIOWrapper(io.BufferedWriter(stream), "ascii")
        writing.write("hello")
        assert writing.detach().detach() is stream
        assert stream.write(b"!") == 1
        assert theirs.recv(100) == b"hello!"


def test_stdlib_wrappers_over_a_nonblocking_stream() -> None:
    """A nonblocking stream under the standard buffers: None where nothing came, `BlockingIOError` when full."""
    stream, theirs = ends()
    with theirs, stream:
        stream.set_nonblocking(True)
        reading = io.BufferedReader(stream)
        assert reading.read(4) is None
        theirs.sendall(b"ab")
        assert reading.read(4) == b"ab"
        writing = io.BufferedWriter(stream)
        with pytest.raises(BlockingIOError) as caught:
            writing.write(b"x" * 5_000_000)
        taken = caught.value.characters_written
        arrived = 0
        while arrived < taken:
            arrived += len(theirs.recv(1 << 20))
            try:
                writing.flush()
            except BlockingIOError:
                continue
        assert arrived == taken
        writing.detach()
        reading.detach()


@pytest.mark.parametrize("over", ["stream", "file"])
def test_stdlib_wrapper_meets_a_timeout(over: str) -> None:
    """A standard wrapper passes the stream's `TimeoutError` on, and can go on where nothing had come."""
    stream, theirs = ends(timeout=0.01)
    below: Any = stream if over == "stream" else stream.makefile("rb")
    with theirs, below:
        text = io.TextIOWrapper(io.BufferedReader(stream) if over == "stream" else below, "utf-8")
        with pytest.raises(TimeoutError):
            text.readline()
        theirs.sendall(b"line\n")
        assert text.readline() == "line\n"
        text.detach()


@pytest.mark.parametrize("mode", ["rb", "rwb"])
def test_stdlib_text_over_a_buffered_file(mode: str) -> None:
    """`io.TextIOWrapper` takes one of our buffered files as it takes any."""
    stream, theirs = ends()
    with theirs, io.TextIOWrapper(stream.makefile(mode), "utf-8", newline="") as text:
        theirs.sendall("é\r\n".encode())
        assert text.readline() == "é\r\n"
        if "w" in mode:
            text.write("à\n")
            text.flush()
            assert theirs.recv(10) == "à\n".encode()
        theirs.sendall(b"rest")
        theirs.shutdown(socket.SHUT_WR)
        assert text.read() == "rest"
    assert stream.closed


class Stop(TimeoutError, ConnectionError):
    """What a signal's handler raises."""


class Stopped:
    """A socket that takes three bytes; then, as the file looks for the socket to send the rest, a handler raises."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def send(self, data: bytes, flags: int) -> int:
        count: int = self._sock.send(data[:3], flags)
        return count

    def expect_answer(self) -> None:
        """There is none."""

    def for_one_call(self, begun: float | None) -> Any:
        return self

    @property
    def sock(self) -> Any:
        raise Stop


# Here io.BufferedWriter hands on a write of exactly its buffer's size without buffering it, and nothing tells that from
# a full buffer, with which it comes again.
FULL_IS_NOT_BUFFERED = sys.version_info >= (3, 13)


@pytest.mark.parametrize(
    ("mode", "buffering"),
    [
        *((mode, -1) for mode in ("wb", "w", "rwb", "rw")),
        *((mode, 10) for mode in ("wb", "w", "rwb", "rw") if mode != "wb" or not FULL_IS_NOT_BUFFERED),
    ],
)
def test_each_byte_once_after_a_handler_that_raised(mode: str, buffering: int) -> None:
    """A flush that a handler ended, and the writes and flushes after it, send all that was written, and once."""
    one, other = UdStream.pair()
    with other, one.makefile(mode, buffering) as file:
        sock = one._sock
        written = []
        for text in ("0123456789", "abcdef", "ghij"):
            written.append(text)
            one._sock = Stopped(sock)
            try:
                with pytest.raises(Stop):
                    file.write(text.encode() if "b" in mode else text)
                    file.flush()
            finally:
                one._sock = sock
            file.flush()
            for more in ("mn", "opq"):
                written.append(more)
                file.write(more.encode() if "b" in mode else more)
                file.flush()
        assert other.read(1000) == "".join(written).encode()


@pytest.mark.skipif(not FULL_IS_NOT_BUFFERED, reason="this io.BufferedWriter buffers it")
def test_after_a_handler_that_raised_as_exactly_a_buffer_was_sent() -> None:
    """Where it cannot be told what was written already, the file refuses to write on, and sends nothing twice."""
    one, other = UdStream.pair()
    with other:
        file = one.makefile("wb", 10)
        sock = one._sock
        one._sock = Stopped(sock)
        try:
            with pytest.raises(Stop):
                file.write(b"0123456789")
        finally:
            one._sock = sock
        file.write(b"abc")
        with pytest.raises(OSError, match="cannot write on"):
            file.flush()
        with pytest.raises(OSError, match="cannot write on"):
            file.close()
        assert other.read(100) == b"0123456789"
