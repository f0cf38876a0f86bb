"""What came of it: lines for the terminal, a table and a plot for the documentation."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import udstream

from .measure import Result, Row

BEGIN = "<!-- Written by python -m tests.benchmarks. -->"
END = "<!-- As far as here. -->"


class Missing(NamedTuple):
    """A row that could not be measured, and why."""

    row: Row
    reason: str


Outcome = Result | Missing


def machine() -> str:
    """The machine, the kernel and the Python that the figures are of."""
    compiler = platform.python_compiler()
    return (
        f"udstream {udstream.__version__}, {platform.python_implementation()} {platform.python_version()} "
        f"({compiler}), {platform.system()} {platform.release()}, "
        f"{_processor()}, {os.cpu_count()} CPUs"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except FileNotFoundError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _cost(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value:,.0f} B"
    for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name}"
    return f"{value * 1e9:.0f} ns"


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _columns(outcome: Outcome) -> list[str]:
    row = outcome.row
    columns = [row.name, row.peer]
    if isinstance(outcome, Missing):
        columns += ["", "", f"n/a: {outcome.reason}", ""]
    else:
        columns += [
            _cost(outcome.ours, row.unit),
            _cost(outcome.theirs, row.unit),
            f"{outcome.ratio:.2f}",
            f"{outcome.low:.2f} – {outcome.high:.2f}",
        ]
    return [*columns, _bound(row.floor), _bound(row.goal)]


def is_below(outcome: Outcome) -> bool:
    """Whether a row is under its floor."""
    return isinstance(outcome, Result) and outcome.below_floor


def line(outcome: Outcome) -> str:
    """A row for the terminal."""
    name, peer, ours, theirs, ratio, spread, floor, goal = _columns(outcome)
    mark = "  BELOW ITS FLOOR" if is_below(outcome) else ""
    bounds = f"{floor:>5} {goal:>5}"
    return f"  {name:40} {peer:26} {ours:>9} {theirs:>9}  {ratio:>6}  {spread:13} {bounds}{mark}"


def heading() -> str:
    """What stands over the lines."""
    return f"  {'':40} {'next to':26} {'ours':>9} {'theirs':>9}  {'ratio':>6}  {'quartiles':13} {'floor':>5} {'goal':>5}"


def table(outcomes: Sequence[Outcome], remarks: Sequence[str]) -> str:
    """All of it as Markdown."""
    lines = [f"Measured with {machine()}.", ""]
    for family, members in groupby(outcomes, key=lambda outcome: outcome.row.family):
        lines += [
            f"### {family[0].upper()}{family[1:]}",
            "",
            "| | next to | ours | theirs | ratio | quartiles | floor | goal |",
            "|---|---|--:|--:|--:|:-:|--:|--:|",
        ]
        for outcome in members:
            columns = _columns(outcome)
            if not isinstance(outcome, Missing):
                columns[4] = f"**{columns[4]}**" + (" (below its floor)" if is_below(outcome) else "")
            lines.append(f"| {' | '.join(columns)} |")
        lines.append("")
    for remark in remarks:
        lines += [remark, ""]
    return "\n".join(lines)


# --- the plot ---

_ROW = 17
_LEFT = 430
_RIGHT = 60
_WIDTH = 1000
_FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


class _Axis:
    """Ratios from left to right, each doubling as wide as the next."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self._low = math.log2(min([0.5, *ratios]))
        self._high = math.log2(max([2.0, *ratios]) * 1.05)

    def x(self, ratio: float) -> float:
        """Where a ratio stands."""
        share = (math.log2(ratio) - self._low) / (self._high - self._low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def marks(self) -> Iterator[float]:
        """The ratios that are written on it."""
        for power in range(math.ceil(self._low), math.floor(self._high) + 1):
            yield 2.0**power


def plot(outcomes: Sequence[Outcome]) -> str:
    """Each ratio with its quartiles and its floor, as SVG."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    axis = _Axis([value for r in results for value in (r.low, r.high)])
    families = [(family, list(rows)) for family, rows in groupby(results, key=lambda r: r.row.family)]
    height = 60 + _ROW * (len(results) + 2 * len(families))
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' {_FONT} font-size='11'>",
        f"<rect width='{_WIDTH}' height='{height}' fill='white'/>",
        _text(_LEFT, 18, "theirs over ours: right of 1, udstream is the faster (or smaller) one", size=13),
    ]
    for mark in axis.marks():
        x = axis.x(mark)
        colour = "#555" if mark == 1 else "#ddd"
        parts.append(f"<line x1='{x:.1f}' y1='42' x2='{x:.1f}' y2='{height - 10}' stroke='{colour}'/>")
        parts.append(_text(x, 36, f"{mark:g}", anchor="middle"))
    y = 42
    for family, rows in families:
        y += 2 * _ROW
        parts.append(_text(10, y - 4, family, weight="bold"))
        for result in rows:
            y += _ROW
            parts += _plotted(result, axis, y - 4)
    return "\n".join([*parts, "</svg>", ""])


def _plotted(result: Result, axis: _Axis, y: int) -> Iterator[str]:
    row = result.row
    colour = "#c0392b" if result.below_floor else "#7f8c8d" if row.floor is None else "#1f77b4"
    middle = y - 4
    yield _text(_LEFT - 10, y, f"{row.name} · {row.peer}", anchor="end")
    if row.floor is not None:
        x = axis.x(row.floor)
        yield f"<path d='M{x:.1f} {middle - 6}v12' stroke='#e67e22' stroke-width='2'/>"
    low, high = axis.x(result.low), axis.x(result.high)
    yield f"<path d='M{low:.1f} {middle}H{high:.1f}' stroke='{colour}' stroke-width='2'/>"
    yield f"<circle cx='{axis.x(result.ratio):.1f}' cy='{middle}' r='4' fill='{colour}'/>"
    # The lines that cross a number end at its edge.
    halo = "paint-order='stroke' stroke='white' stroke-width='3'"
    yield f"<g {halo}>{_text(max(high, axis.x(result.ratio)) + 8, y, f'{result.ratio:.2f}')}</g>"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 11
) -> str:
    style = f"text-anchor='{anchor}' font-weight='{weight}' font-size='{size}'"
    return f"<text x='{x:.1f}' y='{y}' {style}>{escape(text)}</text>"


def write(folder: Path, outcomes: Sequence[Outcome], remarks: Sequence[str]) -> None:
    """Write the plot, and the table into its place in benchmarks.md, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "benchmarks.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{page} has no place for the table: {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{table(outcomes, remarks)}{END}{after}", encoding="utf-8")
    (folder / "benchmarks.svg").write_text(plot(outcomes), encoding="utf-8")
