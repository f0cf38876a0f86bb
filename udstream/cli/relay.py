"""Joining stdin and stdout to a stream, both ways at once."""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import threading
from contextlib import contextmanager

from .. import Shutdown, UdStream, UdStreamListener
from .._waiting import timed_out
from . import arguments
from .terminal import OutputClosed
from .threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN, STDOUT = 0, 1

# What a pipe holds on Linux.
CHUNK = 64 * 1024

# poll(2) takes its milliseconds as an int: 24 days at the most.
_LONGEST = 2**31 - 1

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How a conversation ends that stdin has ended for its part."""
    parser.add_argument(
        "--no-shutdown",
        dest="half_close",
        action="store_false",
        help="don't half-close the connection when stdin ends, for a peer that would take it for the end of all",
    )
    parser.add_argument(
        "--idle",
        metavar="SECONDS",
        type=arguments.seconds,
        help="once stdin has ended, end when nothing has come for so long (default: wait for ever)",
    )


def join(stream: UdStream, *, half_close: bool = True, idle: float | None = None) -> None:
    """
    Copy stdin to *stream* and *stream* to stdout until both have ended, or the peer has gone.

    Two threads, so that neither way waits for the other; neither touches a descriptor's mode, which is
    shared with the shell and whoever else has it. When stdin ends, the peer is told by a half-close,
    unless *half_close* is False, and what it still says is copied, up to a pause of *idle* seconds if
    given. When the peer ends its side, what is left of stdin is still sent, for it may be a reader only;
    when it has closed the connection, that ends at once, also while somebody at a terminal has yet to
    type. That nobody reads stdout any more ends it at once, too, and is `OutputClosed` when something
    could not be written, or not all of stdin was sent. `OSError` when the peer left with something unread,
    or with ``filename`` "stdin" or "stdout" when one of these failed.
    """
    with _news_of_signals() as news:
        # The thread inherits the mask, so it leaves signals to this one; and Ctrl-C comes when there is somebody to
        # tidy up after it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            ours, feeder = _fed(stream, half_close)
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _hear_out(stream, feeder, ours, news, idle)
        finally:
            # Ends a write that the peer does not read, and the poll that waits for stdin.
            _shutdown(stream, Shutdown.BOTH)
            ours.close()
            # Another reader of the same terminal may have taken what poll had seen; then read waits on.
            feeder.join(1)
    if feeder.error is not None:
        raise feeder.error


def accept(listener: UdStreamListener) -> UdStream:
    """As the listener's own, but `OutputClosed` as soon as nobody reads stdout."""
    poller = select.poll()
    poller.register(listener.fileno(), select.POLLIN)
    _watch_output(poller)
    ready = dict(poller.poll(_milliseconds(listener.timeout)))
    if STDOUT in ready:
        raise OutputClosed
    if not ready:
        raise timed_out()
    return listener.accept()


