"""Waiting for a descriptor, up to a deadline."""

from __future__ import annotations

import errno
import select
from time import monotonic

POLLIN = select.POLLIN
POLLOUT = select.POLLOUT

# poll(2) takes its milliseconds as an int: 24 days at the most.
LONGEST_POLL = 2**31 - 1


def timed_out() -> TimeoutError:
    """The error of a call whose time is up."""
    return TimeoutError(errno.ETIMEDOUT, "timed out")


def wait(fd: int, events: int, deadline: float | None) -> int:
    """
    Wait until one of *events* is there, and return what is (it may be ``POLLHUP`` or ``POLLERR`` too).

    *deadline* is a point of `time.monotonic`, or None to wait for ever. Past it: `TimeoutError`. A signal
    whose handler returns does not lengthen the wait. System call: ``poll``.
    """
    poller = select.poll()
    poller.register(fd, events)
    if deadline is None:
        return poller.poll()[0][1]
    while (left := deadline - monotonic()) > 0:
        # poll rounds a fraction of a millisecond up, so it never wakes early to find nothing.
        ready = poller.poll(min(left * 1000, LONGEST_POLL))
        if ready:
            return ready[0][1]
    raise timed_out()
