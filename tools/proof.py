"""
Runs the proof under faults, and writes its figures into docs/proof.md.

``python tools/proof.py`` takes some minutes. The tests in tests/proof record what they did (pytest's `record_property`);
the values of one name are added up over all tests of a file. A test sees to it that the table has a place for every name.
The exit status is pytest's.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "proof.md"
TESTS = ROOT / "tests" / "proof"
BEGIN, END = "<!-- Written by tools/proof.py -->\n", "<!-- End of what it wrote -->\n"


class Row(NamedTuple):
    """A promise, how it is tested, in which file, and the names of the figures that the tests there record."""

    promise: str
    how: str
    file: str
    figures: tuple[str, ...]


ROWS = [
    Row(
        "An error of the system, from whichever call, reaches the caller; nothing is lost, sent twice or leaked, and the "
        "stream goes on or is openly dead",
        "every system call of every operation fails, one after the other, with each of 11 errors, is interrupted, and does "
        "one byte at a time; `strace` sees to it that none is forgotten",
        "test_faults.py",
        ("faults injected", "runs under a fault"),
    ),
    Row(
        "Whatever is called, in whatever order, what comes out is what went in",
        "random histories of calls on streams and files, against a model in plain Python",
        "test_histories.py",
        ("random histories run", "calls compared with a model"),
    ),
    Row(
        "Two threads read and write one file at once; a close in one never makes another read, or write, somebody else's "
        "file",
        "both ways at once through the smallest buffers; every call closed under at each of its steps, and its number given "
        "to another file at once",
        "test_threads.py",
        (
            "MiB moved",
            "calls closed under, their number used again",
            "places in a call at which its stream was closed",
        ),
    ),
    Row(
        "After a fork nothing is sent twice, and the socket file stays until the process that made it removes it",
        "streams, listeners and files open across `fork`, ends of processes of each kind, workers on one listener",
        "test_forks.py",
        ("clients served",),
    ),
    Row(
        "A signal handler may raise anywhere: a raw stream loses nothing, and says how far it came",
        "a handler that raises at each place where Python looks for signals, and storms of real ones",
        "test_signals.py",
        ("places at which a handler raised", "signals whose handler raised", "MiB moved"),
    ),
    Row(
        "What a file's write took is sent once and in order, whatever comes in between",
        "a second writer, or a handler that raises, at each place of a call that sends; handlers that write to the file "
        "they interrupt; storms of alarms",
        "test_sends.py",
        ("places at which another thread wrote", "places at which a handler raised"),
    ),
    Row(
        "Many clients at once: none lost, none mixed up, and nobody connected who is not",
        "clients against one listener, and against a full backlog; slow peers; a gigabyte without a newline",
        "test_load.py",
        ("clients served", "messages", "connections that found no room in time", "MiB moved"),
    ),
    Row(
        "Where a stream stands in for a socket or a file, it does what they do",
        "CPython's own tests of both, on streams ([below](#what-of-cpythons-own-tests-applies))",
        "test_cpython.py",
        ("CPython tests passed",),
    ),
    Row(
        "No surprises: what is dropped is closed at once, and imports and sessions leave the process as it was",
        "each object dropped with the garbage collector off; every module imported under `strace`, `-W error` and `-OO`",
        "test_surprises.py",
        (),
    ),
]


def recorded(report: Path) -> dict[str, Counter[str]]:
    """What the tests of each file recorded, by name, and how many tests there were."""
    figures: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for test in ElementTree.parse(report).iter("testcase"):
        found = figures[Path(test.attrib["file"]).name]
        found["tests"] += test.find("skipped") is None
        for each in test.iter("property"):
            found[each.attrib["name"]] += int(each.attrib["value"])
    return figures


def table(figures: dict[str, Counter[str]]) -> str:
    """The table, and of what run it is."""
    lines = ["| what is promised | how it is tested | figures |", "|---|---|---|"]
    for row in ROWS:
        found = figures[row.file]
        said = "<br>".join(f"{found[name]:,} {name}" for name in (*row.figures, "tests"))
        lines.append(f"| {row.promise} | {row.how} (`tests/proof/{row.file}`) | {said} |")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return "\n".join(lines) + f"\n\nOne run, on {python} and {platform.system()} {platform.release()}.\n"


def main() -> int:
    """Run the proof, and write its figures unless it failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", str(TESTS), f"--junitxml={report}"]
        status = subprocess.run(command, cwd=ROOT).returncode
        if status:
            return status
        figures = recorded(report)
    page = PAGE.read_text(encoding="utf-8")
    between = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: "\n" + table(figures) + "\n", page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
