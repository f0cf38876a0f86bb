"""A call in a thread of its own, which is known to be blocked before anything is done to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from meanwhile import PATIENCE, wait_until_asleep


class Blocked:
    """Run *call* in a thread; come back once that is asleep in the kernel."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE)
        wait_until_asleep(self._id)
        assert self.running, f"it was to block, but ended with {self.error or self.result!r}"

    def _run(self) -> None:
        self._id = threading.get_native_id()
        self._started.set()
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        finally:
            # What the call held on to goes with it, in this thread.
            del self._call

    @property
    def running(self) -> bool:
        """Whether the call has not ended."""
        return self._thread.is_alive()

    def interrupt(self, number: int) -> None:
        """Have its system call end with EINTR, by a signal that has a handler."""
        assert self._thread.ident is not None
        if self._thread.is_alive():
            signal.pthread_kill(self._thread.ident, number)

    def settle(self) -> None:
        """Wait until it has ended, or is asleep again."""
        if self._thread.is_alive() and os.path.exists(f"/proc/self/task/{self._id}"):
            wait_until_asleep(self._id)

    def end(self) -> None:
        """Wait for its end."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the call never ended"
