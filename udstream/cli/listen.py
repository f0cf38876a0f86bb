"""``udstream listen``."""

from __future__ import annotations

import argparse
import os
import threading
from typing import NoReturn

from .. import Shutdown, UdStream, UdStreamListener
from . import relay, running, serving
from .arguments import add_path
from .terminal import complain
from .threads import start

# What the variables begin with that tell COMMAND who its client is.
_PEER = "UDSTREAM_PEER_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, for whom, and what to do with them."""
    parser.usage = "udstream listen [options] PATH [-- COMMAND ...]"
    parser.description = (
        "Join stdin and stdout to whoever connects. With --echo, send back what comes. With a COMMAND, run it with "
        "the connection as its stdin and stdout; UDSTREAM_PEER_PID, UDSTREAM_PEER_UID and UDSTREAM_PEER_GID tell it "
        "who the client is."
    )
    parser.epilog = (
        "'udstream listen --keep-open upper.sock -- tr a-z A-Z' is a service; 'udstream listen talk.sock' and 'udstream "
        "connect talk.sock' are two ends of a conversation. When stdin ends, the connection is half-closed: the client "
        "reads end of file and can still be heard."
    )
    add_path(parser)
    parser.add_argument(
        "--echo", action="store_true", help="send back what comes, instead of using stdin and stdout"
    )
    parser.add_argument(
        "--keep-open",
        action="store_true",
        help="go on after the first client: with --echo or a COMMAND all at once, otherwise one after the other",
    )
    relay.add_arguments(parser)
    serving.add_arguments(parser, mode=None)


def run(args: argparse.Namespace) -> int:
    """Be the server, until there is nobody left to serve."""
    running.check(args)
    if args.echo and args.words is not None:
        args.usage_error("a client is served by --echo or by a COMMAND, and not by both")
    if (args.echo or args.words is not None) and (args.idle is not None or not args.half_close):
        args.usage_error(
            "--no-shutdown and --idle are about stdin, for which --echo and a COMMAND have no use"
        )
    if args.words is not None:
        running.look_up(args.words)
        if not args.keep_open:
            _become_command(args)
    with serving.listening(args) as listener:
        if not args.keep_open:
            _serve_one(listener, args)
        elif args.words is not None:
            _run_for_each(listener, args)
        elif args.echo:
            _echo_to_all(listener, args)
        else:
            _serve_in_turn(listener, args)
    return 0


def _serve_one(listener: UdStreamListener, args: argparse.Namespace) -> None:
    accept = UdStreamListener.accept if args.echo else relay.accept
    with next(serving.admitted(listener, args, accept)) as stream:
        # Whoever comes now learns at once that nobody will serve them.
        listener.close()
        if args.echo:
            _echo(stream)
        else:
            _join(stream, args)


def _serve_in_turn(listener: UdStreamListener, args: argparse.Namespace) -> None:
    for stream in serving.admitted(listener, args, relay.accept):
        with stream:
            try:
                _join(stream, args)
            except OSError as error:
                if error.filename is not None:
                    raise  # stdin or stdout failed, for every client to come
                complain(args.path, error.strerror)


def _join(stream: UdStream, args: argparse.Namespace) -> None:
    relay.join(stream, half_close=args.half_close, idle=args.idle)


def _echo_to_all(listener: UdStreamListener, args: argparse.Namespace) -> None:
    live: dict[threading.Thread, UdStream] = {}

    def serve(stream: UdStream) -> None:
        try:
            with stream:
                _echo(stream)
        except (OSError, ValueError):
            pass  # a client that vanishes harms only itself; and Ctrl-C may have closed its stream
        finally:
            live.pop(threading.current_thread(), None)

    try:
        for stream in serving.admitted(listener, args):
            thread = threading.Thread(target=serve, args=(stream,), daemon=True)
            live[thread] = stream
            if not _started(thread, stream, args):
                del live[thread]
    finally:
        for thread, stream in list(live.items()):
            try:
                stream.shutdown(Shutdown.BOTH)
            except (OSError, ValueError):
                pass  # its client, or its own thread, has just ended it
            if thread.is_alive():
                thread.join(1)
            else:
                stream.close()  # Ctrl-C came before its thread was started


def _echo(stream: UdStream) -> None:
    buffer = memoryview(bytearray(relay.CHUNK))
    while count := stream.readinto(buffer):
        stream.write_all(buffer[:count])


def _become_command(args: argparse.Namespace) -> NoReturn:
    with serving.listening(args) as listener:
        stream = next(serving.admitted(listener, args))
    # The socket file is gone, and signals do again what they do to others.
    with stream:
        fd = stream.fileno()
        running.become(args.words, {0: fd, 1: fd}, _environment(stream))


def _run_for_each(listener: UdStreamListener, args: argparse.Namespace) -> None:
    def serve(stream: UdStream) -> None:
        try:
            with stream:
                child = running.child(args.words, stream.fileno(), _environment(stream))
        except OSError as error:
            complain(error.filename or args.path, error.strerror)
        else:
            child.wait()

    # These threads are waited for by nobody: at the end COMMAND and its client go on by themselves.
    for stream in serving.admitted(listener, args):
        _started(threading.Thread(target=serve, args=(stream,), daemon=True), stream, args)


def _started(thread: threading.Thread, stream: UdStream, args: argparse.Namespace) -> bool:
    """Start the thread that serves *stream*; where there can be no more, turn its client away."""
    try:
        start(thread)
    except OSError as error:
        stream.close()
        complain(args.path, error.strerror)
        return False
    return True


def _environment(stream: UdStream) -> dict[str, str]:
    """This process's environment, and in it who the client is, as far as the kernel says."""
    try:
        peer = stream.peer_credentials()
    except NotImplementedError:
        known: dict[str, int | None] = {}
    else:
        known = {"PID": peer.pid, "UID": peer.uid, "GID": peer.gid}
    # What this process was told itself, as somebody's COMMAND, is of another client.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PEER)}
    environment.update((_PEER + name, str(number)) for name, number in known.items() if number is not None)
    return environment
