"""``udstream connect``."""

from __future__ import annotations

import argparse

from .. import UdStream
from . import relay
from .arguments import add_path, add_timeout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to connect to."""
    add_path(parser)
    add_timeout(parser)
    relay.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Be the client, until the conversation has ended."""
    with UdStream.connect(args.path, timeout=args.timeout) as stream:
        stream.timeout = None
        relay.join(stream, half_close=args.half_close, idle=args.idle)
    return 0
