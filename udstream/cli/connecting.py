"""What ``connect`` and ``pass`` share: a connection to a server, which may have yet to start."""

from __future__ import annotations

import argparse
from time import monotonic, sleep

from .. import UdStream
from . import arguments

# So long between two attempts: nobody notices it, and it keeps no processor busy.
_PAUSE = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long to wait for the server, and for room in its backlog."""
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=arguments.seconds,
        default=0.0,
        help="how long to wait until there is a server (default: not at all)",
    )
    arguments.add_timeout(parser)


def connected(args: argparse.Namespace) -> UdStream:
    """A stream to PATH, which has no timeout any more; past ``--wait``, what the last attempt raised."""
    deadline = monotonic() + args.wait
    while True:
        try:
            stream = UdStream.connect(args.path, timeout=args.timeout)
        except (FileNotFoundError, ConnectionRefusedError):
            left = deadline - monotonic()
            if left <= 0:
                raise
            sleep(min(left, _PAUSE))
        else:
            stream.timeout = None
            return stream
