"""``python -m tests.benchmarks``: measure, print, and write down."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

from . import between, connecting, descriptors, files, growth, limits, memory, raw, report, sendfile
from .measure import Effort, Row, Unavailable, compare

FULL = Effort(rounds=81, round_seconds=0.01, row_seconds=4)
QUICK = Effort(rounds=15, round_seconds=0.005, row_seconds=0.4)
CONNECTS, QUICK_CONNECTS = 200_000, 20_000


def all_rows() -> Iterator[Row]:
    """Every row, family by family."""
    for module in (raw, between, files, descriptors, connecting, sendfile, memory, growth, limits):
        yield from module.rows()


def measured(row: Row, effort: Effort) -> report.Outcome:
    """What came of a row, or why nothing did."""
    try:
        return compare(row, effort)
    except Unavailable as reason:
        return report.Missing(row, str(reason))


def pin() -> None:
    """Keep this process and all that it starts on one CPU: one contender's luck is then the other's."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    """Measure the rows that were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Compare udstream with what one would use instead. The ratio is theirs over ours: "
        "above 1, udstream is faster.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="shorter and fewer rounds: under a minute in all"
    )
    parser.add_argument(
        "--rows", metavar="REGEX", default="", help="only those whose title matches, e.g. 'raw.*socket'"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="write benchmarks.md and benchmarks.svg there"
    )
    options = parser.parse_args()
    effort, connects = (QUICK, QUICK_CONNECTS) if options.quick else (FULL, CONNECTS)
    pin()

    print(report.machine())
    print(report.heading())
    outcomes: list[report.Outcome] = []
    family = ""
    for row in all_rows():
        if not re.search(options.rows, row.title):
            continue
        if row.family != family:
            family = row.family
            print(family)
        outcomes.append(measured(row, effort))
        print(report.line(outcomes[-1]), flush=True)
    remarks = []
    if re.search(options.rows, "left behind") and os.path.isdir("/proc/self/fd"):
        remarks.append(growth.left_behind(connects))
        print(*remarks)
    below = sum(map(report.is_below, outcomes))
    print(f"{len(outcomes)} rows, {below} below their floor")
    if options.output:
        report.write(options.output, outcomes, remarks)


if __name__ == "__main__":
    main()
