"""
Writes docs/reference.md from the docstrings of the public names.

``python tools/reference.py`` writes it; with ``--check`` it only says, by its exit status, whether what is there is what
it would write. A public name without a docstring is an error.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import udstream  # noqa: E402
from udstream import ancillary  # noqa: E402

WIDTH = 100

# A number has no docstring of its own.
CONSTANTS = {"MAX_FDS": "The most descriptors that one message can carry; the kernel refuses more."}

# Nor has a slot.
SLOTS = {"closed": "True once it is closed. To ask costs no system call."}

HEAD = """\
# Reference

<!-- Written by tools/reference.py from the docstrings: change those, not this. -->

Wherever a *path* is taken, it is a `str`, `bytes`, `os.PathLike` or `UdSocketPath`; a `str` or `bytes` beginning with
`@` or NUL is a name in Linux's abstract namespace. Wherever a *fd* is taken by `udstream.ancillary`, it is an `int` or
any object with `fileno()`, and only borrowed. Every error that comes from the kernel is its `OSError`, errno included.
"""


def own(cls: type) -> dict[str, Any]:
    """The public attributes that this package gives *cls*, in the order of their definition."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] == "udstream":
            members.update((n, m) for n, m in vars(base).items() if not n.startswith("_"))
    return members


def text_of(name: str, thing: Any) -> str:
    """The docstring of *thing* as Markdown."""
    doc = (
        SLOTS.get(name.rpartition(".")[2])
        if inspect.ismemberdescriptor(thing)
        else getattr(thing, "__doc__", None)
    )
    if not doc:
        raise SystemExit(f"{name} has no docstring")
    text = inspect.cleandoc(doc)
    # A term and its definition beneath it, as a list.
    text = re.sub(r"^(``.+``)\n    ", r"- \1: ", text, flags=re.MULTILINE)
    text = re.sub(r"^    (?=\S)", "  ", text, flags=re.MULTILINE) if "\n- ``" in text else text
    # One backquote or two, in a docstring both mean code; in Markdown one does.
    return re.sub(r"``([^`\n]+)``", r"`\1`", text)


def signature_of(name: str, function: Any) -> str:
    """How *function* is called, one parameter a line when it is too long for one."""
    signature = inspect.signature(function)
    parts: list[str] = []
    kinds = [p.kind for p in signature.parameters.values()]
    for at, parameter in enumerate(signature.parameters.values()):
        if parameter.name in ("self", "cls") and at == 0:
            continue
        keyword_only = parameter.kind is parameter.KEYWORD_ONLY
        if (
            keyword_only
            and parameter.VAR_POSITIONAL not in kinds
            and parameter.KEYWORD_ONLY not in kinds[:at]
        ):
            parts.append("*")
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            star = ""
        annotated = parameter.annotation is not parameter.empty
        part = star + parameter.name + (f": {annotation(parameter.annotation)}" if annotated else "")
        if parameter.default is not parameter.empty:
            part += f" = {parameter.default!r}" if annotated else f"={parameter.default!r}"
        parts.append(part)
        after = list(signature.parameters.values())[at + 1 :]
        if parameter.kind is parameter.POSITIONAL_ONLY and not any(
            p.kind is p.POSITIONAL_ONLY for p in after
        ):
            parts.append("/")
    returns = signature.return_annotation
    tail = "" if returns is signature.empty else f" -> {annotation(returns)}"
    line = f"{name}({', '.join(parts)}){tail}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){tail}"


def annotation(written: Any) -> str:
    """A type as it stands in the source."""
    if not isinstance(written, str):
        return getattr(written, "__name__", str(written))
    # To a type checker that None is hidden, as for all raw files; to a reader it is what counts.
    return written.replace("MaybeNone", "None")


def entry(level: int, name: str, thing: Any, call: str | None = None) -> Iterator[str]:
    """A heading, how it is called, and what it does."""
    yield f"{'#' * level} `{name}`"
    if call is not None:
        yield f"```py\n{call}\n```"
    yield text_of(name, thing)


def class_entries(name: str, cls: type) -> Iterator[str]:
    """A class and its members."""
    yield from entry(2, name, cls)
    if issubclass(cls, IntEnum):
        yield "\n".join(f"- `{name}.{member.name}` = {member.value}" for member in cls)
        return
    for member, thing in own(cls).items():
        full = f"{name}.{member}"
        if isinstance(thing, (classmethod, staticmethod)):
            yield from entry(3, full, thing.__func__, signature_of(full, thing.__func__))
        elif callable(thing):
            yield from entry(3, full, thing, signature_of(full, thing))
        elif inspect.ismemberdescriptor(thing) and f"``{member}``" in (cls.__doc__ or ""):
            continue
        elif inspect.ismemberdescriptor(thing) and member not in SLOTS:
            # One that each object fills with a method: what the class says of it begins with how it is called.
            call, _, text = vars(thing.__objclass__)["__slots__"][member].partition(": ")
            yield f"### `{full}`\n\n```py\n{full.removesuffix(member)}{call}\n```\n\n{text[0].upper()}{text[1:]}"
        else:
            yield from entry(3, full, thing)


def rank(name: str) -> tuple[bool, bool, str]:
    """Where a public name stands on the page: what users begin with comes first."""
    return name != "open", not name.startswith("UdStream"), name.lower()


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for module in (udstream, ancillary):
        prefix = "udstream" if module is udstream else "udstream.ancillary"
        for name in sorted(module.__all__, key=rank):
            thing = getattr(module, name)
            if inspect.ismodule(thing) or (module is ancillary and name in udstream.__all__):
                continue
            if isinstance(thing, type):
                parts.extend(
                    class_entries(name if module is udstream else f"udstream.ancillary.{name}", thing)
                )
            elif name in CONSTANTS:
                parts.extend([f"## `{prefix}.{name}`", f"{CONSTANTS[name]} Its value: {thing}."])
            else:
                parts.extend(entry(2, f"{prefix}.{name}", thing, signature_of(f"{prefix}.{name}", thing)))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def main() -> int:
    """Write the page, or check it."""
    new = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
            print(f"{PAGE.relative_to(ROOT)} is not what the docstrings say: run python tools/reference.py")
            return 1
        return 0
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
