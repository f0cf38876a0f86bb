"""``udstream listen``."""

from __future__ import annotations

import argparse
import threading

from .. import Shutdown, UdStream, UdStreamListener
from . import relay, serving
from .arguments import add_path
from .terminal import complain
from .threads import start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, for whom, and what to do with them."""
    add_path(parser)
    parser.add_argument(
        "--echo", action="store_true", help="send back what comes, instead of using stdin and stdout"
    )
    parser.add_argument(
        "--keep-open",
        action="store_true",
        help="go on after the first client: with --echo all at once, otherwise one after the other",
    )
    relay.add_arguments(parser)
    serving.add_arguments(parser, mode=None)


def run(args: argparse.Namespace) -> int:
    """Be the server, until there is nobody left to serve."""
    if args.echo and (args.idle is not None or not args.half_close):
        args.usage_error("--no-shutdown and --idle are about stdin, which --echo has no use for")
    with serving.listening(args) as listener:
        if not args.keep_open:
            _serve_one(listener, args)
        elif args.echo:
            _echo_to_all(listener, args)
        else:
            _serve_in_turn(listener, args)
    return 0


def _serve_one(listener: UdStreamListener, args: argparse.Namespace) -> None:
    with next(serving.admitted(listener, args)) as stream:
        # Whoever comes now learns at once that nobody will serve them.
        listener.close()
        if args.echo:
            _echo(stream)
        else:
            _join(stream, args)


def _serve_in_turn(listener: UdStreamListener, args: argparse.Namespace) -> None:
    clients = serving.admitted(listener, args)
    while True:
        relay.wait_for_client(listener)
        with next(clients) as stream:
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
        except OSError:
            pass  # a client that vanishes harms only itself
        finally:
            live.pop(threading.current_thread(), None)

    try:
        for stream in serving.admitted(listener, args):
            thread = threading.Thread(target=serve, args=(stream,), daemon=True)
            live[thread] = stream
            try:
                start(thread)
            except OSError as error:
                del live[thread]
                stream.close()
                complain(args.path, error.strerror)
    finally:
        for thread, stream in list(live.items()):
            try:
                stream.shutdown(Shutdown.BOTH)
            except (OSError, ValueError):
                pass  # its client, or its own thread, has just ended it
            thread.join(1)


def _echo(stream: UdStream) -> None:
    buffer = memoryview(bytearray(relay.CHUNK))
    while count := stream.readinto(buffer):
        stream.write_all(buffer[:count])
