"""
Which changes of the library would no test notice? Make them, one at a time, and see.

    python tools/mutants.py                       # every module, a sample of each
    python tools/mutants.py stream --sample 0     # one module, all of its mutants
    python tools/mutants.py --again               # only what survived the last time

The changes are mutmut's, made to its tree of the code, and a few more that suit a library which is mostly system
calls: a statement is left out, a condition turned round, an error's number another one. Words in errors and
warnings, types and docstrings are left as they are. mutmut itself will not do: it puts a Python frame into every
call, which tests here count, and leaves out properties, which is where a file's `closed` does its work.
Nor will cosmic-ray, which leaves out no statement and no argument, and runs one list of tests for all.

So: the suite runs once under coverage, which tells for each line who runs it. Then each mutant is written into a
copy of the project. The tests that run its line are run until one fails, those that differ most first, up to
PATIENCE seconds of them; then whole files, those of MODULES. What all of them pass is printed. For Linux.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import libcst as cst
import libcst.matchers as m
import pytest
from coverage import CoverageData
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutants"
# In the order of what a mistake in them would cost; with each the tests that are asked about it last of all, as a
# whole: what they do in child processes is not measured.
MODULES = {
    "ancillary": "ancillary credentials hostile_peers ownership real_fd_passing",
    "stream": "stream contract against_stdlib hostile_peers ownership timeouts",
    "_collecting": "ancillary hostile_peers timeouts",
    "_timing": "timeouts stream ancillary ownership",
    "_sink": "rw_files text files file_timeouts hostile_peers",
    "_source": "rw_files text files file_timeouts hostile_peers",
    "files": "files rw_files text contract file_timeouts",
    "listener": "listener listening_safely hostile_peers ownership",
    "_binding": "listening_safely listener",
    "address": "address stream listening_safely",
    "_csocket": "ownership stream listener",
    "_activation": "listener real_servers",
    "_waiting": "timeouts file_timeouts",
}
PROOF = "faults forks histories sends signals threads"
SAMPLE = 100
SEED = 1
# Seconds of tests, as they took under coverage, that a mutant has to survive.
PATIENCE = 6.0
MEMORY = 4 << 30
# A mutant may spoil any of these in ways that are not ours to judge, or they take no notice of the code.
NOT_ASKED = ("test_benchmarks.py", "test_docs.py", "test_project.py", "test_proof.py")
# What raises at any moment, in coverage's own code too, is run without; it goes with the rest of its file.
UNMEASURED = "signal or handler or bytecode or fork or fault or thread or storm"


class Mutant(NamedTuple):
    """One change of one module: the node, what is to stand in its place, and the ranges of lines round it."""

    old: cst.CSTNode
    new: cst.CSTNode
    ranges: list[range]


class Mutations(cst.CSTVisitor):
    """Finds the mutants of a module."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.mutants: list[Mutant] = []
        self._ranges: list[range] = []
        self._within: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Note what can be made of *node*; False leaves out what is in it."""
        if m.matches(node, _LEFT_ALONE):
            return False
        self._within.append(node)
        if isinstance(node, (cst.BaseCompoundStatement, cst.SimpleStatementLine)):
            place: Any = self.get_metadata(PositionProvider, node)
            self._ranges.append(range(place.start.line, place.end.line + 1))
        in_words = any(m.matches(outer, _WORDS) for outer in self._within[:-1])
        place = self.get_metadata(PositionProvider, node, None)
        if place is not None:
            here = range(place.start.line, place.start.line + 1)
            for new in _errno(node) if in_words else _mutated(node):
                self.mutants.append(Mutant(node, new, [here, *reversed(self._ranges)]))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        """The end of what `on_visit` began."""
        if self._within and self._within[-1] is original_node:
            self._within.pop()
            if isinstance(original_node, (cst.BaseCompoundStatement, cst.SimpleStatementLine)):
                self._ranges.pop()


_LEFT_ALONE = (
    m.Annotation()
    | m.Decorator()
    | m.If(test=m.Name("TYPE_CHECKING"))
    | m.FunctionDef(name=m.Name("__repr__") | m.Name("__reduce_ex__"))
    | m.FunctionDef(decorators=[m.Decorator(m.Name("overload"))])
    | m.FormattedString()
    | m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.Ellipsis())])
    | m.SimpleStatementLine(body=[m.Assign([m.AssignTarget(m.Name("__all__") | m.Name("TYPE_CHECKING"))])])
    | m.SimpleStatementLine(body=[m.Import() | m.ImportFrom()])
)
_WORDS = m.Raise() | m.Call(func=m.Name("warn") | m.Name("UnsupportedOperation"))


def _mutated(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and operator is not operator_string:
            yield from operator(node)
    yield from _errno(node)
    if isinstance(node, cst.If):
        turned = cst.UnaryOperation(
            cst.Not(), node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        )
        yield node.with_changes(test=turned, whitespace_before_test=cst.SimpleWhitespace(" "))
    if m.matches(node, _LEFT_OUT):
        yield cst.ensure_type(node, cst.SimpleStatementLine).with_changes(body=[cst.Pass()])
    if (
        isinstance(node, cst.ExceptHandler)
        and len(node.body.body)
        and not m.matches(node.body.body[0], _PASSES_ON)
    ):
        yield node.with_changes(body=cst.IndentedBlock([cst.SimpleStatementLine([cst.Raise()])]))


_LEFT_OUT = m.SimpleStatementLine(
    body=[
        m.Expr()
        | m.Raise()
        | m.Return(m.DoNotCare())
        | m.Del()
        | m.AugAssign()
        | m.Assign([m.AssignTarget(m.Attribute() | m.Subscript())])
    ]
)
_PASSES_ON = m.SimpleStatementLine([m.Raise(exc=None)])


def _errno(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if m.matches(node, m.Attribute(value=m.Name("errno"), attr=m.Name())):
        yield cst.ensure_type(node, cst.Attribute).with_changes(attr=cst.Name("EXDEV"))


# --- who runs which line ---


class Suite:
    """The tests, how long each takes, and who runs which line."""

    def __init__(self) -> None:
        self.seconds = dict(_passed(WORK / "measured.xml"))
        unmeasured = dict(_passed(WORK / "unmeasured.xml"))
        self.seconds |= unmeasured
        self.unmeasured = unmeasured.keys()
        self.data = CoverageData(str(WORK / "coverage"))
        self.data.read()

    @classmethod
    def run(cls, copy: Path) -> None:
        """Run all of them under coverage, in *copy*."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "faulthandler_timeout=100",
        ]
        command += [f"--ignore=tests/{name}" for name in NOT_ASKED]
        measured = ["--cov=udstream", "--cov-report=", "--cov-context=test", "-k", f"not ({UNMEASURED})"]
        env = _environment(copy, COVERAGE_FILE=str(WORK / "coverage"))
        subprocess.run(
            [*command, *measured, f"--junitxml={WORK / 'measured.xml'}"], cwd=copy, env=env, check=False
        )
        alone = ["-k", UNMEASURED, f"--junitxml={WORK / 'unmeasured.xml'}"]
        subprocess.run([*command, *alone], cwd=copy, env=env, check=False)

    def check(self, copy: Path) -> None:
        """Make sure that nothing but a mutant can make these tests fail to be found."""
        outcome = _outcome(copy, ["--collect-only", *self.seconds], 100)
        if outcome != SURVIVED:
            raise SystemExit("the tests that were measured cannot be collected by their names")

    def who_runs(self, path: Path, ranges: Iterable[range]) -> list[str]:
        """The tests that run the innermost of *ranges* that any test runs, the most different ones first."""
        lines = self.data.contexts_by_lineno(str(path))
        tests: Iterable[str] = self.seconds
        for where in ranges:
            found = {
                name.partition("|")[0] for line in where for name in lines.get(line, ())
            } & self.seconds.keys()
            if found:
                files = {test.partition("::")[0] for test in found}
                tests = found | {test for test in self.unmeasured if test.partition("::")[0] in files}
                break
        # One of each test function, then a second one of each, with other parameters.
        seen: Counter[str] = Counter()
        order = []
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            function = test.partition("[")[0]
            order.append((seen[function], self.seconds[test], test))
            seen[function] += 1
        chosen, total = [], 0.0
        for _, seconds, test in sorted(order):
            if total + seconds <= PATIENCE:
                chosen.append(test)
                total += seconds
        return chosen


