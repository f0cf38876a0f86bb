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


def run(args: argparse.Namespace) -> int:
    """Be the client, until the conversation has ended."""
    with UdStream.connect(args.path, timeout=args.timeout) as stream:
        stream.timeout = None
        relay.join(stream)
    return 0
