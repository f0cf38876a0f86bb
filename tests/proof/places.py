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
# After these Python looks whether a signal has come. (RESUME is the beginning of a function.)
_LOOKS_AFTER = ("CALL", "RESUME", "JUMP", "POP_JUMP")
_SILENT = ("CALL_INTRINSIC", "JUMP_FORWARD", "JUMP_IF_NOT_EXC_MATCH")


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
    before: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count, came
        code = frame.f_code
        # What a handler raises in a destructor, Python ignores.
        if not code.co_filename.startswith(_LIBRARY) or code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and not came:
            last = before.get(frame, "RESUME")
            before[frame] = _name(code, frame.f_lasti)
            if not for_signals or (last.startswith(_LOOKS_AFTER) and not last.startswith(_SILENT)):
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


_NAMES: dict[CodeType, dict[int, str]] = {}


def _name(code: CodeType, offset: int) -> str:
    names = _NAMES.get(code)
    if names is None:
        names = _NAMES[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
    return names.get(offset, "")
