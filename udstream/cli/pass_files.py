"""
``udstream pass``.

What goes over the connection: messages of up to 253 descriptors each, and as their bytes the names of those
files, each followed by a NUL.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

from ..ancillary import MAX_FDS
from . import connecting
from .arguments import add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to send, and where."""
    add_path(parser)
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="a file to open and send; - is stdin as it is"
    )
    parser.add_argument(
        "--write",
        "-w",
        action="store_true",
        help="open the files for reading and writing, not for reading only",
    )
    connecting.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Send the files; what was sent is in the kernel's hands, whether it has been taken or not."""
    with ExitStack() as opened:
        fds = [_open(name, args.write, opened) for name in args.files]
        with connecting.connected(args) as stream:
            for start in range(0, len(fds), MAX_FDS):
                names = args.files[start : start + MAX_FDS]
                payload = b"".join(os.fsencode(name) + b"\0" for name in names)
                stream.send_fds(payload, fds[start : start + MAX_FDS])
    return 0


def _open(name: str, write: bool, opened: ExitStack) -> int:
    if name == "-":
        return 0
    fd = os.open(name, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOCTTY)
    opened.callback(os.close, fd)
    return fd
