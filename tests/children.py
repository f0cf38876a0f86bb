"""Processes that a test forks: they end by themselves, and say why they failed."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meanwhile import PATIENCE


def forked(work: Callable[[], object]) -> int:
    """Fork a process that does *work* and exits with 0, or with 1 when it raises; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(int(PATIENCE))
        work()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A forked child that does *work*, in which it has to succeed by the end of the block; its pid."""
    pid = forked(work)
    try:
        yield pid
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the child failed"