@contextmanager
def _news_of_signals() -> Iterator[int | None]:
    """
    A descriptor that can be read once a signal has come; None in a thread that none come to.

    Python runs a handler between two of its own steps: to one that comes just before a poll blocks it would come
    after that poll, so the poll is to watch this, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    news, told = os.pipe()
    try:
        os.set_blocking(news, False)
        os.set_blocking(told, False)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        try:
            yield news
        finally:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            _heed(news)
    finally:
        os.close(told)
        os.close(news)


def _heed(news: int) -> None:
    """Do what signals asked for whose handlers have run, and went unheard."""
    try:
        numbers = os.read(news, CHUNK)
    except BlockingIOError:
        return
    # What Ctrl-C raised in a destructor, or where a weak reference goes, is ignored there.
    if signal.SIGINT in numbers and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise KeyboardInterrupt


def _fed(stream: UdStream, half_close: bool) -> tuple[UdStream, _Feeder]:
    """A feeder at work, and what wakes it when it is closed; `OSError` when there can be none."""
    ours, theirs = UdStream.pair()
    feeder = _Feeder(stream, theirs, half_close)
    try:
        start(feeder)
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ours, feeder


class _Feeder(threading.Thread):
    """Copies stdin to the stream; *wake* is closed by this end when it is done, by the other to end it."""

    def __init__(self, stream: UdStream, wake: UdStream, half_close: bool) -> None:
        super().__init__(name="stdin to socket", daemon=True)
        self.stream = stream
        self.wake = wake
        self.half_close = half_close
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self.copy()
        except OSError as error:
            self.error = error
        except ValueError:
            if not self.stream.closed:
                raise
            # Ctrl-C came as this thread was waited for.
        finally:
            self.wake.close()

    def copy(self) -> None:
        poller = select.poll()
        poller.register(STDIN, select.POLLIN)
        poller.register(self.stream.fileno(), 0)
        poller.register(self.wake.fileno(), select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.wake.fileno() in ready:
                return
            if STDIN not in ready:
                return  # the peer has closed the connection, and there is nothing that it missed
            try:
                data = os.read(STDIN, CHUNK)
            except BlockingIOError:
                continue  # another reader of the same terminal or pipe was quicker
            except OSError as error:
                error.filename = "stdin"
                _shutdown(self.stream, Shutdown.BOTH)
                raise
            if not data:
                if self.half_close:
                    _shutdown(self.stream, Shutdown.WRITE)
                return
            self.stream.write_all(data)


def _shutdown(stream: UdStream, how: Shutdown) -> None:
    try:
        stream.shutdown(how)
    except OSError as error:
        # Some kernels say so of a connection that the peer has closed.
        if error.errno != errno.ENOTCONN:
            raise


def _hear_out(
    stream: UdStream, feeder: _Feeder, wake: UdStream, news: int | None, idle: float | None
) -> None:
    """
    Copy the stream to stdout until both sides have ended, or the peer has closed the connection or been *idle*.

    That nobody reads stdout is looked at last. It cuts a conversation short, which is `OutputClosed`, when there is
    something to be written or stdin has yet to be sent; otherwise nothing was lost, and that is the end as well.
    """
    buffer = memoryview(bytearray(CHUNK))
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLIN)
    poller.register(wake.fileno(), select.POLLIN)
    if news is not None:
        poller.register(news, select.POLLIN)
    _watch_output(poller)
    pause = _milliseconds(idle)
    hearing = feeding = True
    while hearing or feeding:
        ready = dict(poller.poll(None if feeding else pause))
        if not ready:
            return
        if news in ready:
            _heed(news)
        elif stream.fileno() in ready and hearing:
            count = stream.readinto(buffer)
            if count:
                _write(buffer[:count])
            else:
                hearing = False
                # Asked for nothing, poll still tells that the peer has closed the connection.
                poller.modify(stream.fileno(), 0)
        elif wake.fileno() in ready:
            feeding = False
            poller.unregister(wake.fileno())
        elif stream.fileno() in ready:
            # The feeder sees it, too, and ends; but not where another reader of stdin was quicker than its read.
            feeder.join(1)
            return
        elif not feeding:
            return
        elif not _has_news_soon(poller):
            raise OutputClosed


def _has_news_soon(poller: select.poll) -> bool:
    """Whether stdin has something, which may be its end, and something other than stdout is ready because of it."""
    stdin = select.poll()
    stdin.register(STDIN, select.POLLIN)
    poller.unregister(STDOUT)
    try:
        return bool(stdin.poll(0) and poller.poll(1000))
    finally:
        _watch_output(poller)


def _milliseconds(seconds: float | None) -> float | None:
    """As poll takes it."""
    return None if seconds is None else min(seconds * 1000, _LONGEST)


def _watch_output(poller: select.poll) -> None:
    # Asked for nothing, poll still tells that the reader of a pipe has gone, and tells nothing else. A stdout that is
    # not open for writing says so when something is to be written.
    poller.register(STDOUT, 0)


def _write(data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(STDOUT, data) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(STDOUT, select.POLLOUT)
            poller.poll()
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            error.filename = "stdout"
            raise
