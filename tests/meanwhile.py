"""What goes on while a test does something: threads beside it, alarms, and no collector of cycles."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Every wait is bounded by this, many times what the slowest of them takes.
PATIENCE = 20.0


@contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run *work* meanwhile; after the block the list holds what it returned or raised."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the other thread never ended"


@contextmanager
def blocked_in(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Like `in_thread`, but the block begins once *call* waits in the kernel."""
    ids: list[int] = []
    started = threading.Event()

    def work() -> Any:
        ids.append(threading.get_native_id())
        started.set()
        return call()

    with in_thread(work) as result:
        assert started.wait(PATIENCE), "the other thread never began"
        wait_until_asleep(ids[0])
        assert not result, f"it was to block, but ended with {result[0]!r}"
        yield result


@contextmanager
def beside(*works: Callable[[], object]) -> Iterator[None]:
    """Run each of the works in a thread beside the block; raise what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread is still waiting"
    if errors:
        raise errors[0]


def wait_until_asleep(thread_id: int, unless: threading.Event | None = None) -> None:
    """Wait until the kernel says that the thread is asleep, and not for a lock of Python's; or gone."""
    pause = unless or threading.Event()
    for _ in range(int(PATIENCE / 0.001)):
        try:
            with open(f"/proc/self/task/{thread_id}/stat") as stat:
                asleep = stat.read().rpartition(")")[2].split()[0] == "S"
            with open(f"/proc/self/task/{thread_id}/wchan") as wchan:
                where = wchan.read()
            # "0" says that it runs again, or that it has not left its processor yet: then where it sleeps is not known.
            if asleep and where != "0" and "futex" not in where:
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        if pause.wait(0.001):
            return
    raise AssertionError("the thread never slept")


@contextmanager
def on_alarm(handler: Callable[..., Any], seconds: float, again: float = 0) -> Iterator[None]:
    """Have *handler* run by SIGALRM, in this, the main thread: once, or then every *again* seconds."""

    def once(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        handler(number, frame)

    # Python does not hear of a signal that comes in the instant before a call waits: another one has to follow.
    before = signal.signal(signal.SIGALRM, handler if again else once)
    signal.setitimer(signal.ITIMER_REAL, seconds, again or max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def no_collecting() -> Iterator[None]:
    """References alone decide what lives."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
