"""What the commands say, and to whom: results on stdout, everything else on stderr, a line each."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class OutputClosed(Exception):
    """Nobody reads stdout any more."""


class Failure(Exception):
    """What ends a command with one line, ``udstream: SUBJECT: REASON``, and an exit status."""

    def __init__(self, subject: object, reason: object, status: int = 1) -> None:
        super().__init__(subject, reason, status)
        self.subject = subject
        self.reason = reason
        self.status = status


def printable(text: object) -> str:
    r"""
    *text* in one line, with what is not printable, or was no UTF-8, as an escape (``\n``, ``\x1b``, ``\xff``).

    Names come from other processes, and could otherwise command the terminal or fake a line.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    return "".join(c if c.isprintable() else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    # What stands for a byte that could not be decoded is that byte again.
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(character)[1:-1]


def say(line: str = "") -> None:
    """Print a line of the result; `OutputClosed` when nobody reads it."""
    if sys.stdout is None:
        # Closed before we began; a result that nobody gets is none.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdout")
    encoding = sys.stdout.encoding or "utf-8"
    # A terminal that lacks a character is to get an escape for it, not us an error.
    text = line.encode(encoding, "backslashreplace").decode(encoding) + "\n"
    _output(lambda: sys.stdout.write(text))
    flush_output()


def table(rows: Iterable[Sequence[str]]) -> None:
    """Print *rows* in columns; the last one is as wide as it likes."""
    rows = list(rows)
    if not rows:
        return
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())


def complain(subject: object, reason: object) -> None:
    """Say what went wrong, in one line on stderr."""
    note(f"udstream: {printable(subject)}: {printable(reason)}")


def note(line: str) -> None:
    """Print a line on stderr, if there is one."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except OSError:
        return  # nobody is left to be told


def flush_output() -> None:
    """Send what was printed on its way; `OutputClosed` when nobody reads it."""
    if sys.stdout is not None:
        _output(sys.stdout.flush)


def _output(act: Callable[[], object]) -> None:
    try:
        act()
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        error.filename = "stdout"
        raise


def give_up_the_rest() -> None:
    """Give up what cannot be printed, or the interpreter would try again at its end, and change the exit status."""
    for number, file in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if file is not None:
                file.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


def standard_files() -> None:
    """
    Make sure that 0, 1 and 2 are open, so that no socket gets one of these numbers and is taken for it.

    Who closed stdin means an empty one; what is written to a closed stdout or stderr fails, as it should.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)


def version() -> str:
    """The version of the package."""
    import udstream

    return udstream.__version__
