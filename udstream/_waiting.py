"""Waiting for a descriptor, up to a deadline."""

from __future__ import annotations

import errno
import select
from time import monotonic

POLLIN = select.POLLIN
POLLOUT = select.POLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# poll(2) takes its milliseconds as an int: 24 days at the most.
_LONGEST = 2**31 - 1


def timed_out() -> TimeoutError:
    """The error of a call whose time is up."""
    return TimeoutError(errno.ETIMEDOUT, "timed out")


def poller_for(fd: int, events: int) -> Any:
    """What `wait_by` waits by, for these *events*; one thread at a time can use it."""
    poller = select.poll()
    poller.register(fd, events)
    return poller


def wait_by(poller: Any, deadline: float | None) -> int:
    """
    Wait until one of its events is there, and return what is (it may be ``POLLHUP`` or ``POLLERR`` too).

    *deadline* is a point of `time.monotonic`, or None to wait for ever. Past it: `TimeoutError`. A signal
    whose handler returns does not lengthen the wait. System call: ``poll``.
    """
    if deadline is None:
        return poller.poll()[0][1]  # type: ignore[no-any-return]
    left = (deadline - monotonic()) * 1000
    if left < 0:
        # One look, however late it is: what is already there is not to be missed.
        left = 0
    while True:
        # poll rounds a fraction of a millisecond up, so it never wakes early to find nothing.
        ready = poller.poll(left if left < _LONGEST else _LONGEST)
        if ready:
            return ready[0][1]  # type: ignore[no-any-return]
        left = (deadline - monotonic()) * 1000
        if left <= 0:
            raise timed_out() from None


def wait(fd: int, events: int, deadline: float | None) -> int:
    """`wait_by`, for once."""
    return wait_by(poller_for(fd, events), deadline)
