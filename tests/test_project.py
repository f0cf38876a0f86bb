"""The laws of the project as a whole: the floors, the public names, one version, README's commands."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import udstream

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "udstream"


def dotted(path: Path) -> str:
    """The name of one of our modules within the package; the package's own is ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = list(SOURCES)
LIBRARY = [module for module in MODULES if module.partition(".")[0] not in ("cli", "__main__")]

# A module imports only from the floors below its own, while it is being imported.
FLOORS = [
    {"_platform"},
    {"_waiting", "_shutdown", "address"},
    {"_csocket"},
    {"_timing"},
    {"_sink", "_source"},
    {"ancillary", "files", "_activation"},
    {"_collecting"},
    {"stream"},
    {"_binding"},
    {"listener"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]

# What a function may import from its own floor or above, once it is called, and why.
UPWARD = {
    ("ancillary", "stream"): "FileDescriptors.stream() makes a UdStream of a descriptor that was received",
    ("ancillary", "listener"): "and FileDescriptors.listener() a UdStreamListener",
}

# Each of these costs a program that only wants a socket more than all of ours together.
HEAVY = {
    "typing",
    "typing_extensions",
    "enum",
    "dataclasses",
    "contextlib",
    "socket",
    "pathlib",
    "re",
    "asyncio",
}


def tree(module: str) -> ast.Module:
    """The syntax tree of one of our modules."""
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def floor(module: str) -> int:
    """The number of the floor on which *module* is, which is that of the package it is in."""
    return next(number for number, modules in enumerate(FLOORS) if module.partition(".")[0] in modules)


def is_for_types(node: ast.AST) -> bool:
    """Whether *node* is an ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(module: str, within: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Each module that *module* imports at run time, by its full name, and whether only a function does so."""
    for node in ast.iter_child_nodes(within):
        if is_for_types(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["udstream", *module.split(".")]
            if SOURCES[module].name != "__init__.py" or module == "__init__":
                package.pop()
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full.removeprefix("udstream.") in SOURCES else base, late
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(module, node, late or function)


def ours(module: str) -> Iterator[tuple[str, bool]]:
    """Those of our own modules, of another floor's package, that *module* imports."""
    for name, late in imports(module, tree(module)):
        top, _, rest = name.partition(".")
        imported = rest if rest in SOURCES else "__init__"
        inside = imported.partition(".")[0] == module.partition(".")[0] and imported != module
        if top == "udstream" and not inside:
            yield imported, late


def test_every_module_has_a_floor() -> None:
    """The floors name each module of the package once, and none that is not there."""
    placed = [module for modules in FLOORS for module in modules]

    assert sorted(placed) == sorted(module for module in MODULES if "." not in module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    """A module imports from lower floors only, but for what a function imports late, each with a reason."""
    wrong = [
        name
        for name, late in ours(module)
        if floor(name) >= floor(module) and not (late and (module, name) in UPWARD)
    ]

    assert wrong == []


def test_late_imports_are_listed_only_while_they_exist() -> None:
    """Each exception to the floors is one that the code makes."""
    made = {(module, name) for module in MODULES for name, late in ours(module) if late}

    assert [pair for pair in UPWARD if pair not in made] == []


@pytest.mark.parametrize("module", LIBRARY)
def test_library_modules_import_little(module: str) -> None:
    """No library module imports what is slow to import, unless a function that needs it does.

    `_shutdown` is there so that `enum` waits until somebody asks for `Shutdown`.
    """
    tops = {name.partition(".")[0] for name, late in imports(module, tree(module)) if not late}

    assert tops & HEAVY == ({"enum"} if module == "_shutdown" else set())


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"_platform"}))
def test_only_one_module_asks_for_the_platform(module: str) -> None:
    """`sys.platform` and its like are read in `_platform` alone."""
    asked = [
        ast.unparse(node)
        for node in ast.walk(tree(module))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.platform", "os.name", "os.uname"))
        or (isinstance(node, ast.Import) and any(alias.name == "platform" for alias in node.names))
    ]

    assert asked == []


@pytest.mark.parametrize("module", MODULES)
def test_each_module_says_what_it_is(module: str) -> None:
    """Each module begins with a docstring whose first line is one sentence."""
    docstring = ast.get_docstring(tree(module)) or ""

    assert re.match(r"[^.\n]+(\.\w[^.\n]*)*[.:]", docstring), docstring