def _passed(report: Path) -> Iterator[tuple[str, float]]:
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        if not any(case.find(what) is not None for what in ("failure", "error", "skipped")):
            # The class name is tests.test_stream.TestSendingAll, say.
            parts = case.get("classname", "").split(".")
            at = next(number for number, part in enumerate(parts, 1) if part.startswith("test_"))
            name = "::".join(["/".join(parts[:at]) + ".py", *parts[at:], case.get("name", "")])
            # A name with an object's address in it is another one each time.
            if " at 0x" not in name:
                yield name, float(case.get("time", 0))


def _environment(copy: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy), **more}


# --- one mutant ---


def _code(source: cst.Module, mutant: Mutant) -> Any:
    mutated = source.deep_replace(mutant.old, mutant.new)
    assert isinstance(mutated, cst.Module)
    return mutated.code


SURVIVED = "survived"


class Verdict(NamedTuple):
    """What became of a mutant."""

    module: str
    change: str
    outcome: str


def judge(
    suite: Suite, module: str, source: cst.Module, mutant: Mutant, copies: SimpleQueue[Path]
) -> Verdict | None:
    """Run the tests on a mutant; None when it is none, being the same or no Python."""
    try:
        code = _code(source, mutant)
        compile(code, module, "exec")
    except (SyntaxError, cst.CSTValidationError):
        return None
    if code == source.code:
        return None
    change = _change(source, code)
    copy = copies.get()
    path = copy / "udstream" / f"{module}.py"
    try:
        tests = suite.who_runs(REFERENCE / "udstream" / f"{module}.py", mutant.ranges)
        path.write_text(code, encoding="utf-8")
        outcome = _outcome(copy, tests, 10 + 3 * sum(map(suite.seconds.__getitem__, tests)))
        if outcome == SURVIVED:
            files = [f"tests/test_{name}.py" for name in MODULES[module].split()]
            files += [f"tests/proof/test_{name}.py" for name in PROOF.split()]
            outcome = _outcome(copy, files, 150)
        return Verdict(module, change, outcome)
    finally:
        path.write_text(source.code, encoding="utf-8")
        copies.put(copy)


