"""Threads, of which the system may allow no more."""

from __future__ import annotations

import errno
import threading


def start(thread: threading.Thread) -> None:
    """Start it; `OSError` (``EAGAIN``) when there can be no more threads."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from None
