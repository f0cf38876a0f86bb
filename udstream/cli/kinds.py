"""The kinds of file, by name."""

from __future__ import annotations

import stat

_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISLNK, "symbolic link"),
)


def kind(mode: int) -> str:
    """What a file of this ``st_mode`` is."""
    return next((name for is_it, name in _KINDS if is_it(mode)), "other")
