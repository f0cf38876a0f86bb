"""What ``listen`` and ``take`` share: binding, who gets in, and an end that removes the socket file."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from .. import UdStream, UdStreamListener
from .._waiting import timed_out
from ..ancillary import peer_groups
from ..listener import _EXHAUSTED
from . import arguments, identity
from .terminal import Failure, complain, note, printable
from .threads import start


def add_arguments(parser: argparse.ArgumentParser, *, mode: int | None) -> None:
    """Who gets in; *mode* is the socket file's where none is asked for (None: the umask's)."""
    parser.set_defaults(default_mode=mode)
    parser.add_argument(
        "--mode",
        metavar="MODE",
        type=arguments.mode,
        help="the socket file's mode, from the first instant (default: "
        + (f"{mode:04o}" if mode is not None else "as the umask says")
        + "; 0666 with --allow-user or --allow-group)",
    )
    parser.add_argument(
        "--allow-user",
        metavar="USER",
        type=identity.user_number,
        action="append",
        default=[],
        help="admit this user, name or number, and others only if they are allowed too; may be repeated",
    )
    parser.add_argument(
        "--allow-group",
        metavar="GROUP",
        type=identity.group_number,
        action="append",
        default=[],
        help="admit the members of this group, likewise",
    )
    parser.add_argument(
        "--backlog",
        metavar="N",
        type=arguments.count,
        help="how many may wait to be accepted (default: the most)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=arguments.seconds,
        help="how long to wait for a client, each time (default: for ever)",
    )
    parser.add_argument(
        "--quiet", "-q", action="store_true", help="don't say 'listening on PATH' on stderr when ready"
    )


@contextmanager
def listening(args: argparse.Namespace) -> Iterator[UdStreamListener]:
    """A listener on PATH, which says when it is ready, and whose file goes at the end, by a signal too."""
    mode = args.mode
    if mode is None and args.path.is_file:
        # Whom to admit was said in another way; the file's mode must let them come that far.
        mode = 0o666 if args.allow_user or args.allow_group else args.default_mode
    bound: list[UdStreamListener] = []
    with (
        _ended_by_signals(bound),
        UdStreamListener.bind(args.path, backlog=args.backlog, mode=mode) as listener,
    ):
        bound.append(listener)
        if not args.quiet:
            note(f"listening on {printable(args.path)}")
        yield listener


@contextmanager
def _ended_by_signals(bound: list[UdStreamListener]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    interrupted = threading.Event()
    numbers, told = os.pipe()
    os.set_blocking(told, False)

    def watch() -> None:
        while number := os.read(numbers, 1):
            if number[0] in before and bound:
                try:
                    bound[0].close()
                finally:
                    os._exit(128 + number[0])
            elif number[0] == signal.SIGINT and bound:
                # Ends the accept, if one is blocked: then Python goes on to its KeyboardInterrupt.
                interrupted.set()
                with suppress(OSError, ValueError):
                    bound[0].shutdown()

    # Python runs a handler between two steps of its own; a signal that comes just before an accept blocks, it would
    # see to after that. So a thread hears of each signal, and makes the end.
    watcher = threading.Thread(target=watch, daemon=True)
    try:
        start(watcher)
    except OSError:
        os.close(numbers)
        os.close(told)
        raise
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def end(number: int, frame: object) -> None:
        if not bound:
            raise SystemExit(128 + number)  # bind tidies up after itself
        # Again, since it may have heard of this one before anything was bound.
        os.write(told, bytes([number]))
        watcher.join()

    for number in (signal.SIGTERM, signal.SIGHUP):
        # One that is ignored, as under nohup, stays so.
        if signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, end)
    try:
        yield
    except OSError:
        if interrupted.is_set():
            # Raised in a destructor, or where a weak reference goes, it was ignored there.
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(told)
        watcher.join()
        os.close(numbers)


def admitted(
    listener: UdStreamListener,
    args: argparse.Namespace,
    accept: Callable[[UdStreamListener], UdStream] = UdStreamListener.accept,
) -> Iterator[UdStream]:
    """
    The connections of those who may come in, endlessly; each is the caller's to close.

    *accept* is given the listener with its timeout set. `Failure` when nobody has come in for ``--timeout``.
    """
    told = False
    since = monotonic()
    while True:
        try:
            if args.timeout is not None:
                listener.timeout = _left(args.timeout, since)
            stream = accept(listener)
        except TimeoutError:
            raise Failure(args.path, f"no client came within {args.timeout:g} seconds") from None
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            # Whoever waits in the backlog can wait on, and the listener itself sees to it that this loop does not spin.
            if not told:
                complain(args.path, error.strerror)
            told = True
            continue
        told = False
        if _may_enter(stream, args):
            yield stream
            since = monotonic()
        else:
            stream.close()


def _left(seconds: float, since: float) -> float:
    # Whoever is refused does not lengthen the wait.
    left = since + seconds - monotonic()
    if left <= 0:
        raise timed_out()
    return left


def _may_enter(stream: UdStream, args: argparse.Namespace) -> bool:
    if not args.allow_user and not args.allow_group:
        return True
    peer = stream.peer_credentials()
    if peer.uid in args.allow_user or peer.gid in args.allow_group:
        return True
    if args.allow_group and not set(args.allow_group).isdisjoint(_groups(stream)):
        return True
    complain(args.path, f"refused {identity.user(peer.uid)}, pid {peer.pid}")
    return False


def _groups(stream: UdStream) -> tuple[int, ...]:
    try:
        return peer_groups(stream)
    except NotImplementedError:
        return ()  # where the kernel knows of the first group only
