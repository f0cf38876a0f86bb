"""Which descriptors this process has open."""

from __future__ import annotations

import os


def is_open(fd: int) -> bool:
    """Whether this number is one that is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def fd_count() -> int:
    """How many there are, and one more: that which lists them."""
    return len(os.listdir("/proc/self/fd"))


def open_fds() -> dict[int, str]:
    """The descriptors of this process and what they are open on."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return found


def left_open(before: dict[int, str]) -> dict[int, str]:
    """What is open now and was not then."""
    return {fd: what for fd, what in open_fds().items() if before.get(fd) != what}
