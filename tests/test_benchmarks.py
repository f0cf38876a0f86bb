"""The benchmark runs; how fast anything is, is not for a test to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> str:
    """What the benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.benchmarks", "--quick", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    "title",
    [
        "one thread: write and readinto, 64 B, socket$",
        "files, there and back.*64 B, makefile$",
        "an open stream",
    ],
)
def test_a_row_is_measured(title: str) -> None:
    """A row in one thread, one between two processes and one of memory each run, and say what came of it."""
    *_, row, summary = run("--rows", title).splitlines()

    assert " – " in row
    assert summary.startswith("1 rows, ")


def test_table_and_plot_are_written(folder: Path) -> None:
    """The table goes into its place on a page that is there, and the plot is XML that has the rows."""
    page = folder / "benchmarks.md"
    marks = [
        line for line in (ROOT / "docs" / "benchmarks.md").read_text().splitlines() if line.startswith("<!--")
    ]
    page.write_text("\n".join(["before", marks[0], "old", marks[1], "after\n"]))

    run("--rows", "an open (stream|rwb file)", "--output", str(folder))

    table = page.read_text()
    assert table.startswith("before\n")
    assert table.endswith("after\n")
    assert "old" not in table
    assert "| an open stream | socket |" in table
    assert "Linux" in table or sys.platform != "linux"
    plot = ElementTree.parse(folder / "benchmarks.svg").getroot()
    assert "an open rwb file · makefile" in [element.text for element in plot.iter()]