@pytest.mark.parametrize("module", ["udstream", "udstream.ancillary"])
def test_all_names_what_is_public(module: str) -> None:
    """`__all__` holds the public names of the module, all of them, once, and nothing else."""
    public = importlib.import_module(module)
    names = list(public.__all__)
    defined = {
        name
        for name, thing in vars(public).items()
        if not name.startswith("_")
        and not isinstance(thing, types.ModuleType)
        and getattr(thing, "__module__", "").partition(".")[0] == "udstream"
    }

    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(public, name)] == []
    assert defined - set(names) == set()


def test_package_offers_the_promised_names() -> None:
    """What users import is there under the name that the documentation gives it."""
    promised = {
        "open",
        "UdStream",
        "UdStreamListener",
        "UdSocketPath",
        "Shutdown",
        "Credentials",
        "FileDescriptors",
        "ancillary",
    }

    assert promised <= set(udstream.__all__)
    assert udstream.Credentials is udstream.ancillary.Credentials
    assert udstream.FileDescriptors is udstream.ancillary.FileDescriptors


def test_types_are_shipped() -> None:
    """The package carries the marker by which type checkers find its annotations."""
    assert (Path(udstream.__file__).parent / "py.typed").is_file()


def test_version_stands_in_one_place() -> None:
    """The version is written in `udstream/__init__.py` alone; the changelog's newest entry is for it."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, flags=re.MULTILINE)
    sources = [*PACKAGE.rglob("*.py"), ROOT / "pyproject.toml"]
    elsewhere = [
        path.name
        for path in sources
        if udstream.__version__ in path.read_text(encoding="utf-8") and path.name != "__init__.py"
    ]

    assert entries[0][0] == udstream.__version__
    assert [date for _, date in entries] == sorted((date for _, date in entries), reverse=True)
    assert elsewhere == []


def test_readme_has_the_two_commands() -> None:
    """README has one line that sets up and runs the main job, and one that sets up and runs the tests."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv ")]

    assert [line.split()[-2:] for line in commands] == [
        [".venv/bin/udstream", "demo"],
        ["&&", ".venv/bin/pytest"],
    ]


def test_ci_runs_the_commands_of_the_readme() -> None:
    """.ci/run takes both commands from README and has no copy of its own."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = re.search(r'^readme\(\) \{ grep -m 1 -E "(.*)" README\.md; \}$', ci, flags=re.MULTILINE)

    assert pattern
    for ending, variable in (("udstream demo", "main_job"), ("pytest", "test_job")):
        assert f"{variable}=$(readme '{ending}')" in ci
        assert f'bash -euc "${variable}"' in ci
        found = re.search(pattern[1].replace("$1\\$", f"{ending}$"), readme, flags=re.MULTILINE)
        assert found
        assert found[0] not in ci


def test_ci_runs_each_python_that_is_promised() -> None:
    """The Pythons of .ci/run are those of the package's classifiers, from the oldest one allowed."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)

    loop = re.search(r"^for version in ([\d. ]+); do$", ci, re.MULTILINE)
    assert loop
    assert loop[1].split() == promised
    assert f'requires-python = ">={promised[0]}"' in project


def test_ci_installs_the_programs_that_tests_need() -> None:
    """Each program that a test of a real peer needs is one that .ci/run looks for and installs."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    needed = set(re.findall(r"needs\(\"([^\"]+)\"\)", tests))

    assert {program for program in needed if not re.search(rf"\s{re.escape(program)}:", ci)} == set()


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in sorted((ROOT / "tests").glob("test_*.py"))]
)
def test_each_test_states_its_promise(path: Path) -> None:
    """Each test has a docstring, which is the promise that it holds to."""
    mute = [
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert mute == []


def test_importing_starts_nothing() -> None:
    """`import udstream` opens no descriptor, starts no thread and imports neither `socket` nor `asyncio`."""
    program = """
import os, sys, threading
before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
import udstream
after = set(os.listdir("/proc/self/fd")) if before else set()
assert before == after, after - before
assert threading.active_count() == 1
assert not {"socket", "asyncio", "typing", "selectors"} & set(sys.modules), set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
