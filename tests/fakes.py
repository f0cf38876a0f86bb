"""What stands in for the kernel."""

from __future__ import annotations

from types import FunctionType
from typing import Any, TypeVar

F = TypeVar("F", bound=Any)


def in_place_of_the_kernel(function: F) -> F:
    """
    The *function*, whose errors the library takes for the system's: it takes it for one of its own.

    What code of anybody else raises in the middle of a system call can only come from a signal's handler.
    """
    names = {**function.__globals__, "__package__": "udstream"}
    fake: Any = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    return fake  # type: ignore[no-any-return]
