"""Files that are let go of while somebody holds a method of them, as in ``open(path).read()``."""

from __future__ import annotations

import csv
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from meanwhile import no_collecting

from udstream import Shutdown, UdStream, files

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

READS: dict[str, Callable[[UdStream, str], Any]] = {
    "readline": lambda s, mode: s.makefile(mode).readline(),
    "read": lambda s, mode: s.makefile(mode).read(),
    "read(n)": lambda s, mode: s.makefile(mode).read(5),
    "readlines": lambda s, mode: s.makefile(mode).readlines()[0],
    "for": lambda s, mode: next(iter(s.makefile(mode))),
    "iter": lambda s, mode: next(iter(s.makefile(mode).readline, None)),
}


@pytest.fixture(autouse=True)
def at_once() -> Any:
    """What has gone must be gone at once, not when the collector comes."""
    with no_collecting():
        yield


@pytest.mark.parametrize("timeout", [None, 20.0], ids=["untimed", "timed"])
@pytest.mark.parametrize("mode", ["r", "rw", "rb", "rwb"])
@pytest.mark.parametrize("how", READS)
def test_read_of_a_file_without_a_name(
    how: str, mode: str, timeout: float | None, pair: tuple[UdStream, UdStream]
) -> None:
    """The call works, and after it the connection is closed."""
    here, there = pair
    here.timeout = timeout
    there.write(b"line\n")
    there.shutdown(Shutdown.WRITE)

    assert READS[how](here, mode) == (b"line\n" if "b" in mode else "line\n")

    assert here.closed
    assert there.read(1) == b""
    assert not files._OPEN


@pytest.mark.parametrize("mode", ["w", "rw", "wb", "rwb"])
def test_write_to_a_file_without_a_name(mode: str, pair: tuple[UdStream, UdStream]) -> None:
    """What is written is sent as the file goes."""
    here, there = pair

    assert here.makefile(mode).write(b"text" if "b" in mode else "text") == 4

    assert here.closed
    assert there.readall() == b"text"


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_csv_writer_over_a_file_without_a_name(mode: str, pair: tuple[UdStream, UdStream]) -> None:
    """A writer that keeps nothing of the file but its `write` can go on writing."""
    here, there = pair
    writer = csv.writer(here.makefile(mode, newline=""))
    writer.writerow([1, 2])
    writer.writerow([3, 4])
    assert not here.closed

    del writer

    assert here.closed
    assert there.readall() == b"1,2\r\n3,4\r\n"


@pytest.mark.parametrize("modes", [("wb", "rb"), ("rwb", "rwb")])
def test_pickle_over_files_without_a_name(modes: tuple[Any, Any], pair: tuple[UdStream, UdStream]) -> None:
    """Both ends of a pickled object."""
    here, there = pair
    pickler = pickle.Pickler(here.makefile(modes[0]))
    unpickler = pickle.Unpickler(there.makefile(modes[1]))
    pickler.dump({"a": [1, 2]})
    del pickler
    assert here.closed
    assert unpickler.load() == {"a": [1, 2]}
    del unpickler
    assert there.closed


@pytest.mark.parametrize("mode", ["rw", "rwb"])
def test_both_methods_held(mode: str, pair: tuple[UdStream, UdStream]) -> None:
    """Who keeps `write` and `readline` can talk on; the request still goes before the answer is waited for."""
    here, there = pair
    file: Any = here.makefile(mode)
    write, readline = file.write, file.readline
    del file
    with there.makefile("rw") as peer:
        for text in ("one\n", "two\n"):
            write(text if mode == "rw" else text.encode())
            peer.write("answer\n")
            peer.flush()
            assert readline() in ("answer\n", b"answer\n")
            assert peer.readline() == text
        del write, readline
        gc.collect()
        assert here.closed


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_method_held_of_a_text_file_whose_buffer_was_asked_for(
    mode: str, pair: tuple[UdStream, UdStream]
) -> None:
    """The binary file under it goes with the method, not before."""
    here, there = pair
    there.write(b"one\ntwo\n")
    file: Any = here.makefile(mode)
    assert file.buffer.raw is here
    readline = file.readline
    del file
    assert [readline(), readline()] == ["one\n", "two\n"]
    del readline
    assert here.closed
    assert not files._OPEN


def test_a_file_that_is_held_itself_is_not_left_to_its_methods(pair: tuple[UdStream, UdStream]) -> None:
    """A method that outlives a close is one of a closed file."""
    here, there = pair
    there.write(b"one\ntwo\n")
    with here.makefile("r") as file:
        readline = file.readline
        assert readline() == "one\n"
    with pytest.raises(ValueError, match="closed"):
        readline()
