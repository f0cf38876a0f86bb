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
