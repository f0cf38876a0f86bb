"""``udstream demo``: the main job, with a server of its own."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from time import perf_counter

import udstream

from .. import UdStreamListener
from . import identity
from .terminal import Failure, printable, say, version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import Credentials

# Far more than any step takes; a step that hangs is to be a failure with a reason.
PATIENCE = 10.0

GREETING = "grüß dich, 世界"

PROGRAM = """\
    with udstream.open("/run/app.sock", "rw", encoding="utf-8") as f:
        f.write("PING\\n")
        print(f.readline())
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Do what a client and a server do, and print each step; `Failure` names the one that went wrong."""
    began = perf_counter()
    python = ".".join(map(str, sys.version_info[:3]))
    say(f"udstream {version()} on Python {python}: a text conversation over a Unix socket")
    say()
    with tempfile.TemporaryDirectory(prefix="udstream-") as folder:
        steps = _Steps(os.path.join(folder, "demo.sock"))
        try:
            steps.all()
        except (OSError, ValueError, EOFError, NotImplementedError, _Wrong) as error:
            raise Failure("demo", f"{steps.now}: {error}") from error
    say()
    say(f"All of it worked, in {(perf_counter() - began) * 1000:.0f} ms. From your own program:")
    say()
    for line in PROGRAM.splitlines():
        say(line)
    return 0


class _Wrong(Exception):
    """A step came out otherwise than it should."""


class _Steps:
    """The conversation, and which step of it is under way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now = ""
        self.number = 0

    def all(self) -> None:
        self.begin("listen")
        with UdStreamListener.bind(self.path, mode=0o600) as listener:
            listener.timeout = PATIENCE
            server = _Server(listener)
            server.start()
            try:
                self.done("listen", f"on {printable(self.path)}, for this user only (mode 0600)")
                self.talk()
            finally:
                listener.shutdown()
                server.join(PATIENCE)
            self.begin("hang up")
            if server.error is not None:
                raise server.error
            if server.is_alive():
                raise _Wrong("the server did not see the end of the conversation")
        if os.path.lexists(self.path):
            raise _Wrong("the socket file is still there")
        self.done("hang up", "the server saw the end of file; the socket file is gone")

    def talk(self) -> None:
        self.begin("open")
        with udstream.open(self.path, "rw", encoding="utf-8", timeout=PATIENCE) as file:
            self.done("open", 'udstream.open(path, "rw", encoding="utf-8"): an ordinary text file')

            self.begin("ask")
            file.write("PING\n")
            self.expect("PONG\n", file.readline())
            self.done("ask", "wrote PING, read PONG; no flush() needed")

            self.begin("text")
            file.write(GREETING + "\n")
            self.expect(GREETING.upper() + "\n", file.readline())
            self.done("text", f"wrote {GREETING}, read {GREETING.upper()}")

            self.begin("pipeline")
            file.write("one\ntwo\nthree\n")
            first = file.readline()
            file.write("four\n")
            answers = [first, *(file.readline() for _ in range(3))]
            self.expect(["ONE\n", "TWO\n", "THREE\n", "FOUR\n"], answers)
            self.done("pipeline", "wrote three lines, read one, wrote a fourth, read three: none was lost")

            self.begin("who")
            file.write("who am I?\n")
            me = file.readline().rstrip("\n")
            there = _described(file.buffer.raw.peer_credentials())
            self.expect(_described(udstream.Credentials(os.getpid(), os.geteuid(), os.getegid())), there)
            self.done("who", f"the server is {there}")
            self.done("", f"and knows us as {me}, from the kernel")

    def begin(self, step: str) -> None:
        self.now = step

    def done(self, step: str, what: str) -> None:
        if step:
            self.number += 1
        say(f"  {self.number if step else ' '}  {step:<9} {what}")

    def expect(self, wanted: object, got: object) -> None:
        if wanted != got:
            raise _Wrong(f"expected {wanted!r}, and got {got!r}")


class _Server(threading.Thread):
    """Answers one client, line by line."""

    def __init__(self, listener: UdStreamListener) -> None:
        super().__init__(name="demo server", daemon=True)
        self.listener = listener
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self.serve()
        except OSError as error:
            self.error = error

    def serve(self) -> None:
        with self.listener.accept() as stream:
            peer = stream.peer_credentials()
            stream.timeout = PATIENCE
            with stream.makefile("rw", encoding="utf-8") as file:
                for line in file:
                    if line == "PING\n":
                        file.write("PONG\n")
                    elif line == "who am I?\n":
                        file.write(_described(peer) + "\n")
                    else:
                        file.write(line.upper())


def _described(peer: Credentials) -> str:
    if peer.pid is None:
        return identity.user(peer.uid)
    try:
        program = identity.program(peer.pid)
    except OSError:
        return f"{identity.user(peer.uid)}, pid {peer.pid}"
    return f"{identity.user(peer.uid)}, pid {peer.pid}, {program}"
