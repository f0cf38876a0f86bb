"""``udstream connect``."""

from __future__ import annotations

import argparse

from . import connecting, relay
from .arguments import add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to connect to, and how to converse."""
    parser.epilog = (
        "'echo PING | udstream connect --wait 5 app.sock' says one thing and prints the answer. When stdin ends, the "
        "connection is half-closed: the server reads end of file and can still answer. One that takes this for a "
        "client that has gone needs --no-shutdown; one that keeps the connection, --idle."
    )
    add_path(parser)
    connecting.add_arguments(parser)
    relay.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Be the client, until the conversation has ended."""
    with connecting.connected(args) as stream:
        relay.join(stream, half_close=args.half_close, idle=args.idle)
    return 0
