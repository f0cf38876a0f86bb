"""The kinds of value that the commands take; what is wrong with one is said in argparse's own way."""

from __future__ import annotations

import argparse
import math
import re

from ..address import UdSocketPath


def socket_path(text: str) -> UdSocketPath:
    """A PATH."""
    try:
        return UdSocketPath.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def mode(text: str) -> int:
    """A file's mode in octal, as chmod takes it."""
    if not re.fullmatch("0?[0-7]{1,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no octal mode such as 0600 or 660")
    return int(text, 8)


def count(text: str) -> int:
    """A whole number, 0 among them."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2 or another whole number")
    return int(text)


def positive_count(text: str) -> int:
    """A whole number above 0."""
    value = count(text)
    if not value:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return value


def add_path(parser: argparse.ArgumentParser) -> None:
    """PATH itself."""
    parser.add_argument("path", metavar="PATH", type=socket_path, help="the socket's path, or @name")


def add_timeout(parser: argparse.ArgumentParser, default: float | None = None) -> None:
    """How long to wait for a connection."""
    until = f"{default:g}" if default else "for ever"
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=default,
        help=f"how long to wait until the server has room for us (default: {until})",
    )
