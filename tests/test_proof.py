"""The page of the proof: each figure that a test records has its place there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import proof  # noqa: E402

RECORDED = re.compile(r'\brecord(?:_property)?\(\s*"([^"]+)"')


def test_each_figure_has_its_place() -> None:
    """What the tests of the proof record is what the table has columns for."""
    for row in proof.ROWS:
        source = (proof.TESTS / row.file).read_text(encoding="utf-8")
        assert set(RECORDED.findall(source)) == set(row.figures), row.file
    files = {row.file for row in proof.ROWS}
    for path in proof.TESTS.glob("test_*.py"):
        assert path.name in files or not RECORDED.search(path.read_text(encoding="utf-8")), path.name


def test_the_page_has_the_rows() -> None:
    """The table in the docs has a line, with figures, for each promise."""
    page = proof.PAGE.read_text(encoding="utf-8")
    written = page[page.index(proof.BEGIN) : page.index(proof.END)]
    for row in proof.ROWS:
        line = next(line for line in written.splitlines() if f"`tests/proof/{row.file}`" in line)
        assert row.promise in line and row.how in line
        for name in row.figures:
            assert re.search(rf"[1-9][0-9,]* {re.escape(name)}\b", line), name
