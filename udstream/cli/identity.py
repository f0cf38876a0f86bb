"""Names for numbers: users, groups, and the program that a process runs."""

from __future__ import annotations

import argparse
import grp
import os
import pwd

from .terminal import printable

# The kernel has 32 bits for each, all of them set for none.
_HIGHEST = 2**32 - 2


def user(uid: int) -> str:
    """``name (uid 0)``, or ``uid 0`` where nobody has that number."""
    try:
        return f"{printable(pwd.getpwuid(uid).pw_name)} (uid {uid})"
    except (KeyError, OverflowError):
        return f"uid {uid}"


def group(gid: int) -> str:
    """``name (gid 0)``, or ``gid 0`` where no group has that number."""
    try:
        return f"{printable(grp.getgrgid(gid).gr_name)} (gid {gid})"
    except (KeyError, OverflowError):
        return f"gid {gid}"


def program(pid: int) -> str:
    """
    The file that the process runs, or its name where the file is not ours to see.

    `OSError` when there is no such process, or no ``/proc``.
    """
    try:
        return printable(os.readlink(f"/proc/{pid}/exe"))
    except PermissionError:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return printable(comm.read().rstrip(b"\n"))


def user_number(text: str) -> int:
    """The uid that *text*, a name or a number, means; for argparse."""
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        return _number(text, "user")


def group_number(text: str) -> int:
    """The gid that *text*, a name or a number, means; for argparse."""
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        return _number(text, "group")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"no {what} is called {text!r}")
    if int(text) > _HIGHEST:
        raise argparse.ArgumentTypeError(f"{text} is above {_HIGHEST}, the highest number of a {what}")
    return int(text)
