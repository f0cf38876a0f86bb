"""What every test gets: short folders for sockets, and a check that it leaks neither descriptors nor threads."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import left_open, open_fds
from meanwhile import PATIENCE, on_alarm

from udstream import UdStream


@pytest.fixture(scope="session", autouse=True)
def programs_can_be_ended() -> None:
    """
    Let the programs that tests start be ended by signals, also where these tests run in the background.

    A shell starts such a job with SIGINT ignored, and nohup with SIGHUP; whatever that starts would inherit it. A
    handler nobody inherits.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def garbage_is_found_quickly() -> None:
    """Spare the collector, which many tests call, what stays to the end: thousands of tests and their modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name in 107 bytes, which tmp_path's may not."""
    path = Path(tempfile.mkdtemp(prefix="uds-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def pair() -> Iterator[tuple[UdStream, UdStream]]:
    """Two connected streams, closed after the test."""
    one, other = UdStream.pair()
    with one, other:
        yield one, other


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor open or a thread running."""
    threads = set(threading.enumerate())
    before = open_fds() if os.path.isdir("/proc/self/fd") else {}
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive(), f"the test left {thread} running"
    if before:
        leaked = left_open(before)
        if leaked:
            # What hangs in a cycle is not leaked; but to look for that after each test would take long.
            gc.collect()
            leaked = left_open(before)
        assert not leaked, f"the test left descriptors open: {leaked}"


@pytest.fixture
def no_endless_wait() -> Iterator[None]:
    """Turn a test that hangs into one that fails."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"still waiting after {PATIENCE:.0f} seconds")

    # Again and again, since closing what hangs may hang as well.
    with on_alarm(give_up, PATIENCE, 1):
        yield
