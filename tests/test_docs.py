"""The documentation is true: its programs run, its links lead somewhere, its reference is what the docstrings say."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import udstream

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

# A program may be shown against a server that it does not start: "```python client" gets one that answers PING with
# PONG, and a path of its own in the place of this one.
SERVER_PATH = "/run/app.sock"


class Block(NamedTuple):
    """A fenced block: the words after the fence, and its lines with the number of the first."""

    info: list[str]
    first: int
    lines: list[str]


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of *page* in *language*, in order."""
    found: list[Block] = []
    current: Block | None = None
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if current is None and (opening := re.fullmatch(r"(`{3,})(.*)", line)):
            fence = opening[1]
            current = Block(opening[2].split(), number + 1, [])
        elif current is not None and line == fence:
            found.append(current)
            current = None
        elif current is not None:
            current.lines.append(line)
    assert current is None, f"{page.name}: a fence is not closed"
    return [block for block in found if block.info[:1] == [language]]


def pages_with(language: str, *marks: str) -> list[object]:
    """The pages that have a block in *language* with all of *marks*, as parameters of a test."""
    return [
        pytest.param(page, id=page.name)
        for page in PAGES
        if any(set(marks) <= set(block.info) for block in blocks(page, language))
    ]


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """What a program of the documentation is run in: this very package, and a command `udstream` that is its."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    command = bin_folder / "udstream"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m udstream "$@"\n')
    command.chmod(0o755)
    package = str(Path(udstream.__file__).parent.parent)
    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": package,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def work(folder: Path) -> Path:
    """The folder in which it is run."""
    path = folder / "work"
    path.mkdir()
    return path


class PingPong(socketserver.StreamRequestHandler):
    """The server of a ``python client`` block."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.replace(b"PING", b"PONG"))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread for each client, all of them waited for."""


@pytest.fixture
def server_path(folder: Path) -> Iterator[str]:
    """A PING server's path; the server is not ours, so that the documentation is tested against somebody else."""
    path = str(folder / "s")
    with Server(path, PingPong) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", pages_with("python"))
def test_programs_of_a_page_run(
    page: Path, environment: dict[str, str], work: Path, server_path: str
) -> None:
    """The Python blocks of a page, in order, are one program that runs, without a warning of any kind."""
    lines: list[str] = []
    for block in blocks(page, "python"):
        # The line numbers of a traceback are to be the page's.
        lines.extend([""] * (block.first - 1 - len(lines)))
        client = "client" in block.info
        lines.extend(line.replace(SERVER_PATH, server_path) if client else line for line in block.lines)
    program = work.parent / f"{page.stem}.py"
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, f"{page.name}: {done.stdout}{done.stderr}"
    # A destructor's exception, which is what a warning there becomes, changes no exit status.
    assert "Exception ignored" not in done.stderr, f"{page.name}: {done.stderr}"
    assert "Traceback" not in done.stderr, f"{page.name}: {done.stderr}"


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each ``$ command`` of a console block, and the lines of output shown for it."""
    shown: list[str] = []
    command = ""
    for line in [*block.lines, "$ "]:
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        elif command.endswith("\\"):
            command = command[:-1] + line.removeprefix("> ")
        else:
            shown.append(line)


def matches(shown: list[str], output: str) -> bool:
    """Whether *output* is what is *shown*, where ``...`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in "\n".join(shown).split("..."))
    return re.fullmatch(pattern, output.rstrip("\n"), re.DOTALL) is not None


def listens(pid: int) -> bool:
    """Whether the process has a Unix socket that listens (flag 0x10000 in the kernel's table)."""
    held = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            held.add(os.readlink(fd))
    rows = (row.split() for row in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:])
    return any(row[3] == "00010000" and f"socket:[{row[6]}]" in held for row in rows)


def wait_for_listener(process: subprocess.Popen[bytes]) -> None:
    """Wait until *process* listens."""
    deadline = time.monotonic() + 20
    while not listens(process.pid):
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline, "it does not listen"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="sees in /proc when a server is ready")
@pytest.mark.parametrize("page", pages_with("console", "run"))
def test_console_sessions_of_a_page_run(page: Path, environment: dict[str, str], work: Path) -> None:
    """The commands in a page's ``console run`` blocks succeed, and print what is shown beneath them, if anything is."""
    for block in blocks(page, "console"):
        if "run" in block.info:
            run_session(block, environment, work)


def run_session(block: Block, environment: dict[str, str], work: Path) -> None:
    """Run the commands of one block; what it leaves running with ``&`` is a server, and is stopped at its end."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command, shown in commands(block):
            if command.endswith("&"):
                process = subprocess.Popen(
                    ["sh", "-c", f"exec {command[:-1]}"],
                    cwd=work,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
                running.append(process)
                wait_for_listener(process)
                continue
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert not shown or matches(shown, done.stdout), f"{command}: printed {done.stdout!r}"
    finally:
        for process in running:
            process.terminate()
            process.wait(20)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command in a line of shell, as far as the next ``|``, ``&``, ``;`` or redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>"):
            yield words
            words = []
        else:
            words.append(word)


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_shown_exist(page: Path, environment: dict[str, str]) -> None:
    """Each ``udstream`` command in a page's console blocks, and each of its options, is in that command's help."""
    helps: dict[str, str] = {}
    for block in blocks(page, "console"):
        for command, _ in commands(block):
            for words in simple_commands(command):
                if words[:1] != ["udstream"] or len(words) < 2:
                    continue
                options = {word.partition("=")[0] for word in before_dashes(words) if word.startswith("-")}
                name = next((word for word in words[1:] if not word.startswith("-")), "")
                if name not in helps:
                    helps[name] = subprocess.run(
                        [sys.executable, "-m", "udstream", *filter(None, [name]), "--help"],
                        env={**environment, "COLUMNS": "200", "NO_COLOR": "1"},
                        capture_output=True,
                        text=True,
                        timeout=60,
                        check=True,
                    ).stdout
                lacking = {
                    o for o in options if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", helps[name])
                }
                assert not lacking, f"{page.name}: {command!r}: no {lacking}"


def before_dashes(words: list[str]) -> list[str]:
    """The words up to a ``--``, after which they belong to another program."""
    return words[: words.index("--")] if "--" in words else words


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of *page*'s headings."""
    fenced = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", fenced, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    """Each link within the documentation leads to a file that is there, and to a heading that it has."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_every_page_is_in_the_index() -> None:
    """docs/index.md links every page beside it."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")

    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"({p.name})" not in index] == ["index.md"]


def test_reference_is_what_the_docstrings_say() -> None:
    """docs/reference.md is what tools/reference.py makes of the docstrings today."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_reference_has_every_public_name() -> None:
    """Each public name, and each public attribute of a public class, has its place in docs/reference.md."""
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    lacking = []
    for module in (udstream, udstream.ancillary):
        for name in module.__all__:
            thing = getattr(module, name)
            lacking += [name] if not re.search(rf"`[\w.]*\b{name}`", reference) else []
            for member, what in vars(thing).items() if isinstance(thing, type) else ():
                # What a slot holds may be said in its class's own text.
                full = rf"({name}\.)?{member}" if inspect.ismemberdescriptor(what) else rf"{name}\.{member}"
                if not member.startswith("_") and not re.search(rf"`[\w.]*\b{full}`", reference):
                    lacking.append(f"{name}.{member}")

    assert [name for name in lacking if name != "ancillary"] == []
