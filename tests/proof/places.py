"""
Every place in the library's code where something may come in between: another thread, a signal's handler.

Neither can be had to come at a given moment. But what they would do there can be done there, by a trace
function, which Python calls before each of its instructions.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import udstream

_LIBRARY = str(Path(udstream.__file__).parent)


def meddle(
    call: Callable[[], Any], at: int, meddler: Callable[[], object], *, for_signals: bool = False
) -> bool:
    """
    Run *call*, and just before the library's instruction number *at* in it, the *meddler*.

    Return whether there were so many; then *call* raises or returns whatever comes of it, which is for it to
    keep. *for_signals*: count only the places where a signal's handler may run.
    """
    count = 0
    came = False
    before: dict[FrameType, tuple[str, int]] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count, came
        code = frame.f_code
        # What a handler raises in a destructor, Python ignores.
        if not code.co_filename.startswith(_LIBRARY) or code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and not came:
            last = before.get(frame)
            before[frame] = _name(code, frame.f_lasti), frame.f_lasti
            if not for_signals or _python_looks_for_signals(last, frame.f_lasti):
                if count == at:
                    came = True
                    meddler()
                count += 1
        elif event == "return":
            before.pop(frame, None)
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(outer)
        before.clear()
    return came


def _python_looks_for_signals(last: tuple[str, int] | None, offset: int) -> bool:
    """Whether it does so between the instruction that was the *last* in this frame, and the one at *offset*."""
    if last is None:
        return True
    name, where = last
    if name.startswith(("CALL", "RESUME")):
        return not name.startswith("CALL_INTRINSIC")
    # As it jumps back; Python 3.10 also as it jumps ahead.
    jumped = offset <= where if sys.version_info >= (3, 11) else offset != where + 2
    return jumped and "JUMP" in name and not name.endswith("NO_INTERRUPT")


_NAMES: dict[CodeType, dict[int, str]] = {}


def _name(code: CodeType, offset: int) -> str:
    names = _NAMES.get(code)
    if names is None:
        names = _NAMES[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
    return names.get(offset, "")