def _outcome(copy: Path, tests: list[str], seconds: float) -> str:
    # What is compiled is known by its size and the second it was written: that is not enough here.
    shutil.rmtree(copy / "udstream/__pycache__", ignore_errors=True)
    (copy / "tests.txt").write_text("\n".join(tests), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "@tests.txt"],
        cwd=copy,
        env=_environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        return SURVIVED if process.wait(seconds) == pytest.ExitCode.OK else "killed"
    except subprocess.TimeoutExpired:
        return "killed, by never ending"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _change(source: cst.Module, code: str) -> str:
    lines = []
    for line in difflib.unified_diff(source.code.splitlines(), code.splitlines(), n=0, lineterm=""):
        if match := re.match(r"@@ -(\d+)", line):
            lines.append(f"line {match[1]}")
        elif line[:3] not in ("---", "+++"):
            lines.append(line)
    return "\n".join(lines)


# --- all of them ---

REFERENCE = WORK / "0"


def _copy_project(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        ROOT, target, ignore=shutil.ignore_patterns(".git", ".venv", ".mutants", "__pycache__", ".*_cache")
    )


def mutants_of(module: str) -> tuple[cst.Module, list[Mutant]]:
    """A module's tree, and all of its mutants."""
    path = ROOT / "udstream" / f"{module}.py"
    wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")))
    visitor = Mutations()
    wrapper.visit(visitor)
    return wrapper.module, visitor.mutants


def _essence(change: str) -> str:
    """A change without the numbers of its lines, which move."""
    return re.sub(r"^line \d+$", "", change, flags=re.MULTILINE)


def main() -> None:
    """Make mutants, run the tests on each, print what survived and the score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("modules", nargs="*", default=list(MODULES), metavar="MODULE")
    parser.add_argument(
        "--sample", type=int, default=SAMPLE, help="how many of each module at most; 0 is all of them"
    )
    parser.add_argument("--again", action="store_true", help="only the mutants that survived the last time")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="how many at a time")
    options = parser.parse_args()

    WORK.mkdir(exist_ok=True)
    copies: SimpleQueue[Path] = SimpleQueue()
    for number in range(1, options.jobs + 1):
        _copy_project(WORK / str(number))
        copies.put(WORK / str(number))
    _copy_project(REFERENCE)
    Suite.run(REFERENCE)
    suite = Suite()
    suite.check(REFERENCE)

    with ThreadPoolExecutor(options.jobs) as pool:
        for module in options.modules:
            report = WORK / f"{module.replace('/', '.')}.json"
            source, mutants = mutants_of(module)
            there_are = len(mutants)
            if options.again:
                again = set(map(_essence, json.loads(report.read_text())["survived"]))
                mutants = [
                    mutant for mutant in mutants if _essence(_change(source, _code(source, mutant))) in again
                ]
            elif 0 < options.sample < there_are:
                mutants = random.Random(SEED).sample(mutants, options.sample)
            outcomes: defaultdict[str, list[str]] = defaultdict(list)
            for verdict in pool.map(lambda mutant: judge(suite, module, source, mutant, copies), mutants):  # noqa: B023
                if verdict is not None:
                    outcomes[verdict.outcome].append(verdict.change)
                    if verdict.outcome == SURVIVED:
                        print(f"{module} {verdict.change}\n", flush=True)
            survived = outcomes[SURVIVED]
            total = sum(map(len, outcomes.values()))
            print(
                f"== {module}: {total - len(survived)} of {total} killed; there are {there_are}", flush=True
            )
            report.write_text(json.dumps({"mutants": total, "survived": survived}, indent=1))


if __name__ == "__main__":
    main()
