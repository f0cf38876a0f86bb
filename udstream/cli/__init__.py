"""
The command ``udstream``: arguments in, exit statuses out.

Each command is a module of this package with two functions, ``add_arguments(parser)`` and
``run(args) -> status``; only the one that is asked for is imported. What argparse cannot see to be wrong usage
a command tells by ``args.usage_error(text)``, which ends it. An error is one line on stderr, and
these are the statuses: 0; 1 for an error; 2 for wrong usage; 130 after Ctrl-C; 141 when whoever read the
output has gone, which is what the shell says of a program that died of it.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
import sys
from importlib import import_module

from .kinds import kind
from .terminal import (
    Failure,
    OutputClosed,
    complain,
    flush_output,
    give_up_the_rest,
    say,
    standard_files,
    version,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]

# The module of each command, and what it does. `pass` is a keyword, so its module has another name.
COMMANDS = {
    "connect": ("connect", "join stdin and stdout to a socket, both ways at once"),
    "listen": (
        "listen",
        "join stdin and stdout to whoever connects; or be an echo service, or run a command for each",
    ),
    "demo": ("demo", "see it work: a text conversation with a server of its own"),
    "who": ("who", "say who listens on a socket"),
    "pass": ("pass_files", "send open files to whoever listens on a socket"),
    "take": ("take_files", "receive open files, and run a command with them"),
    "doctor": ("doctor", "say what this kernel and platform can do"),
}

# Those that run a COMMAND of the user's, which stands after --.
RUNNING = ("listen", "take")

OK, ERROR, USAGE, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 130, 141


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse takes stdout where there is no stderr, and before Python 3.11 minds that nobody is left to be told.
        if sys.stderr is not None:
            try:
                super().error(message)
            except OSError:
                pass
        raise SystemExit(USAGE)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        say(f"udstream {version()}")
        parser.exit()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="udstream",
        description="Unix domain sockets as files. A PATH that begins with @ is a name in Linux's abstract "
        "namespace; ./@name is a file.",
        epilog="'udstream COMMAND --help' says more about each.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", "-V", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # No option before the command takes a value, so the first word that is none is the command.
    wanted = next((word for word in argv if not word.startswith("-")), None)
    for name, (module_name, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=f"{summary}.".capitalize(), allow_abbrev=False
        )
        if name == wanted:
            module = import_module(f"{__name__}.{module_name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, usage_error=sub.error)
    # argparse has no way to say "all after --, untouched", and an option of COMMAND is none of ours.
    argv, behind = _split(argv) if wanted in RUNNING else (argv, None)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        text = f"unrecognized arguments: {' '.join(unknown)}"
        if wanted in RUNNING and behind is None and not unknown[0].startswith("-"):
            text += f"; before a COMMAND stands --: udstream {wanted} {args.path} -- {' '.join(unknown)}"
        commands.choices[args.command].error(text)
    args.words = behind
    return args


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str] | None]:
    if "--" not in argv:
        return argv, None
    at = list(argv).index("--")
    return argv[:at], argv[at + 1 :]


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line *argv* (default: this process's), and return its exit status.

    ``take -- COMMAND`` does not return, nor does ``listen -- COMMAND``: this process becomes COMMAND.
    """
    standard_files()
    args = argparse.Namespace(path=None)
    try:
        try:
            args = _parse(sys.argv[1:] if argv is None else argv)
            status: int = args.run(args)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else OK
        flush_output()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputClosed:
        return OUTPUT_CLOSED
    except Failure as failure:
        complain(failure.subject, failure.reason)
        return failure.status
    except OSError as error:
        subject = _path(args) if error.filename is None else error.filename or "''"
        complain(subject, _reason(error, str(args.path if "path" in args else "")))
        return ERROR
    except NotImplementedError as error:
        complain(_path(args), error)
        return ERROR
    except ValueError as error:
        complain(_path(args), error)
        return USAGE
    finally:
        give_up_the_rest()


def _reason(error: OSError, path: str) -> object:
    """What the system says, and why it says so of *path* where no server is, or none for us."""
    reason = error.strerror or error
    cause = _cause(error.errno, path) if error.filename == path else ""
    return f"{reason}: {cause}" if cause else reason


def _cause(number: int | None, path: str) -> str:
    if number == errno.ETIMEDOUT:
        return "the server has no room for another client"
    if number == errno.EPROTOTYPE:
        return "it is a datagram or seqpacket socket, and udstream speaks to stream sockets"
    if number not in (errno.ECONNREFUSED, errno.EADDRINUSE):
        return ""
    nobody = "nobody listens on it" if number == errno.ECONNREFUSED else ""
    if path.startswith("@"):
        return nobody
    try:
        # A listener looks at what lies there itself, and a client at what a symbolic link leads to.
        mode = os.stat(path, follow_symlinks=number == errno.ECONNREFUSED).st_mode
    except OSError:
        return ""  # it has just gone, say
    if stat.S_ISLNK(mode):
        return "it is a symbolic link, and one is never replaced"
    return nobody if stat.S_ISSOCK(mode) else f"it is a {kind(mode)}, and no socket"


def _path(args: argparse.Namespace) -> object:
    return getattr(args, "path", None) or args.command
