"""
Every place in the library's code where something may come in between: another thread, a signal's handler.

Neither can be had to come at a given moment. But what they would do there can be done there, by a trace
function, which Python calls before each of its instructions.
"""

from __future__ import annotations

import dis
import gc
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
    rounds: dict[tuple[CodeType, int], int] = {}

    def step(frame: FrameType, offset: int) -> None:
        nonlocal count, came
        code = frame.f_code
        # What a handler raises in a destructor, Python ignores.
        if came or code.co_name == "__del__":
            return
        last = before.get(frame)
        before[frame] = _name(code, offset), offset
        # A loop's third round has no other places than its second.
        rounds[code, offset] = times = rounds.get((code, offset), 0) + 1
        if times > 2:
            return
        if not for_signals or _python_looks_for_signals(last, offset):
            if count == at:
                came = True
                meddler()
            count += 1

    # What the collector would have run here is none of the call's.
    gc.disable()
    try:
        _step_by_step(call, step)
    finally:
        gc.enable()
        before.clear()
    return came


def _step_by_step(call: Callable[[], Any], step: Callable[[FrameType, int], None]) -> None:
    """Run *call*, and before each instruction of the library's code the *step*, with its frame and its offset."""
    if sys.version_info >= (3, 12):
        # Whose trace functions miss instructions.
        monitoring = sys.monitoring

        def instruction(code: CodeType, offset: int) -> Any:
            if not code.co_filename.startswith(_LIBRARY):
                return monitoring.DISABLE
            return step(sys._getframe(1), offset)

        tool = monitoring.DEBUGGER_ID
        monitoring.use_tool_id(tool, "places")
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, instruction)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            call()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(tool)
        return

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_LIBRARY):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            step(frame, frame.f_lasti)
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(outer)


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
